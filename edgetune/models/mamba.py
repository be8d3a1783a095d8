"""The mixer of Mamba 2: heads with a state that each token changes and reads (native/ssm.h has the formulas).

    z, xBC, dt = ssm_in x;  x, B, C = SiLU(conv(xBC));  y = scan(x, B, C, dt)
    out = ssm_out norm(y * SiLU(z))

No state is kept for backward, which makes those at the ends of pieces of tokens again (data/packing.py). H heads have I
values a token together, and G groups of heads share B and C of N values each.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from ..backends.arena import Buffer
from ..data.packing import COLUMNS, PIECE, kept_states
from ..formats.kinds import mamba_channels, mamba_rows
from ..formats.shape import Shape
from .linear import Activations, RunShape
from .recurrent import STATE, Recurrent
from .states import ZEROS, States

if TYPE_CHECKING:
    from ..data.packing import Batch

IN = "ssm_in"


class Mamba(Recurrent):
    inputs = (IN,)
    inner = "ssm_normed"
    backward_share = 2.5

    @classmethod
    def channels(cls, s: Shape) -> int:
        return mamba_channels(s)

    @classmethod
    def first(cls, s: Shape) -> int:
        return s.recurrent.inner

    @classmethod
    def widths(cls, s: Shape) -> dict[str, int]:
        r = s.recurrent
        return {"ssm_rows": mamba_rows(s), "ssm_read": r.inner, "ssm_normed": r.inner, "rstd_ssm": r.groups}

    @classmethod
    def buffers(cls, s: Shape, run: RunShape, tokens: int, prefix: int) -> list[Buffer]:
        half = run.activations
        r = s.recurrent
        states = (max(kept_states(tokens), 1), r.inner * r.state)
        return [*super().buffers(s, run, tokens, prefix),
                Buffer("ssm_states", states, "block"), Buffer("ssm_steps", (3, r.heads, tokens), "block"),
                *(Buffer(name, (tokens, r.inner // r.groups), "block", half) for name in ("ssm_z", "ssm_gated")),
                Buffer("dssm_rows", (tokens, mamba_rows(s)), "block", half, backward=True),
                Buffer("dconvolved", (tokens, mamba_channels(s)), "block", backward=True),
                Buffer("dssm_states", states, "block", backward=True)]

    @classmethod
    def answer_buffers(cls, s: Shape, tokens: int, runs: int, activations: str) -> list[Buffer]:
        return [*super().answer_buffers(s, tokens, runs, activations),
                Buffer("continued_states", (2 * runs, s.recurrent.inner * s.recurrent.state), "block")]

    @classmethod
    def flops(cls, s: Shape, layer: int, lengths: Sequence[int]) -> int:  # noqa: ARG003
        """FLOP of the convolution and of the products of a piece: scores, states, and outputs of both."""
        r = s.recurrent
        piece = PIECE * r.groups * r.state + r.inner * (PIECE // 2 + 2 * r.state)
        return 2 * sum(lengths) * (r.taps * mamba_channels(s) + piece)

    def forward(self, layer: int, norm: np.ndarray, batch: Batch) -> None:
        of = self.of
        _, k, _ = of.kept_of(layer, batch)
        of.linear.forward(k["ssm_rows"], norm, layer, IN, k)
        if of.cached and of.cached.states:
            self._continue(layer, k, of.cached.states)
        else:
            placed = of.place(batch)
            x = self.convolved(layer, k["ssm_rows"], placed.before)
            of.ops.ssm_forward(self._heads(k["ssm_read"]), *self._work(len(norm), "ssm_states"), x, k["ssm_rows"],
                               *self._vectors(layer), placed.before, placed.pieces, of.shape.recurrent.state,
                               of.run.precision)
        weights = self._norms(layer)
        for group, weight in enumerate(weights):
            rstd = k["rstd_ssm"].reshape(len(weights), -1)[group]
            gated = self._gated(k["ssm_rows"], k["ssm_read"], group)
            of.ops.rmsnorm_forward(gated, rstd, gated, weight, of.shape.inner_eps)
            self._columns(k["ssm_normed"], group)[:] = gated

    def _continue(self, layer: int, k: Activations, states: States) -> None:
        """Sets what states give that earlier passes left, and changes them. The scan reads states where others are not
        written: those before the runs' tokens are in the first half of its room, those after them in the second.
        """
        of = self.of
        rows = k["ssm_rows"]
        x = self.convolved_on(layer, rows, states)
        kept = states.of(layer, STATE)
        room = of.arena.flat("continued_states").reshape(-1, kept.shape[1])
        _, steps = self._work(len(rows), "ssm_states")
        for first in range(0, len(states.runs), len(room) // 2):
            pieces, last = _pieces_of(states.runs[first:first + len(room) // 2], kept, room)
            if len(pieces):
                of.ops.ssm_forward(self._heads(k["ssm_read"]), room, steps, x, rows, *self._vectors(layer),
                                   states.before, pieces, of.shape.recurrent.state, of.run.precision)
            for slot, at in last.items():
                kept[slot] = room[at] if at >= 0 else 0

    def backward(self, layer: int, dinp: np.ndarray | None, dinner: np.ndarray, norm: np.ndarray, batch: Batch) -> None:
        of = self.of
        t = len(norm)
        _, k, _ = of.kept_of(layer, batch)
        placed = of.place(batch)
        rows = k["ssm_rows"]
        drows = of.arena.view("dssm_rows", *rows.shape)
        for group in range(of.shape.recurrent.groups):
            self._gate_backward(layer, drows, dinner, batch, group)
        x = self.convolved(layer, rows, placed.before)
        dx = of.arena.view("dconvolved", *x.shape)
        states, steps = self._work(t, "ssm_states")
        dstates, _ = self._work(t, "dssm_states")
        of.ops.ssm_backward(dx, drows, states, dstates, steps, self._heads(dinner), x, rows, *self._vectors(layer),
                            placed.before, placed.pieces, of.shape.recurrent.state, of.run.precision)
        self.convolved_backward(layer, drows, dx, rows, placed.before)
        of.linear.backward(dinp, drows, layer, IN, k)
        of.linear.finish(norm, layer, IN)

    def _gate_backward(self, layer: int, drows: np.ndarray, dinner: np.ndarray, batch: Batch, group: int) -> None:
        """Turns the gradient of a group's normed values into those of z, in its columns, and of y, in `dinner`."""
        of = self.of
        _, k, _ = of.kept_of(layer, batch)
        weights = self._norms(layer)
        gated = self._gated(k["ssm_rows"], k["ssm_read"], group)
        z = of.arena.view("ssm_z", *gated.shape)
        columns = self._columns(dinner, group)
        of.ops.synchronize()
        grad = np.ascontiguousarray(columns)
        rstd = k["rstd_ssm"].reshape(len(weights), -1)[group]
        of.ops.rmsnorm_backward(grad, grad, gated, weights[group], rstd)
        y = np.ascontiguousarray(self._columns(k["ssm_read"], group))
        of.ops.glu_backward(z, grad, gated, grad, z, y, "silu")
        of.ops.synchronize()
        columns[:] = grad
        self._columns(drows, group)[:] = z

    def _gated(self, rows: np.ndarray, read: np.ndarray, group: int) -> np.ndarray:
        """y * SiLU(z) of a group, [T, I / G]; leaves z in its buffer."""
        of = self.of
        width = of.shape.recurrent.inner // of.shape.recurrent.groups
        z, gated = (of.arena.view(name, len(rows), width) for name in ("ssm_z", "ssm_gated"))
        of.ops.synchronize()
        z[:] = self._columns(rows, group)
        gated[:] = self._columns(read, group)
        of.ops.glu_forward(gated, z, gated, "silu")
        of.ops.synchronize()
        return gated

    def _columns(self, array: np.ndarray, group: int) -> np.ndarray:
        """A group's part of the first I columns."""
        width = self.of.shape.recurrent.inner // self.of.shape.recurrent.groups
        return array[:, group * width:(group + 1) * width]

    def _work(self, t: int, name: str) -> tuple[np.ndarray, np.ndarray]:
        """Work space of the scan: for kept states, and for steps."""
        r = self.of.shape.recurrent
        return (self.of.arena.view(name, max(kept_states(t), 1), r.inner * r.state),
                self.of.arena.view("ssm_steps", 3, r.heads, t))

    def _vectors(self, layer: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """What the scan takes for each head: the bias of dt, a, and what is added of x."""
        vectors = self.of.vectors
        return vectors[f"blk.{layer}.ssm_dt.bias"], vectors[f"blk.{layer}.ssm_a"], vectors[f"blk.{layer}.ssm_d"]

    def _norms(self, layer: int) -> np.ndarray:
        """[G, I / G]"""
        weights = self.of.vectors[f"blk.{layer}.ssm_norm.weight"]
        groups: np.ndarray = weights.reshape(self.of.shape.recurrent.groups, -1)
        return groups

    def _heads(self, array: np.ndarray) -> np.ndarray:
        """[T, H, C] of [T, H * C]."""
        heads: np.ndarray = array.reshape(len(array), self.of.shape.recurrent.heads, -1)
        return heads


def _pieces_of(runs: np.ndarray, kept: np.ndarray, room: np.ndarray) -> tuple[np.ndarray, dict[int, int]]:
    """The pieces of runs, and where in `room` each slot's state is after them, -1: zeros. Copies what they need."""
    pieces = []
    last: dict[int, int] = {}
    for i, (begin, end, slot, source) in enumerate(runs.tolist()):
        at = last.get(source, i) if source != ZEROS else -1
        if at == i:
            room[i] = kept[source]
        last[slot] = at
        if begin < end:
            last[slot] = len(runs) + i
            pieces.append((begin, end, 0, at, last[slot]))
    return np.array(pieces, np.int32).reshape(-1, COLUMNS), last
