"""What was deleted is in no file of the state, whenever the daemon was killed and whatever the disk refused."""

import sqlite3
from contextlib import closing, suppress
from random import Random

import pytest

pytest.importorskip("edgetune.parts.documents")

from full_disks import full_disk
from rigs import Rig, mark_of, marks_below, template

from edgetune.daemon.state import database
from edgetune.errors import DiskError

GONE = mark_of(1)
NAME = mark_of(2)
KILLS = 14


@pytest.fixture
def rig(tmp_path):
    rig = Rig(tmp_path)
    yield rig
    rig.close()


def correct(rig, word):
    asked = [{"role": "user", "content": f"lamp {word}"}]
    return rig.service.feedback.add(messages=asked, correction=f"on {word}").id


def learned(rig, count):
    """Corrections whose rows have grown since they were written, so that SQLite has moved them."""
    notes = {mark_of(10 + i): correct(rig, mark_of(10 + i)) for i in range(count)}
    feedback = rig.service.feedback
    feedback.assign(feedback.training_rows().taken, "ftjob-0123456789abcdef01234567")
    feedback.settle("ftjob-0123456789abcdef01234567", "used")
    return notes


def uploaded(rig, word):
    return rig.service.files.add(f"{NAME}.txt", "assistants", [f"The {word} is here.\n\nAnd there.".encode()]).id


def killed(rig, make, delete):
    """Yields what `make` made, after `delete` was killed in the middle: each time one change of a file later."""
    for number in range(KILLS):
        made = make(number)
        with rig.killed(number):
            delete(made)
            rig.quiet()
        rig.start_from_copy()
        yield made


def test_no_page_of_the_database_keeps_a_copy_of_a_row(rig):
    """SQLite moves rows within a page, and to others, when some grow and some leave."""
    notes = learned(rig, 20)
    dice = Random(0)
    for number in range(100, 300):
        word = mark_of(number)
        notes[word] = correct(rig, word + " and" * dice.randrange(40))
        gone = dice.choice([*notes])
        rig.service.feedback.delete(notes.pop(gone))
    assert marks_below(rig.state).keys() == notes.keys()


def test_what_the_disk_refused_to_overwrite_is_overwritten_later(rig):
    notes = learned(rig, 60)
    rig.service.store.wipe()
    word, id = notes.popitem()
    with full_disk(40_000):  # the transaction has room, the database has not
        rig.service.feedback.delete(id)
    assert word in marks_below(rig.state)
    rig.service.store._probe_at = 0.0
    assert rig.service.health()["status"] == "ok"  # it tries again
    assert word not in marks_below(rig.state)


def test_a_reader_does_not_make_the_log_longer_with_each_write(rig, monkeypatch):
    """Another program reads the database, such as a backup: what is deleted meanwhile is overwritten after it."""
    monkeypatch.setattr(database, "LOCK_SECONDS", 0.0)
    notes = learned(rig, 60)
    word, id = notes.popitem()
    with closing(sqlite3.connect(rig.service.store.path)) as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT * FROM feedback").fetchone()
        rig.service.feedback.delete(id)
        before = wal_bytes(rig)
        for number in range(100, 110):
            correct(rig, mark_of(number))
        assert wal_bytes(rig) - before < 1 << 20  # ten copies of the database have twice as much
    correct(rig, GONE)
    assert word not in marks_below(rig.state)


def wal_bytes(rig):
    return rig.service.store.path.with_name("state.db-wal").stat().st_size


def test_deleted_feedback_is_gone_with_its_question_after_a_kill(rig):
    """Its question was drawn to test adapters by."""
    def drawn():
        """Words whose question is drawn."""
        for number in range(100, 10_000):
            word = mark_of(number)
            rig.service.chat([{"role": "user", "content": f"lamp {word}"}]).text()
            if word in marks_below(rig.state):
                yield word

    words = drawn()

    def make(_number):
        word = next(words)
        return word, correct(rig, word)

    left = 0
    for word, id in killed(rig, make, lambda made: rig.service.feedback.delete(made[1])):
        is_left = bool(rig.service.store.read("SELECT 1 FROM feedback WHERE id = ?", id))
        assert is_left == (word in marks_below(rig.state))
        left += is_left
    assert 0 < left < KILLS


@pytest.mark.dev
def test_a_deleted_document_is_gone_from_its_stores_after_a_kill(rig):
    stores = []

    def make(number):
        file = rig.service.files.add(f"{mark_of(300 + number)}.txt", "assistants",
                                     [f"The {mark_of(200 + number)} is here.\n\nAnd there.".encode()]).id
        stores.append(rig.stores.create("papers", {}, [file]).id)
        rig.quiet()
        return file, {mark_of(200 + number), mark_of(300 + number)}

    left = 0
    for file, marks in killed(rig, make, lambda made: rig.service.files.delete(made[0])):
        is_left = bool(rig.service.store.read("SELECT 1 FROM files WHERE id = ?", file))
        assert marks & marks_below(rig.state).keys() == (marks if is_left else set())
        assert [each.id for each in rig.stores.get(stores[-1]).files] == [file] * is_left
        left += is_left
    assert 0 < left < KILLS


@pytest.mark.dev
def test_a_store_that_was_killed_half_made_or_half_deleted_leaves_nothing(rig):
    def make(number):
        file = uploaded(rig, mark_of(200 + number))
        return rig.stores.create("papers", {}, [file]).id, file

    def delete(made):
        rig.stores.delete(made[0])

    for store, file in killed(rig, make, delete):
        if store not in [each.id for each in rig.stores.list()]:
            assert not (rig.state / "vector_stores" / store).exists()
        rig.service.files.delete(file)

    file = uploaded(rig, GONE)
    for _ in killed(rig, lambda _number: None, lambda _: rig.stores.create("papers", {}, [file])):
        assert not [*(rig.state / "vector_stores").glob("*/*.tmp")]


def test_the_name_of_a_deleted_file_and_adapter_goes_too(rig):
    rig.service.files.delete(uploaded(rig, GONE))
    assert marks_below(rig.state) == {}
    made = rig.service.add_adapter(template().runs[rig.slot.side])
    rig.service.adapters.rename(made.id, NAME)
    rig.service.adapters.delete(made.id)
    assert marks_below(rig.state) == {}


def test_a_refused_write_leaves_nothing_in_the_log(tmp_path, monkeypatch):
    """SQLite may have written a part of a transaction when the disk refuses the rest."""
    monkeypatch.setattr(database, "PROBE_SECONDS", 0.0)
    refused = 0
    for kib in range(64, 256, 12):
        folder = tmp_path / f"{kib}"
        folder.mkdir()
        store = database.Store(folder)
        with full_disk(kib * 1024), suppress(DiskError), store.write() as db:
            for i in range(10):
                db.execute("INSERT INTO service (at, cause) VALUES (?, ?)", (i, GONE + "y" * 3000))
        if not store.read("SELECT seq FROM service"):
            refused += 1
            assert store.reasons() == []  # the disk accepts a write again, and health has looked
            assert marks_below(store.folder) == {}
        store.close()
    assert refused > 3
