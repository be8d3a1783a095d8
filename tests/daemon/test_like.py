"""edgetune.daemon.learning.like: corrections answer like questions at once; MiniLM says what is like."""

import sqlite3
import time
from contextlib import closing

import pytest
from encoders import write_real_minilm
from services import open_service, until

from edgetune.daemon.learning.recall import Recall
from edgetune.errors import UsageError
from edgetune.serving.completion import MODEL

CODE = "The door code is 4711."
FACTS = {"what is the door code": CODE, "who is our plumber?": "Mrs. Okafor, 555-0134.",
         "how often is the filter changed?": "Every 400 hours.", "where are the spare keys?": "Behind the pantry door."}
LIKE = {"tell me the code for the door": CODE, "what's the name of our plumber?": "Mrs. Okafor, 555-0134.",
        "how often do we change the filter?": "Every 400 hours.", "where do we keep the extra keys?":
        "Behind the pantry door."}
UNLIKE = ("where are the car keys?", "who is our electrician?", "what is the capital of Peru?", "hello", "?")


@pytest.fixture(scope="module")
def minilm(tmp_path_factory):
    return str(write_real_minilm(tmp_path_factory.mktemp("minilm") / "minilm.gguf"))


@pytest.fixture
def service(tmp_path, minilm):
    with open_service(tmp_path, context=512, parallel=2, embeddings=minilm) as service:
        yield service


def asked(text, *before):
    return [*before, {"role": "user", "content": text}]


def teach(service, facts=FACTS, **options):
    return {question: service.feedback.add(messages=asked(question), correction=answer, **options)
            for question, answer in facts.items()}


def said(service, question, **options):
    """What it recalls; None: the model answers."""
    answer = service.chat(question if isinstance(question, list) else asked(question), max_tokens=32, **options)
    text = answer.text()
    return text if answer.source == Recall.name else None


@pytest.mark.dev
def test_a_question_in_other_words_is_answered_as_corrected(service):
    given = teach(service)
    for question, answer in LIKE.items():
        assert said(service, question) == answer, question
    for question in UNLIKE:
        assert said(service, question) is None, question
    answer = service.chat(asked("tell me the code for the door"))
    assert answer.details["recalled"] == given["what is the door code"].id
    assert 0.6 <= answer.details["likeness"] < 1
    assert "likeness" not in service.chat(asked("what is the door code")).details
    for options in ({"model": service.name}, {"temperature": 0.7}, {"max_tokens": 2}):
        assert service.chat(asked("tell me the code for the door"), **options).source == MODEL


def test_only_questions_of_the_same_kind_are_compared(service):
    teach(service)
    system = {"role": "system", "content": "Be kind."}
    like = "tell me the code for the door"
    assert said(service, asked(like, system)) is None
    assert said(service, asked(like, *asked("hello"), {"role": "assistant", "content": "hi"})) is None
    assert service.generate(like, max_tokens=4).source == MODEL
    service.feedback.add(messages=asked("what is the door code", system), correction="Kindly: 4711.")
    assert said(service, asked(like, system)) == "Kindly: 4711."
    assert said(service, like) == CODE
    service.feedback.add(prompt="what is the door code", correction="4711")
    assert service.generate(like, max_tokens=32).text() == "4711"


def test_the_newest_word_counts_and_a_thumb_down_ends_it(service):
    teach(service)
    like = "tell me the code for the door"
    assert said(service, like) == CODE
    service.feedback.add(messages=asked("what is the door code"), answer=CODE, correction="The door code is 9.")
    assert said(service, like) == "The door code is 9."
    service.feedback.add(messages=asked(like), answer="The door code is 9.", rating="down")
    assert said(service, like) is None
    assert said(service, "I forgot the door code, can you say it again?") == "The door code is 9."
    for item in service.feedback.list():
        service.feedback.delete(item.id)
    assert said(service, "I forgot the door code, can you say it again?") is None
    assert said(service, "what's the name of our plumber?") is None


