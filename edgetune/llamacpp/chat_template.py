"""Chat templates, which are jinja2 programs of whoever made a model's file: another process fills them, within limits.

It is started for the first template, and ends with this process. See `template_child` for what it may take.
"""

from __future__ import annotations

import atexit
import functools
import json
import signal
import subprocess
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

from ..errors import DataError, UnsupportedError
from ..python_child import child, how_it_ended

LIMIT = 100_000  # characters of a template; the largest in use have 30 thousand
_SHOWN = "what the system says"
_HINT = "use the model's file from another source"
KEYS = ("type", "function", "name", "description", "parameters")
HEAD = "You can call these functions. Each line is one, with the JSON schema of its parameters:"
TAIL = """\
To call one, write its name and its arguments like this, and nothing else:
<tool_call>
{"name": "FUNCTION", "arguments": {"PARAMETER": "VALUE"}}
</tool_call>
What it returns is shown to you between <tool_response> and </tool_response>. If no function helps, answer in words."""


def fill(template: str, **variables: Any) -> str:
    """The text that it makes of its variables, which are values of JSON. UnsupportedError if it does not compile,
    DataError if it fails or takes more time or memory than `template_child` gives.
    """
    return str(_PROCESS.ask({"template": template, "variables": variables}))


@functools.lru_cache(maxsize=16)
def takes_system(template: str) -> bool:
    """Whether it shows a system message, in front of a user's."""
    messages = [{"role": "system", "content": _SHOWN}, {"role": "user", "content": "a"}]
    try:
        return _SHOWN in fill(template, messages=messages, tools=None, add_generation_prompt=True, bos_token="",
                              eos_token="")
    except DataError:  # it refuses such a conversation
        return False


@functools.lru_cache(maxsize=16)
def literals(template: str) -> frozenset[str]:
    """The texts that a template's expressions name: what it may look for in messages, or write. Errors as `fill`.

    If a filter rewrites characters such as <, each of them is among them.
    """
    return frozenset(_PROCESS.ask({"template": template}))


class _Process:
    """The process that fills templates, for one thread at a time."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._open: subprocess.Popen[str] | None = None

    def ask(self, question: dict[str, Any]) -> Any:
        """Its answer. Errors as `fill`."""
        if (length := len(question["template"])) > LIMIT:
            raise UnsupportedError(f"the model's chat template has {length} characters, the limit is {LIMIT}", _HINT)
        line = json.dumps(question) + "\n"
        with self._lock:
            if self._open and self._open.poll() is not None:
                self.close()
            self._open = process = self._open or subprocess.Popen(
                **child("edgetune.llamacpp.template_child"), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
                start_new_session=True)
            answer = {}
            try:
                answer = _exchange(process, line)
            finally:
                if not answer or "memory" in answer:  # it is over, or its next answer would be the one to this question
                    self.close()
        if "value" in answer:
            return answer["value"]
        if "syntax" in answer:
            raise UnsupportedError(f"the model's chat template does not compile ({answer['syntax']})")
        if "reason" in answer:
            raise DataError(f"the model's chat template refuses the conversation ({answer['reason']})")
        if "memory" in answer or process.returncode in (-signal.SIGXCPU, -signal.SIGKILL):
            what = "memory" if "memory" in answer else "time"
            raise DataError(f"the model's chat template takes too much {what} for a conversation of this size", _HINT)
        raise DataError(f"the model's chat template ended its process ({how_it_ended(process.returncode)})", _HINT)

    def close(self) -> None:
        process = self._open
        self._open = None
        if process:
            with suppress(BrokenPipeError), process:  # what it did not read
                process.terminate()


def _exchange(process: subprocess.Popen[str], line: str) -> dict[str, Any]:
    """The answer to a question, which is {} if the process ends instead."""
    assert process.stdin
    assert process.stdout
    with suppress(BrokenPipeError):
        process.stdin.write(line)
        process.stdin.flush()
        answer: dict[str, Any] = json.loads(process.stdout.readline() or "{}")
        return answer
    return {}


_PROCESS = _Process()
atexit.register(_PROCESS.close)


def write_tools(template: str, messages: Sequence[Mapping[str, Any]],
                tools: Sequence[Mapping[str, Any]] | None,
                takes_system: Callable[[str], bool]) -> list[dict[str, Any]]:
    """The messages with tools and calls as plain text if the template knows none, alike in training and serving. Tools
    are described in the system message (in the first one where there can be none), calls of earlier turns become the
    assistant's words, and results the user's, unless the template has the role of a tool. takes_system: whether one
    shows such a message.
    """
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
