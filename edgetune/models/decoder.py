"""The decoder on its quantized weights: forward and backward of the whole, a block and its parts.

Conventions of this file: `x` [T, D] is the residual stream, `dx` its gradient, changed in place from a block's output
to its input. Activations are overwritten, the adapter's gradients accumulate until the optimizer's update. T is the
number of tokens in this micro-batch, a forest of documents; the buffers hold `max_tokens`. S is the number of
supervised positions. `k` holds the activations of a block that its backward reads (kept.py); N is the number of
tokens whose output is needed (needed.py), T but in the last block, and `own` holds the activations of these.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from ..backends.arena import Arena
from ..backends.base import Backend
from ..formats.families import FAMILIES
from ..formats.gguf import Gguf, Tensor
from ..formats.shape import read_shape
from .base import Network, Passes, register
from .head import Head
from .kept import Kept
from .linear import Activations, Projections, RunShape, forward_precision
from .needed import Needed
from .norms import Norms
from .placed import Placed
from .prefix import Prefix
from .repeated import Repeated
from .residual import ATTENTION, FEED_FORWARD, Residual
from .stream import EMBEDDING, Stream
from .structure import DecoderStructure, deepest_group, kept_widths
from .virtual import Virtual

if TYPE_CHECKING:
    from ..data.packing import Batch


@dataclass(frozen=True)
class Attention:
    """A replacement, `call`, for `Decoder.attend_batch`. key: equal for passes of as many tokens whose ops are the same
    on the same memory; None: they never are.
    """

    call: Callable[[int, Activations, np.ndarray, np.ndarray, np.ndarray, Batch], None]
    key: Hashable | None = None


@register
class Model(Network):
    """A GGUF's weights as ops read them: matrices as mapped bytes with their format, norms and biases as float32."""

    architectures = tuple(FAMILIES)

    def __init__(self, gguf: Gguf) -> None:
        self.gguf = gguf
        self.shape = read_shape(gguf)
        self.structure = DecoderStructure(self.shape)
        self.weights: dict[str, Tensor] = {n: t for n, t in gguf.tensors.items() if len(t.shape) == 2}
        self.vectors = {n: gguf.read(t).f32() for n, t in gguf.tensors.items() if len(t.shape) == 1}
        if self.shape.logit_scale != 1.0:
            self.vectors["output_norm.weight"] = self.vectors["output_norm.weight"] / np.float32(self.shape.logit_scale)
        gguf.release()
        self.head = self.weights.get("output.weight", self.weights["token_embd.weight"])

    def build(self, run: RunShape, ops: Backend, arena: Arena, streamed: int, seed: int) -> Decoder:
        return Decoder(self, run, ops, arena, streamed, seed)


