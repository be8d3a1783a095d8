"""Rows longer than a piece of what has a state, with branches within pieces and at their ends (data/packing.py)."""

from dataclasses import replace
from pathlib import Path

import numpy as np
from decoder_cases import make_decoder, random_pair
from families import logits_of
from random_adapters import distance

from edgetune.adapters.base import Artifact
from edgetune.adapters.low_rank import LoraFamily
from edgetune.adapters.store import save_gguf
from edgetune.data.packing import Example, collate
from edgetune.formats.gguf import open_gguf
from edgetune.models.decoder import Decoder, Model
from edgetune.models.linear import RunShape

LIMIT = 1e-4
SERVED = 5e-4  # of llama.cpp, whose keys are in 16 bits


def rows_that_branch(n_vocab: int) -> list[np.ndarray]:
    rng = np.random.default_rng(2)
    stem = rng.integers(0, n_vocab, 300).astype(np.int32)
    ends = [0, 30, 64, 65, 128, 190, 191, 192, 256]
    rows = [np.concatenate([stem[:end], rng.integers(0, n_vocab, 20 + 9 * i).astype(np.int32)])
            for i, end in enumerate(ends)]
    return [stem, *rows, stem[:140]]


def decoder_of(path: Path, tokens: int, kept: int = 1) -> Decoder:
    """With a random adapter on each projection."""
    model = Model(open_gguf(path))
    run = RunShape(max_tokens=tokens, max_length=400, family=LoraFamily(rank=4, alpha=4), threads=2, precision="exact",
                   targets=model.structure.targets(), blocks=range(model.shape.n_layer), kept=kept)
    decoder = make_decoder(model, run)
    rng = np.random.default_rng(3)
    pairs = {key: random_pair(rng, pair.a.shape, pair.b.shape) for key, pair in decoder.adapter.adapted.items()}
    decoder.adapter.load(Artifact(pairs), "pairs")
    return decoder


def check_served(path: Path) -> float:
    """Logits of a text of several pieces, with an adapter on each projection and without, are llama.cpp's. Returns how
    far the adapter moves them.
    """
    decoder = decoder_of(path, 200)
    tokens = np.random.default_rng(3).integers(10, 400, 200).astype(np.int32)
    batch = collate([Example(tokens, np.ones(200, np.float32))])
    adapter = path.with_name("adapter.gguf")
    save_gguf(adapter, decoder.adapter.artifact().pairs, open_gguf(path))
    served = logits_of(path, tokens.tolist(), adapter)
    assert distance(decoder.logits(batch), served) < SERVED
    with decoder.linear.off():
        plain = logits_of(path, tokens.tolist())
        assert distance(decoder.logits(batch), plain) < SERVED
    return distance(served, plain)


def check_forest(path: Path, kept: int) -> None:
    """Log-probabilities and gradients, where pieces end at other tokens than in the rows, are those of the rows alone.
    """
    rng = np.random.default_rng(4)
    rows = [Example(row, rng.standard_normal(row.size).astype(np.float32)) for row in rows_that_branch(400)]
    rows = [replace(row, weights=np.where(np.arange(row.tokens.size) > 0, row.weights, 0)) for row in rows]
    found = {}
    for name, batches in (("forest", [collate(rows)]), ("alone", [collate([row]) for row in rows])):
        decoder = decoder_of(path, max(max(batch.tokens.size, batch.supervised.size) for batch in batches), kept)
        decoder.arena.flat("dlora").fill(0.0)
        logps = []
        for batch in batches:
            decoder.forward(batch, keep=True)
            logps.append(decoder.backward(batch, batch.supervised_weights).copy())
        found[name] = np.concatenate(logps), decoder.arena.flat("dlora").copy()
    for ours, theirs in zip(found["forest"], found["alone"], strict=True):
        assert distance(ours, theirs) < LIMIT
