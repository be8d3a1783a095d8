"""chat: a conversation with a model, in a terminal or for a program."""

from __future__ import annotations

import json
import os
import signal
import sys
import termios
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import click
from rich.text import Text

from ..console import Copyable, say, table
from ..disk import private_folder, state_folder
from ..errors import DiskError, EdgetuneError
from ..formats.named import name_of
from .app import MODEL, adapter_option, command, complain, out, system_option, threads_option
from .grouped import GroupedOption
from .prose import Prose
from .serving import (
    ServingOptions,
    answer_options,
    around_options,
    busy_file_option,
    markup_option,
    refuse_both,
    runtime_option,
    served_model,
    sources_of,
    sources_text,
    structured_option,
    url_options,
)
from .slash import COMMANDS, ENDS, NONE, Talk, is_command, judged_to, obey

LONGEST = 1000  # lines of the history
readline: ModuleType | None
try:
    import readline
except ImportError:  # a Python without it: lines cannot be edited
    readline = None


def history_file() -> Path:
    return state_folder() / "chat_history"


class TypedLines:
    """Reads lines from the terminal. The history is a file that only its owner may read; None: no history.

    words: the completions of a line's first word by Tab.
    """

    def __init__(self, history: Path | None, words: Sequence[str]) -> None:
        self.history = history
        self.words = words
        if readline is None:
            return
        readline.set_completer(self._complete)
        readline.set_completer_delims(" ")
        readline.parse_and_bind("tab: complete")
        readline.set_history_length(LONGEST)
        readline.set_auto_history(False)
        if history is not None:
            self._open(history)

    def ask(self, prompt: str, text: str = "") -> str:
        """A line, which begins as `text`. Raises EOFError for Ctrl-D and KeyboardInterrupt for Ctrl-C."""
        if readline is None:
            return input(prompt)
        readline.set_startup_hook(partial(readline.insert_text, text))
        try:
            line = input(f"\001\033[1;32m\002{prompt}\001\033[0m\002" if "NO_COLOR" not in os.environ else prompt)
        finally:
            readline.set_startup_hook(None)
        if line.strip():
            readline.add_history(line)
            if self.history is not None:
                with suppress(OSError):
                    readline.append_history_file(1, self.history)
        return line

    def _open(self, history: Path) -> None:
        """A history that cannot be read or kept is none: a chat needs no disk."""
        assert readline is not None
        try:
            private_folder(history.parent)
            os.close(os.open(history, os.O_CREAT | os.O_WRONLY, 0o600))
            history.chmod(0o600)
            readline.read_history_file(history)
        except (OSError, DiskError):
            self.history = None

    def _complete(self, text: str, state: int) -> str | None:
        """Completes a command at the beginning of a line, and a path after it."""
        if readline is None:
            return None
        found = self.words if readline.get_begidx() == 0 else _files(text)
        matching = [word for word in found if word.startswith(text)]
        return matching[state] if state < len(matching) else None


def _files(text: str) -> list[str]:
    """The paths in the folder that a path names so far."""
    folder = text[:text.rfind("/") + 1]  # as it was typed
    with suppress(OSError):
        return sorted(f"{folder}{each.name}{'/' if each.is_dir() else ''}" for each in Path(folder or ".").iterdir())
    return []


AGAIN = "Ctrl-C again leaves"


@command("chat", MODEL, adapter_option, system_option, around_options, answer_options, threads_option, busy_file_option,
         runtime_option, markup_option, structured_option, url_options,
         click.option("--feedback", metavar="FILE|URL", default="", help="Where /good, /bad and /fix go: a file of "
                      "rows for edgetune train, or a daemon [--url, or the model's file in "
                      "~/.local/state/edgetune/feedback]."),
         click.option("--history/--no-history", default=True, show_default=True, cls=GroupedOption,
                      help="Remember typed lines, in ~/.local/state/edgetune/chat_history."))
def chat_command(model: Path, system: str, feedback: str, history: bool, as_json: bool, **options: Any) -> None:
    """Talk to the model. /help lists what a line can do besides.

    Ctrl-C stops an answer, twice leaves; so do Ctrl-D and /exit. The arrow keys bring back earlier lines. Without a
    terminal each line is a question, and an empty one ends it.

    With --json each line is answered by a JSON line.
    """
    from ..daemon.client import read_key
    serving = ServingOptions.taken_from(options)
    key = read_key(serving.key_file)
    refuse_both(serving, system)
    with judged_to(feedback or serving.url, model, key) as judged, served_model(model, serving) as served:
        talk = Talk(served, judged, str(serving.adapter or NONE), options)
        talk.set_system(system)
        if sys.stdin.isatty() and out.is_terminal and not as_json:
            _with_a_person(talk, model, history)
        else:
            _with_a_program(talk, as_json)


# ---- a program ------------------------------------------------------------------------------------------------------


