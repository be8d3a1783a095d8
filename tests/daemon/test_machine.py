"""The daemon as a state machine: whatever is asked of it and happens to it, in any order, what must hold holds.

The engine is a stub and no job trains; all else is real. `Books` knows what must be there, by simple rules. A kill is a
copy of the state between two of its changes (kills.py). `make machine` runs 10,000 steps with each of 20 seeds.
"""

from __future__ import annotations

import shutil
import tempfile
import traceback
from contextlib import suppress
from pathlib import Path
from typing import Any, ClassVar

import pytest

pytest.importorskip("edgetune.parts.documents")

import time_machine
from books import Books, Made, differences, seen, sides, verdicts
from full_disks import full_disk
from hypothesis import HealthCheck, Phase, settings
from hypothesis import seed as seeded
from hypothesis import strategies as st
from hypothesis.errors import FlakyStrategyDefinition
from hypothesis.stateful import RuleBasedStateMachine, rule, run_state_machine_as_test
from rigs import Rig, marks_below
from steps import NAMES, PROBATION, Steps

from edgetune.adapters import store as lora
from edgetune.daemon.jobs.table import ENDED
from edgetune.daemon.jobs.table import KEPT as KEPT_JOBS
from edgetune.daemon.state.database import now
from edgetune.errors import EdgetuneError, UsageError
from edgetune.formats.bundle import sha256

SHM = Path("/dev/shm")
BEGINS = 1_800_000_000  # seconds since 1970
DAYS = 90  # for which drawn questions are kept
DAY = 86_400
STEPS = 400  # of one life at most; Hypothesis has no room for many more
READ = 10  # steps after which every byte is read
PICK = st.integers(0, 255)
OFTEN = ("correct", "judge", "learn", "ask") * 4
ACCIDENTS = ("",) * 40 + ("killed", "full", "full_database", "clock_jumps") * 2 + ("restarted", "two_processes")
LIMITS = (0, 100, 5_000, 40_000)  # bytes of a file
JUMPS = (1, PROBATION, DAY, DAYS * DAY + 1, -1, -PROBATION, -DAY)  # seconds

ELSEWHERE = ("add_key",)  # in no file of the state


