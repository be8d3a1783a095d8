"""What a drawn sentence asks for: calls of tools, or an answer in words where no call is right."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from .entities import Entity, Home
from .tools import AREA, DATE_TIME, FLOOR, INSTEAD, LIVE_CONTEXT, TOOLS, Arguments, Call, Target, offered, shortest

if TYPE_CHECKING:
    from .templates import Draw

ALL = {"all", "everywhere"}  # rules of the templates whose words mean all entities
MISSING = "missing"  # why no call is right: the house has no such entity
WHICH = "which"  # several fit, and the sentence does not say which
CANNOT = "cannot"  # no tool does this
OTHER = "other"  # another topic
UNFINISHED = "unfinished"  # half a sentence


@dataclass(frozen=True)
class Wish:
    """tool: its name; "" where none is right, and then why says it. values: arguments other than the target."""

    tool: str = ""
    target: Target = field(default_factory=Target)
    values: Arguments = field(default_factory=dict)
    why: str = ""

    def call(self) -> Call:
        tool = TOOLS[self.tool]
        return Call(self.tool, {**self.target.arguments(tool), **self.values})


def calls_of(wishes: Iterable[Wish]) -> list[Call]:
    """The calls of wishes, without those for which no call is right."""
    return [wish.call() for wish in wishes if wish.tool]


SHOPPING = "HassShoppingList"  # what intents about the list of things to buy begin with


def wish_of(draw: Draw, home: Home, shopping: Entity | None = None) -> Wish:
    """What a sentence of Home Assistant's templates asks of a house. shopping: its list of things to buy."""
    if shopping and draw.intent.startswith(SHOPPING):
        draw = replace(draw, entity=shopping)
    name = INSTEAD.get(draw.intent, draw.intent)
    if name not in TOOLS:
        return Wish(why=CANNOT)
    tool = TOOLS[name]
    if tool not in offered(home):
        return Wish(why=MISSING)
    if name == DATE_TIME:
        return Wish(name)
    if name == LIVE_CONTEXT:
        # the call has no arguments, the answer to its result needs what the question is about
        return Wish(name, Target(draw.entity.name, domain=draw.entity.domain) if draw.entity else place_of(draw))
    wanted = place_of(draw)
    if draw.entity:
        wanted = Target(draw.entity.name, domain=draw.entity.domain)
        if len(wanted.entities(home, tool)) > 1:
            wanted = Target(draw.entity.name, draw.entity.area, domain=draw.entity.domain)
    found = wanted.entities(home, tool)
    if not found:
        return Wish(why=MISSING)
    if len(found) > 1 and not (wanted.name or wanted.area or wanted.floor or draw.said & ALL):
        return Wish(why=WHICH)
    if not wanted.domain and len({one.domain for one in found}) == 1:
        wanted = replace(wanted, domain=found[0].domain)
    values = {key: draw.slots[key] for key in tool.takes if key in draw.slots}
    return Wish(name, shortest(wanted, home, tool), values)


def place_of(draw: Draw) -> Target:
    return Target(area=draw.slots.get(AREA, ""), floor=draw.slots.get(FLOOR, ""),
                  domain=draw.slots.get("domain", ""), device_class=draw.slots.get("device_class", ""))
