"""Families that adapt other parts than projections: log p, gradients and answers against transformers and autograd."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from commands import run as command
from decoder_cases import LIMIT, Case, distance, hf_projection, make_case, make_decoder, train_once
from families import row_order
from gguf_names import GGUF_NAMES, POST_NAMES
from policy_cases import LETTERS, letters, prompts
from slopes import slope_and_norm
from transformers import DynamicCache

from edgetune import Result
from edgetune.adapters.base import Family, Setting
from edgetune.adapters.bitfit import BitFit
from edgetune.adapters.full import Full
from edgetune.adapters.houlsby import Houlsby
from edgetune.adapters.prefix import Prefix
from edgetune.adapters.prompt_tuning import PromptTuning
from edgetune.adapters.store import read_run, save_artifact
from edgetune.daemon.jobs import recipe
from edgetune.data.lengths import lengths_of
from edgetune.data.packing import Batch, Example, collate
from edgetune.errors import FormatError, MismatchError, UnsupportedError, UsageError
from edgetune.llamacpp.sampling import Sampling
from edgetune.models.decoder import Model
from edgetune.objectives.grpo import Grpo
from edgetune.serving.rollouts.forward import forward_run
from edgetune.serving.rollouts.texts import Engine, TokenPrompts, adapter_of, draw
from edgetune.training.config import TrainConfig
from edgetune.training.trainer import Trainer

PREFIX = Prefix(prefix_tokens=5)
PROMPT = PromptTuning(prompt_tokens=5)
HOULSBY = Houlsby(adapter_width=3)
TOYS = (HOULSBY, BitFit(), Full(), PROMPT, PREFIX)
BLOCKS = 3


def shaken(values: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Parameters of a family, far from a start at which most gradients are 0."""
    rng = np.random.default_rng(4)
    for name, value in values.items():
        value += (rng.standard_normal(value.shape) / (20 if name.endswith("weight") else 4)).astype(np.float32)
    return values


def module_of(name: str, model: Any) -> str:
    """transformers' name of a norm, or of the module whose output is a sublayer's."""
    if name == "output_norm":
        return "model.norm"
    _, layer, part = name.split(".")
    is_gemma = model.config.model_type == "gemma3_text"
    sublayers = {"attention": "post_attention_norm", "feed_forward": "post_ffw_norm"}
    if part in sublayers and not is_gemma:
        return f"model.layers.{layer}.{'self_attn' if part == 'attention' else 'mlp'}"
    wanted = sublayers.get(part, part)
    modules = dict(model.named_modules())
    paths = (f"model.layers.{layer}.{old}" for old, new in (POST_NAMES if is_gemma else GGUF_NAMES).items()
             if new == wanted)
    return next(path for path in paths if path in modules)


@contextmanager
def adapted(model: Any, toy: Family, values: dict[str, np.ndarray]) -> Iterator[dict[str, torch.Tensor]]:
    """The transformers model with a toy's parameters, which are leaves of autograd, by name and in our order."""
    leaves = {name: torch.from_numpy(value.copy()).requires_grad_() for name, value in values.items()}
    hooks = []
    replaced: list[tuple[torch.nn.Module, str, torch.Tensor]] = []

    def hook(name: str, change: Any) -> None:
        def changed(_module: Any, _inp: Any, out: Any) -> Any:
            return (change(out[0]), *out[1:]) if isinstance(out, tuple) else change(out)

        hooks.append(model.get_submodule(name).register_forward_hook(changed))

    def bottleneck(name: str, out: torch.Tensor) -> torch.Tensor:
        down, b, up, c = (leaves[f"{name}.{part}"] for part in ("down", "b", "up", "c"))
        return out + torch.nn.functional.silu(out @ down.T + b) @ up + c

    def scaled(leaf: torch.Tensor, module: Any, out: torch.Tensor) -> torch.Tensor:
        offset = 1.0 if "Gemma" in type(module).__name__ else 0.0
        weight = module.weight + offset
        return out * leaf / weight

    for name, leaf in leaves.items():
        if isinstance(toy, PromptTuning):
            continue
        if isinstance(toy, Houlsby):
            if name.endswith(".down"):
                place = name.removesuffix(".down")
                hook(module_of(place, model), partial(bottleneck, place))
        elif name.endswith("norm.weight"):
            place = module_of(name.removesuffix(".weight"), model)
            hook(place, partial(scaled, leaf, model.get_submodule(place)))
        elif isinstance(toy, BitFit):
            projection, _, kind = name.rpartition(".")
            place = hf_projection(projection)
            order = row_order(place, len(leaf), model)
            value = leaf if order is None else leaf[torch.from_numpy(np.argsort(order).copy())]
            replaced.append((model.get_submodule(place), kind, value))
    own = [(module, kind, module._parameters.pop(kind)) for module, kind, _ in replaced]
    for module, kind, value in replaced:
        setattr(module, kind, value)
    try:
        yield leaves
    finally:
        for each in hooks:
            each.remove()
        for module, kind, value in own:
            delattr(module, kind)
            module.register_parameter(kind, value)


