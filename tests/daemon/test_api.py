"""What the API has beyond OpenAI's, and the life of its server: from ready to drained."""

import gc
import io
import json
import os
import re
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
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import httpx
import pytest
from daemons import PATIENCE, daemon
from prometheus_client.parser import text_string_to_metric_families
from services import until

from edgetune.adapters.store import open_adapter
from edgetune.data.dataset import load_rows
from edgetune.errors import UsageError
from edgetune.formats.bundle import open_bundle
from edgetune.llamacpp.tokenizer import Tokenizer
from edgetune.training import run as train
from edgetune.training.config import TrainConfig

SHAPE = {"n_context": 4096}
DAEMON = {"parallel": 2, "queue": 1, "recall": False}
CHAT = "/v1/chat/completions"
ASK = {"messages": [{"role": "user", "content": "the light on"}]}
LONG = 1000  # tokens of an answer that does not end soon; several fit the context


@pytest.fixture(scope="module")
def runs(model, tmp_path_factory):
    """Folders of two trained adapters."""
    folder = tmp_path_factory.mktemp("runs")
    bundle = open_bundle(model)
    rows = [{"prompt": "turn", "completion": "the light on"}] * 4
    config = TrainConfig(steps=2, batch_size=4, max_length=32, threads=1)
    data = load_rows(rows, Tokenizer(model), max_length=32)
    for name in ("a", "b"):
        train.run(bundle, data, folder / name, config)
    return [folder / "a", folder / "b"]


def test_feedback_is_listed_in_pages_read_edited_and_deleted(http):
    given = [{"prompt": f"lamp {i}", "correction": "on"} for i in range(4)]
    made = [http.post("/v1/feedback", json=body).json()["id"] for body in given]
    first = http.get("/v1/feedback", params={"limit": 2}).json()
    second = http.get("/v1/feedback", params={"limit": 2, "after": first["data"][-1]["id"]}).json()
    assert [note["id"] for note in first["data"] + second["data"]] == made[::-1]
    assert first["has_more"] is True
    assert sum(first["counts"].values()) >= 4
    given = {"messages": [*ASK["messages"]], "correction": "on " * 200, "model": "tiny"}
    made = http.post("/v1/feedback", json=given).json()
    whole = http.get(f"/v1/feedback/{made['id']}").json()
    assert {**whole, "row": None} == {**made, "row": None}
    assert whole["row"]["messages"][-1]["content"] == given["correction"]
    assert (whole["answer"], whole["question"]) == (given["correction"][:300], ASK["messages"][-1]["content"])
    assert (whole["state"], whole["job"], whole["model"]) == ("new", None, "tiny")
    edited = http.patch(f"/v1/feedback/{made['id']}", json={"correction": "off"}).json()
    assert edited == http.get(f"/v1/feedback/{made['id']}").json()
    assert (edited["answer"], edited["id"]) == ("off", made["id"])
    assert http.delete(f"/v1/feedback/{made['id']}").json() == {
        "id": made["id"], "object": "feedback", "deleted": True, "remains": ""}
    for asked in (http.get, http.delete, lambda path: http.patch(path, json={"correction": "on"})):
        refused = asked(f"/v1/feedback/{made['id']}")
        assert refused.status_code == 404
        assert refused.json()["error"]["message"] == f"there is no feedback '{made['id']}'; list it to see what exists"
    for body in ({}, {"correction": " "}, {"correction": 1}, {"correction": "x", "rating": "up"}):
        assert http.patch(f"/v1/feedback/{made['id']}", json=body).status_code in (400, 404)


@pytest.mark.parametrize(("body", "status"), [
    ({}, 400), ({"rating": "up"}, 400), ({"completion_id": "chatcmpl-1", "rating": "up"}, 404), ({"prompt": "a"}, 400),
    ({"prompt": "a", "messages": ASK["messages"], "correction": "b"}, 400), ({"prompt": "a", "correction": ""}, 400),
    ({"completion_id": "x", "prompt": "a", "correction": "b"}, 400), ({"messages": [], "correction": "b"}, 400),
    ({"prompt": "on " * 100_000, "correction": "on"}, 413)])
