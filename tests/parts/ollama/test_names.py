"""A model that was opened by the name that commands know answers to it, and to its file's name."""

import ollama
import pytest
from daemons import PATIENCE, daemon
from tiny import write_tiny

from edgetune.daemon.api.security import scope_of
from edgetune.daemon.keys import KeyScope
from edgetune.formats.named import KNOWN, place_of
from edgetune.parts.ollama import models, routes

NAME = "qwen3-0.6b"
FILE = "qwen3-0.6b-q8_0"


@pytest.fixture(scope="module")
def running(tmp_path_factory):
    path = place_of(KNOWN[NAME])
    path.parent.mkdir(parents=True, exist_ok=True)
    write_tiny(path, n_context=512)
    with daemon(NAME, tmp_path_factory.mktemp("state")) as made:
        yield made
    path.unlink()


@pytest.mark.parametrize("name", [NAME, f"{NAME}:latest", FILE])
def test_a_model_answers_to_its_names(running, name):
    with ollama.Client(host=running.url, timeout=PATIENCE) as client:
        assert client.chat(name, [{"role": "user", "content": "a"}], options={"num_predict": 1}).done
        assert len(client.embed(name, "a").embeddings) == 1
        assert client.show(name).details.family


def test_a_key_for_answers_may_all_of_it():
    assert {scope_of(route) for module in (models, routes) for route in module.router.routes} == {KeyScope.ANSWER}
