"""Attention with rotary embedding and grouped heads. H heads, G heads of keys and values, C their width."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from ..backends.arena import Buffer
from ..formats.kinds import NORMS
from ..formats.shape import Shape
from .linear import Activations, RunShape, forward_precision
from .sublayer import Mixer

if TYPE_CHECKING:
    from ..data.packing import Batch

MADE = ("k_raw", "v_raw", "rstd_k", "rstd_v")  # the activations of who makes keys and values
QUERY = "attn_q"
QKV = "attn_qkv"


class SelfAttention(Mixer):
    last = "attn_output"
    inputs: ClassVar[tuple[str, ...]] = ("attn_q", "attn_k", "attn_v")
    inner = "att"
    keeps_prefixes = True
    has_keys = True

    @classmethod
    def inner_width(cls, s: Shape) -> int:
        return s.d_q

    @classmethod
    def state(cls, s: Shape) -> dict[str, tuple[int, ...]]:  # noqa: ARG003
        return {}

    @classmethod
    def widths(cls, s: Shape) -> dict[str, int]:
        widths = {"q": s.d_q, "k": s.d_kv, "v": s.d_kv, "att": s.d_q, "lse": s.n_head}
        if s.qk_norm:
            norms = NORMS["attention"](s)
            widths |= {"q_raw": s.d_q, "k_raw": s.d_kv, "rstd_q": s.d_q // norms["attn_q_norm"],
                       "rstd_k": s.d_kv // norms["attn_k_norm"]}
        if s.norms_values:
            widths |= {"v_raw": s.d_kv, "rstd_v": s.n_kv}
        return widths

    @classmethod
    def buffers(cls, s: Shape, run: RunShape, tokens: int, prefix: int) -> list[Buffer]:
        # float32 where the gradients of several uses are summed
        kind = "float32" if s.lenders or "attention to keys" in s.mixers else run.activations
        return [*(Buffer(name, (prefix + tokens, s.d_kv), "block", kind, backward=True) for name in ("dk", "dv")),
                Buffer("delta", (s.n_head, tokens), "block", backward=True)]

    @classmethod
    def flops(cls, s: Shape, layer: int, lengths: Sequence[int]) -> int:
        """4 C a head and pair of tokens that see each other."""
        return 4 * s.n_head * s.d_head * sum(_pairs(n, s.windows[layer]) for n in lengths)

    def forward(self, layer: int, norm: np.ndarray, batch: Batch) -> None:
        of = self.of
        _, k, _ = of.kept_of(layer, batch)
        self._inputs(layer, norm, batch)
        of.virtual.keys(layer, k["k"], k["v"], batch)
        q, key, v = self._heads(layer, k)
        attend = of.cached.attend if of.cached else self.attend
        attend(layer, k, q, key, v, batch)

    def _inputs(self, layer: int, norm: np.ndarray, batch: Batch) -> None:
        """Sets queries, keys and values in `k`."""
        needed, k, own = self.of.kept_of(layer, batch)
        own_q = needed.room(k["q"], "dq")
        self._project(own_q, needed.taken(norm, "norm2"), layer, "q", own, needed.positions)
        needed.put(k["q"], own_q)
        self._keys(layer, norm, k, self.of.place(batch).positions)

    def _keys(self, layer: int, norm: np.ndarray, k: Activations, positions: np.ndarray) -> None:
        """Sets keys and values in `k`."""
        self._project(k["k"], norm, layer, "k", k, positions)
        self._project(k["v"], norm, layer, "v", k, positions)

    def attend(self, layer: int, k: Activations, q: np.ndarray, key: np.ndarray, v: np.ndarray, batch: Batch) -> None:
        """k["att"], k["lse"] = attention of q [T, H, C] over key, v [T, G, C], the batch's own and its prefix's."""
        of = self.of
        s = of.shape.of(layer)
        of.prefix.keep(layer, key, v, batch)
        seen = of.prefix.seen(layer, key, v, batch)
        placed = of.place(batch)
        of.ops.attention_forward(k["att"].reshape(q.shape), k["lse"].reshape(s.n_head, len(q)), q, *seen,
                                 placed.seen_ends, placed.seen_positions, s.attn_scale, s.windows[layer],
                                 forward_precision(of.run, layer))

    def backward(self, layer: int, dinp: np.ndarray | None, dinner: np.ndarray, norm: np.ndarray, batch: Batch) -> None:
        of = self.of
        t = batch.tokens.size
        s = of.shape.of(layer)
        _, k, _ = of.kept_of(layer, batch)
        q, key, v = self._heads(layer, k)
        dq = of.arena.view("dq", *q.shape)
        dk, dv = (of.arena.view(f"d{name}", batch.behind + t, s.n_kv, s.d_head) for name in "kv")
        seen = of.prefix.seen(layer, key, v, batch)
        placed = of.place(batch)
        of.ops.attention_backward(dq, dk, dv, of.arena.view("delta", s.n_head, t), dinner.reshape(q.shape),
                                  k["att"].reshape(q.shape), k["lse"].reshape(s.n_head, t), q, *seen,
                                  placed.seen_ends, placed.seen_positions, s.attn_scale, s.windows[layer],
                                  of.run.precision)
        dk, dv = of.prefix.own_gradients(layer, dk, dv, batch)
        of.virtual.keys_backward(layer, dk, dv, batch)
        dk, dv = of.lent.add(layer, dk, dv)
        self._inputs_backward(layer, dinp, (dq, dk, dv), norm, batch)

    def _inputs_backward(self, layer: int, dinp: np.ndarray | None, grads: tuple[np.ndarray, ...], norm: np.ndarray,
                         batch: Batch) -> None:
        """dinp [T, D] = the gradient of the normed input from those of queries, keys and values, which are changed."""
        needed, k, own = self.of.kept_of(layer, batch)
        dq, dk, dv = grads
        own_dq = needed.taken(dq, "datt")
        own_dinp = None if dinp is None else needed.room(dinp, "x")
        self._project_backward(own_dinp, own_dq, needed.taken(norm, "norm2"), layer, "q", own, needed.positions)
        if dinp is not None and own_dinp is not None:
            needed.put(dinp, own_dinp)
        self._keys_backward(layer, dinp, (dk, dv), norm, k, self.of.place(batch).positions)

    def _keys_backward(self, layer: int, dinp: np.ndarray | None, grads: tuple[np.ndarray, np.ndarray],
                       norm: np.ndarray, k: Activations, positions: np.ndarray) -> None:
        """dinp [T, D] += the gradient of the normed input from those of keys and values, which are changed."""
        for name, grad in zip("kv", grads, strict=True):
            self._project_backward(dinp, grad, norm, layer, name, k, positions)

    def _project(self, out: np.ndarray, norm: np.ndarray, layer: int, name: str, k: Activations,
                 positions: np.ndarray) -> None:
        """out [T, heads * C] = queries, keys or values of the normed input, in their place."""
        raw = self._raw(name, k) if self._is_normed(name) else out
        self.of.linear.forward(raw, norm, layer, f"attn_{name}", k)
        self._place_heads(out, raw, layer, name, k, positions)

    def _project_backward(self, dinp: np.ndarray | None, grad: np.ndarray, norm: np.ndarray, layer: int, name: str,
                          k: Activations, positions: np.ndarray, raw: np.ndarray | None = None) -> None:
        """dinp [T, D] (+)= gradient of the normed input, from that of `_project`'s output, which is changed; the
        queries' comes first. raw: another gradient of what was projected, float32 like the first.
        """
        linear = self.of.linear
        self._place_heads_backward(grad, layer, name, k, positions)
        if raw is not None:
            self.of.ops.add(grad.reshape(-1), raw.reshape(-1))
        linear.backward(dinp, grad.reshape(len(grad), -1), layer, f"attn_{name}", k, accumulate=name != "q")
        linear.finish(norm, layer, f"attn_{name}")

    def _is_normed(self, name: str) -> bool:
        return self.of.shape.norms_values if name == "v" else bool(self.of.shape.qk_norm)

    def _raw(self, name: str, k: Activations) -> np.ndarray:
        """The array that queries, keys or values are projected into."""
        return k[f"{name}_raw"] if self._is_normed(name) else k[name]

    def _place_heads(self, out: np.ndarray, raw: np.ndarray, layer: int, name: str, k: Activations,
                     positions: np.ndarray) -> None:
        """out [T, heads * C] = what was projected, normed and rotated; values stay as they are. raw may be out."""
        rotates_first = self.of.shape.qk_norm == "rotated"
        if rotates_first:
            self._rotate(layer, raw, name, positions, 1.0)
        if self._is_normed(name):
            self.of.norms.forward(out, k[f"rstd_{name}"], raw, f"blk.{layer}.attn_{name}_norm")
        if not rotates_first:
            self._rotate(layer, out, name, positions, 1.0)

    def _place_heads_backward(self, grad: np.ndarray, layer: int, name: str, k: Activations,
                              positions: np.ndarray) -> None:
        """Makes the gradient of `_place_heads`' output that of its input, in place."""
        rotates_first = self.of.shape.qk_norm == "rotated"
        if not rotates_first:
            self._rotate(layer, grad, name, positions, -1.0)
        if self._is_normed(name):
            self.of.norms.backward(grad, grad, k[f"{name}_raw"], k[f"rstd_{name}"], f"blk.{layer}.attn_{name}_norm")
        if rotates_first:
            self._rotate(layer, grad, name, positions, -1.0)

    def _heads(self, layer: int, k: Activations) -> Iterator[np.ndarray]:
        """Queries [T, H, C], keys and values [T, G, C]."""
        s = self.of.shape.of(layer)
        return (k[name].reshape(-1, n, s.d_head) for name, n in (("q", s.n_head), ("k", s.n_kv), ("v", s.n_kv)))

    def _rotate(self, layer: int, x: np.ndarray, name: str, positions: np.ndarray, sign: float) -> None:
        """Rotates queries or keys x [T, heads * C] in place, in blocks that have a rotary embedding."""
        s = self.of.shape.of(layer)
        if name == "v" or layer in s.unrotated:
            return
        cos, sin = self.of.rope[s.rope_of(layer)]
        heads = s.n_head if name == "q" else s.n_kv
        self.of.ops.rope(x.reshape(len(x), heads, -1), cos, sin, positions, s.neox, sign)


