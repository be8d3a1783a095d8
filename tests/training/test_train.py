"""Runs on a tiny random model: learning, stopping, resuming, adapters kept; no torch, no SmolLM2."""

from __future__ import annotations

import gc
import json
import math
import weakref
from statistics import mean, stdev

import numpy as np
import pytest
from counting import OPTIONS, dataset, sequences
from durable import metrics

import edgetune
from edgetune.adapters.store import open_adapter
from edgetune.data.packing import Example
from edgetune.errors import DataError, MismatchError, NumericsError, UnsupportedError, UsageError
from edgetune.evaluation.graders.llama_judge import LlamaJudge
from edgetune.evaluation.native import native_loss
from edgetune.objectives.grpo import Grpo
from edgetune.training.callbacks import RunCallbacks
from edgetune.training.checkpoint import RunState, few
from edgetune.training.config import TrainConfig
from edgetune.training.rewards import EngineJudge, Reward
from edgetune.training.run import run
from edgetune.training.trainer import Trainer

LABELS = ["0", "1", "2"]
ASKED = [[{"role": "user", "content": text}] for text in ("turn on lamp 1", "off", "turn on lamp 2 " * 40)]


@pytest.mark.learning
def test_the_loss_falls(bundle):
    trainer = Trainer(bundle, **OPTIONS)
    trainer.add_examples(sequences(24))
    before, tokens = trainer.loss(sequences(8, seed=1))
    results = trainer.train()
    after, _ = trainer.loss(sequences(8, seed=1))
    assert [r.step for r in results] == list(range(1, 13))
    assert after < before - 1
    assert tokens == sum(int(np.count_nonzero(e.weights)) for e in sequences(8, seed=1))
    assert results[0].grad_norm > 0
    assert trainer.total_steps == 12


def test_its_memory_goes_with_it(bundle):
    """No circle of references keeps an arena until it is looked for."""
    gc.disable()
    try:
        trainer = Trainer(bundle, **{**OPTIONS, "steps": 1})
        trainer.add_examples(sequences(4))
        trainer.train()
        trainer.loss(sequences(4, seed=1))
        arena = weakref.ref(trainer.arena)
        del trainer
        assert arena() is None
    finally:
        gc.enable()


@pytest.mark.parametrize("change", [{"micro_batch": 48}, {"recompute": "none"}, {"threads": 1}])
def test_what_may_not_change_the_result(bundle, change):
    """Micro-batches change sums only in the last bits; recomputation and threads change nothing."""
    pairs = []
    for options in ({}, change):
        trainer = Trainer(bundle, **{**OPTIONS, "steps": 3, **options})
        trainer.add_examples(sequences(12))
        trainer.train()
        pairs.append(trainer.pairs)
    for name, pair in pairs[0].items():
        other = pairs[1][name]
        if "micro_batch" in change:
            assert np.abs(pair.b - other.b).max() < 1e-3 * max(np.abs(pair.b).max(), 1e-6), name
        else:
            assert np.array_equal(pair.a, other.a), name
            assert np.array_equal(pair.b, other.b), name


def test_packing_changes_the_batches_not_what_a_document_sees(bundle):
    trainer = Trainer(bundle, **{**OPTIONS, "packing": True})
    trainer.add_examples(sequences(40, low=8, high=20))
    batch = trainer.batch(1)
    assert sum(e.tokens.size for e in batch) > 0.9 * 4 * 48
    alone = Trainer(bundle, **OPTIONS)
    together, _ = trainer.loss(batch)
    weights = [float(e.weights.sum()) for e in batch]
    apart = [alone.loss([e])[0] for e in batch]
    assert together == pytest.approx(np.average(apart, weights=weights), rel=1e-5)


def test_blocks_and_targets_train_only_what_they_name(bundle):
    trainer = Trainer(bundle, **{**OPTIONS, "blocks": "last:1", "targets": "q_proj,down_proj", "steps": 1})
    trainer.add_examples(sequences(4))
    trainer.step()
    last = trainer.model.shape.n_layer - 1
    assert set(trainer.pairs) == {f"blk.{last}.attn_q", f"blk.{last}.ffn_down"}
    assert all(np.abs(pair.b).max() > 0 for pair in trainer.pairs.values())


