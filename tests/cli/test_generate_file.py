"""generate --engine native: a file of prompts in, JSON lines out, the same whatever else is in the file."""

import json
from typing import Any

import pytest
from commands import run
from json_lines import read_lines, write_lines

from edgetune.data.dataset import load, load_rows
from edgetune.data.formats import Columns
from edgetune.formats.gguf import open_gguf
from edgetune.llamacpp.tokenizer import Tokenizer

PROMPTS: list[dict[str, Any]] = [
    {"prompt": "turn on lamp 3"},
    {"messages": [{"role": "user", "content": "light off"}, {"role": "assistant", "content": "no"}]},
    {"prompt": "set the light to 10"},
]
DRAWN = ("--engine", "native", "--threads", 1, "--precision", "exact", "--temperature", 1, "--max-tokens", 9)


def lines(tiny_llama, path, *flags: object):
    return [json.loads(line) for line in run("generate", tiny_llama, path, *DRAWN, *flags).splitlines()]


def test_answers_are_lines_in_the_order_of_the_prompts(tiny_llama, tmp_path):
    path = write_lines(tmp_path / "prompts.jsonl", PROMPTS)
    found = lines(tiny_llama, path, "--samples", 3)
    assert [row["sample"] for row in found] == [0, 1, 2] * 3
    assert [row.get("prompt") for row in found[::3]] == ["turn on lamp 3", None, "set the light to 10"]
    assert found[3]["messages"] == PROMPTS[1]["messages"][:1]  # not its answer
    assert len({row["text"] for row in found}) > 5
    for row in found:
        assert row["tokens"] <= 9
        assert row["finish_reason"] in ("stop", "length")
        assert row["logprob"] < 0
    together = json.loads(run("generate", tiny_llama, path, *DRAWN, "--samples", 3, "--json"))
    assert together == {"answers": found}
    saved = run("generate", tiny_llama, path, *DRAWN, "--samples", 3, "--save", tmp_path / "answers.jsonl")
    assert saved == f"9 answers in {tmp_path / 'answers.jsonl'}\n"
    assert read_lines(tmp_path / "answers.jsonl") == found
    assert lines(tiny_llama, path, "--samples", 3, "--parallel", 2) == found
    assert lines(tiny_llama, path, "--samples", 2, "--seed", 1)[0]["text"] != found[0]["text"]
    first = write_lines(tmp_path / "first.jsonl", PROMPTS[:1])
    assert lines(tiny_llama, first, "--samples", 3) == found[:3]


def test_answers_can_be_learned(tiny_llama, tmp_path):
    """The prompts are given and the answers are learned, as of rows that somebody wrote."""
    path = write_lines(tmp_path / "prompts.jsonl", PROMPTS[::2])
    run("generate", tiny_llama, path, *DRAWN, "--save", tmp_path / "answers.jsonl")
    found = read_lines(tmp_path / "answers.jsonl")
    tokenizer = Tokenizer(open_gguf(tiny_llama))
    learned = load(tmp_path / "answers.jsonl", tokenizer, max_length=128, columns=Columns("prompt", "text"))
    written = load_rows([{"prompt": row["prompt"], "completion": row["text"]} for row in found], tokenizer,
                        max_length=128)
    for ours, theirs in zip(learned.examples, written.examples, strict=True):
        assert ours.tokens.tolist() == theirs.tokens.tolist()
        assert ours.weights.tolist() == theirs.weights.tolist()


def test_greedy_answers_are_those_of_llama_cpp(tiny_llama, tmp_path):
    path = write_lines(tmp_path / "prompts.jsonl", PROMPTS[::2])
    found = lines(tiny_llama, path, "--temperature", 0, "--max-tokens", 12)
    for row, asked in zip(found, PROMPTS[::2], strict=True):
        theirs = run("generate", tiny_llama, asked["prompt"], "--max-tokens", 12, "--json")
        assert row["text"] == json.loads(theirs)["text"]
        assert row["sampling_logprob"] == 0
    raw = lines(tiny_llama, path, "--temperature", 0, "--raw")[0]
    assert raw["text"] == json.loads(run("generate", tiny_llama, "turn on lamp 3", "--raw", "--max-tokens", 9,
                                         "--json"))["text"]


def test_a_stop_string_ends_an_answer(tiny_llama, tmp_path):
    path = write_lines(tmp_path / "prompts.jsonl", PROMPTS[:1])
    whole = lines(tiny_llama, path)[0]
    stop = whole["text"][3]
    cut = lines(tiny_llama, path, "--stop", stop)[0]
    assert cut["text"] == whole["text"][:whole["text"].index(stop)]
    assert cut["finish_reason"] == "stop"
    assert cut["tokens"] < whole["tokens"]


@pytest.mark.parametrize(("rows", "flags", "says"), [
    ([], ["--memory", "20M"], None),
    ([{"text": "no question"}], [], 'line 1 of rows.jsonl: the row asks nothing; write {"prompt": "..."} or'),
    ([{"messages": [{"role": "user", "content": "x"}]}], ["--raw"], "the row asks nothing"),
    (PROMPTS[:1], ["--memory", "20M"], "one answer of 9 tokens to a prompt of"),
    (PROMPTS[:1], ["--max-tokens", 600], "do not fit the context of 512; shorten the prompt or lower max_tokens"),
    (PROMPTS[:1], ["--max-tokens", 0], "max_tokens is 0; choose 1 or more"),
    (PROMPTS[:1], ["--top-p", 2], "top_p is 2.0; choose from 0 to 1"),
    (PROMPTS[:1], ["--stop", ""], "a stop string is empty"),
    (PROMPTS[:1], ["--runtime", "onnx"], "--runtime is given with --engine native"),
    (PROMPTS[:1], ["--url", "http://localhost:1"], "--url is given with --engine native"),
])
def test_what_cannot_be_answered(tiny_llama, tmp_path, rows, flags, says):
    path = write_lines(tmp_path / "rows.jsonl", rows)
    if says is None:
        assert run("generate", tiny_llama, path, *DRAWN, *flags) == ""
        return
    code = 1 if "asks nothing" in says else 2
    text = run("generate", tiny_llama, path, *DRAWN, *flags, code=code)
    assert says in text
    assert len(text.splitlines()) == 1


def test_a_prompt_that_is_no_file(tiny_llama):
    text = run("generate", tiny_llama, "hello", "--engine", "native", code=2)
    assert 'there is no file hello; with --engine native, PROMPT is a file of prompts, a JSON object a line' in text
    assert "--save is given without --engine native" in run("generate", tiny_llama, "hello", "--save", "new", code=2)


def test_a_file_that_is_given_as_a_prompt(tiny_llama, tmp_path):
    path = write_lines(tmp_path / "rows.jsonl", PROMPTS)
    text = run("generate", tiny_llama, path, code=2)
    assert f"the prompt {path} is a file, and one text is answered at a time; give --engine native" in text
    for prompt in ("x" * 300, "a\0b"):  # no names of files
        assert run("generate", tiny_llama, prompt, "--max-tokens", 1)
