"""The contract of all registered families, tested alike: a new one is covered when it is registered."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from commands import run as command
from decoder_cases import LIMIT, distance, logp_with_updates, make_case, make_decoder, train_once
from encoders import WORDS, tiny_bert, write_encoder
from families import logits_of, make_family
from hypothesis import given, settings
from hypothesis import strategies as st
from slopes import slope_and_norm
from small_families import MERGING, NAMES, OPTIONS, PAIRS, data, options_of, small, trained

from edgetune.adapters.base import families
from edgetune.adapters.lora import Pair
from edgetune.adapters.molora import Molora
from edgetune.adapters.store import read_artifact, read_run
from edgetune.daemon.jobs import recipe
from edgetune.data.packing import collate
from edgetune.errors import BudgetError, Interrupted, MismatchError, UnsupportedError, UsageError
from edgetune.formats.families import TARGETS
from edgetune.formats.gguf import open_gguf
from edgetune.objectives.classify import Classify
from edgetune.options import declared
from edgetune.serving.classifier import Classifier
from edgetune.serving.rollouts.forward import open_decoder
from edgetune.training.callbacks import RunCallbacks
from edgetune.training.config import TrainConfig
from edgetune.training.run import run
from edgetune.training.trainer import Trainer


@pytest.mark.parametrize("name", NAMES)
def test_gradient_by_finite_differences(name, tiny_models):
    """Where nothing is drawn."""
    trainer = Trainer(tiny_models["qwen3"], family=small(name), **OPTIONS)
    values = trainer.arena.flat("lora")
    values[:] += np.random.default_rng(0).standard_normal(values.size) / 10
    batch = collate(data(3).examples)
    slope, norm = slope_and_norm(trainer.decoder, batch, 5e-3)
    assert slope == pytest.approx(norm, rel=2e-2)


@pytest.mark.dev
@pytest.mark.parametrize("name", PAIRS)
def test_llama_cpp_answers_as_it_was_trained(name, tmp_path):
    path, _ = make_family("llama", tmp_path, num_hidden_layers=2)
    trainer = trained(path, small(name), lr=0.05)
    trainer.save(tmp_path / "out")
    tokens = data(1).examples[0]
    ours = trainer.decoder.logits(collate([tokens]))
    served = logits_of(path, tokens.tokens.tolist(), tmp_path / "out" / "adapter.gguf")
    assert distance(served, ours) < 1e-4
    assert distance(logits_of(path, tokens.tokens.tolist()), ours) > 0.01, "it has learned nothing to compare"


@pytest.mark.parametrize(("architecture", "limit", "more"), [
    ("llama", 1e-4, {"attention_bias": True, "mlp_bias": True}), ("gemma3", 1e-3, {})], ids=["llama", "gemma3"])
@pytest.mark.parametrize("name", MERGING)
def test_llama_cpp_answers_with_the_merged_file(name, architecture, limit, more, tmp_path):
    """As it was trained, and as our own engine does with the adapter. All else keeps its bytes. llama.cpp takes gemma's
    GELU from a table in float16.
    """
    path, _ = make_family(architecture, tmp_path, num_hidden_layers=2, **more)
    trainer = trained(path, small(name), lr=0.05, blocks="last:1")
    trainer.save(tmp_path / "out")
    said = command("adapters", "merge", path, tmp_path / "out", "-o", tmp_path / "merged.gguf")
    assert re.search(r"merged\.gguf.*\s.*as they were measured", said)
    tokens = data(1).examples[0]
    batch = collate([tokens])
    ours = trainer.decoder.logits(batch)
    served = logits_of(tmp_path / "merged.gguf", tokens.tokens.tolist())
    assert distance(served, ours) < limit
    assert distance(logits_of(path, tokens.tokens.tolist()), ours) > 0.01, "it has learned nothing to compare"
    base = open_gguf(path)
    found = read_artifact(tmp_path / "out", base)
    alone = open_decoder(base, found, threads=2, max_tokens=30, max_length=24)
    assert distance(alone.logits(batch), ours) < 1e-5
    merged = open_gguf(tmp_path / "merged.gguf").tensors
    assert dict(base.metadata) == dict(open_gguf(tmp_path / "merged.gguf").metadata)
    changed = {one for one, tensor in merged.items() if tensor.data.tobytes() != base.tensors[one].data.tobytes()}
    assert changed == found.weights.keys()
    assert {one.split(".")[1] for one in changed} == {"1", "weight"}  # output_norm.weight
    out = tmp_path / "out"
    for refused in (("export", out, "-o", tmp_path / "peft"),
                    ("adapters", "merge", path, out, "-o", tmp_path / "b.gguf", "--eval", tmp_path / "rows.jsonl")):
        code = UsageError.exit_code if refused[1] == "merge" else UnsupportedError.exit_code
        assert "merge" in command(*refused, code=code)


@pytest.mark.dev
@pytest.mark.parametrize("name", NAMES)
def test_it_is_saved_described_and_continued(name, bundle, tmp_path, tiny_models):
    """From what the file holds, to the same loss; on another base it is refused."""
    trainer = trained(bundle, small(name))
    out = tmp_path / "out"
    trainer.save(out)
    again = Trainer(bundle, **{**OPTIONS, "family": small(name), "seed": 5})
    again.load(out)
    rows = trainer.examples
    assert again.loss(rows)[0] == pytest.approx(trainer.loss(rows)[0], rel=1e-5)
    again.add_examples(rows)
    before = again.loss(rows)[0]
    again.step()
    assert again.loss(rows)[0] < before
    shown = " ".join(command("models", "info", out).split())
    assert all(word in shown for word in (name, small(name).served_by, f"{trainer.record()['parameters']:,}"))
    for use in (lambda: read_artifact(out, open_gguf(tiny_models["llama"])),
                lambda: Trainer(tiny_models["llama"], **{**OPTIONS, "family": small(name)}).load(out)):
        with pytest.raises(MismatchError, match="was trained on"):
            use()


@pytest.mark.dev
@pytest.mark.parametrize("start", [False, True], ids=["seed", "start"])
@pytest.mark.parametrize("name", NAMES)
def test_a_stopped_run_resumes_to_the_same_bytes(name, start, bundle, tmp_path):
    config = TrainConfig(steps=6, optimizer_state="float", family=small(name), **OPTIONS)
    begin = tmp_path / "begin"
    if start:
        trained(bundle, small(name), seed=3).save(begin)

    def go(out: Path, resume: bool = False, stop: Callable[[], bool] = lambda: False) -> None:
        run(bundle, data(9), out, config, held_out=data(3, seed=1), resume=resume,
            start=begin if start and not resume else None, callbacks=RunCallbacks(should_stop=stop))

    go(tmp_path / "whole")
    for number, calls in enumerate((2, 14, 40)):  # before the first step, and within others
        left = iter(range(10**6))
        with pytest.raises(Interrupted):
            go(tmp_path / "out", number > 0, lambda left=left, calls=calls: next(left) > calls)
    go(tmp_path / "out", resume=True)
    assert (tmp_path / "out" / "adapter.gguf").read_bytes() == (tmp_path / "whole" / "adapter.gguf").read_bytes()


@pytest.mark.parametrize("name", NAMES)
def test_the_plan_counts_it(name, bundle):
    """All that it takes is in the arena; too small a budget is refused, and names the option that helps."""
    trainer = Trainer(bundle, family=small(name), **OPTIONS)
    table = {buffer.name: buffer for buffer in trainer.plan.buffers}
    shapes = trainer.model.structure.trained_shapes(trainer.plan.run)
    state = trainer.plan.run.family.state(shapes)
    assert table["lora"].shape == table["dlora"].shape == (sum(g.size for g in trainer._groups),)
    assert {buffer.name for buffer in state} == {name for name, buffer in table.items() if buffer.saved}
    with pytest.raises(BudgetError, match="budget"):
        Trainer(bundle, family=small(name), memory="1M", **OPTIONS)
    large = small(name, 64)
    hints = large.smaller()
    size, smaller = (sum(group.size for group in family.parameters(shapes))
                     for family in (large, replace(large, **hints).check()))
    assert smaller < size if hints else smaller == size


@pytest.mark.dev
@pytest.mark.parametrize("name", NAMES)
def test_commands_and_jobs_take_it(name, bundle, tmp_path):
    own = [spec.name for spec in declared(families()[name])]
    shown = command("train", "--family", name, "--help-all")
    assert all("--" + option.replace("_", "-") in shown for option in own)
    foreign = {spec.name for kind in families().values() for spec in declared(kind)} - {*own}
    assert not any(f"--{option.replace('_', '-')} " in shown for option in foreign)
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"prompt": "on", "completion": "off"}\n' * 3)
    given = options_of(name)
    asked = ["--family", name]
    for option, value in given.items():
        asked += [f"--{option.replace('_', '-')}", value]
    said = command("train", bundle.path, rows, "-o", tmp_path / "out", *asked, "--steps", 2, "--eval", "none",
                   "--threads", 1, "--anchors", 0)
    assert "edgetune chat " in said
    options = read_run(tmp_path / "out")["options"]
    assert options["family"] == name
    assert given.items() <= options.items()
    assert TrainConfig.read_json(options, "run.json").family == small(name)
    assert command("plan", bundle.path, rows, *asked, "--json")
    if name in PAIRS:
        command("adapters", "export", tmp_path / "out", "-o", tmp_path / "peft", "--base-name", "x")
        assert recipe.options(TrainConfig(), {"family": name, **given}).family == small(name)


@pytest.mark.dev
@pytest.mark.parametrize("name", PAIRS)
def test_any_blocks_and_projections(name, bundle):
    """Of a random rank; the pairs alone give the same log p in another decoder."""

    @settings(max_examples=5)
    @given(st.integers(1, 16), st.sets(st.sampled_from([*TARGETS]), min_size=1),
           st.sampled_from(["all", "first:1", "last:1"]), st.integers(0, 9))
    def holds(rank: int, targets: set[str], blocks: str, seed: int) -> None:
        trainer = trained(bundle, small(name, rank), targets=",".join(sorted(targets)), blocks=blocks, seed=seed,
                          steps=2, lr=0.05)
        batch = collate(trainer.examples[:3])
        alone = open_decoder(bundle.gguf, trainer.pairs, threads=2, max_tokens=200, max_length=24)
        np.testing.assert_allclose(alone.score(batch), trainer.decoder.score(batch), atol=1e-4)
        assert {pair.split(".")[2] for pair in trainer.pairs} <= {TARGETS[target] for target in targets}

    holds()


@pytest.mark.dev
@pytest.mark.parametrize("name", PAIRS)
def test_an_encoder_learns_labels_with_it(name, tmp_path):
    """The classifier opens head and family again, to the same probabilities."""
    encoder = write_encoder(tmp_path / "encoder.gguf", tiny_bert(), WORDS)
    rows = [{"prompt": f"turn the light {label}", "completion": label} for label in ("on", "off")]
    trainer = Trainer(encoder, objective=Classify(("on", "off")), family=small(name), steps=4, batch_size=2, lr=0.01,
                      max_length=16, precision="exact", threads=1)
    trainer.add(rows)
    trainer.train()
    trainer.save(tmp_path / "out")
    with Classifier(encoder, tmp_path / "out", threads=1, precision="exact") as served:
        graded = served.graded([(row["prompt"], row["completion"]) for row in rows])
    losses = [float(np.sum(found)) for _, found in graded if found is not None]
    assert np.mean(losses) == pytest.approx(trainer.evaluate(rows), rel=1e-4)
    assert name in command("models", "info", tmp_path / "out").split()
    if name == "dylora":
        command("adapters", "export", tmp_path / "out", "--rank", 1, "-o", tmp_path / "cut")
        with Classifier(encoder, tmp_path / "cut", threads=1) as served:
            assert served.labels == ("on", "off")


@pytest.mark.parametrize(("name", "why"), [("dora", r"family dora.*llama\.cpp.*--family lora"),
                                           ("adapterfusion", r"family adapterfusion.*22 %.*--family fusion"),
                                           ("vera", "vera was taken out.*--family lora"),
                                           ("o-lora", "o-lora was taken out.*--family lora")])
def test_what_is_not_here_is_refused_with_what_to_take(name, why, bundle, tmp_path):
    for use in (lambda: TrainConfig(family=name), lambda: recipe.options(TrainConfig(), {"family": name})):
        with pytest.raises(UsageError, match=why):
            use()
    said = command("train", bundle.path, tmp_path / "rows.jsonl", "-o", tmp_path / "out", "--family", name,
                   code=UsageError.exit_code)
    assert re.search(why, said)


def mixture(case: Any, family: Molora) -> Any:
    """The decoder of a case with this family, of random values."""
    decoder = make_decoder(case.decoder.model, replace(case.decoder.run, family=family))
    rng = np.random.default_rng(5)
    for value in decoder.adapter.values.values():
        value[:] = rng.standard_normal(value.shape) / value.shape[-1]**0.5
    return decoder


def formula(read: torch.Tensor, out: torch.Tensor, x: torch.Tensor, family: Molora) -> torch.Tensor:
    """scale * sum_e p_e(x) B_e (A_e x), the experts one by one. read [E R + E, K], out [N, E R]."""
    r = family.rank
    p = torch.softmax(x @ read[family.experts * r:].T, -1)
    each = [p[..., e, None] * (x @ read[e * r:(e + 1) * r].T @ out[:, e * r:(e + 1) * r].T)
            for e in range(family.experts)]
    return family.alpha / r * torch.stack(each).sum(0)


@pytest.mark.parametrize("architecture", ["llama", "qwen3", "gemma3"])
def test_forward_and_gradients_are_those_of_the_paper(architecture: str, tmp_path: Path) -> None:
    case = make_case(architecture, tmp_path, num_hidden_layers=2)
    family = Molora(experts=3, rank=2, alpha=4.0)
    decoder = mixture(case, family)
    carved = decoder.adapter
    leaves = {name: torch.from_numpy(value.copy()).requires_grad_() for name, value in carved.values.items()}

    logp = logp_with_updates(case, [name.removesuffix(".in") for name in leaves if name.endswith(".in")],
                             lambda name, x: formula(leaves[f"{name}.in"], leaves[f"{name}.out"], x, family))
    errors = {"log p": distance(train_once(replace(case, decoder=decoder)), logp)}
    for name, leaf in leaves.items():
        assert leaf.grad is not None
        gradient = leaf.grad.numpy()
        assert np.linalg.norm(gradient) > 1e-4, f"{name}: no gradient to compare"
        errors[name] = distance(carved.gradients[name], gradient)
    assert {what: error for what, error in errors.items() if not error < LIMIT} == {}


def test_experts_that_are_alike_are_one_lora(tmp_path: Path) -> None:
    """Whatever the router says: the weights of all experts sum to 1."""
    case = make_case("llama", tmp_path, num_hidden_layers=2)
    family = Molora(experts=3, rank=2, alpha=4.0)
    decoder = mixture(case, family)
    pairs = {}
    for name, read in decoder.adapter.values.items():
        if name.endswith(".in"):
            projection = name.removesuffix(".in")
            out = decoder.adapter.values[f"{projection}.out"]
            read[:6] = np.tile(read[:2], (3, 1))
            out[:] = np.tile(out[:, :2], 3)
            pairs[projection] = Pair(read[:2].copy(), out[:, :2].copy(), 2.0)
    batch = collate(case.examples)
    alone = open_decoder(case.decoder.model.gguf, pairs, threads=2, max_tokens=200, max_length=64)
    np.testing.assert_allclose(alone.score(batch), decoder.score(batch), atol=1e-4)
