"""A disk of 1 MiB that fills up, then one that turns read-only, under a run: `unshare -rm python mounted.py FOLDER`.

FOLDER gets a tmpfs, so this must run in a mount namespace of its own. Each time the run must end in one sentence, keep
its checkpoints, leave no half file, and go on to the bytes of an undisturbed run once the disk is well again.
"""

import subprocess
import sys
from contextlib import suppress
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from durable import check_metrics, go, refused
from tiny import write_tiny

from edgetune.formats.bundle import open_bundle
from edgetune.training import checkpoint
from edgetune.training.callbacks import RunCallbacks


def fill(place):
    """Take all room, to the last page."""
    with suppress(OSError), (place / "filler").open("ab", buffering=0) as file:
        while file.write(bytes(4096)):
            pass


def mounted(place, size):
    """A new disk of this size in the folder `place`."""
    disk = place / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", disk], check=True)
    return disk


def main(place):
    bundle = open_bundle(write_tiny(place / "tiny.gguf", formats="Q8_0"))
    wanted = go(bundle, place / "whole")
    disk = mounted(place, "1M")
    ills = {"full": (lambda: fill(disk), (disk / "filler").unlink),
            "read-only": (lambda: subprocess.run(["mount", "-o", "remount,ro", disk], check=True),
                          lambda: subprocess.run(["mount", "-o", "remount,rw", disk], check=True))}
    for ill, (befall, heal) in ills.items():
        out = disk / ill
        print(refused(bundle, out, "cannot write", callbacks=RunCallbacks(
            lambda e, befall=befall: befall() if e.get("step") == 4 else None)))
        names = sorted(path.name for path in out.iterdir())
        assert names == ["checkpoint-2", "checkpoint-3", "metrics.jsonl", "run.json"], names
        assert checkpoint.newest(out)[1] == []
        heal()
        assert go(bundle, out, resume=True) == wanted
        check_metrics(out)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
