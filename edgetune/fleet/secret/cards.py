"""The public X25519 key of a device, which its Ed25519 key signs: so that nobody gives it other masks in its name.

Anybody can make keys. Whether an Ed25519 key is that of a device is known to whoever has compared its first digits.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ...errors import FormatError, MismatchError, UsageError
from ...formats.signature import verifies
from ..listed_keys import listed_keys

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

PUBLIC = re.compile("[0-9a-f]{64}")
SHOWN = 16  # digits of a key by which people compare it
_SIGNATURE = re.compile("[0-9a-f]{128}")
_DEVICE = re.compile(r"[\w-]{1,64}")
_HEAD = "edgetune fleet secret key"  # so that nothing else that the key signs is a card


@dataclass(frozen=True)
class Card:
    """device: its name. secret: its public X25519 key; key: the public Ed25519 key that signed it; in hexadecimal
    digits. key, signature: "" where nobody did.
    """

    device: str
    secret: str
    key: str = ""
    signature: str = ""

    def check(self, source: str) -> Card:
        """Returns self. Raises FormatError for what is no card, MismatchError for a signature of another card."""
        if not (_DEVICE.fullmatch(self.device) and PUBLIC.fullmatch(self.secret)) or bool(self.key) != bool(
                self.signature) or (self.key and not (PUBLIC.fullmatch(self.key) and
                                                      _SIGNATURE.fullmatch(self.signature))):
            raise FormatError(f"{source} has a key of the device {self.device!r:.70} that is none",
                              "let the device follow the fleet again")
        if self.key and not verifies(self.key, self.signature, _message(self.device, self.secret)):
            raise MismatchError(f"the key of {self.device} in {source} is not signed by that device",
                                "let the device follow the fleet again")
        return self


def make_card(device: str, secret: str, key: Ed25519PrivateKey | None) -> Card:
    """The card of a device. secret: its public X25519 key; key: signs it."""
    if key is None:
        return Card(device, secret)
    return Card(device, secret, key.public_key().public_bytes_raw().hex(), key.sign(_message(device, secret)).hex())


def read_peers(path: Path) -> tuple[str, ...]:
    """The Ed25519 keys in a file of the devices that its owner knows, one a line: all digits, or the first ones by
    which people compare keys, with spaces or without. What follows # is for people. Raises UsageError.
    """
    found = []
    for number, words in listed_keys(path, "write a file with a key a line"):
        key = "".join(words)
        if not re.fullmatch(f"[0-9a-f]{{{SHOWN}}}|{PUBLIC.pattern}", key):
            raise UsageError(f"line {number} of {path} is no key", f"write the first {SHOWN} digits that the device "
                             "shows, or all of them")
        found.append(key)
    return tuple(found)


def check_known(cards: Sequence[Card], own: int, threshold: int, peers: Sequence[str], source: Path) -> None:
    """Raises MismatchError where the devices of a round that are unknown here could uncover this one with the lead.

    own: its number; peers: keys of those that its owner knows. With U unknown of N devices, a lead that tells devices
    different lists of who answered learns nothing where the threshold is above (N + U) / 2 (masks.py).
    """
    known = sum(number == own or (bool(card.key) and card.key.startswith(tuple(peers)))
                for number, card in enumerate(cards))
    least = 2 * (len(cards) - threshold) + 1
    if known < max(least, 2):
        raise MismatchError(f"{known} of the {len(cards)} devices of the round are this one and those in {source}, and "
                            f"{max(least, 2)} must be", "add the keys of devices that you know")


def _message(device: str, secret: str) -> bytes:
    return f"{_HEAD}\n{device}\n{secret}\n".encode()
