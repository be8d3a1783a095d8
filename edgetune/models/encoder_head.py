"""The heads of an encoder: from hidden states to vectors of documents, and to log-probabilities of labels; and back.

T tokens of a batch, S supervised positions, D the model's width; h [T, D] are the hidden states, float32. A label says
which head a position is for (adapters/heads.py).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ..adapters.base import slices
from ..adapters.heads import MULTILABEL, TAGS, VECTOR
from ..backends.arena import Arena
from ..backends.base import Array, Backend
from .encoder_structure import LABELLING, EncoderStructure
from .linear import RunShape

if TYPE_CHECKING:
    from ..data.packing import Batch

SPREAD = 0.02  # of a head's weights at first
TINY = 1e-12  # the least length that a vector is divided by


@dataclass(frozen=True)
class LabelHead:
    """The parameters of a head of labels: views of the arena, in training. weight, dweight [size, D]; bias,
    dbias [size]. pooled: whether its input is a document's vector, or a token's state; first: its first label.
    """

    weight: Array
    bias: Array
    dweight: Array
    dbias: Array
    pooled: bool
    first: int


@dataclass(frozen=True)
class Documents:
    """The documents of a batch. starts: of their first tokens; sizes: their tokens, int64 [documents]."""

    starts: NDArray[np.int64]
    sizes: NDArray[np.int64]

    @classmethod
    def of(cls, batch: Batch) -> Documents:
        starts = np.flatnonzero(batch.positions == 0)
        return cls(starts, np.diff(starts, append=batch.positions.size))

    def holding(self, tokens: NDArray[np.int64]) -> NDArray[np.int64]:
        """The document of each token."""
        return np.searchsorted(self.starts, tokens, side="right") - 1


class EncoderHead:
    """The heads of a run, in an arena with an encoder's buffers. by_name: those with parameters."""

    def __init__(self, structure: EncoderStructure, run: RunShape, ops: Backend, arena: Arena, seed: int) -> None:
        self._ops = ops
        self._arena = arena
        self._d = structure.shape.d_model
        self._is_mean = structure.shape.pooling == "mean"
        self._is_vector = run.heads[0] == VECTOR
        self._is_multilabel = run.heads[0].name == MULTILABEL.name
        heads = [head for head in run.heads if head.name in LABELLING]
        groups = structure.parameters(run)
        values, gradients = (slices(groups, arena.flat(name))[len(groups) - len(heads):] for name in ("lora", "dlora"))
        self._ends = np.cumsum([head.size for head in heads])
        self.by_name: dict[str, LabelHead] = {}
        rng = np.random.default_rng([seed, *b"heads"])
        for head, own, gradient, end in zip(heads, values, gradients, self._ends, strict=True):
            weight, bias = self._cut(own, head.size)
            weight[:] = rng.standard_normal(weight.shape, np.float32) * np.float32(SPREAD)
            bias[:] = 0
            self.by_name[head.parameters] = LabelHead(weight, bias, *self._cut(gradient, head.size),
                                                      head.name != TAGS.name, int(end) - head.size)

    def forward(self, h: Array, batch: Batch, best: NDArray[np.int32] | None = None) -> Array:
        """log p of each supervised label [S]; with a vector head [S, D], with one of several labels its outputs [S, k].
        best [S]: is filled with likeliest labels.
        """
        if self._is_vector:
            return self._of_documents(h, batch, batch.supervised)
        if self._is_multilabel:
            [head] = self.by_name.values()
            return self._outputs(head, batch.supervised, h, batch)
        logp = self._arena.view("logp", batch.supervised.size)
        for head, rows, found in self._passes(h, batch):
            logp[rows] = found[np.arange(rows.size), batch.targets[rows] - head.first]
            if best is not None:
                best[rows] = found.argmax(1) + head.first
        return logp

    def backward(self, dh: Array, h: Array, batch: Batch, a: Array) -> Array:
        """dh [T, D] = the gradient of h; returns what `forward` does. Gradients of parameters accumulate."""
        dh.fill(0)
        if self._is_vector:
            self._add_vectors(dh, -a, h, batch, batch.supervised)
            return self.forward(h, batch)
        if self._is_multilabel:
            [head] = self.by_name.values()
            outputs = self.forward(h, batch)
            self._head_backward(head, -a, dh, h, batch, batch.supervised)
            return outputs
        logp = self._arena.view("logp", batch.supervised.size)
        for head, rows, found in self._passes(h, batch):
            places = np.arange(rows.size)
            labels = batch.targets[rows] - head.first
            logp[rows] = found[places, labels]
            np.exp(found, out=found)
            found[places, labels] -= 1
            found *= a[rows, None]
            self._head_backward(head, found, dh, h, batch, batch.supervised[rows])
        return logp

    def _head_backward(self, head: LabelHead, dz: Array, dh: Array, h: Array, batch: Batch,
                       tokens: NDArray[np.int64]) -> None:
        """Adds the gradient of a head, and to dh, by that of its outputs dz [n, size] at tokens, whose inputs are in
        the arena.
        """
        inputs = self._arena.view("head_x", tokens.size, self._d)
        self._ops.matmul_dweight(head.dweight, dz, inputs)
        self._ops.matmul_backward(inputs, dz, head.weight, "F32")
        self._ops.synchronize()
        head.dbias[:] += dz.sum(0)
        if head.pooled:
            self._add_vectors(dh, inputs, h, batch, tokens)
        else:
            dh[tokens] += inputs

    def labels(self, h: Array, batch: Batch) -> Array:
        """log p of all labels at each supervised position, [S, labels]; -inf of those of other heads."""
        if self._is_multilabel:
            every: Array = -np.logaddexp(np.float32(0), -self.forward(h, batch))
            return every
        out = np.full((batch.supervised.size, self._ends[-1]), -np.inf, np.float32)
        for head, rows, found in self._passes(h, batch):
            out[rows, head.first:head.first + found.shape[1]] = found
        return out

    def vectors(self, h: Array, batch: Batch) -> Array:
        """The vector of each document, of length 1, [documents, D]."""
        found, length = self._pool(h, Documents.of(batch))
        return found / length

    def _pool(self, h: Array, documents: Documents) -> tuple[Array, Array]:
        """The pooled states [documents, D], and their lengths [documents, 1]."""
        pooled: Array = h[documents.starts]
        if self._is_mean:
            pooled = np.add.reduceat(h, documents.starts) / documents.sizes[:, None].astype(np.float32)
        return pooled, np.maximum(np.linalg.norm(pooled, axis=1, keepdims=True), TINY)

    def _passes(self, h: Array, batch: Batch) -> Iterator[tuple[LabelHead, NDArray[np.int64], Array]]:
        """Each head with some rows of [S], n of these, and their log p of its labels [n, size], in the arena."""
        owners = np.searchsorted(self._ends, batch.targets, side="right")
        vectors: Array | None = None
        for number, head in enumerate(self.by_name.values()):
            rows = np.flatnonzero(owners == number)
            if not rows.size:
                continue
            if head.pooled and vectors is None:  # all heads read the same
                vectors = self.vectors(h, batch)
            z = self._outputs(head, batch.supervised[rows], h, batch, vectors)
            z -= z.max(1, keepdims=True)
            z -= np.log(np.exp(z).sum(1, keepdims=True))
            yield head, rows, z

    def _outputs(self, head: LabelHead, tokens: NDArray[np.int64], h: Array, batch: Batch,
                 vectors: Array | None = None) -> Array:
        """The outputs [n, size] of a head at tokens, in the arena, as its inputs are. vectors: of the documents."""
        inputs = self._arena.view("head_x", tokens.size, self._d)
        inputs[:] = self._of_documents(h, batch, tokens, vectors) if head.pooled else h[tokens]
        z = self._arena.view("head_z", tokens.size, head.bias.size)
        self._ops.matmul_forward(z, inputs, head.weight, "F32")
        self._ops.synchronize()
        z += head.bias
        return z

    def _of_documents(self, h: Array, batch: Batch, tokens: NDArray[np.int64], vectors: Array | None = None) -> Array:
        """The vector of each token's document."""
        known = self.vectors(h, batch) if vectors is None else vectors
        found: Array = known[Documents.of(batch).holding(tokens)]
        return found

    def _add_vectors(self, dh: Array, dvectors: Array, h: Array, batch: Batch, tokens: NDArray[np.int64]) -> None:
        """dh += the gradient of h by that of the vectors of these tokens' documents."""
        documents = Documents.of(batch)
        total = np.zeros((documents.starts.size, self._d), np.float32)
        np.add.at(total, documents.holding(tokens), dvectors)
        pooled, length = self._pool(h, documents)
        vectors = pooled / length
        total -= vectors * (vectors * total).sum(1, keepdims=True)
        total /= length
        if self._is_mean:
            dh += np.repeat(total / documents.sizes[:, None].astype(np.float32), documents.sizes, axis=0)
        else:
            dh[documents.starts] += total

    def _cut(self, flat: Array, size: int) -> tuple[Array, Array]:
        """The weight [size, D] and the bias [size] in a head's part of an array."""
        return flat[:size * self._d].reshape(size, self._d), flat[size * self._d:]
