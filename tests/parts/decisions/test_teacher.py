"""A teacher labels states over HTTP: its probabilities become rows, which name it and can be learned."""

import json

import pytest
from commands import run
from daemons import daemon
from encoder_daemon import OPTIONS
from local_http import Quiet, served_by
from tiny import write_tiny
from typed_asks import STATE
from typed_rows import KEYS, QUESTIONS

from edgetune.runs.train import train

STATES = [STATE, "kitchen lamp on", "turn it off"]


@pytest.fixture
def states(tmp_path):
    path = tmp_path / "states.jsonl"
    lines = [{"questions": QUESTIONS}, *({"state": state} for state in STATES)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def labelled(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize("route", ["systemone", "decisions"])
def test_probabilities_of_both_routes_become_gold(running, expected, states, tmp_path, route):
    said = run("data", "label", states, "-o", tmp_path / "rows.jsonl", "--url", running.url, "--route", route,
               "--model", "typed")
    assert "typed labelled 3 of 3 states" in said
    rows = labelled(tmp_path / "rows.jsonl")
    assert [(row["state"], row["teacher"], row["questions"]) for row in rows] == [
        (state, "typed", QUESTIONS) for state in STATES]
    for row in rows:
        by_engine = expected(row["state"])
        assert row["gold"]["kitchen"] == pytest.approx(by_engine["kitchen"]["true"], abs=1e-5)
        for name in ("lamp", "place"):
            assert row["gold"][name] == pytest.approx(by_engine[name], abs=1e-5)


@pytest.mark.dev
def test_they_are_learned_and_checked_as_a_teachers(running, model, states, tmp_path):
    out = tmp_path / "rows.jsonl"
    run("data", "label", states, "-o", out, "--url", running.url, "--model", "typed")
    assert "3 of them were labelled by typed, no person" in run("data", "check", out, model)
    learned = train(model, out, tmp_path / "adapter", "none", **{**OPTIONS, "steps": 1})
    assert {key for key, _ in learned.record["objective"]["questions"]} == {*KEYS.values()}


def test_a_chat_labels_by_json_that_it_is_held_to(states, tmp_path):
    """A random model of text, whose answers are options because its daemon holds it to the schema."""
    small = write_tiny(tmp_path / "text.gguf", n_context=512)
    with daemon(small, tmp_path / "state") as running:
        run("data", "label", states, "-o", tmp_path / "rows.jsonl", "--url", running.url, "--route", "chat")
    rows = labelled(tmp_path / "rows.jsonl")
    assert len(rows) == 3
    for row in rows:
        assert {*row["gold"]} == {*QUESTIONS}
        assert all(list(found.values()) == [1.0] for found in row["gold"].values())


class Refusing(Quiet):
    """Answers the first question of each state alone, and refuses one state."""

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        assert self.path == "/v1/decisions"
        is_refused = body["input"] == STATES[1]
        answers = [{"type": "refusal", "name": one["name"]} for one in body["questions"]]
        answers[0] = {"type": "choice", "name": "lamp", "probabilities": [
            {"value": one["value"], "probability": float(i == 0)}
            for i, one in enumerate(body["questions"][0]["choices"])]}
        self.send_response(422 if is_refused else 200)
        self.end_headers()
        self.wfile.write(json.dumps({"error": "no"} if is_refused else {"answers": answers}).encode())


def test_what_is_refused_is_left_out(states, tmp_path):
    with served_by(Refusing) as url:
        said = run("data", "label", states, "-o", tmp_path / "rows.jsonl", "--url", url, "--route", "decisions",
                   "--model", "big")
    assert "big labelled 2 of 3 states" in said
    assert "1 were refused, or answered in another form" in said
    assert [[*row["gold"]] for row in labelled(tmp_path / "rows.jsonl")] == [["lamp"], ["lamp"]]


def test_rows_with_answers_are_not_asked_again(running, tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"state": STATE, "questions": QUESTIONS, "expected": {"kitchen": True}}) + "\n")
    said = run("data", "label", path, "-o", tmp_path / "new.jsonl", "--url", running.url, "--model", "typed", code=1)
    assert "a row has answers already; give only states that are to be labelled" in said
    assert not (tmp_path / "new.jsonl").exists()
