"""A nomic-bert on its weights, compared with llama.cpp, its gradient with finite differences."""

import re

import numpy as np
import pytest
from encoders import WORDS, tiny_bert, vectors, write_encoder
from labelled import LLAMA_CPP, TEXTS, close, documents, open_trainer, our_gradient, read_texts, set_random, tags
from tiny import write_gguf

from edgetune.adapters.heads import VECTOR
from edgetune.data.packing import collate
from edgetune.formats.gguf import open_gguf

N_TAGS = 3


@pytest.fixture(scope="module")
def nomic(tmp_path_factory):
    """The tiny one with rotations, a gate, and one projection for queries, keys and values."""
    folder = tmp_path_factory.mktemp("nomic")
    file = open_gguf(write_encoder(folder / "bert.gguf", tiny_bert(), WORDS))
    rng = np.random.default_rng(5)
    metadata = {key.replace("bert.", "nomic-bert.", 1) if key.startswith("bert.") else key: value
                for key, value in file.metadata.items() if key != "general.architecture"}
    tensors = {}
    for name, tensor in file.tensors.items():
        block, _, part = name.rpartition("attn_q.")
        if block or ".attn_k." in name or ".attn_v." in name:
            if block:
                tensors[f"{block}attn_qkv.{part}"] = np.concatenate(
                    [file.tensors[f"{block}attn_{each}.{part}"].f32() for each in "qkv"])
        elif name != "position_embd.weight" and not re.search(r"ffn_\w+\.bias", name):
            tensors[name] = np.array(tensor.f32())
        if name.endswith("ffn_up.weight"):
            tensors[name.replace("_up", "_gate")] = rng.standard_normal(tensor.shape).astype(np.float32) / 8
    return write_gguf(folder / "nomic.gguf", "nomic-bert",
                      {**metadata, "nomic-bert.rope.freq_base": 1000.0}, tensors)


def test_vectors_of_a_nomic_bert_equal_llama_cpp(nomic):
    rows = read_texts(nomic)
    found = open_trainer(nomic, VECTOR, max_length=96).decoder.pooled(collate(rows, share=False))
    close(found, vectors(nomic, TEXTS), LLAMA_CPP)


@pytest.mark.parametrize("options", [{}, {"recompute": "block", "weights": "streamed"}])
def test_gradient_of_a_nomic_bert_by_finite_differences(nomic, options):
    """Of the adapter of each projection, and of the head."""
    trainer = open_trainer(nomic, tags(N_TAGS), **options)
    set_random(trainer)
    rows = documents((7, 2, 30), "others", lambda i, t: (i + t) % N_TAGS)
    batch = collate(rows, share=False)
    a = np.random.default_rng(2).standard_normal(batch.supervised.size).astype(np.float32)
    _, gradient = our_gradient(trainer, batch, a)
    lora = trainer.arena.flat("lora")
    start = lora.copy()
    trained = trainer.decoder.adapter.adapted
    assert {name.split(".")[2] for name in trained} == {"attn_qkv", "attn_output", "ffn_gate", "ffn_up", "ffn_down"}
    parts = [part for pair in trained.values() for part in (pair.a, pair.b)]
    parts += [head.weight for head in trainer.decoder.head.by_name.values()]
    for part in parts:
        begin = (part.__array_interface__["data"][0] - lora.__array_interface__["data"][0]) // 4
        own = slice(begin, begin + part.size)
        norm = float(np.linalg.norm(gradient[own]))

        def loss(step, own=own, norm=norm):
            lora[:] = start
            lora[own] += np.float32(step) * gradient[own] / np.float32(norm)
            return -float(trainer.decoder.score(batch).astype(np.float64) @ a)

        assert (loss(1e-3) - loss(-1e-3)) / 2e-3 == pytest.approx(norm, rel=1e-2)
