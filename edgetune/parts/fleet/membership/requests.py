"""Requests that a device signs with its Ed25519 key, so that the device stores no key of the daemon; who signed one,
and whether a device may ask for this at all.

    Authorization: Device NAME TIME DIGEST SIGNATURE

TIME: milliseconds since 1970. DIGEST: the SHA-256 of the body. What is signed is method, path with query, TIME and
DIGEST, a line each. The head says who asks, so that a stranger's body is not read.
"""

from __future__ import annotations

import re
import threading
import time
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING

from ....errors import EdgetuneError, MismatchError, NotFoundError, TooMuchError, UsageError
from ....formats.signature import verifies
from ..carriers.registry import carriers
from .members import APPROVED, NAME, MemberFile, approved, read_member

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from starlette.types import Scope

SCHEME = "Device"
WINDOW = 300  # seconds by which the clocks of a device and of the daemon may differ
PATH = "/v1/fleet/"  # a proxy may put something before it
MOST_SEEN = 2000  # requests of a device that are remembered: the most in 2 * WINDOW seconds
JOIN = "/v1/fleet/join"
REFUSED = "device_refused"
_DEVICE = "(?P<device>[^/]+)"  # a device speaks of itself only
_STATE = f"GET /v1/fleet/members/{_DEVICE}"  # also before it is approved, and after it was revoked
_RIGHTS = ("GET /v1/fleet/order", "GET /v1/fleet/rollouts/[^/]+/.+", f"PUT /v1/fleet/devices/{_DEVICE}",
           f"POST /v1/fleet/members/{_DEVICE}/rotate")
_HEAD = "edgetune fleet request"  # so that nothing else that the key signs is a request
_FORM = re.compile(rf"{SCHEME} ({NAME.pattern}) (\d{{13}}) ([0-9a-f]{{64}}) ([0-9a-f]{{128}})")


def signed(key: Ed25519PrivateKey, device: str, method: str, path: str, digest: str, now: float) -> str:
    """Returns the header Authorization of a request. path: with its query; digest: SHA-256 of the body; now: seconds.
    """
    when = f"{round(now * 1000):013}"
    return f"{SCHEME} {device} {when} {digest} {key.sign(_message(method, path, when, digest)).hex()}"


def is_signed(authorization: str) -> bool:
    """Returns whether a header Authorization is of this kind."""
    return authorization.partition(" ")[0].lower() == SCHEME.lower()


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

    def sender(self, authorization: str, method: str, path: str, now: float) -> tuple[MemberFile, str]:
        """Returns (who signed a request, the digest that its body must have). Raises UsageError for what is no
        signature or came at another time, NotFoundError and MismatchError for another signer, and TooMuchError for too
        many requests. The signer need not be approved.
        """
        form = _FORM.fullmatch(authorization)
        if form is None:
            raise UsageError("the signature of the request is none", "update edgetune on the device")
        device, when, digest, signature = form.groups()
        late = now - int(when) / 1000
        if abs(late) > WINDOW:
            raise UsageError(f"the device's clock is {abs(late):.0f} seconds {'behind' if late > 0 else 'ahead'}, the "
                             f"most is {WINDOW}", "set the clock of the device")
        member = read_member(self.folder, device)
        if not verifies(member.key, signature, _message(method, path, when, digest)):
            raise MismatchError(f"the request is not signed by the key of {device}",
                                "use the device that joined under this name, or join under another")
        if member.state == APPROVED:
            self._once(device, signature, int(when) / 1000, now)
        return member, digest

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


class Devices:
    """The devices of the fleet in a folder."""

    def __init__(self, folder: Path) -> None:
        self._checker = Checker(folder)
        rights = (_STATE, *_RIGHTS, *(right for carrier in carriers() for right in carrier.rights))
        self._rights = [re.compile(right) for right in rights]

    def admit(self, scope: Scope) -> str | None:
        """Admits, as RunningPart does, what a device signed, and requests to join, whose body has a code."""
        from starlette.datastructures import Headers
        authorization = Headers(scope=scope).get("authorization", "")
        if is_signed(authorization):
            return self._check(scope, authorization)
        return "" if scope["path"] == JOIN else None

    def _check(self, scope: Scope, authorization: str) -> str:
        """Returns the SHA-256 that the request's body must have; the device is noted in the scope. Raises
        HTTPException.
        """
        from ....daemon.api.security import Refused
        path = scope.get("raw_path", scope["path"].encode()).decode("latin-1")
        query = scope["query_string"].decode("latin-1")
        try:
            member, digest = self._checker.sender(authorization, scope["method"],
                                                  f"{path}?{query}" if query else path, time.time())
            asked = f"{scope['method']} {scope['path']}"
            if not re.fullmatch(_STATE, asked) and member.state != APPROVED:
                approved(self._checker.folder, member.device)
        except (UsageError, NotFoundError) as error:
            raise Refused(401, str(error), REFUSED) from None
        except TooMuchError as error:
            raise Refused(429, str(error), "too_much", {"Retry-After": str(WINDOW)}) from None
        except EdgetuneError as error:
            raise Refused(403, str(error), REFUSED) from None
        may = next((found for right in self._rights if (found := right.fullmatch(asked))), None)
        if may is None:
            raise Refused(403, f"a device may not ask for {asked!r:.100}; ask with a key of the daemon", REFUSED)
        about = may.groupdict().get("device", member.device)
        if about != member.device:
            raise Refused(403, f"the request is about {about!r:.80}, and {member.device} signed it; a device "
                          "speaks of itself alone", REFUSED)
        scope.setdefault("state", {}).update(device=member.device, key=member.key)
        return digest


def _message(method: str, path: str, when: str, digest: str) -> bytes:
    return "\n".join([_HEAD, method, path[max(path.find(PATH), 0):], when, digest]).encode()
