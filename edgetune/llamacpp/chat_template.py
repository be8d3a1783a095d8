"""Chat templates, which are jinja2 programs, under the rules that transformers sets for them and within `sandbox`."""

from __future__ import annotations

import functools
import re
import string
from datetime import datetime
from typing import Any

import jinja2
from jinja2 import nodes

from ..errors import DataError, UnsupportedError
from .meter import Excess, Meter
from .sandbox import Sandbox

LIMIT = 100_000  # characters of a template; the largest in use have 30 thousand
_REWRITING = ("e", "escape", "forceescape", "urlencode")
_SHOWN = "what the system says"
_HINT = "use the model's file from another source"


def fill(template: str, **variables: Any) -> str:
    """The text that it makes of its variables. UnsupportedError if it does not compile, DataError if it fails or asks
    for more steps or memory than `sandbox` gives."""
    if len(template) > LIMIT:
        raise UnsupportedError(f"the model's chat template has {len(template)} characters, the limit is {LIMIT}", _HINT)
    try:
        with Meter(variables):
            return _compile(template).render(**variables)
    except jinja2.TemplateSyntaxError as error:
        raise UnsupportedError(f"the model's chat template does not compile ({error})") from None
    except Excess as error:
        raise DataError(f"the model's chat template {error}", _HINT) from None
    except MemoryError:  # of this process: see python_child.limit_memory
        raise
    except Exception as error:  # a template is somebody's program: it can fail in any way
        reason = str(error) or type(error).__name__
        raise DataError(f"the model's chat template refuses the conversation ({reason})") from None


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
    """The texts that a template's expressions name: what it may look for in messages, or write.

    Where a filter rewrites characters such as <, each of them alone is among them. UnsupportedError as `fill`.
    """
    try:
        tree = Sandbox().parse(template)
        found = {str(node.value) for node in tree.find_all(nodes.Const) if isinstance(node.value, str)}
        if any(node.name in _REWRITING for node in tree.find_all(nodes.Filter)):
            found.update(string.punctuation)
        return frozenset(found)
    except (jinja2.TemplateSyntaxError, RecursionError) as error:
        raise UnsupportedError(f"the model's chat template does not compile ({error})") from None


@functools.lru_cache(maxsize=16)
def _compile(template: str) -> jinja2.Template:
    environment = Sandbox()
    environment.globals["raise_exception"] = _raise
    environment.globals["strftime_now"] = _strftime_now
    return environment.load(template)


def _raise(message: str) -> None:
    raise jinja2.TemplateError(message)


def _strftime_now(form: str) -> str:
    if len(form) > 256 or re.search(r"%[-_0^#]*\d", form):
        raise Excess("asks for a date in a format that is too long or has a width")
    return datetime.now().strftime(form)
