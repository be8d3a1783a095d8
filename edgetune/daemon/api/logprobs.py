"""Log-probabilities of tokens in the shapes of OpenAI's API."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ...serving.completion import TokenLogprob

LEAST = -9999.0  # OpenAI's, for what is impossible: JSON has no infinity


def chat_logprobs(found: Sequence[TokenLogprob]) -> dict[str, Any]:
    """Of chat: for each token its text, its bytes, and the likeliest tokens there."""
    return {"content": [{**_likely(each.piece, each.logprob),
                         "top_logprobs": [_likely(piece, logprob) for _, piece, logprob in each.top]}
                        for each in found], "refusal": None}


def completion_logprobs(found: Sequence[TokenLogprob], offset: int = 0) -> dict[str, Any]:
    """Of completions: lists of tokens, of their log-probabilities, of the likeliest tokens, and of their places in the
    text, which begins at `offset` characters.
    """
    tokens = [_text(each.piece) for each in found]
    places = []
    for token in tokens:
        places.append(offset)
        offset += len(token)
    tops = [{_text(piece): max(logprob, LEAST) for _, piece, logprob in each.top} for each in found]
    return {"tokens": tokens, "token_logprobs": [max(each.logprob, LEAST) for each in found],
            "top_logprobs": tops if any(tops) else None, "text_offset": places}


def _likely(piece: bytes, logprob: float) -> dict[str, Any]:
    return {"token": _text(piece), "logprob": max(logprob, LEAST), "bytes": list(piece)}


def _text(piece: bytes) -> str:
    return piece.decode("utf-8", "replace")
