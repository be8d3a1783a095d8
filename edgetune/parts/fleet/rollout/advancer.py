"""The roll-outs of the fleet that a daemon serves: people change them, and a thread begins rings by itself.

The thread looks at the times of a few folders, and reads reports only when one has changed or the time of a ring is
over. It continues only what its own key has signed, so that it never signs what somebody else wrote into the folder. It
waits by the kernel's clock, which nobody sets (fleet/uptime.py).
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ....errors import EdgetuneError
from ....formats.signature import private_key
from ..membership.members import MEMBERS
from ..uptime import Moment, moment, waited
from . import rings
from .folder import ORDERS, ROLLOUTS, newest_order, step
from .reports import DEVICES

if TYPE_CHECKING:
    from .folder import Order
    from .reports import DeviceFile

EVERY = 60.0  # seconds between two looks at the folders' times
ANYWAY = 3600.0  # seconds after which reports are read all the same: a sync may write into a file in place
SHARE = 0.005  # of one core's time that reading may take
RECENT = 2.0  # seconds in which a file system may give two changes one time: those of sticks do
SHOWN = 16  # digits of a key
log = logging.getLogger("edgetune.daemon")


class Advancer:
    """Advances the roll-outs of a folder, for any number of threads. key: signs orders. state: folder in which it keeps
    how long rings have waited.
    """

    def __init__(self, folder: Path, key: Path | None, state: Path) -> None:
        self.folder = folder
        self.key = key
        self.state = state
        self._stopping = threading.Event()
        self.failure = ""  # of the last look, a sentence
        self._public = private_key(self.key).public_key().public_bytes_raw().hex() if self.key else ""
        self._one_at_a_time = threading.Lock()  # a look at many reports may take long
        self._places: list[Path] = []
        self._seen: tuple[int, ...] = ()
        self._read_at = 0.0  # when reports are read although no time has changed, as seconds of a Moment
        self._not_before = 0.0
        self.thread = threading.Thread(target=self._loop, name="rollouts", daemon=True)

    def start(self) -> None:
        self.thread.start()

    def stop(self) -> None:
        self._stopping.set()
        if self.thread.ident:
            self.thread.join()

    def reasons(self) -> Sequence[str]:
        return [f"the roll-out does not advance: {self.failure}"] if self.failure else []

    def change(self, change: str) -> tuple[Order, dict[str, DeviceFile]]:
        """Does what a person asks for, one of rings.CHANGES; returns the order that counts then, and the devices.
        Raises the errors of `step`.
        """
        with self._one_at_a_time:
            order, devices, _ = step(self.folder, int(time.time()), change, self.key, self.state)
        return order, devices

    def obstacle(self, rollout: str, signer: str) -> str:
        """Returns why a roll-out whose newest order this key signed does not advance by itself, in a sentence; "": it
        does.
        """
        if self.failure or signer == self._public:
            return self.failure
        if not signer:
            return f"the order of {rollout} is not signed, and this daemon signs: advance it once by hand"
        own = f"this daemon signs as {self._public:.{SHOWN}}" if self._public else "this daemon has no --fleet-sign"
        return f"the order of {rollout} is signed by {signer:.{SHOWN}}, and {own}"

    # ---- by itself ----------------------------------------------------------------------------------------------

    def _loop(self) -> None:
        while not self._stopping.wait(EVERY):
            self.look(time.time(), moment())

    def look(self, now: float, at: Moment) -> None:
        """Begins the next ring, pauses or stops by what devices have reported. now: seconds since 1970, as files have
        them; at: the moment, by which it waits. Errors are logged once, and do not end the thread.
        """
        times = self._times()
        if at.seconds < self._not_before or (times == self._seen and at.seconds < self._read_at):
            return
        began = time.monotonic()
        failure = ""
        self._read_at = at.seconds + ANYWAY
        try:
            with self._one_at_a_time:
                self._advance(now, at)
        except EdgetuneError as error:
            failure = str(error)
        except Exception as error:
            log.exception("the roll-out")
            failure = f"{type(error).__name__}: {error}"
        if failure and failure != self.failure:
            log.warning("the roll-out does not advance: %s", failure)
        self.failure = failure
        is_recent = bool(times) and max(times) / 1e9 > now - RECENT
        self._seen = () if failure or is_recent else times
        self._not_before = at.seconds + (time.monotonic() - began) / SHARE

    def _times(self) -> tuple[int, ...]:
        """Returns when the folders changed that roll-outs are read from; 0: one that is not there."""
        found = []
        for place in (*(self.folder / name for name in (DEVICES, MEMBERS, ROLLOUTS)), *self._places):
            try:
                found.append(place.stat().st_mtime_ns)
            except OSError:
                found.append(0)
        return tuple(found)

    def _advance(self, now: float, at: Moment) -> None:
        order = newest_order(self.folder)
        self._places = [order.folder / ORDERS] if order else []
        if order is None or order.state.status == rings.STOPPED or order.signer != self._public:
            return
        after, _, _ = step(self.folder, int(now), key=self.key, state_of=self.state, at=at)
        if after.state.status == rings.RUNNING:
            seconds = waited(self.folder, after.facts.rollout, after.state.ring, after.state.since, at, self.state)
            self._read_at = min(self._read_at, at.seconds + after.state.plan.wait - seconds)
        if (after.state.ring, after.state.status) != (order.state.ring, order.state.status):
            log.info("the roll-out %s is %s in ring %d of %d: %s", after.facts.rollout, after.state.status,
                     after.state.ring + 1, len(after.state.rings), after.state.reason)
