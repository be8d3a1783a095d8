"""The packages of graders that an installation may lack."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from ...errors import EdgetuneError

PACKAGES = ("rapidfuzz", "rouge_score", "nltk", "sacrebleu", "jsonschema")


@contextmanager
def needing(kind: str) -> Iterator[None]:
    """Converts the error for a missing package of a type of grader to an EdgetuneError that says how to install it."""
    try:
        yield
    except ModuleNotFoundError as error:
        name = (error.name or "").split(".")[0]
        if name not in PACKAGES:
            raise
        raise EdgetuneError(f"the grader {kind} needs the package {name}, which is not installed",
                            "pip install 'edgetune[graders]'") from None
