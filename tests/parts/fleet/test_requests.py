"""Signed requests of many devices: one that sends too many shuts out nobody but itself."""

from __future__ import annotations

import time
from contextlib import suppress

import httpx
import pytest
from daemons import daemon

from edgetune.errors import MismatchError, TooMuchError
from edgetune.parts.fleet.membership import members, requests
from edgetune.parts.fleet.membership.requests import WINDOW, Checker, signed

pytest.importorskip("cryptography")

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

MOST = 200  # requests that are remembered, here
NOW = 1_800_000_000.0
EMPTY = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"  # SHA-256 of no bytes


@pytest.fixture(autouse=True)
def few(monkeypatch):
    monkeypatch.setattr(requests, "MOST_SEEN", MOST)


def device(folder, name, state="approved"):
    """The key of a device that has joined."""
    key = Ed25519PrivateKey.generate()
    members.begin(folder)
    members.ask(folder, name, key.public_key().public_bytes_raw().hex(), 1)
    if state != "waiting":
        members.approve(folder, name, 2)
    if state == "revoked":
        members.revoke(folder, name, 3)
    return key


def asks(checker, key, name, number=0, at=NOW):
    """Sends one request, which differs from others by its number."""
    path = f"/v1/fleet/members/{name}?{number}"
    return checker.sender(signed(key, name, "GET", path, EMPTY, at), "GET", path, at)[0].device


@pytest.mark.parametrize("state", ["waiting", "revoked"])
def test_a_device_that_takes_no_part_shuts_nobody_out_and_takes_no_memory(tmp_path, state):
    bad, good = device(tmp_path, "bad", state), device(tmp_path, "good")
    checker = Checker(tmp_path)
    for number in range(3 * MOST):
        assert asks(checker, bad, "bad", number) == "bad"
    assert asks(checker, good, "good") == "good"
    assert sum(map(len, checker._seen.values())) == 1


def test_an_approved_device_that_asks_too_much_shuts_out_itself_until_it_rests(tmp_path):
    bad, good = device(tmp_path, "bad"), device(tmp_path, "good")
    checker = Checker(tmp_path)
    for number in range(5 * MOST):  # 34 in a second
        if number < MOST:
            asks(checker, bad, "bad", number, NOW + number / 34)
        else:
            with pytest.raises(TooMuchError, match="bad sent 200 requests in 10 minutes, the most; ask less often"):
                asks(checker, bad, "bad", number, NOW + number / 34)
        if number % MOST == 0:
            assert asks(checker, good, "good", number, NOW + number / 34) == "good"
    assert max(map(len, checker._seen.values())) == MOST
    assert asks(checker, bad, "bad", at=NOW + 5 * MOST / 34 + WINDOW + 1) == "bad"


def test_what_an_approved_device_sent_counts_once_whatever_others_send(tmp_path):
    bad, good = device(tmp_path, "bad"), device(tmp_path, "good")
    checker = Checker(tmp_path)
    path = "/v1/fleet/order"
    sent = signed(good, "good", "GET", path, EMPTY, NOW + WINDOW)
    assert checker.sender(sent, "GET", path, NOW)[1] == EMPTY
    for number in range(2 * WINDOW):
        with suppress(TooMuchError):
            asks(checker, bad, "bad", number, NOW + number)
        with pytest.raises(MismatchError, match="was sent before"):
            checker.sender(sent, "GET", path, NOW + number)


def test_a_clock_that_is_set_back_shuts_nobody_out(tmp_path):
    key = device(tmp_path, "a")
    checker = Checker(tmp_path)
    for number in range(MOST):
        asks(checker, key, "a", number, NOW + 86_400)
    assert asks(checker, key, "a", at=NOW) == "a"


@pytest.mark.dev
def test_a_revoked_device_shuts_no_other_out_of_a_daemon(tiny_llama, tmp_path):
    folder = tmp_path / "fleet"
    folder.mkdir()
    bad, good, noisy = device(folder, "bad", "revoked"), device(folder, "good"), device(folder, "noisy")

    def ask(http, key, name, path):
        head = signed(key, name, "GET", path, EMPTY, time.time())
        return http.get(path, headers={"Authorization": head})

    with daemon(tiny_llama, tmp_path / "state", fleet=str(folder)) as lead, httpx.Client(base_url=lead.url) as http:
        for number in range(MOST + 20):
            said = ask(http, bad, "bad", f"/v1/fleet/members/bad?{number}")
            assert (said.status_code, said.json()["state"]) == (200, "revoked")
        codes = [ask(http, noisy, "noisy", f"/v1/fleet/order?{number}").status_code for number in range(MOST + 5)]
        assert codes == [200] * MOST + [429] * 5
        said = ask(http, noisy, "noisy", "/v1/fleet/order")
        assert said.headers["Retry-After"] == "300"
        assert "noisy sent 200 requests in 10 minutes" in said.json()["error"]["message"]
        assert ask(http, good, "good", "/v1/fleet/order").status_code == 200
