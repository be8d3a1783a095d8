"""edgetune chat: for a person at a terminal, and for a program."""

import json
import stat

import pytest
from click.testing import CliRunner
from commands import run
from daemons import daemon
from json_lines import read_lines
from screens import screen
from tiny import write_tiny

from edgetune.cli import cli
from edgetune.cli.slash import feedback_file

HEAD = "/help lists commands"
PROMPT = "\n>"


@pytest.fixture(autouse=True)
def state(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    return tmp_path / "edgetune"


def talk(model, text, *options):
    done = CliRunner().invoke(cli, ["chat", str(model), "--max-tokens", "4", *map(str, options)], input=text)
    assert done.exit_code == 0, done.output
    return done.output


def rows(path):
    return read_lines(path)


def test_a_person_edits_recalls_and_corrects(model, state):
    with screen("chat", model, "--max-tokens", 3) as seen:
        seen.wait(HEAD)
        seen.wait(PROMPT)
        seen.type("the lght on\033[D\033[D\033[D\033[D\033[D\033[Di\r")  # six to the left: the missing letter
        seen.wait("the first after")
        seen.type("/fix\r")
        seen.wait("right: ")
        seen.type("\025yes\r")
        seen.wait("kept in")
        seen.type("/he\t\r")
        seen.wait("/adapter FOLDER")
        seen.type("\033[A\033[A\033[A\033[A\r")  # the question again: /help, yes and /fix came after it
        seen.wait("the first after", 2)
        seen.type("\004")
        text = seen.wait("to learn: edgetune train")
        assert seen.end() == 0
    assert text.count("> the light on") == 2
    written, = rows(feedback_file(model))
    assert written == {"messages": [{"role": "user", "content": "the light on"},
                                    {"role": "assistant", "content": "yes"}]}
    history = state / "chat_history"
    assert history.read_text().splitlines() == ["the light on", "/fix", "yes", "/help", "the light on"]
    assert [stat.S_IMODE(path.stat().st_mode) for path in (history, feedback_file(model))] == [0o600] * 2


def test_ctrl_c_stops_an_answer_and_twice_leaves(state, tmp_path):
    model = write_tiny(tmp_path / "model.gguf", n_context=1 << 15)  # an answer outlasts the terminal's first lines
    with screen("chat", model, "--max-tokens", 30000, "--no-history") as seen:
        seen.wait(PROMPT)
        seen.type("on\r")
        seen.wait(lambda text: len(text.splitlines()) > 6)
        seen.type("\003")
        text = seen.wait("stopped, Ctrl-C again leaves")
        assert "^C" not in text
        seen.type("/reset\r")  # what was typed between is no second Ctrl-C
        seen.wait("begins again")
        seen.type("\003")
        seen.wait("Ctrl-C again leaves", 2)
        seen.type("\003")
        assert seen.end() == 0
    assert not (state / "chat_history").exists()


@pytest.mark.dev
@pytest.mark.parametrize("columns", [60, 80])
def test_the_screen_of_a_chat(model, columns):
    with screen("chat", model, "--max-tokens", 60, columns=columns, rows=20) as seen:
        seen.wait(PROMPT)
        seen.type("/help\r/adapter nowhere\ron\r")
        text = seen.wait("the first after")
    assert "edgetune: cannot open 'nowhere'" in " ".join(text.split())
    assert all(len(line) <= columns for line in seen.lines)


def test_a_program_gives_feedback_that_train_reads(model, tmp_path):
    kept = tmp_path / "rows.jsonl"
    told = talk(model, "on\n/good\noff\n/fix no\n/etc/hosts?\n/bad\n", "--feedback", kept, "--json")
    commands = [json.loads(line).get("command") for line in told.splitlines()]
    assert commands == [None, "/good", None, "/fix", None, "/bad"]
    learned = [[(message["content"], message.get("weight")) for message in row["messages"]] for row in rows(kept)]
    first = json.loads(told.splitlines()[0])["text"]
    assert learned == [[("on", None), (first, None)], [("on", None), (first, 0), ("off", None), ("no", None)]]
    assert json.loads(run("data", "check", kept, model, "--json"))["data"]["rows"] == 2
    talk(model, "on\n/bad\n", "--feedback", kept)  # takes back what was right
    assert len(rows(kept)) == 1


def test_a_file_of_other_rows_is_not_overwritten(model, tmp_path):
    other = tmp_path / "rows.jsonl"
    other.write_text('{"text": "mine"}\n')
    done = CliRunner().invoke(cli, ["chat", str(model), "--max-tokens", "2", "--feedback", str(other)],
                              input="on\n/good\n")
    assert done.exit_code == 1
    assert f"{other} holds more than rows of messages" in done.output
    assert rows(other) == [{"text": "mine"}]


def test_feedback_reaches_a_daemon(model, tmp_path):
    with daemon(model, tmp_path / "daemon") as serving:
        told = talk(model, "on\n/fix off\n", "--feedback", serving.url, "--json")
        found = json.loads(run("feedback", "list", "--url", serving.url, "--json"))
    assert [(item["question"], item["answer"]) for item in found["data"]] == [("on", "off")]
    assert json.loads(told.splitlines()[1])["text"] == found["data"][0]["reason"]


def test_save_and_system(model, tmp_path):
    saved = tmp_path / "talk.jsonl"
    talk(model, f"on\n/system be brief\noff\n/save {saved}\n")
    row, = rows(saved)
    assert [(message["role"], message["content"]) for message in row["messages"][:2]] == [
        ("system", "be brief"), ("user", "off")]
    assert run("data", "check", saved, model)
