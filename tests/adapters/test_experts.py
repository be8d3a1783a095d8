"""LoRA on experts as an adapter: what llama.cpp serves, what is merged, exported, resumed and refused."""

import re

import gguf
import numpy as np
import peft
import pytest
import torch
from commands import run as command
from families import hf_logits, logits_of, make_family
from random_adapters import distance, random_updates
from slopes import slope_and_norm
from small_families import OPTIONS, data, small, trained
from tiny import write_tiny

from edgetune.adapters.base import families
from edgetune.adapters.lora import Pair, expert_name
from edgetune.adapters.peft import export_peft, import_peft
from edgetune.adapters.store import open_adapter, save_gguf
from edgetune.data.packing import collate
from edgetune.errors import EdgetuneError, FormatError, Interrupted, MismatchError, UnsupportedError, UsageError
from edgetune.formats.bundle import open_bundle
from edgetune.formats.families import OF_EXPERTS
from edgetune.formats.gguf import open_gguf
from edgetune.serving.rollouts.forward import open_decoder
from edgetune.training.callbacks import RunCallbacks
from edgetune.training.config import TrainConfig
from edgetune.training.run import run
from edgetune.training.trainer import Trainer

MIXTURES = ("qwen3moe", "olmoe", "granitemoe", "lfm2moe")
TARGETS = "q_proj,gate_proj,up_proj,down_proj"
TAKEN = sorted(name for name, family in families().items() if family.takes_experts)
OTHERS = sorted(families().keys() - {*TAKEN})
TOKENS = np.random.default_rng(3).integers(0, 400, size=40).tolist()


def random_experts(base, rank=4, scale=2.0, size=0.5, seed=0):
    """Pairs of all experts of all blocks."""
    rng = np.random.default_rng(seed)
    pairs = {}
    for name, tensor in base.tensors.items():
        if len(tensor.shape) == 3:
            count, n, k = tensor.shape
            for i in range(count):
                a = rng.standard_normal((rank, k)) / np.sqrt(k)
                b = rng.standard_normal((n, rank)) / np.sqrt(rank) / scale * size
                stack = name.removesuffix(".weight")
                pairs[expert_name(stack, i)] = Pair(a.astype(np.float32), b.astype(np.float32), scale)
    return pairs


# ---- what llama.cpp serves -------------------------------------------------------------------------------------------


@pytest.mark.dev
@pytest.mark.parametrize("architecture", MIXTURES)
def test_what_was_trained_is_what_llama_cpp_serves_and_what_is_merged(architecture, tiny_models, tmp_path):
    """The same logits from our decoder, llama.cpp with the file, our engine with the file, and the merged model."""
    path = tiny_models[architecture]
    trainer = trained(path, small("lora"), lr=0.05, targets=TARGETS)
    trainer.save(tmp_path / "out")
    batch = collate(data(1).examples[:1])
    tokens = batch.tokens.tolist()
    ours = trainer.decoder.logits(batch)
    served = logits_of(path, tokens, tmp_path / "out" / "adapter.gguf")
    assert distance(served, ours) < 1e-4
    plain = logits_of(path, tokens)
    assert distance(plain, ours) > 0.01, "it has learned nothing to compare"
    shapes = {t.name: t.shape.tolist() for t in gguf.GGUFReader(tmp_path / "out" / "adapter.gguf").tensors}
    base = open_gguf(path)
    last = trainer.model.shape.n_layer - 1
    count, n, k = base.tensors[f"blk.{last}.ffn_up_exps.weight"].shape
    assert shapes[f"blk.{last}.ffn_up_exps.weight.lora_a"] == [k, 4, count]
    assert shapes[f"blk.{last}.ffn_up_exps.weight.lora_b"] == [4, n, count]
    alone = open_decoder(base, open_adapter(tmp_path / "out", base).pairs, threads=1, max_tokens=30, max_length=24)
    assert distance(alone.logits(batch), ours) < 1e-5
    for to in ("F32", "keep", "Q8_0"):
        command("adapters", "merge", path, tmp_path / "out", "-o", tmp_path / f"{to}.gguf", "--to", to)
        if to != "Q8_0":  # in which some tokens may take other experts
            assert distance(logits_of(tmp_path / f"{to}.gguf", tokens), ours) < 1e-4
    exact, rounded = (open_gguf(tmp_path / f"{to}.gguf").tensors for to in ("F32", "Q8_0"))
    assert max(distance(rounded[name].f32(), tensor.f32()) for name, tensor in exact.items()) < 0.01
    shown = command("models", "info", tmp_path / "out")
    assert "ffn_up_exps" in shown
    assert "ffn_up_exps.0" not in shown


