"""An encoder's byte-level BPE (tokenizer.json) as the tokenizer.* keys of a GGUF, as llama.cpp's converter writes them.

llama.cpp cuts the text as GPT-2 does; a tokenizer that does it otherwise is refused. Of a text that is not in Unicode's
form NFC the tokens may differ, for a GGUF cannot say that it becomes so.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from .checkpoint import as_written
from .marks import CONTROL, mark_keys, read_tokenizer, refused, token_rows, usual_type

_LIKE_A_MARK = re.compile(r"<pad>|<mask>|<\|.*\|>|<unused.*>")  # which llama.cpp's converter takes for marks


def read(folder: Path, rows: int, pre: str) -> dict[str, Any]:
    """Every tokenizer.* key for an embedding of `rows` rows; rows without a token get unused ones. pre: llama.cpp's
    name of the way in which the text is cut.

    UnsupportedError for a tokenizer that llama.cpp does not compute, FormatError for a missing or damaged file.
    """
    path, whole, config = read_tokenizer(folder)
    with as_written(path, "tokenizers"):
        return _keys(path, whole, config, rows, pre)


def _keys(path: Path, whole: dict[str, Any], config: dict[str, Any], rows: int, pre: str) -> dict[str, Any]:
    _refuse_others(path, whole)
    added = {token["content"]: token for token in whole.get("added_tokens") or []}
    ids = whole["model"]["vocab"] | {text: token["id"] for text, token in added.items()}
    tokens, types = token_rows(path, ids, rows, lambda text: _type(text, added))
    merges = [merge if isinstance(merge, str) else " ".join(part.replace(" ", "\u0120") for part in merge)
              for merge in whole["model"]["merges"]]
    keys: dict[str, Any] = {"model": "gpt2", "pre": pre, "tokens": tokens, "token_type": types, "merges": merges}
    keys |= mark_keys(path, whole, config, ids)
    return {f"tokenizer.ggml.{name}": value for name, value in keys.items()}


def _refuse_others(path: Path, whole: dict[str, Any]) -> None:
    cut = whole.get("pre_tokenizer") or {}
    for found, known in ((whole["model"].get("type"), "BPE"), (cut.get("type"), "ByteLevel")):
        if found != known:
            raise refused(path, f"it has {found}, known is {known}")
    if cut.get("add_prefix_space") or not cut.get("use_regex", True):
        raise refused(path, "it does not cut a text as GPT-2 does")
    if (normalizer := (whole.get("normalizer") or {}).get("type", "NFC")) != "NFC":
        raise refused(path, f"it has {normalizer}, known is NFC")


def _type(text: str, added: dict[str, dict[str, Any]]) -> int:
    return CONTROL if text in added and _LIKE_A_MARK.fullmatch(text) else usual_type(added.get(text))
