"""Tokens and their places beside the library `tokenizers`: on public text, and on Unicode of every kind."""

import json
import tracemalloc
import unicodedata
from functools import cache
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("transformers")

from encoders import WORDS, minilm_checkpoint, tiny_bert, write_checkpoint, write_encoder
from hypothesis import given
from hypothesis import strategies as st
from sometimes import mostly_slow
from tokenizers import Tokenizer as Truth

from edgetune.errors import DataError, FormatError, UnsupportedError
from edgetune.formats.bert import write_bert
from edgetune.formats.gguf import open_gguf
from edgetune.llamacpp import library
from edgetune.llamacpp.tokenizer import cut
from edgetune.llamacpp.wordpiece import WordPiece

TEXTS = ["", " ", "Turn the lights on!", "naïve façade, Ångström, İstanbul; ẞ ǅ ﬁ ½", "Cafe\u0301s e\u0301",
         "今天天气很好，北京", "日本語のテキスト", "한국어 문장입니다", "हिन्दी में", "สวัสดี",
         "a\tb\r\nc\u00a0d\u3000e\x00f\ufffdg", "a\x0bb", "\u200b",
         "👩‍👩‍👧‍👦 ❤️", "don't $5+3=8 <x> [CLS] a_b", "x" * 100, "x" * 101,
         "supercalifragilisticexpialidocious"]
OTHER_IN_LLAMA_CPP = ["한국어 문장입니다", "हिन्दी में", "a\x0bb", "x" * 101]  # Hangul, vowel signs, spaces, long words


@pytest.fixture(scope="module")
def minilm(tmp_path_factory):
    """(GGUF of the real vocabulary, the library's tokenizer)"""
    folder = minilm_checkpoint(tmp_path_factory.mktemp("minilm"))
    write_bert(folder / "m.gguf", folder, "Q8_0")
    return folder / "m.gguf", truth_of(folder)


def truth_of(folder: Path) -> Truth:
    """The library's, which takes nothing in a text for a mark, and neither cuts off nor fills up."""
    saved = json.loads((folder / "tokenizer.json").read_text())
    truth = Truth.from_str(json.dumps(saved | {"added_tokens": [], "truncation": None, "padding": None}))
    assert truth.encode("[SEP]").ids[1] != truth.encode("").ids[-1]
    return truth


def same(ours: WordPiece, truth: Truth, text: str) -> None:
    found = ours.encode_places(text)
    wanted = truth.encode(text)
    assert found.ids == wanted.ids, text
    assert found.places == wanted.offsets, text
    assert ours.encode(text) == found.ids


@cache
def differing() -> str:
    """Characters that were given to Unicode, or to another kind, after its version 8, as the library takes them."""
    from tokenizers.normalizers import BertNormalizer
    from tokenizers.pre_tokenizers import BertPreTokenizer
    normal = BertNormalizer(clean_text=True, handle_chinese_chars=False, strip_accents=True, lowercase=True)
    pre = BertPreTokenizer()
    found = []
    for code in range(0x80, 0x110000):
        kind = unicodedata.category(chr(code))
        if kind in ("Mn", "Mc", "Cf", "So") or kind[0] == "P":
            is_gone = not normal.normalize_str(chr(code))
            is_alone = len(pre.pre_tokenize_str(f"a{chr(code)}b")) == 3
            if (is_gone, is_alone) != (kind in ("Mn", "Cf"), kind[0] == "P"):
                found.append(chr(code))
    return "".join(found)


def test_few_characters_are_another_kind_than_in_the_library():
    assert len(differing()) < 800
    assert min(differing()) > "\u0600"


@cache
def reordered():
    """Marks of a character that are no accents, which the library sorts."""
    return "".join(chr(code) for code in range(0x110000)
                   if unicodedata.combining(chr(code)) and unicodedata.category(chr(code)) != "Mn")


@given(st.text(st.one_of(st.characters(exclude_categories=["Cs"]), st.sampled_from("aé ,.'-好한ß\u0301")), max_size=40))
def test_on_unicode_of_every_kind(text):
    left_out = differing() + reordered()
    text = "".join(character for character in text if character not in left_out)
    for tokenizers in tiny_tokenizers():
        same(*tokenizers, text)


