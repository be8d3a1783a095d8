"""What a roll-out brings, a signed folder: an adapter or a base, its model, and which edgetune it needs.

    artifact.json            facts, and the digest of each file
    adapter/                 adapter.gguf, and run.json and schema.json where it has them; with a base: its adapter
    base/                    the files of a bundle
    manifest.sig             the signature, where there is one

It is named by the SHA-256 of its artifact.json.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ....adapters import store
from ....disk import MIB, new_folder, sha256
from ....errors import FormatError, MismatchError, UsageError
from ....formats.bundle import MANIFEST, MODEL, Bundle, open_bundle, write_copy
from ....formats.gguf import open_gguf
from ....version import __version__
from ..bases.slot import refuse_encoder
from ..signed_folder import AGAIN, check_file, read_facts, write_facts

VERSION = 1
FACTS = "artifact.json"
ADAPTER = "adapter"  # kinds, and folders
BASE = "base"
NAMES = (store.FILE, store.RUN, store.SCHEMA)
NEEDED = {ADAPTER: f"{ADAPTER}/{store.FILE}", BASE: f"{BASE}/{MODEL}"}  # by kind: the file that tells two apart
FILES = tuple(f"{ADAPTER}/{name}" for name in NAMES)
_OF_BASE = re.compile(rf"{BASE}/[A-Za-z0-9_][\w.+-]{{0,99}}")  # the name of a file in a bundle
MOST_BYTES = 2048 * MIB
MOST_BASE = 2**20 * MIB


@dataclass(frozen=True)
class ArtifactFacts:
    """artifact.json. base: the fingerprint of the model; "": not known. files, sizes: SHA-256 and bytes of each.
    supersedes: digests of those of its kind that it replaces, and that may not replace it. least: the earliest edgetune
    that can use it.
    """

    version: int
    kind: str
    name: str
    base: str
    files: dict[str, str]
    supersedes: list[str]
    least: str
    edgetune: str = __version__
    sizes: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class RolloutArtifact:
    """An opened artifact. name: the SHA-256 of its artifact.json; digest: of its adapter.gguf, or its model.gguf."""

    folder: Path
    name: str
    facts: ArtifactFacts

    @property
    def adapter(self) -> Path:
        return self.folder / ADAPTER

    @property
    def base(self) -> Path:
        return self.folder / BASE

    @property
    def has_adapter(self) -> bool:
        return NEEDED[ADAPTER] in self.facts.files

    @property
    def digest(self) -> str:
        return self.facts.files[NEEDED[self.facts.kind]]

    def check_file(self, file: str, path: Path) -> None:
        """Raises FormatError unless this is that file of the artifact."""
        check_file(path, self.facts.files[file], MOST_BASE if file.startswith(f"{BASE}/") else MOST_BYTES)


def write_artifact(folder: Path, source: Path, *, adapter: Path | None = None, supersedes: Sequence[str] = (),
                   least: str = __version__, key: Path | None = None) -> None:
    """Writes an artifact as a new folder, whole or not at all. source: a folder with adapter.gguf, or a base: a bundle
    or a GGUF, which becomes one. adapter: of this base, that comes with it. key: signs it, and such a bundle.

    Raises UsageError if the folder exists or a version is none, FormatError for no adapter, MismatchError for one of
    another base, errors of open_bundle, DiskError.
    """
    version_of(least)
    if is_base(source):
        bundle = open_bundle(source)
        refuse_encoder(bundle.gguf.architecture, str(source))
        kind, name, base = BASE, source.name, bundle.fingerprint
        brought = None if adapter is None else _folder(adapter)
    elif adapter is not None:
        raise UsageError(f"{source} is an adapter, and another one is to come with it", "roll out one, then the other")
    else:
        bundle, kind, brought = None, ADAPTER, _folder(source)
        name, base = brought.name, store.base_of(open_gguf(brought / store.FILE))[1]
    if bundle is not None and brought is not None:
        store.open_adapter(brought, bundle.gguf)
    with new_folder(folder) as beside:
        _fill(beside, bundle, brought, key)
        files = {f"{path.parent.name}/{path.name}": path for path in sorted(beside.glob("*/*"))}
        facts = ArtifactFacts(VERSION, kind, name, base, {file: sha256(path) for file, path in files.items()},
                              [*supersedes], least, sizes={file: path.stat().st_size for file, path in files.items()})
        _check_names(beside, facts)
        write_facts(beside, FACTS, facts, key)


def is_base(source: Path) -> bool:
    """Returns whether this is to be rolled out as a base: no adapter's file or folder."""
    if source.is_dir():
        return (source / MANIFEST).is_file() and not (source / store.FILE).is_file()
    return source.name != store.FILE and not (source.parent / store.FILE).is_file()


