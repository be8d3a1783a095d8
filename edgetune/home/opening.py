"""Opens what understands the sentences of a house."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, cast

from ..formats.bundle import open_bundle
from ..formats.named import find_model
from ..serving.answering import Answering
from ..serving.batcher import KEPT, Batcher
from ..serving.learned import encoder_of
from ..serving.llama import LlamaModel
from .answering import InTurn, Understanding
from .by_decoder import ByDecoder
from .by_encoder import ByEncoder
from .by_own import ByOwn
from .house import House
from .language import language_of

ADAPTER = "house"  # the decoder's name in what answers
CONTEXT = 1024  # tokens of a sentence and its calls: the house's prompt is not read


def by_encoder(house: House, threads: int = 0) -> ByEncoder | None:
    """Opens the encoder of a house; None for a house without one."""
    if not house.facts.encoder:
        return None
    language = language_of(house.facts.language)
    return ByEncoder(encoder_of(house.encoder), house.encoder, house.home, language, threads)


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


@contextmanager
def decoder_of(house: House, threads: int = 0) -> Iterator[ByDecoder]:
    """Opens the model that writes text, for this house alone."""
    gguf = open_bundle(find_model(house.facts.decoder)).gguf
    context = min(CONTEXT, cast(int, gguf.metadata[f"{gguf.architecture}.context_length"]))
    with ExitStack() as opened:
        model = opened.enter_context(LlamaModel(gguf, context=context, threads=threads or None, sequences=1 + KEPT))
        answering = Batcher(model, parallel=1, queue=1)
        decoder = by_decoder(house, answering)
        answering.start()
        opened.callback(answering.stop)
        yield decoder


@contextmanager
def understanding_of(house: House, threads: int = 0) -> Iterator[Understanding]:
    """Opens all that a house needs, by itself."""
    first = by_encoder(house, threads)
    if not house.facts.decoder:
        yield in_turn(house, first, None)
        return
    with decoder_of(house, threads) as second:
        yield in_turn(house, first, second)
