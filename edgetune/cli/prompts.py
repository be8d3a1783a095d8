"""generate --engine native: a file of prompts, answered together."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..disk import json_text
from ..errors import DataError, UsageError
from .choosing import choice_json

if TYPE_CHECKING:
    from ..data.around import Instruction
    from ..evaluation.chosen import Choosing
    from ..llamacpp.sampling import Sampling
    from ..llamacpp.tokenizer import Tokenizer
    from ..serving.rollouts.texts import Engine, TextAnswer


@dataclass(frozen=True)
class PromptRow:
    """A row of the file: its prompt as it is written there, and as text for the model."""

    asked: dict[str, Any]
    text: str


def read_prompts(path: Path, tokenizer: Tokenizer, system: Instruction, raw: bool) -> list[PromptRow]:
    """Reads prompts. Raises DataError, which names the line, for a row without one; UsageError without a file."""
    from ..data.files import place, read_rows
    from ..data.parts import STDIN
    if str(path) != STDIN and not path.is_file():
        raise UsageError(f"there is no file {path}", "with --engine native, PROMPT is a file of prompts, a JSON object "
                         'a line: {"prompt": "..."}')
    found = []
    for line, row in read_rows(path):
        try:
            found.append(_prompt(row, tokenizer, system, raw))
        except DataError as error:
            raise DataError(f"{place(line, path.name)}: {error.what}", error.hint) from None
    return found


def _prompt(row: Any, tokenizer: Tokenizer, system: Instruction, raw: bool) -> PromptRow:
    from ..data.around import instructed
    prompt = row.get("prompt") if isinstance(row, dict) else None
    messages = row.get("messages") if isinstance(row, dict) else None
    if isinstance(prompt, str):
        asked: dict[str, Any] = {"prompt": prompt}
        messages = [{"role": "user", "content": prompt}]
    elif isinstance(messages, list) and messages and not raw:
        if messages[-1].get("role") == "assistant":  # of a training row: the prompt ends before its answer
            messages = messages[:-1]
        asked = {"messages": messages}
    else:
        hint = '{"prompt": "..."}' if raw else '{"prompt": "..."} or {"messages": [...]}'
        raise DataError("the row asks nothing", f"write {hint}")
    if raw:
        return PromptRow(asked, str(prompt))
    messages = instructed(messages, system)
    return PromptRow(asked, tokenizer.render(messages, row.get("tools"), add_generation_prompt=True))


@dataclass(frozen=True)
class Questions:
    """A file of prompts with the options of their answers. raw: prompts are continued, without the chat template."""

    path: Path
    system: Instruction
    raw: bool
    markup: str
    samples: int
    max_tokens: int
    stop: Sequence[str]
    choosing: Choosing | None = None


def answer_file(model: Path, adapter: Path | None, questions: Questions, sampling: Sampling,
                engine: Engine) -> Iterator[dict[str, Any]]:
    """Yields a line for each answer as soon as it is made, in the order of the prompts."""
    from ..formats.bundle import open_bundle
    from ..llamacpp.tokenizer import Tokenizer
    from ..serving.rollouts.texts import TokenPrompts, adapter_of, answers
    gguf = open_bundle(model).gguf
    opened = adapter_of(gguf, adapter)
    tokenizer = Tokenizer(gguf)
    tokenizer.markup = questions.markup
    rows = read_prompts(questions.path, tokenizer, questions.system, questions.raw)
    asked = TokenPrompts([tokenizer.encode(row.text, bos=True) for row in rows], [questions.max_tokens] * len(rows),
                         questions.samples, sampling, questions.stop)
    found = ordered(answers(gguf, tokenizer, opened, asked, engine), questions.samples)
    if questions.choosing:
        yield from chosen_lines(rows, found, questions.choosing)
        return
    for answered in found:
        yield answer_line(rows[answered.rollout.prompt], answered)


def chosen_lines(rows: Sequence[PromptRow], found: Iterator[TextAnswer],
                 choosing: Choosing) -> Iterator[dict[str, Any]]:
    """Yields the line of the chosen one of all answers to each prompt, in their order, with the tokens of all."""
    from ..evaluation.chosen import chosen_of
    from ..serving.draws import DrawnAnswer
    for row in rows:
        made = [next(found) for _ in range(choosing.samples)]
        drawn = [DrawnAnswer(i, each.text, each.rollout.tokens.size, float(each.rollout.logp.sum(dtype=float)),
                             each.finish_reason) for i, each in enumerate(made)]
        choice = chosen_of(drawn, choosing.chooser(row.asked))
        yield {**answer_line(row, made[choice.drawn.index]), **choice_json(choice)}


def show_lines(lines: Iterator[dict[str, Any]], save: Path | None, as_json: bool) -> None:
    """Writes the lines into `save`, or prints each as it comes; with --json one object, when all are there."""
    if save is not None:
        count = save_lines(save, lines)
        click.echo(json.dumps({"answers": count, "file": str(save)}) if as_json else f"{count} answers in {save}")
    elif as_json:
        click.echo(json.dumps({"answers": list(lines)}))
    else:
        for line in lines:
            click.echo(json_text(line))


def save_lines(path: Path, lines: Iterable[dict[str, Any]]) -> int:
    """The number of lines, all of which are in the file, or none."""
    from ..disk import refuse_existing, replaced
    text = [json_text(line) + "\n" for line in lines]
    refuse_existing(path)
    with replaced(path) as beside:
        beside.write_text("".join(text), encoding="utf-8")
    return len(text)


def ordered(found: Iterator[TextAnswer], samples: int) -> Iterator[TextAnswer]:
    """Orders answers by prompt and sample, and yields each as soon as all before it are there."""
    early: dict[int, TextAnswer] = {}
    following = 0
    for answered in found:
        early[answered.rollout.prompt * samples + answered.rollout.sample] = answered
        while following in early:
            yield early.pop(following)
            following += 1


def answer_line(row: PromptRow, answered: TextAnswer) -> dict[str, Any]:
    """The line of an answer. logprob: of the answer, natural; sampling_logprob: with temperature, top-k and so on."""
    rollout = answered.rollout
    return {**row.asked, "sample": rollout.sample, "text": answered.text, "tokens": rollout.tokens.size,
            "finish_reason": answered.finish_reason, "logprob": float(rollout.logp.sum(dtype=float)),
            "sampling_logprob": float(rollout.drawn.sum(dtype=float))}
