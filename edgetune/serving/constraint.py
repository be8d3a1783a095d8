"""The grammar that the answers to a question obey: of its schema, of the calls that it asks for, or its own."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from ..errors import UsageError
from ..llamacpp.json_numbers import Place
from ..llamacpp.json_pattern import text
from ..llamacpp.json_schema import Rules
from .call_form import CallForm
from .question import Question, Tool

NO_ARGUMENTS = {"type": "object", "properties": {}, "additionalProperties": False}
Schema = Mapping[str, Any]


def grammar_of(question: Question, form: CallForm) -> str:
    """The GBNF; "" if the model is free. form: of its calls. Raises UsageError for a form that none can obey."""
    called = question.function is not None or question.tool_choice == "required"
    if question.grammar and (called or question.schema is not None):
        raise UsageError("a grammar is given, and another form that the answer is to have", "leave one of them out")
    if called:
        return _calls(_callable(question), form)
    if question.schema is None:
        return question.grammar
    tools = question.shown_tools
    return _calls(tools, form, Rules(question.schema)) if tools else Rules(question.schema).grammar()


def grammar_of_lines(schemas: Sequence[Schema], most: int) -> str:
    """The GBNF of one to `most` lines, each of them JSON of one of the schemas."""
    rules = Rules(True)
    line = rules.named(" | ".join(rules.rule_of_other(schema, Place()) for schema in schemas))
    return rules.whole(f'{line} ("\\n" {line}){{0,{most - 1}}}')


def _callable(question: Question) -> list[Tool]:
    tools = [tool for tool in question.shown_tools or ()
             if question.function is None or tool["function"]["name"] == question.function]
    if not tools:
        named = f"the function {question.function!r:.100}" if question.function else "a function"
        raise UsageError(f"tool_choice asks for {named}, and tools has none such", "add it to tools")
    return tools


def _calls(tools: Sequence[Tool], form: CallForm, other: Rules | None = None) -> str:
    """One call of one of the tools, or an answer by other rules."""
    rules = other or Rules(True)
    roots = [rules.rule(rules.root, Place())] if other else []
    for tool in tools:
        function = tool["function"]
        schema = function.get("parameters") or {}
        if schema.get("type", "object") != "object":
            raise UsageError(f"the parameters of the function {function['name']!r:.100} are no object",
                             "let their type be object")
        # a bare object may have any properties; but LangChain, for one, sends it for a function without arguments
        bare = not any(value for key, value in schema.items() if key not in ("type", "title", "description", "$schema"))
        taken = NO_ARGUMENTS if bare else {"type": "object", **schema}
        arguments = rules.rule_of_other(taken, Place(function["name"]))
        start = text(f"{form.before}{json.dumps(function['name'], ensure_ascii=False)}{form.between}")
        roots.append(f"{start} {arguments} {text(form.after)}")
    return rules.whole(" | ".join(roots))