def cache_of(model: Any, leaves: dict[str, torch.Tensor]) -> DynamicCache:
    """A prefix's keys and values, as if the model had read them."""
    cache = DynamicCache()
    for layer in range(BLOCKS):
        keys, values = leaves[f"blk.{layer}.keys"]
        order = row_order(hf_projection(f"blk.{layer}.attn_k"), keys.shape[-1], model)
        keys = keys if order is None else keys[:, torch.from_numpy(np.argsort(order).copy())]
        heads = (part.reshape(len(part), model.config.num_key_value_heads, -1).transpose(0, 1)[None]
                 for part in (keys, values))
        cache.update(*heads, layer)
    return cache


def logits_of(model: Any, toy: Family, leaves: dict[str, torch.Tensor], tokens: np.ndarray) -> torch.Tensor:
    """[T, V], after a prompt's embeddings, or keys and values, if the toy has any."""
    if isinstance(toy, Prefix):
        return model(torch.from_numpy(tokens).long()[None], past_key_values=cache_of(model, leaves)).logits[0]
    embedded = model.get_input_embeddings()(torch.from_numpy(tokens).long()[None])
    if isinstance(toy, PromptTuning):
        embedded = torch.cat([leaves["input"][None], embedded], 1)
    return model(inputs_embeds=embedded, use_cache=False).logits[0, toy.virtual_tokens:]


def truth(case: Case, toy: Family, values: dict[str, np.ndarray]) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """(log p [S], gradients) by autograd, each document in a pass of its own."""
    found = []
    with adapted(case.model, toy, values) as leaves:
        for example in case.examples:
            tokens = torch.from_numpy(example.tokens).long()
            out = torch.log_softmax(logits_of(case.model, toy, leaves, example.tokens)[:-1], -1)
            logp = out.gather(1, tokens[1:, None])[:, 0]
            weights = torch.from_numpy(example.weights[1:])
            found.append(logp[weights != 0].detach().numpy())
            (-(weights * logp).sum()).backward(retain_graph=True)
        return np.concatenate(found), {name: leaf.grad.numpy() for name, leaf in leaves.items()}


@pytest.mark.dev
@pytest.mark.parametrize("architecture", ["llama", "llama with biases", "qwen3", "gemma3"])
@pytest.mark.parametrize("toy", TOYS, ids=lambda toy: toy.name)
def test_log_p_and_gradients(toy, architecture, tmp_path):
    """Activations of one block or of all are kept; in one pass, or after a prefix that is computed apart."""
    biases = {name: True for name in ("attention_bias", "mlp_bias") if "biases" in architecture}
    case = make_case(architecture.split()[0], tmp_path, num_hidden_layers=BLOCKS, **biases)
    expected = None
    for kept in (1, BLOCKS):
        decoder = make_decoder(case.decoder.model, replace(case.decoder.run, family=toy, kept=kept))
        values = shaken(decoder.adapter.values)
        expected = expected or truth(case, toy, values)
        ours = replace(case, decoder=decoder)
        errors = {"score": distance(decoder.score(case.batch), expected[0]),
                  "train": distance(train_once(ours), expected[0])}
        errors |= {name: distance(gradient, expected[1][name]) for name, gradient in decoder.adapter.gradients.items()}
        assert {what: error for what, error in errors.items() if not error < LIMIT} == {}
        with decoder.linear.off(), case.decoder.linear.off():
            with decoder.linear.off():
                pass  # the end of an inner one is not that of the outer one
            assert distance(decoder.logits(case.batch), case.decoder.logits(case.batch)) < LIMIT
    assert len(decoder.adapter.values) == {"houlsby": 24, "prompt-tuning": 1, "prefix": 3}.get(
        toy.name, {"llama": 2, "llama with biases": 2 + 7, "qwen3": 4, "gemma3": 6}[architecture] * BLOCKS + 1
        + (7 * BLOCKS if toy.name == "full" else 0))


