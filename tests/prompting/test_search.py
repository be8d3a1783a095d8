"""The search for a prompt: which rows do what, what is tried, scores against llama.cpp's, the choice, the decision."""

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from commands import run
from encoders import WORDS, tiny_bert, write_encoder
from json_lines import write_lines

from edgetune.data.dataset import load_rows
from edgetune.data.holdout import divide
from edgetune.errors import DataError, UnsupportedError, UsageError
from edgetune.evaluation.native import engine_within
from edgetune.evaluation.served import exact_match, example_losses
from edgetune.formats.bundle import open_bundle
from edgetune.llamacpp.tokenizer import Tokenizer
from edgetune.prompting.candidates import Candidate, Tried, bootstrapped, with_examples
from edgetune.prompting.decision import decide
from edgetune.prompting.examples import kinds_of, spread
from edgetune.prompting.find import find_prompt
from edgetune.prompting.instructions import by_rules
from edgetune.prompting.options import PromptOptions
from edgetune.prompting.scoring import RowScore, Scorer
from edgetune.prompting.search import chosen
from edgetune.prompting.split import split
from edgetune.serving.llama import LlamaModel
from edgetune.serving.prompt_file import OpenPrompt, Prompt, read_prompt
from edgetune.serving.vectors import vectors

LIGHTS = [{"prompt": f"turn light {i} {'on' if i % 2 else 'off'}", "completion": "on" if i % 2 else "off"}
          for i in range(60)]
CALLS = [{"prompt": f"set {place} {i}", "completion": json.dumps({"room": room, "to": {"level": i}})}
         for i in range(12) for place, room in (("hall", "H"), ("bath", "B"), ("roof", "R"))]


def right(scores):
    return [(bool(exact), RowScore(loss, 10)) for exact, loss in scores]


def test_each_question_is_in_one_part_and_training_holds_out_those_that_decide():
    options = PromptOptions(select=8)
    parts = split([*LIGHTS, *LIGHTS[:10]], None, options)
    asked = [{row["prompt"] for row in part} for part in (parts.pool, parts.select, parts.decide)]
    assert not asked[0] & asked[1] | asked[0] & asked[2] | asked[1] & asked[2]
    assert len(parts.select) == 8
    assert asked[2] == {row["prompt"] for row in divide([*LIGHTS, *LIGHTS[:10]])[1]}
    assert split([*LIGHTS, *LIGHTS[:10]], None, options) == parts
    assert split(LIGHTS, None, replace(options, seed=1)).select != split(LIGHTS, None, options).select
    named = split(LIGHTS, LIGHTS[:20], options)
    assert sorted(row["prompt"] for row in named.decide) == sorted(row["prompt"] for row in LIGHTS[:20])
    with pytest.raises(DataError, match="rows leave"):
        split(LIGHTS[:12], None, options)


def test_rules_say_what_answers_are():
    assert by_rules(LIGHTS)["labels"] == "Answer with one of these, and nothing else: off, on."
    assert by_rules(CALLS)["JSON with its values"].endswith(
        'Its keys are "room", "to". "room" is one of "B", "H", "R". Keys of "to": "level".')
    numbers = [{"prompt": f"{i} and 1", "completion": str(i + 1)} for i in range(30)]
    assert by_rules(numbers)["number"] == "Answer with a number, and nothing else."
    words = [{"prompt": f"{i}", "completion": f"it is {i}"} for i in range(30)]
    assert by_rules(words)["brief"] == "Answer in at most 3 words."


def test_sets_of_examples_have_each_kind_of_answer():
    assert Counter(kinds_of(CALLS)) == {f'["{room}"]': 12 for room in "HBR"}
    for seed in "ab":
        found = spread(CALLS, 6, seed)
        assert Counter(json.loads(row["completion"])["room"] for row in found) == {"H": 2, "B": 2, "R": 2}
        assert spread(CALLS, 6, seed) == found
    assert spread(CALLS, 6, "a") != spread(CALLS, 6, "b")
    assert len(spread(CALLS[:3], 6, "a")) == 3


