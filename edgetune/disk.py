"""Files and folders that appear whole under their name or not at all: written next to it, synced, renamed.

A power cut may lose what was not synced, in any order: so a file is synced before its name, and the folder after that.
"""

from __future__ import annotations

import errno
import fcntl
import glob
import hashlib
import json
import os
import shutil
import stat
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO, Generic, TypeVar

from .errors import DiskError, DiskFullError, FormatError, TooMuchError, UsageError, lacking, size_text

T = TypeVar("T")
R = TypeVar("R")
MIB = 1 << 20
PIECE = 1 << 16  # bytes that are read at once
KINDS = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a pipe", stat.S_IFCHR: "a device", stat.S_IFBLK: "a device"}
LOCK_SECONDS = 10.0  # to wait for the lock of a record's folder: a change takes milliseconds
LOCK_POLL = 0.002  # seconds between two tries
AT_FDCWD, RENAME_EXCHANGE = -100, 2  # of Linux
CLOCK_ERROR = 2.0  # seconds by which the time at which a process began may be wrong
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # no place on the disk, in the quota, below the limit of a file
NO_ROOM = (errno.ENOMEM, errno.EAGAIN, errno.EMFILE, errno.ENFILE)  # for a process, a thread, an open file
PASSING = (*FULL, *NO_ROOM, errno.EIO, errno.EROFS)  # what the disk or the system refuses, whoever asks


def open_regular(path: str | os.PathLike[str]) -> BinaryIO:
    """A regular file, open for reading. Raises OSError, also for a pipe or a device: it could block, or never end."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # a pipe without a writer does not block
    kind = stat.S_IFMT(os.fstat(descriptor).st_mode)
    if kind == stat.S_IFREG:
        return os.fdopen(descriptor, "rb")
    os.close(descriptor)
    raise OSError(errno.EINVAL, f"it is {KINDS.get(kind, 'a special file')}, not a regular file")


def read_small(path: str | os.PathLike[str], limit: int = MIB) -> bytes:
    """All of a regular file of at most `limit` bytes. Raises OSError, whose strerror names what is wrong."""
    found = bytearray()
    with open_regular(path) as file:  # its size says nothing: files of /proc have none
        while piece := file.read(min(PIECE, limit + 1 - len(found))):
            found += piece
    if len(found) > limit:
        raise OSError(errno.EFBIG, f"it is larger than {size_text(limit)}")
    return bytes(found)


def read_key_file(path: Path) -> str:
    """The text of a file that holds a key. Raises UsageError."""
    try:
        return read_small(path).decode("utf-8", "replace").strip()
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}", "name the file that holds the key") from None


def read_object(path: Path, hint: str, limit: int = 64 * MIB) -> dict[str, Any] | None:
    """A file's JSON object; None without the file. hint: the way out of a damaged one, a FormatError."""
    try:
        found = json.loads(read_small(path, limit))
    except FileNotFoundError:
        return None
    except OSError as error:
        raise FormatError(f"{path} cannot be read: {error.strerror}", hint) from None
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{path} is damaged: {error}", hint) from None
    if not isinstance(found, dict):
        raise FormatError(f"{path} is not a JSON object", hint)
    return found


def json_text(value: Any, **options: Any) -> str:
    """A value as JSON that a file in UTF-8 takes, and a person can read: half a pair of surrogates alone is escaped."""
    return json.dumps(value, ensure_ascii=False, **options).encode("utf-8", "backslashreplace").decode()


def json_lines(values: Iterable[Any]) -> str:
    """Values as lines of JSON, as `json_text` writes it."""
    return "".join(json_text(value) + "\n" for value in values)


def sha256(path: str | os.PathLike[str]) -> str:
    """Digests the bytes of a regular file, in hexadecimal digits. Raises OSError."""
    digest = hashlib.sha256()
    with open_regular(path) as file:
        while chunk := file.read(PIECE):
            digest.update(chunk)
    return digest.hexdigest()


