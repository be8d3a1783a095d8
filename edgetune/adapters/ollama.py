"""Export for Ollama: a folder with a Modelfile, the adapter and a model card, for `ollama create NAME -f Modelfile`.

Ollama fills chat templates in Go's language, a GGUF has them in jinja2's. The GGUF's own template is filled with marks;
the text around them is put into Go's language. The result is compared with the GGUF's template on other conversations,
and left out if it differs: then Ollama chooses a template itself. Tools are not written: Ollama has them as maps, which
lose the order of keys that was learned.

No RENDERER or PARSER is written: of the architectures that edgetune trains, Ollama has renderers for none, and with one
of both it would no longer fill the GGUF's own template.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..disk import new_folder
from ..errors import DataError, UnsupportedError, UsageError
from ..formats.gguf import Gguf
from ..llamacpp.tokenizer import Tokenizer
from .published import CARD, model_card, record_text
from .store import FILE, RUN, open_adapter

MODELFILE = "Modelfile"
_QUOTES = '"""'
_MARKS = ("first3question", "first3answer", "second3question", "the3system")
Messages = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Frame:
    """The text that a chat template writes around messages. opening, system_end: around a system message at the
    beginning; without: at the beginning without one. question_end: includes the start of the answer.
    """

    opening: str
    system_end: str
    without: str
    question: str
    question_end: str
    answer_end: str

    def fill(self, messages: Messages) -> str:
        """Fills a conversation that ends with a question, as Ollama fills `go`."""
        system = next((message["content"] for message in messages if message["role"] == "system"), "")
        text = self.opening + system + self.system_end if system else self.without
        around = {"user": (self.question, self.question_end), "assistant": ("", self.answer_end)}
        for message in messages:
            if message["role"] in around:
                begin, end = around[message["role"]]
                text += begin + message["content"] + end
        return text

    def go(self) -> str:
        """The frame as a program for Ollama."""
        return (f"{{{{ if .System }}}}{_literal(self.opening)}{{{{ .System }}}}{_literal(self.system_end)}"
                f"{{{{ else }}}}{_literal(self.without)}{{{{ end }}}}"
                f'{{{{ range .Messages }}}}{{{{ if eq .Role "user" }}}}{_literal(self.question)}{{{{ .Content }}}}'
                f'{_literal(self.question_end)}{{{{ else if eq .Role "assistant" }}}}{{{{ .Content }}}}'
                f"{_literal(self.answer_end)}{{{{ end }}}}{{{{ end }}}}")

    def texts(self) -> list[str]:
        return [self.opening, self.system_end, self.without, self.question, self.question_end, self.answer_end]


def _literal(text: str) -> str:
    """A text in a program, whose last brace does not become a part of what follows."""
    return text[:-1] + '{{ "{" }}' if text.endswith("{") else text


def export_ollama(adapter: str | os.PathLike[str], base: Gguf, folder: str | os.PathLike[str], *, model: str = "",
                  system: str | None = None) -> bool:
    """Write a new folder for `ollama create`; returns whether the base's chat template could be put into Ollama's.

    model: what Ollama knows the base as; "": the path of the GGUF. system: the system message of every chat; None: that
    of training. Raises UsageError if `folder` exists or the system message cannot be written in a Modelfile, else as
    open_adapter does.
    """
    opened = open_adapter(adapter, base)
    if system is None:
        system = opened.system
    tokenizer = Tokenizer(base)
    try:
        frame = frame_of(tokenizer)
        lines = _modelfile(model or str(base.path.resolve()), frame, system, _stops(tokenizer))
    finally:
        tokenizer.close()
    name = Path(folder).name
    use = f"```sh\nollama create {name} -f {MODELFILE}\nollama run {name}\n```"
    with new_folder(Path(folder)) as beside:
        shutil.copyfile(opened.path, beside / FILE)
        (beside / RUN).write_text(record_text(opened.run))
        (beside / CARD).write_text(model_card(opened.run, base, use))
        (beside / MODELFILE).write_text(lines)
    return frame is not None


