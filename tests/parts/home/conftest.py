"""A house that answers, trained once for the tests of this folder by a tiny encoder."""

import json

import pytest
from commands import run
from encoders import WORDS, tiny_bert, write_encoder
from houses import write_house


@pytest.fixture(scope="session")
def encoder(on_disk):
    """Where every user may read it, as a service must."""
    return write_encoder(on_disk / "encoder.gguf", tiny_bert(), WORDS)


@pytest.fixture(scope="session")
def trained(tmp_path_factory, encoder):
    """The folder of a house, and what its training printed."""
    folder = tmp_path_factory.mktemp("home")
    own = {"sentence": "movie time", "calls": [{"name": "HassTurnOff", "arguments": {"name": "Hall Lamp"}}]}
    (folder / "own.jsonl").write_text(json.dumps(own))
    said = run("home", "train", write_house(folder), "-o", folder / "house", "--count", 200, "--encoder", encoder,
               "--own", folder / "own.jsonl", "--threads", 1, "--json")
    return folder / "house", json.loads(said)
