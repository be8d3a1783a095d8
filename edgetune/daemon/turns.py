"""A turn of a chat whose earlier turns are known only by their tokens, as `context` of Ollama's API has them."""

from __future__ import annotations

from collections.abc import Sequence

from ..errors import UsageError
from ..llamacpp.tokenizer import Tokenizer
from ..serving.served import Served

ANSWER = "the-earlier-answer-ends-here"
EARLIER = ({"role": "user", "content": "?"}, {"role": "assistant", "content": ANSWER})  # before the turn, to render it


def continued(tokens: Sequence[int], rendered: str, served: Served) -> list[int]:
    """Returns the token ids of a chat: those of its earlier turns, and of what the template writes after an answer.

    rendered: EARLIER and the messages of this turn. Raises UsageError for a model that reads only the last message.
    """
    tokenizer = served.tokenizer
    place = rendered.find(ANSWER)
    if place < 0 or not isinstance(tokenizer, Tokenizer):
        raise UsageError("context is given, and the model reads one message only", "leave it out")
    return [*tokens, *tokenizer.encode(rendered[place + len(ANSWER) :], continues=True)]
