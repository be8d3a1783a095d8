"""Lists of options, from the fields of their classes."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import Field, fields
from typing import Any

from edgetune.options import AUTO, default_text
from edgetune.training.config import LORA, TrainConfig, train_options

FAR = 1e6  # a limit from here on is none for people


def line(text: str) -> str:
    return " ".join(text.split())


def specs_of(kind: type) -> Iterable[Field[Any]]:
    """The fields of a class of options; of a training's, LoRA's too."""
    return train_options(LORA).values() if kind is TrainConfig else fields(kind)


def listed(specs: Iterable[Field[Any]]) -> Iterator[str]:
    """A line for each option; nothing for none."""
    if lines := list(map(option_row, specs)):
        yield from (*lines, "")


def option_row(spec: Field[Any]) -> str:
    meta = spec.metadata
    parts = [line(meta["help"])]
    if any(not re.search(rf"\b{re.escape(choice)}\b", meta["help"]) for choice in meta["choices"] if choice != AUTO):
        parts.append("One of " + ", ".join(f"`{choice}`" for choice in meta["choices"]) + ".")
    if meta["high"] is not None and meta["high"] < FAR:
        parts.append(f"({meta['low'] or 0:g} to {meta['high']:g})")
    default = "" if spec.default == "" else f" ({default_text(spec.default, meta['zero'])})"
    names = [spec.name, f"no_{spec.name}"] if spec.default is True else [spec.name]
    return f"- {flags(names)}{default}: {' '.join(parts)}"


def flags(names: Iterable[str]) -> str:
    return ", ".join(f"`--{name.replace('_', '-')}`" for name in names)
