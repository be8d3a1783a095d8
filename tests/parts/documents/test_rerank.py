"""/v1/rerank: scores are cosines of the vectors that llama_cpp.Llama makes of the same file."""

import httpx
import numpy as np
import pytest
from daemons import PATIENCE, daemon
from encoder_daemon import write_tiny_encoder
from encoders import WORDS, tiny_bert, write_encoder
from indexes import needs_retrieval, small_encoder
from tiny import write_tiny

from edgetune.daemon.api.security import scope_of
from edgetune.daemon.keys import KeyScope
from edgetune.parts.documents import rerank, routes, vector_stores

QUERY = "turn the light on"
DOCUMENTS = ["kitchen", "turn the light on", "off", "the light 7"]
PATHS = ["/v1/rerank", "/rerank", "/v1/reranking", "/reranking"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("models")
    write_tiny(made / "tiny.gguf", formats="Q8_0", n_context=512)
    write_encoder(made / "Enc.gguf", tiny_bert(), WORDS)
    return made


@pytest.fixture(scope="module")
def http(folder):
    with daemon(folder / "tiny.gguf", folder / "state", embeddings=str(folder / "Enc.gguf")) as running, \
            httpx.Client(base_url=running.url, timeout=PATIENCE) as made:
        yield made


def cosines(path):
    """Of each document's vector and the question's."""
    import llama_cpp
    with np.errstate(all="ignore"):
        model = llama_cpp.Llama(str(path), embedding=True, n_threads=1, n_ctx=0, verbose=False)
        vectors = np.array(model.embed([QUERY, *DOCUMENTS], normalize=True))
        model.close()
    return vectors[1:] @ vectors[0]


def check(said, truth, count=4, atol=5e-3):
    """What is said of the documents is true, and the best stand first."""
    places = [one["index"] for one in said["results"]]
    scores = [one["relevance_score"] for one in said["results"]]
    assert len(set(places)) == count
    assert scores == sorted(scores, reverse=True)
    np.testing.assert_allclose(scores, truth[places], atol=atol)
    assert places[0] == 1  # the question itself


@pytest.mark.parametrize("path", PATHS)
def test_documents_are_ranked_by_their_vectors(http, folder, path):
    answer = http.post(path, json={"query": QUERY, "documents": DOCUMENTS})
    assert answer.status_code == 200, answer.text
    said = answer.json()
    assert (said["object"], said["model"]) == ("list", "enc")
    assert said["usage"]["total_tokens"] == said["usage"]["prompt_tokens"] > len(DOCUMENTS)
    check(said, cosines(folder / "Enc.gguf"))
    assert all(one.keys() == {"index", "relevance_score"} for one in said["results"])


def test_some_documents_with_their_texts(http, folder):
    given = [{"text": text} for text in DOCUMENTS]
    said = http.post("/v1/rerank", json={"query": QUERY, "documents": given, "top_n": 2, "return_documents": True,
                                         "model": "enc"}).json()
    check(said, cosines(folder / "Enc.gguf"), 2)
    assert [one["document"] for one in said["results"]] == [given[one["index"]] for one in said["results"]]
    long = http.post("/v1/rerank", json={"query": QUERY, "documents": ["on " * 500]})  # cut
    assert len(long.json()["results"]) == 1


@pytest.mark.parametrize(("wrong", "status", "says"), [
    ({"documents": []}, 400, "documents has 0 items"), ({"query": ""}, 400, "query"), ({"top_n": 0}, 400, "top_n"),
    ({"documents": [""]}, 400, "a text is empty"), ({"documents": [{"title": "a"}]}, 400, "documents"),
    ({"model": "tiny"}, 404, "'tiny' ranks no documents; ask enc, or name none")])
def test_what_cannot_be_ranked_is_refused_in_a_sentence(http, wrong, status, says):
    said = http.post("/v1/rerank", json={"query": QUERY, "documents": DOCUMENTS, **wrong})
    assert said.status_code == status
    assert says in said.json()["error"]["message"]


def test_an_encoder_that_answers_ranks_too(tmp_path):
    path = write_tiny_encoder(tmp_path / "enc.gguf")
    with daemon(path, tmp_path / "state") as running:
        said = httpx.post(running.url + "/v1/rerank", json={"query": QUERY, "documents": DOCUMENTS}, timeout=PATIENCE)
    assert said.status_code == 200, said.text
    assert said.json()["model"] == "enc"
    assert said.json()["results"][0]["index"] == 1


def test_the_encoder_of_documents_ranks_if_no_other_is_served(folder, tmp_path, monkeypatch):
    """Without it the way out is named: the vectors of a model that writes text rank nothing."""
    needs_retrieval()
    path = small_encoder(tmp_path)
    body = {"query": QUERY, "documents": DOCUMENTS}
    with daemon(folder / "tiny.gguf", tmp_path / "state") as running, \
            httpx.Client(base_url=running.url, timeout=PATIENCE) as http:
        monkeypatch.setattr(vector_stores, "ENCODER", "hf:none/none:none.gguf")
        refused = http.post("/v1/rerank", json=body)
        assert refused.status_code == 400
        assert "start the daemon with --embeddings, or edgetune pull minilm" in refused.json()["error"]["message"]
        monkeypatch.setattr(vector_stores, "ENCODER", str(path))
        said = http.post("/v1/rerank", json=body)
        assert said.status_code == 200, said.text
        check(said.json(), cosines(path), atol=0.03)  # whole numbers of 8 bits
        assert http.post("/v1/rerank", json={**body, "model": said.json()["model"]}).json() == said.json()
        assert http.post("/v1/rerank", json={**body, "model": "tiny"}).status_code == 404


def test_a_key_for_answers_may_rank_and_search_and_reads_no_lists():
    both = [*rerank.router.routes, *routes.router.routes]
    assert {route.path for route in both if scope_of(route) < KeyScope.ADMIN} == {
        "/v1/rerank", "/rerank", "/v1/reranking", "/reranking", "/v1/vector_stores/{store_id}/search"}
