"""What a device that joined may ask of the daemon by its key: the files of rounds, its own answer and report.

All routes of the API are put to the daemon, so that one that is added later is refused, too, unless it is named here.
"""

from __future__ import annotations

import hashlib
import re
import time
from contextlib import closing
from http.client import HTTPConnection

import httpx
import pytest
from daemons import PATIENCE, daemon
from fleets import write_fleet
from tiny import write_tiny

from edgetune.daemon.api.app import routes
from edgetune.daemon.api.security import scope_of
from edgetune.daemon.keys import KeyScope, add_key
from edgetune.formats.bundle import open_bundle
from edgetune.parts.fleet.membership import members
from edgetune.parts.fleet.membership.requests import signed

pytest.importorskip("cryptography")

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

REFUSED = (401, 403)
EMPTY = hashlib.sha256(b"").hexdigest()
MAY = {  # all that an approved device may ask for, about itself
    ("GET", "/v1/fleet/order"), ("GET", "/v1/fleet/rollouts/{rollout}/{file:path}"),
    ("PUT", "/v1/fleet/devices/{device}"), ("GET", "/v1/fleet/round/{device}"),
    ("GET", "/v1/fleet/rounds/{number}/task/{file:path}"), ("PUT", "/v1/fleet/rounds/{number}/answers/{device}"),
    ("GET", "/v1/fleet/members/{device}"), ("POST", "/v1/fleet/members/{device}/rotate"),
}
OWN = {("GET", "/v1/fleet/members/{device}")}  # also of one that waits, or was revoked
ALL = sorted({(method, route.path) for route in routes() for method in route.methods})
PAGES = [("GET", path) for path in ("/", "/healthz", "/metrics", "/openapi.json", "/fleet.js")]
CROOKED = ["/v1/fleet/rounds/../status", "/v1/fleet/rounds/%2e%2e/status", "/v1/fleet/rounds/1/task/..%2f..%2fstatus",
           "/v1/fleet/rollouts/../status", "/v1/fleet/status/", "//v1/fleet/status", "/v1/fleet//status",
           "/v1/fleet/round/hall/../../status", "/v1/fleet/status?/v1/fleet/order", "/v1/fleet/order/../status",
           "/x/v1/fleet/order", "/v1/fleet/status;/v1/fleet/order", "/v1/fleet/members?x=/hall", "/V1/fleet/status",
           "/v1/fleet/order%2f..%2fstatus", "/v1/fleet/members/hall%0a", "/v1/files?/v1/fleet/order",
           "/v1/fleet/rounds/members/invites/hall.json", "/v1/fleet/rollouts/members/hall.json",
           "/v1/fleet/rounds/1/answers/porch", "/v1/fleet/rounds/1/task/../answers/porch/answer.json"]


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """(the folder of a fleet with rounds and a roll-out, the daemon's client, a key of the daemon)"""
    folder = tmp_path_factory.mktemp("rights")
    model = write_tiny(folder / "tiny.gguf", formats="Q8_0", n_context=512)
    write_fleet(open_bundle(model), folder / "fleet")
    key = add_key(folder / "keys", "owner")
    with daemon(model, folder / "state", context=256, fleet=str(folder / "fleet"),
                key_file=str(folder / "keys")) as running, httpx.Client(base_url=running.url, timeout=PATIENCE) as http:
        yield folder / "fleet", http, key


def member(folder, name, state):
    key = Ed25519PrivateKey.generate()
    members.ask(folder, name, key.public_key().public_bytes_raw().hex(), 1)
    if state != "waiting":
        members.approve(folder, name, 2)
    if state == "revoked":
        members.revoke(folder, name, 3)
    return key


def ask(http, key, device, method, path):
    """(status, text) of the answer to a signed request without a body, whose path is sent as it is."""
    there = HTTPConnection(http.base_url.host, http.base_url.port, timeout=PATIENCE)
    with closing(there):
        there.request(method, path, headers={"Authorization": signed(key, device, method, path, EMPTY, time.time())})
        said = there.getresponse()
        return said.status, said.read().decode()


def path_of(route, device):
    """A path of a route about a device."""
    return re.sub(r"\{[^}]*\}", "1", route.replace("{device}", device))


def test_there_are_routes_of_both_kinds():
    assert set(ALL) > MAY
    for route in (("GET", "/v1/fleet/status"), ("GET", "/v1/fleet/members"), ("POST", "/v1/fleet/invites"),
                  ("POST", "/v1/fleet/rollout/{change}"), ("POST", "/v1/fleet/members/{device}/approve"),
                  ("POST", "/v1/fleet/members/{device}/revoke"), ("POST", "/v1/files"), ("GET", "/v1/files"),
                  ("POST", "/v1/chat/completions"), ("POST", "/v1/feedback"), ("POST", "/api/chat")):
        assert route in ALL
        assert route not in MAY


@pytest.mark.dev
@pytest.mark.parametrize("state", ["approved", "waiting", "revoked"])
def test_a_device_may_ask_only_for_its_own(served, state):
    folder, http, _ = served
    name = f"hall-{state}"
    key = member(folder, name, state)
    allowed = MAY if state == "approved" else OWN
    for method, route in (*ALL, *PAGES):
        status, text = ask(http, key, name, method, path_of(route, name))
        assert (status in REFUSED) == ((method, route) not in allowed), (method, route, status, text)
    for method, route in sorted(one for one in MAY if "{device}" in one[1]):  # of another device
        assert ask(http, key, name, method, path_of(route, "kitchen"))[0] in REFUSED, route
    assert members.read_member(folder, name).state == state


def test_other_methods_and_crooked_paths_give_nothing(served):
    folder, http, key = served
    own = member(folder, "hall", "approved")
    for method in ("GET", "HEAD", "OPTIONS", "POST", "PUT", "PATCH", "DELETE"):
        for route in sorted({route for _, route in ALL if route.startswith("/v1/fleet/")}):
            if (method, route) not in MAY:
                assert ask(http, own, "hall", method, path_of(route, "hall"))[0] in (*REFUSED, 405), (method, route)
    secrets = http.get("/v1/fleet/status", headers={"Authorization": f"Bearer {key}"}).json()
    assert secrets["devices"]
    for path in CROOKED:
        for method in ("GET", "POST", "PUT"):
            status, text = ask(http, own, "hall", method, path)
            assert status >= 400, (method, path, text)
            assert "kitchen" not in text


def test_a_key_of_the_daemon_and_one_of_a_device_are_not_mixed(served):
    """A header with both, or a device's public key as the daemon's key, opens nothing."""
    folder, http, key = served
    own = member(folder, "attic", "approved")
    public = own.public_key().public_bytes_raw().hex()
    head = signed(own, "attic", "GET", "/v1/fleet/status", EMPTY, time.time())
    for value in (f"Bearer {public}", f"{head} Bearer {key}x", f"Bearer {head}", head.replace("Device", "device")):
        assert http.get("/v1/fleet/status", headers={"Authorization": value}).status_code in (401, 403)
    both = [("Authorization", head), ("Authorization", f"Bearer {public}")]
    assert http.get("/v1/fleet/status", headers=both).status_code in (401, 403)
    assert http.get("/v1/fleet/status", headers={"Authorization": f"Bearer {key}"}).status_code == 200


def test_a_key_for_less_than_everything_may_nothing_of_a_fleet():
    assert {scope_of(route) for route in routes() if route.path.startswith(("/v1/fleet", "/v1/base"))} == {
        KeyScope.ADMIN}
