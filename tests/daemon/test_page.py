"""The daemon's page by real clicks: headless Chromium, the real daemon, a tiny model. What a click does is read back
through the API, not from the page.
"""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
from services import until
from tiny import write_tiny

httpx = pytest.importorskip("httpx")
for needed in ("fastapi", "uvicorn", "python_multipart", "prometheus_client", "sdnotify"):
    pytest.importorskip(needed)
sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright (pip install playwright)")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium in the PATH")

expect = sync_api.expect
HOSTILE = "<img src=x onerror=alert(1)>"  # what must stay text
ROWS = [{"prompt": f"turn light {i}", "completion": " on" if i % 2 else " off"} for i in range(20)]


@contextmanager
def running(model: Path, state: Path, *options: object) -> Iterator[str]:
    """A daemon as a user starts it; its URL. It must end well."""
    command = [sys.executable, "-m", "edgetune", "daemon", model, "--state", state, "--json", *options]
    process = subprocess.Popen([str(part) for part in command], cwd=state.parent, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout
        yield json.loads(process.stdout.readline())["url"]
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    """Large enough that an answer can be stopped before it ends."""
    return write_tiny(tmp_path_factory.mktemp("model") / "tiny.gguf", d_model=256, d_ff=512, n_context=4096)


@pytest.fixture(scope="module")
def url(model, tmp_path_factory) -> Iterator[str]:
    with running(model, tmp_path_factory.mktemp("state"), "--port", 0, "--context", 4096) as url:
        yield url


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM)
        yield browser
        browser.close()


@contextmanager
def opened(browser, url: str, **options: Any) -> Iterator[Any]:
    """The page, which must ask nobody but its daemon, break no policy of its own and raise nothing."""
    complaints: list[str] = []
    context = browser.new_context(**options)
    page = context.new_page()
    page.set_default_timeout(20_000)
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("console", lambda line: complaints.append(line.text) if "Content Security Policy" in line.text else None)
    page.on("request", lambda asked: None if asked.url.startswith((url, "data:")) else complaints.append(asked.url))
    page.goto(url)
    yield page
    assert page.locator("img").count() == 0
    context.close()
    assert complaints == []


@pytest.fixture
def page(browser, url) -> Iterator[Any]:
    with opened(browser, url, viewport={"width": 1280, "height": 900}) as page:
        expect(page.locator("#health")).to_have_text("running")
        yield page


def get(url: str, path: str) -> Any:
    return httpx.get(url + path).raise_for_status().json()


def ask(page, text: str, longest: int = 8) -> Any:
    """The answer's element, as soon as it is there."""
    if not page.locator("#longest").is_visible():
        page.click("#options summary")
    page.fill("#longest", str(longest))
    page.fill("#text", text)
    page.press("#text", "Enter")
    return page.locator("#log .answer").last


def begin_training(page, name: str, rows: bytes, **fields: object) -> None:
    page.click("#begin summary")
    page.set_input_files("#file", {"name": name, "mimeType": "application/jsonl", "buffer": rows})
    for field, value in fields.items():
        page.fill(f"#{field}", str(value))
    page.click("#start")


def lines_of(rows: list[dict[str, str]]) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


# ---- chat ------------------------------------------------------------------------------------------------------------


def test_learning_without_rows_says_what_is_missing(page):
    """The first of this file: later ones give feedback to the same daemon."""
    page.get_by_role("button", name="Learn now").click()
    expect(page.locator("#notice")).to_contain_text(re.compile(r"no new feedback to learn"))
    page.locator("#notice").get_by_role("button", name="Close").click()
    expect(page.locator("#notice")).to_be_hidden()


def test_an_answer_comes_and_its_thumb_and_its_correction_are_kept(page, url):
    answer = ask(page, f"Say {HOSTILE}")
    expect(page.locator("#log .user .said")).to_have_text(f"Say {HOSTILE}")
    answer.get_by_role("button", name="Good answer").click()
    expect(answer.get_by_role("button", name="Good answer")).to_have_attribute("aria-pressed", "true")
    answer.get_by_role("button", name="Correct it").click()
    answer.get_by_label("What it should have answered").fill(f"Rather {HOSTILE}")
    answer.get_by_role("button", name="Save correction").click()
    expect(answer.locator(".said")).to_have_text(f"Rather {HOSTILE}")
    kept = get(url, "/v1/feedback")["data"]
    assert [note["rating"] for note in kept[:2]] == [None, "up"]  # the latest first
    assert kept[0]["learns"]