def test_adapters_of_experts_are_merged_and_cut(tiny_models, tmp_path):
    """The mean of two alike is either; a cut adapter is one of the nested ranks."""
    path = tiny_models["olmoe"]
    trained(path, small("dylora"), lr=0.05, targets=TARGETS).save(tmp_path / "a")
    command("adapters", "combine", tmp_path / "a", tmp_path / "a", "-o", tmp_path / "both", "--base", path)
    plain, one, both = (logits_of(path, TOKENS, tmp_path / adapter / "adapter.gguf" if adapter else None)
                        for adapter in ("", "a", "both"))
    assert distance(both, one) < 1e-5 < distance(plain, one)
    command("adapters", "export", tmp_path / "a", "--rank", 2, "-o", tmp_path / "cut", "--base", path)
    whole, less = (open_adapter(tmp_path / name).pairs for name in ("a", "cut"))
    assert whole.keys() == less.keys()
    assert all(np.array_equal(less[name].a, pair.a[:2]) for name, pair in whole.items())


@pytest.mark.parametrize("architecture", MIXTURES)
def test_only_named_targets_are_trained(architecture, tiny_models):
    """Without names attention, and what blocks without experts have; by PEFT's names those of all blocks."""
    usual = Trainer(tiny_models[architecture], family=small("lora"), **OPTIONS)
    assert not any("exps" in name for name in usual.pairs)
    named = Trainer(tiny_models[architecture], family=small("lora"), targets="up_proj", **OPTIONS)
    kinds = {re.sub(r"blk\.\d+\.", "", name).split(".")[0] for name in named.pairs}
    assert kinds == {"ffn_up_exps", *(["ffn_up"] if architecture == "lfm2moe" else [])}


@pytest.mark.parametrize("name", TAKEN)
def test_gradients_of_every_family_that_takes_them_are_the_slope_of_the_loss(name, tiny_models):
    trainer = Trainer(tiny_models["lfm2moe"], family=small(name), targets=TARGETS, **OPTIONS)
    values = trainer.arena.flat("lora")
    values[:] += np.random.default_rng(0).standard_normal(values.size) / 10
    batch = collate(data(3).examples)
    slope, norm = slope_and_norm(trainer.decoder, batch, 1e-3)
    assert slope == pytest.approx(norm, rel=2e-2)


@pytest.mark.dev
@pytest.mark.parametrize("name", TAKEN)
def test_every_family_that_takes_them_is_served(name, tiny_models, tmp_path):
    trainer = trained(tiny_models["qwen3moe"], small(name), lr=0.05, targets=TARGETS)
    trainer.save(tmp_path / "out")
    batch = collate(data(1).examples[:1])
    ours = trainer.decoder.logits(batch)
    served = logits_of(tiny_models["qwen3moe"], batch.tokens.tolist(), tmp_path / "out" / "adapter.gguf")
    assert distance(served, ours) < 1e-4
    again = Trainer(tiny_models["qwen3moe"], **{**OPTIONS, "family": small(name), "seed": 5, "targets": TARGETS})
    again.load(tmp_path / "out")
    assert distance(again.decoder.logits(batch), ours) < 1e-5


@pytest.mark.parametrize("name", OTHERS)
def test_other_families_refuse_them_in_a_sentence(name, tiny_models):
    with pytest.raises(UsageError, match=f"the family {name} does not adapt experts, which ffn_up_exps are"):
        Trainer(tiny_models["qwen3moe"], family=small(name), targets="up_proj", **OPTIONS)


def test_dropout_is_the_same_in_forward_and_backward(tiny_models):
    """The gradient is the slope of the loss with the masks of one seed."""
    family = families()["lora"](rank=4, alpha=4.0, dropout=0.3)
    trainer = Trainer(tiny_models["olmoe"], family=family, targets=TARGETS, **OPTIONS)
    decoder = trainer.decoder
    values = trainer.arena.flat("lora")
    values[:] += np.random.default_rng(0).standard_normal(values.size) / 10
    batch = collate(data(3).examples)
    decoder.adapter.before_pass(7)
    slope, norm = slope_and_norm(decoder, batch, 1e-3)
    assert slope == pytest.approx(norm, rel=2e-2)


