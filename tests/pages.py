"""The daemon's page in headless Chromium, for tests that click in it; those skip where a part of that is missing."""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

httpx = pytest.importorskip("httpx")
for needed in ("fastapi", "uvicorn", "python_multipart", "prometheus_client", "sdnotify"):
    pytest.importorskip(needed)
sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright (pip install playwright)")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
if CHROMIUM is None:
    pytest.skip("needs Chromium in the PATH", allow_module_level=True)

expect = sync_api.expect
expect.set_options(timeout=20_000)  # ms; a busy machine takes longer than the 5 s of the default
HOSTILE = "<img src=x onerror=alert(1)>"  # what must stay text
ROWS = [{"prompt": f"turn light {i}", "completion": " on" if i % 2 else " off"} for i in range(20)]
PHONE = {"viewport": {"width": 390, "height": 844}, "is_mobile": True, "has_touch": True}
SMALL_PHONE = {**PHONE, "viewport": {"width": 360, "height": 640}}
LAPTOP = {"viewport": {"width": 1280, "height": 900}}


@contextmanager
def opened(browser: Any, url: str, **options: Any) -> Iterator[Any]:
    """The page, which must ask nobody but its daemon, break no policy and raise nothing; nor may what it opens. What a
    console says of a request that the daemon refused is no error of the page.
    """
    complaints: list[str] = []
    own = (url, f"blob:{url}", "data:")
    context = browser.new_context(**options)
    context.on("weberror", lambda error: complaints.append(str(error.error)))
    context.on("console", lambda line: complaints.append(line.text) if line.type == "error" and not
               line.text.startswith("Failed to load resource") else None)
    context.on("request", lambda asked: None if asked.url.startswith(own) else complaints.append(asked.url))
    page = context.new_page()
    page.set_default_timeout(20_000)
    page.goto(url)
    yield page
    assert page.locator("img").count() == 0
    context.close()
    assert complaints == []


def get(url: str, path: str) -> Any:
    return httpx.get(url + path, timeout=60).raise_for_status().json()


def runs(page: Any) -> None:
    """Wait until it has seen its daemon."""
    expect(page.locator("#health")).to_have_text("running")


def go_to(page: Any, part: str) -> None:
    """On a phone, whose parts are shown one at a time."""
    page.locator("nav").get_by_role("button", name=part).tap()


def ask(page: Any, text: str, longest: int = 8) -> Any:
    """The answer's element, as soon as it is there."""
    if not page.locator("#longest").is_visible():
        page.click("#options summary")
    page.fill("#longest", str(longest))
    page.fill("#text", text)
    page.press("#text", "Enter")
    return page.locator("#log .answer").last


def begin_training(page: Any, name: str, rows: bytes, **fields: object) -> None:
    page.click("#begin summary")
    page.set_input_files("#file", {"name": name, "mimeType": "application/jsonl", "buffer": rows})
    for field, value in fields.items():
        page.fill(f"#{field}", str(value))
    page.click("#start")


def lines_of(rows: list[dict[str, str]]) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


def is_sideways(page: Any) -> bool:
    """Whether it must be scrolled sideways."""
    return bool(page.evaluate("document.documentElement.scrollWidth > innerWidth"))


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


def check_looks(page):
    """No sideways scrolling, contrast, and nothing that axe-core complains of."""
    from axe_playwright_python.sync_playwright import Axe
    assert not is_sideways(page)
    ratio, where = page.evaluate(CONTRAST)
    assert ratio >= 4.5, where
    found = Axe().run(page)
    assert found.violations_count == 0, found.generate_report()


def unfold(page):
    page.evaluate("document.querySelectorAll('main details').forEach((fold) => (fold.open = true))")
