"""One browser for all tests of a folder, as fixtures of its conftest. Imports are within them: a part may be missing.

It ends with the folder: while Playwright is there, its loop of asyncio runs, and no other can.
"""

import pytest


@pytest.fixture(autouse=True)
def the_browser_is_no_part_of_the_daemon(monkeypatch):
    """It is a child of this process, whose memory the daemon would count in each look of its page."""
    monkeypatch.setattr("edgetune.daemon.memory._with_children", lambda process: [process])


@pytest.fixture(scope="module")
def url(running):
    return str(running.url)


@pytest.fixture(scope="package")
def browser():
    from pages import CHROMIUM, sync_api

    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM)
        yield browser
        browser.close()


@pytest.fixture
def page(browser, url):
    from pages import LAPTOP, opened, runs

    with opened(browser, url, **LAPTOP) as page:
        runs(page)
        yield page
