"""The GPU's kernels: their text, which travels with the package, and what NVRTC makes of it for a card.

A compiled unit is kept in the user's cache, under a name that follows from all that decides its bytes.
"""

from __future__ import annotations

import ctypes
import functools
import io
from collections.abc import Callable
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from typing import Any

from ..disk import cache, cache_folder, replaced
from ..errors import DeviceError, install_hint

INSTALLED = Path(__file__).parent / "cuda_sources"
CHECKOUT = Path(__file__).parents[2] / "native"
SHARED = ("et.h", "formats.def", "either.h", "adamw_rates.h")
"""Files outside cuda/ that kernels include."""
OPTIONS: dict[str, Any] = {"std": "c++17", "device_as_default_execution_space": True}  # et.h declares the ops too
NVRTC = ("libnvrtc.so.13", "libnvrtc.so.12")
CACHED = 512  # compiled units that are kept


@functools.cache
def sources() -> Path:
    """The folder with SHARED and cuda/: of the installed package, or of a checkout."""
    return INSTALLED if INSTALLED.is_dir() else CHECKOUT


@functools.cache
def sources_digest() -> str:
    root = sources()
    files = [root / name for name in SHARED] + sorted(p for p in (root / "cuda").rglob("*") if p.is_file())
    digest = sha256()
    for file in files:
        digest.update(str(file.relative_to(root)).encode() + b"\0" + sha256(file.read_bytes()).digest())
    return digest.hexdigest()


def find_nvrtc() -> str:
    """The version of NVRTC: the board's own (JetPack has it) where the loader finds it, else the wheel's.

    Raises DeviceError where there is none, or a package that calls it is missing.
    """
    try:
        from cuda.bindings import __version__ as bindings
        from cuda.bindings import nvrtc  # a torch may have brought these, without what follows
        from cuda.core import Program  # noqa: F401
    except ImportError as error:
        raise DeviceError(f"cuda-core is missing ({error})", install_hint("cuda")) from None
    with suppress(OSError):  # what is loaded already is taken; a wheel's would be preferred otherwise
        ctypes.CDLL(next(name for name in NVRTC if name.endswith(bindings.partition(".")[0])), ctypes.RTLD_GLOBAL)
    try:
        code, major, minor = nvrtc.nvrtcVersion()
    except RuntimeError as error:  # the loader's own kind is one
        raise DeviceError("NVRTC, which compiles the GPU's kernels, is missing",
                          f"{install_hint('cuda')} ({str(error).splitlines()[0]:.200})") from None
    if int(code):
        raise DeviceError(f"NVRTC does not work: {code}", "install nvidia-cuda-nvrtc-cu12 again")
    return f"{major}.{minor}"


def compile_unit(unit: str, fmt: str, architecture: str, **more: Any) -> tuple[bytes, str]:
    """(a binary for "sm_87" and the like, what the compiler said) of a unit; fmt: the only weight format, or "". more:
    options of cuda.core's compiler that change nothing of the binary.

    Raises DeviceError with the compiler's first line.
    """
    from cuda.core import Program, ProgramOptions
    root = sources()
    include = [str(folder) for folder in (root / "cuda" / "rtc", root / "cuda", root)]
    given = ProgramOptions(name=f"{unit}.cu", arch=architecture, include_path=include,
                           define_macro=f"ET_ONLY={fmt}" if fmt else None, **OPTIONS, **more)
    log = io.StringIO()
    text = (root / "cuda" / f"{unit}.cu").read_text(encoding="utf-8")
    try:
        compiled = Program(text, "c++", given).compile("cubin", logs=log)
    except Exception as error:  # cuda-core's own kind is private
        first = next((line for line in str(error).splitlines() if "error" in line), str(error))
        raise DeviceError(f"the kernels of {unit}.cu cannot be compiled for {architecture}: {first}",
                          "this is a defect of edgetune: --backend cpu works without them") from None
    return bytes(compiled.code), log.getvalue()


class Compiler:
    """Compiles for one card, or takes from the cache. say: is told once that it has begun to compile."""

    def __init__(self, architecture: str, nvrtc: str, say: Callable[[str], None]) -> None:
        self.architecture = architecture
        self._nvrtc = nvrtc
        self._say: Callable[[str], None] | None = say

    def binary(self, unit: str, fmt: str) -> bytes:
        """The machine code of a unit; errors as in `compile_unit`."""
        path = self._path(unit, fmt)
        with suppress(OSError):
            return path.read_bytes()
        if self._say:
            self._say(f"compiling the GPU's kernels for {self.architecture}; later runs find them in {path.parent}")
            self._say = None
        made, _ = compile_unit(unit, fmt, self.architecture)
        cache(path, lambda: _write(path, made), CACHED)
        return made

    def _path(self, unit: str, fmt: str) -> Path:
        words = [sources_digest(), unit, fmt, self.architecture, self._nvrtc, repr(OPTIONS)]
        return cache_folder() / "kernels" / f"{sha256(repr(words).encode()).hexdigest()}.cubin"


def _write(path: Path, made: bytes) -> None:
    with replaced(path) as temporary:
        temporary.write_bytes(made)
