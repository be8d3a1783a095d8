"""Objectives: gradients against autograd whether or not they need log p, groups that stay whole, and two objectives
(toy_objectives) that nothing else knows, trained by the library and by the command line.
"""

import json
import re
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import pytest
import torch
from commands import run as command
from counting import OPTIONS, dataset, sequences
from decoder_cases import adapted, distance, in_parts, make_case, random_example
from durable import metrics, stopping
from gradients import autograd, gradient_over, our_gradient
from json_lines import write_lines
from sometimes import mostly_slow
from toy_objectives import Focal, Pairs

from edgetune.data import loader
from edgetune.data.dataset import load, load_rows
from edgetune.data.lengths import lengths_of
from edgetune.data.packing import Example, pack
from edgetune.data.trees import Tree, micro_batches
from edgetune.errors import DataError, Interrupted, MismatchError, UsageError
from edgetune.llamacpp.tokenizer import Tokenizer
from edgetune.objectives import base
from edgetune.objectives.base import make_objective, objectives, read_objective, register
from edgetune.objectives.dpo import Dpo
from edgetune.objectives.sft import Sft
from edgetune.options import option
from edgetune.training.callbacks import RunCallbacks
from edgetune.training.config import TrainConfig, train_options
from edgetune.training.passes import Gradient, measure
from edgetune.training.reference import Reference
from edgetune.training.run import run
from edgetune.training.trainer import Trainer

TOYS = {kind.name: base._registry._found.pop(kind.name) for kind in (Focal, Pairs)}  # known to these tests only


@pytest.fixture(autouse=True)
def toys(monkeypatch):
    for name, kind in TOYS.items():
        monkeypatch.setitem(base._registry._found, name, kind)


class SlowSft(Sft):
    """The same, by one more pass of the head."""

    needs_logp: ClassVar[bool] = True


# ---- gradients -------------------------------------------------------------------------------------------------------

def sft_loss(logps, weights):
    logp = torch.cat(logps)
    w = torch.cat(weights)
    return -(w * logp).sum() / w.abs().sum()


def focal_loss(logps, weights):
    logp = torch.cat(logps)
    w = torch.cat(weights)
    return -(w * (1 - logp.exp()) ** 1.5 * logp).mean()


def pairs_loss(logps, _weights):
    margins = [0.3 * (better.sum() - worse.sum()) for better, worse in zip(logps[::2], logps[1::2], strict=True)]
    return -torch.nn.functional.logsigmoid(torch.stack(margins)).mean()


