"""Questions and answers from documents: chunks, answers that must stand in them, and models that are asked."""

import json
from typing import ClassVar

import pytest

pytest.importorskip("edgetune.parts.documents")

from commands import run
from json_lines import read_lines
from local_http import Quiet, served_by
from tiny import write_tiny

from edgetune.data import rows as supervised
from edgetune.errors import EdgetuneError
from edgetune.parts.rows.askers import LocalAsker, RemoteAsker
from edgetune.parts.rows.documents import (
    DISAGREES,
    NO_QUESTION,
    POINTS,
    TELLS,
    UNGROUNDED,
    agree,
    flaw_of,
    make_from_documents,
    pairs_in,
    questions,
    schema_of,
)
from edgetune.parts.rows.options import DocumentOptions

pytest.importorskip("rapidfuzz")
CHUNK = ("The pump P7 stops below 20 % of the tank. Hold the red button for ten seconds to reset it. The option "
         "--max-temp 75 limits the heat.")
PAGE = """# Pump

The pump stops below 20 % of the tank. It begins again by itself.

| error | meaning | remedy |
|---|---|---|
| E4 | the filter is blocked | clean the filter |

## Reset

Hold the **red button** for ten seconds.
"""


@pytest.mark.parametrize(("question", "answer", "flaw"), [
    ("When does the pump stop?", "Below 20 % of the tank.", ""),
    ("When does the pump stop?", "below 25 % of the tank", UNGROUNDED),
    ("How is the pump reset?", "You hold the red button for ten seconds.", ""),
    ("How is the pump reset?", "By a phone call to the maker of it", UNGROUNDED),
    ("Which option limits the heat?", "--max-temp", ""),
    ("Which option limits the heat?", "--max-heat", UNGROUNDED),
    ("Which pump stops?", "P8", UNGROUNDED),
    ("What does the text say about resets?", "ten seconds", POINTS),
    ("According to the manual, is it red?", "red", POINTS),
    ("Is the red button red?", "red button", TELLS),
    ("Why?", "red button", NO_QUESTION),
    ("When does the pump stop?", "...", NO_QUESTION),
    ("What is all of it?", CHUNK * 4, NO_QUESTION),
])
def test_which_answers_are_kept(question, answer, flaw):
    assert flaw_of(question, answer, CHUNK) == flaw


def test_answers_agree_where_one_holds_the_other():
    assert agree("20 %", "Below 20 % of the tank")
    assert agree("hold the red button for ten seconds", "You hold the red button ten seconds")
    assert not agree("20 %", "30 %")
    assert not agree("", "")


def test_rules_ask_of_gaps_tables_and_headings():
    found = dict(questions(PAGE.partition("\n\n")[2].replace("## Reset\n\n", ""), "Pump"))
    assert found["Pump: fill the gap: The pump stops below ___ of the tank."] == "20 %"
    assert found["Pump: fill the gap: Hold the ___ for ten seconds."] == "red button"
    assert found["Pump: error E4: meaning?"] == "the filter is blocked"
    assert found["Pump: error E4: remedy?"] == "clean the filter"
    assert found["What do you know of this: Pump?"].startswith("The pump stops below 20 %")
    assert list(questions("```sh\nrun --all 7\n```\n", "")) == []


def test_pairs_are_read_as_far_as_they_are_whole():
    whole = [("a?", "b"), ("c?", "d")]
    said = json.dumps([{"question": question, "answer": answer} for question, answer in whole])
    assert pairs_in(said) == whole
    assert pairs_in(f"Sure:\n```json\n{said[:-20]}") == whole[:1]
    assert pairs_in("none") == pairs_in('{"question": 1, "answer": "x"}') == pairs_in("[{") == []


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "manual"
    folder.mkdir()
    (folder / "pump.md").write_text(PAGE)
    (folder / "note.txt").write_text("The cellar is damp in winter.\n")
    (folder / "broken.txt").write_bytes(b"\xff\xfe\xff")
    return folder


def test_rows_by_rules(folder):
    made = make_from_documents(folder, DocumentOptions())
    asked = {row["prompt"]: row for row in made.rows}
    gap = asked["Pump: fill the gap: The pump stops below ___ of the tank."]
    assert gap["completion"] == "20 %"
    assert gap["source"].startswith("pump.md, line ")
    assert all(supervised.check_learnable(row) == "prompt" for row in made.rows)
    assert any("broken.txt was skipped" in note for note in made.notes)
    assert made.read == len(made.rows) + sum(made.dropped.values())


class Endpoint(Quiet):
    """An endpoint of a model that answers what a test set, and remembers what it was asked."""

    answers: ClassVar[list[str]] = []
    asked: ClassVar[list[tuple]] = []
    status: ClassVar[int] = 200

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.asked.append((self.path, self.headers.get("Authorization"), body))
        said = self.answers.pop(0) if self.answers else "no"
        found = {"choices": [{"message": {"role": "assistant", "content": said}}]} if self.status == 200 else {
            "error": {"message": "overloaded"}}
        self.send_response(self.status)
        self.end_headers()
        self.wfile.write(json.dumps(found).encode())


