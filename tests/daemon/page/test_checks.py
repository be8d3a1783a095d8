"""Answers that nobody rated on the page, by real clicks; read back through the API."""

import itertools

import httpx
import pytest
from pages import HOSTILE, LAPTOP, SMALL_PHONE, check_looks, expect, get, go_to, opened, runs

SHAPE = {"formats": "F32", "n_context": 192}  # so answers are short
DAEMON = {"context": 192}
ASKED = ("completions", "/v1/drawn")


@pytest.fixture(autouse=True)
def drawn(running, monkeypatch):
    """Seven questions that were drawn, the newest first, as if the key had ranked them so; the newest but one follows
    another in its chat, and the one before it is a prompt.
    """
    traffic = running.service.traffic
    traffic.clear()
    draw(traffic, 4, lambda number: {"messages": [said(f"light {number}?")]})
    draw(traffic, 1, lambda number: {"prompt": f"say {number} {HOSTILE}"})
    draw(traffic, 1, lambda number: {"messages": [said("where?"), {"role": "assistant", "content": "here"},
                                                  said(f"why {number}?")]})
    draw(traffic, 1, lambda number: {"messages": [said(f"{HOSTILE} {number}?")]})
    rank = traffic.holdout.rank
    ranks = {row["question"]: f"00{999 - row['place']}" for row in traffic.store.read("SELECT * FROM drawn")}
    monkeypatch.setattr(traffic.holdout, "rank", lambda name: ranks.get(name) or rank(name))
    yield traffic.unrated()
    traffic.clear()
    for item in running.service.feedback.list():
        running.service.feedback.delete(item.id)


def said(text):
    return {"role": "user", "content": text}


def draw(traffic, count, content_of):
    """People ask until that many questions more are drawn. content_of: a question by its number."""
    wanted = traffic.facts()["kept"] + count
    for number in itertools.count():
        traffic.see(content_of(number))
        if traffic.facts()["kept"] == wanted:
            return


def question_of(row):
    return row["messages"][-1]["content"] if "messages" in row else row["prompt"]


def answer_of(url, row):
    """What the active adapter says to it, and to which prompt."""
    path = "chat/completions" if "messages" in row else "completions"
    given = httpx.post(f"{url}/v1/{path}", json={**row, "temperature": 0, "store": False}, timeout=60).json()
    choice = given["choices"][0]
    return choice["message"]["content"] if "messages" in row else choice["text"]


def open_checks(page):
    """The cards, once each has its answer."""
    page.locator("#checks > summary").click()
    cards = page.locator("#checks-list > li")
    expect(cards).to_have_count(5)
    for i in range(5):
        expect(cards.nth(i).get_by_role("button", name="Right")).to_be_enabled()
    return cards


def test_nothing_is_asked_of_the_model_before_somebody_looks(browser, url, drawn, running):
    asked, before = [], running.service.answered["model"]
    with opened(browser, url, **LAPTOP) as page:
        page.on("request", lambda request: asked.append(request.url))
        runs(page)
        page.evaluate("look().then(look)")
        expect(page.locator("#checks > summary")).to_have_text("Check answers: 7")
        assert not [url for url in asked if url.endswith(ASKED)]
        assert running.service.answered["model"] == before
        cards = open_checks(page)
        expect(cards.locator(".asked")).to_have_text([question_of(row) for row in drawn[:5]])
        page.evaluate("look().then(look)")
        assert running.service.answered["model"] == before + 5
        assert get(url, "/v1/drawn")["data"] == drawn  # a check is no question that people ask


