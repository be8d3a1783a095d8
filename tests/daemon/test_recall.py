"""edgetune.daemon.learning.recall: repeats of corrected questions, before a training has learned them and after."""

import json
from dataclasses import asdict

import pytest
from services import open_service, until

from edgetune.daemon.jobs.exam import RowScore
from edgetune.daemon.learning.recall import Recall
from edgetune.data.question import digest
from edgetune.errors import EdgetuneError
from edgetune.serving.completion import MODEL

RIGHT = "a lamp, of course"


@pytest.fixture
def service(tmp_path):
    with open_service(tmp_path, context=512, parallel=2) as service:
        yield service


def asked(text="which light?"):
    return [{"role": "user", "content": text}]


def said(service, messages=None, **options):
    """What it recalls for a chat; None: the model answers."""
    answer = service.chat(messages or asked(), **{"max_tokens": 32, **options})
    text = answer.text()
    return text if answer.source == Recall.name else None


def test_a_corrected_question_or_prompt_is_answered_as_corrected(service):
    service.feedback.add(prompt="which light?", correction=RIGHT)
    assert service.generate("which light?").text() == RIGHT
    assert said(service) is None  # a chat is another question
    tokens = service.served.tokenizer.encode("which light?", bos=True)
    assert service.generate(tokens, max_tokens=2).source == MODEL
    wrong = service.chat(asked(), max_tokens=32).text()
    given = service.feedback.add(messages=asked(), answer=wrong, correction=RIGHT)
    pieces = []
    answer = service.chat(asked(), on_piece=lambda _, piece: pieces.append(piece))
    assert answer.text() == RIGHT
    assert (answer.source, answer.details, pieces) == (Recall.name, {"recalled": given.id}, [RIGHT, None])
    assert answer.finish == "stop"
    assert answer.completion_tokens == len(service.served.tokenizer.encode(RIGHT, continues=True))
    assert answer.prompt_tokens == service.chat(asked(), model=service.name, max_tokens=1).prompt_tokens
    assert said(service, model=f"{service.name}:latest") == RIGHT


def test_what_is_not_an_exact_repeat_is_answered_by_the_model_or_refused_as_ever(service):
    service.feedback.add(messages=asked(), correction=RIGHT)
    tools = [{"type": "function", "function": {"name": "lamp"}}]
    for messages, options in ((asked("Which light?"), {}), ([{"role": "system", "content": "be brief"}, *asked()], {}),
                              ([*asked(), {"role": "assistant", "content": RIGHT}, *asked()], {}),
                              (asked(), {"model": service.name}), (asked(), {"temperature": 0.7}),
                              (asked(), {"max_tokens": 2}), (asked(), {"stop": "of"}), (asked(), {"stop": ["x", " "]}),
                              (asked(), {"tools": tools})):
        assert said(service, messages, **options) is None, (messages, options)
    assert said(service, stop=["x", "y"], temperature=0, seed=3, top_p=0.5) == RIGHT
    service.feedback.add(messages=asked(), correction=RIGHT)
    for wrong in ({"top_p": 2.0}, {"max_tokens": 0}, {"temperature": -1.0}, {"seed": -1}, {"stop": ""},
                  {"model": "nobody"}):
        said_of = []
        for messages in (asked(), asked("another")):
            with pytest.raises(EdgetuneError) as error:
                service.chat(messages, **wrong)
            said_of.append(str(error.value))
        assert said_of[0] == said_of[1]


def test_only_the_latest_word_counts(service):
    feedback = service.feedback
    first = feedback.add(messages=asked(), correction="a bulb")
    second = feedback.add(messages=asked(), answer="a bulb", correction=RIGHT)
    assert said(service) == RIGHT
    feedback.edit(first.id, "a torch")
    assert said(service) == "a torch"
    feedback.delete(first.id)
    assert said(service) is None
    feedback.add(messages=asked(), answer=RIGHT, rating="up")
    assert said(service) == RIGHT
    feedback.add(messages=asked(), answer=RIGHT, rating="down")  # takes both back
    assert said(service) is None
    third = feedback.add(messages=asked(), correction="a candle")
    assert said(service) == "a candle"
    feedback.set_aside(third.id)
    feedback.edit(second.id, RIGHT)
    assert said(service) == RIGHT
    with feedback.store.write() as db:
        db.execute("UPDATE feedback SET row = '{' WHERE id = ?", (second.id,))
    assert said(service) is None  # damaged
    service.feedback.add(messages=asked(), correction="a bulb")
    last = service.feedback.add(messages=asked(), correction=RIGHT)
    service.feedback.set_aside(last.id)
    assert said(service) is None
    feedback.add(messages=asked("two"), answer="a bulb", rating="up")
    feedback.add(messages=asked("two"), answer=RIGHT, rejected="a bulb")
    assert said(service, asked("two")) == RIGHT
    assert [item.state for item in feedback.list()[:2]] == ["new", "withdrawn"]


