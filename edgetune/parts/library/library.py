"""A library of adapters, of which NAME:auto chooses one for each question; the base answers what is unlike all tasks.

An adapter is part of it once it has questions of its task. Only their vectors are stored, by the encoder of
--embeddings, in its folder. Why an encoder, and not the base's own vectors: docs/results/retrieval.md.
"""

from __future__ import annotations

import logging
import threading
import zipfile
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from ... import disk
from ...adapters import store
from ...adapters.joined import most_similar
from ...daemon.embeddings import Embeddings
from ...daemon.options import DaemonConfig
from ...daemon.running import Chooser, RunningPart
from ...daemon.state.adapters import Adapters
from ...data.question import user_text
from ...data.rows import Row
from ...disk import MIB
from ...errors import (
    EdgetuneError,
    FormatError,
    MismatchError,
    NotFoundError,
    UnsupportedError,
    UsageError,
    shell_word,
    size_text,
)
from ...formats.gguf import fingerprint
from ...serving.neighbours import Floats
from ...serving.tasks import NEAREST, Tasks
from .options import LibraryOptions

if TYPE_CHECKING:
    from ...daemon.service import Service

log = logging.getLogger("edgetune.daemon")
AUTO = ":auto"
QUESTIONS = "questions.npz"  # in an adapter's folder: vectors of its task's questions
MOST = 256  # questions of a task
SEED = 0  # of the choice among more
AGAIN = "give it its questions again with edgetune adapters route"


class Library:
    """The library of a service, for any number of threads. name: NAME:auto, for requests. base: the base's name. most:
    bytes of its adapters; 0: any.
    """

    def __init__(self, adapters: Adapters, embeddings: Embeddings, base: str, most: int = 0) -> None:
        self.name = base + AUTO
        self._base = base
        self._most = most
        self._adapters = adapters
        self._embeddings = embeddings
        encoder = embeddings.encoder
        self._encoder = fingerprint(encoder.gguf) if encoder else ""
        self._questions: dict[str, Floats] = {}  # by adapter
        self._changing = threading.Lock()
        self._tasks: tuple[Sequence[str], Tasks] | None = None  # of these adapters

    def start(self) -> None:
        """Reads the questions of all adapters. Those by another encoder are left out."""
        for id in self._adapters.ids() if self._encoder else ():
            path = self._adapters.path(id) / QUESTIONS
            try:
                if path.exists():
                    self._questions[id] = _read(path, self._encoder, self._embeddings.width())
            except EdgetuneError as error:
                log.warning("%s is not chosen: %s; %s", id, error.what, error.hint)

    def members(self) -> Sequence[str]:
        """Returns the adapters of which one is chosen, the newest first."""
        return [id for id in self._adapters.ids() if id in self._questions]

    def has(self, id: str) -> bool:
        """Returns whether an adapter has questions, also by another encoder."""
        with suppress(NotFoundError):  # deleted meanwhile
            return (self._adapters.path(id) / QUESTIONS).exists()
        return False

    def questions(self, id: str) -> int:
        """Returns the number of questions that an adapter has; 0: it is not in the library."""
        return len(self._questions.get(id, ()))

    def add(self, id: str, rows: Iterable[Row]) -> None:
        """Lets an adapter be chosen for questions like those of rows. Raises UnsupportedError without an encoder,
        UsageError for rows that ask too little, and where it would be too large, NotFoundError and DiskError.
        """
        if not self._encoder:
            raise UnsupportedError("the daemon has no encoder, by which questions are compared",
                                   "start it with --embeddings minilm")
        path = self._adapters.path(id)
        texts = sorted({text for row in rows if (text := user_text(row))})
        if len(texts) <= NEAREST:
            raise UsageError(f"the rows ask {len(texts)} different questions",
                             f"give {NEAREST + 1} or more, better a hundred")
        self._require_room({*self.members(), id})
        chosen = Random(SEED).sample(texts, min(len(texts), MOST))
        vectors = self._embeddings.embed(chosen, truncate=True).vectors.astype(np.float16)
        _write(path, vectors, self._encoder)
        with self._changing:
            self._questions[id] = vectors.astype(np.float32)
            self._tasks = None
        log.info("%s is chosen for questions like %d of its task", id, len(chosen))

    def _require_room(self, members: Collection[str]) -> None:
        """Raises UsageError where the adapters are too large together; it names the two that could be merged best."""
        paths = {id: self._adapters.path(id) for id in members}
        nbytes = sum((path / store.FILE).stat().st_size for path in paths.values())
        if not self._most or nbytes <= self._most:
            return
        loras = {}
        for path in map(str, paths.values()):
            with suppress(UnsupportedError):  # keys and values cannot be merged
                loras[path] = store.load_gguf(path)
        way = "take one out with edgetune adapters route --off"
        if len(loras) > 1:
            both = most_similar(loras)
            rank = max(pair.rank for path in both for pair in loras[path].values())
            named = " ".join(map(shell_word, both))
            way += f", or merge the two most similar: edgetune adapters combine {named} -o NEW --rank {rank}"
        raise UsageError(f"the library would take {size_text(nbytes)}, --library-size allows {size_text(self._most)}",
                         way)

    def remove(self, id: str) -> None:
        """Lets an adapter be chosen no longer. Raises NotFoundError."""
        (self._adapters.path(id) / QUESTIONS).unlink(missing_ok=True)
        with self._changing:
            self._questions.pop(id, None)
            self._tasks = None

    def choose(self, content: Mapping[str, Any]) -> str:
        """Returns the model that answers a question, for NAME:auto. content: as of AskedQuestion. Raises NotFoundError
        where the library is empty.
        """
        tasks = self._known_tasks()
        text = user_text(content)
        if not text:
            return self._base
        try:
            [vector] = self._embeddings.embed([text], truncate=True).vectors
        except UsageError:  # nothing but marks
            return self._base
        return tasks.of(vector) or self._base

    def _known_tasks(self) -> Tasks:
        with self._changing:
            if not (members := self.members()):
                raise NotFoundError(f"{self.name} chooses among adapters that have questions, and none has",
                                    "give one some with edgetune adapters route")
            if self._tasks is None or self._tasks[0] != members:
                self._tasks = members, Tasks({id: self._questions[id] for id in members})
            return self._tasks[1]