class Daemon(RuleBasedStateMachine):
    steps = 0  # of all machines
    violations: ClassVar[list[str]] = []  # of all machines

    def __init__(self) -> None:
        super().__init__()
        self.place = Path(tempfile.mkdtemp(dir=SHM if SHM.is_dir() else None))
        self.clock = time_machine.travel(BEGINS, tick=False)
        self.time = self.clock.start()
        self.rig = Rig(self.place, drawn_days=DAYS)
        self.does = Steps(self.rig)
        self.checked: set[str] = set()  # jobs whose rows were looked at

    def teardown(self) -> None:
        self.rig.close()
        self.clock.stop()
        shutil.rmtree(self.place)

    @property
    def service(self) -> Any:
        return self.rig.service

    @property
    def books(self) -> Books:
        return self.does.books

    # ---- what happens -------------------------------------------------------------------------------------------

    @rule(name=st.sampled_from(NAMES + OFTEN), a=PICK, accident=st.sampled_from(ACCIDENTS), number=st.integers(0, 20))
    def step(self, name: str, a: int, accident: str, number: int) -> None:
        """Somebody asks for something, and there may be an accident meanwhile, or after it."""
        self.time.shift(1)
        try:
            self.taken(name, a, accident, number)
        except Exception:
            self.violations.append(traceback.format_exc())
            raise

    def taken(self, name: str, a: int, accident: str, number: int) -> None:
        if accident in MEANWHILE and name not in ELSEWHERE:
            MEANWHILE[accident](self, name, a, number)
        else:
            self.do(name, a)
            self.check(name)
        if accident in AFTERWARDS:
            AFTERWARDS[accident](self, number)
            self.check(accident)

    def do(self, name: str, a: int) -> None:
        """Refusals are answers, too: of a sentence, after which all is as before."""
        try:
            getattr(self.does, name)(a)
        except EdgetuneError as error:
            check_sentence(error)
        self.rig.quiet()
        self.note_ends()

    def killed(self, name: str, a: int, number: int) -> None:
        """In the middle of a step, which was done or was not."""
        before = self.books.copy()
        with self.rig.killed(number):
            self.do(name, a)
        self.rig.start_from_copy()
        self.reconcile(before)
        self.check(name, bytes_too=True)

    def full(self, name: str, a: int, number: int) -> None:
        """No file may grow beyond some limit; then there is room again."""
        before = self.books.copy()
        with full_disk(LIMITS[number % len(LIMITS)]):
            self.do(name, a)
        self.rig.later()
        self.note_ends()
        self.reconcile(before)
        self.check(name)

    def full_database(self, name: str, a: int, number: int) -> None:
        """Nor the database, by more than a few pages."""
        before = self.books.copy()
        with self.rig.pages(number % 3):
            self.do(name, a)
        self.rig.later()
        self.note_ends()
        self.reconcile(before)
        self.check(name)

    def restarted(self, number: int) -> None:
        """Twice, the second time without any change; on another base, too."""
        self.rig.stop()
        if number % 4 == 0:
            self.rig.slot.switch(self.rig.slot.other)
        self.rig.start()
        self.note_ends()
        self.books.end_probation(self.rig.base, now())
        was = self.rig.picture()
        self.rig.stop()
        self.rig.start()
        self.note_ends()
        assert self.rig.picture() == was

    def two_processes(self, number: int) -> None:  # noqa: ARG002
        with pytest.raises(UsageError, match="another process is writing to") as refused:
            self.rig.unstarted().start()
        check_sentence(refused.value)

    def clock_jumps(self, number: int) -> None:
        self.time.shift(JUMPS[number % len(JUMPS)])

    # ---- what follows from it -----------------------------------------------------------------------------------

    def note_ends(self) -> None:
        """Enters what jobs came to, by what the daemon says of them, which must be what their processes said."""
        books = self.books
        ended = False
        for lesson in books.lessons.values():
            if lesson.state in ENDED:
                continue
            job = self.service.jobs.get(lesson.id)
            lesson.state = {"queued": "live", "running": "live", "pausing": "live"}.get(job.status, job.status)
            if lesson.state not in ENDED:
                continue
            ended = True
            verdict = job.verdict if job.status == "succeeded" else None
            if verdict:
                assert verdict["reason"] in lesson.reasons
            if lesson.takes and lesson.origin == "learn":
                books.settle(lesson.id, verdict)
            if verdict:
                self.note_adapter(lesson, job, verdict)
        if ended:
            self.note_pruned()

    def note_adapter(self, lesson: Any, job: Any, verdict: dict[str, Any]) -> None:
        base = self.rig.base
        if not lesson.about:
            books = self.books
            books.adapters[job.result] = Made(job.result, job.id, base, {*lesson.learned})
        said = self.service.jobs.events(job.id, limit=1)[0]["message"]
        is_active = said.startswith("activated")
        assert is_active == bool(verdict["passed"]) or "changed" in said, said
        if is_active:
            self.books.activate(base, job.result)
            if lesson.about:
                made = self.books.adapters[lesson.about]
                made.probation = (now(), lesson.bad_ratings, len(self.books.moves))

    def note_pruned(self) -> None:
        """Adapters may leave when a job has ended, but not those that are needed."""
        books = self.books
        here = {row["id"] for row in self.service.store.read("SELECT id FROM adapters")}
        stack = books.stack(self.rig.base)
        for id in [*books.adapters]:
            if id not in here:
                assert books.adapters[id].job, f"{id}, which a client added, is gone"
                assert id not in stack[-2:], f"{id} is gone, {stack} lead to it"
                del books.adapters[id]
        jobs = {row["id"] for row in self.service.store.read("SELECT id FROM jobs")}
        for id in [*books.lessons]:
            if id not in jobs and len(books.lessons) > KEPT_JOBS and books.lessons[id].state in ENDED:
                del books.lessons[id]

    def reconcile(self, before: Books) -> None:
        """After an accident each thing is as before the step, or as after it; the books take over which."""
        here = seen(self.service)
        was = before.shown()
        done = self.books.shown()
        for key in here.keys() | was.keys() | done.keys():
            assert here.get(key) in (was.get(key), done.get(key)), (key, was.get(key), done.get(key), here.get(key))
        self.does.books = self.books.merged(before, here)

    # ---- what must hold -----------------------------------------------------------------------------------------

    def check(self, name: str, bytes_too: bool = False) -> None:
        type(self).steps += 1
        found = differences(seen(self.service), self.books.shown())
        assert not found, f"after {name}: (the daemon, the books) {found}"
        self.check_adapters()
        self.check_health()
        self.check_lesson()
        for id, held in sides(self.service).items():
            assert self.books.sides.setdefault(self.books.notes[id].question, held) == held, "a question changes sides"
        assert max(verdicts(self.service).values(), default=0) <= 1, "a job has two verdicts"
        if bytes_too or type(self).steps % READ == 0:
            self.check_bytes()

    def check_adapters(self) -> None:
        """The active adapter loads."""
        active = self.service.adapters.serving
        assert active == self.books.active(self.rig.base)
        assert set(self.service.adapters.ids()) == set(self.does.here())
        assert set(self.service.served.adapters()) == set(self.does.here())
        if active:
            found = self.service.adapters.get(active)
            assert sha256(self.service.adapters.path(active) / lora.FILE) == found.sha256
            lora.read_run(self.service.adapters.path(active))

    def check_health(self) -> None:
        """It is ok only if all threads live and all queues move; and it is, but for jobs that wait for a person."""
        health = self.service.health()
        stores = self.service.running["documents"].stores
        if health["status"] == "ok":
            assert all(thread.is_alive() for part in self.service.parts for thread in part.threads() if thread.ident)
            assert not [store.id for store in stores.list() if store.status == "in_progress"]
            lives = [lesson.id for lesson in self.books.lessons.values() if lesson.state == "live"]
            assert bool(lives) == (self.rig.process is not None), lives
        assert all("resume or cancel it" in reason for reason in health["reasons"]), health["reasons"]

    def check_lesson(self) -> None:
        """The job that runs learns the rows with which it was made."""
        process = self.rig.process
        if process is None or process.job in self.checked or not process.rows:
            return
        self.checked.add(process.job)
        assert process.rows == self.books.lessons[process.job].learned

    def check_bytes(self) -> None:
        """No file holds what was deleted, nor what was never to be kept."""
        drawn = {mark for row in self.service.store.read("SELECT row FROM drawn")
                 for mark in self.does.marks_of(row["row"])}
        may = self.books.marks() | (drawn & self.books.asked)
        found = {mark: places for mark, places in marks_below(self.rig.state).items() if mark not in may}
        assert not found, f"deleted, but on disk: {found}"


