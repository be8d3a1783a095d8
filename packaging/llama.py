"""Wheels of llama-cpp-python that install without a compiler, beside edgetune's: `make wheels` writes them into dist/.

One for each architecture, for all Pythons. It has llama.cpp's CPU backend once for each generation of CPUs; the best
that a device can run is picked when it is loaded, for which edgetune/llamacpp/library.py asks. It brings its OpenMP
library: llama.cpp's own threads wait by computing, so that a training beside them would make answers slow.

A wheel that is in the folder already is kept, for it takes many minutes of a core. Needs Debian or Ubuntu (apt-get,
dpkg-deb), cmake, and of Python pip, scikit-build-core, ninja, wheel and pyelftools; and GCC 12, because what later ones
compile asks for a newer C++ library than those of LIMITS: g++-12 and g++-12-aarch64-linux-gnu.
"""

from __future__ import annotations

import argparse
import platform
import re
import shlex
import shutil
import sys
import tarfile
from pathlib import Path

import manylinux
from manylinux import TOP, run

BUILD = TOP / "build" / "llama"
COMPILERS = {"x86_64": "x86_64-linux-gnu-", "aarch64": "aarch64-linux-gnu-"}  # then gcc-12, g++-12, strip
DEBIAN = {"x86_64": "amd64", "aarch64": "arm64"}
OPTIONS = ("-DGGML_NATIVE=OFF", "-DGGML_BACKEND_DL=ON", "-DGGML_CPU_ALL_VARIANTS=ON",
           "-DLLAVA_BUILD=OFF",  # questions about images and sound
           f"-DCMAKE_PROJECT_llama.cpp_INCLUDE={TOP / 'packaging' / 'llama.cmake'}",
           "-DCMAKE_PLATFORM_NO_VERSIONED_SONAME=ON",  # a wheel has no links: each library would be in it three times
           "-DCMAKE_INSTALL_RPATH=$ORIGIN", "-DCMAKE_SHARED_LINKER_FLAGS=-s", "-DCMAKE_MODULE_LINKER_FLAGS=-s")
# Those of boards and small computers: Celeron, laptops since 2013, N100, laptops with AVX-512 by Intel and by AMD; Pi 3
# and 4, Pi 5 and Jetson Orin, boards of Armv9. llama.cpp's list has 13 more, of servers and of what lies between.
VARIANTS = ("x64", "sse42", "haswell", "alderlake", "icelake", "zen4", "armv8.0_1", "armv8.2_2", "armv8.6_2")
OTHERS = rf"^ *ggml_add_cpu_backend_variant\((?!(?:{'|'.join(map(re.escape, VARIANTS))})\b).*\n"
CHANGES = (  # file of the source, what is in it, what it becomes
    ("vendor/llama.cpp/ggml/src/CMakeLists.txt", OTHERS, ""),
)
# since glibc 2.38, strtol and its kin are other symbols for what is compiled as GNU C: __isoc23_strtol
OLD_NUMBERS = """#include <features.h>
#undef __GLIBC_USE_C2X_STRTOL
#define __GLIBC_USE_C2X_STRTOL 0
#undef __GLIBC_USE_C23_STRTOL
#define __GLIBC_USE_C23_STRTOL 0
"""


def version() -> str:
    """The oldest that edgetune takes: the one that it is tested with."""
    found = re.search(r'"llama-cpp-python>=([\d.]+)"', (TOP / "pyproject.toml").read_text("utf-8"))
    return found[1] if found else sys.exit("pyproject.toml does not say which llama-cpp-python")


def source() -> Path:
    """The unpacked source, without what would be compiled for nothing, or cannot be by GCC 12."""
    name = f"llama_cpp_python-{version()}"
    folder = BUILD / name
    if not folder.exists():
        run(sys.executable, "-m", "pip", "download", "--no-deps", "--no-binary", "llama-cpp-python",
            f"llama-cpp-python=={version()}", "--dest", BUILD)
        with tarfile.open(BUILD / f"{name}.tar.gz") as archive:
            archive.extractall(BUILD / "new", filter="data")
        for file, pattern, replacement in CHANGES:
            path = BUILD / "new" / name / file
            text, count = re.subn(pattern, replacement, path.read_text("utf-8"), flags=re.M)
            if not count:
                sys.exit(f"{path} has nothing like {pattern}: llama-cpp-python {version()} is built in another way")
            path.write_text(text, "utf-8")
        (BUILD / "new" / name).rename(folder)
    return folder


