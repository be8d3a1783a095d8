"""Each family that computes A and B from what it trains, by its paper.

Gradients are compared with autograd on the formulas (FORMULAS), AdaLoRA step by step with PEFT.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
from commands import run as command
from decoder_cases import LIMIT, Case, distance, hf_projection, logp_with_updates, make_case, make_decoder, train_once
from families import make_family, row_order
from kills import killed
from small_families import OPTIONS, data, small, trained
from tiny import write_tiny

from edgetune.adapters.base import Family, families
from edgetune.adapters.store import open_adapter, read_run, save_schema
from edgetune.data.packing import collate
from edgetune.errors import UnsupportedError, UsageError
from edgetune.formats.families import TARGETS
from edgetune.runs.train import train
from edgetune.serving.rollouts.forward import open_decoder
from edgetune.training.config import TrainConfig
from edgetune.training.trainer import Trainer

Leaves = Mapping[str, torch.Tensor]


# ---- gradients ----


def dylora(part: Leaves, x: torch.Tensor, carved: Any, _name: str) -> torch.Tensor:
    b = carved.drawn
    return carved.family.alpha / b * (x @ part["a"][:b].T @ part["b"][:, :b].T)


def adalora(part: Leaves, x: torch.Tensor, carved: Any, _name: str) -> torch.Tensor:
    return carved.family.alpha / carved.family.rank * ((x @ part["q"].T) * part["e"]) @ part["p"].T


def sora(part: Leaves, x: torch.Tensor, carved: Any, _name: str) -> torch.Tensor:
    return carved.family.alpha / carved.family.rank * (part["gate"] * (x @ part["a"].T)) @ part["b"].T


def lora_dropout(part: Leaves, x: torch.Tensor, carved: Any, name: str) -> torch.Tensor:
    kept = 1 - carved.family.dropout
    masks = {side: torch.from_numpy(np.sign(mask)) for side, mask in carved.masks[name].items()}
    scale = carved.family.alpha / carved.family.rank / kept**2
    return scale * ((x * masks["a"]) @ part["a"].T @ part["b"].T) * masks["b"]


def lora_fa(part: Leaves, x: torch.Tensor, carved: Any, name: str) -> torch.Tensor:
    return carved.family.alpha / carved.family.rank * x @ torch.from_numpy(carved.frozen[name]).T @ part["b"].T


def lora_fb(part: Leaves, x: torch.Tensor, carved: Any, name: str) -> torch.Tensor:
    return carved.family.alpha / carved.family.rank * x @ part["a"].T @ torch.from_numpy(carved.frozen[name]).T


FORMULAS: dict[str, Callable[[Leaves, torch.Tensor, Any, str], torch.Tensor]] = {
    "adalora": adalora, "dylora": dylora, "lora-dropout": lora_dropout, "lora-fa": lora_fa, "lora-fb": lora_fb,
    "sora": sora}


def by_autograd(case: Case, carved: Any) -> tuple[np.ndarray, dict[str, dict[str, np.ndarray]]]:
    """log p [S] and the gradient of each part of each projection."""
    formula = FORMULAS[carved.family.name]
    leaves = {name: {part: torch.from_numpy(value.copy()).requires_grad_() for part, value in parts.items()}
              for name, parts in carved.values.items()}

    logp = logp_with_updates(case, leaves, lambda name, x: formula(leaves[name], x, carved, name))
    return logp, {name: {part: leaf.grad.numpy() for part, leaf in parts.items()} for name, parts in leaves.items()}


@pytest.mark.dev
@pytest.mark.parametrize("architecture", ["llama", "gemma3"])
@pytest.mark.parametrize("name", sorted(FORMULAS))
def test_forward_and_gradients_are_those_of_the_paper(name, architecture, tmp_path):
    case = make_case(architecture, tmp_path, num_hidden_layers=2)
    run_shape = replace(case.decoder.run, family=small(name))
    model = case.decoder.model
    decoder = make_decoder(model, run_shape, run_shape.family.state(model.structure.trained_shapes(run_shape)))
    carved: Any = decoder.adapter
    rng = np.random.default_rng(5)
    for parts in carved.values.values():
        for value in parts.values():
            value[:] = rng.standard_normal(value.shape) / value.shape[-1]**0.5
    carved.before_step(11)
    carved.before_pass(1)
    logp, gradients = by_autograd(case, carved)
    errors = {"log p": distance(train_once(replace(case, decoder=decoder)), logp)}
    for projection, parts in gradients.items():
        for part, gradient in parts.items():
            assert np.linalg.norm(gradient) > 1e-4, f"{projection} {part}: no gradient to compare"
            errors[f"{projection} {part}"] = distance(carved.gradients[projection][part], gradient)
    assert {what: error for what, error in errors.items() if not error < LIMIT} == {}


# ---- step by step, as PEFT ----


class Compared:
    """A trainer, and the same model with PEFT's adapter, by which both learn the same rows."""

    def __init__(self, folder: Path, family: Family, config: Any, steps: int, parts: Mapping[str, str]) -> None:
        path, self.hf = make_family("llama", folder, num_hidden_layers=2)
        self.rows = data(4).examples
        self.parts = parts
        self.steps = steps
        self.trainer = Trainer(path, family=family, steps=steps, lr=5e-3, batch_size=4, shuffle=False, warmup=0.0,
                               schedule="constant", max_grad_norm=0.0, max_length=24, precision="exact", threads=2)
        self.trainer.add_examples(self.rows)
        self.carved: Any = self.trainer.decoder.adapter
        self.peft = peft.get_peft_model(self.hf, config)

    def tensor(self, name: str, part: str) -> tuple[torch.Tensor, slice | np.ndarray]:
        """PEFT's tensor of a part, and our row of each of its rows where they are those of outputs."""
        found = getattr(self.peft.get_submodule(f"base_model.model.{hf_projection(name)}"), self.parts[part])["default"]
        order = row_order(hf_projection(name), self.carved.shapes[name][0], self.hf)
        return found, np.argsort(order) if order is not None and found.shape[0] == order.size else slice(None)

    def copy_parts(self) -> None:
        with torch.no_grad():
            for name, parts in self.carved.values.items():
                for part, value in parts.items():
                    tensor, order = self.tensor(name, part)
                    tensor.copy_(torch.from_numpy(value[order].reshape(tensor.shape)))

    def train(self, after_step: Callable[[int], None]) -> list[tuple[float, float]]:
        """Our loss and PEFT's, the penalty apart, of each step."""
        tokens = torch.from_numpy(np.stack([row.tokens for row in self.rows])).long()
        tuned = [p for p in self.peft.parameters() if p.requires_grad]
        rates = {id(p): scale for p, scale in self.scaled()}
        optimizer = torch.optim.AdamW([{"params": [p], "lr": 5e-3 * rates.get(id(p), 1)} for p in tuned],
                                      weight_decay=0.0)
        found = []
        for step in range(1, self.steps + 1):
            out = self.peft(tokens, labels=tokens, use_cache=False)
            task = torch.nn.functional.cross_entropy(out.logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())
            optimizer.zero_grad()
            out.loss.backward()
            optimizer.step()
            after_step(step)
            found.append((self.trainer.step().loss, task.item()))
        return found

    def scaled(self) -> list[tuple[torch.Tensor, float]]:
        """PEFT's tensors whose learning rate is a multiple."""
        scales = {group.name: group.lr_scale for group in self.trainer._groups}
        return [(self.tensor(name, part)[0], scales[part]) for name in self.carved.values for part in self.parts]

    def differences(self) -> dict[str, float]:
        found = {}
        for part in self.parts:
            both = [(value[part][order].ravel(), tensor.detach().numpy().ravel())
                    for name, value in self.carved.values.items() for tensor, order in [self.tensor(name, part)]]
            found[part] = distance(*(np.concatenate(side) for side in zip(*both, strict=True)))
        return found


