"""A run from an adapter, or with more epochs after its end, resumes to the same bytes; run.json says whose it is."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
from counting import dataset
from durable import CONFIG, go, metrics, refused, stop, stop_after
from sometimes import mostly_slow

from edgetune.adapters import store
from edgetune.adapters.store import open_adapter, read_run
from edgetune.errors import FormatError, Interrupted, MismatchError, UsageError
from edgetune.training import checkpoint, optim
from edgetune.training.callbacks import RunCallbacks
from edgetune.training.origin import RunOrigin
from edgetune.training.run import read_origin, run
from edgetune.training.trainer import Trainer

MORE = 2.0  # epochs of 24 rows in batches of 4: 12 steps
ORIGIN = RunOrigin("/models/m.gguf", "/rows.jsonl", "tenth", ["edgetune", "train", "m.gguf", "rows.jsonl"])


def copied(folder, to):
    shutil.copytree(folder, to)
    return to


def interrupt(bundle, out, after):
    """Stop a run between this step and the next; what is said of it."""
    done = []
    with pytest.raises(Interrupted) as caught:
        go(bundle, out, origin=ORIGIN, callbacks=RunCallbacks(
            should_stop=lambda: after in done, resume_by="press the button",
            on_event=lambda e: done.extend([e["step"]] if e["event"] == "step" else [])))
    return str(caught.value)


class Dead(BaseException):
    """From here on the process does nothing."""


def kill_at(monkeypatch, name, call, action):
    """`action` dies at its call-th call of store or checkpoint's function of this name, before it has done anything."""
    module = checkpoint if name == "save" else store
    real = getattr(module, name)
    calls = [0]

    def dying(*args, **options):
        calls[0] += 1
        if calls[0] == call:
            raise Dead
        return real(*args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(module, name, dying)
        patch.setattr("edgetune.training.run._Run._remove_if_empty", lambda _: None)  # the dead remove nothing
        with pytest.raises(Dead):
            action()


# ---- from an adapter -------------------------------------------------------------------------------------------------


def test_a_run_from_an_adapter_begins_where_that_ended(bundle, finished, tmp_path):
    """Its first loss is that of a trainer with the adapter loaded, and its steps are that trainer's."""
    config = replace(CONFIG, checkpoint_every="never")
    record = run(bundle, dataset(24), tmp_path / "out", config, held_out=dataset(6, 1), start=finished)
    before = read_run(finished)
    assert record["held_out"]["loss_before"] == pytest.approx(before["held_out"]["loss_after"], rel=1e-6)
    assert record["start"]["path"] == str(finished)
    trainer = Trainer(bundle, replace(config, eval_every=0))
    trainer.add_examples(dataset(24).examples)
    trainer.load(finished)
    losses = [result.loss for result in trainer.train()]
    assert [line["loss"] for line in metrics(tmp_path / "out") if line["event"] == "step"] == losses
    assert all((pair.b == trainer.pairs[name].b).all() for name, pair in open_adapter(tmp_path / "out").pairs.items())


def test_an_adapter_that_nothing_beats_is_kept(bundle, finished, tmp_path):
    """A rate that ruins it: what it began with is kept, to the bit, by a run that was stopped as well."""
    config = replace(CONFIG, lr=1.0)
    for out in (tmp_path / "whole", tmp_path / "stopped"):
        if out.name == "stopped":
            stop(bundle, out, 40, config, start=finished)
        go(bundle, out, config, start=finished, resume=out.exists())
        record = read_run(out)
        assert record["held_out"]["best_step"] == 0
        assert record["verdict"]["kind"] == "worse"
        kept = open_adapter(out).pairs
        for name, pair in open_adapter(finished).pairs.items():
            assert np.array_equal(kept[name].a, pair.a)
            assert np.array_equal(kept[name].b, pair.b)


@pytest.fixture(scope="module")
def whole(bundle, finished, tmp_path_factory):
    """adapter.gguf of a run from an adapter that nothing disturbed."""
    return go(bundle, tmp_path_factory.mktemp("whole") / "out", start=finished)


@pytest.mark.parametrize("answers", mostly_slow([0, 5, 21, 47], [0, 21]))
def test_from_an_adapter_it_resumes_to_the_same_bytes(bundle, finished, tmp_path, whole, answers):
    """Also where that adapter is no longer there: the first checkpoint holds it."""
    began = copied(finished, tmp_path / "began")
    stop(bundle, tmp_path / "out", answers, start=began)
    shutil.rmtree(began)
    assert go(bundle, tmp_path / "out", resume=True) == whole
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["adapter.gguf", "metrics.jsonl", "run.json"]


@pytest.mark.parametrize(("name", "call"), [("save", 1), ("save_record", 1), ("save", 2), ("save_run", 1)])
def test_from_an_adapter_killed_anywhere(bundle, finished, tmp_path, monkeypatch, whole, name, call):
    """Before the first checkpoint, between it and run.json, before the first step's, at the end."""
    out = tmp_path / "out"
    kill_at(monkeypatch, name, call, lambda: go(bundle, out, start=finished))
    assert go(bundle, out, resume=True, start=finished) == whole


def test_another_adapter_to_begin_from_is_refused(bundle, finished, stopped, tmp_path):
    out = tmp_path / "out"
    stop_after(3, bundle, out, start=finished)
    other = tmp_path / "other"
    go(bundle, other, replace(CONFIG, lr=1e-3))
    refused(bundle, out, "was started with --start sha256:.*, not sha256:", resume=True, start=other)
    refused(bundle, out, "start cannot be allowed to change", resume=True, allow_changed=["start"])
    refused(bundle, copied(stopped, tmp_path / "none"), "was started with --start none, not sha256:", resume=True,
            start=finished)
    with pytest.raises(MismatchError, match="another rank"):
        go(bundle, tmp_path / "new", replace(CONFIG, rank=2), start=finished)
    with pytest.raises(FormatError, match=r"holds no adapter\.gguf"):
        go(bundle, tmp_path / "new", start=tmp_path)
    assert not (tmp_path / "new").exists()


# ---- where it comes from ---------------------------------------------------------------------------------------------


def test_run_json_says_where_a_run_comes_from_before_its_first_step(bundle, tmp_path, monkeypatch):
    out = tmp_path / "out"
    kill_at(monkeypatch, "save", 1, lambda: go(bundle, out, origin=ORIGIN))  # while step 1 is saved
    assert read_run(out)["status"] == "running"
    assert not checkpoint.found(out)
    origin = read_origin(out)
    assert (origin.model, origin.data, origin.held_out) == (ORIGIN.model, ORIGIN.data, "tenth")
    assert (origin.command, origin.started) == (ORIGIN.command, ORIGIN.started)
    assert origin.objective == {"name": "sft"}
    assert read_run(out)["options"] == CONFIG.to_json()


def test_what_has_changed_is_refused_also_before_the_first_checkpoint(bundle, tmp_path, monkeypatch, wanted):
    out = tmp_path / "out"
    kill_at(monkeypatch, "save", 1, lambda: go(bundle, out, origin=ORIGIN))
    refused(bundle, out, "--lr 0.02, not 1.0", config=replace(CONFIG, lr=1.0), resume=True)
    with pytest.raises(MismatchError, match="the data"):
        run(bundle, dataset(23), out, CONFIG, held_out=dataset(6, 1), resume=True)
    assert go(bundle, out, resume=True) == wanted


def test_a_resumed_run_keeps_when_it_was_started(bundle, tmp_path):
    out = tmp_path / "out"
    assert f"the state is in {out}: press the button" in interrupt(bundle, out, 2)
    assert read_run(out)["status"] == "paused"
    later = replace(ORIGIN, data="/moved.jsonl", started="2030-01-01T00:00:00+00:00")
    go(bundle, out, resume=True, origin=later)
    assert read_origin(out).started == ORIGIN.started
    assert read_origin(out).data == "/moved.jsonl"
    assert go(bundle, out, resume=True, more=1.0)
    assert read_origin(out).data == "/moved.jsonl"


def test_a_run_that_does_not_say_where_it_comes_from(finished, tmp_path):
    with pytest.raises(FormatError, match="does not say which files it was made from; give them again"):
        read_origin(finished)
    with pytest.raises(FormatError, match="holds no run"):
        read_origin(tmp_path)


# ---- more epochs -----------------------------------------------------------------------------------------------------


def test_more_epochs_go_on_with_steps_rows_and_their_own_schedule(bundle, finished, tmp_path):
    """The first step is that of a trainer of fresh moments with the adapter loaded."""
    out = copied(finished, tmp_path / "out")
    before = read_run(out)
    go(bundle, out, resume=True, more=MORE)
    record = read_run(out)
    assert (record["status"], record["steps"], record["total_steps"]) == ("done", 20, 20)
    lines = [line for line in metrics(out) if line["event"] == "step"]
    assert [line["step"] for line in lines] == list(range(1, 21))
    leg = replace(CONFIG, steps=12)
    assert [line["lr"] for line in lines[8:]] == [optim.learning_rate(leg, leg.lr, step, 12) for step in range(1, 13)]
    trainer = Trainer(bundle, replace(CONFIG, eval_every=0))
    trainer.add_examples(dataset(24).examples)
    trainer.load(finished)
    trainer.steps_done = 8  # what dropout and the batch depend on
    assert lines[8]["loss"] == trainer.step().loss
    history = record["held_out"]["history"]
    assert [step for step, _ in history] == [0, 3, 6, 8, 11, 14, 17, 20]
    assert history[:4] == before["held_out"]["history"]
    assert record["held_out"]["loss_before"] == before["held_out"]["loss_before"]
    assert record["held_out"]["loss_after"] < before["held_out"]["loss_after"]
    assert record["legs"] == [{"begun_at": 0, "steps": 8, "more": 0.0, "best_step": 8, "verdict": before["verdict"],
                               "loss_after": before["held_out"]["loss_after"]}]
    assert (record["begun_at"], record["more"]) == (8, MORE)


def test_where_more_epochs_bring_nothing_the_adapter_stays(bundle, finished, tmp_path):
    out = copied(finished, tmp_path / "out")
    ruinous = replace(CONFIG, lr=1.0)
    refused(bundle, out, "--lr 0.02, not 1.0", config=ruinous, resume=True, more=MORE)
    adapter = go(bundle, out, ruinous, resume=True, more=MORE, allow_changed=["lr"])
    assert adapter == (finished / "adapter.gguf").read_bytes()
    record = read_run(out)
    assert (record["verdict"]["kind"], record["verdict"]["step"], record["held_out"]["best_step"]) == ("worse", 8, 8)
    assert record["held_out"]["loss_after"] == read_run(finished)["held_out"]["loss_after"]
    assert record["changed"] == [{"name": "lr", "was": 0.02, "now": 1.0, "after_step": 8}]


@pytest.fixture(scope="module")
def went_on(bundle, finished, tmp_path_factory):
    """adapter.gguf after more epochs that nothing disturbed."""
    out = copied(finished, tmp_path_factory.mktemp("went_on") / "out")
    return go(bundle, out, resume=True, more=MORE)


@pytest.mark.parametrize("answers", mostly_slow([0, 3, 21, 60], [3, 60]))
def test_a_stopped_leg_resumes_to_the_same_bytes(bundle, finished, tmp_path, went_on, answers):
    """With or without saying again how many epochs."""
    out = copied(finished, tmp_path / "out")
    stop(bundle, out, answers, resume=True, more=MORE)
    assert read_run(out)["status"] == "paused"
    stop(bundle, out, answers // 2, resume=True, more=MORE)
    assert go(bundle, out, resume=True) == went_on
    assert [line["step"] for line in metrics(out) if line["event"] == "step"] == list(range(1, 21))
    assert sorted(path.name for path in out.iterdir()) == ["adapter.gguf", "metrics.jsonl", "run.json"]


@pytest.mark.dev
@pytest.mark.parametrize(("name", "call"), [("save", 1), ("save_record", 1), ("save", 2), ("save", 9), ("save_run", 1),
                                            ("save_record", 2)])
def test_a_killed_leg_resumes_to_the_same_bytes(bundle, finished, tmp_path, monkeypatch, went_on, name, call):
    out = copied(finished, tmp_path / "out")
    config = replace(CONFIG, checkpoint_every="never") if name == "save_run" else CONFIG
    kill_at(monkeypatch, name, call, lambda: go(bundle, out, config, resume=True, more=MORE))
    assert open_adapter(out).pairs
    assert go(bundle, out, resume=True, more=MORE) == went_on


def test_a_third_leg(bundle, finished, tmp_path, went_on):
    out = copied(finished, tmp_path / "out")
    assert go(bundle, out, resume=True, more=MORE) == went_on
    go(bundle, out, resume=True, more=0.5)
    record = read_run(out)
    assert [(leg["begun_at"], leg["steps"], leg["more"]) for leg in record["legs"]] == [(0, 8, 0.0), (8, 20, MORE)]
    assert (record["steps"], record["begun_at"]) == (23, 20)


def test_when_more_epochs_are_refused(bundle, finished, stopped, tmp_path):
    out = copied(finished, tmp_path / "out")
    refused(bundle, out, "is finished, after step 8; name how many epochs to add", resume=True)
    refused(bundle, tmp_path / "new", "more is for a run that is resumed", more=1.0)
    refused(bundle, out, "more is -1 epochs; give a number above 0", resume=True, more=-1.0)
    with pytest.raises(MismatchError, match="the data sha256:24-0, not sha256:23-0"):
        run(bundle, dataset(23), out, CONFIG, held_out=dataset(6, 1), resume=True, more=1.0)
    unfinished = copied(stopped, tmp_path / "unfinished")
    refused(bundle, unfinished, "has not ended, it is after step 5; continue it before", resume=True, more=1.0)
    stop(bundle, out, 30, resume=True, more=MORE)
    refused(bundle, out, "has not ended", resume=True, more=1.0)
    assert not (tmp_path / "new").exists()


def test_other_held_out_rows_in_a_leg_are_measured_before_it(bundle, finished, tmp_path):
    out = copied(finished, tmp_path / "out")
    record = run(bundle, dataset(24), out, CONFIG, held_out=dataset(5, 2), resume=True, more=1.0,
                 allow_changed=["held-out"])
    assert [step for step, _ in record["held_out"]["history"]] == [8, 11, 14]
    assert record["verdict"]["kind"] == "still falling"
    out = copied(finished, tmp_path / "ruined")
    record = run(bundle, dataset(24), out, replace(CONFIG, lr=1.0), held_out=dataset(5, 2), resume=True, more=1.0,
                 allow_changed=["held-out", "lr"])
    assert (record["verdict"]["kind"], record["held_out"]["best_step"]) == ("worse", 8)
    assert (out / "adapter.gguf").read_bytes() == (finished / "adapter.gguf").read_bytes()


def test_a_run_of_an_earlier_version_says_how_to_go_on(bundle, finished, tmp_path):
    out = copied(finished, tmp_path / "out")
    record = {name: value for name, value in read_run(out).items()
              if name not in ("identity", "legs", "begun_at", "more", "start", "verdict", "origin")}
    (out / "run.json").write_text(json.dumps(record))
    refused(bundle, out, "kept too little to continue it; begin another run .*: --start", resume=True, more=1.0)
    with pytest.raises(UsageError, match="is finished"):
        go(bundle, out, resume=True)


@pytest.mark.dev
def test_rows_by_their_number_end_a_leg_by_itself(bundle, tmp_path):
    """Epochs by the data: the leg is measured five times and patience ends it, as it ends the first."""
    config = replace(CONFIG, steps=0, epochs="auto", eval_every=0, checkpoint_every="never")
    out = tmp_path / "out"
    go(bundle, out, config)
    first = read_run(out)["steps"]
    go(bundle, out, config, resume=True, more=2.0)
    record = read_run(out)
    measured = [step - first for step, _ in record["held_out"]["history"] if step > first]
    assert measured == [3, 6, 9, 12][:len(measured)]
    assert record["steps"] == first + measured[-1]
