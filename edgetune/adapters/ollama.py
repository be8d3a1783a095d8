"""Export for Ollama: a folder with a Modelfile, the adapter and a model card, for `ollama create NAME -f Modelfile`.

Ollama fills chat templates in Go's language, a GGUF has them in jinja2's. The GGUF's own template is filled with marks;
the text around them is put into Go's language. The result is compared with the GGUF's template on other conversations,
and left out if it differs: then Ollama chooses a template itself. The part for tools is likewise left out by itself.

No RENDERER or PARSER is written: of the architectures that edgetune trains, Ollama has renderers for none, and with one
of both it would no longer fill the GGUF's own template.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..disk import new_folder
from ..errors import DataError, UnsupportedError, UsageError
from ..formats.gguf import Gguf
from ..llamacpp.tokenizer import Tokenizer
from .go_json import Order, order_of
from .ollama_tools import ToolFrame, checks, literal, pieces_around, read_tools
from .published import CARD, model_card, record_text
from .store import FILE, RUN, open_adapter

MODELFILE = "Modelfile"
_QUOTES = '"""'
_MARKS = ("first3question", "first3answer", "second3question", "the3system")
Messages = Sequence[Mapping[str, Any]]
Tools = Sequence[Mapping[str, Any]]


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
    tools: ToolFrame | None = None

    def fill(self, messages: Messages, tools: Tools = ()) -> str:
        """Fills a conversation that ends with a question or a result, as Ollama fills `go`."""
        known = self.tools
        around = known if known and tools else self
        system = next((message["content"] for message in messages if message["role"] == "system"), "")
        text = around.opening + system + around.system_end if system else around.without
        told = known.fill_tools(tools) if known and tools else ""
        if known and not known.inside:
            text += told
            told = ""
        before = ""
        for message in [*messages, {"role": ""}]:
            if known and before == "tool" != message["role"]:
                text += known.result_end
            if message["role"] == "user":
                text += self.question + told + message["content"] + self.question_end
                told = ""
            elif message["role"] == "assistant":
                text += (known.fill_answer(message) if known else message["content"]) + self.answer_end
            elif message["role"] == "tool" and known:
                text += (known.between_results if before == "tool" else known.result) + known.fill_result(message)
            before = message["role"]
        return text

    def go(self) -> str:
        """The frame as a program for Ollama."""
        if self.tools is None:
            return (f'{_go_system(self)}{{{{ range .Messages }}}}{{{{ if eq .Role "user" }}}}{literal(self.question)}'
                    f'{{{{ .Content }}}}{literal(self.question_end)}{{{{ else if eq .Role "assistant" }}}}'
                    f'{{{{ .Content }}}}{literal(self.answer_end)}{{{{ end }}}}{{{{ end }}}}')
        tools = self.tools
        told = tools.go_tools()
        first = told if not tools.inside else ""
        later = f"{{{{ if and $.Tools (not $told) }}}}{told}{{{{ $told = true }}}}{{{{ end }}}}" if tools.inside else ""
        end = tools.go_result_end()
        return (
            f"{{{{ if .Tools }}}}{_go_system(tools)}{first}{{{{ else }}}}{_go_system(self)}{{{{ end }}}}"
            f'{{{{ $was := "" }}}}{{{{ $told := false }}}}{{{{ range .Messages }}}}'
            f'{{{{ if and (eq "tool" $was) (ne "tool" .Role) }}}}{end}{{{{ end }}}}'
            f'{{{{ if eq .Role "user" }}}}{literal(self.question)}{later}{{{{ .Content }}}}{literal(self.question_end)}'
            f'{{{{ else if eq .Role "assistant" }}}}{tools.go_answer()}{literal(self.answer_end)}'
            f'{{{{ else if eq "tool" .Role }}}}{tools.go_result()}{{{{ end }}}}{{{{ $was = .Role }}}}{{{{ end }}}}'
            f'{{{{ if eq "tool" $was }}}}{end}{{{{ end }}}}{tools.definitions()}')

    def texts(self) -> list[str]:
        return [self.opening, self.system_end, self.without, self.question, self.question_end, self.answer_end]


