"""The vocabulary cut to what a text uses: fewer rows in embedding and head, the same tokens for the same text.

Both tokenizers take a word's letters and merge, again and again, the adjacent pair that comes first: in byte-level BPE
the one of lowest rank among the listed merges, in SentencePiece (as llama.cpp runs it) the one whose product has the
highest score; among equals the leftmost. What is kept follows from three facts.

1. A token has one path. No merge crosses the ends of a token that a word ends up in, so the pairs taken within it are
   those that its letters alone would take, whatever stands around it. A kept token keeps all tokens on its path.
2. A word whose tokens are all kept gets the same tokens. The pairs that may be merged are a part of those of before, in
   the same order, and have all that the old run took. What came first among more comes first among fewer; and where the
   old run found no pair left to merge, there is none now. So merges that lead to others may go or stay.
3. No text is lost. A merge stays only if its product is a kept token, and single bytes are always kept: what merging
   leaves is a token, or a character that SentencePiece spells in bytes.

We keep every merge between kept tokens, also those on no path: other words then take fewer tokens.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import DataError, UnsupportedError, UsageError
from ...formats.gguf import write_gguf
from ...llamacpp.tokenizer import Tokenizer
from ..source.floats import Floats

_AT = "tokenizer.ggml."
_TOKENS = f"{_AT}tokens"
_MERGES = f"{_AT}merges"
_SUPPRESSED = f"{_AT}suppress_tokens"
_A_TOKEN_EACH = (_TOKENS, f"{_AT}scores", f"{_AT}token_type")
_WHOLE = ("tokenizer.huggingface.json", "tokenizer.rwkv.world")  # copies of the uncut vocabulary
_ROWS = ("token_embd.weight", "output.weight", "per_layer_token_embd.weight")
# llama.cpp's token types: unknown, control, user-defined, byte
_NORMAL = 1
_SPECIAL = (2, 3, 4, 6)
_PLACEHOLDER = re.compile(r"<\|?(unused|reserved)\w*\d+\|?>")  # control tokens without a meaning: gemma3 has 6,242
_TALK = [{"role": role, "content": "Hi"} for role in ("system", "user", "assistant", "user")]


@dataclass(frozen=True, eq=False)
class Trimmed:
    """What trimming did. `kept`: int32 [V'], the old id of every new one, ascending.

    coverage: share of the texts' tokens (by the old tokenizer) that are kept. length_before, length_after: tokens a
    text, by the old tokenizer and by the new.
    """

    kept: NDArray[np.int32]
    tokens_before: int
    tokens_after: int
    merges_before: int
    merges_after: int
    coverage: float
    length_before: float
    length_after: float

    def to_json(self) -> dict[str, Any]:
        return {name: value for name, value in asdict(self).items() if name != "kept"}


def trim(model: Floats, texts: Iterable[str], size: int) -> tuple[Floats, Trimmed]:
    """`model` with exactly `size` tokens, ids renumbered in the old order.

    First come the tokens that must stay: special ones (but not placeholders such as <unused7>), single bytes, those
    that a key names (bos, eos, ...) and those that the chat template writes around a conversation. Then those of
    `texts`, the most frequent first; then, if there are places left, those that the tokenizer merges first, for these
    are the most frequent where it was made. With each comes what is on its path; where that is more than there are
    places for, it is passed over.

    Raises UsageError for a size below what must stay or not below the vocabulary, DataError for texts without a token,
    UnsupportedError for a tokenizer that is neither byte-level BPE nor SentencePiece.
    """
    vocabulary = _Vocabulary(model)
    if size >= (total := len(vocabulary.tokens)):
        raise UsageError(f"the vocabulary is to have {size} tokens, the model has {total}", "ask for fewer")
    texts = list(texts)
    with tokenizer_of(model) as tokenizer:
        encoded = [tokenizer.encode(text) for text in texts]
        ends = {name: token for name in ("bos", "eos") if (token := getattr(tokenizer, name)) is not None}
        stay = _must_stay(model, vocabulary, tokenizer) | set(ends.values())
    counts = np.bincount(np.fromiter(chain.from_iterable(encoded), np.int64), minlength=total)
    if not (amount := int(counts.sum())):
        raise DataError("the texts whose tokens are to be kept are empty", "give some text to --vocab-from")
    kept = np.array(_choose(vocabulary, stay, counts, size), np.int32)
    trimmed = _cut(model, kept, ends)
    with tokenizer_of(trimmed) as tokenizer:
        after = sum(len(tokenizer.encode(text)) for text in texts)
    merges_before, merges_after = (len(keys.get(_MERGES, ())) for keys in (model.metadata, trimmed.metadata))
    return trimmed, Trimmed(kept, total, size, merges_before, merges_after, float(counts[kept].sum() / amount),
                            amount / len(texts), after / len(texts))


@contextmanager
def tokenizer_of(model: Floats) -> Iterator[Tokenizer]:
    """The model's tokenizer in llama.cpp, from a file with its metadata and no weights."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.gguf"
        write_gguf(path, model.architecture, model.metadata, {}, model.types)
        tokenizer = Tokenizer(path)
    try:
        yield tokenizer
    finally:
        tokenizer.close()


class _Vocabulary:
    """Tokens, and the order in which pairs are merged to them.

    `firsts` [V]: when each token's last merge comes, the lower the sooner; infinite for a token that no merge makes.
    """

    def __init__(self, model: Floats) -> None:
        keys = model.metadata
        if (kind := keys.get(f"{_AT}model")) not in ("gpt2", "llama"):
            raise UnsupportedError(f"the vocabulary of a tokenizer {kind!r} cannot be trimmed",
                                   "byte-level BPE ('gpt2') and SentencePiece ('llama') can be")
        self.tokens: list[str] = keys[_TOKENS]
        self.ids = {text: token for token, text in enumerate(self.tokens)}
        self.types: list[int] = keys.get(f"{_AT}token_type", [_NORMAL] * len(self.tokens))
        self.ranks: dict[tuple[str, str], float] | None = None
        self.firsts = [float("inf")] * len(self.tokens)
        if kind == "gpt2":
            self.ranks = {}
            for rank, pair in enumerate(map(_pair, keys[_MERGES])):
                if (product := self.ids.get("".join(pair))) is not None:
                    self.ranks.setdefault(pair, rank)
                    self.firsts[product] = min(self.firsts[product], rank)
        else:
            self.scores: list[float] = keys.get(f"{_AT}scores", [0.0] * len(self.tokens))
            for token, score in enumerate(self.scores):
                if self.types[token] == _NORMAL:
                    self.firsts[token] = -score

    def order(self, left: str, right: str) -> float | None:
        """When this pair is merged, the lower the sooner; None: never."""
        if self.ranks is not None:
            return self.ranks.get((left, right))
        product = self.ids.get(left + right)
        return None if product is None else -self.scores[product]

    def path(self, token: int) -> set[int]:
        """The token, its letters, and all tokens between that merging passes; the token alone if no merges make it."""
        parts = list(self.tokens[token])
        passed = set(parts)
        while len(parts) > 1:
            orders = ((self.order(*parts[i : i + 2]), i) for i in range(len(parts) - 1))
            first = min(((order, i) for order, i in orders if order is not None), default=None)
            if first is None:
                return {token}
            i = first[1]
            parts[i : i + 2] = [parts[i] + parts[i + 1]]
            passed.add(parts[i])
        return {token} | {self.ids[text] for text in passed if text in self.ids}


def _pair(merge: str) -> tuple[str, str]:
    """Splits a pair as llama.cpp does: at the first space that is not its first letter."""
    at = merge.find(" ", 1)
    return merge[:at], merge[at + 1 :]


def _must_stay(model: Floats, vocabulary: _Vocabulary, tokenizer: Tokenizer) -> set[int]:
    stay = set()
    for token, (text, kind) in enumerate(zip(vocabulary.tokens, vocabulary.types, strict=True)):
        # llama.cpp knows some marks by their text, whatever type the file gives them
        special = kind in _SPECIAL or tokenizer.is_control(token) or tokenizer.is_end(token)
        if (special and not _PLACEHOLDER.fullmatch(text)) or len(tokenizer.piece(token)) == 1:
            stay.add(token)
    stay |= {value for key, value in model.metadata.items() if _names_a_token(key) and value < len(vocabulary.tokens)}
    stay.update(chain.from_iterable(_frames(tokenizer)))
    if vocabulary.ranks:  # llama.cpp wants merges, and a GGUF has no empty list
        stay.add(vocabulary.ids["".join(next(iter(vocabulary.ranks)))])
    return stay


def _names_a_token(key: str) -> bool:
    return key.startswith(_AT) and key.endswith("_token_id")


def _frames(tokenizer: Tokenizer) -> Iterator[list[int]]:
    """Tokens of conversations with and without a system line: every row of training has these around it."""
    for messages in (_TALK, _TALK[1:]):
        try:
            text = tokenizer.render(messages, add_generation_prompt=True)
        except (DataError, UnsupportedError):  # some templates take no system line, some models have no template
            continue
        yield tokenizer.encode(text, bos=True)


def _choose(vocabulary: _Vocabulary, stay: Iterable[int], counts: NDArray[np.int64], size: int) -> list[int]:
    kept: set[int] = set().union(*map(vocabulary.path, stay))
    if len(kept) > size:
        raise UsageError(f"the vocabulary is to have {size} tokens, but {len(kept)} must stay (special tokens, "
                         "bytes, the chat template's)", f"ask for {len(kept)} or more")
    order = sorted(range(len(counts)), key=lambda token: (-counts[token], vocabulary.firsts[token], token))
    while len(kept) < size:  # again for what was passed over: the shortest of these then has its path kept, and fits
        for token in order:
            if token not in kept and len(path := vocabulary.path(token) - kept) <= size - len(kept):
                kept |= path
            if len(kept) == size:
                break
    return sorted(kept)


def _cut(model: Floats, kept: NDArray[np.int32], ends: dict[str, int]) -> Floats:
    """The model with the tokens `kept`. ends: which tokens begin and end a text, also where no key says so.

    Where no key does, llama.cpp takes certain ids, which other tokens may have now.
    """
    new = {int(old): token for token, old in enumerate(kept)}
    metadata: dict[str, Any] = {}
    for key, value in (model.metadata | {f"{_AT}{name}_token_id": token for name, token in ends.items()}).items():
        if key in _A_TOKEN_EACH:
            metadata[key] = [value[old] for old in kept]
        elif key == _SUPPRESSED:
            metadata[key] = [new[old] for old in value if old in new]
        elif _names_a_token(key):
            if value in new:  # not so for an id outside the vocabulary, which llama.cpp ignores
                metadata[key] = new[value]
        elif key not in _WHOLE:
            metadata[key] = value
    if _MERGES in metadata:
        known = set(metadata[_TOKENS])
        metadata[_MERGES] = [merge for merge in metadata[_MERGES]
                             if known.issuperset((*_pair(merge), "".join(_pair(merge))))]
    if (key := f"{model.architecture}.vocab_size") in metadata:
        metadata[key] = len(kept)
    tensors = {name: array[kept] if name in _ROWS else array for name, array in model.tensors.items()}
    return replace(model, metadata=metadata, tensors=tensors)
