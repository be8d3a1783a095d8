"""The place of a part of a JSON schema, as errors name it."""

from __future__ import annotations

from dataclasses import dataclass, replace

SHOWN_PARTS = 3  # of a long place, at its beginning and at its end
SHOWN_CHARACTERS = 40  # of each


@dataclass(frozen=True)
class Place:
    """Keys from the root of a schema; owner: whose schema it is, the name of a function. Put it after "the schema"."""

    owner: str = ""
    parts: tuple[str, ...] = ()

    def __truediv__(self, part: str | int) -> Place:
        return replace(self, parts=(*self.parts, str(part)))

    def __str__(self) -> str:
        of = f" of {self.owner:.{SHOWN_CHARACTERS}}" if self.owner else ""
        if not self.parts:
            return of
        names = [f"{part:.{SHOWN_CHARACTERS}}" for part in self.parts]
        if len(names) > 2 * SHOWN_PARTS:
            names[SHOWN_PARTS:-SHOWN_PARTS] = ["..."]
        return f"{of} at /{'/'.join(names)}"