def _write(folder: Path, vectors: np.ndarray, encoder: str) -> None:
    """Raises DiskError."""
    with disk.replaced(folder / QUESTIONS) as beside, beside.open("wb") as file:
        np.savez(file, vectors=vectors, encoder=encoder)


def _read(path: Path, encoder: str, width: int) -> Floats:
    """Returns the vectors [n, D] of an adapter's questions. Raises FormatError, or MismatchError for another encoder's.
    """
    try:
        with disk.open_regular(path) as opened, np.load(opened, allow_pickle=False) as file:
            vectors = np.asarray(file["vectors"], np.float32)
            made_by = str(file["encoder"])
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise FormatError(f"{path} is damaged: {error}", AGAIN) from None
    if made_by != encoder:
        raise MismatchError(f"{path} is by another encoder", AGAIN)
    if vectors.shape[1:] != (width,) or len(vectors) <= NEAREST or not np.isfinite(vectors).all():
        raise FormatError(f"{path} is damaged: it has no vectors of this encoder", AGAIN)
    return vectors


class RunningLibrary(RunningPart):
    """The library of a daemon. most: bytes of its adapters; 0: any."""

    library: Library

    def __init__(self, most: int) -> None:
        self._most = most

    def join(self, service: Service) -> None:
        self.library = Library(service.adapters, service.embeddings, service.name, self._most)
        service.adapters.needed.append(self.library.has)

    def models(self) -> Sequence[str]:
        return [self.library.name] if self.library.members() else []

    def chooser(self, model: str) -> Chooser | None:
        return self.library.choose if model == self.library.name else None

    def adapter(self, id: str) -> Mapping[str, int]:
        return {"questions": self.library.questions(id)}

    def start(self) -> None:
        self.library.start()


def running(config: DaemonConfig) -> RunningLibrary:
    """Returns the library of a daemon."""
    return RunningLibrary(cast(LibraryOptions, config).library_size * MIB)


def library_of(service: Service) -> Library:
    """Returns the library of a service."""
    return cast(RunningLibrary, service.running["library"]).library
