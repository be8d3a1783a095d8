"""The Content-Security-Policy of a page that loads nothing else."""

from __future__ import annotations

import re
from base64 import b64encode
from hashlib import sha256


def policy_of(html: str) -> str:
    """A Content-Security-Policy under which the page's own scripts and styles run, and nothing else does."""
    return (f"default-src 'none'; script-src {_hashes(html, 'script')}; style-src {_hashes(html, 'style')}; "
            "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
            "require-trusted-types-for 'script'")


def report_policy(html: str) -> str:
    """One under which a report has its own styles, whichever edgetune wrote it, and nothing runs."""
    return (f"default-src 'none'; style-src {_hashes(html, 'style')}; base-uri 'none'; form-action 'none'; "
            "frame-ancestors 'none'")


def _hashes(html: str, tag: str) -> str:
    found = re.findall(rf"<{tag}[^>]*>(.*?)</{tag}>", html, re.DOTALL)
    return " ".join(f"'sha256-{b64encode(sha256(text.encode()).digest()).decode()}'" for text in found) or "'none'"
