"""The options by which a house is made."""

from __future__ import annotations

from dataclasses import dataclass

from ...options import check_options, option

LEAST_ROWS = 200
ENCODER, DECODER, BOTH = "encoder", "decoder", "both"


@dataclass(frozen=True)
class Recipe:
    """The options of rows and trainings of a house."""

    language: str = option("en", "Language of the sentences.", common=True)
    count: int = option(1500, "Sentences that are drawn.", low=LEAST_ROWS, high=20_000, common=True)
    seed: int = option(0, "Seed of the sentences and of the training.", low=0)
    own: str = option("", "File of your own rows, a sentence and its calls each. They come first: drawn ones with the "
                      "same sentence are left out.", common=True)
    with_: str = option(ENCODER, "What learns them: the encoder, the decoder, which is a model that writes text, or "
                        "both: then the decoder is asked where the encoder is not sure.",
                        choices=(ENCODER, DECODER, BOTH), common=True)
    encoder: str = option("minilm", "Encoder that learns tools and entities.")
    decoder: str = option("smollm2", "Model that learns to write calls.")

    def __post_init__(self) -> None:
        check_options(self)

    @property
    def models(self) -> dict[str, str]:
        """The models that learn: {ENCODER: name, DECODER: name}, or one of them."""
        return {kind: str(getattr(self, kind)) for kind in (ENCODER, DECODER) if self.with_ in (kind, BOTH)}
