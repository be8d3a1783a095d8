"""Very many pieces of feedback: seconds to add them, until their job trains and to its end, and memory.

A daemon of minilm, as `edgetune pull minilm` leaves it, gets corrections of questions with 20 labels, which differ by a
number, and learns all of them by one job. Its budget is --memory MiB. Exits with 1 if a piece is neither learned nor
held out, if the daemon is not well, or if the daemon and the process that trains together took more than the budget.
"""

import argparse
import json
import tempfile
import time
from itertools import pairwise

from lab.common import MIB, Memory, add, end_with

from edgetune.daemon.options import DaemonConfig
from edgetune.daemon.service import Service
from edgetune.machine.policy import Policy

ROOMS = ("kitchen", "hall", "bath", "cellar", "garden")
DEEDS = ("turn on", "turn off", "dim", "count")


def correction(number: int) -> tuple[str, str]:
    """A question and its label; 400 of each 2,000 are held out."""
    deed, room = DEEDS[number % 4], ROOMS[number // 4 % 5]
    return f"{deed} lamp {number} in the {room}", f"{deed} {room}".replace(" ", "_")


def options(parser: argparse.ArgumentParser) -> None:
    add(parser, pieces=100_000, memory=1000)


def main(args: argparse.Namespace) -> None:
    tree = Memory()
    with tempfile.TemporaryDirectory() as state:
        config = DaemonConfig(state=state, memory=f"{args.memory}M", feedback_rows=4 * args.pieces, feedback_size=1024)
        with Service("minilm", config, Policy(govern=False)) as service:
            tree.start()
            marks = [time.monotonic()]
            for number in range(args.pieces):
                question, label = correction(number)
                service.feedback.add(prompt=question, answer="", correction=label)
                if (number + 1) % 10_000 == 0:
                    print(f"{number + 1} pieces after {time.monotonic() - marks[0]:.0f} s, {tree.most / MIB:.0f} MiB",
                          flush=True)
            marks.append(time.monotonic())
            id = service.learner.begin().id
            marks.append(time.monotonic())
            while service.jobs.get(id).trained_tokens is None and service.jobs.get(id).finished_at is None:
                time.sleep(0.2)
            job = service.jobs.wait(id)
            marks.append(time.monotonic())
            tree.ended.set()
            counts = service.feedback.counts()
            health = service.health()
            answer = service.generate("turn off lamp 7 in the hall").text()
    add, begin, learn = (after - before for before, after in pairwise(marks))
    print(json.dumps({"pieces": args.pieces, "add_seconds": add, "begin_seconds": begin, "learn_seconds": learn,
                      "most_mib": tree.most / MIB, "job": job.status, "error": job.error,
                      "reason": (job.verdict or {}).get("reason"), "counts": counts}))
    end_with({f"the job: {job.status}": job.status == "succeeded",
              f"all are kept: {counts}": sum(counts.values()) - counts["withdrawn"] >= args.pieces,
              f"health: {health['status']}": health["status"] == "ok",
              f"answers: {answer}": bool(answer),
              f"most memory: {tree.most / MIB:.0f} MiB of {args.memory}": tree.most <= args.memory * MIB})
