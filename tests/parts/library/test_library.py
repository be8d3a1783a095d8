"""The library: NAME:auto is answered by the adapter whose questions are like the request's, or by the base."""

import json
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import numpy as np
import pytest
from commands import run
from counting import OPTIONS, dataset
from daemons import CHAT, daemon
from encoders import WORDS, tiny_bert, write_encoder
from part_tables import needs
from services import SMALL, open_service, upload
from thread_workers import ThreadWorker

from edgetune.daemon.options import DaemonConfig
from edgetune.daemon.service import Service
from edgetune.errors import NotFoundError, UnsupportedError, UsageError
from edgetune.formats.bundle import open_bundle
from edgetune.parts.library.library import QUESTIONS, Library
from edgetune.training import run as train
from edgetune.training.config import TrainConfig

LETTERS = "abcdefghijklmnop"
TASKS = {"lamps": [f"turn the light {letter} on" for letter in LETTERS],
         "cooking": [f"kitchen kitchen, {letter}." for letter in LETTERS],
         "spelling": [f"{a} {b} {b} {a}" for a, b in pairwise(LETTERS)]}
UNLIKE = "off off off off off off off off"
SYSTEM = {"role": "system", "content": "Be kind."}


def rows(task):
    return [{"prompt": question, "completion": task} for question in TASKS[task]]


def asked(text, *before):
    return [*before, {"role": "user", "content": text}]


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    return write_encoder(tmp_path_factory.mktemp("encoder") / "enc.gguf", tiny_bert(), WORDS)


@pytest.fixture(scope="module")
def trained(model, tmp_path_factory):
    """The folder of an adapter of each task."""
    folder = tmp_path_factory.mktemp("trained")
    for seed, task in enumerate(TASKS):
        config = TrainConfig(**{**OPTIONS, "lr": 0.05, "steps": 3})
        train.run(open_bundle(model), dataset(8, seed), folder / task, config)
    return folder


@pytest.fixture(scope="module")
def running(model, encoder, tmp_path_factory):
    with daemon(model, tmp_path_factory.mktemp("daemon") / "state", embeddings=str(encoder),
                start_process=ThreadWorker) as made:
        yield made


