"""One look of a device at a roll-out of a base: what apply.py does for an adapter, with a slot and a restarted daemon.

The base is written into the side of the slot that nobody opens, and evaluated there by the daemon's gate. Then the slot
is switched and the daemon restarted. trial.json is written before each of these steps, so that the next look continues
after a power cut, whatever came last. `settle` needs neither the fleet's folder nor a network.
"""

from __future__ import annotations

import os
import shutil
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from ....disk import cannot_write, require_room
from ....errors import AwayError, EdgetuneError, MismatchError, TooMuchError, UnansweredError, UsageError, shell_word
from ....formats.bundle import MODEL, open_bundle
from ....formats.gguf import open_gguf
from ..rollout import rings
from ..rollout.artifact import BASE, RolloutArtifact
from ..rollout.daemons import DaemonByHttp
from ..rollout.folder import Order
from ..rollout.reports import NUMBERS, DeviceFile, Look, superseded_by
from ..uptime import Moment
from .slot import (
    BACK,
    PASSED,
    STARTED,
    SWITCHED,
    BaseOrigin,
    Owner,
    Trial,
    end_trial,
    read_origin,
    read_trial,
    write_origin,
    write_trial,
)

POLL = 0.5  # seconds


def settle(owner: Owner, daemon: DaemonByHttp, now: int) -> Trial | None:
    """Ends a switch that was begun: the daemon answers with the base that is tried, or with the one before. Returns
    the trial as it is then. Raises EdgetuneError if the daemon answers with neither.
    """
    trial = read_trial(owner.slot)
    if trial and trial.state == SWITCHED:
        trial = _started(owner, daemon, trial, now)
    if trial and trial.state == BACK:
        _switch(owner, daemon, trial.before, trial.bases[1], starts_by_itself=False)
    return trial


def _started(owner: Owner, daemon: DaemonByHttp, trial: Trial, now: int) -> Trial:
    try:
        _switch(owner, daemon, trial.to, trial.bases[0], starts_by_itself=True)
        trial = replace(trial, state=STARTED, at=now)
    except EdgetuneError as error:
        trial = replace(trial, state=BACK, at=now, reason=f"the daemon did not start with it: {error.what}",
                        failed=True)
    write_trial(owner.slot, trial)
    return trial


def _switch(owner: Owner, daemon: DaemonByHttp, side: str, base: str, starts_by_itself: bool) -> None:
    """Lets the daemon answer with the base of a side, unless it does. starts_by_itself: a daemon that does not answer
    now is starting, after a power cut. Raises EdgetuneError if it does not answer with it in time.
    """
    owner.slot.switch(side)
    try:
        found = daemon.about().model
    except UnansweredError:
        found = ""
    if found == base:
        return
    if found or not starts_by_itself:
        owner.restart()
    if not _answers(daemon, base, owner.wait):
        raise EdgetuneError(f"the daemon did not answer with the base {base:.19} within {owner.wait:.0f} seconds",
                            "look at its log, and start it; the next look continues")


