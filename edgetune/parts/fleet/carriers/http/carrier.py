"""A daemon that serves the folder by HTTP. A device needs no open port; an idle one sends a small request at a time."""

from ..registry import Carrier

CARRIER = Carrier(
    name="http", schemes=("http://", "https://", "unix:"), opening="opening:opened", seconds=300.0,
    routes=("routes",),
    rights=("GET /v1/fleet/round/(?P<device>[^/]+)", "GET /v1/fleet/rounds/[^/]+/task/.+",
            "PUT /v1/fleet/rounds/[^/]+/answers/(?P<device>[^/]+)"))
