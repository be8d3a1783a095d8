"""The index and the vector stores on the page, as the API lists them."""

import pytest
from daemons import daemon
from indexes import small_encoder, small_index
from pages import HOSTILE, LAPTOP, SMALL_PHONE, check_looks, expect, get, go_to, httpx, opened, runs, unfold
from services import until

from edgetune.parts.documents import vector_stores

SHAPE = {"formats": "F32", "n_context": 512}
NAMES = (f"{HOSTILE}.md", "b.txt")


@pytest.fixture(scope="module")
def running(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("indexed")
    index = small_index(folder / "index", {NAMES[0]: "# Lamp\n\nturn on the light\n", NAMES[1]: "set off\n"})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vector_stores, "ENCODER", str(small_encoder(folder)))
        with daemon(model, folder / "state", index=str(index)) as made:
            for name, files in (("Manuals", {"lamp.md": b"turn on", "bad.pdf": b"no PDF"}), ("Nothing yet", {})):
                ids = [httpx.post(f"{made.url}/v1/files", data={"purpose": "assistants"},
                                  files={"file": file}).json()["id"] for file in files.items()]
                httpx.post(f"{made.url}/v1/vector_stores", json={"name": name, "file_ids": ids}).raise_for_status()
            until(lambda: all(store["status"] == "completed" for store in get(made.url, "/v1/vector_stores")["data"]))
            yield made


def test_names_counts_and_states_are_those_of_the_daemon(page, url):
    assert get(url, "/v1/device")["documents"] == {
        "index": {"name": "small.index", "files": 2, "passages": 2}, "vector_stores": 2}
    assert [each["id"] for each in get(url, "/v1/documents?limit=1")["data"]] == [HOSTILE + ".md"]
    assert [each["id"] for each in get(url, f"/v1/documents?after={HOSTILE}.md")["data"]] == ["b.txt"]
    index, empty, manuals = page.locator("#indexes > li").all()
    expect(index.locator("h3")).to_have_text("small.index")
    expect(index).to_contain_text("2 documents, 2 passages")
    index.locator("summary").click()
    expect(index.get_by_role("list", name="Documents").locator("li")).to_have_text(NAMES)
    expect(empty).to_contain_text("No document yet: add a file to this vector store.")
    expect(empty.locator("summary")).to_be_hidden()
    expect(manuals.locator("h3")).to_have_text("Manuals")
    expect(manuals).to_contain_text("2 documents, 1 failed")
    manuals.locator("summary").click()
    bad = manuals.locator("ol > li").filter(has_text="bad.pdf")
    expect(bad.locator(".badge")).to_have_text("failed")
    expect(bad).to_contain_text("bad.pdf cannot be read as PDF")
    expect(manuals.locator("ol > li").filter(has_text="lamp.md").locator(".badge")).to_have_count(0)


def test_names_are_asked_for_while_somebody_looks(browser, url):
    asked = []
    with opened(browser, url, **LAPTOP) as page:
        page.on("request", lambda request: asked.append(request.url.removeprefix(url)))
        runs(page)
        page.evaluate("look().then(look)")
        assert not any(path.startswith("/v1/documents") for path in asked)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_a_phone(browser, url, scheme):
    with opened(browser, url, color_scheme=scheme, **SMALL_PHONE) as page:
        runs(page)
        go_to(page, "Documents")
        unfold(page)
        expect(page.locator("#indexes ol > li")).to_have_count(4)
        check_looks(page)


def test_without_documents_there_is_no_panel(browser, model, tmp_path):
    with daemon(model, tmp_path / "state") as made, opened(browser, made.url, **LAPTOP) as page:
        runs(page)
        expect(page.locator("#documents")).to_be_hidden()
        assert get(made.url, "/v1/documents")["data"] == []
