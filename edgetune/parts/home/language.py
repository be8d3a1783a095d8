"""What rows need of a language: Home Assistant's templates, ours, and texts."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any, cast

from ...errors import UsageError

FOLDER = Path(__file__).parent / "wordings"
MOST_SPELLED = 100


@dataclass(frozen=True)
class HouseLanguage:
    """texts: of our file, and as it names them."""

    code: str
    texts: Mapping[str, Any]

    @cached_property
    def intents(self) -> Any:
        """hassil's templates, Home Assistant's and ours. Only rows need them."""
        from hassil import Intents
        from hassil.util import merge_dict
        from home_assistant_intents import get_intents
        found = get_intents(self.code) or {}
        for intent, ours in self.texts["intents"].items():
            found["intents"].setdefault(intent, {"data": []})["data"] += ours["data"]
        merge_dict(found.setdefault("expansion_rules", {}), dict(self.texts["expansion_rules"]))
        return Intents.from_dict(found)

    @property
    def wildcards(self) -> dict[str, Sequence[str]]:
        """Texts for the slots that take any, by the names of their lists."""
        items, queries = self.texts["wildcards"]["items"], self.texts["wildcards"]["queries"]
        return {"todo_list_item": items, "shopping_list_item": items, "search_query": queries, "message": items}

    @property
    def amounts(self) -> Mapping[str, int]:
        """Percentages that have separate words, such as half."""
        return cast("Mapping[str, int]", self.texts["amounts"])

    @cached_property
    def _spelled(self) -> tuple[re.Pattern[str], dict[str, str]]:
        found = {spelled(number, self.code): str(number) for number in range(MOST_SPELLED + 1)}
        words = [re.escape(word).replace("\\ ", "[ -]") for word in sorted(found, key=len, reverse=True)]
        return re.compile(rf"\b({'|'.join(words)})\b", re.IGNORECASE), found

    def in_digits(self, text: str) -> str:
        """A sentence with its numbers to 100 in digits: "to twenty five percent" is "to 25 %"."""
        pattern, digits = self._spelled
        text = re.sub(rf"\b{self.texts['percent']}\b", "%", text, flags=re.IGNORECASE)
        for word in sorted(self.amounts, key=len, reverse=True):
            text = re.sub(rf"\b{re.escape(word)}\b", f"{self.amounts[word]} %", text, flags=re.IGNORECASE)
        return pattern.sub(lambda found: digits[found[0].lower().replace("-", " ")], text)

    def parts(self, text: str) -> list[str]:
        """A sentence cut at the words that join two wishes; itself alone if there are none."""
        joins = sorted({join.strip(" ,") for join in self.texts["joins"]}, key=len, reverse=True)
        pattern = rf"\s*(?:,\s*(?:{'|'.join(joins)})|\b(?:{'|'.join(joins)})\b)\s*"
        return [part for part in re.split(pattern, text.strip(" .!?"), flags=re.IGNORECASE) if part]


def languages() -> list[str]:
    """The codes of the languages with texts of ours."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def language_of(code: str) -> HouseLanguage:
    """Raises UsageError for a language without texts, ModuleNotFoundError without the extra home."""
    import yaml
    if code not in languages():
        raise UsageError(f"there are no wordings of the language {code!r}", f"take one of {', '.join(languages())}")
    return HouseLanguage(code, yaml.safe_load((FOLDER / f"{code}.yaml").read_text(encoding="utf-8")))


SOFT_HYPHEN = "\u00ad"  # stands between the parts of German numbers


@cache
def _engine(language: str) -> Any:
    from unicode_rbnf import RbnfEngine  # and not through hassil, which takes memory of a daemon
    try:
        return RbnfEngine.for_language(language)
    except ValueError:
        return None


def spelled(number: int, language: str) -> str:
    """A number in words; in digits where the language has no rules for words."""
    engine = _engine(language)
    if engine is None:
        return str(number)
    return str(engine.format_number(number).text).replace(SOFT_HYPHEN, "").replace("-", " ")
