"""The carriers of rounds: what brings tasks to devices and answers back. Each is a folder here, with a carrier.py.

A round is a folder (rounds/places.py), in which its lead works. Carriers differ in how a device sees it: as the folder
itself, or by a RoundServer, of which the device keeps a copy (copies.py). Nothing outside of a carrier's folder names
it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from typing import Any, Protocol


class RoundServer(Protocol):
    """What stands before the folder of rounds. All raise UnansweredError if it does not answer."""

    def round(self, device: str, known: str) -> tuple[Mapping[str, Any], str] | None:
        """Returns (what exchange.served_round returns, a tag of it); None: the tag is still `known`."""

    def load(self, number: int, file: str, target: Path, most: int) -> None:
        """Writes a file of a task, of at most `most` bytes, into a new one."""

    def send(self, number: int, device: str, folder: Path) -> None:
        """Sends the answer in a folder. Raises NotFoundError if the round has ended."""

    def rest(self) -> None:
        """Takes no memory until the next call."""


@dataclass(frozen=True)
class RoundAddress:
    """The place where a device takes part, as a person said it. device: its name there; "": its own. key: file of the
    key that signs its answers. joined: URL of the fleet by whose key it signs instead; "": none. server_key: file with
    a key of the server.
    """

    address: str
    device: str = ""
    key: Path | None = None
    joined: str = ""
    server_key: Path | None = None


@dataclass(frozen=True)
class CarriedRounds:
    """What a carrier opens. folder: with the rounds, on this device. device: its name. key: as of RoundAddress. server:
    of which the folder is a copy; None: the folder is all.
    """

    folder: Path
    device: str
    key: Path | None = None
    server: RoundServer | None = None


Opening = Callable[[RoundAddress, ExitStack], CarriedRounds]


@dataclass(frozen=True)
class Carrier:
    """The modules of a carrier by their use, each below its folder; they are imported when they are used.

    name: of the folder. schemes: with which the addresses begin that it opens; "": those that no other opens. opening:
    "module:function", an Opening. seconds: between two looks of a device, if nobody says how many. commands: modules
    with further commands of edgetune fleet. routes: modules with a `router`. rights: patterns of what a device may ask
    for by its signature, with its name as the group `device`. packages: further packages that its
    modules import.
    """

    name: str
    schemes: tuple[str, ...] = ()
    opening: str = ""
    seconds: float = 60.0
    commands: tuple[str, ...] = ()
    routes: tuple[str, ...] = ()
    rights: tuple[str, ...] = ()
    packages: tuple[str, ...] = ()

    def open(self, address: RoundAddress, opened: ExitStack) -> CarriedRounds:
        """Opens an address. opened: closes what it needs. Raises UsageError for one that is wrong."""
        module, _, name = self.opening.partition(":")
        found: Opening = getattr(import_module(f"{__package__}.{self.name}.{module}"), name)
        return found(address, opened)

    def places(self, names: tuple[str, ...]) -> tuple[str, ...]:
        """Returns the names of its modules below the folder of the fleet."""
        return tuple(f"carriers.{self.name}.{name}" for name in names)


@cache
def carriers() -> tuple[Carrier, ...]:
    """Returns all carriers, by name."""
    package = import_module(__package__)
    names = sorted(module.name for module in iter_modules(package.__path__) if module.ispkg)
    return tuple(import_module(f"{__package__}.{name}.carrier").CARRIER for name in names)


def carrier_of(address: str) -> Carrier:
    """Returns the carrier that opens an address: that of the longest scheme with which it begins."""
    schemes = [(len(scheme), carrier) for carrier in carriers() for scheme in carrier.schemes
               if address.startswith(scheme)]
    return max(schemes, key=lambda one: one[0])[1]