# ---- a run -----------------------------------------------------------------------------------------------------------


@pytest.mark.dev
@pytest.mark.parametrize("weights", ["resident", "streamed"])
def test_a_stopped_run_resumes_to_the_same_bytes(weights, tiny_models, tmp_path):
    config = TrainConfig(steps=6, optimizer_state="8bit", family=small("lora"), targets=TARGETS, weights=weights,
                         recompute="block", **OPTIONS)
    def go(name, resume=False, stop=lambda: False):
        run(open_bundle(tiny_models["olmoe"]), data(9), tmp_path / name, config, held_out=data(3, seed=1),
            resume=resume, callbacks=RunCallbacks(should_stop=stop))

    go("whole")
    for number, calls in enumerate((2, 14, 40)):
        left = iter(range(10**6))
        with pytest.raises(Interrupted):
            go("out", number > 0, lambda left=left, calls=calls: next(left) > calls)
    go("out", resume=True)
    assert (tmp_path / "out/adapter.gguf").read_bytes() == (tmp_path / "whole/adapter.gguf").read_bytes()


def test_streamed_and_recomputed_it_learns_the_same(tiny_models):
    """To the bit: the same products, in the same order."""
    found = []
    for more in ({}, {"recompute": "block"}, {"weights": "streamed"}, {"weights": "streamed", "recompute": "block"}):
        trainer = trained(tiny_models["qwen3moe"], small("lora"), targets=TARGETS, **more)
        found.append(trainer.arena.flat("lora").copy())
    assert all(np.array_equal(found[0], other) for other in found[1:])


# ---- PEFT ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", ["qwen3moe", "olmoe"])
def test_peft_loads_them_by_plain_names(architecture, tmp_path):
    path, model = make_family(architecture, tmp_path)
    base = open_gguf(path)
    pairs = random_experts(base)
    save_gguf(tmp_path / "a.gguf", pairs, base)
    export_peft(pairs, base, tmp_path / "peft")
    plain = hf_logits(model, TOKENS)
    tuned = peft.PeftModel.from_pretrained(model, tmp_path / "peft")
    assert tuned.peft_config["default"].target_modules == {"gate_proj", "up_proj", "down_proj"}
    truth = hf_logits(tuned, TOKENS)
    assert distance(truth, plain) > 0.1, "an adapter that changes nothing proves nothing"
    assert distance(logits_of(path, TOKENS, tmp_path / "a.gguf"), truth) < 1e-3
    back = import_peft(tmp_path / "peft", base)
    assert back.keys() == pairs.keys()
    assert all(np.array_equal(back[name].a, pair.a) and np.array_equal(back[name].b, pair.b)
               for name, pair in pairs.items())


def test_what_peft_trained_on_more_than_ten_experts_is_served(tmp_path):
    """Its file names expert 10 before expert 2."""
    path, model = make_family("qwen3moe", tmp_path, num_experts=12)
    torch.manual_seed(0)
    config = peft.LoraConfig(task_type="CAUSAL_LM", r=4, lora_alpha=8, target_modules=["q_proj", "down_proj"])
    tuned = peft.get_peft_model(model, config).eval()
    with torch.no_grad():
        for name, parameter in tuned.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.3)
    tuned.save_pretrained(tmp_path / "peft")
    base = open_gguf(path)
    save_gguf(tmp_path / "a.gguf", import_peft(tmp_path / "peft", base), base)
    truth = hf_logits(tuned, TOKENS)
    assert distance(logits_of(path, TOKENS, tmp_path / "a.gguf"), truth) < 1e-3
    with tuned.disable_adapter():
        assert distance(truth, hf_logits(tuned, TOKENS)) > 0.1


@pytest.mark.dev
@pytest.mark.parametrize("kinds", [("gate", "up", "down"), ("up",), ("gate", "down")], ids="+".join)
@pytest.mark.parametrize(("family", "more"), [
    ("granitemoe", {}), ("granitemoe", {"blk.1.attn_q": 3, "blk.1.attn_v": 3}),
    ("granitehybridmoe", {"blk.0.ffn_up_shexp": 3, "blk.1.ffn_gate_shexp": 3, "blk.1.ffn_down_shexp": 3}),
], ids=["alone", "attention", "shared"])
def test_peft_loads_granites_as_parameters(kinds, family, more, tmp_path):
    """Two of its three projections are one parameter there."""
    path, model = make_family(family, tmp_path)
    base = open_gguf(path)
    pairs = {name: pair for name, pair in random_experts(base).items() if name.split("_")[1] in kinds}
    for name, rank in more.items():
        pairs |= random_updates(base, [name], [rank], [0.5])
    save_gguf(tmp_path / "a.gguf", pairs, base)
    export_peft(pairs, base, tmp_path / "peft")
    plain = hf_logits(model, TOKENS)
    truth = hf_logits(peft.PeftModel.from_pretrained(model, tmp_path / "peft"), TOKENS)
    assert distance(truth, plain) > 0.01, "an adapter that changes nothing proves nothing"
    assert distance(logits_of(path, TOKENS, tmp_path / "a.gguf"), truth) < 1e-3
    with pytest.raises(UnsupportedError, match="target_parameters"):
        import_peft(tmp_path / "peft", base)


