"""The tutor in one call, as the command line, the daemon and a program make it."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from .... import disk
from ....adapters.store import open_adapter, recorded_size
from ....data.files import digest_of_files, read_rows
from ....errors import DataError, DiskError, UsageError
from ....evaluation.canary import FILE
from ....evaluation.graders.base import Grader
from ....formats.bundle import Bundle, open_bundle
from ....formats.gguf import check_encoder, fingerprint
from ....formats.shape import read_shape
from ....llamacpp.tokenizer import Tokenizer
from ....training.callbacks import Event, RunCallbacks
from ....training.config import LORA, TrainConfig
from ....training.length import reading_limit
from .answers import known_labels
from .folder import begin, begun_in
from .options import TutorOptions
from .questions import TutorQuestion, pool_of, read_questions
from .setting import RoundSetting
from .tutor import Tutor, TutorState

FREE = ("memory", "weights", "threads", "checkpoint_every")  # options that may differ when rounds are continued


@dataclass(frozen=True)
class TutorFiles:
    """The files of the rounds. prompts: questions, {"prompt": ...} or {"messages": [...]}, whose "completion", where
    there is one, is the right answer. labelled: rows with right answers. held: held-out rows, which are never learned
    and of which those without a right answer need a grader; without it a fifth of the others is held out. keep: texts
    on which the model is to stay as it is.
    """

    prompts: Path
    labelled: Path | None = None
    held: Path | None = None
    keep: Path | None = None


def teach(model: str | Path | Bundle, files: TutorFiles, out: str | Path, *, grader: Grader | None = None,
          start: str | Path | None = None, until: str = "", options: TutorOptions | None = None,
          config: TrainConfig | None = None, callbacks: RunCallbacks | None = None) -> TutorState:
    """Rounds of answering, choosing and learning, in the folder `out`, which holds the adapter that they published.

    Questions without room for an answer are left out, which is an event {"event": "rows"}.
    grader: decides which answers to prompts are learned; without it the agreement of answers does. start: the adapter
    to begin from, whose size config must have. until: a step after which to stop. Rounds in `out` are continued.

    Raises the kinds of EdgetuneError for what cannot be read, fitted or written; Interrupted where should_stop returned
    True: the same call continues, to the same bytes.
    """
    options = (options or TutorOptions()).check()
    judge = open_bundle(options.judge).gguf if options.judge else None
    if judge and grader:
        raise UsageError(f"both a grader and the judge {options.judge} are given", "leave one of them out")
    if judge:
        check_encoder(judge)
    config = config or TrainConfig(**recorded_size(start))
    bundle = model if isinstance(model, Bundle) else open_bundle(model)
    tokenizer = Tokenizer(bundle.gguf)
    tokenizer.markup = config.markup
    calls = callbacks or RunCallbacks()
    paths = {name: path for name, path in vars(files).items() if path is not None}
    kind = {"prompts": False, "labelled": True}  # whether rows have right answers; of others they say so
    read = {name: _with_room(path, read_questions(path, tokenizer, config.instruction, kind.get(name)), tokenizer,
                             config, options, bundle, calls.on_event) for name, path in paths.items() if name != "keep"}
    if grader is not None:
        _check_items(grader, [question for of in read.values() for question in of if not question.reference])
    pool = pool_of(read.get("labelled", []), read["prompts"], grader is not None, read.get("held", []))
    if judge:
        known_labels(pool.labelled)
    folder = Path(out)
    began = Path(start) if start is not None else None
    setting = RoundSetting(bundle, tokenizer, pool, grader, options, config, folder, began, judge, calls)
    begun = {
        "model": fingerprint(bundle.gguf), "start": _digest(open_adapter(began, bundle.gguf).path) if began else None,
        **{name: _digest(path) for name, path in paths.items()}, "grader": grader and grader.to_json(),
        **{name: value for name, value in asdict(options).items() if name not in ("rounds", "judge")},
        **({"judge": fingerprint(judge)} if judge else {}),
        **{name: value for name, value in config.to_json().items()
           if name not in FREE and (name, value) != ("family", LORA)}}  # earlier folders name no family
    kept = [row if isinstance(row, str) else str(row.get("text") or row.get("prompt") or json.dumps(row))
            for _, row in read_rows(files.keep)] if files.keep else [FILE.read_text("utf-8")]
    begun_in(folder)  # refuses a file before a folder is made
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise disk.cannot_write(folder, error) from None
    with disk.alone(folder):
        begin(folder, begun)
        return Tutor(setting, kept, until).run()


def _with_room(path: Path, questions: Sequence[TutorQuestion], tokenizer: Tokenizer, config: TrainConfig,
               options: TutorOptions, bundle: Bundle, on_event: Callable[[Event], None]) -> list[TutorQuestion]:
    """The questions that fit: alone with room for an answer in the model's context, with their answer in a row."""
    context = read_shape(bundle.gguf).context
    row_limit = reading_limit(config.max_length, context)
    found = []
    for question in questions:
        prompt = len(question.prompt_tokens(tokenizer, config.instruction))
        answer = len(tokenizer.encode(question.reference)) + 1 if question.reference else options.max_tokens
        if prompt + options.max_tokens <= context and prompt + answer <= row_limit:
            found.append(question)
    limit = min(context, row_limit)
    if len(found) < len(questions):
        on_event({"event": "rows", "path": str(path), "truncated": 0, "skipped": len(questions) - len(found),
                  "max_length": limit})
    if not found:
        raise DataError(f"no question of {path} leaves room for an answer of {options.max_tokens} tokens within "
                        f"{limit}", "raise --max-length, lower --max-tokens, or shorten the questions")
    return found


def _check_items(grader: Grader, asked: Sequence[TutorQuestion]) -> None:
    """Raises DataError for the first question that lacks what the grader names, before anything is computed."""
    for number, question in enumerate(asked, start=1):
        try:
            grader.check_item(question.item)
        except DataError as error:
            raise DataError(f"prompt {number}: {error.what}", error.hint) from None


def _digest(path: Path) -> str:
    try:
        return f"sha256:{digest_of_files(path)}"
    except OSError as error:
        raise DiskError(f"{path} cannot be read: {error.strerror}", "name another file") from None