def gradient_of(trainer: Trainer) -> tuple[Batch, np.ndarray]:
    """A batch of three rows, and its gradient."""
    rows = np.random.default_rng(0).integers(0, 416, (3, 20)).astype(np.int32)
    batch = collate([Example(row, np.r_[0, np.ones(19)].astype(np.float32)) for row in rows])
    trainer.arena.flat("dlora").fill(0.0)
    trainer.decoder.forward(batch, keep=True)
    trainer.decoder.backward(batch, batch.supervised_weights)
    return batch, trainer.arena.flat("dlora").copy()


@pytest.mark.parametrize(("toy", "blocks"), [
    *((toy, "all") for toy in TOYS), *((toy, "last:1") for toy in TOYS if not isinstance(toy, Prefix))],
    ids=lambda given: getattr(given, "name", given))
def test_gradient_by_finite_differences(tiny_models, toy, blocks):
    trainer = Trainer(tiny_models["gemma3"], family=toy, threads=1, max_length=24, precision="exact", blocks=blocks)
    shaken(trainer.decoder.adapter.values)
    slope, norm = slope_and_norm(trainer.decoder, gradient_of(trainer)[0], 1e-2)
    assert slope == pytest.approx(norm, rel=1e-2)


@pytest.mark.parametrize("toy", TOYS, ids=lambda toy: toy.name)
def test_activations_in_bf16_change_a_gradient_little(tiny_models, toy):
    found = [gradient_of(Trainer(tiny_models["gemma3"], family=toy, threads=1, max_length=24, precision=precision))[1]
             for precision in ("fast", "exact")]
    assert 0 < distance(*found) < 0.2


@pytest.mark.parametrize("toy", TOYS, ids=lambda toy: toy.name)
def test_what_rows_begin_with_alike_is_computed_apart(bundle, toy):
    """The virtual tokens are before the prefix, once; the plan counts the parameters."""
    weights = np.r_[np.zeros(40), np.ones(12)].astype(np.float32)
    rows = [Example(np.r_[np.arange(40), np.arange(i, i + 12)].astype(np.int32), weights) for i in range(4, 16)]
    options: dict[str, Any] = {"family": toy, "lr": 1e-2, "batch_size": 6, "max_length": 64, "threads": 1, "steps": 3,
                               "precision": "exact"}
    trainers = [Trainer(bundle, lengths=lengths_of(rows), micro_batch=64, **options),
                Trainer(bundle, lengths=lengths_of(rows, share=False), share_prefixes="off", **options)]
    losses = []
    for trainer in trainers:
        trainer.add_examples(rows)
        losses.append([trainer.loss(rows)[0], *(step.loss for step in trainer.train()), trainer.loss(rows)[0]])
        table = {buffer.name: buffer.shape for buffer in trainer.plan.buffers}
        size = sum(value.size for value in trainer.decoder.adapter.values.values())
        assert table["lora"] == table["dlora"] == table["best"] == (size,)
    assert trainers[0].plan.run.prefix == 39
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    assert losses[0][-1] < losses[0][0]


@pytest.mark.dev
@pytest.mark.parametrize(("toy", "architecture"), [
    *zip(TOYS, ("llama", "qwen3", "gemma3", "gemma3", "llama"), strict=True)],
    ids=lambda value: getattr(value, "name", value))
def test_our_own_engine_answers(toy, architecture, tmp_path):
    """From the adapter on disk; the likeliest tokens are those of transformers."""
    case = make_case(architecture, tmp_path, num_hidden_layers=BLOCKS)
    model = case.decoder.model
    blocks = "all" if toy.virtual_tokens else "last:2"
    trainer = Trainer(model.gguf.path, family=toy, blocks=blocks, seed=3, max_length=32, threads=1)
    shaken(trainer.decoder.adapter.values)
    trainer.save(tmp_path / "out")
    opened = adapter_of(model.gguf, tmp_path / "out")
    prompts = [[5, 6, 7], [*range(5, 75)], [*range(5, 70), 80]]  # more than the engine shares as a whole
    asked = TokenPrompts(prompts, [9] * len(prompts), sampling=Sampling(temperature=0.0))
    engine = Engine(1 << 40, "all", precision="exact", threads=1)
    found = {one.prompt: one.tokens.tolist() for one in draw(Model(model.gguf), opened, asked, engine, lambda _: False)}
    with torch.no_grad(), adapted(case.model, toy, trainer.decoder.adapter.values) as leaves:
        for number, prompt in enumerate(prompts):
            tokens = [*prompt]
            while len(tokens) < len(prompt) + 9:
                tokens.append(int(logits_of(case.model, toy, leaves, np.array(tokens))[-1].argmax()))
            assert found[number] == tokens[len(prompt):]


