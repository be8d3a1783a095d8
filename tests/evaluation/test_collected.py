"""Rows of a teacher's right answers: by our own daemon as the server, and by one that is busy, wrong or gone."""

import json
from collections import Counter
from contextlib import contextmanager
from itertools import count

import pytest
from commands import run
from daemons import daemon
from json_lines import read_lines, write_lines
from local_http import Quiet, served_by
from tiny import write_tiny

import edgetune
from edgetune.daemon.endpoint import Endpoint
from edgetune.errors import EdgetuneError, Interrupted, UsageError
from edgetune.evaluation.collected import RefusedByTeacher, collect, journal_of, with_answer
from edgetune.evaluation.graders.base import read_grader
from edgetune.evaluation.graders.sample import Sample

EQUAL = read_grader({"type": "string_check", "name": "equal", "operation": "eq", "input": "{{ sample.output_text }}",
                     "reference": "{{ item.sum }}"})
ROWS = [{"prompt": f"{i} + 1", "sum": str(i + 1)} for i in range(20)]


def answer_of(body):
    """Right for even numbers; for others from the second answer on; never for 13; 7 is cut."""
    number = int(body["messages"][-1]["content"].split(" ")[0])
    is_right = number != 13 and (number % 2 == 0 or body["seed"] > 0)
    return str(number + 1 if is_right else 0), "length" if number == 7 else "stop"


@contextmanager
def server(status_of=lambda _turn, _body: 200, said=None):
    """A server with OpenAI's API; status_of: of the n-th request for a question. Yields (url, requests by question)."""
    seen = Counter()

    class Handler(Quiet):
        protocol_version = "HTTP/1.1"

        def do_GET(self):
            self.send(200, {"data": [{"id": "teacher"}]})

        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            question = body["messages"][-1]["content"]
            seen[question] += 1
            status = status_of(seen[question], body)
            text, reason = answer_of(body)
            found = {"choices": [{"message": {"role": "assistant", "content": text}, "finish_reason": reason}]}
            self.send(status, (said or found) if status == 200 else {"error": {"message": "not now"}})

        def send(self, status, found):
            text = json.dumps(found).encode()
            self.send_response(status)
            self.send_header("content-length", str(len(text)))
            self.send_header("retry-after", "3")
            self.end_headers()
            self.wfile.write(text)

    with served_by(Handler) as url:
        yield url, seen


@contextmanager
def asking(url, slept=None, **options):
    endpoint = Endpoint(url, "teacher", sleep=(slept if slept is not None else []).append, **options)
    try:
        yield lambda row, turn: endpoint.answer([{"role": "user", "content": row["prompt"]}], seed=turn)
    finally:
        endpoint.close()


def test_only_right_answers_are_kept_and_all_are_counted(tmp_path):
    with server() as (url, seen), asking(url) as ask:
        counts = collect(ROWS, ask, EQUAL, tmp_path / "one.jsonl")
        again = collect(ROWS, ask, EQUAL, tmp_path / "two.jsonl", samples=3, threads=2)
    assert (counts.prompts, counts.kept, counts.wrong, counts.refused) == (20, 10, 10, 0)
    assert (counts.answers, counts.cut) == (20, 1)
    assert read_lines(tmp_path / "one.jsonl") == [{"prompt": f"{i} + 1", "completion": str(i + 1)}
                                                  for i in range(0, 20, 2)]
    assert (again.kept, again.wrong, again.answers, again.cut) == (18, 2, 10 + 8 * 2 + 2 * 3, 3)
    assert [row["prompt"] for row in read_lines(tmp_path / "two.jsonl")] == [
        f"{i} + 1" for i in range(20) if i not in (7, 13)]
    assert seen["2 + 1"] == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one.jsonl", "two.jsonl"]


def test_a_busy_server_is_asked_again_and_a_refused_question_is_not(tmp_path):
    def status(turn, body):
        number = int(body["messages"][-1]["content"].split(" ")[0])
        if number == 4:
            return 400
        return {1: 503, 2: 429}.get(turn, 200) if number in (0, 6) else 200

    slept = []
    with server(status) as (url, seen), asking(url, slept) as ask:
        counts = collect(ROWS, ask, EQUAL, tmp_path / "rows.jsonl")
    assert (counts.kept, counts.refused, counts.answers) == (9, 1, 19)
    assert seen["0 + 1"] == seen["6 + 1"] == 3
    assert seen["4 + 1"] == 1
    assert sorted(slept) == [3.0] * 4  # as it wanted


def test_what_a_stop_left_is_continued(tmp_path):
    asked = count()
    with server() as (url, seen), asking(url) as ask:
        whole = collect(ROWS, ask, EQUAL, tmp_path / "whole.jsonl")
        seen.clear()
        with pytest.raises(Interrupted, match=r"stopped after \d+ of 20 prompts"):
            collect(ROWS, ask, EQUAL, tmp_path / "rows.jsonl", threads=1, should_stop=lambda: next(asked) >= 9)
        assert not (tmp_path / "rows.jsonl").exists()
        journal = journal_of(tmp_path / "rows.jsonl")
        with journal.open("a") as file:
            file.write('{"number": 19, "ro')  # cut by a kill
        with pytest.raises(UsageError, match=r"rows\.jsonl\.part was begun with other prompts or options"):
            collect(ROWS[1:], ask, EQUAL, tmp_path / "rows.jsonl")
        assert collect(ROWS, ask, EQUAL, tmp_path / "rows.jsonl") == whole
    assert (tmp_path / "rows.jsonl").read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
    assert not journal.exists()
    assert sum(seen.values()) < 30  # those that were known were not asked again


