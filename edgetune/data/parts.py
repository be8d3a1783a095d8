"""The files that DATA names: a file, several between commas, a folder of files, or a data set of the hub.

All of them are read as if they were one file, in this order; a file or folder of the whole name comes first.
"""

from __future__ import annotations

import logging
import os
import re
import shutil
from collections import defaultdict
from pathlib import Path

from .. import disk
from ..errors import DataError, UsageError

# Data sets of the Hugging Face hub are hf:ORG/NAME, hf:ORG/NAME:SPLIT or hf:ORG/NAME:CONFIG/SPLIT. The hub keeps the
# public ones as Parquet too, in a branch of each repository: CONFIG/SPLIT/0000.parquet and so on.
HUB = "hf:"
BRANCH = "refs/convert/parquet"
SPLIT = "train"  # that of a name without one
_NAME = re.compile(r"hf:([\w.-]+/[\w.-]+)(?::(?:([\w.-]+)/)?([\w.-]+))?")
_FILE = re.compile(r"([\w.-]+)/([\w.-]+)/[\w.-]+\.parquet")
log = logging.getLogger("edgetune.hub")


def is_name(name: str) -> bool:
    return name.startswith(HUB) and not os.path.lexists(name)


def fetched(name: str) -> list[Path]:
    """The files of a split, in the cache. Raises UsageError for what is no such name, and errors of the hub."""
    found = _NAME.fullmatch(name)
    if not found or ".." in name:
        raise UsageError(f"the data set is {name!r:.200}", f"name it {HUB}ORG/NAME, {HUB}ORG/NAME:SPLIT or "
                         f"{HUB}ORG/NAME:CONFIG/SPLIT")
    repo, config, split = found[1], found[2] or "", found[3] or SPLIT
    folder = disk.cache_folder() / "data" / repo / (config or "any") / split
    if not folder.is_dir():
        from ..hub import asking  # here: few read rows from the hub
        with asking(name):
            _download(name, repo, config, split, folder)
    return sorted(folder.glob("*.parquet"))


def _download(name: str, repo: str, config: str, split: str, folder: Path) -> None:
    """Downloads into a folder that is renamed once it is whole; what has come before is kept for the next try."""
    from ..hub import library, quiet
    hub = library()
    endpoint = os.environ.get("HF_ENDPOINT") or None
    about = hub.HfApi(endpoint=endpoint).dataset_info(repo, revision=BRANCH, files_metadata=True)
    files = _chosen(name, [(each.rfilename, each.size or 0) for each in about.siblings or []], config, split)
    beside = folder.with_name(f"{folder.name}.partial")
    try:
        beside.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise disk.cannot_write(beside, error) from None
    size = sum(files.values())
    disk.require_room(beside, size)
    log.info("%s: downloading %.1f MiB", name, size / disk.MIB)
    with quiet(hub):
        for file in files:
            hub.hf_hub_download(repo, file, repo_type="dataset", revision=about.sha, local_dir=beside,
                                endpoint=endpoint)
    (beside / Path(next(iter(files))).parent).replace(folder)
    shutil.rmtree(beside, ignore_errors=True)


def _chosen(name: str, files: list[tuple[str, int]], config: str, split: str) -> dict[str, int]:
    """{file: bytes} of the split. Raises DataError where the name leaves open which one, or there is none."""
    splits: dict[tuple[str, str], dict[str, int]] = defaultdict(dict)
    for file, size in files:
        if found := _FILE.fullmatch(file):
            splits[found[1], found[2]][file] = size
    fitting = [key for key in splits if key[1] == split and config in ("", key[0])]
    if len(fitting) > 1 and ("default", split) in fitting:
        fitting = [("default", split)]
    if len(fitting) != 1:
        repo = name[:name.index(":", len(HUB))] if ":" in name[len(HUB):] else name
        known = ", ".join(f"{repo}:{one}/{other}" for one, other in list(splits)[:12])
        what = f"has {len(fitting)} splits of that name" if fitting else f"has no split {split}"
        raise DataError(f"{name} {what}", f"name one: {known}" if known else "the hub has it not as Parquet: download "
                        "its files, and give them")
    return dict(sorted(splits[fitting[0]].items()))


STDIN = "-"  # the name by which rows are read from standard input
SUFFIXES = (".jsonl", ".json", ".csv", ".tsv", ".txt", ".parquet")
TEST_NAMES = ("valid", "validation", "val", "dev", "test", "eval")  # stems of files that are not learned


def names_of(path: Path) -> list[str]:
    """The names between commas."""
    text = str(path)
    if os.path.lexists(text):
        return [text]
    return [name.strip() for name in text.split(",") if name.strip()]


def parts_of(path: Path) -> list[Path]:
    """The files that hold the rows; those of the hub are downloaded, unless they are in the cache. Raises DataError."""
    names = names_of(path)
    if STDIN in names and len(names) > 1:
        raise DataError(f"{path} names standard input and other files", "write its rows to a file")
    return [file for name in names for file in _files(name)]


def absolute(path: Path) -> str:
    """The names, such that they can be opened from any folder."""
    return ",".join(name if name == STDIN or is_name(name) else str(Path(name).absolute())
                    for name in names_of(path))


def title_of(path: Path) -> str:
    """A short name of all of it, for sentences."""
    names = names_of(path)
    return Path(names[0]).name if len(names) == 1 and not is_name(names[0]) else str(path)


def _files(name: str) -> list[Path]:
    if is_name(name):
        return fetched(name)
    path = Path(name)
    if not path.is_dir():
        return [path]
    found = sorted(file for file in path.iterdir() if file.suffix.lower() in SUFFIXES)
    if not found:
        raise DataError(f"the folder {path} has no files of rows", f"it may have {', '.join(SUFFIXES)}")
    if aside := [file.name for file in found if file.stem.lower() in TEST_NAMES]:
        names = ", ".join(file.name for file in found)
        raise DataError(f"the folder {path} has {names}, not all of which are to learn",
                        f"name the files: the rows to learn as DATA, and --eval {path / aside[0]}")
    return found