@pytest.mark.parametrize("toy", [PROMPT, PREFIX], ids=lambda toy: toy.name)
def test_answers_that_a_step_learns_from(bundle, toy):
    """Their log p, as they were drawn, is that of a pass which reads them."""
    objective = Grpo(max_completion_length=9, beta=0.1)
    options = {name: value for name, value in LETTERS.items() if name != "rank"}
    trainer = Trainer(bundle, family=toy, **options, objective=objective, rewards=letters)
    trainer.add_examples(prompts(bundle, objective).examples)
    answered = trainer.source.roller.answer(trainer.examples[:3], 2, 0, 1)
    for prompt, rollouts in zip(answered.prompts, answered.answers, strict=True):
        for one in rollouts:
            weights = np.r_[np.zeros(prompt.tokens.size), np.ones(one.tokens.size)].astype(np.float32)
            batch = collate([Example(np.concatenate([prompt.tokens, one.tokens]), weights)])
            np.testing.assert_allclose(trainer.decoder.score(batch), one.logp, atol=1e-4)
    assert [step.grad_norm > 0 for step in (trainer.step(), trainer.step())] == [True, True]


def test_a_part_that_a_network_lacks_is_refused(bundle, monkeypatch):
    monkeypatch.setattr(PromptTuning, "adapts", ("router",))
    with pytest.raises(UsageError, match="no router"):
        Trainer(bundle, family=PROMPT, max_length=24)


def test_keys_in_some_blocks_alone_are_refused(bundle):
    for blocks in ("last:1", "first:1"):
        with pytest.raises(UsageError, match=r"prefix.*1 of 2 blocks.*--blocks all"):
            Trainer(bundle, family=PREFIX, max_length=24, blocks=blocks)
    with pytest.raises(UsageError, match="budget") as refused:
        Trainer(bundle, family=PREFIX, max_length=24, memory="1M")
    assert "blocks" not in str(refused.value)


def test_a_setting_that_fits_no_model_is_refused(bundle, tmp_path):
    made = Trainer(bundle, family=PROMPT, max_length=24, threads=1).artifact()
    for setting, error in ((Setting(blocks=[1]), FormatError), (Setting({"prompt_tokens": 0}, [], [0, 1]), UsageError),
                           (Setting({}, ["attn_q"], [0, 9]), MismatchError),
                           (Setting({}, ["attn_z"], [0, 1]), MismatchError)):
        save_artifact(tmp_path / "adapter.gguf", replace(made, setting=setting), bundle.gguf)
        with pytest.raises(error):
            forward_run(Model(bundle.gguf), adapter_of(bundle.gguf, tmp_path / "adapter.gguf"), threads=1, max_tokens=9,
                        max_length=9, precision="exact")


def test_commands_train_and_serve_it(bundle, tmp_path):
    """By our own engine, as files of prompts and as any other model; a LoRA cannot be made of it."""
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"prompt": "on", "completion": "off"}\n' * 4)
    out = tmp_path / "out"
    said = command("train", bundle.path, rows, "-o", out, "--family", "houlsby", "--steps", 12, "--lr", 0.1,
                   "--eval", rows, "--threads", 1, "--anchors", 0, "--precision", "exact")
    assert said.endswith(f"edgetune chat {bundle.path} --adapter {out}\n")
    asked = (bundle.path, rows, "--adapter", out, "--engine", "native", "--threads", 1)
    answer = json.loads(command("generate", *asked, "--max-tokens", 5).splitlines()[0])
    assert answer["prompt"] == "on"
    of_adapter, of_base = (json.loads(command("eval", *asked[:2], *more, *asked[4:], "--json"))["loss"]
                           for more in (asked[2:4], ()))
    assert of_adapter == pytest.approx(Result(out, read_run(out)).loss_after, rel=1e-3)
    assert of_adapter < of_base
    served = json.loads(command("eval", *asked[:4], "--threads", 1, "--json"))
    assert served["loss"] == pytest.approx(of_adapter, abs=0.02)
    assert served["engine"] == "native"
    assert command("generate", bundle.path, "on", "--adapter", out, "--max-tokens", 5) == answer["text"] + "\n"
    for refused in (("merge", bundle.path, out, "-o", tmp_path / "merged.gguf"),
                    ("export", out, "-o", tmp_path / "peft")):
        said = command(*refused, code=UnsupportedError.exit_code)
        assert re.search("family houlsby.*answer with edgetune's commands and daemon", said)
    assert recipe.options(TrainConfig(), {"family": "houlsby"}).family == Houlsby()
