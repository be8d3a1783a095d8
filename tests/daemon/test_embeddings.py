"""/v1/embeddings by OpenAI's client: the base's hidden states, and a file of --embeddings. Vectors are compared with
those of llama_cpp.Llama, which computes the same files without a daemon.
"""

import json
import socket
from contextlib import ExitStack

import httpx
import numpy as np
import openai
import pytest
from daemons import ASK, CHAT, PATIENCE, daemon
from encoders import WORDS, tiny_bert, write_encoder
from services import until
from tiny import write_tiny

TEXTS = ["turn the light on", "kitchen", "off", *(f"the light {number}" for number in range(20))]


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


def expected(path, texts, **options):
    import llama_cpp
    with np.errstate(all="ignore"):
        model = llama_cpp.Llama(str(path), embedding=True, n_threads=1, n_ctx=0, verbose=False, **options)
        found = np.array(model.embed(texts, normalize=True))
        model.close()
    return found


@pytest.mark.parametrize("form", ["float", "base64"])
@pytest.mark.parametrize("name", ["tiny", "enc"])
def test_vectors_are_llama_cpps(client, folder, name, form):
    """base64 is what the client asks for by itself."""
    said = client.embeddings.create(model=name, input=TEXTS, **({} if form == "base64" else {"encoding_format": form}))
    path = folder / ("tiny.gguf" if name == "tiny" else "Enc.gguf")
    truth = expected(path, TEXTS, **({"pooling_type": 1} if name == "tiny" else {}))
    found = np.array([item.embedding for item in said.data])
    assert [item.index for item in said.data] == list(range(len(TEXTS)))
    np.testing.assert_allclose(found, truth, atol=2e-3)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)
    assert said.model == name
    assert said.usage.prompt_tokens == said.usage.total_tokens > len(TEXTS)


def test_one_text_tokens_and_requests_without_a_model_are_taken_too(client, running):
    """Of the base the tokens are those of its vocabulary."""
    tokens = running.service.served.tokenizer.encode("the light on")
    named, unnamed = (client.embeddings.create(model=name, input="kitchen") for name in ("enc", ""))
    assert (unnamed.model, unnamed.data[0].embedding) == ("enc", named.data[0].embedding)
    assert "enc" in [model.id for model in client.models.list()]
    assert client.embeddings.create(model="tiny:latest", input="kitchen").model == "tiny"
    one, ids, lists = (client.embeddings.create(model="tiny", input=given)
                       for given in ("the light on", tokens, [tokens, tokens[:1]]))
    assert (one.data[0].embedding, one.usage.total_tokens) == (ids.data[0].embedding, len(tokens))
    assert len(lists.data) == 2
    found = running.service.embed(["the light on"])  # without HTTP, of the file
    assert (found.model, found.vectors.shape, found.vectors.dtype) == ("enc", (1, 64), np.float32)
    np.testing.assert_allclose(lists.data[0].embedding, one.data[0].embedding, atol=1e-5)


@pytest.mark.parametrize(("wrong", "says"), [
    ({"input": ""}, "empty"), ({"input": ["on", ""]}, "empty"), ({"input": []}, "input"), ({"input": [[]]}, "input"),
    ({"input": "on " * 200}, "96 is the most"), ({"input": [9999]}, "9999"), ({"input": ["on"] * 2049}, "2048 items"),
    ({"encoding_format": "hex"}, "encoding_format"), ({"dimensions": 32}, "dimensions is 32, vectors have 64"),
    ({"model": "text-embedding-3-small"}, "ask enc or tiny")])
def test_what_cannot_be_embedded_is_refused(client, wrong, says):
    assert client.embeddings.create(model="enc", input="on", dimensions=64).model == "enc"
    with pytest.raises((openai.BadRequestError, openai.NotFoundError), match=says):
        client.embeddings.create(**{"model": "enc", "input": "on", "encoding_format": "float", **wrong})


def test_answers_do_not_wait_for_vectors_and_too_many_are_refused(client, running):
    """What many texts need is computed between the tokens of answers; three requests are one in progress and two that
    wait."""
    service = running.service
    body = json.dumps({"model": "tiny", "input": [f"the light {number} " * 60 for number in range(800)]}).encode()
    address = running.url.removeprefix("http://")
    head = (f"POST /v1/embeddings HTTP/1.1\r\nHost: {address}\r\nContent-Length: {len(body)}\r\n"
            "Content-Type: application/json\r\n\r\n").encode()
    with ExitStack() as opened:
        host, _, port = address.partition(":")
        for _ in range(3):
            waiting = opened.enter_context(socket.create_connection((host, int(port))))
            waiting.sendall(head + body)
        until(lambda: service.embeddings.places.waiting == 3)
        until(lambda: service.batcher.busy)
        with pytest.raises(openai.RateLimitError, match="2 requests"):
            client.embeddings.create(model="tiny", input="on")
        assert httpx.post(running.url + CHAT, json=ASK, timeout=PATIENCE).status_code == 200
        assert service.embeddings.places.waiting == 3  # answered meanwhile
    until(lambda: service.embeddings.places.waiting == 0, 10)  # nobody waits for them: they are not computed
    until(lambda: not service.batcher.busy)
    assert client.embeddings.create(model="tiny", input="on").data
