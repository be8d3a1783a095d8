"""Signatures of reports, in a fleet that devices join: only what a device signed counts there.

A report is the device's file. Its signature is over all other fields: so over the name of the device, the roll-out, and
`number`, which rises from one report to the next. Fields that are empty or 0 are left out of what is signed, so that an
edgetune that has more of them checks it, too.
"""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from typing import TYPE_CHECKING

from ....formats.signature import verifies

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    from .folder import DeviceFile

SIGNATURE = "signature"
_HEAD = "edgetune fleet report"  # so that nothing else that the key signs is a report


def sign(found: DeviceFile, key: Ed25519PrivateKey) -> DeviceFile:
    """Returns the same report, signed."""
    return replace(found, signature=key.sign(_message(found)).hex())


def unsigned(found: DeviceFile, key: str) -> str:
    """Returns why a report is not signed by a public key, in a sentence; "": it is. Raises UnsupportedError."""
    if found.signature and verifies(key, found.signature, _message(found)):
        return ""
    return f"the report of {found.device} is not signed by its key, which begins with {key:.16}"


def _message(found: DeviceFile) -> bytes:
    said = {name: value for name, value in asdict(found).items() if value and name != SIGNATURE}
    return f"{_HEAD}\n{json.dumps(said, sort_keys=True)}\n".encode()
