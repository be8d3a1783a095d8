"""Requests that a device signs with its Ed25519 key, so that the device stores no key of the daemon.

    Authorization: Device NAME TIME DIGEST SIGNATURE

TIME: milliseconds since 1970. DIGEST: the SHA-256 of the body. What is signed is method, path with query, TIME and
DIGEST, a line each. The head says who asks, so that a stranger's body is not read.
"""

from __future__ import annotations

import re
import threading
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ....errors import MismatchError, TooMuchError, UsageError
from ....formats.signature import verifies
from .members import APPROVED, NAME, MemberFile, read_member

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

SCHEME = "Device"
WINDOW = 300  # seconds by which the clocks of a device and of the daemon may differ
PATH = "/v1/fleet/"  # a proxy may put something before it
MOST_SEEN = 2000  # requests of a device that are remembered: the most in 2 * WINDOW seconds
_HEAD = "edgetune fleet request"  # so that nothing else that the key signs is a request
_FORM = re.compile(rf"{SCHEME} ({NAME.pattern}) (\d{{13}}) ([0-9a-f]{{64}}) ([0-9a-f]{{128}})")


def signed(key: Ed25519PrivateKey, device: str, method: str, path: str, digest: str, now: float) -> str:
    """Returns the header Authorization of a request. path: with its query; digest: SHA-256 of the body; now: seconds.
    """
    time = f"{round(now * 1000):013}"
    return f"{SCHEME} {device} {time} {digest} {key.sign(_message(method, path, time, digest)).hex()}"


def is_signed(authorization: str) -> bool:
    """Returns whether a header Authorization is of this kind."""
    return authorization.partition(" ")[0].lower() == SCHEME.lower()


@dataclass(frozen=True)
class Sender:
    """Who signed a request. digest: that its body must have."""

    member: MemberFile
    digest: str


class Checker:
    """Finds who signed a request; each one of an approved device counts once. Others may only ask what they are, which
    changes nothing, so that nothing of them is remembered. The limit is of each device: none can shut out another,
    or take more than a few hundred kilobytes.

    After a restart, or if its clock was set back, it has forgotten some: then a request of those minutes could be
    sent a second time, which asks for the same once more.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._seen: defaultdict[str, dict[int, float]] = defaultdict(dict)  # by device: when each was signed
        self._looking = threading.Lock()

    def sender(self, authorization: str, method: str, path: str, now: float) -> Sender:
        """Raises UsageError for what is no signature or came at another time, NotFoundError and MismatchError for
        another signer, and TooMuchError for too many requests. The signer need not be approved.
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
        if member.state == APPROVED:
            self._once(device, signature, int(time) / 1000, now)
        return Sender(member, digest)

    def _once(self, device: str, signature: str, signed_at: float, now: float) -> None:
        """Raises MismatchError for a request that was sent before, and TooMuchError if the device sent too many."""
        mark = int(signature[:16], 16)
        with self._looking:
            seen = self._seen[device]
            if mark in seen:
                raise MismatchError("the request was sent before", "send a new one")
            if len(seen) >= MOST_SEEN:
                self._seen[device] = seen = {one: at for one, at in seen.items() if abs(now - at) <= WINDOW}
            if len(seen) >= MOST_SEEN:
                raise TooMuchError(f"{device} sent {MOST_SEEN} requests in {2 * WINDOW // 60} minutes, the most",
                                   "ask less often, by a larger --every")
            seen[mark] = signed_at


def _message(method: str, path: str, time: str, digest: str) -> bytes:
    return "\n".join([_HEAD, method, path[max(path.find(PATH), 0):], time, digest]).encode()
