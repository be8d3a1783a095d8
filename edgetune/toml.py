"""Flat TOML: `name = value` lines, for board profiles and policy files (Python 3.10 has no tomllib).

Values are strings, numbers, true, false and lists of these on one line; comments stand anywhere. There are no tables.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Any

from .errors import FormatError

_LINE = re.compile(r"([A-Za-z0-9_-]+)\s*=\s*(.+)")
_WAY_OUT = 'write name = value, such as max-temp = 75 or quiet-hours = "08:00-22:00"'


def read_toml(path: Path) -> dict[str, Any]:
    """Raises FormatError for a file that cannot be read, a line of another form, or a name given twice."""
    try:
        lines = path.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise FormatError(f"cannot read {path}: {reason}", "check the path") from None
    found: dict[str, Any] = {}
    for number, line in enumerate((line.strip() for line in lines), 1):
        if not line or line.startswith("#"):
            continue
        match = _LINE.fullmatch(line)
        if match is None or match[1] in found:
            what = "gives a name twice" if match else "is not name = value"
            raise FormatError(f"line {number} of {path} {what}: {line[:60]!r}", _WAY_OUT)
        found[match[1]] = _value(match[2], number, path)
    return found


def _value(text: str, number: int, path: Path) -> Any:
    """The literal and a comment behind it: Python's grammar has these in common with TOML's."""
    word = text.partition("#")[0].strip()
    if word in ("true", "false"):
        return word == "true"
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        value = None
    items = value if isinstance(value, list) else [value]
    if not all(type(item) in (str, int, float) for item in items):
        raise FormatError(f"line {number} of {path} has a value that is no string, number, true, false or list: "
                          f"{text[:60]!r}", _WAY_OUT)
    return value
