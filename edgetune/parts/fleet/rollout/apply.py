"""One look of a device at the folder of its fleet: it does what the roll-out asks, and says what came of it.

Its own gate decides. A look may be broken off at any moment: what was done is written after each part, and the next
look continues.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from ....errors import AwayError, EdgetuneError, MismatchError, TooMuchError, UsageError
from ....version import __version__
from ..bases.slot import Owner
from ..bases.trial import BaseLook, settle
from ..uptime import Moment, moment
from . import rings
from .artifact import BASE, RolloutArtifact
from .daemons import DaemonByHttp
from .folder import Order, newest_order
from .reports import NUMBERS, DeviceFile, Look, read_device, superseded_by

PASSED = "passed"  # states of a probation
RUNNING = "running"
ROLLED_BACK = "rolled back"
REPLACED = "replaced"
KEPT = 2  # adapters of roll-outs: the last one, and the one before, to go back to


def apply(folder: Path, device: str, daemon: DaemonByHttp, now: int,
          owner: Owner | None = None, own_folder: Path | None = None,
          at: Moment | None = None) -> tuple[DeviceFile, Order | None]:
    """Does what the roll-out asks of this device, and returns its file as it was written, and the order. owner: of the
    slot whose base may be replaced; None: bases are refused. own_folder: where the file is [folder]. now: seconds since
    1970; at: the moment by a clock that nobody sets [now].

    Raises FormatError and MismatchError for an order that is damaged or not signed, EdgetuneError if the daemon does
    not answer.
    """
    if owner:
        settle(owner, daemon, now)
    about = daemon.about()
    own_folder = own_folder or folder
    own = replace(read_device(own_folder, device), at=now, edgetune=__version__, **vars(about))
    order = newest_order(folder)
    if order and own.rollout != order.facts.rollout:
        if own.execution == rings.DOWNLOADED and own.adapter:  # of a roll-out that ended before it was evaluated
            daemon.delete(own.adapter)
        own = replace(own, rollout=order.facts.rollout, execution=rings.NOTHING, finished=rings.NOTHING, reason="",
                      adapter="", verdict={})
    look: AdapterLook | BaseLook = AdapterLook(own_folder, own, daemon, now)
    try:
        if order and _concerns(order, own) and order.stated.facts.kind == BASE:
            look = BaseLook(own_folder, own, daemon, owner, now, at or moment())
    except UsageError as error:  # it needs a newer edgetune
        look.say(rings.REJECTED, reason=error.what)
        order = None
    if order:
        look.obey(order)
    look.say(**vars(daemon.about()))
    return look.own, order


def _concerns(order: Order, own: DeviceFile) -> bool:
    """Returns whether the device has something to do, or has done something, for which it needs the artifact."""
    return bool(order.state.action(own.device)) or own.execution != rings.NOTHING


class AdapterLook(Look):
    """A look at a roll-out of an adapter."""

    def __init__(self, folder: Path, own: DeviceFile, daemon: DaemonByHttp, now: int) -> None:
        super().__init__(folder, own, now)
        self.daemon = daemon

    def obey(self, order: Order) -> None:
        action = order.state.action(self.own.device)
        if action == rings.CANCEL:
            self._go_back(order)
        elif self.own.execution == rings.NOTHING and action == rings.DEPLOY:
            self._install(order)
        elif self.own.execution == rings.DOWNLOADED:
            if action == rings.DEPLOY:
                self._evaluate(order)
            else:
                self._go_back(order)
        if self.own.execution == rings.PROCEEDING:
            self._watch(order)

    # ---- its parts ----------------------------------------------------------------------------------------------

    def _install(self, order: Order) -> None:
        artifact = order.artifact
        try:
            self._check(artifact)
            id = self.daemon.add(artifact.adapter)
        except EdgetuneError as error:
            self._answers(error)
            self.say(rings.REJECTED, reason=error.what)
            return
        self.say(rings.DOWNLOADED, adapter=id)
        self._evaluate(order)

    def _check(self, artifact: RolloutArtifact) -> None:
        """Raises MismatchError for another model's adapter, UsageError for one that a later one replaced."""
        if artifact.facts.base not in ("", self.own.model):
            raise MismatchError(f"the adapter is of the model {artifact.facts.base:.19}, here is {self.own.model:.19}",
                                "give the same model file on all devices")
        if artifact.digest in self.own.superseded:
            raise UsageError("a later adapter replaced this one here", "roll out a new one")

    def _answers(self, error: EdgetuneError) -> None:
        """Raises EdgetuneError if the daemon does not answer, or did not: that is no outcome."""
        if isinstance(error, AwayError):
            raise error
        self.daemon.about()

    def _evaluate(self, order: Order) -> None:
        """Lets the gate decide. If it did so in an earlier look that was broken off, its verdict counts."""
        held = self.daemon.held(self.own.adapter)
        if held is None:
            self.say(rings.CLOSED, rings.FAILURE, "the adapter was deleted")
            return
        if not held.is_active:
            try:
                self.daemon.evaluate(self.own.adapter, order.facts.evaluation)
            except TooMuchError:  # other jobs wait
                return
            except UsageError as error:
                self._answers(error)
                self._remove()
                self.say(rings.REJECTED, reason=error.what)
                return
            except EdgetuneError as error:
                self._answers(error)
                self._remove()
                self.say(rings.CLOSED, rings.FAILURE, error.what)
                return
            held = self.daemon.held(self.own.adapter)
            assert held
        numbers = {name: held.verdict[name] for name in NUMBERS if name in held.verdict}
        if held.is_active:
            self.say(rings.PROCEEDING, reason=held.reason, verdict=numbers)
        elif not held.passed:  # else another one became active meanwhile: the next look compares with that
            self._remove()
            self.say(rings.REJECTED, reason=held.reason, verdict=numbers)

    def _watch(self, order: Order) -> None:
        held = self.daemon.held(self.own.adapter)
        state = held.probation if held else ROLLED_BACK
        if held and held.is_active and state in ("", PASSED):
            self._succeed(order, self.own.reason)
        elif held and state == REPLACED:
            self._succeed(order, "another adapter became active within its probation")
        elif held is None or state == ROLLED_BACK or not held.is_active:
            bad = held.bad_ratings if held else 0
            self._remove()
            self.say(rings.CLOSED, rings.FAILURE, f"it was rolled back, with {bad} bad ratings")

    def _succeed(self, order: Order, reason: str) -> None:
        kept = [*self.own.kept, self.own.adapter]
        self.say(rings.CLOSED, rings.SUCCESS, reason, **superseded_by(self.own, order.artifact),
                 kept=[id for id in kept[:-KEPT] if not self._forget(id)] + kept[-KEPT:])

    def _go_back(self, order: Order) -> None:
        """Goes back to the adapter before, if this roll-out's is active."""
        if self.own.execution not in (rings.DOWNLOADED, rings.PROCEEDING, rings.CLOSED):
            return
        if self.own.execution == rings.CLOSED and self.own.finished == rings.FAILURE:
            return
        was_active = self.daemon.go_back(self.own.adapter)
        self._remove()
        left = [digest for digest in self.own.superseded if digest not in order.artifact.facts.supersedes]
        self.say(rings.CANCELED, rings.SUCCESS, "the adapter before is active again" if was_active else
                 "the adapter was not active", superseded=left,
                 kept=[id for id in self.own.kept if id != self.own.adapter])

    def _forget(self, id: str) -> bool:
        """Deletes an adapter of an earlier roll-out, which takes memory; returns whether it is gone."""
        held = self.daemon.held(id)
        if held and not held.is_active:
            self.daemon.delete(id)
        return not (held and held.is_active)

    def _remove(self) -> None:
        if self.daemon.held(self.own.adapter):
            self.daemon.delete(self.own.adapter)
