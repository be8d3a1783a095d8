"""The options by which a house is made."""

from __future__ import annotations

from dataclasses import dataclass

from ..options import check_options, option

LEAST_ROWS = 200


@dataclass(frozen=True)
class Recipe:
    """The options of rows and trainings of a house."""

    language: str = option("en", "Language of the sentences.", common=True)
    count: int = option(1500, "Sentences that are drawn.", low=LEAST_ROWS, high=20_000, common=True)
    seed: int = option(0, "Seed of the sentences and of the training.", low=0)
    own: str = option("", "File of your own rows, a sentence and its calls each. They come first: drawn ones with the "
                      "same sentence are left out.", common=True)
    encoder: str = option("minilm", "Encoder that learns intents and entities.")

    def __post_init__(self) -> None:
        check_options(self)
