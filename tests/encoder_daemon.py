"""A tiny random BERT and what it can learn, for tests of a daemon that serves an encoder."""

import json
from pathlib import Path

from encoders import WORDS, tiny_bert, write_encoder

from edgetune.formats.bundle import open_bundle
from edgetune.runs.train import train

LETTERS = "abcdefghijklmnopqrstuvwxyz"
OPTIONS = {"rank": 4, "threads": 1, "batch_size": 8, "max_length": 48}


def write_tiny_encoder(path: Path) -> Path:
    return write_encoder(path, tiny_bert(), WORDS)


def labelled(count: int = 40, first: int = 0) -> list[dict[str, str]]:
    """Questions that differ by two letters, and one of two labels."""
    return [{"prompt": f"turn {way} the light {LETTERS[i % 26]} {LETTERS[i // 26]}", "completion": f"lamp_{way}"}
            for i, way in enumerate(("on", "off") * (count // 2), start=first)]


def forms(count: int = 40) -> list[dict[str, str]]:
    """JSON with a closed field and a copied one."""
    return [{"prompt": f"turn {way} the light {LETTERS[i % 26]}", "completion": json.dumps(
        {"way": way, "lamp": LETTERS[i % 26]})} for i, way in enumerate(("on", "off") * (count // 2))]


def write_adapter(model: Path, folder: Path, rows: list[dict[str, str]], steps: int = 1) -> Path:
    """An adapter that learned rows, the heads alone where steps is 1."""
    train(open_bundle(model), rows, folder, eval="none", answers=False, steps=steps, **OPTIONS)
    return folder
