"""The daemon's option of a house."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from ...manifest import PartOptions
from ...options import option


@dataclass(frozen=True)
class HomeOptions(PartOptions):
    """The option of a daemon that answers for a house."""

    needs_text: ClassVar = ("home",)

    home: str = option("", "House (of edgetune home train) that answers Home Assistant; the model answers the rest "
                       "[the model answers all].", common=True, local=True, group="What it answers with")

    def files(self) -> Sequence[Path]:
        """Returns the encoder that the house's adapter was trained on."""
        from ...serving.encoder import encoder_of
        from .house import House
        house = House.open(self.home) if self.home else None
        return [encoder_of(house.encoder)] if house and house.facts.encoder else []
