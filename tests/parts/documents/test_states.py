"""An index, and a daemon's vector stores, that edgetune of December 2026 wrote still open."""

from contextlib import closing

import httpx
from daemons import PATIENCE, daemon
from indexes import needs_retrieval
from old_states import extracted


def test_an_index_of_an_earlier_version_is_searched(tmp_path):
    """Its encoder is no longer where it was."""
    needs_retrieval()
    from edgetune.parts.documents.search import Encoding, Index
    folder = extracted(tmp_path, "index")
    with (closing(Encoding(folder / "encoder.gguf", 1)) as encoding,
          Index(folder / "small.index", encoding=encoding) as index):
        assert "garden lamp is white" in " ".join(found.text for found in index.search("the garden lamp").passages)


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
