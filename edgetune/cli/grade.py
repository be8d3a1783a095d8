"""grade."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..disk import json_text
from ..errors import DataError, EdgetuneError, UsageError, printable
from .app import (
    DATA,
    ModelPath,
    adapter_option,
    backend_option,
    command,
    explicit,
    show,
    system_option,
    threads_option,
)
from .choosing import open_grader
from .generate import ordered
from .output import new_file, save_lines
from .serving import (
    NO_PROMPT,
    ServingOptions,
    around_options,
    classifier_of,
    instruction_of,
    refuse_around,
    served_model,
    taken_around,
)

if TYPE_CHECKING:
    from ..evaluation.graders.base import Grade, Grader
    from ..evaluation.graders.results import Results
    from ..evaluation.graders.reward import RewardFunction
    from ..evaluation.graders.sample import Sample
    from ..formats.gguf import Gguf

Rows = list[dict[str, Any]]
OF_MODEL = ("adapter", "samples", "temperature", "max_tokens", "system", "memory", "seed", "threads", "backend")


@command("grade", click.argument("grader"), DATA,
         click.option("--model", type=ModelPath(), help="Model that answers the rows' prompts [the rows have the "
                      "answers]."),
         adapter_option,
         click.option("--samples", type=click.IntRange(1), default=1, show_default=True, help="Answers to each row."),
         click.option("--temperature", type=float, help="Temperature of answers, drawn from all tokens; 0: always the "
                      "likeliest one. [0; 1 with several samples]"),
         click.option("--max-tokens", type=click.IntRange(1), default=256, show_default=True,
                      help="Tokens of an answer at most."),
         click.option("--seed", type=int, default=0, show_default=True, help="Seed of sampling."), system_option,
         around_options,
         click.option("--memory", default="", help="Memory of this process at most, such as 500M or 25% [75% of what "
                      "is available]."),
         threads_option, backend_option,
         click.option("--pass-at", type=float, metavar="REWARD",
                      help="Reward from which an answer passes. [the grader's pass_threshold, else 1]"),
         click.option("--show", "shown", type=click.IntRange(1), metavar="N", help="Show the N worst answers."),
         click.option("--save", type=click.Path(path_type=Path), callback=new_file,
                      help="New file: a JSON line an answer with prompt, text, reward, parts and errors."),
         click.option("--unsafe-python", is_flag=True, help="Run python graders also where the kernel cannot confine "
                      "them."))
def grade_command(grader: str, data: Path, model: Path | None, pass_at: float | None, shown: int | None,
                  save: Path | None, unsafe_python: bool, as_json: bool, **options: Any) -> None:
    """Score answers with a grader.

    The answers are those in DATA, or a model's to its prompts. GRADER is a JSON file in OpenAI's format, or
    module:function, a reward function with TRL's signature. All columns of a row are its item. An answer is the row's
    completion, or its last message. pass@k: how probable it is that one of k answers passes.
    """
    from ..evaluation.graders.results import GradedSample, Results
    if model is None and (strange := [name for name in explicit(options) if name in OF_MODEL]):
        raise UsageError(f"--{strange[0].replace('_', '-')} is given without --model, whose option it is",
                         "leave it out, or name a model")
    serving = ServingOptions.taken_from(options)
    if model is None:
        refuse_around(serving, "and no --model, whose option it is")
    judge = open_grader(grader, unsafe_python)
    if judge.needs_model and model is None:
        raise UsageError(f"the grader {judge.name} needs a model that grades", "name one with --model")
    rows = checked_rows(data, judge, has_answers=model is None)
    if model is None:
        from ..evaluation.graders.sample import written_sample
        places = [(i, 0) for i in range(len(rows))]
        samples = [written_sample(row) for row in rows]
    else:
        places = [(i, k) for i in range(len(rows)) for k in range(options["samples"])]
        samples = list(_answers(model, rows, serving, **options))
    items = [rows[i] for i, _ in places]
    if model is not None and judge.needs_model:
        grades = _judged_by(model, serving.threads, judge, unsafe_python, samples, items)
    else:
        grades = judge.grade(samples, items)
    results = Results([GradedSample(i, k, asked_of(rows[i]), sample.text, grade) for (i, k), sample, grade in
                       zip(places, samples, grades, strict=True)], judge.passes_at if pass_at is None else pass_at)
    if save:
        save_lines(save, (graded.to_json() for graded in results.graded))
    _show(f"{data} by {judge.name}", results, len(rows), shown, as_json)


def checked_rows(path: Path, grader: Grader | RewardFunction, has_answers: bool) -> Rows:
    """The rows of a file. Raises DataError, which names the line, for a row without question or answer, or without a
    column that the grader names.
    """
    from ..data.files import place, read_rows
    from ..data.question import asked_messages
    from ..evaluation.graders.sample import written_sample
    found = []
    for line, row in read_rows(path):
        try:
            if not isinstance(row, dict):
                raise DataError("plain text has no answers", "write rows of JSON")
            (written_sample if has_answers else asked_messages)(row)
            grader.check_item(row)
        except DataError as error:
            raise DataError(f"{place(line, path.name)}: {error.what}", error.hint) from None
        found.append(row)
    if not found:
        raise DataError(f"{path} has no rows", "write one JSON object a line")
    return found


def asked_of(row: Mapping[str, Any]) -> Any:
    """The prompt of a row, as it is written there; None where it has an answer alone."""
    from ..data.question import asked_messages
    if isinstance(row.get("prompt"), str):
        return row["prompt"]
    try:
        return asked_messages(row)
    except DataError:
        return None


def _answers(model: Path, rows: Rows, serving: ServingOptions, **options: Any) -> Iterator[Sample]:
    """Answers the rows by our own engine, in their order."""
    from ..formats.bundle import open_bundle
    from ..formats.gguf import ENCODERS
    gguf = open_bundle(model).gguf
    if gguf.architecture in ENCODERS:
        refuse_around(serving, NO_PROMPT)
        return _labels(gguf, rows, serving, **options)
    return _texts(gguf, rows, serving, **options)


def _labels(model: Gguf, rows: Rows, serving: ServingOptions, **options: Any) -> Iterator[Sample]:
    """The answers of an encoder, which draws none."""
    from ..data.labelled import text_of
    from ..data.question import asked_messages
    from ..evaluation.graders.sample import Sample
    for name in explicit(options):
        raise UsageError(f"--{name.replace('_', '-')} is given, and {model.path.name} is an encoder, which gives one "
                         "answer and writes no text", "leave it out")
    with classifier_of(model, serving.adapter, serving.threads) as served:
        found = served.classify([text_of(asked_messages(row)[-1]) for row in rows])
    return (Sample(one.label) for one in found)


def _texts(gguf: Gguf, rows: Rows, serving: ServingOptions, *, samples: int, temperature: float | None, max_tokens: int,
           system: str, memory: str, seed: int, backend: str) -> Iterator[Sample]:
    """The texts that a model writes."""
    from ..data.around import instructed, together
    from ..data.question import asked_messages
    from ..evaluation.native import answered_sample, engine_within
    from ..llamacpp.sampling import Sampling
    from ..llamacpp.tokenizer import Tokenizer
    from ..serving.rollouts.texts import TokenPrompts, adapter_of, answers
    from ..serving.tool_calls import call_form
    if temperature is None:
        temperature = 0.0 if samples == 1 else 1.0
    around, serving = taken_around(serving, system)
    opened = adapter_of(gguf, serving.adapter)
    tokenizer = Tokenizer(gguf)
    prompts = []
    instruction = together(around, system or instruction_of(serving.adapter))
    for row in rows:
        messages = instructed(asked_messages(row), instruction)
        prompts.append(tokenizer.encode(tokenizer.render(messages, row.get("tools"), add_generation_prompt=True),
                                        bos=True))
    asked = TokenPrompts(prompts, [max_tokens] * len(rows), samples,
                         Sampling(temperature=temperature, top_k=0, top_p=1.0, min_p=0.0, seed=seed))
    form = call_form(tokenizer)
    engine = engine_within(memory, threads=serving.threads, backend=backend)
    for answered in ordered(answers(gguf, tokenizer, opened, asked, engine), samples):
        yield answered_sample(answered, rows[answered.rollout.prompt].get("tools"), form)


def _judged_by(model: Path, threads: int, grader: Grader | RewardFunction, unsafe_python: bool,
               samples: Sequence[Sample], items: Rows) -> list[Grade]:
    """Grades of a grader that uses a model: the one that answered, without its adapter, which would score itself."""
    from ..evaluation.graders.base import Grader
    from ..evaluation.graders.llama_judge import LlamaJudge
    assert isinstance(grader, Grader)
    with served_model(model, ServingOptions(threads=threads, runtime="llama")) as served:
        judge = grader.with_model(LlamaJudge(served, model.stem), allow_unsafe_python=unsafe_python)
        return judge.grade(samples, items)


def _show(title: str, results: Results, rows: int, shown: int | None, as_json: bool) -> None:
    from ..console import table
    if results.mean is None:
        raise EdgetuneError(f"{title}: the grader applies to none of the answers", "give it rows that it is for")
    lines = [["rows", str(rows)], ["answers", str(len(results.graded))], ["mean reward", f"{results.mean:.4f}"]]
    lines += [[f"mean of {name}", f"{value:.4f}"] for name, value in results.parts.items()]
    lines += [[f"pass@{k}", f"{value:.1%}"] for k, value in results.pass_at_k.items()]
    left_out = len(results.graded) - len(results.applicable)
    if left_out:
        lines.append(["does not apply to", str(left_out)])
    lines += [[name, str(count)] for name, count in results.errors.items()]
    result = {"rows": rows, **results.to_json()}
    printed = [title, table("", ["", ""], lines)]
    if shown:
        worst = results.worst(shown)
        result["worst"] = [graded.to_json() for graded in worst]
        printed += [f"\n{len(worst)} of the lowest reward", _worst_table(result["worst"])]
    show(as_json, result, *printed)


def _worst_table(worst: list[dict[str, Any]]) -> Any:
    """Shows each answer with its prompt and its reward."""
    from ..console import table
    lines: list[list[str]] = []
    for answer in worst:
        asked = answer["prompt"] if isinstance(answer["prompt"], str) else json_text(answer["prompt"])
        lines += [["", ""], ["prompt", printable(asked)], ["answer", printable(answer["text"].strip())],
                  ["reward", f"{answer['reward']:.4f}"]]
        said = [f"{name} {value:.4f}" for name, value in answer["parts"].items()]
        said += [name if value is True else f"{name}: {value}" for name, value in answer["errors"].items()]
        if said:
            lines.append(["", printable("; ".join(said))])
    return table("", ["", ""], lines[1:])
