"""Chat templates, which are jinja2 programs, under the rules that transformers sets for them."""

from __future__ import annotations

import functools
import json
from datetime import datetime
from typing import Any

import jinja2
import jinja2.ext
from jinja2.sandbox import ImmutableSandboxedEnvironment

from .errors import DataError, UnsupportedError


def fill(template: str, **variables: Any) -> str:
    """The text that it makes of its variables. UnsupportedError if it does not compile, DataError if it fails."""
    try:
        return _compile(template).render(**variables)
    except jinja2.TemplateSyntaxError as error:
        raise UnsupportedError(f"the model's chat template does not compile ({error})") from None
    except Exception as error:  # a template is somebody's program: it can fail in any way
        reason = str(error) or type(error).__name__
        raise DataError(f"the model's chat template refuses the conversation ({reason})") from None


class _Generation(jinja2.ext.Extension):
    """{% generation %} marks what transformers trains on; here the mark is skipped, `data` finds the spans itself."""

    tags = {"generation"}  # noqa: RUF012 (jinja2 declares it so)

    def parse(self, parser: Any) -> Any:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


@functools.lru_cache(maxsize=16)
def _compile(template: str) -> jinja2.Template:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return environment.from_string(template)


def _to_json(
    value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
) -> str:
    """Jinja's own filter escapes HTML; models are trained on plain JSON."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise(message: str) -> None:
    raise jinja2.TemplateError(message)
