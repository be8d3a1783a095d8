"""A roll-out carried by a folder, which any sync copies between the server and the devices.

    devices/NAME.json                   written only by the device NAME: what it last did, perhaps signed
    members/reports/NAME.json           written by the server: where devices joined, the newest one that counted
    rollouts/ID/artifact/               what is rolled out
    rollouts/ID/orders/000001/          order.json: the state of the roll-out, perhaps signed; one folder for each step

Orders are never changed. The one with the highest number counts, in the roll-out with the highest ID. So a device reads
whole files alone, whatever was copied last. An older report that somebody puts back counts no more, because the server
keeps the newest one that counted; no sync carries members/.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from ....disk import exclusive, new_folder
from ....errors import EdgetuneError, FormatError, UsageError
from ....persisted import from_json
from ....version import __version__
from ..signed_folder import AGAIN, is_whole, read_facts, write_facts
from ..uptime import Moment, moment, waited
from . import artifact, rings
from .artifact import RolloutArtifact
from .reports import DeviceFile, keep, read_devices, reports_of
from .rings import NAME, RingPlan, RolloutState

VERSION = 1
FACTS = "order.json"
ROLLOUTS = "rollouts"
ORDERS = "orders"
ARTIFACT = "artifact"
KEPT_ORDERS = 8
EVALUATION = {"required": "better", "if_none": "refuse", "probation": 86_400, "bad_ratings": 3}


@dataclass(frozen=True)
class OrderFacts:
    """order.json. rollout, number: its folder's. artifact: its name. evaluation: how a device evaluates it, as of
    EVALUATION. plan, rings, since, ring, status, reason: as of RolloutState.
    """

    version: int
    rollout: str
    number: int
    at: int
    artifact: str
    evaluation: dict[str, Any]
    plan: dict[str, Any]
    rings: list[list[str]]
    since: int
    ring: int
    status: str
    reason: str


@dataclass(frozen=True)
class Order:
    """An opened order. folder: of the roll-out. signer: the public key that signed it, "": none."""

    folder: Path
    facts: OrderFacts
    state: RolloutState
    signer: str = ""

    @property
    def artifact(self) -> RolloutArtifact:
        """Returns the artifact, whole: each file is read. Raises its errors."""
        return artifact.open_artifact(self.folder / ARTIFACT, self.facts.artifact)

    @property
    def kind(self) -> str:
        """Returns the kind of its artifact, also of one that this edgetune cannot use; "": it cannot be read."""
        with suppress(EdgetuneError):
            return artifact.kind_and_digest(self.folder / ARTIFACT)[0]
        return ""

    @property
    def stated(self) -> RolloutArtifact:
        """Returns the artifact, whose files are not looked at. Raises its errors."""
        return artifact.read_artifact(self.folder / ARTIFACT, self.facts.artifact)


def newest_order(folder: Path) -> Order | None:
    """Returns the order that counts; None: nothing was ever rolled out. Raises FormatError, and errors of the
    signature.
    """
    for rollout in _rollouts(folder):
        for order in sorted((rollout / ORDERS).glob("[0-9]" * 6), reverse=True):
            if is_whole(order, FACTS):
                return _read_order(rollout, order)
    return None


def _rollouts(folder: Path) -> Iterator[Path]:
    """Yields the folders of roll-outs, the newest first."""
    yield from sorted((path for path in (folder / ROLLOUTS).glob("[0-9]*-*") if path.is_dir() and path.suffix == ""),
                      reverse=True)


def _read_order(rollout: Path, folder: Path) -> Order:
    facts, _, signer = read_facts(folder, FACTS, OrderFacts, VERSION)
    if (facts.rollout, facts.number) != (rollout.name, int(folder.name)):
        raise FormatError(f"{folder} holds the order {facts.number} of {facts.rollout!r:.60}", AGAIN)
    source = str(folder / FACTS)
    plan = from_json(RingPlan, facts.plan, f"the plan in {source}").check()
    names = [device for ring in facts.rings for device in ring]
    if facts.status not in rings.STATUSES or not 0 <= facts.ring < len(facts.rings) or \
            len(set(names)) != len(names) or not all(map(NAME.fullmatch, names)):
        raise FormatError(f"{source} is no state of a roll-out", AGAIN)
    for asked, usual in EVALUATION.items():
        if type(facts.evaluation.get(asked)) is not type(usual):
            raise FormatError(f"{source} does not say {asked} of the evaluation", AGAIN)
    state = RolloutState(plan, tuple(map(tuple, facts.rings)), facts.since, facts.ring, facts.status, facts.reason)
    return Order(rollout, facts, state, signer)


def _write_order(rollout: Path, number: int, state: RolloutState, name: str, evaluation: dict[str, Any], now: int,
                 key: Path | None) -> None:
    """Writes an order as a new folder, and removes old ones."""
    facts = OrderFacts(VERSION, rollout.name, number, now, name, evaluation,
                       {**asdict(state.plan), "rings": [*state.plan.rings]}, [[*ring] for ring in state.rings],
                       state.since, state.ring, state.status, state.reason)
    with new_folder(rollout / ORDERS / f"{number:06d}") as beside:
        write_facts(beside, FACTS, facts, key)
    for order in sorted((rollout / ORDERS).glob("[0-9]" * 6))[:-KEPT_ORDERS]:
        shutil.rmtree(order, ignore_errors=True)


# ---- the server ------------------------------------------------------------------------------------------------------


def begin(folder: Path, source: Path, plan: RingPlan, evaluation: dict[str, Any], now: int, *,
          first: Sequence[str] = (), adapter: Path | None = None, least: str = __version__, key: Path | None = None,
          at: Moment | None = None) -> Order:
    """Begins a roll-out to the devices that have reported to the folder, and returns its first order. source, adapter:
    as of write_artifact.

    Raises UsageError while another one is not over, for no devices and for options that are wrong; errors of
    write_artifact.
    """
    before = newest_order(folder)
    if before and before.state.is_open:
        raise UsageError(f"the roll-out {before.facts.rollout} is {before.state.status}",
                         "wait for its end, or stop it: edgetune fleet advance FOLDER --stop")
    devices, wrong = read_devices(folder)
    if wrong and not devices:
        raise UsageError(f"no report of a device counts: {wrong[0]}", "run edgetune fleet apply on each device again")
    state = rings.begin(plan, [*devices], now, str(now), first)
    began = now
    if before:  # names sort by time: two in a second, or a clock that was set back, must not hide the newer one
        began = max(now, int(before.facts.rollout.partition("-")[0]) + 1)
    kind = artifact.BASE if artifact.is_base(source) else artifact.ADAPTER
    called = source.resolve().name.removesuffix(".gguf").removesuffix(".edge")
    id = f"{began:010d}-{called[:20].replace('.', '-')}"  # a folder with a suffix is one that is not in place yet
    if not NAME.fullmatch(id):
        id = f"{began:010d}-{kind}"
    rollout = folder / ROLLOUTS / id
    artifact.write_artifact(rollout / ARTIFACT, source, adapter=adapter, supersedes=_finished(folder, kind),
                            least=least, key=key)
    name = artifact.read_artifact(rollout / ARTIFACT).name
    _write_order(rollout, 1, state, name, evaluation, now, key)
    waited(folder, id, state.ring, state.since, at or moment())
    return _read_order(rollout, rollout / ORDERS / "000001")


def _finished(folder: Path, kind: str) -> list[str]:
    """Returns the digests of artifacts of this kind whose roll-outs have finished."""
    found = []
    for rollout in _rollouts(folder):
        orders = sorted((rollout / ORDERS).glob("[0-9]" * 6))
        if orders and _read_order(rollout, orders[-1]).state.status == rings.FINISHED:
            found.append(artifact.kind_and_digest(rollout / ARTIFACT))
    return [digest for of, digest in found if of == kind]


def step(folder: Path, now: int, change: str = "", key: Path | None = None, state_of: Path | None = None,
         at: Moment | None = None) -> tuple[Order, dict[str, DeviceFile], list[str]]:
    """Counts the reports and moves on by a ring at most. change: what a person asks for, one of CHANGES; it comes
    first. now: seconds since 1970; at: the moment by the kernel's clock [now], by which rings wait; state_of: as
    `state` of waited. Returns the order that counts then, the devices, and why reports of others are left out.

    Raises UsageError if nothing was rolled out, errors of `rings.changed`, and UsageError if the orders are
    signed and no key is given.
    """
    if newest_order(folder) is None:
        raise UsageError(f"nothing was rolled out in {folder}", "begin with edgetune fleet rollout ADAPTER FOLDER")
    with exclusive(folder / ROLLOUTS):  # orders are numbered
        order = newest_order(folder)
        assert order
        at = at or moment()
        devices, wrong = read_devices(folder)
        keep(folder, devices)
        reports = reports_of(devices, order.facts.rollout)
        seconds = waited(folder, order.facts.rollout, order.state.ring, order.state.since, at, state_of)
        state = rings.changed(order.state, change, reports, now, seconds) if change else order.state
        state = rings.advance(rings.join(state, devices), reports, now, seconds)
        if state == order.state:
            return order, devices, wrong
        if order.signer and key is None:  # devices that believe this signer would obey no other
            raise UsageError(f"the orders of {order.facts.rollout} are signed by {order.signer:.16}, and no key is "
                             "given", "give its private key: edgetune fleet advance FOLDER --sign KEY, or edgetune "
                             "daemon --fleet-sign KEY")
        number = order.facts.number + 1
        _write_order(order.folder, number, state, order.facts.artifact, order.facts.evaluation, now, key)
        waited(folder, order.facts.rollout, state.ring, state.since, at, state_of)  # the next ring waits from now on
        facts = replace(order.facts, number=number, at=now)
        return replace(order, facts=facts, state=state), devices, wrong
