"""What a roll-out brings, a signed folder: an adapter, the base that it belongs to, and which edgetune it needs.

    artifact.json            facts, and the digest of each file
    adapter/                 adapter.gguf, and run.json and schema.json where it has them
    manifest.sig             the signature, where there is one

It is named by the SHA-256 of its artifact.json.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ...adapters import store
from ...disk import MIB, new_folder, sha256
from ...errors import FormatError, MismatchError, UsageError
from ...formats.gguf import open_gguf
from ...version import __version__
from ..signed_folder import AGAIN, check_file, read_facts, write_facts

VERSION = 1
FACTS = "artifact.json"
ADAPTER = "adapter"
KIND = "adapter"
NEEDED = f"{ADAPTER}/{store.FILE}"
NAMES = (store.FILE, store.RUN, store.SCHEMA)
MOST_BYTES = 2048 * MIB


@dataclass(frozen=True)
class ArtifactFacts:
    """artifact.json. base: the fingerprint of the model; "": not known. files: the SHA-256 of each. supersedes: digests
    of adapters that it replaces, and that may not replace it. least: the earliest edgetune that can use it.
    """

    version: int
    kind: str
    name: str
    base: str
    files: dict[str, str]
    supersedes: list[str]
    least: str
    edgetune: str = __version__


@dataclass(frozen=True)
class Artifact:
    """An opened artifact. name: the SHA-256 of its artifact.json; digest: of its adapter.gguf."""

    folder: Path
    name: str
    facts: ArtifactFacts

    @property
    def adapter(self) -> Path:
        return self.folder / ADAPTER

    @property
    def digest(self) -> str:
        return self.facts.files[NEEDED]


def write_artifact(folder: Path, adapter: Path, *, supersedes: Sequence[str] = (), least: str = __version__,
                   key: Path | None = None) -> None:
    """Writes an artifact as a new folder, whole or not at all. adapter: a folder with adapter.gguf. key: signs it.

    Raises UsageError where the folder exists or a version is none, FormatError for no adapter, DiskError.
    """
    version_of(least)
    source = adapter if adapter.is_dir() else adapter.parent
    if not (source / store.FILE).is_file():
        raise UsageError(f"{adapter} has no {store.FILE}", "name the folder of an adapter")
    _, base = store.base_of(open_gguf(source / store.FILE))
    with new_folder(folder) as beside:
        (beside / ADAPTER).mkdir()
        files = {}
        for name in NAMES:
            if (source / name).is_file():
                shutil.copyfile(source / name, beside / ADAPTER / name)
                files[f"{ADAPTER}/{name}"] = sha256(beside / ADAPTER / name)
        facts = ArtifactFacts(VERSION, KIND, source.name, base, files, [*supersedes], least)
        write_facts(beside, FACTS, facts, key)


def open_artifact(folder: Path, name: str = "") -> Artifact:
    """An artifact that is whole. name: the one that it must be; "": any. Raises FormatError, MismatchError, and
    UsageError for one that this edgetune cannot use.
    """
    facts, found, _ = read_facts(folder, FACTS, ArtifactFacts, VERSION)
    if name and name != found:
        raise MismatchError(f"{folder} is the artifact {found:.12}..., the order is about {name:.12}...", AGAIN)
    if facts.kind != KIND:
        raise UsageError(f"{folder} is of the kind {facts.kind!r:.40}, this edgetune knows {KIND}",
                         "use a newer edgetune")
    if version_of(facts.least) > version_of(__version__):
        raise UsageError(f"{folder} needs edgetune {facts.least:.20}, this is {__version__}", "update edgetune")
    allowed = {f"{ADAPTER}/{name}" for name in NAMES}
    if NEEDED not in facts.files or not allowed.issuperset(facts.files):
        raise FormatError(f"{folder / FACTS} lists {', '.join(facts.files) or 'no files':.200}", AGAIN)
    for path, digest in facts.files.items():
        check_file(folder / path, digest, MOST_BYTES)
    return Artifact(folder, found, facts)


def digest_of(folder: Path) -> str:
    """The digest of an artifact's adapter, which is not read."""
    facts, _, _ = read_facts(folder, FACTS, ArtifactFacts, VERSION)
    return facts.files.get(NEEDED, "")


def version_of(text: str) -> tuple[int, ...]:
    """A version such as 0.1.0 as numbers. Raises UsageError."""
    found = re.match(r"\d{1,6}(?:\.\d{1,6}){0,3}", text)
    if not found:
        raise UsageError(f"the version is {text!r:.40}", "give one such as 0.1.0")
    return tuple(map(int, found[0].split(".")))
