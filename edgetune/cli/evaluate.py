"""The command eval: of answers, and of pairs of answers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..errors import UsageError
from .app import (
    DATA,
    MODEL,
    adapter_option,
    backend_option,
    column_options,
    command,
    engine_option,
    explicit,
    show,
    system_option,
    threads_option,
)
from .choosing import OF_EVAL, choosing_of_rows, sampled_options
from .compare import answer_json, exact_text, save_answers, wrong_table
from .objective import DEFAULT, FLAG, ObjectiveCommand, take_objective
from .output import new_file
from .question_table import question_lines, scores_json
from .serving import (
    NO_PROMPT,
    ServingOptions,
    around_options,
    beside_around,
    check_engine,
    graded_by_encoder,
    instruction_of,
    longest_text,
    markup_option,
    memory_option,
    refuse_beside,
    remote_model,
    served_model,
    structured_option,
    taken_around,
    url_options,
)

if TYPE_CHECKING:
    from ..data.around import Instruction
    from ..data.dataset import Dataset
    from ..data.formats import Columns
    from ..evaluation.chosen import Choosing
    from ..evaluation.pairs import PairScores
    from ..evaluation.served import GradedAnswer, Grades, Scores
    from ..formats.bundle import Bundle
    from ..llamacpp.tokenizer import Tokenizer
    from ..objectives.base import Objective
    from ..serving.llama import LlamaModel
    from ..serving.rollouts.texts import Engine


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


@command("eval", MODEL, DATA, adapter_option,
         engine_option("What computes loss and answers: llama.cpp, which serves, or edgetune's own engine."),
         click.option("--answers/--no-answers", default=True, help="Also generate answers and count exact ones."),
         click.option("--limit", type=click.IntRange(1), help="Answer only the first rows, at most this number."),
         click.option("--show-wrong", type=click.IntRange(1), metavar="N",
                      help="Show the first N wrong answers, and of JSON what is missing, extra or different."),
         click.option("--save", type=click.Path(path_type=Path), callback=new_file,
                      help="New file: a JSON line a row with the answer expected, the base's and the adapter's."),
         click.option("--max-length", type=click.IntRange(2), default=512, show_default=True,
                      help="Tokens in a row at most; longer ones are cut."), system_option, around_options,
         sampled_options, column_options, markup_option, structured_option, memory_option,
         threads_option, backend_option, url_options, cls=EvalCommand)
def eval_command(model: Path, data: Path, engine: str, max_length: int, system: str, prompt_column: str,
                 completion_column: str, show_wrong: int | None, save: Path | None, as_json: bool, memory: str,
                 backend: str, **options: Any) -> None:
    """Measure the loss and the exact answers on DATA.

    JSON is compared as JSON. With pairs it says how many of the chosen answers the model prefers (preference accuracy),
    and by how much in natural log p (margin), with an adapter also relative to the base.

    In brackets: Wilson's 95 % interval. With --url a daemon answers, and the loss is not measured. With --samples one
    of several answers to a row is chosen.
    """
    from ..data.around import together
    from ..data.dataset import load
    from ..data.formats import Columns
    from ..formats.bundle import open_bundle
    from ..formats.gguf import ENCODERS
    from ..llamacpp.tokenizer import Tokenizer
    sampled = {name: options.pop(name) for name in OF_EVAL}
    objective = take_objective(options)
    serving = ServingOptions.taken_from(options)  # what remains is of answers
    of_answers = options | sampled | {"show_wrong": show_wrong, "save": save}
    choosing = choosing_of_rows(sampled, "--url" if serving.url else "--engine native" if engine == "native" else "")
    columns = Columns(prompt_column, completion_column)
    refuse_beside(**beside_around(asdict(serving)), engine=engine, answers=options["answers"], max_length=max_length,
                  memory=memory, backend=backend)
    around, serving = taken_around(serving, system)
    instruction = together(around, system or instruction_of(serving.adapter))
    if serving.url:
        _ask_daemon(model, serving, data, columns, instruction, options["limit"], show_wrong, save, as_json)
        return
    check_answers_asked(**of_answers)
    check_engine(engine, memory=memory, backend=backend, structured=serving.structured)
    bundle = open_bundle(model)
    if bundle.gguf.architecture in ENCODERS:
        if choosing:
            raise UsageError("--samples is given, and the model is an encoder, which has one answer", "leave it out")
        if around:
            raise UsageError(f"a prompt is given, {NO_PROMPT}", "leave it out")
        [graded] = graded_by_encoder(bundle.gguf, [serving.adapter], data, columns, options["limit"], serving.threads)
        _show_graded(data, graded, save, show_wrong, as_json)
        return
    tokenizer = Tokenizer(bundle.gguf)
    tokenizer.markup = serving.markup
    if around and not explicit({"max_length": max_length}):
        max_length = longest_text(bundle.gguf)  # of rows with the prompt around them
    has_pairs = holds_pairs(data)
    check_method(objective, has_pairs)
    if has_pairs:
        refuse_for_pairs(**of_answers)
        eval_pairs(data, bundle, tokenizer, objective, serving.adapter, serving.threads, backend, max_length,
                   instruction, None if engine == "native" else served_model(model, serving), as_json)
        return
    rows = load(data, tokenizer, max_length=max_length, system=instruction, columns=columns)
    if (save or show_wrong) and not rows.asking:
        raise UsageError(f"{data} has no row with a question and an answer", "leave --save and --show-wrong out")
    wanted = options | {"system": instruction, "with_base": save is not None and serving.adapter is not None}
    if engine == "native":
        from ..evaluation.native import engine_within
        own = engine_within(memory, threads=serving.threads, backend=backend)
        graded, base = _graded_natively(bundle, tokenizer, rows, serving.adapter, own, **wanted)
    elif choosing:
        graded, base = _graded_by_choice(model, serving, rows, choosing, with_base=wanted["with_base"],
                                         system=instruction, limit=options["limit"], **sampled)
    else:
        graded, base = _graded_by_llama(model, serving, rows, **wanted)
    _show_graded(data, graded, save, show_wrong, as_json, base, has_adapter=serving.adapter is not None)


def _graded_natively(bundle: Bundle, tokenizer: Tokenizer, rows: Dataset, adapter: Path | None, engine: Engine, *,
                     with_base: bool, **options: Any) -> tuple[Grades, Sequence[GradedAnswer]]:
    """The grades, and the answers without an adapter: the same ones unless it has one and both are wanted."""
    from ..evaluation.native import native_grade, native_match
    from ..serving.rollouts.texts import adapter_of
    graded = native_grade(bundle, tokenizer, rows, adapter_of(bundle.gguf, adapter), engine, **options)
    if not with_base:
        return graded, graded.answers
    return graded, native_match(bundle, tokenizer, rows, None, engine, system=options["system"],
                                limit=options["limit"])


def _graded_by_llama(model: Path, serving: ServingOptions, rows: Dataset, *, with_base: bool,
                     **options: Any) -> tuple[Grades, Sequence[GradedAnswer]]:
    """Grades by llama.cpp; parameters and result are those of `_graded_natively`."""
    from ..evaluation.served import exact_match, grade
    with served_model(model, serving) as served:
        graded = grade(served, rows, structured=serving.structured == "auto", **options)
        if not with_base:
            return graded, graded.answers
        served.use(None)
        return graded, exact_match(served, rows, system=options["system"], limit=options["limit"])


def _graded_by_choice(model: Path, serving: ServingOptions, rows: Dataset, choosing: Choosing, *, with_base: bool,
                      **options: Any) -> tuple[Grades, Sequence[GradedAnswer]]:
    """Grades of the chosen ones of several answers; the result is that of `_graded_natively`."""
    from ..evaluation.chosen import grade_chosen
    with served_model(model, serving) as served:
        graded = grade_chosen(served, rows, choosing, **options)
        if not with_base:
            return graded, graded.answers
        served.use(None)
        return graded, grade_chosen(served, rows, choosing, **options).answers


def _ask_daemon(model: Path, serving: ServingOptions, data: Path, columns: Columns, system: Instruction,
                limit: int | None, show_wrong: int | None, save: Path | None, as_json: bool) -> None:
    """eval --url"""
    from ..data.question import asking_rows
    from ..evaluation.served import Grades, asked_match, asked_scores
    rows = asking_rows(data, columns)
    with remote_model(model, serving.url, serving.key_file) as served:
        answers = asked_match(rows, lambda messages, tools, most: "".join(
            served.chat(messages, tools, max_tokens=most)), system, limit)
    scores = asked_scores(f"{model} at {serving.url}", len(rows), answers)
    _show_graded(data, Grades(scores, [], answers), save, show_wrong, as_json)


def _show_graded(data: Path, graded: Grades, save: Path | None, show_wrong: int | None, as_json: bool,
                 base: Sequence[GradedAnswer] | None = None, has_adapter: bool = False) -> None:
    """Saves the answers, if they are wanted, and shows the grades. base: answers without the adapter [graded's]."""
    if save:
        save_answers(save, graded.answers if base is None else base, graded.answers if has_adapter else ())
    show_grades(f"{data} by {graded.scores.engine}", graded, show_wrong, as_json)


def check_answers_asked(answers: bool, **options: Any) -> None:
    """Refuses options of answers where none are made. Raises UsageError."""
    for name in explicit(options) if not answers else ():
        raise UsageError(f"--{name.replace('_', '-')} is given with --no-answers", "leave one of them out")


def grades_headline(scores: Scores) -> list[str]:
    """What was measured, in a line: right answers, then the loss."""
    rows = scores.exact_rows
    found = [] if scores.exact is None else [f"{round(scores.exact * rows)} of {rows} answers right"]
    return [*found, *([f"loss {scores.loss:.4f}"] if scores.tokens else [])]


def show_grades(title: str, graded: Grades, show_wrong: int | None, as_json: bool) -> None:
    from ..console import headline, table
    scores = graded.scores
    lines = [["rows", str(scores.rows)]]
    if scores.tokens:  # a remote model shows none
        lines += [["supervised tokens", str(scores.tokens)], ["loss", f"{scores.loss:.4f}"],
                  ["perplexity", f"{scores.perplexity:.3f}"]]
    if scores.exact is not None:
        lines.append(["exact answers", exact_text(scores)])
    if scores.reciprocal_rank is not None:
        lines.append(["mean reciprocal rank", f"{scores.reciprocal_rank:.4f}"])
    if scores.sampled_tokens is not None:
        lines.append(["tokens of all answers to a row", f"{scores.sampled_tokens:.1f}"])
    if scores.parsed is not None:
        lines.append(["answers that are JSON", f"{scores.parsed:.1%}"])
    if scores.structured is not None:
        lines.append(["exact answers, held to the schema", f"{scores.structured:.1%} of {scores.exact_rows}"])
    if scores.structured_parsed is not None:
        lines.append(["of them JSON", f"{scores.structured_parsed:.1%}"])
    result = {**scores.to_json(), **scores_json(graded.questions)}
    if not scores.tokens:
        result |= {"tokens": None, "loss": None, "perplexity": None}
    shown = [headline(grades_headline(scores), "green"), f"\n{title}", table("", ["", ""], lines),
             *question_lines(graded.questions)]
    if show_wrong:
        wrong = [answer for answer in graded.answers if not answer.correct]
        result["wrong"] = [answer_json(answer) for answer in wrong[:show_wrong]]
        shown += [f"\n{min(show_wrong, len(wrong))} of {len(wrong)} wrong answers", wrong_table(wrong[:show_wrong])]
    show(as_json, result, *shown)
