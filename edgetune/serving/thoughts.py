"""Thoughts and answer of a model that thinks, told apart while the text is made."""

from __future__ import annotations

from ..llamacpp.sampling import overlap
from ..llamacpp.thinking import ANY, BEGIN, END

EFFORTS = {"none": 0, "minimal": 128, "low": 512, "medium": 2048, "high": ANY}  # tokens of thinking


class ThoughtReader:
    """Reads an answer's text piece by piece. inside: whether the prompt has begun the thinking already."""

    def __init__(self, inside: bool) -> None:
        self._held = ""
        self._state = "inside" if inside else "before"
        self._is_first = True  # of thoughts, or of the answer: white space before it is left out

    def push(self, text: str, last: bool = False) -> tuple[str, str]:
        """(thoughts, text of the answer) that are certain so far. last: no more comes."""
        self._held += text
        if self._state == "before":
            self._begin(last)
        thoughts = self._inside(last) if self._state == "inside" else ""
        if self._state in ("before", "inside"):
            return thoughts, ""
        answer = self._held
        self._held = ""
        if self._is_first:
            answer = answer.lstrip()
            self._is_first = not answer
        return thoughts, answer

    def _begin(self, last: bool) -> None:
        start = self._held.lstrip()
        if start.startswith(BEGIN):
            self._held = start[len(BEGIN) :]
            self._state = "inside"
        elif last or not BEGIN.startswith(start):
            self._state = "answer"
            self._is_first = False  # all of it is the answer, as it was written

    def _inside(self, last: bool) -> str:
        place = self._held.find(END)
        if place >= 0:
            thoughts = self._held[:place].rstrip()
            self._held = self._held[place + len(END) :]
            self._state = "answer"
        else:
            keep = 0 if last else overlap(self._held, END)
            trailing = len(self._held) - keep
            end = trailing if last else len(self._held[:trailing].rstrip())
            thoughts = self._held[:end]
            self._held = self._held[end:]
        if self._is_first:
            thoughts = thoughts.lstrip()
            self._is_first = not thoughts
        if place >= 0:
            self._is_first = True
        return thoughts
