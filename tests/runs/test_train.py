"""A run in one call: what is held out, answers before and after, what is said of them, and what a program gets."""

import json
import shutil
import subprocess
import sys

import pytest
from click.testing import CliRunner
from commands import run
from json_lines import write_lines
from sometimes import mostly_slow

from edgetune.cli import cli
from edgetune.errors import EdgetuneError, Interrupted, MismatchError, UsageError
from edgetune.evaluation.served import GradedAnswer
from edgetune.runs.answers import compare, complete, summary
from edgetune.runs.result import Result
from edgetune.runs.train import resume, train
from edgetune.serving.llama import LlamaModel
from edgetune.serving.memory import memory_needed
from edgetune.training.callbacks import RunCallbacks
from edgetune.training.config import TrainConfig

ROWS = [{"prompt": f"turn on lamp {i}", "completion": "on"} for i in range(20)]
HELD = [{"prompt": f"turn on lamp {i}", "completion": "on"} for i in range(30, 36)]
OPTIONS = {"rank": 4, "lr": 2e-2, "steps": 30, "batch_size": 4, "max_length": 64, "threads": 1}


@pytest.fixture(scope="module")
def learned(model, tmp_path_factory):
    return train(model, ROWS, tmp_path_factory.mktemp("learned") / "out", HELD, **OPTIONS)


def answers_of(model, adapter=None):
    """Asked one by one, as a program would."""
    with LlamaModel(model) as served:
        if adapter:
            served.load_adapter(adapter, "a")
            served.use("a")
        return ["".join(served.chat([{"role": "user", "content": row["prompt"]}], max_tokens=20)) for row in HELD]


@pytest.mark.learning
def test_answers_before_and_after_are_those_of_llama_cpp(model, learned):
    before = answers_of(model)
    after = answers_of(model, learned.folder)
    assert learned.exact_before == sum(answer == "on" for answer in before) / 6 == 0
    assert learned.exact_after == sum(answer == "on" for answer in after) / 6 > 0.9
    assert [pair["prompt"] for pair in learned.pairs] == [row["prompt"] for row in HELD[:3]]
    assert [pair["after"] for pair in learned.pairs] == after[:3]
    assert all(pair["expected"] == "on" and pair["right"] for pair in learned.pairs)
    assert learned.loss_after < learned.loss_before


def test_the_record_on_disk_is_the_result(learned):
    assert json.loads((learned.folder / "run.json").read_text()) == learned.record
    assert not list(learned.folder.glob("*.tmp"))
    assert learned.record["answers"]["rows"] == 6


def test_rows_of_a_file_give_the_schema_of_their_answers(model, learned, tmp_path):
    """They are read by another process, which has the rows."""
    rows = [{"prompt": f"turn on lamp {i}", "completion": json.dumps({"lamp": "ab"[i % 2]})} for i in range(20)]
    write_lines(tmp_path / "rows.jsonl", rows)
    made = train(model, tmp_path / "rows.jsonl", tmp_path / "out", **{**OPTIONS, "steps": 1})
    assert json.loads((made.folder / "schema.json").read_text())["properties"]["lamp"]["enum"] == ["a", "b"]
    assert made.record["answers"]["structured_parsed"] == 1
    assert not (learned.folder / "schema.json").exists()


def test_a_result_reads_well(learned):
    text = repr(learned)
    assert learned.verdict in text
    assert "6 of 6 held-out rows are answered exactly, 0 before." in learned.verdict
    assert "exact answers 0% -> 100%" in text
    assert str(learned.folder) in text


def test_in_a_notebook_text_is_no_markup(learned):
    pair = {**learned.pairs[0], "after": "<script>alert(1)</script>"}
    record = {**learned.record, "answers": {**learned.record["answers"], "pairs": [pair]}}
    html = Result(learned.folder, record)._repr_html_()
    assert "<script" not in html
    assert "&lt;script&gt;" in html
    assert "src=" not in html
    assert "href=" not in html


