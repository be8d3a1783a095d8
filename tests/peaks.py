"""The memory of a command with the processes that it starts."""

import contextlib
import subprocess
import sys
import time

import psutil

PROGRAM = """
import atexit, re
from pathlib import Path

def tell():
    print("PEAK", re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1], flush=True)

atexit.register(tell)
from edgetune.__main__ import main
main()
"""  # the kernel's count for a process that has ended would include the memory of pytest, which started it


def peak_of(command):
    """The exit code of a command, the greatest memory that it had, together with processes that it started, and its
    output.
    """
    with subprocess.Popen([sys.executable, "-c", PROGRAM, *map(str, command)], stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT, text=True) as run:
        peak = 0
        while run.poll() is None:
            with contextlib.suppress(psutil.Error):
                peak = max(peak, together(psutil.Process(run.pid)))
            time.sleep(0.01)
        said = run.stdout.read()
    return run.returncode, max(peak, int(said.split("PEAK ")[1]) << 10), said


def together(process):
    """Bytes that a process and its children have, those that several of them have counted once."""
    every = [process, *(child for child in process.children(recursive=True) if child.cmdline() != process.cmdline())]
    found = [one.memory_full_info() for one in every]  # a child with its command line has not begun: it has its pages
    return sum(one.uss for one in found) + max(one.rss - one.uss for one in found)
