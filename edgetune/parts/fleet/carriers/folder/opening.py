"""A folder of rounds as its carrier opens it."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

from .....errors import UsageError
from ...membership.device import device_name, signer_at
from ..registry import CarriedRounds, RoundAddress


def opened(asked: RoundAddress, _: ExitStack) -> CarriedRounds:
    """Opens a folder, as an Opening."""
    device, key = asked.device, asked.key
    if asked.joined:
        if key:
            raise UsageError("--joined is given, and --sign is given, too", "leave one of them out")
        device, key = signer_at(asked.joined, device)
    if asked.server_key:
        raise UsageError(f"--lead-key-file is given, and {asked.address} is no URL", "leave it out")
    return CarriedRounds(Path(asked.address), device or device_name(), key)
