"""The page below a path of Home Assistant, in its frame, of a daemon that asks others for a key."""

import pytest
from daemons import daemon
from ingress import ADDRESS, PATH, ingress
from pages import LAPTOP, ROWS, ask, begin_training, expect, lines_of, opened, runs

from edgetune.daemon.keys import add_key

SHAPE = {"formats": "F32", "n_context": 512}


@pytest.fixture(scope="module")
def hub(model, tmp_path_factory):
    """The address of the ingress."""
    folder = tmp_path_factory.mktemp("keyed")
    add_key(folder / "keys", "first")
    with daemon(model, folder / "state", key_file=str(folder / "keys"), trusted_proxy=ADDRESS) as running, \
            ingress(running.url) as url:
        yield url


def test_the_page_asks_nothing_outside_its_path_and_for_no_key(browser, hub):
    with opened(browser, f"{hub}{PATH}/", **LAPTOP) as page:
        runs(page)
        expect(page.locator("#ask-key")).to_be_hidden()
        ask(page, "the light on")
        expect(page.locator("#log .answer").last).not_to_be_empty()
        begin_training(page, "rows.jsonl", lines_of(ROWS), epochs=1)
        expect(page.locator("#jobs li").first).to_contain_text("rows.jsonl")
        expect(page.locator("#notice")).to_be_hidden()


@pytest.mark.dev
def test_its_frame_shows_it_and_no_other(browser, hub):
    context = browser.new_context(**LAPTOP)
    page = context.new_page()
    page.goto(hub)
    frame = page.frame_locator("iframe")
    expect(frame.locator("#health")).to_have_text("running")
    page.goto(hub.replace("127.0.0.1", "localhost"))  # another origin, whose panel shows its own path: allowed
    expect(page.frame_locator("iframe").locator("#health")).to_have_text("running")
    page.set_content(f'<iframe src="{hub}{PATH}/"></iframe>')  # a page of localhost shows that of 127.0.0.1
    page.wait_for_timeout(1000)
    assert page.frames[-1].url.startswith("chrome-error:")
    context.close()