def _pairs(n: int, window: int) -> int:
    """(t, s) with s <= t < n, and s > t - window where there is a window."""
    w = min(window or n, n)
    return w * (w + 1) // 2 + (n - w) * w


class AttentionToKeys(SelfAttention):
    """The values are the keys as they are projected, before these are normed and rotated."""

    inputs = ("attn_q", "attn_k")

    @classmethod
    def widths(cls, s: Shape) -> dict[str, int]:
        return {name: width for name, width in super().widths(s).items() if name != "v_raw"}

    def _keys(self, layer: int, norm: np.ndarray, k: Activations, positions: np.ndarray) -> None:
        self._project(k["k"], norm, layer, "k", k, positions)
        self.of.norms.forward(k["v"], k["rstd_v"], k["k_raw"], f"blk.{layer}.attn_v_norm")

    def _keys_backward(self, layer: int, dinp: np.ndarray | None, grads: tuple[np.ndarray, np.ndarray],
                       norm: np.ndarray, k: Activations, positions: np.ndarray) -> None:
        dk, dv = grads
        self.of.norms.backward(dv, dv, k["k_raw"], k["rstd_v"], f"blk.{layer}.attn_v_norm")
        self._project_backward(dinp, dk, norm, layer, "k", k, positions, raw=dv)


