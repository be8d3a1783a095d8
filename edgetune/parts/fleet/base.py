"""Whether a device has the model that a round is about, by three hashes, so that the error says which part differs."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

from ...disk import json_text
from ...errors import MismatchError
from ...formats.bundle import Bundle

TEMPLATE = "tokenizer.chat_template"


@dataclass(frozen=True)
class Base:
    """name: for people. fingerprint: as adapters name it. tokenizer, template: SHA-256 of those parts of its file."""

    name: str
    fingerprint: str
    tokenizer: str
    template: str


def base_of(bundle: Bundle, name: str) -> Base:
    metadata = bundle.gguf.metadata
    words = {key: metadata[key] for key in metadata if key.startswith("tokenizer.") and not key.startswith(TEMPLATE)}
    templates = {key: metadata[key] for key in metadata if key.startswith(TEMPLATE)}
    return Base(name, bundle.fingerprint, _digest(words), _digest(templates))


def check_base(asked: Base, found: Base, source: str) -> None:
    """Raises MismatchError for the first part that differs. source: names the file that asks for `asked`."""
    for what, wanted, given in (("tokenizer", asked.tokenizer, found.tokenizer),
                                ("chat template", asked.template, found.template),
                                ("model", asked.fingerprint, found.fingerprint)):
        if wanted != given:
            raise MismatchError(f"{source} is of {asked.name} with the {what} {wanted:.19}, {found.name} here has "
                                f"{given:.19}", "give the same model file on all devices, by --model")


def _digest(values: dict[str, Any]) -> str:
    return f"sha256:{hashlib.sha256(json_text(values, sort_keys=True).encode()).hexdigest()}"
