"""The errors that edgetune raises for what a user, a file or a device did.

Each is one sentence: what was wrong with which value, the limit, and (the hint) the way out.
Programming mistakes stay ordinary Python exceptions.
"""

from __future__ import annotations

import os
import re
import resource
import shlex
from collections.abc import Callable, Mapping
from errno import EMFILE, ENFILE, ENOMEM
from typing import Any

WORSE = 3  # exit code of a training that ended, and whose result is no better than the model before
_LESS = "let it take less: a smaller model, a lower --micro-batch or --max-length"
LONGEST = 1000  # characters of `what` and of `hint`
CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff"
                      r"\ufff9-\ufffb\ufffe\uffff]")
"""What a terminal obeys or HTML forbids: control characters but tabs and line feeds, directions, half surrogates."""


def escaped(text: str) -> str:
    """Foreign text that a terminal, a page or a file in UTF-8 takes: CONTROLS as \\x1b, \\u202e and the like."""
    return CONTROLS.sub(lambda found: found[0].encode("unicode_escape").decode("ascii"), text)


def printable(text: str) -> str:
    """The text in one line of at most LONGEST characters, control characters as \\n, \\x1b and the like."""
    if len(text) > LONGEST:
        text = text[: LONGEST - 4] + " ..."
    if text.isprintable():
        return text
    escaped = "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)
    return escaped if len(escaped) <= LONGEST else escaped[: LONGEST - 4] + " ..."


def shell_word(value: object) -> str:
    """A value, such as a path, as one word of a command that a person may copy into a shell: in one line, whatever it
    holds.
    """
    text = str(value)
    if text.isprintable():
        return shlex.quote(text)
    raw = "".join(f"\\{c}" if c in "\\'" else c if c.isprintable() else
                  "".join(f"\\x{byte:02x}" for byte in _bytes_of(c)) for c in text)
    return f"$'{raw}'"


def _bytes_of(character: str) -> bytes:
    """Encodes a character of a path, where half a surrogate pair stands for a byte that is no UTF-8."""
    is_byte = "\udc80" <= character <= "\udcff"
    return character.encode("utf-8", "surrogateescape" if is_byte else "surrogatepass")


def size_text(nbytes: float) -> str:
    """A number of bytes as people read it: 12 KiB, 253 MiB, 17.3 GiB."""
    unit, factor = next((pair for pair in (("GiB", 2**30), ("MiB", 2**20)) if nbytes >= pair[1]), ("KiB", 2**10))
    number = nbytes / factor
    text = f"{number:.2f}" if unit == "GiB" and number < 10 else f"{number:.1f}" if unit == "GiB" or number < 10 else (
        f"{number:.0f}")
    return f"{text.rstrip('0').rstrip('.') if '.' in text else text} {unit}"


def named(error: BaseException) -> str:
    """A foreign exception's class and text, as far as it can say it."""
    try:
        return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
    except Exception:  # its own code makes the text
        return type(error).__name__


def install_hint(extra: str) -> str:
    """The way out where the packages of an extra are missing. It asks no index for edgetune, which is on none."""
    return f"install the extra {extra}, in a clone by make install EXTRAS={extra}"


class EdgetuneError(Exception):
    """Something a person can mend. `what` names value and limit, `hint` the way out.

    They may quote a file, a row or a template: what a terminal would obey is escaped, and what is long is cut.
    `exit_code` is what the command line exits with: 1 failed, 2 wrong usage, 75 paused and resumable. A run that ended
    and made nothing better is no error; its code is WORSE.
    """

    exit_code = 1

    def __init__(self, what: str, hint: str = "") -> None:
        self.what = printable(what)
        self.hint = printable(hint)
        super().__init__(f"{self.what}; {self.hint}" if hint else self.what)


class UsageError(EdgetuneError):
    """An option or argument is out of its range."""

    exit_code = 2


class BudgetError(UsageError):
    """A training or an adapter does not fit into the memory that it may have. needed: bytes that it needs at least."""

    def __init__(self, what: str, hint: str, needed: int) -> None:
        super().__init__(what, hint)
        self.needed = needed


class FormatError(EdgetuneError):
    """A file is not what its name promises: truncated, corrupt, or of another kind."""


class UnsupportedError(EdgetuneError):
    """The file is sound, but its architecture, tensor format or tokenizer is not supported."""


class ContextLengthError(EdgetuneError):
    """A prompt and its answer have more tokens than the context."""


class DataError(EdgetuneError):
    """Training or evaluation data cannot be used."""


class MismatchError(EdgetuneError):
    """Two things that must belong together do not: an adapter and another base, for instance."""


class NumericsError(EdgetuneError):
    """Training left the finite numbers."""


class DeviceError(EdgetuneError):
    """A GPU cannot be used, or failed while it computed. What was saved before is whole."""


class DiskError(EdgetuneError):
    """The disk refuses: it is full, read-only or broken."""


class DiskFullError(DiskError):
    """The disk takes no more until something is removed."""


class LockedError(DiskError):
    """Another program holds a file, and may let go of it soon."""


class NotFoundError(EdgetuneError):
    """Nothing has that name or number."""


class UnansweredError(EdgetuneError):
    """A daemon does not answer now, and may later."""


class AwayError(UnansweredError):
    """What answers is no daemon, or nothing does: so nothing of what was asked is known."""


class TooMuchError(EdgetuneError):
    """A file, a request or a queue is larger than it may be."""


class TooLargeError(TooMuchError):
    """One thing is larger than it may be, whenever it comes."""


class Interrupted(EdgetuneError):
    """A run was asked to stop and can be taken up again."""

    exit_code = 75


def lacking(error: BaseException) -> EdgetuneError | None:
    """The error that says which limit of the system caused another one, or what led to that: the limit on open files,
    or on memory; None if it is neither. The loader of libraries has only words for it.
    """
    seen: BaseException | None = error
    while seen is not None:
        said = named(seen)
        if getattr(seen, "errno", None) in (EMFILE, ENFILE) or os.strerror(EMFILE) in said:
            limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
            return EdgetuneError(f"the system refuses another open file: this process may have {limit}",
                                 "raise that limit (ulimit -n 1024)")
        is_memory = isinstance(seen, MemoryError) or getattr(seen, "errno", None) == ENOMEM
        if is_memory or os.strerror(ENOMEM) in said or "failed to map segment" in said:
            limit = resource.getrlimit(resource.RLIMIT_AS)[0]
            if limit == resource.RLIM_INFINITY:
                return EdgetuneError("the system refuses more memory", f"free some, or {_LESS}")
            what = f"the system refuses more memory: this process may have {size_text(limit)} of addresses"
            return EdgetuneError(what, f"raise that limit (ulimit -v unlimited), or {_LESS}")
        seen = seen.__cause__ or seen.__context__
    return None


def told(call: Callable[[], Any]) -> dict[str, Any]:
    """What a call found, or its EdgetuneError, for another process to read; see `found_in`."""
    try:
        return {"found": call()}
    except EdgetuneError as error:
        return {"error": type(error).__name__, "what": error.what, "hint": error.hint}


def found_in(said: Mapping[str, Any]) -> Any:
    """What `told` says was found. Raises the error that it says."""
    if "error" in said:
        raise globals()[said["error"]](said["what"], said["hint"])
    return said["found"]
