"""The daemon's commands as a user types them, against a daemon that runs: a process of its own on a tiny model."""

import json
import os
import pty
import re
import select
import signal
import sqlite3
import subprocess
import sys
import time
import zipfile
from contextlib import contextmanager, suppress

import pytest
from commands import run
from rich.console import Console
from screens import screen
from services import until
from tiny import write_tiny

from edgetune.cli.remote import entries
from edgetune.cli.status import _job
from edgetune.console import say

httpx = pytest.importorskip("httpx")
pytest.importorskip("fastapi")
pytest.importorskip("uvicorn")

SMALL = ["--rank", "2", "--max-length", "64", "--batch-size", "4", "--threads", "1"]
EDGETUNE = [sys.executable, "-m", "edgetune"]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("daemon")
    write_tiny(folder / "model.gguf", formats="Q8_0")
    rows = [{"prompt": f"turn on lamp {i}", "completion": json.dumps({"lamp": i})} for i in range(24)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@contextmanager
def running(place, *options, state="state"):
    """A daemon until the end of the with; yields its process and where it answers."""
    args = [*EDGETUNE, "daemon", place / "model.gguf", "--state", place / state, "--threads", "1", "--port", "0",
            "--json", *options]
    with (place / "log").open("a") as log:
        process = subprocess.Popen(list(map(str, args)), cwd=place, stdout=subprocess.PIPE, stderr=log, text=True)
    try:
        line = process.stdout.readline()
        assert line, (place / "log").read_text()
        yield process, json.loads(line)["url"]
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def end(process, number=signal.SIGTERM):
    process.send_signal(number)
    assert process.wait(timeout=30) == 0


@pytest.fixture(scope="module")
def daemon(place):
    with running(place) as (process, url):
        yield url
        end(process)


@pytest.fixture(autouse=True)
def which(request, monkeypatch):
    """What commands speak to, where nothing is said."""
    monkeypatch.delenv("EDGETUNE_KEY", raising=False)
    if "daemon" in request.fixturenames:
        monkeypatch.setenv("EDGETUNE_URL", request.getfixturevalue("daemon"))


@pytest.fixture(scope="module")
def trained(place, daemon):
    """What following two jobs to their end printed, and their adapters."""
    os.environ["EDGETUNE_URL"] = daemon
    texts = [run("jobs", "create", place / "rows.jsonl", "--follow", "--steps", 3, "--suffix", suffix, *SMALL)
             for suffix in ("one", "two")]
    return texts, [adapter["id"] for adapter in json.loads(run("adapters", "--json"))["data"]]


def job_of(name):
    return json.loads(run("jobs", "show", name, "--json"))


def test_it_answers(daemon):
    asked = {"model": "model", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 4}
    answer = httpx.post(f"{daemon}/v1/chat/completions", json=asked, timeout=60)
    assert answer.status_code == 200
    assert answer.json()["model"] == "model"
    assert "<html" in httpx.get(daemon).text


def test_jobs_are_followed_to_their_end(trained):
    (text, _), adapters = trained
    assert "held out" in text  # what the daemon says
    assert "step 3/3" in text  # what training says
    assert "succeeded: ft:model:one:" in text
    assert len(adapters) == 2
    listed = json.loads(run("jobs", "list", "--json"))["data"]
    assert [job["status"] for job in listed][-2:] == ["succeeded"] * 2
    assert [job["hyperparameters"]["batch_size"] for job in listed][-2:] == [4, 4]
    table = run("jobs")
    assert all(job["id"] in table for job in listed)
    shown = run("jobs", "show", listed[-1]["id"])
    assert "supervised" in shown
    assert re.search(r"\d\.\d", shown)
    assert not re.search(r"\d\.\d{7}", shown)  # nobody reads the 16 digits of a float
    assert json.loads(run("jobs", "follow", listed[-1]["id"], "--json"))["fine_tuned_model"] in adapters


@pytest.mark.usefixtures("trained")
def test_only_options_that_are_given_are_sent():
    asked = json.loads(run("jobs", "--json"))["data"][-1]["method"]["supervised"]["hyperparameters"]
    assert (asked["steps"], asked["rank"], asked["max_length"]) == (3, 2, 64)


def test_adapters_change_place(trained, tmp_path):
    _, (one, two) = trained
    assert f"{one} is called lamps" in run("adapters", "rename", one, "lamps")
    assert "lamps" in run("adapters")
    run("adapters", "download", "lamps", "-o", tmp_path / "lamps.zip")
    assert zipfile.ZipFile(tmp_path / "lamps.zip").testzip() is None
    assert "exists" in run("adapters", "download", one, "-o", tmp_path / "lamps.zip", code=2)
    while json.loads(run("adapters", "--json"))["serving"]:  # what passed the gate
        run("adapters", "rollback")
    for name in (one, two):
        assert f"active: {name}" in run("adapters", "promote", name)
    assert f"active: {one}" in run("adapters", "rollback")
    assert "serving" in run("adapters")
    assert "active: the base alone" in run("adapters", "rollback")
    assert f"{two} is removed" in run("adapters", "delete", two)
    assert [adapter["id"] for adapter in json.loads(run("adapters", "--json"))["data"]] == [one]


@pytest.mark.usefixtures("daemon")
def test_a_job_by_reward_is_told_the_grader_of_a_file(place):
    rows = [{"prompt": f"lamp {i}", "word": "on"} for i in range(9)]
    (place / "asking.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    grader = {"type": "string_check", "name": "said", "input": "{{ sample.output_text }}", "operation": "like",
              "reference": "{{ item.word }}"}
    (place / "grader.json").write_text(json.dumps(grader))
    asked = ["jobs", "create", place / "asking.jsonl", "--method", "grpo", *SMALL, "--num-generations", 3, "--json"]
    named = [*asked, "--grader", place / "grader.json"]
    job = json.loads(run(*named))
    method = job["method"]["reinforcement"]
    assert (method["grader"], method["hyperparameters"]["num_generations"]) == (grader, 3)
    run("jobs", "cancel", job["id"])
    assert "needs something that rewards answers" in run(*asked, code=2)
    assert "a daemon runs no grader without a sandbox" in run(*named, "--unsafe-python", code=2)
    assert "--rewards FOLDER" in run(*asked, "--reward", "rewards:right", code=2)


@pytest.mark.usefixtures("daemon")
def test_jobs_pause_and_resume_and_are_cancelled(place):
    job = json.loads(run("jobs", "create", place / "rows.jsonl", "--steps", 100_000, *SMALL, "--json"))
    assert re.search(f"{job['id']} is paus(ed|ing)", run("jobs", "pause", job["id"]))
    assert "is queued" in run("jobs", "resume", job["id"])
    until(lambda: job_of(job["id"])["status"] == "running")
    assert json.loads(run("status", "--json"))["job"]["id"] == job["id"]
    assert job["id"] in run("status")
    assert "is cancelled" in run("jobs", "cancel", job["id"])
    assert "cancelled" in run("jobs", "follow", job["id"], code=1)


@pytest.mark.usefixtures("daemon")
def test_status():
    facts = json.loads(run("status", "--json"))
    assert facts["model"] == "model"
    assert facts["health"] == {"status": "ok", "reasons": []}
    assert facts["memory"]["used"] < facts["memory"]["budget"]
    text = run("status")
    assert all(words in text for words in ("active", "memory", "tokens/s", "learning"))


def test_status_of_a_job_that_is_judged_says_so():
    job = {"id": "ftjob-1", "status": "running", "progress": {
        "phase": "judging", "step": 8, "steps": 8, "loss": 0.5, "tokens_per_s": 304.2, "eta_s": None}}
    assert "evaluating: the trained" in _job(job)
    asked = {**job["progress"], "judged": 5, "judging": 20}
    assert "evaluating 5 of 20: the trained" in _job({**job, "progress": asked})
    assert "tokens/s" not in _job(job)
    training = {**job, "progress": {**job["progress"], "phase": "training"}}
    assert "step 8/8" in _job(training)
    assert "304 tokens/s" in _job(training)


def test_no_id_in_a_list_is_broken_at_80_columns():
    job = f"ftjob-{'a' * 24}"
    adapter = "ft:smollm2-135m-instruct:corrections-of-the-kitchen:1a2b3c4d"
    rows = [([job, "succeeded", "2026-11-26 06:16"], adapter),
            ([job, "failed", "2026-11-26 06:16"], "a sentence of many words, " * 8)]
    with (console := Console(width=80, force_terminal=True, color_system=None)).capture() as captured:
        for line in entries(rows):
            say(console, line)
    lines = captured.get().splitlines()
    assert sum(job in line for line in lines) == 2
    assert sum(adapter in line for line in lines) == 1
    assert max(map(len, lines)) <= 80


@pytest.mark.usefixtures("daemon")
def test_what_is_not_found_is_said_without_a_path_of_http():
    for args in (["adapters", "promote", "nope"], ["adapters", "delete", "nope"], ["jobs", "show", "nope"],
                 ["jobs", "show", "a/b"], ["adapters", "promote", "a/b"], ["jobs", "create", "file-none"]):
        said = run(*args, code=1)
        assert "/v1" not in said
        assert "GET" not in said


def test_help_of_keys_says_when_the_file_is_read():
    said = " ".join(run("service", "key", "--help").split())
    assert "at the next request after it has changed" in said
    assert "systemctl restart edgetune" in said


@pytest.mark.usefixtures("daemon")
def test_status_at_a_terminal_is_live_until_ctrl_c(place):
    parent, child = pty.openpty()
    process = subprocess.Popen([*EDGETUNE, "status"], cwd=place, stdout=child, stderr=child, stdin=child)
    os.close(child)
    shown = b""
    deadline = time.monotonic() + 60
    while shown.count(b"active") < 2:  # drawn again
        assert time.monotonic() < deadline, shown
        if select.select([parent], [], [], 1)[0]:
            shown += os.read(parent, 65536)
    process.send_signal(signal.SIGINT)
    with suppress(OSError):  # nobody writes any more; until then it is read, or the process would wait for that
        while os.read(parent, 65536):
            pass
    assert process.wait(timeout=30) == 0
    os.close(parent)


@pytest.mark.usefixtures("daemon")
def test_status_is_said_once_where_that_is_asked_for():
    with screen("status", "--once") as seen:
        seen.wait("active")
        assert seen.end() == 0
    assert "leave one of them out" in run("status", "--once", "--watch", code=2)


@pytest.mark.usefixtures("daemon")
@pytest.mark.parametrize(("args", "code", "words"), [
    (["jobs", "show", "ftjob-none"], 1, ["ftjob-none"]),
    (["jobs", "show", "../../healthz"], 1, ["there is no '../../healthz'"]),
    (["jobs", "create", "/nowhere.jsonl"], 2, ["cannot read /nowhere.jsonl"]),
    (["jobs", "create", "file-none"], 1, ["file-none"]),
    (["jobs", "create", "{rows}", "--rank", "0"], 2, ["rank", "1"]),
    (["jobs", "create", "{model}"], 2, ["JSON"]),
    (["adapters", "promote", "ft:none"], 1, ["ft:none"]),
    (["status", "--url", "http://127.0.0.1:9"], 1, ["no daemon answers at http://127.0.0.1:9", "edgetune daemon"]),
    (["status", "--url", "127.0.0.1"], 2, ["url is '127.0.0.1'"]),
    (["status", "--key-file", "{rows}"], 2, ["holds no key"]),
    (["status", "--key-file", "/nowhere"], 2, ["cannot read /nowhere"]),
])
def test_errors_are_one_sentence(place, args, code, words):
    said = run(*(arg.format(model=place / "model.gguf", rows=place / "rows.jsonl") for arg in args), code=code)
    assert len(said.strip().splitlines()) == 1, said
    assert all(word in said for word in words), said


@pytest.mark.usefixtures("daemon")
@pytest.mark.parametrize(("args", "code", "words"), [
    (["daemon", "{model}", "--host", "0.0.0.0"], 2, ["host is 0.0.0.0", "key"]),
    (["daemon", "{model}", "--port", "99999"], 2, ["port is 99999"]),
    (["daemon", "{model}", "--key-file", "/nowhere", "--state", "{place}/new"], 2, ["cannot read the key file"]),
    (["daemon", "{place}/none.gguf", "--state", "{place}/new", "--port", "0"], 1, ["none.gguf"]),
    (["daemon", "{rows}", "--state", "{place}/new", "--port", "0"], 1, ["GGUF"]),
    (["daemon", "{model}", "--state", "{place}/state", "--port", "0"], 2, ["another process", "state"]),
])
def test_a_daemon_that_cannot_start_says_why(place, args, code, words):
    names = {"model": place / "model.gguf", "rows": place / "rows.jsonl", "place": place}
    said = run(*(arg.format(**names) for arg in args), code=code)
    assert len(said.strip().splitlines()) == 1, said
    assert all(word in said for word in words), said


def test_keys_over_a_unix_socket(place, monkeypatch):
    key = json.loads(run("service", "key", "phone", "--key-file", place / "keys", "--json"))["key"]
    assert key not in (place / "keys").read_text()
    (place / "mine").write_text(f"{key}\n")
    with running(place, "--socket", place / "socket", "--key-file", place / "keys", state="keyed") as (process, url):
        assert url == f"unix:{place / 'socket'}"
        monkeypatch.setenv("EDGETUNE_URL", url)
        assert "active" in run("status", "--key-file", place / "mine")
        assert "the daemon refuses: " in run("status", "--json", code=2)
        monkeypatch.setenv("EDGETUNE_KEY", "et-wrong")
        assert "the daemon refuses: " in run("adapters", "--json", code=2)
        monkeypatch.setenv("EDGETUNE_KEY", key)
        assert "active" in run("adapters")
        end(process, signal.SIGINT)
    assert not (place / "socket").exists()


@pytest.mark.slow
def test_sigterm_saves_a_job_that_goes_on_later(place, monkeypatch):
    with running(place, state="stopped") as (process, url):
        monkeypatch.setenv("EDGETUNE_URL", url)
        job = json.loads(run("jobs", "create", place / "rows.jsonl", "--steps", 120, "--eval-every", 1000,
                             *SMALL, "--json"))["id"]
        until(lambda: (job_of(job)["progress"] or {}).get("step", 0) > 2)
        end(process)
    with sqlite3.connect(place / "stopped" / "state.db") as db:
        assert db.execute("SELECT status FROM jobs").fetchall() == [("running",)]
    db.close()
    with running(place, state="stopped") as (process, url):
        monkeypatch.setenv("EDGETUNE_URL", url)
        assert "succeeded" in run("jobs", "follow", job)
        end(process)


def test_a_table_of_this_machine_is_sent_as_json_lines(place, daemon):
    (place / "rows.csv").write_text("Frage;Antwort\n" + "".join(f"Lampe {i};an {i}\n" for i in range(24)))
    named = ["--prompt-column", "Frage", "--completion-column", "Antwort"]
    job = json.loads(run("jobs", "create", place / "rows.csv", *named, "--steps", 1, *SMALL, "--json"))
    content = httpx.get(f"{daemon}/v1/files/{job['training_file']}/content").text
    assert [json.loads(line) for line in content.splitlines()] == [
        {"prompt": f"Lampe {i}", "completion": f"an {i}"} for i in range(24)]
    run("jobs", "cancel", job["id"])
    said = run("jobs", "create", place / "rows.csv", "--prompt-column", "Wort", code=1)
    assert "line 2 of rows.csv: the row has no key 'Wort' (its keys: Frage, Antwort)" in said
    assert "a file that the daemon has" in run("jobs", "create", job["training_file"], *named, code=2)


def test_without_the_extra_it_says_what_to_install(place):
    code = ("import sys; sys.modules['uvicorn'] = None; from edgetune.cli import cli; "
            f"cli(['daemon', {str(place / 'model.gguf')!r}])")
    done = subprocess.run([sys.executable, "-c", code], cwd=place, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.strip() == "edgetune: the daemon needs uvicorn; pip install 'edgetune[daemon]'"


@pytest.mark.slow
def test_ctrl_c_in_a_terminal_ends_the_line(place):
    with screen("daemon", place / "model.gguf", "--state", place / "typed", "--threads", 1, "--port", 0) as seen:
        seen.wait("answers at")
        seen.type("\003")
        assert seen.end() == 0
        assert seen.lines[-1].endswith("^C")
        assert seen.screen.cursor.x == 0  # the shell's prompt begins a line