def test_feedback_on_nothing_or_too_much_is_refused(http, running, body, status):
    before = running.service.feedback.list()
    refused = http.post("/v1/feedback", json=body)
    assert refused.status_code == status
    assert refused.json()["error"]["message"]
    assert running.service.feedback.list() == before


# ---- adapters -------------------------------------------------------------------------------------------------------


def check(http, name, content, **form):
    return http.post("/v1/files/check", files={"file": (name, content), **form.pop("files", {})}, data=form)


@pytest.mark.dev
def test_rows_are_checked_before_a_job_and_nothing_of_them_is_kept(http, running):
    rows = [{"prompt": f"lamp {i}", "completion": f'{{"lamp": {i}}}'} for i in range(24)]
    lines = [json.dumps(row) for row in [*rows, rows[0], {"prompt": "lamp 1", "completion": "1"}]]
    found = check(http, "rows.jsonl", "\n".join(lines)).json()
    assert (found["rows"], found["usable"], found["shape"]) == (26, 26, "prompt")
    assert found["longest"] == max(len(example.tokens) for example in load_rows(
        [json.loads(line) for line in lines], running.service.served.tokenizer, max_length=512).examples)
    assert {each["kind"]: each["lines"] for each in found["findings"]} == {
        "repeated": [25], "contradictory": [2, 26], "not-json": [26]}
    table = "prompt,chosen,rejected\nlamp,on,off\nlamp,on\n"
    assert check(http, "rows.csv", table).status_code == 400  # a row of two cells
    found = check(http, "rows.csv", table.rpartition("lamp")[0], method="dpo").json()
    assert (found["shape"], [each["kind"] for each in found["findings"]]) == ("preference", ["few"])
    found = check(http, "rows.csv", table.rpartition("lamp")[0]).json()  # of supervised, which knows no pairs
    assert found["findings"][0]["kind"] == "refused"
    assert found["findings"][0]["fatal"]
    both = {"validation_file": ("held.jsonl", lines[3])}
    assert check(http, "rows.jsonl", "\n".join(lines), files=both).json()["findings"][0]["kind"] == "overlap"
    assert check(http, "rows.jsonl", lines[0], method="magic").status_code == 400
    long = json.dumps({"prompt": "lamp", "completion": "on " * 2**19})
    assert check(http, "rows.jsonl", f"{lines[0]}\n{long}").status_code == 400  # a row that no job may have
    many = "\n".join(json.dumps({"prompt": f"{i}", "completion": "o"}) for i in range(5005))
    assert check(http, "rows.jsonl", many).json()["rows"] == 5000
    assert http.get("/v1/files").json()["data"] == []


def test_adapters_are_promoted_rolled_back_and_deleted(http, running, runs):
    first, second = (running.service.adapters.add(f"job-{i}", run, "s", {"passed": True, "reason": "a test"}).id
                     for i, run in enumerate(runs))
    listed = http.get("/v1/adapters").json()
    assert [adapter["id"] for adapter in listed["data"]] == [second, first]
    assert listed["serving"] is None
    assert listed["data"][0]["verdict"] == {"passed": True, "reason": "a test"}
    assert answers(http) == "tiny"
    for id in (first, second):
        assert http.post(f"/v1/adapters/{id}/promote").json() == {"serving": id}
        assert answers(http) == id
    start = time.monotonic()
    assert http.post("/v1/adapters/rollback").json() == {"serving": first}
    assert time.monotonic() - start < 1  # promised
    assert answers(http) == first
    refused = http.delete(f"/v1/adapters/{first}")
    assert refused.status_code == 400
    assert "is active" in refused.json()["error"]["message"]
    assert http.get(f"/v1/adapters/{second}").json()["state"] == "retired"
    assert http.delete(f"/v1/adapters/{second}").json() == {"id": second, "object": "adapter", "deleted": True}
    assert http.get(f"/v1/adapters/{second}").status_code == 404
    assert http.post(f"/v1/adapters/{second}/promote").status_code == 404
    assert http.post("/v1/adapters/rollback").json() == {"serving": None}
    assert answers(http) == "tiny"
    history = http.get("/v1/adapters").json()["history"]
    assert [switch["adapter"] for switch in history] == [None, first, second, first]


