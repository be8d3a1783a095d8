"""The tokenizer of an encoder (tokenizer.json) as the tokenizer.* keys of a GGUF, as llama.cpp's converter writes them.

llama.cpp cuts a text for byte pairs as GPT-2 does. Of a text that is not in Unicode's form NFC the tokens may differ,
for a GGUF cannot say that it becomes so. Pairs of characters, as Gemma's vocabulary has them, mark spaces ("▁light")
and spell unknown characters by bytes ("<0xE4>"). Where a tokenizer cuts a text at spaces and puts one before it, the
GGUF has add_space_prefix, and `llamacpp.tokenizers` does both; llama.cpp by itself does neither. Unigrams are those
that the converter writes of sentencepiece.bpe.model: a space is put before a text, and spaces are merged. For WordPiece
a GGUF marks the beginnings of words ("▁light") where the tokenizer marks the rest ("##ing"); llama.cpp cleans the text,
cuts at spaces, punctuation and Chinese characters, and takes the longest token that fits. It differs still in rare
characters, which tests/formats/test_bert.py lists. A tokenizer that does anything else is refused.
"""

from __future__ import annotations

import re
from base64 import b64decode
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ..errors import FormatError, UnsupportedError
from .checkpoint import AGAIN, as_written, read_json

NORMAL = 1  # types of tokens, as a GGUF numbers them
CONTROL = 3
USER_DEFINED = 4
UNUSED = 5
MARKS = {"bos": ("bos", "cls"), "eos": ("eos", "sep"), "unknown": ("unk",), "seperator": ("sep",), "padding": ("pad",),
         "mask": ("mask",)}
"""GGUF's names of the marks, one spelled so there, and names in tokenizer_config.json, of which the first counts."""
_LIKE_A_MARK = re.compile(r"<pad>|<mask>|<\|.*\|>|<unused.*>")  # which llama.cpp's converter takes for marks
UNKNOWN = 2
LEAST_SCORE = -10000.0  # of rows without a token
REST = "##"  # before a token that continues a word
SPACE = "▁"  # a space, as SentencePiece marks it
PRE_OF_CHARACTERS = "granite-embed-multi-311m"  # the converter's name for Gemma's way to cut text, of an encoder
_PRE = "jina-v2-en"  # the converter's name for BERT's way to cut text; llama.cpp reads it for other tokenizers alone
# GGUF's names of the marks (the third is spelled so there) and BERT's.
_BERT_MARKS = {"bos": "[CLS]", "eos": "[SEP]", "seperator": "[SEP]", "unknown": "[UNK]", "padding": "[PAD]",
               "mask": "[MASK]"}
_NORMALIZED = {"clean_text": True, "handle_chinese_chars": True}


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


def read_byte_pairs(folder: Path, rows: int, pre: str) -> dict[str, Any]:
    """Every tokenizer.* key for an embedding of `rows` rows; rows without a token get unused ones. pre: llama.cpp's
    name of the way in which the text is cut.

    UnsupportedError for a tokenizer that llama.cpp does not compute, FormatError for a missing or damaged file.
    """
    path, whole, config = read_tokenizer(folder)
    with as_written(path, "tokenizers"):
        return _byte_pair_keys(path, whole, config, rows, pre)


def _byte_pair_keys(path: Path, whole: dict[str, Any], config: dict[str, Any], rows: int, pre: str) -> dict[str, Any]:
    _refuse_other_byte_pairs(path, whole)
    added = {token["content"]: token for token in whole.get("added_tokens") or []}
    ids = whole["model"]["vocab"] | {text: token["id"] for text, token in added.items()}
    tokens, types = token_rows(path, ids, rows, lambda text: _byte_pair_type(text, added))
    merges = [merge if isinstance(merge, str) else " ".join(part.replace(" ", "\u0120") for part in merge)
              for merge in whole["model"]["merges"]]
    keys: dict[str, Any] = {"model": "gpt2", "pre": pre, "tokens": tokens, "token_type": types, "merges": merges}
    keys |= mark_keys(path, whole, config, ids)
    return {f"tokenizer.ggml.{name}": value for name, value in keys.items()}


