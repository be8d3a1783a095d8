"""--prompt: eval, chat and generate give a model what a prompt file says, as if it had been typed."""

import json

import pytest
from click.testing import CliRunner
from commands import run
from json_lines import read_lines, write_lines

from edgetune.cli import cli
from edgetune.serving.llama import LlamaModel
from edgetune.serving.prompt_file import Prompt, write_prompt

EXAMPLE = {"prompt": "turn on", "completion": "the light"}
ROWS = [{"prompt": "turn off", "completion": "?"}, {"prompt": "set", "completion": "?"}]


@pytest.fixture
def prompt(tmp_path):
    write_prompt(tmp_path / "prompt.yaml", Prompt("set the light", [EXAMPLE]))
    return tmp_path / "prompt.yaml"


def typed(question):
    return [{"role": "system", "content": "set the light"}, {"role": "user", "content": "turn on"},
            {"role": "assistant", "content": "the light"}, {"role": "user", "content": question}]


def says(model, question, n):
    with LlamaModel(model, threads=1) as served:
        return "".join(served.chat(typed(question), max_tokens=n))


@pytest.mark.parametrize("engine", ["llama.cpp", "native"])
def test_eval_asks_with_the_prompt(tiny_llama, tmp_path, prompt, engine):
    """The answers that are right with it are not those without it."""
    path = write_lines(tmp_path / "rows.jsonl", [{**row, "completion": says(tiny_llama, row["prompt"], 4)}
                                                 for row in ROWS])
    flags = ("--engine", engine, "--threads", 1, "--json")
    without = json.loads(run("eval", tiny_llama, path, *flags))
    found = json.loads(run("eval", tiny_llama, path, *flags, "--prompt", prompt, "--save", tmp_path / "said.jsonl"))
    hand = [{"messages": [*typed(row["prompt"]), {"role": "assistant", "content": row["completion"]}]}
            for row in read_lines(path)]
    for row in hand:
        row["messages"][2]["weight"] = 0
    typed_out = json.loads(run("eval", tiny_llama, write_lines(tmp_path / "hand.jsonl", hand), *flags,
                               "--save", tmp_path / "hand-said.jsonl"))
    assert found["loss"] == typed_out["loss"] != without["loss"]
    assert read_lines(tmp_path / "said.jsonl") == read_lines(tmp_path / "hand-said.jsonl")
    assert found["exact"] == typed_out["exact"]


def test_compare_asks_with_it(tiny_llama, tmp_path, prompt):
    path = write_lines(tmp_path / "rows.jsonl", [{**row, "completion": says(tiny_llama, row["prompt"], 4)}
                                                 for row in ROWS])
    learned = write_lines(tmp_path / "learned.jsonl", [EXAMPLE] * 2)
    run("train", tiny_llama, learned, "-o", tmp_path / "run", "--steps", 1, "--threads", 1, "--no-answers")
    asked = ("compare", tiny_llama, path, "--adapter", tmp_path / "run", "--threads", 1)
    found = json.loads(run(*asked, "--prompt", prompt, "--json"))
    alone = json.loads(run("eval", tiny_llama, path, "--prompt", prompt, "--threads", 1, "--json"))
    assert (found["first"]["loss"], found["first"]["exact"]) == (alone["loss"], alone["exact"])
    assert found["first"]["loss"] != json.loads(run(*asked, "--json"))["first"]["loss"]


def test_grade_asks_with_it(tiny_llama, tmp_path, prompt):
    (tmp_path / "grader.json").write_text(json.dumps({"type": "length", "max": 20, "unit": "characters"}))
    asked = ("grade", tmp_path / "grader.json", write_lines(tmp_path / "rows.jsonl", ROWS), "--prompt", prompt)
    run(*asked, "--model", tiny_llama, "--threads", 1, "--max-tokens", 6, "--save", tmp_path / "said.jsonl")
    assert [row["text"] for row in read_lines(tmp_path / "said.jsonl")] == [
        says(tiny_llama, row["prompt"], 6) for row in ROWS]
    assert "is given, and no --model, whose option it is" in run(*asked, code=2)


def test_generate_and_chat_use_it(tiny_llama, tmp_path, prompt):
    expected = says(tiny_llama, "turn off", 6)
    flags = ("--max-tokens", 6, "--threads", 1)
    assert json.loads(run("generate", tiny_llama, "turn off", *flags, "--prompt", prompt, "--json"))["text"] == expected
    assert json.loads(run("generate", tiny_llama, "turn off", *flags, "--json"))["text"] != expected
    path = write_lines(tmp_path / "asked.jsonl", [{"prompt": "turn off"}])
    own = json.loads(run("generate", tiny_llama, path, "--engine", "native", *flags, "--prompt", prompt, "--json"))
    assert own["answers"][0]["text"] == expected
    chat = CliRunner().invoke(cli, ["chat", str(tiny_llama), "--json", "--max-tokens", "6", "--threads", "1",
                                    "--prompt", str(prompt)], input="turn off\n\n")
    assert json.loads(chat.stdout)["text"] == expected


def test_what_clashes_is_refused(tiny_llama, tmp_path, prompt):
    path = write_lines(tmp_path / "rows.jsonl", ROWS)
    for command in (("eval", tiny_llama, path), ("generate", tiny_llama, "turn"), ("chat", tiny_llama)):
        assert "--system is given with --prompt" in run(*command, "--system", "a", "--prompt", prompt, code=2)
    assert "and --raw continues a text" in run("generate", tiny_llama, "turn", "--raw", "--prompt", prompt, code=2)
    assert "there is no prompt file" in run("eval", tiny_llama, path, "--prompt", tmp_path / "none.yaml", code=1)
