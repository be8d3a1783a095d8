"""Requests that devices of a fleet sign: who asks, and whether a device may ask for this at all."""

from __future__ import annotations

import re
import time
from pathlib import Path

from starlette.datastructures import Headers
from starlette.types import Scope

from ....daemon.api.security import Refused
from ....errors import EdgetuneError, NotFoundError, TooMuchError, UsageError
from ..membership.members import APPROVED, approved
from ..membership.requests import WINDOW, Checker, is_signed

REFUSED = "device_refused"
TOO_MANY = "too_much"
JOIN = "/v1/fleet/join"
_OWN = "(?P<device>[^/]+)"  # a device speaks of itself alone
_STATE = re.compile(f"GET /v1/fleet/members/{_OWN}")  # also before it is approved, and after it was revoked
_MAY = re.compile("|".join((
    "GET /v1/fleet/order", "GET /v1/fleet/rollouts/[^/]+/.+", f"PUT /v1/fleet/devices/{_OWN}",
    f"GET /v1/fleet/round/{_OWN.replace('device', 'following')}", "GET /v1/fleet/rounds/[^/]+/task/.+",
    f"PUT /v1/fleet/rounds/[^/]+/answers/{_OWN.replace('device', 'answering')}",
    f"POST /v1/fleet/members/{_OWN.replace('device', 'rotating')}/rotate")))


class Devices:
    """The devices of the fleet in a folder."""

    def __init__(self, folder: Path) -> None:
        self._checker = Checker(folder)

    def admit(self, scope: Scope) -> str | None:
        """Admits, as RunningPart does, what a device signed, and requests to join, whose body has a code."""
        authorization = Headers(scope=scope).get("authorization", "")
        if is_signed(authorization):
            return self._check(scope, authorization)
        return "" if scope["path"] == JOIN else None

    def _check(self, scope: Scope, authorization: str) -> str:
        """The SHA-256 that the request's body must have; the device is noted in the scope. Raises HTTPException."""
        path = scope.get("raw_path", scope["path"].encode()).decode("latin-1")
        query = scope["query_string"].decode("latin-1")
        try:
            sender = self._checker.sender(authorization, scope["method"], f"{path}?{query}" if query else path,
                                          time.time())
            asked = f"{scope['method']} {scope['path']}"
            own, may = _STATE.fullmatch(asked), _MAY.fullmatch(asked)
            if not own and sender.member.state != APPROVED:
                approved(self._checker.folder, sender.member.device)
        except (UsageError, NotFoundError) as error:
            raise Refused(401, str(error), REFUSED) from None
        except TooMuchError as error:
            raise Refused(429, str(error), TOO_MANY, {"Retry-After": str(WINDOW)}) from None
        except EdgetuneError as error:
            raise Refused(403, str(error), REFUSED) from None
        if not own and not may:
            raise Refused(403, f"a device may not ask for {asked!r:.100}; ask with a key of the daemon", REFUSED)
        about = {name for found in (own, may) if found for name in found.groupdict().values() if name}
        if about - {sender.member.device}:
            raise Refused(403, f"the request is about {about.pop()!r:.80}, and {sender.member.device} signed it; a "
                          "device speaks of itself alone", REFUSED)
        scope.setdefault("state", {}).update(device=sender.member.device, key=sender.member.key)
        return sender.digest
