"""Prompts that a daemon keeps: only where it may, as many as it may, never answers, and gone when they are deleted."""

import json
import sqlite3
from contextlib import closing

import httpx
import pytest
from click.testing import CliRunner
from daemons import PATIENCE, daemon
from services import open_service
from tiny import write_tiny

from edgetune.cli.app import cli
from edgetune.daemon.state.database import NAME
from edgetune.errors import NotFoundError
from edgetune.parts.tutor.prompts import LARGEST, prompts_of
from edgetune.serving.question import Question

DAEMON = {"keep_prompts": 5, "context": 512}
CHAT = "/v1/chat/completions"
TOOL = {"type": "function", "function": {"name": "switch"}}


@pytest.fixture(autouse=True)
def none_yet(running, monkeypatch):
    """Each question is drawn, too: what deletes a prompt deletes that."""
    monkeypatch.setattr(running.service.holdout, "draws", lambda _: True)
    prompts_of(running.service).clear()
    running.service.traffic.clear()


def said(text):
    return [{"role": "user", "content": text}]


def ask(http, text, path=CHAT, **options):
    body = {CHAT: {"messages": said(text), "max_tokens": 2}, "/v1/completions": {"prompt": text, "max_tokens": 2}}[path]
    answer = http.post(path, json={**body, **options})
    assert answer.status_code == 200, answer.text
    assert answer.read()


def kept(http):
    return [prompt["question"] for prompt in http.get("/v1/prompts").json()["data"]]


def test_nothing_is_kept_without_the_options(tmp_path):
    """Also where a client would let it be kept; what is asked is nowhere in the state folder, if none is drawn."""
    model = write_tiny(tmp_path / "tiny.gguf", formats="Q8_0", n_context=256)
    with daemon(model, tmp_path / "state", context=256, drawn_days=0) as made, httpx.Client(
            base_url=made.url, timeout=PATIENCE) as http:
        for store in (None, True):
            ask(http, "my secret lamp", store=store)
        assert http.get("/v1/prompts").json() == {"object": "list", "data": [], "has_more": False,
                                                    "counts": {"kept": 0, "new": 0, "most": 0}}
    for path in (tmp_path / "state").rglob("*"):
        assert not path.is_file() or b"secret lamp" not in path.read_bytes()


def test_what_is_kept_is_the_question_alone(http):
    ask(http, "lamp on")
    ask(http, "lamp off", "/v1/completions")
    ask(http, "lamp dim", stream=True)
    ask(http, "lamp up")
    page = http.get("/v1/prompts").json()
    assert [prompt["question"] for prompt in page["data"]] == ["lamp up", "lamp dim", "lamp off", "lamp on"]
    assert page["counts"] == {"kept": 4, "new": 4, "most": 5}
    rows = [http.get(f"/v1/prompts/{prompt['id']}").json()["row"] for prompt in page["data"]]
    assert rows[2] == {"prompt": "lamp off"}
    for row in (rows[0], rows[1], rows[3]):
        assert row.keys() == {"messages"}
        assert [message["role"] for message in row["messages"]] == ["user"]


@pytest.mark.parametrize(("path", "body"), [
    (CHAT, {"store": False}), (CHAT, {"tools": [TOOL]}), (CHAT, {"logprobs": True}),
    ("/v1/completions", {"store": False}), ("/v1/completions", {"echo": True}),
    ("/v1/completions", {"prompt": [3, 4]})])
def test_what_is_not_kept(http, path, body):
    ask(http, "my lamp", path, **body)
    assert kept(http) == []


def test_the_oldest_go_first_and_what_is_asked_again_is_the_newest(http):
    for number in (0, 1, 2, 3, 4, 0, 5):
        ask(http, f"lamp {number}")
    assert kept(http) == ["lamp 5", "lamp 0", "lamp 4", "lamp 3", "lamp 2"]


