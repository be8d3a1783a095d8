"""Whether the chosen prompt is accepted: by rows that did not choose it, as llama.cpp answers them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..data.around import Instruction
from ..data.dataset import load_rows
from ..data.rows import Row
from ..evaluation.acceptance import Decision as Comparison
from ..evaluation.acceptance import HeldOut, Paired, wilson, worth
from ..evaluation.acceptance import decide as compare
from ..evaluation.served import exact_match
from ..formats.gguf import Gguf
from ..serving.llama import LlamaModel
from .scoring import RowScore

Show = Callable[[str, float, float], None]


@dataclass(frozen=True)
class Side:
    """What a prompt reaches on the rows that decide. exact: number of right answers. loss: nats a token. tokens: of a
    request, in the mean.
    """

    exact: int
    rows: int
    loss: float
    tokens: float

    def to_json(self) -> dict[str, Any]:
        """What a program reads of it."""
        return {"exact": self.exact / self.rows, "right": self.exact, "rows": self.rows, "loss": self.loss,
                "exact_interval": wilson(self.exact, self.rows), "tokens": round(self.tokens, 1)}


@dataclass(frozen=True)
class Decision:
    """before: with the system message that was there, or none. after: with the prompt. compared: by right answers, on
    held-out rows that chose nothing; a search makes one test.
    """

    before: Side
    after: Side
    compared: Comparison

    @property
    def accepted(self) -> bool:
        return self.compared.is_better

    @property
    def paired(self) -> Paired:
        """Returns the counts of rows that one prompt alone answers right."""
        return self.compared.right

    def to_json(self) -> dict[str, Any]:
        """What a program reads of it."""
        return {"accepted": self.accepted, "before": self.before.to_json(), "after": self.after.to_json(),
                "wins": self.paired.wins, "losses": self.paired.losses, "p": self.paired.p_better}


def decide(before: Sequence[tuple[bool, RowScore]], after: Sequence[tuple[bool, RowScore]]) -> Decision:
    """Compares rows, of each whether it is answered right, and its score, with the old prompt and with the new one."""
    old, new = ([worth(float(right), score.loss) for right, score in side] for side in (before, after))
    return Decision(_side(before), _side(after), compare(old, new, HeldOut()))


def answered(gguf: Gguf, adapter: Path | None, around: Sequence[Instruction], rows: Sequence[Row], longest: int,
             threads: int, show: Show) -> list[list[bool]]:
    """Whether llama.cpp answers each row right, for each of several prompts. Raises the errors of LlamaModel."""
    found = []
    with LlamaModel(gguf, context=longest, threads=threads or None) as served:
        if adapter:
            served.load_adapter(adapter, "adapter")
            served.use("adapter")
        for number, each in enumerate(around):
            what = "llama.cpp answers the rows that decide"
            done = [number * len(rows)]

            def count(what: str = what, done: list[int] = done) -> None:
                done[0] += 1
                show(what, done[0], len(around) * len(rows))

            data = load_rows(rows, served.tokenizer, max_length=longest, system=each)
            found.append([answer.correct for answer in exact_match(served, data, system=each, on_answer=count)])
    return found


def _side(rows: Sequence[tuple[bool, RowScore]]) -> Side:
    count = len(rows)
    return Side(sum(right for right, _ in rows), count, sum(score.loss for _, score in rows) / count,
                sum(score.tokens for _, score in rows) / count)
