"""edgetune.daemon.learning.traffic: what is drawn, rated, kept and forgotten; and what it decides, end to end."""

import time

import pytest
from learners import give, opened
from services import until

from edgetune.daemon.learning import traffic
from edgetune.data.question import question_digest
from edgetune.serving.question import Question

ASKED = 60


def message(number):
    return [{"role": "user", "content": f"turn the light {number}"}]


def ask(service, numbers, **options):
    for number in numbers:
        service.chat(message(number), max_tokens=3, **options).text()


def drawn(service):
    return {row["messages"][0]["content"] for row in service.traffic.unrated(traffic.MOST)}


@pytest.fixture
def asked(tiny_q8, tmp_path):
    with opened(tiny_q8, tmp_path) as service:
        ask(service, range(ASKED))
        yield service


def test_one_question_in_five_is_drawn_before_anybody_judges_it(asked):
    """By the key alone. Feedback on a drawn one is held out, on another one learned, though one in five would be."""
    rank = asked.holdout.rank
    names = {number: question_digest({"messages": [*message(number), {"role": "assistant", "content": ""}]}, True)
             for number in range(ASKED)}
    expected = {f"turn the light {number}" for number, name in names.items() if rank(name) < f"{2**256 // 5:064x}"}
    assert drawn(asked) == expected
    assert ASKED / 10 < len(expected) < ASKED / 3
    for number in range(ASKED):
        item = asked.feedback.add(messages=message(number), correction="on")
        assert item.held == (f"turn the light {number}" in expected)
    assert not asked.traffic.unrated()
    rows = asked.traffic.rows(asked.method.kind)
    assert {row["messages"][0]["content"] for row in rows.rated} == expected
    assert {row["messages"][-1]["content"] for row in rows.rated} == {"on"}


def test_what_is_not_drawn(tiny_q8, tmp_path):
    """Answers with variety, of the base by its name, recalled ones, and questions whose request forbids it; all where
    it is off, which deletes what there is.
    """
    with opened(tiny_q8, tmp_path) as service:
        ask(service, range(ASKED), temperature=1.0)
        ask(service, range(ASKED), model=service.name)
        for number in range(ASKED):
            service.ask(Question(messages=message(number), may_be_kept=False, options={"max_tokens": 3})).text()
        assert service.traffic.facts() == {"days": 90, "kept": 0, "unrated": 0}
        give(service, range(100, 110))
        for number in range(100, 110):
            service.chat([{"role": "user", "content": f"turn the light {number}"}]).text()
        recalled = service.answered["recall"]
        assert service.traffic.facts()["kept"] <= 10 - recalled
        ask(service, range(ASKED))
        assert drawn(service)
    with opened(tiny_q8, tmp_path, drawn_days=0) as service:
        assert service.traffic.facts() == {"days": 0, "kept": 0, "unrated": 0}
        ask(service, range(ASKED))
        assert not drawn(service)
        assert not len(service.traffic.rows(service.method.kind))


def test_a_rating_counts_and_a_thumb_down_leaves_the_question_out(asked):
    """Silence, praise, a correction, and only a thumb down. Questions of another active adapter do not count."""
    first, second, third, *others = sorted(drawn(asked))

    def said(text, **feedback):
        asked.feedback.add(messages=[{"role": "user", "content": text}], answer="old", **feedback)

    said(first, rating="up")
    said(second, correction="on")
    said(third, rating="down")
    rows = asked.traffic.rows(asked.method.kind)
    rated = {row["messages"][0]["content"]: row["messages"][-1]["content"] for row in rows.rated}
    assert rated == {first: "old", second: "on"}
    assert {row["messages"][0]["content"] for row in rows.unrated} == set(others)
    asked.traffic.active = lambda: "ft:another"
    assert not len(asked.traffic.rows(asked.method.kind))
    assert asked.traffic.facts() == {"days": 90, "kept": len(others) + 3, "unrated": 0}  # so nobody is asked for them


def test_a_question_is_forgotten_with_its_feedback_and_after_its_days(asked, monkeypatch):
    """It stays on its side. What expired is no longer in the files of the database."""
    one, *_ = sorted(drawn(asked))
    item = asked.feedback.add(messages=[{"role": "user", "content": one}], correction="on")
    asked.feedback.delete(item.id)
    assert one not in drawn(asked)
    assert asked.feedback.add(messages=[{"role": "user", "content": one}], correction="on").held
    now = time.time()
    monkeypatch.setattr(traffic, "now", lambda: int(now) + 91 * traffic.DAY)
    assert not len(asked.traffic.rows(asked.method.kind))
    assert not drawn(asked)
    others = sorted(f"turn the light {number}".encode() for number in range(ASKED) if f"{number}" not in one)
    for file in asked.store.folder.glob("state.db*"):
        assert not [text for text in others if b'"' + text + b'"' in file.read_bytes()]


def test_the_latest_are_kept(asked, monkeypatch):
    monkeypatch.setattr(traffic, "MOST", 3)
    before = drawn(asked)
    ask(asked, range(ASKED, 2 * ASKED))
    assert len(drawn(asked)) == 3
    assert not drawn(asked) & before


@pytest.mark.learning
def test_the_traffic_decides_and_silence_counts_for_the_active_answer(trains):
    """Forty corrections are learned, and the drawn questions were answered in silence: the adapter waits. When they
    are rated, it passes; nothing but questions of people is in its test.
    """
    service = trains
    ask(service, range(ASKED))
    silent = sorted(drawn(service))
    for number in range(ASKED):
        text = f"turn the light {number}"
        if text not in silent:
            service.feedback.add(messages=message(number), correction="on")
    job = service.jobs.wait(service.learner.begin().id, 60)
    assert job.verdict["drawn"] == {"rows": len(silent), "unrated": len(silent), "changed": len(silent)}
    assert (job.verdict["passed"], job.verdict["waits"]) == (False, True)
    assert f"{len(silent)} of the worse ones are answers that nobody rated" in job.verdict["reason"]
    until(lambda: not service.feedback.unsettled())
    for text in silent:
        service.feedback.add(messages=[{"role": "user", "content": text}], correction="on")
    job = service.jobs.wait(service.learner.begin().id, 60)
    assert job.verdict["passed"], job.verdict["reason"]
    assert job.verdict["promises"] == "better on the questions that people ask"
    assert job.verdict["wins"] >= len(silent) - 1
    assert service.adapters.serving == job.result
    assert not len(service.traffic.rows(service.method.kind))  # the sample of the new adapter begins
