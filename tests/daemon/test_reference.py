"""/docs in a browser: it shows every call of /openapi.json, asks for nothing else, and runs no script."""

from __future__ import annotations

import re
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

pytest.importorskip("fastapi")

import httpx
from daemons import daemon
from fastapi.openapi.utils import get_openapi
from tiny import write_tiny

from edgetune.daemon.api import app
from edgetune.daemon.keys import add_key

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.fixture(scope="module")
def running(tmp_path_factory):
    """One that asks for keys: the page shows no data, and a browser cannot send a key for it."""
    folder = tmp_path_factory.mktemp("docs")
    key = add_key(folder / "keys", "me")
    model = write_tiny(folder / "tiny.gguf", formats="Q8_0", n_context=64)
    with daemon(model, folder / "state", key_file=str(folder / "keys")) as made:
        yield made.url, key


def test_every_call_and_every_shape_is_there(running):
    url, key = running
    page = httpx.get(f"{url}/docs", timeout=60)
    assert page.status_code == 200
    schema = httpx.get(f"{url}/openapi.json", headers={"Authorization": f"Bearer {key}"}, timeout=60).json()
    calls = {f"{method.upper()} {path}" for path, methods in schema["paths"].items() for method in methods}
    assert set(re.findall(r"<summary><code>([A-Z]+ [^<]+)</code>", page.text)) == calls
    ids = re.findall(r' id="([^"]+)"', page.text)
    assert len(ids) == len(set(ids))
    assert set(schema["components"]["schemas"]) < set(ids)
    assert set(re.findall(r'href="#([^"]+)"', page.text)) <= set(ids)
    assert "{" + "{" not in page.text
    assert "Authorization: Bearer KEY" in page.text


def test_nothing_is_loaded_and_nothing_runs(running):
    page = httpx.get(f"{running[0]}/docs", timeout=60)
    assert "<script" not in page.text
    policy = page.headers["Content-Security-Policy"]
    assert "script-src 'none'" in policy
    assert "unsafe" not in policy
    assert set(re.findall(r'(?:src|href)="([^"#][^"]*)"', page.text)) == {"data:,", "openapi.json"}


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium in the PATH")
def test_a_browser_shows_it(running):
    sync_api = pytest.importorskip("playwright.sync_api")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM)
        page = browser.new_page(viewport={"width": 360, "height": 640})
        said: list[str] = []
        asked: list[str] = []
        page.on("console", lambda message: said.append(message.text))
        page.on("request", lambda request: asked.append(request.url))
        page.goto(f"{running[0]}/docs")
        assert page.evaluate("getComputedStyle(document.querySelector('details')).borderRadius") == "8px"
        page.get_by_text("POST /v1/embeddings").click()
        assert page.get_by_text("A text, token ids, or a list of either.").first.is_visible()
        assert page.evaluate("document.documentElement.scrollWidth") <= 360
        assert asked == [f"{running[0]}/docs"]
        assert said == []
        browser.close()


@pytest.mark.slow
def test_others_are_answered_while_the_schema_is_made(tmp_path, monkeypatch):
    """It takes seconds on a small board, and is made when somebody asks for it, not at the start or at a wrong path."""
    asked = threading.Event()
    go_on = threading.Event()
    made = []

    def slowly(**given):
        made.append(given["title"])
        asked.set()
        assert go_on.wait(60)
        return get_openapi(**given)

    monkeypatch.setattr(app, "get_openapi", slowly)
    model = write_tiny(tmp_path / "tiny.gguf", formats="Q8_0", n_context=64)
    with daemon(model, tmp_path / "state") as running, ThreadPoolExecutor(2) as pool:
        assert httpx.patch(f"{running.url}/v1/files", timeout=60).headers["Allow"] == "GET, POST"
        assert httpx.get(f"{running.url}/nowhere", timeout=60).status_code == 404
        assert not made
        pages = [pool.submit(httpx.get, running.url + path, timeout=60) for path in ("/openapi.json", "/docs")]
        assert asked.wait(60)
        assert httpx.get(f"{running.url}/healthz", timeout=60).status_code == 200
        go_on.set()
        assert all(page.result().status_code == 200 for page in pages)
    assert len(made) == 1
