"""Full fine-tuning of quantized models: what is measured is the file that `merge` writes, by llama.cpp's answers."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from decoder_cases import distance
from encoders import WORDS, tiny_bert, write_encoder
from families import logits_of
from small_families import OPTIONS, data, small, trained
from tiny import write_tiny

from edgetune.adapters.full import Full
from edgetune.adapters.merge import merge
from edgetune.adapters.store import read_artifact, save_artifact
from edgetune.data.packing import collate
from edgetune.errors import FormatError, MismatchError, NumericsError, UsageError
from edgetune.formats.gguf import Tensor, open_gguf, write_gguf
from edgetune.objectives.classify import Classify
from edgetune.serving.rollouts.forward import open_decoder
from edgetune.training.config import TrainConfig
from edgetune.training.trainer import Trainer

WIDE = {"d_model": 256, "d_ff": 256, "head_width": 64, "n_kv_heads": 4}  # rows that K-quants can hold


@pytest.mark.dev
@pytest.mark.parametrize(("weight_format", "base", "written"), [
    ("Q8_0", "Q4_1", "Q8_0"), ("F16", "Q4_K", "F16"), ("keep", "Q4_1", "Q4_1"), ("keep", "Q4_K", "Q4_K"),
    ("Q8_0", "F16", "F16")])
def test_the_measured_model_is_the_merged_one(weight_format, base, written, tmp_path):
    path = write_tiny(tmp_path / "q.gguf", formats={"token_embd": "Q8_0", "blk": base}, **WIDE)
    trainer = trained(path, Full(weight_format=weight_format), blocks="last:1", lr=0.02)
    batch = collate(data(1).examples)
    floats = trainer.arena.flat("lora").copy()
    measured = trainer.decoder.logits(batch)
    trainer.save(tmp_path / "out")
    gguf = open_gguf(path)
    found = read_artifact(tmp_path / "out", gguf)
    assert {tensor.format for tensor in found.weights.values() if len(tensor.shape) == 2} == {written}
    merge(gguf, {}, tmp_path / "m.gguf", "keep", weights=found.weights)
    alone = open_decoder(gguf, found, threads=1, max_tokens=30, max_length=24)
    merged = open_decoder(open_gguf(tmp_path / "m.gguf"), {}, threads=1, max_tokens=30, max_length=24)
    assert distance(alone.logits(batch), measured) < 1e-4
    assert distance(merged.logits(batch), measured) < 1e-4
    assert distance(logits_of(tmp_path / "m.gguf", batch.tokens.tolist()), measured) < 0.05  # it rounds activations
    for to, limit in (("F16", 5e-3), ("Q8_0", 0.05)):
        merge(gguf, {}, tmp_path / f"{to}.gguf", to, weights=found.weights)
        other = open_decoder(open_gguf(tmp_path / f"{to}.gguf"), {}, threads=1, max_tokens=30, max_length=24)
        assert distance(other.logits(batch), measured) < limit
    assert np.array_equal(trainer.arena.flat("lora"), floats)
    trainer.decoder.adapter.before_pass(1)  # a pass that learns computes with the masters
    assert distance(trainer.decoder.logits(batch), measured) > {"F16": 1e-5}.get(written, 1e-3)


def test_untrained_it_has_the_bytes_of_the_base(tmp_path):
    """Also where encoding again would change them."""
    path = write_tiny(tmp_path / "q.gguf", formats={"blk": "Q4_K"}, **WIDE)
    for weight_format in ("Q8_0", "keep"):
        trainer = Trainer(path, family=Full(weight_format=weight_format), **OPTIONS)
        base = open_gguf(path).tensors
        for name, tensor in trainer.artifact().weights.items():
            assert (tensor.format, tensor.data.tobytes()) == (base[name].format, base[name].data.tobytes())
        alone = open_decoder(open_gguf(path), {}, threads=1, max_tokens=30, max_length=24)
        batch = collate(data(1).examples)
        assert distance(trainer.decoder.logits(batch), alone.logits(batch)) < 1e-5


def test_an_update_is_adamws_on_the_dequantized_weights(tmp_path):
    """By numpy, from the gradient; also with moments in 8 bits, whose first step is the same."""
    path = write_tiny(tmp_path / "q.gguf", formats={"blk": "Q4_1"})
    for state in ("float", "8bit"):
        options: dict[str, Any] = {**OPTIONS, "max_grad_norm": 0.0, "weight_decay": 0.1, "warmup": 0.0}
        trainer = Trainer(path, family=Full(), optimizer_state=state, steps=1, **options)
        trainer.add_examples(data(3).examples)
        base = open_gguf(path).tensors
        before = {name: base[name].f32() for name in trainer.decoder.adapter.values}
        lr = trainer.step().lr
        for name, value in trainer.decoder.adapter.values.items():
            grad = trainer.decoder.adapter.gradients[name]
            decay = 0.1 if value.ndim == 2 else 0.0
            expected = before[name] * (1 - lr * decay) - lr * grad / (np.abs(grad) + 1e-8)
            assert distance(value, expected) < 1e-4, (state, name)


def test_streamed_weights_make_the_same_bytes(tmp_path):
    path = write_tiny(tmp_path / "q.gguf", formats={"blk": "Q4_1"})
    found = []
    for weights in ("resident", "streamed"):
        trainer = trained(path, Full(), weights=weights)
        found.append({name: tensor.data.tobytes() for name, tensor in trainer.artifact().weights.items()})
        found[-1]["loss"] = trainer.loss(trainer.examples)[0]
    assert found[0] == found[1]


def test_what_it_cannot_train_is_refused(tmp_path):
    path = write_tiny(tmp_path / "q.gguf", formats={"blk": "Q2_0"}, **WIDE)
    with pytest.raises(UsageError, match=r"Q2_0, which cannot be written again .* --weight-format"):
        Trainer(path, family=Full(weight_format="keep"), **OPTIONS)
    encoder = write_encoder(tmp_path / "encoder.gguf", tiny_bert(), WORDS)
    with pytest.raises(UsageError, match="no norms to adapt"):
        Trainer(encoder, TrainConfig(family=Full(), max_length=16), objective=Classify(("on", "off")))


def vector(name: str, values: np.ndarray) -> Tensor:
    return Tensor(name, values.shape, "F32", values.astype(np.float32).view(np.uint8))


def test_weights_that_do_not_fit_or_are_no_numbers_are_refused(bundle, tmp_path):
    path = tmp_path / "adapter.gguf"
    made = trained(bundle, small("bitfit")).artifact()
    name = "blk.0.attn_norm.weight"
    for wrong, says in ((vector(name, np.ones(9)), r"changes blk\.0\.attn_norm of shape \[9\], .* has \[64\]"),
                        (vector("blk.9.x", np.ones(9)), r"changes blk\.9\.x .* has no such tensor")):
        found = replace(made, weights={**made.weights, wrong.name: wrong})
        save_artifact(path, found, bundle.gguf)
        for use in (lambda: read_artifact(path, bundle.gguf),
                    lambda found=found: merge(bundle.gguf, {}, tmp_path / "m.gguf", "keep", weights=found.weights)):
            with pytest.raises(MismatchError, match=says):
                use()
    with pytest.raises(NumericsError, match=r"attn_norm.* not finite"):
        save_artifact(path, replace(made, weights={name: vector(name, np.full(64, np.nan))}), bundle.gguf)
    with pytest.raises(MismatchError, match="--blocks"):
        Trainer(bundle, family=small("bitfit"), blocks="last:1", **OPTIONS).decoder.adapter.load(made, "it")


def test_a_damaged_file_is_refused(bundle, tmp_path):
    path = tmp_path / "adapter.gguf"
    metadata = {"general.type": "adapter", "adapter.type": "edgetune", "edgetune.family": "bitfit",
                "edgetune.served_by": "llama.cpp", "edgetune.replaces": True,
                "edgetune.setting": '{"options": {}, "targets": [], "blocks": [0, 1], "seed": 0}'}
    write_gguf(path, bundle.gguf.architecture, metadata, {"output_norm.weight": np.full(64, np.inf, np.float32)})
    with pytest.raises(FormatError, match=r"output_norm\.weight has values that are not finite"):
        read_artifact(path, bundle.gguf)
