"""The one way to llama.cpp: the bindings of llama-cpp-python, imported late and with their log kept off the terminal.

Importing them costs 4 MiB, so nothing in edgetune imports them at module level.
"""

from __future__ import annotations

import os
import sys
import threading
from importlib import import_module
from importlib.util import find_spec, module_from_spec
from pathlib import Path
from types import ModuleType
from typing import Any

from ..backends.cpu import cpu_features
from ..errors import UnsupportedError

_lock = threading.Lock()
_module: ModuleType | None = None
_callback: Any = None  # llama.cpp keeps only the address, so the callback must outlive it
# ggml_log_level: what kind of line, or more of the line before
_ERROR = 4
_CONTINUED = 5
_complaints: list[str] = []
_complaining = False


def load() -> ModuleType:
    """The bindings, their backend initialised. Nothing that llama.cpp logs reaches stdout or stderr."""
    global _module, _callback
    with _lock:
        if _module is None:
            if "OMP_WAIT_POLICY" not in os.environ:
                # GCC's OpenMP spins at every barrier; when training or another program has a core, answers would
                # come ten times slower. Read once, when the library is loaded.
                os.environ.setdefault("GOMP_SPINCOUNT", "1000")
            bindings = _bindings()
            _callback = bindings.llama_log_callback(_listen)
            bindings.llama_log_set(_callback, None)
            _pick_variant(bindings._lib)
            bindings.llama_backend_init()
            _module = bindings
        _module.llama_log_set(_callback, None)  # again each time: llama_cpp.Llama sets another
    return _module


def _bindings() -> ModuleType:
    """The module llama_cpp.llama_cpp without its package's own code, which imports what chats need: 12 MiB.

    A later `import llama_cpp` imports the package whole, with these bindings. Raises UnsupportedError for a library
    that was built for another system.
    """
    name = "llama_cpp"
    if name in sys.modules:
        return import_module(f"{name}.{name}")
    if (found := find_spec(name)) is None:
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)
    sys.modules[name] = module_from_spec(found)
    try:
        return import_module(f"{name}.{name}")
    except (OSError, RuntimeError) as error:
        raise UnsupportedError(f"llama.cpp cannot be loaded here: {error}", "install it for this system: pip install "
                               "--force-reinstall --no-cache-dir llama-cpp-python") from error
    finally:
        del sys.modules[name]


def _pick_variant(library: Any) -> None:
    """Loads the best CPU backend that this CPU can run, of a build that has one for each generation of CPUs.

    Such a build begins with no backend, any other with one. The functions are looked up through libllama, for where
    files of a wheel are copies instead of links, llama_cpp._ggml.libggml is another libggml than the one it uses.
    """
    import ctypes
    library.ggml_backend_reg_count.restype = ctypes.c_size_t
    if library.ggml_backend_reg_count():
        return
    library.ggml_backend_load_all_from_path.argtypes = [ctypes.c_char_p]
    library.ggml_backend_load_all_from_path.restype = None
    library.ggml_backend_load_all_from_path(os.fsencode(Path(library._name).parent))
    if not library.ggml_backend_reg_count():
        raise OSError(complaint() or f"{Path(library._name).parent} has no CPU backend that this CPU can run")


def open_model(file: str | os.PathLike[str], shown: Path, vocabulary_only: bool = False, repack: bool = True) -> int:
    """A llama_model, which the caller frees by llama_model_free. shown: the path by which errors name the file.
    repack: whether weights may be copied to an order that this CPU multiplies more quickly.

    Check the file first: llama.cpp trusts what it reads. Raises UnsupportedError with llama.cpp's reason.
    """
    llama = load()
    complaint()
    options = llama.llama_model_default_params()
    options.vocab_only = vocabulary_only
    # Copied weights are multiplied in AMX's tiles, which llama.cpp sets up once a thread. torch resets those of threads
    # that both use, after products in bf16, and llama.cpp then dies of an illegal instruction.
    options.use_extra_bufts = repack and not ("torch" in sys.modules and "amx" in cpu_features())
    model = llama.llama_model_load_from_file(os.fsencode(file), options)
    if model:
        return int(model)
    reason = (complaint() or "no reason given").replace(os.fspath(file), str(shown))
    if vocabulary_only:
        raise UnsupportedError(f"llama.cpp cannot read the tokenizer of {shown.name} ({reason})",
                               "convert the model again with a current llama.cpp")
    raise UnsupportedError(f"llama.cpp cannot load {shown} ({reason})",
                           "edgetune models info FILE says what the file holds")


def complaint() -> str:
    """The first error that llama.cpp logged since the previous call, "" if none.

    Call it before something that may fail, to forget the past, and after it failed, to learn why: the first line names
    the cause, the later ones only who passed it on.
    """
    first = " ".join(_complaints[0].split()) if _complaints else ""
    _complaints.clear()
    return first


def _listen(level: int, text: bytes, _: Any) -> None:
    global _complaining
    if level == _CONTINUED:
        if _complaining and _complaints:
            _complaints[-1] += text.decode("utf-8", "replace")
        return
    _complaining = level == _ERROR and len(_complaints) < 8
    if _complaining:
        _complaints.append(text.decode("utf-8", "replace"))
