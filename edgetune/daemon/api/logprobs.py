"""Log-probabilities of tokens in the shapes of OpenAI's API."""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from ...serving.completion import TokenLogprob

LEAST = -9999.0  # OpenAI's, for what is impossible: JSON has no infinity


def chat_logprobs(found: Sequence[TokenLogprob]) -> dict[str, Any]:
    """The log-probabilities of chat: for each token its text, its bytes, and the likeliest tokens there."""
    return {"content": [{**_likely(each.piece, each.logprob or 0.0),
                         "top_logprobs": [_likely(piece, logprob) for _, piece, logprob in each.top]}
                        for each in found], "refusal": None}


def completion_logprobs(found: Sequence[TokenLogprob], offset: int = 0) -> dict[str, Any]:
    """The log-probabilities of completions: lists of tokens, their values, the likeliest tokens and their places.

    A place is counted in characters; the text begins at `offset`.
    """
    places = []
    decoder = codecs.getincrementaldecoder("utf-8")("replace")  # a token may end within a character
    for each in found:
        places.append(offset)
        offset += len(decoder.decode(each.piece))
    tops = [None if each.logprob is None else _tops(each) for each in found]
    return {"tokens": [_text(each.piece) for each in found], "token_logprobs": [_bounded(each) for each in found],
            "top_logprobs": tops if any(tops) else None, "text_offset": places}


def spelling(found: Sequence[TokenLogprob], text: str) -> list[TokenLogprob]:
    """The tokens of a prompt that was given as text. Bytes that they add before it (BOS, or a space) are removed."""
    added = sum(len(each.piece) for each in found) - len(text.encode())
    spelled = list(found)
    for i, each in enumerate(found):
        if added <= 0:
            break
        spelled[i] = replace(each, piece=each.piece[added:])
        added -= len(each.piece)
    return spelled


def _tops(found: TokenLogprob) -> dict[str, float]:
    """The likeliest tokens by their text; of those with equal text (parts of characters), the likeliest."""
    return {_text(piece): max(logprob, LEAST) for _, piece, logprob in reversed(found.top)}


def _bounded(found: TokenLogprob) -> float | None:
    return None if found.logprob is None else max(found.logprob, LEAST)


def _likely(piece: bytes, logprob: float) -> dict[str, Any]:
    return {"token": _text(piece), "logprob": max(logprob, LEAST), "bytes": list(piece)}


def _text(piece: bytes) -> str:
    return piece.decode("utf-8", "replace")
