"""Rounds of a tiny model: what is on disk, what a stop leaves, and that continued rounds end with the same bytes."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

import edgetune
from edgetune.adapters.store import open_adapter, read_run
from edgetune.cli.app import cli
from edgetune.errors import DataError, EdgetuneError, Interrupted, MismatchError, UsageError
from edgetune.evaluation.graders.base import read_grader
from edgetune.formats.bundle import Bundle
from edgetune.training.config import TrainConfig
from edgetune.tutor import gate
from edgetune.tutor.files import STEPS, rounds_of
from edgetune.tutor.inspect import summary
from edgetune.tutor.loop import Standing, roll_back
from edgetune.tutor.options import TutorOptions
from edgetune.tutor.teach import teach

OPTIONS = TutorOptions(rounds=2, per_round=12, samples=4, max_tokens=6, questions=12, min_rows=1, corrections=3,
                       canary_rise=1e3, max_kl=1e3, max_change=1e3)
FEW = replace(OPTIONS, per_round=8, samples=2, questions=8)
CONFIG = TrainConfig(rank=4, lr=2e-2, epochs=3.0, batch_size=4, max_length=128, threads=1, precision="exact", seed=3)
Files = tuple[Path, Path, Path]  # prompts, labelled rows, a text to keep
GRADER = {"type": "regex", "name": "a", "pattern": "a"}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    """(prompts, labelled rows, a text to keep): say "aa"."""
    folder = tmp_path_factory.mktemp("files")
    prompts = folder / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": f"say {i}"}) + "\n" for i in range(60)))
    labelled = folder / "labelled.jsonl"
    labelled.write_text("".join(json.dumps({"prompt": f"tell {i}", "completion": "aa"}) + "\n" for i in range(40)))
    keep = folder / "keep.jsonl"
    keep.write_text('{"text": "Cats sleep for most of the day."}\n')  # short: tokens are bytes here
    return prompts, labelled, keep


def go(bundle: Bundle, out: Path, files: Files, options: TutorOptions = OPTIONS, **more: Any) -> Standing:
    return teach(bundle, files[0], out, labelled=files[1], keep=files[2], grader=read_grader(GRADER), options=options,
                 config=CONFIG, **more)


@pytest.fixture(scope="module")
def told(bundle: Bundle, files: Files, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """The folder of rounds that the command made, and what it printed."""
    folder = tmp_path_factory.mktemp("rounds")
    grader = folder / "grader.json"
    grader.write_text(json.dumps(GRADER))
    common = ["tutor", str(bundle.path), str(files[0]), "-o", str(folder / "out"), "--labelled", str(files[1]),
              "--grader", str(grader), "--keep", str(files[2])]
    given = {**vars(OPTIONS), **{name: getattr(CONFIG, name) for name in
                                 ("rank", "lr", "epochs", "batch_size", "max_length", "threads", "precision", "seed")}}
    flags = [word for name, value in given.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    return folder / "out", json.loads(invoke(*common, *flags, "--json"))


@pytest.fixture(scope="module")
def done(told: tuple[Path, dict[str, Any]]) -> Path:
    return told[0]


def invoke(*words: str) -> str:
    result = CliRunner().invoke(cli, words, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def bytes_of(out: Path) -> dict[str, bytes]:
    """All that a run leaves but the seconds and the records of trainings, which have them too."""
    return {str(path.relative_to(out)): path.read_bytes() for path in sorted(out.rglob("*"))
            if path.is_file() and path.name not in ("times.jsonl", "run.json", "metrics.jsonl", "metrics.csv",
                                                    "report.html")}


def test_what_a_run_leaves(bundle: Bundle, done: Path) -> None:
    ledger = [json.loads(line) for line in (done / "ledger.jsonl").read_text().splitlines()]
    assert [of.number for of in rounds_of(done)] == [0, 1, 2]
    steps = [line["step"] for line in ledger if line["round"] == 1]
    assert steps == [step for step in STEPS if step in steps]
    assert set(STEPS) - set(steps) <= {"publish"}
    gates = [line for line in ledger if line["step"] == "gate"]
    assert all(gate["gap"] < 0.05 for gate in gates)  # of the candidate's answers by the candidate, in both engines
    assert gates[0]["passed"]  # a model of random weights knows nothing, and learns to say it
    assert read_run(done)["published"] == max(line["round"] for line in gates if line["passed"])
    assert open_adapter(done, bundle.gguf).pairs
    said = json.dumps(ledger)
    assert "say" not in said
    assert "tell" not in said


def test_what_a_round_cost_is_told(done: Path) -> None:
    """Tokens of what the model said, as the files have them, and of the rows of training."""
    told = summary(done, watts=36.0)["rounds"]
    of = rounds_of(done)[1]
    steps = {step: of.read(step) or {"facts": {}} for step in STEPS}
    answers = sum(one["tokens"] for each in steps["generate"]["answers"] for one in each["said"])
    assert steps["generate"]["facts"]["drawn"] == answers == steps["generate"]["facts"]["tokens"]
    assert told[1]["drawn"] == sum(steps[step]["facts"].get("drawn", 0) for step in STEPS) > answers
    assert told[1]["trained"] == steps["train"]["facts"]["trained"] > steps["train"]["facts"]["tokens"]
    assert told[1]["seconds"] > 0
    assert told[1]["watt_hours"] == pytest.approx(told[1]["seconds"] / 100)


def test_the_gate_asks_what_was_not_learned(done: Path) -> None:
    learned: set[str] = set()
    for of in rounds_of(done):
        learned |= {row["key"] for row in (of.read("rows") or {})["rows"]}
        judged = set((of.read("gate") or {})["keys"])
        assert judged
        assert not judged & learned


@pytest.mark.slow
def test_a_stopped_run_continues_to_the_same_bytes(bundle: Bundle, files: Files, done: Path,
                                                   tmp_path: Path) -> None:
    """Stopped again and again, in the midst of steps of round 1."""
    out = tmp_path / "out"
    for before, at in (("select", "generate"), ("rows", "train"), ("search", "gate")):
        folder = out / "rounds" / "001"
        asked: list[bool] = []

        def stop(done: Path = folder / f"{before}.json", asked: list[bool] = asked) -> bool:
            asked += [True] * done.exists()
            return len(asked) > 3

        with pytest.raises(Interrupted, match=r"stopped.*; continue with the same command"):
            go(bundle, out, files, should_stop=stop)
        assert (folder / f"{before}.json").exists()
        assert not (folder / f"{at}.json").exists()
    go(bundle, out, files)
    assert bytes_of(out) == bytes_of(done)


@pytest.mark.slow
def test_steps_can_be_made_one_by_one(bundle: Bundle, files: Files, done: Path, tmp_path: Path) -> None:
    """By a program, which ends in the same bytes as the command."""
    out = tmp_path / "out"
    for step in ("search", "generate", "evaluate"):
        with pytest.raises(Interrupted, match=f"stopped after the step {step} of round"):
            go(bundle, out, files, until=step)
    assert (out / "rounds" / "001" / "evaluate.json").exists()
    assert not (out / "rounds" / "001" / "correct.json").exists()
    go(bundle, out, files)
    assert bytes_of(out) == bytes_of(done)


@pytest.mark.slow
def test_more_rounds_continue(bundle: Bundle, files: Files, done: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    go(bundle, out, files, options=replace(OPTIONS, rounds=1))
    assert [of.number for of in rounds_of(out)] == [0, 1]
    go(bundle, out, files)
    assert bytes_of(out) == bytes_of(done)


@pytest.mark.slow
def test_a_step_back(bundle: Bundle, files: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a person took back is not published again when the rounds are continued. Here every gate is open."""
    decide = gate.decide
    monkeypatch.setattr(gate, "decide", lambda *given, **named: replace(decide(*given, **named), passed=True))
    out = tmp_path / "out"
    options = replace(FEW, rounds=1)
    go(bundle, out, files, options=options)
    before = (out / "adapter.gguf").read_bytes()
    assert read_run(out)["published"] == 1
    assert roll_back(out, bundle.gguf) == 0
    assert (out / "adapter.gguf").read_bytes() != before
    with pytest.raises(UsageError, match=r"nothing was published in .* before round 0"):
        roll_back(out, bundle.gguf)
    go(bundle, out, files, options=options)
    assert read_run(out)["published"] == 0


