"""The wheels of `make wheels` on fresh systems without a compiler: `make installs`.

For each system and architecture: a root by debootstrap with Python alone; edgetune installed from folders of wheels,
without network; commands of extras that are missing, which must say so in a sentence; two steps on the first rows of
the demonstration, with SmolLM2; and an answer with the adapter through llama.cpp. Another architecture than this
machine's is computed by qemu, whose seconds say nothing about a board.

CACHE keeps roots, what was downloaded, and the result of each system, which is not tried again without --again.
Needs root, debootstrap, for Ubuntu ubuntu-keyring, and for another architecture qemu-user. Wheels are needed of these
Pythons: 3.11 for Debian 12, 3.13 for Debian 13, 3.10 for Ubuntu 22.04. MIRROR: another than debootstrap's own.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date
from pathlib import Path
from typing import Any

TOP = Path(__file__).resolve().parents[1]
CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "edgetune-installs"
SYSTEMS = {"debian12": ("Debian 12", "bookworm"), "debian13": ("Debian 13", "trixie"),
           "ubuntu22.04": ("Ubuntu 22.04", "jammy")}
DEBIAN = {"x86_64": "amd64", "aarch64": "arm64"}
INCLUDE = "python3,python3-venv,ca-certificates"
EXTRAS = "demo,hub,daemon"
COMPILERS = ("cc", "gcc", "g++", "c++", "clang", "cmake", "make")
ROWS = "$(echo /venv/lib/python3*/site-packages/edgetune/demo/data/home_train.jsonl)"
SYSTEM = "'Turn the request into a JSON action.'"
MISSING = {"edgetune demo": "demo", "edgetune pull qwen3-0.6b": "hub", "edgetune status": "daemon",
           "edgetune compress a -o b.edge": "host"}
STEPS = (f"edgetune train smollm2 {ROWS} -o /learned --system {SYSTEM} --eval none --no-answers --max-length 64 "
         "--batch-size 1 --steps 2 --json")
# How a kernel that runs programs of its own architecture alone finds qemu; F opens it now, so that roots need none.
AARCH64 = (r":edgetune-aarch64:M::\x7fELF\x02\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00\xb7\x00"
           r":\xff\xff\xff\xff\xff\xff\xff\x00\xff\xff\xff\xff\xff\xff\xff\xff\xfe\xff\xff\xff:/usr/bin/qemu-aarch64:F")
BINFMT = Path("/proc/sys/fs/binfmt_misc")


class Trial:
    """A root that is thrown away: what is written into it is stored beside it."""

    def __init__(self, cache: Path, name: str, machine: str, use: str = "install") -> None:
        self.title, self.suite = SYSTEMS[name]
        self.machine = machine
        self.root = cache / "roots" / f"{name}-{machine}"
        self.house = cache / "wheels" / f"{name}-{machine}"
        self.pip = cache / "pip"
        self.written = cache / "written" / f"{use}-{name}-{machine}"
        self.log = cache / "logs" / f"{name}-{machine}.log"

    def make_root(self) -> None:
        """By debootstrap; for another architecture downloaded and unpacked alone: qemu would configure it for long."""
        if self.root.exists():
            return
        new = self.root.with_suffix(".new")
        shutil.rmtree(new, ignore_errors=True)
        native = self.machine == platform.machine()
        self._run(["debootstrap", *([] if native else ["--foreign"]), f"--arch={DEBIAN[self.machine]}",
                   "--variant=minbase", f"--include={INCLUDE}",
                   *(["--components=main,universe"] if self.title.startswith("Ubuntu") else []), self.suite, str(new),
                   *([os.environ["MIRROR"]] if "MIRROR" in os.environ else [])])
        if not native:
            self._unpack(new)
        new.rename(self.root)

    def _unpack(self, new: Path) -> None:
        """The downloaded packages, and the certificates that pip reads, which configuring would have made."""
        for package in sorted((new / "var/cache/apt/archives").glob("*.deb")):
            self._run(["/bin/sh", "-ec",
                       f"dpkg-deb --fsys-tarfile {package} | tar --keep-directory-symlink -xf - -C {new}"])
        self._run(["/bin/sh", "-ec", f"mkdir -p {new}/etc/ssl/certs; cat {new}/usr/share/ca-certificates/*/*.crt "
                   f"> {new}/etc/ssl/certs/ca-certificates.crt"])

    def clear(self) -> None:
        shutil.rmtree(self.written, ignore_errors=True)
        for folder in (self.house, self.pip, *(self.written / part for part in ("upper", "work", "root"))):
            folder.mkdir(parents=True, exist_ok=True)

    def fill_house(self, dist: Path) -> None:
        """With wheels of what edgetune needs besides those of `dist`, from the network."""
        whole = self.house / "whole"
        if whole.exists():
            return
        pip = "pip wheel -q --use-pep517 --prefer-binary --find-links /dist --wheel-dir /house"
        self.inside(f"{pip} 'edgetune[{EXTRAS}]'", dist, network=True)
        whole.write_text(str(mib(self.house)))
        for ours in dist.glob("*.whl"):
            (self.house / ours.name).unlink(missing_ok=True)

    def downloaded(self) -> float:
        """MiB of all wheels, those of `dist` included."""
        return float((self.house / "whole").read_text())

    def inside(self, command: str, wheels: Path, network: bool = False, check: bool = True) -> str:
        """What a line of shell prints in the root; its errors too where it may fail."""
        root = self.written / "root"
        mounts = [f"mount -t overlay overlay -o lowerdir={self.root},upperdir={self.written}/upper,"
                  f"workdir={self.written}/work {root}",
                  f"mkdir -p {root}/dist {root}/house {root}/root/.cache/pip", f"mount --bind {wheels} {root}/dist",
                  f"mount --bind {self.house} {root}/house", f"mount --bind {self.pip} {root}/root/.cache/pip",
                  f"mount -t proc proc {root}/proc", f"mount --rbind /sys {root}/sys", f"mount --rbind /dev {root}/dev"]
        if network:
            for file in ("/etc/resolv.conf", "/etc/ssl/certs/ca-certificates.crt"):
                mounts.append(f"touch {root}{file}; mount --bind {file} {root}{file}")
        else:
            mounts.append("ip link set lo up")
        outer = "; ".join(["set -e", *mounts, f"exec chroot {root} /bin/dash -c {shlex.quote(command)}"])
        return self._run(["unshare", "--mount", *([] if network else ["--net"]), "/bin/sh", "-c", outer], check=check)

    def _run(self, command: list[str], check: bool = True) -> str:
        kept = {name: value for name, value in os.environ.items() if name.lower().endswith("_proxy")}
        env = {"PATH": "/venv/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/root", "LANG": "C.UTF-8", **kept}
        done = subprocess.run(command, capture_output=True, text=True, env=env, check=False)
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("a") as log:
            log.write(f"$ {command[-1]}\n{done.stdout}{done.stderr}\n")
        if check and done.returncode:
            sys.exit(f"{self.title} on {self.machine}: {command[-1]}\n{(done.stdout + done.stderr)[-3000:]}")
        return done.stdout if check else done.stdout + done.stderr


def tried(trial: Trial, dist: Path) -> dict[str, Any]:
    """The facts of a whole trial. Exits where something is not as it must be."""
    trial.make_root()
    trial.clear()

    def timed(command: str, **options: bool) -> tuple[float, str]:
        began = time.monotonic()
        said = trial.inside(command, dist, **options)
        return round(time.monotonic() - began, 1), said

    found = [tool for tool in COMPILERS if trial.inside(f"command -v {tool} || true", dist)]
    if found:
        sys.exit(f"{trial.title} has {', '.join(found)}: it cannot show that no compiler is needed")
    trial.inside("python3 -m venv /venv", dist)
    trial.fill_house(dist)
    install = "pip install -q --no-index --find-links /dist --find-links /house"
    base, _ = timed(f"{install} edgetune")
    for command, extra in MISSING.items():
        said = trial.inside(command, dist, check=False)
        if not re.fullmatch(rf"edgetune: [^\n]*; install the extra {extra}, [^\n]*\n", re.sub(r"\n(?=.)", " ", said)):
            sys.exit(f"{trial.title}: {command} does not name the extra {extra}:\n{said}")
    more, _ = timed(f"{install} 'edgetune[{EXTRAS}]'")
    doctor = json.loads(trial.inside("edgetune doctor --json", dist))
    train, _ = timed(STEPS)
    answer, said = timed(f"edgetune generate smollm2 'turn on the lamp in the kitchen' --adapter /learned "
                         f"--system {SYSTEM} --max-tokens 6")
    if not doctor["ready"] or not said.strip():
        sys.exit(f"{trial.title} on {trial.machine}: {doctor['verdict']} It answered {said!r}.")
    return {"system": trial.title, "machine": trial.machine, "date": date.today().isoformat(),
            "python": doctor["python"], "llama_cpp": doctor["llama_cpp"], "kernels": doctor["kernels"],
            "download_mib": trial.downloaded(), "disk_mib": mib(trial.written / "upper" / "venv"),
            "install_seconds": round(base + more, 1), "train_seconds": train, "answer_seconds": answer,
            "answer": said.strip()}


def mib(folder: Path) -> float:
    return round(sum(file.lstat().st_size for file in folder.rglob("*") if not file.is_dir()) / 2**20, 1)


@contextmanager
def programs_of(machine: str) -> Iterator[None]:
    """Programs of that architecture run here meanwhile."""
    if machine == platform.machine():
        yield
        return
    if not (BINFMT / "register").exists():
        subprocess.run(["mount", "-t", "binfmt_misc", "binfmt_misc", str(BINFMT)], check=True)
    ours = BINFMT / "edgetune-aarch64"
    if not ours.exists():
        (BINFMT / "register").write_text(AARCH64)
    try:
        yield
    finally:
        ours.write_text("-1")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("systems", nargs="*", metavar="SYSTEM", help=f"Of {', '.join(SYSTEMS)} [all].")
    parser.add_argument("--machine", nargs="*", choices=list(DEBIAN), default=list(DEBIAN))
    parser.add_argument("--dist", type=Path, default=TOP / "dist", help="Folder of wheels.")
    parser.add_argument("--cache", type=Path, default=CACHE, help="[$XDG_CACHE_HOME/edgetune-installs]")
    parser.add_argument("--again", action="store_true", help="Try what has a result already.")
    args = parser.parse_args()
    if os.getuid():
        sys.exit("installs.py needs root, for debootstrap and mounts: sudo make installs")
    if unknown := set(args.systems) - set(SYSTEMS):
        sys.exit(f"there is no system {', '.join(unknown)}: there are {', '.join(SYSTEMS)}")
    results = []
    for name in args.systems or SYSTEMS:
        for machine in args.machine:
            kept = args.cache / "results" / f"{name}-{machine}.json"
            if args.again or not kept.exists():
                with programs_of(machine):
                    facts = tried(Trial(args.cache.resolve(), name, machine), args.dist.resolve())
                kept.parent.mkdir(parents=True, exist_ok=True)
                kept.write_text(json.dumps(facts, indent=1))
            results.append(json.loads(kept.read_text()))
            print(json.dumps(results[-1]), flush=True)
    print("\n| system | Python | download | on disk | installed in | 2 steps | answer |\n|---|---|---|---|---|---|---|")
    for facts in results:
        print("| {system}, {machine} | {python} | {download_mib:.0f} MiB | {disk_mib:.0f} MiB "
              "| {install_seconds:.0f} s | {train_seconds:.0f} s | {answer_seconds:.0f} s |".format(**facts))


if __name__ == "__main__":
    main()
