"""Prompts that a daemon keeps: only where it may, as many as it may, never answers, and gone when they are deleted."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fastapi")

import httpx
from click.testing import CliRunner
from daemons import PATIENCE, Daemon, daemon
from services import as_version_5, open_service
from tiny import write_tiny

from edgetune.cli.app import cli
from edgetune.daemon.learning.prompts import LARGEST
from edgetune.daemon.state.database import NAME
from edgetune.daemon.state.schema import VERSION
from edgetune.errors import NotFoundError
from edgetune.serving.question import Question

CHAT = "/v1/chat/completions"
TOOL = {"type": "function", "function": {"name": "switch"}}


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """It keeps five prompts."""
    folder = tmp_path_factory.mktemp("prompts")
    model = write_tiny(folder / "tiny.gguf", formats="Q8_0", n_context=512)
    with daemon(model, folder / "state", keep_prompts=5, context=512) as made:
        yield made


@pytest.fixture
def client(running: Daemon) -> Iterator[httpx.Client]:
    running.service.prompts.clear()
    with httpx.Client(base_url=running.url, timeout=PATIENCE) as made:
        yield made


def said(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def ask(client: httpx.Client, text: str, path: str = CHAT, **options: Any) -> None:
    body = {"messages": said(text)} if path == CHAT else {"prompt": text}
    answer = client.post(path, json={**body, "max_tokens": 2, **options})
    assert answer.status_code == 200, answer.text
    assert answer.read()


def kept(client: httpx.Client) -> list[str]:
    return [prompt["question"] for prompt in client.get("/v1/prompts").json()["data"]]


def test_nothing_is_kept_without_the_option(tmp_path: Path) -> None:
    """Also where a client would let it be kept; what is asked is nowhere in the state folder."""
    model = write_tiny(tmp_path / "tiny.gguf", formats="Q8_0", n_context=256)
    with daemon(model, tmp_path / "state", context=256) as made, httpx.Client(
            base_url=made.url, timeout=PATIENCE) as client:
        for store in (None, True):
            ask(client, "my secret lamp", store=store)
        assert client.get("/v1/prompts").json() == {"object": "list", "data": [], "has_more": False,
                                                    "counts": {"kept": 0, "new": 0, "most": 0}}
    for path in (tmp_path / "state").rglob("*"):
        assert not path.is_file() or b"secret lamp" not in path.read_bytes()


def test_what_is_kept_is_the_question_alone(client: httpx.Client) -> None:
    ask(client, "lamp on")
    ask(client, "lamp off", "/v1/completions")
    ask(client, "lamp dim", stream=True)
    client.post("/v1/responses", json={"input": "lamp up", "max_output_tokens": 2}).raise_for_status()
    page = client.get("/v1/prompts").json()
    assert [prompt["question"] for prompt in page["data"]] == ["lamp up", "lamp dim", "lamp off", "lamp on"]
    assert page["counts"] == {"kept": 4, "new": 4, "most": 5}
    rows = [client.get(f"/v1/prompts/{prompt['id']}").json()["row"] for prompt in page["data"]]
    assert rows[2] == {"prompt": "lamp off"}
    for row in (rows[0], rows[1], rows[3]):
        assert row.keys() == {"messages"}
        assert [message["role"] for message in row["messages"]] == ["user"]


@pytest.mark.parametrize(("path", "options"), [
    (CHAT, {"store": False}), ("/v1/completions", {"store": False}), (CHAT, {"tools": [TOOL]}),
    (CHAT, {"logprobs": True}), ("/v1/completions", {"echo": True})])
def test_what_is_not_kept(client: httpx.Client, path: str, options: dict[str, Any]) -> None:
    ask(client, "my lamp", path, **options)
    assert kept(client) == []


def test_store_false_holds_for_responses_too(client: httpx.Client) -> None:
    client.post("/v1/responses", json={"input": "my lamp", "max_output_tokens": 2, "store": False}).raise_for_status()
    client.post("/v1/completions", json={"prompt": [3, 4], "max_tokens": 2}).raise_for_status()  # token ids
    assert kept(client) == []


def test_the_oldest_go_first_and_what_is_asked_again_is_the_newest(client: httpx.Client) -> None:
    for i in range(5):
        ask(client, f"lamp {i}")
    ask(client, "lamp 0")
    assert kept(client) == ["lamp 0", "lamp 4", "lamp 3", "lamp 2", "lamp 1"]
    ask(client, "lamp 5")
    assert kept(client) == ["lamp 5", "lamp 0", "lamp 4", "lamp 3", "lamp 2"]


def test_they_can_be_deleted_one_by_one_and_all(client: httpx.Client, running: Daemon) -> None:
    for i in range(4):
        ask(client, f"lamp number {i}")
    first = client.get("/v1/prompts", params={"limit": 1}).json()
    assert first["has_more"]
    id = first["data"][0]["id"]
    assert client.delete(f"/v1/prompts/{id}").json() == {"id": id, "object": "prompt", "deleted": True, "remains": ""}
    assert client.delete(f"/v1/prompts/{id}").status_code == client.get(f"/v1/prompts/{id}").status_code == 404
    assert kept(client) == ["lamp number 2", "lamp number 1", "lamp number 0"]
    assert client.delete("/v1/prompts").json() == {"object": "list", "count": 3, "remains": ""}
    assert kept(client) == []
    state = running.service.store.folder
    for path in (state / NAME, state / f"{NAME}-wal"):
        assert b"lamp number" not in path.read_bytes()


def test_the_command_lists_shows_and_deletes(client: httpx.Client, running: Daemon) -> None:
    def run(*args: str) -> str:
        done = CliRunner().invoke(cli, ["prompts", *args, "--url", running.url], catch_exceptions=False)
        assert done.exit_code == 0, done.output
        return done.output

    for i in range(3):
        ask(client, f"lamp {i}")
    listed = run()
    assert "lamp 2" in listed
    assert "3 of 5 at most are kept, 3 were not asked by the tutor yet" in listed
    ids = [prompt["id"] for prompt in json.loads(run("list", "--json"))["data"]]
    assert json.loads(run("show", ids[0]))["messages"][0]["content"] == "lamp 2"
    assert f"{ids[0]} is deleted" in run("delete", ids[0])
    assert "2 prompts are deleted" in run("delete", "--all")
    assert "no prompts are kept" in run()
    refused = CliRunner().invoke(cli, ["prompts", "delete", "--url", running.url])
    assert refused.exit_code != 0
    assert "no prompt is named" in refused.output


def test_a_daemon_that_may_keep_fewer_deletes_the_others(tmp_path: Path) -> None:
    with open_service(tmp_path, keep_prompts=10) as service:
        for i in range(8):
            assert service.prompts.keep(Question(prompt=f"lamp {i}"))
        assert not service.prompts.keep(Question(prompt="x" * LARGEST))
        assert not service.prompts.keep(Question(prompt=" "))
        assert not service.prompts.keep(Question(messages=[{"role": "user", "content": "on"},
                                                           {"role": "assistant", "content": "yes"}]))
    with open_service(tmp_path, keep_prompts=3) as service:
        assert [prompt.asked for prompt in service.prompts.list()] == ["lamp 7", "lamp 6", "lamp 5"]
    with open_service(tmp_path) as service:
        assert service.prompts.list() == []
        with pytest.raises(NotFoundError, match="there is no prompt 'prompt-0'"):
            service.prompts.get("prompt-0")
    assert b"lamp 7" not in (tmp_path / "state" / NAME).read_bytes()


def test_a_damaged_prompt_is_left_out_and_can_be_deleted(tmp_path: Path) -> None:
    with open_service(tmp_path, keep_prompts=10) as service:
        for i in range(2):
            service.prompts.keep(Question(prompt=f"lamp {i}"))
        newest = service.prompts.list()[0]
        with service.store.write() as db:
            db.execute("UPDATE prompts SET row = '{' WHERE id = ?", (newest.id,))
        assert [prompt.asked for prompt in service.prompts.list()] == ["lamp 0"]
        assert any("a row of prompts" in reason for reason in service.health()["reasons"])
        service.prompts.delete(newest.id)
        assert service.health()["status"] == "ok"


def test_a_state_of_version_5_opens(folder: Path) -> None:
    """With all that it held, and room for what is new."""
    with closing(sqlite3.connect(folder / "state" / NAME)) as db:
        as_version_5(db)
        db.execute("PRAGMA user_version = 5")
        db.commit()
        tables = ("jobs", "adapters", "feedback")
        before = [db.execute(f"SELECT count(*) FROM {table}").fetchone()[0] for table in tables]
    with open_service(folder, keep_prompts=2) as service:
        assert [len(service.jobs.list()), len(service.adapters.list()), len(service.feedback.list())] == before
        assert all(job.rounds is None for job in service.jobs.list())
        assert service.prompts.keep(Question(prompt="lamp on"))
    with closing(sqlite3.connect(folder / "state" / NAME)) as db:
        assert db.execute("PRAGMA user_version").fetchone() == (VERSION,) == (7,)
