"""Prompts, the tutor's rounds and the switch on the page, by real clicks; read back through the API."""

import json
import math

import pytest
from daemons import daemon
from pages import HOSTILE, LAPTOP, PHONE, ask, expect, get, go_to, is_sideways, opened, runs
from services import same_holdout
from thread_workers import ThreadWorker

from edgetune.machine.policy import Policy
from edgetune.parts.tutor.prompts import prompts_of
from edgetune.serving.question import Question
from edgetune.training.config import TrainConfig

SHAPE = {"formats": "F32", "n_context": 4096}
TRAIN = TrainConfig(rank=4, lr=2e-2, batch_size=4, max_length=128, threads=1)
OPTIONS = "rounds=1,per_round=8,samples=4,max_tokens=6,questions=12,min_rows=1"
GRADER = {"type": "regex", "name": "a", "pattern": "a"}


@pytest.fixture(scope="module")
def running(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("state")
    (folder / "grader.json").write_text(json.dumps(GRADER))
    same_holdout(folder / "state")
    with daemon(model, folder / "state", TRAIN, Policy(nice=0, govern=False), context=4096, learn="tutor",
                keep_prompts=100, tutor_prompts=90, tutor_options=OPTIONS,
                learn_grader=str(folder / "grader.json"), start_process=ThreadWorker) as running:
        yield running


@pytest.mark.parametrize("most", [0, 100])
def test_prompts_are_asked_for_where_they_are_kept_and_looked_at(browser, url, running, monkeypatch, most):
    monkeypatch.setattr(running.service.running["tutor"], "most", most)
    asked = []
    with opened(browser, url, **LAPTOP) as page:
        runs(page)
        page.on("request", lambda request: asked.append(request.url.removeprefix(url)))
        page.evaluate("look().then(look)")  # the first may have begun before
        assert page.locator("#kept summary").is_visible() == bool(most)
        assert "/v1/device" in asked
        assert not any(path.startswith("/v1/prompts") for path in asked)
        page.evaluate("$('kept').open = true")
        page.evaluate("look().then(look)")
        assert any(path.startswith("/v1/prompts") for path in asked) == bool(most)


def test_what_is_asked_here_is_kept_seen_and_deleted(page, url):
    page.locator("#kept summary").click()
    expect(page.locator("#no-prompts")).to_be_visible()
    for text in ("lamp on", HOSTILE, "lamp off"):
        answer = ask(page, text)
        expect(answer.get_by_role("button", name="Good answer")).to_be_visible()
        page.get_by_role("button", name="New chat").click()
    cards = page.locator("#prompts > li")
    expect(cards.locator(".said")).to_have_text(["lamp off", HOSTILE, "lamp on"])
    expect(page.locator("#tutor-prompts")).to_have_text("Prompts: 3 kept, 100 at most; new: 3 of the 90 that start it")
    cards.nth(1).get_by_role("button", name="Delete").click()
    expect(cards.locator(".said")).to_have_text(["lamp off", "lamp on"])
    assert [prompt["question"] for prompt in get(url, "/v1/prompts")["data"]] == ["lamp off", "lamp on"]
    page.get_by_role("button", name="Delete all").click()
    page.locator("#sure").get_by_role("button", name="Delete").click()
    expect(page.locator("#no-prompts")).to_be_visible()
    assert get(url, "/v1/prompts")["counts"]["kept"] == 0


@pytest.mark.dev
def test_rounds_are_shown_as_the_daemon_tells_them(page, url, running):
    for i in range(40):
        assert prompts_of(running.service).keep(Question(messages=[{"role": "user", "content": f"say {i}"}]))
    expect(page.locator("#tutor-why")).to_have_text("Waits for 50 more prompts.")
    page.get_by_role("button", name="Ask them now").click()
    job = page.locator("#jobs > li").first
    expect(job.locator("h3")).to_have_text("From prompts")
    expect(job.locator(".badge").first).to_have_text("succeeded", timeout=90_000)
    (told,) = get(url, "/v1/fine_tuning/jobs")["data"][0]["rounds"]
    card = page.locator("#rounds > li")
    expect(card.locator("h4")).to_have_text("Round 1")
    expect(card.locator(".badge")).to_have_text("published" if told["published"] else "not published")
    rates = [math.floor(100 * told[name] + 0.5) for name in ("held_out", "held_out_before")]  # as a browser rounds
    expect(card).to_contain_text(f"{rates[0]} % of {told['questions']} held-out prompts pass, {rates[1]} % before")
    expect(card.locator("p")).to_contain_text(told["reason"][1:])
    assert get(url, "/v1/device")["learning"]["tutor"]["rounds"] == [told]


def test_the_switch_stops_it(page, url):
    switch = page.get_by_role("switch", name="Learns by itself")
    expect(switch).to_be_checked()
    expect(page.locator("#why")).to_contain_text("10 minutes, also from kept prompts, by answering them.")
    with page.expect_response("**/v1/learn"):  # the box changes before the daemon has answered
        switch.click()
    expect(page.locator("#switch")).not_to_be_checked()
    assert not get(url, "/v1/device")["learning"]["on"]
    page.reload()
    runs(page)
    expect(page.locator("#switch")).not_to_be_checked()
    with page.expect_response("**/v1/learn"):
        page.get_by_role("switch", name="Learns by itself").click()
    expect(page.locator("#switch")).to_be_checked()
    assert get(url, "/v1/device")["learning"]["on"]


@pytest.mark.dev
def test_it_fits_a_phone(browser, url):
    with opened(browser, url, **PHONE) as page:
        runs(page)
        go_to(page, "Learning")
        expect(page.locator("#rounds > li")).to_be_visible()
        assert not is_sideways(page)
