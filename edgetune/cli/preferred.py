"""eval on rows of pairs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..errors import UsageError
from .app import explicit, show
from .objective import DEFAULT, FLAG, ObjectiveCommand

if TYPE_CHECKING:
    from ..data.around import Instruction
    from ..evaluation.pairs import PairScores
    from ..formats.bundle import Bundle
    from ..llamacpp.tokenizer import Tokenizer
    from ..objectives.base import Objective
    from ..serving.llama import LlamaModel


class EvalCommand(ObjectiveCommand):
    """The command `eval`, whose method is another measure of pairs."""

    def method_flags(self, name: str, known: Mapping[str, type[Objective]]) -> Iterator[click.Option]:
        """Leaves out options of methods that have the name of one of eval's own, such as --grader."""
        own = {param.name for param in self.params}
        return (option for option in super().method_flags(name, known) if option.name not in own)

    def method_help(self, _known: Iterable[str]) -> str:
        return f"Measure the loss of pairs by this method too: dpo or orpo. {FLAG} NAME --help shows its options."


def holds_pairs(data: Path) -> bool:
    """Returns whether the first row of a file is a pair; False for standard input, which can be read only once."""
    from ..data.files import read_rows
    from ..data.parts import STDIN
    from ..data.preferences import is_pair
    if str(data) == STDIN:
        return False
    rows: Iterator[tuple[int, Any]] = iter(read_rows(data))
    return any(is_pair(row) for _, row in [next(rows, (0, None))])


def check_method(objective: Objective, pairs: bool) -> None:
    """Raises UsageError for a method that eval cannot measure by these rows."""
    from ..data import preferences
    if objective.name == DEFAULT:
        return
    if objective.rows is not preferences:
        raise UsageError(f"{FLAG} is {objective.name}, which learns from other rows than pairs", "choose dpo or orpo")
    if not pairs:
        raise UsageError(f"{FLAG} {objective.name} is given, and the rows are no pairs", "leave it out")


def refuse_for_pairs(**options: Any) -> None:
    """Refuses options of answers, because none are made for pairs. Raises UsageError."""
    for name in explicit(options):
        flag = f"--{name.replace('_', '-')}"
        raise UsageError(f"{flag} is given, and to rows of pairs no answers are made", "leave it out")


def eval_pairs(data: Path, bundle: Bundle, tokenizer: Tokenizer, objective: Objective, adapter: Path | None,
               threads: int, backend: str, max_length: int, system: Instruction,
               served_model: AbstractContextManager[LlamaModel] | None, as_json: bool) -> None:
    """Shows the scores of pairs. served_model: opens a model in llama.cpp; None: edgetune's own engine measures."""
    from ..data import preferences
    from ..data.dataset import load
    from ..evaluation import pairs
    from ..serving.rollouts.texts import adapter_of
    rows = load(data, tokenizer, max_length=max_length, system=system, parser=preferences)
    of_base: pairs.LogP | None = None
    if served_model is None:
        logp = pairs.native_logp(bundle, rows, adapter_of(bundle.gguf, adapter), threads, backend)
        if adapter:
            of_base = pairs.native_logp(bundle, rows, {}, threads, backend)
    else:
        with served_model as served:
            logp = pairs.served_logp(served, rows)
            if adapter:
                served.use(None)
                of_base = pairs.served_logp(served, rows)
    of_pairs = objective if objective.rows is preferences else None
    found = pairs.score("native" if served_model is None else "llama.cpp", rows.examples, logp, of_base, of_pairs)
    show_pairs(f"{data} by {found.engine}", found, objective.name, as_json)


def show_pairs(title: str, found: PairScores, method: str, as_json: bool) -> None:
    from ..console import table
    from ..evaluation.acceptance import wilson
    low, high = wilson(round(found.preference_accuracy * found.pairs), found.pairs)
    lines = [["pairs", str(found.pairs)], ["loss of the chosen answers", f"{found.loss:.4f}"],
             ["preference accuracy", f"{found.preference_accuracy:.1%} ({low:.0%} to {high:.0%})"],
             ["margin", f"{found.margin:.3f}"]]
    if found.reward_accuracy is not None and found.reward_margin is not None:
        lines += [["accuracy relative to the base", f"{found.reward_accuracy:.1%}"],
                  ["margin relative to the base", f"{found.reward_margin:.3f}"]]
    if found.objective_loss is not None:
        lines.append([f"loss by {method}", f"{found.objective_loss:.4f}"])
    show(as_json, found.to_json(), title, table("", ["", ""], lines))
