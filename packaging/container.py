"""The container file of docs/how-to/install.md without a container: `make installs`.

Its RUN commands in a fresh root of the system that it begins from, with Python's packages from the network as in a
build, then its CMD, until the daemon says that it is well. Layers, volumes and ports are not tried. Needs root and
debootstrap; as installs.py, beside whose roots it keeps its own.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import sys
import time
from pathlib import Path

from installs import CACHE, SYSTEMS, TOP, Trial

WELL = """
until python3 -c "import urllib.request as r; print(r.urlopen('http://127.0.0.1:8642/healthz').read().decode())"
do sleep 1; kill -0 $daemon || exit 1; done 2> /errors
"""


def instructions(page: str) -> list[tuple[str, str]]:
    """(instruction, the rest of its line) of the page's container file."""
    found = re.search(r"```dockerfile\n(.*?)```", page, re.S)
    lines = (found[1] if found else "").replace("\\\n", " ").splitlines()
    return [(line.split(" ", 1)[0], line.split(" ", 1)[1].strip()) for line in lines if line.strip()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dist", type=Path, default=TOP / "dist", help="Folder of wheels.")
    parser.add_argument("--cache", type=Path, default=CACHE)
    args = parser.parse_args()
    if os.getuid():
        sys.exit("container.py needs root, for debootstrap and mounts: sudo make installs")
    steps = instructions((TOP / "docs" / "how-to" / "install.md").read_text("utf-8"))
    system = dict(steps)["FROM"].removesuffix("-slim").replace(":", "")
    if system not in SYSTEMS:
        sys.exit(f"the container file begins from {system}: there are {', '.join(SYSTEMS)}")
    trial = Trial(args.cache.resolve(), system, os.uname().machine, "container")
    trial.make_root()
    trial.clear()
    began = time.monotonic()
    exports = ""
    for instruction, rest in steps:
        if instruction == "ENV":
            exports += f"export {rest}; "
        elif instruction == "RUN":
            command = re.sub(r"^--mount=type=bind,source=dist,target=/dist ", "", rest)
            trial.inside(exports + command, args.dist.resolve(), network=True)
            print(f"{time.monotonic() - began:5.0f} s  {command}", flush=True)
    wanted = dict(steps)
    daemon = shlex.join(json.loads(wanted["CMD"]))
    prepared = f"{exports}mkdir {wanted['VOLUME']}; edgetune service key trial --key-file /data/keys > /key"
    said = trial.inside(f"{prepared}\n{daemon} > /log 2>&1 & daemon=$!; {WELL} kill $daemon; wait $daemon",
                        args.dist.resolve())
    print(f"{time.monotonic() - began:5.0f} s  {daemon}: {said.strip()}")


if __name__ == "__main__":
    main()
