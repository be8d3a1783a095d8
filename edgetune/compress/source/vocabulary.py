"""A Hugging Face tokenizer (tokenizer.json and its companions) as the tokenizer.* keys of a GGUF.

Two kinds are known. Byte-level BPE ("gpt2") cuts text by regular expressions before it merges; llama.cpp knows such
cuts by a name, `pre`, which is found here by the very expressions. BPE with byte fallback ("llama") is SentencePiece as
transformers' converters wrote it down; llama.cpp merges by a token's score instead of a list of merges, which is the
same where the list holds every pair that makes a token, token after token. That is checked.

Ids are then the same but for what no GGUF can tell llama.cpp: it does not compose characters (NFC, which Qwen's
tokenizers do first), by the cuts of gpt-4o and tekken it divides marks from their letters (Hindi, Thai), it strips no
spaces around an added token, it takes some tokens for marks by their text ("</s>" in Qwen's), it does not tell a "▁" in
a text from a space, and where a space is put in front only at the very beginning of a text that has none (Metaspace),
it puts one there always and after every special token.
Facts: llama.cpp, src/llama-vocab.cpp and convert_hf_to_gguf.py.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from ...disk import MIB, read_small
from ...errors import FormatError, UnsupportedError
from ...formats.checkpoint import AGAIN as _BROKEN
from ...formats.checkpoint import as_written, read_json

NORMAL = 1
UNKNOWN = 2
CONTROL = 3
USER_DEFINED = 4
UNUSED = 5
BYTE = 6
_OTHER = "take a GGUF of the model, or one with another tokenizer"

_DIGIT = r"\p{N}"
_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_MODERN = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|"
           r"\s+(?!\S)|\s+")
_END = r"|\s*[\r\n]+|\s+(?!\S)|\s+"
_MARKED = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*" + _END)
_UPPER = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]"
_LOWER = r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_CASED = _UPPER + "*" + _LOWER + "+%s|" + _UPPER + "+" + _LOWER + r"*%s|\p{N}%s| ?[^\s\p{L}\p{N}]+[\r\n/]*" + _END
_SHORT = "(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
_ASIAN = "[一-龥぀-ゟ゠-ヿ]+"
_SIGNED = (r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
           r"| ?[\p{P}\p{S}]+[\r\n]*" + _END)
# (the expressions that cut, one after the other; whether a word that is a token is never merged) -> llama.cpp's name
_PRE = {
    ((_WORDS,), False): "gpt-2",
    ((_DIGIT, _WORDS), False): "smollm",
    ((_MODERN % "",), False): "qwen2",
    ((_MODERN % "{1,3}",), False): "smaug-bpe",
    ((_MODERN % "{1,3}",), True): "llama-bpe",
    ((_MARKED,), False): "qwen35",
    ((_CASED % (_SHORT, _SHORT, "{1,3}"),), False): "gpt-4o",
    ((_CASED % ("", "", ""),), True): "tekken",
    ((r"\p{N}{1,3}", _ASIAN, _SIGNED), False): "hunyuan-dense",
}


def read(folder: Path, rows: int) -> dict[str, Any]:
    """Every tokenizer.* key for an embedding of `rows` rows; rows without a token get unused ones.

    UnsupportedError for a tokenizer that llama.cpp does not compute, FormatError for a missing or damaged file.
    """
    whole = read_json(folder / "tokenizer.json")
    if not whole:
        raise FormatError(f"{folder} has no tokenizer.json",
                          "save the tokenizer again with transformers' AutoTokenizer and save_pretrained")
    with as_written(folder / "tokenizer.json", "tokenizers"):
        return _Tokenizer(folder, whole, rows).keys()


class _Tokenizer:
    """tokenizer.json, looked at piece by piece."""

    def __init__(self, folder: Path, whole: dict[str, Any], rows: int) -> None:
        self.folder = folder
        self.path = folder / "tokenizer.json"
        self.rows = rows
        self.whole = whole
        self.model = whole["model"]
        if (kind := self.model.get("type", "BPE")) != "BPE":
            raise self.refused(f"its model is {kind}, only BPE is known")
        for name in ("continuing_subword_prefix", "end_of_word_suffix"):
            if self.model.get(name):
                raise self.refused(f"it has {name} {self.model[name]!r}")
        self.vocab: dict[str, int] = self.model["vocab"]
        self.normal = _steps(whole.get("normalizer"), "normalizers")
        self.cuts = _steps(whole.get("pre_tokenizer"), "pretokenizers")
        self.merges = [tuple(merge.split(" ", 1)) if isinstance(merge, str) else tuple(merge)
                       for merge in self.model["merges"]]
        self.added: dict[str, dict[str, Any]] = {token["content"]: token for token in whole.get("added_tokens") or []}
        self.ids = self.vocab | {text: token["id"] for text, token in self.added.items()}
        self.config = read_json(folder / "tokenizer_config.json")
        self.templates = _chat_templates(folder, self.config)
        special = read_json(folder / "special_tokens_map.json") | self.config
        self.special = {name: _content(value) for name, value in special.items() if name.endswith("_token")}

    def refused(self, why: str) -> UnsupportedError:
        return UnsupportedError(f"llama.cpp has no tokenizer like {self.path}: {why}", _OTHER)

    def keys(self) -> dict[str, Any]:
        at = "tokenizer.ggml."
        sentencepiece = not any(step["type"] == "ByteLevel" for step in self.cuts)
        if sentencepiece and not self.model.get("byte_fallback"):
            raise self.refused("it is neither byte-level nor does it fall back to bytes")
        tokens, types = self.tokens(sentencepiece)
        if sentencepiece:
            kind = {"model": "llama", "pre": "default", "add_space_prefix": self.space_in_front(),
                    "scores": self.scores(tokens)}
        else:
            kind = {"model": "gpt2", "pre": self.pre(), "add_space_prefix": False,
                    "merges": [" ".join(part.replace(" ", "Ġ") for part in merge) for merge in self.merges]}
        keys = {at + name: value for name, value in kind.items()}
        keys |= {at + "tokens": tokens, at + "token_type": types}
        keys |= {at + name: value for name, value in self.special_keys().items()}
        return keys | self.templates

    def tokens(self, sentencepiece: bool) -> tuple[list[str], list[int]]:
        """Text and type of every row. Added tokens past the last row (gemma3's image mark) are left out."""
        texts = [f"[PAD{i}]" for i in range(self.rows)]
        types = [UNUSED] * self.rows
        for text, i in self.ids.items():
            if not 0 <= i < self.rows:
                if text in self.added:
                    continue
                raise FormatError(f"{self.path} has token {i}, the embedding has {self.rows} rows", _BROKEN)
            texts[i] = text
            types[i] = self.type_of(text, sentencepiece)
            if sentencepiece and types[i] == USER_DEFINED:
                texts[i] = text.replace("▁", " ")  # llama.cpp looks for it before it writes spaces so
        if len(set(texts)) != len(texts):
            raise self.refused(f"only {len(set(texts))} of its {len(texts)} tokens differ")
        return texts, types

    def type_of(self, text: str, sentencepiece: bool) -> int:
        if sentencepiece and text == (self.special.get("unk_token") or self.model.get("unk_token")):
            return UNKNOWN
        if sentencepiece and re.fullmatch("<0x[0-9A-F]{2}>", text):
            return BYTE
        if text not in self.added:
            return NORMAL
        # "<|x|>" is a mark even where transformers would print it; "<unused7>" is gemma's
        marks = self.added[text].get("special") or re.fullmatch(r"<\|.*\|>|<unused\d+>", text)
        return CONTROL if marks else USER_DEFINED

    def pre(self) -> str:
        """llama.cpp's name for how the text is cut before bytes are merged."""
        for step in self.normal:
            if step["type"] != "NFC":
                raise self.refused(f"its normalizer is {step['type']}")
        cuts: list[str] = []
        for step in self.cuts:
            cuts += self.cut(step)
        found = _PRE.get((tuple(cuts), bool(self.model.get("ignore_merges"))))
        if found is None:
            known = ", ".join(_PRE.values())
            raise UnsupportedError(f"{self.path} cuts text by {' then '.join(cuts) or 'nothing'!s:.300}"
                                   f"{', ignore_merges' if self.model.get('ignore_merges') else ''}",
                                   f"known are llama.cpp's {known}: {_OTHER}")
        return found

    def cut(self, step: dict[str, Any]) -> list[str]:
        """The expressions that one step of a pre-tokenizer cuts by."""
        kind = step["type"]
        if kind == "ByteLevel" and not step.get("add_prefix_space"):
            return [_WORDS] if step.get("use_regex", True) else []
        if kind == "Digits":
            return [_DIGIT if step.get("individual_digits") else _DIGIT + "+"]
        if kind == "Split" and step["behavior"] == "Isolated" and "Regex" in step["pattern"]:
            return [step["pattern"]["Regex"]]
        settings = ", ".join(f"{name} {value!r}" for name, value in step.items() if name != "type")
        raise self.refused(f"its pre-tokenizer is {kind} ({settings})"[:300])

    def space_in_front(self) -> bool:
        """Whether SentencePiece's space comes before a text; also sees that nothing else is done to it."""
        in_front = False
        escaped = False
        for step in self.normal:
            if step["type"] == "Prepend" and step["prepend"] == "▁":
                in_front = True
            elif step["type"] == "Replace" and (step["pattern"], step["content"]) == ({"String": " "}, "▁"):
                escaped = True
            else:
                raise self.refused(f"its normalizer is {step['type']}")
        for step in self.cuts:
            if step["type"] == "Metaspace" and step.get("replacement") == "▁" and step.get("split") is False:
                in_front |= step.get("prepend_scheme", "always") != "never"
                escaped = True
            elif not escaped or step["type"] != "Split" or step["pattern"] != {"String": " "}:  # no spaces are left
                raise self.refused(f"its pre-tokenizer is {step['type']}")
        if not escaped:
            raise self.refused("it does not write a space as '▁'")
        return in_front

    def scores(self, tokens: list[str]) -> list[float]:
        """Scores in whose order SentencePiece makes the tokens that `merges` make.

        Added tokens are left out: llama.cpp cuts them out of the text before it merges.
        """
        made: dict[str, list[int]] = {}
        for rank, pair in enumerate(self.merges):
            made.setdefault("".join(pair), []).append(rank)
        for text, ranks in made.items():
            if text not in self.added and ranks != list(range(ranks[0], ranks[0] + self.ways(text))):
                raise self.refused(f"{self.ways(text)} pairs of tokens make {text!r:.40}, "
                                   "its merges are not all of these, one after another")
        for text in self.vocab:
            if text not in made and text not in self.added and self.ways(text):
                raise self.refused(f"no merge makes {text!r:.40}")
        return [-float(made.get(text, [len(self.merges)])[0]) for text in tokens]

    def ways(self, text: str) -> int:
        """The number of pairs of tokens that make this one."""
        return sum(text[:i] in self.vocab and text[i:] in self.vocab for i in range(1, len(text)))

    def special_keys(self) -> dict[str, Any]:
        """Ids of the special tokens, and which of them a text gets."""
        generation, model = (read_json(self.folder / name) for name in ("generation_config.json", "config.json"))
        keys: dict[str, Any] = {}
        ends = [i for source in (generation, model) for i in _ids(source.get("eos_token_id")) if i < self.rows]
        for name, ours in (("bos", "bos"), ("eos", "eos"), ("unk", "unknown"), ("pad", "padding")):
            spare = [i for source in (model, generation) for i in _ids(source.get(f"{name}_token_id"))]
            text = self.special.get(f"{name}_token")
            i = self.ids.get(text) if text is not None else next(iter(ends if name == "eos" else spare), None)
            if i is not None and 0 <= i < self.rows:
                keys[f"{ours}_token_id"] = i
        template = "".join(map(str, self.templates.values()))
        texts = {i: text for text, i in self.ids.items()}
        if (eos := texts.get(keys.get("eos_token_id", -1))) is not None and eos not in template:
            turn = [i for i in ends if texts.get(i, "\0") in template]  # gemma ends a turn, not the text
            keys |= {"eot_token_id": turn[0]} if turn else {}
        begins, ends_with = self.around(keys)
        return keys | {"add_bos_token": begins, "add_eos_token": ends_with}

    def around(self, keys: dict[str, Any]) -> tuple[bool, bool]:
        """Whether a text gets BOS and EOS: as tokenizer_config.json says, else as tokenizer.json does it."""
        single: list[dict[str, Any]] = []
        for step in _steps(self.whole.get("post_processor"), "processors"):
            single = step["single"] if step["type"] == "TemplateProcessing" else single
        marks = [self.ids.get(piece["SpecialToken"]["id"]) if "SpecialToken" in piece else None for piece in single]
        does = [bool(marks) and marks[end] is not None and marks[end] == keys.get(f"{name}_token_id")
                for name, end in (("bos", 0), ("eos", -1))]
        says = [self.config.get(f"add_{name}_token") for name in ("bos", "eos")]
        bos, eos = (now if said is None else bool(said) for said, now in zip(says, does, strict=True))
        return bos and "bos_token_id" in keys, eos and "eos_token_id" in keys


def _steps(part: dict[str, Any] | None, inside: str) -> list[dict[str, Any]]:
    """A normalizer, pre-tokenizer or post-processor as the list of its steps."""
    if part is None:
        return []
    return [step for inner in part[inside] for step in _steps(inner, inside)] if part["type"] == "Sequence" else [part]


def _content(value: Any) -> str | None:
    return value.get("content") if isinstance(value, dict) else value if isinstance(value, str) else None


def _ids(value: Any) -> list[int]:
    return [i for i in (value if isinstance(value, list) else [value]) if isinstance(i, int)]


def _chat_templates(folder: Path, config: dict[str, Any]) -> dict[str, Any]:
    """tokenizer.chat_template, and others under their names; a file chat_template.jinja wins, as in transformers."""
    given = config.get("chat_template") or read_json(folder / "chat_template.json").get("chat_template")
    named = {"default": given} if isinstance(given, str) else {t["name"]: t["template"] for t in given or []}
    for path in (folder / "chat_template.jinja", *sorted(folder.glob("additional_chat_templates/*.jinja"))):
        if path.is_file():
            named["default" if path.parent == folder else path.stem] = read_small(path, 4 * MIB).decode()
    keys: dict[str, Any] = {}
    if "default" in named:
        keys["tokenizer.chat_template"] = named.pop("default")
    if named:
        keys["tokenizer.chat_templates"] = sorted(named)
        keys |= {f"tokenizer.chat_template.{name}": text for name, text in sorted(named.items())}
    return keys
