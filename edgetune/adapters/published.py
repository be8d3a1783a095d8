"""The files of an adapter that may leave the device: weights, a record without rows and paths, and a model card.

run.json quotes held-out questions with their answers, and names files of the device. The public record holds only the
facts that another person needs in order to use or evaluate the adapter.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import shell_word
from ..formats.gguf import Gguf
from ..version import __version__
from .store import FILE, RUN, base_name, read_run

CARD = "README.md"
SCHEMA = "schema.json"  # of answers, if training derived one: part of the adapter's purpose
# Of run.json; whole, or these keys of an object.
_RECORD: Mapping[str, Sequence[str] | None] = {
    "status": None, "edgetune": None, "options": None, "system": None, "objective": None, "family": None,
    "seed": None, "steps": None, "total_steps": None, "isa": None, "products": None, "threads": None,
    "peak_rss_mib": None, "seconds": None,
    "base": ("name", "fingerprint", "architecture"), "data": None, "held_out": None, "verdict": ("kind", "step"),
    "answers": ("rows", "before", "after", "wins", "losses", "commonest"),
}
_PATHS = ("prompt",)  # options that are paths
_ORIGINS = ("general.source.huggingface.repository", "general.source.repo_url", "general.base_model.0.repo_url",
            "general.base_model.0.name", "general.name")  # of the model that a GGUF was made from, the surest first
_HUB = "https://huggingface.co/"


def public_files(folder: Path, base: Gguf, name: str) -> dict[str, Path | bytes]:
    """The files of an adapter's folder for others: paths of those that go along unchanged, bytes of others.

    name: of the folder that they will be in. Raises FormatError for a run.json that is damaged.
    """
    run = read_run(folder)
    model = shell_word(base_name(base))
    use = f"""```sh
edgetune chat {model} --adapter {shell_word(name)}
llama-cli -m {model} --lora {shell_word(f'{name}/{FILE}')}
```"""
    files: dict[str, Path | bytes] = {
        FILE: folder / FILE,
        RUN: record_text(run).encode(),
        CARD: model_card(run, base, use).encode(),
    }
    if (folder / SCHEMA).is_file():
        files[SCHEMA] = folder / SCHEMA
    return files


def public_record(run: Mapping[str, Any]) -> dict[str, Any]:
    """run.json's content without questions, answers and paths."""
    found = {}
    for key, inner in _RECORD.items():
        value = run.get(key)
        if isinstance(value, Mapping) and inner is not None:
            value = {name: value[name] for name in inner if name in value}
        elif isinstance(value, Mapping) and key == "options":
            value = {name: given for name, given in value.items() if name not in _PATHS}
        if value is not None:
            found[key] = value
    return found


def record_text(run: Mapping[str, Any]) -> str:
    """The same as the text of a run.json."""
    return json.dumps(public_record(run), indent=2) + "\n"


def origin(base: Gguf) -> str:
    """The model that a GGUF says it was made from: an id on the Hugging Face hub, else a name, its file's at last."""
    for key in _ORIGINS:
        name = base.metadata.get(key)
        if isinstance(name, str) and name.strip():
            return name.strip().removeprefix(_HUB).rstrip("/")
    return base_name(base)


def licence(base: Gguf) -> str:
    """The licence that a GGUF names, most often by Hugging Face's short name; "" if it names none."""
    found = base.metadata.get("general.license")
    return found.strip() if isinstance(found, str) else ""


# ---- the card --------------------------------------------------------------------------------------------------------


def model_card(run: Mapping[str, Any], base: Gguf, use: str, base_model: str = "") -> str:
    """A model card as the Hugging Face hub reads it, in Markdown. use: a block of code that loads the adapter.

    base_model: an id on the hub, or a name; "": what origin(base) finds.
    """
    base_model = base_model or origin(base)
    known = licence(base)
    sentence = f"The base model's licence, as its file says it, is {_plain(known)}." if known else (
        "The base model's file names no licence.")
    parts = [
        _front_matter(base_model, known),
        f"# A LoRA adapter for {_plain(base_model)}",
        f"Trained by edgetune {_plain(run.get('edgetune') or __version__)} on `{base_name(base)}` "
        f"({_plain(base.architecture)}), the quantized model itself.",
        f"## Use\n\n{use}",
        _table("Data", _data_rows(run)),
        _table("Results on held-out rows", _result_rows(run)),
        _table("Options", _option_rows(run)),
        f"## Licence\n\n{sentence} It applies to what is made from it; so may that of the training rows.",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _front_matter(base_model: str, known: str) -> str:
    """Writes values as JSON strings, which YAML reads unchanged: a name from a file cannot add a key."""
    lines = ["---", "library_name: peft", "pipeline_tag: text-generation", "tags: [lora, gguf, edgetune]"]
    if base_model.count("/") == 1:  # an id on the hub, which links the adapter to its base
        lines.append(f"base_model: {json.dumps(base_model)}")
    if known:
        lines.append(f"license: {json.dumps(known)}")
    return "\n".join([*lines, "---"])


def _data_rows(run: Mapping[str, Any]) -> list[tuple[str, Any]]:
    data = run.get("data") or {}
    held_out = run.get("held_out") or {}
    return [("rows", data.get("rows")), ("tokens", data.get("tokens")), ("of them learned", data.get("supervised")),
            ("cut rows", data.get("truncated")), ("rows held out", held_out.get("rows"))]


def _result_rows(run: Mapping[str, Any]) -> list[tuple[str, Any]]:
    held_out = run.get("held_out") or {}
    answers = run.get("answers") or {}
    return [("loss before", held_out.get("loss_before")), ("loss after", held_out.get("loss_after")),
            ("answers asked", answers.get("rows")), ("exact before", _percent(answers.get("before"))),
            ("exact after", _percent(answers.get("after"))), ("verdict", (run.get("verdict") or {}).get("kind"))]


def _option_rows(run: Mapping[str, Any]) -> list[tuple[str, Any]]:
    shown = ("rank", "alpha", "targets", "lr", "schedule", "epochs", "batch_size", "max_length", "system", "precision")
    options = run.get("options") or {}
    rows = [(name, options.get(name)) for name in shown]
    return [("objective", (run.get("objective") or {}).get("name")), ("steps", run.get("steps")), *rows,
            ("seed", run.get("seed"))]


def _table(title: str, rows: list[tuple[str, Any]]) -> str:
    """"" where nothing is known: an imported adapter says nothing of its data."""
    known = [(name, value) for name, value in rows if value not in (None, "")]
    if not known:
        return ""
    lines = [f"| {name.replace('_', ' ')} | {_plain(value)} |" for name, value in known]
    return "\n".join([f"## {title}\n", "| | |", "|---|---|", *lines])


def _plain(value: Any) -> str:
    """Formats a value for a table cell: numbers short, text in one line and without Markdown's marks."""
    if isinstance(value, float):
        return f"{value:.4g}"
    text = " ".join(str(value).split())
    return "".join(f"\\{letter}" if letter in "\\|`<>[]*_" else letter for letter in text)


def _percent(share: Any) -> str | None:
    return f"{share:.0%}" if isinstance(share, int | float) else None
