"""Chat and feedback on the page by real clicks. What a click does is read back through the API, not from the page."""

import re

import pytest
from pages import HOSTILE, PHONE, ask, expect, get, go_to, httpx, is_sideways, opened, runs
from services import until

# Large enough that an answer can be stopped before it ends.
SHAPE = {"formats": "F32", "d_model": 256, "d_ff": 512, "n_context": 4096}
DAEMON = {"context": 4096}
LEFT = '{"lamp":"left","level":-1.5}'
FATE = {False: "will be learned", True: "will test the next training"}  # of a correction that is held out


def test_an_answer_comes_and_its_thumb_and_its_correction_are_kept(page, url):
    answer = ask(page, f"Say {HOSTILE}")
    expect(page.locator("#log .user .said")).to_have_text(f"Say {HOSTILE}")
    answer.get_by_role("button", name="Good answer").click()
    expect(answer.get_by_role("button", name="Good answer")).to_have_attribute("aria-pressed", "true")
    answer.get_by_role("button", name="Correct", exact=True).click()
    answer.get_by_label("What it should have answered").fill(f"Rather {HOSTILE}")
    answer.get_by_role("button", name="Save correction").click()
    expect(answer.locator("ins")).to_have_text(f"Rather {HOSTILE}")
    kept = get(url, "/v1/feedback")["data"]
    expect(answer.locator("del")).to_have_text(kept[0]["rejected"])
    expect(answer.locator(".badge")).to_have_text(FATE[kept[0]["held_out"]])
    assert [note["rating"] for note in kept[:2]] == [None, "up"]  # the latest first
    assert kept[0]["learns"]


def test_a_corrected_question_asked_again_is_answered_from_the_correction(page, url):
    answer = ask(page, "which lamp?", longest=64)
    answer.get_by_role("button", name="Correct", exact=True).click()
    answer.get_by_label("What it should have answered").fill(LEFT)
    answer.get_by_role("button", name="Save correction").click()
    expect(answer.locator("ins")).to_have_text(LEFT)
    with page.expect_request("**/v1/chat/completions") as asked:
        ask(page, "two")  # follows what was corrected
    said = [message["content"] for message in asked.value.post_data_json["messages"]]
    assert said == ["which lamp?", LEFT, "two"]
    page.get_by_role("button", name="New chat").click()
    again = ask(page, "which lamp?", longest=64)
    expect(again.locator(".said")).to_have_text(LEFT)
    expect(again.locator(".said .name")).to_have_text(['"lamp"', '"level"'])
    expect(again.locator(".said .value")).to_have_text("-1.5")
    expect(again).to_contain_text("from a correction")
    again.get_by_role("button", name="Wrong answer").click()
    expect(again).to_contain_text("Nothing to learn")
    assert [note["state"] for note in get(url, "/v1/feedback")["data"][:2]] == ["counted", "withdrawn"]


def test_a_long_answer_is_stopped_and_a_request_that_is_refused_can_be_sent_again(page, url):
    answer = ask(page, "Tell me everything", longest=3500)
    expect(answer.locator(".said")).not_to_be_empty()
    page.get_by_role("button", name="Stop").click()
    expect(answer).to_contain_text("stopped")
    expect(page.get_by_role("button", name="Send")).to_be_visible()
    until(lambda: get(url, "/v1/device")["serving"]["working"] == 0)
    page.get_by_role("button", name="New chat").click()
    ask(page, "on and " * 4096)  # more than the context has
    expect(page.locator("#log .bad")).to_have_text(re.compile(r"\b4096\b.*\.$"))
    assert page.input_value("#text") == ("on and " * 4096).strip()
    assert page.locator("#log .user").count() == 0


def two_answers(page, text):
    """The answer's element, when there are two to choose from."""
    answer = ask(page, text)
    expect(answer.get_by_role("button", name="The first is better")).to_be_visible()
    return answer, answer.locator(".pair .said").all_text_contents()


def test_the_better_of_two_answers_is_kept_beside_the_worse(page, url):
    page.click("#options summary")
    page.get_by_label("Compare two answers").check()
    answer, (first, second) = two_answers(page, "which lamp is on?")
    expect(answer.get_by_role("heading", name="Which is better?")).to_be_visible()
    answer.get_by_role("button", name="The second is better").click()
    expect(answer.locator(".pair")).to_have_count(0)
    assert answer.locator(".said").text_content() == second
    expect(answer.get_by_role("button", name="Good answer")).to_have_attribute("aria-pressed", "true")
    kept = get(url, "/v1/feedback")["data"][0]
    assert (kept["rating"], kept["answer"], kept["rejected"], kept["learns"]) == ("up", second, first, True)

    page.click("#given summary")
    card = page.locator("#feedback > li").first
    expect(card).to_contain_text(f"Better than: {first}")
    card.get_by_role("button", name="Delete").click()
    page.locator("#sure").get_by_role("button", name="Delete").click()
    until(lambda: kept["id"] not in [item["id"] for item in get(url, "/v1/feedback")["data"]])