def test_an_adapter_is_renamed_and_downloaded(http, running, runs, model, tmp_path):
    """What is downloaded is an adapter for the same model, and tells nothing of rows or of this machine."""
    record = json.loads((runs[0] / "run.json").read_text())
    record |= {"origin": {"data": "/secret/rows.jsonl"}, "answers": {"rows": 1, "pairs": [{"prompt": "a secret"}]}}
    private = shutil.copytree(runs[0], tmp_path / "run")
    (private / "run.json").write_text(json.dumps(record))
    id = running.service.adapters.add("job-7", private, "s", {"passed": True, "reason": "a test"}).id
    place = f"/v1/adapters/{id}"
    assert http.get(place).json()["name"] is None
    assert http.patch(place, json={"name": "Home lamps"}).json()["name"] == "Home lamps"
    assert http.post(CHAT, json={**ASK, "model": "Home lamps", "max_tokens": 1}).json()["model"] == id
    assert http.get("/v1/models/Home lamps").status_code == 200
    for name in ("tiny", "tiny:latest", "../x", "a" * 65, id):
        refused = http.patch(place, json={"name": name})
        assert refused.status_code == 400, name
        assert "name" in refused.json()["error"]["message"]
    download = http.get(f"{place}/download")
    assert download.headers["Content-Disposition"] == "attachment; filename*=UTF-8''Home-lamps.zip"
    with zipfile.ZipFile(io.BytesIO(download.content)) as archive:
        archive.extractall(tmp_path)
    unpacked = tmp_path / "Home-lamps"
    assert {path.name for path in unpacked.iterdir()} == {"adapter.gguf", "run.json", "README.md"}
    opened = open_adapter(unpacked, open_bundle(model).gguf)
    assert (opened.run["steps"], opened.run["answers"]) == (2, {"rows": 1})
    assert (unpacked / "adapter.gguf").read_bytes() == (runs[0] / "adapter.gguf").read_bytes()
    texts = (unpacked / "run.json").read_text() + (unpacked / "README.md").read_text()
    assert "secret" not in texts
    assert str(model.parent) not in texts
    assert http.patch(place, json={"name": ""}).json()["name"] is None
    assert http.post(CHAT, json={**ASK, "model": "Home lamps"}).status_code == 404
    http.delete(place)
    assert http.get(f"{place}/download").status_code == 404


def answers(http):
    said = http.post(CHAT, json={**ASK, "model": "tiny:latest", "max_tokens": 1}).json()
    assert said["usage"]["completion_tokens"] == 1
    return str(said["model"])


# ---- the device -----------------------------------------------------------------------------------------------------


def test_metrics_count_what_was_asked(http):
    def read():
        text = http.get("/metrics").text
        return {sample.name + "".join(sorted(sample.labels.values())): sample.value
                for family in text_string_to_metric_families(text) for sample in family.samples}

    helps = dict(re.findall(r"# HELP edgetune_memory_(\w+)_bytes (.*)", http.get("/metrics").text))
    assert (set(helps), "daemon" in helps["used"]) == ({"budget", "used", "available"}, True)
    assert "machine" in helps["available"]
    before = read()
    said = http.post(CHAT, json={**ASK, "max_tokens": 5}).json()
    for place in ("/v1/files/file-1", "/v1/files/file-2", "/nowhere/1", "/nowhere/2"):
        http.get(place)
    after = read()
    new = {name: after[name] - before.get(name, 0) for name in after if after[name] != before.get(name, 0)}
    assert new["edgetune_completion_tokens_total"] == said["usage"]["completion_tokens"]
    assert new["edgetune_requests_total"] == 1
    requests = {name: count for name, count in new.items() if name.startswith("edgetune_http_requests_total")}
    assert requests.pop("edgetune_http_requests_total/v1/chat/completions200POST") == 1
    assert requests.pop("edgetune_http_requests_total/v1/files/{file_id}404GET") == 2
    assert requests.pop("edgetune_http_requests_total404GETnone") == 2
    assert after["edgetune_memory_used_bytes"] > 0


def test_what_may_be_done_at_a_place_is_told(http):
    for path, methods in (("/v1/files", "GET, POST"), ("/v1/files/file-1", "DELETE, GET"), (CHAT, "POST"),
                          ("/v1/adapters/x/promote", "POST"), ("/healthz", "GET, HEAD")):
        refused = http.patch(path)
        assert (refused.status_code, refused.headers["Allow"]) == (405, methods)
        assert "PATCH" in refused.json()["error"]["message"]


