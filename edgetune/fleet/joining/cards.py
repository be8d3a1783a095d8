"""The devices that sum in secret in a fleet: those that joined and were approved, else those that published a key.

    FOLDER/keys/NAME.json     the card of a device that follows the folder; what a sync carries
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from ...disk import json_text, read_object, replaced
from ...errors import EdgetuneError, FormatError, UsageError
from ...persisted import from_json
from ..secret.cards import Card
from .members import APPROVED, MOST, is_joined, read_members

KEYS = "keys"
VERSION = 1


def publish(folder: Path, card: Card) -> bool:
    """Writes the card of a device into a folder; False: it is there. Raises DiskError, UsageError without a folder."""
    path = folder / KEYS / f"{card.device}.json"
    text = json_text({"version": VERSION, **asdict(card)}, indent=1) + "\n"
    if not folder.is_dir():
        raise UsageError(f"there is no folder {folder}", "name the folder that all devices see")
    if path.is_file() and path.read_text("utf-8", "replace") == text:
        return False
    path.parent.mkdir(exist_ok=True)
    with replaced(path) as beside:
        beside.write_text(text, encoding="utf-8")
    return True


def cards_of(folder: Path) -> tuple[list[Card], dict[str, str]]:
    """(the cards of a fleet's devices, checked; of others why they cannot count, by name)"""
    if is_joined(folder):
        members, wrong = read_members(folder)
        cards = [Card(one.device, one.secret, one.key if one.signature else "", one.signature)
                 for one in members.values() if one.state == APPROVED]
        return cards, {f"members {i}": why for i, why in enumerate(wrong, 1)}
    cards = []
    against = {}
    for path in sorted((folder / KEYS).glob("*.json")):
        try:
            cards.append(_read(path))
        except EdgetuneError as error:
            against[path.stem[:64]] = error.what
    return cards, against


def _read(path: Path) -> Card:
    found = read_object(path, "remove it; the device writes it again", MOST) or {}
    if found.pop("version", None) != VERSION:
        raise FormatError(f"{path} is of another version than {VERSION}", "use the same edgetune on all devices")
    card = from_json(Card, found, str(path)).check(str(path))
    if card.device != path.stem:
        raise FormatError(f"{path} has the key of {card.device}", "remove it; the device writes it again")
    return card