def test_it_can_be_switched_off(tmp_path):
    with open_service(tmp_path, recall=False) as service:
        service.feedback.add(messages=asked(), correction=RIGHT)
        assert said(service) is None


@pytest.fixture
def learns(tmp_path, workers):
    with open_service(tmp_path, context=512, parallel=2, start_process=workers) as service:
        yield service


def correct(service, numbers):
    return [service.feedback.add(messages=asked(f"turn on light {i}"), correction="on") for i in numbers]


def learned(service, workers, **verdict):
    """The active adapter that learned what waits."""
    job = service.learner.begin()
    workers.next().judge(**verdict)
    adapter = service.jobs.wait(job.id, 60).result
    until(lambda: not service.feedback.unsettled())
    assert service.adapters.serving == adapter
    return str(adapter)


@pytest.mark.dev
def test_what_a_training_has_learned_the_model_answers(learns, workers):
    """What is held out is recalled for good: it is never learned. After a roll-back all is again."""
    made = correct(learns, range(10))

    def recalled():
        return {note.id for i, note in enumerate(made) if said(learns, asked(f"turn on light {i}"))}

    assert recalled() == {note.id for note in made}
    first = learned(learns, workers)
    assert recalled() == {note.id for note in made if note.held}
    made += correct(learns, range(10, 20))
    after_one = {note.id for i, note in enumerate(made) if note.held or i >= 10}
    assert recalled() == after_one
    learned(learns, workers)
    assert recalled() == {note.id for note in made if note.held}
    for adapter, expected in ((first, after_one), (None, {note.id for note in made})):
        learns.adapters.promote(adapter, "for the test")
        assert recalled() == expected


@pytest.mark.parametrize("prose", [False, True])
def test_what_a_training_failed_to_learn_is_recalled(learns, workers, prose):
    """As the gate found out: of two corrections one is another answer than what the model says afterwards."""
    kept, missed = [note for note in correct(learns, range(10)) if not note.held][:2]
    scores = {digest(note.row): asdict(RowScore(1.0, note is kept, prose=prose)) for note in (kept, missed)}
    learned(learns, workers, scores=scores)
    assert said(learns, kept.row["messages"][:1]) is None
    expected = None if prose else "on"  # prose is not expected by the word
    assert said(learns, missed.row["messages"][:1]) == expected


def test_clients_are_told(http):
    chat = {"messages": asked(), "max_tokens": 32}
    first = http.post("/v1/chat/completions", json=chat)
    assert first.json()["edgetune"] is None
    assert "x-edgetune-recalled" not in first.headers
    note = http.post("/v1/feedback", json={"completion_id": first.json()["id"], "correction": RIGHT}).json()
    mark = {"source": "recall", "recalled": note["id"]}
    whole = http.post("/v1/chat/completions", json=chat)
    assert (whole.headers["x-edgetune-source"], whole.headers["x-edgetune-recalled"]) == ("recall", note["id"])
    assert whole.json()["edgetune"] == {**mark, "likeness": None, "probability": None}
    assert whole.json()["choices"][0]["message"]["content"] == RIGHT
    assert whole.json()["model"] == "tiny"
    with http.stream("POST", "/v1/chat/completions", json={**chat, "stream": True}) as stream:
        assert stream.headers["x-edgetune-recalled"] == note["id"]
        chunks = [json.loads(line[6:]) for line in stream.iter_lines() if line.startswith("data: {")]
    assert "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks) == RIGHT
    assert all(chunk["edgetune"] == mark for chunk in chunks)
    http.post("/v1/feedback", json={"completion_id": chunks[0]["id"], "rating": "down"}).raise_for_status()
    assert http.post("/v1/chat/completions", json=chat).json()["choices"] == first.json()["choices"]
    assert http.get(f"/v1/feedback/{note['id']}").json()["state"] == "withdrawn"

    http.post("/v1/feedback", json={"prompt": "light", "correction": RIGHT}).raise_for_status()
    text = http.post("/v1/completions", json={"prompt": "light", "max_tokens": 32}).json()
    assert text["choices"][0]["text"] == RIGHT
    assert text["edgetune"]["recalled"].startswith("fb-")
