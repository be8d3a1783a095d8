"""data check."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.table import Table
from rich.text import Text

from ..errors import DataError, UsageError
from ..training.config import FILE_OPTIONS, READING
from .app import (
    DATA,
    MODEL,
    ModelPath,
    adapter_option,
    cli,
    command,
    config_options,
    explicit,
    out,
    show,
    step_progress,
    stop_on_signals,
    system_option,
    threads_option,
)
from .objective import ObjectiveCommand, take_objective
from .output import new_file

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from ..daemon.endpoint import Endpoint
    from ..data.check import Finding, VectorsOf
    from ..data.facts import Inspection, RowPart, TokenizeOptions
    from ..evaluation.graders.sample import Sample
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
    from ..data.facts import TokenizeOptions, inspect
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
        tokens = TokenizeOptions(tokenizer_of(bundle, markup, thinking),
                                 reading_limit(max_length, context_of(bundle.gguf)), system or None, overflow)
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


def described(found: list[Inspection], tokens: TokenizeOptions | None) -> list[str | Table]:
    """The shape of each file, a line each, and the lengths of their rows."""
    from ..console import table
    from ..data.check import SHAPES
    from ..data.facts import shape_of
    lines: list[str | Table] = []
    for each in found:
        shape = shape_of(each)
        what = "states and answers to typed questions" if each.decisions else SHAPES.get(shape, shape)
        lines.append(f"{each.name}: {each.count} rows" + (f" of {what}" if what else ""))
        lines += [f"{count} of them were labelled by {teacher}, no person"
                  for teacher, count in each.decisions.teachers.items()]
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


def shortened(parts: list[RowPart]) -> list[RowPart]:
    """The parts with at most SAMPLE characters: of a long one its start and its end."""
    from ..data.facts import RowPart
    room = max(SAMPLE // len(parts), 40)
    return [part if len(part.text) <= room else RowPart(f"{part.text[:room // 2]} ... {part.text[-room // 2:]}",
                                                        part.learned) for part in parts[:SAMPLE // 40]]


@command("teach", MODEL, DATA,
         click.option("-o", "--out", "path", type=click.Path(path_type=Path), required=True, callback=new_file,
                      help="New file, such as NAME.teacher."), adapter_option,
         click.option("--top", type=click.IntRange(1, 256), default=32, show_default=True,
                      help="The likeliest tokens that are told apart at each token; all others are one."),
         click.option("--temperature", type=click.FloatRange(0.1, 20), default=1.0, show_default=True,
                      help="Temperature of the teacher's distribution, and of the student's that is compared with it."),
         config_options(*READING, *FILE_OPTIONS), threads_option, group=data)
def teach_command(model: Path, data: Path, path: Path, adapter: Path | None, top: int, temperature: float,
                  threads: int, as_json: bool, **reading: Any) -> None:
    """Write what MODEL expects in DATA, for a student.

    That is the likeliest tokens at each token of its answers, with their log-probabilities: about 130 bytes a token,
    or 200 with a vocabulary above 65,536. A smaller model with the same tokenizer and chat template learns them on the
    device: edgetune train --method distill --teacher FILE. Rows to hold out belong into DATA too. Options that change
    how rows are read must be those of the training.
    """
    from ..errors import size_text
    from ..runs.teaching import teach
    from ..training.config import TrainConfig
    with stop_on_signals() as should_stop, step_progress(out, as_json) as progress:
        header = teach(model, data, path, adapter=adapter, top=top, temperature=temperature,
                       reading=TrainConfig(**reading).check(), threads=threads, on_progress=progress.step,
                       should_stop=should_stop)
    facts = {**asdict(header), "out": str(path), "bytes": header.file_bytes}
    show(as_json, facts, f"{header.positions} tokens of {header.examples} rows, {size_text(header.file_bytes)}, in "
         f"{path}")


KEY = "OPENAI_API_KEY"
LATEST = ":latest"  # Ollama's names end so


@command("answers", DATA,
         click.option("-o", "--out", "path", type=click.Path(path_type=Path), required=True, callback=new_file,
                      help="New file of rows."),
         click.option("--url", required=True, help="Server with OpenAI's API for chats, such as "
                      "http://127.0.0.1:8642/v1."),
         click.option("--grader", required=True, help="What finds answers right: a JSON file in OpenAI's format, or "
                      "module:function."),
         click.option("--model", default="", help="The server's name of the teacher [the only one that it has]."),
         click.option("--samples", type=click.IntRange(1, 64), default=1, show_default=True,
                      help="Answers to a prompt at most; the first right one is kept."),
         click.option("--temperature", type=click.FloatRange(0, 2),
                      help="Temperature of answers. [0; 1 with several samples]"),
         click.option("--max-tokens", type=click.IntRange(1), default=1024, show_default=True,
                      help="Tokens of an answer at most; one that is cut is not kept."), system_option,
         click.option("--seed", type=int, default=0, show_default=True, help="Seed of the first answer to a prompt."),
         click.option("--parallel", type=click.IntRange(1, 64), default=4, show_default=True,
                      help="Prompts that are asked at once."),
         click.option("--retries", type=click.IntRange(0, 100), default=5, show_default=True,
                      help="Times that a question is asked again where the server is busy."),
         click.option("--timeout", type=click.FloatRange(1), default=600.0, show_default=True,
                      help="Seconds for an answer."),
         click.option("--key-file", type=click.Path(path_type=Path), help=f"File that holds the server's key [{KEY}]."),
         click.option("--unsafe-python", is_flag=True, help="Run python graders also where the kernel cannot confine "
                      "them."), group=data)
def data_answers(data: Path, path: Path, url: str, grader: str, model: str, samples: int, temperature: float | None,
                 max_tokens: int, system: str, seed: int, parallel: int, retries: int, timeout: float,
                 key_file: Path | None, unsafe_python: bool, as_json: bool) -> None:
    """Make rows of another model's right answers.

    DATA are prompts, and the model a teacher with OpenAI's API. A grader says which answers are right; all columns of a
    row are its item. The rest is counted and left out. After a stop the same command continues.
    """
    from ..daemon.endpoint import Endpoint
    from ..evaluation.collected import collect
    from ..evaluation.graders.base import Grader
    from .choosing import open_grader
    from .grade import checked_rows
    judge = open_grader(grader, unsafe_python)
    if judge.needs_model or judge.compares:
        raise UsageError(f"the grader {judge.name} {'needs a model' if judge.needs_model else 'compares answers'}",
                         "give one that grades an answer by itself")
    rows = checked_rows(data, judge, has_answers=False)
    if temperature is None:
        temperature = 0.0 if samples == 1 else 1.0
    options = {"temperature": temperature, "max_tokens": max_tokens}
    server = Endpoint(url, model, read_key(key_file), retries, timeout)
    try:
        server.model = model or only_model(server)
        with stop_on_signals() as should_stop, step_progress(out, as_json) as progress:
            counts = collect(rows, partial(_ask, server, system, seed, options), judge, path, samples=samples,
                             threads=parallel, options={**options, "model": server.model, "system": system,
                                                        "seed": seed,
                                                        "grader": judge.to_json() if isinstance(judge, Grader)
                                                        else grader},
                             on_progress=progress.step, should_stop=should_stop)
    finally:
        server.close()
    more = f", {counts.refused} refused by the server" if counts.refused else ""
    show(as_json, {"out": str(path), "model": server.model, **asdict(counts)},
         f"{counts.kept} of {counts.prompts} prompts have a right answer, in {path}",
         f"{counts.wrong} have none{more}; {counts.answers} answers were graded, {counts.cut} of them cut")


def _ask(server: Endpoint, system: str, seed: int, options: Mapping[str, Any], row: Mapping[str, Any],
         turn: int) -> Sample:
    from ..data.around import instructed
    from ..data.question import asked_messages
    return server.answer(instructed(asked_messages(row), system), row.get("tools") or (), seed=seed + turn, **options)


def only_model(server: Endpoint) -> str:
    """The name of the server's model, which may have a second one with LATEST. Raises UsageError where it has several
    models, or none.
    """
    found = dict.fromkeys(name.removesuffix(LATEST) for name in server.models())
    if len(found) != 1:
        raise UsageError(f"{server.url} has {len(found)} models: {', '.join([*found][:8])}", "name one with --model")
    return next(iter(found))


def read_key(path: Path | None) -> str:
    """The key in a file, or, without one, in the environment; "": none. Raises UsageError."""
    from ..disk import read_key_file
    return os.environ.get(KEY, "") if path is None else read_key_file(path)
