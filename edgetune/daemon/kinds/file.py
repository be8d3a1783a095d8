"""Jobs over rows that a client uploaded, or that the calling program has."""

from __future__ import annotations

from .base import JobKind
from .registry import register


@register
class FileJob(JobKind):
    """Jobs that learn by the method that the request names."""

    origin = "api"
