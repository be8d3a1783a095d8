"""The model's own tokenizer and chat template, exactly as llama.cpp will use them when it serves the model.

Tokens come from llama.cpp itself (the GGUF opened with `vocab_only`: no weights are read), text from the template in
the GGUF, rendered under the rules that transformers sets for such templates (sandbox, blocks, filters). The tokens that
a model sees at inference are `encode(render(messages, tools, add_generation_prompt=True), bos=True)`, here and in
`serve`.

Text that spells a control token becomes that token where a template wrote it, or where the text is not rendered by one.
Inside a message ("<|im_end|>" in a user's words) it stays text, in training as in serving (see `markup`); a Tokenizer
with markup "parse" makes tokens of it, as transformers does. `encode(special=False)` keeps everything text.
"""

from __future__ import annotations

import ctypes
import json
import os
import weakref
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError, UnsupportedError
from ..formats.gguf import Gguf
from ..formats.named import find_model
from .chat_template import in_order, write_tools
from .library import load, open_model
from .markup import ControlTokens, Rendered, StandIns

CHATML = """\
{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}\
{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"""
_SPACES = " \t\n\r\v\f"
_UNMERGED = "\x02"  # no vocabulary merges this control character with its neighbours


@dataclass(frozen=True)
class TokenTable:
    """What tokens begin with: bytes, two of each token, none of those that end an answer; and which one by token, [V].
    hidden: whether readers do not see a token, [V]. alone: the token that is a byte, -1 without, [256].
    """

    begins: list[bytes]
    begin_of: NDArray[np.intp]
    hidden: NDArray[np.bool_]
    alone: NDArray[np.intp]


