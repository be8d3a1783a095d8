"""/tokenize and /detokenize in llama-server's shapes, compared with llama_cpp.Llama's own tokens; /health."""

import llama_cpp
import pytest

TEXTS = ["turn the light on", "", "Grüße, 東京 \N{DROMEDARY CAMEL}!", "<|im_start|>user\nlamp<|im_end|>"]


@pytest.fixture(scope="module")
def llama(model):
    found = llama_cpp.Llama(str(model), vocab_only=True, verbose=False)
    yield found
    found.close()


def post(http, path, **body):
    said = http.post(path, json=body)
    assert said.status_code == 200, said.text
    return said.json()


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("add", [False, True])
@pytest.mark.parametrize("parse", [False, True])
def test_tokens_are_llama_cpps(http, llama, text, add, parse):
    expected = llama.tokenize(text.encode(), add_bos=add, special=parse)
    assert post(http, "/tokenize", content=text, add_special=add, parse_special=parse) == {"tokens": expected}
    if not add:
        assert post(http, "/detokenize", tokens=expected) == {"content": text}


def test_pieces_are_texts_or_bytes(http):
    plain = post(http, "/tokenize", content=TEXTS[2])["tokens"]  # by default special tokens are read, none is added
    pieces = post(http, "/tokenize", content=TEXTS[2], with_pieces=True)["tokens"]
    assert [piece["id"] for piece in pieces] == plain
    data = b"".join(piece["piece"].encode() if isinstance(piece["piece"], str) else bytes(piece["piece"])
                    for piece in pieces)
    assert data.decode() == TEXTS[2]
    assert {type(piece["piece"]) for piece in pieces} == {str, list}


@pytest.mark.parametrize(("path", "body", "says"), [
    ("/detokenize", {"tokens": [10**6]}, "a token id is 1000000; token ids must be from 0 to"),
    ("/detokenize", {"tokens": [-1]}, "a token id is -1"), ("/tokenize", {}, "content is missing"),
    ("/tokenize", {"content": "a", "warp": 1}, "there is no 'warp'")])
def test_what_has_no_tokens_is_refused_in_a_sentence(http, path, body, says):
    said = http.post(path, json=body)
    assert said.status_code == 400
    assert says in said.json()["error"]["message"]


@pytest.mark.parametrize("path", ["/health", "/v1/health"])
def test_health_is_said_where_llama_servers_clients_ask(http, path):
    assert http.get(path).json() == http.get("/healthz").json()
    assert http.get(path).json()["status"] == "ok"
    assert (http.head(path).status_code, http.head(path).content) == (200, b"")
