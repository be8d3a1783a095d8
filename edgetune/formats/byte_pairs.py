"""An encoder's byte-level BPE (tokenizer.json) as the tokenizer.* keys of a GGUF, as llama.cpp's converter writes them.

llama.cpp cuts the text as GPT-2 does; a tokenizer that does it otherwise is refused. Of a text that is not in Unicode's
form NFC the tokens may differ, for a GGUF cannot say that it becomes so.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from ..errors import FormatError, UnsupportedError
from .checkpoint import AGAIN, as_written, read_json
from .wordpiece import CONTROL, NORMAL, UNUSED, USER_DEFINED

_MARKS = {"bos": ("bos", "cls"), "eos": ("eos", "sep"), "unknown": ("unk",), "seperator": ("sep",), "padding": ("pad",),
          "mask": ("mask",)}
"""GGUF's names of the marks, one spelled so there, and names in tokenizer_config.json, of which the first counts."""
_LIKE_A_MARK = re.compile(r"<pad>|<mask>|<\|.*\|>|<unused.*>")  # which llama.cpp's converter takes for marks


def read(folder: Path, rows: int, pre: str) -> dict[str, Any]:
    """Every tokenizer.* key for an embedding of `rows` rows; rows without a token get unused ones. pre: llama.cpp's
    name of the way in which the text is cut.

    UnsupportedError for a tokenizer that llama.cpp does not compute, FormatError for a missing or damaged file.
    """
    path = folder / "tokenizer.json"
    whole = read_json(path)
    config = read_json(folder / "tokenizer_config.json")
    if not whole or not config:
        raise FormatError(f"{folder} has no {'tokenizer_config' if whole else 'tokenizer'}.json",
                          "save the tokenizer again with transformers' AutoTokenizer and save_pretrained")
    with as_written(path, "tokenizers"):
        return _keys(path, whole, config, rows, pre)


def _keys(path: Path, whole: dict[str, Any], config: dict[str, Any], rows: int, pre: str) -> dict[str, Any]:
    _refuse_others(path, whole)
    added = {token["content"]: token for token in whole.get("added_tokens") or []}
    ids = whole["model"]["vocab"] | {text: token["id"] for text, token in added.items()}
    marks = {name: text for name, kinds in _MARKS.items() if (text := _mark(config, kinds)) in added}
    first, last, separators = _around(whole.get("post_processor") or {})
    if [first, last] != [marks.get("bos", ""), marks.get("eos", "")]:
        raise _refused(path, f"it puts {first!r:.40} and {last!r:.40} around a text")
    tokens, types = _tokens(path, ids, added, rows)
    merges = [merge if isinstance(merge, str) else " ".join(part.replace(" ", "\u0120") for part in merge)
              for merge in whole["model"]["merges"]]
    keys: dict[str, Any] = {"model": "gpt2", "pre": pre, "tokens": tokens, "token_type": types, "merges": merges}
    keys |= {f"{name}_token_id": ids[text] for name, text in marks.items()}
    keys |= {"add_bos_token": True, "add_eos_token": True, "add_sep_token": separators == 2}
    return {f"tokenizer.ggml.{name}": value for name, value in keys.items()}


def _mark(config: dict[str, Any], kinds: tuple[str, ...]) -> str:
    """The text of a mark; "" where there is none."""
    written = next((found for kind in kinds if (found := config.get(f"{kind}_token"))), "")
    return str(written["content"] if isinstance(written, dict) else written)


def _refuse_others(path: Path, whole: dict[str, Any]) -> None:
    cut = whole.get("pre_tokenizer") or {}
    for found, known in ((whole["model"].get("type"), "BPE"), (cut.get("type"), "ByteLevel")):
        if found != known:
            raise _refused(path, f"it has {found}, known is {known}")
    if cut.get("add_prefix_space") or not cut.get("use_regex", True):
        raise _refused(path, "it does not cut a text as GPT-2 does")
    if (normalizer := (whole.get("normalizer") or {}).get("type", "NFC")) != "NFC":
        raise _refused(path, f"it has {normalizer}, known is NFC")


def _around(processor: dict[str, Any]) -> tuple[str, str, int]:
    """The marks before and after a text, and how many stand between two texts; "" for none."""
    if processor.get("type") == "RobertaProcessing":
        return processor["cls"][0], processor["sep"][0], 2
    marks = [piece.get("SpecialToken", {}).get("id", "") for piece in processor.get("single") or [{}]]
    return marks[0], marks[-1], max(0, len(processor.get("pair") or []) - 4)


def _tokens(path: Path, ids: dict[str, int], added: dict[str, dict[str, Any]],
            rows: int) -> tuple[list[str], list[int]]:
    """Text and type of every row."""
    texts = [f"[PAD{i}]" for i in range(rows)]
    types = [UNUSED] * rows
    for text, i in ids.items():
        if not 0 <= i < rows:
            raise FormatError(f"{path} has token {i}, the embedding has {rows} rows", AGAIN)
        texts[i] = text
        types[i] = NORMAL
        if text in added:
            types[i] = CONTROL if added[text].get("special") or _LIKE_A_MARK.fullmatch(text) else USER_DEFINED
    if len(set(texts)) != rows:
        raise _refused(path, f"only {len(set(texts))} of its {rows} tokens differ")
    return texts, types


def _refused(path: Path, why: str) -> UnsupportedError:
    return UnsupportedError(f"llama.cpp has no tokenizer for encoders like {path}: {why}",
                            "take a GGUF of the model, or a model with GPT-2's way to cut text")
