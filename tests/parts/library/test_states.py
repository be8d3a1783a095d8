"""The questions by which an adapter is chosen, as edgetune of December 2026 wrote them, still count."""

import httpx
from daemons import PATIENCE, daemon
from old_states import extracted


def test_adapters_of_an_earlier_version_keep_their_questions(tmp_path):
    state = extracted(tmp_path, "daemon") / "state"
    encoder = tmp_path / "index" / "encoder.gguf"
    with daemon(tmp_path / "tiny.gguf", state, embeddings=str(encoder)) as running:
        listed = httpx.get(f"{running.url}/v1/adapters", timeout=PATIENCE).json()["data"]
        assert sorted(adapter["questions"] for adapter in listed) == [0, 24]
        names = [model["id"] for model in httpx.get(f"{running.url}/v1/models", timeout=PATIENCE).json()["data"]]
        assert "tiny:auto" in names
