"""Who may ask a daemon, and how much: keys, hosts, origins, limits, and uploads and bodies of ill will."""

import hashlib
import json
import logging
from pathlib import Path

import httpx
import pytest
from daemons import daemon

from edgetune.daemon.api import app
from edgetune.daemon.api.security import scope_of
from edgetune.daemon.keys import SCOPES, KeyScope, add_key

ROWS = b'{"prompt": "lamp 1", "completion": "on"}\n{"prompt": "lamp 2", "completion": "off"}\n'
SHAPE = {"n_context": 128}
DAEMON = {"max_body": 16, "max_upload": 1, "max_rows": 100}  # on loopback, without keys
ASK = {"messages": [{"role": "user", "content": "the light on"}], "max_tokens": 2}
CHAT = "/v1/chat/completions"
NEEDS = {  # of a key; what is not here needs that of admin
    **dict.fromkeys(("GET /", "HEAD /", *(f"{method} {path}" for method in ("GET", "HEAD")
                                          for path in ("/healthz", "/health", "/v1/health"))), KeyScope.OPEN),
    **dict.fromkeys((f"POST {CHAT}", "POST /v1/completions", "POST /v1/embeddings", "POST /v1/classify",
                     "POST /tokenize", "POST /detokenize", "GET /v1/models", "GET /v1/models/{model}", "GET /v1/device",
                     "GET /metrics", "GET /openapi.json"), KeyScope.ANSWER),
    "POST /v1/feedback": KeyScope.FEEDBACK,
}


@pytest.fixture(scope="module")
def keyed(model, tmp_path_factory):
    """A daemon that asks for a key, the file of its keys, and one of them."""
    folder = tmp_path_factory.mktemp("keyed")
    key = add_key(folder / "keys", "first")
    with daemon(model, folder / "state", key_file=str(folder / "keys"), log_prompts=True) as running:
        yield running, folder / "keys", key


def bearer(key):
    return {"Authorization": f"Bearer {key}"}


def test_without_with_wrong_and_with_right_key(keyed, caplog):
    running, _, key = keyed
    with httpx.Client(base_url=running.url, timeout=60) as http, caplog.at_level(logging.DEBUG):
        places = [(method, route) for route in app.routes() for method in route.methods]
        assert len(places) > 50
        all_wrong = [bearer("et-" + "x" * 43), bearer(key[:-1]), bearer(key + "x"), {"Authorization": "Bearer"},
                     {"Authorization": key}, {"Authorization": f"Basic {key}"}]
        for i, (method, route) in enumerate(places):
            path = route.path
            if scope_of(route) is KeyScope.OPEN:
                assert http.request(method, path).status_code == 200
                continue
            for wrong in ({}, all_wrong[i % len(all_wrong)]):  # every place refuses, and each kind at many places
                refused = http.request(method, path, headers=wrong)
                assert refused.status_code == 401, (method, path)
                assert refused.headers["WWW-Authenticate"] == "Bearer"
                if method == "HEAD":
                    continue
                error = refused.json()["error"]
                assert "key" in error if path.startswith("/api/") else error["code"] == "invalid_api_key"
        assert http.post(CHAT, json=ASK).status_code == 401
        assert http.post(CHAT, json=ASK, headers=bearer(key)).status_code == 200
        assert http.get("/nowhere").status_code == 401  # a stranger does not learn what there is
    assert "the light on" in caplog.text  # log_prompts: the log is on
    assert key not in caplog.text


def test_three_keys_may_what_the_table_says_on_all_routes(keyed):
    """Those of the core by this table, those of parts by what they declare; all that declare nothing are for admin."""
    running, keys, _ = keyed
    made = {scope: add_key(keys, word, scope) for word, scope in SCOPES.items()}
    declared = {f"{method} {route.path}": scope_of(route) for route in app.routes() for method in route.methods}
    core = {f"{method} {route.path}" for route in app.routes() for method in route.methods
            if ".parts." not in route.endpoint.__module__}
    assert {name: declared[name] for name in core} == {name: NEEDS.get(name, KeyScope.ADMIN) for name in core}
    assert NEEDS.keys() <= core
    with httpx.Client(base_url=running.url, timeout=60) as http:
        for held, key in made.items():
            for name, needed in declared.items():
                method, path = name.split()
                answer = http.request(method, path, headers=bearer(key))
                refused = "insufficient_scope" in answer.headers.get("WWW-Authenticate", "")
                assert refused == (held < needed), (held, name, answer.status_code)
                assert answer.status_code == 403 or not refused
                assert answer.status_code != 401
            assert http.get("/nowhere", headers=bearer(key)).status_code == 404
            assert http.put(CHAT, headers=bearer(key)).status_code == 405
        refused = http.delete("/v1/feedback/feedback-1", headers=bearer(made[KeyScope.FEEDBACK]))
        assert (refused.json()["error"]["code"], refused.json()["error"]["type"]) == (
            "insufficient_scope", "permission_error")
        for words in ("DELETE '/v1/feedback/feedback-1'", "scope admin", "is feedback"):
            assert words in refused.json()["error"]["message"]
        assert http.post(CHAT, json=ASK, headers=bearer(made[KeyScope.ANSWER])).status_code == 200
        paths = http.get("/openapi.json", headers=bearer(made[KeyScope.ANSWER])).json()["paths"]
        assert paths[CHAT]["post"]["security"] == [{"key": ["answer"]}]
        assert paths["/v1/learn"]["post"]["security"] == [{"key": ["admin"]}]
        assert paths["/"]["get"]["security"] == []