def test_dropout_is_seeded_and_off_in_evaluation(bundle):
    runs = []
    for seed in (0, 0, 1):
        trainer = Trainer(bundle, **{**OPTIONS, "dropout": 0.3, "steps": 2, "seed": seed, "shuffle": False})
        trainer.add_examples(sequences(8))
        runs.append([r.loss for r in trainer.train()])
        first = trainer.loss(sequences(4, seed=2))
        assert first == trainer.loss(sequences(4, seed=2))
    assert runs[0] == runs[1]
    assert runs[0] != runs[2]


def test_run_writes_an_adapter_that_scores_the_same(bundle, tmp_path):
    events = []
    record = run(bundle, dataset(24), tmp_path / "out", TrainConfig(**OPTIONS), held_out=dataset(6, 1),
                       callbacks=RunCallbacks(on_event=events.append))
    out = tmp_path / "out"
    assert sorted(p.name for p in out.iterdir()) == ["adapter.gguf", "metrics.jsonl", "run.json"]
    assert record["held_out"]["loss_after"] < record["held_out"]["loss_before"]
    lines = metrics(out)
    assert [e["step"] for e in lines if e["event"] == "step"] == list(range(1, 13))
    assert events[0]["event"] == "start"
    assert events[-1]["event"] == "done"
    opened = open_adapter(out, bundle.gguf)
    loss, _ = native_loss(bundle, dataset(6, 1), opened.pairs)
    assert loss == pytest.approx(record["held_out"]["loss_after"], rel=1e-6)
    with pytest.raises(UsageError, match="exists"):
        run(bundle, dataset(24), out, TrainConfig(**OPTIONS))


def test_early_stop_keeps_the_best(bundle, tmp_path):
    """Held-out rows that count downwards get worse once upwards is learned."""
    options = {**OPTIONS, "steps": 60, "eval_every": 1, "patience": 3}
    held_out = dataset(6, 1)
    for example in held_out.examples:
        example.tokens[:] = example.tokens[::-1].copy()
    record = run(bundle, dataset(24), tmp_path / "out", TrainConfig(**options), held_out=held_out)
    assert record["steps"] < 60
    losses = dict(record["held_out"]["history"])
    lowest = min(losses, key=losses.__getitem__)
    assert record["steps"] == lowest + 3
    assert lowest <= record["held_out"]["best_step"]
    loss, _ = native_loss(bundle, held_out, open_adapter(tmp_path / "out").pairs)
    assert loss == pytest.approx(record["held_out"]["loss_after"], rel=1e-6)


@pytest.mark.parametrize(("last", "kept"), [
    ((0.1, 0.1, 0.1, 0.9, 0.1, 0.1), 2),  # one row of six: chance
    ((0.2, 0.3, 0.2, 0.3, 0.2, 0.3), 1),  # all of them
    ((0.2, 0.1, 0.0, 0.1, 0.2, 0.1), 2),
    ((0.0, 0.0, 0.0, 0.0, 0.0, 0.0), 2),
])
def test_kept_is_the_last_that_rows_do_not_find_worse(last, kept):
    """t of the paired differences by the statistics module; the critical value is 2."""
    lowest = (0.1, 0.1, 0.1, 0.1, 0.1, 0.1)
    state = RunState()
    for step, rows in enumerate(((2.0,) * 6, lowest, last)):
        state.measure(step, mean(rows), rows)
    differences = [a - b for a, b in zip(last, lowest, strict=True)]
    spread = stdev(differences) / math.sqrt(6)
    assert (mean(differences) > 2 * spread) == (kept == 1)
    assert state.best_step == kept
    assert state.best == pytest.approx(mean(last if kept == 2 else lowest))