def test_a_tenth_is_held_out_where_nothing_is_said(model, tmp_path):
    result = train(model, ROWS, tmp_path / "tenth", **{**OPTIONS, "steps": 1})
    assert (result.record["data"]["rows"], result.record["held_out"]["rows"]) == (16, 4)
    assert result.record["answers"]["rows"] == 4
    everything = train(model, ROWS, tmp_path / "all", "none", **{**OPTIONS, "steps": 1})
    assert (everything.record["data"]["rows"], everything.record["held_out"]) == (20, None)
    assert (everything.loss_after, everything.exact_after, everything.pairs) == (None, None, [])


def test_files_give_what_rows_give(model, learned, tmp_path):
    for name, rows in (("rows", ROWS), ("held", HELD)):
        write_lines(tmp_path / f"{name}.jsonl", rows)
    again = train(model, tmp_path / "rows.jsonl", tmp_path / "out", str(tmp_path / "held.jsonl"), **OPTIONS)
    assert (again.folder / "adapter.gguf").read_bytes() == (learned.folder / "adapter.gguf").read_bytes()
    assert again.record["answers"] == learned.record["answers"]


def test_answers_may_be_left_out(model, tmp_path):
    result = train(model, ROWS, tmp_path / "out", HELD, answers=False, **{**OPTIONS, "steps": 1})
    assert "answers" not in result.record
    assert result.exact_after is None


def test_stopped_while_answering_the_adapter_stays(model, tmp_path):
    events = {}
    result = train(model, ROWS, tmp_path / "out", HELD, callbacks=RunCallbacks(
        lambda e: events.update({e["event"]: e}), lambda: "answers" in events), **{**OPTIONS, "steps": 1})
    plan = events["start"]["plan"]
    assert plan["process_bytes"] < events["start"]["answers_bytes"] <= plan["budget_bytes"]
    assert "answers_missing" in events
    assert result.record["answers"] is None
    assert result.record["answers_missing"] == "answers were not compared: they were stopped"
    assert json.loads((tmp_path / "out" / "run.json").read_text())["status"] == "done"
    assert (tmp_path / "out" / "adapter.gguf").exists()


def test_a_small_budget_is_kept_and_said(model, learned):
    from edgetune.formats.bundle import open_bundle
    from edgetune.runs.answers import Exam
    from edgetune.training.config import TrainConfig
    exam = Exam(open_bundle(model).gguf, learned.folder, None, HELD, 64, TrainConfig(memory="40M"))
    with pytest.raises(EdgetuneError, match=r"llama.cpp would need up to .* [MG]iB, the budget is 40 MiB"):
        compare(exam, lambda _: None, lambda: False)


@pytest.mark.slow
def test_what_llama_cpp_needs_is_within_what_is_counted(smollm2):
    """In a new process, with answers to as many questions as are answered together."""
    program = f"""
from edgetune.formats.bundle import open_bundle
from edgetune.machine import device
from edgetune.serving.llama import LlamaModel
from edgetune.serving.memory import memory_needed
from edgetune.training.callbacks import RunCallbacks
base = open_bundle({str(smollm2)!r}).gguf
import numpy
before = device.rss()
with LlamaModel(base, context=1024, threads=2, repack=False) as served:
    for _ in served.complete([f"{{i}} " + "word " * 30 for i in range(16)], 2):
        pass
print(device.peak_rss() - before)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    from edgetune.formats.gguf import open_gguf
    counted = memory_needed(open_gguf(smollm2), 1024, repack=False)
    assert 0.4 * counted < int(done.stdout) < counted


@pytest.mark.dev
@pytest.mark.parametrize(("budget", "compares"), mostly_slow([(300, True), (190, False)], [(300, True)]))
def test_the_budget_holds_for_answers_too(smollm2, tmp_path, budget, compares):
    """The whole process of a real model, by the kernel's count; some ten seconds each."""
    write_lines(tmp_path / "rows.jsonl", ROWS)
    command = [sys.executable, "-m", "edgetune", "train", str(smollm2), str(tmp_path / "rows.jsonl"), "-o",
               str(tmp_path / "out"), "--memory", f"{budget}M", "--steps", "1", "--batch-size", "1", "--max-length",
               "64", "--json"]
    record = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert max(record["peak_rss_mib"], record["peak_children_mib"]) <= budget
    if compares:
        assert record["answers"]["rows"] == 4
    else:
        assert record["answers"] is None
        assert "the budget is 190 MiB" in record["answers_missing"]


