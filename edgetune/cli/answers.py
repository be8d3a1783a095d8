"""data answers: rows of another model's right answers."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..errors import UsageError
from .answer import new_file
from .app import DATA, command, out, show, step_progress, stop_on_signals, system_option
from .data import data

if TYPE_CHECKING:
    from ..daemon.endpoint import Endpoint
    from ..evaluation.graders.sample import Sample

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
    from .grade import checked_rows
    from .grader import open_grader
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
