"""What the API of a fleet is asked and answers, and what a fleet adds to the answer of /v1/device."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, Field

from ....daemon.api.shapes import Answer, Body, Time, Whole
from ..membership.invites import MOST_SECONDS, SECONDS

PUBLIC = "64 hexadecimal digits."
OUTCOMES = ("succeeded; refused (by its gate); failed; canceled (it went back); trying; waiting (it has not begun); "
            "outside (the roll-out does not reach it); excluded (it has not joined, or was revoked)")


class FleetFacts(BaseModel):
    """The facts of a device in a fleet."""

    fleet: bool = Field(False, description="Whether it serves a fleet, by --fleet.")
    slot: dict[str, Any] | None = Field(None, description="Of a slot: path, rollout (that brought its base), since "
                                        "(seconds), bad and good (ratings since); null: it serves none.")


class BaseEvaluation(Body):
    """Options of the evaluation of a base."""

    base: str = Field(description="sha256 of the base that is meant.")
    required: Literal["better", "not-worse"] = Field(
        "better", description="better: surely better than the present one; not-worse: not surely worse.")
    if_none: Literal["refuse", "canary"] = Field(
        "refuse", description="If fewer than 4 questions are held out. canary: only unrelated text decides.")


class OrderObject(Answer):
    """What a fleet's devices are to do."""

    rollout: str = Field(description="The roll-out; empty: there is none.")
    number: int = Field(description="The number of the order; the highest counts.")
    order: str = Field(description="The text of its order.json.")
    signature: str = Field(description="The text of its manifest.sig; empty: it is not signed.")
    files: list[str] = Field(description="The files of its artifact.")


class DeviceReport(Body):
    """What a device of a fleet last did."""

    device: str = Field(description="The name of the device.")
    at: Whole = Field(description="When, seconds since 1970.")
    model: str = Field(description="sha256 of its model.")
    rollout: str = Field(description="The roll-out that it is about.")
    execution: Literal["none", "downloaded", "proceeding", "closed", "rejected", "canceled"] = Field(
        description="closed: there is an outcome; rejected: its gate refused it; canceled: it went back.")
    finished: Literal["none", "success", "failure"] = Field(description="The outcome.")
    reason: str = Field(description="A sentence, for a person.")
    adapter: str = Field(description="The adapter's id on the device.")
    verdict: dict[str, Any] = Field(description="Numbers of its gate.")
    installed: list[str] = Field(description="Digests of what roll-outs brought.")
    superseded: list[str] = Field(description="Digests of what those replaced.")
    kept: list[str] = Field(description="Ids of those that its daemon has.")
    version: Whole = Field(description="Of this format.")
    edgetune: str = Field(description="The device's edgetune.")
    kind: str = Field("", description="What kind of device it is, such as Raspberry Pi 5, aarch64.")
    base: str = Field("", description="The name of its model.")
    active: str = Field("", description="The adapter that answers there; empty: none.")
    number: Whole = Field(0, description="Rises with each report.")
    signature: str = Field("", max_length=128, description="Where devices join, of all other fields by the device's "
                                                           "key; empty: none.")


class MemberObject(Answer):
    """A device that has asked to join."""

    device: str = Field(description="Its name.")
    key: str = Field(description="Its public Ed25519 key; a person compares the first digits.")
    state: Literal["waiting", "approved", "revoked"] = Field(description="Only approved ones take part.")
    asked_at: Time
    decided_at: int = Field(description="When it was approved or revoked; 0: not yet.")
    rotated_at: int = Field(description="When it changed its key; 0: never.")
    version: int = Field(description="Of this format.")
    edgetune: str = Field(description="The edgetune that wrote it.")
    key_before: str = Field(description="The Ed25519 key before; empty: none.")
    rotated_in: int = Field(description="The round in which the key before still counts; 0: in none.")


class MemberList(Answer):
    """All devices that have asked to join."""

    object: Literal["list"] = "list"
    joined: bool = Field(description="Whether only devices that joined take part.")
    data: list[MemberObject] = Field(description="The devices, by name.")
    unreadable: list[str] = Field(description="Why files of others could not be read.")


class InviteRequest(Body):
    """Options of a code."""

    seconds: Whole = Field(SECONDS, ge=1, le=MOST_SECONDS, description="Until it expires.")


class InviteObject(Answer):
    """A code for one device."""

    code: str = Field(description="It is shown once; the daemon keeps its hash.")
    expires_at: Time
    proxied: bool = Field(description="Whether the request came through the trusted proxy, whose address is only for "
                                      "people: devices need another.")


class JoinRequest(Body):
    """A device's request to join."""

    code: str = Field(max_length=64, description="The one-time code.")
    device: str = Field(description="The name that it wants.")
    key: str = Field(description=f"Its public Ed25519 key: {PUBLIC}")


class RotateRequest(Body):
    """A new key of a device, which signs the request with the old one."""

    key: str = Field(description=f"Its new public Ed25519 key: {PUBLIC}")


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
