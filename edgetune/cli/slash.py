"""Commands of a chat: lines that begin with a slash."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..disk import json_text, refuse_existing, replaced
from ..errors import UsageError
from .judged import Judged

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
