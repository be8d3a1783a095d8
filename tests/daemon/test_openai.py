"""OpenAI's client as people use it in the cloud: models, files, and a job from its rows to its answers."""

import csv
import json

import openai
import pytest
from openai.types.fine_tuning import FineTuningJob
from services import until

from edgetune.serving.llama import LlamaModel
from edgetune.training.config import TrainConfig

SHAPE = {"n_context": 128}
TAUGHT = "the light off"
ASK = [{"role": "user", "content": "turn"}]
# Memorised: what the model answers then is no close race.
TRAIN = TrainConfig(rank=8, lr=0.02, steps=60, batch_size=4, max_length=64, threads=1, schedule="constant")
STEPS = 60
DAEMON = {"train": TRAIN}


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    lines = [{"messages": [{"role": "user", "content": words}, {"role": "assistant", "content": TAUGHT}]}
             for words in ("turn", "turn on", "set", "set to 10", "light", "the light", "on", "off")]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


@pytest.fixture(scope="module")
def trained(client, rows):
    """A job that was followed to its end."""
    file = client.files.create(file=rows, purpose="fine-tune")
    assert (file.filename, file.bytes, file.purpose, file.status) == ("rows.jsonl", rows.stat().st_size, "fine-tune",
                                                                      "processed")
    job = client.fine_tuning.jobs.create(
        model="tiny", training_file=file.id, suffix="lamp", seed=7, metadata={"who": "me"},
        method={"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": "auto"}}})
    assert job.status in ("queued", "running")
    until(lambda: client.fine_tuning.jobs.retrieve(job.id).status in ("succeeded", "failed"))
    seen = list(client.fine_tuning.jobs.list_events(job.id, limit=50))[::-1]  # the client turns the pages
    assert len({event.id for event in seen}) == len(seen) > 50
    losses = [event.data["loss"] for event in seen if event.type == "metrics" and "loss" in (event.data or {})]
    assert losses[-1] < losses[0] / 2
    return client.fine_tuning.jobs.retrieve(job.id)


@pytest.mark.dev
def test_a_job_ends_in_an_adapter_with_all_that_was_asked(client, trained):
    assert trained.status == "succeeded", trained.error
    assert trained.fine_tuned_model.startswith("ft:tiny:lamp:")
    assert (trained.seed, trained.metadata) == (7, {"who": "me"})
    names = [model.id for model in client.models.list()]
    assert (names[:2], trained.fine_tuned_model in names) == (["tiny", "tiny:latest"], True)
    assert client.models.retrieve(trained.fine_tuned_model).owned_by == "edgetune"
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
    assert (said.choices[0].message.content, said.choices[0].finish_reason) == (TAUGHT, "stop")
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


def sizes(said):
    """Of the usage what does not depend on the requests before."""
    return said.usage.prompt_tokens, said.usage.completion_tokens, said.usage.total_tokens


def test_chunks_tokens_parts_and_developers(client, running):
    options = {"model": "tiny", "messages": ASK, "max_tokens": 5, "stream": True}
    chunks = list(client.chat.completions.create(**options, stream_options={"include_usage": True}))
    assert chunks[0].choices[0].delta.role == "assistant"
    assert len({(chunk.model, chunk.id) for chunk in chunks}) == 1
    assert [bool(chunk.usage) for chunk in chunks] == [False] * (len(chunks) - 1) + [True]
    assert not any(chunk.usage for chunk in client.chat.completions.create(**options))
    prompt = running.service.served.tokenizer.render(ASK, add_generation_prompt=True)
    one, other = (client.completions.create(model="tiny", prompt=given, max_tokens=5) for given in (
        prompt, running.service.served.tokenizer.encode(prompt, bos=True)))
    assert (one.choices, sizes(one)) == (other.choices, sizes(other))
    whole = [{"role": "system", "content": "the light"}, *ASK]
    parts = [{"role": "developer", "content": [{"type": "text", "text": "the light"}]}, *ASK]
    one, other = (client.chat.completions.create(model="tiny", messages=messages, max_tokens=5) for messages in
                  (whole, parts))
    assert (one.choices[0].message.content, sizes(one)) == (other.choices[0].message.content, sizes(other))