class SharedAttention(SelfAttention):
    """It attends to the keys and values of another block (shared_keys.py)."""

    inputs = ("attn_q",)

    @classmethod
    def widths(cls, s: Shape) -> dict[str, int]:
        return {name: width for name, width in super().widths(s).items() if name not in MADE}

    def _keys(self, layer: int, norm: np.ndarray, k: Activations, positions: np.ndarray) -> None:
        """Leaves them as their owner has made them."""

    def _keys_backward(self, layer: int, dinp: np.ndarray | None, grads: tuple[np.ndarray, np.ndarray],
                       norm: np.ndarray, k: Activations, positions: np.ndarray) -> None:
        """Leaves their gradients to their owner."""


class GatedAttention(SelfAttention):
    """The output is gated: out = attention * sigmoid(gate). A head's query and its gate are one projection, the gate
    after the query. Queries are projected for all tokens, because gates are.
    """

    inner = "gated"
    repeats = False
    on_cpu_alone = True
    keeps_prefixes = False

    @classmethod
    def widths(cls, s: Shape) -> dict[str, int]:
        return {**super().widths(s), "out_gate": s.d_q, "gated": s.d_q}

    @classmethod
    def buffers(cls, s: Shape, run: RunShape, tokens: int, prefix: int) -> list[Buffer]:
        return [*super().buffers(s, run, tokens, prefix),
                Buffer("query_gate", (tokens, 2 * s.d_q), "block", run.activations)]

    def forward(self, layer: int, norm: np.ndarray, batch: Batch) -> None:
        super().forward(layer, norm, batch)
        _, k, _ = self.of.kept_of(layer, batch)
        self.of.ops.glu_forward(k["gated"], k["out_gate"], k["att"], "sigmoid")

    def backward(self, layer: int, dinp: np.ndarray | None, dinner: np.ndarray, norm: np.ndarray, batch: Batch) -> None:
        _, k, _ = self.of.kept_of(layer, batch)
        # out_gate becomes its gradient, dinner that of what is gated; gated stays as it is
        self.of.ops.glu_backward(k["out_gate"], dinner, k["gated"], dinner, k["out_gate"], k["att"], "sigmoid")
        super().backward(layer, dinp, dinner, norm, batch)

    def _inputs(self, layer: int, norm: np.ndarray, batch: Batch) -> None:
        of = self.of
        _, k, _ = of.kept_of(layer, batch)
        positions = of.place(batch).positions
        whole = self._query_gate(len(norm))
        of.linear.forward(whole.reshape(len(norm), -1), norm, layer, QUERY, k)
        of.ops.synchronize()
        query, gate = self._halves(k, ("q_raw", "out_gate"))
        query[:], gate[:] = whole[:, :, 0], whole[:, :, 1]
        self._place_heads(k["q"], k["q_raw"], layer, "q", k, positions)
        for name in "kv":
            self._project(k[name], norm, layer, name, k, positions)

    def _inputs_backward(self, layer: int, dinp: np.ndarray | None, grads: tuple[np.ndarray, ...], norm: np.ndarray,
                         batch: Batch) -> None:
        of = self.of
        _, k, _ = of.kept_of(layer, batch)
        dq, dk, dv = grads
        positions = of.place(batch).positions
        self._place_heads_backward(dq, layer, "q", k, positions)
        of.ops.synchronize()
        whole = self._query_gate(len(norm))
        gate, = self._halves(k, ("out_gate",))
        whole[:, :, 0], whole[:, :, 1] = dq, gate
        of.linear.backward(dinp, whole.reshape(len(norm), -1), layer, QUERY, k)
        of.linear.finish(norm, layer, QUERY)
        self._project_backward(dinp, dk, norm, layer, "k", k, positions)
        self._project_backward(dinp, dv, norm, layer, "v", k, positions)

    def _query_gate(self, t: int) -> np.ndarray:
        """Work space [T, H, 2, C]: each head's query and gate."""
        s = self.of.shape
        return self.of.arena.view("query_gate", t, s.n_head, 2, s.d_head)

    def _halves(self, k: Activations, names: Sequence[str]) -> list[np.ndarray]:
        """Activations as [T, H, C]."""
        s = self.of.shape
        return [k[name].reshape(-1, s.n_head, s.d_head) for name in names]


