"""Rounds of a tiny model: their files, what a stop leaves, and that continued rounds end with the same bytes."""

import json
import re
import threading
from contextlib import closing
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from asked import question
from click.testing import CliRunner
from json_lines import read_lines, write_lines
from kills import killed
from small_families import small, trained

from edgetune import disk
from edgetune.adapters.store import open_adapter, read_run, save_schema
from edgetune.cli.app import cli
from edgetune.errors import DataError, EdgetuneError, Interrupted, MismatchError, UsageError
from edgetune.evaluation import acceptance
from edgetune.evaluation.graders.base import read_grader
from edgetune.llamacpp.tokenizer import Tokenizer
from edgetune.parts.tutor.rounds import gate
from edgetune.parts.tutor.rounds.answers import ModelAnswer, graded
from edgetune.parts.tutor.rounds.folder import Round, keep_start, roll_back, rounds_of
from edgetune.parts.tutor.rounds.gate import LABELS, ROUND, GateResult
from edgetune.parts.tutor.rounds.inspect import summary
from edgetune.parts.tutor.rounds.options import STEPS, TutorOptions, of_earlier
from edgetune.parts.tutor.rounds.questions import pool_of
from edgetune.parts.tutor.rounds.results import Chosen, DrawnAnswers, Labels, Published, Trained
from edgetune.parts.tutor.rounds.setting import RoundSetting
from edgetune.parts.tutor.rounds.teach import TutorFiles, teach
from edgetune.training.callbacks import RunCallbacks
from edgetune.training.config import TrainConfig

OPTIONS = TutorOptions(rounds=2, per_round=12, samples=4, max_tokens=6, questions=12, min_rows=1, canary_rise=1e3,
                       max_kl=1e3, stop_after=2)
