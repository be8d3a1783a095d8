"""The official openai client against a real daemon on a tiny model: all of it, as people use it in the cloud."""

from __future__ import annotations

import csv
import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("fastapi")
pytest.importorskip("openai")

import openai
from daemons import PATIENCE, Daemon, daemon, openai_client
from tiny import write_tiny

from edgetune.daemon.keys import add_key
from edgetune.serving.llama import LlamaModel
from edgetune.training.config import TrainConfig

TAUGHT = "the light off"
ASK = [{"role": "user", "content": "turn"}]
# Learnt by heart: what the model answers then is no close race.
TRAIN = TrainConfig(rank=8, lr=0.02, steps=60, batch_size=4, max_length=64, threads=1, schedule="constant")
STEPS = 60
ENDED = ("succeeded", "failed", "cancelled")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("model") / "Tiny.gguf", formats="Q8_0", n_context=128)


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The file of keys, and a key of it."""
    path = tmp_path_factory.mktemp("keys") / "keys"
    return path, add_key(path, "me")


@pytest.fixture(scope="module")
def running(model: Path, keys: tuple[Path, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    state = tmp_path_factory.mktemp("daemon") / "state"
    with daemon(model, state, train=TRAIN, key_file=str(keys[0])) as made:
        yield made


@pytest.fixture(scope="module")
def client(running: Daemon, keys: tuple[Path, str]) -> Iterator[openai.OpenAI]:
    with openai_client(running.url, keys[1]) as made:
        yield made


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    lines = [{"messages": [{"role": "user", "content": words}, {"role": "assistant", "content": TAUGHT}]}
             for words in ("turn", "turn on", "set", "set to 10", "light", "the light", "on", "off")]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


@pytest.fixture(scope="module")
def trained(client: openai.OpenAI, rows: Path) -> openai.types.fine_tuning.FineTuningJob:
    """A job that was followed to its end."""
    file = client.files.create(file=rows, purpose="fine-tune")
    assert (file.filename, file.bytes, file.purpose, file.status) == ("rows.jsonl", rows.stat().st_size, "fine-tune",
                                                                      "processed")
    job = client.fine_tuning.jobs.create(
        model="tiny", training_file=file.id, suffix="lamp", seed=7, metadata={"who": "me"},
        method={"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": "auto"}}})
    assert job.status in ("queued", "running")
    seen = follow(client, job.id)
    messages = [event.message for event in seen]
    assert len(set(messages)) > 2, messages
    losses = [event.data["loss"] for event in seen if event.type == "metrics" and "loss" in (event.data or {})]
    assert losses[-1] < losses[0] / 2
    return client.fine_tuning.jobs.retrieve(job.id)


def follow(client: openai.OpenAI, job: str) -> list:
    """All events of a job, the first one first, each once, to the end."""
    seen: dict[str, object] = {}
    deadline = time.monotonic() + PATIENCE
    while True:
        ended = client.fine_tuning.jobs.retrieve(job).status in ENDED
        new = []
        for event in client.fine_tuning.jobs.list_events(job, limit=50):  # the client turns the pages
            if event.id in seen:
                break
            new.append(event)
        seen |= {event.id: event for event in reversed(new)}
        if ended:
            return list(seen.values())
        assert time.monotonic() < deadline, "the job does not end"
        time.sleep(0.1)


def test_another_key_is_none(client):
    with pytest.raises(openai.AuthenticationError, match="not one of this daemon's"):
        client.with_options(api_key="et-other").models.list()


def test_models_name_the_base_and_what_answers_now(client, trained):
    names = [model.id for model in client.models.list()]
    assert names[:2] == ["tiny", "tiny:latest"]
    assert trained.fine_tuned_model in names
    assert client.models.retrieve(trained.fine_tuned_model).owned_by == "edgetune"


def test_a_job_ends_in_an_adapter_with_all_that_was_asked(client, trained):
    assert trained.status == "succeeded", trained.error
    assert trained.fine_tuned_model.startswith("ft:tiny:lamp:")
    assert (trained.seed, trained.metadata) == (7, {"who": "me"})
    assert trained.trained_tokens > 0
    assert trained.created_at <= trained.started_at <= trained.finished_at
    assert trained.method.supervised.hyperparameters.steps == STEPS  # what the daemon was started with
    file = client.files.retrieve(trained.training_file)
    assert client.files.content(file.id).read().count(b"\n") == file.rows == 8
    found = client.fine_tuning.jobs.checkpoints.list(trained.id).data
    assert found
    assert found[0].metrics


def test_a_jobs_results_are_a_table_of_its_steps(client, trained):
    id, = trained.result_files
    file = client.files.retrieve(id)
    assert (file.purpose, file.filename) == ("fine-tune-results", "step_metrics.csv")
    assert [found.id for found in client.files.list(purpose="fine-tune-results")] == [id]
    content = client.files.content(id)
    assert content.response.headers["content-type"].startswith("text/csv")
    raw = content.read()
    assert file.bytes == len(raw)
    rows = list(csv.DictReader(raw.decode().splitlines(), strict=True))
    assert list(rows[0]) == ["step", "train_loss", "train_accuracy", "valid_loss", "valid_mean_token_accuracy"]
    assert [int(row["step"]) for row in rows] == list(range(STEPS + 1))
    assert len(rows) == file.rows
    lines = [event.data for event in client.fine_tuning.jobs.list_events(trained.id, limit=100)
             if event.type == "metrics"]
    for kind, column in (("step", "train_loss"), ("eval", "valid_loss")):
        said = {line["step"]: line["loss"] for line in lines if line["event"] == kind}
        assert {int(row["step"]): float(row[column]) for row in rows if row[column]} == said
    assert not any(row["train_accuracy"] or row["valid_mean_token_accuracy"] for row in rows)
    with pytest.raises(openai.BadRequestError, match="holds the results of a job, no rows"):
        client.fine_tuning.jobs.create(model="tiny", training_file=id)


@pytest.mark.learning
def test_the_result_answers_what_it_was_taught(client, trained, running, model):
    said = client.chat.completions.create(model=trained.fine_tuned_model, messages=ASK, max_tokens=20)
    assert said.choices[0].message.content == TAUGHT
    assert said.choices[0].finish_reason == "stop"
    assert said.model == trained.fine_tuned_model
    assert said.usage.total_tokens == said.usage.prompt_tokens + said.usage.completion_tokens
    base = client.chat.completions.create(model="tiny", messages=ASK, max_tokens=20)
    assert base.choices[0].message.content != TAUGHT
    assert base.model == "tiny"
    with LlamaModel(model, threads=1) as served:  # beside the daemon's way of serving
        served.load_adapter(running.service.adapters.path(trained.fine_tuned_model), "it")
        served.use("it")
        assert "".join(served.chat(ASK, max_tokens=20)) == TAUGHT
        tokens = served.tokenizer.encode(served.tokenizer.render(ASK, add_generation_prompt=True), bos=True)
    assert said.usage.prompt_tokens == len(tokens)


def test_a_stream_has_the_same_words(client, trained):
    options = {"model": trained.fine_tuned_model, "messages": ASK, "max_tokens": 20}
    chunks = list(client.chat.completions.create(**options, stream=True, stream_options={"include_usage": True}))
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == TAUGHT
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1] == "stop"
    assert chunks[-1].usage == client.chat.completions.create(**options).usage
    assert {chunk.model for chunk in chunks} == {trained.fine_tuned_model}
    assert len({chunk.id for chunk in chunks}) == 1
    without = list(client.chat.completions.create(**options, stream=True))
    assert not any(chunk.usage for chunk in without)


def test_completions_go_on_from_text_and_from_tokens(client, running, trained):
    prompt = running.service.served.tokenizer.render(ASK, add_generation_prompt=True)
    options = {"model": trained.fine_tuned_model, "max_tokens": 20}
    assert client.completions.create(prompt=prompt, **options).choices[0].text == TAUGHT
    tokens = running.service.served.tokenizer.encode(prompt, bos=True)
    assert client.completions.create(prompt=tokens, **options).choices[0].text == TAUGHT
    pieces = client.completions.create(prompt=prompt, stream=True, **options)
    assert "".join(piece.choices[0].text for piece in pieces) == TAUGHT
    cut = client.completions.create(prompt=prompt, stop=[" off"], **options)
    assert (cut.choices[0].text, cut.choices[0].finish_reason) == (TAUGHT.removesuffix(" off"), "stop")
    short = client.completions.create(prompt=prompt, model=trained.fine_tuned_model, max_tokens=1)
    assert (short.usage.completion_tokens, short.choices[0].finish_reason) == (1, "length")


def test_what_is_sampled_comes_again_with_its_seed(client):
    options = {"model": "tiny", "messages": ASK, "max_tokens": 12, "temperature": 1.5, "top_p": 1.0}
    said = [client.chat.completions.create(seed=seed, **options).choices[0].message.content for seed in (1, 1, 2)]
    assert said[0] == said[1] != said[2]


def test_tools_are_shown_to_the_model(client):
    tools = [{"type": "function", "function": {"name": "lamp", "parameters": {"type": "object"}}}]
    plain, shown, hidden = (client.chat.completions.create(model="tiny", messages=ASK, max_tokens=1, **more).usage
                            for more in ({}, {"tools": tools}, {"tools": tools, "tool_choice": "none"}))
    assert shown.prompt_tokens > plain.prompt_tokens == hidden.prompt_tokens


def test_content_in_parts_and_developers_are_understood(client):
    whole = [{"role": "system", "content": "the light"}, *ASK]
    parts = [{"role": "developer", "content": [{"type": "text", "text": "the light"}]}, *ASK]
    one, other = (client.chat.completions.create(model="tiny", messages=messages, max_tokens=5) for messages in
                  (whole, parts))
    assert one.choices[0].message.content == other.choices[0].message.content
    assert one.usage == other.usage


def test_jobs_are_listed_paused_resumed_and_cancelled(client, trained, rows):
    file = client.files.create(file=rows, purpose="fine-tune")
    job = client.fine_tuning.jobs.create(model="tiny", training_file=file.id,
                                         extra_body={"hyperparameters": {"steps": 100_000}})
    assert [found.id for found in client.fine_tuning.jobs.list()][:2] == [job.id, trained.id]
    until(client, job.id, "running")
    client.fine_tuning.jobs.pause(job.id)
    until(client, job.id, "paused")
    client.fine_tuning.jobs.resume(job.id)
    until(client, job.id, "running")
    client.fine_tuning.jobs.cancel(job.id)
    until(client, job.id, "cancelled")
    assert client.fine_tuning.jobs.retrieve(job.id).fine_tuned_model is None
    with pytest.raises(openai.BadRequestError):
        client.fine_tuning.jobs.cancel(job.id)
    assert client.files.delete(file.id).deleted


def until(client: openai.OpenAI, job: str, status: str) -> None:
    deadline = time.monotonic() + PATIENCE
    while (found := client.fine_tuning.jobs.retrieve(job)).status != status:
        assert time.monotonic() < deadline, found
        assert found.status not in ENDED, found
        time.sleep(0.05)


def test_files_come_in_pages(client, rows):
    made = [client.files.create(file=(f"{i}.jsonl", rows.read_bytes()), purpose="fine-tune").id for i in range(5)]
    assert [file.id for file in client.files.list(limit=2)][:5] == made[::-1]
    for id in made:
        client.files.delete(id)
    with pytest.raises(openai.NotFoundError):
        client.files.retrieve(made[0])


@pytest.mark.parametrize(("wrong", "says"), [
    ({"n": 0}, "n"), ({"temperature": -1}, "temperature"), ({"max_tokens": 0}, "max_tokens"),
    ({"logprobs": 0}, "logprobs"),
    ({"extra_body": {"best_of": 3}}, "best_of"), ({"stop": [""]}, "stop"), ({"temperature": "1"}, "temperature"),
    ({"frequency_penalty": 3.0}, "frequency_penalty"),
    ({"response_format": {"type": "yaml"}}, "response_format"),
    ({"messages": []}, "messages"), ({"messages": [{"role": "user", "content": "the light " * 500}]}, "context")])
def test_what_cannot_be_done_is_refused_by_name(client, wrong, says):
    with pytest.raises(openai.BadRequestError, match=rf"400 - .*\b{says}\b"):
        client.chat.completions.create(**{"model": "tiny", "messages": ASK, **wrong})


def test_unknown_names_are_not_found(client, trained):
    for call in (lambda: client.chat.completions.create(model="gpt-5", messages=ASK),
                 lambda: client.models.retrieve("gpt-5"),
                 lambda: client.files.content("file-1"), lambda: client.fine_tuning.jobs.retrieve("ftjob-1"),
                 lambda: client.fine_tuning.jobs.create(model="tiny", training_file="file-1"),
                 lambda: client.fine_tuning.jobs.create(model="gpt-5", training_file=trained.training_file)):
        with pytest.raises(openai.NotFoundError) as caught:
            call()
        assert caught.value.body["message"]


@pytest.mark.parametrize(("wrong", "says"), [
    ({"method": {"type": "guesses"}}, "supervised"), ({"hyperparameters": {"n_epochs": 0}}, "n_epochs"),
    ({"hyperparameters": {"rank": 0}}, "rank"), ({"hyperparameters": {"learning": 1}}, "learning"),
    ({"suffix": "a/b"}, "suffix"), ({"hyperparameters": {"schedule": "steep"}}, "constant")])
def test_a_job_that_cannot_be_is_refused_by_name(client, trained, wrong, says):
    with pytest.raises(openai.BadRequestError, match=says):
        client.fine_tuning.jobs.create(model="tiny", training_file=trained.training_file, **wrong)
