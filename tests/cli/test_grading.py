"""eval, compare and merge as a user types them, on adapters of a tiny model that know some rows by heart."""

import json
from io import StringIO
from pathlib import Path

import pytest
from commands import run
from json_lines import read_lines, write_lines
from rich.console import Console
from tiny import write_tiny

import edgetune
from edgetune.cli import app

ROWS = [{"prompt": f"turn on lamp {i}", "completion": json.dumps({"lamp": i, "on": i % 2 == 0})} for i in range(8)]
KNOWN = {"first": range(7), "second": range(6, 8)}  # the rows that each adapter learned


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("grading")
    write_tiny(folder / "model.gguf", formats="F16")
    write_lines(folder / "rows.jsonl", ROWS)
    (folder / "text.jsonl").write_text(json.dumps({"text": "turn the light on"}) + "\n")
    for name, known in KNOWN.items():
        trainer = edgetune.Trainer(folder / "model.gguf", rank=8, lr=1e-2, steps=150, max_length=64, threads=1)
        trainer.add([ROWS[i] for i in known])
        trainer.train()
        trainer.save(folder / name)
    return folder


def run_json(*args: object):
    return json.loads(run(*args, "--json"))


def grading(place, command, *adapters: str):
    named = [part for name in adapters for part in ("--adapter", place / name)]
    return [command, place / "model.gguf", place / "rows.jsonl", *named, "--threads", 1]


@pytest.mark.dev
def test_compare_two_adapters(place):
    args = grading(place, "compare", "first", "second")
    found = run_json(*args)
    assert (found["first"]["exact"], found["second"]["exact"]) == (7 / 8, 2 / 8)
    assert found["right"] == {"first_alone": 6, "second_alone": 1, "p": 2 * (1 + 7) / 2**7, "chance": True}
    assert found["lower_loss"]["first_alone"] >= 6
    assert [(row["prompt"], row["right"]) for row in found["discordant"]] == [
        *((f"turn on lamp {i}", "first") for i in range(3)), ("turn on lamp 7", "second")]
    text = run(*args)
    assert "87.5% of 8 (53% to 98%)" in text
    assert "rows right only with A: 6, only with B: 1; this may be chance (exact sign test, p = 0.12)" in text
    assert "with B, wrong" in text
    assert "different: lamp is " in text


def test_compare_with_the_base(place):
    args = grading(place, "compare", "first")
    found = run_json(*args)
    assert (found["first"]["adapter"], found["second"]["adapter"]) == (None, str(place / "first"))
    assert found["right"] == {"first_alone": 0, "second_alone": 7, "p": 2 / 2**7, "chance": False}
    assert "the base" in run(*args)
    assert "not chance (exact sign test, p = 0.016), better with B" in run(*args)
    limited = run_json(*args, "--limit", 3)
    assert (limited["second"]["exact_rows"], limited["right"]["second_alone"]) == (3, 3)


@pytest.mark.parametrize("adapters", [(), ("first", "second", "first")])
def test_compare_takes_one_adapter_or_two(place, adapters):
    text = run(*grading(place, "compare", *adapters), code=2)
    assert f"--adapter is given {len(adapters)} times; name two adapters, or one" in text


def test_eval_shows_what_is_wrong(place):
    args = [*grading(place, "eval", "second"), "--show-wrong", 2]
    found = run_json(*args)
    assert found["exact_interval"] == pytest.approx([0.0715, 0.5907], abs=5e-5)  # of 2 in 8
    assert [row["prompt"] for row in found["wrong"]] == ["turn on lamp 0", "turn on lamp 1"]
    for row, expected in zip(found["wrong"], ROWS, strict=False):
        assert row["expected"] == expected["completion"]
        said, wanted = json.loads(row["answer"]), json.loads(row["expected"])
        assert row["differences"] == [f"different: {key} is {json.dumps(said[key])}, not {json.dumps(wanted[key])}"
                                      for key in wanted if said[key] != wanted[key]]
    text = run(*args)
    assert "2 of 6 wrong answers" in text
    assert "turn on lamp 1" in text
    assert "turn on lamp 2" not in text
    assert f"different: lamp is {json.loads(found['wrong'][0]['answer'])['lamp']}, not 0" in text


