"""A look at a roll-out of a base, broken off before and after each of its steps, and continued: a power cut at any
moment leaves a slot that opens, and the outcome is that of a look without one. The daemon is simulated.
"""

from __future__ import annotations

import itertools
import shutil
from functools import wraps

import pytest
from slots import SimulatedDaemon, begun_rollout

from edgetune.errors import UnansweredError
from edgetune.formats.bundle import open_bundle
from edgetune.formats.slot import Slot
from edgetune.parts.fleet.bases import trial
from edgetune.parts.fleet.bases.slot import TRIAL, Owner
from edgetune.parts.fleet.rollout import rings
from edgetune.parts.fleet.rollout.apply import apply
from edgetune.parts.fleet.rollout.daemons import ServedSlot
from edgetune.parts.fleet.rollout.folder import step
from edgetune.parts.fleet.rollout.reports import Look
from edgetune.parts.fleet.uptime import Moment

STEPS = ((trial, "write_trial"), (trial, "end_trial"), (Slot, "switch"), (Slot, "clear"), (Look, "say"))


class PowerCut(BaseException):
    pass


class Cuts:
    """Cuts the power at the n-th moment."""

    def __init__(self):
        self.left = None

    def moment(self):
        if self.left is not None:
            self.left -= 1
            if self.left < 0:
                self.left = None
                raise PowerCut

    def around(self, function):
        @wraps(function)
        def wrapped(*arguments, **named):
            self.moment()
            found = function(*arguments, **named)
            self.moment()
            return found

        return wrapped


class Simulated(SimulatedDaemon):
    """fails: it does not start with this base. bad: ratings of the base that it has."""

    def __init__(self, slot, cuts, fails="", passed=True, bad=0):
        self.fails = fails
        self.passed = passed
        self.bad = bad
        self.restart = cuts.around(self.start)
        self.evaluate_base = cuts.around(self.verdict)
        super().__init__(slot)

    def about(self):
        if self.base == self.fails:
            raise UnansweredError("no daemon answers", "")
        return super().about()

    def slot(self):
        return ServedSlot(str(self.path.resolve()), self.bad)

    def verdict(self, options):
        assert open_bundle(self.path / ("b" if self.side == "a" else "a")).fingerprint == options["base"]
        return {"passed": self.passed, "reason": "because", "wins": 6}


@pytest.fixture(scope="module")
def begun(tmp_path_factory):
    return begun_rollout(tmp_path_factory.mktemp("begun"))


@pytest.fixture
def cuts(monkeypatch):
    found = Cuts()
    for owner, name in STEPS:
        monkeypatch.setattr(owner, name, found.around(getattr(owner, name)))
    monkeypatch.setattr(trial, "POLL", 0.001)
    return found


def through(begun, tmp_path, cuts, changes, undo, at, is_cut):
    """The outcome after a power cut at the moment `at` and its repair, and whether there was such a moment. is_cut:
    the daemon starts again; else the look alone ends.
    """
    whole, old, new = begun
    place = tmp_path / "place"
    shutil.rmtree(place, ignore_errors=True)
    shutil.copytree(whole, place, symlinks=True)
    daemon = Simulated(place / "home", cuts, new if changes.get("fails") else "", changes.get("passed", True))
    owner = Owner(Slot(place / "home"), lambda: daemon.restart(), 0.02)
    cuts.left = at
    happened = False

    def look(now):
        nonlocal happened
        for _ in range(2):
            try:
                # the date is set on by years at each look, which ends no probation
                return apply(place / "fleet", "kitchen", daemon, now * 10**6, owner, at=Moment("boot", now))[0]
            except PowerCut:
                happened = True
                assert open_bundle(place / "home").fingerprint in (old, new)
                if is_cut:
                    daemon.start()
        raise AssertionError

    own = look(10)
    if own.execution == rings.PROCEEDING:
        daemon.bad = changes.get("bad", 0)
        own = look(100)
    if undo:
        step(place / "fleet", 100, rings.UNDO)
        own = look(200)
    cuts.left = None
    assert not (place / "home" / TRIAL).exists()
    sides = {path.name for path in (place / "home").iterdir()} - {"current"}
    assert daemon.base == open_bundle(place / "home").fingerprint
    return (own.execution, own.finished, own.reason, daemon.base, len(sides), own.installed), happened


@pytest.mark.dev
@pytest.mark.parametrize("is_cut", [True, False])
@pytest.mark.parametrize(("changes", "undo", "outcome", "is_new"), [
    ({}, False, (rings.CLOSED, rings.SUCCESS, "because"), True),
    ({}, True, (rings.CANCELED, rings.SUCCESS, "the base before is active again"), False),
    ({"passed": False}, False, (rings.REJECTED, rings.NOTHING, "because"), False),
    ({"bad": 3}, False, (rings.CLOSED, rings.FAILURE, "it was rolled back, with 3 bad ratings"), False),
    ({"fails": True}, False, (rings.CLOSED, rings.FAILURE, "the daemon did not start with it: the daemon did not"),
     False)])
def test_each_step_may_be_the_last(begun, tmp_path, cuts, changes, undo, outcome, is_new, is_cut):
    wanted, _ = through(begun, tmp_path, cuts, changes, undo, None, is_cut)
    assert (*wanted[:2], wanted[2][:len(outcome[2])]) == outcome
    assert wanted[3] == begun[2 if is_new else 1]
    assert wanted[4] == 1 + is_new
    for at in itertools.count():
        found, happened = through(begun, tmp_path, cuts, changes, undo, at, is_cut)
        assert found == wanted, f"after a cut at the moment {at}"
        if not happened:
            assert at > 10
            break


def test_a_date_that_is_set_ends_no_probation(begun, tmp_path, cuts):
    place = shutil.copytree(begun[0], tmp_path / "place", symlinks=True)
    daemon = Simulated(place / "home", cuts, "", True)
    owner = Owner(Slot(place / "home"), lambda: daemon.restart(), 0.02)

    def look(now, boot, seconds):
        return apply(place / "fleet", "kitchen", daemon, now, owner, at=Moment(boot, seconds))[0].execution

    assert look(10, "one", 10.0) == rings.PROCEEDING
    assert look(10**9, "one", 40.0) == rings.PROCEEDING  # 30 of 60 seconds
    assert look(10**9, "two", 500.0) == rings.PROCEEDING  # the machine was started again: nobody knows when
    assert look(0, "two", 529.0) == rings.PROCEEDING
    assert look(0, "two", 530.0) == rings.CLOSED
