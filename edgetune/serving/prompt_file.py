"""A prompt file: what a chat without a system message is given, in YAML or JSON.

    system: Answer with the intent of the command.
    examples:                                   # earlier turns, the same for every question
      - prompt: turn on the light
        completion: LightOn
    nearest:                                    # further ones: the rows whose questions are nearest to this one
      rows: train.jsonl                         # as DATA of edgetune train; relative to the prompt file
      k: 4
      encoder: minilm

Each key may be left out, but not all. An example is a row of prompt and completion, or of messages.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..adapters.store import PROMPT
from ..data.around import Instruction, Message, is_row, last_question, unlearned
from ..data.parts import STDIN, is_name, names_of
from ..data.question import asking_rows, content_text, question_text
from ..data.rows import Row, answered_messages, check_row
from ..data.yaml_text import read_yaml
from ..disk import cache, cache_folder, json_lines, json_text, read_small, refuse_existing, replaced
from ..errors import DataError, EdgetuneError, FormatError, install_hint
from ..formats.gguf import fingerprint
from ..formats.named import CONVERTED, find_model
from ..options import check_options, make_options, option
from .embedding import EncoderFile, TableFile, open_vectors
from .neighbours import Neighbours

# The vectors of rows are made once, and kept in the cache under the digest of their texts and of the model for vectors.
ENCODER = CONVERTED
FOLDER = "vectors"
REMEMBERED = 512  # vectors of questions
KEPT = 32  # files of vectors in the cache


class NearestRows:
    """Rows by the nearness of their questions, for any number of threads. encoder: a GGUF or a name, as open_vectors
    opens it, whose errors it raises. threads: 0 for one a physical core.
    """

    def __init__(self, rows: Sequence[Row], encoder: str = ENCODER, threads: int = 0) -> None:
        self.rows = rows
        self._opened: EncoderFile | TableFile = open_vectors(find_model(encoder), threads)
        self._turn = threading.Lock()
        self._vector = lru_cache(REMEMBERED)(lambda question: self.embed([question])[0])
        self._known = Neighbours(self._kept([question_text(row) for row in rows]))

    def close(self) -> None:
        """Frees the model for vectors."""
        self._opened.close()

    def order(self, question: str) -> NDArray[np.intp]:
        """The indices of all rows [n], the nearest first; of equally near ones the earlier first."""
        if not question.strip():
            return np.arange(len(self.rows))
        return self._known.nearest(self._vector(question))[0]

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """The vectors [n, D] of texts, each of length 1; of a text that is too long the beginning counts."""
        embedder = self._opened.embedder
        tokens = [embedder.truncate(embedder.encode(text)) for text in texts]
        found = np.empty((len(texts), embedder.width), np.float32)
        with self._turn:
            for _ in embedder.embed(found, tokens):
                pass
        return found

    def _kept(self, texts: list[str]) -> NDArray[np.float32]:
        """The vectors of the rows, from the cache where it has them."""
        digest = hashlib.sha256("\0".join([fingerprint(self._opened.gguf), *texts]).encode("utf-8", "surrogatepass"))
        path = cache_folder() / FOLDER / f"{digest.hexdigest()[:32]}.npy"
        with suppress(OSError, ValueError):
            found: NDArray[np.float32] = np.load(path, allow_pickle=False)
            if found.shape == (len(texts), self._opened.embedder.width) and found.dtype == np.float32:
                return found
        made = self.embed(texts)
        cache(path, lambda: _write(path, made), KEPT)
        return made


def _write(path: Path, vectors: NDArray[np.float32]) -> None:
    with replaced(path) as beside, beside.open("wb") as file:
        np.save(file, vectors)


YAML = (".yaml", ".yml")
LIMIT = 4 << 20  # bytes of a file
WAY_OUT = "write system, examples or nearest, as docs/reference/files.md shows"


@dataclass(frozen=True)
class NearestExamples:
    """Examples by nearness. rows: their file, as DATA of edgetune train."""

    rows: str = option("", "File of rows, relative to the prompt file.")
    k: int = option(4, "Examples of a question.", low=1, high=64)
    encoder: str = option(ENCODER, "Model for vectors: a GGUF, or a name.")


@dataclass(frozen=True)
class Prompt:
    """What a prompt file says. system: "" for none. examples: rows with a question and an answer. nearest: None: none.
    """

    system: str = ""
    examples: Sequence[Mapping[str, Any]] = ()
    nearest: NearestExamples | None = None

    def to_json(self) -> dict[str, Any]:
        """The content of a prompt file."""
        whole = {"system": self.system, "examples": [dict(row) for row in self.examples],
                 "nearest": asdict(self.nearest) if self.nearest else None}
        return {name: value for name, value in whole.items() if value}


class OpenPrompt:
    """A prompt as what is put around chats that have no system message: its own one, then the examples as earlier
    turns, the nearest last. No example asks what the row that it is put around asks.

    rows: those of `nearest`, whose model is opened by the first question and freed by `close`. threads: of that model.
    """

    def __init__(self, prompt: Prompt, rows: Sequence[Row] = (), threads: int = 0) -> None:
        self.prompt = prompt
        self.rows = rows
        self._threads = threads
        self._turns = [turns_of(row) for row in prompt.examples]
        self._opening = threading.Lock()
        self._nearest: NearestRows | None = None

    def close(self) -> None:
        """Frees the model for vectors; the next question opens it again."""
        with self._opening:
            if self._nearest:
                self._nearest.close()
            self._nearest = None

    def put(self, messages: Sequence[Message], /) -> list[Message]:
        if any(message.get("role") == "system" for message in messages):
            return [*messages]
        asked = last_question(messages)
        question = content_text(messages[asked].get("content")) if asked is not None else ""
        learned = is_row(messages)
        own = question.strip() if learned else None
        examples = [known for known, row in zip(self._turns, self.prompt.examples, strict=True)
                    if question_text(row).strip() != own]
        examples += [turns_of(row) for row in self._near(question, own)]
        turns = [turn for example in examples for turn in example]
        system = [{"role": "system", "content": self.prompt.system}] if self.prompt.system else []
        return [*system, *(unlearned(turns) if learned else turns), *messages]

    def _near(self, question: str, own: str | None) -> list[Row]:
        """The rows that are nearest, the nearest last, without those that ask `own`."""
        if self.prompt.nearest is None:
            return []
        with self._opening:
            if self._nearest is None:
                self._nearest = NearestRows(self.rows, self.prompt.nearest.encoder, self._threads)
            nearest = self._nearest
        found: list[Row] = []
        for index in nearest.order(question):
            row = self.rows[index]
            if question_text(row).strip() != own:
                found.append(row)
            if len(found) == self.prompt.nearest.k:
                break
        return found[::-1]


def open_prompt(path: Path, threads: int = 0) -> OpenPrompt:
    """A prompt file, opened. threads: of the model for vectors. Raises FormatError for a file that is none, and the
    errors of its rows; NotFoundError where that model is not on this device.
    """
    prompt = read_prompt(path)
    if prompt.nearest is None:
        return OpenPrompt(prompt)
    find_model(prompt.nearest.encoder)
    return OpenPrompt(prompt, asking_rows(Path(prompt.nearest.rows)), threads)


@contextmanager
def opened_around(prompt: Path | None = None, threads: int = 0) -> Iterator[Instruction]:
    """The prompt of a file, opened; None without one. Raises the errors of open_prompt."""
    if prompt is None:
        yield None
        return
    with closing(open_prompt(prompt, threads)) as found:
        yield found


def kept_prompt(path: str) -> OpenPrompt:
    """`open_prompt`, once for a file that is as it was."""
    try:
        written = Path(path).stat().st_mtime_ns
    except OSError:
        written = 0  # opening it says so
    return _opened(path, written)


@lru_cache(maxsize=4)
def _opened(path: str, _written: int) -> OpenPrompt:
    return open_prompt(Path(path))


# ---- in the folder of an adapter -------------------------------------------------------------------------------------


def prompt_of(adapter: str | os.PathLike[str] | None) -> OpenPrompt | None:
    """The prompt with which an adapter was trained: of its folder, or the folder of its adapter.gguf. None without one.
    Errors: those of `open_prompt`.
    """
    if adapter is None:
        return None
    folder = Path(adapter) if Path(adapter).is_dir() else Path(adapter).parent
    return kept_prompt(str(folder / PROMPT[0])) if (folder / PROMPT[0]).is_file() else None


def keep_prompt(folder: Path, path: str) -> None:
    """Writes a prompt file into an adapter's folder, with the rows of its `nearest`, unless the folder has one."""
    if (folder / PROMPT[0]).exists():
        return
    prompt = read_prompt(Path(path))
    if prompt.nearest:
        rows = asking_rows(Path(prompt.nearest.rows))
        with replaced(folder / PROMPT[1]) as beside:
            beside.write_text(json_lines(rows), encoding="utf-8")
        prompt = replace(prompt, nearest=replace(prompt.nearest, rows=PROMPT[1]))
    write_prompt(folder / PROMPT[0], prompt)