def test_something_else_is_not_continued(bundle: Bundle, files: Files, done: Path, tmp_path: Path) -> None:
    with pytest.raises(MismatchError, match="begun with another samples"):
        go(bundle, done, files, options=replace(OPTIONS, samples=5))
    other = tmp_path / "other.jsonl"
    other.write_text('{"prompt": "say 1"}\n')
    with pytest.raises(MismatchError, match="begun with another prompts"):
        go(bundle, done, (other, *files[1:]))
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    with pytest.raises(UsageError, match=r"the output folder .* exists"):
        go(bundle, tmp_path / "full", files)


def test_a_grader_that_names_what_rows_lack_is_refused_before_anything(bundle: Bundle, files: Files,
                                                                       tmp_path: Path) -> None:
    grader = read_grader({"type": "numeric", "name": "n", "reference": "{{ item.number }}"})
    with pytest.raises(DataError, match=r"prompt 1: .*number"):
        teach(bundle, files[0], tmp_path / "out", grader=grader, options=OPTIONS, config=CONFIG)
    assert not (tmp_path / "out").exists()


def test_a_grader_that_asks_a_model_judges_every_step(bundle: Bundle, files: Files, tmp_path: Path) -> None:
    """The base, by the trainer's engine: what is drawn, what chooses how far to go, and what the gate asked."""
    grader = read_grader({"type": "score_model", "name": "judge", "model": "self", "pass_threshold": 0.0,
                          "input": [{"role": "user", "content": "Is {{ sample.output_text }} right?"}]})
    teach(bundle, files[0], tmp_path / "out", grader=grader, keep=files[2], config=CONFIG,
          options=replace(OPTIONS, rounds=1, per_round=6, samples=2, questions=6))
    of = rounds_of(tmp_path / "out")[-1]
    rewards = [reward for one in (of.read("evaluate") or {})["evaluated"] for reward in one["rewards"]]
    points = (of.read("search") or {})["facts"]["points"]
    values = [one["value"] for one in (of.read("gate") or {})["candidate"]]
    assert all(0 < value < 1 for value in (*rewards, *values, *(point["reward"] for point in points)))
    assert points