def _with_a_program(talk: Talk, as_json: bool) -> None:
    """A line of standard input is a question, or a command; an empty one ends it."""
    while (line := sys.stdin.readline().strip()) and line not in ENDS:
        if is_command(line):
            told = obey(talk, line)
            if line != "/reset":
                click.echo(json.dumps({"command": line.split()[0], "text": told}) if as_json else told)
            continue
        answer = ""
        for piece in _asked(talk, line):
            answer += piece
            if not as_json:
                click.echo(piece, nl=False)
        sources = sources_of(talk.served, talk.messages)
        if as_json:
            click.echo(json.dumps({"text": answer} | ({} if sources is None else {"sources": sources})))
        else:
            click.echo("" if sources is None else f"\n{sources_text(sources)}")
        talk.messages.append({"role": "assistant", "content": answer})


def _asked(talk: Talk, question: str) -> Iterator[str]:
    talk.messages.append({"role": "user", "content": question})
    return iter(talk.served.chat(talk.messages, **talk.options))


# ---- a person -------------------------------------------------------------------------------------------------------


def _with_a_person(talk: Talk, model: Path, history: bool) -> None:
    lines = TypedLines(history_file() if history else None, [*COMMANDS, "/exit"])
    _banner(talk, model)
    leaving = False  # whether Ctrl-C was the last that came
    while True:
        try:
            line = _whole_line(lines)
        except EOFError:
            click.echo()
            break
        except KeyboardInterrupt:
            if leaving:
                click.echo()
                break
            _dim(f"\n{AGAIN}")
            leaving = True
            continue
        if line in ENDS:
            break
        leaving = bool(line) and _line(talk, line, lines)
    if told := talk.judged.learn(name_of(model)):
        say(out, Text(told, style="dim"), whole=True)


def _whole_line(lines: TypedLines) -> str:
    r"""A line and, after a \ at its end, those that continue it."""
    line = lines.ask("> ")
    while line.endswith("\\"):
        line = f"{line[:-1]}\n{lines.ask('. ')}"
    return line.strip()


def _line(talk: Talk, line: str, lines: TypedLines) -> bool:
    """Answer a line or obey it; whether Ctrl-C stopped that."""
    said = len(talk.messages)
    try:
        if not is_command(line):
            return _answer(talk, line)
        _dim(obey(talk, line, lines.ask))
    except KeyboardInterrupt:
        click.echo()
        return True
    except EdgetuneError as error:
        del talk.messages[said:]
        complain(error)
    return False


def _answer(talk: Talk, question: str) -> bool:
    """Print the answer as it comes, and how quickly it did; whether Ctrl-C stopped it."""
    began = time.monotonic()
    first = began
    answer = ""
    prose = Prose(out)
    with _ctrl_c() as stopped, closing(_asked(talk, question)) as pieces:  # type: ignore[type-var]
        for piece in pieces:
            if not answer:
                first = time.monotonic()
            answer += piece
            prose.write(piece)
            if stopped():
                break
        prose.end()
        ended = time.monotonic()
        was_stopped = stopped()
    if answer:
        sources = sources_of(talk.served, talk.messages)
        talk.messages.append({"role": "assistant", "content": answer})
        if sources is not None:
            _dim(sources_text(sources))
    else:
        talk.messages.pop()
    counted: int | None = getattr(talk.served, "said_tokens", None)  # by a daemon's model
    tokens = len(talk.served.tokenizer.encode(answer, special=False)) if counted is None else counted
    rate = f", {(tokens - 1) / max(ended - first, 1e-9):.1f} tokens/s" if tokens > 1 else ""
    _dim(f"{tokens} tokens{rate}, the first after {first - began:.1f} s"
         f"{f'; stopped, {AGAIN}' if was_stopped else ''}")
    return was_stopped


@contextmanager
def _ctrl_c() -> Iterator[Callable[[], bool]]:
    """Yields a function that says whether Ctrl-C came; a second one raises KeyboardInterrupt."""
    came: list[int] = []

    def note(_number: int, _frame: object) -> None:
        if came:
            raise KeyboardInterrupt
        came.append(1)

    before = signal.signal(signal.SIGINT, note)
    shown = termios.tcgetattr(sys.stdin)
    quiet = [*shown[:3], shown[3] & ~termios.ECHO, *shown[4:]]  # ^C and keys that are pressed too early
    termios.tcsetattr(sys.stdin, termios.TCSANOW, quiet)
    try:
        yield lambda: bool(came)
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSANOW, shown)
        signal.signal(signal.SIGINT, before)


def _banner(talk: Talk, model: Path) -> None:
    known = name_of(model)  # as it was typed
    named = model.name if known == str(model) else f"{known} ({model.name})"
    out.print(table("", ["", ""], [
        ["model", named], ["adapter", talk.adapter],
        ["context", f"{talk.served.context:,} tokens"],
        ["", Text("/help lists commands; Ctrl-C stops an answer, twice leaves", style="dim")]]))


def _dim(text: str) -> None:
    say(out, Text(text, style="dim"), whole=isinstance(text, Copyable))
