"""Roll-outs to 50 simulated devices: each is a real daemon on a tiny model, with its own feedback, questions and gate.

On four of five devices "on" is the right answer, on the others "off", and the latter have an adapter that says so. A
tenth of the devices vanish: half of them at once, half after the adapter was added. Time is simulated, in steps of six
hours. While a probation runs, a user asks four questions in each step and rates the answers by what is right there. The
roll-outs:

    good        says "on" where everybody's answer is "on": it is to reach all
    fifth       says "on", which is wrong for a fifth: their gates refuse it, and the roll-out pauses
    all         says neither: the gate of the first device refuses it
    fifth, unseen, and all, unseen: the same without held-out questions, where unrelated text alone decides; the
                ratings of users are to find what is bad, and to stop the roll-out

Where all devices of a ring are silent, a person begins the next one. After each, held-out questions are put to every
device whose active adapter changed, and to what was active before. Then the roll-out is undone. Exits with 1 unless
every roll-out ends as said, no device that is reached gives fewer right answers than before, and undoing brings every
device back to what was active before.
"""

from __future__ import annotations

import argparse
import json
import logging
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import httpx
from daemons import CHAT, Daemon, daemon
from lab.common import add
from learners import TRAIN
from thread_workers import ThreadWorker
from tiny import write_tiny

import edgetune
from edgetune.daemon import probation
from edgetune.daemon.client import Client
from edgetune.daemon.learning import feedback as feedback_module
from edgetune.daemon.state import adapters as adapters_module
from edgetune.parts.fleet.rollout import rings
from edgetune.parts.fleet.rollout.apply import apply
from edgetune.parts.fleet.rollout.daemons import DaemonByHttp
from edgetune.parts.fleet.rollout.folder import begin, newest_order, step
from edgetune.parts.fleet.rollout.reports import read_device, read_devices
from edgetune.parts.fleet.rollout.rings import RingPlan, RolloutState

HOUR = 3600
STEP = 6 * HOUR
PROBATION = 24 * HOUR
PLAN = RingPlan(("1", "10%", "all"), success=0.95, error=0.02, quorum=0.5, wait=3 * 24 * HOUR)
ASKED = 4  # questions of a user in each step
LEARNED = 30  # corrections on each device: six of them are held out
BEGUN = 1_800_000_000
ENDS = {"good": rings.FINISHED, "fifth": rings.PAUSED, "all": rings.PAUSED, "fifth, unseen": rings.STOPPED,
        "all, unseen": rings.STOPPED}
T = TypeVar("T")
R = TypeVar("R")
TOGETHER = 8
clock = BEGUN


def messages(number: int, answer: str | None = None) -> list[dict[str, str]]:
    found = [{"role": "user", "content": f"turn the light {number}"}]
    return found if answer is None else [*found, {"role": "assistant", "content": answer}]


