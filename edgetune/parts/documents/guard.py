"""Cleans text of documents before a model reads it: documents inform, and command nothing.

A model that writes text has one input, and a small one tends to do whatever it read last. So no text reaches it that
could end the quotation or open another turn, and no sentence that speaks to whoever answers: that tells it to ignore,
to answer something, or who it is. Such a sentence takes the rest of its line with it, which may be what it announces.
It is a filter of words. It does not understand, so it can be passed by whoever knows it, and it drops sentences about
assistants that mean no harm.
"""

from __future__ import annotations

import re

from ...errors import CONTROLS

_HIDDEN = re.compile("[\u00ad\u034f\u115f\u1160\u17b4\u17b5\u180e\u200b-\u200d\u2060-\u2064\ufe00-\ufe0f\ufeff"
                     "\U000e0000-\U000e01ef]")  # characters that a person does not see
_TURNS = re.compile(r"<\|[^<>|\n]{1,40}\|>|<｜[^<>｜\n]{1,40}｜>|<(?:start|end)_of_\w{1,20}>|<</?SYS>>"
                    r"|\[/?(?:INST|SYS|SYSTEM_PROMPT|AVAILABLE_TOOLS|TOOL_CALLS|TOOL_RESULTS)\]"
                    r"|</?passages?\b[^<>\n]{0,80}>", re.IGNORECASE)  # what opens or ends a turn, or our quotation
_MARKS = re.compile(r"</?(?:s|bos|eos|pad|unk|think|tool_call|tool_response)>", re.IGNORECASE)  # harmless alone
_SENTENCE = re.compile(r".+?(?:[.!?…。！？](?![.!?…。！？])['\")\]]*\s+|$)")

_REPLY = r"(?:answers?|repl(?:y|ies)|responses?)"
_REPLYING = r"(?:answer|reply|respond|say|print|output|repeat|translate|speak)"
_READ = (r"(?:instructions?|prompts?|rules|directions|guidelines|context|passages?|documents?|question|everything"
         r"|above|previous)")
_POLITE = r"(?:(?:please|now|then|instead|only|just|simply|always|first|and|but|so|kindly|you|must|should)[\s,:]+)*"
_PERSON = r"(?:assistant|ai|bot|chat ?bot|language model|llm)"
_ADDRESSED = tuple(re.compile(each, re.IGNORECASE) for each in (
    # what is to be forgotten
    rf"(?<!not )(?<!n't )(?<!never )\b(?:ignore|disregard|forget|override)\b[^.\n]{{0,60}}\b{_READ}\b",
    rf"\b(?:do not|don't|never|stop)\b[^.\n]{{0,12}}\b(?:us|follow|obey|answer)(?:e|ing)?\b[^.\n]{{0,20}}\b{_READ}\b",
    # who speaks, or is spoken to
    rf"^\W*(?:{_PERSON}|(?:system|developer|user) (?:message|prompt|note)|new task)\s*[:=>]",
    r"\b(?:system prompt|prompt injection|developer (?:message|mode)|new (?:instructions|task) ?:|jailbr\w+)",
    rf"\b(?:note|message|attention|hint|dear|hey|hello|instructions?)\W+(?:to |for )?(?:the |any |all )?{_PERSON}s?\b",
    rf"\byou are (?:now|no longer|(?:an? )?(?:\w+ ){{0,3}}{_PERSON})\b", r"\bfrom (?:now|here|this point) on\b",
    rf"^\W*{_POLITE}(?:act|behave|pretend|role-?play|pose) (?:as|like|to be)\b",
    rf"\byou (?:can |may |must |will |should |shall )?(?:only |always |just )+{_REPLYING}\b",
    r"\b(?:the )?user (?:wants|asks|asked|told|needs|expects) you\b",
    # what the answer is to be
    rf"\b(?:your|any|every|each|the (?:next|final|only|correct|right)) (?:\w+ )?{_REPLY}\b",
    r"\b(?:whatever|whichever|regardless of|no matter)\b[^.\n]{0,40}\b(?:question|asked|ask|query)\b",
    rf"\b(?:in|of|before|after|while) (?:your|the) {_REPLY}\b", r"\bbefore (?:answer|reply|respond)ing\b",
    rf"^\W*{_POLITE}{_REPLYING}\b[^.\n]{{0,30}}\b(?:only|nothing else|nothing but|the (?:words?|phrase|text|string))\b",
    rf"^\W*{_POLITE}(?:answer|reply|respond)\b[^.:\n]{{0,20}}\b(?:with|in|by|as|using|only)\b",
    rf"^\W*{_POLITE}(?:reply|respond)\b[^.\n]{{0,20}}:",
    rf"\b(?:can|could|will|would) you {_REPLYING}\b", r"^\W*#{2,}\s*(?:instruction|response|input|system)\b",
    r"^\W*end of (?:the )?(?:passages?|documents?|context|quotations?)\b",
))


def cleaned(text: str) -> str:
    """A text without hidden characters, marks of chat templates and what speaks to whoever answers: each line ends
    before the first of them.
    """
    return "\n".join(_unspoken(line) for line in _visible(text).split("\n")).strip()


def unmarked(text: str) -> str:
    """A short text, such as a heading, without hidden characters and marks of chat templates, in one line."""
    return " ".join(_TURNS.sub(" ", _visible(text)).split())


def _visible(text: str) -> str:
    return _MARKS.sub(" ", _HIDDEN.sub("", CONTROLS.sub(" ", text)))


def _unspoken(line: str) -> str:
    if found := _TURNS.search(line):
        line = line[:found.start()]
    kept = ""
    for sentence in _SENTENCE.findall(line):
        if speaks_to_model(sentence):
            break
        kept += sentence
    return kept.rstrip()


def speaks_to_model(sentence: str) -> bool:
    """Whether a sentence seems to speak to whoever answers, and not to whoever reads the document."""
    return any(pattern.search(sentence) for pattern in _ADDRESSED)
