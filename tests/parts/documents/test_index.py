"""An index says what its folder says, whatever it held before, and finds what BM25 and cosines by hand find."""

import math
import os
import re
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from indexes import needs_retrieval, small_encoder, write_pdf

from edgetune.errors import BudgetError, FormatError, MismatchError, UsageError
from edgetune.parts.documents.building import build, require_memory
from edgetune.parts.documents.options import IndexOptions
from edgetune.parts.documents.search import Encoding, Index, fused
from edgetune.parts.documents.store import Citation, IndexStore

OPTIONS = IndexOptions(chunk_tokens=40)
TEXTS = {
    "lamp.md": "# Lamp\n\nThe lamp in the hall is red.\n\n## Time\n\nIt burns at six.\n",
    "oven.txt": "The oven takes nine minutes.\n\nTurn it off by hand.\n\n" + "the pan and the pot " * 30,
    "deep/rows.jsonl": '{"title": "Cat", "text": "The cat eats at noon."}\n{"text": "A dog barks at the door."}\n',
}


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    needs_retrieval()
    return small_encoder(tmp_path_factory.mktemp("encoder"))


@pytest.fixture(scope="module")
def encoding(encoder):
    found = Encoding(encoder, 1)
    yield found
    found.close()


@pytest.fixture
def folder(tmp_path):
    for name, text in TEXTS.items():
        path = tmp_path / "documents" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    write_pdf(tmp_path / "documents" / "kite.pdf", ["A kite is in the air."])
    return tmp_path / "documents"


def content(path: Path) -> list[tuple[str, str, bytes]]:
    """All that an index holds: source, text and vector of each chunk."""
    store = IndexStore(path)
    try:
        return [(*map(str, store.passage(id + 1)), store.vector(id + 1).tobytes()) for id in range(store.totals()[0])]
    finally:
        store.close()


def test_each_passage_is_found_by_its_own_words(folder, encoding, tmp_path):
    report = build(folder, tmp_path / "i", encoding, OPTIONS)
    assert (report.files, report.read, report.skipped) == (4, 4, [])
    assert report.bytes == (tmp_path / "i").stat().st_size
    with Index(tmp_path / "i", 1) as index:
        for query, source in (("red lamp", Citation("lamp.md", "Lamp", 0, 3)), ("cat noon", Citation("deep/rows.jsonl",
                              "Cat", 0, 1)), ("kite air", Citation("kite.pdf", "", 1, 0))):
            first = index.search(query, 3, least=0).passages[0]
            assert first.source == source
            assert first.text in " ".join([*TEXTS.values(), "A kite is in the air."]) or "It burns" in first.text
    assert str(Citation("kite.pdf", "", 1)) == "kite.pdf, page 1"
    assert str(Citation("lamp.md", "Lamp", 0, 3)) == "lamp.md:3 (Lamp)"


def test_rankings_are_bm25_and_cosines_by_hand(folder, encoding, tmp_path):
    build(folder, tmp_path / "i", encoding, OPTIONS)
    store = IndexStore(tmp_path / "i")
    count = store.totals()[0]
    words = [re.findall(r"\w+", " ".join([(passage := store.passage(id + 1))[0].heading, passage[1]]).lower())
             for id in range(count)]
    query = ["the", "oven", "door"]
    holders = Counter(word for chunk in words for word in set(chunk))
    mean = sum(map(len, words)) / count
    truth = {}
    for id, chunk in enumerate(words, 1):
        score = 0.0
        for word in query:
            weight = max(math.log((count - holders[word] + 0.5) / (holders[word] + 0.5)), 1e-6)  # as FTS5 has it
            often = chunk.count(word)
            score += weight * often * 2.2 / (often + 1.2 * (0.25 + 0.75 * len(chunk) / mean))
        if any(word in chunk for word in query):
            truth[id] = score
    found = dict(store.by_words(query, 99))
    assert found.keys() == truth.keys()
    assert all(found[id] == pytest.approx(truth[id], rel=1e-4) for id in truth)
    vectors = np.stack([store.vector(id + 1) for id in range(count)]).astype(np.float64)
    asked = encoding.vectors(["the red lamp"])[0]
    cosines = vectors @ asked / np.linalg.norm(vectors, axis=1) / np.linalg.norm(asked.astype(np.float64))
    near = store.by_vector(asked, 99)
    assert {id: pytest.approx(cosine, abs=1e-5) for id, cosine in near} == dict(enumerate(cosines, 1))
    assert [cosine for _, cosine in near] == sorted((cosine for _, cosine in near), reverse=True)
    store.close()