def test_a_corrected_question_asked_again_is_answered_from_the_correction(page, url):
    answer = ask(page, "which lamp?", longest=64)
    answer.get_by_role("button", name="Correct it").click()
    answer.get_by_label("What it should have answered").fill("the left one")
    answer.get_by_role("button", name="Save correction").click()
    expect(answer.locator(".said")).to_have_text("the left one")
    page.get_by_role("button", name="New chat").click()
    again = ask(page, "which lamp?", longest=64)
    expect(again.locator(".said")).to_have_text("the left one")
    expect(again).to_contain_text("from a correction")
    again.get_by_role("button", name="Wrong answer").click()
    expect(again).to_contain_text("Nothing to learn")
    assert [note["state"] for note in get(url, "/v1/feedback")["data"][:2]] == ["counted", "withdrawn"]


def test_what_was_corrected_is_what_the_next_question_follows(page):
    answer = ask(page, "one")
    answer.get_by_role("button", name="Correct it").click()
    answer.get_by_label("What it should have answered").fill("uno")
    answer.get_by_role("button", name="Save correction").click()
    expect(answer.locator(".said")).to_have_text("uno")
    with page.expect_request("**/v1/chat/completions") as asked:
        ask(page, "two")
    said = [message["content"] for message in asked.value.post_data_json["messages"]]
    assert said == ["one", "uno", "two"]


def test_a_long_answer_is_stopped(page, url):
    answer = ask(page, "Tell me everything", longest=3500)
    expect(answer.locator(".said")).not_to_be_empty()
    page.get_by_role("button", name="Stop").click()
    expect(answer).to_contain_text("stopped")
    expect(page.get_by_role("button", name="Send")).to_be_visible()
    until(lambda: get(url, "/v1/device")["serving"]["working"] == 0)


def test_a_request_that_is_refused_says_why_and_can_be_sent_again(page):
    ask(page, "on and " * 4096)  # more than the context has
    expect(page.locator("#log .bad")).to_have_text(re.compile(r"\b4096\b.*\.$"))
    assert page.input_value("#text") == ("on and " * 4096).strip()
    assert page.locator("#log .user").count() == 0


# ---- feedback --------------------------------------------------------------------------------------------------------


def test_feedback_is_listed_edited_and_deleted(page, url):
    given = {"messages": [{"role": "user", "content": f"Which {HOSTILE}?"}], "correction": f"the left\n{HOSTILE}"}
    made = httpx.post(f"{url}/v1/feedback", json=given).raise_for_status().json()
    path = f"/v1/feedback/{made['id']}"
    page.click("#given summary")
    card = page.locator("#feedback > li").first
    expect(card).to_contain_text(f"Which {HOSTILE}?")
    expect(card).to_contain_text(HOSTILE)
    expect(card.locator(".badge")).to_have_text("judges" if made["held_out"] else "waits")
    expect(card).to_contain_text(re.compile("Held out: it judges|Waits to be learned"))
    card.get_by_role("button", name="Edit").click()
    box = card.get_by_label("What it should have answered")
    expect(box).to_have_value(f"the left\n{HOSTILE}")
    box.fill("   ")
    card.get_by_role("button", name="Save correction").click()
    expect(page.locator("#notice")).to_contain_text("The correction is empty")
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


def test_more_feedback_is_shown_when_asked_for(page, url):
    before = len(get(url, "/v1/feedback")["data"])
    for i in range(25):
        httpx.post(f"{url}/v1/feedback", json={"prompt": f"number {i}", "answer": "x", "rating": "down"})
    page.click("#given summary")
    expect(page.locator("#feedback > li")).to_have_count(20)
    page.get_by_role("button", name="Show more").click()
    expect(page.locator("#feedback > li")).to_have_count(min(before + 25, 40))
    assert page.locator("#feedback > li").first.get_by_role("button", name="Edit").count() == 0  # nothing is learned


def test_feedback_is_edited_on_a_phone_with_a_keyboard(browser, url):
    given = {"prompt": "w" * 200 + " which?", "correction": "long " * 100}
    made = httpx.post(f"{url}/v1/feedback", json=given).raise_for_status().json()
    with opened(browser, url, viewport={"width": 390, "height": 844}, is_mobile=True, has_touch=True) as page:
        expect(page.locator("#health")).to_have_text("running")
        page.locator("nav").get_by_role("button", name="Learning").tap()
        page.locator("#given summary").focus()
        page.keyboard.press("Enter")
        card = page.locator("#feedback > li").first
        edit = card.get_by_role("button", name="Edit")
        expect(edit).to_be_visible()
        page.keyboard.press("Tab")
        expect(edit).to_be_focused()
        page.keyboard.press("Enter")
        expect(card.get_by_label("What it should have answered")).to_be_focused()
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        ratio, where = page.evaluate(CONTRAST)
        assert ratio >= 4.5, where
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


