"""A daemon with --prompt: chats without a system message are given it."""

import json

import httpx
import pytest
from daemons import PATIENCE, daemon
from encoders import WORDS, tiny_bert, write_encoder
from services import SMALL, open_service, upload
from thread_workers import ThreadWorker
from tiny import write_tiny

from edgetune.adapters.published import public_record
from edgetune.adapters.store import PROMPT, read_run
from edgetune.daemon.options import DaemonConfig
from edgetune.daemon.service import Service
from edgetune.errors import UsageError
from edgetune.serving.llama import LlamaModel
from edgetune.serving.prompt_file import Prompt, read_prompt, write_prompt

QUESTION = [{"role": "user", "content": "turn off"}]
BEFORE = [{"role": "system", "content": "set the light"}, {"role": "user", "content": "turn on"},
          {"role": "assistant", "content": "the light"}]
OWN = [{"role": "system", "content": "tool"}, *QUESTION]


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """(the daemon's URL, the model)"""
    folder = tmp_path_factory.mktemp("prompted")
    model = write_tiny(folder / "tiny.gguf", formats="Q8_0")
    write_prompt(folder / "prompt.json", Prompt("set the light", [{"prompt": "turn on", "completion": "the light"}]))
    with daemon(model, folder / "state", prompt=str(folder / "prompt.json")) as running:
        yield running.url, model


@pytest.mark.parametrize(("given", "read"), [(QUESTION, [*BEFORE, *QUESTION]), (OWN, OWN)])
def test_chats_ask_with_it(served, given, read):
    url, model = served
    with LlamaModel(model, threads=1) as alone:
        expected = "".join(alone.chat(read, max_tokens=6))
        tokens = len(alone.tokenizer.encode(alone.tokenizer.render(read, None, add_generation_prompt=True), bos=True))
    with httpx.Client(base_url=url, timeout=PATIENCE) as http:
        openai = http.post("/v1/chat/completions", json={"model": "tiny", "messages": given, "max_tokens": 6}).json()
        text = http.post("/v1/completions", json={"model": "tiny", "prompt": "turn off", "max_tokens": 1}).json()
    assert openai["choices"][0]["message"]["content"] == expected
    assert openai["usage"]["prompt_tokens"] == tokens
    assert text["usage"]["prompt_tokens"] < tokens  # a text is continued as it is


def test_what_a_job_learns_is_asked_with_it(tmp_path):
    """The adapter has its own copy, and is evaluated with it."""
    write_prompt(tmp_path / "prompt.json", Prompt("set the light", [{"prompt": "turn on", "completion": "the light"}]))
    with open_service(tmp_path, start_process=ThreadWorker, prompt=str(tmp_path / "prompt.json")) as service:
        job = service.jobs.create("tiny", upload(service), hyperparameters={**SMALL, "steps": 2, "max_length": 200})
        done = service.jobs.wait(job.id, PATIENCE)
        assert done.status == "succeeded", done.error
        path = service.adapters.path(str(done.result))
        assert read_prompt(path / PROMPT[0]) == read_prompt(tmp_path / "prompt.json")
        plain = len(service.served.tokenizer.encode("turn on lamp 0"))
        assert read_run(path)["data"]["tokens"] > 20 * (plain + 30)
        assert str(tmp_path) not in json.dumps(public_record(read_run(path)))


def test_an_encoder_has_none(tmp_path):
    write_encoder(tmp_path / "encoder.gguf", tiny_bert(), WORDS)
    write_prompt(tmp_path / "prompt.json", Prompt("set the light"))
    config = DaemonConfig(state=str(tmp_path / "state"), prompt=str(tmp_path / "prompt.json"))
    with pytest.raises(UsageError, match=r"prompt is .* is an encoder"), Service(tmp_path / "encoder.gguf", config):
        pass
