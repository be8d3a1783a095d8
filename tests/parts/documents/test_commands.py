"""edgetune documents index and search, and --index of eval, chat and generate."""

import json
import sys

import pytest
from click.testing import CliRunner
from commands import run
from indexes import needs_retrieval, small_encoder, small_index
from json_lines import read_lines, write_lines

from edgetune.cli import cli
from edgetune.parts.documents.passages import open_passages
from edgetune.serving.llama import LlamaModel


@pytest.fixture
def made(tmp_path):
    needs_retrieval()
    encoder = small_encoder(tmp_path)
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs/lamp.md").write_text("# Lamp\n\nThe lamp in the hall is red.\n")
    (tmp_path / "docs/bad.txt").write_bytes(b"\xff")
    return ["index", tmp_path / "docs", "-o", tmp_path / "i", "--encoder", encoder, "--chunk-tokens", 40,
            "--threads", 1], tmp_path / "i"


@pytest.mark.dev
def test_index_and_search(made):
    command, path = made
    report = json.loads(run(*command, "--json"))
    assert (report["files"], report["chunks"], report["read"]) == (1, 1, 1)
    assert report["skipped"] == [{"file": "bad.txt", "reason": "bad.txt is no text in UTF-8: byte 0"}]
    shown = run(*command)
    assert "0 read, 1 unchanged" in shown
    assert "left out: bad.txt" in shown
    found = json.loads(run("documents", "search", path, "red lamp", "--least", 0, "--json"))
    assert found["results"] == [{"source": "lamp.md:3 (Lamp)", "text": "The lamp in the hall is red.", "score": 1.0,
                                 "file": "lamp.md", "heading": "Lamp", "page": None, "line": 3}]
    assert "lamp.md:3 (Lamp)" in run("documents", "search", path, "red lamp", "--least", 0)
    assert json.loads(run("documents", "search", path, "red lamp", "--least", 1, "--json"))["results"] == []
    assert "nothing was found" in run("documents", "search", path, "red lamp", "--least", 1)


def test_errors_are_one_sentence(made, tmp_path):
    command, path = made
    assert "there is no index" in run("documents", "search", path, "lamp", code=2)
    assert "there is no folder" in run("documents", "index", tmp_path / "none", *command[2:], code=2)
    assert "needs" in run(*command, "--memory", "1M", code=2)
    run(*command)
    assert "limit is 0" in run("documents", "search", path, "lamp", "--limit", 0, code=2)


def test_a_missing_package_names_the_extra(made, monkeypatch):
    command, _ = made
    monkeypatch.setitem(sys.modules, "apsw", None)
    assert "make install EXTRAS=retrieval" in run(*command, code=1)


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


@pytest.mark.dev
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