def test_adalora_learns_as_pefts(tmp_path):
    """The penalty, the importance, the schedule and the choice of ranks, over 20 steps."""
    steps = 20
    family = families()["adalora"](rank=4, target_rank=2, alpha=8.0, prune_every=2, orthogonality=0.3)
    config = peft.AdaLoraConfig(init_r=4, target_r=2, lora_alpha=8, tinit=3, tfinal=7, deltaT=2, total_step=steps,
                                orth_reg_weight=0.3, target_modules=[*TARGETS], task_type="CAUSAL_LM")
    both = Compared(tmp_path, family, config, steps, {"q": "lora_A", "p": "lora_B", "e": "lora_E"})
    for parts in both.carved.values.values():  # with 0 there is no gradient of P and Q yet but the penalty's
        parts["e"][:] = np.random.default_rng(1).standard_normal(4) / 4
    both.copy_parts()
    closed = []

    def after(step: int) -> None:
        both.peft.base_model.update_and_allocate(step)
        closed.append(sum(int((both.tensor(name, "e")[0] == 0).sum()) for name in both.carved.values))

    losses = both.train(after)
    assert max(abs(ours / theirs - 1) for ours, theirs in losses) < 1e-4
    assert both.differences() == {part: pytest.approx(0, abs=1e-4) for part in "qpe"}
    assert closed[2] == 0 < closed[3] < closed[-1] == 2 * 14
    assert sum(pair.rank for pair in both.trainer.artifact().pairs.values()) == 2 * 14


