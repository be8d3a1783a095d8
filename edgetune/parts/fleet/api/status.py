"""/v1/fleet/status and /v1/fleet/rollout: a fleet as its owner sees it, and what he decides about a roll-out."""

from __future__ import annotations

from typing import Any, Literal

from fastapi import APIRouter
from pydantic import Field

from ....daemon.api.completions import TheService
from ....daemon.api.errors import RESPONSES, JsonRoute
from ....daemon.api.shapes import Answer, Time
from ..rollout import rings
from ..running import advancer_of
from ..status import rollout_status, status_json, status_of

router = APIRouter(prefix="/v1/fleet", route_class=JsonRoute, responses=RESPONSES)
OUTCOMES = ("succeeded; refused (by its gate); failed; canceled (it went back); trying; waiting (it has not begun); "
            "outside (the roll-out does not reach it); excluded (it has not joined, or was revoked)")


class FleetDevice(Answer):
    """A device of a fleet, by its last report."""

    device: str = Field(description="Its name.")
    kind: str = Field(description="What kind of device it is; empty: it does not say.")
    base: str = Field(description="The name of its model.")
    model: str = Field(description="sha256 of its model.")
    edgetune: str = Field(description="Its version of edgetune.")
    active: str = Field(description="The adapter that answers there; empty: none.")
    at: Time
    outcome: str = Field(description=f"In the newest roll-out: {OUTCOMES}.")
    reason: str = Field(description="Why, a sentence.")


class FleetRing(Answer):
    """The devices of a ring by their outcome."""

    devices: int = Field(description="How many it has.")
    begun: bool = Field(description="Whether it has begun.")
    succeeded: int = Field(description="The gate let it pass, and so did the probation.")
    refused: int = Field(description="The gate refused it.")
    failed: int = Field(description="It was rolled back, or could not be evaluated.")
    canceled: int = Field(description="They went back, because the roll-out was undone.")
    trying: int = Field(description="They have begun.")
    waiting: int = Field(description="They have not begun.")


class FleetRollout(Answer):
    """The newest roll-out of a fleet."""

    id: str = Field(description="Its name in the folder: when it began, and the name of what it brings.")
    kind: str = Field(description="What it brings: adapter, or base; empty: that cannot be read.")
    number: int = Field(description="The number of the order that counts.")
    status: str = Field(description="running, paused, stopped, finished, undoing or undone.")
    reason: str = Field(description="Why, a sentence.")
    ring: int = Field(description="The newest ring that has begun, from 1 on.")
    since: int = Field(description="When it did, seconds since 1970.")
    signer: str = Field(description="The public key that signed the order; empty: none.")
    rings: list[FleetRing] = Field(description="The rings.")
    changes: list[str] = Field(description="The changes that are possible now: advance, pause, resume, stop, undo.")


class KindLosses(Answer):
    """The losses of the devices of one kind, by their own held-out rows."""

    kind: str = Field(description="The kind; empty: they did not say.")
    devices: int = Field(description="How many there are.")
    loss_before: float | None = Field(description="Mean loss before the round.")
    loss_after: float | None = Field(description="Mean loss after it.")


class FleetRound(Answer):
    """A round that ended."""

    round: int = Field(description="Its number.")
    devices: int = Field(description="Devices whose answers counted.")
    left_out: int = Field(description="Answers that did not.")
    tokens: int = Field(description="Tokens that were learned.")
    loss_before: float | None = Field(description="Mean loss on the devices' held-out rows before.")
    loss_after: float | None = Field(description="The same after.")
    missed: float | None = Field(description="Share of the change that averages of A and B apart would miss.")
    cut: float = Field(description="Share of it that the rank cut off.")
    up: int = Field(description="Bytes of all answers.")
    down: int = Field(description="Bytes of the task.")
    mu_answer: float | None = Field(description="What noise leaves to whoever sees an answer, as mu of Gaussian "
                                                "differential privacy; null: no bound.")
    mu_sum: float | None = Field(description="The same for whoever sees only the sums.")
    kinds: list[KindLosses] = Field(description="The losses by kind of device, of the latest rounds.")
    refused: list[dict[str, str]] = Field(description="device and reason of answers that did not count, of the latest "
                                                      "rounds.")


class FleetRounds(Answer):
    """The rounds of a fleet."""

    base: str = Field(description="The model's name.")
    number: int = Field(description="The round that runs.")
    arrived: list[str] = Field(description="The devices whose answers to it have arrived.")
    records: list[FleetRound] = Field(description="The rounds before it.")


class FleetEpsilon(Answer):
    """Epsilon of differential privacy for a whole device; null: there is no bound."""

    last: float | None = Field(description="Of the last round.")
    total: float | None = Field(description="Of all rounds together.")


class FleetPrivacy(Answer):
    """What the noise of all rounds hides."""

    delta: float = Field(description="The chance with which epsilon may fail.")
    answer: FleetEpsilon = Field(description="Against whoever sees the answers of a device.")
    sum: FleetEpsilon = Field(description="Against whoever sees only the sums.")


class MemberCounts(Answer):
    """Devices that asked to join, by their state."""

    waiting: int = Field(description="They wait for approval.")
    approved: int = Field(description="They take part.")
    revoked: int = Field(description="They do not.")


class FleetStatusObject(Answer):
    """What the folder of a fleet holds."""

    devices: list[FleetDevice] = Field(description="The devices that have reported.")
    rollout: FleetRollout | None = Field(description="The newest roll-out; null: there was none.")
    rounds: FleetRounds | None = Field(description="The rounds; null: there are none.")
    privacy: FleetPrivacy | None = Field(description="What noise hides; null: no round had any.")
    members: MemberCounts | None = Field(description="Devices that asked to join; null: none has to.")
    unreadable: list[str] = Field(description="What cannot be read, and why.")
    obstacle: str = Field(description="Why this daemon does not advance the roll-out by itself, a sentence; empty: it "
                                      "does, or nothing runs.")


@router.get("/status", response_model=FleetStatusObject)
def get_status(service: TheService) -> Any:
    """Returns the devices of a fleet, its newest roll-out and its rounds."""
    advancer = advancer_of(service)
    found = status_of(advancer.folder)
    running = found.rollout if found.rollout and found.rollout.status in (rings.RUNNING, rings.UNDOING) else None
    return {**status_json(found),
            "obstacle": advancer.obstacle(running.id, running.signer) if running else ""}


@router.post("/rollout/{change}", response_model=FleetRollout)
def change_rollout(change: Literal["advance", "pause", "resume", "stop", "undo"], service: TheService) -> Any:
    """Pauses, resumes, stops or undoes the newest roll-out. Each counts the reports, as advance does, which begins the
    next ring where the rules allow it. The daemon does that by itself, too, within a minute. Where the orders are
    signed, it needs --fleet-sign to write another.
    """
    return vars(rollout_status(*advancer_of(service).change(change)))
