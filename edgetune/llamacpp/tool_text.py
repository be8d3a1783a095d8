"""Tools in a conversation whose chat template knows none: written into the messages, as plain text.

The tools are described in the system message (in the first message where there can be none), calls of earlier turns
become the assistant's words, and results the user's, unless the template has the role of a tool. Training and serving
render with it alike, so a model learns what it will be asked.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

KEYS = ("type", "function", "name", "description", "parameters")
HEAD = "You can call these functions. Each line is one, with the JSON schema of its parameters:"
TAIL = """\
To call one, write its name and its arguments like this, and nothing else:
<tool_call>
{"name": "FUNCTION", "arguments": {"PARAMETER": "VALUE"}}
</tool_call>
What it returns is shown to you between <tool_response> and </tool_response>. If no function helps, answer in words."""


def write_tools(template: str, messages: Sequence[Mapping[str, Any]],
                tools: Sequence[Mapping[str, Any]] | None,
                takes_system: Callable[[str], bool]) -> list[dict[str, Any]]:
    """The messages with all of it that a template has no place for. takes_system: whether one shows such a message."""
    written = [dict(message) for message in messages]
    if "tool_calls" not in template:
        written = [_with_calls(message) for message in written]
    if "tool" not in template:
        written = _with_results(written)
    if tools and "tools" not in template:
        written = _with_description(
            written, "\n".join([HEAD, *(_json(tool.get("function", tool)) for tool in tools), TAIL]),
            takes_system(template))
    return written


def in_order(tool: Any) -> Any:
    """A tool with its keys as OpenAI writes them, whatever order a client's library gave them: so what a request begins
    with is always the same text.
    """
    if not isinstance(tool, Mapping):
        return tool
    found = {**{key: tool[key] for key in KEYS if key in tool}, **tool}
    return {**found, "function": in_order(found["function"])} if "function" in found else found


def _with_description(messages: list[dict[str, Any]], description: str, as_system: bool) -> list[dict[str, Any]]:
    """Adds it after what the system message says, or before all else."""
    first = messages[0] if messages else {}
    said = first.get("content") or ""
    if first.get("role") == "system":
        return [{**first, "content": f"{said}\n\n{description}" if said else description}, *messages[1:]]
    if as_system or first.get("role") != "user":
        return [{"role": "system", "content": description}, *messages]
    return [{**first, "content": f"{description}\n\n{said}"}, *messages[1:]]


def _with_calls(message: dict[str, Any]) -> dict[str, Any]:
    calls = message.pop("tool_calls", None)
    if not calls:
        return message
    said = message.get("content") or ""
    functions = [call.get("function", call) for call in calls]
    written = [_json({"name": function["name"], "arguments": function.get("arguments", {})}) for function in functions]
    message["content"] = "\n".join([said] * bool(said) + [f"<tool_call>\n{call}\n</tool_call>" for call in written])
    return message


def _with_results(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Results that follow each other become one turn of the user, for many templates want turns to alternate."""
    written: list[dict[str, Any]] = []
    follows = False
    for message in messages:
        if message.get("role") != "tool":
            written.append(message)
            follows = False
            continue
        result = f"<tool_response>\n{message.get('content', '')}\n</tool_response>"
        if follows:
            written[-1]["content"] += f"\n{result}"
        else:
            written.append({"role": "user", "content": result})
        follows = True
    return written


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