# ---- what each family does ----


def test_dylora_draws_each_rank_and_measures_the_whole(bundle):
    trainer = Trainer(bundle, family=small("dylora"), steps=40, **OPTIONS)
    trainer.add_examples(data(6).examples)
    carved: Any = trainer.decoder.adapter
    drawn = set()
    for _ in range(12):
        trainer.step()
        drawn.add(carved.drawn)
        grad = {name: parts["b"].any(0) for name, parts in carved.gradients.items()}
        assert all((of == (np.arange(4) < carved.drawn)).all() for of in grad.values())
    assert drawn == {1, 2, 3, 4}
    whole = trainer.loss(trainer.examples)[0]
    trainer.decoder.adapter.before_step(1)
    assert trainer.loss(trainer.examples)[0] == whole


def test_dylora_is_cut_to_any_rank(bundle, tmp_path):
    """A cut is the model's own loss at that rank; it is cut again, trained on, and served."""
    trainer = trained(bundle, small("dylora"), steps=12)
    out = tmp_path / "out"
    trainer.save(out)
    carved: Any = trainer.decoder.adapter
    for rank in (1, 2, 4):
        command("adapters", "export", out, "--rank", rank, "-o", tmp_path / f"cut{rank}")
        cut = open_adapter(tmp_path / f"cut{rank}", bundle.gguf)
        assert {pair.rank for pair in cut.pairs.values()} == {rank}
        again = Trainer(bundle, family=replace(small("dylora"), rank=rank), **OPTIONS)
        again.load(tmp_path / f"cut{rank}")
        carved.drawn = rank
        carved.is_learning = True
        batch = collate(trainer.examples[:3])
        np.testing.assert_allclose(again.decoder.score(batch), trainer.decoder.score(batch), atol=1e-5)
    sizes = [(tmp_path / f"cut{rank}" / "adapter.gguf").stat().st_size for rank in (1, 2, 4)]
    assert sizes[0] < sizes[1] < sizes[2] == (out / "adapter.gguf").stat().st_size
    assert "rank 2" in command("adapters", "export", tmp_path / "cut4", "--rank", 2)
    assert command("models", "info", tmp_path / "cut4-rank2", "--json")
    assert read_run(tmp_path / "cut4-rank2")["options"]["rank"] == 2
    for refused, why in (((8,), "rank 8 is not between 1 and 4"), ((2, "--to", "peft"), "--rank is given with --to")):
        assert why in command("adapters", "export", out, "-o", tmp_path / "more", "--rank", *refused,
                              code=UsageError.exit_code)


