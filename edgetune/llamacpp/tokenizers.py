"""The tokenizer of a model: llama.cpp's for one that writes text, one with places for an encoder."""

from __future__ import annotations

import os
import re
import weakref
from collections.abc import Iterable, Sequence
from typing import Any
from unicodedata import normalize

from ..errors import UnsupportedError
from ..formats.encoder_tokenizers import PRE_OF_CHARACTERS, USER_DEFINED
from ..formats.gguf import ENCODER, ENCODERS, Gguf, check_encoder, open_gguf
from ..formats.named import find_model
from .library import load, open_model
from .tokenizer import Tokenizer, cut, piece_of
from .wordpiece import Encoded, Place, WordPiece

_SPACE = b" \t\n\r\v\f"
_WORD = re.compile(" [^ ]*")
_BYTE = re.compile(b"<0x([0-9A-F]{2})>")


class Pieces:
    """The tokenizer of an encoder's GGUF with BPE or unigrams, open or named, and the place of each token. It reads no
    weights. llama.cpp gives tokens without places. But the bytes of all tokens are those of the text, apart from
    space; unigrams cut a text that is normalised first. So places are found by spelling both. A vocabulary whose words
    begin with a space gets a text word by word, as it was learned; llama.cpp would merge spaces.

    cls, sep: ids of the marks around a text. n_vocab: of tokens. Raises FormatError or UnsupportedError for a file that
    is no whole encoder, or whose vocabulary puts no two marks around a text.
    """

    def __init__(self, file: str | os.PathLike[str] | Gguf) -> None:
        gguf = file if isinstance(file, Gguf) else open_gguf(find_model(file))
        check_encoder(gguf)
        self._llama = load()
        model = open_model(gguf.file.link, gguf.path, vocabulary_only=True)
        self._free = weakref.finalize(self, self._llama.llama_model_free, model)
        self._vocabulary = self._llama.llama_model_get_vocab(model)
        self._normalises = self._llama.llama_vocab_type(self._vocabulary) == self._llama.LLAMA_VOCAB_TYPE_UGM
        self.n_vocab: int = self._llama.llama_vocab_n_tokens(self._vocabulary)
        self._unk = gguf.metadata.get("tokenizer.ggml.unknown_token_id", 2) if self._normalises else None
        self._spelled: dict[int, bytes] = {}
        self._has_characters = gguf.metadata.get("tokenizer.ggml.pre") == PRE_OF_CHARACTERS
        self._whole = self._whole_tokens(gguf)
        marks = cut(self._llama, self._vocabulary, "", marks=True)
        if len(marks) != 2:
            self.close()
            raise UnsupportedError(f"the tokenizer of {gguf.path} puts {len(marks)} marks around a text",
                                   "take an encoder that has one before it and one after it")
        self.cls, self.sep = marks

    def encode(self, text: str) -> list[int]:
        """Token ids of a text between the marks; what spells a mark stays text. Raises DataError for half a surrogate
        pair.
        """
        if not self._free.alive:
            raise ValueError("this tokenizer is closed")
        return [self.cls, *self._cut(text), self.sep]

    def encode_places(self, text: str) -> Encoded:
        """The same, and the characters that each token came from, without space; (0, 0) of one that has none."""
        ids = self.encode(text)
        spelled = [b"" if token == self._unk else self._piece(token).translate(None, _SPACE) for token in ids[1:-1]]
        places = self._places(spelled, text)
        for i, token in enumerate(ids[1:-1]):
            if places[i] == (0, 0) and (spelled[i] or token == self._unk):
                places[i] = _between(text, places, i)
        return Encoded(ids, [(0, 0), *places, (0, 0)])

    def decode(self, ids: Iterable[int]) -> str:
        """The text of tokens, marks spelled out."""
        return b"".join(map(self._piece, ids)).decode("utf-8", "replace").strip()

    def close(self) -> None:
        """Frees llama.cpp's vocabulary; the tokenizer cannot be used afterwards."""
        self._free()

    def _whole_tokens(self, gguf: Gguf) -> re.Pattern[str] | None:
        """Finds what is one token in any place. None where llama.cpp itself cuts as the vocabulary was learned."""
        keys = gguf.metadata
        if not self._has_characters or not keys.get("tokenizer.ggml.add_space_prefix"):
            return None
        types: Any = keys["tokenizer.ggml.token_type"]
        texts = [self._llama.llama_vocab_get_text(self._vocabulary, token).decode("utf-8", "replace")
                 for token, type in enumerate(types) if type == USER_DEFINED]
        return re.compile("|".join(map(re.escape, sorted(texts, key=len, reverse=True))) or r"(?!)")

    def _cut(self, text: str) -> list[int]:
        if self._whole is None:
            return cut(self._llama, self._vocabulary, text)
        text = text.replace("▁", " ")
        words: list[str] = []
        begin = 0
        for found in self._whole.finditer(text):
            words += _words(text[begin:found.start()])
            words.append(found[0])
            begin = found.end()
        words += _words(text[begin:])
        return [token for word in words for token in cut(self._llama, self._vocabulary, word)]

    def _piece(self, token: int) -> bytes:
        if token not in self._spelled:
            piece = piece_of(self._llama, self._vocabulary, token)
            is_byte = _BYTE.fullmatch(piece) if self._has_characters else None
            self._spelled[token] = bytes.fromhex(is_byte[1].decode()) if is_byte else piece
        return self._spelled[token]

    def _places(self, spelled: Sequence[bytes], text: str) -> list[Place]:
        """The characters that each piece came from; (0, 0) of one that the text does not spell."""
        wanted = b""
        origins: list[int] = []  # of each byte: its character
        for place, character in enumerate(text):
            normal = normalize("NFKC", character) if self._normalises else character
            letters = normal.encode().translate(None, _SPACE)
            wanted += letters
            origins += [place] * len(letters)
        if (found := b"".join(spelled)) != wanted:
            origins = _matched(found, wanted, origins)
        places = []
        end = 0
        for piece in spelled:
            begin, end = end, end + len(piece)
            own = [origin for origin in origins[begin:end] if origin >= 0]
            places.append((own[0], own[-1] + 1) if own else (0, 0))
        return places


