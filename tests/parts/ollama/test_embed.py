"""/api/embed by Ollama's client: the vectors of /v1/embeddings."""

import numpy as np
import ollama
import pytest
from daemons import PATIENCE, daemon
from encoders import WORDS, tiny_bert, write_encoder
from tiny import write_tiny

TEXTS = ["turn the light on", "kitchen", "off"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("models")
    write_tiny(made / "tiny.gguf", formats="F32", n_context=512)
    write_encoder(made / "Enc.gguf", tiny_bert(), WORDS)
    return made


@pytest.fixture(scope="module")
def running(folder):
    with daemon(folder / "tiny.gguf", folder / "state", embeddings=str(folder / "Enc.gguf"), queue=2) as made:
        yield made


@pytest.fixture(scope="module")
def ollamas(running):
    with ollama.Client(host=running.url, timeout=PATIENCE) as made:
        yield made


@pytest.mark.parametrize("name", ["tiny", "tiny:base", "enc", "enc:latest"])
def test_ollamas_client_gets_the_same(ollamas, client, name):
    said = ollamas.embed(name, TEXTS)
    truth = client.embeddings.create(model=name[:4].rstrip(":"), input=TEXTS, encoding_format="float")
    np.testing.assert_allclose(said.embeddings, [item.embedding for item in truth.data], atol=1e-5)
    assert (said.model, said.prompt_eval_count) == (name, truth.usage.total_tokens)
    assert said.total_duration > 0
    assert ollamas.embed(name, TEXTS[0], keep_alive="5m", options={"num_ctx": 64}).embeddings == [
        pytest.approx(said.embeddings[0], abs=1e-5)]
    assert ollamas.embed(name, "").embeddings == []  # as one asks for a model to be loaded


def test_ollamas_client_sees_what_makes_vectors_and_has_long_texts_cut(ollamas, folder):
    """To what the encoder takes, with the mark at its end."""
    said = ollamas.embed("enc", ["on " * 200]).embeddings
    np.testing.assert_allclose(said, ollamas.embed("enc", " ".join(["on"] * 94)).embeddings, atol=1e-5)
    with pytest.raises(ollama.ResponseError, match="96 is the most"):
        ollamas.embed("enc", ["on " * 200], truncate=False)
    with pytest.raises(ollama.ResponseError, match="dimensions is 32, vectors have 64"):
        ollamas.embed("enc", "on", dimensions=32)
    with pytest.raises(ollama.ResponseError, match="makes no vectors") as caught:
        ollamas.embed("nomic-embed-text", "on")
    assert caught.value.status_code == 404
    listed = {found.model: found for found in ollamas.list().models}["enc:latest"]
    assert listed.size == pytest.approx((folder / "Enc.gguf").stat().st_size, rel=0.5)
    shown = ollamas.show("enc")
    assert (listed.details.family, shown.capabilities) == ("bert", ["embedding"])
    loaded = {found.model: found.context_length for found in ollamas.ps().models}
    assert (loaded["enc:latest"], loaded["tiny:latest"], shown.modelinfo["bert.context_length"]) == (96, 512, 96)
    with pytest.raises(ollama.ResponseError, match="enc"):
        ollamas.generate("enc", "on")
