"""Devices that sum in secret: what each of them learns, and whether a sum is that of their open answers."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from json_lines import write_lines
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from edgetune.adapters.store import open_adapter
from edgetune.disk import sha256
from edgetune.errors import FormatError
from edgetune.fleet.carriers.folder import Lead, Member
from edgetune.fleet.carriers.places import Place, newest
from edgetune.fleet.carriers.secret_part import SecretPart
from edgetune.fleet.joining.cards import cards_of
from edgetune.fleet.options import FleetOptions
from edgetune.fleet.rounds.making import make_task
from edgetune.fleet.rounds.task import Secret, open_task
from edgetune.fleet.secret.files import open_masked, open_request, open_revealed
from edgetune.fleet.secret.fixed_point import LIMIT, FixedPoint
from edgetune.fleet.secret.key import make_key, write_private
from edgetune.fleet.secret.masks import total
from edgetune.fleet.secret.round import MOST_TOKENS, circle_of
from edgetune.formats.bundle import Bundle
from edgetune.training.callbacks import RunCallbacks
from edgetune.training.config import TrainConfig

CONFIG = TrainConfig(rank=2, lr=1e-2, epochs=1.0, batch_size=4, max_length=64, anchors=0)
OPTIONS = FleetOptions(aggregation="frozen-a", clip=0.0, refuse=0.0)
CALLS = RunCallbacks()
DEVICES = "abcd"
Learned = dict[str, tuple[dict[str, NDArray[np.float16]], int]]


def learn(bundle: Bundle, work: Path) -> tuple[Learned, dict[str, Path]]:
    """What each device would answer in the open to the task of round 1: its arrays and tokens, by name; its rows."""
    make_task(bundle, work / "round-0001" / "task", CONFIG, OPTIONS)
    rows = {name: write_lines(work / f"{name}.jsonl", [{"prompt": f"say {name} {i}", "completion": name * 2}
                                                       for i in range(8 + 2 * DEVICES.index(name))])
            for name in DEVICES}
    found: Learned = {}
    for name in DEVICES:
        Member(work, bundle, rows[name], name, work / "work", "none", 0, None, None, {"threads": 1}).answer(CALLS)
        answer = newest(work).answers / name
        facts = json.loads((answer / "answer.json").read_text())
        found[name] = (load_file(answer / "update.safetensors"), facts["tokens"])
    return found, rows


class Fleet:
    """A folder with devices that have published their keys, of which some sign."""

    def __init__(self, bundle: Bundle, rows: dict[str, Path], folder: Path, signing: Sequence[str] = ()) -> None:
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
        self.bundle = bundle
        self.folder = folder / "shared"
        self.folder.mkdir(parents=True)
        self.said: dict[str, list[str]] = {name: [] for name in DEVICES}
        self.members: dict[str, Member] = {}
        for name in DEVICES:
            make_key(folder / f"{name}.key")
            if name in signing:
                write_private(folder / f"{name}.sign", Ed25519PrivateKey.generate())
            self.members[name] = self.member(name, rows, folder, folder / f"{name}.sign" if name in signing else None)

    def member(self, name: str, rows: dict[str, Path], folder: Path, sign: Path | None,
               peers: Path | None = None) -> Member:
        part = SecretPart(folder / f"{name}.key", True, peers, sign, self.said[name].append)
        return Member(self.folder, self.bundle, rows[name], name, folder / f"work-{name}", "none", 0, None, sign,
                      {"threads": 1}, part)

    def begin(self, threshold: int | None = None) -> None:
        for member in self.members.values():
            with pytest.raises(FormatError, match="holds no round-0001/task"):
                member.answer(CALLS)
        secret = Secret.of(cards_of(self.folder)[0], threshold)
        make_task(self.bundle, self.folder / "round-0001" / "task", CONFIG, OPTIONS, secret=secret)

    def lead(self, seconds: float = 1e9, devices: int | None = None) -> Lead:
        """A lead that has just been started again."""
        return Lead(self.folder, self.bundle, devices, seconds, None)

    def answer(self, names: str) -> None:
        for name in names:
            part = self.members[name].answer(CALLS)
            assert (part.facts is not None, part.is_over) == (True, False)
            assert self.members[name].answer(CALLS) is None

    def reveal(self, names: str) -> None:
        for name in names:
            part = self.members[name].answer(CALLS)
            assert (part.facts, part.is_over) == (None, True)
            assert self.members[name].answer(CALLS) is None


def check_sum(folder: Path, bundle: Bundle, learned: Learned, names: str) -> None:
    """The sum of round 1 is that of these devices' open answers, exactly as whole numbers. The next pairs are their
    weighted mean, but for a step of the fixed point for each, and float16.
    """
    place = Place(folder, 1)
    task = open_task(place.task, bundle)
    circle = circle_of(task)
    request = open_request(place.request, task, circle)
    assert sorted(circle.names[number] for number in request.answered) == sorted(names)
    masked = {facts.number: sent for name in names
              for facts, sent, _ in [open_masked(place.answers / name, task, circle)]}
    revealed = {facts.number: shares for each in place.revealed_folders()
                for facts, shares in [open_revealed(each, task, circle, request)]}
    summed, _ = total(circle, masked, revealed)
    point = FixedPoint(LIMIT, len(circle.keys))
    order = [f"{name}.{task.half}" for name in task.pairs]
    plain = sum(point.encode(np.concatenate([learned[name][0][each].astype(np.float32).reshape(-1) for each in order]),
                             learned[name][1] / MOST_TOKENS) for name in names)
    assert np.array_equal(summed, plain)
    tokens = sum(learned[name][1] for name in names)
    step = len(names) * LIMIT / point.levels * MOST_TOKENS / tokens
    for name, pair in open_adapter(Place(folder, 2).task / "adapter", bundle.gguf).pairs.items():
        change = sum(learned[each][0][f"{name}.b"].astype(np.float64) * learned[each][1] for each in names) / tokens
        assert 0 < np.abs(change).max() < LIMIT
        assert np.abs(pair.b - change).max() <= step + np.abs(change).max() * 2**-11


def changed(folder: Path, name: str, **arrays: Any) -> None:
    """Replaces arrays of a folder, by functions of what they are; its facts then fit."""
    facts = json.loads((folder / f"{name}.json").read_text())
    found = load_file(folder / f"{name}.safetensors")
    for each, change in arrays.items():
        found[each] = change(found[each].copy())
    save_file(found, folder / f"{name}.safetensors")
    (folder / f"{name}.json").write_text(json.dumps({**facts, "file": sha256(folder / f"{name}.safetensors")}))