def test_a_cut_is_there_with_its_schema_or_not_at_all(bundle, tmp_path):
    """After a kill at any moment: without the schema it would answer in any form."""
    schema = {"type": "object"}
    trained(bundle, small("dylora")).save(tmp_path / "whole")
    save_schema(tmp_path / "whole", schema)
    has_ended = False
    for number in count():
        folder, copy = (tmp_path / f"{name}{number}" for name in ("made", "killed"))
        folder.mkdir()
        with killed(folder, copy, number) as kill:
            command("adapters", "export", tmp_path / "whole", "--rank", 2, "-o", folder / "cut")
            has_ended = not kill.is_done
        if (copy / "cut").exists():
            assert open_adapter(copy / "cut", bundle.gguf).schema == schema
        if has_ended:
            break
    assert number > 5


def test_others_cannot_be_cut(bundle, tmp_path):
    trained(bundle, small("sora")).save(tmp_path / "out")
    said = command("adapters", "export", tmp_path / "out", "--rank", 2, "-o", tmp_path / "cut",
                   code=UnsupportedError.exit_code)
    assert re.search("family sora cannot be cut.*dylora", said)


def test_soras_proximal_step_is_a_soft_threshold(bundle):
    """On the gates alone, by their own learning rate."""
    family = families()["sora"](rank=4, sparsity=3.0, gate_rate=2.0)
    trainer = Trainer(bundle, family=family, steps=3, **OPTIONS)
    carved: Any = trainer.decoder.adapter
    before = {name: {part: value.copy() for part, value in parts.items()} for name, parts in carved.values.items()}
    carved.after_step(1, 3, 0.05)
    for name, parts in carved.values.items():
        expected = torch.nn.functional.softshrink(torch.from_numpy(before[name]["gate"]), 0.05 * 2 * 3)
        np.testing.assert_allclose(parts["gate"], expected.numpy(), atol=1e-7)
        assert np.array_equal(parts["a"], before[name]["a"])


def test_soras_file_shrinks_with_its_gates(bundle, tmp_path):
    sizes = []
    for sparsity in (0.0, 30.0):
        trainer = trained(bundle, replace(small("sora"), sparsity=sparsity), steps=10)
        trainer.save(tmp_path / f"{sparsity}")
        sizes.append((tmp_path / f"{sparsity}" / "adapter.gguf").stat().st_size)
    pairs = trainer.artifact().pairs
    open_gates = sum(np.count_nonzero(parts["gate"]) for parts in trainer.decoder.adapter.values.values())
    assert 0 < sum(pair.rank for pair in pairs.values()) == open_gates < 4 * 14
    assert sizes[1] < 0.9 * sizes[0]


def test_what_lora_dropout_leaves_out(bundle):
    """One mask a step, of inputs and of outputs, in the right share; none where it is measured."""
    trainer = Trainer(bundle, family=families()["lora-dropout"](rank=4, dropout=0.4), steps=9, **OPTIONS)
    trainer.add_examples(data(6).examples)
    carved: Any = trainer.decoder.adapter
    masks = []
    for _ in range(2):
        trainer.step()
        masks.append(np.concatenate([mask for parts in carved.masks.values() for mask in parts.values()]))
        for name, parts in carved.gradients.items():
            assert not parts["a"][:, carved.masks[name]["a"] == 0].any()
            assert not parts["b"][carved.masks[name]["b"] == 0].any()
    assert not np.array_equal(*masks)
    assert {*np.unique(masks[0]).tolist()} == {0.0, np.float32(1 / 0.6)}
    assert (masks[0] == 0).mean() == pytest.approx(0.4, abs=0.05)
    whole = open_decoder(bundle.gguf, trainer.artifact(), threads=2, max_tokens=200, max_length=24)
    batch = collate(trainer.examples[:3])
    np.testing.assert_allclose(whole.score(batch), trainer.decoder.score(batch), atol=1e-5)


