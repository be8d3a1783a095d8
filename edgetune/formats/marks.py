"""The tokens of an embedding's rows and the marks around a text, by tokenizer.json and tokenizer_config.json."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ..errors import FormatError, UnsupportedError
from .checkpoint import AGAIN, read_json

NORMAL = 1  # types of tokens, as a GGUF numbers them
CONTROL = 3
USER_DEFINED = 4
UNUSED = 5
MARKS = {"bos": ("bos", "cls"), "eos": ("eos", "sep"), "unknown": ("unk",), "seperator": ("sep",), "padding": ("pad",),
         "mask": ("mask",)}
"""GGUF's names of the marks, one spelled so there, and names in tokenizer_config.json, of which the first counts."""


def read_tokenizer(folder: Path) -> tuple[Path, dict[str, Any], dict[str, Any]]:
    """(the path of tokenizer.json, it, tokenizer_config.json). Raises FormatError where one is missing."""
    path = folder / "tokenizer.json"
    whole = read_json(path)
    config = read_json(folder / "tokenizer_config.json")
    if not whole or not config:
        raise FormatError(f"{folder} has no {'tokenizer_config' if whole else 'tokenizer'}.json",
                          "save the tokenizer again with transformers' AutoTokenizer and save_pretrained")
    return path, whole, config


def mark_keys(path: Path, whole: dict[str, Any], config: dict[str, Any], ids: dict[str, int]) -> dict[str, Any]:
    """The keys of a GGUF that name the marks, and say that two stand around a text. Raises UnsupportedError for a
    tokenizer that puts others there.
    """
    added = {token["content"] for token in whole.get("added_tokens") or []}
    marks = {name: text for name, kinds in MARKS.items() if (text := _mark(config, kinds)) in added}
    first, last, separators = _around(whole.get("post_processor") or {})
    if [first, last] != [marks.get("bos", ""), marks.get("eos", "")]:
        raise refused(path, f"it puts {first!r:.40} and {last!r:.40} around a text")
    return {**{f"{name}_token_id": ids[text] for name, text in marks.items()}, "add_bos_token": True,
            "add_eos_token": True, "add_sep_token": separators == 2}


def _mark(config: dict[str, Any], kinds: tuple[str, ...]) -> str:
    """The text of a mark; "" where there is none."""
    written = next((found for kind in kinds if (found := config.get(f"{kind}_token"))), "")
    return str(written["content"] if isinstance(written, dict) else written)


def _around(processor: dict[str, Any]) -> tuple[str, str, int]:
    """The marks before and after a text, and how many stand between two texts; "" for none."""
    if processor.get("type") == "RobertaProcessing":
        return processor["cls"][0], processor["sep"][0], 2
    marks = [piece.get("SpecialToken", {}).get("id", "") for piece in processor.get("single") or [{}]]
    return marks[0], marks[-1], max(0, len(processor.get("pair") or []) - 4)


def token_rows(path: Path, ids: Mapping[str, int], rows: int, type_of: Callable[[str], int],
               written: Callable[[str, int], str] = lambda text, _type: text,
               unused: str = "") -> tuple[list[str], list[int]]:
    """Text and type of every row of an embedding. ids: the row of each token. written: a token of a type as a GGUF
    spells it. unused: what stands before the names of rows without a token. Raises FormatError for a token without a
    row, UnsupportedError where two are spelled alike.
    """
    texts = [f"{unused}[PAD{i}]" for i in range(rows)]
    types = [UNUSED] * rows
    for text, i in ids.items():
        if not 0 <= i < rows:
            raise FormatError(f"{path} has token {i}, the embedding has {rows} rows", AGAIN)
        types[i] = type_of(text)
        texts[i] = written(text, types[i])
    if len(set(texts)) != rows:
        raise refused(path, f"only {len(set(texts))} of its {rows} tokens differ")
    return texts, types


def usual_type(added: Mapping[str, Any] | None) -> int:
    """The type of a token by its entry among the added ones, None without one."""
    if added is None:
        return NORMAL
    return CONTROL if added.get("special") else USER_DEFINED


def refused(path: Path, why: str) -> UnsupportedError:
    return UnsupportedError(f"llama.cpp has no tokenizer for encoders like {path}: {why}",
                            "take a GGUF of the model, or a model with BERT's tokenizer")
