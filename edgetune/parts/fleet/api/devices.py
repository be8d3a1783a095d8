"""Requests that devices of a fleet sign: who asks, and whether a device may ask for this at all."""

from __future__ import annotations

import re
import time
from pathlib import Path

from starlette.datastructures import Headers
from starlette.types import Scope

from ....daemon.api.security import Refused
from ....errors import EdgetuneError, NotFoundError, TooMuchError, UsageError
from ..carriers.registry import carriers
from ..membership.members import APPROVED, approved
from ..membership.requests import WINDOW, Checker, is_signed

REFUSED = "device_refused"
TOO_MANY = "too_much"
JOIN = "/v1/fleet/join"
_DEVICE = "(?P<device>[^/]+)"  # a device speaks of itself only
_STATE = f"GET /v1/fleet/members/{_DEVICE}"  # also before it is approved, and after it was revoked
_RIGHTS = ("GET /v1/fleet/order", "GET /v1/fleet/rollouts/[^/]+/.+", f"PUT /v1/fleet/devices/{_DEVICE}",
           f"POST /v1/fleet/members/{_DEVICE}/rotate")


class Devices:
    """The devices of the fleet in a folder."""

    def __init__(self, folder: Path) -> None:
        self._checker = Checker(folder)
        rights = (_STATE, *_RIGHTS, *(right for carrier in carriers() for right in carrier.rights))
        self._rights = [re.compile(right) for right in rights]

    def admit(self, scope: Scope) -> str | None:
        """Admits, as RunningPart does, what a device signed, and requests to join, whose body has a code."""
        authorization = Headers(scope=scope).get("authorization", "")
        if is_signed(authorization):
            return self._check(scope, authorization)
        return "" if scope["path"] == JOIN else None

    def _check(self, scope: Scope, authorization: str) -> str:
        """Returns the SHA-256 that the request's body must have; the device is noted in the scope. Raises
        HTTPException.
        """
        path = scope.get("raw_path", scope["path"].encode()).decode("latin-1")
        query = scope["query_string"].decode("latin-1")
        try:
            sender = self._checker.sender(authorization, scope["method"], f"{path}?{query}" if query else path,
                                          time.time())
            asked = f"{scope['method']} {scope['path']}"
            if not re.fullmatch(_STATE, asked) and sender.member.state != APPROVED:
                approved(self._checker.folder, sender.member.device)
        except (UsageError, NotFoundError) as error:
            raise Refused(401, str(error), REFUSED) from None
        except TooMuchError as error:
            raise Refused(429, str(error), TOO_MANY, {"Retry-After": str(WINDOW)}) from None
        except EdgetuneError as error:
            raise Refused(403, str(error), REFUSED) from None
        may = next((found for right in self._rights if (found := right.fullmatch(asked))), None)
        if may is None:
            raise Refused(403, f"a device may not ask for {asked!r:.100}; ask with a key of the daemon", REFUSED)
        about = may.groupdict().get("device", sender.member.device)
        if about != sender.member.device:
            raise Refused(403, f"the request is about {about!r:.80}, and {sender.member.device} signed it; a device "
                          "speaks of itself alone", REFUSED)
        scope.setdefault("state", {}).update(device=sender.member.device, key=sender.member.key)
        return sender.digest
