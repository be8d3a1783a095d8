"""Scores of prompts: the likelihood of the right answers, and the answers themselves, by edgetune's own engine.

What rows begin with alike, such as a system message and its examples, is computed once in each pass (data/trees.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..data import rows as supervised
from ..data.around import Instruction
from ..data.dataset import load_rows
from ..data.packing import Example
from ..data.rows import Row
from ..data.trees import micro_batches
from ..errors import DataError
from ..evaluation.native import MICRO_BATCH, native_match
from ..evaluation.served import GradedAnswer
from ..formats.bundle import Bundle
from ..llamacpp.tokenizer import Tokenizer
from ..models.decoder import Decoder
from ..serving.rollouts.scoring import open_scorer
from ..serving.rollouts.texts import Engine, adapter_of
from ..training.passes import scores


@dataclass(frozen=True)
class RowScore:
    """The likelihood of a row's answer with a prompt. loss: nats a token. tokens: of the prompt."""

    loss: float
    tokens: int


class Scorer:
    """A model, with an adapter or without one, that scores prompts on rows. longest: tokens of a prompt with its answer
    at most. Raises the errors of `open_scorer`.
    """

    def __init__(self, bundle: Bundle, tokenizer: Tokenizer, adapter: Path | None, engine: Engine,
                 longest: int) -> None:
        self.bundle = bundle
        self.tokenizer = tokenizer
        self.engine = engine
        self.longest = longest
        self.adapter = adapter_of(bundle.gguf, adapter)
        self._decoder: Decoder | None = None

    def fits(self, around: Instruction, row: Row) -> bool:
        """Whether a row fits with this prompt."""
        return self._fit(self._examples(row, around))

    def losses(self, around: Instruction, rows: Sequence[Row]) -> list[RowScore] | None:
        """The score of each row; None where one does not fit with this prompt."""
        made = [self._examples(row, around) for row in rows]
        if not all(map(self._fit, made)):
            return None
        flat = [example for examples in made for example in examples]
        decoder = self._open()
        found = scores(decoder, micro_batches(flat, decoder.run.max_tokens))
        return [RowScore(-sum(float(found[id(each)].sum(dtype=float)) for each in examples)
                         / sum(each.supervised for each in examples), examples[-1].begin) for examples in made]

    def answers(self, around: Instruction, rows: Sequence[Row]) -> list[GradedAnswer]:
        """The greedy answer to each row."""
        self.rest()  # answers take other memory
        data = load_rows(rows, self.tokenizer, max_length=self.longest, system=around)
        return native_match(self.bundle, self.tokenizer, data, self.adapter, self.engine, system=around)

    def rest(self) -> None:
        """Gives the memory of scoring back until it is used again."""
        self._decoder = None

    def _open(self) -> Decoder:
        if self._decoder is None:
            self._decoder = open_scorer(self.bundle.gguf, self.adapter, self.engine, longest=self.longest,
                                        at_once=max(MICRO_BATCH, self.longest))
        return self._decoder

    def _fit(self, examples: Sequence[Example]) -> bool:
        return all(example.tokens.size <= self.longest for example in examples)

    def _examples(self, row: Row, around: Instruction) -> list[Example]:
        found = [example for example in supervised.examples_of(row, supervised.shape_of(row), self.tokenizer, around,
                                                               self.longest) if example.supervised]
        if not found:
            raise DataError("a row has no answer to score by", "give it one, or remove the row")
        return found