def _refuse_other_byte_pairs(path: Path, whole: dict[str, Any]) -> None:
    cut = whole.get("pre_tokenizer") or {}
    for found, known in ((whole["model"].get("type"), "BPE"), (cut.get("type"), "ByteLevel")):
        if found != known:
            raise refused(path, f"it has {found}, known is {known}")
    if cut.get("add_prefix_space") or not cut.get("use_regex", True):
        raise refused(path, "it does not cut a text as GPT-2 does")
    if (normalizer := (whole.get("normalizer") or {}).get("type", "NFC")) != "NFC":
        raise refused(path, f"it has {normalizer}, known is NFC")


def _byte_pair_type(text: str, added: dict[str, dict[str, Any]]) -> int:
    return CONTROL if text in added and _LIKE_A_MARK.fullmatch(text) else usual_type(added.get(text))


def marks_spaces(folder: Path) -> bool:
    """Whether a folder's tokenizer has pairs of characters, not of bytes."""
    whole = read_json(folder / "tokenizer.json")
    return bool((whole.get("model") or {}).get("byte_fallback")) and (whole["model"].get("type") == "BPE")


def read_character_pairs(folder: Path, rows: int) -> dict[str, Any]:
    """Every tokenizer.* key, as `read_byte_pairs`, of a vocabulary like Gemma's, which mmBERT has."""
    path, whole, config = read_tokenizer(folder)
    with as_written(path, "tokenizers"):
        return _character_pair_keys(path, whole, config, rows)


def _character_pair_keys(path: Path, whole: dict[str, Any], config: dict[str, Any], rows: int) -> dict[str, Any]:
    cuts_words = _cuts_words(path, whole)
    added = {token["content"]: token for token in whole.get("added_tokens") or []}
    ids = whole["model"]["vocab"] | {text: token["id"] for text, token in added.items()}
    replaced = whole.get("normalizer") is not None

    def written(text: str, kind: int) -> str:  # as the converter writes it, so that llama.cpp finds it in a text
        is_found_later = kind == USER_DEFINED and replaced and added[text].get("normalized")
        return text.replace(SPACE, " ") if is_found_later else text

    tokens, types = token_rows(path, ids, rows, lambda text: _byte_pair_type(text, added), written)
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in whole["model"]["merges"]]
    keys: dict[str, Any] = {"model": "gpt2", "pre": PRE_OF_CHARACTERS, "tokens": tokens, "token_type": types,
                            "merges": merges, **mark_keys(path, whole, config, ids)}
    if cuts_words:
        keys["add_space_prefix"] = True
    return {f"tokenizer.ggml.{name}": value for name, value in keys.items()}


