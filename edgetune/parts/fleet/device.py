"""The name of a device that signs nothing: 16 hexadecimal digits, drawn once and kept. It says nothing of its owner."""

from __future__ import annotations

import secrets

from ...disk import private_folder, read_small, replaced, state_folder

FILE = "fleet-device"


def device_name() -> str:
    """The name of this device for this user. Raises DiskError where it cannot be kept."""
    path = state_folder() / FILE
    try:
        found = read_small(path, 64).decode("ascii", "replace").strip()
    except OSError:
        found = ""
    if found and found.isalnum():
        return found
    private_folder(path.parent)
    found = secrets.token_hex(8)
    with replaced(path) as beside:
        beside.write_text(found + "\n")
    return found
