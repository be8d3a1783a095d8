"""Trainings and adapters on the page by real clicks, who may use it, and a daemon that was away."""

import json
import re
from contextlib import ExitStack
from pathlib import Path
from zipfile import ZipFile

import pytest
from daemons import process
from pages import HOSTILE, PHONE, ROWS, begin_training, expect, get, go_to, httpx, lines_of, opened, runs
from services import until
from sometimes import mostly_slow
from thread_workers import ThreadWorker

SHAPE = {"formats": "F32", "n_context": 4096}
DAEMON = {"context": 4096, "start_process": ThreadWorker}


def test_a_file_becomes_an_adapter_that_goes_into_service_and_out_again(page, url):
    begin_training(page, f"{HOSTILE}.jsonl", lines_of(ROWS), epochs=2, suffix="lamp")
    job = page.locator("#jobs > li").first
    expect(job.locator("h3")).to_have_text("lamp")
    expect(job.locator(".badge")).to_have_text("succeeded", timeout=60_000)
    made = get(url, "/v1/fine_tuning/jobs")["data"][0]
    assert get(url, f"/v1/files/{made['training_file']}")["filename"] == f"{HOSTILE}.jsonl"

    events = get(url, f"/v1/fine_tuning/jobs/{made['id']}/events?limit=100")["data"]
    kinds = [event["data"]["event"] for event in events if event["type"] == "metrics"]
    expect(job.locator("svg circle")).to_have_count(kinds.count("eval"))
    drawn = job.locator("svg path.train").get_attribute("d")
    assert drawn.count("M") + drawn.count("L") == kinds.count("step")
    assert kinds.count("step") in (6, 8)  # 9 to 16 rows in batches of 4, twice: the key says how many of the 20 judge
    names = job.locator("svg text").all_text_contents()
    assert "loss" in names  # each axis has a name
    assert any(name.startswith("step ") for name in names)

    read_the_report(page, url, made)
    (adapter,) = get(url, "/v1/adapters")["data"]
    found = adapter["verdict"]["new"]
    expect(job.locator(".result b")).to_have_text(f"{found['right']} of {found['answered']}")
    card = page.locator("#adapters > li").first
    expect(card).to_contain_text(adapter["verdict"]["reason"])
    go_in_and_out_of_service(page, url, adapter)
    is_named_taken_away_and_deleted(page, url)


def read_the_report(page, url, job):
    """In a new tab, under a policy of its own by which nothing runs."""
    with page.context.expect_page() as opened:
        page.locator("#jobs > li").first.get_by_role("link", name="Report").click()
    report = opened.value
    expect(report.locator("h1")).to_contain_text("a training of Tiny")
    assert report.url == url + job["report"]
    answer = httpx.get(report.url)
    policy = answer.headers["content-security-policy"]
    (own,) = re.findall(r"style-src '[^']*'", policy)
    assert own in report.locator("meta[http-equiv]").get_attribute("content")
    assert "default-src 'none'" in policy
    assert "script-src" not in policy
    assert report.locator("h1").evaluate("(node) => getComputedStyle(node).marginTop") == "0px"  # its styles hold
    report.close()
    assert httpx.get(f"{url}/v1/fine_tuning/jobs/nothing/report").status_code == 404


def go_in_and_out_of_service(page, url, adapter):
    def serving():
        return get(url, "/v1/adapters")["serving"]

    if adapter["state"] == "serving":  # the gate let it pass
        httpx.post(f"{url}/v1/adapters/rollback").raise_for_status()
    promote = page.locator("#adapters > li").first.get_by_role("button", name="Promote")
    promote.click()
    page.get_by_role("button", name="Leave it").click()
    expect(page.locator("#sure")).to_be_hidden()
    assert serving() is None
    promote.click()
    page.locator("#sure").get_by_role("button", name="Promote").click()
    until(lambda: serving() == adapter["id"])
    expect(page.locator("#model option").first).to_have_text(re.compile(r"^Active adapter \(lamp "))
    page.get_by_role("button", name="Roll back").click()
    page.locator("#sure").get_by_role("button", name="Roll back").click()
    until(lambda: serving() is None)
    expect(page.locator("#model option").first).to_have_text("Active adapter (none)")
    expect(page.locator("#name")).to_have_text("tiny")


def is_named_taken_away_and_deleted(page, url):
    card = page.locator("#adapters > li").first
    card.locator("summary").click()
    for name, said in ((HOSTILE, "take up to 64 letters"), ("Lamps at home", "")):
        card.get_by_role("button", name="Rename").click()
        card.get_by_label("Name, which requests may use").fill(name)
        page.keyboard.press("Enter")
        if said:
            expect(card.get_by_role("alert")).to_contain_text(said)
            page.keyboard.press("Escape")
    expect(card.locator("h3")).to_have_text("Lamps at home")
    expect(page.locator("#model option").last).to_have_text("Lamps at home")
    assert get(url, "/v1/adapters")["data"][0]["name"] == "Lamps at home"

    with page.expect_download() as taken:
        card.get_by_role("link", name="Download").click()
    assert taken.value.suggested_filename == "Lamps-at-home.zip"
    with ZipFile(taken.value.path()) as archive:
        assert "Lamps-at-home/adapter.gguf" in archive.namelist()

    card.get_by_role("button", name="Delete").click()
    page.get_by_role("button", name="Leave it").click()
    card.get_by_role("button", name="Delete").click()
    page.locator("#sure").get_by_role("button", name="Delete").click()
    expect(page.locator("#adapters > li")).to_have_count(0)
    expect(page.locator("#adapters-title")).to_be_focused()
    assert get(url, "/v1/adapters")["data"] == []
    expect(page.locator("#jobs > li").first.get_by_role("link", name="Report")).to_be_hidden()


