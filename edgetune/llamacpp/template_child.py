"""The process that fills chat templates, under the rules that transformers sets for them.

Jinja's sandbox keeps a template from reaching the interpreter, not from `10**10000000`, nested loops or a list that
holds itself a thousand times over. The kernel ends these: each question has its seconds of a core and its bytes.
"""

from __future__ import annotations

import functools
import json
import os
import resource
import string
import sys
import time
from datetime import datetime
from pathlib import Path
from typing import Any

import jinja2
import jinja2.ext
from jinja2 import nodes
from jinja2.sandbox import ImmutableSandboxedEnvironment

from ..machine.procfs import kib
from ..python_child import reply

SECONDS = 2  # of a core, and one more for each
BYTES_A_SECOND = 1 << 20  # of a question
MEMORY = 48 << 20  # bytes, and
GROWTH = 64  # times the size of a question
SHOWN = 1000  # characters of an error
REWRITING = ("e", "escape", "forceescape", "urlencode")


def main() -> None:
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    own = kib(Path("/proc/self/status"), "VmData")
    for line in sys.stdin:
        _limit(resource.RLIMIT_CPU, int(time.process_time()) + 1 + SECONDS + len(line) // BYTES_A_SECOND)
        _limit(resource.RLIMIT_DATA, own + MEMORY + GROWTH * len(line))
        try:
            reply(out, _answer(json.loads(line)))
        except MemoryError:
            break
    else:
        return
    reply(out, {"memory": True})


def _limit(what: int, most: int) -> None:
    """Let the kernel end this process, or refuse it memory, when it has more."""
    hard = resource.getrlimit(what)[1]
    resource.setrlimit(what, (most if hard == resource.RLIM_INFINITY else min(most, hard), hard))


def _answer(question: dict[str, Any]) -> dict[str, Any]:
    try:
        if "variables" in question:
            return {"value": _compiled(question["template"]).render(**question["variables"])}
        return {"value": _literals(question["template"])}
    except MemoryError:
        raise
    except jinja2.TemplateSyntaxError as error:
        return {"syntax": str(error)[:SHOWN]}
    except Exception as error:  # a template is somebody's program: it can fail in any way
        return {"reason": (str(error) or type(error).__name__)[:SHOWN]}


def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True,
                                                extensions=[_Generation, jinja2.ext.loopcontrols])
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return environment


@functools.lru_cache(maxsize=4)
def _compiled(template: str) -> jinja2.Template:
    return _environment().from_string(template)


def _literals(template: str) -> list[str]:
    tree = _environment().parse(template)
    found = {str(node.value) for node in tree.find_all(nodes.Const) if isinstance(node.value, str)}
    if any(node.name in REWRITING for node in tree.find_all(nodes.Filter)):
        found.update(string.punctuation)
    return [*found]


def _to_json(value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None,
             sort_keys: bool = False) -> str:
    """Jinja's own filter escapes HTML; models are trained on plain JSON."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise(message: str) -> None:
    raise jinja2.TemplateError(message)


class _Generation(jinja2.ext.Extension):
    """{% generation %} marks what transformers trains on; here the mark is skipped, `data` finds the spans itself."""

    tags = {"generation"}  # noqa: RUF012 (jinja2 declares it so)

    def parse(self, parser: Any) -> Any:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)
