"""What one client does keeps no other from being answered: any number of connections and requests, of any ill will."""

import resource
import select
import signal
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import httpx
import pytest
from daemons import ASK, CHAT, DESCRIPTORS, MIB, PATIENCE, daemon, health_seconds, process
from tiny import write_tiny

from edgetune.daemon.api import bodies, connections
from edgetune.daemon.api.bodies import Bodies
from edgetune.daemon.memory import for_answers
from edgetune.daemon.options import DaemonConfig
from edgetune.formats.gguf import open_gguf


@pytest.fixture
def descriptors():
    """For this process, which opens more connections than the daemon can."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = 4 * DESCRIPTORS
    if hard not in (resource.RLIM_INFINITY,) and hard < needed:
        pytest.skip(f"needs {needed} descriptors")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, needed), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.dev
@pytest.mark.usefixtures("descriptors")
@pytest.mark.parametrize("begin", [pytest.param(b"", marks=pytest.mark.slow), b"GET /healthz HTTP/1.1\r\nHost: loc",
                                   pytest.param(b"GET / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\n",
                                                marks=pytest.mark.slow)])
def test_more_silent_connections_than_descriptors_keep_nobody_out(model, tmp_path, begin):
    with process(model, tmp_path) as running, ExitStack() as stack:
        for _ in range(DESCRIPTORS + 26):
            silent = stack.enter_context(socket.create_connection(running.place, timeout=PATIENCE))
            silent.sendall(begin)
        for _ in range(3):
            assert health_seconds(running.url) < 5  # a silent one is closed after ten
        assert httpx.post(running.url + CHAT, json=ASK, timeout=PATIENCE).status_code == 200
        said = running.log.read_text()
        assert said.count("connections are open") == 1
        assert len(said) < 2000
        running.process.send_signal(signal.SIGTERM)
        start = time.monotonic()
        assert running.process.wait(PATIENCE) == 0
        assert time.monotonic() - start < 10
        assert "Traceback" not in running.log.read_text()


@pytest.fixture
def impatient(model, tmp_path, monkeypatch):
    """A daemon that waits for its clients less long than others."""
    monkeypatch.setattr(connections, "HEAD_SECONDS", 0.5)
    monkeypatch.setattr(connections, "READ_SECONDS", 0.5)
    monkeypatch.setattr(connections, "WATCH_SECONDS", 0.1)
    monkeypatch.setattr(bodies, "BODY_SECONDS", 0.5)
    with daemon(model, tmp_path / "state") as running:
        yield running


def connect(running):
    host, _, port = running.url.removeprefix("http://").partition(":")
    return socket.create_connection((host, int(port)), timeout=PATIENCE)


def test_heads_and_bodies_must_come_in_time(impatient):
    begun = [b"", b"G", b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n"]

    def seconds(begin, drip):
        with connect(impatient) as client:
            client.sendall(begin)
            return closed_after(client, drip)

    with ThreadPoolExecutor(6) as pool:
        assert max(pool.map(seconds, 2 * begun, 3 * [b""] + 3 * [b"x"])) < 5
    with connect(impatient) as client:
        client.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000000\r\n\r\n")
        assert client.recv(4096).startswith(b"HTTP/1.1 200")
        assert closed_after(client, b"x") < 5
    for path in (CHAT, "/v1/feedback", "/v1/files"):
        head = (f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: "
                f"{'multipart/form-data; boundary=x' if path == '/v1/files' else 'application/json'}\r\n"
                "Content-Length: 100000\r\n\r\n")
        with connect(impatient) as client:
            client.sendall(head.encode() + b"--x")
            answer = b"".join(iter(lambda client=client: client.recv(4096), b""))  # until the other end closes
        assert answer.startswith(b"HTTP/1.1 408 "), path
        assert b'"code":"too_slow"' in answer
    assert httpx.post(impatient.url + CHAT, json=ASK, timeout=PATIENCE).status_code == 200


def closed_after(client, drip):
    """Seconds until the other end has closed."""
    start = time.monotonic()
    while time.monotonic() - start < PATIENCE:
        try:
            if drip:
                client.sendall(drip)
            if select.select([client], [], [], 0.1)[0] and not client.recv(4096):
                break
        except OSError:
            break
    return time.monotonic() - start


def ask_for_pages(client, count):
    """And read none."""
    for _ in range(count):
        client.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
        time.sleep(0.01)


def test_an_answer_must_be_read_in_time_and_pauses_between_requests_may_be_long(impatient):
    """What limits a head does not limit the time between requests."""
    with connect(impatient) as client:
        for pause in (0.7, 0.7, 0):
            client.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
            answer = b""
            while not answer.endswith(b"}"):  # head and body may come apart
                piece = client.recv(4096)
                assert piece, answer
                answer += piece
            assert answer.startswith(b"HTTP/1.1 200")
            time.sleep(pause)
    with connect(impatient) as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        with pytest.raises((ConnectionResetError, BrokenPipeError)):
            ask_for_pages(client, 10_000)


@pytest.fixture(scope="module")
def slow_model(tmp_path_factory):
    """So slow that what the base says to all questions, before a job over feedback begins, takes seconds."""
    return write_tiny(tmp_path_factory.mktemp("slow") / "tiny.gguf", formats="Q8_0", d_model=512, d_ff=1024,
                      n_context=4096)


def correct(url, count=40):
    with httpx.Client(base_url=url, timeout=PATIENCE) as client:
        for i in range(count):
            assert client.post("/v1/feedback", json={"prompt": f"lamp {i}", "correction": "on"}).status_code == 200


@pytest.mark.slow
def test_requests_that_wait_for_one_another_keep_nobody_out(slow_model, tmp_path):
    with process(slow_model, tmp_path, "--context", 512) as running, ThreadPoolExecutor(60) as pool:
        correct(running.url)
        asked = [pool.submit(httpx.post, running.url + "/v1/learn", timeout=PATIENCE) for _ in range(60)]
        for _ in range(3):
            assert health_seconds(running.url) < 1
        start = time.monotonic()
        assert httpx.post(running.url + CHAT, json=ASK, timeout=PATIENCE).status_code == 200
        assert time.monotonic() - start < 5
        running.process.send_signal(signal.SIGTERM)
        start = time.monotonic()
        assert running.process.wait(PATIENCE) == 0
        assert time.monotonic() - start < 10
        assert "Traceback" not in running.log.read_text()
        statuses = [answer.result().status_code for answer in asked if not answer.exception()]
        assert statuses.count(429) == 59
        assert statuses.count(503) <= 1  # the one that was at it


@pytest.mark.dev
def test_all_threads_of_requests_that_wait_leave_answers_and_health_to_others(model, tmp_path, monkeypatch):
    go = threading.Event()
    with daemon(model, tmp_path / "state") as running, ThreadPoolExecutor(60) as pool:
        monkeypatch.setattr(running.service, "device", lambda: go.wait(PATIENCE) and {})
        waiting = [pool.submit(httpx.get, running.url + "/v1/device", timeout=PATIENCE) for _ in range(60)]
        try:
            time.sleep(1)
            assert health_seconds(running.url) < 5
            assert httpx.post(running.url + CHAT, json=ASK, timeout=PATIENCE).status_code == 200
            assert not any(request.done() for request in waiting)
        finally:
            go.set()


@pytest.mark.dev
def test_a_second_signal_breaks_answers_off_in_words(slow_model, tmp_path):
    asked = {**ASK, "max_tokens": 100_000}
    with process(slow_model, tmp_path, "--context", 4096) as running, ThreadPoolExecutor(4) as pool:
        answers = [pool.submit(httpx.post, running.url + CHAT, json={**asked, "stream": stream}, timeout=PATIENCE)
                   for stream in (True, True, False, False)]
        deadline = time.monotonic() + PATIENCE
        while httpx.get(running.url + "/v1/device").json()["serving"]["working"] < 4:
            assert time.monotonic() < deadline
        running.process.send_signal(signal.SIGTERM)
        time.sleep(0.5)
        assert running.process.poll() is None  # answers may end
        running.process.send_signal(signal.SIGTERM)
        start = time.monotonic()
        assert running.process.wait(PATIENCE) == 0
        assert time.monotonic() - start < 10
        for answer in answers:
            assert "the daemon stops" in answer.result().text
        assert "Traceback" not in running.log.read_text()


@pytest.fixture(scope="module")
def wordy(tmp_path_factory):
    """A model of which logits are most of what answers take: 128 KiB a token."""
    return write_tiny(tmp_path_factory.mktemp("wordy") / "tiny.gguf", formats="Q8_0", n_vocab=32_768, n_context=1024)


@pytest.mark.slow
def test_a_burst_of_all_kinds_of_requests_leaves_memory_to_jobs(wordy, tmp_path):
    """Answers take no more than is kept for them when a job is planned."""
    with process(wordy, tmp_path) as running, ThreadPoolExecutor(16) as pool:
        httpx.post(running.url + CHAT, json=ASK, timeout=PATIENCE)
        before = running.memory("VmRSS")

        def ask(number):
            words = f"lamp {number} " * 60
            schema = {"type": "object", "properties": {f"a{number}": {"enum": [f"v{i}" for i in range(40)]}}}
            form = {"type": "json_schema", "json_schema": {"name": "lamp", "schema": schema}}
            bodies = {CHAT: {**ASK, "max_tokens": 16, "logprobs": True, "top_logprobs": 20, "response_format": form},
                      "/v1/completions": {"prompt": words, "echo": True, "logprobs": 5, "max_tokens": 1},
                      "/v1/embeddings": {"model": "tiny", "input": [words[:200]] * 8}}
            return {httpx.post(running.url + path, json=body, timeout=PATIENCE).status_code
                    for path, body in bodies.items()}

        assert set().union(*pool.map(ask, range(16))) == {200}
        assert running.memory("VmHWM") - before < for_answers(open_gguf(wordy), 1024)


@pytest.mark.dev
def test_large_grammars_keep_nobody_waiting(model, tmp_path):
    """Two that were checked in quadratic time once: a minute each."""
    grammar = "root ::= r0\n" + "".join(f"r{i} ::= r{i + 1}\n" for i in range(4500)) + "r4500 ::= [a]?\n"
    with process(model, tmp_path) as running, ThreadPoolExecutor(2) as pool:
        sent = [pool.submit(httpx.post, running.url + CHAT, json={**ASK, "grammar": grammar}, timeout=PATIENCE)
                for _ in range(2)]
        while not all(request.done() for request in sent):
            assert health_seconds(running.url) < 10
        assert {request.result().status_code for request in sent} <= {200, 400}
        running.process.send_signal(signal.SIGTERM)
        assert running.process.wait(10) == 0


def test_bodies_at_work_are_bounded_together(model, tmp_path):
    """Of requests that come slowly and are held, those above the sum are refused; when they go, others are let in."""
    most = Bodies(DaemonConfig()).most
    length = 1024 * 1024
    head = (f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            f"Content-Length: {length}\r\n\r\n")
    with daemon(model, tmp_path / "state") as running, ExitStack() as stack:
        for _ in range(most // length):
            held = stack.enter_context(connect(running))
            held.sendall(head.encode() + b"{")
        deadline = time.monotonic() + PATIENCE
        while (refused := httpx.post(running.url + CHAT, json=ASK, timeout=PATIENCE)).status_code == 200:
            assert time.monotonic() < deadline
        assert refused.status_code == 503
        assert int(refused.headers["Retry-After"]) >= 1
        assert f"{most} bytes together" in refused.json()["error"]["message"]
        assert httpx.get(running.url + "/healthz").status_code == 200
        stack.close()
        while httpx.post(running.url + CHAT, json=ASK, timeout=PATIENCE).status_code == 503:
            assert time.monotonic() < deadline


@pytest.mark.slow
def test_a_list_of_feedback_reads_only_what_it_shows(model, tmp_path):
    """Sixteen at once, over fifty pieces of a quarter of a megabyte each."""
    with process(model, tmp_path) as running, httpx.Client(base_url=running.url, timeout=PATIENCE) as client:
        for i in range(50):
            note = {"prompt": f"lamp {i} " + "on " * 80_000, "correction": "on"}
            assert client.post("/v1/feedback", json=note).status_code == 200
        time.sleep(1)  # what those took is given back
        before = running.memory("VmRSS")
        with ThreadPoolExecutor(16) as pool:
            shown = [*pool.map(lambda _: httpx.get(running.url + "/v1/feedback", timeout=PATIENCE), range(16))]
        assert {len(answer.json()["data"]) for answer in shown} == {50}
        assert all(note["learns"] and note["reason"] for answer in shown for note in answer.json()["data"])
        assert running.memory("VmHWM") - before < 64 * MIB