class Device:
    """A simulated device. right: the answer to all its questions. numbers: of the questions with feedback."""

    def __init__(self, name: str, folder: Path, model: Path, right: str, numbers: range) -> None:
        self.name = name
        self.folder = folder
        self.model = model
        self.right = right
        self.numbers = numbers
        self.before: str | None = None
        self.exposed = 0  # wrong answers to its user while a probation ran

    @contextmanager
    def running(self) -> Iterator[Daemon]:
        with daemon(self.model, self.folder, TRAIN, start_process=ThreadWorker, context=256, port=0,
                    canary=str(self.model.parent / "canary.txt"), canary_rise="90%") as running:
            yield running

    def make(self, adapters: Path, learns: bool) -> None:
        """Its state: corrections, where it learns, and the adapter "off" where that is right."""
        with self.running() as running:
            for number in self.numbers if learns else ():
                running.service.feedback.add(messages=messages(number), answer="", correction=self.right)
            if self.right == "off":
                running.service.adapters.promote(running.service.add_adapter(adapters / "off").id, "by hand")
            self.before = running.service.adapters.serving

    def look(self, fleet: Path, breaks: bool) -> None:
        """Does what the roll-out asks. breaks: it vanishes when it has added the adapter."""
        with self.running() as running, Client(running.url) as client:
            there = DaemonByHttp(client)
            if breaks:
                there.evaluate = vanish  # type: ignore[method-assign]
            try:
                apply(fleet, self.name, there, clock)
            except KeyboardInterrupt:
                return
            if read_device(fleet, self.name).execution == rings.PROCEEDING:
                self.rate(running)
                apply(fleet, self.name, there, clock)

    def rate(self, running: Daemon) -> None:
        """Lets its user ask and rate, over HTTP."""
        for number in range(ASKED):
            asked = messages(self.numbers.stop + number + clock % 997)
            said = httpx.post(running.url + CHAT, json={"messages": asked, "max_tokens": 4}, timeout=60).json()
            is_right = said["choices"][0]["message"]["content"].strip() == self.right
            self.exposed += not is_right
            httpx.post(running.url + "/v1/feedback", timeout=60, json={
                "completion_id": said["id"], "rating": "up" if is_right else "down"}).raise_for_status()

    def checked(self) -> tuple[str | None, int, int]:
        """(the active adapter, right answers to its questions, those with what was active before)"""
        with self.running() as running:
            service = running.service
            active = service.adapters.serving

            def right(model: str) -> int:
                answers = (service.batcher.submit(service.served.render(messages(number), None, model or None),
                                                  adapter=model or None, max_tokens=4, temperature=0.0).text()
                           for number in self.numbers)
                return sum(answer.strip() == self.right for answer in answers)

            after = right(active or "")
            return active, after, after if active == self.before else right(self.before or "")


def each(things: Sequence[T], does: Callable[[T], R]) -> list[R]:
    """Does it with all of them, some at a time: daemons wait more than they compute."""
    with ThreadPoolExecutor(TOGETHER) as pool:
        return list(pool.map(does, things))


def vanish(*_: object) -> None:
    raise KeyboardInterrupt


def make_adapters(model: Path, folder: Path) -> None:
    for name, answer in (("on", "on"), ("off", "off"), ("neither", "the light is the light")):
        trainer = edgetune.Trainer(model, lr=2e-2, rank=4, steps=60, max_length=96, threads=1, batch_size=4)
        trainer.add([{"messages": messages(number, answer)} for number in range(5000, 5032)])
        trainer.train()
        trainer.save(folder / name)