@pytest.mark.parametrize(("trained", "overfitted"), [(0.5, 0), (0.31, 0), (0.29, 3), (0.01, 3)])
def test_rows_that_are_not_learned_yet_are_not_overfitted(trained, overfitted):
    """Held-out losses of 0.6 are worse than 0.4; the rows to learn are known from half of that on."""
    state = RunState()
    for step, held_out in enumerate((2.0, 0.4, 0.6, 0.6, 0.6)):
        for _ in range(5):
            state.learn(trained)
        state.measure(step, held_out, (held_out,) * 4)
    assert (state.worse, state.overfitted) == (3, overfitted)
    assert state.best_step == 1
    state.measure(5, 0.3, (0.3,) * 4)
    assert (state.worse, state.overfitted, state.best_step) == (0, 0, 5)


def test_each_row_of_a_measurement_has_the_loss_that_it_has_alone(bundle):
    trainer = Trainer(bundle, TrainConfig(**OPTIONS))
    examples = dataset(5, 1).examples
    measured = trainer.measure(examples)
    assert measured.rows == pytest.approx([trainer.loss([example])[0] for example in examples], rel=1e-5)


@pytest.mark.parametrize(("losses", "first", "last"), [
    ((3.0,), 3.0, 3.0), ((10.0, 5.0), 10.0, 5.0), ((9.0, 5.0, 1.0), 9.0, 1.0), ((4.0, 2.0, 1.0, 1.0), 3.0, 1.0),
    (tuple(range(20, 0, -1)), 18.0, 3.0)])
def test_the_first_and_the_last_steps_are_different_ones(losses, first, last):
    state = RunState()
    for loss in losses:
        state.learn(loss)
    assert state.learned == (first, last)


def test_of_many_rows_means_of_neighbours_are_kept():
    rows = list(np.random.default_rng(0).random(1000))
    assert few(rows[:256]) == rows[:256]
    assert few(rows) == pytest.approx(np.array(rows).reshape(250, 4).mean(axis=1))


def of_one_token(n, token):
    data = dataset(n, 3)
    for example in data.examples:
        example.tokens[:] = token
    return data


@pytest.mark.parametrize("patience", [0, 2])
def test_where_nothing_is_better_the_adapter_of_step_0_is_kept(bundle, tmp_path, patience):
    """It changes nothing: the loss of a model without adapter, measured apart, is the loss with it, to the bit."""
    held_out = of_one_token(6, 40)
    options = {**OPTIONS, "eval_every": 4, "patience": patience}
    record = run(bundle, of_one_token(24, 5), tmp_path / "out", TrainConfig(**options), held_out=held_out)
    pairs = open_adapter(tmp_path / "out").pairs
    assert all(not pair.b.any() and pair.a.any() for pair in pairs.values())
    assert record["held_out"]["loss_before"] == record["held_out"]["loss_after"]
    assert native_loss(bundle, held_out, pairs)[0] == native_loss(bundle, held_out, None)[0]
    history = record["held_out"]["history"]
    assert [step for step, _ in history] == [0, 4, 8, 12]
    assert min(loss for _, loss in history[1:]) > history[0][1]
    assert record["held_out"]["best_step"] == record["verdict"]["step"] == 0
    assert record["verdict"]["kind"] == "worse"
    assert "lower --lr, now 0.02" in record["verdict"]["sentence"]


def test_misses_are_counted_from_the_lowest_after_step_0():
    """A loss above step 0's that keeps falling does not end the run, as it never did."""
    state = RunState()
    assert [state.measure(step, loss) for step, loss in enumerate((2.0, 5.0, 4.0, 3.0))] == [True, False, False, False]
    assert (state.best_step, state.misses) == (0, 0)
    assert state.measure(4, 1.0)
    assert not state.measure(5, float("nan"))
    assert (state.best, state.best_step, state.misses) == (1.0, 4, 1)
    assert state.measurements() == {"loss_before": 2.0, "loss_after": 1.0, "best_step": 4, "history": [
        [0, 2.0], [1, 5.0], [2, 4.0], [3, 3.0], [4, 1.0], [5, None]]}


