"""The engine that trains, in llama.cpp's place: it serves adapters that llama.cpp cannot apply.

It is the OtherEngine of a context. That decides which tokens are computed together, picks the next ones by the logits,
and keeps sequences of different adapters apart. So batching, grammars, stop strings, log-probabilities and the gate are
the same for these adapters. Weights are read from the mapped file, as llama.cpp reads them: they are in memory once.

In a pass each token attends to its own path of blocks (backends/base.py), whichever text it is of. T tokens, H heads, G
heads of keys, C their width, P blocks of a path, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..adapters.base import Artifact
from ..adapters.store import is_own, read_description
from ..backends.arena import Arena, Buffer, arena_bytes
from ..backends.cpu import Cpu
from ..data.packing import Batch
from ..errors import FormatError, NumericsError, UnsupportedError
from ..formats.gguf import Gguf
from ..formats.shape import Shape, read_shape
from ..llamacpp.context import PARALLEL
from ..machine.device import thread_count
from ..models.cache import Cache, CacheArrays
from ..models.common import Cached
from ..models.decoder import Decoder, Model
from ..models.head import cap_logits
from ..models.linear import Activations
from ..models.states import BEGIN, END, ZEROS, States
from ..models.structure import DecoderStructure
from .rollouts.forward import forward_run, network_buffers, open_passes
from .rollouts.kv_blocks import forward_batch
from .shared_blocks import SharedBlocks, SharedStates, blocks_of, slots_of

PASS = 64  # tokens of a pass at most: a daemon's batches have no more
PRECISION = "fast"  # as of edgetune generate --engine native
KEPT = "uint16"  # the numpy type of keys and values at this precision: bf16
SPARE = 2  # sequences of a context besides those that it names


def own_memory(base: Gguf, adapters: Iterable[str | Path], context: int, sequences: int = 1 + PARALLEL,
               threads: int = 0) -> int:
    """Bytes that the engine takes at most for those of these adapters that it serves; 0: it serves none of them.
    context, sequences: of the Context. Errors: those of `store.read_description`.
    """
    found = [artifact for path in adapters if is_own(artifact := read_description(path))]
    if not found:
        return 0
    model = Model(base)
    ops = Cpu(thread_count(threads))
    runs = [forward_run(model, artifact, threads=threads, max_tokens=PASS, max_length=context, precision=PRECISION)
            for artifact in found]
    return shared_bytes(base, context, sequences, ops) + sum(
        arena_bytes([*network_buffers(model, run), *_work(model, sequences)]) for run in runs)


def shared_bytes(base: Gguf, context: int, sequences: int, ops: Cpu) -> int:
    """Bytes that all adapters use: keys and values, the work space of `ops`, and logits of this pass and the last."""
    return (arena_bytes(_buffers(base, context, sequences)) + ops.scratch_bytes
            + 2 * 4 * PASS * read_shape(base).n_vocab)


class OwnEngine:
    """See OtherEngine. For one thread at a time. context: tokens of all sequences together; sequences: as many as the
    Context names; threads: 0 for one a core. Raises the errors of a network that this engine does not have.
    """

    def __init__(self, base: Gguf, context: int, sequences: int, threads: int) -> None:
        self.computes = False
        self._context = context
        self._sequences = sequences
        self._threads = threads
        self._model = Model(base)
        self._model.structure.check_answers()
        self._ops = Cpu(thread_count(threads))
        self.shared_bytes = shared_bytes(base, context, sequences, self._ops)
        self._arena = Arena(_buffers(base, context, sequences), self._ops.allocate)
        self._cache = CacheArrays(_cache(self._model.shape), self._arena)
        self._blocks = SharedBlocks(blocks_of(context, sequences + SPARE))
        self._held = SharedStates(_slots(self._model.shape, sequences))
        self._adapters: dict[str, Decoder] = {}
        self._active: Decoder | None = None
        self._slots = np.empty(0, np.int32)  # of the tokens of the pass
        self._runs = np.empty((0, 4), np.int32)  # as of models/states.py
        self._paths = np.empty((0, 0), np.int32)

    @property
    def nbytes(self) -> int:
        """Bytes that it takes at most, with its adapters."""
        return self.shared_bytes + sum(decoder.arena.nbytes for decoder in self._adapters.values())

    # ---- adapters -----------------------------------------------------------------------------------------------

    def load(self, name: str, found: Artifact) -> None:
        """Raises MismatchError for an adapter that does not fit, FormatError for one with values that are not finite,
        UnsupportedError for one with virtual tokens.
        """
        decoder = open_passes(self._model, found, threads=self._threads, max_tokens=PASS, max_length=self._context,
                              precision=PRECISION, ops=self._ops, shares=True, more=_work(self._model, self._sequences))
        assert isinstance(decoder, Decoder)
        if decoder.virtual_tokens:
            raise UnsupportedError(f"an adapter of the family {found.family} has virtual tokens, which are not kept "
                                   "here", "answer with edgetune generate --engine native")
        if not np.isfinite(decoder.arena.flat("lora")).all():
            raise FormatError(f"an adapter of the family {found.family} has values that are not finite",
                              "take an earlier adapter")
        self._adapters[name] = decoder

    def unload(self, name: str) -> None:
        del self._adapters[name]

    def use(self, name: str | None) -> None:
        """Computes with this adapter from now on; None: llama.cpp computes."""
        self._active = None if name is None else self._adapters[name]
        self.computes = name is not None

    # ---- sequences ----------------------------------------------------------------------------------------------

    def clear(self) -> None:
        self._blocks.clear()
        self._held.clear()

    def cut(self, sequence: int, count: int) -> None:
        self._blocks.cut(sequence, count)
        self._held.cut(sequence, count)

    def copy(self, source: int, sequence: int, count: int) -> None:
        self._blocks.copy(source, sequence, count)
        self._held.copy(source, sequence, count)

    def held(self, sequence: int, count: int) -> int:
        held = self._blocks.held(sequence, count)
        return self._held.held(sequence, held) if self._cache.states else held

    # ---- a pass -------------------------------------------------------------------------------------------------

    def compute(self, tokens: NDArray[np.int32], positions: NDArray[np.int32], sequences: NDArray[np.int32],
                wanted: NDArray[np.bool_]) -> NDArray[np.float32]:
        """See OtherEngine. Raises NumericsError for logits that are not finite."""
        parts = []
        for begin in range(0, len(tokens), PASS):
            of = slice(begin, begin + PASS)
            self._place(positions[of], sequences[of])
            parts.append(self._pass(tokens[of], positions[of], np.flatnonzero(wanted[of])))
        logits = parts[0] if len(parts) == 1 else np.concatenate(parts)
        if not np.isfinite(logits).all():
            raise NumericsError("the logits of an answer are not finite", "take an earlier adapter")
        return logits

    def _place(self, positions: NDArray[np.int32], sequences: NDArray[np.int32]) -> None:
        """Gives each token of a pass a place in the cache, and its path."""
        slots: list[NDArray[np.int32]] = []
        paths = []
        runs = []
        end = 0
        for sequence, begin, count in _runs(positions, sequences):
            self.cut(sequence, begin)
            places, copies = self._blocks.extend(sequence, count)
            for source, own in copies:
                self._cache.copy_block(source, own)
            end += count
            runs.append((end - count, end, *self._continued(sequence, begin, count)))
            slots.append(places)
            paths.append(self._blocks.paths(sequence, count))
        self._runs = np.array(runs, np.int32)
        width = max(path.shape[1] for path in paths)
        self._slots = np.concatenate(slots)
        self._paths = np.concatenate([np.pad(path, ((0, 0), (0, width - path.shape[1])), constant_values=-1)
                                      for path in paths])

    def _continued(self, sequence: int, begin: int, count: int) -> tuple[int, int]:
        """The slot of the state that tokens of a sequence continue, and whence: itself, or ZEROS."""
        if not self._cache.states:
            return 0, 0
        slot, source = self._held.extend(sequence, begin, count)
        if source not in (slot, ZEROS):
            self._cache.copy_state(source, slot)
        return slot, ZEROS if source == ZEROS else slot

    def _pass(self, tokens: NDArray[np.int32], positions: NDArray[np.int32],
              wanted: NDArray[np.intp]) -> NDArray[np.float32]:
        """The logits [n, V] after the wanted ones of T tokens."""
        decoder = self._active
        assert decoder is not None
        s = decoder.shape
        ends = np.repeat(self._runs[:, END], self._runs[:, END] - self._runs[:, BEGIN])
        batch = forward_batch(tokens, positions.astype(np.int64), ends.astype(np.int64), wanted)
        states = States(self._runs, batch.before, self._cache.states) if self._cache.states else None
        decoder.cached = Cached(self._attend, states)
        decoder.forward(batch, keep=False)
        x = decoder.arena.view("x", len(tokens), s.d_model)[wanted]
        h = np.empty_like(x)
        logits = np.empty((len(x), s.n_vocab), np.float32)
        if len(x):
            head = decoder.stream.head
            decoder.norms.forward(h, np.empty(len(x), np.float32), x, "output_norm")
            decoder.ops.matmul_forward(logits, h, head.data, head.format, precision=PRECISION)
            cap_logits(logits, s.logit_cap)
        return logits

    def _attend(self, layer: int, k: Activations, q: np.ndarray, key: np.ndarray, v: np.ndarray,
                _batch: Batch) -> None:
        """k["att"] = attention of q [T, H, C], whose key and v [T, G, C] are kept before."""
        assert self._active is not None
        self._cache.attend(self._ops, self._active.shape, layer, k["att"], q, key, v, self._slots, self._paths)


def _runs(positions: NDArray[np.int32], sequences: NDArray[np.int32]) -> Iterator[tuple[int, int, int]]:
    """Yields (sequence, first position, number) of tokens that follow one another in a sequence."""
    new = (np.diff(sequences) != 0) | (np.diff(positions) != 1)
    ends = [*(np.flatnonzero(new) + 1).tolist(), len(positions)]
    begin = 0
    for end in ends:
        yield int(sequences[begin]), int(positions[begin]), end - begin
        begin = end


def _cache(shape: Shape) -> Cache:
    structure = DecoderStructure(shape)
    structure.check_answers()
    assert structure.cache
    return structure.cache


def _slots(shape: Shape, sequences: int) -> int:
    return slots_of(sequences + SPARE, _cache(shape).state_bytes)


def _buffers(base: Gguf, context: int, sequences: int) -> list[Buffer]:
    shape = read_shape(base)
    return _cache(shape).buffers(blocks_of(context, sequences + SPARE), _slots(shape, sequences), KEPT)


def _work(model: Model, sequences: int) -> list[Buffer]:
    """Work space of passes of an adapter."""
    return _cache(model.shape).work(PASS, min(PASS, sequences + SPARE), KEPT)
