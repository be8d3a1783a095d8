"""Jobs over rows that a client uploaded, or that the calling program has."""

from __future__ import annotations

from .base import JobKind
from .registry import register


@register
class FileJob(JobKind):
    """By whatever method the request names."""

    origin = "api"