def prompt_digest(path: str) -> str:
    """64 hexadecimal digits, equal for prompt files that say the same, with the same rows."""
    prompt = read_prompt(Path(path))
    rows = asking_rows(Path(prompt.nearest.rows)) if prompt.nearest else []
    said = {**prompt.to_json(), "nearest": prompt.nearest and [rows, prompt.nearest.k, prompt.nearest.encoder]}
    return hashlib.sha256(json_text(said, sort_keys=True).encode()).hexdigest()


# ---- reading and writing ---------------------------------------------------------------------------------------------


def read_prompt(path: Path) -> Prompt:
    """What a prompt file says; the file of its rows by an absolute name. Raises FormatError, also without the file."""
    found = _loaded(path)
    if not isinstance(found, Mapping):
        raise FormatError(f"{path} holds {type(found).__name__}, no keys", WAY_OUT)
    try:
        return _prompt(found, path.parent)
    except EdgetuneError as error:
        raise FormatError(f"{path}: {error.what}", error.hint or WAY_OUT) from None


def write_prompt(path: Path, prompt: Prompt) -> None:
    """Writes a new prompt file, as JSON. Raises UsageError for one that exists."""
    refuse_existing(path)
    with replaced(path) as beside:
        beside.write_text(json_text(prompt.to_json(), indent=2) + "\n", encoding="utf-8")


