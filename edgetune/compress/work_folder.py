"""NAME.edge.work, where a run has its files, and by which the same command continues it after a stop or a kill."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..disk import alone, make_folder, replaced
from ..errors import Interrupted, UsageError
from ..formats.bundle import sha256
from ..formats.work import remove
from ..machine.device import thread_count
from ..version import __version__
from .measured import is_begun
from .options import TEXTS, CompressConfig
from .source.source import Source

RUN = "run.json"
DISTILLATION = "healing"  # the folder of its state, as runs that were stopped have it
MEASURED = "measured"


def place_of(out: Path) -> Path:
    return out.with_name(f"{out.name}.work")


@contextmanager
def work_folder(out: Path, config: CompressConfig, source: Source, resume: bool) -> Iterator[Path]:
    """The folder of a run, held against other processes; after an error it stays where it holds something to continue
    with, and the same command can end otherwise.

    resume: refuse to begin. Raises UsageError where it holds another run.
    """
    folder = place_of(out)
    if resume and not (folder / RUN).exists():
        raise UsageError(f"{folder} holds no run to continue", "leave out --resume")
    make_folder(folder)
    with alone(folder):
        run = _identity(config, source)
        if _is_begun(folder):
            _refuse_another(folder, run)
        keep = False
        try:
            with replaced(folder / RUN) as beside:
                beside.write_text(json.dumps(run))
            yield folder
        except Interrupted as error:
            keep = _is_begun(folder)
            hint = f"the same command continues, from {folder}" if keep else "nothing was measured yet: start again"
            raise Interrupted(error.what, hint) from None
        except BaseException as error:
            keep = not isinstance(error, UsageError) and _is_begun(folder)
            raise
        finally:
            if not keep:
                remove(folder)


def _is_begun(folder: Path) -> bool:
    return is_begun(folder / MEASURED) or is_begun(folder / DISTILLATION)


def _identity(config: CompressConfig, source: Source) -> dict[str, Any]:
    """What decides the bytes of the result."""
    texts = {f"the text of --{name.replace('_', '-')}": sha256(Path(path)) for name in TEXTS
             if (path := getattr(config, name))}
    options = {f"--{name.replace('_', '-')}": value for name, value in config.to_json().items()}
    return {"edgetune": __version__, "the source": [source.fingerprint, source.sha256],
            "the number of threads": thread_count(config.threads), **options, **texts}


def _refuse_another(folder: Path, run: dict[str, Any]) -> None:
    """Raises UsageError where the folder holds a run of something else."""
    try:
        before = json.loads((folder / RUN).read_text())
        changed = next((name for name in {**run, **before} if run.get(name) != before.get(name)), "")
    except (OSError, ValueError, AttributeError):
        raise UsageError(f"{folder} holds no run to continue", "remove the folder") from None
    if changed:
        raise UsageError(f"{changed} is not what it was when {folder} was stopped",
                         "give what was given then, or remove the folder to begin again")