@pytest.mark.dev
@pytest.mark.parametrize("parts", mostly_slow([1, 3], [3]))
@pytest.mark.parametrize(("objective", "loss_of"), [
    (Sft(), sft_loss), (SlowSft(), sft_loss), (Focal(gamma=1.5), focal_loss), (Pairs(beta=0.3), pairs_loss),
], ids=["sft", "sft in two passes", "focal", "pairs"])
@pytest.mark.parametrize("name", ["llama", "gemma3"])
def test_gradients_equal_autograd(name, objective, loss_of, parts, tmp_path):
    """Signed weights; over one micro-batch or three the sum is the same."""
    case = make_case(name, tmp_path, kept=2)
    rng = np.random.default_rng(7)
    case.examples[:] = [replace(random_example(rng, n, case.decoder.shape.n_vocab), group=1 + i // 2)
                        for i, n in enumerate((31, 24, 20, 9, 17, 22))]
    loss, gradient = our_gradient(case, objective, parts)
    wanted, truth = autograd(case, loss_of, adapted(case))
    assert loss == pytest.approx(wanted, rel=1e-5)
    assert np.linalg.norm(truth) > 1e-3
    assert distance(gradient, truth) < 1e-4
    assert measure(case.decoder, objective, [case.batch]).loss == pytest.approx(wanted, rel=1e-5)


@pytest.mark.dev
@pytest.mark.parametrize(("stem", "tails"), [(20, (11, 9, 12, 7)), (8, (25, 24, 22, 25))], ids=["whole", "parted"])
@pytest.mark.parametrize("objective", [Sft(), SlowSft(), Pairs(beta=0.3), Dpo(beta=0.3)],
                         ids=["sft", "sft in two passes", "pairs", "dpo"])
def test_trees_teach_what_batches_do(objective, stem, tails, tmp_path):
    """Two pairs, each behind a prefix that is computed apart, which an objective sees as one, also if it is parted."""
    case = make_case("gemma3", tmp_path)
    rng = np.random.default_rng(9)
    begins = [random_example(rng, stem, case.decoder.shape.n_vocab).tokens for _ in range(2)]
    case.examples[:] = []
    for i, n in enumerate(tails):
        tail = random_example(rng, n, case.decoder.shape.n_vocab)
        weights = np.r_[np.zeros(stem), 1 + tail.weights].astype(np.float32)
        case.examples.append(Example(np.r_[begins[i // 2], tail.tokens].astype(np.int32), weights, 1 + i // 2))
    wanted, truth = our_gradient(case, objective, 1)
    parts = in_parts(case, 33, 19, 2)
    trees = [tree for tree in micro_batches(case.examples, 33, prefix=19) if isinstance(tree, Tree)]
    assert [tree.parted for tree in trees] == [stem == 8] * 2
    assert all(tree.prefix and tree.prefix.batch.computed == stem - 1 for tree in trees)
    loss, gradient = gradient_over(parts.decoder, objective, case.examples, trees)
    assert distance(gradient, truth) < 1e-5
    assert loss == pytest.approx(wanted, rel=1e-5)
    measured = measure(parts.decoder, objective, trees)
    assert measured.loss == pytest.approx(wanted, rel=1e-5)
    assert measured.metrics == pytest.approx(measure(case.decoder, objective, [case.batch]).metrics, rel=1e-4)


def test_weights_that_depend_on_logp_need_needs_logp(tmp_path):
    class Hasty(Focal):
        needs_logp: ClassVar[bool] = False

    case = make_case("llama", tmp_path)
    with pytest.raises(ValueError, match="set needs_logp"):
        Gradient(case.decoder, Hasty(), 1.0).add(case.batch)


def test_what_the_base_says_is_cached(tmp_path):
    """Of the adapter's rows, so that it is the same where the adapter has changed."""
    case = make_case("qwen3", tmp_path, dropout=0.2)
    before = Reference(case.decoder).add_to(case.batch).reference
    case.decoder.arena.flat("lora")[:] *= 3
    assert np.array_equal(Reference(case.decoder).add_to(case.batch).reference, before)
    assert distance(case.decoder.score(case.batch), before) > 1e-2


# ---- what is supervised, what belongs together -----------------------------------------------------------------------


def test_weights_that_sum_to_0_are_supervised(bundle):
    """A better answer that counts 1 and a worse one that counts -1: there is a lot to learn."""
    pair = [Example(e.tokens, sign * np.r_[0, np.ones(e.tokens.size - 1)].astype(np.float32))
            for e, sign in zip(sequences(2, low=20, high=21), (1, -1), strict=True)]
    trainer = Trainer(bundle, **{**OPTIONS, "shuffle": False})
    trainer.add_examples(pair)
    result = trainer.step()
    assert result.supervised == 38
    assert result.grad_norm > 0
    assert trainer.loss(pair)[1] == 38
    with pytest.raises(DataError, match="no supervised token"):
        trainer.loss([replace(e, weights=0 * e.weights) for e in pair])


def tokens_of(batches):
    return [[example.tokens.size for example in batch.examples] for batch in batches]


def test_no_micro_batch_parts_a_group():
    rng = np.random.default_rng(0)
    examples = [replace(random_example(rng, n, 99), group=g)
                for n, g in ((6, 0), (5, 1), (4, 1), (3, 2), (3, 2), (3, 2), (2, 0), (2, 0))]
    assert tokens_of(micro_batches(examples, 12, share=False)) == [[6], [5, 4], [3, 3, 3, 2], [2]]
    alone = [replace(example, group=0) for example in examples]
    assert tokens_of(micro_batches(alone, 12, share=False)) == [[6, 5], [4, 3, 3], [3, 2, 2]]
    assert [unit.rows for unit in lengths_of(examples).units] == [6, 9, 9, 2, 2]
    packs = pack(examples, 12)
    assert sorted(i for one in packs for i in one) == list(range(8))
    assert any({1, 2} <= set(one) for one in packs)
    assert any({3, 4, 5} <= set(one) for one in packs)
    assert pack(alone, 12) != packs
    with pytest.raises(UsageError, match="2 rows of one group have 9 tokens and a micro-batch takes 8"):
        micro_batches(examples, 8)


def test_a_plan_fits_the_longest_group(bundle):
    rows = [(40, 44, 30), 20, (24, 24)]
    trainer = Trainer(bundle, **{**OPTIONS, "micro_batch": 48}, lengths=rows)
    assert trainer.plan.run.max_length == 44
    assert trainer.plan.least_tokens == trainer.micros.max_tokens == 114
    alone = Trainer(bundle, **{**OPTIONS, "micro_batch": 48}, lengths=[40, 44, 30, 20, 24, 24])
    assert alone.micros.max_tokens == 48


def test_groups_of_two_calls_stay_two(bundle):
    pairs = [replace(e, group=1) for e in sequences(2)]
    trainer = Trainer(bundle, **{**OPTIONS, "batch_size": 2, "shuffle": False, "steps": 1}, objective=Pairs(),
                      lengths=lengths_of(pairs))
    trainer.add_examples(pairs)
    trainer.add_examples(pairs)
    assert trainer.steps_per_epoch == 1
    assert [e.group for e in trainer.batch(1)] == [1, 1, 2, 2]
    trainer.step()  # Pairs asserts that no pair is parted, and here only one fits into a micro-batch
    assert trainer.micros.max_tokens < 2 * sum(e.tokens.size for e in pairs)


ROWS = [{"prompt": f"set the light {i}", "better": f'{{"on":"{i % 3}"}}', "worse": f"the turn {i}"} for i in range(8)]


@pytest.fixture
def pairs_file(tmp_path):
    return write_lines(tmp_path / "pairs.jsonl", ROWS)


def test_rows_are_read_by_the_objective(tiny_llama, pairs_file):
    """Also in the process that tokenises, whose answer carries every field of an example."""
    tokenizer = Tokenizer(tiny_llama)
    here = load(pairs_file, tokenizer, max_length=64, parser=Pairs.rows)
    assert [e.group for e in here.examples] == [1 + i // 2 for i in range(16)]
    assert here.kind == "pair"
    sent, none = loader.load(tiny_llama, (pairs_file, None), TrainConfig(max_length=64), parser=Pairs.rows)
    assert none is None
    for ours, theirs in zip(here.examples, sent.examples, strict=True):
        assert np.array_equal(ours.tokens, theirs.tokens)
        assert np.array_equal(ours.weights, theirs.weights)
        assert ours.group == theirs.group
    with pytest.raises(DataError, match=r"line 1 of pairs.jsonl: .*unknown shape"):
        load(pairs_file, tokenizer, max_length=64)
    with pytest.raises(DataError, match="row 1: the row is no pair; expected is prompt with better and worse"):
        load_rows([{"prompt": "a", "completion": "b"}], tokenizer, max_length=64, parser=Pairs.rows)


def test_of_a_group_that_does_not_fit_nothing_is_kept(tiny_llama):
    tokenizer = Tokenizer(tiny_llama)
    long = {"prompt": "set", "better": "10", "worse": "the light off " * 40}
    data = load_rows([ROWS[0], long, ROWS[1]], tokenizer, max_length=48, parser=Pairs.rows, overflow="skip")
    assert [e.group for e in data.examples] == [1, 1, 3, 3]
    assert (data.skipped, data.truncated, len(data.rows)) == (2, 0, 2)
    cut = load_rows([ROWS[0], long], tokenizer, max_length=48, parser=Pairs.rows)
    assert ([e.group for e in cut.examples], cut.truncated) == ([1, 1, 2, 2], 1)


# ---- runs ------------------------------------------------------------------------------------------------------------


@pytest.mark.learning
@pytest.mark.parametrize("objective", [Focal(gamma=1.0), Pairs(beta=1.0)], ids=["focal", "pairs"])
def test_a_run_learns_by_it(bundle, objective, tmp_path):
    tokenizer = Tokenizer(bundle.gguf.path)
    rows = ROWS if isinstance(objective, Pairs) else [{"prompt": r["prompt"], "completion": r["better"]} for r in ROWS]
    data, held = (load_rows(part, tokenizer, max_length=48, parser=objective.rows) for part in (rows[:6], rows[6:]))
    config = TrainConfig(**{**OPTIONS, "steps": 20, "batch_size": 3})
    events: list[dict[str, object]] = []
    record = run(bundle, data, tmp_path / "out", config, held_out=held, objective=objective,
                       callbacks=RunCallbacks(on_event=events.append))
    assert record["objective"] == objective.to_json()
    assert record["held_out"]["loss_after"] < record["held_out"]["loss_before"]
    steps = [e for e in events if e["event"] == "step"]
    (metric,) = {name for e in steps for name in e["metrics"]}
    assert metric == ("accuracy" if isinstance(objective, Pairs) else "sureness")
    assert all(0 <= e["metrics"][metric] <= 1 for e in events if e["event"] in ("step", "eval"))
    assert steps[-1]["loss"] < steps[0]["loss"]
    assert [e["metrics"] for e in metrics(tmp_path / "out") if e["event"] == "step"] == [e["metrics"] for e in steps]


def test_a_run_resumes_with_its_objective_only(bundle, tmp_path):
    data = dataset(12)
    config = TrainConfig(**{**OPTIONS, "steps": 4})
    out = tmp_path / "out"
    with pytest.raises(Interrupted):
        run(bundle, data, out, config, objective=Focal(), callbacks=stopping(20))
    with pytest.raises(MismatchError, match="was started with --method focal, not sft"):
        run(bundle, data, out, config, resume=True)
    with pytest.raises(MismatchError, match=r"was started with --gamma 2\.0, not 1\.0"):
        run(bundle, data, out, config, resume=True, objective=Focal(gamma=1.0))
    resumed = run(bundle, data, out, config, resume=True, objective=Focal())
    whole = run(bundle, data, tmp_path / "whole", config, objective=Focal())
    assert resumed["status"] == whole["status"] == "done"
    assert (out / "adapter.gguf").read_bytes() == (tmp_path / "whole" / "adapter.gguf").read_bytes()


# ---- the registry ----------------------------------------------------------------------------------------------------


def test_the_registry(monkeypatch):
    assert {"dpo", "kto", "orpo", "rrhf", "sft", "focal", "pairs"} <= set(objectives())
    assert read_objective(Focal(gamma=3.0).to_json()) == Focal(gamma=3.0)
    with pytest.raises(UsageError, match=r"no objective 'fokal'; choose from .*dpo, .*focal, .*sft"):
        make_objective("fokal", {})
    with pytest.raises(UsageError, match=r"'gama' is no option; did you mean gamma\?"):
        make_objective("focal", {"gama": 1.0})
    with pytest.raises(UsageError, match=r"gamma is 11\.0, the most is 10"):
        make_objective("focal", {"gamma": 11.0})

    class Again(Sft):
        pass

    with pytest.raises(ValueError, match="has the name or method of Sft"):
        register(Again)

    @dataclass(frozen=True)
    class Ranked(Focal):
        name: ClassVar[str] = "ranked"
        method: ClassVar[str] = "ranked"
        rank: int = option(1, "An option of every training.")

    monkeypatch.setattr(base._registry, "_found", dict(objectives()))
    register(Ranked)
    with pytest.raises(ValueError, match="Ranked has an option rank, which every training has"):
        objectives(train_options())
    assert objectives()["sft"] is Sft


def test_the_command_line_trains_by_it(bundle, pairs_file, tmp_path):
    out = tmp_path / "out"
    common = ["train", bundle.path, pairs_file, "-o", out, "--max-length", 64, "--steps", 3, "--threads", 1, "--json"]
    done = json.loads(command(*common, "--method", "pairs", "--beta", 0.5))
    assert done["objective"] == {"name": "pairs", "beta": 0.5}
    assert json.loads((out / "run.json").read_text())["objective"] == {"name": "pairs", "beta": 0.5}
    refused = command(*common, "--method", "pairs", "--gamma", 1, code=2)
    assert "--gamma is no option of the method pairs; leave it out, or add --method focal or ppo" in refused


def test_flags_come_and_go_with_what_is_registered(monkeypatch):
    monkeypatch.setenv("COLUMNS", "110")
    for name in ("train", "plan"):
        shown = command(name, "--help-all")
        assert re.search(r"--method NAME .*: sft, .*experimental: .*focal, .*pairs, ", " ".join(shown.split()))
        assert "--gamma" not in shown
        named = command(name, "--help", "--method", "focal")
        assert re.search(r"The method focal:\n +--gamma FLOAT +How little a sure token counts. \[2\]", named)
    for name in TOYS:
        monkeypatch.delitem(base._registry._found, name)
    for name in ("train", "plan"):
        plain = command(name, "--help-all")
        assert "--rank" in plain
        assert "focal" not in plain
