"""What a sentence asks of a house, by whoever understands it: a person's own sentences, an encoder, a model that writes
text, each where those before it are not sure.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, cast

from ...errors import BudgetError, size_text
from ...formats.bundle import open_bundle
from ...formats.gguf import Gguf
from ...formats.named import find_model
from ...serving.answering import Answering
from ...serving.batcher import KEPT, Batcher
from ...serving.encoder import UNLIMITED, Encoder, encoder_of
from ...serving.llama import LlamaModel
from ...serving.memory import least_with, may_repack
from ...training.plan import GROWTH
from .completions import grammar, wish_of_fields, wishes_of
from .entities import Home
from .house import House
from .language import language_of
from .own import own_wishes, plain, read_sentences
from .recipe import DECODER, ENCODER
from .tools import TOOLS, Call, Target
from .wishes import MISSING, UNFINISHED, WHICH, Wish, calls_of

SURE = 0.9  # share of right sure answers to sentences as they are drawn; of few, the highest share that is reached
ARTICLES = 1  # words before a name that leave it a name alone: "the", "my"
MOST_TOKENS = 160  # of an answer
ADAPTER = "house"  # the decoder's name in what answers
CONTEXT = 1024  # tokens of a sentence and its calls: the house's prompt is not read
GRAMMAR = 12 << 20  # bytes of its grammar, of an answer's threads and of Python; 8 were measured beyond the others


@dataclass(frozen=True)
class Understood:
    """What a sentence asks for. wishes: of its parts. is_sure: whether each part is sure and like the learned ones."""

    wishes: tuple[Wish, ...]
    is_sure: bool

    @property
    def calls(self) -> list[Call]:
        return calls_of(self.wishes)

    @property
    def sure_calls(self) -> list[Call]:
        """The calls, none where a part is not sure: another model, or the person, is asked then."""
        return self.calls if self.is_sure else []

    @property
    def why(self) -> str:
        """Why a part has no call; "" if each has one."""
        return next((wish.why for wish in self.wishes if not wish.tool), "")


class Understanding(Protocol):
    """What understands the sentences of a house, for one thread at a time. Raises UsageError for an empty one."""

    def understand(self, sentence: str) -> Understood: ...


class ByOwn:
    """Answers the sentences of a file by the calls written there. Raises the errors of own_wishes."""

    def __init__(self, path: str | Path, home: Home) -> None:
        self._wishes = {plain(sentence): wishes for sentence, wishes in own_wishes(read_sentences(path), home)}

    def understand(self, sentence: str) -> Understood:
        """The wishes of a sentence, whatever its letters' case and the marks at its end; not sure of another one."""
        wishes = self._wishes.get(plain(sentence))
        return Understood(wishes or (), wishes is not None)


class InTurn:
    """The answer of the first one that is sure, else that of the last one. parts: at least one."""

    def __init__(self, parts: Sequence[Understanding]) -> None:
        self._parts = parts

    def understand(self, sentence: str) -> Understood:
        for part in self._parts:
            found = part.understand(sentence)
            if found.is_sure:
                break
        return found


def possible(wish: Wish, home: Home) -> Wish:
    """The wish, or why it cannot be: what it names does not fit together, means no entity, or lacks a value."""
    if not wish.tool:
        return wish
    tool = TOOLS[wish.tool]
    meant = wish.target.entities(home, tool)
    if tool.target and not meant:
        return Wish(why=MISSING)
    if tool.target and len(meant) > 1 and wish.target == Target():
        return Wish(why=WHICH)
    return wish if tool.is_complete(wish.values) else Wish(why=UNFINISHED)


class ByEncoder:
    """The encoder with the adapter of a house. For one thread at a time. budget, errors: of Encoder."""

    def __init__(self, house: House, threads: int = 0, budget: int = UNLIMITED) -> None:
        self._encoder = Encoder(open_bundle(encoder_of(house.encoder)).gguf, threads, budget=budget)
        self._reader = self._encoder.adapter(house.encoder)
        self.busy_bytes = self._reader.busy_bytes
        self._home = house.home
        self._language = language_of(house.facts.language)
        self._names = sorted((name.lower() for one in self._home.entities for name in one.names), key=len, reverse=True)
        self._joined = [name for name in self._names if len(self._language.parts(name)) > 1]  # they must not be cut
        kinds = self._reader.known.kinds or self._reader.known.sureness
        self._threshold = kinds.threshold_up_to(SURE) if kinds else 0.0

    def understand(self, sentence: str) -> Understood:
        """The wishes of a sentence, part by part. Raises UsageError for an empty one."""
        is_name = any(name in sentence.lower() for name in self._joined)
        parts = [sentence] if is_name else whole_parts(self._language.parts(sentence), self._names) or [sentence]
        reads = [self._encoder.read(self._language.in_digits(part)) for part in parts]
        found = self._reader.classify(reads)
        wishes = tuple(possible(wish_of_fields(json.loads(one.label)), self._home) for one in found)
        is_sure = all(one.kind >= self._threshold and self._reader.is_like(read)
                      for one, read in zip(found, reads, strict=True))
        return Understood(wishes, is_sure)


