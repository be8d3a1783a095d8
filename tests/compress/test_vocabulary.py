"""Tokenizers of Hugging Face folders in llama.cpp: the same ids as transformers gives, on text that is hard to cut."""

import json
import unicodedata

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

from checkpoints import CUTS, HARD, byte_level, edit, sentencepiece, smollm2_tokenizer
from tiny import CHAT_TEMPLATE, SPECIALS, write_tiny
from tokenizers import normalizers, pre_tokenizers
from transformers import AutoTokenizer

from edgetune.compress.source import vocabulary
from edgetune.errors import FormatError, UnsupportedError
from edgetune.formats.gguf import open_gguf
from edgetune.formats.gguf.check import check_model
from edgetune.llamacpp.tokenizer import Tokenizer

AT = "tokenizer.ggml."


def converted(folder, rows=None):
    """The folder's keys in a tiny model that llama.cpp opens -> (keys, edgetune's Tokenizer)."""
    rows = rows or len(AutoTokenizer.from_pretrained(folder))
    keys = vocabulary.read(folder, rows)
    own = dict.fromkeys([f"{AT}{name}" for name in ("merges", "padding_token_id", "eos_token_id", "bos_token_id")] +
                        ["tokenizer.chat_template"])
    path = write_tiny(folder / "tiny.gguf", n_vocab=max(rows, 416), metadata=own | keys | {"llama.vocab_size": rows})
    return keys, Tokenizer(path)


@pytest.mark.parametrize("cut", CUTS)
def test_byte_level_ids_are_transformers_ids(cut, tmp_path):
    truth = byte_level(cut, 1500)
    truth.save_pretrained(tmp_path)
    keys, tokenizer = converted(tmp_path)
    assert (keys[f"{AT}model"], keys[f"{AT}pre"]) == ("gpt2", cut)
    again = AutoTokenizer.from_pretrained(tmp_path)
    for text in HARD:
        if cut in ("gpt-4o", "tekken") and any(unicodedata.combining(letter) for letter in text):
            assert tokenizer.encode(text) != truth(text).input_ids  # llama.cpp cuts marks from their letters
            continue
        assert tokenizer.encode(text) == again(text).input_ids == truth(text).input_ids, text


def test_composed_text_where_the_tokenizer_composes(tmp_path):
    """As in Qwen's tokenizer.json; llama.cpp does not compose, so text that is not composed would differ."""
    change_tokenizer(tmp_path, normalizer=normalizers.NFC())
    truth = AutoTokenizer.from_pretrained(tmp_path)
    tokenizer = converted(tmp_path)[1]
    for text in HARD:
        composed = unicodedata.normalize("NFC", text)
        assert tokenizer.encode(composed) == truth(text).input_ids, text


@pytest.mark.dev
def test_the_cuts_differ_on_these_texts():
    """The comparison above would be blind to a cut that changed nothing."""
    ids = {cut: str([byte_level(cut, 1500)(text).input_ids for text in HARD]) for cut in CUTS}
    assert len(set(ids.values())) == len(CUTS)


@pytest.mark.parametrize(("space", "in_front"), [("llama", True), ("gemma", False), ("metaspace", True)])
def test_sentencepiece_ids_are_transformers_ids(space, in_front, tmp_path):
    truth = sentencepiece(space)
    truth.save_pretrained(tmp_path)
    keys, tokenizer = converted(tmp_path)
    assert (keys[f"{AT}model"], keys[f"{AT}add_space_prefix"], keys[f"{AT}add_bos_token"]) == ("llama", in_front, True)
    assert keys[f"{AT}token_type"][:4] == [2, 3, 3, 6]
    assert keys[f"{AT}token_type"][-2:] == [1, 4]  # an ordinary token, and the added one
    texts = [*HARD, "[INST] say it [INST]", "</s> the end"]
    if space == "metaspace":  # llama.cpp knows no space that comes only at the very start, and not before another
        texts = [text for text in HARD if text[:1] not in (" ", "▁")]
    for text in filter(None, texts):  # of nothing llama.cpp makes no space
        assert tokenizer.encode(text, bos=True) == truth(text).input_ids, text


@pytest.mark.slow
def test_smollm2s_ids_on_real_text(smollm2, shared_data, tmp_path):
    truth = smollm2_tokenizer(smollm2)
    truth.save_pretrained(tmp_path)
    keys, tokenizer = converted(tmp_path)
    original = Tokenizer(smollm2)
    text = (shared_data / "wikitext2_valid.txt").read_text("utf-8")
    ids = truth(text).input_ids
    assert len(ids) > 250_000
    assert tokenizer.encode(text) == ids
    assert original.encode(text) == ids
    for line in HARD:
        assert tokenizer.encode(line) == truth(line).input_ids == original.encode(line), line
    reference = open_gguf(smollm2)
    for key in (key for key in reference.metadata if key.startswith("tokenizer.")):
        assert keys[key] == reference.metadata[key], key


def test_rows_without_a_token_are_unused(tmp_path):
    byte_level().save_pretrained(tmp_path)
    keys, tokenizer = converted(tmp_path, 416)
    assert keys[f"{AT}tokens"][400:] == [f"[PAD{i}]" for i in range(400, 416)]
    assert keys[f"{AT}token_type"] == [3] * 3 + [1] * 397 + [5] * 16
    assert tokenizer.encode("[PAD401]") == byte_level()("[PAD401]").input_ids
    check_model(open_gguf(tmp_path / "tiny.gguf"))


