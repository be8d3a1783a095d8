"""Seconds from SIGTERM to exit on a real model, at random moments: `python stop.py MODEL DATA.txt`.

Trains MODEL at 4 x 256 tokens a step, sends the signal at a random moment of the steps, and wants exit code 75; the run
goes on from its checkpoint each time. Then the same while the held-out loss is measured, which comes first. CPU seconds
are those of all threads from the signal on: far below the seconds, the machine was busy with other things.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path


def stop(command: list[str], out: Path, after: float) -> tuple[float, float]:
    """Seconds, and CPU seconds, from the signal to the end of the process."""
    resume = ["--resume"] if out.exists() else []
    process = subprocess.Popen([*command, "-o", str(out), *resume], stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                               text=True)
    assert process.stdout is not None
    while line := process.stdout.readline():
        if line.startswith("training"):
            break
    time.sleep(after)
    fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
    before = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    began = time.monotonic()
    process.send_signal(signal.SIGTERM)
    rest = process.stdout.read()
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 75, line + rest
    return time.monotonic() - began, used.ru_utime + used.ru_stime - before


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("data")
    parser.add_argument("--times", type=int, default=20)
    parser.add_argument("--length", default="256")
    parser.add_argument("--batch", default="4")
    parser.add_argument("--option", action="append", default=[], help="another of edgetune train's")
    args = parser.parse_args()
    command = [sys.executable, "-m", "edgetune", "train", args.model, args.data, "--max-length", args.length,
               "--batch-size", args.batch, "--steps", "1000", *args.option]
    rng = random.Random(0)
    with tempfile.TemporaryDirectory() as place:
        for what, more in (("in a step", []), ("while measuring", ["--eval", args.data])):
            took = [stop([*command, *more], Path(place) / what, rng.uniform(0, 12)) for _ in range(args.times)]
            seconds = [wall for wall, _ in took]
            print(f"{args.times} stops {what}: median {statistics.median(seconds):.2f} s, longest {max(seconds):.2f} s "
                  f"(CPU {max(took)[1]:.2f} s; most CPU {max(cpu for _, cpu in took):.2f} s)")
