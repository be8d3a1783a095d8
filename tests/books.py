"""What a daemon must know, by simple rules of its own, for tests that compare the two: see daemon/test_machine.py.

`seen` gives what a service knows in the same form as `Books.shown`: entities by (kind, id), as plain values.
"""

from __future__ import annotations

import json
from collections import Counter
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

from edgetune.daemon.jobs.table import ENDED
from edgetune.daemon.service import Service

TRIES = 5  # jobs that learn a row, none of which passed
PROBATION = 1000  # seconds
LIVE = ("new", "used", "counted")
Shown = dict[tuple[str, str], Any]


@dataclass
class Note:
    """A piece of feedback. right, wrong: answers, "" for none."""

    id: str
    question: str
    right: str
    wrong: str
    rating: str | None
    at: int
    state: str
    job: str | None = None
    tries: int = 0

    @property
    def marks(self) -> set[str]:
        return {self.question, self.right, self.wrong}

    @property
    def is_bad(self) -> bool:
        """Whether it says that an answer was wrong."""
        return self.rating == "down" or (self.rating is None and bool(self.wrong))


@dataclass
class Lesson:
    """A job. takes: whether what waits becomes its rows. state: live, paused, or as it ended. marks: words in its
    folder. learned: words that it learns. reasons: of the verdicts that its processes gave. about: the adapter that it
    evaluates. bad_ratings: that end its probation.
    """

    id: str
    origin: str
    takes: bool = True
    state: str = "live"
    marks: set[str] = field(default_factory=set)
    learned: set[str] = field(default_factory=set)
    reasons: list[str] = field(default_factory=list)
    about: str = ""
    bad_ratings: int = 0


@dataclass
class Made:
    """An adapter. job: that made it, "": none. marks: words that it may hold. name: for people. probation: since when,
    the bad ratings that end it, and the moves of the daemon until it began; None: it has none.
    """

    id: str
    job: str
    base: str
    marks: set[str]
    name: str = ""
    names: set[str] = field(default_factory=set)  # that it had
    probation: tuple[int, int, int] | None = None


