"""Requests that a device signs with its Ed25519 key, so that the device stores no key of the daemon.

    Authorization: Device NAME TIME DIGEST SIGNATURE

TIME: milliseconds since 1970. DIGEST: the SHA-256 of the body. What is signed is method, path with query, TIME and
DIGEST, a line each. The head alone says who asks, so that a stranger's body is not read.
"""

from __future__ import annotations

import re
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ...errors import MismatchError, UsageError
from ...formats.signature import verifies
from .members import NAME, MemberFile, read_member

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

SCHEME = "Device"
WINDOW = 300  # seconds by which the clocks of a device and of the daemon may differ
PATH = "/v1/fleet/"  # a proxy may put something before it
MOST_SEEN = 20_000  # requests within the window; more are refused
_HEAD = "edgetune fleet request"  # so that nothing else that the key signs is a request
_FORM = re.compile(rf"{SCHEME} ({NAME.pattern}) (\d{{13}}) ([0-9a-f]{{64}}) ([0-9a-f]{{128}})")


def signed(key: Ed25519PrivateKey, device: str, method: str, path: str, digest: str, now: float) -> str:
    """The header Authorization of a request. path: with its query; digest: SHA-256 of the body; now: seconds."""
    time = f"{round(now * 1000):013}"
    return f"{SCHEME} {device} {time} {digest} {key.sign(_message(method, path, time, digest)).hex()}"


def is_signed(authorization: str) -> bool:
    """Whether a header Authorization is of this kind."""
    return authorization.partition(" ")[0].lower() == SCHEME.lower()


@dataclass(frozen=True)
class Sender:
    """Who signed a request. digest: that its body must have."""

    member: MemberFile
    digest: str


class Checker:
    """Finds who signed a request; each one counts once. After a restart, it forgets which ones it has seen: then a
    request of the last minutes could be sent a second time, which asks for the same once more.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._seen: dict[str, float] = {}
        self._look_at = MOST_SEEN // 16  # requests that are remembered, at which old ones are forgotten
        self._looking = threading.Lock()

    def sender(self, authorization: str, method: str, path: str, now: float) -> Sender:
        """Raises UsageError for what is no signature or came at another time, NotFoundError and MismatchError for
        another signer.
        """
        form = _FORM.fullmatch(authorization)
        if form is None:
            raise UsageError("the signature of the request is none", "update edgetune on the device")
        device, time, digest, signature = form.groups()
        late = now - int(time) / 1000
        if abs(late) > WINDOW:
            raise UsageError(f"the device's clock is {abs(late):.0f} seconds {'behind' if late > 0 else 'ahead'}, the "
                             f"most is {WINDOW}", "set the clock of the device")
        member = read_member(self.folder, device)
        if not verifies(member.key, signature, _message(method, path, time, digest)):
            raise MismatchError(f"the request is not signed by the key of {device}",
                                "use the device that joined under this name, or join under another")
        self._once(signature, now)
        return Sender(member, digest)

    def _once(self, signature: str, now: float) -> None:
        """Raises MismatchError for a request that was sent before."""
        with self._looking:
            if len(self._seen) >= self._look_at:
                self._seen = {other: at for other, at in self._seen.items() if now - at <= 2 * WINDOW}
                self._look_at = min(max(2 * len(self._seen), self._look_at), MOST_SEEN)
            if signature in self._seen or len(self._seen) >= MOST_SEEN:
                raise MismatchError("the request was sent before", "send a new one")
            self._seen[signature] = now


def _message(method: str, path: str, time: str, digest: str) -> bytes:
    return "\n".join([_HEAD, method, path[max(path.find(PATH), 0):], time, digest]).encode()
