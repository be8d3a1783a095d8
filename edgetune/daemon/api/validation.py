"""Describes in one sentence the error of a request that does not fit its schema."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, get_args

from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel

KINDS = {  # by pydantic's names of what it found
    "string_type": "text", "int_type": "an integer", "int_parsing": "an integer", "int_from_float": "an integer",
    "int_parsing_size": "an integer", "float_type": "a number", "float_parsing": "a number",
    "finite_number": "a finite number", "bool_type": "true or false", "list_type": "a list", "dict_type": "an object",
    "model_type": "an object", "model_attributes_type": "an object",
}
KEY = "[key]"  # how pydantic ends the place of a key
LONGEST = 100  # characters of a name that are shown
MUST = "must be"
ANYTHING_ELSE = "must be as /openapi.json describes it"


def sentence_of(error: RequestValidationError, body: type[BaseModel] | None) -> tuple[str, str | None]:
    """(a sentence for the first thing that is wrong, the name of it). body: the model of the route's body, if any."""
    errors = error.errors()
    name, value = _place(error.body, errors[0])
    same = [e for e in errors if _place(error.body, e)[0] == name]  # each branch of a union reports an error
    kinds = {e["type"] for e in same}
    if not name and "missing" not in kinds:
        return "the body is no JSON object; send one, with Content-Type: application/json", None
    if "missing" in kinds:
        return f"{name or 'the body'} is missing; /openapi.json says what can be given", name or None
    if kinds == {"extra_forbidden"}:
        return _unknown(name, body), name[:LONGEST]
    subject = f"a key of {name.rpartition('.')[0]}" if errors[0]["loc"][-1] == KEY else name[:LONGEST]
    return f"{subject} {_found(value, same)}; it {_expected(same)}", name[:LONGEST]


def _place(body: Any, error: Any) -> tuple[str, Any]:
    """(where an error is as people name it (a.b.0), without pydantic's names of a union's branches; the value there)"""
    where, *parts = error["loc"]
    if where != "body":
        return ".".join(map(str, parts)), error["input"]
    names: list[str] = []
    node = body
    for part in parts:
        known = part in node if isinstance(node, Mapping) else isinstance(node, list) and part in range(len(node))
        if known:
            node = node[part]
        if known or (error["type"] == "missing" and part is parts[-1]):
            names.append(str(part))
    return ".".join(names), error["input"] if parts and parts[-1] == KEY else node


def _unknown(name: str, body: type[BaseModel] | None) -> str:
    """Describes a field that does not exist, with those that do."""
    *above, last = name.split(".")
    model = body
    for part in above:
        model = _model_at(model, part)
    if model is None:
        return f"there is no option {name!r:.100}; /openapi.json lists those that exist"
    where = f" in {'.'.join(above)}" if above else ""
    return f"there is no {last!r:.100}{where}; it takes {', '.join(model.model_fields)}"


def _model_at(model: type[BaseModel] | None, name: str) -> type[BaseModel] | None:
    """The model of a field, where that is an object."""
    if model is None or name not in model.model_fields:
        return None
    annotation = model.model_fields[name].annotation
    for kind in (annotation, *get_args(annotation)):
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            return kind
    return None


def _found(value: Any, errors: Sequence[Any]) -> str:
    if any(e["type"] == "string_too_long" for e in errors):
        return f"has {len(value)} characters"
    if any(e["type"] in ("too_long", "too_short") for e in errors):
        return f"has {_items(len(value))}"
    return f"is {value!r:.100}"


def _expected(errors: Sequence[Any]) -> str:
    """The requirements of the branches of a union, each once."""
    limits = [_limit(e["type"], e.get("ctx") or {}) for e in errors]
    if any(limits):  # of a branch that its type fits
        return next(filter(None, limits))
    kinds = [_kind(e["type"], e.get("ctx") or {}) for e in errors]
    if not all(kinds):
        return ANYTHING_ELSE
    return f"{MUST} {' or '.join(dict.fromkeys(kinds))}"


def _kind(what: str, values: Mapping[str, Any]) -> str:
    if what == "literal_error":
        return str(values["expected"]).replace("False", "false")
    return KINDS.get(what, "")


def _limit(what: str, values: Mapping[str, Any]) -> str:
    if what == "greater_than_equal":
        return f"{MUST} {values['ge']:g} or more"
    if what == "greater_than":
        return f"{MUST} more than {values['gt']:g}"
    if what == "less_than_equal":
        return f"{MUST} {values['le']:g} or less"
    if what == "too_short":
        return f"must have {_items(values['min_length'])} or more"
    if what == "too_long":
        return f"must have {_items(values['max_length'])} or fewer" if values["max_length"] else "must be empty"
    if what == "string_too_long":
        return f"must have {values['max_length']} characters or fewer"
    return ""


def _items(count: int) -> str:
    return f"{count} item{'' if count == 1 else 's'}"