def compiled(machine: str, jobs: int) -> Path:
    """The wheel as llama-cpp-python's own build makes it, for this machine's name."""
    build = BUILD / machine
    build.mkdir(exist_ok=True)
    header = BUILD / "old_numbers.h"
    if not header.exists():  # anew, it would make everything be compiled again
        header.write_text(OLD_NUMBERS)
    prefix = COMPILERS[machine]
    options = [*OPTIONS, f"-DCMAKE_C_COMPILER={prefix}gcc-12", f"-DCMAKE_CXX_COMPILER={prefix}g++-12",
               f"-DCMAKE_C_FLAGS=-include {header}", f"-DCMAKE_CXX_FLAGS=-include {header}"]
    if machine != platform.machine():
        options += ["-DCMAKE_SYSTEM_NAME=Linux", f"-DCMAKE_SYSTEM_PROCESSOR={machine}"]
    shutil.rmtree(source() / "llama_cpp" / "lib", ignore_errors=True)  # which the other architecture was copied to, too
    for old in build.glob("*.whl"):
        old.unlink()
    run(sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", build,
        "--config-settings", f"build-dir={build / 'cmake'}", source(),
        env={"CMAKE_ARGS": shlex.join(options), "CMAKE_BUILD_PARALLEL_LEVEL": str(jobs)})
    (wheel,) = build.glob("*.whl")
    return wheel


def openmp(machine: str) -> Path:
    """A folder with Debian 12's libgomp and what says how it may be copied: later ones need a newer glibc."""
    folder = BUILD / machine / "gomp"
    if not (folder / "usr").exists():
        shutil.rmtree(folder, ignore_errors=True)
        for name in ("lists/partial", "archives/partial"):
            (folder / name).mkdir(parents=True)
        (folder / "status").touch()
        site = run("apt-get", "indextargets", "--format", "$(SITE)", "Component: main").split()[0]
        (folder / "sources.list").write_text(f"deb {site} bookworm main\n")
        apt = ["apt-get", "-qq", *(word for option in (
            f"APT::Architecture={DEBIAN[machine]}", f"APT::Architectures={DEBIAN[machine]}",
            f"Dir::Etc::SourceList={folder / 'sources.list'}", "Dir::Etc::SourceParts=-",
            f"Dir::State={folder}", f"Dir::State::Status={folder / 'status'}", f"Dir::Cache={folder}",
            "APT::Sandbox::User=root") for word in ("-o", option))]
        run(*apt, "update")
        run(*apt, "download", "libgomp1", "gcc-12-base", cwd=folder)  # the latter has the copyright
        for package in folder.glob("*.deb"):
            run("dpkg-deb", "-x", package, folder)
    return folder


def packed(wheel: Path, machine: str, out: Path) -> Path:
    """The wheel of what a device needs: not headers, and each library once."""
    tree = BUILD / machine / "tree"
    shutil.rmtree(tree, ignore_errors=True)
    run(sys.executable, "-m", "wheel", "unpack", "--dest", tree, wheel)
    (top,) = tree.iterdir()
    (info,) = top.glob("*.dist-info")
    libraries = top / "llama_cpp" / "lib"
    for backend in top.glob("bin/libggml-cpu*.so"):
        backend.rename(libraries / backend.name)
    for folder in top.iterdir():
        if folder.name not in ("llama_cpp", info.name):
            shutil.rmtree(folder)
    gomp = openmp(machine)
    (library,) = gomp.glob("usr/lib/*/libgomp.so.1")
    shutil.copy(library.resolve(), libraries / library.name)
    shutil.copy(gomp / "usr/share/doc/libgomp1/copyright", info / "libgomp.copyright")
    tag = f"py3-none-{manylinux.platform(libraries.glob('*.so*'), machine)}"
    (info / "WHEEL").write_text(f"Wheel-Version: 1.0\nGenerator: edgetune\nRoot-Is-Purelib: false\nTag: {tag}\n")
    (info / "RECORD").unlink()
    run(sys.executable, "-m", "wheel", "pack", top, "--dest-dir", out)
    (found,) = out.glob(f"llama_cpp_python-*-{tag}.whl")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=TOP / "dist")
    parser.add_argument("--machine", nargs="*", choices=list(COMPILERS), default=list(COMPILERS))
    parser.add_argument("--jobs", type=int, default=2)
    args = parser.parse_args()
    args.out.mkdir(exist_ok=True)
    BUILD.mkdir(parents=True, exist_ok=True)
    for machine in args.machine:
        found = [*args.out.glob(f"llama_cpp_python-{version()}-*_{machine}.whl")]
        wheel = found[0] if found else packed(compiled(machine, args.jobs), machine, args.out)
        print(f"{wheel}  {wheel.stat().st_size / 2**20:.1f} MiB", flush=True)


if __name__ == "__main__":
    main()
