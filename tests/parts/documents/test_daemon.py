"""A daemon with --index: every API asks with passages, and answers name their sources."""

import httpx
import pytest
from daemons import PATIENCE, daemon, openai_client
from encoders import WORDS, tiny_bert, write_encoder
from indexes import small_index
from part_tables import needs
from tiny import write_tiny

from edgetune.daemon.options import DaemonConfig
from edgetune.daemon.service import Service
from edgetune.errors import UsageError
from edgetune.parts.documents.passages import open_passages
from edgetune.serving.llama import LlamaModel

QUESTION = [{"role": "user", "content": "turn on"}]


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """(the daemon's URL, the messages that the model reads, the answer to these)"""
    folder = tmp_path_factory.mktemp("indexed")
    model = write_tiny(folder / "tiny.gguf", formats="Q8_0")
    index = small_index(folder / "index", {"a.md": "# Lamp\n\nturn on the light\n", "b.txt": "set off\n"})
    passages = open_passages(index, 2, 1)
    read = passages.put(QUESTION)
    passages.close()
    with LlamaModel(model, threads=1) as alone:
        said = "".join(alone.chat(read, max_tokens=6))
    with daemon(model, folder / "state", index=str(index), passages=2) as running:
        yield running.url, said


def test_chats_ask_with_them_and_name_them(served):
    url, said = served
    with httpx.Client(base_url=url, timeout=PATIENCE) as http:
        chat = http.post("/v1/chat/completions", json={"messages": QUESTION, "max_tokens": 6}).json()
        text = http.post("/v1/completions", json={"prompt": "turn on", "max_tokens": 2}).json()
    assert chat["choices"][0]["message"]["content"] == said
    assert {source["file"] for source in chat["sources"]} == {"a.md", "b.txt"}
    assert text.get("sources") is None


def test_streams_name_them_at_the_end(served):
    pytest.importorskip("openai")
    url, said = served
    with openai_client(url) as client:  # left open, its socket is a warning in whatever test comes next
        chunks = list(client.chat.completions.create(model="tiny", messages=QUESTION, max_tokens=6, stream=True))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == said
    assert [bool(getattr(chunk, "sources", None)) for chunk in chunks] == [*[False] * (len(chunks) - 1), True]


@needs("ollama")
def test_ollamas_answers_name_them(served):
    url, said = served
    with httpx.Client(base_url=url, timeout=PATIENCE) as http:
        chat = http.post("/v1/chat/completions", json={"messages": QUESTION, "max_tokens": 6}).json()
        ollama = http.post("/api/chat", json={"model": "tiny", "messages": QUESTION, "stream": False,
                                              "options": {"num_predict": 6}}).json()
    assert ollama["message"]["content"] == said
    assert ollama["sources"] == [{name: value for name, value in source.items() if value is not None}
                                 for source in chat["sources"]]


@needs("responses")
def test_responses_name_them_as_citations(served):
    pytest.importorskip("openai")
    url, said = served
    with openai_client(url) as client:
        asked = {"model": "tiny", "input": "turn on", "max_output_tokens": 6}
        message = client.responses.create(**asked).output[0].content[0]
        events = list(client.responses.create(**asked, stream=True))
    assert message.text == said
    assert {(each.type, each.filename, each.index) for each in message.annotations} == {
        ("file_citation", name, len(said)) for name in ("a.md", "b.txt")}
    added = [event for event in events if event.type == "response.output_text.annotation.added"]
    last = events[-1].response.output[0].content[0]
    assert [event.annotation.file_id for event in added] == [each.file_id for each in last.annotations]


def test_an_encoder_has_none(tmp_path):
    write_encoder(tmp_path / "encoder.gguf", tiny_bert(), WORDS)
    index = small_index(tmp_path / "index", {"a.txt": "on"})
    config = DaemonConfig(state=str(tmp_path / "state"), index=str(index))
    with pytest.raises(UsageError, match=r"index is .* is an encoder"), Service(tmp_path / "encoder.gguf", config):
        pass
    with pytest.raises(UsageError, match="there is no index"), Service(
            write_tiny(tmp_path / "tiny.gguf"), DaemonConfig(state=str(tmp_path / "other"), index="none.index")):
        pass