def test_a_key_counts_and_ends_at_once_and_a_file_that_others_may_write_lets_nobody_in(keyed, caplog):
    running, keys, key = keyed
    with httpx.Client(base_url=running.url) as http:
        second = add_key(keys, "second")
        assert http.get("/v1/models", headers=bearer(second)).status_code == 200
        digest = hashlib.sha256(second.encode()).hexdigest()
        keys.write_text("".join(line for line in keys.read_text().splitlines(True) if digest not in line))
        assert http.get("/v1/models", headers=bearer(second)).status_code == 401
        assert http.get("/v1/models", headers=bearer(key)).status_code == 200
        keys.rename(keys.with_name("away"))
        try:
            assert http.get("/v1/models", headers=bearer(key)).status_code == 401  # no file, nobody
        finally:
            keys.with_name("away").rename(keys)
        assert http.get("/v1/models", headers=bearer(key)).status_code == 200
    keys.chmod(0o666)
    with caplog.at_level(logging.WARNING):
        for _ in range(5):
            assert httpx.get(running.url + "/v1/models", headers=bearer(key)).status_code == 401
    said = [record.getMessage() for record in caplog.records if "others may write" in record.getMessage()]
    assert len(said) == 1
    keys.chmod(0o600)
    assert httpx.get(running.url + "/v1/models", headers=bearer(key)).status_code == 200


def test_pages_of_others_may_not_write_nor_names_point_here(http, running):
    for host in ("evil.example", "evil.example:8642", "127.0.0.1.evil.example", "", "localhost.evil:1"):
        assert http.get("/v1/models", headers={"Host": host}).status_code == 403, host
    for host in ("localhost", "LOCALHOST:1", "127.0.0.1:8642", "[::1]:8642", "[::1]"):
        assert http.get("/v1/models", headers={"Host": host}).status_code == 200, host
    own = running.url
    for origin in ("https://evil.example", "null", "http://127.0.0.1:1", own.replace("127.0.0.1", "localhost")):
        assert http.post(CHAT, json=ASK, headers={"Origin": origin}).status_code == 403, origin
        assert http.delete("/v1/files/file-1", headers={"Origin": origin}).status_code == 403, origin
    assert http.post(CHAT, json=ASK, headers={"Origin": own}).status_code == 200
    asks = {"Origin": "https://evil.example", "Access-Control-Request-Method": "POST"}
    preflight = http.options(CHAT, headers=asks)
    assert preflight.status_code == 405
    for answer in (preflight, http.get("/v1/models", headers={"Origin": "https://evil.example"})):
        assert not [name for name in answer.headers if name.startswith("access-control")]


def test_every_answer_has_the_headers_and_no_id_leads_out_of_the_folder(http):
    for answer in (http.get("/v1/models"), http.get("/nowhere"), http.post(CHAT, content=b"{"),
                   http.get("/v1/models", headers={"Host": "evil.example"}), http.get("/")):
        assert (answer.headers["X-Content-Type-Options"], answer.headers["X-Frame-Options"]) == ("nosniff", "DENY")
        assert "default-src 'none'" in answer.headers["Content-Security-Policy"]
        assert "server" not in answer.headers
    for id in ("..%2f..%2fstate.db", "..", "%2e%2e%2fstate.db", "file-1%00", "..%2fkeys", "%2fetc%2fpasswd"):
        for place in (f"/v1/files/{id}/content", f"/v1/files/{id}", f"/v1/adapters/{id}", f"/v1/fine_tuning/jobs/{id}"):
            answer = http.get(place)
            assert answer.status_code == 404, place
            assert answer.json()["error"]["message"]