@pytest.fixture
def endpoint():
    Endpoint.answers, Endpoint.asked, Endpoint.status = [], [], 200
    with served_by(Endpoint) as url:
        yield f"{url}/v1"


def said(*pairs):
    return json.dumps([{"question": question, "answer": answer} for question, answer in pairs])


def test_an_endpoint_writes_questions_and_must_find_its_answers_again(folder, endpoint):
    (folder / "note.txt").unlink()
    Endpoint.answers = [said(("When does the pump stop?", "below 20 % of the tank"), ("What is E4?", "a broken motor"),
                             ("When does the pump stop at all?", "20 %"), ("How long is the button held?",
                                                                           "ten seconds")),
                        "Below 20 % of the tank.", "It is about 20 % of it.", "An hour."]
    made = make_from_documents(folder, DocumentOptions(near=0.8), RemoteAsker(endpoint, "teacher", "secret"))
    assert [(row["prompt"], row["completion"]) for row in made.rows] == [
        ("When does the pump stop?", "below 20 % of the tank")]
    assert dict(made.dropped) == {UNGROUNDED: 1, "nearly repeats an earlier question": 1, DISAGREES: 1}
    path, key, body = Endpoint.asked[0]
    assert (path, key, body["model"]) == ("/v1/chat/completions", "Bearer secret", "teacher")
    assert body["response_format"]["json_schema"]["schema"] == schema_of(4)
    assert "The pump stops below 20 %" in body["messages"][0]["content"]


def test_without_the_check_the_model_is_asked_once_a_chunk(folder, endpoint):
    Endpoint.answers = [said(("Is the cellar damp in winter?", "damp in winter")), "nothing"]
    made = make_from_documents(folder, DocumentOptions(check=False), RemoteAsker(endpoint, "teacher"))
    assert len(Endpoint.asked) == 2
    assert made.dropped[NO_QUESTION] == 1


def test_what_an_endpoint_does_wrong_is_said(folder, endpoint):
    Endpoint.status = 503
    with pytest.raises(EdgetuneError, match=r"answered 503: .*overloaded"):
        make_from_documents(folder, DocumentOptions(), RemoteAsker(endpoint, "teacher"))
    with pytest.raises(EdgetuneError, match="url is 'ftp"):
        RemoteAsker("ftp://x", "teacher")
    with pytest.raises(EdgetuneError, match="gave no answer"):
        RemoteAsker("http://127.0.0.1:1/v1", "teacher").answer("x", 1)


def test_the_daemon_is_such_an_endpoint(tmp_path):
    """A tiny model writes nonsense, in the form that was asked."""
    daemons = pytest.importorskip("daemons", reason="needs the daemon's packages")
    model = write_tiny(tmp_path / "tiny.gguf", formats="Q8_0", n_context=512)
    with daemons.daemon(model, tmp_path / "state", context=512) as running:
        said = RemoteAsker(f"{running.url}/v1", "tiny").answer("Write questions.", 60, schema_of(2))
    assert said.startswith("[")
    assert '"question"' in said


def test_a_model_of_this_device_answers_in_the_form(tiny_llama):
    asker = LocalAsker(tiny_llama, 1)
    answer = asker.answer("Write questions.", 60, schema_of(2))
    asker.close()
    assert answer.startswith("[")


def test_the_command(folder, tmp_path, endpoint):
    rows = tmp_path / "rows.jsonl"
    printed = run("data", "make", "documents", folder, "-o", rows)
    assert printed.startswith(f"{len(read_lines(rows))} rows in {rows}, of ")
    assert "questions by rules" in printed
    assert "--url is given without MODEL" in run("data", "make", "documents", folder, "-o", tmp_path / "new.jsonl",
                                                 "--url", endpoint, code=2)
    Endpoint.answers = [said(("Where is it damp in winter?", "The cellar")), "the cellar"]
    assert f"cannot read {tmp_path / 'key'}: No such file" in run(
        "data", "make", "documents", folder, "teacher", "--url", endpoint, "--key-file", tmp_path / "key", "-o",
        tmp_path / "new.jsonl", code=2)
    (folder / "pump.md").unlink()
    (tmp_path / "key").write_text("secret\n")
    report = json.loads(run("data", "make", "documents", folder, "teacher", "--url", endpoint, "--key-file",
                            tmp_path / "key", "-o", tmp_path / "asked.jsonl", "--json"))
    assert (report["rows"], Endpoint.asked[0][1]) == (1, "Bearer secret")
    assert read_lines(tmp_path / "asked.jsonl") == [{"prompt": "Where is it damp in winter?",
                                                     "completion": "The cellar", "source": "note.txt, line 1"}]
    Endpoint.status = 500
    assert "answered 500" in run("data", "make", "documents", folder, "teacher", "--url", endpoint, "-o",
                                 tmp_path / "new.jsonl", code=1)
    assert not list(tmp_path.glob("new*"))
