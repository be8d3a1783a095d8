"""Vectors of texts by an encoder, with an adapter that `edgetune train --method embed` made or without one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..formats.bundle import open_bundle
from ..objectives.labelling import Floats
from .encoder import Encoder


def vectors(model: str | Path, texts: Sequence[str], adapter: str | Path | None = None, threads: int = 0) -> Floats:
    """The vectors [n, D] of texts, float32, each of length 1: their scalar products are cosines.

    >>> edgetune.vectors("minilm", ["turn on the light", "lights on"], "my-vectors")

    model: a GGUF, a bundle or a model's name. Of a text that is too long the beginning counts; an empty one raises
    UsageError. threads: 0 for one a physical core.
    """
    encoder = Encoder(open_bundle(model).gguf, threads)
    return encoder.vectors([encoder.read(text).encoded.ids for text in texts], adapter)