def test_ranks_are_fused_by_their_reciprocals():
    assert fused([[7, 5], [5, 9]]) == [(5, (61 / 62 + 1) / 2), (7, 0.5), (9, 61 / 62 / 2)]
    assert fused([[], [3]]) == [(3, 0.5)]


@pytest.mark.dev
def test_only_what_changed_is_read_and_the_result_is_that_of_a_new_index(folder, encoding, tmp_path):
    build(folder, tmp_path / "i", encoding, OPTIONS)
    before = (tmp_path / "i").stat()
    again = build(folder, tmp_path / "i", encoding, OPTIONS)
    assert (again.read, again.unchanged) == (0, 4)
    assert (tmp_path / "i").stat().st_ino == before.st_ino  # nothing to write
    (folder / "lamp.md").write_text("# Lamp\n\nThe lamp is green now.\n")
    (folder / "oven.txt").unlink()
    (folder / "new.txt").write_text("A new file.")
    text = (folder / "deep/rows.jsonl").read_text()
    (folder / "deep/rows.jsonl").write_text(text)  # the same bytes at another time
    changed = build(folder, tmp_path / "i", encoding, OPTIONS)
    assert (changed.read, changed.unchanged, changed.removed) == (2, 2, 1)
    build(folder, tmp_path / "fresh", encoding, OPTIONS)
    assert content(tmp_path / "i") == content(tmp_path / "fresh")
    assert (tmp_path / "i").read_bytes() == (tmp_path / "fresh").read_bytes()


@pytest.mark.dev
def test_other_options_make_it_again(folder, encoding, tmp_path):
    build(folder, tmp_path / "i", encoding, OPTIONS)
    assert build(folder, tmp_path / "i", encoding, IndexOptions(chunk_tokens=60)).read == 4


def test_what_cannot_be_read_is_left_out_and_named(folder, encoding, tmp_path):
    (folder / "bad.txt").write_bytes(b"\xff\xff")
    (folder / "bad.pdf").write_bytes(b"no PDF")
    report = build(folder, tmp_path / "i", encoding, OPTIONS)
    assert [each["file"] for each in report.skipped] == ["bad.pdf", "bad.txt"]
    assert report.files == 4


def test_the_limit_tells_words_of_the_index_from_others(folder, encoding, tmp_path):
    """Nearly all queries that are made of its sentences pass; one of none of its words does not."""
    build(folder, tmp_path / "i", encoding, OPTIONS)
    with Index(tmp_path / "i", 1) as index:
        assert index.search("the oven takes minutes").passages
        missed = index.search("zx qj vw")
        assert missed.evidence < index.search("the oven takes minutes").evidence
        assert index.search("zx qj vw", least=1.0).passages == []
        assert index.search("zx qj vw", least=0.0).passages


@pytest.mark.dev
def test_an_open_index_follows_its_file(folder, encoding, tmp_path):
    build(folder, tmp_path / "i", encoding, OPTIONS)
    with Index(tmp_path / "i", 1) as index:
        before = index.refresh()
        assert index.search("the lamp", least=0).passages
        for name in ("lamp.md", "oven.txt", "kite.pdf"):
            (folder / name).unlink()
        build(folder, tmp_path / "i", encoding, OPTIONS)
        assert {passage.source.file for passage in index.search("the lamp", least=0).passages} == {"deep/rows.jsonl"}
        assert index.refresh() != before
        (tmp_path / "i").unlink()
        assert index.search("the cat", least=0).passages  # what is open stays
        (tmp_path / "i").write_bytes(b"no index")
        assert index.search("the cat", least=0).passages


def test_an_empty_folder_has_an_index_in_which_nothing_is_found(encoding, tmp_path):
    (tmp_path / "empty").mkdir()
    assert build(tmp_path / "empty", tmp_path / "i", encoding, OPTIONS).chunks == 0
    with Index(tmp_path / "i", 1) as index:
        assert index.search("anything").passages == []


def test_quotes_and_operators_of_fts5_are_words(folder, encoding, tmp_path):
    build(folder, tmp_path / "i", encoding, OPTIONS)
    with Index(tmp_path / "i", 1) as index:
        for query in ('"', "lamp AND (", "NEAR/3 *", "text:oven", "'; drop table chunks; --", "\0lamp"):
            index.search(query, least=0)


@pytest.mark.dev
def test_a_broken_off_indexing_leaves_the_index_as_it_was(folder, encoding, tmp_path, monkeypatch):
    build(folder, tmp_path / "i", encoding, OPTIONS)
    before = (tmp_path / "i").read_bytes()
    (folder / "new.txt").write_text("A new file.")
    monkeypatch.setattr(IndexStore, "commit", lambda _: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        build(folder, tmp_path / "i", encoding, OPTIONS)
    assert (tmp_path / "i").read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_file()) == ["i"]


