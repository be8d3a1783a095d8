"""Where tests write: into memory where that is plenty. They sync thousands of small files, for which a disk takes a
fifth of the suite's time; what they compare is what a process finds after another one, which a disk changes in nothing.
"""

import os
import shutil
from pathlib import Path

import psutil

FOLDER = Path("/dev/shm")
FREE = 8 << 30  # bytes, of FOLDER and of memory; a run takes 2 GiB of the first, and 4 of the second


def write_into_memory() -> None:
    """Names the folder below which pytest makes those of its runs, unless the environment does."""
    if "PYTEST_DEBUG_TEMPROOT" in os.environ or not os.access(FOLDER, os.W_OK):
        return
    if min(shutil.disk_usage(FOLDER).free, psutil.virtual_memory().available) >= FREE:
        os.environ["PYTEST_DEBUG_TEMPROOT"] = str(FOLDER)
