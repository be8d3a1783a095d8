"""Who may ask a daemon, and how much: keys, hosts, origins, limits, and uploads and bodies of ill will."""

from __future__ import annotations

import hashlib
import json
import logging
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("fastapi")

import httpx
from daemons import Daemon, daemon
from tiny import write_tiny

from edgetune.daemon.api.policy import policy_of
from edgetune.daemon.api.security import OPEN
from edgetune.daemon.keys import add_key

sys.path.insert(0, str(Path(__file__).parents[1] / "proofs"))
from fuzz_daemon import ROWS, fuzz

ASK = {"messages": [{"role": "user", "content": "the light on"}], "max_tokens": 2}
CHAT = "/v1/chat/completions"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("model") / "tiny.gguf", formats="Q8_0", n_context=128)


@pytest.fixture(scope="module")
def keyed(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Daemon, Path, str]]:
    """A daemon that asks for a key, the file of its keys, and one of them."""
    folder = tmp_path_factory.mktemp("keyed")
    key = add_key(folder / "keys", "first")
    with daemon(model, folder / "state", key_file=str(folder / "keys"), log_prompts=True) as running:
        yield running, folder / "keys", key


@pytest.fixture(scope="module")
def open_one(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """A daemon on loopback without keys, and small limits."""
    with daemon(model, tmp_path_factory.mktemp("open") / "state", max_body=16, max_upload=1, max_rows=100) as running:
        yield running


@pytest.fixture
def client(open_one: Daemon) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=open_one.url, timeout=60) as made:
        yield made


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


# ---- keys -----------------------------------------------------------------------------------------------------------


def test_without_with_wrong_and_with_right_key(keyed, caplog):
    running, _, key = keyed
    with httpx.Client(base_url=running.url, timeout=60) as client, caplog.at_level(logging.DEBUG):
        schema = client.get("/openapi.json", headers=bearer(key)).json()
        places = [(method, path) for path, methods in schema["paths"].items() for method in methods]
        assert len(places) > 25
        all_wrong = [bearer("et-" + "x" * 43), bearer(key[:-1]), bearer(key + "x"), {"Authorization": "Bearer"},
                     {"Authorization": key}, {"Authorization": f"Basic {key}"}]
        for i, (method, path) in enumerate(places):
            if path in OPEN:
                assert client.request(method, path).status_code == 200
                continue
            for wrong in ({}, all_wrong[i % len(all_wrong)]):  # every place refuses, and each kind at many places
                refused = client.request(method, path, headers=wrong)
                assert refused.status_code == 401, (method, path)
                assert refused.headers["WWW-Authenticate"] == "Bearer"
                error = refused.json()["error"]
                assert "key" in error if path.startswith("/api/") else error["code"] == "invalid_api_key"
        assert client.post(CHAT, json=ASK).status_code == 401
        assert client.post(CHAT, json=ASK, headers=bearer(key)).status_code == 200
        assert client.get("/nowhere").status_code == 401  # a stranger does not learn what there is
    assert "the light on" in caplog.text  # log_prompts: the log is on
    assert key not in caplog.text


def test_a_key_counts_at_once_and_ends_at_once(keyed):
    running, keys, key = keyed
    with httpx.Client(base_url=running.url) as client:
        second = add_key(keys, "second")
        assert client.get("/v1/models", headers=bearer(second)).status_code == 200
        digest = hashlib.sha256(second.encode()).hexdigest()
        keys.write_text("".join(line for line in keys.read_text().splitlines(True) if digest not in line))
        assert client.get("/v1/models", headers=bearer(second)).status_code == 401
        assert client.get("/v1/models", headers=bearer(key)).status_code == 200
        keys.rename(keys.with_name("away"))
        try:
            assert client.get("/v1/models", headers=bearer(key)).status_code == 401  # no file, nobody
        finally:
            keys.with_name("away").rename(keys)
        assert client.get("/v1/models", headers=bearer(key)).status_code == 200


