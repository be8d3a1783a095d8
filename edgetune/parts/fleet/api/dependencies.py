"""What the paths of a fleet are given: its folder, and who signed the request."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from fastapi import Depends, Request

from ....daemon.api.completions import TheService
from ....errors import UsageError
from ..membership.members import ASK, is_joined
from ..running import advancer_of


async def _device_of(request: Request) -> str:
    return getattr(request.state, "device", "")


async def _key_of(request: Request) -> str:
    return getattr(request.state, "key", "")


async def _folder_of(service: TheService) -> Path:
    return advancer_of(service).folder


TheFolder = Annotated[Path, Depends(_folder_of)]  # of the fleet; NotFoundError: the daemon serves none
TheDevice = Annotated[str, Depends(_device_of)]  # who signed the request; "": nobody did
TheKey = Annotated[str, Depends(_key_of)]  # by which public key


def check_sender(folder: Path, sender: str) -> None:
    """Raises UsageError for what nobody signed, in a fleet that devices join."""
    if is_joined(folder) and not sender:
        raise UsageError("the request is not signed by a device of the fleet", ASK)
