"""Ollama's API: its clients ask the daemon as they ask Ollama."""

from ...manifest import Manifest

MANIFEST = Manifest(
    name="ollama",
    routes=("routes", "models"),
    errors={"/api/": "bodies:plain_error"},
)
