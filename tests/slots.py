"""Devices whose daemon serves a slot, as a process that a command restarts, and bases for them."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from commands import run
from daemons import PATIENCE
from services import same_holdout
from tiny import write_tiny

from edgetune.daemon.client import Client
from edgetune.errors import UnansweredError
from edgetune.formats.bundle import open_bundle
from edgetune.formats.slot import Slot
from edgetune.parts.fleet.bases.slot import make_slot
from edgetune.parts.fleet.rollout.daemons import About, ServedSlot
from edgetune.parts.fleet.rollout.folder import begin
from edgetune.parts.fleet.rollout.reports import read_device, write_device
from edgetune.parts.fleet.rollout.rings import RingPlan

EVALUATION = {"required": "better", "if_none": "refuse", "probation": 60, "bad_ratings": 3}

RESTART = """\
import os, signal, subprocess, sys, time
from pathlib import Path
folder = Path(__file__).parent
pid = folder / "pid"
if pid.exists():
    old = int(pid.read_text())
    try:
        os.kill(old, signal.SIGTERM)
        for _ in range(600):
            os.kill(old, 0)
            time.sleep(0.05)
    except ProcessLookupError:
        pass
log = (folder / "log").open("a")
before = log.tell()
started = subprocess.Popen(%r, cwd=folder, stdout=log, stderr=log, stdin=subprocess.DEVNULL, start_new_session=True)
pid.write_text(str(started.pid))
while started.poll() is None:  # as systemctl waits
    if "answers at" in (folder / "log").read_text()[before:]:
        sys.exit(0)
    time.sleep(0.1)
sys.exit(3)
"""


@dataclass
class SlotDevice:
    folder: Path
    url: str

    @property
    def slot(self) -> Path:
        return self.folder / "home"

    @property
    def restart(self) -> str:
        return f"{sys.executable} {self.folder / 'restart.py'}"

    def options(self, *more: object) -> list[object]:
        return ["--url", self.url, "--base-slot", self.slot, "--restart", self.restart, "--start-wait", "4m", *more]

    def look(self, fleet: object, *more: object, code: int = 0) -> Any:
        """What `fleet apply` says, as JSON; the sentence of an error where it ends with another code."""
        said = run("fleet", "apply", fleet, "--device", "kitchen", *self.options(*more), "--json", code=code)
        return said if code else json.loads(said)

    def client(self) -> Client:
        return Client(self.url)

    def model(self) -> str:
        """The fingerprint of its base, once it answers."""
        end = time.monotonic() + PATIENCE
        with self.client() as client:
            while True:
                try:
                    return str(client.get("/v1/device")["fingerprint"])
                except UnansweredError:
                    assert time.monotonic() < end, (self.folder / "log").read_text()
                    time.sleep(0.1)

    def answer(self) -> str:
        with self.client() as client:
            said = client.post("/v1/chat/completions", {"messages": [{"role": "user", "content": "turn the light 99"}],
                                                        "max_tokens": 4, "temperature": 0})
        return str(said["choices"][0]["message"]["content"])

    def kill(self) -> None:
        with suppress(FileNotFoundError, ProcessLookupError):
            os.kill(int((self.folder / "pid").read_text()), signal.SIGKILL)


@contextmanager
def slot_device(base: Path, folder: Path, answer: str = "on", **environment: str) -> Iterator[SlotDevice]:
    """A daemon on a slot with this base, where this answer is right, by 30 corrections, of which 6 are held out."""
    folder.mkdir(parents=True)
    same_holdout(folder / "state")
    (folder / "canary.txt").write_text("turn the light on, turn the light on")
    make_slot(base, folder / "home")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "edgetune", "serve", folder / "home", "--state", folder / "state", "--threads",
               "1", "--port", port, "--context", "512", "--canary", folder / "canary.txt", "--canary-rise", "off",
               "--max-kl", "off", "--no-recall"]
    (folder / "restart.py").write_text(RESTART % [str(word) for word in command])
    device = SlotDevice(folder, f"http://127.0.0.1:{port}")
    try:
        subprocess.run([sys.executable, folder / "restart.py"], check=True, env={**os.environ, **environment})
        device.model()
        with device.client() as client:
            for i in range(30 if answer else 0):
                client.post("/v1/feedback", {"messages": [{"role": "user", "content": f"turn the light {i}"}],
                                             "answer": "", "correction": answer})
        yield device
    finally:
        device.kill()


def begun_rollout(folder: Path) -> tuple[Path, str, str]:
    """Makes FOLDER/whole, to copy: a fleet, its roll-out of a base to one device, and this device's slot. Returns it,
    and the fingerprints of the base before and of the new one.
    """
    for name, seed in (("old", 0), ("new", 1)):
        write_tiny(folder / f"{name}.gguf", seed=seed, n_blocks=1)
    slot = make_slot(folder / "old.gguf", folder / "whole" / "home")
    fleet = folder / "whole" / "fleet"
    write_device(fleet, read_device(fleet, "kitchen"))
    begin(fleet, folder / "new.gguf", RingPlan(("all",)), EVALUATION, 0)
    return folder / "whole", open_bundle(slot.path).fingerprint, open_bundle(folder / "new.gguf").fingerprint


class SimulatedDaemon:
    """One that opens the slot when it starts, and finds every base better."""

    def __init__(self, slot: Path) -> None:
        self.path = slot
        self.start()

    def start(self) -> None:
        self.base = open_bundle(self.path).fingerprint
        self.side = Slot(self.path).side

    def restart(self) -> None:
        self.start()

    def about(self) -> About:
        return About(self.base, "home", "", "x86_64")

    def slot(self) -> ServedSlot:
        return ServedSlot(str(self.path.resolve()), 0)

    def evaluate_base(self, _options: Any) -> dict[str, Any]:
        return {"passed": True, "reason": "because", "wins": 6}
