"""What people, clients and fleets ask of a daemon, each as a step that is done and entered into `Books`.

A step takes a number, which decides what it is about. It raises what the daemon raises, and enters nothing then.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterable
from typing import Any

import pytest
from books import Books, Lesson, Made, Note
from rigs import Rig, mark_of, marks_below, marks_in, template
from stub_engine import SAID

from edgetune.daemon.api.security import Keys
from edgetune.daemon.jobs.recipe import TRAIN
from edgetune.daemon.keys import add_key
from edgetune.daemon.kinds.evaluation import EvaluationRequest
from edgetune.daemon.kinds.feedback import ALL
from edgetune.daemon.state.database import now
from edgetune.errors import UsageError

VERDICTS = ({"passed": True}, {"passed": False}, {"passed": False, "waits": True})
ROWS = 8  # of an uploaded file
PROBATION = 1000  # seconds


class Steps:
    """The steps, on a rig and its books. Their names are in NAMES."""

    def __init__(self, rig: Rig) -> None:
        self.rig = rig
        self.books = Books()
        self.numbers = 0
        self.keys: dict[str, str] = {}  # of clients, by their names

    @property
    def service(self) -> Any:
        return self.rig.service

    def mark(self) -> str:
        self.numbers += 1
        return mark_of(self.numbers)

    def picked(self, found: Iterable[Any], number: int) -> Any:
        """One of them, None if there are none."""
        found = [*found]
        return found[number % len(found)] if found else None

    # ---- feedback and questions ---------------------------------------------------------------------------------

    def note(self, question: str, right: str, wrong: str, rating: str | None = None) -> None:
        """right, wrong: "" for none. rating: up for a right answer, down for a wrong one, None for a correction."""
        said = {"answer": right} if rating == "up" else {"answer": wrong}
        if rating is None:
            said["correction"] = right
        item = self.service.feedback.add(messages=[{"role": "user", "content": f"lamp {question}"}], rating=rating,
                                         model=f"{self.service.name}:latest", **said)
        self.books.add(Note(item.id, question, right, wrong, rating, now(), "new" if right else "counted"))
        self.books.end_probation(self.rig.base, now())

    def correct(self, a: int) -> None:
        self.note(self.mark(), self.mark(), self.mark() if a % 2 else "")

    def correct_again(self, a: int) -> None:
        if old := self.picked(self.books.notes.values(), a):
            self.note(old.question, self.mark(), old.right if a % 3 else self.mark())

    def thumb(self, a: int) -> None:
        question = self.mark()
        if a % 5 == 0 and (old := self.picked(self.books.notes.values(), a)):
            question = old.question
        if a % 2:
            self.note(question, self.mark(), "", "up")
        else:
            self.note(question, "", self.mark(), "down")

    def edit(self, a: int) -> None:
        if old := self.picked(self.books.notes.values(), a):
            right = self.mark()
            self.service.feedback.edit(old.id, right)
            self.books.edit(old.id, right, now())

    def delete_note(self, a: int) -> None:
        if old := self.picked(self.books.notes, a):
            self.service.feedback.delete(old)
            self.books.delete(old)

    def ask(self, a: int) -> None:
        """A question that nobody corrected; the gate may draw it."""
        question = self.mark()
        assert self.said(question) == SAID
        self.books.asked.add(question)
        if a % 3 == 0:
            self.note(question, self.mark(), "")

    def ask_again(self, a: int) -> None:
        """The newest right answer of a question, unless the active adapter has learned it."""
        if old := self.picked(self.books.notes.values(), a):
            said = self.said(old.question)
            right = self.books.newest(old.question)
            known = right is not None and right.state in ("used", "aside")
            assert said in ({right.right, SAID} if known else {right.right} if right else {SAID})
            self.books.asked.add(old.question)

    def said(self, question: str) -> str:
        return str(self.service.chat([{"role": "user", "content": f"lamp {question}"}]).text())

    def forget_questions(self, a: int) -> None:  # noqa: ARG002
        self.service.traffic.clear()
        self.books.asked.clear()

    # ---- jobs ---------------------------------------------------------------------------------------------------

    def learn(self, a: int) -> None:
        """By itself, or because somebody says so; all anew, if there is enough."""
        if a % 8 == 0:
            self.begun(self.service.learner.begin(ALL), takes=False)
            return
        if a % 2:
            job = self.service.learner.begin()
        else:
            before = self.service.learner.unfinished("feedback")
            self.service.learner.tick(1e12)
            id = self.service.learner.unfinished("feedback")
            if not id or before:
                return
            job = self.service.jobs.get(id)
        self.books.take(job.id)
        self.begun(job)

    def begun(self, job: Any, takes: bool = True, **facts: Any) -> None:
        """Enters a new job, whose rows are all from feedback and files that are there."""
        found = marks_below(self.service.jobs.folder / job.id)
        learned = {mark for mark, places in found.items() if TRAIN in places}
        known = set().union(*self.books.files.values(), *(note.marks for note in self.books.notes.values()))
        assert learned <= known, "a job learns what was deleted"
        for note in self.books.notes.values():
            if note.right in learned and job.origin == "learn":
                assert note.state == "used" or (takes and note.state == "new" and note.job == job.id), note
                assert not self.books.sides.get(note.question), f"{note} is held out"
        self.books.lessons[job.id] = Lesson(job.id, job.origin, takes, marks={*found}, learned=learned, **facts)

    def learn_file(self, a: int) -> None:
        if file := self.picked((id for id in self.books.files if id not in self.documents()), a):
            self.begun(self.service.jobs.create(self.service.name, file, suffix="file"))

    def judge(self, a: int) -> None:
        """The process that runs ends with a verdict."""
        if (process := self.rig.process) is None:
            return
        verdict = VERDICTS[0 if a % 2 else (a // 2) % 3]
        reason = f"verdict {self.mark()[2:]}"
        self.books.lessons[process.job].reasons.append(reason)
        process.judge(reason=reason, **verdict)

    def fail(self, a: int) -> None:
        if process := self.rig.process:
            if a % 4 == 0:
                process.end(code=1)  # it died
            elif a % 4 == 1:
                process.step(of=3)
            else:
                process.fail(resumable=a % 4 == 2)

    def pause(self, a: int) -> None:
        if job := self.lesson(a, "live"):
            self.service.jobs.pause(job)
            self.books.lessons[job].state = "paused"

    def resume(self, a: int) -> None:
        if job := self.lesson(a, "paused"):
            self.service.jobs.resume(job)
            self.books.lessons[job].state = "live"

    def cancel(self, a: int) -> None:
        if job := self.lesson(a, "live", "paused"):
            self.service.jobs.cancel(job)

    def lesson(self, a: int, *states: str) -> Any:
        return self.picked((job.id for job in self.books.lessons.values() if job.state in states), a)

    def switch(self, a: int) -> None:
        self.service.learner.switch(a % 4 != 0)
        self.books.is_on = a % 4 != 0
        for job in self.books.lessons.values():
            if job.origin == "learn" and job.state in ("live", "paused"):
                job.state = "live" if self.books.is_on else "paused"

    # ---- adapters -----------------------------------------------------------------------------------------------

    def promote(self, a: int) -> None:
        id = self.picked([None, *self.here()], a)
        self.service.adapters.promote(id, "a person")
        self.books.activate(self.rig.base, id)

    def here(self) -> list[str]:
        return [made.id for made in self.books.adapters.values() if made.base == self.rig.base]

    def roll_back(self, a: int) -> None:  # noqa: ARG002
        stack = self.books.stack(self.rig.base)
        if len(stack) == 1:
            with pytest.raises(UsageError, match="no adapter was active before"):
                self.service.adapters.rollback("a person")
            return
        found = self.service.adapters.rollback("a person")
        assert (found.id if found else None) == stack[-2]
        self.books.activate(self.rig.base, stack[-2])

    def delete_adapter(self, a: int) -> None:
        active = self.books.active(self.rig.base)
        if id := self.picked((id for id in self.here() if id != active), a):
            self.service.adapters.delete(id)
            del self.books.adapters[id]

    def rename(self, a: int) -> None:
        if id := self.picked(self.here(), a):
            name = self.mark()
            self.books.adapters[id].names.add(name)
            self.service.adapters.rename(id, name)
            self.books.adapters[id].name = name

    def obey(self, a: int) -> None:
        """As an order of a fleet: an adapter comes, is evaluated, and becomes active on probation."""
        adapter = self.service.add_adapter(template().runs[self.rig.slot.side], "fleet")
        self.books.adapters[adapter.id] = Made(adapter.id, "", self.rig.base, set())
        bad_ratings = 1 + a % 3
        request = EvaluationRequest(promote=True, if_none="canary", required="not worse", probation=PROBATION,
                                    bad_ratings=bad_ratings)
        self.begun(self.service.evaluate_adapter(adapter.id, request), bad_ratings=bad_ratings, about=adapter.id)

    # ---- files and stores ---------------------------------------------------------------------------------------

    def upload(self, a: int) -> None:
        marks = {self.mark() for _ in range(2 * ROWS)}
        words = sorted(marks)
        rows = [{"prompt": f"lamp {words[i]}", "completion": words[ROWS + i]} for i in range(ROWS)]
        name = self.mark()
        content = "".join(json.dumps(row) + "\n" for row in rows)
        if a % 3 == 0:
            file = self.service.files.add(f"{name}.txt", "assistants", [f"{words[0]} is here.\n\nAnd".encode()])
            marks = {words[0]}
        else:
            file = self.service.files.add(f"{name}.jsonl", "fine-tune", [content.encode()])
        self.books.files[file.id] = marks | {name}

    def documents(self) -> list[str]:
        return [id for id, marks in self.books.files.items() if len(marks) == 2]

    def delete_file(self, a: int) -> None:
        if file := self.picked(self.books.files, a):
            self.service.files.delete(file)
            del self.books.files[file]
            for files in self.books.stores.values():
                files[:] = [each for each in files if each != file]

    def make_store(self, a: int) -> None:
        if file := self.picked(self.documents(), a):
            store = self.service.running["documents"].stores.create("papers", {}, [file])
            self.books.stores[store.id] = [file]

    def fill_store(self, a: int) -> None:
        store = self.picked(self.books.stores, a)
        file = self.picked(self.documents(), a // 7)
        if store and file:
            self.service.running["documents"].stores.add(store, file, {})
            files = self.books.stores[store]
            files[:] = [*(each for each in files if each != file), file]

    def empty_store(self, a: int) -> None:
        if store := self.picked(self.books.stores, a):
            if file := self.picked(self.books.stores[store], a // 7):
                self.service.running["documents"].stores.remove(store, file)
                self.books.stores[store].remove(file)
            else:
                self.service.running["documents"].stores.delete(store)
                del self.books.stores[store]

    @staticmethod
    def marks_of(text: str) -> set[str]:
        return marks_in(text.encode())

    # ---- keys ---------------------------------------------------------------------------------------------------

    def add_key(self, a: int) -> None:
        """A key counts from the moment in which it is made, and no longer than its line is there."""
        file = self.rig.place / "keys"
        name = f"client{a % 8}"
        if name in self.keys:
            with pytest.raises(UsageError, match="has a key with the name"):
                add_key(file, name)
            lines = file.read_text().splitlines(keepends=True)
            file.write_text("".join(line for line in lines if not line.endswith(f" {name}\n")))
            gone = self.keys.pop(name)
            assert not self.keys or not Keys(file).accept(gone)
        else:
            self.keys[name] = add_key(file, name)
        assert all(Keys(file).accept(key) for key in self.keys.values())
        assert not any(self.accepted(file, key[:-1]) for key in self.keys.values())

    def accepted(self, file: Any, key: str) -> bool:
        return Keys(file).accept(key)


NAMES = tuple(name for name, step in vars(Steps).items()
              if inspect.isfunction(step) and [*inspect.signature(step).parameters] == ["self", "a"])
