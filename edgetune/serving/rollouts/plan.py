"""The memory that answers take besides a decoder's own buffers, known before the first one begins.

Keys and values are kept of the prompts that are being answered and of every answer in progress, each at its greatest
length, and the states of blocks without keys. If memory is short, fewer answers are in progress at once.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from ...backends.arena import Buffer
from ...backends.base import SAMPLE_STATE
from ...errors import UsageError, size_text
from ...models.cache import Cache
from ...models.stream import HEAD_TOKENS
from .kv_blocks import blocks_for

HEAD_ENTRIES = 2048  # of the vocabulary at a time; fixed, because the rounding of a sum depends on its parts
_MIB = 1 << 20


@dataclass(frozen=True)
class AnswerPlan:
    """The sizes of answers. live: answers in progress at once. samples: answers to a prompt; prompt_tokens,
    answer_tokens: the most of one. candidates: as in draws.py. virtual: tokens of the adapter before a prompt. The
    decoder's run must take max(live, prompt_tokens) tokens in a pass, and prompt_tokens + answer_tokens in a document.
    """

    live: int
    samples: int
    prompt_tokens: int
    answer_tokens: int
    candidates: int = 0
    virtual: int = 0

    @property
    def prompts(self) -> int:
        """Prompts that are answered at once at most."""
        return min(self.live, -(-self.live // self.samples) + 1)

    @property
    def prompt_blocks(self) -> int:
        return blocks_for(self.virtual + self.prompt_tokens)

    @property
    def answer_blocks(self) -> int:
        """The blocks of one answer; its last token is not read."""
        return blocks_for(self.answer_tokens - 1)

    @property
    def path(self) -> int:
        """Blocks that one answer sees at most."""
        return self.prompt_blocks + self.answer_blocks

    @property
    def blocks(self) -> int:
        return self.prompts * self.prompt_blocks + self.live * self.answer_blocks

    @property
    def read_at_once(self) -> int:
        """Prompts that are read together at most: those whose answers fill all rows."""
        return -(-self.live // self.samples)

    @property
    def slots(self) -> int:
        """States of blocks without keys: one an answer, then one a prompt until its last answer begins."""
        return self.live + self.read_at_once

    def buffers(self, cache: Cache, activations: str) -> list[Buffer]:
        """The buffers. activations: the numpy type of keys and values."""
        rows = min(self.live, HEAD_TOKENS)
        return [
            *cache.buffers(self.blocks, self.slots, activations), *cache.work(self.live, self.live, activations),
            Buffer("answer_slots", (self.live,), "step", "int32"),
            Buffer("answer_paths", (self.live, self.path), "step", "int32"),
            Buffer("sample_state", (rows, SAMPLE_STATE), "head"),
            Buffer("drawn_token", (rows,), "head", "int32"),
            Buffer("drawn_logp", (2, rows), "head"),  # by the model, and by the distribution of the draw
            Buffer("top", (rows, self.candidates), "head"),
        ]


def fitting(plan: AnswerPlan, needs: Callable[[AnswerPlan], int], room: int, asked: str) -> AnswerPlan:
    """The plan with as many answers at once as fit into `room` bytes, at most its own number.

    needs: all bytes that a plan takes. asked: the budget as the user gave it. Raises UsageError where none fits.
    """
    low = 0
    high = plan.live
    while low < high:
        middle = (low + high + 1) // 2
        if needs(replace(plan, live=middle)) <= room:
            low = middle
        else:
            high = middle - 1
    if low:
        return replace(plan, live=low)
    least = needs(replace(plan, live=1))
    what = (f"this does not fit: one answer of {plan.answer_tokens} tokens to a prompt of {plan.prompt_tokens} needs "
            f"{size_text(-(-least // _MIB) * _MIB)}, the budget is {size_text(room // _MIB * _MIB)} ({asked})")
    raise UsageError(what, f"give it --memory {-(-least // _MIB)}M, or lower --max-tokens")
