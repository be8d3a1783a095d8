"""Embeddings of each block (Gemma 4): a token's row of one table for all blocks, and a projection of
the model's embedding of it. After its other sublayers a block adds norm(up(gelu(gate x) * p)), p the sum of both.

The table is the largest tensor of such a file. It is never in memory: the rows of a batch's tokens are read from the
file, as they are stored, and p is made from them when a block is computed.

T tokens of a batch, N of them whose output is needed, D the model's width, E that of p.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ..backends.arena import Arena, Buffer
from ..formats.block_sizes import EMBEDDED, TABLE
from ..formats.gguf import Gguf
from ..formats.shape import Shape
from .batch_arrays import Needed
from .linear import Activations, RunShape, forward_precision
from .sublayer import Residual, Sublayer, SublayerNames

if TYPE_CHECKING:
    from .common import Common

ROWS = 64  # of the table that are read before their parts are placed
GATE, PROJECTION = EMBEDDED
TAKEN = "block_taken"


class BlockEmbedding(Sublayer):
    part = SublayerNames("block_embedding", "post_norm", "block")
    last = PROJECTION
    inputs = (GATE,)
    on_cpu_alone = True
    repeats = False
    backward_share = 0.0  # p has no gradient: the embedding is frozen

    def __init__(self, of: Common, gguf: Gguf) -> None:
        super().__init__(of)
        self._gguf = gguf
        self._places: NDArray[np.int32] = np.empty(0, np.int32)

    # ---- sizes ------------------------------------------------------------------------------------------------------

    @classmethod
    def widths(cls, s: Shape) -> dict[str, int]:
        return {"block_gate": s.d_block, "p_block": s.d_block, "block_out": s.d_model, "rstd_block": 1}

    @classmethod
    def inputs_kept(cls, s: Shape, run: RunShape) -> dict[str, int]:
        """Values a token of the input of the gate, which a trained gate alone needs."""
        return {TAKEN: s.d_model} if GATE in run.targets else {}

    @classmethod
    def buffers(cls, s: Shape, run: RunShape, tokens: int, prefix: int) -> list[Buffer]:  # noqa: ARG003
        half = run.activations
        e = s.d_block
        return [Buffer("block_rows", (s.n_layer, tokens * (s.block_row // s.n_layer)), "step", "uint8"),
                Buffer("embedded", (tokens, s.d_model), "step", half),
                Buffer("block_in", (tokens, e), "block"), Buffer("block_row", (tokens, e), "block"),
                Buffer("block_rstd", (tokens,), "block"), Buffer("block_act", (tokens, e), "block", half),
                Buffer("dblock", (tokens, e), "block", half, backward=True)]

    @classmethod
    def frozen_weights(cls, s: Shape) -> int:
        """Weights that make p of a block."""
        return s.d_model * s.d_block

    @classmethod
    def flops(cls, s: Shape, layer: int, lengths: Sequence[int]) -> int:  # noqa: ARG003
        return 2 * sum(lengths) * cls.frozen_weights(s)

    # ---- passes -----------------------------------------------------------------------------------------------------

    def begin(self, tokens: NDArray[np.int32], x: np.ndarray) -> None:
        """Reads the rows of a batch's tokens [T], and keeps their embeddings x [T, D]. Raises FormatError where the
        file was changed.
        """
        of = self.of
        s = of.shape
        found, places = np.unique(tokens, return_inverse=True)
        self._places = places.astype(np.int32)
        of.ops.synchronize()
        begin = self._gguf.offset(self._gguf.tensors[TABLE])
        for first in range(0, found.size, ROWS):
            part = found[first:first + ROWS]
            read = np.empty((part.size, s.n_layer, s.block_row // s.n_layer), np.uint8)
            for row, token in zip(read, part.tolist(), strict=True):
                self._gguf.file.read_into(row.reshape(-1), begin + token * s.block_row)
            for layer in range(s.n_layer):
                _rows(of.arena, s, layer, found.size)[first:first + part.size] = read[:, layer]
        of.ops.copy(of.arena.view("embedded", *x.shape), x)

    def forward(self, layer: int, x: np.ndarray, k: Activations, needed: Needed, residual: Residual) -> None:
        """x [N, D] += the sublayer's output; k: the activations of these tokens."""
        of = self.of
        of.ops.copy(k["p_block"], needed.taken(self._inputs(layer), "block_row"))
        if TAKEN in k:
            of.ops.copy(k[TAKEN], x)
        of.linear.forward(k["block_gate"], x, layer, GATE, k)
        act = of.arena.view("block_act", len(x), of.shape.d_block)
        of.ops.glu_forward(act, k["block_gate"], k["p_block"], of.shape.act)
        residual.forward(x, act, k, layer, self)

    def backward(self, layer: int, dx: np.ndarray, k: Activations, residual: Residual) -> None:
        """dx [N, D]: from the gradient of the sublayer's sum to that of its input; changes `k`."""
        of = self.of
        act = of.arena.view("block_act", len(dx), of.shape.d_block)
        grad = of.arena.view("dblock", len(dx), of.shape.d_block)
        dout = residual.backward(dx, k, layer, self.part)
        of.linear.backward(grad, dout, layer, self.last, k)
        of.ops.glu_backward(grad, k["p_block"], act, grad, k["block_gate"], k["p_block"], of.shape.act)  # fills act
        of.linear.finish(act, layer, self.last)
        of.linear.backward(dx, grad, layer, GATE, k, accumulate=True)
        if TAKEN in k:
            of.linear.finish(k[TAKEN], layer, GATE)

    def _inputs(self, layer: int) -> np.ndarray:
        """p of a block, float32 [T, E]."""
        of = self.of
        s = of.shape
        t = self._places.size
        out = of.arena.view("block_in", t, s.d_block)
        row = of.arena.view("block_row", t, s.d_block)
        whole = of.stream.weights["per_layer_model_proj.weight"]
        size = whole.data.size // s.n_layer
        of.ops.matmul_forward(out, of.arena.view("embedded", t, s.d_model), whole.data[layer * size:(layer + 1) * size],
                              whole.format, 1 / math.sqrt(s.d_model), precision=forward_precision(of.run, layer))
        of.norms.forward(out, of.arena.view("block_rstd", t), out, "per_layer_proj_norm")
        table = self._gguf.tensors[TABLE]
        rows = _rows(of.arena, s, layer, int(self._places.max()) + 1)
        of.ops.embed(row, self._places, rows.reshape(-1), table.format, math.sqrt(s.d_block))
        of.ops.add(out.reshape(-1), row.reshape(-1))
        of.ops.scale(out.reshape(-1), math.sqrt(0.5))
        return out


def _rows(arena: Arena, s: Shape, layer: int, n: int) -> NDArray[np.uint8]:
    """The first n rows of a block's part of the table, as stored."""
    return arena.part("block_rows", layer, n, s.block_row // s.n_layer)
