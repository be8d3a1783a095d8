"""The URL of a daemon as its carrier opens it."""

from __future__ import annotations

from contextlib import ExitStack

from .....errors import UsageError
from ...membership.device import check_no_signer, name_at
from ...rollout.http import copy_of
from ..registry import CarriedRounds, RoundAddress
from .child import RoundsInChild


def opened(asked: RoundAddress, opened: ExitStack) -> CarriedRounds:
    """Opens a URL, as an Opening."""
    url = asked.address
    check_no_signer(url, asked.joined)
    name, joined = name_at(url, asked.server_key, asked.device)
    if joined and asked.key:
        raise UsageError(f"--sign is given, and this device signs by the key with which it joined {url}",
                         "leave --sign out")
    server = opened.enter_context(RoundsInChild(url, asked.server_key, name))
    return CarriedRounds(copy_of(url, name), name, asked.key, server)
