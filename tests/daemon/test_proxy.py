"""A daemon behind a proxy that has let its people in, as Home Assistant's ingress: who counts as the proxy."""

import httpx
import pytest
from daemons import ASK, CHAT, daemon
from ingress import ADDRESS, client_from

from edgetune.daemon.keys import add_key
from edgetune.daemon.options import DaemonConfig
from edgetune.errors import UsageError

SHAPE = {"n_context": 128}
CLAIMS = ({}, {"X-Forwarded-For": ADDRESS}, {"X-Real-IP": ADDRESS}, {"Forwarded": f"for={ADDRESS}"},
          {"X-Ingress-Path": "/api/hassio_ingress/a-token", "X-Remote-User-Id": "1", "Host": ADDRESS})


@pytest.fixture(scope="module")
def keyed(model, tmp_path_factory):
    """A daemon that asks everybody but the proxy for a key, and one."""
    folder = tmp_path_factory.mktemp("keyed")
    key = add_key(folder / "keys", "first")
    with daemon(model, folder / "state", key_file=str(folder / "keys"), host="0.0.0.0",
                trusted_proxy=ADDRESS) as running:
        yield running.url.replace("0.0.0.0", "127.0.0.1"), key


def test_the_proxy_needs_no_key_and_nobody_else_is_taken_for_it(keyed):
    url, _ = keyed
    with client_from(ADDRESS, url) as http:
        assert http.get("/v1/models").status_code == 200
        assert http.post(CHAT, json=ASK).status_code == 200
    for address in ("127.0.0.1", "127.0.0.3"):
        with client_from(address, url) as http:
            for claim in CLAIMS:
                assert http.get("/v1/models", headers=claim).status_code == 401, (address, claim)
                assert http.post(CHAT, json=ASK, headers=claim).status_code == 401, (address, claim)


def test_pages_of_the_proxy_alone_show_the_daemons_in_a_frame(keyed):
    url, key = keyed
    with client_from(ADDRESS, url) as http:
        for answer in (http.get("/"), http.get("/v1/models"), http.get("/nowhere")):
            assert answer.headers["X-Frame-Options"] == "SAMEORIGIN"
            assert "frame-ancestors 'self'" in answer.headers["Content-Security-Policy"]
            assert "frame-ancestors 'none'" not in answer.headers["Content-Security-Policy"]
    answer = httpx.get(url, headers={"Authorization": f"Bearer {key}"})
    assert answer.headers["X-Frame-Options"] == "DENY"
    assert "frame-ancestors 'none'" in answer.headers["Content-Security-Policy"]


def test_pages_of_others_may_not_write_through_the_proxy(keyed):
    url, key = keyed
    called = {"X-Forwarded-Host": "hub.local:8123", "Host": "hub"}
    with client_from(ADDRESS, url) as http:
        for origin in ("https://hub.local:8123", "http://hub"):
            assert http.post(CHAT, json=ASK, headers={**called, "Origin": origin}).status_code == 200, origin
        for origin in ("https://evil.example", "null", "https://hub.local", "", "http://"):
            assert http.post(CHAT, json=ASK, headers={**called, "Origin": origin}).status_code == 403, origin
            assert http.post(CHAT, json=ASK, headers={"Host": "", "Origin": origin}).status_code in (400, 403), origin
    headers = {"Authorization": f"Bearer {key}", "X-Forwarded-Host": "evil.example", "Origin": "http://evil.example"}
    assert httpx.post(url + CHAT, json=ASK, headers=headers).status_code == 403


def test_an_address_of_ipv6_is_one_and_one_of_ipv4_comes_to_a_socket_of_ipv6(model, tmp_path):
    key = add_key(tmp_path / "keys", "first")
    options = {"key_file": str(tmp_path / "keys"), "host": "::", "trusted_proxy": ADDRESS}
    with daemon(model, tmp_path / "state", **options) as running:
        url = running.url.replace("[::]", "127.0.0.1")
        for address, status in ((ADDRESS, 200), ("127.0.0.1", 401)):
            with client_from(address, url) as http:
                assert http.get("/v1/models").status_code == status
        assert httpx.get(f"{url}/v1/models", headers={"Authorization": f"Bearer {key}"}).status_code == 200


def test_what_is_no_proxy_is_refused():
    for address, says in (("172.30.32", "give an IP address"), ("supervisor", "give an IP address"),
                          ("127.0.0.1", "every program of this device"), ("::1", "every program")):
        with pytest.raises(UsageError) as refused:
            DaemonConfig(trusted_proxy=address).check()
        assert says in f"{refused.value.what}; {refused.value.hint}"
    with pytest.raises(UsageError, match="a socket has no addresses"):
        DaemonConfig(trusted_proxy="172.30.32.2", socket="/run/edgetune").check()
    assert DaemonConfig(trusted_proxy="172.30.32.2").check().trusted_proxy == "172.30.32.2"