def test_they_are_listed_shown_and_deleted_by_the_api_and_by_the_command(http, running):
    for i in range(4):
        ask(http, f"lamp number {i}")
    first = http.get("/v1/prompts", params={"limit": 1}).json()
    assert first["has_more"]
    id = first["data"][0]["id"]
    assert http.delete(f"/v1/prompts/{id}").json() == {"id": id, "object": "prompt", "deleted": True, "remains": ""}
    assert http.delete(f"/v1/prompts/{id}").status_code == http.get(f"/v1/prompts/{id}").status_code == 404
    assert kept(http) == ["lamp number 2", "lamp number 1", "lamp number 0"]
    assert http.get("/v1/drawn").json()["counts"]["kept"] == 3
    assert http.delete("/v1/prompts").json() == {"object": "list", "count": 3, "remains": ""}
    assert kept(http) == []
    state = running.service.store.folder
    for path in (state / NAME, state / f"{NAME}-wal"):
        assert b"lamp number" not in path.read_bytes()
    def run(*args):
        done = CliRunner().invoke(cli, ["feedback", "prompts", *args, "--url", running.url], catch_exceptions=False)
        assert done.exit_code == 0, done.output
        return done.output

    for i in range(3):
        ask(http, f"lamp {i}")
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


def test_a_daemon_that_may_keep_fewer_deletes_the_others(tmp_path):
    with open_service(tmp_path, keep_prompts=10) as service:
        for i in range(8):
            assert prompts_of(service).keep(Question(prompt=f"lamp {i}"))
        assert not prompts_of(service).keep(Question(prompt="x" * LARGEST))
        assert not prompts_of(service).keep(Question(prompt=" "))
        assert not prompts_of(service).keep(Question(messages=[{"role": "user", "content": "on"},
                                                           {"role": "assistant", "content": "yes"}]))
    with open_service(tmp_path, keep_prompts=3) as service:
        assert [prompt.asked for prompt in prompts_of(service).list()] == ["lamp 7", "lamp 6", "lamp 5"]
        newest = prompts_of(service).list()[0].id
        with service.store.write() as db:  # a damaged one is left out, and can be deleted
            db.execute("UPDATE prompts SET row = '{' WHERE id = ?", (newest,))
        assert [prompt.asked for prompt in prompts_of(service).list()] == ["lamp 6", "lamp 5"]
        assert any("a row of prompts" in reason for reason in service.health()["reasons"])
        prompts_of(service).delete(newest)
        assert service.health()["status"] == "ok"
    with open_service(tmp_path) as service:
        assert prompts_of(service).list() == []
        with pytest.raises(NotFoundError, match="there is no prompt 'prompt-0'"):
            prompts_of(service).get("prompt-0")
    assert b"lamp 7" not in (tmp_path / "state" / NAME).read_bytes()


def test_a_database_without_prompts_opens(tmp_path):
    with open_service(tmp_path):
        pass
    with closing(sqlite3.connect(tmp_path / "state" / NAME)) as db:
        db.execute("DROP TABLE prompts")
    for _ in range(2):
        with open_service(tmp_path, keep_prompts=2) as service:
            assert prompts_of(service).keep(Question(prompt="lamp on"))
            assert prompts_of(service).counts()["kept"] == 1


def test_proposals_are_stored_only_where_prompts_may_be_kept(tmp_path):
    """Nothing of a conversation is in the state folder without --keep-prompts, or where a client forbids it, if none is
    drawn.
    """
    model = write_tiny(tmp_path / "tiny.gguf", formats="Q8_0", n_context=256)
    remark = [*said("capital of Australia?"), {"role": "assistant", "content": "Sydney."},
              *said("That is wrong, it is Canberra.")]

    def stored():
        return any(b"Sydney" in path.read_bytes() for path in (tmp_path / "state").rglob("*") if path.is_file())

    def proposed(http):
        return http.get("/v1/proposals").json()["data"]

    for most, store, is_stored in ((0, None, False), (5, False, False), (5, None, True), (0, None, False)):
        with daemon(model, tmp_path / "state", context=256, keep_prompts=most, drawn_days=0) as made, httpx.Client(
                base_url=made.url, timeout=PATIENCE) as http:
            assert proposed(http) == []
            answer = http.post(CHAT, json={"messages": remark, "max_tokens": 40, "store": store})
            assert answer.status_code == 200, answer.text
            assert len(proposed(http)) == 1
        assert stored() == is_stored
        if is_stored:
            with daemon(model, tmp_path / "state", context=256, keep_prompts=most, drawn_days=0) as made, httpx.Client(
                    base_url=made.url, timeout=PATIENCE) as http:
                (kept,) = proposed(http)
                http.delete("/v1/prompts")
                http.delete(f"/v1/proposals/{kept['id']}")
            assert not stored()