def test_what_peft_cannot_hold_by_names_is_refused(tiny_models, tmp_path):
    base = open_gguf(tiny_models["lfm2moe"])
    with pytest.raises(UnsupportedError, match="transformers holds all experts of such a block in one parameter"):
        export_peft(random_experts(base), base, tmp_path / "peft")
    assert not (tmp_path / "peft").exists()


# ---- files that do not fit -------------------------------------------------------------------------------------------


def write_experts(path, tensors, architecture="qwen3moe"):
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_type("adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", 8.0)
    for name, shape in tensors.items():
        writer.add_tensor(name, np.zeros(shape, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


UP = "blk.0.ffn_up_exps.weight"


@pytest.mark.parametrize(("shapes", "kind", "said"), [
    ({f"{UP}.lora_a": (5, 4, 64), f"{UP}.lora_b": (5, 128, 4)}, MismatchError,
     r"of shape \[5, 128, 64\].*\[6, 128, 64\]"),
    ({f"{UP}.lora_a": (7, 4, 64), f"{UP}.lora_b": (7, 128, 4)}, MismatchError, r"of shape \[7, 128, 64\]"),
    ({f"{UP}.lora_a": (6, 4, 32), f"{UP}.lora_b": (6, 128, 4)}, MismatchError, r"of shape \[6, 128, 32\]"),
    ({f"{UP}.lora_a": (6, 4, 64), f"{UP}.lora_b": (5, 128, 4)}, FormatError, "has 6 experts, .* has 5"),
    ({f"{UP}.lora_a": (6, 4, 64), f"{UP}.lora_b": (6, 128, 3)}, FormatError, "has rank 4, .* has 3"),
    ({f"{UP}.lora_a": (4, 64), f"{UP}.lora_b": (128, 4)}, UnsupportedError, "with 2 dimensions"),
    ({"blk.9.ffn_up_exps.weight.lora_a": (6, 4, 64), "blk.9.ffn_up_exps.weight.lora_b": (6, 128, 4)}, MismatchError,
     "no such tensor"),
    ({"blk.0.attn_q.weight.lora_a": (6, 4, 64), "blk.0.attn_q.weight.lora_b": (6, 128, 4)}, UnsupportedError,
     "with 3 dimensions"),
])
def test_a_file_that_does_not_fit_is_refused_before_llama_cpp_sees_it(shapes, kind, said, tiny_models, tmp_path):
    """llama.cpp does not compare the numbers of experts."""
    base = open_gguf(tiny_models["qwen3moe"])
    assert base.tensors[UP].shape == (6, 128, 64)
    with pytest.raises(kind, match=said):
        open_adapter(write_experts(tmp_path / "a.gguf", shapes), base)


def test_experts_of_several_ranks_are_no_file(tiny_models, tmp_path):
    base = open_gguf(tiny_models["qwen3moe"])
    pairs = random_experts(base)
    name = expert_name("blk.0.ffn_up_exps", 3)
    pairs[name] = Pair(pairs[name].a[:2], pairs[name].b[:, :2].copy(), 2.0)
    with pytest.raises(UnsupportedError, match="a file has one rank for all"):
        save_gguf(tmp_path / "a.gguf", pairs, base)
    assert not (tmp_path / "a.gguf").exists()


def test_a_model_without_experts_says_what_it_has(tmp_path):
    path = write_tiny(tmp_path / "phi.gguf", "phi3")
    with pytest.raises(EdgetuneError, match="this model has no ffn_gate in its blocks"):
        Trainer(path, targets="gate_proj", **OPTIONS)
    assert set(OF_EXPERTS) == {"gate_proj", "up_proj", "down_proj"}
