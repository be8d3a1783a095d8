"""An objective of labels, and heads for them: what trains an encoder in tests of the engine."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from encoders import WORDS

from edgetune.adapters.heads import CLASSES, TAGS, HeadKind
from edgetune.data.packing import Batch, Example
from edgetune.llamacpp.wordpiece import WordPiece
from edgetune.objectives.base import Objective, Signal
from edgetune.training.trainer import Trainer

TEXTS = ["Turn on the light in the kitchen.", "What is the weather in Lisbon tomorrow morning?", "book a table",
         "A treatise on the theory of heat, in three volumes, by an author whom nobody remembers today."]
LLAMA_CPP = 2e-3  # what its vectors may be off: its GELU is approximated, and looked up in halves
OPTIONS: dict[str, Any] = {"rank": 4, "batch_size": 8, "max_length": 48, "precision": "exact", "threads": 2}


@dataclass(frozen=True)
class Labels(Objective):
    """L = -(1/N) sum w log p of labels, by these heads."""

    name: ClassVar[str] = "labels"
    method: ClassVar[str] = "labels"
    kinds: tuple[HeadKind, ...] = ()

    @property
    def heads(self) -> tuple[HeadKind, ...]:  # type: ignore[override]
        return self.kinds

    def count(self, examples: Sequence[Example]) -> float:
        return float(sum(example.supervised for example in examples))

    def weights(self, logp: np.ndarray, batch: Batch) -> Signal:
        return Signal(batch.supervised_weights, -float((logp * batch.supervised_weights).sum(dtype=np.float64)))


def classes(size: int, label: str = "") -> HeadKind:
    return replace(CLASSES, size=size, label=label)


def tags(size: int) -> HeadKind:
    return replace(TAGS, size=size)


def open_trainer(path: Path, *heads: HeadKind, **options: Any) -> Trainer:
    return Trainer(path, objective=Labels(heads), **{**OPTIONS, **options})


def at_first(tokens: np.ndarray, label: int) -> Example:
    """A document with its label at the first token."""
    return Example(tokens, np.eye(1, tokens.size, dtype=np.float32)[0], labels=np.full(tokens.size, label, np.int32))


def read_texts(path: Path) -> list[Example]:
    """TEXTS in the tokens of an encoder, each with its number as its label."""
    tokenizer = WordPiece(path)
    return [at_first(np.array(tokenizer.encode(text), np.int32), i) for i, text in enumerate(TEXTS)]


def documents(sizes: Sequence[int], labelled: str = "first",
              label: Callable[[int, int], int] = lambda *_: 0) -> list[Example]:
    """Random ones with a label at the first token, or at every token but the first."""
    rng = np.random.default_rng(len(sizes))
    made = []
    for i, n in enumerate(sizes):
        at = np.eye(1, n, dtype=np.float32)[0]
        weights = at if labelled == "first" else 1 - at
        labels = np.array([label(i, t) for t in range(n)], np.int32)
        made.append(Example(rng.integers(5, len(WORDS), n).astype(np.int32), weights, labels=labels))
    return made


def set_random(trainer: Trainer, seed: int = 1) -> None:
    """Adapter and heads, so that no gradient vanishes."""
    lora = trainer.arena.flat("lora")
    lora[:] = np.random.default_rng(seed).standard_normal(lora.size) / 8


def our_gradient(trainer: Trainer, batch: Batch, a: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(what `backward` returns, the gradient of all parameters)"""
    gradient = trainer.arena.flat("dlora")
    gradient.fill(0)
    trainer.decoder.forward(batch, keep=True)
    found = trainer.decoder.backward(batch, a).copy()
    return found, gradient.copy()


def close(got: Any, want: Any, tolerance: float = 1e-4) -> None:
    want = np.asarray(want)
    assert np.abs(np.asarray(got) - want).max() <= tolerance * np.abs(want).max()
