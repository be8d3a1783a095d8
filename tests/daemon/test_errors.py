"""Which status an error has over HTTP, where a library call raises it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("fastapi")

import httpx
from daemons import Daemon, daemon
from tiny import write_tiny

from edgetune.daemon.learning.rows import LARGEST


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Daemon]:
    with daemon(write_tiny(tmp_path / "tiny.gguf", formats="Q8_0"), tmp_path / "state") as running:
        yield running


def test_a_late_request_is_told_that_the_daemon_stops(running: Daemon) -> None:
    """It may come again: it is not what is wrong."""
    ask = {"messages": [{"role": "user", "content": "lamp on"}], "max_tokens": 2}
    assert httpx.post(f"{running.url}/v1/chat/completions", json=ask).status_code == 200
    running.service.batcher.stop()
    late = httpx.post(f"{running.url}/v1/chat/completions", json=ask)
    error = late.json()["error"]
    assert (late.status_code, error["type"], error["code"]) == (503, "server_error", "stopping")
    assert error["message"] == "the model takes no requests: it is being stopped; ask again when it is back"


@pytest.mark.parametrize(("given", "status", "says"), [
    ({"prompt": "a", "answer": "x" * LARGEST, "rating": "down"}, 413, f"at most {LARGEST} are kept"),
    ({"prompt": "a", "answer": " ", "rating": "up"}, 400, "the answer to learn is empty; give it as the correction"),
    ({"prompt": "a", "correction": ""}, 400, "the answer to learn is empty; give it as the correction"),
])
def test_feedback_that_is_not_kept(running: Daemon, given: dict[str, str], status: int, says: str) -> None:
    refused = httpx.post(f"{running.url}/v1/feedback", json=given)
    assert refused.status_code == status
    assert says in refused.json()["error"]["message"]
    assert running.service.feedback.list() == []


@pytest.mark.parametrize(("option", "content", "status", "says"), [
    ({"max_rows": 2}, b'{"text": "a b"}\n' * 3, 413, "the file has more than 2 rows"),
    ({}, b'{"prompt": "a", "completion": ""}\n', 400, "line 1: the completion is empty; write it, or remove the row"),
])
def test_an_upload_that_is_not_kept(tmp_path: Path, option: dict[str, int], content: bytes, status: int,
                                    says: str) -> None:
    with daemon(write_tiny(tmp_path / "tiny.gguf", formats="Q8_0"), tmp_path / "state", **option) as running:
        refused = httpx.post(f"{running.url}/v1/files", data={"purpose": "fine-tune"}, files={"file": content})
        assert refused.status_code == status
        assert says in refused.json()["error"]["message"]
        assert running.service.files.list() == []
