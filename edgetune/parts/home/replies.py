"""What a house answers to a conversation of its system: calls of its tools, then a sentence about their results."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .language import HouseLanguage
from .systems.registry import HomeSystem, asking
from .tools import DATE_TIME, GET_ITEMS, LIVE_CONTEXT, Call, Target
from .understanding import Understanding, Understood
from .wishes import CANNOT, UNFINISHED, Wish

Message = Mapping[str, Any]
MOST_STATES = 6  # entities whose states one answer says


@dataclass(frozen=True)
class Reply:
    """Calls, or a text where there are none."""

    calls: tuple[Call, ...] = ()
    text: str = ""


class Replies:
    """The replies of one house in its language."""

    def __init__(self, understanding: Understanding, language: HouseLanguage) -> None:
        self._understanding = understanding
        self._texts: Mapping[str, str] = language.texts["answers"]

    def reply(self, messages: Sequence[Message], tools: Sequence[str], alone: bool = False) -> Reply | None:
        """The reply to the last message. tools: the names that are offered. None leaves it to another model: the tools
        are of no system, or the sentence is not sure. alone: no other model can answer, so that it asks
        again where it is not sure.
        """
        asked = question_of(messages)
        if not asked or (by := asking(tools)) is None:
            return None
        found = self._understanding.understand(asked)
        if not found.is_sure and not alone:
            return None
        if messages[-1].get("role") == "user":
            return self._first(found, *by) if found.is_sure else Reply(text=self._texts[UNFINISHED])
        return Reply(text=after_results(found.wishes, *turn_of(messages, by[0]), self._texts))

    def _first(self, found: Understood, system: HomeSystem, names: Mapping[str, str]) -> Reply:
        if found.why:
            return Reply(text=self._texts.get(found.why, self._texts[UNFINISHED]))
        if any(call.name not in names for call in found.calls):
            return Reply(text=self._texts[CANNOT])
        return Reply(tuple(system.call(call, names[call.name]) for call in found.calls))


def after_results(wishes: Sequence[Wish], called: Collection[str], results: Sequence[Any],
                  texts: Mapping[str, str]) -> str:
    """A sentence about the results of calls. called: the tools, which another model or a correction may have named."""
    if errors := [error for result in results if (error := error_of(result))]:
        return texts["failed"].format(error=errors[0])
    if LIVE_CONTEXT in called:
        target = next((wish.target for wish in wishes if wish.tool == LIVE_CONTEXT), Target())
        said = [texts["state"].format(name=words(one["names"]), state=worded(one))
                for one in states_of(results) if is_meant(one, target)]
        return "; ".join(said[:MOST_STATES]) + "." if said else texts["missing"]
    if GET_ITEMS in called:
        items = (item for result in results if isinstance(result, Sequence) for item in result)
        return ", ".join(words(item["summary"]) for item in items
                         if isinstance(item, Mapping) and "summary" in item) or texts["empty"]
    time = next((one for one in results if isinstance(one, Mapping)), {}) if DATE_TIME in called else {}
    return ", ".join(words(time[key]) for key in ("time", "date", "weekday") if key in time) or texts["done"]


def question_of(messages: Sequence[Message]) -> str:
    """The user's last message; "" where the last message is neither it nor the result of a call."""
    if not messages or messages[-1].get("role") not in ("user", "tool"):
        return ""
    said = next((one.get("content") for one in reversed(messages) if one.get("role") == "user"), "")
    return said.strip() if isinstance(said, str) else ""


def turn_of(messages: Sequence[Message], system: HomeSystem) -> tuple[set[str], list[Any]]:
    """The tools that were called in this turn, and the results."""
    called: set[str] = set()
    results: list[Any] = []
    for message in reversed(messages):
        if message.get("role") == "user":
            break
        called |= {system.meant(Call(str(call["function"]["name"]))).name for call in message.get("tool_calls") or ()}
        if message.get("role") == "tool":
            results.insert(0, system.result(message.get("content")))
    return called, results


def words(value: Any) -> str:
    """A value as a part of a sentence; "" for a list or a mapping, which can be larger than any sentence."""
    return "" if isinstance(value, list | Mapping) else str(value)


def error_of(result: Any) -> str:
    """What a result says of a call that failed; "" of one that did not."""
    if not isinstance(result, Mapping):
        return ""
    said = result.get("error_text") or result.get("error")
    return words(said) or "error" if said else ""


def states_of(results: Sequence[Any]) -> list[Mapping[str, Any]]:
    """The entities of the first result that lists some: mappings with names, state, domain and areas."""
    lists = ([one for one in result if isinstance(one, Mapping) and "names" in one] for result in results
             if isinstance(result, list))
    return next(filter(None, lists), [])


def is_meant(one: Mapping[str, Any], target: Target) -> bool:
    """Whether an entity of a result belongs to a target."""
    names = [name.strip() for name in words(one.get("names", "")).split(",")]
    areas = [area.strip() for area in words(one.get("areas", "")).split(",")]
    kind = attribute(one, "device_class")
    return (target.name in ("", *names) and target.area in ("", *areas) and target.domain in ("", one.get("domain"))
            and target.device_class in ("", kind))


def attribute(one: Mapping[str, Any], name: str) -> str:
    """An attribute of an entity of a result, "" without it."""
    known = one.get("attributes")
    return words(known.get(name) or "") if isinstance(known, Mapping) else ""


def worded(one: Mapping[str, Any]) -> str:
    """A state with its unit."""
    state = one.get("state")
    word = ("on" if state else "off") if isinstance(state, bool) else words(state)
    return f"{word} {attribute(one, 'unit_of_measurement')}".strip()
