"""The Content-Security-Policy of a page that loads nothing else."""

from __future__ import annotations

import re
from base64 import b64encode
from hashlib import sha256


def policy_of(html: str) -> str:
    """A policy under which the page's own scripts and styles run, and nothing else does."""

    def hashes(tag: str) -> str:
        found = re.findall(rf"<{tag}[^>]*>(.*?)</{tag}>", html, re.DOTALL)
        return " ".join(f"'sha256-{b64encode(sha256(text.encode()).digest()).decode()}'" for text in found) or "'none'"

    return (f"default-src 'none'; script-src {hashes('script')}; style-src {hashes('style')}; connect-src 'self'; "
            "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
            "require-trusted-types-for 'script'")
