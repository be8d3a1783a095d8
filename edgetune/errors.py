"""The errors that edgetune raises for what a user, a file or a device did.

Each is one sentence: what was wrong with which value, the limit, and (the hint) the way out.
Programming mistakes stay ordinary Python exceptions.
"""

from __future__ import annotations


class EdgetuneError(Exception):
    """Something a person can mend. `what` names value and limit, `hint` the way out.

    `exit_code` is what the command line exits with: 1 failed, 2 wrong usage, 75 paused and resumable.
    """

    exit_code = 1

    def __init__(self, what: str, hint: str = "") -> None:
        super().__init__(f"{what}; {hint}" if hint else what)
        self.what = what
        self.hint = hint


class UsageError(EdgetuneError):
    """An option or argument is out of its range."""

    exit_code = 2


class FormatError(EdgetuneError):
    """A file is not what its name promises: truncated, corrupt, or of another kind."""


class UnsupportedError(EdgetuneError):
    """The file is sound, but its architecture, tensor format or tokenizer is not supported."""


class DataError(EdgetuneError):
    """Training or evaluation data cannot be used as it stands."""


class MismatchError(EdgetuneError):
    """Two things that must belong together do not: an adapter and another base, for instance."""


class NumericsError(EdgetuneError):
    """Training left the finite numbers."""


class DiskError(EdgetuneError):
    """The disk refuses: it is full, read-only or broken."""


class DiskFullError(DiskError):
    """The disk takes no more until something is removed."""


class NotFoundError(EdgetuneError):
    """Nothing has that name or number."""


class TooMuchError(EdgetuneError):
    """A file, a request or a queue is larger than it may be."""


class Interrupted(EdgetuneError):
    """A run was asked to stop and can be taken up again."""

    exit_code = 75
