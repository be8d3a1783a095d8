"""BERT's tokenizer (WordPiece) with the place of each token in the text, from the vocabulary of a GGUF.

It computes what the library `tokenizers` does, with which encoders were trained. llama.cpp's own gives no places, and
other tokens for Korean, vowel signs of Indic scripts and some spaces. Characters that came after Unicode 8, which
`tokenizers` does not know and no vocabulary holds, may be cut apart here and not there.

A text is cleaned, lower-cased and freed of accents, cut at spaces, punctuation and Chinese characters; a word becomes
the longest tokens that fit, from its beginning on, or one [UNK].
"""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import cast

from ..errors import DataError, FormatError, UnsupportedError
from ..formats.gguf import ENCODER, TABLE, Gguf, check_encoder, check_table, open_gguf
from ..formats.named import find_model

LONGEST_WORD = 100  # characters; a longer one is [UNK]
CONTROL = 3  # a token's type in a GGUF: a mark such as [CLS]
UNUSED = 5
MARK = "▁"  # before a token that begins a word
_KEPT_WORDS = 1 << 16  # words whose tokens are remembered
_CHINESE = ((0x4E00, 0x9FFF), (0x3400, 0x4DBF), (0x20000, 0x2A6DF), (0x2A700, 0x2B73F), (0x2B740, 0x2B81F),
            (0x2B920, 0x2CEAF), (0xF900, 0xFAFF), (0x2F800, 0x2FA1F))

Place = tuple[int, int]


@dataclass(frozen=True)
class Encoded:
    """Token ids of a text, and the characters [begin, end) that each came from; (0, 0) for [CLS] and [SEP]."""

    ids: list[int]
    places: list[Place]


