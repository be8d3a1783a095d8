"""Hugging Face folders made here: tokenizers of every kind that is converted, and tiny models beside them."""

import json
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from tiny import CHAT_TEMPLATE, SPECIALS
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedModel, PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import generate_merges

from edgetune.formats.gguf import open_gguf

HARD = [
    "It's 3.14159, 2026-11-25 and 1234567 more; WE'LL see, they'd've said.",
    "one\r\ntwo\r\n\r\nthree\n\n\n  four\t\tfive \t six   \n",
    "naïve façade, Ångström, ﬁve ½ ²³ Ⅷ, ٣٤٥ and १२३",
    "日本語のテキスト、中文字符。한국어 문장 ไทย",
    "👩‍👩‍👧‍👦 🇩🇪 ❤️ é e\u0301 \u200b\u00a0\u3000 wide",
    "for (i=0;i<10;++i){ x[i] += '\\n'; }  // ###!!! ...---",
    "<|im_start|>user\nhi<|im_end|> <|im_start |> <|endoftext|><|endoftext|>",
    "camelCase and HTMLParser of McIntyre's, i/o /usr/bin//x\n/", "xe\u0301te\u0301xe\u0301te\u0301 कि हिंदी में",
    " leading", "trailing ", "   ", "\n", "", "a", "▁ x ▁▁",
]
_MODERN = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
           r"|\s+(?!\S)|\s+")


_CASED = (r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+%s"
          r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*%s"
          r"|\p{N}%s| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+")


def _splits(*expressions: str) -> list[Any]:
    return [*(pre_tokenizers.Split(Regex(expression), "isolated", False) for expression in expressions),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]


def _split(digits: str) -> list[Any]:
    return _splits(_MODERN % digits)


# llama.cpp's name -> how the tokenizer.json of such models cuts text, and BPE's ignore_merges
CUTS: dict[str, tuple[list[Any], bool]] = {
    "gpt-2": ([pre_tokenizers.ByteLevel(add_prefix_space=False)], False),
    "smollm": ([pre_tokenizers.Digits(individual_digits=True),
                pre_tokenizers.ByteLevel(add_prefix_space=False)], False),
    "qwen2": (_split(""), False),
    "llama-bpe": (_split("{1,3}"), True),
    "smaug-bpe": (_split("{1,3}"), False),
    "qwen35": (_splits(r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}"
                       r"| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"), False),
    "gpt-4o": (_splits(_CASED % ("(?i:'s|'t|'re|'ve|'m|'ll|'d)?", "(?i:'s|'t|'re|'ve|'m|'ll|'d)?", "{1,3}")), False),
    "tekken": (_splits(_CASED % ("", "", "")), True),
    "hunyuan-dense": (_splits(
        r"\p{N}{1,3}", "[一-龥぀-ゟ゠-ヿ]+",
        r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*"
        r"|\s*[\r\n]+|\s+(?!\S)|\s+"), False),
}


def byte_level(cut: str = "smollm", size: int = 400, add_bos: bool = False, **options: Any) -> PreTrainedTokenizerFast:
    """Byte-level BPE whose merges were learned without any cut, so that it shows in the ids where text is cut.

    Every fifth token is one that no merge makes: it shows whether a word that is a token is taken whole.
    """
    steps, ignore = CUTS[cut]
    learned = _learned(size)
    merges = [tuple(merge) for i, merge in enumerate(learned["merges"]) if i % 5]
    tokenizer = Tokenizer(models.BPE(learned["vocab"], merges, ignore_merges=ignore))
    tokenizer.add_special_tokens(SPECIALS)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps) if len(steps) > 1 else steps[0]
    tokenizer.decoder = decoders.ByteLevel()
    if add_bos:
        mark = SPECIALS[0]
        tokenizer.post_processor = processors.TemplateProcessing(f"{mark} $A", special_tokens=[(mark, 0)])
    names = {"bos_token": SPECIALS[0], "eos_token": SPECIALS[2], "pad_token": SPECIALS[0],
             "chat_template": CHAT_TEMPLATE}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **(names | options))


@cache
def _learned(size: int) -> dict[str, Any]:
    learner = Tokenizer(models.BPE())
    learner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    trainer = trainers.BpeTrainer(vocab_size=size, special_tokens=SPECIALS, max_token_length=12, show_progress=False,
                                  initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()))
    learner.train_from_iterator([text * 3 for text in HARD] + [Path(__file__).read_text("utf-8")], trainer)
    return json.loads(learner.to_str())["model"]


def sentencepiece(space: str = "llama", size: int = 600, **options: Any) -> PreTrainedTokenizerFast:
    """BPE with byte fallback as transformers writes it: every pair that makes a token is a merge.

    space: how spaces are written; as in Llama 2, in gemma (none in front), or by Metaspace.
    """
    learner = Tokenizer(models.BPE())
    learner.pre_tokenizer = pre_tokenizers.Metaspace()
    plain = [text * 3 for text in HARD if "<|" not in text]  # llama.cpp takes such a token for a mark by its text
    learner.train_from_iterator([*plain, CHAT_TEMPLATE.replace("|", "")],
                                trainers.BpeTrainer(vocab_size=size, show_progress=False, limit_alphabet=150))
    learned = sorted(learner.get_vocab(), key=lambda token: (len(token) == 1, learner.token_to_id(token)))
    tokens = ["<unk>", "<s>", "</s>"] + [f"<0x{byte:02X}>" for byte in range(256)] + learned
    vocab = {token: i for i, token in enumerate(tokens)}
    merges = generate_merges(vocab, {token: -i for token, i in vocab.items()})
    tokenizer = Tokenizer(models.BPE(vocab, merges, byte_fallback=True, fuse_unk=True, unk_token="<unk>"))
    escape = normalizers.Replace(" ", "▁")
    if space == "llama":
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), escape])
    elif space == "gemma":
        tokenizer.normalizer = escape
        tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    tokenizer.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", 1)])
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    tokenizer.add_tokens([AddedToken("[INST]", normalized=False)])
    names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **(names | options))


def smollm2_tokenizer(path: Path) -> PreTrainedTokenizerFast:
    """SmolLM2's tokenizer.json from the tokens and merges in its GGUF, and the cuts that the model's own has."""
    keys = open_gguf(path).metadata
    tokens = keys["tokenizer.ggml.tokens"]
    kinds = keys["tokenizer.ggml.token_type"]
    merges = [tuple(merge.split(" ")) for merge in keys["tokenizer.ggml.merges"]]
    tokenizer = Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(CUTS["smollm"][0])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([token for token, kind in zip(tokens, kinds, strict=True) if kind == 3])
    named = {name: tokens[keys[f"tokenizer.ggml.{key}_token_id"]] for name, key in
             (("bos_token", "bos"), ("eos_token", "eos"), ("unk_token", "unknown"), ("pad_token", "padding"))}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, chat_template=keys["tokenizer.chat_template"], **named)


def write_folder(folder: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, card: str = "",
                 **options: Any) -> Path:
    """`model` and `tokenizer` as save_pretrained writes them, and a model card."""
    model.save_pretrained(folder, **options)
    tokenizer.save_pretrained(folder)
    if card:
        (folder / "README.md").write_text(card)
    return folder


def edit(path: Path, changes: Mapping[str, Any] | None = None, without: Sequence[str] = (), **more: Any) -> None:
    """Change or remove top-level keys of a JSON file."""
    found = json.loads(path.read_text("utf-8")) | dict(changes or {}) | more
    path.write_text(json.dumps({key: value for key, value in found.items() if key not in without}))
