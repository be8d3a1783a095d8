"""A folder of work next to an output, by which the same command continues until the output is there.

A kill may come after the output has its name, and before the work is gone. So the work says before that which output it
has made, and the same command, which is refused then, removes what is left of it.
"""

from __future__ import annotations

import shutil
from contextlib import suppress
from pathlib import Path

from ..disk import refuse_existing

MADE = "made"  # the file that says so


def finish(work: Path, output: Path) -> None:
    """Says that a folder of work has made `output`, a file or a folder that changes nothing more but its name."""
    (work / MADE).write_text(_identity(output))


def remove(work: Path) -> None:
    """Removes a folder of work, and at last what it says of its output: a kill may come in between."""
    with suppress(OSError):
        for path in work.iterdir():
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            elif path.name != MADE:
                path.unlink(missing_ok=True)
    shutil.rmtree(work, ignore_errors=True)


def refuse_made(out: Path, work: Path) -> None:
    """Raises UsageError if `out` exists; before that it removes what is left of the work that made it."""
    with suppress(OSError):
        made = _identity(out)
        if not any(work.iterdir()) or (work / MADE).read_text() == made:
            remove(work)
    refuse_existing(out)


def _identity(output: Path) -> str:
    """What another name does not change, and no other output has."""
    about = output.stat()
    return f"{about.st_ino} {about.st_mtime_ns}"
