"""Commands of a chat: lines that begin with a slash."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from ..console import Copyable
from ..disk import MIB, json_lines, json_text, private_folder, read_small, refuse_existing, replaced, state_folder
from ..errors import DataError, DiskError, UsageError, shell_word

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
        return Copyable(f"kept in {self.path}")

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


ENDS = ("/exit", "/quit", "/bye")
NONE = "none"


@dataclass
class Talk:
    """A conversation. served: the model. adapter: the name under which it was chosen. options: of answers."""

    served: Any
    judged: Judged
    adapter: str
    options: dict[str, Any]
    messages: list[dict[str, Any]] = field(default_factory=list)

    @property
    def last(self) -> tuple[list[dict[str, Any]], str]:
        """The messages before the last answer, and that answer. Raises UsageError where nothing was answered."""
        if not self.messages or self.messages[-1]["role"] != "assistant":
            raise UsageError("nothing was answered yet", "ask something first")
        return self.messages[:-1], self.messages[-1]["content"]

    def set_system(self, text: str) -> None:
        """Begins a new conversation, with this system message; empty: with none."""
        self.messages = [{"role": "system", "content": text}] if text else []

    def reset(self) -> None:
        """Forget all but the system message."""
        self.messages = [message for message in self.messages if message["role"] == "system"]


Ask = Callable[[str, str], str]  # of a prompt and what the line begins with; the line


def is_command(line: str) -> bool:
    """Returns whether a line is a command of the chat; a path such as /etc/hosts is a question."""
    word = line.split(maxsplit=1)[0] if line.strip() else ""
    return word.startswith("/") and "/" not in word[1:]


def obey(talk: Talk, line: str, ask: Ask | None = None) -> str:
    """Executes a command, and returns a report. ask: reads a line, where a person types. Raises EdgetuneError."""
    name, _, rest = line.partition(" ")
    if name not in COMMANDS:
        raise UsageError(f"there is no {name:.40}", "/help lists all commands")
    return COMMANDS[name].act(talk, rest.strip(), ask)


def _help(_talk: Talk, _text: str, _ask: Ask | None) -> str:
    width = max(len(f"{name} {command.takes}") for name, command in COMMANDS.items())
    return "\n".join([*(f"{f'{name} {command.takes}':{width}}  {command.does}" for name, command in COMMANDS.items()),
                      f"{'/exit':{width}}  leave, as Ctrl-D does", "a \\ at its end continues a line"])


def _system(talk: Talk, text: str, _ask: Ask | None) -> str:
    talk.set_system("" if text == NONE else text)
    return f"begins again {'with this' if talk.messages else 'without a'} system message of your own"


def _adapter(talk: Talk, text: str, _ask: Ask | None) -> str:
    if not text:
        return f"adapter: {talk.adapter}"
    if not hasattr(talk.served, "load_adapter"):
        raise UsageError("adapters cannot be switched here", "start edgetune chat with the GGUF of the model")
    path = Path(text).expanduser()
    if text != NONE and str(path) not in talk.served.adapters():
        talk.served.load_adapter(path, str(path))
    talk.served.use(None if text == NONE else str(path))
    talk.adapter = text
    return f"answers with {text}" if text != NONE else "answers without an adapter"


def _save(talk: Talk, text: str, _ask: Ask | None) -> str:
    if not text:
        raise UsageError("/save is given without a file", "name a new one, such as /save chat.jsonl")
    talk.last  # noqa: B018 (refuses a conversation without an answer)
    path = Path(text).expanduser()
    refuse_existing(path)
    with replaced(path) as beside:
        beside.write_text(json_text({"messages": talk.messages}) + "\n", encoding="utf-8")
    return f"saved in {path}, as a row that edgetune train reads"


def _fix(talk: Talk, text: str, ask: Ask | None) -> str:
    """The conversation continues from the right answer."""
    before, answer = talk.last
    if not text and ask is not None:
        text = ask("right: ", " ".join(answer.split())).strip()
    if not text:
        raise UsageError("/fix is given without the right answer", "write it after /fix")
    told = talk.judged.add(before, answer, None, text)
    talk.messages[-1] = {"role": "assistant", "content": text}
    return told


def _reset(talk: Talk, _text: str, _ask: Ask | None) -> str:
    talk.reset()
    return "begins again"


@dataclass(frozen=True)
class Command:
    """A command of the chat. takes: its argument, as /help shows it. does: its effect."""

    takes: str
    does: str
    act: Callable[[Talk, str, Ask | None], str]


COMMANDS = {
    "/help": Command("", "this list", _help),
    "/system": Command("TEXT", "begin again with this system message; none: without", _system),
    "/adapter": Command("FOLDER", "answer with this adapter; none: without", _adapter),
    "/good": Command("", "the last answer is right: it may be learned",
                     lambda talk, *_: talk.judged.add(*talk.last, "up", None)),
    "/bad": Command("", "the last answer is wrong", lambda talk, *_: talk.judged.add(*talk.last, "down", None)),
    "/fix": Command("TEXT", "what the last answer should be, to learn it", _fix),
    "/save": Command("FILE", "the conversation, as a row of a new file", _save),
    "/reset": Command("", "forget what was said", _reset),
}
