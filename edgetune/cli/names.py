"""The names of the commands: in groups that a newcomer understands, with the modules that make each, and old names."""

from __future__ import annotations

from ..manifest import manifests

# Each command, with the modules of this package that make it: only those of the command that is run are imported.
OWN = {
    "Start": {"demo": "demo", "doctor": "facts", "pull": "models", "models": "models facts"},
    "Data": {"data": "data answers teach"},
    "Train": {"plan": "plan", "train": "learn", "resume": "learn", "report": "report"},
    "Try": {"chat": "chat", "generate": "generate", "eval": "answer", "grade": "grade", "compare": "compare"},
    "Serve": {"serve": "daemon", "service": "daemon", "status": "status", "jobs": "remote",
              "adapters": "remote evaluated files joined", "feedback": "feedback proposed checked"},
    "Compress": {"compress": "compress"},
    "Home": {},
    "Fleet": {},
    "Lab": {"lab": "lab facts bench compiled rebase"},
}
OLD_NAMES = {"daemon": "serve", "info": "models info", "teach": "data teach", "device": "lab device",
             "bench": "lab bench", "export": "adapters export", "import": "adapters import", "merge": "adapters merge",
             "merge-adapters": "adapters combine", "rebase": "lab rebase", "compile-prompt": "lab compile-prompt"}


def groups() -> dict[str, dict[str, list[str]]]:
    """Returns {title: {command: whole names of the modules that make it}}, with the commands of the parts."""
    found = {title: {name: [f"{__package__}.{module}" for module in modules.split()]
                     for name, modules in names.items()} for title, names in OWN.items()}
    for manifest in manifests():
        for title, names in manifest.commands.items():
            for name, modules in names.items():
                made_by = found.setdefault(title, {}).setdefault(name, [])
                made_by += [manifest.module(module) for module in modules.split()]
    return {title: names for title, names in found.items() if names}


GROUPS = groups()


def renamed() -> dict[str, str]:
    """Returns {old name of a command: its present words}, those of parts too."""
    return OLD_NAMES | {old: new for manifest in manifests() for old, new in manifest.renamed.items()}