class Decoder(Passes):
    """Forward and backward of a model with an adapter, in the memory of one arena.

    Not thread-safe: one caller at a time. What is trained is `adapter`; `linear.off()` leaves it out of a pass.
    """

    def __init__(self, model: Model, run: RunShape, ops: Backend, arena: Arena, streamed: int = 0,
                 seed: int = 0) -> None:
        self.model = model
        self.shape = model.shape
        self.run = run
        self.ops = ops
        self.arena = arena
        self.stream = Stream(model.gguf, model.shape.n_layer, ops, streamed)
        shapes = model.structure.trained_shapes(run)
        self.adapter = run.family.carve(shapes, arena, ops, seed)
        self.adapter.read_base(model.gguf)
        self.vectors = {name: ops.upload(vector) for name, vector in model.vectors.items()}
        self.linear = Projections(ops, self.stream.weights, self.vectors, run, self.adapter, shapes)
        s = self.shape
        self.norms = Norms(ops, self.vectors, s.norm_eps, self.linear)
        self.virtual = Virtual(ops, self.linear)
        self.residual = Residual(ops, arena, self.linear, self.norms, s.post_norms)
        self.rope = []
        positions = run.max_length + run.virtual
        for i, rope in enumerate(s.ropes[:2 if any(s.windows) else 1]):
            cos = arena.view(f"cos{i}", positions, s.n_rot // 2)
            sin = arena.view(f"sin{i}", positions, s.n_rot // 2)
            cos[:], sin[:] = rope.tables(positions, s.n_rot)
            self.rope.append((cos, sin))
        self.kept = Kept(s.n_layer, kept_widths(s, run), run, arena)
        self.prefix = Prefix(s, run, ops, arena)
        self.before_block: Callable[[], None] = lambda: None
        self.attention: Attention | None = None  # for a pass that sees more than its own tokens
        self.repeated = Repeated(ops)
        self._computed: tuple[Batch, bool, Batch] | None = None
        self._placed: Placed | None = None
        self._head = Head(s, run, ops, arena, self.stream, self.norms)

    # ---- whole passes -----------------------------------------------------------------------------------------

    def forward(self, batch: Batch, keep: bool) -> None:
        """Sets x to the last block's output at the supervised positions; with keep, `_block_x` to the inputs of the
        trained blocks. A prefix whose inputs are kept passes only the blocks whose activations are kept.
        """
        batch = self._whole(batch)
        x = self.arena.view("x", batch.tokens.size, self.shape.d_model)
        if batch.is_prefix and not keep:
            self.prefix.begin()
        keeps_inputs = self.prefix.keeps_inputs(batch)
        has_inputs = keep and keeps_inputs
        first = self.shape.n_layer - self.run.kept if has_inputs else 0
        if has_inputs:
            self.ops.copy(x, self._block_x(first, batch))
        else:
            self.stream.enter(EMBEDDING, 0)
            embedding, tokens = self.stream.rows(np.maximum(batch.tokens, 0))
            self.ops.embed(x, tokens, embedding.data, embedding.format, self.shape.embed_scale)
            self.virtual.embed(x, batch)
        self._place(batch)
        key = self._key(batch, "kept" if keep else "forward")
        self.repeated.run(key, partial(self._blocks_forward, x, batch, first, keep != keeps_inputs))

    def _blocks_forward(self, x: np.ndarray, batch: Batch, first: int, store: bool) -> None:
        """Passes x through the blocks from `first`. store: keeps the inputs of trained blocks; a prefix that keeps
        them does so in its first pass, without keep.
        """
        for layer in range(first, self.shape.n_layer):
            self.before_block()
            if store and layer >= self.run.lowest:
                self.ops.copy(self._block_x(layer, batch), x)
            self._block_forward(layer, x, batch)

    def backward(self, batch: Batch, a: np.ndarray, dvalues: np.ndarray | None = None) -> np.ndarray:
        """Adds to the adapter's gradients, after `forward` with keep; returns log p [S] as `score` does.

        a: float32 [S], -dL/dlogp of each supervised target. dvalues: float32 [S], dL/dvalue.
        """
        batch = self._whole(batch)
        dx = self.arena.view("dx", batch.tokens.size, self.shape.d_model)
        if not batch.supervised.size and not batch.is_prefix:
            self.stream.leave()
            return self.arena.view("logp", 0)
        logp = self._head.backward(dx, batch, np.ascontiguousarray(a, np.float32), self.before_block, dvalues)
        self.repeated.run(self._key(batch, "backward"), partial(self._blocks_backward, dx, batch))
        self.stream.leave()
        self.virtual.embed_backward(dx, batch)
        return logp

    def _blocks_backward(self, dx: np.ndarray, batch: Batch) -> None:
        last = self.shape.n_layer - 1
        for layer in range(last, self.run.lowest - 1, -1):
            self.before_block()
            if layer != last:  # the last block's activations are those of forward
                self._rebuild(layer, batch)
            self._block_backward(layer, dx, batch)

    @property
    def virtual_tokens(self) -> int:
        """Tokens that the adapter has before a document, in a pass with it."""
        return 0 if self.linear.is_off else self.run.virtual

    def _whole(self, batch: Batch) -> Batch:
        """The batch that is computed: after the adapter's virtual tokens, and padded where passes are recorded."""
        if self.attention:
            return batch
        is_off = self.linear.is_off
        known = self._computed
        if known is None or known[0] is not batch or known[1] != is_off:
            whole = batch.after(self.virtual_tokens)
            known = batch, is_off, self.repeated.fill(whole, self.run.max_tokens + self.run.virtual)
            self._computed = known
        return known[2]

    def _key(self, batch: Batch, name: str) -> Hashable | None:
        """The key of a pass of the blocks, for `Repeated.run`."""
        attention = self.attention.key if self.attention else ()
        if self.stream.streamed or attention is None or not self.adapter.repeats:
            return None
        return name, batch.tokens.size, batch.behind, batch.is_prefix, self.linear.is_off, attention

    def score(self, batch: Batch, best: np.ndarray | None = None) -> np.ndarray:
        """log p of each supervised target, as `head_forward`; valid until the next pass. best: int32 [S]."""
        self.forward(batch, keep=False)
        logp = self.head_forward(batch, best)
        self.stream.leave()
        return logp

    def logits(self, batch: Batch) -> np.ndarray:
        """All logits, float32 [T, V]: for tests and tools; T * V floats are allocated."""
        t = batch.tokens.size
        s = self.shape
        self.forward(replace(batch, supervised=np.arange(t)), keep=False)
        h = self.ops.empty((t, s.d_model))
        out = self.ops.empty((t, s.n_vocab))
        before = self.virtual_tokens
        self.norms.forward(h, self.ops.empty((t,)), self.arena.view("x", before + t, s.d_model)[before:], "output_norm")
        self.ops.matmul_forward(out, h, self.stream.head.data, self.stream.head.format, precision=self.run.precision)
        self.ops.synchronize()
        return out

    @property
    def temperature(self) -> float:
        return self._head.temperature

    @temperature.setter
    def temperature(self, value: float) -> None:
        self._head.temperature = value

    # ---- the head ---------------------------------------------------------------------------------------------

    def head_forward(self, batch: Batch, best: np.ndarray | None = None) -> np.ndarray:
        """log p as `score` returns it, after `forward`."""
        return self._head.forward(self._whole(batch), self.before_block, best)

    def likeliest(self, batch: Batch, k: int) -> tuple[np.ndarray, np.ndarray]:
        found = self._head.likeliest(self._whole(batch), k, self.before_block)
        self.stream.leave()
        return found

    def values(self, batch: Batch) -> np.ndarray:
        return self._head.values(batch)

    # ---- a block ----------------------------------------------------------------------------------------------

    def _block_forward(self, layer: int, x: np.ndarray, batch: Batch, rebuild: bool = False) -> None:
        """x [T, D] = block(x). rebuild: computes only what backward reads; x is not the block's output then."""
        t = batch.tokens.size
        needed, k, own = self._kept(layer, batch)
        self.stream.enter(layer, layer - 1 if rebuild else layer + 1)
        norm1, rstd1 = self._normed(1, t)
        self.norms.forward(norm1, rstd1, x, f"blk.{layer}.attn_norm")
        self._attention_forward(layer, norm1, batch)
        own_x = needed.taken(x, "dx")
        att = needed.taken(k["att"], "datt")
        self.residual.forward(own_x, att, own, layer, ATTENTION)
        self.ops.copy(own["mid"], own_x)
        self._mlp_forward(layer, own_x, own, rebuild)
        needed.put(x, own_x)

    def _block_backward(self, layer: int, dx: np.ndarray, batch: Batch) -> None:
        """dx [T, D]: from the gradient of the block's output to that of its input."""
        t = batch.tokens.size
        needed, k, own = self._kept(layer, batch)
        deepest = deepest_group(self.run, layer)
        self.stream.enter(layer, layer - 1 if layer > self.run.lowest else None)
        own_dx = needed.taken(dx, "x")
        self._mlp_backward(layer, own_dx, own, deepest)
        if deepest < 2:
            return
        datt = self.arena.view("datt", t, self.shape.d_q)
        own_datt = needed.room(datt, "dq")
        dout = self.residual.backward(own_dx, own, layer, ATTENTION)
        self.linear.backward(own_datt if deepest > 2 else None, dout, layer, "attn_output", own)
        needed.put(datt, own_datt)
        self.linear.finish(needed.taken(k["att"], "dq"), layer, "attn_output")
        if deepest == 2:
            return
        needed.put(dx, own_dx)
        norm1, rstd1 = self._normed(1, t)
        dnorm = None  # nothing below the lowest trained block is trained
        if layer > self.run.lowest or self.run.needs_dinp:
            dnorm = self.arena.view("dnorm", t, self.shape.d_model)
        self._attention_backward(dnorm, datt, norm1, layer, batch)
        if dnorm is not None:
            self.norms.backward(dx, dnorm, self._block_x(layer, batch), rstd1, f"blk.{layer}.attn_norm", True)

    def _rebuild(self, layer: int, batch: Batch) -> None:
        """Restores the activations of an earlier block: computes them again from its input, or only norms if kept."""
        t = batch.tokens.size
        k = self.kept.of(layer, t)
        if layer < self.shape.n_layer - self.run.kept:
            x = self.arena.view("x", t, self.shape.d_model)
            self.ops.copy(x, self._block_x(layer, batch))
            self._block_forward(layer, x, batch, rebuild=True)
            return
        self.norms.forward(*self._normed(1, t), self._block_x(layer, batch), f"blk.{layer}.attn_norm")
        self.norms.forward(*self._normed(2, t), k["mid"], f"blk.{layer}.ffn_norm")

    def _mlp_forward(self, layer: int, x: np.ndarray, k: Activations, rebuild: bool) -> None:
        """x [T, D] += MLP(norm(x)). rebuild: as in `_block_forward`."""
        norm2, rstd2 = self._normed(2, len(x))
        act = self.arena.view("act", len(x), self.shape.d_ff)
        self.norms.forward(norm2, rstd2, x, f"blk.{layer}.ffn_norm")
        self.linear.forward(k["gate"], norm2, layer, "ffn_gate", k)
        self.linear.forward(k["up"], norm2, layer, "ffn_up", k)
        self.ops.glu_forward(act, k["gate"], k["up"], self.shape.act)
        if not rebuild or self.residual.keeps_output(layer, FEED_FORWARD):
            self.residual.forward(x, act, k, layer, FEED_FORWARD)
        else:
            self.linear.keep(act, layer, "ffn_down", k)

    def _mlp_backward(self, layer: int, dx: np.ndarray, k: Activations, deepest: int) -> None:
        """dx [T, D]: from the gradient of the MLP's output to that of its input, or until group `deepest`."""
        t = len(dx)
        s = self.shape
        norm2, rstd2 = self._normed(2, t)
        act = self.arena.view("act", t, s.d_ff)
        dact = self.arena.view("dact", t, s.d_ff)
        dout = self.residual.backward(dx, k, layer, FEED_FORWARD)
        self.linear.backward(dact if deepest > 0 else None, dout, layer, "ffn_down", k)
        if deepest == 0:
            self.ops.glu_forward(act, k["gate"], k["up"], s.act)
            self.linear.finish(act, layer, "ffn_down")
            return
        self.ops.glu_backward(dact, k["up"], act, dact, k["gate"], k["up"], s.act)  # k["up"] becomes dup; fills act
        self.linear.finish(act, layer, "ffn_down")
        dnorm = self.arena.view("dnorm", t, s.d_model) if deepest > 1 else None
        self.linear.backward(dnorm, dact, layer, "ffn_gate", k)
        self.linear.finish(norm2, layer, "ffn_gate")
        self.linear.backward(dnorm, k["up"], layer, "ffn_up", k, accumulate=True)
        self.linear.finish(norm2, layer, "ffn_up")
        if dnorm is not None:
            self.norms.backward(dx, dnorm, k["mid"], rstd2, f"blk.{layer}.ffn_norm", True)

    def _attention_forward(self, layer: int, norm1: np.ndarray, batch: Batch) -> None:
        """k["att"] [T, H * C] of the needed tokens, from the normed input [T, D]."""
        needed, k, own = self._kept(layer, batch)
        own_q = needed.room(k["q"], "dq")
        self._project(own_q, needed.taken(norm1, "norm2"), layer, "q", own, needed.positions)
        needed.put(k["q"], own_q)
        positions = self._place(batch).positions
        self._project(k["k"], norm1, layer, "k", k, positions)
        self._project(k["v"], norm1, layer, "v", k, positions)
        self.virtual.keys(layer, k["k"], k["v"], batch)
        q, key, v = self._heads(k)
        attend = self.attention.call if self.attention else self.attend_batch
        attend(layer, k, q, key, v, batch)

    def _project(self, out: np.ndarray, norm1: np.ndarray, layer: int, name: str, k: Activations,
                 positions: np.ndarray) -> None:
        """out [T, heads * C] = queries, keys or values of the normed input; the first two are rotated and normed."""
        kind = self.shape.qk_norm if name != "v" else ""
        raw = k[f"{name}_raw"] if kind else out
        self.linear.forward(raw, norm1, layer, f"attn_{name}", k)
        if kind == "rotated":
            self._rotate(layer, raw, name, positions, 1.0)
        if kind:
            self.norms.forward(out, k[f"rstd_{name}"], raw, f"blk.{layer}.attn_{name}_norm")
        if kind != "rotated":
            self._rotate(layer, out, name, positions, 1.0)

    def attend_batch(self, layer: int, k: Activations, q: np.ndarray, key: np.ndarray, v: np.ndarray,
                     batch: Batch) -> None:
        """k["att"], k["lse"] = attention of q [T, H, C] over key, v [T, G, C], the batch's own and its prefix's."""
        s = self.shape
        self.prefix.keep(layer, key, v, batch)
        seen = self.prefix.seen(layer, key, v, batch)
        placed = self._place(batch)
        self.ops.attention_forward(k["att"].reshape(q.shape), k["lse"].reshape(s.n_head, len(q)), q, *seen,
                                   placed.seen_ends, placed.seen_positions, s.attn_scale, s.windows[layer],
                                   forward_precision(self.run, layer))

    def _attention_backward(self, dinp: np.ndarray | None, datt: np.ndarray, norm1: np.ndarray, layer: int,
                            batch: Batch) -> None:
        """dinp [T, D] (None: not wanted) = gradient of the normed input, from datt [T, H * C]."""
        t = batch.tokens.size
        s = self.shape
        needed, k, own = self._kept(layer, batch)
        q, key, v = self._heads(k)
        dq = self.arena.view("dq", *q.shape)
        dk, dv = (self.arena.view(f"d{name}", batch.behind + t, s.n_kv, s.d_head) for name in "kv")
        seen = self.prefix.seen(layer, key, v, batch)
        placed = self._place(batch)
        self.ops.attention_backward(dq, dk, dv, self.arena.view("delta", s.n_head, t), datt.reshape(q.shape),
                                    k["att"].reshape(q.shape), k["lse"].reshape(s.n_head, t), q, *seen,
                                    placed.seen_ends, placed.seen_positions, s.attn_scale, s.windows[layer],
                                    self.run.precision)
        dk, dv = self.prefix.own_gradients(layer, dk, dv, batch)
        self.virtual.keys_backward(layer, dk, dv, batch)
        own_dq = needed.taken(dq, "datt")
        own_dinp = None if dinp is None else needed.room(dinp, "x")
        own_norm1 = needed.taken(norm1, "norm2")
        self._project_backward(own_dinp, own_dq, own_norm1, layer, "q", own, needed.positions)
        if dinp is not None and own_dinp is not None:
            needed.put(dinp, own_dinp)
        self._project_backward(dinp, dk, norm1, layer, "k", k, placed.positions)
        self._project_backward(dinp, dv, norm1, layer, "v", k, placed.positions)

    def _project_backward(self, dinp: np.ndarray | None, grad: np.ndarray, norm1: np.ndarray, layer: int, name: str,
                          k: Activations, positions: np.ndarray) -> None:
        """dinp [T, D] (+)= gradient of the normed input, from that of `_project`'s output, which is changed; the
        queries' comes first.
        """
        kind = self.shape.qk_norm if name != "v" else ""
        if kind != "rotated":
            self._rotate(layer, grad, name, positions, -1.0)
        if kind:
            self.norms.backward(grad, grad, k[f"{name}_raw"], k[f"rstd_{name}"], f"blk.{layer}.attn_{name}_norm")
        if kind == "rotated":
            self._rotate(layer, grad, name, positions, -1.0)
        self.linear.backward(dinp, grad.reshape(len(grad), -1), layer, f"attn_{name}", k, accumulate=name != "q")
        self.linear.finish(norm1, layer, f"attn_{name}")

    def _heads(self, k: Activations) -> Iterator[np.ndarray]:
        """Queries [T, H, C], keys and values [T, G, C]."""
        s = self.shape
        return (k[name].reshape(-1, n, s.d_head) for name, n in (("q", s.n_head), ("k", s.n_kv), ("v", s.n_kv)))

    def _rotate(self, layer: int, x: np.ndarray, name: str, positions: np.ndarray, sign: float) -> None:
        """Rotates queries or keys x [T, heads * C] in place, in blocks that have a rotary embedding."""
        s = self.shape
        if name == "v" or layer in s.unrotated:
            return
        cos, sin = self.rope[s.rope_of(layer)]
        self.ops.rope(x.reshape(len(x), s.n_head if name == "q" else s.n_kv, -1), cos, sin, positions, s.neox, sign)

    # ---- small helpers ----------------------------------------------------------------------------------------

    def _place(self, batch: Batch) -> Placed:
        """The arrays of a batch that ops read; the last batch's are kept."""
        if self._placed is None or self._placed.batch is not batch:
            self._placed = Placed(self.ops, self.arena, batch)
        return self._placed

    def _kept(self, layer: int, batch: Batch) -> tuple[Needed, Activations, Activations]:
        """The tokens whose output of this block is needed; `k`; `own`."""
        placed = self._place(batch)
        apart = layer == self.shape.n_layer - 1 and self.adapter.repeats  # random numbers go by a token's place in T
        needed = placed.last if apart else placed.every
        return needed, self.kept.of(layer, batch.tokens.size), self.kept.of(layer, needed.count)

    def _block_x(self, layer: int, batch: Batch) -> np.ndarray:
        """The input of a trained block, [T, D]."""
        place = self.prefix if self.prefix.keeps_inputs(batch) else self.kept
        return place.block_x(layer, batch.tokens.size)

    def _normed(self, i: int, t: int) -> tuple[np.ndarray, np.ndarray]:
        """The buffers of the first or second norm of a block: its output [T, D] and rstd [T]."""
        return self.arena.view(f"norm{i}", t, self.shape.d_model), self.arena.view(f"rstd{i}", t)
