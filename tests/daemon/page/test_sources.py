"""Under an answer the page lists the passages of documents that stood before the question."""

import pytest

pytest.importorskip("edgetune.parts.documents")

from daemons import daemon
from indexes import small_index
from pages import HOSTILE, LAPTOP, ask, expect, opened, runs


@pytest.fixture(scope="module")
def indexed(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("indexed")
    index = small_index(folder / "index", {f"{HOSTILE}.md": "# Lamp\n\nturn on the light\n", "b.txt": "set off\n"})
    with daemon(model, folder / "state", index=str(index)) as running:
        yield str(running.url)


def test_sources_stand_under_an_answer(browser, indexed):
    with opened(browser, indexed, **LAPTOP) as page:
        runs(page)
        answer = ask(page, "turn on")
        listed = answer.get_by_role("list", name="Sources").get_by_role("listitem")
        expect(listed).to_have_count(2)
        assert {text.split(":")[0] for text in listed.all_text_contents()} == {f"{HOSTILE}.md", "b.txt"}
