"""Opens what understands the sentences of a house."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any, cast

from ...errors import BudgetError, size_text
from ...formats.bundle import open_bundle
from ...formats.gguf import Gguf
from ...formats.named import find_model
from ...serving.answering import Answering
from ...serving.batcher import KEPT, Batcher
from ...serving.encoder import UNLIMITED, encoder_of
from ...serving.llama import LlamaModel
from ...serving.memory import least_with, may_repack
from ...training.plan import GROWTH
from .answering import InTurn, Understanding
from .by_decoder import ByDecoder
from .by_encoder import ByEncoder
from .by_own import ByOwn
from .house import House
from .language import language_of
from .recipe import DECODER, ENCODER

ADAPTER = "house"  # the decoder's name in what answers
CONTEXT = 1024  # tokens of a sentence and its calls: the house's prompt is not read
GRAMMAR = 12 << 20  # bytes of its grammar, of an answer's threads and of Python; 8 were measured beyond the others


def by_encoder(house: House, threads: int = 0, budget: int = UNLIMITED) -> ByEncoder | None:
    """Opens the encoder of a house; None for a house without one. budget: bytes of this process."""
    if not house.facts.encoder:
        return None
    language = language_of(house.facts.language)
    return ByEncoder(encoder_of(house.encoder), house.encoder, house.home, language, threads,
                     budget=budget)


def by_decoder(house: House, answering: Answering[Any]) -> ByDecoder:
    """What understands a house by a model that writes text, which is open already. Raises MismatchError where the
    house's adapter is of another model.
    """
    answering.served.load_adapter(house.decoder, ADAPTER)
    return ByDecoder(answering, ADAPTER, house.home, language_of(house.facts.language), house.facts.limit)


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
                                                repack=may_repack(gguf, context, budget - GRAMMAR),
                                                small_batch=True))
        answering = Batcher(model, parallel=1, queue=1)
        decoder = by_decoder(house, answering)
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
