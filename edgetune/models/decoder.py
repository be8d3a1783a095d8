"""The decoder on its quantized weights: forward and backward of the whole, a block and its parts.

Conventions of this file: `x` [T, D] is the residual stream, `dx` its gradient, changed in place from a block's output
to its input. Activations are overwritten, the adapter's gradients accumulate until the optimizer's update. T is the
number of tokens in this micro-batch, a forest of documents; the buffers hold `max_tokens`. S is the number of
supervised positions. `k` holds the activations of a block that its backward reads (kept.py); N is the number of
tokens whose output is needed (batch_arrays.py), T but in the last blocks, and `own` holds the activations of these.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from ..backends.arena import Arena
from ..backends.base import Backend
from ..errors import UnsupportedError
from ..formats.families import FAMILIES
from ..formats.gguf import Gguf, Tensor
from ..formats.shape import Shape, read_shape
from .attention import SelfAttention
from .base import Network, Passes, register
from .block_embedding import BlockEmbedding
from .common import Cached, Common
from .head import Head, cap_logits
from .linear import Activations, Projections, RunShape
from .norms import Norms
from .recorded import Repeated, Taped
from .recurrent import STATE_CONV
from .short_conv import CONV
from .stream import EMBEDDING, Stream
from .structure import DecoderStructure, deepest_group, feed_of, feeds_of, groups, mixer_of, mixers_of
from .sublayer import FEED_FORWARD, MIXER, Residual

if TYPE_CHECKING:
    from ..data.packing import Batch
    from .kept import Kept
    from .shared_keys import SharedPrefix


WIDEST_ON_GPU = 256  # heads, as in native/et.h


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
        for layer in range(self.shape.n_layer):
            for name in (CONV, STATE_CONV):
                if (conv := gguf.tensors.get(f"blk.{layer}.{name}.weight")) is None:
                    continue
                self.vectors[conv.name] = np.ascontiguousarray(gguf.read(conv).f32().T[::-1])  # the last token's first
            if self.shape.norms_values:  # whose norm has no weights
                self.vectors[f"blk.{layer}.attn_v_norm.weight"] = np.ones(self.shape.of(layer).d_head, np.float32)
            for name in ("ssm_a", "ssm_d", "ssm_norm.weight"):
                if (found := gguf.tensors.get(f"blk.{layer}.{name}")) is not None:
                    self.vectors[found.name] = gguf.read(found).f32().reshape(-1)
        last = self.vectors[f"{self.shape.family.last_norm}.weight"]
        scale = self.shape.logit_scale
        self.vectors["output_norm.weight"] = last if scale == 1.0 else last / np.float32(scale)
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
        _check_ops(model.shape, ops)
        self.stream = Stream(model.gguf, model.shape.n_layer, ops, streamed)
        shapes = model.structure.trained_shapes(run)
        self.adapter = run.family.carve(shapes, arena, ops, seed)
        self.adapter.read_base(model.gguf)
        self.vectors = {name: ops.upload(vector) for name, vector in model.vectors.items()}
        self.linear = Projections(ops, self.stream.weights, self.vectors, run, self.adapter, shapes)
        s = self.shape
        self.norms = Norms(ops, self.vectors, s.norm_eps, self.linear)
        self.common = Common(s, run, ops, arena, self.stream, self.vectors, self.linear, self.norms)
        self.residual = Residual(ops, arena, self.linear, self.norms, s.post_norms)
        self.before_block: Callable[[], None] = lambda: None
        self.repeated = Repeated(ops)
        self._taped = Taped(ops)
        self._computed: tuple[Batch, bool, Batch] | None = None
        self._head = Head(s, run, ops, arena, self.stream, self.norms)
        self._mixers = [mixer_of(s, layer)(self.common) for layer in range(s.n_layer)]
        self._feeds = [feed_of(s, layer)(self.common) for layer in range(s.n_layer)]
        self._repeats = [mixer.repeats and feed.repeats for mixer, feed in zip(self._mixers, self._feeds, strict=True)]
        self._embedding = BlockEmbedding(self.common, model.gguf) if s.d_block else None
        scales = (model.vectors.get(f"blk.{layer}.layer_output_scale.weight") for layer in range(s.n_layer))
        self._scales = [1.0 if scale is None else float(scale[0]) for scale in scales]

    # ---- whole passes -----------------------------------------------------------------------------------------

    def forward(self, batch: Batch, keep: bool) -> None:
        """Sets x to the last block's output at the supervised positions; with keep, `_block_x` to the inputs of the
        trained blocks. A prefix whose inputs are kept passes only the blocks whose activations are kept.
        """
        batch = self._whole(batch)
        self._head.summed = False
        x = self.arena.view("x", batch.tokens.size, self.shape.d_model)
        if batch.is_prefix and not keep:
            self.common.prefix.begin()
        keeps_inputs = self.common.prefix.keeps_inputs(batch)
        has_inputs = keep and keeps_inputs
        first = self.shape.n_layer - self.run.kept if has_inputs else 0
        if not has_inputs or self._embedding:
            self.stream.enter(EMBEDDING, 0)
            embedding, tokens = self.stream.rows(np.maximum(batch.tokens, 0))
            self.ops.embed(x, tokens, embedding.data, embedding.format, self.shape.embed_scale)
            self.common.virtual.embed(x, batch)
        if self._embedding:
            self._embedding.begin(np.maximum(batch.tokens, 0), x)
        if has_inputs:
            self.ops.copy(x, self._block_x(first, batch))
            self.common.restore_lent(first, batch)
        self.common.place(batch)
        key = self._key(batch, "kept" if keep else "forward")
        self.repeated.run(key, partial(self._blocks_forward, x, batch, first, keep != keeps_inputs))

    def _blocks_forward(self, x: np.ndarray, batch: Batch, first: int, store: bool) -> None:
        """Passes x through the blocks from `first`. store: keeps the inputs of trained blocks; a prefix that keeps
        them does so in its first pass, without keep.
        """
        are_ops = self._are_ops(batch)
        for layer in range(first, self.shape.n_layer):
            self.before_block()
            keeps_x = store and layer >= self.run.lowest
            key = self._tape_key(layer, batch, "kept" if keeps_x else "forward") if are_ops else None
            self._taped.run(key, batch.tokens.size, partial(self._next_block, layer, x, batch, keeps_x))

    def _next_block(self, layer: int, x: np.ndarray, batch: Batch, keeps_x: bool) -> None:
        if keeps_x:
            self._place_x(batch).keep_x(layer, x)
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
        self.common.virtual.embed_backward(dx, batch)
        return logp

    def _blocks_backward(self, dx: np.ndarray, batch: Batch) -> None:
        self.common.lent.begin()
        are_ops = self._are_ops(batch)
        for layer in range(self.shape.n_layer - 1, self.run.lowest - 1, -1):
            self.before_block()
            key = self._tape_key(layer, batch, "backward") if are_ops else None
            self._taped.run(key, batch.tokens.size, partial(self._rebuilt_backward, layer, dx, batch))

    def _rebuilt_backward(self, layer: int, dx: np.ndarray, batch: Batch) -> None:
        if layer != self.shape.n_layer - 1:  # whose activations are those of forward
            self._rebuild(layer, batch)
        self._block_backward(layer, dx, batch)

    @property
    def cached(self) -> Cached | None:
        """What passes take of earlier ones; None: they see their own tokens alone."""
        return self.common.cached

    @cached.setter
    def cached(self, cached: Cached | None) -> None:
        self.common.cached = cached

    @property
    def virtual_tokens(self) -> int:
        """Tokens that the adapter has before a document, in a pass with it."""
        return 0 if self.linear.is_off else self.run.virtual

    def _whole(self, batch: Batch) -> Batch:
        """The batch that is computed: after the adapter's virtual tokens, and padded where passes are recorded."""
        if self.cached:
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
        cached = self.cached.key if self.cached else ()
        repeats = self.adapter.repeats and all(self._repeats)
        if self.stream.streamed or cached is None or not repeats:
            return None
        return name, batch.tokens.size, batch.behind, batch.is_prefix, self.linear.is_off, cached

    def _are_ops(self, batch: Batch) -> bool:
        """Whether a pass of all blocks is ops alone, with sizes by its tokens; see `_repeats` for each block."""
        return not (self.stream.streamed or self.run.on_disk or self.cached or batch.is_prefix or batch.behind
                    or self._embedding or self.shape.lenders) and self.adapter.repeats

    def _tape_key(self, layer: int, batch: Batch, name: str) -> Hashable | None:
        """The key of a pass of a block whose passes are ops, for `Taped.run`; None where those of this one are not."""
        if not self._repeats[layer] or self.common.is_partial(layer, batch):
            return None
        return name, layer, self.linear.is_off

    def score(self, batch: Batch, best: np.ndarray | None = None) -> np.ndarray:
        """log p of each supervised target, as `head_forward`; valid until the next pass. best: int32 [S]."""
        self.forward(batch, keep=False)
        logp = self._head.forward(self._whole(batch), self.before_block, best)
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
        cap_logits(out, s.logit_cap)
        return out

    @property
    def temperature(self) -> float:
        return self._head.temperature

    @temperature.setter
    def temperature(self, value: float) -> None:
        self._head.temperature = value

    # ---- the head ---------------------------------------------------------------------------------------------

    def head_forward(self, batch: Batch) -> np.ndarray:
        """log p as `score` returns it, after `forward` and before `backward`."""
        return self._head.forward_to_backward(self._whole(batch), self.before_block)

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
        mixer = self._mixers[layer]
        needed, k, own = self.common.kept_of(layer, batch)
        self.stream.enter(layer, layer - 1 if rebuild else layer + 1)
        norm1, rstd1 = self._normed(1, t)
        self.norms.forward(norm1, rstd1, x, f"blk.{layer}.attn_norm")
        mixer.forward(layer, norm1, batch)
        own_x = needed.taken(x, "own_x" if rebuild else "dx")
        inner = needed.taken(k[mixer.inner], "datt")
        self.residual.forward(own_x, inner, own, layer, mixer)
        self.ops.copy(own["mid"], own_x)
        self._feed_forward(layer, own_x, own, rebuild)
        if self._embedding:
            self._embedding.forward(layer, own_x, own, needed, self.residual)
        if self._scales[layer] != 1.0:
            self.ops.scale(own_x.reshape(-1), self._scales[layer])
        needed.put(x, own_x)

    def _block_backward(self, layer: int, dx: np.ndarray, batch: Batch) -> None:
        """dx [T, D]: from the gradient of the block's output to that of its input."""
        t = batch.tokens.size
        mixer = self._mixers[layer]
        needed, k, own = self.common.kept_of(layer, batch)
        deepest = deepest_group(groups(self.shape, layer), self.run, layer)
        self.stream.enter(layer, layer - 1 if layer > self.run.lowest else None)
        own_dx = needed.taken(dx, "x")
        if self._scales[layer] != 1.0:
            self.ops.scale(own_dx.reshape(-1), self._scales[layer])
        if self._embedding:
            self._embedding.backward(layer, own_dx, own, self.residual)
        self._feed_backward(layer, own_dx, own, deepest)
        if deepest < 2:
            return
        inner = k[mixer.inner]
        dinner = self.arena.view("datt", *inner.shape)
        own_dinner = needed.room(dinner, "dq")
        dout = self.residual.backward(own_dx, own, layer, MIXER)
        self.linear.backward(own_dinner if deepest > 2 else None, dout, layer, mixer.last, own)
        needed.put(dinner, own_dinner)
        self.linear.finish(needed.taken(inner, "dq"), layer, mixer.last)
        if deepest == 2:
            return
        needed.put(dx, own_dx)
        norm1, rstd1 = self._normed(1, t)
        dnorm = None  # nothing below the lowest trained block is trained
        if layer > self.run.lowest or self.run.needs_dinp:
            dnorm = self.arena.view("dnorm", t, self.shape.d_model)
        mixer.backward(layer, dnorm, dinner, norm1, batch)
        if dnorm is not None:
            self.norms.backward(dx, dnorm, self._block_x(layer, batch), rstd1, f"blk.{layer}.attn_norm", True)

    def _rebuild(self, layer: int, batch: Batch) -> None:
        """Restores the activations of an earlier block: computes them again from its input, or only norms if kept."""
        t = batch.tokens.size
        needed, _, own = self.common.kept_of(layer, batch)
        if layer < self.shape.n_layer - self.run.kept:
            x = self.arena.view("x", t, self.shape.d_model)
            self.ops.copy(x, self._block_x(layer, batch))
            self._block_forward(layer, x, batch, rebuild=True)
            return
        self.norms.forward(*self._normed(1, t), self._block_x(layer, batch), f"blk.{layer}.attn_norm")
        self.norms.forward(*self._normed(2, needed.count), own["mid"], self._feed_norm(layer))

    def _feed_forward(self, layer: int, x: np.ndarray, k: Activations, rebuild: bool) -> None:
        """x [N, D] += feed-forward(norm(x)). rebuild: as in `_block_forward`."""
        feed = self._feeds[layer]
        norm2, rstd2 = self._normed(2, len(x))
        self.norms.forward(norm2, rstd2, x, self._feed_norm(layer))
        inner = feed.forward(layer, norm2, k)
        if not rebuild or self.residual.keeps_output(layer, FEED_FORWARD):
            self.residual.forward(x, inner, k, layer, feed)
        else:
            feed.keep(inner, layer, k)

    def _feed_backward(self, layer: int, dx: np.ndarray, k: Activations, deepest: int) -> None:
        """dx [N, D]: from the gradient of the block's output to that of the mixer's, or until group `deepest`."""
        if deepest < 0:
            return
        norm2, rstd2 = self._normed(2, len(dx))
        dnorm = self.arena.view("dnorm", len(dx), self.shape.d_model) if deepest > 1 else None
        dout = self.residual.backward(dx, k, layer, FEED_FORWARD)
        self._feeds[layer].backward(layer, dnorm, dout, norm2, k, deepest)
        if dnorm is not None:
            self.norms.backward(dx, dnorm, k["mid"], rstd2, self._feed_norm(layer), True)

    def attend_batch(self, layer: int, k: Activations, q: np.ndarray, key: np.ndarray, v: np.ndarray,
                     batch: Batch) -> None:
        """What a replaced `attention` replaces: see SelfAttention.attend."""
        mixer = self._mixers[layer]
        assert isinstance(mixer, SelfAttention)
        mixer.attend(layer, k, q, key, v, batch)

    # ---- small helpers ----------------------------------------------------------------------------------------

    def _block_x(self, layer: int, batch: Batch) -> np.ndarray:
        """The input of a trained block, [T, D]."""
        return self._place_x(batch).block_x(layer, batch.tokens.size)

    def _place_x(self, batch: Batch) -> Kept | SharedPrefix:
        """What keeps the inputs of blocks."""
        return self.common.prefix if self.common.prefix.keeps_inputs(batch) else self.common.kept

    def _feed_norm(self, layer: int) -> str:
        return f"blk.{layer}.{self.shape.family.feed_norm}"

    def _normed(self, i: int, t: int) -> tuple[np.ndarray, np.ndarray]:
        """The buffers of the first or second norm of a block: its output [T, D] and rstd [T]."""
        return self.arena.view(f"norm{i}", t, self.shape.d_model), self.arena.view(f"rstd{i}", t)


def _check_ops(s: Shape, ops: Backend) -> None:
    """Raises UnsupportedError where a GPU does not have the ops of a network."""
    for kind in (*mixers_of(s), *feeds_of(s)):
        if kind.on_cpu_alone and ops.isa.startswith("cuda"):
            raise UnsupportedError(f"this model has the sublayer {kind.__name__}, which no GPU computes here",
                                   "give --backend cpu")
    if ops.isa.startswith("cuda") and (s.d_block or s.logit_cap or s.d_head > WIDEST_ON_GPU):
        raise UnsupportedError("this model has wide heads, capped logits or embeddings of each block, which no GPU "
                               "computes here", "give --backend cpu")
