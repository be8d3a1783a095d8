"""One daemon for all tests of a module, which says in SHAPE and DAEMON what both are: fixtures for a conftest."""

import httpx
import pytest
from daemons import PATIENCE, daemon, openai_client
from tiny import write_tiny


@pytest.fixture(scope="module")
def model(request, tmp_path_factory):
    """Read only."""
    shape = {"formats": "Q8_0", "n_context": 512, **getattr(request.module, "SHAPE", {})}
    return write_tiny(tmp_path_factory.mktemp("model") / "Tiny.gguf", **shape)


@pytest.fixture(scope="module")
def running(request, model, tmp_path_factory):
    state = tmp_path_factory.mktemp("daemon") / "state"
    with daemon(model, state, **getattr(request.module, "DAEMON", {})) as made:
        yield made


@pytest.fixture(scope="module")
def client(running):
    """OpenAI's."""
    with openai_client(running.url) as made:
        yield made


@pytest.fixture(scope="module")
def http(running):
    with httpx.Client(base_url=running.url, timeout=PATIENCE) as made:
        yield made
