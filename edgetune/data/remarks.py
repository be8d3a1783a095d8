"""Remarks with which people correct an answer in the chat itself: "no, I meant ...", "that's wrong, it is ...".

They are found by patterns over consecutive turns, in English, German and French. A pattern only proposes: whether it is
a correction, and which answer is right, a person says. Measured in docs/results/prompts.md.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from .words import plain

LONGEST = 400  # characters of a remark: longer messages are new requests
_END = r"(?P<right>[^.!?\n]*(?:[.,]\w[^.!?\n]*)*)"  # the rest of the sentence; a point within a number is none
_APOSTROPHE = re.compile("[’`´]")


@dataclass(frozen=True)
class Remark:
    """A remark that corrects an answer. right: the right answer that it states; "" where it states none, such as "I
    meant the kitchen": then the answer after it may be right.
    """

    right: str
    language: str


@dataclass(frozen=True)
class Language:
    """Patterns of a language, which ignore case. no: at the start, a weak sign: it may answer a question, or be polite.
    polite: what shows that after it. states: with the group `right`. objects: without one. swaps: with the groups
    `wrong`, which must stand in the answer, and `right`, which may be absent. is_said: stripped from the start of a
    right answer.
    """

    name: str
    no: str
    polite: str
    states: tuple[str, ...]
    objects: tuple[str, ...]
    swaps: tuple[str, ...]
    is_said: str


ENGLISH = Language(
    "en",
    no=r"(?:nope|nah|no)(?:[,.!:;]+\s*|\s+(?=(?:it|that|the|this|i|he|she|we|they|you|his|her|its|their)\b))",
    polite=r"(?:thanks?|thx|that'?s (?:all|it|fine|ok)|i'?m (?:fine|good|done)|sorry|need|idea|problem|worries|really"
           r"|please|not yet|never mind)\b|$",
    states=(
        rf"(?:it|that|this)(?: should| must| has to| needs to)(?: be| have been| say| read)\s+{_END}",
        rf"should (?:be|have been|say|read)\s+{_END}",
        rf"(?:the )?(?:right|correct) (?:\w+ )?(?:is|are|was|would be|one is)\s*:?\s*{_END}",
        rf"(?:please )?(?:correct|right|correction)(?: that| this| it)?\s*:\s*{_END}",
        rf"that can(?:'t|not) be (?:right|true|correct)\s*[,.!:;]+\s*{_END}",
        rf"(?:i'm )?sorry,? but\s+{_END}",
        rf"i(?:'ve)? already (?:told|said)(?: you)?,?\s*(?:that\s+)?{_END}",
        rf"(?:wrong|incorrect|false)\s*[,.!:;]+\s*{_END}",
        rf"(?:that|this|it)(?:'?s| is| was) (?:wrong|incorrect|false|not (?:right|correct|true))\s*[,.!:;-]*\s*{_END}",
        rf"you(?:'re| are| got| have got)(?: it| that| this)? (?:wrong|mistaken)\s*[,.!:;-]*\s*{_END}",
        rf".{{1,60}} is (?:wrong|incorrect)\s*[.,!;:]+\s*{_END}",
        rf"actually,?\s*(?=(?:it|that|he|she|the\s+\w+)(?:'s| is| are| was)\s){_END}"),
    objects=(
        r"(?:no,?\s*)?i (?:only |just )?(?:meant|said|wanted|asked for)\b(?! to\b)(?! that\b)",
        r"(?:that|this|it)(?:'?s| is| was) the opposite of what i\b",
        r"(?:that|this|it)(?:'?s| is| was) not what i\b",
        r"(?:that|this|it)(?:'?s| is| was) (?:wrong|incorrect|not right|not correct)\s*$",
        r"(?:wrong|incorrect)\s*$",
        r".{0,80}\bfrom now on,?\s+(?:use|say|write|call|answer)\b",
        r"(?:next time|from now on),?\s+(?:please )?(?:use|say|write|call|answer|do)\b"),
    swaps=(
        r"not\s+(?P<wrong>[^,.;!?]{1,60})[,;]\s*(?:but\s+)?(?P<right>[^.!?,]+)[.!]*$",
        r"(?P<right>.{1,80}?),\s*not\s+(?P<wrong>[^,.;!?]{1,60})[.!]*$",
        r"(?:please )?(?:don'?t|do not|never)\s+(?:say|use|write|call)\s+(?:\w+ )?(?P<wrong>[^,.;!?]{1,60})"),
    is_said=r"(?:it(?:'s| is| was| takes)|that(?:'s| is| was)|this is)\s+")

GERMAN = Language(
    "de",
    no=r"(?:nein|nee|nö)(?:[,.!:;]+\s*|\s+)",
    polite=r"(?:danke|schon gut|kein\w*|wirklich|bitte|passt|keine ahnung|das war'?s|alles gut|noch nicht)\b|$",
    states=(
        r"(?:es|das|er|sie)\s+(?:muss|müsste|sollte|soll)\s+(?:\w+\s+)?(?P<right>[^.!?]+?)\s+"
        r"(?:heißen|sein|lauten)\b",
        rf"(?:richtig|korrekt)\s+(?:ist|wäre|heißt es|lautet)\s*:?\s*{_END}",
        rf"(?:richtig|korrekt|korrektur)\s*:\s*{_END}",
        rf"(?:die|der|das)\s+(?:richtige|korrekte)\s+\w+\s+(?:ist|wäre|lautet)\s*:?\s*{_END}",
        rf"(?:das|es)\s+(?:ist|war)\s+(?:falsch|nicht richtig|nicht korrekt)\s*[,.!:;-]*\s*{_END}",
        rf"(?:das|es)\s+stimmt\s+(?:so\s+)?nicht\s*[,.!:;-]*\s*{_END}",
        rf"(?:falsch|stimmt nicht)\s*[,.!:;]+\s*{_END}",
        rf"du (?:irrst dich|liegst falsch|hast unrecht)\s*[,.!:;-]*\s*{_END}",
        rf"eigentlich\s+(?:ist|sind|heißt|war)\s+(?:es|das|er|sie)\s+{_END}"),
    objects=(
        r"(?:nein,?\s*)?ich (?:meinte|wollte (?:es |das )?nur)\b",
        r"(?:nein,?\s*)?ich (?:habe|hatte)\s+(?:[^.!?,]{1,40}\s)?(?:gesagt|gemeint|verlangt)\b(?!,? dass)",
        r"das (?:habe|hatte|war|meinte) (?:ich )?nicht\b.{0,30}(?:gemeint|gesagt|gefragt)?",
        r"(?:falsch|das ist falsch|das stimmt nicht)\s*$",
        r"(?:ab jetzt|von jetzt an|ab sofort|(?:das )?nächste[s]? mal)\b.{0,40}(?:bitte|immer|nur|schreib|sag|nimm)"),
    swaps=(
        r"nicht\s+(?P<wrong>[^,.;!?]{1,60})[,;]\s*(?:sondern\s+)?(?P<right>[^.!?,]+)[.!]*$",
        r"(?P<right>.{1,80}?),\s*nicht\s+(?P<wrong>[^,.;!?]{1,60})[.!]*$",
        r"(?:bitte\s+)?(?:sag|schreib|nimm|benutze?)\s+(?:bitte\s+)?(?:nicht|nie|kein\w*)\s+(?P<wrong>[^,.;!?]{1,60})"),
    is_said=r"(?:es|das)\s+(?:ist|heißt|war|wäre)\s+")

FRENCH = Language(
    "fr",
    no=r"non(?:[,.!:;]+\s*|\s+)",
    polite=r"(?:merci|aucune?|pas de problème|pas besoin|vraiment|c'est bon|ça ira|ça va|pas encore)\b|$",
    states=(
        rf"il (?:fallait|faut|aurait fallu)\s+(?:dire|écrire|répondre|mettre)\s+{_END}",
        rf"(?:ça|cela|ce) (?:devrait|doit|aurait dû) (?:être|dire)\s+{_END}",
        rf"la (?:bonne|vraie) (?:réponse|valeur)\s+(?:est|c'est|serait)\s*:?\s*{_END}",
        rf"le (?:bon|vrai) \w+\s+(?:est|c'est|serait)\s*:?\s*{_END}",
        rf"c'est (?:faux|incorrect|inexact)\s*[,.!:;]+\s*{_END}",
        rf"ce n'est pas (?:correct|exact|vrai|ça|(?:le bon|la bonne) \w+)\s*[,.!:;]+\s*{_END}",
        rf"(?:faux|correction|erreur)\s*[,.!:;]+\s*{_END}",
        rf"(?:tu te trompes|vous vous trompez)\s*[,.!:;-]*\s*{_END}",
        rf"en fait,?\s*(?=c'est|il est|elle est|ce sont){_END}"),
    objects=(
        r"(?:non,?\s*)?(?:je voulais (?:dire|seulement|juste)|je parlais d|j'ai demandé)",
        r"(?:non,?\s*)?j'ai dit\b(?! à)(?! que)",
        r"ce n'est pas ce que\b",
        r"(?:c'est faux|c'est incorrect|faux)\s*$",
        r"(?:désormais|dorénavant|la prochaine fois)\b"),
    swaps=(
        r"pas\s+(?P<wrong>[^,.;!?]{1,60}?)(?:[,;]|\s+mais)\s*(?:mais\s+)?(?P<right>[^.!?,]+)[.!]*$",
        r"(?P<right>.{1,80}?),\s*(?:et )?(?:non )?pas\s+(?P<wrong>[^,.;!?]{1,60})[.!]*$",
        r"(?:ne dis|ne dites|n'écris|n'utilise)\w*\s+(?:pas|jamais)\s+(?P<wrong>[^,.;!?]{1,60})"),
    is_said=r"(?:c'est|c'était|ce sont)\s+")

LANGUAGES = (ENGLISH, GERMAN, FRENCH)
THANKS = re.compile(r"\b(?:thanks|thank you|thx|danke|merci)\b", re.IGNORECASE)
_FLAGS = re.IGNORECASE


def remark_of(answer: str, remark: str) -> Remark | None:
    """The correction that a user's message is, after an assistant's answer; None where it is none.

    A "no" after a question of the assistant's corrects nothing, nor do thanks. A message that ends with a question
    mark asks. Case and the kind of apostrophe do not count.
    """
    said = _APOSTROPHE.sub("'", " ".join(remark.split()))
    if not said or len(said) > LONGEST or said.endswith("?") or THANKS.search(said):
        return None
    answers_a_question = answer.rstrip().endswith("?")
    for language in LANGUAGES:
        found = _remark(language, answer, said, answers_a_question)
        if found is not None:
            return found
    return None


def stated_answer(text: str) -> str:
    """The right answer that a comment states, such as "it should be X"; "" where it states none."""
    said = _APOSTROPHE.sub("'", " ".join(text.split()))
    for language in LANGUAGES:
        begun = re.match(language.no, said, _FLAGS)
        right = _stated(language, said[begun.end():] if begun else said)
        if right:
            return right
    return ""


def _remark(language: Language, answer: str, said: str, answers_a_question: bool) -> Remark | None:
    begun = re.match(language.no, said, _FLAGS)
    rest = said[begun.end():] if begun else said
    if (swapped := _swapped(language, answer, rest)) is not None:
        return Remark(swapped, language.name)
    if (right := _stated(language, rest)) is not None:
        return Remark(right, language.name)
    if any(re.match(pattern, rest, _FLAGS) for pattern in language.objects):
        return Remark("", language.name)
    if begun is None or answers_a_question or re.match(language.polite, rest, _FLAGS):
        return None
    return Remark(_cleaned(language, rest), language.name)


def _swapped(language: Language, answer: str, said: str) -> str | None:
    """The right part of "not X, but Y" where X, or a number in it, stands in the answer; None where it is none."""
    for pattern in language.swaps:
        found = re.match(pattern, said, _FLAGS)
        if found and _stands_in(found["wrong"], answer):
            right = found.groupdict().get("right") or ""
            objects = any(re.match(other, said, _FLAGS) for other in language.objects)
            return "" if objects else _cleaned(language, _stated(language, right) or right)
    return None


def _stated(language: Language, said: str) -> str | None:
    """The right answer that a sentence states, "" for one that only says that the answer is wrong; None for others."""
    for pattern in language.states:
        found = re.match(pattern, said, _FLAGS)
        if found:
            right = _cleaned(language, found["right"])
            if right:
                return _stated(language, right) or right
            return _cleaned(language, re.split(r"(?<=[.!?])\s+", said[found.end():].lstrip(" .!,;:"))[0])
    return None


def _cleaned(language: Language, right: str) -> str:
    text = right.strip().rstrip(".!,;: ")
    return re.sub(f"^{language.is_said}", "", text, flags=_FLAGS).strip()


def _stands_in(wrong: str, answer: str) -> bool:
    """Whether the words of `wrong` stand in an answer, as words."""
    words = plain(wrong)
    return bool(words) and f" {words} " in f" {plain(answer)} "
