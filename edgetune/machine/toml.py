"""TOML files of board profiles, policies and options: plain name = value, without tables."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..disk import read_small
from ..errors import FormatError

_WAY_OUT = 'write name = value, such as max-temp = 75 or quiet-hours = "08:00-22:00"'


def read_toml(path: Path, hint: str = _WAY_OUT) -> dict[str, Any]:
    """The values by name. Raises FormatError for a file that is unreadable, no TOML, or has tables or dates.

    hint: what to write instead.
    """
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    try:
        found: dict[str, Any] = tomllib.loads(read_small(path).decode())
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise FormatError(f"cannot read {path}: {reason}", "check the path") from None
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise FormatError(f"{path} is not TOML: {str(error)[:100]}", hint) from None
    for name, value in found.items():
        items = value if isinstance(value, list) else [value]
        if not all(isinstance(item, str | int | float) for item in items):
            raise FormatError(f"{path} gives {name[:60]!r} a value that is no string, number, boolean or list of these",
                              hint)
    return found


def toml_text(values: Mapping[str, Any]) -> str:
    """The lines of a file that `read_toml` reads. Raises UnicodeEncodeError for text that UTF-8 cannot hold."""
    return "".join(f"{name} = {_written(value)}\n" for name, value in values.items())


def _written(value: Any) -> str:
    """Text, numbers and lists as JSON, whose escapes TOML has too; it forbids DEL, which JSON does not."""
    if isinstance(value, float):
        return repr(value)
    text = json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    text.encode()
    return text