def simulate(scenario: str, seed: int, count: int, place: Path, model: Path, adapters: Path) -> dict[str, Any]:
    """One roll-out, to its end and back."""
    global clock
    clock = BEGUN
    dice = random.Random(f"{scenario} {seed}")
    off = set(dice.sample(range(count), count // 5)) if scenario.startswith("fifth") else set()
    gone = dice.sample(range(count), count // 10)
    at_once, broken = {*gone[::2]}, {*gone[1::2]}
    fleet = place / "fleet"
    devices = [Device(f"device{i:02d}", place / f"state{i:02d}", model, "off" if i in off else "on",
                      range(100 * i, 100 * i + LEARNED)) for i in range(count)]
    each(devices, lambda device: device.make(adapters, learns="unseen" not in scenario))
    each(devices, lambda device: device.look(fleet, False))
    evaluation = {"required": "better", "if_none": "canary" if "unseen" in scenario else "refuse",
                  "probation": PROBATION, "bad_ratings": 3}
    adapter = adapters / ("neither" if scenario.startswith("all") else "on")
    state = begin(fleet, adapter, PLAN, evaluation, clock).state
    ended_at, resumed = run_until(devices, fleet, state, at_once, broken)
    order, files, _ = step(fleet, clock)
    state = order.state
    reports = {name: file.report for name, file in files.items()}
    found = rings.counts(state.begun, reports)
    checked = each(devices, Device.checked)
    changed = sum(active != device.before for device, (active, _, _) in zip(devices, checked, strict=True))
    worse = [device.name for device, (_, after, before) in zip(devices, checked, strict=True) if after < before]
    better = sum(after > before for _, after, before in checked)
    step(fleet, clock, rings.UNDO)
    each(devices, lambda device: device.look(fleet, False))  # those that vanished come back
    ended = step(fleet, clock)[0].state
    back = sum(active == device.before for device, (active, _, _) in zip(devices, each(devices, Device.checked),
                                                                         strict=True))
    return {"scenario": scenario, "seed": seed, "devices": count, "ring": state.ring + 1, "status": state.status,
            "reason": state.reason, "reached": found.devices, "passed": found.succeeded, "refused": found.refused,
            "failed": found.failed, "open": found.trying, "silent": found.waiting, "changed": changed, "better": better,
            "worse": worse, "exposed": sum(device.exposed for device in devices),
            "hours": (ended_at - BEGUN) / HOUR, "resumed": resumed, "undone": ended.status, "back": back}


def run_until(devices: list[Device], fleet: Path, state: RolloutState, at_once: set[int],
              broken: set[int]) -> tuple[int, int]:
    """Lets time pass until the roll-out is over or a person must decide about refusals. Of a ring whose devices are
    silent, a person begins the next one. Returns the last moment, and how often that was.
    """
    global clock
    resumed = 0
    while state.status == rings.RUNNING:
        files, _ = read_devices(fleet)
        newest = newest_order(fleet)
        assert newest
        looking = []
        for i, device in enumerate(devices):
            own = files[device.name]
            over = own.execution in (rings.CLOSED, rings.REJECTED) and own.rollout == newest.facts.rollout
            vanished = i in at_once or (i in broken and own.execution == rings.DOWNLOADED)
            if newest.state.action(device.name) and not over and not vanished:
                looking.append((device, i in broken))
        each(looking, lambda pair: pair[0].look(fleet, pair[1]))
        order, files, _ = step(fleet, clock)
        found = rings.counts(order.state.rings[order.state.ring], {name: file.report for name, file in files.items()})
        if order.state.status == rings.PAUSED and not (found.refused or found.failed):  # its devices are silent
            order, _, _ = step(fleet, clock, rings.RESUME)
            resumed += 1
        state = order.state
        clock += STEP
    ended = clock
    clock += PROBATION  # for those that run
    files, _ = read_devices(fleet)
    each([device for device in devices if files[device.name].execution == rings.PROCEEDING],
         lambda device: device.look(fleet, False))
    return ended, resumed


def is_right(found: dict[str, Any]) -> bool:
    found_out = found["passed"] == 0 or not found["scenario"].startswith("all")
    return (found["status"] == ENDS[found["scenario"]] and found_out and not found["worse"]
            and found["back"] == found["devices"] and found["undone"] == rings.UNDONE)


def options(parser: argparse.ArgumentParser) -> None:
    add(parser, devices=50, seeds=[0, 1, 2], folder=Path, out=Path)
    parser.add_argument("--only", nargs="*", choices=ENDS, default=[*ENDS])


def main(args: argparse.Namespace) -> None:
    logging.disable(logging.INFO)
    for module in (probation, feedback_module, adapters_module):
        module.now = lambda: clock  # type: ignore[attr-defined]
    with tempfile.TemporaryDirectory(dir=args.folder) as name:
        folder = Path(name)
        model = write_tiny(folder / "tiny.gguf", formats="Q8_0", n_context=256)
        (folder / "canary.txt").write_text("the river begins as a spring under a flat grey stone")
        make_adapters(model, folder / "adapters")
        wrong = 0
        for scenario in args.only:
            for seed in args.seeds:
                began = time.process_time()
                place = folder / "place"
                found = simulate(scenario, seed, args.devices, place, model, folder / "adapters")
                shutil.rmtree(place)
                found["cpu_seconds"] = round(time.process_time() - began, 1)
                found["as_said"] = is_right(found)
                wrong += not found["as_said"]
                print(json.dumps(found), flush=True)
                if args.out:
                    with args.out.open("a") as file:
                        file.write(json.dumps(found) + "\n")
    sys.exit(1 if wrong else 0)
