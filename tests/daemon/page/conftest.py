"""One daemon and one browser for all tests of a module. Imports are within the fixtures: a part may be missing."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tiny import write_tiny


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("model") / "tiny.gguf", n_context=4096)


@pytest.fixture(scope="module")
def running(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """The daemon: its url and its service."""
    from daemons import daemon

    with daemon(model, tmp_path_factory.mktemp("state"), context=4096) as running:
        yield running


@pytest.fixture(scope="module")
def url(running: Any) -> str:
    return str(running.url)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from pages import CHROMIUM, sync_api

    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM)
        yield browser
        browser.close()


@pytest.fixture
def page(browser: Any, url: str) -> Iterator[Any]:
    from pages import LAPTOP, opened, runs

    with opened(browser, url, **LAPTOP) as page:
        runs(page)
        yield page
