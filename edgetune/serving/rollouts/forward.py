"""A network that only measures and answers: any adapter with the weights, no training state."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from functools import partial

import numpy as np

from ...adapters.base import Artifact, Family
from ...adapters.heads import VOCABULARY, HeadKind
from ...adapters.lora import Lora, Pair, stack_of
from ...adapters.low_rank import LoraFamily
from ...backends.arena import Arena, Buffer
from ...backends.base import Backend
from ...backends.opening import open_backend
from ...errors import MismatchError
from ...formats.gguf import Gguf
from ...machine.device import thread_count
from ...models.base import Network, Passes
from ...models.decoder import Decoder, Model
from ...models.linear import RunShape


def open_decoder(model: Model | Gguf, adapter: Artifact | Lora, *, threads: int, max_tokens: int, max_length: int,
                 precision: str = "exact", more: Iterable[Buffer] = (), backend: str = "auto",
                 ops: Backend | None = None, streamed: int = 0) -> Decoder:
    """A decoder for forward passes with any adapter; low-rank pairs of a lower rank are padded with zeros.

    threads: 0 for one a core. more: further buffers of its arena. backend: as for `opening.open_backend`; ops: an open
    one instead. streamed: the number of blocks, from the first, whose weights are read from the file at every use.
    Raises MismatchError for an adapter that does not fit the model, UsageError for one of an unknown family.
    """
    found = open_passes(model if isinstance(model, Model) else Model(model), adapter, threads=threads,
                        max_tokens=max_tokens, max_length=max_length, precision=precision, more=more, backend=backend,
                        ops=ops, streamed=streamed)
    assert isinstance(found, Decoder)
    return found


def open_passes(model: Network, adapter: Artifact | Lora, *, threads: int, max_tokens: int, max_length: int,
                precision: str = "exact", more: Iterable[Buffer] = (), backend: str = "auto",
                ops: Backend | None = None, streamed: int = 0,
                heads: tuple[HeadKind, ...] = (VOCABULARY,), shares: bool = False) -> Passes:
    """The same of any network. heads: the trained ones are a part of the adapter, or random where it has none. shares:
    other passes compute with `ops` too, which has a separate work space. Of the arena what is written is taken then.
    """
    found = adapter if isinstance(adapter, Artifact) else Artifact(adapter)
    run = forward_run(model, found, threads=threads, max_tokens=max_tokens, max_length=max_length, precision=precision,
                      heads=heads)
    ops = ops or open_backend(backend, run.threads)
    table = [*(network_buffers(model, run) if shares else forward_buffers(model, run, ops)), *more]
    arena = Arena(table, partial(ops.allocate, whole=not shares))
    if not shares:
        ops.use_scratch(arena.flat("scratch"))
    passes = model.build(run, ops, arena, streamed, found.setting.seed)
    if found.is_lora:
        rank = run.family.kept_width
        found = Artifact({name: _padded(found.pairs.get(name), (rank, shape[1]), (shape[0], rank))
                          for name, shape in model.structure.trained_shapes(run).items()})
    for name, own in model.structure.exported_heads(run, arena.flat("lora")).items():
        if name in found.tensors:
            if found.tensors[name].size != own.size:
                raise MismatchError(f"the adapter's {name} has {found.tensors[name].size} values, here are {own.size}",
                                    "use the labels that it was trained on")
            own[:] = found.tensors[name].reshape(-1)
    others = {name: values for name, values in found.tensors.items() if not name.startswith("head.")}
    passes.adapter.load(replace(found, tensors=others), "the adapter")
    return passes


def forward_run(model: Network, adapter: Artifact | Lora, *, threads: int, max_tokens: int, max_length: int,
                precision: str, heads: tuple[HeadKind, ...] = (VOCABULARY,)) -> RunShape:
    """The run of such passes. Errors as in `open_decoder`."""
    found = adapter if isinstance(adapter, Artifact) else Artifact(adapter)
    setting = found.setting
    family: Family
    if found.is_lora:
        family, targets, blocks = _of_pairs(model, found.pairs)
    else:
        family = found.make_family()
        targets = tuple(setting.targets)
        blocks = range(*setting.blocks or [0])
        have = model.structure
        if not blocks or blocks[-1] >= have.n_layer or not set(targets) <= {*have.targets(), *have.named_targets()}:
            raise MismatchError(f"the adapter changes blocks {setting.blocks} of {', '.join(targets)}, which "
                                f"{model.gguf.path} does not have", "use the model that it was trained on")
    return RunShape(max_tokens=max_tokens, max_length=max_length, family=family, targets=targets, blocks=blocks, kept=1,
                    threads=thread_count(threads), precision=precision, heads=heads)


def forward_buffers(model: Network, run: RunShape, ops: Backend) -> list[Buffer]:
    """All large arrays of forward, the adapter and the work space of `ops`."""
    return [Buffer("scratch", (ops.scratch_bytes,), "run", "uint8"), *network_buffers(model, run)]


def network_buffers(model: Network, run: RunShape) -> list[Buffer]:
    """The same without the work space."""
    parameters = sum(group.size for group in model.structure.parameters(run))
    return [Buffer("lora", (parameters,), "run"), Buffer("dlora", (parameters,), "run"),
            *run.family.state(model.structure.trained_shapes(run)),
            *(b for b in model.structure.buffers(run) if not b.backward)]


def _of_pairs(model: Network, pairs: Lora) -> tuple[LoraFamily, tuple[str, ...], range]:
    """(family, targets, blocks) of a LoRA with room for all pairs. Raises MismatchError for one that does not fit."""
    structure = model.structure
    every = (*structure.targets(), *structure.named_targets())
    shapes = {f"blk.{i}.{name}": shape for i in range(structure.n_layer)
              for name, shape in structure.projections(i, every).items()}
    for name, pair in pairs.items():
        if shapes.get(name) != (pair.b.shape[0], pair.a.shape[1]):
            raise MismatchError(f"the adapter's pair for {name} does not fit {model.gguf.path}",
                                "use the model that it was trained on")
    places = [stack_of(name)[0].split(".", 2) for name in pairs]
    blocks = [int(block) for _, block, _ in places] or [structure.n_layer - 1]
    rank = max((pair.rank for pair in pairs.values()), default=1)
    return (LoraFamily(rank=rank, alpha=rank), tuple(sorted({target for _, _, target in places})),
            range(min(blocks), max(blocks) + 1))


def _padded(pair: Pair | None, a_shape: tuple[int, ...], b_shape: tuple[int, ...]) -> Pair:
    """The pair at the decoder's rank; a missing one changes nothing."""
    a = np.zeros(a_shape, np.float32)
    b = np.zeros(b_shape, np.float32)
    if pair is None:
        return Pair(a, b, 1.0)
    a[:pair.rank] = pair.a
    b[:, :pair.rank] = pair.b
    return Pair(a, b, pair.scale)
