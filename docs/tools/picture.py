"""Makes the pictures of the daemon's page in docs/img: light, dark and on a phone.

It needs the extras demo and daemon, playwright and Chromium. SmolLM2 learns a part of the
demonstration's rows once, in minutes; build/picture keeps the state. The board and its temperature are those of
tests/boards.py; answers, scores and losses are real. The speed of answers, which is this machine's, is left out.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, Page, expect, sync_playwright

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tests"))

from boards import Board  # noqa: E402
from daemons import daemon  # noqa: E402
from services import same_holdout  # noqa: E402

from edgetune.daemon import service  # noqa: E402
from edgetune.daemon.client import Client  # noqa: E402
from edgetune.daemon.options import DaemonConfig  # noqa: E402
from edgetune.demo.run import DATA, SYSTEM  # noqa: E402
from edgetune.machine.device import read_device  # noqa: E402
from edgetune.machine.policy import Policy  # noqa: E402
from edgetune.machine.sensors import Sensors  # noqa: E402

IMAGES = ROOT / "docs" / "img"
FOLDER = ROOT / "build" / "picture"
SERVE = "serve"  # the argument of the process that serves
ROWS, HELD = 160, 30
LAPTOP = {"viewport": {"width": 1280, "height": 900}, "device_scale_factor": 1.5}
PHONE = {"viewport": {"width": 375, "height": 740}, "device_scale_factor": 2, "is_mobile": True, "has_touch": True}
CORRECTED = ("How about a few quiet songs for the bedroom?", "The bathroom radio is hardly audible",
             "Take the lock off the bedroom door")  # before the conversation
ASKED = (CORRECTED[0], "Have the garage thermostat hold 17", "Give the nursery a little breeze")
RIGHT = {row["prompt"]: row["completion"] for row in map(json.loads, (DATA / "home_heldout.jsonl").open())}


def main() -> None:
    FOLDER.mkdir(parents=True, exist_ok=True)
    with served() as client, sync_playwright() as playwright:
        if client.get("/v1/adapters")["serving"] is None:
            learn(client)
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"))
        for name, options in (("page-light", {"color_scheme": "light", **LAPTOP}),
                              ("page-dark", {"color_scheme": "dark", **LAPTOP}),
                              ("page-phone", {"color_scheme": "light", **PHONE})):
            begin_again(client)
            take(browser, client.url, IMAGES / f"{name}.png", **options)
        browser.close()


@contextmanager
def served() -> Iterator[Client]:
    """A client of a daemon in a process of its own, whose memory the page shows."""
    with subprocess.Popen([sys.executable, __file__, SERVE], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                          text=True) as process:
        assert process.stdin
        assert process.stdout
        try:
            with Client(process.stdout.readline().strip()) as client:
                yield client
        finally:
            process.stdin.close()


def serve() -> None:
    """A daemon on a board that is made up, until standard input ends."""
    board = Board(FOLDER / "board")
    board.heat(58)
    same_holdout(FOLDER / "state")  # of the correction in the picture, too
    service.read_device = partial(read_device, board.root)
    with daemon(Path("smollm2"), FOLDER / "state", policy=Policy(govern=False), memory="700M", learn="idle",
                **{name: getattr(DaemonConfig, name) for name in ("canary", "canary_rise", "max_kl")}) as running:
        running.service.sensors = Sensors(board.root, (board.zone,))
        print(running.url, flush=True)
        sys.stdin.read()


def learn(client: Client) -> None:
    """Trains on files, as the page begins it."""
    rows, held = part_of("home_train.jsonl", ROWS), part_of("home_heldout.jsonl", HELD)
    options = {"max_length": 128, "system": SYSTEM}
    job = client.post("/v1/fine_tuning/jobs", {
        "model": client.get("/v1/device")["model"], "suffix": "home",
        "training_file": client.upload(rows), "validation_file": client.upload(held),
        "method": {"type": "supervised", "supervised": {"hyperparameters": options}}})
    while job["finished_at"] is None:
        time.sleep(2)
        job = client.get(f"/v1/fine_tuning/jobs/{job['id']}")
    made = client.get("/v1/adapters")
    if made["serving"] is None:
        sys.exit(f"nothing was activated: {job['error'] or made['data'][0]['verdict']['reason']}")


def part_of(name: str, count: int) -> Path:
    """A file of the first rows of the demonstration's."""
    path = FOLDER / name
    path.write_text("".join((DATA / name).read_text("utf-8").splitlines(keepends=True)[:count]), "utf-8")
    return path


def begin_again(client: Client) -> None:
    """Leaves the feedback that people gave before the conversation, and the name of the adapter."""
    client.patch(f"/v1/adapters/{client.get('/v1/adapters')['serving']}", {"name": "home"})
    for given in client.get("/v1/feedback")["data"]:
        client.delete(f"/v1/feedback/{given['id']}")
    for asked in CORRECTED:
        messages = [{"role": "user", "content": asked}]
        client.post("/v1/feedback", {"messages": messages, "correction": RIGHT[asked]})


def take(browser: Browser, url: str, path: Path, **options: Any) -> None:
    """Takes a picture after a conversation."""
    context = browser.new_context(locale="en-GB", **options)
    page = context.new_page()
    page.goto(url)
    expect(page.locator("#health")).to_have_text("running")
    talk(page)
    page.locator("#text").blur()
    page.evaluate("() => { $('speed').parentElement.hidden = true; }")
    page.evaluate("document.querySelectorAll('#log .soft').forEach((said) => {"
                  " said.textContent = said.textContent.replace(/ · [\\d.]+ s$/, ''); })")
    page.evaluate("() => { $('tiles').style.gridTemplateColumns = 'repeat(3, 1fr)'; }")
    page.evaluate("document.documentElement.style.scrollbarGutter = 'auto'")
    page.screenshot(path=path)
    context.close()


def talk(page: Page) -> None:
    """Asks, and corrects what is answered wrong: by SmolLM2 the last one."""
    for asked in ASKED:
        page.fill("#text", asked)
        page.press("#text", "Enter")
        answer = page.locator("#log .answer").last
        expect(answer.get_by_role("button", name="Good answer")).to_be_visible(timeout=60_000)
        if answer.locator(".said").inner_text() != RIGHT[asked]:
            answer.get_by_role("button", name="Correct", exact=True).click()
            answer.get_by_label("What it should have answered").fill(RIGHT[asked])
            answer.get_by_role("button", name="Save correction").click()
            expect(answer.locator("ins")).to_be_visible()


if __name__ == "__main__":
    serve() if SERVE in sys.argv else main()