@pytest.fixture(scope="module")
def library(running, http, trained):
    """The ids of the adapters by their task; the commands made them."""
    url = ("--url", running.url)
    missing = http.post(CHAT, json={"model": "tiny:auto", "messages": asked("turn")})
    assert missing.status_code == 404
    assert "edgetune adapters route" in missing.text
    found = {}
    for task in TASKS:
        found[task] = json.loads(run("adapters", "add", trained / task, "--suffix", task, "--json", *url))["id"]
        (trained / f"{task}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows(task)))
        said = run("adapters", "route", found[task], trained / f"{task}.jsonl", *url)
        assert f"like {len(TASKS[task])} of its task" in " ".join(said.split())
    assert not running.service.files.list(), "rows are kept"
    assert f"{len(TASKS['lamps'])} questions" in " ".join(run("adapters", *url).split())
    return found


def answered_by(http, messages, **options):
    said = http.post(CHAT, json={"model": "tiny:auto", "messages": messages, "max_tokens": 4, "seed": 1, **options})
    assert said.status_code == 200, said.text
    return said.json()["model"], said.json()["choices"][0]["message"]["content"]


@pytest.mark.dev
def test_each_question_is_answered_by_the_adapter_of_its_task(http, library):
    """All at once, as with the adapter's own name."""
    cases = [(asked(questions[i], *before), library[task]) for task, questions in TASKS.items()
             for i, before in ((3, []), (7, [SYSTEM]))]
    with ThreadPoolExecutor(len(cases)) as pool:
        found = [*pool.map(lambda case: answered_by(http, case[0]), cases)]
    assert [model for model, _ in found] == [id for _, id in cases]
    for (messages, id), (_, text) in zip(cases, found, strict=True):
        assert text == answered_by(http, messages, model=id)[1]
    assert len({text for _, text in found}) > 1


@pytest.mark.usefixtures("library")
def test_the_base_answers_what_is_unlike_all_tasks(http):
    assert answered_by(http, asked(UNLIKE)) == answered_by(http, asked(UNLIKE), model="tiny")
    said = http.post("/v1/completions", json={"model": "tiny:auto", "prompt": [5, 6, 7], "max_tokens": 1})
    assert said.json()["model"] == "tiny"
    for content in ("", " "):
        assert answered_by(http, asked(content))[0] == "tiny"


def test_the_last_question_of_a_user_decides(http, library):
    before = [*asked(TASKS["cooking"][0]), {"role": "assistant", "content": "on"}]
    assert answered_by(http, asked(TASKS["lamps"][0], *before))[0] == library["lamps"]
    calls = {"role": "assistant", "content": "on"}
    assert answered_by(http, [*asked(TASKS["lamps"][0]), calls, {"role": "tool", "tool_call_id": "1", "content": "a"}]
                       )[0] == library["lamps"]
    said = http.post("/v1/completions", json={"model": "tiny:auto", "prompt": TASKS["lamps"][2], "max_tokens": 1})
    assert said.json()["model"] == library["lamps"]


def test_streams_and_lists_name_it(http, library):
    body = {"model": "tiny:auto", "messages": asked(TASKS["lamps"][0]), "max_tokens": 1, "stream": True}
    assert f'"{library["lamps"]}"' in http.post(CHAT, json=body).text
    assert "tiny:auto" in [each["id"] for each in http.get("/v1/models").json()["data"]]
    listed = {each["id"]: each["questions"] for each in http.get("/v1/adapters").json()["data"]}
    assert listed == {library[task]: len(TASKS[task]) for task in TASKS}


@needs("ollama")
@pytest.mark.usefixtures("library")
def test_ollamas_api_names_it(http):
    said = http.post("/api/chat", json={"model": "tiny:auto", "messages": asked(TASKS["cooking"][4]), "stream": False})
    assert said.status_code == 200, said.text
    assert "tiny:auto" in [each["name"] for each in http.get("/api/tags").json()["models"]]
    assert http.post("/api/show", json={"model": "tiny:auto"}).status_code == 200


def test_an_adapter_leaves_the_library(running, http, library, trained):
    url = ("--url", running.url)
    run("adapters", "route", library["spelling"], "--off", *url)
    assert answered_by(http, asked(TASKS["spelling"][0]))[0] == "tiny"
    assert http.get(f"/v1/adapters/{library['spelling']}").json()["questions"] == 0
    run("adapters", "route", library["spelling"], trained / "spelling.jsonl", *url)
    assert answered_by(http, asked(TASKS["spelling"][0]))[0] == library["spelling"]


@pytest.mark.dev
def test_it_is_there_after_a_restart_and_needs_its_encoder(model, encoder, trained, tmp_path):
    def opened(**options):
        return Service(model, DaemonConfig(state=str(tmp_path / "state"), threads=1, **options))

    def who(service, text):
        answer = service.chat(asked(text), model="tiny:auto", max_tokens=1)
        answer.text()
        return answer.adapter

    with opened(embeddings=str(encoder)) as service:
        lamps = service.add_adapter(trained / "lamps").id
        cooking = service.add_adapter(trained / "cooking").id
        for id, task in ((lamps, "lamps"), (cooking, "cooking")):
            service.running["library"].library.add(id, rows(task))
    with opened(embeddings=str(encoder)) as service:
        assert who(service, TASKS["lamps"][1]) == lamps
        assert who(service, TASKS["cooking"][1]) == cooking
        service.adapters.delete(cooking)
        assert service.running["library"].library.members() == [lamps]
        assert who(service, TASKS["lamps"][1]) == lamps
        assert who(service, TASKS["cooking"][1]) is None
        place = service.adapters.path(lamps) / QUESTIONS
    whole = place.read_bytes()
    other = write_encoder(tmp_path / "other.gguf", tiny_bert(), WORDS, "first")
    for content, encodes in ((whole, {"embeddings": str(other)}), (whole, {}),
                             (whole[:-40], {"embeddings": str(encoder)})):
        place.write_bytes(content)
        with opened(**encodes) as service, pytest.raises(NotFoundError, match="none has"):
            service.chat(asked("turn"), model="tiny:auto")
    with opened() as service, pytest.raises(UnsupportedError, match="no encoder") as refused:
        service.running["library"].library.add(lamps, rows("lamps"))
    assert "--embeddings" in refused.value.hint


def test_vectors_alone_are_kept_and_few_questions_are_refused(running, library):
    service = running.service
    with np.load(service.adapters.path(library["lamps"]) / QUESTIONS) as file:
        assert {name: file[name].dtype.kind for name in file.files} == {"vectors": "f", "encoder": "U"}
        assert file["vectors"].shape == (len(TASKS["lamps"]), 64)
    with pytest.raises(UsageError, match="3 different questions"):
        service.running["library"].library.add(library["lamps"], rows("lamps")[:3] * 5)
    with pytest.raises(UsageError, match="0 different questions"):
        service.running["library"].library.add(library["lamps"], [{"text": "no question"}])


@pytest.mark.dev
def test_a_jobs_adapter_takes_the_questions_of_its_file_and_is_not_pruned(tmp_path, encoder):
    with open_service(tmp_path, embeddings=str(encoder), keep=2) as service:
        begun = service.jobs.create("tiny", upload(service), hyperparameters={**SMALL, "steps": 1})
        job = service.jobs.wait(begun.id, 60)
        made = service.adapters.get(job.result)
        service.running["library"].library.add(made.id, service.files.rows(service.file_of(made)))
        assert service.running["library"].library.questions(made.id) == 24
        service.adapters.promote(None, "test")
        service.adapters.keep = 0
        service.adapters.prune()
        assert service.running["library"].library.members() == [made.id]
        service.running["library"].library.remove(made.id)
        service.adapters.prune()
        assert not service.adapters.list()


def test_the_file_of_an_adapter_that_has_none_is_asked_for(http, library):
    said = http.post(f"/v1/adapters/{library['lamps']}/questions", json={})
    assert said.status_code == 400
    assert "name a file of rows" in said.text


def test_a_library_that_would_be_too_large_names_what_to_merge(model, encoder, trained, tmp_path):
    """The two most similar: one of them has a twin."""
    config = DaemonConfig(state=str(tmp_path / "state"), threads=1, embeddings=str(encoder))
    with Service(model, config) as service:
        ids = [service.add_adapter(trained / task).id for task in ("lamps", "cooking", "lamps")]
        sizes = [(service.adapters.path(id) / "adapter.gguf").stat().st_size for id in ids]
        library = Library(service.adapters, service.embeddings, service.name, sum(sizes) - 1)
        for id, task in zip(ids[:2], TASKS, strict=False):
            library.add(id, rows(task))
        with pytest.raises(UsageError, match="library-size") as refused:
            library.add(ids[2], rows("spelling"))
        assert library.members() == [ids[1], ids[0]]
        words = refused.value.hint.rpartition(": edgetune ")[2].split()
        assert set(words[2:4]) == {str(service.adapters.path(id)) for id in (ids[0], ids[2])}
        run(*[tmp_path / "both" if word == "NEW" else word for word in words])
        both = service.add_adapter(tmp_path / "both").id
        library.remove(ids[0])
        library.add(both, [*rows("lamps"), *rows("spelling")])
        assert set(library.members()) == {both, ids[1]}


def test_a_correction_is_recalled_where_the_active_adapter_is_chosen(running, http, library):
    service = running.service
    service.adapters.promote(library["lamps"], "test")
    for task in ("lamps", "cooking"):
        service.feedback.add(messages=asked(TASKS[task][9]), correction="never")
    said = {task: answered_by(http, asked(TASKS[task][9]), max_tokens=16)[1] for task in ("lamps", "cooking")}
    service.adapters.rollback("test")
    assert said["lamps"] == "never"
    assert said["cooking"] != "never"
