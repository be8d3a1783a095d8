"""An index, and a daemon's vector stores, that edgetune of December 2026 wrote still open."""

import json

import httpx
from commands import run
from daemons import PATIENCE, daemon
from indexes import needs_retrieval
from old_states import extracted


def test_an_index_of_an_earlier_version_is_searched(tmp_path):
    needs_retrieval()
    index = extracted(tmp_path, "index") / "small.index"
    said = json.loads(run("documents", "search", index, "the garden lamp", "--threads", 1, "--json"))
    assert "garden lamp is white" in " ".join(passage["text"] for passage in said["results"])


def test_a_vector_store_of_an_earlier_version_is_there(tmp_path):
    needs_retrieval()
    state = extracted(tmp_path, "daemon") / "state"
    encoder = tmp_path / "index" / "encoder.gguf"
    with daemon(tmp_path / "tiny.gguf", state, embeddings=str(encoder)) as running:
        (store,) = httpx.get(f"{running.url}/v1/vector_stores", timeout=PATIENCE).json()["data"]
        assert (store["name"], store["status"]) == ("papers", "completed")
        files = httpx.get(f"{running.url}/v1/vector_stores/{store['id']}/files", timeout=PATIENCE).json()["data"]
        assert [file["status"] for file in files] == ["completed"]
        kept = httpx.get(f"{running.url}/v1/drawn", timeout=PATIENCE).json()
        assert kept["counts"]["kept"] == len(kept["data"]) > 0
