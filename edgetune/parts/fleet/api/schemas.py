"""What a fleet adds to the answer of /v1/device."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, Field


class FleetFacts(BaseModel):
    """The facts of a device in a fleet."""

    fleet: bool = Field(False, description="Whether it serves a fleet, by --fleet.")
    slot: dict[str, Any] | None = Field(None, description="Of a slot: path, rollout (that brought its base), since "
                                        "(seconds), bad and good (ratings since); null: it serves none.")