@dataclass
class Books:
    notes: dict[str, Note] = field(default_factory=dict)  # the oldest first
    sides: dict[str, bool] = field(default_factory=dict)  # of questions: whether they are held out
    asked: set[str] = field(default_factory=set)  # questions that may be drawn
    lessons: dict[str, Lesson] = field(default_factory=dict)
    adapters: dict[str, Made] = field(default_factory=dict)
    moves: list[tuple[str, str | None]] = field(default_factory=list)  # (base, adapter that became active)
    files: dict[str, set[str]] = field(default_factory=dict)  # marks by id
    stores: dict[str, list[str]] = field(default_factory=dict)  # files by id
    is_on: bool = True

    def copy(self) -> Books:
        return deepcopy(self)

    # ---- feedback -----------------------------------------------------------------------------------------------

    def add(self, note: Note) -> None:
        for old in [*self.notes.values()]:
            if old.question != note.question or old.state not in LIVE:
                continue
            is_thumb_down = not old.right and old.wrong in (note.wrong, note.right)
            if is_thumb_down or (old.right and old.right == note.wrong):
                self._withdraw_earlier(old)
                old.state = "withdrawn"
        self.notes[note.id] = note

    def _withdraw_earlier(self, note: Note) -> None:
        """The right answers that this one replaced come back no more."""
        for old in self.notes.values():
            if old is note:
                return
            if note.right and old.right and old.question == note.question and old.state in LIVE:
                old.state = "withdrawn"

    def edit(self, id: str, right: str, at: int) -> None:
        old = self.notes.pop(id)
        self.notes[id] = Note(id, old.question, right, old.wrong, None if old.rating == "up" else old.rating, at, "new")

    def delete(self, id: str) -> None:
        self._withdraw_earlier(self.notes[id])
        self.asked.discard(self.notes.pop(id).question)

    def newest(self, question: str) -> Note | None:
        """The newest right answer."""
        found = [note for note in self.notes.values()
                 if note.question == question and note.right and note.state != "withdrawn"]
        return found[-1] if found else None

    # ---- jobs ---------------------------------------------------------------------------------------------------

    def take(self, job: str) -> None:
        """A job takes all that waits."""
        for note in self.waiting():
            note.job = job

    def waiting(self) -> list[Note]:
        return [note for note in self.notes.values() if note.state == "new" and note.job is None]

    def settle(self, job: str, verdict: dict[str, Any] | None) -> None:
        """A job that learns has ended. verdict: None without one."""
        for note in self.notes.values():
            if note.job != job or note.state != "new":
                continue
            if verdict and verdict["passed"]:
                note.state = "used"
                continue
            if verdict and not verdict.get("waits"):
                note.state = "aside"
                continue
            if verdict:
                note.tries += 1
                if note.tries >= TRIES:
                    note.state = "aside"
                    continue
            note.job = None

    # ---- adapters -----------------------------------------------------------------------------------------------

    def stack(self, base: str) -> list[str | None]:
        """The adapters that rollbacks lead to, and the active one last; None: the base."""
        found: list[str | None] = [None]
        for of, id in self.moves:
            if of == base:
                found = [*found[:found.index(id)], id] if id in found else [*found, id]
        return [id for id in found[:-1] if id is None or id in self.adapters] + found[-1:]

    def active(self, base: str) -> str | None:
        return self.stack(base)[-1]

    def activate(self, base: str, id: str | None) -> None:
        if self.active(base) != id:
            self.moves.append((base, id))

    def end_probation(self, base: str, now: int) -> None:
        """Bad ratings of what is on probation lead back to what was active before."""
        active = self.active(base)
        probation = self.adapters[active].probation if active else None
        if not probation or probation[2] != len(self.moves):
            return
        since, bad_ratings, _ = probation
        rated = [note for note in self.notes.values() if since <= note.at <= min(now, since + PROBATION)]
        bad = sum(note.is_bad for note in rated)
        good = sum(note.rating == "up" for note in rated)
        if now < since + PROBATION and bad >= bad_ratings and bad > good:
            self.activate(base, self.stack(base)[-2])

    # ---- both sides alike ---------------------------------------------------------------------------------------

    def shown(self) -> Shown:
        found: Shown = {("learning", ""): self.is_on, ("moves", ""): [*self.moves]}
        found |= {("note", note.id): (note.state, note.job, note.right, note.tries) for note in self.notes.values()}
        found |= {("job", job.id): job.state for job in self.lessons.values()}
        found |= {("adapter", made.id): (made.base, made.name) for made in self.adapters.values()}
        found |= {("file", id): True for id in self.files}
        found |= {("store", id): [*files] for id, files in self.stores.items()}
        return found

    def things(self, kind: str) -> dict[str, Any]:
        return {"note": self.notes, "job": self.lessons, "adapter": self.adapters, "file": self.files,
                "store": self.stores}[kind]

    def merged(self, before: Books, here: Shown) -> Books:
        """The books after an accident: each thing as it is `here`, by these books or those before."""
        found = Books(sides=self.sides | before.sides, moves=[*here["moves", ""]], is_on=here["learning", ""])
        done = self.shown()
        for key, value in here.items():
            kind, id = key
            if id:
                books = self if done.get(key) == value else before
                found.things(kind)[id] = books.things(kind)[id]
        gone = {note.question for id, note in before.notes.items() if id not in found.notes}
        found.asked = (self.asked | before.asked) - gone
        for made in found.adapters.values():
            made.names |= self.adapters[made.id].names if made.id in self.adapters else set()
        for lesson in found.lessons.values():
            lesson.reasons = [*self.lessons[lesson.id].reasons] if lesson.id in self.lessons else lesson.reasons
        return found

    def marks(self) -> set[str]:
        """The words that may be on disk."""
        lessons = (job.marks for job in self.lessons.values() if job.state not in ENDED)
        return set().union(*(note.marks for note in self.notes.values()), *lessons, *self.files.values(),
                           *(made.marks | made.names for made in self.adapters.values()))


def seen(service: Service) -> Shown:
    """What a service shows, without what jobs leave and nobody gave: results."""
    read = service.store.read
    found: Shown = {("learning", ""): service.learner.is_on,
                    ("moves", ""): [(row["base"], row["adapter"])
                                    for row in read("SELECT base, adapter FROM service ORDER BY seq")]}
    for row in read("SELECT id, state, job, row, tries FROM feedback ORDER BY rowid"):
        content = json.loads(row["row"])["messages"][-1]["content"]
        found["note", row["id"]] = (row["state"], row["job"], content, row["tries"])
    for row in read("SELECT id, status FROM jobs"):
        found["job", row["id"]] = {"queued": "live", "running": "live"}.get(row["status"], row["status"])
    found |= {("adapter", row["id"]): (row["base"], row["name"]) for row in read("SELECT id, base, name FROM adapters")}
    found |= {("file", row["id"]): True for row in read("SELECT id FROM files WHERE purpose != 'fine-tune-results'")}
    found |= {("store", store.id): [file.id for file in store.files]
              for store in service.running["documents"].stores.list()}
    return found


def sides(service: Service) -> dict[str, bool]:
    """Whether each piece of feedback is held out, of those that took a side."""
    return {row["id"]: row["held"] == 1 for row in service.store.read("SELECT id, held FROM feedback WHERE held >= 0")}


def verdicts(service: Service) -> Counter[str]:
    """The number of verdicts in each job's history."""
    return Counter(row["job"] for row in service.store.read(
        "SELECT job FROM events WHERE type = 'message' AND json_extract(data, '$.verdict') IS NOT NULL"))


def differences(one: Shown, other: Shown) -> dict[tuple[str, str], tuple[Any, Any]]:
    """Entities that are not the same on both sides, with what each says."""
    return {key: (one.get(key), other.get(key)) for key in one.keys() | other.keys() if one.get(key) != other.get(key)}