def frame_of(tokenizer: Tokenizer) -> Frame | None:
    """The text that the model's chat template writes around messages; None without a template, or if it writes more."""
    try:
        frame = _read_frame(tokenizer)
        if frame is None or not all(_text(tokenizer, chat) == frame.fill(chat) for chat in _CHATS):
            return None
    except (DataError, UnsupportedError):
        return None
    return None if any("{{" in text or _QUOTES in text for text in frame.texts()) else frame


def _read_frame(tokenizer: Tokenizer) -> Frame | None:
    first, answer, second, system = _MARKS
    chat = [{"role": "user", "content": first}, {"role": "assistant", "content": answer},
            {"role": "user", "content": second}]
    with_system = _pieces_around(_text(tokenizer, [{"role": "system", "content": system}, *chat]),
                                 (system, first, answer, second))
    without = _pieces_around(_text(tokenizer, chat[:1]), (first,))
    if with_system is None or without is None:
        return None
    opening, before_first, question_end, before_second, end = with_system
    ended = str(tokenizer.render(chat[:2])).rpartition(answer)[2]
    question = _common_end(before_first, before_second.removeprefix(ended), without[0])
    if not question_end == end == without[1]:
        return None
    cut = -len(question) or None
    return Frame(opening, before_first[:cut], without[0][:cut], question, question_end, before_second[:cut])


def _common_end(*texts: str) -> str:
    shortest = min(texts, key=len)
    ends = (shortest[i:] for i in range(len(shortest)))
    return next((end for end in ends if all(text.endswith(end) for text in texts)), "")


def _pieces_around(text: str, marks: Sequence[str]) -> list[str] | None:
    """The pieces of a text around these marks, each once and in this order; None where one is missing."""
    pieces = []
    for mark in marks:
        piece, found, text = text.partition(mark)
        if not found:
            return None
        pieces.append(piece)
    return [*pieces, text]


def _text(tokenizer: Tokenizer, messages: Messages) -> str:
    """Renders messages by the model's own template, without the BOS token, which Ollama adds."""
    text = str(tokenizer.render(messages, add_generation_prompt=True))
    bos = "" if tokenizer.bos is None else tokenizer.decode([tokenizer.bos])
    return text.removeprefix(bos) if tokenizer.add_bos else text


_CHATS: Sequence[Messages] = (
    [{"role": "user", "content": "Hi"}],
    [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}],
    [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"},
     {"role": "assistant", "content": "d\n\ne"}, {"role": "user", "content": "f\ng"}],
    [{"role": "system", "content": "s"}, {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"},
     {"role": "user", "content": "c"}],
)


def _stops(tokenizer: Tokenizer) -> list[str]:
    """The texts of the tokens that end an answer."""
    ends = [tokenizer.decode([token]) for token in (tokenizer.eot, tokenizer.eos) if token is not None]
    return list(dict.fromkeys(text for text in ends if text and '"' not in text and "\n" not in text))


def _modelfile(model: str, frame: Frame | None, system: str, stops: Sequence[str]) -> str:
    """Writes greedy sampling without Ollama's penalty for repetition, so that answers are those edgetune measured."""
    if _QUOTES in system:
        raise UsageError(f"the system message holds {_QUOTES}, which ends a text in a Modelfile",
                         "give another one with --system")
    lines = [f"FROM {model}", f"ADAPTER ./{FILE}"]
    lines += [f"TEMPLATE {_QUOTES}{frame.go()}{_QUOTES}"] if frame else []
    lines += [f"SYSTEM {_QUOTES}{system}{_QUOTES}"] if system else []
    lines += ["PARAMETER temperature 0", "PARAMETER repeat_penalty 1"]
    return "\n".join([*lines, *(f'PARAMETER stop "{stop}"' for stop in stops)]) + "\n"