# ---- what is said ----------------------------------------------------------------------------------------------------


def answered(*rights, expected=None):
    """expected: of each; None: another one of each."""
    expected = expected or [f"yes {i}" for i in range(len(rights))]
    return [GradedAnswer("<prompt>", wanted, wanted if right else "no", bool(right), True, f"q{i}")
            for i, (right, wanted) in enumerate(zip(rights, expected, strict=True))]


def test_pairs_that_changed_come_first():
    found = summary(answered(0, 0, 1, 1, 0), answered(0, 0, 1, 0, 1))
    assert [pair["prompt"] for pair in found["pairs"]] == ["q3", "q4", "q0"]
    assert (found["rows"], found["before"], found["after"], found["wins"], found["losses"]) == (5, 0.4, 0.4, 1, 1)


@pytest.mark.parametrize(("before", "after", "kind", "words"), [
    ([0] * 6, [1] * 5 + [0], "learned", "Learned. 5 of 6 held-out rows are answered exactly, 0 before."),
    ([1] * 6, [1] * 5 + [0], "learned", "Learned. 5 of 6 held-out rows are answered exactly, fewer than the 6 before."),
    ([1] * 6, [0] * 6, "worse", "Worse than before, although the held-out loss fell: 0 of 6 held-out rows are answered "
     "exactly, fewer than the 6 before; lower --lr or --epochs, and look at the rows with edgetune data check."),
])
def test_fewer_exact_answers_are_said_and_clearly_fewer_are_worse(before, after, kind, words):
    verdict = {"kind": "learned", "sentence": "Learned.", "step": 4}
    found = complete(verdict, summary(answered(*before), answered(*after)))
    assert found == {"kind": kind, "sentence": words, "step": 4}


@pytest.mark.parametrize(("expected", "right", "kind"), [
    ("aaabbc", 3, "unmeasured"),  # as many as by answering a to all
    ("aaabbc", 4, "learned"),
    ("aaaaaa", 5, "unmeasured"),
    ("aaaaaa", 6, "learned"),  # all are right
    ("abcdef", 0, "learned"),  # of texts none is exact, and this says nothing about them
])
def test_what_one_answer_to_all_questions_would_do_is_not_called_learned(expected, right, kind):
    after = answered(*[1] * right, *[0] * (6 - right), expected=expected)
    found = complete({"kind": "learned", "sentence": "Learned.", "step": 4}, summary(answered(*[0] * 6), after))
    assert found["kind"] == kind
    assert f"{right} of 6 held-out rows are answered exactly, 0 before" in found["sentence"]
    assert ("always the same answer" in found["sentence"]) == (kind == "unmeasured")


@pytest.mark.parametrize("kind", ["learned", "still falling", "overfitted"])
def test_labels_of_which_none_is_right_were_not_learned(kind):
    """Another label is no better answer than none, whatever the loss does."""
    found = complete({"kind": kind, "sentence": "So it is.", "step": 4},
                     summary(answered(*[0] * 6), answered(*[0] * 6, expected="abcdef")), of_labels=True)
    assert found["kind"] == "unmeasured"


