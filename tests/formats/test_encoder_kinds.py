"""Checkpoints of RoBERTa, XLM-RoBERTa and ModernBERT as GGUF: the file of llama.cpp's converter, tokens, vectors."""

import json
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

from checkpoints import edit
from commands import run
from encoder_checkpoints import (
    charsmap,
    write_e5_checkpoint,
    write_gemma_checkpoint,
    write_mmbert_checkpoint,
    write_modern_checkpoint,
    write_roberta_checkpoint,
    write_xlm_checkpoint,
)
from encoders import as_fixture, truth, vectors
from hubs import Hub, serving
from labelled import LLAMA_CPP, at_first, close, open_trainer
from transformers import AutoModel, AutoTokenizer

from edgetune.adapters.heads import VECTOR
from edgetune.data.packing import collate
from edgetune.errors import DataError, FormatError, UnsupportedError
from edgetune.formats.bert import is_bert, write_bert
from edgetune.formats.gguf import check_encoder, open_gguf, write_gguf
from edgetune.formats.named import find_model
from edgetune.llamacpp.tokenizers import open_tokenizer
from edgetune.runs.train import train
from edgetune.serving.classifier import Classifier

FIXTURE = Path(__file__).parents[1] / "fixtures" / "encoders_by_llama_cpp.json"
WRITERS = {"modern": write_modern_checkpoint, "roberta": write_roberta_checkpoint, "xlm": write_xlm_checkpoint,
           "e5": write_e5_checkpoint, "mmbert": write_mmbert_checkpoint, "gemma": write_gemma_checkpoint}
TEXTS = ["turn on the light in the kitchen", "  What's  the time,\nthen? ", "Größe: 12½ 😶‍🌫️ मैं", "on", "",
         "<s>[CLS]</s>"]
SLOTS = [{"prompt": f"turn {word} the {letter} light", "completion": json.dumps({"do": word, "place": letter})}
         for word in ("on", "off") for letter in "abcdefghijklm"]


@pytest.fixture(scope="module", params=WRITERS)
def made(request, tmp_path_factory):
    """(name, checkpoint, its GGUF in F32)"""
    folder = tmp_path_factory.mktemp(request.param)
    WRITERS[request.param](folder / "m")
    write_bert(folder / "m.gguf", folder / "m", "F32")
    return request.param, folder / "m", folder / "m.gguf"


OWN = ("general.architecture", "tokenizer.ggml.add_space_prefix", "tokenizer.ggml.remove_extra_whitespaces")
"""Not compared: llama.cpp's converter writes that unigrams of a tokenizer.json do neither, though they do, and nothing
of mmBERT, whose words have a space in front."""


@pytest.mark.dev
def test_it_is_the_file_of_llama_cpps_converter(made, tmp_path):
    name, folder, _ = made
    if name == "e5":
        pytest.skip("llama.cpp's converter takes its unigrams for WordPiece")
    write_bert(tmp_path / "m.gguf", folder, "F16")
    found = as_fixture(tmp_path / "m.gguf", OWN)
    wanted = json.loads(FIXTURE.read_text())[name]
    assert found["keys"] == wanted["keys"]
    assert found["tensors"] == wanted["tensors"]


def test_tokens_and_places_are_those_of_the_library(made):
    """Places without the space around them. What spells a mark is text here."""
    name, folder, path = made
    tokenizer = open_tokenizer(path)
    library = AutoTokenizer.from_pretrained(folder, split_special_tokens=True)
    texts = TEXTS
    if name in ("xlm", "e5"):  # the library's unigrams take a mark's text for it; the tiny map leaves a line's end
        texts = [*(text.replace("\n", " ") for text in TEXTS[:-1]), "turn  A light on", "日本 on 語", "½ on"]
    for text in texts:
        wanted = library(text, return_offsets_mapping=True)
        found = tokenizer.encode_places(text)
        assert found.ids == wanted["input_ids"], text
        expected = [bare(text, *place) if tokenizer.decode([token]) else (0, 0)
                    for token, place in zip(found.ids, wanted["offset_mapping"], strict=True)]
        assert found.places == expected, text
        assert tokenizer.encode(text) == found.ids
    assert tokenizer.decode(tokenizer.encode("the on")[1:-1]) == "the on"
    with pytest.raises(DataError, match="half a surrogate"):
        tokenizer.encode("\ud800")
    tokenizer.close()
    with pytest.raises(ValueError, match="closed"):
        tokenizer.encode("on")