def _go_system(around: Frame | ToolFrame) -> str:
    """The program for what stands before the first message."""
    return (f"{{{{ if .System }}}}{literal(around.opening)}{{{{ .System }}}}{literal(around.system_end)}{{{{ else }}}}"
            f"{literal(around.without)}{{{{ end }}}}")


@dataclass(frozen=True)
class Exported:
    """What the Modelfile's template says as the base's own does: chats, and the tools of the rows that were learned.

    changed: the tools among these that Ollama writes otherwise; None where nothing is known of the rows' tools.
    """

    chats: bool
    tools: bool
    changed: Sequence[str] | None


def export_ollama(adapter: str | os.PathLike[str], base: Gguf, folder: str | os.PathLike[str], *, model: str = "",
                  system: str | None = None) -> Exported:
    """Write a new folder for `ollama create`; returns how far the base's chat template could be put into Ollama's.

    model: what Ollama knows the base as; "": the path of the GGUF. system: the system message of every chat; None: that
    of training. Raises UsageError if `folder` exists or the system message cannot be written in a Modelfile, else as
    open_adapter does.
    """
    opened = open_adapter(adapter, base)
    if system is None:
        system = opened.system
    tools = _tools_of_rows(opened.run)
    tokenizer = Tokenizer(base)
    try:
        frame = frame_of(tokenizer, tools or ())
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
    known = frame.tools if frame else None
    changed = None if tools is None else [str(tool.get("function", tool).get("name")) for tool in tools
                                          if not (known and known.keeps(tool))]
    return Exported(frame is not None, known is not None, changed)


def _tools_of_rows(run: Mapping[str, Any]) -> Tools | None:
    """The tools of the rows that an adapter learned; None where its record does not say."""
    found = run.get("tools")
    if not isinstance(found, list):
        return None
    return [tool for tool in found if isinstance(tool, dict) and isinstance(tool.get("function", tool), dict)]


def frame_of(tokenizer: Tokenizer, tools: Tools = ()) -> Frame | None:
    """The text that the model's chat template writes around messages; None without a template, or if it writes more.

    tools: those of the rows, whose order of keys is kept.
    """
    try:
        frame = _read_frame(tokenizer)
        if frame is None or not all(_text(tokenizer, chat) == frame.fill(chat) for chat in _CHATS):
            return None
    except (DataError, UnsupportedError):
        return None
    return None if _unwritable(frame.texts()) else replace(frame, tools=_tools_of(tokenizer, frame, order_of(tools)))


def _unwritable(texts: Sequence[str]) -> bool:
    return any("{{" in text or _QUOTES in text for text in texts)


def _tools_of(tokenizer: Tokenizer, frame: Frame, order: Order) -> ToolFrame | None:
    """The part for tools; None if the template writes more of them."""
    def render(messages: Messages, tools: Tools) -> str:
        return _text(tokenizer, messages, tools)

    tools = read_tools(render, frame.question, frame.question_end, frame.answer_end, order)
    if tools is None or _unwritable(tools.texts()):
        return None
    whole = replace(frame, tools=tools)
    if _QUOTES in whole.go():
        return None
    try:
        same = all(render(chat, given) == whole.fill(chat, given)
                   for chat, given in checks(order, parallel=bool(tools.between_calls)))
    except (DataError, UnsupportedError):
        return None
    return tools if same else None


def _read_frame(tokenizer: Tokenizer) -> Frame | None:
    first, answer, second, system = _MARKS
    chat = [{"role": "user", "content": first}, {"role": "assistant", "content": answer},
            {"role": "user", "content": second}]
    with_system = pieces_around(_text(tokenizer, [{"role": "system", "content": system}, *chat]),
                                (system, first, answer, second))
    without = pieces_around(_text(tokenizer, chat[:1]), (first,))
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


def _text(tokenizer: Tokenizer, messages: Messages, tools: Tools = ()) -> str:
    """Renders messages by the model's own template, without the BOS token, which Ollama adds."""
    text = str(tokenizer.render(messages, tools, add_generation_prompt=True))
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