@cache
def tiny_tokenizers():
    """Over characters and parts of words: with and without lower case."""
    import tempfile
    made = []
    letters = [*"éÉßאाक好한i", "\u1112", "\u1161", "\u11ab"]
    words = [*WORDS, *letters, *(f"##{letter}" for letter in letters), "A", "##B"]
    bert = tiny_bert()
    rows = np.zeros((len(words), 64), np.float32)
    bert = type(bert)(bert.sizes | {"vocab_size": len(words)},
                      bert.tensors | {"embeddings.word_embeddings.weight": rows})
    for options in ({}, {"do_lower_case": False}, {"strip_accents": False}):
        folder = write_checkpoint(Path(tempfile.mkdtemp()), bert, words, **options)
        write_bert(folder / "m.gguf", folder, "F16")
        made.append((WordPiece(folder / "m.gguf"), truth_of(folder)))
    return made


@pytest.mark.dev
@pytest.mark.parametrize("text", TEXTS)
def test_on_texts_that_are_hard(minilm, text):
    same(WordPiece(minilm[0]), minilm[1], text)
    for tokenizers in tiny_tokenizers():
        same(*tokenizers, text)


@pytest.mark.dev
@pytest.mark.parametrize("every", mostly_slow([8, 1], [8]))
def test_on_public_text(minilm, shared_data, every):
    ours = WordPiece(minilm[0])
    texts = public_texts(shared_data)
    assert len(texts) > 15_000
    for text in texts[::every]:
        same(ours, minilm[1], text)


def public_texts(folder):
    files = [path.read_text("utf-8") for path in sorted(folder.rglob("*.jsonl"))]
    rows = [json.loads(line) for file in files for line in file.splitlines()]
    texts = [str(value) for row in rows for value in row.values()]
    return texts + (folder / "wikitext2_valid.txt").read_text("utf-8").splitlines()


def test_llama_cpp_cuts_most_texts_alike(minilm, shared_data):
    ours = WordPiece(minilm[0])
    llama = library.load()
    gguf = open_gguf(minilm[0])
    model = library.open_model(gguf.file.link, gguf.path, vocabulary_only=True)
    vocabulary = llama.llama_model_get_vocab(model)
    differ = [text for text in [*public_texts(shared_data)[::20], *TEXTS]
              if cut(llama, vocabulary, text, marks=True) != ours.encode(text)]
    llama.llama_model_free(model)
    assert differ == OTHER_IN_LLAMA_CPP


def test_places_are_those_of_the_values(tmp_path):
    ours = WordPiece(write_encoder(tmp_path / "e.gguf", tiny_bert(), WORDS))
    text = "Turn  the KITCHEN lights ön"
    found = ours.encode_places(text)
    assert [text[begin:end] for begin, end in found.places] == ["", "Turn", "the", "KITCHEN", "light", "s", "ön", ""]
    assert found.ids[0] == ours.cls
    assert found.ids[-1] == ours.sep
    assert ours.texts[found.ids[4]] == "▁light"


def test_what_is_no_encoder_or_no_text_is_refused(tmp_path, tiny_llama):
    with pytest.raises(UnsupportedError, match="no encoder"):
        WordPiece(tiny_llama)
    path = write_encoder(tmp_path / "e.gguf", tiny_bert(), WORDS)
    with pytest.raises(DataError, match="half a surrogate pair"):
        WordPiece(path).encode("a\ud800")
    data = path.read_bytes()
    key = b"tokenizer.ggml.padding_token_id" + (4).to_bytes(4, "little")
    at = data.index(key) + len(key)
    path.write_bytes(data[:at] + (99).to_bytes(4, "little") + data[at + 4:])
    with pytest.raises(FormatError, match="the padding token is 99, the vocabulary has 66"):
        WordPiece(path)


def test_a_long_text_takes_little_more_than_its_tokens(tmp_path):
    tokenizer = WordPiece(write_encoder(tmp_path / "tiny.gguf", tiny_bert(), WORDS))
    text = "turn the kitchen light off, " * 3000
    tracemalloc.start()
    try:
        found = tokenizer.encode_places(text)
        kept, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(found.ids) > 15_000
    assert peak < 1.5 * kept