def test_files_that_are_no_index(folder, encoding, tmp_path):
    other = tmp_path / "other"
    for wrong in (b"a text\n" * 99, b""):
        other.write_bytes(wrong)
        with pytest.raises(FormatError, match="no index"):
            Index(other, 1)
        with pytest.raises(FormatError, match="no index"):
            build(folder, other, encoding, OPTIONS)
        assert other.read_bytes() == wrong
    build(folder, tmp_path / "i", encoding, OPTIONS)
    whole = (tmp_path / "i").read_bytes()
    other.write_bytes(whole[:len(whole) // 2])
    with pytest.raises(FormatError), Index(other, 1) as index:
        index.search("lamp", least=0)
    with pytest.raises(UsageError, match="there is no index"):
        Index(tmp_path / "nowhere", 1)


def test_another_encoder_is_refused(folder, encoder, tmp_path):
    copy = Path(shutil.copy(encoder, tmp_path / "copy.gguf"))
    found = Encoding(copy, 1)
    build(folder, tmp_path / "i", found, OPTIONS)
    found.close()
    raw = bytearray(copy.read_bytes())
    raw[-1] ^= 1
    copy.write_bytes(raw)
    with pytest.raises(MismatchError, match="another encoder"):
        Index(tmp_path / "i", 1)


def test_options_out_of_range(folder, encoding, tmp_path):
    with pytest.raises(UsageError, match="reads 94"):
        build(folder, tmp_path / "i", encoding, IndexOptions(chunk_tokens=200))
    with pytest.raises(UsageError, match="overlap"):
        build(folder, tmp_path / "i", encoding, IndexOptions(chunk_tokens=40, overlap=0.9))
    for place in (tmp_path, tmp_path / "none" / "i"):
        with pytest.raises(UsageError, match="folder"):
            build(folder, place, encoding, OPTIONS)
    with pytest.raises(BudgetError, match="memory is 1 MiB"):
        build(folder, tmp_path / "i", encoding, OPTIONS, memory=1 << 20)
    for size in range(0, 1 << 20, 99_999):  # of the largest file: what is needed is rarely whole MiB
        with pytest.raises(BudgetError) as refused:
            require_memory(encoding, size, 1 << 20)
        said = int(re.search(r"give it --memory (\d+)M", refused.value.hint)[1])
        assert f"needs {said} MiB" in refused.value.what
        require_memory(encoding, size, said << 20)
    build(folder, tmp_path / "i", encoding, OPTIONS)
    with Index(tmp_path / "i", 1) as index:
        for query, limit in ((" ", 5), ("lamp", 0), ("lamp", 51)):
            with pytest.raises(UsageError):
                index.search(query, limit)


@pytest.mark.dev
def test_a_file_that_changed_and_kept_its_size_and_time_is_read_again(folder, encoding, tmp_path):
    build(folder, tmp_path / "i", encoding, OPTIONS)
    path = folder / "lamp.md"
    before = path.stat()
    path.write_text(path.read_text().replace("red", "sad"))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert path.stat().st_size == before.st_size
    assert build(folder, tmp_path / "i", encoding, OPTIONS).read == 1
    build(folder, tmp_path / "fresh", encoding, OPTIONS)
    assert (tmp_path / "i").read_bytes() == (tmp_path / "fresh").read_bytes()


ENDLESS = {"word": "x" * 60_000, "log": "one two three four\n" * 900, "signs": "?" * 20_000}


@pytest.mark.dev
@pytest.mark.parametrize("text", ENDLESS.values(), ids=ENDLESS)
def test_indexing_can_be_ended_between_pieces_of_any_text(text, encoder, tmp_path):
    """Between two calls of on_progress no more is computed than for some chunks."""
    class Counted(Encoding):
        given = most = 0

        def count(self, text):
            self.given += len(text)
            return super().count(text)

        def vectors(self, texts):
            self.given += sum(map(len, texts))
            return super().vectors(texts)

    def go_on(*_):
        counted.most = max(counted.most, counted.given)
        counted.given = 0

    (tmp_path / "documents").mkdir()
    (tmp_path / "documents/endless.txt").write_text(text)
    counted = Counted(encoder, 1)
    build(tmp_path / "documents", tmp_path / "i", counted, OPTIONS, on_progress=go_on)
    counted.close()
    assert counted.most <= 64 * 40 * 32  # the vectors of 64 chunks of 40 tokens
    with pytest.raises(KeyboardInterrupt):
        build(tmp_path / "documents", tmp_path / "other", counted, OPTIONS,
              on_progress=lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    assert not [*tmp_path.glob("other*")]