def turns_of(row: Row) -> list[Message]:
    """An example as turns of a conversation, up to its last answer, without its system message."""
    assert not isinstance(row, str)
    return [{key: value for key, value in message.items() if key != "weight"} for message in answered_messages(row)
            if message["role"] != "system"]


def _loaded(path: Path) -> Any:
    try:
        text = read_small(path, LIMIT).decode("utf-8")
    except FileNotFoundError:
        raise FormatError(f"there is no prompt file {path}", WAY_OUT) from None
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise FormatError(f"{path} cannot be read: {reason}", WAY_OUT) from None
    if path.suffix.lower() not in YAML:
        try:
            return json.loads(text)
        except (ValueError, RecursionError) as error:
            raise FormatError(f"{path} is no JSON: {error}", "mend it, or name a file in YAML .yaml") from None
    if importlib.util.find_spec("yaml") is None:
        raise EdgetuneError("prompt files in YAML need pyyaml", f"{install_hint('rows')}, or write JSON")
    try:
        return read_yaml(text, str(path), LIMIT)
    except DataError as error:
        raise FormatError(error.what, error.hint) from None


def _prompt(found: Mapping[str, Any], folder: Path) -> Prompt:
    """Raises EdgetuneError for what is no prompt."""
    if unknown := [str(key) for key in found if key not in ("system", "examples", "nearest")]:
        raise FormatError(f"{', '.join(unknown):.80} is no key of a prompt", WAY_OUT)
    system = found.get("system") or ""
    examples = found.get("examples") or []
    nearest = found.get("nearest")
    if not isinstance(system, str):
        raise FormatError(f"system is {system!r:.60}, no text", "put it between quotes")
    if not isinstance(examples, list):
        raise FormatError(f"examples is {examples!r:.60}, no list", "write a row a line, each after a dash")
    prompt = Prompt(system.strip(), [_example(i, row) for i, row in enumerate(examples, start=1)],
                    None if nearest is None else _nearest(nearest, folder))
    if not prompt.to_json():
        raise FormatError("the prompt is empty", WAY_OUT)
    return prompt


def _example(number: int, row: Any) -> Mapping[str, Any]:
    try:
        shape = check_row(row)
        if shape == "text" or not isinstance(row, Mapping):
            raise DataError("a text has no question and answer", "write prompt and completion, or messages")
        if turns_of(row)[0]["role"] != "user":
            raise DataError("an example does not begin with a user's message", "put the question first")
    except DataError as error:
        raise DataError(f"example {number}: {error.what}", error.hint) from None
    return row


def _nearest(found: Any, folder: Path) -> NearestExamples:
    if not isinstance(found, Mapping):
        raise FormatError(f"nearest is {found!r:.60}, no keys", "write rows, k and encoder below it")
    made = make_options(NearestExamples, {str(key): value for key, value in found.items()})
    check_options(made)
    if made.rows in ("", STDIN):
        raise FormatError("nearest has no file of rows", "name one, relative to the prompt file")
    encoder = str((folder / made.encoder).absolute()) if (folder / made.encoder).is_file() else made.encoder
    return NearestExamples(_beside(made.rows, folder), made.k, encoder)


def _beside(rows: str, folder: Path) -> str:
    """The file of rows by an absolute name; relative names start at the folder of the prompt file."""
    return ",".join(name if is_name(name) else str((folder / name).absolute()) for name in names_of(Path(rows)))
