"""The file of a teacher: at each token that is learned the k likeliest tokens, with their log-probabilities, and the
log of the probability of all others together.

    header      4096 bytes: JSON, spaces, a line feed
    positions   a record each: token ids [k], their log p [k], log p of the rest; log p as float16
    keys        [n, 16], of each row that was read
    ends        [n], int64: the position after the row's last one

All numbers are little-endian. The header has the SHA-256 of all that follows. A row is found by its key, and its
records alone are read, so that memory holds INDEXED bytes a row.
"""

from __future__ import annotations

import json
import os
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from functools import lru_cache
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from ..disk import open_regular, replaced
from ..errors import FormatError, UsageError

if TYPE_CHECKING:
    from ..formats.gguf import Gguf

FORMAT = "edgetune-teacher"
VERSION = 1
HEADER = 4096
KEY = 16  # bytes
INDEXED = 40  # bytes of memory that a row of an open file takes
PIECE = 1 << 16  # bytes of the file that are in memory while it is checked
AGAIN = "write it again: edgetune data teach"
SHORT_IDS = 1 << 16  # tokens of a vocabulary whose ids take two bytes
Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Header:
    """top: k. temperature: of the teacher's softmax. vocabulary: number of tokens. tokenizer, template: SHA-256 of the
    teacher's. rows: digest of the data. examples, positions: their numbers. reading: options by which rows were read.
    """

    format: str
    version: int
    top: int
    temperature: float
    vocabulary: int
    tokenizer: str
    template: str
    rows: str
    teacher: str
    examples: int = 0
    positions: int = 0
    sha256: str = ""
    reading: dict[str, Any] = field(default_factory=dict)

    @property
    def record(self) -> np.dtype[Any]:
        ids = "<u2" if self.vocabulary <= SHORT_IDS else "<u4"
        return np.dtype([("ids", ids, self.top), ("logp", "<f2", self.top), ("rest", "<f2")])

    @property
    def file_bytes(self) -> int:
        return HEADER + self.positions * self.record.itemsize + self.examples * (KEY + 8)


def tokenizer_digest(gguf: Gguf) -> str:
    """The SHA-256 of a vocabulary's tokens in their order."""
    digest = sha256()
    tokens = gguf.metadata.get("tokenizer.ggml.tokens")
    for token in tokens if isinstance(tokens, list) else ():
        digest.update(str(token).encode("utf-8", "surrogateescape") + b"\0")
    return digest.hexdigest()


def template_digest(gguf: Gguf) -> str:
    return sha256(str(gguf.metadata.get("tokenizer.chat_template", "")).encode("utf-8", "surrogateescape")).hexdigest()


# ---- writing --------------------------------------------------------------------------------------------------------


class Writer:
    """Adds rows to a file. header: without the facts that are known at its end."""

    def __init__(self, file: BinaryIO, header: Header) -> None:
        self.file = file
        self.header = header
        self._ends: dict[bytes, int] = {}
        self._digest = sha256()
        self._positions = 0
        file.write(b" " * HEADER)

    def __contains__(self, key: bytes) -> bool:
        return key in self._ends

    @property
    def positions(self) -> int:
        return self._positions

    def add(self, key: bytes, ids: NDArray[np.integer[Any]], logp: Floats, rest: Floats) -> None:
        """ids, logp [S, k], rest [S]: of the row of this key, which is new."""
        records = np.zeros(len(ids), self.header.record)
        records["ids"] = ids
        records["logp"] = logp
        records["rest"] = np.maximum(rest, np.finfo(np.float16).min)
        self._write(records.tobytes())
        self._positions += len(ids)
        self._ends[key] = self._positions

    def finish(self) -> Header:
        self._write(b"".join(self._ends))
        self._write(np.array([*self._ends.values()], "<i8").tobytes())
        made = Header(**{**asdict(self.header), "examples": len(self._ends), "positions": self._positions,
                         "sha256": self._digest.hexdigest()})
        text = json.dumps(asdict(made)).encode()
        if len(text) >= HEADER:
            raise UsageError("the options of reading rows are too long for the file's header", "shorten the system "
                             "message")
        self.file.seek(0)
        self.file.write(text.ljust(HEADER - 1) + b"\n")
        return made

    def _write(self, content: bytes) -> None:
        self._digest.update(content)
        self.file.write(content)


@contextmanager
def new_teacher(path: Path, header: Header) -> Iterator[Writer]:
    """A writer of the file at `path`, which is whole or not there. Raises DiskError."""
    with replaced(path) as beside, beside.open("wb") as file:
        yield Writer(file, header)


# ---- reading --------------------------------------------------------------------------------------------------------


