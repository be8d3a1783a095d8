"""llama-server's /tokenize and /detokenize, by the vocabulary of the model that answers."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter
from pydantic import Field

from ...errors import UsageError
from ...llamacpp.tokenizer import Tokenizer
from ..keys import KeyScope
from .completions import TheService
from .errors import RESPONSES, JsonRoute
from .security import needs
from .shapes import Answer, Body, Whole

router = APIRouter(route_class=JsonRoute, responses=RESPONSES)


class TokenizeRequest(Body):
    """A text to cut into tokens."""

    content: str = Field(description="The text.")
    add_special: bool | None = Field(None, description="true: with the tokens that a prompt begins with, and of an "
                                     "encoder ends with [false].")
    parse_special: bool | None = Field(None, description="false: what spells a special token stays text; always so of "
                                       "an encoder [true].")
    with_pieces: bool | None = Field(None, description="true: each token with its text [false].")


class TokenText(Answer):
    """A token and its text."""

    id: int = Field(description="The token.")
    piece: str | list[int] = Field(description="Its text; its bytes, if they are no whole characters.")


class Tokens(Answer):
    """The tokens of a text."""

    tokens: list[int] | list[TokenText] = Field(description="In their order.")


class DetokenizeRequest(Body):
    """Tokens to write as text."""

    tokens: list[Whole] = Field(description="Token ids.")


class Detokenized(Answer):
    """The text of tokens."""

    content: str = Field(description="The text; special tokens are spelled out.")


@router.post("/tokenize", response_model=Tokens)
@needs(KeyScope.ANSWER)
def tokenize(body: TokenizeRequest, service: TheService) -> Any:
    """Cuts a text into the tokens of the model that answers, as llama-server does."""
    tokenizer = service.served.tokenizer
    if isinstance(tokenizer, Tokenizer):
        ids = tokenizer.encode(body.content, special=body.parse_special is not False, bos=bool(body.add_special))
        pieces = [_text(tokenizer.piece(id)) for id in ids]
    else:
        ids = tokenizer.encode(body.content)
        ids = ids if body.add_special else ids[1:-1]  # without the marks around it
        pieces = [tokenizer.decode([id]) for id in ids]
    if not body.with_pieces:
        return {"tokens": ids}
    return {"tokens": [{"id": id, "piece": piece} for id, piece in zip(ids, pieces, strict=True)]}


@router.post("/detokenize", response_model=Detokenized)
@needs(KeyScope.ANSWER)
def detokenize(body: DetokenizeRequest, service: TheService) -> Any:
    """Writes tokens as text, as llama-server does."""
    tokenizer = service.served.tokenizer
    for token in body.tokens:
        if not 0 <= token < tokenizer.n_vocab:
            raise UsageError(f"a token id is {token}", f"token ids must be from 0 to {tokenizer.n_vocab - 1}")
    return {"content": tokenizer.decode(body.tokens)}


def _text(piece: bytes) -> str | list[int]:
    try:
        return piece.decode()
    except UnicodeDecodeError:
        return list(piece)