@pytest.mark.dev
def test_one_is_right_one_is_corrected_and_the_rest_is_deleted(page, url, drawn, running):
    answers = [answer_of(url, row) for row in drawn[:3]]
    cards = open_checks(page)
    expect(page.locator("#checks-why")).to_contain_text("7 answers that nobody rated decide")
    expect(page.locator("#checks-why")).to_contain_text("kept for 90 days without its answer: 7 now")
    assert [cards.nth(i).locator("p.said:not(.asked, details *)").text_content() for i in range(3)] == answers
    expect(cards.nth(1).locator("details p")).to_have_text(
        f"user: where?\n\nassistant: here\n\nuser: {question_of(drawn[1])}", use_inner_text=False)

    cards.nth(0).get_by_role("button", name="Right").click()
    expect(cards.locator(".asked")).to_have_text([question_of(row) for row in drawn[1:6]])
    expect(cards.nth(0)).to_be_focused()
    for card, right in ((0, "because"), (0, HOSTILE)):
        cards.nth(card).get_by_role("button", name="Correct").click()
        box = cards.nth(card).get_by_label("What it should have answered")
        expect(box).to_be_focused()
        expect(box).to_have_value(answers[1] if right == "because" else answers[2])
        box.fill(right)
        page.evaluate("look().then(look)")
        expect(box).to_have_value(right)
        cards.nth(card).get_by_role("button", name="Save correction").click()
        expect(box).to_have_count(0)
    expect(page.locator("#checks-count")).to_have_text("4")
    kept = get(url, "/v1/feedback")["data"]
    assert [(item["question"], item["answer"], item["rating"], item["held_out"]) for item in kept] == [
        (question_of(drawn[2]), HOSTILE, None, True), (question_of(drawn[1]), "because", None, True),
        (question_of(drawn[0]), answers[0][:300], "up", True)]  # a list has beginnings
    assert get(url, "/v1/drawn")["data"] == drawn[3:]

    page.get_by_role("button", name="Delete these questions").click()
    page.get_by_role("button", name="Leave it").click()
    assert get(url, "/v1/drawn")["counts"]["kept"] == 7
    page.get_by_role("button", name="Delete these questions").click()
    page.locator("#sure").get_by_role("button", name="Delete").click()
    expect(page.locator("#checks")).to_be_hidden()
    expect(page.locator("#learn-title")).to_be_focused()
    assert get(url, "/v1/drawn")["counts"] == {"days": 90, "kept": 0, "unrated": 0, "checked": 0}
    running.service.traffic.see(drawn[-1])
    expect(page.locator("#checks > summary")).to_be_visible()
    expect(page.locator("#checks-list > li")).to_have_count(0)  # it closed


def test_what_is_shown_stays_while_others_ask_and_more_is_shown_when_asked_for(page, drawn, running):
    cards = open_checks(page)
    draw(running.service.traffic, 1, lambda number: {"messages": [said(f"fan {number}?")]})
    expect(page.locator("#checks-count")).to_have_text("8")
    expect(cards.locator(".asked")).to_have_text([question_of(row) for row in drawn[:5]])
    page.locator("#checks").get_by_role("button", name="Show more").click()
    expect(cards).to_have_count(8)
    expect(page.locator("#more-checks")).to_be_hidden()


def test_a_question_that_gets_no_answer_is_corrected(page, url, running):
    running.service.traffic.clear()
    draw(running.service.traffic, 1, lambda number: {"messages": [said(f"{'on and ' * 200}{number}")]})
    page.locator("#checks > summary").click()
    card = page.locator("#checks-list > li")
    expect(card.locator(".bad")).to_contain_text("192")
    expect(card.get_by_role("button", name="Right")).to_be_disabled()
    card.get_by_role("button", name="Correct").click()
    card.get_by_label("What it should have answered").fill("off")
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    expect(page.locator("#checks")).to_be_hidden()
    assert get(url, "/v1/feedback")["data"][0]["answer"] == "off"


def test_a_call_of_a_tool_is_right(page, url, drawn):
    """A tiny model calls nothing by itself, so its answer is said to be a call on its way to the page."""
    call = {"name": "turn_on", "arguments": "{}"}
    said = []

    def as_call(route):
        answer = route.fetch()
        body = answer.json()
        said.append(body["choices"][0]["message"]["content"])
        body["choices"][0]["message"] = {"content": None, "tool_calls": [{"type": "function", "function": call}]}
        route.fulfill(response=answer, json=body)

    page.route("**/v1/chat/completions", as_call)
    cards = open_checks(page)
    expect(cards.nth(0).locator("p.json")).to_have_text('[{"name":"turn_on","arguments":"{}"}]')
    cards.nth(0).get_by_role("button", name="Right").click()
    expect(cards.locator(".asked").first).to_have_text(question_of(drawn[1]))
    item = get(url, "/v1/feedback")["data"][0]
    assert (item["question"], item["answer"], item["rating"]) == (question_of(drawn[0]), said[0][:300], "up")


@pytest.mark.dev
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_shows_it_whole_and_readable(browser, url, scheme):
    with opened(browser, url, color_scheme=scheme, **SMALL_PHONE) as page:
        runs(page)
        go_to(page, "Learning")
        cards = open_checks(page)
        cards.nth(1).locator("summary").click()
        cards.nth(0).get_by_role("button", name="Correct").click()
        check_looks(page)
