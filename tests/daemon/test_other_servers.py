"""Commands before a server that is no daemon, such as a proxy whose daemon is away: each ends in one sentence."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import click
import pytest
from click.testing import CliRunner
from local_http import Quiet, served_by

from edgetune.cli import cli
from edgetune.daemon import client as clients
from edgetune.daemon.client import Client
from edgetune.errors import AwayError, EdgetuneError, NotFoundError, UnansweredError
from edgetune.parts.fleet.membership.device import begin, joined
from edgetune.parts.fleet.rollout.daemons import DaemonByHttp, LeadByHttp

HTML = "<html><body><h1>502 Bad Gateway</h1>\n<p>nginx</p></body></html>"
NAMES = ("id", "status", "state", "data", "reason", "verdict", "row", "question", "answer", "rejected", "serving",
         "model", "counts", "recovered", "refused", "remains", "count", "created_at", "questions", "health", "adapters",
         "error", "type", "method", "probation", "fingerprint", "device", "slot", "rollout", "number", "files", "key",
         "round", "task", "memory", "learning", "history", "governor", "job", "temperature", "answered")
NO_ANSWERS = {  # status, type, body
    "a proxy's page": (502, "text/html", HTML),
    "a login page": (200, "text/html", HTML),
    "a proxy's 404": (404, "text/html", HTML),
    "another 404": (404, "application/json", '{"message": "no route"}'),
    "a list": (200, "application/json", "[1, 2]"),
    "an error list": (503, "application/json", '["busy"]'),
    "an odd error": (500, "application/json", '{"error": {"message": 5}}'),
    "half an object": (200, "application/json", '{"data": [{"id": "x", '),
    "deep lists": (200, "application/json", "[" * 100_000),
    "nothing": (200, "application/json", ""),
}
ODD_ANSWERS = {
    "an empty object": (200, "application/json", "{}"),
    "numbers": (200, "application/json", json.dumps(dict.fromkeys(NAMES, 5))),
    "texts": (200, "application/json", json.dumps(dict.fromkeys(NAMES, "x") | {"status": 5})),
    "lists": (200, "application/json", json.dumps({name: [7] for name in NAMES})),
    "objects": (200, "application/json", json.dumps({name: {"x": {}} for name in NAMES})),
    "nulls": (200, "application/json", json.dumps(dict.fromkeys(NAMES))),
    "pages without end": (200, "application/json", json.dumps({"data": [{"id": "x"}], "has_more": True,
                                                               "counts": {}})),
}
ANSWERS = NO_ANSWERS | ODD_ANSWERS
COMMANDS = {  # what follows the words of a command, in the order of its arguments
    "adapters add": ["{adapter}"], "adapters download": ["x", "-o", "{new}"], "adapters route": ["x", "file-1"],
    "adapters rename": ["x", "y"], "adapters list": [], "adapters recover": [], "adapters rollback": [],
    "feedback list": [], "feedback add": ["--prompt", "x", "--correction", "y"], "feedback edit": ["x", "y"],
    "feedback learn": [], "feedback check": [], "feedback proposed": [], "fleet apply": ["{folder}"],
    "home corrections": ["-o", "{new}"],
    "jobs list": [], "jobs create": ["{rows}"], "prompts list": [], "prompts learn": [], "status": ["--once"],
    "generate": ["m", "hello"], "eval": ["m", "{rows}"], "chat": ["m"]}


def with_url(group=cli, path=()):
    """The words of each command that asks a daemon at --url."""
    for name in group.list_commands(None):
        command = group.get_command(None, name)
        if isinstance(command, click.Group):
            yield from with_url(command, (*path, name))
        elif {"url", "key_file"} <= {param.name for param in command.params} and path[:1] != ("data",):
            yield " ".join((*path, name))  # those of data ask any server that has OpenAI's API


@contextlib.contextmanager
def answering(answer):
    """The address of a server that answers all requests like this: (status, type, body)."""
    status, kind, body = answer

    class Other(Quiet):
        def do_GET(self):
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body.encode())

        do_POST = do_PUT = do_PATCH = do_DELETE = do_GET

    with served_by(Other) as url:
        yield url


@pytest.fixture
def files(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setattr(clients, "POLL", 0.0)
    (tmp_path / "rows.jsonl").write_text('{"prompt": "a", "completion": "b"}\n')
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter.gguf").write_bytes(b"GGUF")
    (tmp_path / "folder").mkdir()
    return {"rows": tmp_path / "rows.jsonl", "adapter": tmp_path / "adapter", "folder": tmp_path / "folder",
            "new": tmp_path / "new"}


def told(*args):
    """What a command says, and its exit code; it ends in no traceback, and an error is one sentence."""
    result = CliRunner().invoke(cli, [str(arg) for arg in args], input="hello\n\n")
    assert result.exception is None or isinstance(result.exception, SystemExit), (args, result.exception)
    return " ".join(result.output.split()), result.exit_code


@pytest.mark.parametrize("what", ["a proxy's page", "a list", "half an object", *ODD_ANSWERS])
def test_every_command_says_in_a_sentence_what_answers(files, what):
    commands = [*with_url()]
    assert len(commands) > 30
    with answering(ANSWERS[what]) as url:
        for words in commands:
            said, code = told(*words.split(), *(each.format(**files) for each in COMMANDS.get(words, ["x"])),
                              "--url", url)
            if what in ODD_ANSWERS and code == 0:  # it shows nothing of what is odd
                files["new"].unlink(missing_ok=True)
                continue
            assert f"what answers at {url} is no daemon of edgetune" in said or (
                words == "fleet apply" and "the order that was sent is none" in said), words
            assert code == 1
            assert not files["new"].exists()


@pytest.mark.parametrize("what", ANSWERS)
@pytest.mark.usefixtures("files")
def test_a_device_that_joins_or_rotates_keeps_its_keys(what):
    with answering(ANSWERS[what]) as url:
        said, code = told("fleet", "join", url, "--code", "ABCD-EFGH-JKLM")
        assert (f"what answers at {url} is no daemon" in said, code) == (True, 1)
        assert joined(url) is None
        own = begin(url, "kitchen")
        before = own.public()
        said, code = told("fleet", "rotate", url)
        assert (f"what answers at {url} is no daemon" in said, code) == (True, 1)
        assert joined(url).public() == before


@pytest.mark.parametrize("what", ANSWERS)
def test_a_look_of_a_device_says_nothing_of_what_it_does_not_know(files, what):
    with answering(ANSWERS[what]) as url, Client(url) as client:
        daemon = DaemonByHttp(client)
        calls = {"about": daemon.about, "held": lambda: daemon.held("x"), "evaluate": lambda: daemon.evaluate("x", {}),
                 "add": lambda: daemon.add(files["adapter"]), "evaluate_base": lambda: daemon.evaluate_base({}),
                 "order": LeadByHttp(client).order, "slot": daemon.slot}
        for name, call in calls.items():
            with contextlib.suppress(AwayError):
                call()
                assert name in ("order", "slot", "add")  # of which the first is checked where it is used
        for lead in (url, files["folder"]):
            said, code = told("fleet", "apply", lead, "--url", url)
            assert code == 1
            assert "no daemon of edgetune" in said or "the order that was sent is none" in said
        assert list(files["folder"].iterdir()) == []


def test_errors_of_a_daemon_keep_their_kinds():
    for status, kind in ((404, NotFoundError), (503, UnansweredError), (418, EdgetuneError)):
        with answering((status, "application/json", '{"error": {"message": "said so"}}')) as url, Client(url) as client:
            for call in (client.get, client.post, lambda path: client.download(path, Path("/none/file"))):
                with pytest.raises(kind, match=r"^said so$") as caught:
                    call("/v1/models")
                assert not isinstance(caught.value, AwayError)


def test_a_device_that_follows_waits_for_the_daemon(tiny_llama, files):
    with answering(ANSWERS["a proxy's page"]) as url:
        for command in (("follow", url, files["rows"], "--model", tiny_llama), ("join", url)):
            begin(url, "kitchen")
            other = subprocess.Popen(
                [sys.executable, "-m", "edgetune", "fleet", *map(str, command), "--every", "0.1"], text=True,
                stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env={**os.environ, "COLUMNS": "1000"})
            ends = threading.Timer(60, other.kill)
            ends.start()
            said = ""
            while "waiting: what answers at" not in said and (line := other.stdout.readline()):
                said += line
            other.send_signal(signal.SIGINT)
            said += other.communicate()[0]
            ends.cancel()
            assert f"waiting: what answers at {url} is no daemon of edgetune" in said
            assert "Traceback" not in said
            assert other.returncode == 75
            joined(url).forget()