def read_header(path: str | os.PathLike[str]) -> Header:
    """The header of a file whose size is the one that it says. Raises FormatError, and UsageError without a file."""
    try:
        stat = Path(path).stat()
    except OSError as error:
        raise UsageError(f"the teacher file {path} cannot be read: {error.strerror}",
                         "name what edgetune data teach wrote") from None
    return _header(str(path), stat.st_size, stat.st_mtime_ns)


@lru_cache(maxsize=8)
def _header(path: str, size: int, _changed: int) -> Header:
    try:
        with open_regular(path) as file:
            found = json.loads(file.read(HEADER))
    except (OSError, ValueError):
        found = None
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        raise FormatError(f"{path} is no teacher file", "name what edgetune data teach wrote")
    if found.get("version") != VERSION:
        raise FormatError(f"{path} is a teacher file of version {found.get('version')!r:.20}, this edgetune reads "
                          f"{VERSION}", AGAIN)
    kinds = {"int": int, "float": float, "str": str}
    values = [found.get(spec.name) for spec in fields(Header)]
    if not (len(found) == len(values) and all(type(value) is kinds.get(str(spec.type), dict)
                                              for spec, value in zip(fields(Header), values, strict=True))):
        raise FormatError(f"{path} has a header with fields that no teacher file has", AGAIN)
    header = Header(**found)
    if not (1 <= header.top <= header.vocabulary and header.temperature > 0 and min(header.examples,
                                                                                    header.positions) >= 1):
        raise FormatError(f"{path} has a header with numbers that no teacher file has", AGAIN)
    if size != header.file_bytes:
        raise FormatError(f"{path} has {size} bytes, its header says {header.file_bytes}", AGAIN)
    return header


class TeacherFile:
    """An open file. Its content is compared with its digest once, here; raises FormatError where they differ."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = str(path)
        self.header = read_header(path)
        self._file = open_regular(path)
        self.close = weakref.finalize(self, self._file.close)
        self._check()
        n = self.header.examples
        at = HEADER + self.header.positions * self.header.record.itemsize
        keys = np.frombuffer(self._read(at, n * KEY), "<u8").reshape(n, 2)
        self._order = np.argsort(keys[:, 0], kind="stable")
        self._keys = keys[self._order]
        self._ends = np.frombuffer(self._read(at + n * KEY, n * 8), "<i8")
        if not (np.diff(self._ends, prepend=0) > 0).all() or self._ends[-1] != self.header.positions:
            raise FormatError(f"{path} has rows that overlap", AGAIN)

    def __contains__(self, key: bytes) -> bool:
        return self._row(key) is not None

    def missing(self, keys: Sequence[bytes]) -> int:
        """The number of keys that it does not have."""
        return sum(key not in self for key in keys)

    def read(self, key: bytes) -> tuple[NDArray[np.int32], Floats]:
        """(token ids [S, k], log q [S, k]) of a row; what the k leave to 1 is the rest's. Raises KeyError without it,
        and FormatError for tokens that the vocabulary does not have.
        """
        row = self._row(key)
        if row is None:
            raise KeyError(key)
        begin = int(self._ends[row - 1]) if row else 0
        end = int(self._ends[row])
        size = self.header.record.itemsize
        records = np.frombuffer(self._read(HEADER + begin * size, (end - begin) * size), self.header.record)
        ids = records["ids"].astype(np.int32)
        if int(ids.max()) >= self.header.vocabulary:
            raise FormatError(f"{self.path} names token {ids.max()} of {self.header.vocabulary}", AGAIN)
        logs = np.concatenate([records["logp"], records["rest"][:, None]], axis=1).astype(np.float64)
        return ids, (logs - np.logaddexp.reduce(logs, axis=1)[:, None])[:, :-1].astype(np.float32)

    def _row(self, key: bytes) -> int | None:
        first, second = np.frombuffer(key, "<u8")
        begin = np.searchsorted(self._keys[:, 0], first, "left")
        end = np.searchsorted(self._keys[:, 0], first, "right")
        found = begin + np.flatnonzero(self._keys[begin:end, 1] == second)
        return int(self._order[found[0]]) if found.size else None

    def _read(self, at: int, nbytes: int) -> bytes:
        found = os.pread(self._file.fileno(), nbytes, at)
        if len(found) < nbytes:
            raise FormatError(f"{self.path} was cut while it was read", AGAIN)
        return found

    def _check(self) -> None:
        digest = sha256()
        for at in range(HEADER, self.header.file_bytes, PIECE):
            digest.update(self._read(at, min(PIECE, self.header.file_bytes - at)))
        if digest.hexdigest() != self.header.sha256:
            raise FormatError(f"{self.path} is damaged: its content is not the one that its header names", AGAIN)
