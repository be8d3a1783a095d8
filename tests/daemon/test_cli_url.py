"""chat, generate and eval with --url: a daemon answers, and nothing is loaded here."""

import json

import pytest
from click.testing import CliRunner
from daemons import daemon
from tiny import write_tiny

from edgetune.cli import cli
from edgetune.daemon.keys import KeyScope, add_key
from edgetune.serving.llama import LlamaModel

QUESTIONS = {"turn": '{"light": "off"}', "the light": "on"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("url")
    write_tiny(made / "tiny.gguf", formats="Q8_0")
    (made / "key").write_text(add_key(made / "keys", "me", KeyScope.FEEDBACK))
    rows = [{"prompt": "turn", "completion": '{"light":"off"}'}, {"prompt": "the light", "completion": "off"},
            {"messages": [{"role": "user", "content": "turn"}, {"role": "assistant", "content": '{"light": "off"}'}]}]
    (made / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return made


@pytest.fixture(scope="module")
def running(folder):
    """It asks for a key, and one that may ask and give feedback is enough. What it answers to two questions are
    corrections.
    """
    with daemon(folder / "tiny.gguf", folder / "state", key_file=str(folder / "keys")) as made:
        for question, answer in QUESTIONS.items():
            made.service.feedback.add(messages=[{"role": "user", "content": question}], answer="", correction=answer,
                                      model="tiny")
        yield made.url


@pytest.fixture
def run(running, folder, monkeypatch):
    monkeypatch.setenv("EDGETUNE_KEY", "")

    def call(*args, input=None, code=0):
        where = ["--url", running, "--key-file", folder / "key"]
        done = CliRunner().invoke(cli, [str(arg) for arg in (*args, *where)], input=input)
        assert done.exit_code == code, done.output
        return done.output

    return call


def test_generate_is_what_llama_cpp_says(run, folder):
    assert run("generate", "tiny:latest", "turn").strip() == '{"light": "off"}'
    assert json.loads(run("generate", "tiny:latest", "turn", "--json"))["text"] == '{"light": "off"}'
    with LlamaModel(folder / "tiny.gguf", threads=1) as served:
        chat = "".join(served.chat([{"role": "system", "content": "light"}, {"role": "user", "content": "turn"}],
                                   max_tokens=9))
        raw = "".join(served.generate("turn the", max_tokens=30))
    said = json.loads(run("generate", "tiny", "turn", "--max-tokens", 9, "--system", "light", "--json"))
    assert said["text"] == chat
    stop = raw[-2:]
    said = json.loads(run("generate", "tiny", "turn the", "--raw", "--max-tokens", 30, "--stop", stop, "--json"))
    assert said["text"] == raw.partition(stop)[0]


def test_a_chat_goes_there_and_so_does_its_feedback(run):
    lines = [json.loads(line) for line in run("chat", "tiny:latest", "--json", input=(
        "turn\n/reset\non\n/fix the light is on\n/reset\non\n")).splitlines()]
    answers = [line["text"] for line in lines if "command" not in line]
    assert (answers[0], answers[2]) == ('{"light": "off"}', "the light is on")
    fixed = next(line for line in lines if line.get("command") == "/fix")
    assert "learn" in fixed["text"]
    assert "cannot be switched" in run("chat", "tiny:latest", input="/adapter x\n", code=2)


def test_eval_counts_exact_answers(run, folder):
    saved = folder / "saved.jsonl"
    found = json.loads(run("eval", "tiny:latest", folder / "rows.jsonl", "--save", saved, "--show-wrong", 1, "--json"))
    assert (found["rows"], found["exact"], found["exact_rows"], found["parsed"]) == (3, 2 / 3, 3, 1.0)
    assert found["loss"] is None
    assert [answer["answer"] for answer in found["wrong"]] == ["on"]
    assert [json.loads(line)["base_correct"] for line in saved.read_text().splitlines()] == [True, False, True]
    table = run("eval", "tiny:latest", folder / "rows.jsonl", "--limit", 1)
    assert "100.0% of 1" in table
    assert "loss" not in table


@pytest.mark.parametrize(("args", "says"), [
    (("generate", "nobody", "turn"), "nobody"), (("chat", "tiny", "--threads", 2), "--threads is given with --url"),
    (("generate", "tiny", "turn", "--adapter", "a"), "--adapter is given with --url"),
    (("eval", "tiny", "rows.jsonl", "--engine", "native"), "--engine"),
    (("eval", "tiny", "nowhere.jsonl"), "nowhere.jsonl"),
    (("generate", "tiny", "x", "--temperature", -1), "temperature")])
def test_what_cannot_be_is_said(run, args, says):
    code = 1 if says in ("nobody", "nowhere.jsonl") else 2
    assert says in " ".join(run(*args, code=code).split())


def test_a_key_and_a_daemon_are_needed(running, folder, monkeypatch):
    monkeypatch.delenv("EDGETUNE_KEY", raising=False)
    for args, says in ((["--url", running], "asks for a key"), (["--url", "http://127.0.0.1:1"], "no daemon answers"),
                       (["--key-file", str(folder / "key")], "without --url")):
        done = CliRunner().invoke(cli, ["generate", "tiny", "turn", *args])
        assert done.exit_code in (1, 2)
        assert says in " ".join(done.output.split())