def test_what_lora_fa_trains(bundle):
    lora, fa = (trained(bundle, small(name)) for name in ("lora", "lora-fa"))
    sizes = [trainer.arena.flat("adam_m").size for trainer in (lora, fa)]
    assert sizes[0] > 1.5 * sizes[1]
    assert {name: pair.a.shape for name, pair in fa.pairs.items()} == {
        name: pair.a.shape for name, pair in lora.pairs.items()}
    assert fa.record()["parameters"] == sizes[1]


@pytest.mark.dev
def test_lora_fa_and_lora_fb_take_turns(bundle, tmp_path):
    """Each leaves the half of the other as it was, and lowers the loss."""
    losses = []
    start = None
    for number, name in enumerate(("lora-fa", "lora-fb", "lora-fa")):
        trainer = Trainer(bundle, family=small(name), **OPTIONS)
        rows = data(8).examples
        trainer.add_examples(rows)
        if start:
            trainer.load(start)
        before = trainer.pairs
        losses.append(trainer.loss(rows)[0])
        trainer.train()
        halves = {half: all(np.array_equal(getattr(before[each], half), getattr(pair, half))
                            for each, pair in trainer.pairs.items()) for half in "ab"}
        assert halves == {"a": name == "lora-fa", "b": name == "lora-fb"}
        losses.append(trainer.loss(rows)[0])
        start = tmp_path / str(number)
        trainer.save(start)
    assert losses[0] > losses[1] == pytest.approx(losses[2], rel=1e-6)
    assert losses[2] > losses[3] > losses[5]


@pytest.mark.dev
def test_adalora_learns_by_default_as_much_as_lora(tmp_path):
    model = write_tiny(tmp_path / "tiny.gguf", formats="Q8_0")
    rows = [{"prompt": f"say {letter}", "completion": f"{word} {letter}"}
            for letter in "abcdefghijkl" for word in ("no", "yes", "on", "off")]

    def last_loss(family):
        config = TrainConfig(family=family, epochs=4.0, threads=1, anchors=0)
        train(model, rows, tmp_path / family, "none", config=config, answers=False)
        steps = [json.loads(line) for line in (tmp_path / family / "metrics.jsonl").read_text().splitlines()]
        return np.mean([step["loss"] for step in steps if step["event"] == "step"][-6:])

    assert last_loss("adalora") < 1.2 * last_loss("lora")


@pytest.mark.parametrize("value", [{"target_rank": 9}, {"prune_from": 0.7}], ids=str)
def test_adaloras_options_fit_together(value):
    with pytest.raises(UsageError, match="the most is"):
        TrainConfig(family="adalora", rank=8, **{"target_rank": 4, **value}).check()


@pytest.mark.parametrize("architecture", ["llama", "gemma3"])
def test_forward_and_gradient_are_those_of_the_formula(architecture, tmp_path):
    case = make_case(architecture, tmp_path, num_hidden_layers=2)
    shape = replace(case.decoder.run, family=replace(small("fusion", 6), sources=3))
    model = case.decoder.model
    decoder = make_decoder(model, shape, shape.family.state(model.structure.trained_shapes(shape)))
    carved = decoder.adapter
    carved.weights[:] = (0.5, -0.3, 0.8)
    weights = torch.tensor(carved.weights.copy(), requires_grad=True)

    def update(name, x):
        a, b = (torch.from_numpy(carved.fused[name][part].copy()) for part in "ab")
        return sum(weights[i] * (x @ a[2 * i:2 * i + 2].T @ b[:, 2 * i:2 * i + 2].T) for i in range(3))

    logp = logp_with_updates(case, carved.shapes, update)
    assert distance(train_once(replace(case, decoder=decoder)), logp) < LIMIT
    assert np.linalg.norm(weights.grad) > 1e-3
    assert distance(carved.dweights, weights.grad.numpy()) < LIMIT
