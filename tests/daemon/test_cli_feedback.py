"""edgetune feedback: what people said is read, edited, deleted and learned from a terminal."""

import json

import pytest
from click.testing import CliRunner
from commands import run

from edgetune.cli import cli
from edgetune.cli import feedback as checked
from edgetune.daemon.client import Client
from edgetune.errors import NotFoundError, UsageError
from edgetune.serving.question import Question

HOSTILE = "red \x1b[31m" + "word " * 400 + "end"


@pytest.fixture
def feedback(running, monkeypatch):
    """Of the daemon that commands speak to; empty at the end."""
    monkeypatch.setenv("EDGETUNE_URL", running.url)
    monkeypatch.delenv("EDGETUNE_KEY", raising=False)
    feedback = running.service.feedback
    yield feedback
    for item in feedback.list(limit=1000):
        feedback.delete(item.id)


def asked(text):
    return [{"role": "user", "content": text}]


def test_it_lists_the_latest_and_shows_a_piece_whole_and_nothing_that_a_terminal_obeys(feedback):
    assert run("feedback").startswith("there is no feedback")
    for i in range(4):
        feedback.add(messages=asked(f"light {i}?\nsay"), answer="no", correction=f"yes {i}")
    feedback.add(messages=asked("other"), answer="no", rating="down")
    text = run("feedback", "--limit", 2)
    assert "light 3? say → yes 3, not no: " in text
    assert "other → not no: nothing to learn" in " ".join(text.split())
    assert "nothing to learn" in text
    assert "light 2?" not in text
    kept = json.loads(run("feedback", "list", "--json", "--limit", 0))
    assert [each["id"] for each in kept["data"]] == [item.id for item in feedback.list()]
    assert sum(kept["counts"].values()) == 4  # of thumbs down nothing is learned
    assert kept["data"][-1]["question"] == "light 0?\nsay"
    history = [*asked("one"), {"role": "assistant", "content": "1\n2"}, *asked(HOSTILE)]
    chat = feedback.add(messages=history, correction="on").id
    prompt = feedback.add(prompt="a", answer="c", correction="b").id
    text = run("feedback", "show", chat)
    assert "\x1b" not in text + run("feedback", "list")
    assert text.split() == ["user:", "one", "assistant:", "1", "2", "user:", "red", "\\x1b[31mword", *["word"] * 399,
                            "end", "assistant:", "on", "state:", "new:", *feedback.get(chat).reason.split()]
    assert "prompt: a\nanswer: b\nnot: c\n" in run("feedback", "show", prompt)
    assert json.loads(run("feedback", "show", chat, "--json"))["row"]["messages"][2]["content"] == HOSTILE


def test_proposed_corrections_are_listed_accepted_and_dismissed(feedback, running):
    assert run("feedback", "proposed") == "no correction waits\n"
    for i, remark in enumerate(("No, I meant the lamp.", f"That is wrong, it is {HOSTILE[:20]}")):
        chat = [*asked(f"question {i}"), {"role": "assistant", "content": "fan"}, *asked(remark)]
        assert running.service.proposals.see(Question(messages=chat), "lamp")
    text = run("feedback", "proposed")
    assert "question 0 → fan\n  then: No, I meant the lamp.\n  right: lamp\n" in text
    assert "\x1b" not in text
    ids = {each["question"]: each["id"] for each in json.loads(run("feedback", "proposed", "--json"))["data"]}
    assert "waits to be learned" in run("feedback", "accept", ids["question 0"], "the lamp") or feedback.list()[0].held
    assert said_of() == [("question 0", "the lamp")]
    assert run("feedback", "dismiss", ids["question 1"]) == f"{ids['question 1']} is dismissed\n"
    assert "there is no proposal" in run("feedback", "accept", "prop-0", code=1)
    assert run("feedback", "proposed") == "no correction waits\n"


@pytest.fixture
def drawn(running):
    """Questions that were drawn."""
    traffic = running.service.traffic
    for i in range(40):
        traffic.see({"messages": asked(f"light {i}?")})
    yield [row["messages"][0]["content"] for row in traffic.unrated()]
    traffic.clear()


@pytest.mark.usefixtures("feedback")
def test_drawn_questions_are_listed_and_deleted(drawn):
    found = json.loads(run("feedback", "check", "--json", "--limit", 2))
    assert [row["messages"] for row in found["data"]] == [asked(text) for text in drawn[:2]]
    assert found["counts"] == {"days": 90, "kept": len(drawn), "unrated": len(drawn), "checked": 0}
    assert "standard input is no terminal" in run("feedback", "check", code=2)
    assert run("feedback", "check", "--clear") == f"{len(drawn)} questions are deleted\n"
    assert run("feedback", "check") == "every drawn question is rated\n"


