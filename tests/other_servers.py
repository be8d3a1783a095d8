"""Servers that are no daemon, such as a proxy whose daemon is away, and commands that ask them."""

from __future__ import annotations

import contextlib
import json

from click.testing import CliRunner
from local_http import Quiet, served_by

from edgetune.cli import cli
from edgetune.daemon import client as clients

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


def write_files(tmp_path, monkeypatch):
    """The files that commands read, by the names in their arguments; the state is in a new folder."""
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
