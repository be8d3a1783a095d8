"""The APIs for answers, each asked the same by its official client: tests/daemon/test_surfaces.py compares them."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import openai
from part_tables import of_parts

Messages = Sequence[dict[str, Any]]


@dataclass(frozen=True)
class Said:
    """An answer. prompt, tokens: of the question and of the answer. calls: (name, arguments)."""

    text: str
    finish: str
    prompt: int
    tokens: int
    calls: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    id: str = ""


@dataclass(frozen=True)
class Clients:
    """url: of the daemon. render: messages to the text of a prompt."""

    openai: openai.OpenAI
    url: str
    render: Callable[[Messages], str]


@dataclass(frozen=True)
class Surface:
    """An API for answers. ask: (clients, messages, stream, model, **options) to Said. What it knows: tools, also one
    that must be called; a stop; ids of answers, by which they are corrected. error: its client's, with a status_code.
    """

    ask: Callable[..., Said]
    tools: bool = True
    required: bool = True
    stop: bool = True
    ids: bool = True
    error: type[Exception] = openai.APIStatusError

    def __call__(self, *given: Any, **options: Any) -> Said:
        return self.ask(*given, **options)

    @property
    def name(self) -> str:
        return self.ask.__name__


def chat(clients, messages, stream, model, *, tools=(), required=False,
         schema=None, **options):
    asked = {"model": model, "messages": messages, **options}
    if tools:
        asked |= {"tools": tools, "tool_choice": "required" if required else "auto"}
    if schema:
        asked["response_format"] = {"type": "json_schema", "json_schema": {"name": "form", "schema": schema}}
    made = clients.openai.chat.completions
    if stream:
        with made.stream(**asked, stream_options={"include_usage": True}) as events:
            whole = events.until_done().current_completion_snapshot  # where the length ended it, too
    else:
        whole = made.create(**asked)
    choice, = whole.choices
    calls = [(call.function.name, json.loads(call.function.arguments)) for call in choice.message.tool_calls or ()]
    return Said(choice.message.content or "", choice.finish_reason, whole.usage.prompt_tokens,
                whole.usage.completion_tokens, calls, whole.id)


def completions(clients, messages, stream, model, *, schema=None, **options):
    more = {"stream": True, "stream_options": {"include_usage": True}} if stream else {}
    made = clients.openai.completions.create(model=model, prompt=clients.render(messages), **options, **more,
                                             extra_body={"json_schema": schema})
    parts = list(made) if stream else [made]
    choices = [part.choices[0] for part in parts if part.choices]
    return Said("".join(choice.text for choice in choices), choices[-1].finish_reason, parts[-1].usage.prompt_tokens,
                parts[-1].usage.completion_tokens, id=parts[0].id)


CHAT = Surface(chat)
COMPLETIONS = Surface(completions, tools=False, required=False)
SURFACES = (CHAT, COMPLETIONS, *of_parts("SURFACES"))