class Tokenizer:
    """The vocabulary of one GGUF, open or named. Check it with `gguf.open_gguf` first: llama.cpp trusts what it reads.

    `bos`, `eos`, `eot` are token ids or None; `add_bos` says whether the model wants `bos` at the start of a prompt.
    model: a llama_model of that file that is open already and outlives this, so that its vocabulary is held once.
    `chat_template` is the GGUF's, or None. It is ChatML for a vocabulary that has its two tokens and no template.
    `tool_template` takes its place where tools are given, if the GGUF has one. Both may be replaced, and so may
    `markup`: "escape" or "parse", what becomes of control tokens that a message spells; `thoughts`: "keep", "drop" or
    "mask", what becomes of thoughts in the answers of rows (data.thoughts).
    Raises UnsupportedError for a tokenizer that llama.cpp does not know or would fail on.
    """

    def __init__(self, file: str | os.PathLike[str] | Gguf, model: int | None = None) -> None:
        llama = load()
        self._llama = llama
        path = file.path if isinstance(file, Gguf) else find_model(file)
        self._closed = False
        self._free: weakref.finalize[..., Tokenizer] | None = None  # a model that was lent is freed by its owner
        if model is None:
            model = open_model(file.file.link if isinstance(file, Gguf) else path, path, vocabulary_only=True)
            self._free = weakref.finalize(self, llama.llama_model_free, model)
        self._vocabulary = llama.llama_model_get_vocab(model)
        self.n_vocab: int = llama.llama_vocab_n_tokens(self._vocabulary)
        self._pieces: dict[int, bytes] = {}
        self._ends: dict[int, bool] = {}
        if problem := self._unusable():
            self.close()
            raise UnsupportedError(f"the tokenizer of {path.name} {problem}", "use a GGUF of another model")
        self.bos = self._special(llama.llama_vocab_bos)
        self.eos = self._special(llama.llama_vocab_eos)
        self.eot = self._special(llama.llama_vocab_eot)
        self.add_bos: bool = self.bos is not None and llama.llama_vocab_get_add_bos(self._vocabulary)
        self._adds_space = self.decode(self.encode(_UNMERGED)) == " " + _UNMERGED
        self.chat_template: str | None = self._stored_template(model, None)
        self.tool_template: str | None = self._stored_template(model, b"tool_use")
        self.markup = "escape"
        self.thoughts = "keep"
        if self.chat_template is None:
            marks = [self.encode(mark) for mark in ("<|im_start|>", "<|im_end|>")]
            if all(len(mark) == 1 and self.is_control(mark[0]) for mark in marks):
                self.chat_template = CHATML

    def encode(self, text: str, special: bool = True, bos: bool = False, continues: bool = False) -> list[int]:
        """Token ids of `text`.

        `special`: text that spells a special token becomes that token. `bos`: a prompt begins here, so put BOS first if
        the model wants one and the text does not bring it. `continues`: the text continues other tokens, so
        SentencePiece vocabularies must not put their space before it. Raises DataError for half a surrogate pair.
        """
        if special and isinstance(text, Rendered) and self.control.spelled(text, text.plain):
            ids = self._encode_around(text, continues)
        else:
            ids = self._encode_at(text, special, continues)
        if bos and self.add_bos and ids[:1] != [self.bos]:
            ids.insert(0, self.bos)  # type: ignore[arg-type]
        return ids

    @cached_property
    def control(self) -> ControlTokens:
        """Tokens that only a template should write, by their texts."""
        llama = self._llama
        kinds = llama.LLAMA_TOKEN_ATTR_CONTROL | llama.LLAMA_TOKEN_ATTR_UNKNOWN
        texts = {}
        for token in range(self.n_vocab):
            if llama.llama_vocab_get_attr(self._vocab, token) & kinds:
                texts[llama.llama_vocab_get_text(self._vocab, token).decode("utf-8", "surrogateescape")] = token
        return ControlTokens(texts)

    @cached_property
    def longest(self) -> int:
        """Bytes of the longest token: text of more than n times as many characters is surely more than n tokens."""
        return max(len(self._piece(token)) for token in range(self.n_vocab))

    @cached_property
    def table(self) -> TokenTable:
        """What grammars know of all tokens; made once, which takes a moment."""
        pieces = [b"" if self.is_end(token) else self._piece(token) for token in range(self.n_vocab)]
        alone = np.full(256, -1, np.intp)
        for token, piece in enumerate(pieces):
            if len(piece) == 1:
                alone[piece[0]] = token
        begins = {begin: i for i, begin in enumerate(dict.fromkeys(piece[:2] for piece in pieces))}
        return TokenTable(
            begins=[*begins], begin_of=np.array([begins[piece[:2]] for piece in pieces], np.intp), alone=alone,
            hidden=np.array([bool(piece) and self.is_control(token) for token, piece in enumerate(pieces)]))

    def decode(self, ids: Iterable[int]) -> str:
        """The text of the tokens, special tokens spelled out, bytes that are not UTF-8 replaced."""
        return b"".join(map(self.piece, ids)).decode("utf-8", "replace")

    def piece(self, token: int) -> bytes:
        """The bytes of one token: what llama.cpp prints for it (a special token's own name)."""
        if token not in self._pieces:
            self._pieces[token] = self._piece(self._check(token))
        return self._pieces[token]

    def printed(self, token: int) -> bytes:
        """What a reader sees of a token: nothing of marks such as <|im_start|>."""
        return b"" if self.is_control(token) else self.piece(token)

    def is_end(self, token: int) -> bool:
        """Whether generation stops at this token (end of text, of turn, of message)."""
        if token not in self._ends:
            self._ends[token] = bool(self._llama.llama_vocab_is_eog(self._vocab, self._check(token)))
        return self._ends[token]

    def is_control(self, token: int) -> bool:
        """Whether the token is a mark such as <|im_start|>, not text."""
        return bool(self._llama.llama_vocab_is_control(self._vocab, self._check(token)))

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = False,
        enable_thinking: bool | None = None,
    ) -> Rendered:
        """The conversation as text, as transformers' `apply_chat_template` writes it; `encode` knows its messages.

        OpenAI's liberties are taken out first, as llama.cpp's server does. Null fields are dropped, and content given
        as text parts is joined by line breaks. Arguments of tool calls given as JSON text become objects. Tools, calls
        and results are written into the messages where a template has no place for them (see `write_tools`).
        Raises UnsupportedError without a template that compiles, DataError for messages that the template refuses.
        """
        template = self.tool_template if tools and self.tool_template else self.chat_template
        if template is None:
            raise UnsupportedError("the model has no chat template", "give it plain text, or use a chat model")
        from .chat_template import fill, literals, takes_system

        bos, eos = ("" if token is None else self.decode([token]) for token in (self.bos, self.eos))
        tools = [in_order(tool) for tool in tools] if tools else None
        plain = write_tools(template, [_plain(message) for message in messages], tools, takes_system)
        given: dict[str, Any] = {"messages": plain, "tools": tools}
        settings: dict[str, Any] = {"add_generation_prompt": add_generation_prompt, "bos_token": bos, "eos_token": eos}
        if enable_thinking is not None:  # a template asks whether it is defined
            settings["enable_thinking"] = enable_thinking
        if self.markup == "parse":
            return Rendered(fill(template, **given, **settings))
        stand_ins = StandIns(self.control, template, literals, given)
        return stand_ins.show(fill(template, **stand_ins.hide(given), **settings))

    def close(self) -> None:
        """Frees llama.cpp's vocabulary; the tokenizer cannot be used afterwards."""
        self._closed = True
        if self._free is not None:
            self._free()

    @property
    def vocabulary(self) -> Any:
        """llama.cpp's pointer to it."""
        return self._vocab

    @property
    def _vocab(self) -> Any:
        if self._closed:
            raise ValueError("this Tokenizer is closed")
        return self._vocabulary

    def _encode_at(self, text: str, special: bool, continues: bool) -> list[int]:
        if continues and self._adds_space:
            # After an unmergeable character the text stands within a text; cut that character and its space off again.
            return self._encode(_UNMERGED + text, special)[len(self._encode(_UNMERGED, special)) :]
        return self._encode(text, special)

    def _encode_around(self, text: Rendered, continues: bool) -> list[int]:
        """The template's control tokens, and what is between them as text, as llama.cpp cuts it."""
        llama = self._llama
        ids: list[int] = []
        end = 0
        strip_next = False
        for place, spelled in [*self.control.split(text, text.plain), (len(text), "")]:
            between = str(text)[end:place]
            token = self.control.ids.get(spelled)
            attributes = 0 if token is None else llama.llama_vocab_get_attr(self._vocab, token)
            if strip_next:
                between = between.lstrip(_SPACES)
            if attributes & llama.LLAMA_TOKEN_ATTR_LSTRIP:
                between = between.rstrip(_SPACES)
            if between:
                ids += self._encode_at(between, False, continues and end == 0)
            if token is not None:
                ids.append(token)
            strip_next = bool(attributes & llama.LLAMA_TOKEN_ATTR_RSTRIP)
            end = place + len(spelled)
        return ids

    def _encode(self, text: str, special: bool) -> list[int]:
        return cut(self._llama, self._vocab, text, special)

    def _piece(self, token: int) -> bytes:
        return piece_of(self._llama, self._vocab, token)

    def _check(self, token: int) -> int:
        if not 0 <= token < self.n_vocab:
            raise ValueError(f"token {token} is outside the vocabulary of {self.n_vocab}")
        return int(token)

    def _special(self, of: Any) -> int | None:
        token = int(of(self._vocab))
        return token if 0 <= token < self.n_vocab else None

    def _unusable(self) -> str:
        """Why llama.cpp would end the process at some text, "" if it would not."""
        kind = self._llama.llama_vocab_type(self._vocab)
        if kind == self._llama.LLAMA_VOCAB_TYPE_BPE:
            return ""
        if kind != self._llama.LLAMA_VOCAB_TYPE_SPM:
            return "is neither byte-level BPE nor SentencePiece"
        missing = {b"<0x%02X>" % byte for byte in range(256)}
        for token in range(self.n_vocab):
            missing.discard(self._llama.llama_vocab_get_text(self._vocab, token))
            if not missing:
                return ""
        return f"lacks {len(missing)} of the 256 byte tokens"

    def _stored_template(self, model: Any, name: bytes | None) -> str | None:
        template = self._llama.llama_model_chat_template(model, name)
        return template.decode("utf-8", "replace") if template else None