@contextmanager
def replaced(path: Path) -> Iterator[Path]:
    """A name next to `path` to write to: synced and renamed to `path` at the end, removed after an error."""
    beside = path.with_name(f"{path.name}.tmp")
    try:
        yield beside
        sync(beside)
        beside.replace(path)
        sync(path.parent)
    except OSError as error:
        raise cannot_write(path, error) from None
    finally:
        with suppress(OSError):  # a disk that is read-only says so even of a file that does not exist
            beside.unlink(missing_ok=True)


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A folder next to `path`: renamed to `path` at the end, removed after an error; UsageError if it exists. Folders
    that killed processes left there for this path are removed.
    """
    refuse_existing(path)
    beside = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        _remove_left(path)
        beside.mkdir(parents=True)
        _begun.add(beside)
        try:
            yield beside
            sync_whole(beside)
            beside.rename(path)
            sync(path.parent)
        finally:
            shutil.rmtree(beside, ignore_errors=True)
            _begun.discard(beside)
    except OSError as error:
        raise cannot_write(path, error) from None


_begun: set[Path] = set()  # the folders that threads of this process write now


def _remove_left(path: Path) -> None:
    """Removes the folders NAME.PID.tmp next to `path` that no process writes any more."""
    for left in path.parent.glob(f"{glob.escape(path.name)}.*.tmp"):
        number = left.name[len(path.name) + 1:-len(".tmp")]
        if number.isdecimal() and left not in _begun and not _is_written(left, int(number)):
            shutil.rmtree(left, ignore_errors=True)


def _is_written(left: Path, pid: int) -> bool:
    """Whether another process of this number can be writing a folder: it began before the last change."""
    import psutil  # here: few folders are left
    if pid == os.getpid():
        return False
    try:
        process = psutil.Process(pid)
        is_alive = process.status() != psutil.STATUS_ZOMBIE
        return is_alive and bool(process.create_time() - CLOCK_ERROR <= left.stat().st_ctime)
    except psutil.NoSuchProcess:
        return False
    except (psutil.Error, OSError):
        return True


def exchange(one: Path, other: Path) -> bool:
    """Lets two paths change places in one step, so that both always exist. False, and nothing is done, if the system or
    its file system cannot. Raises OSError.
    """
    import ctypes  # here: few commands need it
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if rename is None:
        return False
    if rename(AT_FDCWD, os.fsencode(one), AT_FDCWD, os.fsencode(other), RENAME_EXCHANGE) == 0:
        return True
    error = ctypes.get_errno()
    if error in (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP):
        return False
    raise OSError(error, os.strerror(error), str(other))


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Holds `folder` against other processes that ask the same; the kernel lets go when this one ends, however it ends.

    Raises UsageError where another holds it, TooMuchError where the system opens no further file.
    """
    with refusals():
        handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UsageError(f"another process is writing to {folder}", "wait for it or stop it") from None
        except OSError:
            pass  # some network file systems have no locks
        yield
    finally:
        os.close(handle)


def require_room(folder: Path, nbytes: int) -> None:
    """Raises DiskFullError where fewer than nbytes are free, DiskError where the folder cannot be reached."""
    try:
        free = shutil.disk_usage(folder).free
    except OSError as error:
        raise DiskError(f"{folder} cannot be reached: {error.strerror}", "mount its disk, or make it again") from None
    if free < nbytes:
        raise DiskFullError(f"{folder} has {size_text(free)} free, at times {size_text(nbytes)} are needed",
                            "make room or choose another place")


def refuse_existing(path: Path) -> None:
    if os.path.lexists(path):
        raise UsageError(f"the output {path} exists", "name another or remove it")


def cannot_write(path: Path, error: OSError) -> DiskError:
    """The error to raise, with its own way out for a full disk, a folder that does not exist, and all else."""
    if error.errno in FULL:
        free = size_text(shutil.disk_usage(path.parent).free)
        return DiskFullError(f"cannot write {path}: {error.strerror} ({free} are free there)",
                             "make room or choose another place")
    if not path.parent.is_dir():
        return DiskError(f"cannot write {path}: {error.strerror or error}", f"make the folder {path.parent} before")
    return DiskError(f"cannot write {path}: {error.strerror or error}", "choose another place")


def refusal(error: BaseException | None) -> TooMuchError | None:
    """The error to raise where the system has no room for a thread, a process, a mapping or an open file now, so that
    no file is to blame, whatever `error`, made of the system's, says; None for any other error.
    """
    if isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE) and (limit := lacking(error)):
        return TooMuchError(limit.what, limit.hint)
    if isinstance(error, OSError) and error.errno in NO_ROOM:
        what = f"the system has no room for {error.filename or 'more'}: {error.strerror}"
    elif isinstance(error, RuntimeError) and "can't start new thread" in str(error):
        what = "the system starts no further thread"
    else:
        return refusal(error.__context__) if error else None
    return TooMuchError(what, "try again, or end other programs")


def may_pass(error: BaseException) -> bool:
    """Whether another try may succeed later, for the disk or the system refused."""
    return (isinstance(error, OSError) and error.errno in PASSING) or refusal(error) is not None


@contextmanager
def refusals() -> Iterator[None]:
    """Within it, an error of `refusal` is raised as that."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        if (known := refusal(error)) is None:
            raise
        raise known from None


def sync(path: Path) -> None:
    """Make a file's bytes, or the names in a folder, survive a power cut."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sync_whole(path: Path) -> None:
    """The same for a file, or for a folder with all that is in it."""
    if path.is_dir():
        for inner in path.iterdir():
            sync_whole(inner)
    sync(path)


