"""NAME.edge.work, where a run has its files, and by which the same command continues it after a stop or a kill."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..disk import alone, make_folder, new_folder, replaced
from ..errors import Interrupted, UsageError
from ..formats.bundle import sha256
from ..formats.work import remove
from ..machine.device import thread_count
from ..version import __version__
from .options import TEXTS, CompressConfig
from .source.source import Source

RUN = "run.json"
DISTILLATION = "healing"  # the folder of its state, as runs that were stopped have it
MEASURED = "measured"
Arrays = dict[str, NDArray[Any]]
FACTS = "facts.json"  # in a folder of files that were made
HALF = ".tmp"  # how names end that a kill left half done
ROOM = 2**28  # bytes that stay free on the disk


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


class Measured:
    """What a run has measured and made: facts, arrays and files by the name of what made them, below `folder`, which is
    made. What is returned is read back from the disk, also when it is new: so a run that continues computes with the
    same bytes.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        make_folder(folder)
        for path in folder.glob(f"*{HALF}"):
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)

    def has(self, name: str) -> bool:
        return any(self.folder.glob(f"{name}.*")) or (self.folder / name).is_dir()

    def facts(self, name: str, measure: Callable[[], Any]) -> Any:
        """What measure() returned, as JSON has it: now, or in the run that this one continues. Raises DiskError."""
        path = self.folder / f"{name}.json"
        if not path.exists():
            found = json.dumps(measure())
            with replaced(path) as beside:
                beside.write_text(found)
        return json.loads(path.read_text())

    def arrays(self, name: str, measure: Callable[[], Arrays]) -> Arrays:
        """The same for arrays by name. Where the disk has no room for them they are not kept."""
        path = self.folder / f"{name}.npz"
        if not path.exists():
            found = measure()
            distinct = {id(array): array.nbytes for array in found.values()}
            if sum(distinct.values()) + ROOM > shutil.disk_usage(self.folder).free:
                return found
            _save(path, found)
        with np.load(path, allow_pickle=False) as stored:
            arrays = [stored[f"array{number}"] for number in range(len(stored.files) - 2)]
            return {str(name): arrays[place] for name, place in zip(stored["names"], stored["places"], strict=True)}

    def made(self, name: str, make: Callable[[Path], Any]) -> tuple[Path, Any]:
        """The folder of files that make(folder) wrote, and the facts that it returned. Raises DiskError."""
        folder = self.folder / name
        if not folder.is_dir():
            with new_folder(folder) as beside:
                (beside / FACTS).write_text(json.dumps(make(beside)))
        return folder, json.loads((folder / FACTS).read_text())


def is_begun(folder: Path) -> bool:
    """Whether something is kept in a `Measured.folder`, which need not exist."""
    return any(path.suffix != HALF for path in folder.glob("*"))


def copy_files(folder: Path, to: Path) -> None:
    """What was made, without its facts, into another folder."""
    for path in sorted(folder.iterdir()):
        if path.name != FACTS:
            shutil.copyfile(path, to / path.name)


def _save(path: Path, arrays: Arrays) -> None:
    """An array with several names is written once."""
    distinct = {id(array): array for array in arrays.values()}
    numbers = {key: number for number, key in enumerate(distinct)}
    stored = {f"array{numbers[key]}": array for key, array in distinct.items()}
    names = np.array(list(arrays))
    places = np.array([numbers[id(array)] for array in arrays.values()])
    with replaced(path) as beside, beside.open("wb") as file:
        np.savez(file, allow_pickle=False, names=names, places=places, **stored)
