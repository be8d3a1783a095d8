"""Makes docs/page.png: the daemon's page beside SmolLM2 that has learned home commands.

`make picture` runs it; it needs the extras demo and daemon, playwright and Chromium. The training takes minutes, once:
its state is kept in build/picture/, and so are pictures of the page in the dark and on a phone, to look at.
"""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, Page, expect, sync_playwright

from edgetune.daemon.client import Client
from edgetune.demo.run import DATA, SYSTEM

PICTURE = Path(__file__).with_name("page.png")
FOLDER = Path(__file__).parents[1] / "build" / "picture"
ROWS, HELD = 160, 30
LAPTOP = {"viewport": {"width": 1280, "height": 1100}, "device_scale_factor": 1.5}
PHONE = {"viewport": {"width": 360, "height": 740}, "device_scale_factor": 2, "is_mobile": True, "has_touch": True}
ASKED = ("My toes are like ice here in the study", "My bread has to bake for 45 minutes",
         "Someone dropped chips all over the lounge carpet")
CORRECTED = ("Lift the office shutters", "How about a few quiet songs for the bedroom?",
             "Take the lock off the bedroom door")
RIGHT = {row["prompt"]: row["completion"] for row in map(json.loads, (DATA / "home_heldout.jsonl").open())}


def main() -> None:
    FOLDER.mkdir(parents=True, exist_ok=True)
    with daemon() as client, sync_playwright() as playwright:
        if client.get("/v1/adapters")["serving"] is None:
            learn(client)
        give_feedback(client)
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"))
        url = client.url
        take(browser, url, PICTURE, color_scheme="light", **LAPTOP)
        take(browser, url, FOLDER / "dark.png", color_scheme="dark", **LAPTOP)
        for part in ("Chat", "Learning", "Adapters", "Device"):
            take(browser, url, FOLDER / f"phone-{part.lower()}.png", part, color_scheme="dark", **PHONE)
        browser.close()


@contextmanager
def daemon() -> Iterator[Client]:
    """One as a user starts it, but for a machine that others use too; a client of it."""
    command = [sys.executable, "-m", "edgetune", "daemon", "smollm2", "--state", str(FOLDER / "state"),
               "--port", "0", "--memory", "700M", "--learn", "tutor", "--keep-prompts", "1000", "--no-govern", "--json"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout
        with Client(json.loads(process.stdout.readline())["url"]) as client:
            yield client
        process.send_signal(signal.SIGINT)
        process.wait(60)
    finally:
        process.kill()


def learn(client: Client) -> None:
    """A training on files, as the page begins one: a part of the demonstration's rows."""
    rows, held = part_of("home_train.jsonl", ROWS), part_of("home_heldout.jsonl", HELD)
    options = {"max_length": 128, "system": SYSTEM}
    job = client.post("/v1/fine_tuning/jobs", {
        "model": client.get("/v1/device")["model"], "suffix": "home",
        "training_file": client.upload(rows), "validation_file": client.upload(held),
        "method": {"type": "supervised", "supervised": {"hyperparameters": options}}})
    while job["finished_at"] is None:
        time.sleep(2)
        job = client.get(f"/v1/fine_tuning/jobs/{job['id']}")
    listed = client.get("/v1/adapters")
    client.patch(f"/v1/adapters/{listed['data'][0]['id']}", {"name": "home"})
    if listed["serving"] is None:
        sys.exit(f"nothing was put into service: {job['error'] or listed['data'][0]['verdict']['reason']}")


def part_of(name: str, count: int) -> Path:
    """A file of the first rows of the demonstration's."""
    path = FOLDER / name
    path.write_text("".join((DATA / name).read_text("utf-8").splitlines(keepends=True)[:count]), "utf-8")
    return path


def give_feedback(client: Client) -> None:
    """What people said before, once."""
    if client.get("/v1/feedback")["data"]:
        return
    for asked in CORRECTED:
        messages = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": asked}]
        client.post("/v1/feedback", {"messages": messages, "correction": RIGHT[asked]})


def take(browser: Browser, url: str, path: Path, part: str = "Chat", **options: Any) -> None:
    """A picture after a conversation; all of its answers must be right."""
    context = browser.new_context(locale="en-GB", **options)
    page = context.new_page()
    page.goto(url)
    expect(page.locator("#health")).to_have_text("running")
    talk(page)
    if page.locator("nav").is_visible():
        page.locator("nav").get_by_role("button", name=part).tap()
    page.locator("#jobs details").first.evaluate("(fold) => (fold.open = true)")
    if page.locator("#learning").is_visible():
        expect(page.locator("#jobs svg path.train").first).to_be_visible()
    page.locator("#text").blur()
    page.screenshot(path=path)
    context.close()


def talk(page: Page) -> None:
    page.click("#options summary")
    page.fill("#system", SYSTEM)
    page.click("#options summary")
    for asked in ASKED:
        page.fill("#text", asked)
        page.press("#text", "Enter")
        answer = page.locator("#log .answer").last
        expect(answer.get_by_role("button", name="Good answer")).to_be_visible(timeout=60_000)
        expect(answer.locator(".said")).to_have_text(RIGHT[asked])


if __name__ == "__main__":
    main()
