"""Corrections in a chat on the page, by real clicks; read back through the API."""

import httpx
import pytest
from pages import HOSTILE, ask, expect, get

SHAPE = {"formats": "F32", "n_context": 4096}
DAEMON = {"context": 4096}


@pytest.fixture(autouse=True)
def none_yet(url):
    httpx.delete(url + "/v1/proposals", timeout=60)


def chat(url, asked, answered, remark):
    messages = [{"role": "user", "content": asked}, {"role": "assistant", "content": answered},
                {"role": "user", "content": remark}]
    httpx.post(url + "/v1/chat/completions", json={"messages": messages, "max_tokens": 2}, timeout=60)


def test_what_is_said_here_is_proposed_and_accepted(page, url):
    expect(page.locator("#proposed")).to_be_hidden()
    first = ask(page, "capital of Australia?")
    expect(first.get_by_role("button", name="Good answer")).to_be_visible()
    ask(page, "That's wrong, it is Canberra.")
    expect(page.locator("#proposed-count")).to_have_text("1")
    page.locator("#proposed summary").click()
    card = page.locator("#proposals > li")
    expect(card.locator("q")).to_have_text("That's wrong, it is Canberra.")
    box = card.get_by_label("Right answer")
    expect(box).to_have_value("Canberra")
    assert get(url, "/v1/feedback")["data"] == []
    box.fill("Canberra.")
    card.get_by_role("button", name="Accept").click()
    expect(page.locator("#proposed")).to_be_hidden()
    (feedback,) = get(url, "/v1/feedback")["data"]
    assert (feedback["question"], feedback["answer"]) == ("capital of Australia?", "Canberra.")


def test_one_is_dismissed_and_what_was_typed_stays(page, url):
    chat(url, "lamp on", HOSTILE, "No, I meant the fan.")
    chat(url, HOSTILE, "Sydney", "wrong. It is Canberra")
    expect(page.locator("#proposed-count")).to_have_text("2")
    page.locator("#proposed summary").click()
    cards = page.locator("#proposals > li")
    expect(cards).to_have_count(2)
    lamp = cards.filter(has_text="I meant the fan")
    lamp.get_by_label("Right answer").fill("The fan is on.")
    page.evaluate("look().then(look)")
    expect(lamp.get_by_label("Right answer")).to_have_value("The fan is on.")
    expect(lamp.locator("del")).to_have_text(HOSTILE)
    cards.filter(has_text="Canberra").get_by_role("button", name="Dismiss").click()
    expect(cards).to_have_count(1)
    lamp.get_by_role("button", name="Accept").click()
    expect(page.locator("#proposed")).to_be_hidden()
    assert get(url, "/v1/feedback")["data"][0]["answer"] == "The fan is on."
