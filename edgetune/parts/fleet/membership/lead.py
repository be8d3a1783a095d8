"""The daemon that serves a fleet, as a device asks it: signed by the device's key, if it has joined."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import quote

from ....daemon.client import Client, read_key
from ....errors import UsageError
from .device import Joined, begin, joined, name_at, public_of
from .members import PUBLIC, REVOKED, STATES
from .requests import signed

if TYPE_CHECKING:
    import httpx
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

MEMBERS = "/v1/fleet/members/"


class Signing:
    """Signs each request of a client. key: returns the newest key, which another process may replace."""

    def __init__(self, device: str, key: Callable[[], Ed25519PrivateKey]) -> None:
        self.device = device
        self.key = key

    def __call__(self, request: httpx.Request) -> httpx.Request:
        digest = hashlib.sha256()
        for piece in cast("Iterable[bytes]", request.stream):  # of files: read twice, never in memory as a whole
            digest.update(piece)
        request.headers["Authorization"] = signed(self.key(), self.device, request.method,
                                                  request.url.raw_path.decode(), digest.hexdigest(), time.time())
        return request


def open_lead(url: str, key_file: Path | None, device: str) -> tuple[Client, str]:
    """Returns (a client of the daemon at a URL, the device's name there). A device that has joined signs its requests,
    unless a key of the daemon is given. device: the name that it shall have, "": its own. Raises UsageError if it has
    joined under another name.
    """
    name, found = name_at(url, key_file, device)
    if found is None:
        return Client(url, read_key(key_file)), name
    return Client(url, sign=Signing(name, found.key)), name


def ask_to_join(url: str, code: str, device: str) -> Joined:
    """Sends the device's public key with a code. A device that was revoked gets a new key. Raises UsageError if it
    has joined, and errors of the client.
    """
    own = joined(url)
    state = _state(url, own) if own else ""
    if own and state not in ("", REVOKED):
        raise UsageError(f"this device has joined as {own.device}, and is {state}",
                         "leave --code out to wait for the approval")
    is_new = own is None or own.device != device or state == REVOKED
    if own and is_new:
        own.forget()
    own = begin(url, device) if own is None or is_new else own
    try:
        key = own.public()
        with Client(url) as client:
            _member(client, client.post("/v1/fleet/join", {"code": code, "device": device, "key": key}), key)
    except BaseException:
        if is_new:
            own.forget()
        raise
    return own


def state_of(url: str, own: Joined) -> dict[str, Any]:
    """Returns what the daemon knows of the device. Raises UsageError if it does not know it."""
    with Client(url, sign=Signing(own.device, own.key)) as client:
        return _member(client, client.get(f"{MEMBERS}{quote(own.device)}"))


def _member(client: Client, found: dict[str, Any], key: str = "") -> dict[str, Any]:
    """Returns what a daemon says of a device, checked, as far as it is used here. key: that it must have. Raises
    AwayError.
    """
    with client.understood():
        if found["state"] not in STATES or not PUBLIC.fullmatch(found["key"]) or key not in ("", found["key"]):
            raise ValueError("a device in another state, or with another key")
    return found


def _state(url: str, own: Joined) -> str:
    """Its state at the daemon, "" if that does not know it."""
    try:
        return str(state_of(url, own)["state"])
    except UsageError:
        return ""


def rotate(url: str, own: Joined) -> dict[str, Any]:
    """Replaces the device's signing key by a new one, at the daemon and here. One that was interrupted is completed."""
    next_key = public_of(own.next_key())
    with Client(url, sign=Signing(own.device, own.next_key)) as client:
        try:  # the answer to an earlier request may have been lost
            found = _member(client, client.get(f"{MEMBERS}{quote(own.device)}"), next_key)
        except UsageError:
            found = None
    if found is None:
        with Client(url, sign=Signing(own.device, own.key)) as client:
            found = _member(client, client.post(f"{MEMBERS}{quote(own.device)}/rotate", {"key": next_key}), next_key)
    own.replace_key()
    return found
