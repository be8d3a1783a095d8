"""generate."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..disk import json_text
from ..errors import DataError, UsageError
from .app import (
    MODEL,
    adapter_option,
    backend_option,
    command,
    engine_option,
    out,
    precision_option,
    system_option,
    threads_option,
)
from .choosing import choice_json, choice_options, choice_text, chosen_answer, taken_choosing
from .output import new_file, save_lines
from .prose import Prose
from .serving import (
    OWN_ENGINE,
    ServingOptions,
    answer_options,
    around_options,
    busy_file_option,
    check_engine,
    instruction_of,
    markup_option,
    memory_option,
    refuse_around,
    refuse_both,
    runtime_option,
    served_model,
    sources_of,
    sources_text,
    structured_option,
    taken_around,
    url_options,
)

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


@command("generate", MODEL, click.argument("prompt"), adapter_option, system_option, around_options, answer_options,
         click.option("--raw", is_flag=True, help="Continue PROMPT as it is, without the chat template."),
         engine_option("native: edgetune's own engine answers the prompts of a file together."),
         click.option("--samples", type=click.IntRange(1), default=1, show_default=True,
                      help="Answers, of which --choose takes one; with --engine native and without it all are given."),
         click.option("--parallel", type=click.IntRange(1), default=64, show_default=True,
                      help="With --engine native: answers in progress at once at most."),
         precision_option("With --engine native: how products are computed."),
         click.option("--save", type=click.Path(path_type=Path), callback=new_file,
                      help="With --engine native: new file for the answers [they are printed]."),
         memory_option, threads_option, backend_option, busy_file_option, runtime_option, markup_option,
         structured_option, choice_options, url_options)
def generate_command(model: Path, prompt: str, system: str, raw: bool, as_json: bool, engine: str,
                     **options: Any) -> None:
    """Answer PROMPT, or the prompts of a file.

    PROMPT is a user's message in the model's chat template; llama.cpp answers, or ONNX Runtime.

    With --engine native, PROMPT is a file with a JSON object a line, {"prompt": "..."} or {"messages": [...]}, and the
    answers are JSON lines. The same seed gives the same answers, whatever else is in the file.

    With --samples several answers are made together, and --choose takes one of them.
    """
    own = {name: options.pop(name) for name in OWN_ENGINE}
    choosing = taken_choosing(options, own["samples"], is_default=engine != "native")
    if raw:
        refuse_around(ServingOptions.taken_from(dict(options)), "and --raw continues a text, which is no chat")
    if engine == "native":
        others = {name: options.pop(name) for name in ("busy_file", "runtime", "structured", "url", "key_file")}
        check_engine(engine, **others)
        from ..data.around import together
        from ..evaluation.native import engine_within
        from ..llamacpp.sampling import Sampling
        save = own.pop("save")
        around, serving = taken_around(ServingOptions.taken_from(options), system)
        instruction = together(around, system or instruction_of(serving.adapter))
        questions = Questions(Path(prompt), instruction, raw, serving.markup, own.pop("samples"),
                              options.pop("max_tokens"), options.pop("stop"), choosing)
        engine_used = engine_within(threads=serving.threads, **own)
        show_lines(answer_file(model, serving.adapter, questions, Sampling(**options), engine_used), save, as_json)
        return
    del own["samples"]
    check_engine(engine, **own)
    refuse_file(prompt)
    serving = ServingOptions.taken_from(options)
    refuse_both(serving, system)
    with served_model(model, serving) as served:
        messages = [{"role": "system", "content": system}] if system else []
        messages.append({"role": "user", "content": prompt})
        choice = None
        if choosing:
            choice = chosen_answer(choosing, served, prompt, None if raw else messages, **options)
            pieces = iter([choice.drawn.text])
        else:
            pieces = served.generate(prompt, **options) if raw else served.chat(messages, **options)
        sources = None if raw else sources_of(served, messages)
        if as_json:
            named = {} if sources is None else {"sources": sources}
            said = choice_json(choice) if choice else {}
            click.echo(json.dumps({"prompt": prompt, "text": "".join(pieces), **said, **named}))
            return
        prose = Prose(out)
        for piece in pieces:
            prose.write(piece)
        prose.end()
        if choosing and choice:
            click.echo(choice_text(choosing, choice), err=True)
        if sources is not None:
            click.echo(f"\n{sources_text(sources)}")


def refuse_file(prompt: str) -> None:
    """Refuses a prompt that is the name of a file, which is probably a mistake. Raises UsageError."""
    try:
        is_file = Path(prompt).is_file()
    except (OSError, ValueError):  # too long for a name, or with a NUL byte
        return
    if is_file:
        raise UsageError(f"the prompt {prompt} is a file, and one text is answered at a time",
                         "give --engine native to answer the prompts in it, or the text itself")