class WordPiece:
    """The tokenizer of an encoder's GGUF, open or named. It reads no weights.

    cls, sep, unk, pad: ids of the marks. n_vocab: of tokens. Raises FormatError or UnsupportedError for a file that is
    no whole encoder.
    """

    def __init__(self, file: str | os.PathLike[str] | Gguf) -> None:
        gguf = file if isinstance(file, Gguf) else open_gguf(find_model(file))
        (check_table if gguf.architecture == TABLE else check_encoder)(gguf)
        keys = gguf.metadata
        if (kind := keys["tokenizer.ggml.model"]) != ENCODER:
            raise UnsupportedError(f"{gguf.path} has a tokenizer of kind {kind}, not WordPiece",
                                   "take an encoder with BERT's tokenizer, such as minilm")
        tokens = cast(list[str], keys["tokenizer.ggml.tokens"])
        types = cast(list[int], keys.get("tokenizer.ggml.token_type", [1] * len(tokens)))
        self.n_vocab = len(tokens)
        self.texts = tokens
        self._begins: dict[str, int] = {}
        self._continues: dict[str, int] = {}
        for i, (text, kind) in enumerate(zip(tokens, types, strict=True)):
            if kind not in (CONTROL, UNUSED):
                (self._begins if text.startswith(MARK) else self._continues)[text.removeprefix(MARK)] = i
        self._longest = max(map(len, tokens))
        lowers = keys.get("tokenizer.ggml.normalizer.lowercase", True)
        self.lowers = bool(lowers)
        self._strips = bool(keys.get("tokenizer.ggml.normalizer.strip_accents", lowers))
        self.cls, self.sep, self.unk, self.pad = (
            self._mark(gguf, name, usual) for name, usual in
            (("bos", 101), ("seperator", 102), ("unknown", 100), ("padding", 0)))  # spelled so in a GGUF
        self._normal: dict[str, str] = {}
        self._words: dict[str, tuple[tuple[int, int, int], ...]] = {}

    def _mark(self, gguf: Gguf, name: str, usual: int) -> int:
        found = cast(int, gguf.metadata.get(f"tokenizer.ggml.{name}_token_id", usual))
        if not 0 <= found < self.n_vocab:
            raise FormatError(f"{gguf.path}: the {name} token is {found}, the vocabulary has {self.n_vocab}",
                              "convert the model again")
        return found

    def is_reached(self, token: int) -> bool:
        """Whether the text of a token, alone or after others in a word, is cut nowhere: a text may hold the token."""
        text = self.texts[token].removeprefix(MARK)
        return [word for word, _ in self._cut(text)] == [text]

    def encode(self, text: str) -> list[int]:
        """Token ids of a text between [CLS] and [SEP]; what spells a mark stays text."""
        return self.encode_places(text).ids

    def decode(self, ids: Iterable[int]) -> str:
        """The text of tokens: normalised, with a space before each word, and marks spelled out."""
        return "".join(self.texts[token].replace(MARK, " ") for token in ids).strip()

    def close(self) -> None:
        """Does nothing: there is nothing of llama.cpp to free."""

    def encode_places(self, text: str) -> Encoded:
        """Token ids of a text between [CLS] and [SEP], and the characters that each came from.

        Raises DataError for half a surrogate pair.
        """
        ids = [self.cls]
        places = [(0, 0)]
        for word, at in self._cut(text):
            for token, begin, end in self._pieces(word):
                ids.append(token)
                places.append((at[begin], at[end - 1] + 1))
        return Encoded([*ids, self.sep], [*places, (0, 0)])

    def _cut(self, text: str) -> Iterator[tuple[str, list[int]]]:
        """Yields the words of a text, normalised, each with the place of origin of its characters."""
        word = ""
        at: list[int] = []
        for place, character in enumerate(text):
            for normal in self._normalised(character):
                is_space = normal.isspace()
                is_sign = normal < "\x7f" and not normal.isalnum() and normal > " "  # ASCII's, such as $ and +
                stands_alone = is_space or is_sign or unicodedata.category(normal).startswith("P")
                if stands_alone and word:
                    yield word, at
                    word = ""
                    at = []
                if stands_alone and not is_space:
                    yield normal, [place]
                elif not is_space:
                    word += normal
                    at.append(place)
        if word:
            yield word, at

    def _normalised(self, character: str) -> str:
        found = self._normal.get(character)
        if found is None:
            found = self._normal[character] = self._normalise(character)
        return found

    def _normalise(self, character: str) -> str:
        """What becomes of a character: nothing, itself, several, or itself between two spaces."""
        kind = unicodedata.category(character)
        if kind == "Cs":
            raise DataError(f"a text has half a surrogate pair ({character!r})", "write it as UTF-8")
        if character in "\t\n\r" or (character.isspace() and kind != "Cc"):
            return " "
        if kind in ("Cc", "Cf", "Co") or character == "\ufffd":
            return ""
        found = character
        if self._strips:
            apart = unicodedata.normalize("NFD", character)
            found = "".join(part for part in apart if unicodedata.category(part) != "Mn")
        if self.lowers:
            found = found.lower()
        return f" {found} " if any(low <= ord(character) <= high for low, high in _CHINESE) else found

    def _pieces(self, word: str) -> tuple[tuple[int, int, int], ...]:
        """(token, begin, end) in a word."""
        found = self._words.get(word)
        if found is None:
            found = self._matched(word)
            if len(self._words) >= _KEPT_WORDS:
                self._words.clear()
            self._words[word] = found
        return found

    def _matched(self, word: str) -> tuple[tuple[int, int, int], ...]:
        unknown = ((self.unk, 0, len(word)),)
        if len(word) > LONGEST_WORD:
            return unknown
        pieces = []
        begin = 0
        while begin < len(word):
            known = self._continues if begin else self._begins
            ends = range(min(len(word), begin + self._longest), begin, -1)
            end = next((end for end in ends if word[begin:end] in known), 0)
            if not end:
                return unknown
            pieces.append((known[word[begin:end]], begin, end))
            begin = end
        return tuple(pieces)
