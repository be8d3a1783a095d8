"""Wheels of edgetune that install without a compiler: `make wheels` writes them into dist/.

One for each Python and architecture. The kernels are compiled once for each architecture, the binding once for each
Python. aarch64 is cross-compiled. Needs cmake, and of Python scikit-build-core, wheel and pyelftools.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from contextlib import redirect_stdout
from pathlib import Path
from platform import machine as this_machine

from manylinux import TOP, platform, run
from scikit_build_core.build import prepare_metadata_for_build_wheel

COMPILERS = {"x86_64": "gcc", "aarch64": "aarch64-linux-gnu-gcc"}
ASK = """
import json, sys, sysconfig
print(json.dumps([sys.version_info[:2], sysconfig.get_path("include"), sysconfig.get_config_var("SOABI")]))
"""


class Python:
    """An interpreter with its headers, which serve both architectures: each has 64-bit pointers and longs."""

    def __init__(self, name: str) -> None:
        self.executable = shutil.which(name) or sys.exit(f"{name}: there is no such Python")
        version, self.include, self.soabi = json.loads(run(self.executable, "-c", ASK))
        self.tag = "cp" + "".join(map(str, version))
        if not (Path(self.include) / "Python.h").exists():
            sys.exit(f"{name} has no {self.include}/Python.h: install its headers")

    def multiarch(self, machine: str) -> Path:
        """A folder to search: Debian's headers include one of the machine's own name, for which this machine's serves.
        """
        folder = TOP / "build" / "wheels" / "include"
        include = Path(self.include)
        ours = include.parent / f"{this_machine()}-linux-gnu" / include.name / "pyconfig.h"
        if ours.exists():
            named = folder / f"{machine}-linux-gnu" / include.name
            named.mkdir(parents=True, exist_ok=True)
            shutil.copy(ours, named)
        return folder

    def extension(self, machine: str) -> str:
        """The file name that it imports on a machine."""
        return f"_native.{self.soabi.replace('x86_64', machine)}.so"


def compiled(python: Python, machine: str, jobs: int) -> Path:
    """The extension. In a folder that has the kernels already, only the binding is compiled."""
    build = TOP / "build" / "wheels" / machine
    (build / "CMakeCache.txt").unlink(missing_ok=True)  # it remembers the Python before
    for old in build.glob("_native*.so"):
        old.unlink()
    run("cmake", "-S", "native", "-B", build, "-G", "Unix Makefiles", "-DET_WERROR=ON", "-DCMAKE_SYSTEM_NAME=Linux",
        f"-DCMAKE_SYSTEM_PROCESSOR={machine}", f"-DCMAKE_C_COMPILER={COMPILERS[machine]}",
        f"-DPython_EXECUTABLE={python.executable}", f"-DPython_INCLUDE_DIR={python.include}",
        f"-DCMAKE_C_FLAGS=-I{python.multiarch(machine)}")
    run("cmake", "--build", build, "--parallel", jobs)
    (found,) = build.glob("_native*.so")
    return found


def packed(python: Python, machine: str, library: Path, out: Path) -> Path:
    """The wheel, of the package's files, the library and the metadata that pip's own build would have."""
    tag = f"{python.tag}-{python.tag}-{platform([library], machine)}"
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder)
        shutil.copytree(TOP / "edgetune", tree / "edgetune", ignore=shutil.ignore_patterns("*.so", "__pycache__"))
        shutil.copytree(TOP / "devices", tree / "edgetune" / "devices")
        target = tree / "edgetune" / "backends" / python.extension(machine)
        shutil.copy(library, target)
        run(COMPILERS[machine].replace("gcc", "strip"), "--strip-unneeded", target)
        with redirect_stdout(sys.stderr):
            info = tree / prepare_metadata_for_build_wheel(folder)
        (info / "WHEEL").write_text("Wheel-Version: 1.0\nGenerator: edgetune\nRoot-Is-Purelib: false\n"
                                    f"Tag: {tag}\n")
        (info / "RECORD").unlink(missing_ok=True)
        run(sys.executable, "-m", "wheel", "pack", tree, "--dest-dir", out)
    (found,) = out.glob(f"edgetune-*-{tag}.whl")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=TOP / "dist")
    parser.add_argument("--machine", nargs="*", choices=list(COMPILERS), default=list(COMPILERS))
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("python", nargs="*", default=[sys.executable], help="Pythons to build for, by name or path")
    args = parser.parse_args()
    pythons = [Python(name) for name in args.python or [sys.executable]]
    args.out.mkdir(exist_ok=True)
    for machine in args.machine:
        for python in pythons:
            wheel = packed(python, machine, compiled(python, machine, args.jobs), args.out)
            print(f"{wheel}  {wheel.stat().st_size / 2**20:.1f} MiB", flush=True)


if __name__ == "__main__":
    main()
