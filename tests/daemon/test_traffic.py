"""edgetune.daemon.learning.traffic: what is drawn, rated, kept and forgotten; and what it decides, end to end."""

import json
import random
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
    texts = [f"turn the light {number}" for number in range(ASKED)]
    expected = {text for text in texts if rank(name_of(text)) < f"{2**256 // 5:064x}"}
    assert drawn(asked) == expected
    assert ASKED / 10 < len(expected) < ASKED / 3
    for number in range(ASKED):
        item = asked.feedback.add(messages=message(number), correction="on")
        assert item.held == (texts[number] in expected)
    assert not asked.traffic.unrated()
    rows = asked.traffic.rows(asked.method.kind)
    assert {row["messages"][0]["content"] for row in rows.rated} == expected
    assert {row["messages"][-1]["content"] for row in rows.rated} == {"on"}


@pytest.mark.dev
def test_what_is_not_drawn(tiny_q8, tmp_path):
    """Answers with variety, of the base by its name, recalled ones, and questions whose request forbids it; all where
    it is off, which deletes what there is.
    """
    with opened(tiny_q8, tmp_path) as service:
        ask(service, range(ASKED), temperature=1.0)
        ask(service, range(ASKED), model=service.name)
        for number in range(ASKED):
            service.ask(Question(messages=message(number), may_be_kept=False, options={"max_tokens": 3})).text()
        assert service.traffic.facts() == {"days": 90, "kept": 0, "unrated": 0, "checked": 0}
        give(service, range(100, 110))
        for number in range(100, 110):
            service.chat([{"role": "user", "content": f"turn the light {number}"}]).text()
        recalled = service.answered["recall"]
        assert service.traffic.facts()["kept"] <= 10 - recalled
        ask(service, range(ASKED))
        assert drawn(service)
    with opened(tiny_q8, tmp_path, drawn_days=0) as service:
        assert service.traffic.facts() == {"days": 0, "kept": 0, "unrated": 0, "checked": 0}
        ask(service, range(ASKED))
        assert not drawn(service)
        assert not len(service.traffic.rows(service.method.kind))


def test_a_rating_counts_and_a_thumb_down_leaves_the_question_out(asked):
    """Silence, praise, a correction, and only a thumb down; this counts if the adapter that it was for is active."""
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
    assert rows_of(asked) == [{first, second}, {third, *others}]
    assert asked.traffic.facts() == {"days": 90, "kept": len(others) + 3, "unrated": len(others), "checked": 0}


def name_of(text):
    row = {"messages": [{"role": "user", "content": text}, {"role": "assistant", "content": ""}]}
    return question_digest(row, by_shape=True)


def rows_of(service):
    """The texts of the questions that decide: rated ones, and others."""
    rows = service.traffic.rows(service.method.kind)
    return [{row["messages"][0]["content"] for row in part} for part in (rows.rated, rows.unrated)]


@pytest.fixture
def by_age(asked, monkeypatch):
    """A function of texts that ranks questions as they follow."""
    def ranked(texts):
        ranks = {name_of(text): f"00{i:03d}" for i, text in enumerate(texts)}
        monkeypatch.setattr(asked.holdout, "rank", lambda name: ranks.get(name, "0099"))

    return ranked


def test_what_a_check_reached_decides(asked, by_age, monkeypatch):
    """Whoever had corrected some of it before; not what nobody was asked about, nor what was drawn later. It says what
    is right, so it outlives the adapter. What was passed over counts as answered right.
    """
    monkeypatch.setattr(traffic, "LEAST_CHECKED", 4)
    texts = sorted(drawn(asked))
    by_age(texts)
    assert [row["messages"][0]["content"] for row in asked.traffic.unrated()] == texts

    def rate(text, is_check=True, **feedback):
        item = asked.feedback.add(messages=[{"role": "user", "content": text}], answer="old", **feedback)
        if is_check:
            asked.traffic.check(item.question)

    rate(texts[1], is_check=False, correction="on")
    rate(texts[5], is_check=False, correction="on")
    rate(texts[0], rating="up")
    rate(texts[2], correction="on")
    assert rows_of(asked) == [{*texts[:3], texts[5]}, {*texts[3:5], *texts[6:]}]  # too few
    rate(texts[4], rating="up")  # past another
    assert rows_of(asked) == [{*texts[:3], texts[4]}, {texts[3]}]
    assert asked.traffic.facts()["checked"] == 5
    asked.traffic.active = lambda: "ft:another"
    asked.traffic.see({"messages": message(ASKED)})  # whose rank, as that of all others, is low enough
    later = f"turn the light {ASKED}"
    by_age([later, *texts])
    assert rows_of(asked) == [{*texts[:3], texts[4]}, {texts[3]}]
    assert drawn(asked) >= {later, *texts[6:]}
    rate(texts[6], rating="up")
    assert rows_of(asked) == [{*texts[:3], *texts[4:7]}, {later, texts[3]}]


@pytest.mark.dev
@pytest.mark.parametrize("seed", range(3))
def test_checks_reach_what_one_passes_in_the_order_of_the_key(asked, seed, monkeypatch):
    """Noted question by question here, over days on which others ask, and correct, and somebody passes some over."""
    monkeypatch.setattr(traffic, "LEAST_CHECKED", 1)
    dice = random.Random(seed)
    rated, reached = set(), set()

    def rate(text, is_check):
        item = asked.feedback.add(messages=[{"role": "user", "content": text}], answer="old", rating="up")
        rated.add(text)
        if is_check:
            asked.traffic.check(item.question)

    for day in range(1, 4):
        ask(asked, range(day * ASKED, day * ASKED + 30))
        known = sorted(drawn(asked) | rated, key=lambda text: asked.holdout.rank(name_of(text)))
        for text in dice.sample(sorted(drawn(asked)), 3):
            rate(text, is_check=False)
        passed, left = [], 3
        for text in known:
            passed.append(text)
            if text not in rated and dice.random() < 0.7:
                rate(text, is_check=True)
                reached.update(passed)
                left -= 1
            if not left:
                break
        assert rows_of(asked) == [reached & rated, reached - rated]
    assert rated - reached


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


def test_few_answers_without_a_rating_end_the_sample(asked, by_age, monkeypatch):
    """Rated questions that are older do not count, either: people rather rate what is wrong."""
    texts = [row["messages"][0]["content"] for row in
             map(json.loads, (row["row"] for row in asked.store.read("SELECT row FROM drawn ORDER BY place")))]
    by_age(texts)
    for text in (texts[0], texts[-2]):
        asked.feedback.add(messages=[{"role": "user", "content": text}], correction="on")
    monkeypatch.setattr(traffic, "UNRATED", 2)
    assert rows_of(asked) == [{texts[-2]}, {texts[-1], texts[-3]}]


def test_the_latest_are_kept(asked, monkeypatch):
    monkeypatch.setattr(traffic, "MOST", 3)
    before = drawn(asked)
    ask(asked, range(ASKED, 2 * ASKED))
    assert len(drawn(asked)) == 3
    assert not drawn(asked) & before


@pytest.mark.dev
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
    assert len(service.traffic.rows(service.method.kind)) == len(silent)  # which decide about the next one, too