def check_sentence(error: EdgetuneError) -> None:
    assert error.what
    assert "\n" not in str(error)


MEANWHILE = {"killed": Daemon.killed, "full": Daemon.full, "full_database": Daemon.full_database}
AFTERWARDS = {"restarted": Daemon.restarted, "two_processes": Daemon.two_processes, "clock_jumps": Daemon.clock_jumps}


def live(seed: int, steps: int, phases: tuple[Phase, ...] = (Phase.generate,)) -> None:
    """Runs machines of STEPS steps each, until there are so many; other seeds follow, each of another life."""
    Daemon.steps = 0
    Daemon.violations = []
    while Daemon.steps < steps:
        run = settings(max_examples=max(1, (steps - Daemon.steps) // STEPS), stateful_step_count=min(steps, STEPS),
                       deadline=None, database=None, phases=phases, suppress_health_check=list(HealthCheck),
                       print_blob=True)
        with suppress(FlakyStrategyDefinition):  # no draw depends on the daemon, yet hypothesis stops at some rare ones
            run_state_machine_as_test(seeded(seed)(Daemon), settings=run)
        assert not Daemon.violations, "\n".join(Daemon.violations)
        seed += 1000


@pytest.mark.dev
def test_what_must_hold_holds_whatever_happens():
    live(seed=0, steps=600)


@pytest.mark.slow  # a minute each
@pytest.mark.parametrize("seed", range(20))
def test_it_holds_for_long(seed):
    live(seed, steps=10_000)
    print(f"seed {seed}: {Daemon.steps} steps, no violation")