def test_nobody_is_advised_to_train_on_where_all_answers_are_right():
    """A loss of nearly nothing still falls."""
    verdict = {"kind": "still falling", "sentence": "Still falling; train on with edgetune resume.", "step": 4}
    found = complete(verdict, summary(answered(0, 1, 0), answered(1, 1, 1)))
    assert found == {"kind": "learned", "sentence": "Learned. 3 of 3 held-out rows are answered exactly, 1 before.",
                     "step": 4}


@pytest.mark.parametrize("kind", ["overfitted", "worse", "still falling", "unmeasured"])
def test_other_verdicts_stay(kind):
    after = answered(1, 0, 0, expected="aab")
    found = complete({"kind": kind, "sentence": "So it is.", "step": 4}, summary(answered(0, 0, 0), after))
    assert found["kind"] == kind
    assert found["sentence"].startswith("So it is. 1 of 3 held-out rows are answered exactly, 0 before")
    assert ("always the same answer would be right for 2: see" in found["sentence"]) == (kind == "overfitted")


@pytest.mark.parametrize(("change", "words"), [
    ({"rnak": 8}, "'rnak' is no option; did you mean rank"),
    ({"eval": "none", "patience": 2}, "patience is 2, and no rows are held out"),
])
def test_what_cannot_be_is_said_before_a_row_is_read(model, tmp_path, change, words):
    with pytest.raises(UsageError, match=words):
        train(model, "missing.jsonl", tmp_path / "out", **change)


# ---- from an adapter, and continued ----------------------------------------------------------------------------------


def test_from_an_adapter_answers_before_are_its_own(model, learned, tmp_path):
    options = {name: value for name, value in OPTIONS.items() if name != "rank"}  # it is the adapter's
    rows = [{"prompt": f"turn off lamp {i}", "completion": "off"} for i in range(20)]
    result = train(model, rows, tmp_path / "out", HELD + rows[:3], start=learned.folder, **{**options, "steps": 2})
    assert result.record["options"]["rank"] == 4
    assert result.record["origin"]["data"] == ""
    if result.record["verdict"]["step"]:
        assert result.exact_before == pytest.approx(6 / 9)


def test_a_ruined_run_fails_and_there_is_nothing_to_try(model, learned, tmp_path):
    for name, rows in (("rows", ROWS), ("held", HELD)):
        write_lines(tmp_path / f"{name}.jsonl", rows)
    out = tmp_path / "out"
    text = run("train", model, tmp_path / "rows.jsonl", "-o", out, "--eval", tmp_path / "held.jsonl", "--start",
               learned.folder, "--lr", 1000, "--steps", 1, "--max-length", 64, code=3)
    assert "than before" in text
    assert "edgetune chat" not in text
    assert "answers" not in json.loads((out / "run.json").read_text())  # the adapter is what it began with


def test_a_run_of_before_without_held_out_rows_continues_as_it_was(model, tmp_path):
    """0.1.0 held nothing out where nothing was named, and its run.json does not say where the run comes from."""
    steps = []
    arguments = (model, ROWS, tmp_path / "out")
    with pytest.raises(Interrupted):
        train(*arguments, "none", callbacks=RunCallbacks(
            lambda e: steps.extend([1] if e["event"] == "step" else []), lambda: len(steps) == 2),
            **{**OPTIONS, "steps": 4})
    record = json.loads((tmp_path / "out" / "run.json").read_text())
    del record["origin"]
    (tmp_path / "out" / "run.json").write_text(json.dumps(record))
    result = train(*arguments, resume=True, **{**OPTIONS, "steps": 4})
    assert (result.steps, result.record["held_out"], result.record["data"]["rows"]) == (4, None, 20)