# ---- answers that are not ended, and too many of them ---------------------------------------------------------------


@pytest.mark.parametrize("stream", [True, False])
def test_who_goes_away_is_not_answered_on(http, running, stream):
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
    assert http.get("/healthz").status_code == 200


@pytest.mark.dev
def test_more_than_may_wait_are_told_to_come_again(http, running):
    def ask():
        return httpx.post(running.url + CHAT, json={**ASK, "model": "tiny", "max_tokens": LONG}, timeout=PATIENCE)

    facts = running.service.batcher.facts
    with ThreadPoolExecutor(3) as pool:
        asked = []
        for at_work in ((1, 0), (2, 0), (2, 1)):
            asked.append(pool.submit(ask))
            until(lambda at_work=at_work: (facts()["working"], facts()["waiting"]) == at_work)
        refused = http.post(CHAT, json=ASK)
        assert refused.status_code == 429
        assert int(refused.headers["Retry-After"]) >= 1
        assert refused.json()["error"]["type"] == "rate_limit_error"
        assert [answer.result().json()["usage"]["completion_tokens"] for answer in asked] == [LONG] * 3
    assert http.post(CHAT, json={**ASK, "max_tokens": 1}).status_code == 200


@pytest.mark.parametrize("lines", [30, 3000])  # what is larger than a megabyte passes through a nameless file
def test_a_disk_that_takes_no_more_is_507_and_leaves_nothing(http, running, lines):
    rows = b'{"text": "' + b"the light on " * 50 + b'"}\n'
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8192, before[1]))  # what a full disk does to a write
    try:
        refused = http.post("/v1/files", data={"purpose": "fine-tune"}, files={"file": ("a", rows * lines)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert refused.status_code == 507, refused.text
    assert list((running.service.config.folder() / "files").iterdir()) == []
    made = http.post("/v1/files", data={"purpose": "fine-tune"}, files={"file": ("a", rows * lines)})
    assert made.status_code == 200
    http.delete(f"/v1/files/{made.json()['id']}")


# ---- start and end of the server ------------------------------------------------------------------------------------


@pytest.mark.dev
def test_answers_end_before_the_daemon_does_and_late_requests_are_told_so(model, tmp_path):
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
    with daemon(model, tmp_path / "state") as running:
        running.service.batcher.stop()
        late = httpx.post(running.url + CHAT, json=ASK)
        assert (late.status_code, late.json()["error"]["code"]) == (503, "stopping")


def test_answers_do_not_wait_for_acknowledgements(running):
    host, _, port = running.url.removeprefix("http://").partition(":")
    with socket.create_connection((host, int(port)), timeout=PATIENCE) as connection:
        connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert connection.recv(1000).startswith(b"HTTP/1.1 200")
        assert nodelay_of(connection.getsockname())


def nodelay_of(peer):
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
        with httpx.Client(transport=httpx.HTTPTransport(uds=str(place)), base_url="http://edgetune") as http:
            assert http.get("/v1/models").status_code == 200
        with pytest.raises(UsageError, match="answers on"), daemon(model, tmp_path / "other", socket=str(place)):
            pass
        assert place.exists()
    assert not place.exists()
    place.write_text("mine")
    with pytest.raises(UsageError, match="no socket"), daemon(model, tmp_path / "state", socket=str(place)):
        pass
    assert place.read_text() == "mine"


def test_a_port_that_is_taken_is_named(model, running, tmp_path):
    port = int(running.url.rpartition(":")[2])
    with pytest.raises(UsageError, match=f"127.0.0.1:{port}"), daemon(model, tmp_path / "state", port=port):
        pass


def test_a_program_that_serves_keeps_its_frozen_objects(model, tmp_path):
    """Else each of its later collections would go through all of them."""
    gc.freeze()
    frozen = gc.get_freeze_count()
    with daemon(model, tmp_path / "state"):
        pass
    assert gc.get_freeze_count() > 0.9 * frozen  # some end by themselves


@pytest.mark.dev
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