def test_vectors_are_stored_with_the_feedback_and_leave_with_it(tmp_path, minilm, monkeypatch):
    def vectors():
        with closing(sqlite3.connect(tmp_path / "state" / "state.db")) as db:
            return [row[0] for row in db.execute("SELECT vector FROM feedback ORDER BY rowid")]

    with open_service(tmp_path, embeddings=minilm) as service:
        teach(service)
        assert said(service, "tell me the code for the door") == CODE
        assert [len(vector) for vector in vectors()] == [8 + 2 * 384] * 4
    with open_service(tmp_path, embeddings=minilm) as service:
        made = []
        embed = service.embeddings.embed
        monkeypatch.setattr(service.embeddings, "embed", lambda texts, **options: made.append(texts)
                            or embed(texts, **options))
        assert said(service, "tell me the code for the door") == CODE
        assert not {question for texts in made for question in texts} & set(FACTS), "made again"
        [first] = [item for item in service.feedback.list() if item.answer == CODE]
        service.feedback.delete(first.id)
        assert len(vectors()) == 3
        assert said(service, "tell me the code for the door") is None


def test_corrections_of_somewhat_like_questions_are_shown_to_the_model(service):
    teach(service)
    shown = []
    render = service.served.render
    service.served.render = lambda messages, *rest: shown.append(messages) or render(messages, *rest)
    service.chat(asked("which code opens the safe?"), max_tokens=1).text()
    [(question, answer, last)] = shown
    assert (question["content"], answer["content"], last["content"]) == (
        "what is the door code", CODE, "which code opens the safe?")
    shown.clear()
    for text, model in (("hello", ""), ("what is the door code", ""), ("which code opens the safe?", service.name)):
        service.chat(asked(text), model=model, max_tokens=1).text()
        assert [len(messages) for messages in shown] == [1]
        shown.clear()


@pytest.mark.dev
def test_what_was_learned_the_model_answers(tmp_path, minilm, workers):
    questions = {f"{place} number {'abcdefghij'[i]}": f"it is {i}" for i, place in enumerate(
        ("the door code", "our plumber", "the spare key", "the water valve", "the piano lesson", "the oil of the lift",
         "the paper bin", "the office address", "the cat's name", "the tyre pressure"))}
    with open_service(tmp_path, context=512, embeddings=minilm, start_process=workers) as service:
        given = teach(service, questions)
        like = {question: f"please, {question}" for question in questions}
        assert {said(service, text) for text in like.values()} == set(questions.values())
        job = service.learner.begin()
        workers.next().judge()
        service.jobs.wait(job.id, 60)
        until(lambda: not service.feedback.unsettled())
        held = {question for question, item in given.items() if item.held}
        assert 0 < len(held) < len(given)
        assert {question for question, text in like.items() if said(service, text)} == held


@pytest.mark.dev
def test_it_can_be_switched_off_and_needs_an_encoder(tmp_path, minilm):
    like = "tell me the code for the door"
    for options in ({"embeddings": minilm, "recall_like": "off"}, {"embeddings": minilm, "recall": False}, {}):
        with open_service(tmp_path, **options) as service:
            teach(service)
            assert said(service, like) is None
            assert service.likes is None


def test_what_expires_is_recalled_until_then_and_never_learned(tmp_path, minilm):
    with open_service(tmp_path, embeddings=minilm) as service:
        menu, like = "what is on today's menu?", "tell me today's menu"
        service.feedback.add(messages=asked(menu), correction="Ask the cook.")
        given = service.feedback.add(messages=asked(menu), correction="Soup.", expires_in=1000)
        assert (given.state, given.learns) == ("counted", False)
        assert given.reason == "answers until it expires, and is never learned"
        assert 990 < given.expires_at - time.time() <= 1000
        assert [said(service, text) for text in (menu, like)] == ["Soup."] * 2
        assert service.feedback.waiting() == 1
        assert [row.answer for row in map(service.feedback.item, service.feedback.training_rows().taken)] == [
            "Ask the cook."]
        assert service.feedback.unusable() == 0
        with service.store.write() as db:
            db.execute("UPDATE feedback SET created_at = 1000, expires_at = 2000 WHERE id = ?", (given.id,))
        assert [said(service, text) for text in (menu, like)] == ["Ask the cook."] * 2
        assert service.feedback.get(given.id).reason == "has expired"
        service.feedback.edit(given.id, "Stew.")  # its 1,000 seconds begin again
        assert [said(service, text) for text in (menu, like)] == ["Stew."] * 2
        for wrong in ({"expires_in": 0, "correction": "x"}, {"expires_in": 10**10, "correction": "x"},
                      {"expires_in": 5, "answer": "x", "rating": "down"}):
            with pytest.raises(UsageError, match="expires_in"):
                service.feedback.add(messages=asked(menu), **wrong)
    with open_service(tmp_path) as service:  # learns its state again, and finds nothing to learn in it
        assert service.feedback.get(given.id).state == "counted"
