"""edgetune: fine-tune quantized language models (GGUF) with LoRA on the device that runs them.

The library an app embeds:

    train          rows in, an adapter and a verdict out: what `edgetune train` does
    resume         continue such a run, also with more epochs after its end
    Result         what came of it
    teach          what a model expects in rows, in a file for a smaller one
    pull           get a model by its name; names work wherever a model is opened
    Trainer        open a model, add examples, step(), loss(), pairs
    run            a whole run on disk of rows that are tokens already
    RunCallbacks   what such a run asks and tells its caller
    Served         llama.cpp with adapters that are loaded, switched and unloaded at run time
    Classifier     an encoder that answers with the labels, or the JSON, that it learned
    vectors        an encoder's vectors of texts, with or without an adapter
    EdgetuneError  what a user can cause; edgetune.errors has its kinds

>>> import edgetune
>>> result = edgetune.train("model.gguf", "rows.jsonl", "my-adapter", progress=True)
>>> print(result)  # the verdict; loss and exact answers on held-out rows before and after

Parts add names to these. Names are imported when first used, so that `import edgetune` costs little on a small board.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .version import __version__ as __version__

_HOME = {
    "EdgetuneError": "errors", "TrainConfig": "training.config", "open_gguf": "formats.gguf",
    "Bundle": "formats.bundle", "open_bundle": "formats.bundle", "Tokenizer": "llamacpp.tokenizer",
    "load": "data.dataset", "load_rows": "data.dataset", "Trainer": "training.trainer",
    "StepResult": "training.trainer", "run": "training.run", "open_adapter": "adapters.store",
    "RunCallbacks": "training.callbacks", "Served": "serving.llama:LlamaModel", "train": "runs.train",
    "resume": "runs.train", "Result": "runs.result", "pull": "hub", "Classifier": "serving.classifier",
    "vectors": "serving.encoder", "teach": "runs.teaching",
}
__all__ = [
    "Bundle", "Classifier", "EdgetuneError", "Result", "RunCallbacks", "Served",
    "StepResult", "Tokenizer", "TrainConfig", "Trainer", "__version__", "load", "load_rows",
    "open_adapter", "open_bundle", "open_gguf", "pull", "resume", "run", "teach", "train", "vectors",
]

if TYPE_CHECKING:
    from .adapters.store import open_adapter as open_adapter
    from .data.dataset import load as load
    from .data.dataset import load_rows as load_rows
    from .errors import EdgetuneError as EdgetuneError
    from .formats.bundle import Bundle as Bundle
    from .formats.bundle import open_bundle as open_bundle
    from .formats.gguf import open_gguf as open_gguf
    from .hub import pull as pull
    from .llamacpp.tokenizer import Tokenizer as Tokenizer
    from .runs.result import Result as Result
    from .runs.teaching import teach as teach
    from .runs.train import resume as resume
    from .runs.train import train as train
    from .serving.classifier import Classifier as Classifier
    from .serving.encoder import vectors as vectors
    from .serving.llama import LlamaModel as Served
    from .training.callbacks import RunCallbacks as RunCallbacks
    from .training.config import TrainConfig as TrainConfig
    from .training.run import run as run
    from .training.trainer import StepResult as StepResult
    from .training.trainer import Trainer as Trainer


if not TYPE_CHECKING:  # a checker takes the names above

    def __getattr__(name: str) -> Any:
        if name in _HOME:
            module, _, renamed = _HOME[name].partition(":")
            return getattr(import_module(f".{module}", __name__), renamed or name)
        if name == "errors":
            return import_module(".errors", __name__)
        if not name.startswith("_"):
            from .manifest import manifests
            for manifest in manifests():
                if name in manifest.library:
                    return manifest.load(manifest.library[name])
        raise AttributeError(f"module 'edgetune' has no attribute {name!r}")

    def __dir__() -> list[str]:
        from .manifest import manifests
        return sorted([*__all__, "errors", *(name for manifest in manifests() for name in manifest.library)])