def test_a_key_file_that_others_may_write_lets_nobody_in_and_is_logged_once(model, tmp_path, caplog):
    key = add_key(tmp_path / "keys", "first")
    with daemon(model, tmp_path / "state", key_file=str(tmp_path / "keys")) as running:
        ask = lambda: httpx.get(running.url + "/v1/models", headers=bearer(key)).status_code  # noqa: E731
        assert ask() == 200
        (tmp_path / "keys").chmod(0o666)
        with caplog.at_level(logging.WARNING):
            assert [ask() for _ in range(20)] == [401] * 20
        said = [record.getMessage() for record in caplog.records if "others may write" in record.getMessage()]
        assert len(said) == 1
        (tmp_path / "keys").chmod(0o600)
        assert ask() == 200


# ---- browsers -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("host", ["evil.example", "evil.example:8642", "127.0.0.1.evil.example", "",
                                  "localhost.evil:1"])
def test_a_name_that_was_made_to_point_here_is_refused(client, host):
    assert client.get("/v1/models", headers={"Host": host}).status_code == 403


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:1", "127.0.0.1:8642", "[::1]:8642", "[::1]"])
def test_names_of_loopback_are_ours(client, host):
    assert client.get("/v1/models", headers={"Host": host}).status_code == 200


def test_pages_of_others_may_not_write(client, open_one):
    own = open_one.url
    for origin in ("https://evil.example", "null", "http://127.0.0.1:1", own.replace("127.0.0.1", "localhost")):
        assert client.post(CHAT, json=ASK, headers={"Origin": origin}).status_code == 403, origin
        assert client.delete("/v1/files/file-1", headers={"Origin": origin}).status_code == 403, origin
    assert client.post(CHAT, json=ASK, headers={"Origin": own}).status_code == 200
    asks = {"Origin": "https://evil.example", "Access-Control-Request-Method": "POST"}
    preflight = client.options(CHAT, headers=asks)
    assert preflight.status_code == 405
    for answer in (preflight, client.get("/v1/models", headers={"Origin": "https://evil.example"})):
        assert not [name for name in answer.headers if name.startswith("access-control")]


def test_every_answer_has_the_headers(client):
    for answer in (client.get("/v1/models"), client.get("/nowhere"), client.post(CHAT, content=b"{"),
                   client.get("/v1/models", headers={"Host": "evil.example"}), client.get("/")):
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert answer.headers["X-Frame-Options"] == "DENY"
        assert "default-src 'none'" in answer.headers["Content-Security-Policy"]
        assert "server" not in answer.headers


def test_the_pages_policy_allows_its_own_script_and_no_other(client):
    page = client.get("/")
    policy = page.headers["Content-Security-Policy"]
    assert policy == policy_of(page.text)
    assert "unsafe" not in policy
    assert policy_of(page.text.replace("<script>", "<script>evil();")) != policy


# ---- limits ---------------------------------------------------------------------------------------------------------


def test_a_body_above_the_limit_is_refused_with_and_without_its_length(client):
    whole = json.dumps({**ASK, "user": "x" * (17 << 10)}).encode()
    for content in (whole, iter([whole[:9000], whole[9000:]])):  # the second goes out in chunks
        refused = client.post(CHAT, content=content, headers={"Content-Type": "application/json"})
        assert refused.status_code == 413
        assert "16384 bytes" in refused.json()["error"]["message"]
    assert client.post(CHAT, json=ASK).status_code == 200


def test_an_upload_above_the_limits_is_refused_and_leaves_nothing(client, open_one):
    big = b'{"text": "' + b"x" * 1000 + b'"}\n'
    boundary = {"Content-Type": "multipart/form-data; boundary=x"}
    form = (b'--x\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nfine-tune\r\n--x\r\nContent-Disposition: '
            b'form-data; name="file"; filename="a"\r\n\r\n' + big * 1200 + b"\r\n--x--\r\n")
    with_length = client.post("/v1/files", data={"purpose": "fine-tune"}, files={"file": ("a", big * 1200)})
    in_chunks = client.post("/v1/files", content=iter([form[:500_000], form[500_000:]]), headers=boundary)
    between = client.post("/v1/files", data={"purpose": "fine-tune"}, files={"file": ("a", big * 1040)})
    rows = client.post("/v1/files", data={"purpose": "fine-tune"}, files={"file": ("a", b'{"text": "a b"}\n' * 101)})
    line = client.post("/v1/files", data={"purpose": "fine-tune"}, files={"file": ("a", big.replace(b"x", b"x" * 17))})
    for refused in (with_length, in_chunks, between, rows, line):
        assert refused.status_code == 413, refused.text
    assert client.get("/v1/files").json()["data"] == []
    assert left(open_one) == []


