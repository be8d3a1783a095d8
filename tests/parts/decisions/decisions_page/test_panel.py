"""Typed questions on the page: asked, shown with bars, corrected by a click, and how to teach them."""

import pytest
from daemons import daemon
from encoder_daemon import write_adapter, write_tiny_encoder
from pages import HOSTILE, LAPTOP, SMALL_PHONE, check_looks, expect, get, go_to, httpx, opened, runs, unfold
from tiny import write_tiny
from typed_rows import typed_rows

STATE = "turn on the light, the kitchen a a"
MANY = {"many": {"type": "choice", "instructions": HOSTILE, "criteria": dict.fromkeys("abcdefgh")}}
PASSED = {"passed": True, "reason": "for a test"}


def rows_of_many(count=120):
    return [{**row, "questions": row["questions"] | MANY, "expected": row["expected"] | {"many": "abcdefgh"[i % 8]}}
            for i, row in enumerate(typed_rows(count))]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_tiny_encoder(tmp_path_factory.mktemp("encoder") / "enc.gguf")


def serve(service, folder, job):
    service.adapters.add(job, folder, "typed", PASSED)
    service.adapters.promote(service.adapters.of_job(job).id, "for the test")


@pytest.fixture(scope="module")
def adapter(model, tmp_path_factory):
    return write_adapter(model, tmp_path_factory.mktemp("adapter") / "typed", rows_of_many())


@pytest.fixture(scope="module")
def running(model, adapter, tmp_path_factory):
    with daemon(model, tmp_path_factory.mktemp("decisions") / "state") as made:
        serve(made.service, adapter, "ftjob-typed")
        yield made


def ask(page, state=STATE):
    page.get_by_label("State").fill(state)
    page.get_by_label("State").press("Enter")
    expect(page.locator("#decide-note")).to_contain_text("answered by")
    return page.locator("#questions > li")


def card(page, text):
    return page.locator("#questions > li").filter(has_text=text)


def pressed(card):
    return card.get_by_role("button", pressed=True)


def test_bars_are_the_probabilities_of_the_api(page, url):
    learned = get(url, "/v1/decisions/questions")["data"]
    assert ask(page).count() == len(learned) == 4
    far = card(page, "How far is it?")
    found = {option.locator("span").first.inner_text(): option.locator(".now").evaluate("(bar) => bar.style.width")
             for option in far.get_by_role("button").all()}
    question = next(each for each in learned if each["type"] == "score")
    asked = {key: question[key] for key in ("type", "instructions", "criteria")}
    answer = httpx.post(f"{url}/v1/systemone", json={"state": STATE, "questions": {"it": asked}}).raise_for_status()
    p = answer.json()["answers"]["it"]["probabilities"]
    assert {name: float(width.rstrip("%")) for name, width in found.items()} == pytest.approx(
        {name: 100 * p[str(level)] for level, name in enumerate(question["criteria"])}, abs=0.01)
    shares = [float(width.rstrip("%")) for width in found.values()]
    assert shares == sorted(shares, reverse=True)
    expect(pressed(far)).to_contain_text(next(iter(found)))
    expect(far.locator(".badge")).to_have_text("sure" if "it" in answer.headers["x-edgetune-sure"] else "not sure")


def test_a_click_corrects_and_the_correction_is_recalled(page, url):
    state = "the light, here b b"
    ask(page, state)
    lamp = card(page, "What happens to the lamp?")
    right = lamp.get_by_role("button", pressed=False).last
    name = right.locator("span").first.inner_text()
    right.click()
    expect(pressed(lamp)).to_contain_text(name)
    expect(lamp.locator(".badge")).to_contain_text("will")
    given = get(url, "/v1/feedback")["data"][0]
    assert (given["question"], given["answer"]) == (state, name)
    ask(page, state)
    expect(lamp.locator(".badge")).to_have_text("from a correction")
    expect(pressed(lamp)).to_contain_text("100 %")
    expect(card(page, "How far is it?").locator(".badge")).not_to_have_text("from a correction")


def test_a_click_on_the_answer_says_that_it_is_right(page, url):
    ask(page, "turn on the light, here c c")
    kitchen = card(page, "Is it the kitchen?")
    kitchen.get_by_role("button", pressed=True).click()
    expect(kitchen.locator(".badge")).to_contain_text("will")
    given = get(url, "/v1/feedback")["data"][0]
    assert (given["rating"], given["answer"]) == ("up", "false")
    pressed(kitchen).click()  # once is enough
    expect(kitchen.get_by_role("button", pressed=True)).to_be_enabled()
    assert get(url, "/v1/feedback")["data"][0]["id"] == given["id"]