CONFIG = TrainConfig(rank=4, lr=2e-2, epochs=3.0, batch_size=4, max_length=128, threads=1, precision="exact", seed=3)
SELF = {"type": "score_model", "name": "judge", "model": "self", "pass_threshold": 0.0,
        "input": [{"role": "user", "content": "Is {{ sample.output_text }} right?"}]}  # asks the base


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Prompts, labelled rows and a text to keep: say "aa" to all."""
    folder = tmp_path_factory.mktemp("files")
    prompts = write_lines(folder / "prompts.jsonl", [{"prompt": f"say {i}"} for i in range(60)])
    labelled = write_lines(folder / "labelled.jsonl", [{"prompt": f"tell {i}", "completion": "aa"} for i in range(40)])
    keep = folder / "keep.jsonl"
    keep.write_text('{"text": "Cats sleep for most of the day."}\n')  # short: tokens are bytes here
    return TutorFiles(prompts, labelled, keep=keep)


@pytest.mark.dev
def test_the_start_is_kept_with_its_schema_or_not_at_all(bundle, tmp_path):
    """Where a kill comes at any moment, and the same goes on."""
    schema = {"type": "object"}
    start = tmp_path / "start"
    trained(bundle, small("lora")).save(start)
    save_schema(start, schema)
    has_ended = False
    for number in count():
        out, copy = (tmp_path / f"{name}{number}" for name in ("made", "killed"))
        out.mkdir()
        with killed(out, copy, number) as kill:
            keep_start(out, start, bundle.gguf)
            has_ended = not kill.is_done
        assert open_adapter(keep_start(copy, start, bundle.gguf)).schema == schema
        assert open_adapter(copy).schema == schema
        if has_ended:
            break
    assert number > 5


def go(bundle, out, files, options=OPTIONS, **more: Any):
    return teach(bundle, files, out, **{"options": options, "config": CONFIG, **more})


@pytest.fixture(scope="module")
def made(bundle, files, tmp_path_factory):
    """The folder of rounds that the command made, and what it printed."""
    out = tmp_path_factory.mktemp("rounds") / "out"
    common = ["tutor", str(bundle.path), str(files.prompts), "-o", str(out), "--labelled", str(files.labelled),
              "--keep", str(files.keep), "--no-govern", "--json"]
    given = {**{name: value for name, value in vars(OPTIONS).items() if value != getattr(TutorOptions(), name)},
             **{name: value for name, value in CONFIG.to_json().items() if value != TrainConfig().to_json()[name]}}
    flags = [word for name, value in given.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    return out, json.loads(invoke(*common, *flags))


@pytest.fixture(scope="module")
def done(made):
    return made[0]


def invoke(*words: str):
    result = CliRunner().invoke(cli, words, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def bytes_of(out):
    """All that a run leaves but the seconds and the records of trainings, which have them too."""
    return {str(path.relative_to(out)): path.read_bytes() for path in sorted(out.rglob("*"))
            if path.is_file() and path.name not in ("times.jsonl", "run.json", "metrics.jsonl", "metrics.csv",
                                                    "report.html")}


def read(out, number, kind):
    found = Round(out, number).read(kind)
    assert found
    return found


def learned(round, kind=Trained):
    found = round.read(kind)
    assert found
    return {row.key for row in found.rows}


@pytest.mark.dev
def test_the_files_of_a_run(bundle, done):
    ledger = read_lines(done / "ledger.jsonl")
    assert [round.number for round in rounds_of(done)] == [1, 2]
    again = [f"refit {step}" for step in ("labels", "draw", "choose", "train")]
    assert [line["step"] for line in ledger if line["round"] == 1] == [*STEPS, *again]
    assert [line["step"] for line in ledger if line["round"] == 2] == ["draw", "choose", "train", "gate"]
    gates = [line for line in ledger if line["step"] == "gate"]
    assert gates[0]["passed"]  # a model of random weights knows nothing, and learns to say it
    assert read_run(done)["published"] == 1
    assert open_adapter(done, bundle.gguf).pairs
    written = json.dumps(ledger)
    assert "say" not in written
    assert "tell" not in written


def test_the_first_gate_tests_the_labelled_rows_alone_too(done):
    first, second = (read(done, number, GateResult) for number in (1, 2))
    assert [one.adapter for one in first.decisions] == [ROUND, LABELS]
    assert [one.alpha for one in first.decisions] == pytest.approx([0.125 / 2, 0.125 / 6])
    assert [one.adapter for one in second.decisions] == [ROUND]
    assert second.decisions[0].alpha == pytest.approx(0.125 / 2)  # the first one published
    base, own, labels = (next(one.losses for one in first.answers if one.adapter == name)
                         for name in ("published", ROUND, LABELS))
    assert min(base) > 0
    assert all(loss < before for adapter in (own, labels) for loss, before in zip(adapter, base, strict=True))
    assert not second.chosen  # nothing was left to gain


def test_held_out_rows_are_learned_after_the_gate_and_by_nothing_that_it_tests(done):
    """Also not by the adapter whose answers are learned."""
    held = {key for number in (1, 2) for key in read(done, number, GateResult).keys}
    assert held
    first, second = rounds_of(done)
    assert not held & (learned(first, Labels) | learned(first) | learned(second))
    assert learned(first.refit, Labels) == learned(first, Labels) | held
    assert learned(first.refit) >= learned(first.refit, Labels)
    published = read(done, 1, Published)
    assert published.adapter == "rounds/001/refit/train"
    assert (done / published.adapter / "adapter.gguf").read_bytes() == (done / "adapter.gguf").read_bytes()


@pytest.mark.dev
def test_an_adapter_that_does_harm_is_not_published_in_place_of_the_tested_one(bundle, files, tmp_path, monkeypatch):
    """The final one learned the held-out rows too, and no question is left that it did not learn."""
    measure = gate.measure

    def harmful(setting, questions, *given: Any):
        found = measure(setting, questions, *given)
        return found if questions else {name: replace(one, rise=1e9 * (name == ROUND)) for name, one in found.items()}

    monkeypatch.setattr(gate, "measure", harmful)
    go(bundle, tmp_path, files, replace(OPTIONS, rounds=1))
    published = read(tmp_path, 1, Published)
    assert published.adapter == "rounds/001/train"
    assert "unrelated text" in published.objection


@pytest.mark.dev
def test_named_held_out_rows_are_never_learned(bundle, files, tmp_path):
    held = write_lines(tmp_path / "held.jsonl", [{"prompt": f"tell {i}", "completion": "aa"} for i in range(50, 60)])
    out = tmp_path / "out"
    go(bundle, out, replace(files, held=held), replace(OPTIONS, rounds=1))
    assert len(read(out, 1, GateResult).keys) == 10
    assert read(out, 1, Published).adapter.endswith("/train")
    assert not Round(out, 1).refit.folder.exists()
    assert len(learned(Round(out, 1), Labels)) == 40


def test_the_cost_of_a_round(done):
    found = summary(done, watts=36.0)["rounds"]
    drawn = [part.read(DrawnAnswers) for part in (Round(done, 1), Round(done, 1).refit)]
    assert found[0]["drawn"] == sum(one.tokens for part in drawn if part for prompt in part.prompts
                                    for one in prompt.answers) > 0
    assert found[0]["trained"] > found[0]["labels"]["trained"] > 0
    assert found[0]["seconds"] > 0
    assert found[0]["watt_hours"] == pytest.approx(found[0]["seconds"] / 100)


@pytest.mark.slow
def test_a_stopped_run_continues_to_the_same_bytes(bundle, files, done, tmp_path):
    """Stopped again and again, in the midst of steps of round 1."""
    out = tmp_path / "out"
    folder = out / "rounds" / "001"
    for before, at in (("choose", "train"), ("train", "gate"), ("gate", "refit/train")):
        asked: list[bool] = []

        def stop(done=folder / f"{before}.json", asked=asked):
            asked += [True] * done.exists()
            return len(asked) > 3

        with pytest.raises(Interrupted, match=r"stopped.*continue with the same command"):
            go(bundle, out, files, callbacks=RunCallbacks(should_stop=stop))
        assert (folder / f"{before}.json").exists()
        assert not (folder / f"{at}.json").exists()
    go(bundle, out, files)
    assert bytes_of(out) == bytes_of(done)


@pytest.mark.slow
def test_single_steps_and_more_rounds_end_in_the_same_bytes(bundle, files, done, tmp_path):
    """By a program, which leaves what the command does."""
    out = tmp_path / "out"
    for step in ("draw", "gate"):
        with pytest.raises(Interrupted, match=f"stopped after the step {step} of round 1"):
            go(bundle, out, files, until=step)
    assert (out / "rounds" / "001" / "gate.json").exists()
    assert not (out / "rounds" / "001" / "refit").exists()
    go(bundle, out, files, replace(OPTIONS, rounds=1))
    assert [round.number for round in rounds_of(out)] == [1]
    go(bundle, out, files)
    assert bytes_of(out) == bytes_of(done)


@pytest.mark.slow
def test_a_step_back(bundle, files, done, tmp_path, monkeypatch):
    """What a person took back is not published again when the rounds are continued. Here every gate is open."""
    monkeypatch.setattr(gate, "choose", lambda *_, **__: ROUND)
    out = tmp_path / "out"
    options = replace(OPTIONS, rounds=1, per_round=8, samples=2)
    go(bundle, out, files, options, start=done)
    before = (out / "adapter.gguf").read_bytes()
    assert read_run(out)["published"] == 1
    assert roll_back(out, bundle.gguf) == 0
    assert (out / "adapter.gguf").read_bytes() == (done / "adapter.gguf").read_bytes() != before
    with pytest.raises(UsageError, match=r"before round 0"):
        roll_back(out, bundle.gguf)
    go(bundle, out, files, options, start=done)
    assert read_run(out)["published"] == 0


def test_an_adapter_that_is_not_beaten_stays(bundle, files, done, tmp_path):
    """Its answers are right already: the round says in numbers that it does not help."""
    out = tmp_path / "out"
    found = go(bundle, out, files, replace(OPTIONS, stop_after=1, rounds=9), start=done)
    assert found.stopped.startswith("this does not help here, so nothing is published")
    assert re.search(r"\d+ of \d+ right, \d+ of \d+ right before.*p = 1", found.stopped)
    assert (out / "adapter.gguf").read_bytes() == (done / "adapter.gguf").read_bytes()
    assert [round.number for round in rounds_of(out)] == [0, 1]


@pytest.mark.dev
def test_answers_that_do_not_help_leave_the_labelled_rows_alone(bundle, files, tmp_path, monkeypatch):
    """The round passes too, and has fewer right: the labelled rows alone are learned again with the held-out ones."""
    measure = gate.measure

    def worse(*given: Any):
        found = measure(*given)
        if LABELS in found:
            values = [1.0] * (len(found[LABELS].values) - 1)
            found[LABELS] = replace(found[LABELS], values=[1.0, *values])
            found[ROUND] = replace(found[ROUND], values=[0.0, *values])
            found["published"] = replace(found["published"], values=[0.0] * (1 + len(values)))
        return found

    monkeypatch.setattr(gate, "measure", worse)
    out = tmp_path / "out"
    go(bundle, out, files, replace(OPTIONS, rounds=1))
    gated = read(out, 1, GateResult)
    assert gated.chosen == LABELS
    assert "do not help here" in gated.reason
    first = Round(out, 1)
    assert learned(first.refit, Labels) == learned(first, Labels) | set(gated.keys)
    assert read(out, 1, Published).adapter == "rounds/001/refit/labels"


def test_answers_that_agree_are_learned_unverified(done):
    trained = read(done, 1, Trained)
    labels = {one.key for one in read(done, 1, Chosen).choices if one.label}
    assert labels == {row.key for row in trained.rows if not row.is_verified} != set()
    assert trained.facts["verified"] == len(trained.rows) - len(labels)


@pytest.mark.dev
def test_a_grader_chooses_and_measures(bundle, files, tmp_path):
    """A model that is asked is the base, within the budget; its judgment verifies nothing."""
    options = replace(OPTIONS, rounds=1, per_round=6, samples=2, questions=6)
    for grader, verified in (({"type": "regex", "name": "any", "pattern": "."}, True), (SELF, False)):
        out = tmp_path / str(verified)
        go(bundle, out, replace(files, labelled=None), options, grader=read_grader(grader))
        assert {row.is_verified for row in read(out, 1, Trained).rows} == {verified}
        values = [value for one in read(out, 1, GateResult).answers for value in one.values]
        assert all(0 <= value <= 1 for value in values)
        if not verified:
            assert all(0 < value < 1 for value in values)


def test_a_judge_without_room_is_refused(bundle, tmp_path):
    """The memory of its log-probabilities is planned."""
    with closing(Tokenizer(bundle.gguf)) as tokenizer:
        pool = pool_of([question("a?", "b")], [question("c?")], has_grader=False, held=[question("d?", "e")])
        setting = RoundSetting(bundle, tokenizer, pool, read_grader(SELF), OPTIONS, replace(CONFIG, memory="1M"),
                               tmp_path)
        with pytest.raises(UsageError, match=r"of a text of 1024 tokens need [\d.]+ [MG]iB.*--memory 1M"):
            graded(setting, [question("c?")], [[ModelAnswer("x", 1, True)]])


# ---- what is refused, and what is left out ----


def test_something_else_is_not_continued(bundle, files, done, tmp_path):
    with pytest.raises(MismatchError, match="begun with another samples"):
        go(bundle, done, files, replace(OPTIONS, samples=5))
    other = tmp_path / "other.jsonl"
    other.write_text('{"prompt": "say 1"}\n')
    with pytest.raises(MismatchError, match="begun with another prompts"):
        go(bundle, done, replace(files, prompts=other))
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    with pytest.raises(UsageError, match=r"the output folder .* exists"):
        go(bundle, tmp_path / "full", files)


@pytest.mark.parametrize("use", ["run", "inspect", "rollback"])
def test_a_file_is_no_folder_of_rounds(bundle, files, tmp_path, use):
    (tmp_path / "out").write_text("mine")
    with pytest.raises(UsageError, match=r"out is a file; name a folder"):
        {"run": lambda out: go(bundle, out, files), "inspect": summary,
         "rollback": lambda out: roll_back(out, bundle.gguf)}[use](tmp_path / "out")
    assert (tmp_path / "out").read_text() == "mine"


@pytest.mark.parametrize("use", ["run", "inspect", "rollback"])
def test_rounds_of_an_earlier_edgetune_are_refused_in_a_sentence(bundle, files, tmp_path, use):
    (tmp_path / "tutor.json").write_text('{"model": "x", "rounds": 5, "retold": 8}')
    with pytest.raises(MismatchError, match=r"of another edgetune.*; its adapter can be used as it is"):
        {"run": lambda out: go(bundle, out, files), "inspect": summary,
         "rollback": lambda out: roll_back(out, bundle.gguf)}[use](tmp_path)


def test_options_of_an_earlier_edgetune():
    assert of_earlier({"rounds": 0, "samples": 4, "retold": 8, "objective": "nlft"}) == {"rounds": 1, "samples": 4}
    assert of_earlier({"replay": 0.6, "rounds": 3}) == {"rounds": 3}


def test_one_of_two_begins(bundle, files, tmp_path):
    """A folder that another process holds is not even looked into."""
    out = tmp_path / "out"
    out.mkdir()
    held, over = threading.Event(), threading.Event()

    def hold():
        with disk.alone(out):
            held.set()
            over.wait()

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait()
    try:
        with pytest.raises(UsageError, match="another process is writing"):
            go(bundle, out, files)
    finally:
        over.set()
        thread.join()
    assert not (out / "tutor.json").exists()


@pytest.mark.dev
def test_a_question_without_room_is_left_out_and_said(bundle, files, tmp_path):
    """Tokens are bytes here, and a row has 128."""
    events: list[dict[str, Any]] = []
    changed = []
    for path, row in ((files.prompts, {"prompt": "say " + "x" * 200}),
                      (files.labelled, {"prompt": "tell " + "x" * 200, "completion": "aa"})):
        changed.append(tmp_path / path.name)
        changed[-1].write_text(json.dumps(row) + "\n" + path.read_text())
    go(bundle, tmp_path / "out", TutorFiles(*changed, keep=files.keep),
       replace(OPTIONS, rounds=1, per_round=60, samples=1),
       callbacks=RunCallbacks(events.append))
    left_out = {Path(event["path"]).name: event["skipped"] for event in events if event["event"] == "rows"}
    assert left_out == {"prompts.jsonl": 1, "labelled.jsonl": 1}
    assert read(tmp_path / "out", 1, DrawnAnswers).facts["prompts"] == 60
    changed[0].write_text(json.dumps({"prompt": "x" * 200}) + "\n")
    with pytest.raises(DataError, match=r"no question of .*prompts.jsonl leaves room for an answer of 6 tokens.*128"):
        go(bundle, tmp_path / "other", TutorFiles(*changed, keep=files.keep))


def test_a_grader_that_names_what_rows_lack_is_refused_before_anything(bundle, files, tmp_path):
    grader = read_grader({"type": "numeric", "name": "n", "reference": "{{ item.number }}"})
    with pytest.raises(DataError, match=r"prompt 1: .*number"):
        go(bundle, tmp_path / "out", replace(files, labelled=None), grader=grader)
    assert not (tmp_path / "out").exists()


def test_a_round_that_finds_nothing_to_learn_ends(bundle, files, tmp_path):
    never = read_grader({"type": "regex", "name": "never", "pattern": "never said"})
    found = go(bundle, tmp_path / "out", replace(files, labelled=None), replace(OPTIONS, rounds=50), grader=never)
    assert "the answers to 0 of 12 prompts pass the grader, 1 are needed" in found.stopped
    assert not (tmp_path / "out" / "adapter.gguf").exists()


@pytest.mark.dev
def test_rounds_that_publish_nothing_end(bundle, files, tmp_path, monkeypatch):
    """Nothing is ever sure enough; each test takes less of alpha."""
    monkeypatch.setattr(acceptance, "ALPHA", 1e-9)
    found = go(bundle, tmp_path / "out", files, replace(OPTIONS, rounds=50))
    assert found.refused == 2
    assert not (tmp_path / "out" / "adapter.gguf").exists()
    alphas = [one.alpha for number in (1, 2) for one in read(tmp_path / "out", number, GateResult).decisions]
    assert alphas == pytest.approx([1e-9 / (k * (k + 1)) for k in (1, 2, 3, 4)])


# ---- the command line ----


def test_the_command(made):
    done, found = made
    assert found["stopped"] == "2 rounds are done"
    assert [one["round"] for one in found["rounds"]] == [1, 2]
    shown = invoke("tutor", "inspect", str(done), "--prompts", "2")
    assert "learned, agreed" in shown
    assert "Wh" not in shown
    assert "Wh" in invoke("tutor", "inspect", str(done), "--prompts", "0", "--watts", "6")
    assert re.search(r"^say \d+$", shown, re.M)
    first = json.loads(invoke("tutor", "inspect", str(done), "--round", "1", "--json"))
    assert len(first["prompts"]) == 10
    assert all(len(one["answers"]) == 4 for one in first["prompts"])


def test_a_folder_without_rounds(tmp_path):
    with pytest.raises(EdgetuneError, match="holds no rounds of a tutor"):
        summary(tmp_path)
