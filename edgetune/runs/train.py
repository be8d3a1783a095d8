"""A whole run in one call, as the command line, a program and the demonstration make it: rows are read and some held
out, an adapter is trained, and held-out questions are answered before and after.
"""

from __future__ import annotations

import gc
import json
import sys
import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..adapters import store
from ..adapters.base import LLAMA_CPP
from ..data import rows as supervised_rows
from ..data.dataset import Dataset
from ..data.loader import NONE
from ..data.parts import absolute
from ..errors import DataError, EdgetuneError, Interrupted, UsageError, shell_word
from ..formats.bundle import Bundle, open_bundle
from ..machine import device
from ..objectives.base import Objective, read_objective
from ..persisted import from_json
from ..training import checkpoint
from ..training.callbacks import Event, RunCallbacks
from ..training.config import TrainConfig, TrainOptions
from ..training.origin import TENTH, RunOrigin, read_origin
from ..training.run import run
from ..training.sizing import LABELLED, as_begun, least_held_out, load_run, objective_for
from .reported import is_reported, reported
from .result import Result, was_given

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from ..data.packing import Example
    from ..evaluation.graders.rewards import GraderRewards
    from ..formats.gguf import Gguf
    from .answers import Exam

Rows = str | Path | Sequence[str | Path] | Sequence[Mapping[str, Any]]  # a file, several, or rows
OnEvent = Callable[[Event], None]


def train(model: str | Path | Bundle, data: Rows, out: str | Path, eval: Rows | None = None, *,
          config: TrainConfig | None = None, start: str | Path | None = None, resume: bool = False, more: float = 0.0,
          allow_changed: Collection[str] = (), answers: bool = True, progress: bool = False,
          callbacks: RunCallbacks | None = None, objective: Objective | None = None,
          reward: Callable[..., Any] | None = None, **options: Unpack[TrainOptions]) -> Result:
    """Train a LoRA adapter on `data`, write it to the new folder `out`, and say what became of it.

    >>> result = edgetune.train("model.gguf", "rows.jsonl", "my-adapter")
    >>> print(result)

    model: a GGUF, a bundle, a model's name, or an open Bundle. data: a file of rows (.jsonl, .csv, .parquet, .txt), a
    folder, a list of files, or a list of rows: {"prompt": ..., "completion": ...}, {"messages": [...]}, {"text": ...};
    a method may want others. out: the new folder. eval: held-out rows, by which the best adapter is chosen: as `data`,
    or "none" to learn all rows; default: a tenth of `data`, or those of a resumed run; an encoder learns all of few
    rows, and parts of them test it (runs/folds.py). config, options: those of
    `edgetune train`, with underscores, as an object, by name, or both. start: an adapter to begin from; the new one has
    its size. answers: whether held-out questions are answered before and after. resume, more, allow_changed: continue
    the run in `out`, as `edgetune.run` does. progress: print it. callbacks, objective: as in `edgetune.run`. reward: a
    function with TRL's signature that rewards answers, for an objective that learns from rewards.

    Raises the kinds of EdgetuneError for what cannot be read, fitted or written; Interrupted where it was stopped
    before its end, and can be resumed.
    """
    bundle = model if isinstance(model, Bundle) else open_bundle(model)
    objective = objective or objective_for(bundle.gguf)
    given = {**objective.defaults, **store.recorded_size(start)} if config is None else vars(config)
    config = TrainConfig(**{**given, **options}).check()
    if config.prompt:
        config = replace(config, prompt=str(Path(config.prompt).absolute()))  # also for a resume from another folder
    calls = callbacks or RunCallbacks()
    objective, rewards = _rewarded(objective, reward, config)
    out = Path(out)
    if resume and eval is None:
        eval = _recorded_eval(out)
    config.check_held_out(eval != NONE)
    origin = RunOrigin(str(bundle.path.absolute()), _place(data), TENTH if eval is None else _place(eval),
                       list(calls.command))
    with _shown(progress, calls.on_event) as show, rewards.limited() if rewards else nullcontext():
        with as_file(data, "data") as rows_file, as_file(eval, "held-out") as held_file:
            assert rows_file
            if resume:
                config = as_begun(config, out)
            begun_with = start or store.read_run(out).get("start")
            config, objective, rows, held = load_run(
                bundle, rows_file, held_file, config, objective, reserved=rewards.reserved if rewards else 0,
                least=least_held_out(objective, config, begun_with))
            for path, found in ((rows_file, rows), (held_file or rows_file, held)):
                if found:
                    show({"event": "rows", "path": str(path), "rows": len(found.examples),
                          "truncated": found.truncated, "skipped": found.skipped, "max_length": config.row_limit})
            if rewards:
                _check_rewards(rewards, rows, held)
        with reported(out):
            is_folded = objective.source == LABELLED and eval is None and held is None and not begun_with
            record = _unreported(out, is_folded) if resume and not more else {}
            is_answering = objective.rows is supervised_rows
            is_asked = answers and (is_answering or objective.source == LABELLED) and (
                config.family.served_by == LLAMA_CPP)
            begun = _foretold(show, bundle.gguf, held) if is_asked and is_answering and held else show
            calls = replace(calls, on_event=begun, resume_by=resume_by(out, calls.command))
            record = record or run(bundle, rows, out, config, held_out=held, start=start, resume=resume, more=more,
                                   allow_changed=allow_changed, origin=origin, callbacks=calls, objective=objective,
                                   rewards=rewards)
            exam = _exam(bundle, record, out, held, config) if is_asked and "answers" not in record else None
            examples = rows.examples if is_folded else []
            del rows, held
            if exam:
                record = _judge(exam, record, show, calls.should_stop)
            if examples:
                record = _folded(bundle, out, examples, objective, config, record, calls)
    return Result(out, record)


