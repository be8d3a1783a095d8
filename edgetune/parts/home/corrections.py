"""Corrections of a daemon's answers to Home Assistant, as a person's own rows of the house."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ...data.calls import calls_in
from .by_own import plain
from .tools import LIVE_CONTEXT, plain_name

WITHDRAWN = "withdrawn"  # the state of feedback that counts no longer
OF_HOME_ASSISTANT = {LIVE_CONTEXT, "HassTurnOn"}  # one of them is among the tools of each of its requests
Message = Mapping[str, Any]


def own_rows(feedback: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Rows {"sentence", "calls"} out of feedback, the latest first, as the daemon lists it. Of equal sentences the
    first counts. Raises CallError for a correction whose call is no JSON.
    """
    found: dict[str, dict[str, Any]] = {}
    for piece in feedback:
        row = piece.get("row") or {}
        messages: Sequence[Message] = row.get("messages") or ()
        if piece.get("state") == WITHDRAWN or not is_asked(messages) or not names_of(row) & OF_HOME_ASSISTANT:
            continue
        sentence = str(messages[-2]["content"]).strip()
        calls = [{"name": plain_name(name), "arguments": arguments}
                 for name, arguments in calls_in(messages[-1], f"the correction of {sentence!r:.60}")]
        found.setdefault(plain(sentence), {"sentence": sentence, "calls": calls})
    return list(found.values())


def is_asked(messages: Sequence[Message]) -> bool:
    """Whether the last message answers a user's sentence, and not the result of a call. It is empty where no right
    answer is known.
    """
    if len(messages) < 2:
        return False
    asked, said = messages[-2:]
    is_known = bool(said.get("content") or said.get("tool_calls"))
    return asked.get("role") == "user" and isinstance(asked.get("content"), str) and is_known


def names_of(row: Mapping[str, Any]) -> set[str]:
    """The names of a row's tools, without those of their integrations."""
    return {plain_name(tool["function"]["name"]) for tool in row.get("tools") or ()}
