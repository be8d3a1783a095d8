"""How the page looks and is used: no sideways scrolling, contrast, axe-core, the keyboard alone, its own policy."""

import pytest
from pages import LAPTOP, ROWS, SMALL_PHONE, ask, check_looks, expect, get, go_to, opened, runs, sync_api, unfold
from services import SMALL
from sometimes import mostly_slow

SHAPE = {"formats": "F32", "n_context": 4096}
DAEMON = {"context": 4096}


@pytest.fixture(scope="module")
def url(running):
    """With a bit of everything to be seen."""
    service = running.service
    job = service.jobs.create_from_rows(ROWS, suffix="lamp", hyperparameters=SMALL)
    made = service.jobs.wait(job.id, 60).result
    service.adapters.promote(made, "for the test")
    service.feedback.add(prompt="which?", answer="this", rejected="that")
    service.feedback.add(prompt="where?", correction="here")
    return running.url


@pytest.mark.dev
@pytest.mark.parametrize("size", [(1280, 900), pytest.param((900, 700), marks=pytest.mark.slow),
                                  pytest.param((390, 844), marks=pytest.mark.slow), (360, 600)])
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


def apart(a, b):
    beside = a["x"] + a["width"] <= b["x"] or b["x"] + b["width"] <= a["x"]
    return beside or a["y"] + a["height"] <= b["y"] or b["y"] + b["height"] <= a["y"]


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


def test_colours_are_the_systems_until_a_person_chooses_others(browser, url):
    with opened(browser, url, color_scheme="dark", **LAPTOP) as page:
        def ground():
            return page.evaluate("getComputedStyle(document.body).backgroundColor")

        dark = ground()
        switch = page.get_by_role("button", name="Dark colours")
        expect(switch).to_have_attribute("aria-pressed", "true")
        switch.click()
        light = ground()
        assert light != dark
        page.reload()
        assert ground() == light
        switch.click()
        assert ground() == dark
        page.emulate_media(color_scheme="light")
        assert ground() == light


@pytest.mark.dev
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_shows_each_part_whole_and_readable(browser, url, scheme):
    with opened(browser, url, color_scheme=scheme, **SMALL_PHONE) as page:
        runs(page)
        ask(page, "Hello").get_by_role("button", name="Wrong answer").tap()
        expect(page.get_by_label("What it should have answered")).to_be_focused()
        for part in ("Chat", "Learning", "Adapters", "Device"):
            go_to(page, part)
            shown = page.locator("main section:visible h2")
            expect(shown).to_have_count(1)
            expect(shown).to_contain_text(part)
            unfold(page)
            if part == "Chat":
                assert page.evaluate("document.documentElement.scrollHeight <= innerHeight")
            if part == "Learning":
                expect(page.locator("#feedback > li").first).to_be_visible()
                expect(page.locator("#jobs svg path.train")).to_be_visible()
                expect(page.locator("#jobs > li").first).to_be_visible()
                expect(page.get_by_role("link", name="Export the right answers")).to_be_visible()
            if part == "Device":
                expect(page.locator("#events > li").first).to_be_visible()
            check_looks(page)


@pytest.mark.slow
@pytest.mark.parametrize("scheme", mostly_slow(["light", "dark"], ["light"]))  # a phone shows both
def test_a_laptop_shows_all_at_once(browser, url, scheme):
    with opened(browser, url, color_scheme=scheme, **LAPTOP) as page:
        runs(page)
        page.select_option("#model", "tiny")  # whose answers vary
        page.click("#options summary")
        page.get_by_label("Compare two answers").check()
        expect(ask(page, "Hello").get_by_role("button", name="The first is better")).to_be_visible()
        unfold(page)
        page.get_by_role("button", name="Edit", exact=True).first.click()
        expect(page.locator("#jobs svg path.train")).to_be_visible()
        check_looks(page)
        page.get_by_role("button", name="Delete", exact=True).first.click()
        check_looks(page)


@pytest.mark.dev
def test_it_is_used_with_the_keyboard_alone(page, url):
    for reached in ("#dark", "#model", "#anew", "#log", "#options summary", "#twice", "#text"):
        page.keyboard.press("Tab")
        expect(page.locator(reached)).to_be_focused()
    page.keyboard.type("Hi")
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("there")
    page.keyboard.press("Enter")
    expect(page.locator("#log .user .said")).to_have_text("Hi\nthere", use_inner_text=True)
    device = get(url, "/v1/device")
    expect(page.locator("#name")).to_have_text(device["model"])
    expect(page.locator("#budget")).to_contain_text("of ")
    warm = device["temperature"]
    expect(page.locator("#heat-note")).to_have_text("no sensor" if warm is None else "")
    assert 0 < page.locator("#meter").evaluate("(meter) => meter.value") <= 1