def _words(text: str) -> list[str]:
    """Each with its space in front; the first gets one."""
    return _WORD.findall(text if not text or text.startswith(" ") else " " + text)


def _between(text: str, places: Sequence[Place], i: int) -> Place:
    """What stands between the neighbours of a token, up to a space."""
    begin = max((end for _, end in places[:i]), default=0)
    end = next((begin for begin, end in places[i + 1:] if end), len(text))
    begin = end - len(text[begin:end].lstrip())
    return begin, begin + len(text[begin:end].partition(" ")[0])


def _matched(found: bytes, wanted: bytes, origins: Sequence[int]) -> list[int]:
    """The character of each byte that was found; -1 of one that was not wanted."""
    from difflib import SequenceMatcher  # here: memory of a training that needs none
    out = [-1] * len(found)
    for block in SequenceMatcher(None, found, wanted, autojunk=False).get_matching_blocks():
        out[block.a:block.a + block.size] = origins[block.b:block.b + block.size]
    return out


EncoderTokenizer = WordPiece | Pieces
AnyTokenizer = Tokenizer | EncoderTokenizer


def open_tokenizer(file: str | os.PathLike[str] | Gguf, markup: str = "escape",
                   thoughts: str = "keep") -> AnyTokenizer:
    """The tokenizer of a GGUF, open or named. markup, thoughts: as of Tokenizer. Raises the errors of either."""
    gguf = file if isinstance(file, Gguf) else open_gguf(find_model(file))
    if gguf.metadata.get("general.architecture") in ENCODERS:
        return open_encoder_tokenizer(gguf)
    found = Tokenizer(gguf)
    found.markup = markup
    found.thoughts = thoughts
    return found


def open_encoder_tokenizer(gguf: Gguf) -> EncoderTokenizer:
    """That of an encoder. Raises FormatError or UnsupportedError for a file that is no whole one."""
    is_wordpiece = gguf.metadata.get("tokenizer.ggml.model", ENCODER) == ENCODER
    return WordPiece(gguf) if is_wordpiece else Pieces(gguf)
