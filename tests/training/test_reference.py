"""The reference model of a run: asked about each row once, by the base or by the adapter that training starts from, and
not again by a resume or by a second run on the same rows.
"""

import json
from dataclasses import replace

import numpy as np
import pytest
from counting import OPTIONS
from durable import metrics, stopping

from edgetune.data import preferences
from edgetune.data.dataset import load_rows
from edgetune.data.packing import Example
from edgetune.disk import cache_folder
from edgetune.errors import Interrupted, MismatchError
from edgetune.llamacpp.tokenizer import Tokenizer
from edgetune.objectives.dpo import Dpo
from edgetune.training import reference
from edgetune.training.config import TrainConfig
from edgetune.training.reference import FILE, Reference
from edgetune.training.run import run
from edgetune.training.trainer import Trainer

ROWS = [{"prompt": f"set the light {i}", "chosen": f'{{"on":"{i % 3}"}}', "rejected": f"the turn {i}"}
        for i in range(8)]
CONFIG = TrainConfig(**{**OPTIONS, "steps": 6, "batch_size": 3, "dropout": 0.1})
DPO = Dpo(beta=1.0)


@pytest.fixture(autouse=True)
def empty_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def asked(monkeypatch):
    """The examples that the reference was asked about."""
    found: list[Example] = []
    add = Reference.add

    def spy(self, example):
        found.append(example)
        add(self, example)

    monkeypatch.setattr(Reference, "add", spy)
    return found


@pytest.fixture
def sets(bundle):
    tokenizer = Tokenizer(bundle.gguf.path)
    learned, held = (load_rows(part, tokenizer, max_length=48, parser=preferences) for part in (ROWS[:6], ROWS[6:]))
    return learned, held


@pytest.fixture
def start(bundle, sets, tmp_path):
    """An adapter that differs from the base, by another run."""
    folder = tmp_path / "start"
    run(bundle, sets[0], folder, replace(CONFIG, seed=3, lr=0.05), objective=DPO)
    return folder


def test_a_second_run_and_a_resume_ask_nothing(bundle, sets, tmp_path, asked):
    learned, held = sets
    run(bundle, learned, tmp_path / "first", CONFIG, held_out=held, objective=DPO)
    assert len(asked) == 16  # both answers of all pairs
    run(bundle, learned, tmp_path / "second", CONFIG, held_out=held, objective=DPO)
    with pytest.raises(Interrupted, match=r"after step [1-5] of 6"):
        run(bundle, learned, tmp_path / "third", CONFIG, held_out=held, objective=DPO, callbacks=stopping(40))
    for path in cache_folder().rglob("*.npz"):
        path.unlink()
    run(bundle, learned, tmp_path / "third", CONFIG, held_out=held, objective=DPO, resume=True)
    assert len(asked) == 16
    first, *others = [(tmp_path / name / "adapter.gguf").read_bytes() for name in ("first", "second", "third")]
    assert others == [first, first]
    other = replace(CONFIG, precision="exact")  # the values are others
    run(bundle, learned, tmp_path / "exact", other, objective=DPO)
    assert len(asked) == 16 + 12


@pytest.mark.dev
@pytest.mark.learning
@pytest.mark.parametrize("harm", [lambda path: path.unlink(), lambda path: path.write_bytes(b"PK"),
                                  lambda path: path.write_bytes(path.read_bytes()[:-200])],
                         ids=["gone", "no file", "cut"])
@pytest.mark.parametrize("calls", [3, 60], ids=["while it is asked", "in training"])
def test_the_reference_is_the_adapter_that_training_starts_from(bundle, sets, start, tmp_path, asked, harm, calls):
    """At first both are the same, so that the loss is log 2; also where the values are lost, and asked for again."""
    learned, held = sets
    whole = tmp_path / "whole"
    run(bundle, learned, whole, CONFIG, held_out=held, objective=DPO, start=start)
    assert json.loads((whole / "run.json").read_text())["held_out"]["loss_before"] == pytest.approx(np.log(2), rel=1e-5)
    assert json.loads((whole / "run.json").read_text())["held_out"]["loss_after"] < 0.6
    assert len(asked) == 16
    for path in cache_folder().rglob("*.npz"):
        path.unlink()
    out = tmp_path / "out"
    with pytest.raises(Interrupted):
        run(bundle, learned, out, CONFIG, held_out=held, objective=DPO, start=start, callbacks=stopping(calls))
    harm(out / FILE)
    run(bundle, learned, out, CONFIG, held_out=held, objective=DPO, resume=True)
    assert (out / "adapter.gguf").read_bytes() == (whole / "adapter.gguf").read_bytes()


def test_another_adapter_in_the_place_of_the_reference_is_refused(bundle, sets, start, tmp_path):
    out = tmp_path / "out"
    with pytest.raises(Interrupted):
        run(bundle, sets[0], out, CONFIG, objective=DPO, start=start, callbacks=stopping(60))
    (out / FILE).unlink()
    for path in cache_folder().rglob("*.npz"):
        path.unlink()
    run(bundle, sets[0], tmp_path / "other", replace(CONFIG, seed=9, lr=0.05), objective=DPO)
    (start / "adapter.gguf").write_bytes((tmp_path / "other" / "adapter.gguf").read_bytes())
    with pytest.raises(MismatchError, match="is not the adapter any more that the run began from, its reference"):
        run(bundle, sets[0], out, CONFIG, objective=DPO, resume=True)


def test_a_run_that_ended_is_continued_with_its_reference(bundle, sets, start, tmp_path):
    """More epochs begin from the adapter in the folder, and stay relative to what the run began from."""
    out = tmp_path / "out"
    config = replace(CONFIG, steps=4, dropout=0.0)
    run(bundle, sets[0], out, config, objective=DPO, start=start)
    run(bundle, sets[0], out, config, objective=DPO, resume=True, more=2.0)
    losses = [step["loss"] for step in metrics(out) if step["event"] == "step"]
    assert len(losses) == 8
    assert losses[4] < losses[0] - 0.05


def test_few_steps_ask_about_their_rows_alone(bundle, sets, tmp_path, asked):
    run(bundle, sets[0], tmp_path / "out", replace(CONFIG, steps=1), objective=DPO)
    assert len(asked) == 6


def test_the_cache_keeps_the_newest(bundle, sets, monkeypatch):
    trainer = Trainer(bundle, CONFIG, objective=DPO)
    trainer.refer(sets[0].examples[:2])
    monkeypatch.setattr(reference, "CACHED", 2)
    for name in "abc":
        trainer.reference.save_cached(name, "f")
    assert {path.name for path in cache_folder().rglob("*.npz")} <= {reference.cached(name).name for name in "abc"}
    assert len(list(cache_folder().rglob("*.npz"))) == 2
    again = Trainer(bundle, CONFIG, objective=DPO).reference
    again.load(reference.cached("c"), "another")
    assert len(again.missing(sets[0].examples[:2])) == 2
    again.load(reference.cached("c"), "f")
    assert again.missing(sets[0].examples) == sets[0].examples[2:]


def test_a_trainer_has_the_objectives_defaults(bundle):
    assert Trainer(bundle, objective=DPO, threads=1).config.lr == Dpo.defaults["lr"]
    assert Trainer(bundle, objective=DPO, threads=1, lr=1e-4).config.lr == 1e-4
    assert Trainer(bundle, threads=1).config.lr == TrainConfig.lr
