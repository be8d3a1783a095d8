"""A house on disk: its entities, the rows of its training, and the adapters that learned them.

    house.json       language, models and what was measured
    entities.yaml    the entities, as they were when it was trained
    rows.jsonl       a sentence, its calls or why there are none, and its kind, a line each
    own.jsonl        a person's own sentences, where there are some
    encoder/         an adapter of the encoder, where one learned them
    decoder/         an adapter of the model that writes text, where one learned them

Of a house that is updated HOUSE answers, HOUSE.new is the one that was trained, HOUSE.before the one before. Whatever
ends an update, and whenever, HOUSE opens afterwards.
"""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...disk import alone, cannot_write, exchange, json_lines, json_text, read_object, replaced, sync
from ...errors import FormatError, NotFoundError
from ...persisted import from_json
from ...version import __version__
from .entities import Home, read_home
from .recipe import BOTH, DECODER, ENCODER

if TYPE_CHECKING:
    from .rows import HouseRow

FACTS, ENTITIES, ROWS, OWN_ROWS = "house.json", "entities.yaml", "rows.jsonl", "own.jsonl"
AGAIN = "train the house again with edgetune home train"


@dataclass(frozen=True)
class Facts:
    """language, count, seed: by which its rows were drawn. encoder, decoder: what learned them, "" for none. rows: how
    many. right, asked: of the sentences that were held out. limit: the least probability of the decoder's sure answers.
    """

    language: str
    count: int
    seed: int
    encoder: str
    rows: int
    right: int = 0
    asked: int = 0
    decoder: str = ""
    limit: float = 0.0
    edgetune: str = __version__

    @property
    def models(self) -> dict[str, str]:
        """The options of a recipe that say what learns."""
        found = {kind: name for kind, name in ((ENCODER, self.encoder), (DECODER, self.decoder)) if name}
        return {**found, "with_": BOTH if len(found) > 1 else next(iter(found))}


@dataclass(frozen=True)
class House:
    folder: Path
    facts: Facts
    home: Home

    @property
    def encoder(self) -> Path:
        """The encoder's adapter."""
        return self.folder / ENCODER

    @property
    def decoder(self) -> Path:
        """The adapter of the model that writes text."""
        return self.folder / DECODER

    @property
    def own(self) -> str:
        """The file of a person's own rows, "" without one."""
        path = self.folder / OWN_ROWS
        return str(path) if path.exists() else ""

    @classmethod
    def open(cls, folder: str | Path) -> House:
        """Opens the house in a folder. Raises NotFoundError for a folder that is no house, FormatError for a damaged
        one, and the errors of put_back and read_home.
        """
        folder = Path(folder)
        put_back(folder, FACTS)
        found = read_object(folder / FACTS, AGAIN)
        if found is None:
            raise NotFoundError(f"{folder} is no house: it has no {FACTS}", "make one with edgetune home train")
        facts = from_json(Facts, found, str(folder / FACTS))
        if not (facts.encoder or facts.decoder):
            raise FormatError(f"{folder / FACTS} names neither an encoder nor a decoder", AGAIN)
        return cls(folder, facts, read_home(folder / ENTITIES))


def write_facts(folder: Path, facts: Facts) -> None:
    """Writes house.json, whole or not at all. Raises DiskError."""
    with replaced(folder / FACTS) as beside:
        beside.write_text(json_text(asdict(facts), indent=1) + "\n", encoding="utf-8")


def write_rows(path: Path, rows: Sequence[HouseRow]) -> None:
    """Writes a line for each row, {"sentence", "calls", "why", "kind"}: all or none. Raises DiskError."""
    with replaced(path) as beside:
        beside.write_text(json_lines(map(plain, rows)), encoding="utf-8")


def plain(row: HouseRow) -> dict[str, Any]:
    return {"sentence": row.sentence, "calls": [call.to_json() for call in row.calls], "why": row.why, "kind": row.kind}


log = logging.getLogger("edgetune.parts.home")


def absolute(folder: str | Path) -> Path:
    """The folder of a house by a path that ends in its name, which "." and ".." do not."""
    return Path(os.path.abspath(folder))  # noqa: PTH100 (Path.resolve would follow a link to where the house is)


def trained_place(folder: Path) -> Path:
    """HOUSE.new."""
    return folder.with_name(f"{folder.name}.new")


def before_place(folder: Path) -> Path:
    """HOUSE.before."""
    return folder.with_name(f"{folder.name}.before")


def remove(path: Path) -> None:
    """Removes a folder, or a link to one, if it exists. Raises DiskError."""
    try:
        with suppress(FileNotFoundError):
            path.unlink() if path.is_symlink() else shutil.rmtree(path)
    except OSError as error:
        raise cannot_write(path, error) from None


def replace_house(folder: Path, trained: Path) -> None:
    """Puts a trained house in the place of a house, which is kept as HOUSE.before. Raises DiskError.

    Where two folders cannot change places in one step, there is a moment without a house; see put_back.
    """
    before = before_place(folder)
    remove(before)
    try:
        trained.rename(before)
        sync(folder.parent)
        if not exchange(before, folder):
            before.rename(trained)
            folder.rename(before)
            sync(folder.parent)
            trained.rename(folder)
        sync(folder.parent)
    except OSError as error:
        raise cannot_write(folder, error) from None


def put_back(folder: str | Path, facts: str) -> None:
    """Renames HOUSE.before to HOUSE if there is no HOUSE, because an update was killed. facts: a file of every house.

    Raises UsageError while an update runs, NotFoundError if the disk refuses.
    """
    folder = absolute(folder)
    before = before_place(folder)
    if os.path.lexists(folder) or not os.path.isfile(before / facts):  # noqa: PTH113 (it is no error if it is hidden)
        return
    with alone(before):
        if os.path.lexists(folder):
            return
        try:
            before.rename(folder)
            sync(folder.parent)
        except OSError as error:
            raise NotFoundError(f"there is no house {folder}, an update that was killed left it as {before}, and it "
                                f"cannot be renamed: {error.strerror}", "rename it to that") from None
    log.warning("an update of %s was killed: the house that was there before is in its place again", folder)
