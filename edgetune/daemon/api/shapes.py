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


Id = Annotated[str, Field(description="Its id.")]
Time = Annotated[int, Field(description="Seconds since 1970, UTC.")]
AsGiven = "As the request gave it."


class ErrorDetail(Answer):
    message: str = Field(description="What was wrong with which value, the limit, and what to do.")
    type: str = Field(description="invalid_request_error, authentication_error, permission_error, rate_limit_error or "
                                  "server_error.")
    param: str | None = Field(description="The field of the request that it is about, such as messages[0].role.")
    code: str | None = Field(description="A word for programs, such as not_found, invalid_value or too_much.")


class Error(Answer):
    """The body of every answer with a status from 400 on, but those of /api/."""

    error: ErrorDetail = Field(description="What went wrong.")
