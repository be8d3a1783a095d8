"""A question to a served model, with all that decides the answers; APIs pass it to the source of answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..data.around import Instruction

Message = Mapping[str, Any]  # in OpenAI's shape
Tool = Mapping[str, Any]


@dataclass(frozen=True)
class Question:
    """Messages, with tools, or a prompt: text or token ids.

    tool_choice: "auto" (the model decides), "none" (tools are hidden), "required" (one of them is called), or the name
    of the function that is called: `function`.
    schema: a JSON schema that the answers obey; grammar: a GBNF that they obey. At most one of the two and of a call
    that must be.
    free: the model decides the form, also where an adapter's schema would.
    n: number of answers. kept: of these the ones with the greatest mean log p of a token, which are given; None: all.
    logprobs: for each token its log-probability, and those of this many likeliest ones.
    echo: answers begin with the prompt, and may be nothing else (max_tokens 0).
    thinking: tokens of thinking at most, 0: none; None: as the model likes. Only of a model that thinks.
    options: max_tokens, stop, seed and the fields of Sampling; what is absent has its default.
    after: token ids of earlier turns, which the messages continue.
    around: what is put around the messages for the model, such as passages of documents.
    may_be_kept: whether the client allows the question to be stored, if questions are stored.
    """

    messages: Sequence[Message] | None = None
    prompt: str | Sequence[int] | None = None
    model: str = ""  # "": the active adapter
    tools: Sequence[Tool] | None = None
    tool_choice: str = "auto"
    function: str | None = None
    schema: Mapping[str, Any] | None = None
    grammar: str = ""
    free: bool = False
    n: int = 1
    kept: int | None = None
    echo: bool = False
    logprobs: int | None = None
    thinking: int | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    after: Sequence[int] = ()
    around: Instruction = None
    may_be_kept: bool = True

    @property
    def shown_tools(self) -> Sequence[Tool] | None:
        return None if self.tool_choice == "none" else self.tools or None

    @property
    def content(self) -> dict[str, Any]:
        """The content without options of the answer: messages and tools, or a prompt."""
        if self.messages is None:
            return {"prompt": self.prompt}
        return {"messages": self.messages, "tools": self.shown_tools}

    @property
    def is_free(self) -> bool:
        """Whether nothing but the model decides the form of the answer, and nothing but its text is wanted."""
        forced = self.schema is not None or self.grammar or self.function or self.tool_choice == "required"
        return not forced and self.n == 1 and self.logprobs is None and not self.echo
