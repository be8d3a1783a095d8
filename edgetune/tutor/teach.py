"""The tutor in one call, as the command line, the daemon and a program make it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from .. import disk
from ..adapters.store import open_adapter, recorded_size
from ..data.files import read_rows
from ..errors import DataError, DiskError, UsageError
from ..evaluation.canary import FILE
from ..evaluation.graders.base import Grader
from ..formats.bundle import Bundle, open_bundle
from ..formats.gguf import fingerprint
from ..llamacpp.tokenizer import Tokenizer
from ..machine.governor import Governor
from ..training.config import TrainConfig
from .gate import texts_of
from .loop import Standing, Tutor, begin
from .options import TutorOptions
from .questions import Question, pool_of, read_questions
from .setting import Setting

DEFAULTS: dict[str, Any] = {"lr": 1e-4, "epochs": 2.0, "batch_size": 8}  # of options of training, in a round
FREE = ("memory", "threads", "checkpoint_every")  # options that may differ when rounds are continued


def teach(model: str | Path | Bundle, prompts: str | Path | None, out: str | Path, *,
          labelled: str | Path | None = None, held: str | Path | None = None, grader: Grader | None = None,
          start: str | Path | None = None,
          keep: str | Path | None = None, until: str = "", options: TutorOptions | None = None,
          config: TrainConfig | None = None, governor: Governor | None = None,
          should_stop: Callable[[], bool] = lambda: False, busy: Callable[[], bool] = lambda: False,
          on_event: Callable[[dict[str, Any]], None] = lambda _: None) -> Standing:
    """Rounds of answering, judging, correcting and learning, in the folder `out`, which holds what they published.

    prompts: a file of questions, {"prompt": ...} or {"messages": [...]}, whose "completion", where there is one, is the
    right answer. labelled: a file of rows with right answers. held: a file of rows that judge and are never learned,
    of which those without a right answer need a grader; without it a fifth of the others judges. grader: what judges
    answers to questions without a right one.
    start: the adapter to begin from, whose size config must have; without, the labelled rows are learned first. keep: a
    file of texts on which the model is to stay as it is. until: a step after which to stop. busy: whether someone is
    being answered, to whom all steps yield. Rounds in `out` are continued.

    Raises the kinds of EdgetuneError for what cannot be read, fitted or written; Interrupted where should_stop returned
    True: the same call continues, to the same bytes.
    """
    options = (options or TutorOptions()).check()
    config = config or TrainConfig(**{**DEFAULTS, **recorded_size(start)})
    bundle = model if isinstance(model, Bundle) else open_bundle(model)
    tokenizer = Tokenizer(bundle.gguf)
    tokenizer.markup = config.markup
    files = {"prompts": prompts, "labelled": labelled, "held": held, "keep": keep}
    paths = {name: Path(path) for name, path in files.items() if path is not None}
    if not paths.keys() & {"prompts", "labelled"}:
        raise UsageError("there is nothing to ask", "give a file of prompts, or of labelled rows")
    system = config.system or None
    known = read_questions(paths["labelled"], tokenizer, system, labelled=True) if labelled else []
    asked = read_questions(paths["prompts"], tokenizer, system, labelled=False) if prompts else []
    judging = read_questions(paths["held"], tokenizer, system, labelled=None) if held else []
    if grader is not None:
        _check_items(grader, [*asked, *(question for question in judging if not question.reference)])
    folder = Path(out)
    began = Path(start) if start is not None else None
    pool = pool_of(known, asked, grader is not None, judging)
    setting = Setting(bundle, tokenizer, pool, grader, options, config, folder, governor, should_stop, busy, on_event)
    begin(folder, {
        "model": fingerprint(bundle.gguf), "start": _digest(open_adapter(began, bundle.gguf).path) if began else None,
        **{name: _digest(path) for name, path in paths.items()}, "grader": grader and grader.to_json(),
        **{name: value for name, value in asdict(options).items() if name != "rounds"},
        **{name: value for name, value in asdict(config).items() if name not in FREE}})
    kept = texts_of([row for _, row in read_rows(paths["keep"])]) if keep else [
        FILE.read_text("utf-8")]
    with disk.alone(folder):
        return Tutor(setting, began, kept, until).run()


def _check_items(grader: Grader, asked: list[Question]) -> None:
    """Raises DataError for the first question that lacks what the grader names, before anything is computed."""
    for number, question in enumerate(asked, start=1):
        try:
            grader.check_item(question.item)
        except DataError as error:
            raise DataError(f"prompt {number}: {error.what}", error.hint) from None


def _digest(path: Path) -> str:
    try:
        return f"sha256:{disk.sha256(path)}"
    except OSError as error:
        raise DiskError(f"{path} cannot be read: {error.strerror}", "name another file") from None