@pytest.mark.parametrize("write", [write_mmbert_checkpoint, write_gemma_checkpoint])
def test_any_text_is_cut_as_the_library_cuts_it(tmp_path, write):
    """Several spaces, tokens that are found whole, bytes; "▁" itself for words alone, which llama.cpp spells else."""
    write_bert(tmp_path / "m.gguf", write(tmp_path / "m"), "F32")
    tokenizer = open_tokenizer(tmp_path / "m.gguf")
    library = AutoTokenizer.from_pretrained(tmp_path / "m", split_special_tokens=True)
    parts = ["the", " ", "  ", "on", "li", "\n", "<table>", "ü", "日", "😶", ".", "<0x41>", "<bos>", "\t"]
    if write is write_mmbert_checkpoint:
        parts.append("▁")
    rng = np.random.default_rng(0)
    for _ in range(1000):
        text = "".join(rng.choice(parts, rng.integers(12)))
        assert tokenizer.encode(text) == library(text)["input_ids"], text
        places = tokenizer.encode_places(text).places
        assert all(0 <= begin <= end <= len(text) for begin, end in places)


def bare(text, begin, end):
    inside = text[begin:end]
    begin += len(inside) - len(inside.lstrip())
    return (begin, begin + len(inside.strip())) if inside.strip() else (0, 0)


def test_vectors_are_those_of_transformers(made):
    _, folder, path = made
    tokenizer = open_tokenizer(path)
    model = AutoModel.from_pretrained(folder, attn_implementation="eager").eval()
    tokens = [tokenizer.encode(text) for text in TEXTS]
    expected = np.array([truth(model, ids) for ids in tokens])
    rows = [at_first(np.array(ids, np.int32), 0) for ids in tokens]
    close(open_trainer(path, VECTOR, max_length=90).decoder.pooled(collate(rows, share=False)), expected)
    close(vectors(path, TEXTS), expected, LLAMA_CPP)


@pytest.mark.dev
@pytest.mark.parametrize(("name", "repo"), [("mmbert-small", "jhu-clsp/mmBERT-small"),
                                            ("multilingual-e5-small", "intfloat/multilingual-e5-small")])
def test_encoders_for_other_languages_are_pulled_by_name(tmp_path, monkeypatch, name, repo):
    """The hub has checkpoints of their kinds there. The published ones were not to be had here."""
    pytest.importorskip("huggingface_hub")
    folder = (write_mmbert_checkpoint if name == "mmbert-small" else write_e5_checkpoint)(tmp_path / "m")
    files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with serving(Hub(files, repo=repo)) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        said = run("pull", name)
    assert "licence mit" in said
    write_bert(tmp_path / "f32.gguf", folder, "F32")
    tokens, model = open_tokenizer(name), AutoModel.from_pretrained(folder, attn_implementation="eager").eval()
    expected = np.array([truth(model, tokens.encode(text)) for text in TEXTS])
    assert (vectors(tmp_path / "f32.gguf", TEXTS) * expected).sum(1).min() > 0.9999
    assert (vectors(find_model(name), TEXTS) * expected).sum(1).min() > 0.98


@pytest.mark.dev
def test_it_learns_json_and_is_served(made, tmp_path):
    _, folder, _ = made
    run("compress", folder, "-o", tmp_path / "m.edge", "--type", "Q8_0")
    result = train(tmp_path / "m.edge", SLOTS, tmp_path / "out", SLOTS, epochs=12, rank=4, threads=1, lr=3e-3)
    assert result.record["objective"]["name"] == "tag"
    assert result.loss_after < 0.8 * result.loss_before
    with Classifier(tmp_path / "m.edge", tmp_path / "out", threads=1) as served:
        found = [json.loads(one.label) for one in served.classify([row["prompt"] for row in SLOTS])]
    assert all(one.get("place", "a") in row["prompt"] for one, row in zip(found, SLOTS, strict=True))