# ---- training --------------------------------------------------------------------------------------------------------


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
    assert drawn.count("M") + drawn.count("L") == kinds.count("step") == 4  # 16 rows in batches of 8, twice
    names = job.locator("svg text").all_text_contents()
    assert "loss" in names  # each axis has a name
    assert any(name.startswith("step ") for name in names)

    (adapter,) = get(url, "/v1/adapters")["data"]
    card = page.locator("#adapters > li").first
    expect(card).to_contain_text(adapter["verdict"]["reason"])
    go_in_and_out_of_service(page, url, adapter)


def go_in_and_out_of_service(page, url: str, adapter: dict[str, Any]) -> None:
    def serving() -> Any:
        return get(url, "/v1/adapters")["serving"]

    if adapter["state"] == "serving":  # the gate let it pass
        httpx.post(f"{url}/v1/adapters/rollback").raise_for_status()
    promote = page.locator("#adapters > li").first.get_by_role("button", name="Put into service")
    promote.click()
    page.get_by_role("button", name="Leave it").click()
    expect(page.locator("#sure")).to_be_hidden()
    assert serving() is None
    promote.click()
    page.locator("#sure").get_by_role("button", name="Put into service").click()
    until(lambda: serving() == adapter["id"])
    expect(page.locator("#name")).to_have_text(re.compile("^lamp "))
    page.get_by_role("button", name="Roll back").click()
    page.locator("#sure").get_by_role("button", name="Roll back").click()
    until(lambda: serving() is None)
    expect(page.locator("#name")).to_have_text("tiny")


def test_a_training_is_paused_resumed_and_cancelled(page, url):
    begin_training(page, f"{HOSTILE}.jsonl", lines_of(ROWS), epochs=5000)
    job = page.locator("#jobs > li").first
    expect(job.locator("h3")).to_have_text(f"{HOSTILE}.jsonl")

    def becomes(status: str) -> None:
        expect(job.locator(".badge")).to_have_text(status, timeout=60_000)
        assert get(url, "/v1/fine_tuning/jobs")["data"][0]["status"] == status

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


@pytest.mark.parametrize("size", [(1280, 900), (900, 700), (390, 844), (360, 600)])
def test_a_notice_covers_no_button_that_sends_and_leaves_by_itself(browser, url, size):
    with opened(browser, url, viewport={"width": size[0], "height": size[1]}) as page:
        expect(page.locator("#health")).to_have_text("running")
        page.clock.install()
        page.evaluate("notice('A sentence that is long enough for several lines on any screen. '.repeat(3))")
        expect(page.locator("#notice")).to_be_visible()
        for name in ("#send", "#text"):
            assert apart(page.locator("#notice").bounding_box(), page.locator(name).bounding_box()), name
        page.clock.run_for(15_000)
        expect(page.locator("#notice")).to_be_hidden()


def apart(a: dict[str, float], b: dict[str, float]) -> bool:
    beside = a["x"] + a["width"] <= b["x"] or b["x"] + b["width"] <= a["x"]
    return beside or a["y"] + a["height"] <= b["y"] or b["y"] + b["height"] <= a["y"]


@pytest.mark.parametrize("height", [500, 600, 844])
def test_what_is_wrong_with_an_upload_is_seen_where_one_looks(browser, url, height):
    with opened(browser, url, viewport={"width": 390, "height": height}, is_mobile=True, has_touch=True) as page:
        expect(page.locator("#health")).to_have_text("running")
        page.locator("nav").get_by_role("button", name="Learning").tap()
        begin_training(page, "notes.txt", b"just some words\n")
        note = page.locator("#train-note")
        expect(note).to_have_text(re.compile(r"^Line 1: .*\.$"))
        box = note.bounding_box()
        nav = page.locator("nav").bounding_box()
        assert page.locator("header").bounding_box()["height"] <= box["y"]
        assert box["y"] + box["height"] <= nav["y"]


# ---- who may, and what is wrong --------------------------------------------------------------------------------------