def cut(llama: ModuleType, vocabulary: Any, text: str, special: bool = False, marks: bool = False) -> list[int]:
    """Token ids of `text` by a llama_vocab. special: text that spells a special token becomes that token. marks: those
    that the vocabulary wants around a text are added. Raises DataError for half a surrogate pair.
    """
    try:
        data = text.encode("utf-8")
    except UnicodeEncodeError as error:
        half = text[error.start]
        raise DataError(f"character {error.start} of the text is half a surrogate pair ({half!r})") from None
    room = len(data) + 8
    while True:
        buffer = np.empty(room, np.int32)
        into = buffer.ctypes.data_as(ctypes.POINTER(ctypes.c_int32))
        count = llama.llama_tokenize(vocabulary, data, len(data), into, room, marks, special)
        if count >= 0:
            ids: list[int] = buffer[:count].tolist()
            return ids
        room = -count  # normalization made it longer than its bytes


def piece_of(llama: ModuleType, vocabulary: Any, token: int) -> bytes:
    """The bytes of a token of a llama_vocab, a mark's name spelled out."""
    room = 64
    while True:
        text = ctypes.create_string_buffer(room)
        length = llama.llama_token_to_piece(vocabulary, token, text, room, 0, True)
        if length >= 0:
            return text.raw[:length]
        room = -length


def _plain(message: Mapping[str, Any]) -> dict[str, Any]:
    plain = {key: value for key, value in message.items() if value is not None}
    if isinstance(plain.get("content"), list):
        plain["content"] = "\n".join(map(_part, plain["content"]))
    if "tool_calls" in plain:
        plain["tool_calls"] = read_calls(plain["tool_calls"])
    return plain


def read_calls(calls: Any) -> list[dict[str, Any]]:
    """A message's calls of tools, with their arguments as objects. Raises DataError."""
    if not isinstance(calls, list):
        raise DataError("tool_calls is not a list", "write a list of objects, each with a function")
    return list(map(_call, calls))


def _part(part: Any) -> str:
    if not (isinstance(part, Mapping) and part.get("type") == "text" and isinstance(part.get("text"), str)):
        kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
        raise DataError(f"a message's content has a part of type {kind!r}", "only text parts can be used")
    return str(part["text"])


def _call(call: Any) -> dict[str, Any]:
    function = call.get("function", call) if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise DataError("a tool call has no function with a name", "write objects as in OpenAI's chat format")
    if not isinstance(function.get("arguments"), str):
        return dict(call)
    try:
        function = {**function, "arguments": json.loads(function["arguments"])}
    except (ValueError, RecursionError):
        start = function["arguments"][:40]
        what = f"the arguments of tool call {function['name']!r} are not JSON ({start!r})"
        raise DataError(what, "write an object, or an object as JSON text") from None
    return {**call, "function": function} if "function" in call else function