def _cuts_words(path: Path, whole: dict[str, Any]) -> bool:
    """Whether a text is cut before each space and gets one in front; else it stays whole, as llama.cpp has it."""
    model = whole["model"]
    for name in ("dropout", "continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(name):
            raise refused(path, f"its {name} is {model[name]!r:.40}")
    normalizer = whole.get("normalizer")
    by_space = {"pattern": {"String": " "}, "content": SPACE}
    if normalizer is not None and normalizer != {"type": "Replace", **by_space}:
        raise refused(path, f"it normalises by {normalizer.get('type')!s:.40}")
    cut = whole.get("pre_tokenizer") or {"type": None}
    if cut["type"] == "Metaspace":
        wanted = {"replacement": SPACE, "prepend_scheme": "always", "split": True}
        if {**wanted, **{name: cut[name] for name in wanted if name in cut}} != wanted:
            raise refused(path, f"it marks spaces by {cut!r:.120}")
        return True
    cuts_nothing = cut["type"] is None or (cut["type"] == "Split" and cut.get("pattern") == by_space["pattern"])
    if normalizer is None or not cuts_nothing:
        raise refused(path, f"it has {cut['type']}, known is Metaspace")
    return False


def is_unigram(folder: Path) -> bool:
    """Whether a folder's tokenizer has unigrams."""
    return (read_json(folder / "tokenizer.json").get("model") or {}).get("type") == "Unigram"


def read_unigrams(folder: Path, rows: int) -> dict[str, Any]:
    """Every tokenizer.* key, as `read_byte_pairs`."""
    path, whole, config = read_tokenizer(folder)
    with as_written(path, "tokenizers"):
        return _unigram_keys(path, whole, config, rows)


def _unigram_keys(path: Path, whole: dict[str, Any], config: dict[str, Any], rows: int) -> dict[str, Any]:
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


def read_wordpiece(folder: Path, rows: int) -> dict[str, Any]:
    """Every tokenizer.* key, as `read_byte_pairs`."""
    path = folder / "tokenizer.json"
    whole = read_json(path)
    if not whole:
        raise FormatError(f"{folder} has no tokenizer.json",
                          "save the tokenizer again with transformers' AutoTokenizer and save_pretrained")
    with as_written(path, "tokenizers"):
        return _wordpiece_keys(path, whole, rows)


def _wordpiece_keys(path: Path, whole: dict[str, Any], rows: int) -> dict[str, Any]:
    vocab = whole["model"].get("vocab")
    normalizer = whole.get("normalizer") or {}
    _refuse_other_wordpiece(path, whole["model"], normalizer, whole.get("pre_tokenizer") or {})
    added = {token["content"]: token for token in whole.get("added_tokens") or []}
    ids = vocab | {text: token["id"] for text, token in added.items()}
    marks = {name: ids[text] for name, text in _BERT_MARKS.items() if text in ids}
    _require_marks(path, whole.get("post_processor") or {}, marks)
    tokens, types = token_rows(path, ids, rows, lambda text: usual_type(added.get(text)), _written, unused="▁")
    keys: dict[str, Any] = {"model": "bert", "pre": _PRE, "tokens": tokens, "token_type": types}
    keys |= {f"{name}_token_id": i for name, i in marks.items()}
    keys |= {"add_bos_token": True, "add_eos_token": True, "add_sep_token": False}
    keys |= {f"normalizer.{name}": normalizer[name] for name in ("lowercase", "strip_accents")
             if normalizer.get(name) is not None}
    return {f"tokenizer.ggml.{name}": value for name, value in keys.items()}


def _refuse_other_wordpiece(path: Path, model: dict[str, Any], normalizer: dict[str, Any], cut: dict[str, Any]) -> None:
    kinds = (model.get("type"), normalizer.get("type"), cut.get("type"))
    wanted = ("WordPiece", "BertNormalizer", "BertPreTokenizer")
    for found, known in zip(kinds, wanted, strict=True):
        if found != known:
            raise refused(path, f"it has {found}, known is {known}")
    if (prefix := model.get("continuing_subword_prefix")) != REST:
        raise refused(path, f"it continues words by {prefix!r:.40}, known is {REST!r}")
    for name, value in _NORMALIZED.items():
        if normalizer.get(name) is not value:
            raise refused(path, f"its {name} is {normalizer.get(name)!r:.40}, known is {value}")


def _require_marks(path: Path, around: dict[str, Any], marks: dict[str, int]) -> None:
    """Every text must begin with [CLS] and end with [SEP]."""
    if missing := sorted({"bos", "eos", "unknown", "padding"} - marks.keys()):
        raise refused(path, f"it has no {_BERT_MARKS[missing[0]]}")
    if around.get("type") == "BertProcessing":
        found = [around["cls"][0], around["sep"][0]]
    else:
        single = around.get("single") or [{}]
        found = [piece.get("SpecialToken", {}).get("id") for piece in (single[0], single[-1])]
    if found != [_BERT_MARKS["bos"], _BERT_MARKS["eos"]]:
        raise refused(path, f"it puts {found[0]} and {found[1]} around a text")


def _written(text: str, kind: int) -> str:
    """A token as a GGUF spells it."""
    if kind == CONTROL:
        return text
    return text.removeprefix(REST) if text.startswith(REST) else "▁" + text
