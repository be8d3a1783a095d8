"""Sends a chat's feedback to a daemon that learns, or to a file of rows that `edgetune train` reads."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from ..console import Copied
from ..disk import MIB, json_lines, private_folder, read_small, replaced, state_folder
from ..errors import DataError, DiskError, shell_word

if TYPE_CHECKING:
    from ..daemon.client import Client

REMOTE = ("http://", "https://", "unix:")
Messages = Sequence[dict[str, Any]]


class Judged(Protocol):
    """Takes feedback."""

    def add(self, messages: Messages, answer: str, rating: str | None, correction: str | None) -> str:
        """Adds feedback on the answer to messages: a rating or a correction. Says its use. Raises EdgetuneError."""

    def learn(self, model: str) -> str:
        """Says in a sentence how the given feedback is learned; empty: there is none."""


@contextmanager
def judged_to(where: str, model: Path, key: str) -> Iterator[Judged]:
    """Opens the receiver of feedback. where: a daemon's address, a file, or "": the model's in the state folder."""
    if where.startswith(REMOTE):
        from ..daemon.client import Client
        with Client(where, key) as client:
            yield JudgedByDaemon(client)
    else:
        yield JudgedInFile(Path(where).expanduser() if where else feedback_file(model))


def feedback_file(model: Path) -> Path:
    """The file for feedback on a model's answers unless another one is named."""
    from ..daemon.options import model_name
    return state_folder() / "feedback" / f"{model_name(model)}.jsonl"


class JudgedInFile:
    """Rows in a file that only its owner may read. The last word on a question counts."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.changed = False

    def add(self, messages: Messages, answer: str, rating: str | None, correction: str | None) -> str:
        from ..daemon.learning.items import make_row
        right = answer if correction is None else correction
        row = make_row(messages, None, right, None)
        rows = self._read()
        others = [other for other in rows if other["messages"][:-1] != row["messages"][:-1]]
        if rating == "down":
            if len(others) != len(rows):
                self._write(others)
            return "nothing is learned from it; /fix says what is right"
        self._write([*others, row])
        self.changed = True
        return Copied(f"kept in {self.path}")

    def learn(self, model: str) -> str:
        count = len(self._read()) if self.changed else 0
        return f"to learn: edgetune train {shell_word(model)} {shell_word(self.path)} -o NEW" if count else ""

    def _read(self) -> list[dict[str, Any]]:
        """Reads the rows of the file. Raises DataError for any other content, which is not overwritten."""
        try:
            rows = [json.loads(line) for line in read_small(self.path, 64 * MIB).decode().splitlines() if line.strip()]
            for row in rows:
                row["messages"][:-1]
        except FileNotFoundError:
            return []
        except OSError as error:
            raise DiskError(f"cannot read {self.path}: {error.strerror}", "name another with --feedback") from None
        except (ValueError, TypeError, KeyError):
            raise DataError(f"{self.path} holds more than rows of messages", "name another with --feedback") from None
        return rows

    def _write(self, rows: list[dict[str, Any]]) -> None:
        if not self.path.parent.is_dir():
            private_folder(self.path.parent)
        with replaced(self.path) as beside:
            beside.touch(0o600)
            beside.write_text(json_lines(rows), encoding="utf-8")


class JudgedByDaemon:
    """Sends feedback to a daemon, which stores it with that of its page."""

    def __init__(self, client: Client) -> None:
        self.client = client

    def add(self, messages: Messages, answer: str, rating: str | None, correction: str | None) -> str:
        given = {"messages": list(messages), "answer": answer, "rating": rating, "correction": correction}
        found = self.client.post("/v1/feedback", {name: value for name, value in given.items() if value is not None})
        with self.client.understood():
            return str(found["reason"])

    def learn(self, model: str) -> str:  # noqa: ARG002 (it knows what it serves, and when it learns)
        return ""