def resume(out: str | Path, *, more: float = 0.0, allow_changed: Collection[str] = (), answers: bool = True,
           progress: bool = False, callbacks: RunCallbacks | None = None, reward: Callable[..., Any] | None = None,
           **changed: Unpack[TrainOptions]) -> Result:
    """Continue the run in the folder `out`, which knows its model, rows and options; they are compared by hash.

    >>> result = edgetune.resume("my-adapter", more=4)  # epochs, after the end

    more: epochs to add to a run that is finished. changed: options that are to differ from here on, each named in
    allow_changed too where it changes what is learned. All others as in `train`.
    """
    origin = read_origin(out)
    if not origin.data:
        raise UsageError(f"the rows of the run in {out} came from a program", "continue it there, by "
                         "edgetune.train(..., resume=True)")
    was = from_json(TrainConfig, store.read_run(Path(out))["options"], f"the options in {Path(out) / store.RUN}")
    calls = callbacks or RunCallbacks()
    return train(origin.model, origin.data, out, config=was, resume=True, more=more, allow_changed=allow_changed,
                 answers=answers, progress=progress, objective=read_objective(origin.objective), reward=reward,
                 callbacks=replace(calls, command=calls.command or origin.command), **changed)


# ---- what a run begins with ------------------------------------------------------------------------------------------


def resume_by(out: Path, command: Sequence[str]) -> str:
    """The way to continue a run, for whoever typed a command, or for a program."""
    if command:
        return f"continue with edgetune resume {shell_word(out)}, or the same command and --resume"
    return f"continue with edgetune.resume({str(out)!r})"


def _rewarded(objective: Objective, reward: Callable[..., Any] | None,
              config: TrainConfig) -> tuple[Objective, GraderRewards | None]:
    """(the objective, its rewards; None: it learns from none), with room for these within the budget. Raises UsageError
    for a reward that the objective does not learn from.
    """
    if objective.source == "answers":
        from ..evaluation.graders.rewards import rewards_of  # each takes memory of trainings that need none of it
        from ..objectives.drawn import Rewarded
        if isinstance(objective, Rewarded):
            objective, rewards = rewards_of(objective, reward)
            rewards.reserve(config.memory_here() - device.rss())
            return objective, rewards
    if reward is not None:
        raise UsageError(f"a reward function is given, and {objective.name} learns from no rewards",
                         "leave it out, or give an objective such as Grpo()")
    return objective, None


def _check_rewards(rewards: GraderRewards, rows: Dataset, held: Dataset | None) -> None:
    """Raises UsageError where the rewards cannot judge the rows."""
    if held:
        rewards.check_alone("learn all rows: eval none; and judge the adapter by rows with answers")
    rewards.check([*rows.examples, *(held.examples if held else ())])


def _recorded_eval(out: Path) -> str | None:
    """`eval` of the run in a folder. One of an earlier version says only whether it had held-out rows."""
    if origin := store.read_run(out).get("origin"):
        if not origin["held_out"]:
            raise UsageError(f"the held-out rows of the run in {out} came from a program", "give them again, as eval")
        return None if origin["held_out"] == TENTH else str(origin["held_out"])
    if checkpoint.found(out) and checkpoint.newest(out)[0].meta["identity"]["held-out"] is None:
        return NONE
    return None


def _place(rows: Rows) -> str:
    """The path of rows, such that they can be opened from any folder; "" where a program gave them."""
    path = _path_of(rows)
    return "" if path is None else str(path) if str(path) == NONE else absolute(path)


def _path_of(rows: Rows) -> Path | None:
    """The name of rows in files; None for rows themselves."""
    if isinstance(rows, str | Path):
        return Path(rows)
    names = [str(part) for part in rows if isinstance(part, str | Path)]
    return Path(",".join(names)) if names else None


