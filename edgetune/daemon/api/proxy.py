"""A proxy in front of the daemon that has let its people in, such as Home Assistant's ingress.

It is known by the address from which it connects; headers such as X-Forwarded-For, which anybody can send, count for
nothing. It shows the page in one of its frames, and may call this daemon by another name than people do.
"""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address, ip_address

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import Scope

_FRAMES = "frame-ancestors 'none'"
_OWN_FRAMES = "frame-ancestors 'self'"  # pages of the address that the browser shows: the proxy's


class TrustedProxy:
    """The proxy of an IP address; "": there is none."""

    def __init__(self, address: str) -> None:
        self._address = ip_address(address) if address else None

    def sends(self, scope: Scope) -> bool:
        """Returns whether a request comes from it."""
        return self._address is not None and _address_of(scope) == self._address

    @staticmethod
    def host(headers: Headers) -> str:
        """Returns the name by which the person's browser called the proxy; "" where it does not say."""
        return headers.get("x-forwarded-host", "").split(",")[0].strip()

    @staticmethod
    def allow_frames(headers: MutableHeaders) -> None:
        """Lets the proxy's pages show an answer in a frame."""
        headers["X-Frame-Options"] = "SAMEORIGIN"
        headers["Content-Security-Policy"] = headers["Content-Security-Policy"].replace(_FRAMES, _OWN_FRAMES)


def _address_of(scope: Scope) -> IPv4Address | IPv6Address | None:
    """The address that a connection comes from; None for a Unix socket."""
    client = scope.get("client")
    if not client:
        return None
    try:
        address = ip_address(client[0])
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address  # where IPv4 comes to a socket of IPv6
