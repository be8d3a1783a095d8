"""What the page shows of all trainings, of the mode of learning and of what happened; read back through the API."""

import json
from pathlib import Path

import pytest
from daemons import daemon
from pages import LAPTOP, expect, get, httpx, opened, runs
from services import SMALL, same_holdout
from thread_workers import ThreadWorker
from tiny import write_tiny

from edgetune.formats.named import KNOWN, place_of

NAME, FILE = "qwen3-0.6b", "qwen3-0.6b-q8_0"
ROWS = [{"prompt": f"light {i}", "completion": " on" if i % 10 else " off"} for i in range(60)]
MARKS = {"activated": ".mark-activated", "not activated": ".mark-not-activated", "rolled back": ".mark-rolled-back"}


@pytest.fixture(scope="module")
def running(tmp_path_factory):
    """A daemon that learned twice, of which the second adapter was rolled back, and once next to nothing."""
    path = place_of(KNOWN[NAME])
    path.parent.mkdir(parents=True, exist_ok=True)
    write_tiny(path, formats="F32", n_context=4096)
    folder = tmp_path_factory.mktemp("overview")
    same_holdout(folder / "state")
    with daemon(NAME, folder / "state", context=4096, learn="nightly", learn_hours="01:00-05:00",
                start_process=ThreadWorker) as made:
        jobs, adapters = made.service.jobs, made.service.adapters
        for suffix, options in (("first", {}), ("second", {}), ("third", {"steps": 1, "lr": 1e-7})):
            done = jobs.wait(jobs.create_from_rows(ROWS, suffix=suffix, hyperparameters={**SMALL, **options}).id, 60)
            assert done.result, done.error
            if suffix != "third":
                adapters.promote(done.result, "for the test")
            if suffix == "second":
                adapters.rollback("asked for by a client")
        yield made
    path.unlink()


@pytest.fixture(scope="module")
def empty(model, tmp_path_factory):
    with daemon(model, tmp_path_factory.mktemp("empty") / "state") as made:
        yield made.url


def test_the_line_of_right_answers_has_each_training_and_what_became_of_it(page, url):
    jobs = get(url, "/v1/fine_tuning/jobs")["data"][::-1]
    fates = ["activated", "rolled back", "not activated"]
    said = [f"{job['suffix']}: {job['verdict']['new']['right']} of {job['verdict']['new']['answered']} right, "
            f"{job['verdict']['old']['right']} before, {fate}" for job, fate in zip(jobs, fates, strict=True)]
    figure = page.locator("#all-trainings figure")
    chart = figure.get_by_role("img")
    expect(chart).to_have_attribute("aria-label", f"Share of right answers by training: {'; '.join(said)}")
    for fate, mark in MARKS.items():  # a form of its own, beside the colour
        wanted = [each for each in said if each.endswith(f", {fate}")]
        assert chart.locator(f"{mark} title").all_text_contents() == wanted
        expect(figure.locator("figcaption")).to_contain_text(fate)
    assert len({chart.locator(mark).get_attribute("d") for mark in MARKS.values()}) == 3
    found = jobs[-1]["verdict"]
    expect(figure.locator("p")).to_have_text(f"Latest: {found['new']['right']} of {found['new']['answered']} held-out "
                                             f"questions right, {found['old']['right']} before; not activated.")
    heights = [float(place.partition(" ")[2]) for place in
               chart.locator(".train").get_attribute("d")[1:].split("L")]
    shares = [job["verdict"][which]["right"] / job["verdict"]["new"]["answered"]
              for job, which in zip(jobs, ("new", "old", "old"), strict=True)]  # of what answered afterwards
    scale = [height + share * (max(heights) - min(heights)) / ((max(shares) - min(shares)) or 1)
             for height, share in zip(heights, shares, strict=True)]
    assert max(scale) - min(scale) < 1e-6
    only = {"title": "first", "right": 1, "of": 2, "before": 0, "fate": "activated"}
    assert page.evaluate("(found) => (lessons.show(found), lessons.hidden)", [only])  # its job says so


def test_the_result_of_a_training_stays_when_its_adapter_is_gone(page, url):
    third = get(url, "/v1/fine_tuning/jobs")["data"][0]
    httpx.delete(f"{url}/v1/adapters/{third['fine_tuned_model']}").raise_for_status()
    page.reload()
    runs(page)
    found = third["verdict"]["new"]
    result = page.locator("#jobs > li").first.locator(".result b")
    expect(result).to_have_text(f"{found['right']} of {found['answered']}")


