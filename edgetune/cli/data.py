"""data check."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.table import Table
from rich.text import Text

from ..errors import DataError, UsageError
from ..training.config import FILE_OPTIONS
from .app import DATA, ModelPath, cli, command, config_options, explicit, out, show
from .objective import ObjectiveCommand, take_objective

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from ..data.check import Finding, VectorsOf
    from ..data.facts import Inspection, Part, Tokens
    from ..formats.bundle import Bundle
    from ..formats.gguf import Gguf
    from ..objectives.base import Objective

TOKENIZING = ("max_length", "overflow", "system", "markup", "thinking")  # options that need a model
SAMPLE = 1500  # characters of the row that is shown


@cli.group("data")
def data() -> None:
    """Check rows before training on them."""


@command("check", DATA,
         click.argument("model", type=ModelPath(), required=False),
         click.option("--eval", "held_out", type=click.Path(path_type=Path), metavar="DATA",
                      help="Held-out rows, none of which may ask what DATA teaches."),
         config_options(*TOKENIZING, *FILE_OPTIONS), group=data, cls=ObjectiveCommand)
def data_check(data: Path, model: Path | None, held_out: Path | None, max_length: int | str, overflow: str, system: str,
               markup: str, thinking: str, prompt_column: str, completion_column: str, as_json: bool,
               **options: Any) -> None:
    """Find mistakes in the rows of DATA, with their lines.

    Mistakes are unusable rows, empty answers, repeats, questions with several answers or also held out, and answers of
    another form or length than the rest. It cannot know whether answers are right. With MODEL it also shows how many
    tokens rows have, what is cut, and one row as the model sees it. An encoder also finds different labels of nearly
    equal questions. Exits with 1 if training would fail or be of no use.
    """
    from ..data.check import findings
    from ..data.facts import Tokens, inspect
    from ..data.files import read_rows
    from ..data.formats import Columns
    from ..data.parts import title_of
    from ..formats.bundle import open_bundle
    from ..llamacpp.tokenizer import Tokenizer
    from ..training.length import reading_limit
    from ..training.sizing import context_of
    bundle = open_bundle(model) if model else None
    objective = take_objective(options, bundle.gguf if bundle else None)
    given = {"max_length": max_length, "overflow": overflow, "system": system, "markup": markup,
             "thinking": thinking}
    if model is None and (named := list(explicit(given))):
        raise UsageError(f"--{named[0].replace('_', '-')} is given without MODEL, and no row is tokenized",
                         "name the model too, or leave it out")
    columns = Columns(prompt_column, completion_column)
    tokens = None
    if bundle:
        tokens = Tokens(tokenizer_of(bundle, markup, thinking), reading_limit(max_length, context_of(bundle.gguf)),
                        system or None, overflow)
    found = [inspect(title_of(path), read_rows(path), tokens, objective.rows, columns)
             for path in (data, held_out) if path]
    is_encoder = tokens is not None and not isinstance(tokens.tokenizer, Tokenizer)
    vectors = vectors_of(bundle.gguf) if bundle and is_encoder else None
    problems = findings(found[0], found[1] if held_out else None, tokens, vectors, thinking)
    if is_encoder and not any(finding.fatal for finding in problems):
        problems = [*refused_together(objective, *found), *problems]
    facts = [facts_of(each) for each in found]
    result = {"data": facts[0], "held_out": facts[1] if held_out else None,
              "max_length": tokens.max_length if tokens else None,
              "held_out_by_default": None if held_out else found[0].held_out(),
              "findings": [asdict(finding) for finding in problems],
              "sample": [asdict(part) for part in found[0].sample]}
    show(as_json, result, verdict(problems), *(sentence(finding) for finding in problems), "",
         *described(found, tokens), *sample_lines(found[0]))
    sys.exit(1 if any(finding.fatal for finding in problems) else 0)


def verdict(problems: Sequence[Finding]) -> Text:
    """Says in a line whether training can begin."""
    from ..console import headline
    errors = sum(finding.fatal for finding in problems)
    notes = len(problems) - errors
    counted = [f"{count} {word}{'s' * (count > 1)}" for count, word in ((errors, "error"), (notes, "note")) if count]
    return headline(["not ready" if errors else "ready to train", ", ".join(counted) or "no mistake was found"],
                    "red" if errors else "green")


def tokenizer_of(bundle: Bundle, markup: str, thinking: str) -> Any:
    from ..llamacpp.tokenizers import open_tokenizer
    return open_tokenizer(bundle.gguf, markup, thinking)


def refused_together(objective: Objective, data: Inspection, held_out: Inspection | None = None) -> list[Finding]:
    """What training refuses of rows of which each can be learned: that all have one label, for instance."""
    from ..data.check import Finding
    from ..data.facts import learned_sets
    from ..training.sizing import prepared
    try:
        prepared(objective, learned_sets(data, held_out))
    except DataError as error:
        return [Finding("refused", error.what, error.hint, [], fatal=True)]
    return []


def vectors_of(encoder: Gguf) -> VectorsOf:
    """Vectors of questions by an encoder. It is opened where labels are compared, and not for other rows."""
    def vectors(texts: Sequence[Sequence[int]]) -> NDArray[np.float32]:
        from ..serving.encoder import Encoder
        return Encoder(encoder).vectors(texts)

    return vectors


def facts_of(found: Inspection) -> dict[str, Any]:
    from ..data.facts import shape_of
    return {"name": found.name, "rows": found.count, "shape": shape_of(found), "usable": len(found.rows),
            "tokens": spread(found.lengths), "cut": sum(row.is_cut for row in found.rows),
            "left_out": sum(row.is_lost for row in found.rows), "thinking": sum(row.thinks for row in found.rows)}


def spread(lengths: list[int]) -> dict[str, int] | None:
    from ..data.check import quantile
    if not lengths:
        return None
    return {"min": lengths[0], "median": quantile(lengths, 0.5), "p95": quantile(lengths, 0.95), "max": lengths[-1]}


def described(found: list[Inspection], tokens: Tokens | None) -> list[str | Table]:
    """The shape of each file, a line each, and the lengths of their rows."""
    from ..console import table
    from ..data.check import SHAPES
    from ..data.facts import shape_of
    lines: list[str | Table] = []
    for each in found:
        shape = shape_of(each)
        lines.append(f"{each.name}: {each.count} rows" + (f" of {SHAPES.get(shape, shape)}" if shape else ""))
    if len(found) == 1 and (count := found[0].held_out()):
        lines.append(f"held out by default: {count} of them")
    lengths = [(each.name, spread(each.lengths)) for each in found]
    cells = [[name, *(str(n) for n in of_one.values())] for name, of_one in lengths if of_one]
    if tokens and cells:
        lines += ["", table("", ["tokens in a row", "least", "median", "95 %", "most"], cells, (1, 2, 3, 4))]
    return lines


def sentence(finding: Finding) -> Text:
    word, style = ("error: ", "bold red") if finding.fatal else ("note: ", "yellow")
    return Text.assemble((word, style), str(finding))


def sample_lines(found: Inspection) -> list[str | Text]:
    """A row as the model sees it. What is learned is in colour on a terminal, else in brackets."""
    if not found.sample:
        return []
    how = "in colour" if out.is_terminal else "in [brackets]"
    text = Text()
    for part in shortened(found.sample):
        shown = part.text
        if out.is_terminal:
            text.append(shown, "bold green" if part.learned else "")
        else:
            text.append(f"[{shown}]" if part.learned else shown)
    return ["", f"line {found.sample_line} as the model sees it, {how} what is learned:", text]


def shortened(parts: list[Part]) -> list[Part]:
    """The parts with at most SAMPLE characters: of a long one its start and its end."""
    from ..data.facts import Part
    room = max(SAMPLE // len(parts), 40)
    return [part if len(part.text) <= room else Part(f"{part.text[:room // 2]} ... {part.text[-room // 2:]}",
                                                     part.learned) for part in parts[:SAMPLE // 40]]
