"""Files that people write by hand: YAML, or JSON, read into mappings and dataclasses with errors that name the place.

Their texts may be templates with slots: `{name}` is replaced, and `[one|other]` is one of its wordings, of which one
may be empty. Other braces and brackets stay as they are, so that a template may hold JSON.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from ...data.yaml_text import read_yaml
from ...disk import MIB, read_small
from ...errors import DataError, EdgetuneError, FormatError, NotFoundError, install_hint
from ...persisted import checked_fields

SLOT = re.compile(r"\{(\w+)\}")
CHOICE = re.compile(r"\[([^\[\]{}\"]*\|[^\[\]{}\"]*)\]")
SPACES = re.compile(r"[ \t]{2,}")


@dataclass(frozen=True)
class Template:
    """A text with slots and wordings."""

    text: str

    @property
    def slots(self) -> tuple[str, ...]:
        """The names of the slots, each once, in their order."""
        return tuple(dict.fromkeys(SLOT.findall(self.text)))

    @property
    def choices(self) -> list[list[str]]:
        """The wordings of each choice, in their order."""
        return [found.split("|") for found in CHOICE.findall(self.text)]

    def worded(self, chosen: Iterator[int]) -> str:
        """The text with a wording for each choice. chosen: their indices."""
        text = CHOICE.sub(lambda found: found[1].split("|")[next(chosen)], self.text)
        return SPACES.sub(" ", text).strip() if text != self.text else text


def filled(text: str, values: Mapping[str, Any]) -> str:
    """A text with each slot that `values` has replaced, once: a value with braces stays as it is."""
    return SLOT.sub(lambda found: str(values[found[1]]) if found[1] in values else found[0], text)


T = TypeVar("T")
MOST_BYTES = 4 * MIB


def read_spec(path: Path) -> dict[str, Any]:
    """The mapping in a file of YAML, or of JSON where its name ends in .json, in which YAML is not needed.

    Raises NotFoundError, or DataError for a file that holds no mapping.
    """
    try:
        text = read_small(path, MOST_BYTES).decode("utf-8")
    except FileNotFoundError:
        raise NotFoundError(f"there is no file {path}", "check the path") from None
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read ({error})", "give a YAML file in UTF-8") from None
    found = _json(text, path) if path.suffix == ".json" else _yaml(text, path)
    if not isinstance(found, dict):
        raise DataError(f"{path.name} holds {found!r:.60}, not keys with values", "write `key: value` on each line")
    return found


def _json(text: str, path: Path) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path.name} is not JSON ({error})", "mend it, or write YAML in a .yaml file") from None


def _yaml(text: str, path: Path) -> Any:
    try:
        return read_yaml(text, path.name, MOST_BYTES)
    except ModuleNotFoundError:
        raise EdgetuneError(f"{path.name} is YAML, and the package yaml is not installed",
                            f"{install_hint('rows')}, or write JSON in a .json file") from None


def read_part(kind: type[T], found: Any, place: str) -> T:
    """A dataclass from a part of such a file. place: its name for errors. Raises DataError for a key that there is not,
    for one that is missing, and for a value of another type.
    """
    if not isinstance(found, Mapping):
        raise DataError(f"{place} is {found!r:.60}", "write keys with values")
    try:
        return kind(**checked_fields(kind, found, place))
    except FormatError as error:
        from dataclasses import fields
        known = ", ".join(spec.name for spec in fields(kind) if spec.init)  # type: ignore[arg-type]
        raise DataError(error.what, f"its keys are {known}") from None
