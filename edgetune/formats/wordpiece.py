"""A WordPiece tokenizer (tokenizer.json) as the tokenizer.* keys of a GGUF, as llama.cpp's converter writes them.

A GGUF marks the beginnings of words ("▁light") where WordPiece marks the rest ("##ing"). llama.cpp cleans the text,
cuts at spaces, punctuation and Chinese characters, and takes the longest token that fits; so a tokenizer that does
anything else is refused. It differs still in rare characters, which tests/formats/test_bert.py lists.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..errors import FormatError
from .checkpoint import as_written, read_json
from .marks import CONTROL, refused, token_rows, usual_type

REST = "##"  # before a token that continues a word
_PRE = "jina-v2-en"  # the converter's name for BERT's way to cut text; llama.cpp reads it for other tokenizers alone
# GGUF's names of the marks (the third is spelled so there) and BERT's.
_MARKS = {"bos": "[CLS]", "eos": "[SEP]", "seperator": "[SEP]", "unknown": "[UNK]", "padding": "[PAD]",
          "mask": "[MASK]"}
_NORMAL = {"clean_text": True, "handle_chinese_chars": True}


def read(folder: Path, rows: int) -> dict[str, Any]:
    """Every tokenizer.* key for an embedding of `rows` rows; rows without a token get unused ones.

    UnsupportedError for a tokenizer that llama.cpp does not compute, FormatError for a missing or damaged file.
    """
    path = folder / "tokenizer.json"
    whole = read_json(path)
    if not whole:
        raise FormatError(f"{folder} has no tokenizer.json",
                          "save the tokenizer again with transformers' AutoTokenizer and save_pretrained")
    with as_written(path, "tokenizers"):
        return _keys(path, whole, rows)


def _keys(path: Path, whole: dict[str, Any], rows: int) -> dict[str, Any]:
    vocab = whole["model"].get("vocab")
    normalizer = whole.get("normalizer") or {}
    _refuse_others(path, whole["model"], normalizer, whole.get("pre_tokenizer") or {})
    added = {token["content"]: token for token in whole.get("added_tokens") or []}
    ids = vocab | {text: token["id"] for text, token in added.items()}
    marks = {name: ids[text] for name, text in _MARKS.items() if text in ids}
    _require_marks(path, whole.get("post_processor") or {}, marks)
    tokens, types = token_rows(path, ids, rows, lambda text: usual_type(added.get(text)), _written, unused="▁")
    keys: dict[str, Any] = {"model": "bert", "pre": _PRE, "tokens": tokens, "token_type": types}
    keys |= {f"{name}_token_id": i for name, i in marks.items()}
    keys |= {"add_bos_token": True, "add_eos_token": True, "add_sep_token": False}
    keys |= {f"normalizer.{name}": normalizer[name] for name in ("lowercase", "strip_accents")
             if normalizer.get(name) is not None}
    return {f"tokenizer.ggml.{name}": value for name, value in keys.items()}


def _refuse_others(path: Path, model: dict[str, Any], normalizer: dict[str, Any], cut: dict[str, Any]) -> None:
    kinds = (model.get("type"), normalizer.get("type"), cut.get("type"))
    wanted = ("WordPiece", "BertNormalizer", "BertPreTokenizer")
    for found, known in zip(kinds, wanted, strict=True):
        if found != known:
            raise refused(path, f"it has {found}, known is {known}")
    if (prefix := model.get("continuing_subword_prefix")) != REST:
        raise refused(path, f"it continues words by {prefix!r:.40}, known is {REST!r}")
    for name, value in _NORMAL.items():
        if normalizer.get(name) is not value:
            raise refused(path, f"its {name} is {normalizer.get(name)!r:.40}, known is {value}")


def _require_marks(path: Path, around: dict[str, Any], marks: dict[str, int]) -> None:
    """Every text must begin with [CLS] and end with [SEP]."""
    if missing := sorted({"bos", "eos", "unknown", "padding"} - marks.keys()):
        raise refused(path, f"it has no {_MARKS[missing[0]]}")
    if around.get("type") == "BertProcessing":
        found = [around["cls"][0], around["sep"][0]]
    else:
        single = around.get("single") or [{}]
        found = [piece.get("SpecialToken", {}).get("id") for piece in (single[0], single[-1])]
    if found != [_MARKS["bos"], _MARKS["eos"]]:
        raise refused(path, f"it puts {found[0]} and {found[1]} around a text")


def _written(text: str, kind: int) -> str:
    """A token as a GGUF spells it."""
    if kind == CONTROL:
        return text
    return text.removeprefix(REST) if text.startswith(REST) else "▁" + text