def _folder(adapter: Path) -> Path:
    source = adapter if adapter.is_dir() else adapter.parent
    if not (source / store.FILE).is_file():
        raise UsageError(f"{adapter} has no {store.FILE}", "name the folder of an adapter, or a base")
    return source


def _fill(beside: Path, bundle: Bundle | None, adapter: Path | None, key: Path | None) -> None:
    if bundle is not None:
        (beside / BASE).mkdir()
        write_copy(bundle, beside / BASE, key)
    if adapter is not None:
        (beside / ADAPTER).mkdir()
        for name in NAMES:
            if (adapter / name).is_file():
                shutil.copyfile(adapter / name, beside / ADAPTER / name)


def read_artifact(folder: Path, name: str = "") -> RolloutArtifact:
    """Returns an artifact whose files were not looked at. name: the one that it must be; "": any. Raises FormatError,
    MismatchError, and UsageError for one that this edgetune cannot use.
    """
    facts, found, _ = read_facts(folder, FACTS, ArtifactFacts, VERSION)
    if name and name != found:
        raise MismatchError(f"{folder} is the artifact {found:.12}..., the order is about {name:.12}...", AGAIN)
    if facts.kind not in NEEDED:
        raise UsageError(f"{folder} is of the kind {facts.kind!r:.40}, this edgetune knows {', '.join(NEEDED)}",
                         "use a newer edgetune")
    if version_of(facts.least) > version_of(__version__):
        raise UsageError(f"{folder} needs edgetune {facts.least:.20}, this is {__version__}", "update edgetune")
    _check_names(folder, facts)
    return RolloutArtifact(folder, found, facts)


def open_artifact(folder: Path, name: str = "") -> RolloutArtifact:
    """Returns an artifact that is whole: each file is read. Otherwise as read_artifact."""
    found = read_artifact(folder, name)
    for file in found.facts.files:
        found.check_file(file, folder / file)
    return found


def is_of_base(file: object) -> bool:
    """Returns whether this may be the name of a file of a base."""
    return isinstance(file, str) and _OF_BASE.fullmatch(file) is not None


def _check_names(folder: Path, facts: ArtifactFacts) -> None:
    """Raises FormatError for files that do not belong to its kind."""
    strange = [file for file in facts.files if not (
        file in FILES or (facts.kind == BASE and is_of_base(file)))]
    if facts.kind == BASE:
        strange += [file for file in facts.files if type(facts.sizes.get(file)) is not int]
    if NEEDED[facts.kind] not in facts.files or strange:
        raise FormatError(f"{folder / FACTS} lists {', '.join(strange or facts.files) or 'no files':.200}", AGAIN)


def kind_and_digest(folder: Path) -> tuple[str, str]:
    """Returns the kind of an artifact and its digest, of which no file is read."""
    facts = _facts(folder)
    return facts.kind, facts.files.get(NEEDED.get(facts.kind, ""), "")


def listed(folder: Path) -> list[str]:
    """Returns the files that an artifact of any kind lists."""
    return [*_facts(folder).files]


def _facts(folder: Path) -> ArtifactFacts:
    return read_facts(folder, FACTS, ArtifactFacts, VERSION)[0]


def version_of(text: str) -> tuple[int, ...]:
    """Returns a version such as 0.1.0 as numbers. Raises UsageError."""
    found = re.match(r"\d{1,6}(?:\.\d{1,6}){0,3}", text)
    if not found:
        raise UsageError(f"the version is {text!r:.40}", "give one such as 0.1.0")
    return tuple(map(int, found[0].split(".")))