def test_without_a_grader_most_answers_judge_beside_few_right_ones(bundle: Bundle, files: Files,
                                                                    tmp_path: Path) -> None:
    """The rate of learning is far too high for a second round, which is refused. Held-out prompts are never learned.

    One labelled answer differs, so that others may.
    """
    out = tmp_path / "out"
    labelled = tmp_path / "labelled.jsonl"
    labelled.write_text(files[1].read_text() + '{"prompt": "tell more", "completion": "ab"}\n')
    found = teach(bundle, files[0], out, labelled=labelled, keep=files[2], config=CONFIG,
                  options=replace(OPTIONS, rounds=1, temperature=0.1))
    before, of = rounds_of(out)
    judged = of.read("gate") or {}
    assert (before.read("gate") or {})["facts"]["test"] == "likelihood"  # no answers could agree yet
    assert (judged["facts"]["test"], judged["facts"]["passed"]) == ("agreement", False)
    assert found.published == before.candidate
    bare = [one["key"] for one in judged["candidate"] if one["agreed"]]
    assert bare
    assert len(judged["candidate"]) - len(bare) < 20
    assert (of.read("search") or {})["facts"]["drawn"] > 0  # how far to go is chosen by such prompts too
    learned = {row["key"] for row in (of.read("rows") or {})["rows"]}
    assert not learned & set(bare)


# ---- rounds that end by themselves ----


def test_rounds_that_find_nothing_end(bundle: Bundle, files: Files, tmp_path: Path) -> None:
    never = read_grader({"type": "regex", "name": "never", "pattern": "never said"})
    found = teach(bundle, files[0], tmp_path / "out", grader=never, config=CONFIG, options=replace(OPTIONS, rounds=50))
    assert found.stopped == "round 1 found 0 answers to learn, 1 are needed"


def test_rounds_that_publish_nothing_end(bundle: Bundle, files: Files, tmp_path: Path) -> None:
    """Nothing is ever sure enough."""
    found = go(bundle, tmp_path / "out", files, replace(FEW, gate_alpha=0.0, rounds=50, stop_after=2))
    assert found.stopped == "2 rounds in a row published nothing"
    assert not (tmp_path / "out" / "adapter.gguf").exists()


def test_a_generator_that_says_one_thing_ends(bundle: Bundle, files: Files, tmp_path: Path) -> None:
    """It has learned to say "ok" to everything, and rows with other right answers say that this is wrong."""
    rows = [{**json.loads(line), "completion": "ok"} for line in files[1].read_text().splitlines()]
    edgetune.train(bundle, rows, tmp_path / "start", eval="none", answers=False, rank=4, lr=2e-2, epochs=15,
                   batch_size=4, threads=1)
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({**row, "completion": "ok" if i % 2 else "b"}) + "\n"
                               for i, row in enumerate(rows)))
    found = teach(bundle, prompts, tmp_path / "out", start=tmp_path / "start", keep=files[2], config=CONFIG,
                  options=replace(OPTIONS, temperature=0.0))
    assert found.stopped == "112 of 112 answers to 16 questions are one and the same"
    assert found.published == tmp_path / "out" / "rounds" / "000" / "candidate"
    assert (tmp_path / "out" / "adapter.gguf").read_bytes() == (tmp_path / "start" / "adapter.gguf").read_bytes()


# ---- the command line ----


def test_the_command(told: tuple[Path, dict[str, Any]]) -> None:
    """Its folder is that of a program, as the test of single steps finds."""
    done, found = told
    assert found["stopped"] == "2 rounds are done"
    assert [one["gate"]["test"] for one in found["rounds"]] == ["sign"] * 3
    assert [one["round"] for one in found["rounds"]] == [0, 1, 2]
    shown = invoke("tutor", "inspect", str(done), "--prompts", "2")
    assert "judged by" in shown
    assert "Wh" not in shown
    assert "Wh" in invoke("tutor", "inspect", str(done), "--prompts", "0", "--watts", "6")
    assert re.search(r"^(say|tell) \d+$", shown, re.M)
    assert "round 0: " in shown
    first = json.loads(invoke("tutor", "inspect", str(done), "--round", "1", "--json"))
    assert len(first["questions"]) == 10
    assert all(len(one["before"]) == 4 for one in first["questions"])


def test_a_folder_without_rounds(tmp_path: Path) -> None:
    with pytest.raises(EdgetuneError, match="holds no rounds of a tutor"):
        summary(tmp_path)