def test_a_body_above_the_limit_is_refused_with_and_without_its_length(http):
    whole = json.dumps({**ASK, "user": "x" * (17 << 10)}).encode()
    for content in (whole, iter([whole[:9000], whole[9000:]])):  # the second goes out in chunks
        refused = http.post(CHAT, content=content, headers={"Content-Type": "application/json"})
        assert refused.status_code == 413
        assert "16384 bytes" in refused.json()["error"]["message"]
    assert http.post(CHAT, json=ASK).status_code == 200


def test_an_upload_above_the_limits_or_of_no_rows_is_refused_and_leaves_nothing(http, running):
    big = b'{"text": "' + b"x" * 1000 + b'"}\n'
    boundary = {"Content-Type": "multipart/form-data; boundary=x"}
    form = (b'--x\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nfine-tune\r\n--x\r\nContent-Disposition: '
            b'form-data; name="file"; filename="a"\r\n\r\n' + big * 1200 + b"\r\n--x--\r\n")
    with_length = http.post("/v1/files", data={"purpose": "fine-tune"}, files={"file": ("a", big * 1200)})
    in_chunks = http.post("/v1/files", content=iter([form[:500_000], form[500_000:]]), headers=boundary)
    between = http.post("/v1/files", data={"purpose": "fine-tune"}, files={"file": ("a", big * 1040)})
    rows = http.post("/v1/files", data={"purpose": "fine-tune"}, files={"file": ("a", b'{"text": "a b"}\n' * 101)})
    line = http.post("/v1/files", data={"purpose": "fine-tune"}, files={"file": ("a", big.replace(b"x", b"x" * 17))})
    for refused in (with_length, in_chunks, between, rows, line):
        assert refused.status_code == 413, refused.text
    assert http.get("/v1/files").json()["data"] == []
    assert left(running) == []
    for content, says in ((b"\n\n", "no rows"), (ROWS + b"[1]\n", "line 3"), (b"\0" * 100, "line 1")):
        refused = http.post("/v1/files", data={"purpose": "fine-tune"}, files={"file": ("rows.jsonl", content)})
        assert refused.status_code == 400
        assert says in refused.json()["error"]["message"]
        assert left(running) == []


@pytest.mark.parametrize("name", ["../../../../tmp/edgetune-evil", "/tmp/edgetune-evil", "..\\..\\evil", "file-1.jsonl",
                                  "../state.db", "a/../../state.db", "%2e%2e%2fstate.db", "é\t\x1b[31m", "x" * 3000])
def test_the_name_of_an_upload_is_shown_and_never_opened(http, running, name):
    before = left(running)
    made = http.post("/v1/files", data={"purpose": "fine-tune"}, files={"file": (name, ROWS)})
    assert made.status_code == 200, made.text
    file = made.json()
    assert left(running) == [*before, f"{file['id']}.jsonl"]
    assert not Path("/tmp/edgetune-evil").exists()
    assert len(file["filename"]) <= 255
    assert "\x1b" not in file["filename"]
    assert http.get(f"/v1/files/{file['id']}/content").content == ROWS
    assert http.delete(f"/v1/files/{file['id']}").json()["deleted"] is True
    assert left(running) == before


@pytest.mark.parametrize(("sent", "param"), [
    ({"data": {"purpose": "fine-tune"}}, "file"), ({"files": {"file": ("a", ROWS)}}, "purpose"),
    ({"data": {"purpose": "batch"}, "files": {"file": ("a", ROWS)}}, "purpose"),
    ({"data": {"purpose": "fine-tune", "file": "not a file"}}, "file")])
def test_a_form_that_is_none_is_refused_by_the_field(http, sent, param):
    refused = http.post("/v1/files", **sent)
    assert refused.status_code == 400
    assert refused.json()["error"]["param"] == param


def left(running):
    """What lies in the folder of uploads."""
    return sorted(path.name for path in (running.service.config.folder() / "files").iterdir())


@pytest.mark.parametrize("body", [
    b'{"model": NaN}', b'{"messages": [{"role": "user", "content": "\\ud800"}]}', b"[" * 10_000, b"\xff\xfe{}", b"nul",
    b'{"prompt": "a", "max_tokens": 1' + b"0" * 5000 + b"}", b'{"prompt": ' + b'{"a":' * 3000])
def test_json_that_python_would_let_through_is_refused(http, body):
    for place in (CHAT, "/v1/completions", "/v1/feedback", "/v1/fine_tuning/jobs"):
        refused = http.post(place, content=body, headers={"Content-Type": "application/json"})
        assert refused.status_code == 400
        assert refused.json()["error"]["message"]