def test_of_two_answers_neither_need_be_chosen(page, url):
    """The first is the conversation's then."""
    page.click("#options summary")
    page.get_by_label("Compare two answers").check()
    before = get(url, "/v1/feedback")["data"]
    _, (first, _) = two_answers(page, "one")
    with page.expect_request("**/v1/chat/completions") as asked:
        answer, (of_two, _) = two_answers(page, "two")
    assert [message["content"] for message in asked.value.post_data_json["messages"]] == ["one", first, "two"]
    assert get(url, "/v1/feedback")["data"] == before
    answer.get_by_role("button", name="Neither: correct it").click()
    answer.get_by_label("What it should have answered").fill("zwei")
    answer.get_by_role("button", name="Save correction").click()
    expect(answer.locator("ins")).to_have_text("zwei")
    kept = get(url, "/v1/feedback")["data"][0]
    assert (kept["answer"], kept["rejected"]) == ("zwei", of_two)


def test_feedback_is_listed_edited_and_deleted(page, url):
    given = {"messages": [{"role": "user", "content": f"Which {HOSTILE}?"}], "correction": f"the left\n{HOSTILE}"}
    made = httpx.post(f"{url}/v1/feedback", json=given).raise_for_status().json()
    path = f"/v1/feedback/{made['id']}"
    page.click("#given summary")
    card = page.locator("#feedback > li").first
    expect(card).to_contain_text(f"Which {HOSTILE}?")
    expect(card).to_contain_text(HOSTILE)
    expect(card.locator(".badge")).to_have_text("test question" if made["held_out"] else "will be learned")
    assert ("Held out: it evaluates" in card.inner_text()) == made["held_out"]
    card.get_by_role("button", name="Edit").click()
    box = card.get_by_label("What it should have answered")
    expect(box).to_have_value(f"the left\n{HOSTILE}")
    box.fill("   ")
    card.get_by_role("button", name="Save correction").click()
    expect(card.get_by_role("alert")).to_contain_text("The correction is empty")
    box.fill("the right one")
    card.get_by_role("button", name="Save correction").click()
    expect(card).to_contain_text("the right one")
    expect(card.locator("form")).to_have_count(0)
    assert get(url, path)["answer"] == "the right one"
    card.get_by_role("button", name="Delete").click()
    page.get_by_role("button", name="Leave it").click()
    assert get(url, path)["id"] == made["id"]
    card.get_by_role("button", name="Delete").click()
    page.locator("#sure").get_by_role("button", name="Delete").click()
    until(lambda: httpx.get(url + path).status_code == 404)
    expect(page.locator("#feedback")).not_to_contain_text("the right one")


@pytest.mark.slow
def test_more_feedback_is_shown_when_asked_for(page, url):
    before = len(get(url, "/v1/feedback")["data"])
    for i in range(25):
        httpx.post(f"{url}/v1/feedback", json={"prompt": f"number {i}", "answer": "x", "rating": "down"})
    page.click("#given summary")
    expect(page.locator("#feedback > li")).to_have_count(20)
    page.get_by_role("button", name="Show more").click()
    expect(page.locator("#feedback > li")).to_have_count(min(before + 25, 40))
    card = page.locator("#feedback > li").first
    expect(card).to_contain_text("Not: x")
    card.get_by_role("button", name="Edit").click()
    card.get_by_label("What it should have answered").fill("y")
    card.get_by_role("button", name="Save correction").click()
    expect(card.locator(".badge")).to_have_text(re.compile("will be learned|test question"))
    kept = get(url, "/v1/feedback")["data"][0]
    assert (kept["answer"], kept["rejected"], kept["learns"]) == ("y", "x", True)


@pytest.mark.slow
def test_feedback_is_edited_on_a_phone_with_a_keyboard(browser, url):
    given = {"prompt": "w" * 200 + " which?", "correction": "long " * 100}
    made = httpx.post(f"{url}/v1/feedback", json=given).raise_for_status().json()
    with opened(browser, url, **PHONE) as page:
        runs(page)
        go_to(page, "Learning")
        page.locator("#given summary").focus()
        page.keyboard.press("Enter")
        card = page.locator("#feedback > li").first
        edit = card.get_by_role("button", name="Edit")
        expect(edit).to_be_visible()
        page.keyboard.press("Tab")
        expect(edit).to_be_focused()
        page.keyboard.press("Enter")
        expect(card.get_by_label("What it should have answered")).to_be_focused()
        assert not is_sideways(page)
        page.keyboard.press("Escape")
        expect(card.locator("form")).to_have_count(0)
        expect(edit).to_be_focused()
        page.keyboard.press("Enter")
        expect(card.get_by_label("What it should have answered")).to_be_focused()
        page.keyboard.press("Control+a")
        page.keyboard.type("short")
        page.keyboard.press("Tab")
        page.keyboard.press("Enter")
        until(lambda: get(url, f"/v1/feedback/{made['id']}")["answer"] == "short")
