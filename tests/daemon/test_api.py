"""What the API has beyond OpenAI's, and the life of its server: from ready to drained."""

from __future__ import annotations

import io
import json
import os
import resource
import shutil
import signal
import socket
import stat
import subprocess
import sys
import textwrap
import time
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest

pytest.importorskip("fastapi")

import httpx
from daemons import PATIENCE, Daemon, daemon
from prometheus_client.parser import text_string_to_metric_families
from services import until
from tiny import write_tiny

from edgetune.adapters.store import open_adapter
from edgetune.data.dataset import load_rows
from edgetune.errors import UsageError
from edgetune.formats.bundle import open_bundle
from edgetune.llamacpp.tokenizer import Tokenizer
from edgetune.training import run as train
from edgetune.training.config import FILE_OPTIONS, TrainConfig, train_options

CHAT = "/v1/chat/completions"
ASK = {"messages": [{"role": "user", "content": "the light on"}]}
LONG = 1000  # tokens of an answer that does not end soon; several fit the context


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("model") / "tiny.gguf", formats="Q8_0", n_context=4096)


@pytest.fixture(scope="module")
def runs(model: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Folders of two trained adapters."""
    folder = tmp_path_factory.mktemp("runs")
    bundle = open_bundle(model)
    rows = [{"prompt": "turn", "completion": "the light on"}] * 4
    config = TrainConfig(steps=2, batch_size=4, max_length=32, threads=1)
    data = load_rows(rows, Tokenizer(model), max_length=32)
    for name in ("a", "b"):
        train.run(bundle, data, folder / name, config)
    return [folder / "a", folder / "b"]


@pytest.fixture(scope="module")
def running(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    with daemon(model, tmp_path_factory.mktemp("daemon") / "state", parallel=2, queue=1, recall=False) as made:
        yield made


@pytest.fixture
def client(running: Daemon) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=running.url, timeout=PATIENCE) as made:
        yield made


# ---- feedback -------------------------------------------------------------------------------------------------------


def test_an_answer_is_corrected_by_its_id(client, running):
    said = client.post(CHAT, json={**ASK, "max_tokens": 4}).json()
    note = client.post("/v1/feedback", json={"completion_id": said["id"], "correction": "off"})
    assert note.status_code == 200, note.text
    assert note.json()["learns"] is True
    assert note.json()["reason"]
    kept = running.service.feedback.list(limit=1)[0]
    assert kept.row["messages"][0] == ASK["messages"][0]
    assert kept.row["messages"][-1] == {"role": "assistant", "content": "off"}
    assert kept.model == said["model"]


def test_streams_and_completions_are_rated_too(client, running):
    with client.stream("POST", CHAT, json={**ASK, "max_tokens": 8, "stream": True}) as stream:
        pieces = [json.loads(line[6:]) for line in stream.iter_lines() if line.startswith("data: {")]
    text = "".join(piece["choices"][0]["delta"].get("content", "") for piece in pieces)
    for id, answer in ((pieces[0]["id"], text), *(
            (said["id"], said["choices"][0]["text"]) for said in
            [client.post("/v1/completions", json={"prompt": "turn", "max_tokens": 8}).json()])):
        note = client.post("/v1/feedback", json={"completion_id": id, "rating": "up"}).json()
        assert note["rating"] == "up"
        row = running.service.feedback.list(limit=1)[0].row
        assert (row["messages"][-1]["content"] if "messages" in row else row["completion"]) == answer
    down = client.post("/v1/feedback", json={"completion_id": id, "rating": "down"}).json()
    assert down["learns"] is False


def test_feedback_is_listed_in_pages_with_counts(client):
    given = [{"prompt": f"lamp {i}", "correction": "on"} for i in range(4)]
    made = [client.post("/v1/feedback", json=body).json()["id"] for body in given]
    first = client.get("/v1/feedback", params={"limit": 2}).json()
    second = client.get("/v1/feedback", params={"limit": 2, "after": first["data"][-1]["id"]}).json()
    assert [note["id"] for note in first["data"] + second["data"]] == made[::-1]
    assert first["has_more"] is True
    assert sum(first["counts"].values()) >= 4


def test_feedback_is_read_edited_and_deleted(client):
    given = {"messages": [*ASK["messages"]], "correction": "on " * 200, "model": "tiny"}
    made = client.post("/v1/feedback", json=given).json()
    whole = client.get(f"/v1/feedback/{made['id']}").json()
    assert {**whole, "row": None} == {**made, "row": None}
    assert whole["row"]["messages"][-1]["content"] == given["correction"]
    assert whole["answer"] == given["correction"][:300]
    assert whole["question"] == ASK["messages"][-1]["content"]
    assert (whole["state"], whole["job"], whole["model"]) == ("new", None, "tiny")
    edited = client.patch(f"/v1/feedback/{made['id']}", json={"correction": "off"}).json()
    assert edited == client.get(f"/v1/feedback/{made['id']}").json()
    assert edited["answer"] == "off"
    assert edited["id"] == client.get("/v1/feedback").json()["data"][0]["id"] == made["id"]
    assert client.delete(f"/v1/feedback/{made['id']}").json() == {
        "id": made["id"], "object": "feedback", "deleted": True, "remains": ""}
    for asked in (client.get, client.delete, lambda path: client.patch(path, json={"correction": "on"})):
        refused = asked(f"/v1/feedback/{made['id']}")
        assert refused.status_code == 404
        assert refused.json()["error"]["message"] == f"there is no feedback '{made['id']}'; list it to see what exists"
    for body in ({}, {"correction": " "}, {"correction": 1}, {"correction": "x", "rating": "up"}):
        assert client.patch(f"/v1/feedback/{made['id']}", json=body).status_code in (400, 404)


@pytest.mark.parametrize(("body", "status"), [
    ({}, 400), ({"rating": "up"}, 400), ({"completion_id": "chatcmpl-1", "rating": "up"}, 404), ({"prompt": "a"}, 400),
    ({"prompt": "a", "messages": ASK["messages"], "correction": "b"}, 400), ({"prompt": "a", "rating": "good"}, 400),
    ({"completion_id": "x", "prompt": "a", "correction": "b"}, 400), ({"messages": [], "correction": "b"}, 400)])
def test_feedback_on_nothing_is_refused(client, body, status):
    refused = client.post("/v1/feedback", json=body)
    assert refused.status_code == status
    assert refused.json()["error"]["message"]


# ---- adapters -------------------------------------------------------------------------------------------------------


def test_adapters_are_promoted_rolled_back_and_deleted(client, running, runs):
    first, second = (running.service.adapters.add(f"job-{i}", run, "s", {"passed": True, "reason": "a test"}).id
                     for i, run in enumerate(runs))
    listed = client.get("/v1/adapters").json()
    assert [adapter["id"] for adapter in listed["data"]] == [second, first]
    assert listed["serving"] is None
    assert listed["data"][0]["verdict"] == {"passed": True, "reason": "a test"}
    assert answers(client) == "tiny"
    for id in (first, second):
        assert client.post(f"/v1/adapters/{id}/promote").json() == {"serving": id}
        assert answers(client) == id
    start = time.monotonic()
    assert client.post("/v1/adapters/rollback").json() == {"serving": first}
    assert time.monotonic() - start < 1  # promised
    assert answers(client) == first
    refused = client.delete(f"/v1/adapters/{first}")
    assert refused.status_code == 400
    assert "is active" in refused.json()["error"]["message"]
    assert client.get(f"/v1/adapters/{second}").json()["state"] == "retired"
    assert client.delete(f"/v1/adapters/{second}").json() == {"id": second, "object": "adapter", "deleted": True}
    assert client.get(f"/v1/adapters/{second}").status_code == 404
    assert client.post(f"/v1/adapters/{second}/promote").status_code == 404
    assert client.post("/v1/adapters/rollback").json() == {"serving": None}
    assert answers(client) == "tiny"
    history = client.get("/v1/adapters").json()["history"]
    assert [switch["adapter"] for switch in history] == [None, first, second, first]


def test_an_adapter_is_renamed_and_downloaded(client, running, runs, model, tmp_path):
    """What is downloaded is an adapter for the same model, and tells nothing of rows or of this machine."""
    record = json.loads((runs[0] / "run.json").read_text())
    record |= {"origin": {"data": "/secret/rows.jsonl"}, "answers": {"rows": 1, "pairs": [{"prompt": "a secret"}]}}
    private = shutil.copytree(runs[0], tmp_path / "run")
    (private / "run.json").write_text(json.dumps(record))
    id = running.service.adapters.add("job-7", private, "s", {"passed": True, "reason": "a test"}).id
    place = f"/v1/adapters/{id}"
    assert client.get(place).json()["name"] is None
    assert client.patch(place, json={"name": "Home lamps"}).json()["name"] == "Home lamps"
    assert client.post(CHAT, json={**ASK, "model": "Home lamps", "max_tokens": 1}).json()["model"] == id
    assert client.get("/v1/models/Home lamps").status_code == 200
    for name in ("tiny", "tiny:latest", "../x", "a" * 65, id):
        refused = client.patch(place, json={"name": name})
        assert refused.status_code == 400, name
        assert "name" in refused.json()["error"]["message"]
    download = client.get(f"{place}/download")
    assert download.headers["Content-Disposition"] == "attachment; filename*=UTF-8''Home-lamps.zip"
    with zipfile.ZipFile(io.BytesIO(download.content)) as archive:
        archive.extractall(tmp_path)
    unpacked = tmp_path / "Home-lamps"
    assert {path.name for path in unpacked.iterdir()} == {"adapter.gguf", "run.json", "README.md"}
    opened = open_adapter(unpacked, open_bundle(model).gguf)
    assert opened.run["steps"] == 2
    assert opened.run["answers"] == {"rows": 1}
    assert (unpacked / "adapter.gguf").read_bytes() == (runs[0] / "adapter.gguf").read_bytes()
    texts = (unpacked / "run.json").read_text() + (unpacked / "README.md").read_text()
    assert "secret" not in texts
    assert str(model.parent) not in texts
    assert client.patch(place, json={"name": ""}).json()["name"] is None
    assert client.post(CHAT, json={**ASK, "model": "Home lamps"}).status_code == 404
    client.delete(place)
    assert client.get(f"{place}/download").status_code == 404


def answers(client: httpx.Client) -> str:
    said = client.post(CHAT, json={**ASK, "model": "tiny:latest", "max_tokens": 1}).json()
    assert said["usage"]["completion_tokens"] == 1
    return str(said["model"])


# ---- the device -----------------------------------------------------------------------------------------------------


def test_the_device_tells_of_itself(client):
    said = client.get("/v1/device").json()
    assert said["model"] == "tiny"
    assert 0 < said["memory"]["used"] < said["memory"]["budget"]
    assert said["serving"]["requests"] > 0
    assert said["job"] is None
    assert client.get("/healthz").json() == {"status": "ok", "reasons": []}


def test_metrics_count_what_was_asked(client):
    def read() -> dict[str, float]:
        text = client.get("/metrics").text
        return {sample.name + "".join(sorted(sample.labels.values())): sample.value
                for family in text_string_to_metric_families(text) for sample in family.samples}

    before = read()
    said = client.post(CHAT, json={**ASK, "max_tokens": 5}).json()
    for place in ("/v1/files/file-1", "/v1/files/file-2", "/nowhere/1", "/nowhere/2"):
        client.get(place)
    after = read()
    new = {name: after[name] - before.get(name, 0) for name in after if after[name] != before.get(name, 0)}
    assert new["edgetune_completion_tokens_total"] == said["usage"]["completion_tokens"]
    assert new["edgetune_requests_total"] == 1
    requests = {name: count for name, count in new.items() if name.startswith("edgetune_http_requests_total")}
    assert requests.pop("edgetune_http_requests_total/v1/chat/completions200POST") == 1
    assert requests.pop("edgetune_http_requests_total/v1/files/{file_id}404GET") == 2
    assert requests.pop("edgetune_http_requests_total404GETnone") == 2
    assert after["edgetune_memory_used_bytes"] > 0


def test_the_schema_has_every_option_once_and_no_422(client):
    schema = client.get("/openapi.json").json()
    for path, operations in schema["paths"].items():
        for operation in operations.values():
            assert not {"422", "409", "500"} & set(operation["responses"]), path
            assert {"400", "401", "403", "404", "413", "429", "507"} <= set(operation["responses"]), path
    options = schema["components"]["schemas"]["Hyperparameters"]["properties"]
    known = {name: spec.metadata["help"] for name, spec in train_options().items() if name not in FILE_OPTIONS}
    for name, text in known.items():
        assert options[name]["description"] == text
    assert set(options) - set(known) == {"n_epochs", "learning_rate_multiplier"}


@pytest.mark.parametrize(("path", "methods"), [
    ("/v1/files", "GET, POST"), ("/v1/files/file-1", "DELETE, GET"), ("/v1/adapters/x/promote", "POST"),
    ("/healthz", "GET"), (CHAT, "POST")])
def test_what_may_be_done_at_a_place_is_told(client, path, methods):
    refused = client.patch(path)
    assert (refused.status_code, refused.headers["Allow"]) == (405, methods)
    assert "PATCH" in refused.json()["error"]["message"]


# ---- answers that are not ended, and too many of them ---------------------------------------------------------------


@pytest.mark.parametrize("stream", [True, False])
def test_who_goes_away_is_not_answered_on(client, running, stream):
    facts = running.service.batcher.facts
    before = facts()["completion_tokens"]
    body = json.dumps({**ASK, "model": "tiny", "max_tokens": LONG, "stream": stream}).encode()
    head = (f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(body)}\r\n")
    place = running.url.removeprefix("http://").split(":")
    with socket.create_connection((place[0], int(place[1])), timeout=PATIENCE) as connection:
        connection.sendall(head.encode() + b"\r\n" + body)
        until(lambda: facts()["completion_tokens"] > before)
    until(lambda: facts()["working"] == 0)
    assert facts()["completion_tokens"] - before < LONG
    assert client.get("/healthz").status_code == 200


def test_more_than_may_wait_are_told_to_come_again(client, running):
    def ask() -> httpx.Response:
        return httpx.post(running.url + CHAT, json={**ASK, "model": "tiny", "max_tokens": LONG}, timeout=PATIENCE)

    facts = running.service.batcher.facts
    with ThreadPoolExecutor(3) as pool:
        asked = []
        for at_work in ((1, 0), (2, 0), (2, 1)):
            asked.append(pool.submit(ask))
            until(lambda at_work=at_work: (facts()["working"], facts()["waiting"]) == at_work)
        refused = client.post(CHAT, json=ASK)
        assert refused.status_code == 429
        assert int(refused.headers["Retry-After"]) >= 1
        assert refused.json()["error"]["type"] == "rate_limit_error"
        assert [answer.result().json()["usage"]["completion_tokens"] for answer in asked] == [LONG] * 3
    assert client.post(CHAT, json={**ASK, "max_tokens": 1}).status_code == 200


@pytest.mark.parametrize("lines", [30, 3000])  # what is larger than a megabyte passes through a nameless file
def test_a_disk_that_takes_no_more_is_507_and_leaves_nothing(client, running, lines):
    rows = b'{"text": "' + b"the light on " * 50 + b'"}\n'
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8192, before[1]))  # what a full disk does to a write
    try:
        refused = client.post("/v1/files", data={"purpose": "fine-tune"}, files={"file": ("a", rows * lines)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert refused.status_code == 507, refused.text
    assert list((running.service.config.folder() / "files").iterdir()) == []
    made = client.post("/v1/files", data={"purpose": "fine-tune"}, files={"file": ("a", rows * lines)})
    assert made.status_code == 200
    client.delete(f"/v1/files/{made.json()['id']}")


# ---- the server's life ----------------------------------------------------------------------------------------------


def test_answers_end_before_the_daemon_does(model, tmp_path):
    with daemon(model, tmp_path / "state") as running, ThreadPoolExecutor(1) as pool:
        asked = pool.submit(httpx.post, running.url + CHAT, json={**ASK, "max_tokens": LONG}, timeout=PATIENCE)
        with httpx.stream("POST", running.url + CHAT, json={**ASK, "max_tokens": LONG, "stream": True},
                          timeout=PATIENCE) as stream:
            lines = stream.iter_lines()
            next(lines)
            running.service.stopping.set()
            rest = list(lines)
        assert rest[-2:] == ["data: [DONE]", ""]
        assert len(rest) > LONG  # an event, and an empty line, for nearly every token
        assert asked.result().json()["usage"]["completion_tokens"] == LONG
        running.thread.join(PATIENCE)
        with pytest.raises(httpx.ConnectError):
            httpx.get(running.url)


def test_answers_do_not_wait_for_acknowledgements(running):
    host, _, port = running.url.removeprefix("http://").partition(":")
    with socket.create_connection((host, int(port)), timeout=PATIENCE) as connection:
        connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert connection.recv(1000).startswith(b"HTTP/1.1 200")
        assert nodelay_of(connection.getsockname())


def nodelay_of(peer: tuple[str, int]) -> int:
    """Of the daemon's end, which is in this process, of a connection."""
    for path in Path("/proc/self/fd").iterdir():
        if not path.is_socket():
            continue
        with suppress(OSError), socket.socket(fileno=os.dup(int(path.name))) as end:  # a listener has no peer
            if end.family == socket.AF_INET and end.getpeername() == peer:
                return end.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
    raise AssertionError("there is no such connection")


def test_a_unix_socket_for_owner_and_group(model, tmp_path):
    place = tmp_path / "daemon.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(place))  # as a daemon that was killed leaves it
    with daemon(model, tmp_path / "state", socket=str(place)) as running:
        assert running.url == f"unix:{place}"
        assert stat.S_IMODE(place.stat().st_mode) == 0o660
        with httpx.Client(transport=httpx.HTTPTransport(uds=str(place)), base_url="http://edgetune") as client:
            assert client.get("/v1/models").status_code == 200
        with pytest.raises(UsageError, match="answers on"), daemon(model, tmp_path / "other", socket=str(place)):
            pass
        assert place.exists()
    assert not place.exists()
    place.write_text("mine")
    with pytest.raises(UsageError, match="no socket"), daemon(model, tmp_path / "state", socket=str(place)):
        pass
    assert place.read_text() == "mine"


def test_a_port_or_a_state_that_is_taken_is_named(model, running, tmp_path):
    port = int(running.url.rpartition(":")[2])
    with pytest.raises(UsageError, match=f"127.0.0.1:{port}"), daemon(model, tmp_path / "state", port=port):
        pass
    with pytest.raises(UsageError, match="another process"), daemon(model, running.service.config.folder()):
        pass


def test_systemd_hears_of_it_and_sigterm_ends_it(model, tmp_path):
    code = """
        import sys
        from edgetune.daemon.options import DaemonConfig
        from edgetune.daemon.server import run
        from edgetune.daemon.service import Service
        config = DaemonConfig(state=sys.argv[2], port=0, threads=1)
        run(Service(sys.argv[1], config), on_ready=lambda url: print(url, flush=True))
        """
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(tmp_path / "notify"))
        systemd.settimeout(PATIENCE)
        with subprocess.Popen([sys.executable, "-c", textwrap.dedent(code), str(model), str(tmp_path / "state")],
                              env={**os.environ, "NOTIFY_SOCKET": str(tmp_path / "notify")}, cwd=tmp_path, text=True,
                              stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
            try:
                heard = [systemd.recv(1000).decode()]
                url = process.stdout.readline().strip()
                heard.append(systemd.recv(1000).decode())
                assert httpx.post(url + CHAT, json={**ASK, "max_tokens": 2}).status_code == 200
                process.send_signal(signal.SIGTERM)
                out, log = process.communicate(timeout=PATIENCE)
            finally:
                process.kill()
        while heard[-1] != "STOPPING=1":
            heard.append(systemd.recv(1000).decode())
    assert heard[0].startswith(f"READY=1\nSTATUS=answering on {url}")
    assert set(heard[1:-1]) == {"WATCHDOG=1"}
    assert (process.returncode, out) == (0, "")
    assert "the light on" not in log  # prompts are nobody's business
    assert "Traceback" not in log
