"""A model's form of calls of tools: read from its own chat template, which shows it the calls of earlier turns."""

from __future__ import annotations

import re
from dataclasses import dataclass

from ..errors import EdgetuneError
from ..llamacpp.tokenizer import Tokenizer

NAME = "lamp_on"
ARGUMENTS = {"room": "hall"}
ID = "call00000"  # Mistral's templates ask for 9 characters
WRITTEN = re.compile(r'\{\s*"room"\s*:\s*"hall"\s*\}')
KEY_OF_NAME = re.compile(r'[\[{]\s*(?:"type"\s*:\s*"function"\s*,\s*)?"name"\s*:\s*$')
KEY_OF_ARGUMENTS = re.compile(r'\s*,\s*"(arguments|parameters)"\s*:\s*')
MARK = re.compile(r"\S+$")


@dataclass(frozen=True)
class CallForm:
    """A call is before + the name as JSON + between + the arguments as JSON + after."""

    before: str = '<tool_call>\n{"name": '
    between: str = ', "arguments": '
    after: str = "}\n</tool_call>"

    @property
    def begin(self) -> str:
        """The tag that a call begins with, "" for none."""
        found = MARK.search(re.split(r"[\[{]\s*[{\"]", self.before)[0].rstrip())
        return found[0] if found else ""

    @property
    def end(self) -> str:
        """The tag that it ends with, "" for none."""
        return self.after.lstrip(" \r\n\t}]").rstrip()


def call_form(tokenizer: Tokenizer) -> CallForm:
    """The form of calls in the model's template; the most common one if the template has none in JSON."""
    function = {"name": NAME, "arguments": ARGUMENTS}
    tool = {"type": "function", "function": {"name": NAME, "description": "", "parameters": {
        "type": "object", "properties": {"room": {"type": "string"}}}}}
    asked = [{"role": "user", "content": "on"}]
    said = {"role": "assistant", "content": "", "tool_calls": [{"id": ID, "type": "function", "function": function}]}
    try:
        start = tokenizer.render(asked, [tool], add_generation_prompt=True)
        whole = tokenizer.render([*asked, said], [tool])
    except EdgetuneError:  # it has no place for them, or other wishes
        return CallForm()
    return _read(str(whole)[len(start) :], tokenizer) if str(whole).startswith(start) else CallForm()


def _read(written: str, tokenizer: Tokenizer) -> CallForm:
    """The form of a call in the text that the template writes after the prompt."""
    before, _, rest = written.partition(f'"{NAME}"')
    arguments = WRITTEN.search(rest)
    if not arguments or not KEY_OF_NAME.search(before) or not KEY_OF_ARGUMENTS.fullmatch(rest[: arguments.start()]):
        return CallForm()
    after = rest[arguments.end() :]
    end = min((place for mark in tokenizer.control.ids if (place := after.find(mark)) >= 0), default=len(after))
    return CallForm(before, rest[: arguments.start()], after[:end].rstrip())