def test_a_person_judges_drawn_questions_in_a_terminal(drawn, feedback, running, monkeypatch):
    """Enter confirms the answer, a text corrects it, a dash skips it, and the end of input ends it."""
    monkeypatch.setattr(checked, "is_terminal", lambda: True)
    answer = checked._answer
    monkeypatch.setattr(checked, "_answer", lambda *asked: (answer(*asked)[0], False))  # the tiny model may end it
    cut = CliRunner().invoke(cli, ["feedback", "check"], input="\n-\n")
    assert "(cut)" in cut.output
    assert cut.output.endswith("0 answers are rated\n")
    monkeypatch.setattr(checked, "_answer", lambda *_: ("to the left", True))
    said = CliRunner().invoke(cli, ["feedback", "check"], input="\nto the right\n-\n")
    assert said.output.endswith("2 answers are rated\n"), said.output
    right, corrected = feedback.list(limit=2)[::-1]
    assert (right.heading.asked, right.rating, right.held) == (drawn[0], "up", True)
    assert (corrected.heading.asked, corrected.answer, corrected.held) == (drawn[1], "to the right", True)
    left = [row["messages"][0]["content"] for row in running.service.traffic.unrated()]
    assert left == drawn[2:]  # in their order: a check is no question that people ask
    reached = [row["question"] for row in running.service.store.read("SELECT * FROM drawn WHERE checked IS NOT NULL")]
    assert sorted(reached) == sorted([right.question, corrected.question])


def said_of():
    """(question, right answer) of each piece, the latest first."""
    return [(one["question"], one["answer"]) for one in json.loads(run("feedback", "list", "--json"))["data"]]


@pytest.mark.usefixtures("feedback")
def test_it_gives_corrections_ratings_and_pairs(running):
    run("feedback", "add", "--prompt", "light?", "--answer", "no", "--correction", "on")
    run("feedback", "add", "--prompt", "fan?", "--answer", "good", "--rejected", "bad")
    said = json.loads(run("feedback", "add", "--prompt", "radio?", "--answer", "off", "--rating", "up", "--json"))
    assert said["question"] == "radio?"
    assert said_of() == [("radio?", "off"), ("fan?", "good"), ("light?", "on")]
    with Client(running.url, "") as client:
        answer = client.post("/v1/chat/completions", {"model": client.get("/v1/device")["model"], "max_tokens": 2,
                                                      "messages": asked("door?")})
    run("feedback", "add", "--completion-id", answer["id"], "--correction", "shut")
    assert said_of()[0] == ("door?", "shut")
    today = json.loads(run("feedback", "add", "--prompt", "menu?", "--correction", "soup", "--expires-in", 60,
                           "--json"))
    assert today["expires_at"] - today["created_at"] == 60
    assert today["reason"] == "answers until it expires, and is never learned"
    running.service.feedback.delete(today["id"])


@pytest.mark.parametrize(("options", "words"), [
    ((), ["no question", "--prompt"]),
    (("--prompt", "a", "--completion-id", "b"), ["--completion-id", "--prompt", "both"]),
    (("--completion-id", "chatcmpl-none", "--rating", "up"), ["chatcmpl-none"]),
    (("--prompt", "a", "--answer", "b"), ["rating"]),
])
def test_feedback_that_says_nothing_is_refused(feedback, options, words):
    result = CliRunner().invoke(cli, ["feedback", "add", *options])
    assert result.exit_code in (1, 2)
    assert all(word in result.output for word in words), result.output
    assert not feedback.list()


def test_it_edits_by_argument_and_in_an_editor(feedback, tmp_path, monkeypatch):
    made = feedback.add(messages=asked("light?"), answer="no", correction="on").id
    assert feedback.get(made).heading.reason in run("feedback", "edit", made, "off")
    assert feedback.get(made).heading.answer == "off"
    editor = tmp_path / "editor"
    editor.write_text('#!/bin/sh\nsed -i "s/off/off at night/" "$1"\ntouch -d "+1 hour" "$1"\n')
    editor.chmod(0o700)
    monkeypatch.setenv("EDITOR", str(editor))
    monkeypatch.delenv("VISUAL", raising=False)
    run("feedback", "edit", made)
    assert feedback.get(made).heading.answer == "off at night"
    monkeypatch.setenv("EDITOR", "true")  # leaves the file as it is
    assert "nothing was saved in the editor" in run("feedback", "edit", made, code=UsageError.exit_code)


def test_it_deletes_and_says_what_remains(feedback):
    ids = [feedback.add(messages=asked(f"light {i}?"), correction="on").id for i in range(10)]
    learned, other = [id for id in ids if not feedback.get(id).held][:2]
    assert run("feedback", "delete", other) == f"{other} is removed\n"
    feedback.assign(feedback.training_rows().taken, "ftjob-1")
    assert "ftjob-1 is not finished and learns it all the same" in " ".join(run("feedback", "delete", learned).split())
    feedback.settle("ftjob-1", "used")
    with pytest.raises(NotFoundError):
        feedback.get(learned)
    assert "there is no feedback" in run("feedback", "delete", learned, code=1)
    assert "there is no 'a/b'; edgetune feedback lists those that exist" in run("feedback", "show", "a/b", code=1)


def test_learning_begins_or_says_what_is_missing(feedback):
    assert "there is no new feedback to learn" in run("feedback", "learn", code=UsageError.exit_code)
    feedback.add(messages=asked("light?"), correction="on")
    assert "held out" in run("feedback", "learn", code=UsageError.exit_code)
    assert "no feedback was learned yet" in run("feedback", "learn", "--all", code=UsageError.exit_code)
