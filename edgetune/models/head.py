"""The head of a decoder: from the residual stream to log-probabilities, and back; optionally a value head.

T tokens of a batch, S supervised positions, D the model's width, B entries of the vocabulary at a time. The residual
stream `x` [T, D] is in the arena.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import numpy as np

from ..adapters.heads import VALUE
from ..backends.arena import Arena
from ..backends.base import HEAD_STATE, Array, Backend
from ..formats.shape import Shape
from .choices import Choices, Likeliest, Tempered, VocabularyPass, both
from .linear import RunShape
from .norms import Norms
from .stream import HEAD_TOKENS, Stream
from .structure import head_block

if TYPE_CHECKING:
    from ..data.packing import Batch

class Head:
    """The head in an arena with a decoder's buffers.

    Its methods call `begin` before each part of [S]; parts are short, and `begin` may abandon the pass.
    """

    def __init__(self, shape: Shape, run: RunShape, ops: Backend, arena: Arena, stream: Stream,
                 norms: Norms) -> None:
        self.shape = shape
        self.run = run
        self.ops = ops
        self.arena = arena
        self.stream = stream
        self.norms = norms
        self.temperature = 1.0  # of the choices' log p
        self.summed = False  # whether `backward` finds what `forward_to_backward` has summed
        self._cap = shape.logit_cap
        self._value = ValueHead(arena, shape.d_model) if VALUE in run.heads else None

    def forward(self, batch: Batch, begin: Callable[[], None], best: np.ndarray | None = None) -> np.ndarray:
        """log p of each supervised target [S], [S, 1 + k] with choices; valid until the next pass. best: int32 [S]."""
        if batch.choices is not None:
            return self._choices_forward(batch, begin, batch.choices)
        logp = self.arena.view("logp", batch.supervised.size)
        if not batch.supervised.size:
            return logp
        _, h, _ = self._gather(batch)
        self.stream.enter(self.shape.n_layer)
        found = None if best is None else self.ops.empty(best.shape, np.int32)
        head = self.stream.head
        all_targets = self.ops.place(batch.targets)
        for part in _parts(batch, begin):
            targets = all_targets[part]
            part_best = None if found is None else found[part]
            logits, _, state = self._work(targets.size)
            for entries in self.stream.slices(targets):
                self.ops.head_forward(logp[part], part_best, logits, state, h[part], head.data, head.format, targets,
                                      entries, self.run.precision, self._cap)
        self.ops.synchronize()
        if best is not None and found is not None:
            best[:] = found
        return logp

    def forward_to_backward(self, batch: Batch, begin: Callable[[], None]) -> np.ndarray:
        """Returns what `forward` does. `backward` of the same batch follows, and goes over the vocabulary no more where
        this pass can leave it what it sums: not with choices, values or a streamed head, which need more than that.
        """
        if batch.choices is not None or self._value or self.stream.streams_head or not batch.supervised.size:
            return self.forward(batch, begin)
        logp = self.arena.view("logp", batch.supervised.size)
        dh = self.arena.view("dnorm", batch.supervised.size, self.shape.d_model)
        _, h, _ = self._gather(batch)
        self.stream.enter(self.shape.n_layer)
        all_targets = self.ops.place(batch.targets)
        states = self._states(batch)
        for part in _parts(batch, begin):
            self._pass_back(dh[part], logp[part], h[part], all_targets[part], None, self._cap, state=states[part])
        self.ops.synchronize()
        self.summed = True
        return logp

    def backward(self, dx: np.ndarray, batch: Batch, a: np.ndarray, begin: Callable[[], None],
                 dvalues: np.ndarray | None = None) -> np.ndarray:
        """dx [T, D] = gradient of the last block's output, 0 except at supervised positions. Returns log p [S].

        dL/dz_t = a_t (softmax(z_t) - onehot(target_t)), in one pass over the vocabulary.
        """
        s = self.shape
        logp = self.arena.view("logp", batch.supervised.size)
        if not batch.supervised.size:
            self.ops.synchronize()
            dx.fill(0.0)
            return logp
        x, h, rstd = self._gather(batch)
        dh = self.arena.view("dnorm", batch.supervised.size, s.d_model)
        head = self.stream.head
        if self._value and dvalues is not None:
            self._value.backward(self._hidden(h), dvalues)
        self.stream.enter(s.n_layer, s.n_layer - 1)
        given = batch.choices
        all_targets = self.ops.place(batch.targets)
        states = self._states(batch) if self.summed else None
        self.summed = False
        for part in _parts(batch, begin):
            targets = all_targets[part]
            if given is None:
                state = None if states is None else states[part]
                self._pass_back(dh[part], logp[part], h[part], targets, a[part], self._cap, state=state)
            else:
                choices = Choices(self.ops, head, targets, given[part])
                self._choices_backward(dh[part], logp[part], h[part], targets, a[part], choices)
        if self._value and dvalues is not None:
            self.ops.synchronize()
            self._value.add_to(dh, dvalues)
        self.norms.backward(dh, dh, x, rstd, "output_norm")
        self.ops.synchronize()
        dx.fill(0.0)
        first, *others = batch.turns
        dx[batch.supervised[first]] = dh[first] if others else dh
        for turn in others:
            dx[batch.supervised[turn]] += dh[turn]
        return logp

    def likeliest(self, batch: Batch, k: int, begin: Callable[[], None]) -> tuple[np.ndarray, np.ndarray]:
        """Does what Passes.likeliest does."""
        tokens = np.empty((batch.supervised.size, k), np.int32)
        logp = np.empty(tokens.shape, np.float32)
        for part, blocks in self._blocks(batch, begin):
            found = Likeliest(len(blocks.lse), k)
            blocks.read(found.see, self.stream.slices(batch.targets[part]))
            tokens[part] = found.tokens
            logp[part] = found.values - blocks.lse[:, None]
        return tokens, logp

    def values(self, batch: Batch) -> np.ndarray:
        """The value head's output [S], after `forward`."""
        assert self._value
        n = batch.supervised.size
        return self._value.forward(self._hidden(self.arena.view("head_h", n, self.shape.d_model)))

    def _hidden(self, h: np.ndarray) -> np.ndarray:
        """The head's input [S, D] as float32, to be read, in a buffer that only backward uses otherwise."""
        out = self.arena.view("dnorm", *h.shape)
        self.ops.copy(out, h)
        self.ops.synchronize()
        return out

    def _pass_back(self, dh: np.ndarray, logp: np.ndarray, h: np.ndarray, targets: np.ndarray, a: np.ndarray | None,
                   cap: float, choices: Choices | None = None, of_choices: np.ndarray | None = None,
                   state: np.ndarray | None = None) -> None:
        """One pass over the vocabulary for a part of [S]. a [S]: of the targets, with that of the choices, of which
        of_choices [S, 1 + k] has each. Or the pass has no a, and one with it and the same state [S, HEAD_STATE] is
        only its end.
        """
        head = self.stream.head
        logits, e, own = self._work(targets.size)
        summed = None if a is None else self.ops.place(a)
        n = self.shape.n_vocab
        only_end = state is not None and a is not None
        for entries in [(n, n)] if only_end else self.stream.slices(choices.tokens if choices else targets):
            self.ops.head_backward(dh, logp, logits, e, own if state is None else state, h, head.data, head.format,
                                   targets, summed, entries, self.run.precision, cap)
            if choices and of_choices is not None and entries[1] == self.shape.n_vocab:
                choices.backward(dh, of_choices, h, cap)

    def _states(self, batch: Batch) -> np.ndarray:
        """The states of all of [S], [S, HEAD_STATE]: in the gradient's place, which is written last."""
        return self.arena.view("dx", batch.supervised.size, HEAD_STATE)

    def _choices_backward(self, dh: np.ndarray, logp: np.ndarray, h: np.ndarray, targets: np.ndarray, a: np.ndarray,
                          choices: Choices) -> None:
        """The same with choices. At another temperature than 1 theirs is a separate pass, of logits h / temperature.
        """
        if self.temperature == 1:
            self._pass_back(dh, logp, h, targets, a.sum(1), self._cap, choices, a)
            return
        self._pass_back(dh, logp, h, targets, a[:, 0].copy(), self._cap)
        cooled, theirs = (self.ops.empty(dh.shape) for _ in range(2))
        self.ops.copy(cooled, h)
        self.ops.scale(cooled, 1 / self.temperature)
        alone = np.concatenate([np.zeros_like(a[:, :1]), a[:, 1:]], axis=1)
        self._pass_back(theirs, self.ops.empty(logp.shape), cooled, targets, alone.sum(1),
                        self._cap / self.temperature, choices, alone)
        self.ops.scale(theirs, 1 / self.temperature)
        self.ops.add(dh, theirs)
        self.ops.synchronize()

    def _choices_forward(self, batch: Batch, begin: Callable[[], None], given: np.ndarray) -> np.ndarray:
        logp = np.empty((len(given), 1 + given.shape[1]), np.float32)
        for part, blocks in self._blocks(batch, begin):
            choices = Choices(self.ops, self.stream.head, batch.targets[part], given[part])
            tempered = Tempered(len(blocks.lse), self.temperature)
            see = choices.see if self.temperature == 1 else both(choices.see, tempered.see)
            blocks.read(see, self.stream.slices(batch.targets[part]))
            logp[part] = choices.z - blocks.lse[:, None]
            if self.temperature != 1:
                logp[part, 1:] = choices.z[:, 1:] / self.temperature - tempered.lse[:, None]
        return logp

    def _blocks(self, batch: Batch, begin: Callable[[], None]) -> Iterator[tuple[slice, VocabularyPass]]:
        """Parts of [S], and their pass over the vocabulary."""
        _, h, _ = self._gather(batch)
        self.stream.enter(self.shape.n_layer)
        for part in _parts(batch, begin):
            logits, _, _ = self._work(len(h[part]))
            yield part, VocabularyPass(self.ops, self.stream.head, h[part], logits, self.run.precision, self._cap)

    def _gather(self, batch: Batch) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The residual stream at the supervised positions [S, D], its norm [S, D] and rstd [S]."""
        n = batch.supervised.size
        d = self.shape.d_model
        x = self.arena.view("x", batch.tokens.size, d)
        picked = self.arena.view("head_x", n, d)
        h = self.arena.view("head_h", n, d)
        rstd = self.arena.view("head_rstd", n)
        self.ops.embed(picked, self.ops.place(batch.supervised.astype(np.int32)), x, "F32")
        self.norms.forward(h, rstd, picked, "output_norm")
        return picked, h, rstd

    def _work(self, n: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Work space for n tokens: logits and their exponentials [n, B], state."""
        block = head_block(self.shape, min(self.run.max_tokens, HEAD_TOKENS))
        view = self.arena.view
        return view("logits", n, block), view("exps", n, block), view("head_state", n, HEAD_STATE)


