"""edgetune: fine-tune quantized language models (GGUF) with LoRA on the device that runs them.

The library an app embeds:

    Trainer        open a model, add examples, step(), loss(), pairs
    run            a whole run on disk: adapter, metrics, checkpoint, resume
    Served         llama.cpp with adapters that are loaded, switched and unloaded at run time
    EdgetuneError  what a user can cause; edgetune.errors has its kinds

Names are imported when first used, so that `import edgetune` costs little on a small board.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .version import __version__ as __version__

_HOME = {
    "EdgetuneError": "errors", "TrainConfig": "config", "open_gguf": "gguf", "Bundle": "bundle",
    "open_bundle": "bundle", "Tokenizer": "tokens", "load": "data", "load_rows": "data", "Trainer": "trainer",
    "StepResult": "trainer", "run": "train", "open_adapter": "adapter", "Served": "serve",
}

if TYPE_CHECKING:
    from .adapter import open_adapter as open_adapter
    from .bundle import Bundle as Bundle
    from .bundle import open_bundle as open_bundle
    from .config import TrainConfig as TrainConfig
    from .data import load as load
    from .data import load_rows as load_rows
    from .errors import EdgetuneError as EdgetuneError
    from .gguf import open_gguf as open_gguf
    from .serve import Served as Served
    from .tokens import Tokenizer as Tokenizer
    from .train import run as run
    from .trainer import StepResult as StepResult
    from .trainer import Trainer as Trainer


if not TYPE_CHECKING:  # a checker takes the names above

    def __getattr__(name: str) -> Any:
        if name in _HOME:
            return getattr(import_module(f".{_HOME[name]}", __name__), name)
        if name == "errors":
            return import_module(".errors", __name__)
        raise AttributeError(f"module 'edgetune' has no attribute {name!r}")

    def __dir__() -> list[str]:
        return sorted([*_HOME, "errors", "__version__"])
