"""Very many pieces of feedback: seconds to add them, until their job trains and to its end, and memory.

    python tests/proofs/pieces.py [--pieces 100000] [--memory 1000]

A daemon of minilm, as `edgetune pull minilm` leaves it, gets corrections of questions with 20 labels, which differ by a
number, and learns all of them by one job. Its budget is --memory MiB. Exits with 1 if a piece is neither learned nor
held out, if the daemon is not well, or if the daemon and the process that trains together took more than the budget.
"""

import argparse
import json
import sys
import tempfile
import threading
import time
from contextlib import suppress
from itertools import pairwise
from pathlib import Path

import psutil

sys.path.insert(0, str(Path(__file__).parents[1]))

from peaks import together
from proofs.compared import end_with

from edgetune.daemon.options import DaemonConfig
from edgetune.daemon.service import Service
from edgetune.machine.policy import Policy

MIB = 2**20
ROOMS = ("kitchen", "hall", "bath", "cellar", "garden")
DEEDS = ("turn on", "turn off", "dim", "count")


class Tree(threading.Thread):
    """The memory of this process and its children, ten times a second. most: bytes, shared pages counted once."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.most = 0
        self.ended = threading.Event()

    def run(self) -> None:
        me = psutil.Process()
        while not self.ended.wait(0.1):
            with suppress(psutil.Error):  # one has ended meanwhile
                self.most = max(self.most, together(me))


def correction(number: int) -> tuple[str, str]:
    """A question and its label; 400 of each 2,000 are held out."""
    deed, room = DEEDS[number % 4], ROOMS[number // 4 % 5]
    return f"{deed} lamp {number} in the {room}", f"{deed} {room}".replace(" ", "_")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pieces", type=int, default=100_000)
    parser.add_argument("--memory", type=int, default=1000, help="MiB")
    args = parser.parse_args()
    tree = Tree()
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


if __name__ == "__main__":
    main()
