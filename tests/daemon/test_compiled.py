"""A compiled prompt in a daemon: added, promoted and rolled back like any adapter; its tokens are never computed."""

import json
from concurrent.futures import ThreadPoolExecutor

import pytest
import templates
from commands import run
from counting import OPTIONS, dataset
from services import SMALL, upload
from thread_workers import ThreadWorker
from tiny import write_tiny

from edgetune.daemon.options import DaemonConfig
from edgetune.daemon.service import Service
from edgetune.errors import FormatError, MismatchError, UsageError
from edgetune.formats.bundle import open_bundle
from edgetune.training import run as train
from edgetune.training.config import TrainConfig

SHAPE = {"n_context": 2048, "metadata": {"tokenizer.chat_template": templates.CHATML}}
DAEMON = {"context": 2048, "start_process": ThreadWorker}
SYSTEM = {"role": "system", "content": "You switch the lamps of a home."}
NAMES = ("on", "off", "dim")
TOOLS = [{"type": "function", "function": {"name": name, "description": f"Lamps {name}",
                                           "parameters": {"type": "object", "properties": {}}}} for name in NAMES]
REORDERED = [{"function": dict(reversed(tool["function"].items())), "type": "function"} for tool in TOOLS]


def asked(text, *before):
    return [*before, {"role": "user", "content": text}]


@pytest.fixture(scope="module")
def compiled(model, tmp_path_factory):
    """Its folder, and the number of its tokens. The request has the keys of tools in another order."""
    folder = tmp_path_factory.mktemp("compiled")
    (folder / "request.json").write_text(json.dumps({"messages": asked("anything", SYSTEM), "tools": REORDERED}))
    said = json.loads(run("lab", "compile-prompt", model, folder / "request.json", "-o", folder / "home", "--json"))
    return folder / "home", said["tokens"]


@pytest.fixture(scope="module")
def adapter(running, compiled):
    """Its id; it is active."""
    url = ("--url", running.url)
    listed = run("adapters", "add", compiled[0], "--suffix", "home", *url)
    found = running.service.adapters.list()[0]
    assert found.id in listed
    assert (found.state, found.job, found.verdict["passed"]) == ("candidate", "", False)
    assert found.id.startswith("ft:tiny:home:")
    assert found.verdict["reason"] in " ".join(run("adapters", *url).split())
    assert f"active: {found.id}" in run("adapters", "promote", found.id, *url)
    return found.id


def ask(client, messages, model="tiny:latest", **options):
    """(tokens of the prompt, tokens that were cached, {a token: its log p} of the likeliest first ones)."""
    said = client.chat.completions.create(model=model, messages=messages, max_tokens=2, logprobs=True, top_logprobs=5,
                                          **{"tools": TOOLS, **options})
    first = said.choices[0].logprobs.content[0]
    return (said.usage.prompt_tokens, said.usage.prompt_tokens_details.cached_tokens,
            {one.token: one.logprob for one in first.top_logprobs})


def test_only_the_question_is_computed(client, adapter, compiled):
    """With its system message, or without any; the answer is that to the text."""
    for i, before in enumerate(([SYSTEM], [], [SYSTEM])):
        messages = asked(f"{i} lamps on", *before)
        tokens, cached, likely = ask(client, messages)
        assert cached == compiled[1] < tokens
        expected, _, of_text = ask(client, asked(f"{i} lamps on", SYSTEM), "tiny")
        assert tokens == expected
        assert len(likely.keys() & of_text.keys()) > 2
        assert likely == pytest.approx({**likely, **{key: of_text[key] for key in likely.keys() & of_text}},
                                       abs=0.1)  # llama.cpp rounds other pieces of a prompt otherwise
    assert ask(client, asked("again", SYSTEM), adapter, seed=1)[1] == compiled[1]


def test_other_requests_are_computed(client, adapter, compiled):
    """With another system message, and with other tools; many at once are kept apart."""
    for other, options in ((asked("3 lamps", {**SYSTEM, "content": "Be kind."}), {}),
                           (asked("3 lamps", SYSTEM), {"tools": TOOLS[:1]})):
        assert ask(client, other, adapter, **options)[1] < compiled[1]
    cases = [(asked(f"{i} lamps off", SYSTEM), model) for i in range(3) for model in ("tiny", adapter)]
    alone = [ask(client, *case, seed=2)[2] for case in cases]
    with ThreadPoolExecutor(len(cases)) as pool:
        found = [*pool.map(lambda case: ask(client, *case, seed=2)[2], cases)]
    assert found == alone


def test_tokens_of_several_answers_count_once(client, adapter, compiled):
    said = client.chat.completions.create(model=adapter, messages=asked("a lamp", SYSTEM), tools=TOOLS, n=2,
                                          max_tokens=1)
    assert compiled[1] <= said.usage.prompt_tokens_details.cached_tokens < said.usage.prompt_tokens


def test_it_is_rolled_back_restarted_and_deleted(model, compiled, tmp_path):
    with Service(model, DaemonConfig(state=str(tmp_path), context=2048, threads=1)) as service:
        id = service.add_adapter(compiled[0]).id
        service.adapters.promote(id, "test")
        assert service.adapters.rollback("test") is None
        service.adapters.promote(id, "test")
    with Service(model, DaemonConfig(state=str(tmp_path), context=2048, threads=1)) as service:
        assert service.adapters.serving == id
        found = service.chat(asked("a lamp", SYSTEM), TOOLS, max_tokens=1)
        assert found.text() is not None
        assert found.cached_tokens == compiled[1]
        service.adapters.rollback("test")
        service.adapters.delete(id)
        assert service.served.adapters() == []


def test_the_gate_compares_a_job_with_it(running, adapter):
    service = running.service
    rows = [{"prompt": f"turn on lamp {i}", "completion": "on"} for i in range(24)]
    job = service.jobs.wait(service.jobs.create("tiny", upload(service, rows), hyperparameters=SMALL).id, 60)
    assert (job.status, job.error) == ("succeeded", None)
    assert job.verdict["old"]["rows"] > 0
    assert adapter in service.adapters.ids()


def test_what_cannot_answer_is_refused(running, http, compiled, model, tmp_path):
    other = write_tiny(tmp_path / "other.gguf", seed=1)
    train.run(open_bundle(other), dataset(8, 0), tmp_path / "run", TrainConfig(**{**OPTIONS, "steps": 1}))
    service = running.service
    before = service.adapters.ids()
    with pytest.raises(MismatchError, match="was trained on other"):
        service.add_adapter(tmp_path / "run")
    with pytest.raises(FormatError, match=r"no adapter\.gguf"):
        service.add_adapter(tmp_path)
    with pytest.raises(UsageError, match="suffix"):
        service.add_adapter(compiled[0], "a b")
    for content in (b"", b"no adapter", model.read_bytes()):
        said = http.post("/v1/adapters", files={"file": ("adapter.gguf", content)})
        assert said.status_code == 400, said.text
    budget, service.budget = service.budget, service.memory()
    with pytest.raises(UsageError, match="--memory"):
        service.add_adapter(compiled[0])
    service.budget = budget
    assert service.adapters.ids() == before
    said = run("adapters", "add", tmp_path / "none", "--url", running.url, code=UsageError.exit_code)
    assert "none" in said
