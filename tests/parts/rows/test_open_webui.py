"""Rows from Open WebUI's feedback, by records of its schema: models/feedbacks.py, and what its page sends."""

import json

import pytest
from commands import run
from webui_feedback import message, record

from edgetune.data import preferences, rows, unpaired
from edgetune.parts.rows.open_webui import make_from_open_webui
from edgetune.parts.rows.options import OpenWebuiOptions

GOOD = record(1, [message("1", None, "user", "hi"), message("2", "1", "assistant", "Hello."),
                  message("3", "2", "user", "lamp on"), message("4", "3", "assistant", '{"lamp": "on"}')], "4")
BAD = record(-1, [message("1", None, "user", "capital of Australia?"), message("2", "1", "assistant", "Sydney.")], "2",
             comment="It should be Canberra.")
BARE = record(-1, [message("1", None, "user", "tell a joke"), message("2", "1", "assistant", "No.")], "2",
              comment="too short", reason="not_helpful")
ARENA = record(1, [message("1", None, "user", "sum 2 and 3"), message("2", "1", "assistant", "5", model="a"),
                   message("3", "1", "assistant", "6", model="b"), message("4", "1", "assistant", "7", model="c")], "2",
               arena=True, siblings=["b", "c"])
LOST = record(-1, [message("1", None, "user", "sum 1 and 1"), message("2", "1", "assistant", "3", model="a"),
                   message("3", "1", "assistant", "2", model="b")], "2", arena=True, siblings=["b"])
THINKS = record(1, [message("1", None, "user", "why?"),
                    message("2", "1", "assistant", '<details type="reasoning">...</details>So.')], "2")
UNRATED = record(None, [message("1", None, "user", "x"), message("2", "1", "assistant", "y")], "2")
ALL = [GOOD, BAD, BARE, ARENA, LOST, THINKS, UNRATED]


@pytest.fixture
def export(tmp_path):
    path = tmp_path / "feedback-history-export.json"
    path.write_text(json.dumps(ALL))
    return path


def made(export, **options):
    return make_from_open_webui(export, OpenWebuiOptions(**options))


def said(text):
    return [{"role": "assistant", "content": text}]


def asked(text):
    return [{"role": "user", "content": text}]


def test_thumbs_up_and_comments_that_state_the_answer_are_answers(export):
    found = made(export)
    assert [row["messages"][-1]["content"] for row in found.rows] == ['{"lamp": "on"}', "Canberra", "5"]
    assert found.rows[0]["messages"] == [*asked("hi"), {**said("Hello.")[0], "weight": 0}, *asked("lamp on"),
                                         *said('{"lamp": "on"}')]
    assert dict(found.dropped) == {"a thumb down that says no right answer": 2, "has no rating of 1 or -1": 1,
                                   "holds no chat with its answer": 1}
    assert found.read == 7
    for row in found.rows:
        assert rows.check_learnable(row) == "messages"


def test_comments_are_answers_only_where_the_person_says_so(export):
    assert "too short" in [row["messages"][-1]["content"] for row in made(export, comments="all").rows]
    assert len(made(export, comments="none").rows) == 2


def test_thumbs_are_labels(export):
    found = made(export, shape="labels").rows
    assert [row["label"] for row in found] == [True, False, False, True, False]
    for row in found:
        assert unpaired.check_learnable(row) == "unpaired"


def test_arena_votes_and_corrections_are_pairs(export):
    found = made(export, shape="pairs")
    assert found.rows == [
        {"prompt": asked("capital of Australia?"), "chosen": said("Canberra"), "rejected": said("Sydney.")},
        {"prompt": asked("sum 2 and 3"), "chosen": said("5"), "rejected": said("6")},
        {"prompt": asked("sum 2 and 3"), "chosen": said("5"), "rejected": said("7")},
        {"prompt": asked("sum 1 and 1"), "chosen": said("2"), "rejected": said("3")}]
    for row in found.rows:
        assert preferences.check_learnable(row) == "preference"


def test_one_model_alone(export):
    found = made(export, model="a", shape="labels")
    assert [row["completion"][0]["content"] for row in found.rows] == ["5", "3"]
    assert found.dropped["is about another model"] == 5


def test_a_chat_as_the_page_lists_it(tmp_path):
    """Without a history, `messages` is the conversation."""
    listed = json.loads(json.dumps(BAD))
    chat = listed["snapshot"]["chat"]["chat"]
    chat["messages"] = list(chat.pop("history")["messages"].values())
    path = tmp_path / "export.jsonl"
    path.write_text(json.dumps(listed))
    assert made(path).rows[0]["messages"] == [*asked("capital of Australia?"), *said("Canberra")]


def test_the_command_reports_and_refuses(export, tmp_path):
    printed = run("data", "make", "open-webui", export, "-o", tmp_path / "rows.jsonl")
    assert printed.startswith(f"3 rows in {tmp_path / 'rows.jsonl'}, of 7 read\n")
    assert "a thumb down that says no right answer        2" in printed
    (tmp_path / "other.json").write_text('[{"prompt": "a", "completion": "b"}]')
    assert "is no export of feedback" in run("data", "make", "open-webui", tmp_path / "other.json", "-o",
                                             tmp_path / "new.jsonl", code=1)
    export.write_text(json.dumps([UNRATED]))
    refused = run("data", "make", "open-webui", export, "-o", tmp_path / "new.jsonl", code=1)
    assert "no row was made of 1 read (1 has no rating of 1 or -1)" in refused
    assert not (tmp_path / "new.jsonl").exists()