def state_folder() -> Path:
    """The folder of what a user's commands remember: edgetune/ in the folder that XDG names for it."""
    base = os.environ.get("XDG_STATE_HOME")
    return (Path(base) if base else Path.home() / ".local" / "state") / "edgetune"


def cache_folder() -> Path:
    """A user's folder of what can be had again: edgetune/ in the folder that XDG names for it."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(base) if base.startswith("/") else Path.home() / ".cache") / "edgetune"


def cache(path: Path, write: Callable[[], object], most: int) -> None:
    """Has `write` make a file of the cache, whose newest `most` of its ending stay; without it if the disk refuses."""
    with suppress(DiskError, OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        write()
        for old in sorted(path.parent.glob(f"*{path.suffix}"), key=os.path.getmtime)[:-most]:
            old.unlink(missing_ok=True)


def copy_private(source: Path, target: Path) -> None:
    """Copy a file to a new one that only its owner may read or write, from its first byte on. Raises OSError."""
    handle = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(handle, "wb") as new, source.open("rb") as opened:
        shutil.copyfileobj(opened, new)


def make_folder(path: Path) -> None:
    """Makes a folder, and those above it, if it does not exist. Raises DiskError."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise cannot_write(path, error) from None


def private_folder(path: Path) -> None:
    """Make a folder that only its owner may look into, or make it so. Raises DiskError."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        path.chmod(0o700)
    except OSError as error:
        raise cannot_write(path, error) from None


# ---- records ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Record(Generic[T]):
    """A JSON file of one dataclass that several threads and processes read, change and write.

    path: FOLDER/NAME.json; the folder exists. parse: the dataclass of the JSON object and the file's name, such as
    partial(from_json, MemberFile), which checks items to any depth. hint: the way out of a damaged file, for the error.
    limit: bytes that the file may have.

        found = record.read()                                        # None: there is no file
        record.change(lambda found: replace(found, state="revoked"))

    What `change` is given is what the file has while nobody else can change it: never act on an earlier `read`. The
    file is replaced whole, and synced before the lock is let go; after a power cut it has the old or the new content.
    While a record is changed, none in the same folder may be changed by the same thread.
    """

    path: Path
    parse: Callable[[Any, str], T]
    hint: str
    limit: int = 64 * 1024

    def read(self) -> T | None:
        """What the file has; None without a file. Raises FormatError for a damaged one. It needs no lock."""
        found = read_object(self.path, self.hint, self.limit)
        return None if found is None else self.parse(found, str(self.path))

    def change(self, change: Callable[[T | None], R]) -> R:
        """Writes what `change` makes of the content, and returns it. It is given None without a file; where it returns
        None, the file is removed. Nothing is written where it returns what it was given, or raises.

        Raises the errors of `read`, of `change` and of `exclusive`, and DiskError.
        """
        with exclusive(self.path.parent):
            found = self.read()
            made = change(found)
            if made is None:
                self._remove()
            elif made != found:
                self._write(made)
        return made

    def _write(self, made: Any) -> None:
        with replaced(self.path) as beside:
            beside.write_text(json_text(asdict(made), indent=1) + "\n", encoding="utf-8")

    def _remove(self) -> None:
        try:
            self.path.unlink(missing_ok=True)
            sync(self.path.parent)
        except OSError as error:
            raise cannot_write(self.path, error) from None


_threads: dict[tuple[int, int], threading.Lock] = {}  # of each folder, by its device and inode


@contextmanager
def exclusive(folder: Path, seconds: float = LOCK_SECONDS) -> Iterator[None]:
    """Holds a folder against all others who ask the same, threads and processes, and waits for them. It is the kernel's
    lock of the folder itself: no file lies around, and who is killed lets go.

    Not for a folder that `disk.alone` holds, which is the same lock. Raises DiskError without the folder, and where
    another has held it for this many seconds.
    """
    end = time.monotonic() + seconds
    try:
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise DiskError(f"{folder} cannot be opened: {error.strerror}", f"make the folder {folder} before") from None
    try:
        about = os.fstat(handle)
        held = _threads.setdefault((about.st_dev, about.st_ino), threading.Lock())  # some file systems have no locks
        if not held.acquire(timeout=seconds):
            raise _is_held(folder, seconds)
        try:
            while not _locked(handle):
                if time.monotonic() > end:
                    raise _is_held(folder, seconds)
                time.sleep(LOCK_POLL)
            yield
        finally:
            held.release()
    finally:
        os.close(handle)


def _locked(handle: int) -> bool:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        pass  # of network file systems: then only threads are excluded
    return True


def _is_held(folder: Path, seconds: float) -> DiskError:
    return DiskError(f"another has been writing to {folder} for {seconds:.0f} seconds", "wait for it or stop it")