def read_strictly(job):
    """A job as the client's own type has it, which the client itself does not check."""
    return FineTuningJob.model_validate(job.model_dump())


@pytest.mark.dev
def test_jobs_are_listed_paused_resumed_and_cancelled_and_files_come_in_pages(client, trained, rows):
    file = client.files.create(file=rows, purpose="fine-tune")
    job = client.fine_tuning.jobs.create(model="tiny", training_file=file.id,
                                         extra_body={"hyperparameters": {"steps": 100_000}})
    assert [found.id for found in client.fine_tuning.jobs.list()][:2] == [job.id, trained.id]
    assert client.fine_tuning.jobs.pause(job.id).state in ("pausing", "paused")
    until(lambda: client.fine_tuning.jobs.retrieve(job.id).state == "paused")
    assert [read_strictly(found).state for found in client.fine_tuning.jobs.list()][:2] == ["paused", "succeeded"]
    assert client.fine_tuning.jobs.resume(job.id).status == "queued"
    assert client.fine_tuning.jobs.cancel(job.id).status == "cancelled"
    with pytest.raises(openai.BadRequestError):
        client.fine_tuning.jobs.cancel(job.id)
    made = [client.files.create(file=(f"{i}.jsonl", rows.read_bytes()), purpose="fine-tune").id for i in range(3)]
    assert [file.id for file in client.files.list(limit=2)][:4] == [*made[::-1], file.id]  # in pages
    for id in (*made, file.id):
        assert client.files.delete(id).deleted
    with pytest.raises(openai.NotFoundError):
        client.files.retrieve(file.id)


@pytest.mark.parametrize(("wrong", "says"), [
    ({"extra_body": {"best_of": 3}}, "best_of"), ({"stop": [""]}, "stop"),
    ({"frequency_penalty": 3.0}, "frequency_penalty"), ({"response_format": {"type": "yaml"}}, "response_format")])
def test_what_cannot_be_done_is_refused_by_name(client, wrong, says):
    with pytest.raises(openai.BadRequestError, match=rf"400 - .*\b{says}\b"):
        client.chat.completions.create(**{"model": "tiny", "messages": ASK, **wrong})


def test_unknown_names_are_not_found(client, trained):
    jobs = client.fine_tuning.jobs
    for call in (lambda: client.models.retrieve("gpt-5"), lambda: client.files.content("file-1"),
                 lambda: jobs.retrieve("ftjob-1"), lambda: jobs.create(model="tiny", training_file="file-1"),
                 lambda: jobs.create(model="gpt-5", training_file=trained.training_file)):
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


def test_an_adapter_is_deleted_as_a_model_unless_it_is_active(client, running, trained):
    adapters = running.service.adapters
    made = adapters.add_foreign(adapters.path(trained.fine_tuned_model), "copy")
    with pytest.raises(openai.BadRequestError, match="no adapter"):
        client.models.delete("tiny")
    with pytest.raises(openai.NotFoundError, match="ft:nothing"):
        client.models.delete("ft:nothing")
    adapters.promote(made.id, "for the test")
    with pytest.raises(openai.BadRequestError, match="is active; promote another one or roll back before"):
        client.models.delete(made.id)
    adapters.rollback("for the test")
    gone = client.models.delete(made.id)
    assert (gone.id, gone.object, gone.deleted) == (made.id, "model", True)
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve(made.id)
    assert client.models.retrieve(trained.fine_tuned_model)


@pytest.mark.parametrize("stream", [False, True])
def test_a_prompt_that_does_not_fit_the_context_has_openais_code(client, running, stream):
    long = "turn " * running.service.served.context
    asks = (lambda: client.chat.completions.create(model="tiny", messages=[{"role": "user", "content": long}],
                                                   stream=stream),
            lambda: client.completions.create(model="tiny", prompt=long, stream=stream),
            lambda: client.completions.create(model="tiny", prompt=[5] * 10_000, stream=stream))
    for ask in asks:
        with pytest.raises(openai.BadRequestError, match="do not fit the context") as caught:
            ask()
        assert caught.value.code == "context_length_exceeded"
