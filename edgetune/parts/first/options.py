"""Options of a daemon whose encoder answers first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from ...manifest import PartOptions
from ...options import option


@dataclass(frozen=True)
class FirstOptions(PartOptions):
    """The encoder, and how sure it must be."""

    needs_text: ClassVar = ("first",)

    first: str = option("", "Adapter of an encoder, which answers what it is sure of; the model answers the rest "
                        "[the model answers all].", common=True, local=True, group="What it answers with")
    first_share: float = option(0.9, "Share of those answers that is right at least, of JSON in the fields of few "
                                "values, with a certainty of 95 % over the draw of the encoder's held-out questions.",
                                low=0.5, high=0.999)

    def files(self) -> Sequence[Path]:
        """Returns the encoder of the adapter."""
        from ...serving.encoder import encoder_of
        return [encoder_of(Path(self.first))] if self.first else []
