"""--index: eval, chat and generate give a model the passages that a search finds, as if they had been typed."""

import json

import pytest
from click.testing import CliRunner
from commands import run
from indexes import small_index
from json_lines import read_lines, write_lines

from edgetune.cli import cli
from edgetune.parts.documents.passages import open_passages
from edgetune.serving.llama import LlamaModel

QUESTION = "turn on"


@pytest.fixture
def index(tmp_path):
    return small_index(tmp_path / "index", {"a.md": "# Lamp\n\nturn on the light\n", "b.txt": "set off\n"})


def typed(index, question):
    passages = open_passages(index, 2, 1)
    try:
        return passages.put([{"role": "user", "content": question}])
    finally:
        passages.close()


def says(model, messages, n):
    with LlamaModel(model, threads=1) as served:
        return "".join(served.chat(messages, max_tokens=n))


def test_generate_and_chat_name_their_sources(tiny_llama, index):
    expected = says(tiny_llama, typed(index, QUESTION), 6)
    flags = ("--max-tokens", 6, "--threads", 1)
    indexed = (*flags, "--index", index, "--passages", 2)
    found = json.loads(run("generate", tiny_llama, QUESTION, *indexed, "--json"))
    assert found["text"] == expected
    assert {source["file"] for source in found["sources"]} == {"a.md", "b.txt"}
    assert "sources" not in json.loads(run("generate", tiny_llama, QUESTION, *flags, "--json"))
    assert "a.md:3 (Lamp)" in run("generate", tiny_llama, QUESTION, *indexed)
    chat = CliRunner().invoke(cli, ["chat", str(tiny_llama), "--json", *map(str, indexed)], input=f"{QUESTION}\n\n")
    assert json.loads(chat.stdout) == {"text": expected, "sources": found["sources"]}
    plain = CliRunner().invoke(cli, ["chat", str(tiny_llama), *map(str, indexed)], input=f"{QUESTION}\n\n")
    assert "sources: [1] " in plain.stdout


@pytest.mark.parametrize("engine", ["llama.cpp", "native"])
def test_eval_asks_with_them(tiny_llama, tmp_path, index, engine):
    answer = says(tiny_llama, typed(index, QUESTION), 4)
    rows = write_lines(tmp_path / "rows.jsonl", [{"prompt": QUESTION, "completion": answer}])
    hand = write_lines(tmp_path / "hand.jsonl", [{"messages": [*typed(index, QUESTION),
                                                              {"role": "assistant", "content": answer}]}])
    flags = ("--engine", engine, "--threads", 1, "--json")
    indexed = ("--index", index, "--passages", 2)
    found = json.loads(run("eval", tiny_llama, rows, *flags, *indexed, "--save", tmp_path / "a"))
    by_hand = json.loads(run("eval", tiny_llama, hand, *flags, "--max-length", 2048, "--save", tmp_path / "b"))
    assert found["loss"] == by_hand["loss"] != json.loads(run("eval", tiny_llama, rows, *flags))["loss"]
    assert [row["base"] for row in read_lines(tmp_path / "a")] == [row["base"] for row in read_lines(tmp_path / "b")]


def test_what_clashes_is_refused(tiny_llama, index, tmp_path):
    assert "and --raw continues a text" in run("generate", tiny_llama, "a", "--raw", "--index", index, code=2)
    assert "--passages 2 is given without --index" in run("generate", tiny_llama, "a", "--passages", 2, code=2)
    assert "there is no index" in run("generate", tiny_llama, "a", "--index", tmp_path / "none", code=2)