def test_candidates_have_the_sizes_that_the_options_name():
    base = Candidate("a", "no examples", Prompt("a"))
    names = [one.examples for one in with_examples(base, LIGHTS, PromptOptions(nearest=3, examples=4, sets=2), True)]
    assert names == ["no examples", "1 nearest", "2 nearest", "3 nearest", "4 of set 1", "4 of set 2"]
    assert len(with_examples(base, LIGHTS, PromptOptions(nearest=0, examples=0), True)) == 1
    found = bootstrapped(base, LIGHTS[:5], PromptOptions())
    assert [len(one.prompt.examples) for one in found] == [4, 5]


@pytest.fixture(scope="module")
def scorer(model):
    bundle = open_bundle(model)
    engine = replace(engine_within(threads=1), precision="exact")
    return Scorer(bundle, Tokenizer(bundle.gguf), None, engine, 200)


def test_scores_are_those_of_llama_cpp(scorer, model):
    prompt = OpenPrompt(Prompt("set the light", LIGHTS[:2]))
    rows = LIGHTS[10:16]
    with LlamaModel(model, threads=1) as served:
        data = load_rows(rows, served.tokenizer, max_length=200, system=prompt)
        theirs = [loss.mean for loss in example_losses(served, data)]
        said = exact_match(served, data, system=prompt)
    found = scorer.losses(prompt, rows)
    assert [score.loss for score in found] == pytest.approx(theirs, rel=2e-3)
    assert [score.tokens for score in found] == [example.begin for example in data.examples]
    asked = [(answer.prompt, answer.expected, answer.correct) for answer in scorer.answers(prompt, rows)]
    assert asked == [(answer.prompt, answer.expected, answer.correct) for answer in said]
    assert scorer.losses(OpenPrompt(Prompt("", LIGHTS[:30])), rows) is None  # it does not fit


def test_the_shortest_of_those_within_chance_is_chosen():
    def tried(name, exact, tokens, loss=1.0):
        return Tried(Candidate(name, "", Prompt(name)), [RowScore(loss, tokens)], exact)

    long, short, none = tried("long", 0.95, 300), tried("short", 0.93, 100), tried("none", 0.0, 20)
    assert chosen([long, short, none], 64) is short
    assert chosen([long, tried("short", 0.85, 100), none], 64) is long
    assert chosen([tried("a", 0.0, 300, 0.5), none], 64).candidate.instruction == "a"


def test_what_is_not_better_for_certain_is_not_accepted():
    before = right([(0, 2.0)] * 10)
    assert decide(before, right([(1, 1.0)] * 6 + [(0, 2.0)] * 4)).accepted
    assert not decide(before, right([(1, 1.0)] * 3 + [(0, 2.0)] * 7)).accepted
    assert not decide(right([(1, 2.0)] + [(0, 2.0)] * 9), right([(0, 3.0)] + [(0, 1.0)] * 9)).accepted  # fewer right
    found = decide(before, right([(1, 1.0)] * 6 + [(0, 2.5)] * 4))
    assert (found.paired.wins, found.paired.losses, found.after.exact) == (6, 0, 6)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    return write_encoder(tmp_path_factory.mktemp("encoder") / "tiny.gguf", tiny_bert(), WORDS)


@pytest.mark.smoke
def test_a_search_repeats_itself_and_nothing_that_decides_was_tried(model, encoder, tmp_path):
    path = write_lines(tmp_path / "rows.jsonl", LIGHTS)
    options = PromptOptions(nearest=1, encoder=str(encoder), examples=4, sets=1, proposals=2, select=8, decide=6,
                            longest=220, threads=1)
    shown = []
    found = find_prompt(model, path, options=options, show=lambda what, done, of: shown.append((what, done, of)))
    assert found.to_json() == find_prompt(model, path, options=options).to_json()
    known = {row["prompt"] for one in found.tried for row in one.candidate.prompt.examples}
    assert known <= {row["prompt"] for row in found.parts.pool}
    assert found.tried[0].candidate.prompt == Prompt()
    assert {"1 nearest", "4 of set 1"} <= {one.candidate.examples for one in found.tried}
    assert found.best.exact is not None
    pool = [row["prompt"] for row in found.parts.pool]
    cosines = vectors(encoder, [row["prompt"] for row in found.parts.decide]) @ vectors(encoder, pool).T
    alone = [found.parts.pool[i]["completion"] for i in cosines.argmax(1)]
    assert found.nearest_row == sum(answer == row["completion"]
                                    for answer, row in zip(alone, found.parts.decide, strict=True))
    assert all(0 <= done <= of for _, done, of in shown)


