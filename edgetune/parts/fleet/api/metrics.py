"""What a fleet adds to /metrics."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from prometheus_client import Metric

from ....daemon.api.metrics import family, gauge
from ..privacy import spent
from ..rollout.rings import STATUSES
from ..status import status_of


def metrics_of(folder: Path) -> Iterator[Metric]:
    """Yields the metrics of the fleet in a folder."""
    found = status_of(folder, outcomes=0)
    rollout, rounds = found.rollout, found.rounds
    last = rounds.records[-1] if rounds and rounds.records else None
    yield family("fleet_devices", "Devices by their outcome in the newest roll-out.", "outcome", found.counts())
    yield family("fleet_rollout", "1: the status of the newest roll-out.", "status",
                 {status: int(status == rollout.status) for status in STATUSES} if rollout else {})
    yield gauge("fleet_ring", "The newest ring that has begun, from 1 on.", rollout and rollout.ring)
    yield gauge("fleet_rings", "Rings of the newest roll-out.", rollout and len(rollout.rings))
    yield gauge("fleet_round", "The round that runs.", rounds and rounds.number)
    yield gauge("fleet_answers", "Answers to it that have arrived.", rounds and len(rounds.arrived or []))
    yield gauge("fleet_counted", "Answers that counted in the round before.", last and last.devices)
    yield gauge("fleet_left_out", "Answers to it that were left out.", last and last.left_out)
    for name in ("before", "after"):
        yield gauge(f"fleet_loss_{name}", f"Mean loss on the devices' held-out rows {name} that round.",
                     last and getattr(last, f"loss_{name}"))
    noise = spent(rounds.records) if rounds else None
    totals = {"answer": noise.answer.total, "sum": noise.sum.total} if noise else {}
    yield family("fleet_epsilon", "Of the noise of all rounds, against whoever sees answers, or the sums alone.",
                 "against", {whom: epsilon for whom, epsilon in totals.items() if epsilon is not None})
    yield family("fleet_members", "Devices that asked to join, by state.", "state", found.members or {})
    yield gauge("fleet_unreadable", "Parts of the folder that cannot be read.", len(found.unreadable))