@pytest.mark.parametrize("name", ["../../../../tmp/edgetune-evil", "/tmp/edgetune-evil", "..\\..\\evil", "file-1.jsonl",
                                  "../state.db", "a/../../state.db", "%2e%2e%2fstate.db", "é\t\x1b[31m", "x" * 3000])
def test_the_name_of_an_upload_is_shown_and_never_opened(client, open_one, name):
    before = left(open_one)
    made = client.post("/v1/files", data={"purpose": "fine-tune"}, files={"file": (name, ROWS)})
    assert made.status_code == 200, made.text
    file = made.json()
    assert left(open_one) == [*before, f"{file['id']}.jsonl"]
    assert not Path("/tmp/edgetune-evil").exists()
    assert len(file["filename"]) <= 255
    assert "\x1b" not in file["filename"]
    assert client.get(f"/v1/files/{file['id']}/content").content == ROWS
    assert client.delete(f"/v1/files/{file['id']}").json()["deleted"] is True
    assert left(open_one) == before


@pytest.mark.parametrize("id", ["..%2f..%2fstate.db", "..", "%2e%2e%2fstate.db", "file-1%00", "..%2fkeys",
                                "%2fetc%2fpasswd"])
def test_no_id_leads_out_of_the_folder(client, id):
    for place in (f"/v1/files/{id}/content", f"/v1/files/{id}", f"/v1/adapters/{id}", f"/v1/fine_tuning/jobs/{id}"):
        answer = client.get(place)
        assert answer.status_code == 404, place
        assert answer.json()["error"]["message"]


@pytest.mark.parametrize(("content", "says"), [
    (b"", "no rows"), (b"\n\n", "no rows"), (b"no json", "line 1"), (b'{"a": 1}\n', "line 1"),
    (ROWS + b"[1]\n", "line 3"),
    (ROWS + b'{"messages": [{"role": "assistant", "content": "a"}]}\n', "line 3"),
    (b"\xff\xfe" + ROWS, "line 1"), (b"[" * 5000, "line 1"),
    (b"\0" * 100, "line 1"),
    (b'{"messages": "x"}\n', "line 1"), (b'{"prompt": 1, "completion": 2}\n', "line 1")])
def test_rows_that_are_none_are_refused_by_their_line(client, open_one, content, says):
    refused = client.post("/v1/files", data={"purpose": "fine-tune"}, files={"file": ("rows.jsonl", content)})
    assert refused.status_code == 400
    assert says in refused.json()["error"]["message"]
    assert left(open_one) == []


@pytest.mark.parametrize(("sent", "param"), [
    ({"data": {"purpose": "fine-tune"}}, "file"), ({"files": {"file": ("a", ROWS)}}, "purpose"),
    ({"data": {"purpose": "batch"}, "files": {"file": ("a", ROWS)}}, "purpose"),
    ({"data": {"purpose": "fine-tune", "file": "not a file"}}, "file")])
def test_a_form_that_is_none_is_refused_by_the_field(client, sent, param):
    refused = client.post("/v1/files", **sent)
    assert refused.status_code == 400
    assert refused.json()["error"]["param"] == param


def left(running: Daemon) -> list[str]:
    """What lies in the folder of uploads."""
    return sorted(path.name for path in (running.service.config.folder() / "files").iterdir())


# ---- ill will -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("body", [
    b'{"model": NaN}', b'{"messages": [{"role": "user", "content": "\\ud800"}]}', b"[" * 10_000, b"\xff\xfe{}", b"nul",
    b'{"prompt": "a", "max_tokens": 1' + b"0" * 5000 + b"}", b'{"prompt": ' + b'{"a":' * 3000])
def test_json_that_python_would_let_through_is_refused(client, body):
    for place in (CHAT, "/v1/completions", "/v1/feedback", "/v1/fine_tuning/jobs"):
        refused = client.post(place, content=body, headers={"Content-Type": "application/json"})
        assert refused.status_code == 400
        assert refused.json()["error"]["message"]


@pytest.mark.slow
def test_random_requests_break_nothing(open_one):
    met = fuzz(open_one.url, 300)
    assert met["200"] > 10  # not all of it is nonsense
    assert met["400"] > 50
