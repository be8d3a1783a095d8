"""An encoder's unigrams (tokenizer.json), as XLM-RoBERTa has them, as the tokenizer.* keys of a GGUF.

They are those that llama.cpp's converter writes of sentencepiece.bpe.model: a space is put before a text, and spaces
are merged.
"""

from __future__ import annotations

from base64 import b64decode
from pathlib import Path
from typing import Any

from ..errors import FormatError
from .checkpoint import AGAIN, as_written, read_json
from .marks import NORMAL, UNUSED, mark_keys, read_tokenizer, refused, usual_type

UNKNOWN = 2
LEAST_SCORE = -10000.0  # of rows without a token


def is_unigram(folder: Path) -> bool:
    """Whether a folder's tokenizer has unigrams."""
    return (read_json(folder / "tokenizer.json").get("model") or {}).get("type") == "Unigram"


def read(folder: Path, rows: int) -> dict[str, Any]:
    """Every tokenizer.* key for an embedding of `rows` rows; rows without a token get unused ones.

    UnsupportedError for a tokenizer that llama.cpp does not compute, FormatError for a missing or damaged file.
    """
    path, whole, config = read_tokenizer(folder)
    with as_written(path, "tokenizers"):
        return _keys(path, whole, config, rows)


def _keys(path: Path, whole: dict[str, Any], config: dict[str, Any], rows: int) -> dict[str, Any]:
    model = whole["model"]
    cuts = _parts(whole.get("pre_tokenizer"), "pretokenizers")
    if (kind := model.get("type")) != "Unigram" or model.get("byte_fallback"):
        raise refused(path, f"it has {kind}{' of bytes' if kind == 'Unigram' else ''}, known is Unigram")
    if not cuts or (cuts[-1].get("type"), cuts[-1].get("replacement")) != ("Metaspace", "▁"):
        raise refused(path, "it does not mark spaces as SentencePiece does")
    steps = _parts(whole.get("normalizer"), "normalizers")
    maps = [step["precompiled_charsmap"] for step in steps if step["type"] == "Precompiled"]
    if len(maps) > 1 or {step["type"] for step in steps} - {"Precompiled", "Replace", "Strip"}:
        raise refused(path, f"it normalises by {', '.join(step['type'] for step in steps)}")
    texts = [f"[PAD{i}]" for i in range(rows)]
    scores = [LEAST_SCORE] * rows
    types = [UNUSED] * rows
    if len(model["vocab"]) > rows:
        raise FormatError(f"{path} has {len(model['vocab'])} tokens, the embedding has {rows} rows", AGAIN)
    for i, (text, score) in enumerate(model["vocab"]):
        texts[i], scores[i], types[i] = text, float(score), NORMAL
    for token in whole.get("added_tokens") or []:
        texts[token["id"]] = token["content"]
        types[token["id"]] = usual_type(token)
    types[model["unk_id"]] = UNKNOWN
    ids = {text: i for i, text in enumerate(texts)}
    if len(ids) != rows:
        raise refused(path, f"only {len(ids)} of its {rows} tokens differ")
    keys: dict[str, Any] = {"model": "t5", "pre": "default", "tokens": texts, "scores": scores, "token_type": types,
                            "add_space_prefix": True, "remove_extra_whitespaces": True,
                            **mark_keys(path, whole, config, ids)}
    if maps:
        keys["precompiled_charsmap"] = list(b64decode(maps[0]))
    return {f"tokenizer.ggml.{name}": value for name, value in keys.items()}


def _parts(step: dict[str, Any] | None, name: str) -> list[dict[str, Any]]:
    """A step, or those of a sequence."""
    if not step:
        return []
    return list(step[name]) if step["type"] == "Sequence" else [step]