def test_what_cannot_be_searched_is_a_sentence(model, encoder, tmp_path):
    path = write_lines(tmp_path / "rows.jsonl", LIGHTS)
    with pytest.raises(UnsupportedError, match="encoder"):
        find_prompt(encoder, path)
    with pytest.raises(UsageError, match="longest is 64 tokens"):
        find_prompt(model, write_lines(tmp_path / "long.jsonl", [{**row, "prompt": row["prompt"] * 30}
                                                                  for row in LIGHTS]),
                    options=PromptOptions(longest=64, nearest=0, threads=1))
    held = write_lines(tmp_path / "held.jsonl", [{**row, "prompt": row["prompt"] * 30} for row in LIGHTS[:4]])
    with pytest.raises(UsageError, match="longest is 64 tokens, and all rows that decide have more"):
        find_prompt(model, path, held, options=PromptOptions(longest=64, nearest=0, examples=0, proposals=0, select=4,
                                                             threads=1))
    with pytest.raises(UsageError, match="select is 2"):
        find_prompt(model, path, options=PromptOptions(select=2))


@pytest.mark.slow
@pytest.mark.learning
def test_the_command_writes_what_it_accepts(smollm2, encoder, tmp_path):
    """SmolLM2 does not know that a light is called a lamp here; examples say so."""
    rows = [{"prompt": f"turn {what} the light in the {place}", "completion": f"lamp {place} {what}"}
            for place in ("kitchen", "hall", "bath", "cellar", "attic", "garage", "garden", "office", "study", "porch")
            for what in ("on", "off", "up", "down")]
    path = write_lines(tmp_path / "rows.jsonl", rows[:30])
    held = write_lines(tmp_path / "held.jsonl", rows[30:])
    flags = ("--nearest", 2, "--encoder", encoder, "--examples", 0, "--proposals", 0, "--select", 4, "--decide", 6,
             "--longest", 128, "--threads", 1)  # the least by which it can be better for certain
    found = json.loads(run("prompt", smollm2, path, "-o", tmp_path / "prompt.json", *flags, "--eval", held, "--json"))
    assert found["accepted"]
    assert found["before"]["exact"] == 0 < found["after"]["exact"]
    assert read_prompt(tmp_path / "prompt.json").nearest.rows == str(path)
    assert json.loads((tmp_path / "prompt.json").read_text())["nearest"]["rows"] == "rows.jsonl"
    few = write_lines(tmp_path / "few.jsonl", rows[30:32])
    scored = json.loads(run("eval", smollm2, few, "--prompt", tmp_path / "prompt.json", "--json"))
    assert scored["exact"] > 0.2


def test_a_prompt_that_is_no_better_is_not_written(model, tmp_path):
    path = write_lines(tmp_path / "rows.jsonl", LIGHTS)
    flags = ("--nearest", 0, "--examples", 0, "--proposals", 0, "--select", 4, "--decide", 4, "--threads", 1)
    text = run("prompt", model, path, "-o", tmp_path / "prompt.json", *flags, code=3)
    found = json.loads(run("prompt", model, path, "-o", tmp_path / "prompt.json", *flags, "--json", code=3))
    page = (Path(__file__).parents[2] / "docs" / "reference" / "files.md").read_text("utf-8")
    keys = next(line for line in page.splitlines() if line.startswith("| `prompt` |"))
    assert all(f"`{key}`" in keys for key in found)
    assert "is not written" in text
    assert not (tmp_path / "prompt.json").exists()
