"""An encoder opened for answers and vectors, by edgetune's own engine: its weights once, adapters one after another.

An adapter has its own parameters. The memory of activations is given back when another adapter, or the encoder alone,
computes next, so that many adapters take no more of it than one.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import cast

import numpy as np
from numpy.typing import NDArray

from ..adapters import store
from ..adapters.base import Artifact
from ..adapters.heads import VECTOR, HeadKind
from ..adapters.store import read_artifact
from ..backends.opening import open_backend
from ..data import labelled
from ..data.labelled import Read
from ..data.packing import Example, collate
from ..errors import BudgetError, FormatError, NotFoundError, UsageError, size_text
from ..formats.bundle import open_bundle
from ..formats.gguf import Gguf
from ..formats.named import stored_models
from ..llamacpp.tokenizers import open_encoder_tokenizer
from ..machine import device
from ..machine.device import thread_count
from ..models.encoder import EncoderPasses
from ..models.networks import open_network
from ..models.stream import sizes
from ..objectives.base import read_objective
from ..objectives.labelling import Classified, Floats, Labelling
from .calibration import TINY, Calibration, calibrations_of, cooled
from .likeness import Likeness, likeness_of
from .rollouts.forward import open_passes
from .sureness import KINDS, Sureness, sureness_of

MOST_TOKENS = 1024  # of questions that are computed together
GROWTH = 4 << 20  # bytes of Python, of threads and of a short question's activations while it is answered
UNLIMITED = 1 << 62
UNANSWERED = Classified("", 0.0, np.empty(0, np.float32), 0.0)


class Encoder:
    """The weights of an encoder. For one thread at a time; `read` is for any.

    threads: 0 for one a physical core. precision: of the products of answers, as in training; vector_precision: of
    those of vectors. at_once: tokens that are computed together at most, but for one text that has more. budget: bytes
    of this process; weights that have no room in it are read from the file at every use. Raises the errors of
    open_network, and UnsupportedError for a model that is no encoder.
    """

    def __init__(self, gguf: Gguf, threads: int = 0, precision: str = "fast", at_once: int = MOST_TOKENS,
                 vector_precision: str = "exact", budget: int = UNLIMITED) -> None:
        self.gguf = gguf
        self.tokenizer = open_encoder_tokenizer(gguf)
        self.width = cast(int, gguf.metadata[f"{gguf.architecture}.embedding_length"])
        self._network = open_network(gguf)
        self.longest = self._network.structure.longest or at_once
        self._at_once = at_once
        self._threads = thread_count(threads)
        self._ops = open_backend("auto", self._threads)
        self._precision = precision
        self._vector_precision = vector_precision
        self._budget = budget
        self._active: EncoderPasses | None = None

    def read(self, question: str) -> Read:
        """A question as it is read: of one that is too long the beginning. Raises UsageError for an empty one."""
        if not (text := question.strip()):
            raise UsageError("a question is empty", "ask something")
        return labelled.read_by(self.tokenizer, text, self.longest)

    def adapter(self, path: str | Path) -> Reader:
        """Opens an adapter: a folder, or its adapter.gguf. Raises FormatError for one without labels, MismatchError for
        one of another base.
        """
        found = read_artifact(path, self.gguf)
        objective = learned(found, str(path))
        return Reader(self, objective, self._open(found, self._precision, objective.heads),
                      KnownAnswers.of(found, str(path)))

    def vectors(self, texts: Sequence[Sequence[int]], adapter: str | Path | None = None) -> Floats:
        """The vectors of texts by the encoder, with an adapter or without one, pooled, of length 1: [n, D]. texts:
        token ids, each with its marks.
        """
        passes = self._alone if adapter is None else self._open(read_artifact(adapter, self.gguf), "exact", (VECTOR,))
        parts = [np.empty((0, self.width), np.float32)]
        for part in self.together([len(ids) for ids in texts]):
            examples = [Example(np.array(ids, np.int32), np.zeros(len(ids), np.float32)) for ids in texts[part]]
            parts.append(self.use(passes).pooled(collate(examples, share=False)))
        return np.concatenate(parts)

    def together(self, sizes: Sequence[int]) -> Iterator[slice]:
        """Slices of texts that are computed together, by their tokens."""
        begin = 0
        total = 0
        for number, size in enumerate(sizes):
            if total and total + size > self._at_once:
                yield slice(begin, number)
                begin, total = number, 0
            total += size
        if total:
            yield slice(begin, len(sizes))

    def busy_bytes_of(self, passes: EncoderPasses) -> int:
        """Bytes that passes take while they compute texts together. Their arena has room for the longest text that the
        model reads, such as 8,192 tokens, but memory that nothing is written to is not taken.
        """
        return passes.arena.nbytes * min(self._at_once, passes.run.max_tokens) // passes.run.max_tokens

    def keep_within(self, passes: EncoderPasses, room: int, longest: int) -> None:
        """See Reader.keep_within."""
        while self._at_once > longest and self.busy_bytes_of(passes) > room:
            self._at_once = max(longest, self._at_once // 2)
        if (needed := self.busy_bytes_of(passes)) > room:
            left = size_text(max(room, 0))
            raise BudgetError(f"a question of {longest} tokens takes {size_text(needed)}, of memory {left} are left",
                              "edgetune eval answers where there is more memory", needed)

    def use(self, passes: EncoderPasses) -> EncoderPasses:
        """Gives these passes the memory that the last ones computed in."""
        if self._active is not passes:
            if self._active:
                self._active.arena.release()
            self._active = passes
        return passes

    @property
    def busy_bytes(self) -> int:
        """Bytes of the activations of vectors, which take more than those of answers."""
        return self.busy_bytes_of(self._alone)

    @cached_property
    def _alone(self) -> EncoderPasses:
        return self._open(Artifact({}), self._vector_precision, (VECTOR,))

    def _open(self, found: Artifact, precision: str, heads: tuple[HeadKind, ...]) -> EncoderPasses:
        passes = open_passes(self._network, found, threads=self._threads, max_tokens=max(self._at_once, self.longest),
                             max_length=self.longest, precision=precision, ops=self._ops, heads=heads,
                             streamed=self._streamed(found), shares=True)
        assert isinstance(passes, EncoderPasses)
        return self.use(passes)

    def _streamed(self, found: Artifact) -> int:
        """The number of blocks whose weights are read at every use: all, unless these and the adapter have room."""
        blocks = self._network.structure.n_layer
        weights = sizes(self.gguf.tensors.values(), blocks, has_head=False).in_memory(0, self._at_once)
        adapter = sum(pair.a.nbytes + pair.b.nbytes for pair in found.pairs.values())
        adapter += sum(values.nbytes for values in found.tensors.values())
        return blocks if device.rss() + weights + adapter + GROWTH > self._budget else 0


@dataclass(frozen=True)
class KnownAnswers:
    """What an adapter knows about its answers, each None where training had too few rows. sureness: which are sure;
    kinds: likewise of their fields of few values, where others have values from the question. likeness: which questions
    are like the learned ones. calibrations: of each head, () for an adapter without.
    """

    sureness: Sureness | None
    kinds: Sureness | None
    likeness: Likeness | None
    calibrations: tuple[Calibration, ...] = ()

    @classmethod
    def of(cls, found: Artifact, source: str) -> KnownAnswers:
        """Raises FormatError for a damaged adapter. source: names it."""
        return cls(sureness_of(found, source), sureness_of(found, source, KINDS), likeness_of(found, source),
                   calibrations_of(found, source))


class Reader:
    """An encoder with an adapter. learned: the objective by which it learned, which makes its answers. known: what it
    knows of these.
    """

    def __init__(self, encoder: Encoder, learned: Labelling, passes: EncoderPasses, known: KnownAnswers) -> None:
        self.encoder = encoder
        self.learned = learned
        self.known = known
        self._passes = passes

    @property
    def busy_bytes(self) -> int:
        """Bytes of the activations of answers."""
        return self.encoder.busy_bytes_of(self._passes)

    def keep_within(self, room: int, longest: int) -> None:
        """Computes fewer questions together where their activations would not fit in `room` bytes. longest: tokens of a
        question. Raises BudgetError where not even one question fits.
        """
        self.encoder.keep_within(self._passes, room, longest)

    def classify(self, questions: Sequence[Read]) -> list[Classified]:
        """The answer to each question, which `Encoder.read` has read."""
        return [self.learned.answer(read, p) for read, p in self._probabilities(questions)]

    def graded(self, questions: Sequence[Read], answers: Sequence[str]) -> list[tuple[Classified, Floats | None]]:
        """The answer to what each right answer answers, and the loss of each of its labels: see `Labelling.graded`. A
        question that cannot be asked has the answer "".
        """
        found: list[tuple[Classified, Floats | None]] = [(UNANSWERED, None)] * len(questions)
        numbers = [number for number, read in enumerate(questions) if self.learned.knows(read.typed)]
        for number, (read, p) in zip(numbers, self._probabilities([questions[n] for n in numbers]), strict=True):
            found[number] = self.learned.graded(read, p, answers[number])
        return found

    def is_like(self, question: Read) -> bool:
        """Whether a question is like the learned ones, as far as that is known."""
        if self.known.likeness is None:
            return True
        passes = self.encoder.use(self._passes)
        with passes.linear.off():
            [found] = self.known.likeness.likeness(passes.pooled(collate([self.learned.asking(question)], share=False)))
        return bool(found >= self.known.likeness.limit)

    def _probabilities(self, questions: Sequence[Read]) -> Iterator[tuple[Read, NDArray[np.float32]]]:
        """Each question with the probabilities [S, labels] of the labels that its example asks for."""
        by_text: dict[tuple[int, ...], list[int]] = defaultdict(list)  # equal texts are computed once
        for number, read in enumerate(questions):
            by_text[tuple(read.encoded.ids)].append(number)
        texts = [*by_text.values()]
        found: dict[int, Floats] = {}
        for part in self.encoder.together([questions[numbers[0]].tokens for numbers in texts]):
            asking = [self.learned.asking(*(questions[number] for number in numbers)) for numbers in texts[part]]
            batch = collate(asking, share=False)
            p = self._calibrated(self.encoder.use(self._passes).labels(batch))
            for numbers, (_, rows) in zip(texts[part], batch.parts(), strict=True):
                found |= dict.fromkeys(numbers, p[rows])
        for number, read in enumerate(questions):
            yield read, found[number]


    def _calibrated(self, logp: Floats) -> Floats:
        """The probabilities of labels [S, labels], by the temperature of their head; 0 of those of other heads."""
        first = 0
        for head, known in zip(self.learned.heads, self.known.calibrations, strict=False):
            own = slice(first, first + head.size)
            asked = np.flatnonzero(np.isfinite(logp[:, first]))
            if known.temperature != 1 and asked.size:
                logp[asked, own] = np.log(np.maximum(cooled(logp[asked, own], known.temperature), TINY))
            first += head.size
        p: Floats = np.exp(logp)
        return p


def vectors(model: str | Path, texts: Sequence[str], adapter: str | Path | None = None, threads: int = 0) -> Floats:
    """The vectors [n, D] of texts, float32, each of length 1: their scalar products are cosines.

    >>> edgetune.vectors("minilm", ["turn on the light", "lights on"], "my-vectors")

    model: a GGUF, a bundle or a model's name. Of a text that is too long the beginning counts; an empty one raises
    UsageError. threads: 0 for one a physical core.
    """
    encoder = Encoder(open_bundle(model).gguf, threads)
    return encoder.vectors([encoder.read(text).encoded.ids for text in texts], adapter)


def learned(found: Artifact, source: str) -> Labelling:
    """The objective of an adapter. Raises FormatError for one without labels, or without a head that they need. source:
    names it.
    """
    if not found.objective:
        raise FormatError(f"{source} has no labels", "name an adapter that was trained on labels or JSON")
    try:
        objective = read_objective(found.objective)
    except (UsageError, KeyError, TypeError, ValueError) as error:
        raise FormatError(f"{source} is damaged: its labels are not readable ({error})",
                          "take an earlier adapter") from None
    if not isinstance(objective, Labelling) or not objective.is_fitted:
        raise FormatError(f"{source} has no labels", "name an adapter that was trained on labels or JSON")
    for head in objective.heads:
        values = found.tensors.get(f"head.{head.parameters}")
        if values is None or not np.isfinite(values).all():
            raise FormatError(f"{source} has no head for {head.size} {head.parameters}", "take an earlier adapter")
    return objective


def encoder_of(adapter: Path) -> Path:
    """The file of the encoder that an adapter was trained on: where it was then, or among pulled models. Raises
    FormatError for an adapter without labels, and NotFoundError.
    """
    file, found = store.read_any(adapter)
    learned(found, str(adapter))
    name = store.base_of(file)[0]
    recorded = Path(store.read_run(file.path.parent).get("base", {}).get("path") or name)
    for path in (recorded, *(path for _, path in stored_models() if path.name == name)):
        if path.exists():
            return path
    raise NotFoundError(f"{adapter} was trained on {recorded}, which does not exist",
                        "put the encoder there, or get it with edgetune pull")
