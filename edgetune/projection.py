"""A frozen projection with its low-rank adapter: forward and backward, next to each other.

Gradients of the adapter (da, db) accumulate, dinp and out are overwritten unless `accumulate` is set.
Letters: T tokens, N outputs, K inputs, R rank.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

from .arena import Arena
from .backend import Backend, LowRank
from .gguf import Tensor
from .lora import TARGETS, Pair
from .shape import Shape

Kept = dict[str, np.ndarray]  # a block's activations by name
# Rounded to 8 bits, the gradient of the residual stream, which a few values dominate, costs by itself what the gate of
# tests/test_precision.py allows: where "fast" would do so, this projection's backward is exact.
CAREFUL = ("ffn_down",)


@dataclass(frozen=True)
class Run:
    """What decides the buffers beside the model's shape."""

    max_tokens: int  # T, in a micro-batch
    max_length: int  # positions in a document
    rank: int
    targets: tuple[str, ...]  # GGUF names: attn_q, ...
    blocks: range  # trained
    dropout: float
    kept: int  # blocks, the last ones, whose activations are kept and not computed again; at least 1
    threads: int
    precision: str  # of products: exact, fast or int8

    @property
    def activations(self) -> str:
        """The numpy type in which activations lie: bf16 (as uint16) takes half the memory, and is near enough to what
        products round to.
        """
        return "float32" if self.precision == "exact" else "uint16"

    @property
    def lowest(self) -> int:
        """The block at which backward stops."""
        return self.blocks[0]


def forward_precision(run: Run, layer: int) -> str:
    """The first blocks make values hundreds of times as large as others, on which all later ones lean: rounded to 8
    bits there, they turn the gradient of single tensors by more than the gate of tests/test_precision.py allows.
    """
    return "fast" if run.precision == "int8" and layer < 2 else run.precision


def lora_shapes(s: Shape, run: Run) -> dict[str, tuple[int, int]]:
    """[N, K] of every adapted weight, by GGUF name without .weight."""
    linear = s.linear_shapes()
    return {f"blk.{i}.{t}": linear[t] for i in run.blocks for t in run.targets}


def lora_size(s: Shape, run: Run) -> int:
    return sum(run.rank * (n + k) for n, k in lora_shapes(s, run).values())


@dataclass(frozen=True)
class Adapted:
    """A pair as trained: views into the arena. a, da [R, K]; b, db [N, R]; delta W = scale * b @ a."""

    a: np.ndarray
    b: np.ndarray
    da: np.ndarray
    db: np.ndarray
    scale: float
    index: int  # names the dropout mask