class ValueHead:
    """A value head, which estimates the rewards that are to come: value [S] = h [S, D] . weight + bias, where h is the
    normed hidden state. Its parameters are the last of an arena.
    """

    def __init__(self, arena: Arena, width: int) -> None:
        self._value = arena.flat("lora")[-width - 1:]
        self._gradient = arena.flat("dlora")[-width - 1:]

    def forward(self, h: Array) -> Array:
        found: Array = h @ self._value[:-1] + self._value[-1]
        return found

    def backward(self, h: Array, dvalue: Array) -> None:
        """Accumulates the gradient of the head."""
        self._gradient[:-1] += dvalue @ h
        self._gradient[-1] += dvalue.sum()

    def add_to(self, dh: Array, dvalue: Array) -> None:
        """dh [S, D] += dvalue [S] times the weight."""
        dh += np.outer(dvalue, self._value[:-1])


def cap_logits(z: np.ndarray, cap: float) -> None:
    """Makes logits those that a cap leaves, cap * tanh(z / cap), in place; 0: there is none."""
    if cap:
        z /= np.float32(cap)
        np.tanh(z, out=z)
        z *= np.float32(cap)


def _parts(batch: Batch, begin: Callable[[], None]) -> Iterator[slice]:
    """The parts of [S]; calls begin before each."""
    for start in range(0, batch.supervised.size, HEAD_TOKENS):
        begin()
        yield slice(start, start + HEAD_TOKENS)
