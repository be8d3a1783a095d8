"""A whole run in one call, as the command line, a program and the demonstration make it: rows are read and some held
out, an adapter is trained, and held-out questions are answered before and after.
"""

from __future__ import annotations

import gc
import json
import sys
import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..adapters import store
from ..data import loader
from ..data import rows as supervised_rows
from ..data.dataset import Dataset
from ..errors import DataError, EdgetuneError
from ..formats.bundle import Bundle, open_bundle
from ..machine import device
from ..machine.governor import Governor
from ..objectives.base import Objective
from ..objectives.sft import Sft
from ..options import make_options
from ..training import checkpoint
from ..training.config import TrainConfig, TrainOptions
from ..training.run import Event, run
from .answers import Exam, compare, complete
from .reported import reported
from .result import WORSE, Result

if TYPE_CHECKING:
    from typing_extensions import Unpack

NONE = "none"  # as `eval`: all rows are learned
Rows = str | Path | Sequence[Mapping[str, Any]]  # a file, or rows
OnEvent = Callable[[Event], None]


def train(model: str | Path | Bundle, data: Rows, out: str | Path, eval: Rows | None = None, *,
          start: str | Path | None = None, resume: bool = False, allow_changed: Collection[str] = (),
          answers: bool = True, progress: bool = False, on_event: OnEvent | None = None,
          should_stop: Callable[[], bool] | None = None, governor: Governor | None = None,
          objective: Objective | None = None, **options: Unpack[TrainOptions]) -> Result:
    """Train a LoRA adapter on `data`, write it to the new folder `out`, and say what became of it.

    >>> result = edgetune.train("model.gguf", "rows.jsonl", "my-adapter")
    >>> print(result)

    data: a file of rows (.jsonl, .txt), or a list of them: {"prompt": ..., "completion": ...}, {"messages": [...]} or
    {"text": ...}. eval: held-out rows, by which the best adapter is chosen: a file, a list, "none" to learn all rows;
    default: a tenth of `data`. start: an adapter to begin from. answers: whether held-out questions are answered before
    and after. resume, allow_changed: continue the run in `out`, as `edgetune.run` does. progress: print it.
    on_event, should_stop, governor, objective: as in `edgetune.run`. options: those of `edgetune train`, with
    underscores.

    Raises the kinds of EdgetuneError for what cannot be read, fitted or written; Interrupted where it was stopped
    before its end, and can be resumed.
    """
    config = make_options(TrainConfig, options).check()
    objective = objective or Sft()
    out = Path(out)
    if resume and eval is None and _learns_all(out):
        eval = NONE
    config.check_held_out(eval != NONE)
    bundle = model if isinstance(model, Bundle) else open_bundle(model)
    with _shown(progress, on_event) as show:
        with _file(data, "data") as rows_file, _file(eval, "held-out") as held_file:
            assert rows_file
            rows, held = _load(bundle, rows_file, held_file, config, objective, show)
        with reported(out):
            record = run(bundle, rows, out, config, held_out=held, resume=resume, allow_changed=allow_changed,
                         on_event=show, should_stop=should_stop, governor=governor, objective=objective)
            exam = None
            if answers and held and objective.rows is supervised_rows:
                longest = max(example.tokens.size for example in held.examples)
                exam = Exam(bundle.gguf, out, Path(start) if start else None, held.rows, longest, config)
            del rows, held
            if exam and record["verdict"]["kind"] != WORSE:  # which keeps what it began with
                record = _judge(exam, record, show, should_stop or (lambda: False))
    return Result(out, record)


def _learns_all(out: Path) -> bool:
    """Whether the run in a folder was started without held-out rows."""
    if not checkpoint.found(out):
        return False
    return checkpoint.newest(out)[0].meta["identity"]["held-out"] is None


def _load(bundle: Bundle, data: Path, eval: Path | None, config: TrainConfig, objective: Objective,
          show: OnEvent) -> tuple[Dataset, Dataset | None]:
    """The rows to learn and those held out."""
    all_rows = str(eval) == NONE
    paths = (data, None if all_rows else eval)
    rows, held = loader.load(bundle.gguf.path, paths, config, objective.rows, hold_out=not all_rows)
    assert rows
    for path, found in zip((data, eval or data), (rows, held), strict=True):
        if found:
            show({"event": "rows", "path": str(path), "rows": len(found.examples), "truncated": found.truncated,
                  "skipped": found.skipped, "max_length": config.max_length})
    return rows, held


def _judge(exam: Exam, record: dict[str, Any], show: OnEvent, should_stop: Callable[[], bool]) -> dict[str, Any]:
    """run.json's content with "answers", and the verdict completed by them; where they were not compared, with the
    reason as "answers_missing"."""
    gc.collect()  # of the trainer, whose parts point to one another
    exam.base.release()
    device.trim()
    try:
        found = compare(exam, lambda rows: show({"event": "answers", "rows": rows}), should_stop)
    except EdgetuneError as error:
        reason = f"answers were not compared: {error.what}"
        show({"event": "answers_missing", "reason": reason})
        record = {**record, "answers": None, "answers_missing": reason}
    else:
        record = {**record, "answers": found, "verdict": complete(record["verdict"], found)}
    store.save_record(exam.adapter, record)
    return record


@contextmanager
def _file(rows: Rows | None, name: str) -> Iterator[Path | None]:
    """The file that is named; one that holds the rows that are given."""
    if rows is None or isinstance(rows, str | Path):
        yield Path(rows) if rows is not None else None
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
def _shown(progress: bool, on_event: OnEvent | None) -> Iterator[OnEvent]:
    """Who is told of the events of a run."""
    if not progress:
        yield on_event or (lambda _: None)
        return
    from rich.console import Console

    from ..console import TrainProgress
    with TrainProgress(Console(file=sys.stderr)) as shown:
        def both(event: Event) -> None:
            shown.event(event)
            if on_event:
                on_event(event)

        yield both
