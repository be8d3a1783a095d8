"""compare."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.text import Text

from ..errors import UsageError, printable
from .app import DATA, MODEL, column_options, command, explicit, out, show, system_option, threads_option
from .serving import (
    NO_PROMPT,
    ServingOptions,
    around_options,
    graded_by_encoder,
    longest_text,
    markup_option,
    refuse_around,
    taken_around,
)

if TYPE_CHECKING:
    from rich.table import Table

    from ..data.formats import Columns
    from ..evaluation.compare import Comparison
    from ..evaluation.served import GradedAnswer, Grades, Scores
    from ..formats.gguf import Gguf

SHOWN = 3  # rows of each kind in which two models differ


def exact_text(scores: Scores) -> str:
    """The share of right answers, with its 95 % interval."""
    if scores.exact is None or scores.interval is None:
        return "none was asked for"
    low, high = scores.interval
    return f"{scores.exact:.1%} of {scores.exact_rows} ({low:.0%} to {high:.0%})"


def comparison_headline(found: Comparison, first: str, second: str) -> Text:
    """Says which of two is better, by right answers, or by losses where nobody answered. first, second: their names."""
    from ..console import headline
    from ..evaluation.compare import is_chance
    paired = found.right if found.answers else found.lower
    rows = "rows right" if found.answers else "rows of lower loss"
    counted = f"{rows} with {first} alone: {paired.losses}, with {second} alone: {paired.wins}"
    p = paired.p_two_sided
    if is_chance(paired):
        return headline(["no clear difference", counted, f"p = {p:.2g}"], "yellow")
    return headline([f"{second if paired.wins > paired.losses else first} is better", counted, f"p = {p:.2g}"], "green")


def comparison_lines(found: Comparison, first: str, second: str) -> list[str]:
    """The rows on which each is better, and whether that may be chance. first, second: as in "right with A"."""
    from ..evaluation.compare import in_words
    right = found.right
    lower = found.lower
    lines = [f"rows of lower loss {first}: {lower.losses}, {second}: {lower.wins}; {in_words(lower, first, second)}"]
    if found.answers:
        lines.insert(0, f"rows right only {first}: {right.losses}, only {second}: {right.wins}; "
                     f"{in_words(right, first, second)}")
    return lines


def discordant_table(found: Comparison, first: str, second: str) -> Table:
    """Shows the first rows that only one model answers right, with the answers of both."""
    return _blocks([[("prompt", both[0].question), ("expected", both[0].expected),
                     *(line for name, answer in zip((first, second), both, strict=True)
                       for line in _said(f"{name}, {'right' if answer.correct else 'wrong'}", answer))]
                    for both in found.some(SHOWN)])


def wrong_table(answers: Sequence[GradedAnswer]) -> Table:
    """Shows of each answer the prompt, the expected answer, the given one and, for JSON, the differences."""
    return _blocks([[("prompt", a.question), ("expected", a.expected), *_said("answer", a)] for a in answers])


def _said(name: str, answer: GradedAnswer) -> list[tuple[str, str]]:
    found = answer.differences
    return [(name, answer.answer.strip()), *([("", "; ".join(found))] if found else [])]


def _blocks(blocks: Sequence[Sequence[tuple[str, str]]]) -> Table:
    """Blocks of (name, text), an empty line between them."""
    from ..console import table
    lines: list[tuple[str, str]] = []
    for block in blocks:
        lines += [("", ""), *((name, printable(text)) for name, text in block)]
    return table("", ["", ""], lines[1:])


def answer_json(answer: GradedAnswer) -> dict[str, Any]:
    """A wrong answer, as --show-wrong --json gives it."""
    return {"prompt": answer.question, "expected": answer.expected, "answer": answer.answer,
            "differences": answer.differences}


def save_answers(path: Path, base: Sequence[GradedAnswer], adapter: Sequence[GradedAnswer]) -> None:
    """A JSON line a row: prompt, expected, the base's answer and, where it exists, the adapter's; which are right."""
    from .output import save_lines
    rows = [{"prompt": b.question, "expected": b.expected, "base": b.answer, "base_correct": b.correct} for b in base]
    for row, a in zip(rows, adapter, strict=False):
        row |= {"adapter": a.answer, "adapter_correct": a.correct}
    save_lines(path, rows)


def one_or_two(_ctx: click.Context, _option: click.Parameter, paths: tuple[Path, ...]) -> list[Path | None]:
    """The adapters with which A and B answer; None: the base. Raises UsageError."""
    if not 1 <= len(paths) <= 2:
        raise UsageError(f"--adapter is given {len(paths)} times",
                         "name two adapters, or one to compare it with the base")
    return [*([None] if len(paths) == 1 else []), *paths]


@command("compare", MODEL, DATA,
         click.option("--adapter", "adapters", type=click.Path(path_type=Path), multiple=True, callback=one_or_two,
                      help="Adapter folder (or adapter.gguf): named twice for A and B, once for B, and the base is A."),
         click.option("--limit", type=click.IntRange(1), help="Answer only the first rows, at most this number."),
         click.option("--max-length", type=click.IntRange(2), default=512, show_default=True,
                      help="Tokens in a row at most; longer ones are cut."), system_option, around_options,
         column_options, markup_option, threads_option)
def compare_command(model: Path, data: Path, adapters: Sequence[Path | None], limit: int | None, max_length: int,
                    system: str, prompt_column: str, completion_column: str, as_json: bool, **options: Any) -> None:
    """Say which of two adapters answers DATA better.

    Only rows that are right with one of the two count: an exact sign test says how often chance makes a difference as
    large.
    --prompt and --index are for both. In brackets: Wilson's 95 % interval of a share.
    """
    from ..data.formats import Columns
    from ..evaluation.compare import compare
    from ..formats.bundle import open_bundle
    from ..formats.gguf import ENCODERS
    serving = ServingOptions.taken_from(options)
    gguf = open_bundle(model).gguf
    columns = Columns(prompt_column, completion_column)
    if gguf.architecture in ENCODERS:
        refuse_around(serving, NO_PROMPT)
        graded = graded_by_encoder(gguf, adapters, data, columns, limit, serving.threads)
    else:
        graded = _graded_texts(gguf, data, adapters, columns, as_json, serving, limit=limit, max_length=max_length,
                               system=system)
    found = compare(*graded)
    sides = [{"adapter": path and str(path), **one.scores.to_json()}
             for path, one in zip(adapters, graded, strict=True)]
    show(as_json, {"first": sides[0], "second": sides[1], **found.to_json(SHOWN)},
         *compared_lines(f"{data} by {graded[0].scores.engine}", adapters, graded, found))


def _graded_texts(model: Gguf, data: Path, adapters: Sequence[Path | None], columns: Columns, as_json: bool,
                  serving: ServingOptions, *, limit: int | None, max_length: int, system: str) -> list[Grades]:
    """Grades of a model that writes text, with each adapter."""
    from ..data.around import together
    from ..data.dataset import load
    from ..evaluation.served import grade
    from ..serving.llama import LlamaModel
    around, serving = taken_around(serving, system)
    if around and not explicit({"max_length": max_length}):
        max_length = longest_text(model)  # of rows with the prompt around them
    with LlamaModel(model, threads=serving.threads or None) as served:
        served.tokenizer.markup = serving.markup
        for letter, path in zip("AB", adapters, strict=True):
            if path is not None:
                served.load_adapter(path, letter)
        graded = []
        for letter, path in zip("AB", adapters, strict=True):
            served.use(letter if path else None)
            wanted = together(around, system or served.instruction_of(served.active))
            rows = load(data, served.tokenizer, max_length=max_length, system=wanted, columns=columns)
            with nullcontext() if as_json else out.status(f"asking {letter}"):
                graded.append(grade(served, rows, system=wanted, limit=limit))
    return graded


def compared_lines(title: str, adapters: Sequence[Path | None], graded: Sequence[Grades],
                   found: Comparison) -> list[Any]:
    """Which is better in a line, the scores of both, and some rows on which they differ."""
    from ..console import table
    names = [str(path or "the base") for path in adapters]
    lines: list[Any] = [comparison_headline(found, "A", "B"), f"\n{title}"]
    lines += [table("", ["", "", "exact answers", "loss"], [
        [letter, name, exact_text(one.scores), f"{one.scores.loss:.4f}"]
        for letter, name, one in zip("AB", names, graded, strict=True)])]
    lines += comparison_lines(found, "with A", "with B")
    if found.discordant:
        lines += ["", discordant_table(found, "with A", "with B")]
    return lines