@pytest.mark.parametrize(("eval_every", "kept"), [(2, 4), (100, 0), (0, None)])
def test_a_loss_that_is_no_number_keeps_the_best_that_was_measured(bundle, tmp_path, monkeypatch, eval_every, kept):
    """Kept is what a run of `kept` steps ends with, and the verdict says so; without held-out rows a finite one."""
    config = TrainConfig(**OPTIONS, eval_every=eval_every, schedule="constant")
    held_out = dataset(6, 1) if eval_every else None
    wanted = Trainer(bundle, config)
    wanted.add_examples(dataset(24).examples)
    for _ in range(kept or 0):
        wanted.step()
    before = Trainer.step

    def poisoned(self, should_stop=None):
        if self.steps_done == 5:
            self.arena.flat("lora")[0] = np.inf
        return before(self, should_stop)

    monkeypatch.setattr(Trainer, "step", poisoned)
    with pytest.raises(NumericsError, match="step 6"):
        run(bundle, dataset(24), tmp_path / "out", config, held_out=held_out)
    found = open_adapter(tmp_path / "out").pairs
    assert all(np.isfinite(pair.a).all() for pair in found.values())
    record = json.loads((tmp_path / "out" / "run.json").read_text())
    assert record["status"] == "failed"
    if held_out:
        assert all(np.array_equal(found[name].b, pair.b) for name, pair in wanted.pairs.items())
        assert record["verdict"]["kind"] == "worse"
        assert f"step 6, and the adapter of step {kept} is kept" in record["verdict"]["sentence"]


def test_rows_save_and_load(bundle, tmp_path):
    rows = [{"prompt": f"lamp {i}", "completion": "on"} for i in range(8)]
    trainer = Trainer(bundle, **{**OPTIONS, "steps": 4, "max_length": 64})
    added = trainer.add(rows)
    assert added.kind == "prompt"
    before = trainer.evaluate(rows[:2])
    trainer.train()
    after = trainer.evaluate(rows[:2])
    assert after < before
    trainer.save(tmp_path / "adapter")
    other = Trainer(bundle, **{**OPTIONS, "max_length": 64})
    other.load(tmp_path / "adapter")
    assert other.evaluate(rows[:2]) == pytest.approx(after, rel=1e-6)
    with pytest.raises(MismatchError, match="rank 2"):
        Trainer(bundle, **{**OPTIONS, "rank": 2}).load(tmp_path / "adapter")


def test_wrong_rows_and_sizes_are_refused(bundle):
    with pytest.raises(UsageError, match="rank 100000"):
        Trainer(bundle, rank=100000)
    with pytest.raises(DataError, match="nothing to train on"):
        Trainer(bundle, **OPTIONS).step()
    trainer = Trainer(bundle, **OPTIONS)
    with pytest.raises(DataError, match="takes 2 to 48"):
        trainer.add_examples(sequences(1, low=60, high=61))
    with pytest.raises(DataError, match="outside"):
        trainer.add_examples([Example(np.array([1, 10**6], np.int32), np.ones(2, np.float32))])
    with pytest.raises(edgetune.EdgetuneError, match="cannot be made"):
        run(bundle, dataset(4), "/proc/edgetune/out", TrainConfig(**OPTIONS))


@pytest.mark.parametrize("micro_batch", [1024, 128], ids=["whole", "behind a prefix"])
def test_probabilities_are_those_of_llama_cpp(tiny_llama, micro_batch):
    """Whatever the adapter has become; a conversation that does not fit has none."""
    trainer = Trainer(tiny_llama, objective=Grpo(max_completion_length=8), rewards=lambda a: [Reward(0.0)] * len(a),
                      max_length=96, precision="exact", micro_batch=micro_batch, threads=2)
    trainer.arena.flat("lora")[:] = 0.3
    judge = EngineJudge(trainer.decoder, trainer.plan.run, trainer.tokenizer)
    found = judge.label_probabilities(ASKED, LABELS)
    assert found[2] is None
    with edgetune.Served(tiny_llama, context=512) as served:
        wanted = LlamaJudge(served, "self").label_probabilities(ASKED[:2], LABELS)
    for ours, theirs in zip(found[:2], wanted, strict=True):
        assert ours is not None
        assert theirs is not None
        assert sum(ours) == pytest.approx(1)
        assert ours == pytest.approx(theirs, abs=2e-3)  # llama.cpp computes on int8 activations
    with pytest.raises(UnsupportedError, match="no token for each of a, a"):
        judge.label_probabilities(ASKED[:1], ["a", "a"])
