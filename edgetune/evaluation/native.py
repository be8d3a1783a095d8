"""Held-out loss by edgetune's engine, with any adapter and without training state."""

from __future__ import annotations

import numpy as np

from ..adapters.lora import Lora, Pair
from ..adapters.low_rank import CarvedLora, LoraFamily
from ..backends.arena import Arena, Buffer
from ..backends.cpu import Cpu
from ..data.dataset import Dataset
from ..data.trees import micro_batches
from ..errors import MismatchError
from ..formats.bundle import Bundle
from ..machine.device import thread_count
from ..models.decoder import Decoder, Model
from ..models.linear import RunShape, trained_shapes
from ..objectives.sft import Sft
from ..training.passes import measure


def native_loss(bundle: Bundle, dataset: Dataset, pairs: Lora | None = None, *, threads: int = 0,
                micro_batch: int = 1024) -> tuple[float, int]:
    """(mean -log p of the supervised tokens by weight, in natural log, their number)."""
    model = Model(bundle.gguf)
    decoder = open_decoder(model, pairs or {}, threads=threads, max_tokens=max(
        micro_batch, *(e.tokens.size for e in dataset.examples)),
        max_length=max(e.tokens.size for e in dataset.examples))
    measured = measure(decoder, Sft(), micro_batches(dataset.examples, decoder.run.max_tokens))
    return measured.loss, measured.supervised


def open_decoder(model: Model, pairs: Lora, *, threads: int, max_tokens: int, max_length: int,
                 precision: str = "exact") -> Decoder:
    """A decoder for forward passes with any adapter; pairs of a lower rank are padded with zeros.

    Raises MismatchError for a pair that does not fit the model.
    """
    shapes = model.shape.linear_shapes()
    places = {name: name.split(".", 2) for name in pairs}
    for name, (_, block, target) in places.items():
        n, k = shapes.get(target, (0, 0))
        if not block.isdigit() or int(block) >= model.shape.n_layer or (
                pairs[name].b.shape[0], pairs[name].a.shape[1]) != (n, k):
            raise MismatchError(f"the adapter's pair for {name} does not fit {model.gguf.path}",
                                "use the model that it was trained on")
    blocks = [int(block) for _, block, _ in places.values()] or [model.shape.n_layer - 1]
    rank = max((pair.rank for pair in pairs.values()), default=1)
    run = RunShape(max_tokens=max_tokens, max_length=max_length, family=LoraFamily(rank=rank, alpha=rank),
              targets=tuple(sorted({target for _, _, target in places.values()})),
              blocks=range(min(blocks), max(blocks) + 1), kept=1, threads=thread_count(threads),
              precision=precision)
    ops = Cpu(run.threads)
    decoder = Decoder(model, run, ops, make_arena(model, run, ops))
    carved = decoder.adapter
    assert isinstance(carved, CarvedLora)
    carved.load({name: _padded(pairs.get(name), to.a.shape, to.b.shape)
                       for name, to in carved.adapted.items()}, "the adapter")
    return decoder


def make_arena(model: Model, run: RunShape, ops: Cpu) -> Arena:
    """The buffers of forward, and the adapter."""
    parameters = sum(group.size for group in run.family.parameters(trained_shapes(model.shape, run)))
    table = [Buffer("lora", (parameters,), "run"), Buffer("dlora", (parameters,), "run"), *model.structure.buffers(run)]
    return Arena(table, ops.allocate)


def _padded(pair: Pair | None, a_shape: tuple[int, ...], b_shape: tuple[int, ...]) -> Pair:
    """The pair at the decoder's rank; a missing one changes nothing."""
    a = np.zeros(a_shape, np.float32)
    b = np.zeros(b_shape, np.float32)
    if pair is None:
        return Pair(a, b, 1.0)
    a[:pair.rank] = pair.a
    b[:, :pair.rank] = pair.b
    return Pair(a, b, pair.scale)