def _answers(daemon: DaemonByHttp, base: str, seconds: float) -> bool:
    """Returns whether the daemon answers with a base within this time."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        with suppress(UnansweredError):
            if daemon.about().model == base:
                return True
        time.sleep(POLL)
    return False


class BaseLook(Look):
    """A look at a roll-out of a base. owner: None if the owner of the device gave no slot. at: the moment."""

    def __init__(self, folder: Path, own: DeviceFile, daemon: DaemonByHttp, owner: Owner | None, now: int,
                 at: Moment) -> None:
        super().__init__(folder, own, now)
        self.at = at
        self.daemon = daemon
        self.owner = owner

    def obey(self, order: Order) -> None:
        trial = self._trial(order)
        action = order.state.action(self.own.device)
        if trial and trial.state == BACK:
            self._report_back(order, trial)
        elif action == rings.CANCEL:
            self._undo(order, trial)
        elif self.own.execution == rings.NOTHING and action == rings.DEPLOY:
            self._install(order)
        elif self.own.execution == rings.DOWNLOADED:
            if trial is None and action == rings.DEPLOY and not self._is_filled(order):
                self._install(order)
            elif trial and trial.state in (SWITCHED, STARTED):  # the look that switched was broken off
                self._proceed(order, trial)
            elif action != rings.DEPLOY:
                self._undo(order, trial)
            elif trial:
                self._switch(order, trial)
            else:
                self._evaluate(order)
        elif self.own.execution == rings.PROCEEDING:
            self._watch(order, trial)
        self._tidy(order)

    def _is_filled(self, order: Order) -> bool:
        """Returns whether the closed side holds the base of this roll-out."""
        slot = self._owned.slot
        origin = read_origin(slot.folder(slot.other))
        return origin is not None and origin.rollout == order.facts.rollout

    def _tidy(self, order: Order) -> None:
        """Removes what an outcome left, also one whose look was broken off after it was said."""
        if self.owner is None or self.own.execution not in (rings.CLOSED, rings.REJECTED, rings.CANCELED):
            return
        if self._is_filled(order):
            self.owner.slot.clear(self.owner.slot.other)
        end_trial(self.owner.slot)

    def _trial(self, order: Order) -> Trial | None:
        """Returns the trial of this roll-out. One of an earlier roll-out ends: what runs stays, what does not is
        removed.
        """
        if self.owner is None:
            return None
        trial = settle(self.owner, self.daemon, self.now)
        if trial is None or trial.rollout == order.facts.rollout:
            return trial
        if trial.state != STARTED:
            self.owner.slot.clear(trial.to)
        end_trial(self.owner.slot)
        return None

    @property
    def _owned(self) -> Owner:
        """Raises UsageError if this device gives no slot."""
        if self.owner is None:
            raise UsageError("this device has no slot for a base", "edgetune fleet slot makes one; give it to apply "
                             "with --base-slot")
        return self.owner

    # ---- its parts ----------------------------------------------------------------------------------------------

    def _install(self, order: Order) -> None:
        artifact = order.stated
        if self.owner and (opened := open_gguf(self.owner.slot.folder(self.owner.slot.side) / MODEL).fingerprint
                           ) != self.own.model and self.daemon.slot():
            raise EdgetuneError(f"the daemon answers with the base {self.own.model:.19}, its slot opens {opened:.19}",
                                "restart the daemon")
        try:
            owner = self._owned
            self._check(owner, artifact)
            if artifact.facts.base != self.own.model:
                require_room(owner.slot.path, sum(artifact.facts.sizes.values()))
        except EdgetuneError as error:
            self.daemon.about()  # where it does not answer, that is no outcome
            self.say(rings.REJECTED, reason=error.what)
            return
        if artifact.facts.base == self.own.model:
            self._succeed(artifact, "this base is here already")
            return
        try:
            self._fill(owner, order, artifact)
        except (UsageError, MismatchError) as error:  # of opening it; a file that is not whole yet is no outcome
            self.say(rings.REJECTED, reason=error.what)
            return
        self.say(rings.DOWNLOADED)
        self._evaluate(order)

    def _check(self, owner: Owner, artifact: RolloutArtifact) -> None:
        """Raises UsageError for a base that this device cannot take."""
        served = self.daemon.slot()
        path = owner.slot.path.resolve()
        if served is None or Path(served.path) != path:
            raise UsageError(f"the daemon does not serve the slot {path}",
                             f"start it with edgetune serve {shell_word(path)}")
        if artifact.digest in self.own.superseded:
            raise UsageError("a later base replaced this one here", "roll out a new one")
        if artifact.facts.base == self.own.model and artifact.has_adapter:
            raise UsageError("this base is here already", "roll out its adapter alone")

    def _fill(self, owner: Owner, order: Order, artifact: RolloutArtifact) -> None:
        """Writes the base and what comes with it into the other side. Raises FormatError for a file that is not whole,
        and errors of open_bundle.
        """
        with owner.slot.filled(owner.slot.other) as beside:
            for file in artifact.facts.files:
                target = beside / file.removeprefix(f"{BASE}/")
                target.parent.mkdir(exist_ok=True)
                _take(artifact.folder / file, target, owner.links)
                artifact.check_file(file, target)
            found = open_bundle(beside).fingerprint
            if found != artifact.facts.base:
                raise MismatchError(f"the base is {found:.19}, the artifact says {artifact.facts.base:.19}",
                                    "roll it out again")
            write_origin(beside, BaseOrigin(order.facts.rollout, artifact.digest, found))

    def _evaluate(self, order: Order) -> None:
        """Lets the gate decide between the base with its adapter and what answers now."""
        owner = self._owned
        artifact = order.stated
        asked = {name: order.facts.evaluation[name] for name in ("required", "if_none")}
        try:
            verdict = self.daemon.evaluate_base({**asked, "base": artifact.facts.base})
        except TooMuchError:
            return
        except AwayError:  # that is no outcome
            raise
        except EdgetuneError as error:
            self.daemon.about()
            if isinstance(error, UsageError | MismatchError):
                self.say(rings.REJECTED, reason=error.what)
            else:
                self.say(rings.CLOSED, rings.FAILURE, error.what)
            return
        numbers = {name: verdict[name] for name in NUMBERS if name in verdict}
        if not verdict["passed"]:
            self.say(rings.REJECTED, reason=verdict["reason"], verdict=numbers)
            return
        trial = Trial(order.facts.rollout, owner.slot.other, owner.slot.side, [artifact.facts.base, self.own.model],
                      PASSED, self.now, verdict["reason"], numbers)
        write_trial(owner.slot, trial)
        self._switch(order, trial)

    def _switch(self, order: Order, trial: Trial) -> None:
        owner = self._owned
        write_trial(owner.slot, replace(trial, state=SWITCHED, at=self.now))
        settled = settle(owner, self.daemon, self.now)
        assert settled
        if settled.state == BACK:
            self._report_back(order, settled)
        else:
            self._proceed(order, settled)

    def _proceed(self, order: Order, trial: Trial) -> None:
        self.say(rings.PROCEEDING, reason=trial.reason, verdict=dict(trial.verdict))
        self._watch(order, trial)

    def _watch(self, order: Order, trial: Trial | None) -> None:
        owner = self._owned
        if trial is None or owner.slot.side != trial.to:
            self.say(rings.CLOSED, rings.FAILURE, "a person let the slot open another base")
            return
        served = self.daemon.slot()
        asked = order.facts.evaluation
        waited = trial.waited + (self.at.since(trial.seen) or 0.0)
        if served and served.bad >= asked["bad_ratings"] > 0 and served.bad > served.good:
            self._go_back(order, trial, f"it was rolled back, with {served.bad} bad ratings", failed=True)
        elif waited >= asked["probation"]:
            self._succeed(order.stated, self.own.reason)
        else:
            write_trial(owner.slot, replace(trial, waited=waited, seen=self.at))

    def _succeed(self, artifact: RolloutArtifact, reason: str) -> None:
        self.say(rings.CLOSED, rings.SUCCESS, reason, **superseded_by(self.own, artifact))

    def _undo(self, order: Order, trial: Trial | None) -> None:
        """Goes back to the base before, if this roll-out's is opened."""
        if self.own.execution not in (rings.DOWNLOADED, rings.PROCEEDING, rings.CLOSED) or \
                self.own.finished == rings.FAILURE:
            return
        owner = self._owned
        slot = owner.slot
        origin = read_origin(slot.folder(slot.side))
        if origin is None or origin.rollout != order.facts.rollout:
            self._canceled(order, "the base was not active")
            return
        if trial is None:
            before = open_bundle(slot.folder(slot.other)).fingerprint
            trial = Trial(order.facts.rollout, slot.side, slot.other, [origin.base, before], STARTED, self.now, "")
        self._go_back(order, trial, "the base before is active again", failed=False)

    def _go_back(self, order: Order, trial: Trial, reason: str, failed: bool) -> None:
        owner = self._owned
        write_trial(owner.slot, replace(trial, state=BACK, at=self.now, reason=reason, failed=failed))
        settled = settle(owner, self.daemon, self.now)
        assert settled
        self._report_back(order, settled)

    def _report_back(self, order: Order, trial: Trial) -> None:
        """Says that the base before answers again."""
        if trial.failed:
            self.say(rings.CLOSED, rings.FAILURE, trial.reason)
        else:
            self._canceled(order, trial.reason)

    def _canceled(self, order: Order, reason: str) -> None:
        left = [digest for digest in self.own.superseded if digest not in order.stated.facts.supersedes]
        self.say(rings.CANCELED, rings.SUCCESS, reason, superseded=left)


def _take(source: Path, target: Path, links: bool) -> None:
    try:
        if links:
            with suppress(OSError):  # on another disk, or a file system without links
                os.link(source, target)
                return
        if source.exists():  # what is missing the check says
            shutil.copyfile(source, target)
    except OSError as error:
        raise cannot_write(target, error) from None