def whole_parts(parts: Sequence[str], names: Sequence[str]) -> list[str]:
    """Parts of a sentence, in which a name alone means what is said of another one: of "the kettle" and "pendant on"
    the first becomes "kettle on". names: in small letters, the longest first.
    """
    named = [next((name for name in names if name in part.lower()), "") for part in parts]
    are_bare = [bool(name) and len(part.split()) <= len(name.split()) + ARTICLES
                and part.lower().endswith(name) for part, name in zip(parts, named, strict=True)]
    found = [*zip(parts, named, are_bare, strict=True)]
    said, name = next(((part, name) for part, name, is_bare in found if name and not is_bare), ("", ""))
    if not name:
        return list(parts)
    begin = said.lower().index(name)
    return [said[:begin] + new + said[begin + len(name):] if is_bare else part for part, new, is_bare in found]


class ByDecoder:
    """A model that writes text with the adapter of a house, in `answering`, which is open already. Raises
    MismatchError if the house's adapter is of another model.
    """

    busy_bytes = 0  # whoever opened the model counts its own

    def __init__(self, house: House, answering: Answering[Any]) -> None:
        answering.served.load_adapter(house.decoder, ADAPTER)
        self._answering = answering
        self._home = house.home
        self._language = language_of(house.facts.language)
        self._grammar = grammar(house.home)
        self._limit = house.facts.limit

    def understand(self, sentence: str) -> Understood:
        """Raises the errors of Answering.submit."""
        wishes, probability = self.written(sentence)
        return Understood(wishes, probability >= self._limit)

    def written(self, sentence: str) -> tuple[tuple[Wish, ...], float]:
        """The wishes of a sentence, and the probability of the text that says them."""
        served = self._answering.served
        asked = self._language.in_digits(sentence)
        if served.chat_template:  # so rows of a prompt and a completion are learned
            asked = served.render([{"role": "user", "content": asked}], None, ADAPTER)
        found = self._answering.submit(asked, adapter=ADAPTER, max_tokens=MOST_TOKENS, temperature=0.0, logprobs=0,
                                       grammar=self._grammar)
        text = found.text()
        try:
            wishes = wishes_of(text, self._home)
        except ValueError:  # its tokens were not enough
            return (Wish(why=UNFINISHED),), 0.0
        probability = math.exp(sum(token.logprob or 0.0 for token in found.logprobs))
        return tuple(possible(wish, self._home) for wish in wishes), probability


def by_encoder(house: House, threads: int = 0, budget: int = UNLIMITED) -> ByEncoder | None:
    """Opens the encoder of a house; None for a house without one. budget: bytes of this process."""
    return ByEncoder(house, threads, budget) if house.facts.encoder else None


def in_turn(house: House, encoder: ByEncoder | None, decoder: ByDecoder | None) -> Understanding:
    """A person's own sentences, then the encoder, then the decoder, as far as a house has them."""
    own = ByOwn(house.own, house.home) if house.own else None
    return InTurn([part for part in (own, encoder, decoder) if part])


def check_memory(models: Mapping[str, str], budget: int, asked: str) -> None:
    """Raises BudgetError unless a house of these models can be asked within `budget` bytes of this process, given as
    `asked`. An encoder takes less than its training, which refuses what does not fit; llama.cpp takes more.
    """
    if DECODER not in models:
        return
    gguf = open_bundle(models[DECODER]).gguf
    needed = least_with(gguf, _context(gguf)) + GROWTH + GRAMMAR
    if ENCODER in models:
        needed += open_bundle(models[ENCODER]).gguf.data.nbytes
    if needed > budget:
        raise BudgetError(f"asking a house by {models[DECODER]} takes up to {size_text(needed)}, the budget is "
                          f"{size_text(budget)} ({asked})", f"give it --memory {-(-needed >> 20) + 1}M", needed)


@contextmanager
def decoder_of(house: House, threads: int = 0, budget: int = UNLIMITED) -> Iterator[ByDecoder]:
    """Opens the model that writes text, for this house alone. budget: bytes of this process."""
    gguf = open_bundle(find_model(house.facts.decoder)).gguf
    context = _context(gguf)
    with ExitStack() as opened:
        model = opened.enter_context(LlamaModel(gguf, context=context, threads=threads or None, sequences=1 + KEPT,
                                                repack=may_repack(gguf, context, budget - GRAMMAR), small_batch=True))
        answering = Batcher(model, parallel=1, queue=1)
        decoder = ByDecoder(house, answering)
        answering.start()
        opened.callback(answering.stop)
        yield decoder


def _context(gguf: Gguf) -> int:
    return min(CONTEXT, cast(int, gguf.metadata[f"{gguf.architecture}.context_length"]))


@contextmanager
def understanding_of(house: House, threads: int = 0, budget: int = UNLIMITED) -> Iterator[Understanding]:
    """Opens all that a house needs, by itself. budget: bytes of this process."""
    first = by_encoder(house, threads, budget)
    if not house.facts.decoder:
        yield in_turn(house, first, None)
        return
    with decoder_of(house, threads, budget) as second:
        yield in_turn(house, first, second)
