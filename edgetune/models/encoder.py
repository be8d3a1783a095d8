"""The encoder on its quantized weights, a BERT or nomic-bert: forward and backward of the whole, a block and its parts.
ModernBERT, whose blocks have another order, is modern_bert.py.

A block normalises after each of its sums (Vaswani et al. 2017). Here the last norm of a block is the first step of the
next one, or of the head: so what is kept between blocks, `x` [T, D], is a sum that is not normed yet, as the residual
stream of a decoder is, and a block whose activations are computed again does not need its last product. Conventions are
those of decoder.py. T tokens of a micro-batch: documents one after another, of which each token sees its own, whole.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from ..backends.arena import Arena
from ..backends.base import Backend
from ..formats.encoder import read_encoder
from ..formats.gguf import ENCODER, NOMIC, Gguf
from .base import Network, Passes, register
from .encoder_head import EncoderHead
from .encoder_structure import BACKWARD_GROUPS, EncoderStructure, kept_widths
from .kept import Kept
from .linear import Activations, Projections, RunShape, forward_precision
from .norms import LayerNorms
from .stream import EMBEDDING, Stream
from .structure import deepest_group

if TYPE_CHECKING:
    from ..data.packing import Batch


@register
class Bert(Network):
    """A GGUF's weights: matrices as mapped bytes with their format, norms and biases as float32."""

    architectures: ClassVar[tuple[str, ...]] = (ENCODER, NOMIC)
    is_causal: ClassVar[bool] = False
    objective: ClassVar[str] = "classify"
    structure: EncoderStructure

    def __init__(self, gguf: Gguf) -> None:
        self.gguf = gguf
        self.structure = EncoderStructure(read_encoder(gguf))
        self.vectors = {n: gguf.read(t).f32() for n, t in gguf.tensors.items() if len(t.shape) == 1}
        gguf.release()

    def places(self, count: int) -> np.ndarray:
        """[count, D], what is added to the embedding of a token: of its position, and of type 0, which all have."""
        found = np.zeros((count, self.structure.shape.d_model), np.float32)
        if (positions := self.gguf.tensors.get("position_embd.weight")) is not None:
            found += self.gguf.read(positions).f32()[:count]
        if (types := self.gguf.tensors.get("token_types.weight")) is not None:
            found += self.gguf.read(types).f32().reshape(-1, found.shape[1])[0]
        return found

    def build(self, run: RunShape, ops: Backend, arena: Arena, streamed: int, seed: int) -> EncoderPasses:
        return EncoderPasses(self, run, ops, arena, streamed, seed)


