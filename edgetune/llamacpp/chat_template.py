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
from contextlib import suppress
from typing import Any

from ..errors import DataError, UnsupportedError
from ..python_child import child, how_it_ended

LIMIT = 100_000  # characters of a template; the largest in use have 30 thousand
_SHOWN = "what the system says"
_HINT = "use the model's file from another source"


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