@pytest.mark.parametrize("engine", ["llama.cpp", "native"])
def test_eval_saves_the_answers_of_both(place, tmp_path, engine):
    path = tmp_path / "answers.jsonl"
    run(*grading(place, "eval", "first"), "--save", path, "--limit", 7, "--engine", engine)
    saved = read_lines(path)
    assert [row["prompt"] for row in saved] == [row["prompt"] for row in ROWS[:7]]
    assert all(row["expected"] == row["adapter"] for row in saved)
    assert {(row["base_correct"], row["adapter_correct"]) for row in saved} == {(False, True)}
    of_base = tmp_path / "base.jsonl"
    run(*grading(place, "eval"), "--save", of_base, "--limit", 7, "--engine", engine)
    alone = read_lines(of_base)
    assert alone == [{key: row[key] for key in ("prompt", "expected", "base", "base_correct")} for row in saved]
    before = path.read_bytes()
    assert "answers.jsonl exists" in run(*grading(place, "eval"), "--save", path, code=2)
    assert path.read_bytes() == before
    assert "there is no folder" in run(*grading(place, "eval"), "--save", tmp_path / "no" / "a.jsonl", code=2)


def test_our_own_engine_counts_the_same_answers(place, tmp_path):
    native = ("--engine", "native", "--threads", 1)
    theirs = run_json(*grading(place, "eval", "first"))
    ours = run_json(*grading(place, "eval", "first"), *native, "--save", tmp_path / "native.jsonl")
    assert ours["exact_rows"] == 8
    assert abs(ours["exact"] - theirs["exact"]) <= 1 / 8  # sums are rounded otherwise: one may leave the other's way
    assert abs(ours["parsed"] - theirs["parsed"]) <= 1 / 8
    assert ours["structured"] is None  # it holds answers to no schema
    run(*grading(place, "eval", "first"), "--save", tmp_path / "llama.jsonl")
    saved = [[json.loads(line)["adapter"] for line in (tmp_path / f"{name}.jsonl").read_text().splitlines()]
             for name in ("native", "llama")]
    assert sum(ours == theirs for ours, theirs in zip(*saved, strict=True)) >= 6
    assert run_json(*grading(place, "eval"), *native, "--no-answers")["exact"] is None
    for flags, text in (((*native, "--structured", "off"), "--structured is given with --engine native"),
                        (("--memory", "500M"), "--memory is given without --engine native")):
        assert text in run(*grading(place, "eval"), *flags, code=2)


@pytest.mark.parametrize("flags", [("--limit", 2), ("--show-wrong", 2), ("--save", "new.jsonl"), ("--samples", 4)])
def test_options_of_answers_are_refused_where_none_are_made(place, flags):
    assert f"{flags[0]} is given with --no-answers" in run(*grading(place, "eval"), "--no-answers", *flags, code=2)
    if flags[0] in ("--show-wrong", "--save"):
        text = run("eval", place / "model.gguf", place / "text.jsonl", *flags, code=2)
        assert "has no row with a question and an answer" in text
    assert not Path("new.jsonl").exists()


def test_merge_names_the_rows_that_it_cost(place, tmp_path):
    """In 2 bits a weight hardly anything is left of what was learned."""
    args = ["merge", place / "model.gguf", place / "first", "--eval", place / "rows.jsonl", "--threads", 1, "-o"]
    found = run_json(*args, tmp_path / "whole.gguf", "--to", "F32")
    assert found["exact_with_adapter"] == found["exact_merged"] == 7 / 8
    assert found["compared"]["right"] == {"first_alone": 0, "second_alone": 0, "p": 1.0, "chance": True}
    text = run("adapters", "merge", place / "model.gguf", place / "first", "-o", tmp_path / "no.gguf", "--system", "x",
               code=2)
    assert "--system is given without --eval" in text
    text = run(*args, tmp_path / "coarse.gguf", "--to", "Q4_0")
    assert "exact answers 87.5% of 8 (53% to 98%) with the adapter, " in text
    assert "rows right only with the adapter: " in text


@pytest.mark.parametrize(("command", "words"), [
    (("compare", "first", "second"), "with B, wrong"), (("eval", "second"), "different: lamp")])
def test_fits_80_columns(place, command, words, monkeypatch):
    shown = StringIO()
    monkeypatch.setattr(app, "out", Console(file=shown, force_terminal=True, width=80, color_system=None))
    run(*grading(place, *command), *(["--show-wrong", 3] if command[0] == "eval" else []))
    assert words in shown.getvalue()
    assert all(len(line) <= 80 for line in shown.getvalue().splitlines())