def test_trainings_before_the_latest_twenty_are_fetched_once(browser, url):
    """Here before the latest two."""
    asked = []
    with opened(browser, url, **LAPTOP) as page:
        page.on("request", lambda request: asked.append(request.url.removeprefix(url)))
        page.route("**/v1/fine_tuning/jobs?limit=20", lambda route: route.continue_(url=route.request.url[:-2] + "2"))
        page.reload()
        runs(page)
        expect(page.locator("#jobs > li")).to_have_count(2)
        expect(page.locator("#all-trainings")).to_contain_text("Latest")
        assert page.evaluate("everyJob.size") == 3
        page.evaluate("look().then(look)")
        assert sum("&after=" in path for path in asked) == 1


def test_mode_and_hours_are_said_in_words_and_the_switch_counts(page, url):
    expect(page.locator("#why")).to_have_text("Learns at night, from 1 to 5 o'clock.")
    httpx.patch(f"{url}/v1/learn", json={"on": False}).raise_for_status()
    expect(page.locator("#why")).to_have_text("Is switched off: nothing is learned by itself.")
    httpx.patch(f"{url}/v1/learn", json={"on": True}).raise_for_status()
    expect(page.locator("#why")).to_have_text("Learns at night, from 1 to 5 o'clock.")


def test_the_log_says_what_was_trained_and_activated(page, url):
    page.locator("#journal summary").focus()
    page.keyboard.press("Enter")
    lines = page.locator("#events > li")
    jobs, adapters = get(url, "/v1/fine_tuning/jobs")["data"], get(url, "/v1/adapters")
    expect(lines).to_have_count(2 * len(jobs) + len(adapters["history"]))
    said = lines.locator("span").all_text_contents()
    for job in jobs:
        assert f"{job['suffix']}: begins" in said
        assert f"{job['suffix']}: {job['state']}: {job['verdict']['reason']}" in said
    assert any(line.startswith("first ") and " is active: " in line for line in said)
    at = lines.locator("time").evaluate_all("(times) => times.map((time) => time.dateTime)")
    assert at == sorted(at, reverse=True)
    page.keyboard.press("Tab")
    expect(page.locator("#events")).to_be_focused()  # it scrolls


def test_feedback_is_exported_as_rows(page, url, running):
    page.locator("#given > summary").click()
    export = page.get_by_role("link", name="Export the right answers")
    expect(page.locator("#no-feedback")).to_be_visible()
    expect(export).to_be_hidden()
    running.service.feedback.add(prompt="which?", answer="that", correction="this")
    running.service.feedback.add(messages=[{"role": "user", "content": "where?"}], answer="here", rating="up")
    running.service.feedback.add(prompt="what?", answer="wrong", rating="down")  # nobody said what is right
    with page.expect_download() as taken:
        export.click()
    assert taken.value.suggested_filename == "feedback.jsonl"
    assert [json.loads(line) for line in Path(taken.value.path()).read_text().splitlines()] == [
        {"prompt": "which?", "completion": "this", "rejected": "that"},
        {"messages": [{"role": "user", "content": "where?"}, {"role": "assistant", "content": "here"}]}]
    checked = httpx.post(f"{url}/v1/files/check", data={"method": "supervised"},
                         files={"file": ("feedback.jsonl", Path(taken.value.path()).read_bytes())}).json()
    assert (checked["rows"], checked["usable"]) == (2, 2)


def test_the_short_name_stands_above(page, url):
    expect(page.locator("#name")).to_have_text(NAME)
    expect(page.locator("#name")).to_have_attribute("title", FILE)
    assert get(url, "/v1/device")["model"] == FILE


def test_what_is_empty_is_one_sentence(browser, empty):
    with opened(browser, empty, **LAPTOP) as page:
        runs(page)
        expect(page.locator("#all-trainings figure")).to_be_hidden()
        expect(page.locator("#no-jobs")).to_be_visible()
        expect(page.locator("#why")).to_have_text("Learns when it is told to, not by itself.")
        page.locator("#journal summary").click()
        expect(page.locator("#no-events")).to_have_text("Nothing has been trained or activated yet.")
        expect(page.locator("#name")).to_have_text("tiny")
