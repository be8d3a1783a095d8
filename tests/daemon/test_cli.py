"""The daemon's commands as a user types them, against a daemon on a tiny model."""

import json
import logging
import os
import re
import signal
import sqlite3
import subprocess
import sys
import zipfile
from contextlib import closing

import pytest
from commands import run
from daemons import process
from rich.console import Console
from screens import in_terminal, screen
from services import until

from edgetune.cli.remote import entries
from edgetune.cli.status import _job
from edgetune.console import say
from edgetune.daemon.server import log_formatter
from edgetune.errors import install_hint
from edgetune.training import checkpoint

SHAPE = {"n_context": 128}
SMALL = ["--rank", "2", "--max-length", "64", "--batch-size", "4", "--threads", "1"]


@pytest.fixture(scope="module")
def place(model):
    rows = [{"prompt": f"turn on lamp {i}", "completion": json.dumps({"lamp": i})} for i in range(24)]
    (model.parent / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return model.parent


def end(running, number=signal.SIGTERM):
    running.process.send_signal(number)
    assert running.process.wait(timeout=30) == 0


@pytest.fixture(autouse=True)
def daemon(running, monkeypatch):
    """What commands speak to, where nothing is said."""
    monkeypatch.delenv("EDGETUNE_KEY", raising=False)
    monkeypatch.setenv("EDGETUNE_URL", running.url)


@pytest.fixture(scope="module")
def trained(place, running):
    """What following a job to its end printed, and two adapters."""
    os.environ["EDGETUNE_URL"] = running.url
    text = run("jobs", "create", place / "rows.jsonl", "--follow", "--steps", 3, "--suffix", "one", *SMALL)
    adapters = running.service.adapters
    first = adapters.list()[0]
    second = adapters.add("ftjob-2", adapters.path(first.id), "two", {"passed": False, "reason": "a test"})
    return text, first.id, second.id


def job_of(name):
    return json.loads(run("jobs", "show", name, "--json"))


@pytest.mark.dev
def test_jobs_are_followed_to_their_end(trained):
    text, adapter, _ = trained
    assert "held out" in text  # what the daemon says
    assert "step 3/3" in text  # what training says
    assert f"succeeded: {adapter}" in text
    listed = json.loads(run("jobs", "list", "--json"))["data"]
    job = listed[-1]
    assert (job["status"], job["fine_tuned_model"]) == ("succeeded", adapter)
    asked = job["method"]["supervised"]["hyperparameters"]  # only options that are given are sent
    assert (asked["steps"], asked["rank"], asked["max_length"], asked["batch_size"]) == (3, 2, 64, 4)
    table = run("jobs")
    assert all(job["id"] in table for job in listed)
    shown = run("jobs", "show", job["id"])
    assert "supervised" in shown
    assert re.search(r"\d\.\d", shown)
    assert not re.search(r"\d\.\d{7}", shown)  # nobody reads the 16 digits of a float
    assert json.loads(run("jobs", "follow", job["id"], "--json"))["fine_tuned_model"] == adapter


def test_adapters_change_place(trained, tmp_path):
    _, one, two = trained
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


@pytest.mark.dev
def test_jobs_pause_and_resume_and_are_cancelled(place):
    job = json.loads(run("jobs", "create", place / "rows.jsonl", "--steps", 100_000, *SMALL, "--json"))
    assert re.search(f"{job['id']} is paus(ed|ing)", run("jobs", "pause", job["id"]))
    assert "is queued" in run("jobs", "resume", job["id"])
    until(lambda: job_of(job["id"])["status"] == "running")
    assert json.loads(run("status", "--json"))["job"]["id"] == job["id"]
    assert job["id"] in run("status")
    assert "is cancelled" in run("jobs", "cancel", job["id"])
    assert "cancelled" in run("jobs", "follow", job["id"], code=1)


@pytest.mark.dev
def test_status_is_said_once_or_live_at_a_terminal_until_ctrl_c(running):
    facts = json.loads(run("status", "--json"))
    assert (facts["model"], facts["health"]) == ("tiny", {"status": "ok", "reasons": []})
    assert facts["memory"]["used"] < facts["memory"]["budget"]
    text = run("status")
    assert all(words in text for words in ("active", "memory", "tokens/s", "learning"))
    answered = running.service.batcher.facts()["requests"]
    with screen("status") as seen:
        seen.wait(f"{answered} in all")
        running.service.generate("lamp", max_tokens=1).text()
        seen.wait(f"{answered + 1} in all")
        seen.type("\003")
        assert seen.end() == 0
    with screen("status", "--once") as seen:
        seen.wait("active")
        assert seen.end() == 0
    assert "leave one of them out" in run("status", "--once", "--watch", code=2)


def test_lines_of_jobs():
    job = {"id": "ftjob-1", "status": "running", "progress": {
        "phase": "judging", "step": 8, "steps": 8, "loss": 0.5, "tokens_per_s": 304.2, "eta_s": None}}
    assert "evaluating: the trained" in _job(job)
    asked = {**job["progress"], "judged": 5, "judging": 20}
    assert "evaluating 5 of 20: the trained" in _job({**job, "progress": asked})
    assert "tokens/s" not in _job(job)
    training = {**job, "progress": {**job["progress"], "phase": "training"}}
    assert "step 8/8" in _job(training)
    assert "304 tokens/s" in _job(training)
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


@pytest.mark.parametrize(("journal", "line"), [
    ("", r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d WARNING it is hot"), ("8:1", "WARNING it is hot")])
def test_a_line_of_the_log_has_its_time_unless_the_journal_adds_it(journal, line, monkeypatch):
    monkeypatch.setenv("JOURNAL_STREAM", journal)
    record = logging.LogRecord("edgetune.daemon", logging.WARNING, "", 1, "it is %s", ("hot",), None)
    assert re.fullmatch(line, log_formatter().format(record))


@pytest.mark.dev
def test_keys_over_a_unix_socket(model, tmp_path, monkeypatch):
    said = " ".join(run("service", "key", "--help").split())
    assert "--key-file" in said
    assert "systemctl restart edgetune" in said
    key = json.loads(run("service", "key", "phone", "--key-file", tmp_path / "keys", "--json"))["key"]
    assert key not in (tmp_path / "keys").read_text()
    asker = json.loads(run("service", "key", "asker", "--scope", "answer", "--key-file", tmp_path / "keys", "--json"))
    assert (asker["name"], asker["scope"]) == ("asker", "answer")
    (tmp_path / "mine").write_text(f"{key}\n")
    with process(model, tmp_path, "--socket", tmp_path / "socket", "--key-file", tmp_path / "keys") as running:
        assert running.url == f"unix:{tmp_path / 'socket'}"
        monkeypatch.setenv("EDGETUNE_URL", running.url)
        assert "active" in run("status", "--key-file", tmp_path / "mine")
        for key_given, code, words in (("", 2, "the daemon refuses: "), ("et-wrong", 2, "the daemon refuses: "),
                                       (asker["key"], 2, "needs a key of the scope admin"),
                                       (key, 0, "active")):
            monkeypatch.setenv("EDGETUNE_KEY", key_given)
            assert words in run("adapters", *["--json"] * bool(code), code=code)
        end(running, signal.SIGINT)
    assert not (tmp_path / "socket").exists()


@pytest.mark.dev
@pytest.mark.parametrize("ignored", [False, True])
def test_a_terminal_that_is_closed_ends_the_daemon_and_its_training_is_saved(model, place, tmp_path, monkeypatch,
                                                                             ignored):
    """But under nohup it goes on."""
    command = [*["nohup"] * ignored, sys.executable, "-m", "edgetune", "serve", model, "--state", tmp_path / "state",
               "--threads", "1", "--socket", tmp_path / "socket"]
    with in_terminal(command, tmp_path) as running:
        file = tmp_path / "nohup.out"
        until(lambda: b"answers at" in (file.read_bytes() if file.exists() else running.said))
        monkeypatch.setenv("EDGETUNE_URL", f"unix:{tmp_path / 'socket'}")
        job = json.loads(run("jobs", "create", place / "rows.jsonl", "--steps", 3000, *SMALL, "--json"))["id"]
        out = tmp_path / "state" / "runs" / job / "run"
        until(lambda: (out / "metrics.jsonl").exists() and (out / "metrics.jsonl").read_text().count("\n") > 3)
        running.close()
        if ignored:
            running.process.send_signal(signal.SIGHUP)
            lines = len((out / "metrics.jsonl").read_text().splitlines())
            until(lambda: len((out / "metrics.jsonl").read_text().splitlines()) > lines)
            assert "active" in run("status")
            running.process.send_signal(signal.SIGTERM)
        assert running.process.wait(60) == 0
    assert checkpoint.found(out)
    with closing(sqlite3.connect(tmp_path / "state" / "state.db")) as db:
        assert db.execute("SELECT status, error FROM jobs").fetchall() == [("running", None)]


@pytest.mark.parametrize(("args", "code", "words"), [
    (["jobs", "show", "ftjob-none"], 1, ["ftjob-none"]),
    (["jobs", "show", "../../healthz"], 1, ["there is no '../../healthz'"]), (["jobs", "show", "a/b"], 1, ["a/b"]),
    (["jobs", "create", "/nowhere.jsonl"], 2, ["cannot read /nowhere.jsonl"]),
    (["jobs", "create", "file-none"], 1, ["file-none"]),
    (["jobs", "create", "{rows}", "--rank", "0"], 2, ["rank", "1"]),
    (["jobs", "create", "{model}"], 2, ["JSON"]),
    (["adapters", "promote", "ft:none"], 1, ["ft:none"]), (["adapters", "delete", "a/b"], 1, ["a/b"]),
    (["status", "--url", "http://127.0.0.1:9"], 1, ["no daemon answers at http://127.0.0.1:9", "edgetune serve"]),
    (["status", "--url", "127.0.0.1"], 2, ["url is '127.0.0.1'"]),
    (["status", "--key-file", "{rows}"], 2, ["holds no key"]),
    (["status", "--key-file", "/nowhere"], 2, ["cannot read /nowhere"]),
])
def test_errors_are_one_sentence(place, args, code, words):
    said = run(*(arg.format(model=place / "Tiny.gguf", rows=place / "rows.jsonl") for arg in args), code=code)
    assert len(said.strip().splitlines()) == 1, said
    assert all(word in said for word in words), said
    assert "/v1" not in said
    assert "GET" not in said


@pytest.mark.parametrize(("args", "code", "words"), [
    (["{model}", "--host", "0.0.0.0"], 2, ["host is 0.0.0.0", "key"]), (["{model}", "--port", "99999"], 2, ["99999"]),
    (["{model}", "--key-file", "/nowhere", "--state", "{place}/new"], 2, ["cannot read the key file"]),
    (["{place}/none.gguf", "--state", "{place}/new", "--port", "0"], 1, ["none.gguf"]),
    (["{rows}", "--state", "{place}/new", "--port", "0"], 1, ["GGUF"]),
    (["{model}", "--state", "{state}", "--port", "0"], 2, ["another process", "state"]),
])
def test_a_daemon_that_cannot_start_says_why(place, running, args, code, words):
    names = {"model": place / "Tiny.gguf", "rows": place / "rows.jsonl", "place": place,
             "state": running.service.config.folder()}
    said = run("serve", *(arg.format(**names) for arg in args), code=code)
    assert len(said.strip().splitlines()) == 1, said
    assert all(word in said for word in words), said


@pytest.mark.slow
def test_sigterm_saves_a_job_that_continues_later(place, model, tmp_path, monkeypatch):
    with process(model, tmp_path) as running:
        monkeypatch.setenv("EDGETUNE_URL", running.url)
        job = json.loads(run("jobs", "create", place / "rows.jsonl", "--steps", 120, "--eval-every", 1000,
                             *SMALL, "--json"))["id"]
        until(lambda: (job_of(job)["progress"] or {}).get("step", 0) > 2)
        end(running)
    with closing(sqlite3.connect(tmp_path / "state" / "state.db")) as db:
        assert db.execute("SELECT status FROM jobs").fetchall() == [("running",)]
    with process(model, tmp_path) as running:
        monkeypatch.setenv("EDGETUNE_URL", running.url)
        assert "succeeded" in run("jobs", "follow", job)
        end(running)


def test_a_table_of_this_machine_is_sent_as_json_lines(place, http):
    (place / "rows.csv").write_text("Frage;Antwort\n" + "".join(f"Lampe {i};an {i}\n" for i in range(24)))
    named = ["--prompt-column", "Frage", "--completion-column", "Antwort"]
    job = json.loads(run("jobs", "create", place / "rows.csv", *named, "--steps", 1, *SMALL, "--json"))
    content = http.get(f"/v1/files/{job['training_file']}/content").text
    assert [json.loads(line) for line in content.splitlines()] == [
        {"prompt": f"Lampe {i}", "completion": f"an {i}"} for i in range(24)]
    run("jobs", "cancel", job["id"])
    said = run("jobs", "create", place / "rows.csv", "--prompt-column", "Wort", code=1)
    assert "line 2 of rows.csv: the row has no key 'Wort' (its keys: Frage, Antwort)" in said
    assert "a file that the daemon has" in run("jobs", "create", job["training_file"], *named, code=2)


def test_without_the_extra_it_says_what_to_install(place):
    code = ("import sys; sys.modules['uvicorn'] = None; from edgetune.cli import cli; "
            f"cli(['serve', {str(place / 'model.gguf')!r}])")
    done = subprocess.run([sys.executable, "-c", code], cwd=place, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.strip() == "edgetune: the daemon needs uvicorn; " + install_hint("daemon")


@pytest.mark.slow
def test_ctrl_c_in_a_terminal_ends_the_line(place):
    with screen("serve", place / "Tiny.gguf", "--state", place / "typed", "--threads", 1, "--port", 0) as seen:
        seen.wait("answers at")
        seen.type("\003")
        assert seen.end() == 0
        assert seen.lines[-1].endswith("^C")
        assert seen.screen.cursor.x == 0  # the shell's prompt begins a line