class EncoderPasses(Passes):
    """Forward and backward of an encoder with an adapter and its heads, in the memory of one arena. Not thread-safe."""

    def __init__(self, network: Bert, run: RunShape, ops: Backend, arena: Arena, streamed: int = 0,
                 seed: int = 0) -> None:
        self.shape = network.structure.shape
        self.run = run
        self.ops = ops
        self.arena = arena
        self.stream = Stream(network.gguf, self.shape.n_layer, ops, streamed, has_head=False)
        shapes = network.structure.trained_shapes(run)
        self.adapter = run.family.carve(shapes, arena, ops, seed)
        self.adapter.read_base(network.gguf)
        vectors = {name: ops.upload(vector) for name, vector in network.vectors.items()}
        self.linear = Projections(ops, self.stream.weights, vectors, run, self.adapter, shapes)
        self.norms = LayerNorms(ops, arena, vectors, self.shape.norm_eps)
        self.kept = Kept([kept_widths(self.shape, run)] * self.shape.n_layer, run, ops, arena)
        self.head = EncoderHead(network.structure, run, ops, arena, seed)
        self.before_block: Callable[[], None] = lambda: None
        self._placed: Batch | None = None
        if "places" in arena.buffers:
            self._whole("places")[:] = network.places(run.max_length)
        for i, rope in enumerate(self.shape.ropes):
            if f"cos{i}" in arena.buffers:
                self._whole(f"cos{i}")[:], self._whole(f"sin{i}")[:] = rope.tables(run.max_length, self.shape.d_head)

    # ---- whole passes -----------------------------------------------------------------------------------------

    def forward(self, batch: Batch, keep: bool) -> None:
        """Sets x to the last block's output; with keep, `block_x` to the inputs of the trained blocks."""
        t = batch.tokens.size
        self._place(batch)
        x = self.arena.view("x", t, self.shape.d_model)
        self.stream.enter(EMBEDDING, 0)
        embedding, tokens = self.stream.rows(batch.tokens)
        self.ops.embed(x, tokens, embedding.data, embedding.format)
        self._embedded(x)
        for layer in range(self.shape.n_layer):
            self.before_block()
            if keep and layer >= self.run.lowest:
                self.kept.keep_x(layer, x)
            self._block_forward(layer, x)

    def _embedded(self, x: np.ndarray) -> None:
        """x [T, D]: from the tokens' embedding to the first block's input."""
        position = self.arena.view("dx", *x.shape)
        self.ops.embed(position, self.arena.view("positions", len(x)), self._whole("places"), "F32")
        self.ops.add(x.reshape(-1), position.reshape(-1))

    def backward(self, batch: Batch, a: np.ndarray, dvalues: np.ndarray | None = None) -> np.ndarray:  # noqa: ARG002
        """Adds to the gradients of adapter and heads, after `forward` with keep; returns what `head_forward` does."""
        x, dx = (self.arena.view(name, batch.tokens.size, self.shape.d_model) for name in ("x", "dx"))
        self.before_block()
        found = self.head.backward(dx, self._hidden(batch), batch, a)
        self.norms.backward(dx, x, self._norm_before(self.shape.n_layer))
        last = self.shape.n_layer - 1
        for layer in range(last, self.run.lowest - 1, -1):
            self.before_block()
            if layer < self.shape.n_layer - self.run.kept:
                self.ops.copy(x, self.kept.block_x(layer, len(x)))
                self._block_forward(layer, x, rebuild=True)
            self._block_backward(layer, dx)
        self.stream.leave()
        return found

    def head_forward(self, batch: Batch, best: np.ndarray | None = None) -> np.ndarray:
        self.before_block()
        return self.head.forward(self._hidden(batch), batch, best)

    def score(self, batch: Batch, best: np.ndarray | None = None) -> np.ndarray:
        self.forward(batch, keep=False)
        found = self.head_forward(batch, best)
        self.stream.leave()
        return found

    def pooled(self, batch: Batch) -> np.ndarray:
        self.forward(batch, keep=False)
        found = self.head.vectors(self._hidden(batch), batch)
        self.stream.leave()
        return found

    def label_heads(self) -> list[tuple[np.ndarray, np.ndarray]]:
        return [(head.weight, head.bias) for head in self.head.by_name.values()]

    def labels(self, batch: Batch) -> np.ndarray:
        self.forward(batch, keep=False)
        found = self.head.labels(self._hidden(batch), batch)
        self.stream.leave()
        return found

    def hidden(self, batch: Batch) -> np.ndarray:
        """The hidden states of all tokens, [T, D]."""
        self.forward(batch, keep=False)
        found: np.ndarray = self._hidden(batch).copy()
        self.stream.leave()
        return found

    def _hidden(self, batch: Batch) -> np.ndarray:
        """The same, after `forward`; ready to be read. The norm's statistics are those of x."""
        t = batch.tokens.size
        h = self.arena.view("head_h", t, self.shape.d_model)
        self.norms.forward(h, self.arena.view("x", t, self.shape.d_model), self._norm_before(self.shape.n_layer))
        self.ops.synchronize()
        return h

    # ---- a block ----------------------------------------------------------------------------------------------

    def _norm_before(self, layer: int) -> str:
        """The norm of a block's input, or of the head's."""
        return f"blk.{layer - 1}.layer_output_norm" if layer else "token_embd_norm"

    def _block_forward(self, layer: int, x: np.ndarray, rebuild: bool = False) -> None:
        """x [T, D] = block(x). rebuild: computes only what backward reads; x is not the block's output then."""
        self.stream.enter(layer, layer - 1 if rebuild else layer + 1)
        k = self.kept.of(layer, len(x))
        self.norms.forward(x, x, self._norm_before(layer))
        self._attention_forward(layer, x, k)
        self.linear.forward(x, k["att"], layer, "attn_output", k, accumulate=True)
        self.ops.copy(k["mid"], x)
        self.norms.forward(x, x, f"blk.{layer}.attn_output_norm")
        self._up_forward(layer, x, k)
        self._down_forward(layer, x, k, rebuild)

    def _down_forward(self, layer: int, x: np.ndarray, k: Activations, rebuild: bool) -> None:
        """x += the MLP's second product; or only what backward reads of it."""
        act = self.arena.view("act", len(x), self.shape.d_ff)
        self._activate(act, k)
        if rebuild:
            self.linear.keep(act, layer, "ffn_down", k)
        else:
            self.linear.forward(x, act, layer, "ffn_down", k, accumulate=True)

    def _block_backward(self, layer: int, dx: np.ndarray) -> None:
        """dx [T, D]: from the gradient of the block's output to that of its input."""
        self.stream.enter(layer, layer - 1 if layer > self.run.lowest else None)
        k = self.kept.of(layer, len(dx))
        deepest = deepest_group(BACKWARD_GROUPS, self.run, layer)
        self._mlp_backward(layer, dx, k, deepest)
        if deepest < 2:
            return
        datt = self.arena.view("datt", *dx.shape)
        self.linear.backward(datt if deepest > 2 else None, dx, layer, "attn_output", k)
        self.linear.finish(k["att"], layer, "attn_output")
        if deepest > 2:
            self._attention_backward(layer, dx, datt, k)

    def _mlp_backward(self, layer: int, dx: np.ndarray, k: Activations, deepest: int) -> None:
        """dx: from the gradient of the MLP's sum to that of the attention's, or until group `deepest`."""
        grads = self._down_backward(layer, dx, k, deepest)
        if not grads:
            return
        norm = self.arena.view("norm", *dx.shape)
        self.norms.forward(norm, k["mid"], f"blk.{layer}.attn_output_norm")
        for target, grad in grads.items():
            self.linear.backward(dx if deepest > 1 else None, grad, layer, target, k, accumulate=True)
            self.linear.finish(norm, layer, target)
        if deepest > 1:
            self.norms.backward(dx, k["mid"], f"blk.{layer}.attn_output_norm")

    def _attention_backward(self, layer: int, dx: np.ndarray, datt: np.ndarray, k: Activations) -> None:
        """dx: from the gradient of the sum to that of the block's input."""
        t = len(dx)
        grads = self._attend_backward(layer, datt, k)
        is_needed = layer > self.run.lowest or self.run.needs_dinp
        norm = self.arena.view("norm", *dx.shape)
        self.norms.forward(norm, self.kept.block_x(layer, t), self._norm_before(layer))
        for target, grad in grads.items():
            self.linear.backward(dx if is_needed else None, grad, layer, target, k, accumulate=True)
            self.linear.finish(norm, layer, target)
        if is_needed:
            self.norms.backward(dx, self.kept.block_x(layer, t), self._norm_before(layer))

    # ---- parts that all architectures have -------------------------------------------------------------------

    def _attention_forward(self, layer: int, norm: np.ndarray, k: Activations) -> None:
        """k["att"] [T, D] of the block's normed input."""
        self._project(layer, norm, k)
        positions, begins, ends = self._documents(len(norm))
        att, q, key, v = self._heads(k, "att", "q", "k", "v")
        self.ops.attention_forward(att, self._rows(k["lse"]), q, key, v, ends, positions, self._scale,
                                   self.shape.windows[layer], precision=forward_precision(self.run, layer),
                                   begin=begins)

    def _attend_backward(self, layer: int, datt: np.ndarray, k: Activations) -> Activations:
        """The gradients of the projections' outputs, by target."""
        t = len(datt)
        grads = {name: self.arena.view(name, *datt.shape) for name in ("dq", "dk", "dv")}
        positions, begins, ends = self._documents(t)
        dq, dk, dv = self._heads(grads, *grads)
        att, q, key, v = self._heads(k, "att", "q", "k", "v")
        self.ops.attention_backward(dq, dk, dv, self.arena.view("delta", self.shape.n_head, t),
                                    datt.reshape(att.shape), att, self._rows(k["lse"]), q, key, v, ends, positions,
                                    self._scale, self.shape.windows[layer], precision=self.run.precision, begin=begins)
        if self.shape.ropes:
            self._rotate(layer, grads["dq"], grads["dk"], -1.0)
        if not self.shape.is_fused:
            return {f"attn_{name}": grads[f"d{name}"] for name in "qkv"}
        return {"attn_qkv": self._joined("qkv", *grads.values())}

    def _down_backward(self, layer: int, dx: np.ndarray, k: Activations, deepest: int) -> Activations:
        """The gradients of the outputs of the MLP's first products, by target: {} where nothing reads them. They
        replace what forward kept.
        """
        act, dact = (self.arena.view(name, len(dx), self.shape.d_ff) for name in ("act", "dact"))
        self.linear.backward(dact if deepest > 0 else None, dx, layer, "ffn_down", k)
        if deepest == 0:
            self._activate(act, k)
        elif self.shape.is_gated:
            self.ops.glu_backward(dact, k["up"], act, dact, k["gate"], k["up"], self.shape.act)
        else:
            self.ops.gelu_backward(dact, act, dact, k["up"])
        self.linear.finish(act, layer, "ffn_down")
        if deepest == 0:
            return {}
        return {"ffn_gate": dact, "ffn_up": k["up"]} if self.shape.is_gated else {"ffn_up": dact}

    def _up_forward(self, layer: int, norm: np.ndarray, k: Activations) -> None:
        """k["up"], and k["gate"] of a gated MLP, [T, F] of its normed input."""
        if self.shape.is_gated:
            self.linear.forward(k["gate"], norm, layer, "ffn_gate", k)
        self.linear.forward(k["up"], norm, layer, "ffn_up", k)

    def _activate(self, act: np.ndarray, k: Activations) -> None:
        """act [T, F] = the MLP's activation."""
        if self.shape.is_gated:
            self.ops.glu_forward(act, k["gate"], k["up"], self.shape.act)
        else:
            self.ops.gelu_forward(act, k["up"])

    def _project(self, layer: int, norm: np.ndarray, k: Activations) -> None:
        """Queries, keys and values [T, D] of the block's normed input."""
        if self.shape.is_fused:
            every = self.arena.view("qkv", len(norm), 3 * self.shape.d_model)
            self.linear.forward(every, norm, layer, "attn_qkv", k)
            self._divide(every, k["q"], k["k"], k["v"])
        else:
            for name in "qkv":
                self.linear.forward(k[name], norm, layer, f"attn_{name}", k)
        if self.shape.ropes:
            self._rotate(layer, k["q"], k["k"], 1.0)

    def _rotate(self, layer: int, q: np.ndarray, key: np.ndarray, sign: float) -> None:
        """q and key [T, D], in place, by the positions of their tokens."""
        number = self.shape.rope_of(layer)
        for x in self._heads({"q": q, "k": key}, "q", "k"):
            self.ops.rope(x, self._whole(f"cos{number}"), self._whole(f"sin{number}"), self._documents(len(x))[0],
                          True, sign)

    # ---- small helpers ----------------------------------------------------------------------------------------

    @property
    def _scale(self) -> float:
        return float(self.shape.d_head**-0.5)

    def _whole(self, name: str) -> np.ndarray:
        """A buffer that has the run's size."""
        return self.arena.view(name, *self.arena.buffers[name].shape)

    def _divide(self, every: np.ndarray, *parts: np.ndarray) -> None:
        """The parts [T, N] of an output [T, sum of N]."""
        self.ops.synchronize()
        for part, values in zip(parts, np.split(every, len(parts), axis=1), strict=True):
            part[:] = values

    def _joined(self, name: str, *parts: np.ndarray) -> np.ndarray:
        """The buffer of this name, made of parts [T, N]."""
        self.ops.synchronize()
        out = self.arena.view(name, len(parts[0]), sum(part.shape[1] for part in parts))
        np.concatenate(parts, axis=1, out=out)
        return out

    def _heads(self, arrays: Activations, *names: str) -> list[np.ndarray]:
        """Arrays [T, D] as [T, H, C]."""
        return [arrays[name].reshape(-1, self.shape.n_head, self.shape.d_head) for name in names]

    def _rows(self, lse: np.ndarray) -> np.ndarray:
        """The buffer of lse as [H, T]."""
        return lse.reshape(self.shape.n_head, -1)

    def _documents(self, t: int) -> list[np.ndarray]:
        """positions, begins and ends of the batch's tokens, as ops read them."""
        return [self.arena.view(name, t) for name in ("positions", "begins", "ends")]

    def _place(self, batch: Batch) -> None:
        """Fills them; those of the last batch are there."""
        if self._placed is batch:
            return
        self.ops.synchronize()  # the old values are no longer read
        positions, begins, ends = self._documents(batch.tokens.size)
        np.copyto(positions, batch.positions)
        np.copyto(begins, np.arange(batch.tokens.size, dtype=np.int32) - batch.positions)
        np.copyto(ends, batch.ends)
        self._placed = batch