class FusedAttention(SelfAttention):
    """Queries, keys and values are one projection, so queries are projected for all tokens, as keys and values are."""

    inputs = (QKV,)
    repeats = False

    @classmethod
    def buffers(cls, s: Shape, run: RunShape, tokens: int, prefix: int) -> list[Buffer]:
        return [*super().buffers(s, run, tokens, prefix),
                Buffer("qkv", (tokens, s.d_q + 2 * s.d_kv), "block", run.activations)]

    def _inputs(self, layer: int, norm: np.ndarray, batch: Batch) -> None:
        of = self.of
        _, k, _ = of.kept_of(layer, batch)
        s = of.shape.of(layer)
        whole = of.arena.view("qkv", len(norm), s.d_q + 2 * s.d_kv)
        of.linear.forward(whole, norm, layer, QKV, k)
        of.ops.synchronize()
        positions = of.place(batch).positions
        for name, part in zip("qkv", np.split(whole, (s.d_q, s.d_q + s.d_kv), axis=1), strict=True):
            raw = self._raw(name, k)
            raw[:] = part
            self._place_heads(k[name], raw, layer, name, k, positions)

    def _inputs_backward(self, layer: int, dinp: np.ndarray | None, grads: tuple[np.ndarray, ...], norm: np.ndarray,
                         batch: Batch) -> None:
        of = self.of
        _, k, _ = of.kept_of(layer, batch)
        s = of.shape.of(layer)
        whole = of.arena.view("qkv", len(norm), s.d_q + 2 * s.d_kv)
        positions = of.place(batch).positions
        for name, grad in zip("qkv", grads, strict=True):
            self._place_heads_backward(grad, layer, name, k, positions)
        of.ops.synchronize()
        np.concatenate([grad.reshape(len(norm), -1) for grad in grads], axis=1, out=whole)
        of.linear.backward(dinp, whole, layer, QKV, k)
        of.linear.finish(norm, layer, QKV)
