"""Rows of several answers to a prompt with a reward each: {"prompt": ..., "completions": [...], "rewards": [...]}.

Prompt and answers are text, or lists of messages. A row is a group of examples, which have the rewards.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from ..errors import DataError
from ..llamacpp.tokenizer import Tokenizer
from .around import Instruction
from .packing import Example
from .prompted import TargetAnswer, in_group, text_of, with_keys
from .rewards import EXPECTED_REWARD, reward_of
from .rows import Row, json_type

EXPECTED = "prompt with completions and rewards"
SHAPE = "ranked"


def shape_of(row: Row) -> str:
    with_keys(row, ("prompt", "completions", "rewards"), "has no answers with rewards", EXPECTED)
    return SHAPE


def check_learnable(row: Row) -> str:
    """Its shape. Raises DataError, also where no answer is better than another, or the best one is empty."""
    shape = shape_of(row)
    answers = _answers(row)
    rewards = _rewards(row)
    rows = [answer.row for answer in answers]
    if len(set(rewards)) == 1:
        raise DataError(f"all {len(rewards)} rewards are {rewards[0]:g}", "remove the row: no answer is better")
    best = answers[rewards.index(max(rewards))]
    best.check_good(f"{best.name}, the best answer, is empty", "write it, or remove it")
    for i, other in enumerate(rows):
        first = rows.index(other)
        if rewards[first] != rewards[i]:
            what = f"completions[{first}] and completions[{i}] are the same, and their rewards are not"
            raise DataError(what, "remove one of them")
    return shape


def examples_of(row: Row, _shape: str, tokenizer: Tokenizer, system: Instruction, max_length: int) -> Iterable[Example]:
    return in_group([answer.example(tokenizer, system, max_length) for answer in _answers(row)], _rewards(row))


def _answers(row: Any) -> list[TargetAnswer]:
    completions = row["completions"]
    if not isinstance(completions, list) or len(completions) < 2:
        what = f"has {len(completions)}" if isinstance(completions, list) else f"is a JSON {json_type(completions)}"
        raise DataError(f"completions {what}", "write a list of 2 answers or more")
    named = {f"completions[{i}]": answer for i, answer in enumerate(completions)}
    return [TargetAnswer(name, text_of(row, "prompt"), text_of(named, name), row.get("tools")) for name in named]


def _rewards(row: Any) -> list[float]:
    rewards = row["rewards"]
    if not isinstance(rewards, list) or len(rewards) != len(row["completions"]):
        what = f"has {len(rewards)}" if isinstance(rewards, list) else f"is a JSON {json_type(rewards)}"
        raise DataError(f"rewards {what}", f"write a list of {len(row['completions'])} numbers, one a completion")
    for i, reward in enumerate(rewards):
        if isinstance(reward, bool) or reward_of(reward) is None:
            raise DataError(f"rewards[{i}] is {reward!r:.40}", EXPECTED_REWARD)
    return [float(reward) for reward in rewards]
