"""The part of a SuperLink that other machines may reach: that for nodes.

Flower's SuperLink has one port for nodes, for its command line and for its own processes. Without accounts, which only
a plug-in has, it lets whoever reaches the port submit an app, which it then runs. Here only this machine may do that.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

Scope = MutableMapping[str, Any]
App = Callable[[Scope, Any, Callable[[Scope], Awaitable[None]]], Awaitable[None]]
FLEET = "/v1/fleet/"


class FleetAlone:
    """The ASGI app `inner` for this machine; for others its routes for nodes."""

    def __init__(self, inner: App) -> None:
        self.inner = inner

    async def __call__(self, scope: Scope, receive: Any, send: Callable[[Scope], Awaitable[None]]) -> None:
        if scope["type"] == "lifespan" or (scope["type"] == "http" and (
                scope["path"].startswith(FLEET) or is_here(scope.get("client"), scope.get("server")))):
            await self.inner(scope, receive, send)
        elif scope["type"] == "http":
            await send({"type": "http.response.start", "status": 403, "headers": [(b"content-type", b"text/plain")]})
            await send({"type": "http.response.body", "body": b"only from the machine of the server\n"})


def is_here(client: Any, server: Any) -> bool:
    """Returns whether a connection comes from this machine: from a loopback address, or from the address that it came
    to.
    """
    try:
        address = ipaddress.ip_address(client[0])
        mapped = getattr(address, "ipv4_mapped", None)
        return (mapped or address).is_loopback or address == ipaddress.ip_address(server[0])
    except (TypeError, ValueError, IndexError):
        return False