@pytest.mark.parametrize(("status", "says"), [
    (401, "answers 401 not now; look at --url, --model and the key"), (404, "answers 404 not now"),
    (503, "does not answer: 503 not now; look whether it runs")])
def test_a_server_that_answers_nothing_ends_it(tmp_path, status, says):
    with server(lambda *_: status) as (url, _), asking(url, retries=1) as ask, pytest.raises(EdgetuneError, match=says):
        collect(ROWS, ask, EQUAL, tmp_path / "rows.jsonl")
    assert journal_of(tmp_path / "rows.jsonl").exists()


def test_what_is_no_such_server_is_said():
    for said in ({"choices": []}, {"choices": [{}]}, {"choices": ["x"]}, {"choices": [{"message": "x"}]}):
        with server(said=said) as (url, _), asking(url) as ask, pytest.raises(EdgetuneError, match="has not OpenAI's"):
            ask(ROWS[0], 0)
    slept = []
    with asking("http://127.0.0.1:9", slept, retries=3) as ask, pytest.raises(EdgetuneError, match="does not answer"):
        ask(ROWS[0], 0)
    assert len(slept) == 3
    assert all(low <= wait <= 2 * low for wait, low in zip(slept, (0.5, 1, 2), strict=True))
    with pytest.raises(UsageError, match=r"url is 'localhost'"):
        Endpoint("localhost", "x")


def test_a_row_to_learn_has_nothing_of_the_grader():
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    assert with_answer({"prompt": "q", "sum": "3", "completion": "no"}, Sample("3")) == {
        "prompt": "q", "completion": "3"}
    asked = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}]
    found = with_answer({"messages": asked, "tools": [{"type": "function"}], "sum": 1}, Sample("", [call]))
    assert found["messages"][1] == {"role": "assistant", "content": "b", "weight": 0}
    assert found["messages"][-1] == {"role": "assistant", "content": "", "tool_calls": [call]}
    assert list(found) == ["messages", "tools"]


LAMPS = [{"prompt": f"turn the light {i}", "completion": "on" if i % 2 else "off"} for i in range(8)]


def test_our_own_daemon_teaches(tmp_path):
    """A tiny model that has learned some rows answers them; those answers are kept that it has right."""
    model = write_tiny(tmp_path / "tiny.gguf", formats="F16")
    learned = write_lines(tmp_path / "learned.jsonl", LAMPS)
    edgetune.train(model, learned, tmp_path / "adapter", eval="none", steps=60, lr=1e-2, batch_size=8, threads=1,
                   answers=False, anchors=0)
    run("adapters", "merge", model, tmp_path / "adapter", "-o", tmp_path / "taught.gguf")
    rows = write_lines(tmp_path / "rows.jsonl", [{"prompt": row["prompt"], "right": row["completion"] if i else "dim"}
                                                 for i, row in enumerate(LAMPS)])
    grader = tmp_path / "grader.json"
    grader.write_text(json.dumps({**EQUAL.to_json(), "reference": "{{ item.right }}"}))
    with daemon(tmp_path / "taught.gguf", tmp_path / "state") as served:
        options = ["--url", served.url, "--grader", grader, "--max-tokens", 16, "--json"]
        found = json.loads(run("data", "answers", rows, "-o", tmp_path / "kept.jsonl", *options))
        with edgetune.Served(tmp_path / "taught.gguf") as alone:
            said = ["".join(alone.chat([{"role": "user", "content": row["prompt"]}], max_tokens=16, temperature=0))
                    for row in LAMPS]
        right = [row for row, text in zip(LAMPS[1:], said[1:], strict=True) if text == row["completion"]]
        assert len(right) >= 4
        assert read_lines(tmp_path / "kept.jsonl") == right
        assert (found["prompts"], found["kept"], found["wrong"]) == (8, len(right), 8 - len(right))
        message = run("data", "answers", rows, "-o", tmp_path / "x.jsonl", "--model", "nothing", *options, code=2)
        assert "answers 404" in message


def test_what_does_not_fit_is_refused_before_anything_is_asked(tmp_path):
    rows = write_lines(tmp_path / "rows.jsonl", ROWS)
    grader = tmp_path / "grader.json"
    grader.write_text(json.dumps({"type": "score_model", "name": "s", "model": "self", "input": [
        {"role": "user", "content": "{{ sample.output_text }}"}], "range": [0, 1]}))
    said = run("data", "answers", rows, "-o", tmp_path / "x", "--url", "http://127.0.0.1:9", "--grader", grader, code=2)
    assert "the grader s needs a model" in said
    grader.write_text(json.dumps(EQUAL.to_json()))
    (tmp_path / "key").write_text("secret\n")
    said = run("data", "answers", rows, "-o", tmp_path / "x", "--url", "http://127.0.0.1:9", "--grader", grader,
               "--retries", 0, "--key-file", tmp_path / "key", code=1)
    assert "does not answer" in said
    assert not list(tmp_path.glob("x*"))


def test_a_refused_question_raises():
    with server(lambda *_: 400) as (url, _), asking(url) as ask, pytest.raises(RefusedByTeacher, match="400 not now"):
        ask(ROWS[0], 0)
