"""A model that was opened by the name that commands know answers to it, and as before to its file's name."""

import json

import openai
import pytest
from daemons import daemon
from tiny import write_tiny

from edgetune.formats.named import KNOWN, place_of

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


@pytest.mark.parametrize("name", [NAME, FILE])
def test_openais_client(client, name):
    ask = {"messages": [{"role": "user", "content": "a"}], "max_tokens": 1}
    for model in (name, f"{name}:latest"):
        assert client.chat.completions.create(model=model, **ask).model == FILE
        assert client.embeddings.create(model=model, input="a").model == FILE
        assert client.models.retrieve(model).id == f"{FILE}{model.removeprefix(name)}"
    assert client.models.list().data[0].id == FILE
    with pytest.raises(openai.NotFoundError, match="there is no model"):
        client.chat.completions.create(model=f"{name}2", **ask)
    rows = "\n".join(json.dumps({"prompt": prompt, "completion": "b"}) for prompt in "acde")
    file = client.files.create(file=("rows.jsonl", rows.encode()), purpose="fine-tune")
    job = client.fine_tuning.jobs.create(model=name, training_file=file.id)
    client.fine_tuning.jobs.cancel(job.id)
    assert job.model == FILE