@pytest.fixture(scope="module")
def stopped_once(model, tmp_path_factory):
    """A folder with a run by relative paths, stopped after 5 of 8 steps, and what it should become."""
    folder = tmp_path_factory.mktemp("stopped")
    write_lines(folder / "rows.jsonl", ROWS)
    (folder / "model.gguf").symlink_to(model)
    options = {**OPTIONS, "steps": 8, "answers": False}
    steps = []
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        whole = train("model.gguf", "rows.jsonl", "whole", config=TrainConfig(**OPTIONS), steps=8, answers=False)
        with pytest.raises(Interrupted):
            train("model.gguf", "rows.jsonl", "out", callbacks=RunCallbacks(
                lambda e: steps.extend([1] if e["event"] == "step" else []), lambda: len(steps) == 5,
                command=["edgetune", "train"]), **options)
    return folder, (folder / whole.folder / "adapter.gguf").read_bytes()


@pytest.fixture
def stopped(stopped_once, tmp_path):
    """The run's folder, which is the same again after the test: it names its model and its rows."""
    folder, wanted = stopped_once
    shutil.copytree(folder / "out", tmp_path / "before")
    yield folder / "out", wanted
    shutil.rmtree(folder / "out")
    shutil.copytree(tmp_path / "before", folder / "out")
    write_lines(folder / "rows.jsonl", ROWS)


@pytest.mark.dev
def test_a_folder_is_enough_to_continue(stopped):
    out, wanted = stopped
    text = run("resume", out)
    assert "resumes after step 5" in text
    assert "held-out rows are answered exactly" in text
    assert (out / "adapter.gguf").read_bytes() == wanted
    assert "is finished" in run("resume", out, code=2)
    done = CliRunner().invoke(cli, ["resume", str(out), "--epochs", "+1", "--no-answers", "--json"])
    more = json.loads(done.stdout)
    assert (more["steps"], more["status"]) == (12, "done")
    assert done.exit_code == 3 * (more["verdict"]["kind"] == "worse")
    assert more["origin"]["command"][1:2] != ["train"]
    assert more["options"]["lr"] == OPTIONS["lr"]


@pytest.mark.parametrize(("flags", "words"), [
    (["--lr", "1"], ["was started with --lr 0.02, not 1.0", "--allow-changed lr"]),
    (["--epochs", "4"], ["epochs is '4'", "such as --epochs +4"]),
    (["--epochs", "+2"], ["has not ended, it is after step 5"]),
])
def test_what_cannot_be_continued_is_a_sentence(stopped, flags, words):
    result = CliRunner().invoke(cli, ["resume", str(stopped[0]), *flags])
    assert result.exit_code in (1, 2)
    assert all(word in result.output for word in words), result.output


def test_a_changed_option_is_named_and_noted(stopped):
    out, wanted = stopped
    record = json.loads(run("resume", out, "--lr", "1e-4", "--allow-changed", "lr", "--threads", "2", "--json"))
    assert [(change["name"], change["was"], change["now"]) for change in record["changed"]] == [("lr", 0.02, 1e-4)]
    assert record["options"]["threads"] == 2
    assert (out / "adapter.gguf").read_bytes() != wanted


def test_changed_rows_are_refused(stopped):
    out, _ = stopped
    write_lines(out.parent / "rows.jsonl", ROWS[1:])
    with pytest.raises(MismatchError, match="was started with the data"):
        resume(out)


def test_rows_of_a_program_are_given_again(model, tmp_path):
    steps = []
    arguments = (model, ROWS, tmp_path / "out")
    with pytest.raises(Interrupted):
        train(*arguments, HELD, callbacks=RunCallbacks(
            lambda e: steps.extend([1] if e["event"] == "step" else []), lambda: len(steps) == 2),
            **{**OPTIONS, "steps": 4})
    with pytest.raises(UsageError, match="came from a program; continue it there"):
        resume(tmp_path / "out")
    with pytest.raises(UsageError, match="give them again, as eval"):
        train(*arguments, resume=True, **{**OPTIONS, "steps": 4})
    assert train(*arguments, HELD, resume=True, **{**OPTIONS, "steps": 4}).steps == 4