def test_of_many_options_the_most_probable_are_shown_first(page):
    ask(page)
    many = card(page, HOSTILE)
    options = many.locator("ol button")
    expect(options).to_have_count(5)
    many.get_by_role("button", name="Show all 8").click()
    expect(options).to_have_count(8)
    expect(many.get_by_role("button", name="Show all 8")).to_be_hidden()


def test_figures_are_those_of_the_api(page, url):
    known = next(each for each in get(url, "/v1/decisions/questions")["data"] if each["type"] == "score")
    far = card(page, "How far is it?")
    far.locator("summary").click()
    five, one = known["decided_alone"]
    assert (five["error"], one["error"], one["missing"][:15]) == (0.05, 0.01, "120 held-out ro")
    for text, said in (("Rows that were not learned", "120"), ("Right", f"{100 * known['accuracy']:.0f} %"),
                       ("Brier score", f"{known['brier']:.3f}"),
                       ("Calibration error", f"{known['calibration_error']:.3f}"),
                       ("The same by chance", f"{known['calibration_error_by_chance']:.3f}"),
                       ("Alone at ≤ 1 % error", "none")):
        expect(far.get_by_role("row", name=text).get_by_role("cell")).to_have_text(said)
    expect(far).to_contain_text("120 held-out rows, at least 321 needed for 0.99.")


def test_what_is_wrong_is_said_below_the_state(page):
    page.get_by_label("State").fill("[")
    page.evaluate("learnedQuestions = [{ type: 'noul', instructions: 'Is it cold?', criteria: null }]")
    page.get_by_role("button", name="Ask", exact=True).click()
    expect(page.locator("#decide-wrong")).to_contain_text("was not learned")


@pytest.mark.dev
def test_it_is_used_with_the_keyboard_alone(page):
    page.get_by_label("State").focus()
    page.keyboard.type("the light")
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("here d")
    page.keyboard.press("Enter")
    expect(page.locator("#decide-note")).to_contain_text("of 4 sure")
    for _ in range(3):  # past the button and the first option
        page.keyboard.press("Tab")
    focused = page.locator("#questions :focus")
    name = focused.locator("span").first.inner_text()
    page.keyboard.press("Enter")
    expect(page.locator("#questions > li").first.get_by_role("button", pressed=True)).to_contain_text(name)


@pytest.mark.dev
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [LAPTOP, SMALL_PHONE], ids=["laptop", "phone"])
def test_it_fits_a_phone_and_a_laptop(browser, url, scheme, size):
    with opened(browser, url, color_scheme=scheme, **size) as page:
        runs(page)
        if size is SMALL_PHONE:
            go_to(page, "Decisions")
            expect(page.locator("main section:visible h2")).to_have_text("Decisions")
        ask(page)
        card(page, "How far is it?").get_by_role("button", pressed=False).first.click()
        unfold(page)
        expect(card(page, "How far is it?").locator(".badge")).to_contain_text("will")
        check_looks(page)


@pytest.mark.dev
def test_nothing_is_learned_yet(browser, model, adapter, tmp_path):
    """Then it says how to teach, until an adapter is active."""
    with daemon(model, tmp_path / "state") as made, opened(browser, made.url, **LAPTOP) as page:
        runs(page)
        panel = page.locator("#decisions")
        expect(panel).to_contain_text("No question is learned yet")
        expect(panel).to_contain_text("edgetune jobs create rows.jsonl")
        expect(page.get_by_label("State")).to_be_hidden()
        check_looks(page)
        serve(made.service, adapter, "ftjob-typed")
        page.evaluate("look().then(look)")
        expect(page.locator("#questions > li")).to_have_count(4)
        expect(page.locator("#no-questions")).to_be_hidden()


@pytest.mark.dev
def test_a_model_that_writes_text_has_no_such_panel(browser, tmp_path):
    with daemon(write_tiny(tmp_path / "tiny.gguf"), tmp_path / "state") as made:
        with opened(browser, made.url, **LAPTOP) as page:
            runs(page)
            expect(page.locator("#decisions")).to_be_hidden()
        found = get(made.url, "/v1/decisions/questions")
        assert found == {"object": "list", "model": "tiny", "learns": False, "data": []}
