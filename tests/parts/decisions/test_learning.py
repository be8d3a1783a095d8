"""Corrections of typed questions, given over HTTP: recalled at once, learned, and then right in other words."""

import json
import time

import httpx
import pytest
from daemons import PATIENCE, daemon
from encoder_daemon import OPTIONS, write_tiny_encoder
from encoders import write_real_minilm
from services import same_holdout
from thread_workers import ThreadWorker
from typed_rows import KEYS, QUESTIONS, answers_of, typed_rows

from edgetune.data.decisions import NOUL
from edgetune.machine.policy import Policy
from edgetune.training.config import TrainConfig

TEAM = {"team": {"type": "choice", "instructions": "Who repairs it?",
                 "criteria": {"plumber": None, "roofer": "leaks above", "electrician": None}}}
ROOMS = ("kitchen", "bathroom", "attic", "office", "hall", "garage", "pantry", "cellar", "nursery")
SAID = {"plumber": ("the pipe in the {} drips", "the drain of the {} is blocked", "water runs from the tap in the {}"),
        "roofer": ("tiles fell from the roof near the {}", "the roof over the {} leaks",
                   "rain comes through the roof of the {}"),
        "electrician": ("the socket in the {} sparks", "no power in the {}", "the light in the {} is dead")}
IN_OTHER_WORDS = {
    "water is coming out of the faucet": "plumber", "the sink will not empty, its drain is clogged": "plumber",
    "the toilet pipe is leaking": "plumber", "shingles blew off the house in the storm": "roofer",
    "rain comes in above the bed": "roofer", "a roof tile is broken": "roofer",
    "the outlet gives off sparks": "electrician", "the bulb will not light up": "electrician",
    "there is no electricity upstairs": "electrician", "the fuse blew and the power is out": "electrician"}
REPORTS = [(text.format(room), team) for i, room in enumerate(ROOMS) for team, texts in SAID.items()
           for text in (texts[i % 3],)]
SWAPPED = {"plumber": "roofer", "roofer": "electrician", "electrician": "plumber"}


def running(model, folder):
    (folder / "state").mkdir()
    same_holdout(folder / "state")
    return daemon(model, folder / "state", TrainConfig(**OPTIONS), Policy(nice=19, govern=False),
                  start_process=ThreadWorker, learn_options="steps=1")


def client_of(made):
    return httpx.Client(base_url=made.url, timeout=PATIENCE)


def ask(client, state, questions, **fields):
    return client.post("/v1/systemone", json={"state": state, "questions": questions, **fields})


def correct(client, state, questions, labels):
    """Corrects an answer, or a refusal, by its id."""
    id = ask(client, state, questions).headers["x-typesafe-request-id"]
    for name, label in labels.items():
        given = client.post("/v1/feedback", json={"completion_id": id, "question": name, "correction": label})
        assert given.status_code == 200, given.text


def learn(client, service):
    """The job that learns what was corrected."""
    begun = client.post("/v1/learn", json={}).json()
    deadline = time.monotonic() + PATIENCE
    while client.get(f"/v1/fine_tuning/jobs/{begun['id']}").json()["status"] not in ("succeeded", "failed"):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    job = service.jobs.get(begun["id"])
    assert job.status == "succeeded", job.error
    return job


def label_in(answer):
    """The likeliest label of an answer."""
    if answer["type"] == NOUL:
        return str(answer["noul"] >= 0.5).lower()
    return max(answer["probabilities"], key=answer["probabilities"].get)


@pytest.mark.dev
def test_three_questions_are_learned_from_corrections(tmp_path):
    """By their heads, in one adapter; states that nobody corrected are right without a recall."""
    model = write_tiny_encoder(tmp_path / "enc.gguf")
    with running(model, tmp_path) as made, client_of(made) as client:
        rows = typed_rows(45)
        for row in rows:
            correct(client, row["state"], QUESTIONS, answers_of(row))
        job = learn(client, made.service)
        assert job.verdict["passed"], job.verdict
        adapter = made.service.adapters.serving
        assert [question.key for question in made.service.served.reader(adapter).learned.questions] == sorted(
            KEYS.values())
        unseen = typed_rows(30, first=1000 * 27)
        right = 0
        for row in unseen:
            said = ask(client, row["state"], QUESTIONS)
            assert json.loads(said.headers["X-Edgetune-Recalled"]) == {}
            found = said.json()["answers"]
            right += sum(label_in(found[name]) == label for name, label in answers_of(row).items())
        assert right >= 0.65 * 3 * len(unseen)  # by chance 0.4
        boat = {"boat": {"type": "noul", "instructions": "Does it float?"}}
        for row in typed_rows(30, first=600):
            correct(client, row["state"], boat, {"boat": str(row["expected"]["kitchen"]).lower()})
        job = learn(client, made.service)  # of a question that the active adapter does not know
        assert job.verdict["passed"], job.verdict
        assert len(made.service.served.reader(made.service.adapters.serving).learned.questions) == 4
        again = ask(client, rows[0]["state"], QUESTIONS, model=adapter).json()["answers"]
        assert {name: label_in(answer) for name, answer in again.items()} == answers_of(rows[0])


@pytest.mark.dev
def test_minilm_learns_a_question_and_refuses_swapped_labels(tmp_path):
    """27 corrections: right at once where they were given, then in other words, and still after wrong ones."""
    with running(write_real_minilm(tmp_path / "minilm.gguf"), tmp_path) as made, client_of(made) as client:
        assert ask(client, REPORTS[0][0], TEAM).status_code == 422
        for state, team in REPORTS:
            correct(client, state, TEAM, {"team": team})
            found = ask(client, state, TEAM)
            assert found.json()["answers"]["team"]["choice"] == team
            assert json.loads(found.headers["X-Edgetune-Recalled"])
        states = [*IN_OTHER_WORDS]
        assert {ask(client, state, TEAM).status_code for state in states} == {422}  # a like state is not the same
        job = learn(client, made.service)
        assert job.verdict["passed"], job.verdict

        def right():
            found = [ask(client, state, TEAM) for state in states]
            assert all(json.loads(said.headers["X-Edgetune-Recalled"]) == {} for said in found)
            return sum(said.json()["answers"]["team"]["choice"] == IN_OTHER_WORDS[state]
                       for said, state in zip(found, states, strict=True))

        assert right() >= 9
        adapter = made.service.adapters.serving
        wrong = [(text.format("shed"), SWAPPED[team]) for team, texts in SAID.items() for text in texts]
        wrong += [(f"{text.format('loft')} today", SWAPPED[team]) for team, texts in SAID.items() for text in texts]
        for state, team in wrong:
            correct(client, state, TEAM, {"team": team})
        job = learn(client, made.service)
        assert not job.verdict["passed"]
        assert "not surely better" in job.verdict["reason"] or "worse" in job.verdict["reason"]
        assert made.service.adapters.serving == adapter
        assert right() >= 9