def _unreported(out: Path, is_folded: bool) -> dict[str, Any]:
    """run.json's content of a run that ended and was killed before its report, which is written last, or stopped while
    parts of its rows tested it; else {}. is_folded: whether they do.
    """
    record = store.read_run(out)
    if record.get("status") != "done" or (is_reported(out) and not (is_folded and _is_untested(record))):
        return {}
    checkpoint.remove_all(out)
    return record


def _is_untested(record: Mapping[str, Any]) -> bool:
    from . import folds  # here: few trainings learn labels
    return folds.is_due(record)


def _exam(bundle: Bundle, record: Mapping[str, Any], out: Path, held: Dataset | None,
          config: TrainConfig) -> Exam | None:
    """Nobody is asked where nothing was held out, where the adapter is what the run began with, or of other rows."""
    if held is None or not record["verdict"]["step"] or held.digest != (record["held_out"] or {}).get("digest"):
        return None
    start = record["start"]
    from .answers import Exam
    return Exam(bundle.gguf, out, Path(start["path"]) if start else None, held.rows, _longest(held), config)


def _longest(held: Dataset) -> int:
    return max(example.tokens.size for example in held.examples)


def _foretold(show: OnEvent, base: Gguf, held: Dataset) -> OnEvent:
    """Adds to the event "start" about how many bytes the process has while questions are answered, after training."""
    from ..serving.memory import context_of, memory_needed  # here: the plan counts it

    def tell(event: Event) -> None:
        if event["event"] == "start":
            context = context_of(base, _longest(held))
            process = event["plan"]["process_bytes"]
            sizes = (process + memory_needed(base, context, repack) for repack in (True, False))
            event = {**event, "answers_bytes": next((n for n in sizes if n <= event["plan"]["budget_bytes"]), None)}
        show(event)

    return tell


def _judge(exam: Exam, record: dict[str, Any], show: OnEvent, should_stop: Callable[[], bool]) -> dict[str, Any]:
    """run.json's content with "answers", and the verdict completed by them; where they were not compared, with the
    reason as "answers_missing"."""
    from .answers import compare, complete  # with llama.cpp, which a training does not need
    gc.collect()  # of the trainer, whose parts point to one another
    exam.base.release()
    device.trim()
    try:
        found = compare(exam, lambda rows: show({"event": "answers", "rows": rows}), should_stop)
    except EdgetuneError as error:
        return _untested(exam.adapter, record, f"answers were not compared: {error.what}", show)
    verdict = complete(record["verdict"], found, was_given(record), exam.is_of_labels)
    record = {**record, "answers": found, "verdict": verdict, "peak_rss_mib": device.peak_rss() / 2**20}
    store.save_record(exam.adapter, record)
    return record


def _folded(bundle: Bundle, out: Path, examples: Sequence[Example], objective: Objective, config: TrainConfig,
            record: dict[str, Any], calls: RunCallbacks) -> dict[str, Any]:
    """run.json's content after parts of all rows tested a run; where they could not, with the reason."""
    from ..objectives.labelling import Labelling  # here: few trainings learn labels
    from . import folds
    if not isinstance(objective, Labelling) or not _is_untested(record):
        return record
    try:
        return folds.test(folds.FoldedRun(bundle, out, examples, objective, config, record, calls))
    except Interrupted:
        raise Interrupted("the tests of the adapter were stopped", f"it is in {out}: {calls.resume_by}") from None
    except EdgetuneError as error:
        return _untested(out, record, f"the adapter was not tested: {error.what}", calls.on_event)


def _untested(out: Path, record: Mapping[str, Any], reason: str, show: OnEvent) -> dict[str, Any]:
    """run.json's content, with the reason for which no answers were compared."""
    show({"event": "answers_missing", "reason": reason})
    found = {**record, "answers": None, "answers_missing": reason, "peak_rss_mib": device.peak_rss() / 2**20}
    store.save_record(out, found)
    return found


@contextmanager
def as_file(rows: Rows | None, name: str) -> Iterator[Path | None]:
    """The file that is named; one that holds the rows that are given."""
    path = None if rows is None else _path_of(rows)
    if rows is None or path or isinstance(rows, str | Path):
        yield path
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"{name}.jsonl"
        try:
            path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        except (TypeError, ValueError) as error:
            raise DataError(f"the rows are not what JSON can hold ({error})",
                            "use str, numbers, lists and dicts") from None
        yield path


@contextmanager
def _shown(progress: bool, on_event: OnEvent) -> Iterator[OnEvent]:
    if not progress:
        yield on_event
        return
    from ..console import Terminal
    from ..progress import TrainProgress
    with TrainProgress(Terminal(file=sys.stderr, force_jupyter=False)) as shown:
        def both(event: Event) -> None:
            shown.event(event)
            on_event(event)

        yield both