def test_special_tokens_and_templates(tmp_path):
    truth = byte_level(add_bos=True, chat_template={"default": CHAT_TEMPLATE, "tool_use": "{{ tools }}"})
    truth.add_tokens(["<tool_call>", "<|fim|>"])
    truth.save_pretrained(tmp_path)
    keys, tokenizer = converted(tmp_path)
    assert (tokenizer.bos, tokenizer.eos, tokenizer.add_bos) == (0, 2, True)
    assert keys[f"{AT}add_eos_token"] is False
    assert keys[f"{AT}token_type"][-2:] == [4, 3]
    assert tokenizer.encode("a<tool_call>b<|fim|>", bos=True) == truth("a<tool_call>b<|fim|>").input_ids
    assert (tokenizer.chat_template, tokenizer.tool_template) == (CHAT_TEMPLATE, "{{ tools }}")
    messages = [{"role": "user", "content": "hi"}]
    assert tokenizer.render(messages) == truth.apply_chat_template(messages, tokenize=False)
    edit(tmp_path / "tokenizer_config.json", add_bos_token=False)
    assert converted(tmp_path)[0][f"{AT}add_bos_token"] is False


def test_templates_in_tokenizer_config(tmp_path):
    byte_level().save_pretrained(tmp_path)
    (tmp_path / "chat_template.jinja").unlink()
    edit(tmp_path / "tokenizer_config.json", chat_template="{{ 1 }}")
    assert converted(tmp_path)[1].chat_template == "{{ 1 }}"
    edit(tmp_path / "tokenizer_config.json", chat_template=[{"name": "default", "template": "{{ 2 }}"},
                                                            {"name": "tool_use", "template": "{{ 3 }}"}])
    tokenizer = converted(tmp_path)[1]
    assert (tokenizer.chat_template, tokenizer.tool_template) == ("{{ 2 }}", "{{ 3 }}")


def test_ends_come_from_generation_config_where_the_tokenizer_names_none(tmp_path):
    byte_level(eos_token=None).save_pretrained(tmp_path)
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [2, 0]}))
    assert converted(tmp_path)[0][f"{AT}eos_token_id"] == 2
    # gemma's way: the text's end is not in the template, the turn's is
    edit(tmp_path / "tokenizer_config.json", eos_token=SPECIALS[0])
    keys = converted(tmp_path)[0]
    assert (keys[f"{AT}eos_token_id"], keys[f"{AT}eot_token_id"]) == (0, 2)


def change_tokenizer(folder, **changes):
    tokenizer = byte_level()
    for name, value in changes.items():
        setattr(tokenizer.backend_tokenizer, name, value)
    tokenizer.save_pretrained(folder)


@pytest.mark.parametrize(("changes", "sentence"), [
    ({"normalizer": normalizers.Lowercase()}, "its normalizer is Lowercase"),
    ({"pre_tokenizer": pre_tokenizers.ByteLevel(add_prefix_space=True)}, "ByteLevel.*add_prefix_space True"),
    ({"pre_tokenizer": pre_tokenizers.Sequence([pre_tokenizers.Punctuation(), *CUTS["gpt-2"][0]])},
     "its pre-tokenizer is Punctuation"),
    ({"pre_tokenizer": pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=False), *CUTS["gpt-2"][0]])},
     r"cuts text by \\p\{N\}\+ then 's\|.*; known are llama.cpp's gpt-2, smollm"),
    ({"pre_tokenizer": pre_tokenizers.Whitespace()}, "neither byte-level nor does it fall back to bytes"),
])
def test_unknown_cuts_are_named(changes, sentence, tmp_path):
    change_tokenizer(tmp_path, **changes)
    with pytest.raises(UnsupportedError, match=sentence):
        vocabulary.read(tmp_path, 400)


def change_model(folder, tokenizer, **changes):
    tokenizer.save_pretrained(folder)
    path = folder / "tokenizer.json"
    found = json.loads(path.read_text("utf-8"))
    path.write_text(json.dumps(found | {"model": found["model"] | changes}))


@pytest.mark.parametrize(("changes", "sentence"), [
    ({"type": "Unigram"}, "its model is Unigram"),
    ({"end_of_word_suffix": "</w>"}, "end_of_word_suffix '</w>'"),
    ({"ignore_merges": True}, "ignore_merges; known are"),
])
def test_unknown_models_are_named(changes, sentence, tmp_path):
    change_model(tmp_path, byte_level(), **changes)
    with pytest.raises(UnsupportedError, match=sentence):
        vocabulary.read(tmp_path, 400)


def test_merges_that_no_score_can_tell_are_refused(tmp_path):
    tokenizer = sentencepiece()
    merges = json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"]
    for wrong, sentence in ((sorted(merges), "one after another"), (merges[:-1], "not all of these|no merge makes")):
        change_model(tmp_path, tokenizer, merges=wrong)
        with pytest.raises(UnsupportedError, match=sentence):
            vocabulary.read(tmp_path, len(tokenizer))


def test_broken_folders_get_one_sentence(tmp_path):
    with pytest.raises(FormatError, match=r"has no tokenizer\.json; save the tokenizer again"):
        vocabulary.read(tmp_path, 400)
    byte_level().save_pretrained(tmp_path)
    with pytest.raises(FormatError, match=r"has token .*, the embedding has 300 rows"):
        vocabulary.read(tmp_path, 300)
    for text, sentence in (('{"model": {}}', "is not as tokenizers writes it"), ("[]", "not a JSON object"),
                           ("{", "tokenizer.json is damaged")):
        (tmp_path / "tokenizer.json").write_text(text)
        with pytest.raises(FormatError, match=sentence):
            vocabulary.read(tmp_path, 400)
