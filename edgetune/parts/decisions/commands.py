"""decide: typed questions about a text, answered in the terminal."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ...cli.app import MODEL, adapter_option, command, show, threads_option
from ...errors import DataError, UsageError

if TYPE_CHECKING:
    from ...data.decisions import TypedQuestion
    from ...objectives.labelling import Labelling
    from .decided import Decided

WIDTH = 30  # characters of a full bar
SHOWN = 5  # options of a question, the most probable


@command("decide", MODEL, click.argument("text"), adapter_option, threads_option,
         click.option("--questions", type=click.Path(path_type=Path), help="File with {name: {type, instructions, "
                      "criteria}} as JSON [all that ADAPTER learned]."))
def decide_command(model: Path, text: str, adapter: Path | None, threads: int, questions: Path | None,
                   as_json: bool) -> None:
    """Answer typed questions about TEXT, with probabilities.

    The adapter is one of an encoder that learned rows of state, questions and expected. TEXT "-" reads standard input.
    """
    from ...data.decisions import state_text
    from ...formats.bundle import open_bundle
    from ...serving.encoder import Encoder
    from .decided import decided
    if adapter is None:
        raise UsageError("no adapter is named, and an encoder alone has learned no questions", "name it with --adapter")
    encoder = Encoder(open_bundle(model).gguf, threads)
    reader = encoder.adapter(adapter)
    read = encoder.read(state_text(sys.stdin.read() if text == "-" else text))
    asked = _read_file(questions) if questions else _learned(reader.learned)
    p = reader.classify([read])[0].probabilities
    found = {name: decided(name, question, reader, p.astype(float)) for name, question in asked.items()}
    result = {"answers": {name: _as_json(answer) for name, answer in found.items()}}
    show(as_json, result, *(line for name, answer in found.items() for line in _lines(name, answer)))


def _read_file(path: Path) -> dict[str, TypedQuestion]:
    """Questions of a file, which may have them below "questions", as a request has. Raises DataError."""
    from ...data.decisions import QUESTIONS, read_questions
    try:
        given = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise DataError(f"there is no file {path}", "check the path") from None
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path} is no JSON ({error})", 'write {"team": {"type": "choice", ...}}') from None
    return read_questions(given[QUESTIONS] if isinstance(given, Mapping) and {*given} == {QUESTIONS} else given)


def _learned(learned: Labelling) -> dict[str, TypedQuestion]:
    """The questions that an adapter learned, named by their words. Raises UsageError for one that learned none."""
    from ...data.decisions import CHOICE, TypedQuestion, read_key
    keys = [key for key, _ in getattr(learned, "questions", ())] or [""]
    found: dict[str, TypedQuestion] = {}
    for key in keys:
        if (options := learned.options_of(key)) is None:
            raise UsageError("the adapter has no typed questions, but answers of several fields",
                             "ask it with edgetune generate")
        labels = tuple(options.labels)
        known = read_key(key) or TypedQuestion(CHOICE, "answer", labels, ("",) * len(labels))
        texts = known.texts if len(known.texts) == len(labels) else ("",) * len(labels)
        name = known.instructions if known.instructions not in found else f"{known.instructions} ({len(found) + 1})"
        found[name] = TypedQuestion(known.type, known.instructions, labels, texts)
    return found


def _lines(name: str, answer: Decided) -> Iterator[str]:
    yield f"{name}{'' if answer.is_sure else '  (not sure)'}"
    order = sorted(range(answer.p.size), key=lambda number: -answer.p[number])
    width = max(len(_named(answer, number)) for number in order[:SHOWN])
    for number in order[:SHOWN]:
        share = float(answer.p[number])
        bar = "━" * round(share * WIDTH)
        yield f"  {_named(answer, number):<{width}}  {share:6.1%}  {bar}"
    if len(order) > SHOWN:
        yield f"  and {len(order) - SHOWN} more"


def _named(answer: Decided, number: int) -> str:
    """What an option is called: a level by its text, others by their label."""
    return answer.question.texts[number] if answer.question.type == "score" else answer.question.labels[number]


def _as_json(answer: Decided) -> dict[str, Any]:
    probabilities = dict(zip(answer.question.labels, answer.p.tolist(), strict=True))
    return {"type": answer.question.type, "answer": answer.label, "probabilities": probabilities,
            "sure": answer.is_sure}
