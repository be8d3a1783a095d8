"""The common parts of all requests and answers of the API.

An unknown field of a request is refused, not ignored: a client must not believe that it had an effect.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field


def _whole(value: Any) -> Any:
    """Converts 3.0, which is an integer in JSON, to int."""
    return int(value) if type(value) is float and value.is_integer() else value


Whole = Annotated[int, BeforeValidator(_whole)]


class Body(BaseModel):
    """A request, read strictly: "1" is not a number, and other fields are refused."""

    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)


class Answer(BaseModel):
    """A response."""


class ErrorDetail(Answer):
    message: str = Field(description="What was wrong with which value, the limit, and what to do.")
    type: str
    param: str | None
    code: str | None


class Error(Answer):
    error: ErrorDetail
