"""What a run came to, for a person and for a program."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

WORSE = "worse"  # kinds of a verdict
UNMEASURED = "unmeasured"
HEADS = {"learned": "learned", "still falling": "learned", "overfitted": "learned, then overfitted", WORSE: "worse",
         UNMEASURED: "trained"}


@dataclass(frozen=True, repr=False)
class Result:
    """A finished run; print it, or show it in a notebook. folder: of the adapter. record: run.json's content.

    Losses are mean -log p a token; None without held-out rows. Exact answers are shares, 0 to 1, of the held-out
    questions; None if they were not compared. Rows that were held out in turn, as those of few labels, count too.
    """

    folder: Path
    record: dict[str, Any] = field(repr=False)

    @property
    def verdict(self) -> str:
        """What became of it, and what to do next, in a sentence."""
        return str(self.record["verdict"]["sentence"])

    @property
    def kind(self) -> str:
        """learned, still falling, overfitted, worse or unmeasured."""
        return str(self.record["verdict"]["kind"])

    @property
    def headline(self) -> tuple[str, ...]:
        """The verdict in a word, then what was measured before and after, as short as a line of a terminal."""
        found = [HEADS[self.kind]]
        if answers := self._answers:
            before, after = (round(answers[when] * answers["rows"]) for when in ("before", "after"))
            found.append(f"{after} of {answers['rows']} held-out answers right ({before} {was_given(self.record)})")
        elif self.kind == UNMEASURED:
            found.append("not tested")
        if self.loss_after is not None:
            kind, sign = ("loss", 1) if self.reward_after is None else ("reward", -1)
            numbers = (_short(value and sign * value) for value in (self.loss_before, self.loss_after))
            found.append(f"{kind} {' -> '.join(numbers)}")
        return tuple(found)

    @property
    def is_worse(self) -> bool:
        """Whether the adapter is no better than no training; it has no effect then."""
        return self.kind == WORSE

    @property
    def loss_before(self) -> float | None:
        """The loss of the held-out rows before training."""
        return self._held_out("loss_before")

    @property
    def loss_after(self) -> float | None:
        """The loss of the adapter in the folder: the best that was measured."""
        return self._held_out("loss_after")

    @property
    def reward_before(self) -> float | None:
        """Mean reward of greedy answers to held-out prompts, where the run learned from rewards."""
        return self._reward(self.loss_before)

    @property
    def reward_after(self) -> float | None:
        """The same by the adapter."""
        return self._reward(self.loss_after)

    def _reward(self, loss: float | None) -> float | None:
        return -loss if loss is not None and self.record.get("measure") == "reward" else None

    @property
    def exact_before(self) -> float | None:
        """The share of held-out questions that are answered exactly without the adapter."""
        return self._answers.get("before")

    @property
    def exact_after(self) -> float | None:
        """The same with the adapter."""
        return self._answers.get("after")

    @property
    def exact_structured(self) -> float | None:
        """Exact answers held to the schema of the training rows; None where not all of these are JSON."""
        return self._answers.get("structured")

    @property
    def pairs(self) -> list[dict[str, Any]]:
        """Up to three held-out questions: {prompt, expected, before, after, right}, right: of the answer after."""
        return list(self._answers.get("pairs", []))

    @property
    def steps(self) -> int:
        """Optimizer steps that were made."""
        return int(self.record["steps"])

    @property
    def seconds(self) -> float:
        """Seconds of training, without the answers."""
        return float(self.record["seconds"])

    @property
    def _answers(self) -> dict[str, Any]:
        return self.record.get("answers") or {}

    def _held_out(self, name: str) -> float | None:
        value = (self.record["held_out"] or self.record.get("folds") or {}).get(name)
        return None if value is None else float(value)

    def facts(self) -> Iterator[tuple[str, str, str]]:
        """(what, before, after), as far as it was measured."""
        if self.reward_after is not None:
            yield "held-out reward", _number(self.reward_before), _number(self.reward_after)
        elif self.loss_after is not None:
            yield "held-out loss", _number(self.loss_before), _number(self.loss_after)
        if self.exact_before is not None and self.exact_after is not None:
            yield "exact answers", f"{self.exact_before:.0%}", f"{self.exact_after:.0%}"
            if self.exact_structured is not None:
                yield ("exact answers, held to their schema", f"{self.exact_before:.0%}",
                       f"{self.exact_structured:.0%}")

    def __repr__(self) -> str:
        lines = [f"{what} {before} -> {after}" for what, before, after in self.facts()]
        return "\n".join([f"{self.verdict}", *lines, f"adapter in {self.folder}"])

    def _repr_html_(self) -> str:
        """A table for notebooks."""
        from html import escape  # which takes half a MiB of a training otherwise

        def row(cell: str, *texts: str) -> str:
            return f"<tr>{''.join(f'<{cell}>{escape(text)}</{cell}>' for text in texts)}</tr>"

        rows = [row("th", "", "before", "after"), *(row("td", *fact) for fact in self.facts()),
                *(row("td", pair["prompt"], pair["before"], pair["after"]) for pair in self.pairs)]
        return (f"<p>{escape(self.verdict)}<br>adapter in <code>{escape(str(self.folder))}</code></p>"
                f"<table>{''.join(rows)}</table>")


def was_given(record: Mapping[str, Any]) -> str:
    """What answers before training had: the prompt alone, if the run has one and began with no adapter."""
    has_prompt = record.get("options", {}).get("prompt") and not record.get("start")
    return "with the prompt alone" if has_prompt else "before"


def _short(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.2f}" if abs(value) >= 1 else f"{value:.2g}"


def _number(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.4f}"