@pytest.mark.parametrize(("kind", "file", "change", "says"), [
    ("modern", "config.json", {"norm_bias": True}, "norm_bias = True"),
    ("modern", "config.json", {"hidden_activation": "relu"}, "hidden_activation = relu"),
    ("roberta", "config.json", {"hidden_act": "relu"}, "hidden_act = relu"),
    ("roberta", "tokenizer.json", {"pre_tokenizer": {"type": "Split"}}, "it has Split, known is ByteLevel"),
    ("roberta", "tokenizer.json", {"pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": True}}, "as GPT-2 does"),
    ("roberta", "tokenizer.json", {"normalizer": {"type": "Lowercase"}}, "it has Lowercase, known is NFC"),
    ("roberta", "tokenizer.json", {"post_processor": None}, "it puts '' and '' around a text"),
    ("mmbert", "tokenizer.json", {"normalizer": {"type": "NFKC"}}, "it normalises by NFKC"),
    ("mmbert", "tokenizer.json", {"pre_tokenizer": {"type": "Metaspace", "replacement": "_"}}, "it marks spaces by"),
    ("mmbert", "tokenizer.json", {"pre_tokenizer": {"type": "Metaspace", "prepend_scheme": "never"}},
     "it marks spaces by"),
    ("mmbert", "tokenizer.json", {"pre_tokenizer": {"type": "Whitespace"}}, "it has Whitespace, known is Metaspace"),
    ("gemma", "tokenizer.json", {"normalizer": None}, "it has Split, known is Metaspace")])
def test_variants_that_llama_cpp_does_not_compute_are_refused(tmp_path, kind, file, change, says):
    folder = WRITERS[kind](tmp_path / "m")
    edit(folder / file, **change)
    with pytest.raises(UnsupportedError, match=says):
        write_bert(tmp_path / "m.gguf", folder)


@pytest.mark.parametrize(("file", "change", "says"), [
    ("config.json", {"max_position_embeddings": 50}, r"of shape \[98, 64\], config.json says"),
    ("config.json", {"vocab_size": 20}, r"of shape \[266, 64\], config.json says \[20, 64\]"),
    ("config.json", {"pad_token_id": None}, "not as transformers writes it"),
    ("tokenizer_config.json", {"cls_token": None, "bos_token": None}, "it puts '<s>'")])
def test_what_does_not_belong_together_is_said(tmp_path, file, change, says):
    folder = write_roberta_checkpoint(tmp_path / "m")
    edit(folder / file, **change)
    with pytest.raises((FormatError, UnsupportedError), match=says):
        write_bert(tmp_path / "m.gguf", folder)
    (folder / "tokenizer_config.json").unlink()
    edit(folder / "config.json", vocab_size=266, pad_token_id=1, max_position_embeddings=98)
    with pytest.raises(FormatError, match=r"has no tokenizer_config\.json"):
        write_bert(tmp_path / "m.gguf", folder)
    assert is_bert(folder)


@pytest.mark.parametrize("change", [
    lambda data: data[:4], lambda data: data[:-1] + b"x", lambda _: bytes(4) + b"\0",
    lambda data: (8 * 1024).to_bytes(4, "little") + data[4:],
    lambda data: data[:4] + (0x7FFF << 10).to_bytes(4, "little") + data[8:],  # the root's children are outside
    lambda data: data[:4 + 4 * 0x140] + b"\x99\0\0\x80" + data[8 + 4 * 0x140:]])  # a text is
def test_a_normalisation_that_points_outside_is_refused(tmp_path, change):
    folder = write_xlm_checkpoint(tmp_path / "m")
    write_bert(tmp_path / "m.gguf", folder)
    file = open_gguf(tmp_path / "m.gguf")
    check_encoder(file)
    key = "tokenizer.ggml.precompiled_charsmap"
    types = file.types
    write_gguf(tmp_path / "n.gguf", "bert", {**file.metadata, key: list(change(charsmap()))}, file.tensors, types)
    with pytest.raises(FormatError, match="points outside of itself"):
        check_encoder(open_gguf(tmp_path / "n.gguf"))


def test_a_table_of_tokens_is_made_of_words_alone(made, tmp_path):
    said = run("compress", made[1], "-o", tmp_path / "table", "--static", "8", code=1)
    assert "WordPiece" in said
