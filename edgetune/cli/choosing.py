"""Options by which one of several answers to a prompt is chosen, for generate and eval."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..errors import UsageError
from .app import F, explicit

if TYPE_CHECKING:
    from ..evaluation.chosen import Choosing, ChosenAnswer
    from ..evaluation.graders.base import Grader
    from ..evaluation.graders.reward import RewardFunction

WAYS = ("majority", "grader", "likelihood")
OPTIONS = ("choose", "grader", "pattern")
OF_EVAL = (*OPTIONS, "samples", "temperature", "seed", "max_tokens")
TEMPERATURE = 0.7  # of several answers, where none is given


def sampled_options(command: F) -> F:
    """The options of eval that are of several answers to a row."""
    for flag, kind, default, text in (
            ("--max-tokens", click.IntRange(1), None, "With --samples: tokens of an answer at most [twice those of the "
             "row's, and 16]."),
            ("--seed", int, 0, "With --samples: seed of the first answer."),
            ("--temperature", float, TEMPERATURE, "With --samples: of the answers."),
            ("--samples", click.IntRange(1), 1, "Answers to a row, of which --choose takes one.")):
        command = click.option(flag, type=kind, default=default, show_default=default is not None, help=text)(command)
    return choice_options(command)


def choice_options(command: F) -> F:
    command = click.option("--pattern", default="", metavar="REGEX", help="The part of an answer that counts for a "
                           "majority, such as 'answer is (\\d+)': its last match.")(command)
    command = click.option("--grader", metavar="FILE", help="With --choose grader: a JSON file in OpenAI's format, or "
                           "module:function.")(command)
    return click.option("--choose", type=click.Choice(WAYS), help="Answer --samples times, and give the answer of the "
                        "majority, the one that --grader prefers, or the likeliest. It stops when no further answer "
                        "can change that. [majority]")(command)


def taken_choosing(options: dict[str, Any], samples: int, is_default: bool) -> Choosing | None:
    """Takes the options out of a command's; None where none of several answers is chosen. is_default: whether several
    samples mean a majority. Raises UsageError.
    """
    given = {name: options.pop(name) for name in OPTIONS}
    way = given["choose"] or ("grader" if given["grader"] else WAYS[0])
    if given["choose"] is None and not given["grader"] and (samples == 1 or not is_default):
        if given["pattern"]:
            raise UsageError("--pattern is given, and nothing is chosen", "give --samples and --choose too")
        return None
    if samples == 1:
        raise UsageError(f"--choose {way} is given with --samples 1, of which there is nothing to choose",
                         "give --samples 8, say")
    if (way == "grader") != bool(given["grader"]):
        raise UsageError("--choose grader needs --grader" if way == "grader" else f"--choose {way} has no --grader",
                         "give both, or neither")
    if way != WAYS[0] and given["pattern"]:
        raise UsageError(f"--pattern is given with --choose {way}, and is for a majority", "leave it out")
    try:
        re.compile(given["pattern"])
    except re.error as error:
        raise UsageError(f"--pattern is {given['pattern']!r:.80}, which is no regular expression: {error}",
                         "write one for Python's re") from None
    if options["temperature"] == 0.0:
        if explicit({"temperature": 0.0}):
            raise UsageError("--temperature is 0, so all answers would be the same", f"give {TEMPERATURE}, or leave it "
                             "out")
        options["temperature"] = TEMPERATURE
    from ..evaluation.chosen import Choosing
    return Choosing(samples, way, given["pattern"], _opened(given["grader"]))


def _opened(grader: str | None) -> Grader | RewardFunction | None:
    """Raises UsageError for a grader that asks a model or compares answers, of which it sees one at a time."""
    if grader is None:
        return None
    found = open_grader(grader, unsafe_python=False)
    if found.needs_model or found.compares:
        does = "asks a model" if found.needs_model else "compares answers"
        raise UsageError(f"the grader {found.name} {does}, which is not possible while answers are made",
                         "choose by majority, or with another grader")
    return found


def choosing_of_rows(options: dict[str, Any], other: str) -> Choosing | None:
    """The same of eval, from all of OF_EVAL; what is left are options of each answer. other: the option by which
    others than llama.cpp make the answers, or "". Raises UsageError also for options of several answers without them.
    """
    for name in explicit(options) if other else ():
        raise UsageError(f"--{name.replace('_', '-')} is given with {other}, and answers are chosen where "
                         "llama.cpp makes them here", "leave one of them out")
    choosing = taken_choosing(options, options.pop("samples"), is_default=True)
    for name in explicit(options) if choosing is None else ():
        raise UsageError(f"--{name.replace('_', '-')} is given without --samples, whose option it is",
                         "give --samples 8, say, or leave it out")
    return choosing


def choice_json(choice: ChosenAnswer) -> dict[str, Any]:
    """What is said of a choice: answers that were finished, the share that agrees with it, tokens of all."""
    return {"samples": choice.ended, "share": round(choice.share, 4), "score": round(choice.score, 6),
            "tokens": choice.tokens, "finish_reason": choice.drawn.finish}


def choice_text(choosing: Choosing, choice: ChosenAnswer) -> str:
    """What a person is told of a choice."""
    agree = round(choice.share * choice.ended)
    return f"{agree} of {choice.ended} answers say this, of {choosing.samples} at most; {choice.tokens} tokens"


def chosen_answer(choosing: Choosing, served: Any, prompt: str, messages: Sequence[dict[str, Any]] | None,
                  **options: Any) -> ChosenAnswer:
    """The chosen answer to a prompt, or to messages. Raises UsageError where llama.cpp does not answer here."""
    from ..serving.llama import LlamaModel
    if not isinstance(served, LlamaModel):
        raise UsageError("--samples is given, and this model is not answered by llama.cpp here",
                         "leave it out; a daemon takes n and best_of")
    item = {"prompt": prompt}
    if choosing.grader:
        choosing.grader.check_item(item)
    text = prompt if messages is None else served.render(messages, None, served.active)
    return choosing.answer(served, text, item, **options)


def open_grader(named: str, unsafe_python: bool) -> Grader | RewardFunction:
    """Opens the grader of a file, or of module:function. Raises UsageError."""
    from ..evaluation.graders.base import load_grader
    from ..evaluation.graders.reward import NAMED, load_reward
    if not Path(named).exists() and NAMED.fullmatch(named):
        return load_reward(named)
    return load_grader(Path(named), allow_unsafe_python=unsafe_python)