class Projections:
    """All projections of a decoder. `dropout_seed` None switches dropout off, as in evaluation."""

    def __init__(self, ops: Backend, weights: Mapping[str, Tensor], vectors: Mapping[str, np.ndarray],
                 shape: Shape, run: Run, arena: Arena, scale: float) -> None:
        self.ops, self.weights, self.vectors, self.run, self.arena = ops, weights, vectors, run, arena
        self.adapted = _carve_pairs(shape, run, arena, scale)
        rounds = run.precision == "fast" and ops.products("fast") == "float forward, int8 backward"
        self.careful = CAREFUL if rounds else ()
        self.dropout_seed: int | None = None

    def set_pairs(self, pairs: dict[str, Pair]) -> None:
        """Copy values in; the pairs must be of this run, and of its rank; B takes up another scale."""
        for name, pair in pairs.items():
            to = self.adapted[name]
            to.a[:], to.b[:] = pair.a, pair.b * np.float32(pair.scale / to.scale)

    def pairs(self) -> dict[str, Pair]:
        """The adapter as views of the arena: training changes them."""
        return {name: Pair(p.a, p.b, p.scale) for name, p in self.adapted.items()}

    @contextmanager
    def off(self) -> Iterator[None]:
        """Forward passes in here are those of the base: no adapter is applied."""
        adapted = self.adapted
        self.adapted = {}
        try:
            yield
        finally:
            self.adapted = adapted

    def forward(self, out: np.ndarray, inp: np.ndarray, layer: int, target: str, kept: Kept,
                accumulate: bool = False) -> None:
        """out [T, N] (+)= inp [T, K] . w^T + bias + scale * (inp . a^T) . b^T"""
        name = f"blk.{layer}.{target}"
        w, pair = self.weights[f"{name}.weight"], self.adapted.get(name)
        low_rank = (self.inner(inp, layer, target, kept), pair.b) if pair is not None else (None, None)
        self.ops.matmul_forward(out, inp, w.data, w.format, 1.0, accumulate, low_rank,
                                forward_precision(self.run, layer))
        if (bias := self.vectors.get(f"{name}.bias")) is not None:
            self.ops.add_bias(out, bias)

    def inner(self, inp: np.ndarray, layer: int, target: str, kept: Kept) -> np.ndarray:
        """u [T, R] = scale * dropout(inp) . a^T, kept for backward. For an adapted projection."""
        u, pair = kept[f"u_{target}"], self.adapted[f"blk.{layer}.{target}"]
        self.ops.matmul_forward(u, self._dropped(inp, pair), pair.a, "F32", pair.scale,
                                precision=forward_precision(self.run, layer))
        return u

    def backward(self, dinp: np.ndarray | None, dout: np.ndarray, layer: int, target: str, kept: Kept,
                 accumulate: bool = False) -> None:
        """dinp [T, K] (None: not wanted) (+)= dout . w + scale * (dout . b) . a; the pair's db accumulates.

        backward_a follows: it uses the du [T, R] = scale * dout . b that this leaves in the arena.
        """
        name = f"blk.{layer}.{target}"
        w, pair = self.weights[f"{name}.weight"], self.adapted.get(name)
        low_rank: LowRank = (None, None)
        masked = pair is not None and self.dropout_seed is not None
        if pair is not None:
            du = self.arena.view("du", dout.shape[0], self.run.rank)
            self.ops.matmul_dweight(pair.db, dout, kept[f"u_{target}"], precision=self.run.precision)
            self.ops.matmul_backward(du, dout, pair.b, "F32", pair.scale, precision=self.run.precision)
            low_rank = (None, None) if masked else (du, pair.a)
        if dinp is None:
            return
        precision = "exact" if target in self.careful else self.run.precision
        self.ops.matmul_backward(dinp, dout, w.data, w.format, 1.0, accumulate, low_rank, precision)
        if pair is not None and masked:
            through = self.arena.view("dropped", *dinp.shape)
            self.ops.matmul_backward(through, du, pair.a, "F32", precision=self.run.precision)
            self.ops.dropout(dinp.reshape(-1), through.reshape(-1), self.run.dropout, self._mask(pair), True)

    def backward_a(self, inp: np.ndarray, layer: int, target: str) -> None:
        """The pair's da accumulates, from the projection's input and the du of the backward before."""
        if (pair := self.adapted.get(f"blk.{layer}.{target}")) is not None:
            du = self.arena.view("du", inp.shape[0], self.run.rank)
            self.ops.matmul_dweight(pair.da, du, self._dropped(inp, pair), precision=self.run.precision)

    def _dropped(self, inp: np.ndarray, pair: Adapted) -> np.ndarray:
        if self.dropout_seed is None:
            return inp
        out = self.arena.view("dropped", *inp.shape)
        self.ops.dropout(out.reshape(-1), inp.reshape(-1), self.run.dropout, self._mask(pair))
        return out

    def _mask(self, pair: Adapted) -> int:
        assert self.dropout_seed is not None
        return (self.dropout_seed * 1_000_003 + pair.index) & (2**64 - 1)


def _carve_pairs(s: Shape, run: Run, arena: Arena, scale: float) -> dict[str, Adapted]:
    """Views into `lora` and `dlora`: all A first, then all B, so that each half is one run for the optimizer."""
    shapes = lora_shapes(s, run)
    lora, dlora, r = arena.flat("lora"), arena.flat("dlora"), run.rank
    at, bt = 0, r * sum(k for _, k in shapes.values())
    adapted = {}
    for index, (name, (n, k)) in enumerate(shapes.items()):
        a, b = slice(at, at + r * k), slice(bt, bt + n * r)
        adapted[name] = Adapted(lora[a].reshape(r, k), lora[b].reshape(n, r), dlora[a].reshape(r, k),
                                dlora[b].reshape(n, r), scale, index)
        at, bt = a.stop, b.stop
    return adapted


def target_names(targets: tuple[str, ...]) -> tuple[str, ...]:
    """PEFT's projection names as GGUF's."""
    return tuple(TARGETS[t] for t in targets)