@pytest.mark.slow
def test_a_training_is_paused_resumed_and_cancelled(page, url):
    begin_training(page, f"{HOSTILE}.jsonl", lines_of(ROWS), epochs=5000)
    job = page.locator("#jobs > li").first
    expect(job.locator("h3")).to_have_text(f"{HOSTILE}.jsonl")

    def becomes(status):
        expect(job.locator(".badge")).to_have_text(status, timeout=60_000)
        assert get(url, "/v1/fine_tuning/jobs")["data"][0]["state"] == status

    becomes("running")
    expect(job.locator("svg path.train")).to_have_attribute("d", re.compile("L"), timeout=60_000)
    job.get_by_role("button", name="Pause").click()
    becomes("paused")
    job.get_by_role("button", name="Resume").click()
    becomes("running")
    job.get_by_role("button", name="Cancel").click()
    page.get_by_role("button", name="Cancel it").click()
    becomes("cancelled")
    expect(job.get_by_role("button", name="Cancel")).to_be_hidden()


def test_a_file_that_cannot_be_used_is_refused_in_a_sentence_and_leaves_nothing(page, url):
    before = get(url, "/v1/files")["data"]
    begin_training(page, "notes.txt", b"just some words\n")
    expect(page.locator("#train-note")).to_have_text(re.compile(r"^Line 1: .*\.$"))
    page.fill("#epochs", "")
    page.set_input_files("#file", {"name": "one.jsonl", "mimeType": "", "buffer": lines_of(ROWS[:1])})
    page.click("#start")  # sound, but there is nothing to judge by
    expect(page.locator("#train-note")).to_have_text(re.compile(r"fewer than 2 .*\.$"))
    until(lambda: get(url, "/v1/files")["data"] == before)


def test_rows_are_checked_before_a_training_and_its_method_is_chosen(page, url):
    page.click("#begin summary")
    page.select_option("#method", "kto")
    expect(page.locator("#columns")).to_contain_text("label")
    assert page.evaluate("$('held').required")  # labels cannot test an adapter
    page.select_option("#method", "dpo")
    expect(page.locator("#columns")).to_contain_text("rejected")
    pairs = "".join(f"lamp {i},on,off\n" for i in range(24))
    table = f"prompt,chosen,rejected\n{pairs}lamp 3,off,on\n".encode()
    page.set_input_files("#file", {"name": f"{HOSTILE}.csv", "mimeType": "text/csv", "buffer": table})
    checked = page.locator("#checked")
    expect(checked).to_contain_text("25 of 25 rows usable")
    expect(checked.locator(".warm").first).to_contain_text("1 question has several different answers (lines 5, 26)")
    page.select_option("#method", "supervised")  # which learns no pairs
    expect(checked).to_contain_text("0 of 25 rows usable")
    expect(checked.locator(".bad")).to_contain_text(f"25 rows of {HOSTILE}.csv cannot be used")
    page.select_option("#method", "dpo")
    page.click("#start")
    expect(page.locator("#jobs > li").first.locator("h3")).to_have_text(f"{HOSTILE}.csv")
    made = get(url, "/v1/fine_tuning/jobs")["data"][0]
    assert made["method"]["type"] == "dpo"
    httpx.post(f"{url}/v1/fine_tuning/jobs/{made['id']}/cancel").raise_for_status()


@pytest.mark.dev
@pytest.mark.parametrize("height", mostly_slow([500, 600, 844], [500]))
def test_what_is_wrong_with_an_upload_is_seen_where_one_looks(browser, url, height):
    with opened(browser, url, **{**PHONE, "viewport": {"width": 390, "height": height}}) as page:
        runs(page)
        go_to(page, "Learning")
        begin_training(page, "notes.txt", b"just some words\n")
        note = page.locator("#train-note")
        expect(note).to_have_text(re.compile(r"^Line 1: .*\.$"))
        box = note.bounding_box()
        nav = page.locator("nav").bounding_box()
        assert page.locator("header").bounding_box()["height"] <= box["y"]
        assert box["y"] + box["height"] <= nav["y"]


@pytest.mark.slow
def test_a_key_is_asked_for_until_it_is_right_and_a_daemon_that_was_away_is_found_again(browser, model, tmp_path):
    from edgetune.daemon.keys import add_key

    key = add_key(tmp_path / "keys", "me")
    options = "--key-file", tmp_path / "keys", "--port"
    with ExitStack() as stack:
        with process(model, tmp_path, *options, 0) as running:
            url = running.url
            page = stack.enter_context(opened(browser, url))
            page.get_by_label("Key", exact=True).fill("wrong")
            page.keyboard.press("Enter")
            expect(page.locator("#key-text")).to_have_text("That key was refused.")
            expect(page.locator("#ask-key")).to_contain_text("edgetune service key NAME")
            page.get_by_label("Key", exact=True).fill(key)
            page.keyboard.press("Enter")
            expect(page.locator("#health")).to_have_text("running")
            assert page.evaluate("[sessionStorage.getItem('key'), localStorage.length]") == [key, 0]
            page.evaluate("$('name').append(fileLink('Facts', '/v1/device', { name: 'facts.json' }))")
            with page.expect_download() as taken:  # a link alone would send no key
                page.get_by_role("link", name="Facts").click()
            assert json.loads(Path(taken.value.path()).read_text())["model"] == "tiny"
        expect(page.locator("#health")).to_have_text("not reached")
        expect(page.locator("#notice")).to_contain_text("The daemon does not answer")
        stack.enter_context(process(model, tmp_path, *options, url.rpartition(":")[2]))
        expect(page.locator("#health")).to_have_text("running")
        expect(page.locator("#notice")).to_be_hidden()
