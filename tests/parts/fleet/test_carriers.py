"""The carriers of rounds: a new one is a folder, and changes nothing outside of it."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import structure

from edgetune.parts.fleet.carriers.registry import carrier_of, carriers

TESTS = Path(__file__).parents[2]
MODULES = structure.modules()
CARRIERS = {carrier.name: carrier for carrier in carriers()}
HERE = "parts.fleet.carriers"


@pytest.mark.parametrize(("address", "name"), [
    ("rounds", "folder"), ("/mnt/rounds", "folder"), ("http", "folder"), ("http://hall:8642", "http"),
    ("https://hall", "http"), ("unix:/run/socket", "http")])
def test_an_address_is_opened_by_its_carrier(address, name):
    assert carrier_of(address).name == name


@pytest.mark.parametrize("name", CARRIERS)
def test_a_carrier_names_what_exists(name):
    carrier = CARRIERS[name]
    assert carrier.name == name
    opening = (carrier.opening.partition(":")[0],) if carrier.opening else ()
    for place in carrier.places((*carrier.commands, *carrier.routes, *opening)):
        assert f"parts.fleet.{place}" in MODULES
    assert all(re.compile(right).groups <= 1 for right in carrier.rights)


@pytest.mark.dev
@pytest.mark.parametrize("name", CARRIERS)
def test_nothing_outside_knows_a_carrier(name):
    inside = f"{HERE}.{name}"
    assert [module for module, targets in structure.graph().items() if not module.startswith(inside)
            and any(target == inside or target.startswith(f"{inside}.") for target in targets)] == []


@pytest.fixture(scope="module")
def said(tmp_path_factory):
    """What came through each seam, with the box beside the carriers."""
    done = subprocess.run([sys.executable, TESTS / "toy_carrier.py", tmp_path_factory.mktemp("box")], cwd=TESTS,
                          capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.dev
def test_a_new_carrier_takes_a_device_through_a_round(said):
    assert said["followed"] == {"device": "hall", "answered": [1]}
    assert said["asked"] == ["round", "rest", "send", "closed"]
    assert (said["devices"], said["left_out"], said["newest"]) == (1, 0, 2)


def test_a_new_carrier_has_a_command_an_extra_a_route_and_a_right(said):
    assert said["command"] == "a box\n"
    assert re.search(r"^  box +Say that it is a box.$", said["help"], re.MULTILINE)
    assert "[box 0, folder 60, http 300]" in " ".join(said["follow"].split())
    assert said["routes"] == ["/v1/fleet/box/{device}"]
    assert "GET /v1/fleet/box/(?P<device>[^/]+)" in said["rights"]
