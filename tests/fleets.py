"""The folder of a fleet with rounds, reports and a roll-out, made as the commands make it but without a training."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np

from edgetune.formats.bundle import Bundle
from edgetune.parts.fleet.rollout import rings
from edgetune.parts.fleet.rollout.folder import begin, step
from edgetune.parts.fleet.rollout.reports import DeviceFile, write_device
from edgetune.parts.fleet.rollout.rings import RingPlan
from edgetune.parts.fleet.rounds.answer import VERSION, AnswerFacts, write_answer
from edgetune.parts.fleet.rounds.lead import make_task, write_next
from edgetune.parts.fleet.rounds.options import RoundOptions
from edgetune.parts.fleet.rounds.task import open_task
from edgetune.training.config import TrainConfig

KINDS = ("Raspberry Pi 5, aarch64", "x86_64")
EVALUATION = {"required": "better", "if_none": "refuse", "probation": 0, "bad_ratings": 3}


def write_rounds(bundle: Bundle, folder: Path, rounds: int, noise: float = 0.0) -> Path:
    """Rounds that have ended, each with answers of three devices and one that is left out; returns the last adapter.
    Losses fall by a tenth each round, more on boards than on others. With noise no losses are said.
    """
    make_task(bundle, folder / "round-0001" / "task", TrainConfig(rank=2, anchors=0), RoundOptions(
        aggregation="frozen-a", quorum=1, noise=noise))
    for number in range(1, rounds + 1):
        place = folder / f"round-{number:04}"
        task = open_task(place / "task", bundle)
        for i in range(3):
            generator = np.random.default_rng([number, i])
            arrays = {f"{name}.b": generator.normal(0, 1e-2, pair.b.shape).astype(np.float16)
                      for name, pair in task.pairs.items()}
            loss = 2.0 * 0.9 ** number + 0.2 * (i > 0)
            said: dict[str, Any] = {"held_rows": 2, "loss_before": loss / 0.9, "loss_after": loss}
            if noise:
                said = {"noise": noise, "noise_norm": 1.0}
            write_answer(place / "answers" / f"device{i}", AnswerFacts(
                VERSION, task.name, f"device{i}", task.base.fingerprint, "", "b", 2, 8, 1 if noise else 80 + i, 1.0,
                kind=KINDS[i > 0], **said), arrays, None)
        (place / "answers" / "late").mkdir()
        (place / "answers" / "late" / "answer.json").write_text("{}")
        write_next(task, bundle, sorted((place / "answers").iterdir()), folder / f"round-{number + 1:04}" / "task")
    return folder / f"round-{rounds + 1:04}" / "task" / "adapter"


def report(folder: Path, device: str, **facts: object) -> None:
    """A device's file, as it writes or sends it."""
    known = {"at": int(time.time()) - 60, "base": "tiny", "model": "sha256:0", "kind": KINDS[0], **facts}
    write_device(folder, DeviceFile(device, **known))  # type: ignore[arg-type]


def write_fleet(bundle: Bundle, folder: Path, *, key: Path | None = None, devices: int = 6) -> Path:
    """Three rounds, and a roll-out to devices `kitchen` and `d1`, ..., whose second ring runs: one device succeeded,
    one was refused it. Returns the folder.
    """
    adapter = write_rounds(bundle, folder, 3)
    names = ["kitchen", *(f"d{i}" for i in range(1, devices))]
    for name in names:
        report(folder, name)
    plan = RingPlan(("1", "3", "all"), success=0.3, error=1.0)
    order = begin(folder, adapter, plan, EVALUATION, int(time.time()), first=names, key=key)
    rollout = order.facts.rollout
    report(folder, "kitchen", rollout=rollout, execution=rings.CLOSED, finished=rings.SUCCESS, active="ft:tiny:fleet:1",
           reason="6 of 6 examples are answered exactly")
    step(folder, int(time.time()), key=key)
    report(folder, "d1", rollout=rollout, execution=rings.REJECTED, kind=KINDS[1],
           reason="not surely better: 0 of 6 more")
    return folder


def signing_key(path: Path) -> Path:
    """Writes a new private Ed25519 key; its public one is next to it, as PATH.pub."""
    from cryptography.hazmat.primitives import serialization as forms
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    key = Ed25519PrivateKey.generate()
    path.write_bytes(key.private_bytes(forms.Encoding.PEM, forms.PrivateFormat.PKCS8, forms.NoEncryption()))
    path.with_name(f"{path.name}.pub").write_bytes(key.public_key().public_bytes(forms.Encoding.OpenSSH,
                                                                                 forms.PublicFormat.OpenSSH))
    return path
