"""What the encoder adds to the answer of /v1/device."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, Field


class FirstDevice(BaseModel):
    """The encoder and the model on the same questions."""

    first: dict[str, Any] | None = Field(
        None, description="Of --first: compared, held-out questions of a sure kind with an unsure answer that both "
        "answered; encoder, model: how many only that one has right; unsure: who gives such answers.")