def test_a_key_is_asked_for_until_it_is_right_and_a_daemon_that_was_away_is_found_again(browser, model, tmp_path):
    from edgetune.daemon.keys import add_key

    key = add_key(tmp_path / "keys", "me")
    options = tmp_path / "state", "--key-file", tmp_path / "keys", "--port"
    with ExitStack() as stack:
        with running(model, *options, 0) as url:
            page = stack.enter_context(opened(browser, url))
            page.get_by_label("Key", exact=True).fill("wrong")
            page.keyboard.press("Enter")
            expect(page.locator("#key-text")).to_have_text("That key was refused.")
            expect(page.locator("#ask-key")).to_contain_text("edgetune service key NAME")
            page.get_by_label("Key", exact=True).fill(key)
            page.keyboard.press("Enter")
            expect(page.locator("#health")).to_have_text("running")
            assert page.evaluate("[sessionStorage.getItem('key'), localStorage.length]") == [key, 0]
        expect(page.locator("#health")).to_have_text("not reached")
        expect(page.locator("#notice")).to_contain_text("The daemon does not answer")
        stack.enter_context(running(model, *options, url.rpartition(":")[2]))
        expect(page.locator("#health")).to_have_text("running")
        expect(page.locator("#notice")).to_be_hidden()


def test_nothing_but_its_own_script_runs_and_markup_is_refused(browser, url):
    context = browser.new_context()
    page = context.new_page()
    policy = page.goto(url).headers["content-security-policy"]
    assert "unsafe" not in policy
    assert "default-src 'none'" in policy
    for markup in ("document.body.innerHTML = '<b>x</b>'", "document.body.setAttribute('onclick', 'x()')",
                   "document.createElement('script').text = 'x()'"):
        with pytest.raises(sync_api.Error, match="Trusted"):
            page.evaluate(f"() => {{ {markup} }}")
    context.close()


# ---- how it looks ----------------------------------------------------------------------------------------------------

# The least contrast of any text with the ground behind it, as WCAG 2 defines it; controls at rest are exempt.
CONTRAST = """() => {
  const light = (colour) => {
    const [r, g, b] = colour.match(/[\\d.]+/g).map((part) => part / 255)
      .map((part) => (part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const ground = (node) => {
    const colour = getComputedStyle(node).backgroundColor;
    return /, 0\\)$/.test(colour) && node.parentElement ? ground(node.parentElement) : colour;
  };
  let worst = [21, ""];
  for (const node of document.querySelectorAll("body *")) {
    const own = [...node.childNodes].some((child) => child.nodeType === 3 && child.data.trim());
    if (!own || !node.checkVisibility() || node.matches(":disabled, script, style")) continue;
    const style = getComputedStyle(node), ink = node.closest("svg") ? style.fill : style.color;
    const [high, low] = [light(ink), light(ground(node))].sort((a, b) => b - a);
    const ratio = (high + 0.05) / (low + 0.05);
    if (ratio < worst[0]) worst = [ratio, node.outerHTML.slice(0, 200)];
  }
  return worst;
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_shows_each_part_without_scrolling_sideways_and_with_contrast(browser, url, scheme):
    with opened(browser, url, viewport={"width": 390, "height": 844}, color_scheme=scheme, is_mobile=True,
                has_touch=True) as page:
        expect(page.locator("#health")).to_have_text("running")
        ask(page, "Hello").get_by_role("button", name="Wrong answer").tap()
        expect(page.get_by_label("What it should have answered")).to_be_focused()
        for part in ("Chat", "Learning", "Adapters", "Device"):
            page.locator("nav").get_by_role("button", name=part).tap()
            shown = page.locator("main section:visible h2")
            expect(shown).to_have_count(1)
            expect(shown).to_contain_text(part)
            assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
            if part == "Chat":
                assert page.evaluate("document.documentElement.scrollHeight <= innerHeight")
            ratio, where = page.evaluate(CONTRAST)
            assert ratio >= 4.5, where


def test_it_is_used_with_the_keyboard_alone(page):
    for reached in ("#model", "#anew", "#log", "#options summary", "#text"):
        page.keyboard.press("Tab")
        expect(page.locator(reached)).to_be_focused()
    page.keyboard.type("Hi")
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("there")
    page.keyboard.press("Enter")
    expect(page.locator("#log .user .said")).to_have_text("Hi\nthere", use_inner_text=True)


def test_facts_are_those_of_the_device(page, url):
    device = get(url, "/v1/device")
    expect(page.locator("#name")).to_have_text(device["model"])
    expect(page.locator("#budget")).to_contain_text("of ")
    warm = device["temperature"]
    expect(page.locator("#heat-note")).to_have_text("no sensor" if warm is None else "")
    assert 0 < page.locator("#meter").evaluate("(meter) => meter.value") <= 1
