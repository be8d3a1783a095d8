"""Jinja for chat templates, in which every operation pays for what it does (see `meter`).

Jinja's own sandbox keeps a template from reaching the interpreter, not from `10**10000000`, nested loops or a list that
holds itself a thousand times over. Operators, calls, filters and tests pay where Jinja lets them be replaced; where it
does not, filters of ours are put into the template's tree. Operations whose cost cannot be told beforehand, and that
chat templates do not need, do not exist here (REMOVED; methods other than METHODS).
"""

from __future__ import annotations

import functools
import json
import re
import string
from collections.abc import Callable, Iterable
from typing import Any

import jinja2
import jinja2.ext
from jinja2 import nodes
from jinja2.runtime import Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

from .meter import (
    WIDTH,
    Excess,
    Meter,
    check_binop,
    check_format,
    check_percent,
    current,
    is_sequence,
    length,
    size_after,
    size_replaced,
    too_wide,
)

NODES_A_STEP = 32  # of a loop's body

METHODS = {
    str: "capitalize casefold center count endswith find format index isalnum isalpha isascii isdecimal isdigit "
         "islower isnumeric isspace istitle isupper join ljust lower lstrip partition removeprefix removesuffix "
         "replace rfind rindex rjust rpartition rsplit rstrip split splitlines startswith strip swapcase title "
         "upper zfill",
    dict: "copy get items keys values",
    list: "copy count index",
    tuple: "count index",
    int: "bit_length",
    float: "is_integer",
}
ALLOWED = {kind: frozenset(names.split()) for kind, names in METHODS.items()}
REMOVED = ("lipsum", "pprint", "striptags", "urlize", "wordwrap", "xmlattr")  # globals and filters
COMPARING = ("==", "eq", "equalto", "!=", "ne", ">", "gt", "greaterthan", ">=", "ge", "<", "lt", "lessthan", "<=", "le",
             "in")  # tests
# Filters that look at the elements of a list, not into them, or give their value through.
SHALLOW = ("attr", "batch", "count", "d", "default", "first", "items", "last", "length", "list", "map", "random",
           "reject", "rejectattr", "reverse", "select", "selectattr", "slice")
SIZED = ("batch", "center", "indent", "round", "slice", "tojson", "truncate")  # by numbers among their arguments
_WIDE_BRACES = re.compile(r"\d{5}|\{")


class Sandbox(ImmutableSandboxedEnvironment):
    """Jinja under the rules that transformers sets for chat templates, its operations metered."""

    intercepted_binops = frozenset(["+", "*", "**", "%"])

    def __init__(self) -> None:
        super().__init__(trim_blocks=True, lstrip_blocks=True, optimized=False, finalize=_written,
                         extensions=[_Generation, jinja2.ext.loopcontrols])
        for name in REMOVED:
            self.filters.pop(name, None)
            self.globals.pop(name, None)
        self.filters["tojson"] = _to_json
        self.filters["sum"] = _sum
        self.filters = {name: _metered_filter(name, function) for name, function in self.filters.items()}
        tests: Any = self.tests
        self.tests = {name: _metered_test(name, function) for name, function in tests.items()}
        self.filters |= {"_step": _step, "_read": _read, "_made": _made, "_concat": _concat}

    def load(self, source: str) -> jinja2.Template:
        return self.from_string(_Metering().visit(self.parse(source)))

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        for kind, names in ALLOWED.items():
            if isinstance(obj, kind):
                return attr in names
        return not isinstance(obj, (bytes, complex)) and super().is_safe_attribute(obj, attr, value)

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:  # noqa: ARG002 (jinja2's)
        meter = current.get()
        if type(left) is not str or operator != "+":  # two texts are no more than twice what was paid for
            check_binop(meter, operator, left, right)
        return meter.made(self.binop_table[operator](left, right))

    def call(__self, __context: Any, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        meter = current.get()
        if not isinstance(__obj, Macro):
            size = sum(meter.read(arg) for arg in (*args, *kwargs.values()))
            owner = getattr(__obj, "__self__", None)
            if isinstance(owner, (str, list, tuple)):
                size += meter.read(owner)
            if isinstance(owner, str):
                if __obj.__name__ == "join" and args and not is_sequence(args[0]):
                    args = (list(args[0]),)  # a generator's size is not known
                    size += meter.read(args[0])
                meter.room(size_after(__obj.__name__, owner, args, size))
        return meter.made(super().call(__context, __obj, *args, **kwargs))

    def wrap_str_format(self, value: Any) -> Any:
        """str.format, and Markup's, once what its text asks for is known."""
        run = super().wrap_str_format(value)
        if run is None:
            return None
        text = value.__self__

        def guarded(*args: Any, **kwargs: Any) -> Any:
            for _, _, spec, _ in string.Formatter().parse(text):
                if spec and _WIDE_BRACES.search(spec):
                    raise too_wide(spec)
            check_format(current.get(), text, text.count("{"), [*args, kwargs])
            return run(*args, **kwargs)

        return guarded


# ---- filters and tests -----------------------------------------------------------------------------------------------


def _metered_filter(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    first = 1 if hasattr(function, "jinja_pass_arg") else 0  # before it comes the context or environment

    @functools.wraps(function)
    def run(*args: Any, **kwargs: Any) -> Any:
        meter = current.get()
        value, *more = args[first:]
        if name in ("join", "sum") and not is_sequence(value):
            value = list(value)  # a generator could not be read again
        size = meter.read(value, name not in SHALLOW)
        for arg in (*more, *kwargs.values()):
            if name in SIZED and isinstance(arg, int) and abs(arg) > WIDTH:
                raise Excess(f"gives the filter {name} a number above {WIDTH:,}")
            size += meter.read(arg)
        meter.room(_size_of_filtered(meter, name, value, more, kwargs, size))
        return meter.made(function(*args[:first], value, *more, **kwargs))

    return run


def _size_of_filtered(meter: Meter, name: str, value: Any, more: list[Any], kwargs: dict[str, Any], read: int) -> int:
    """Bytes that a filter's result can have at most, or nearly."""
    if name == "replace" and len(more) > 1:
        return size_replaced(value, *more[:2])
    if name == "join":
        return read + length(more[0] if more else kwargs.get("d", "")) * len(value)
    if name == "indent":
        width = more[0] if more else kwargs.get("width", 4)
        return read + str(value).count("\n") * (width if isinstance(width, int) else length(width)) + WIDTH
    if name == "format" and isinstance(value, str):
        check_percent(meter, value, [*more, kwargs])
    if name == "tojson":
        return _size_of_json(meter, value, read, *more, **kwargs)
    return WIDTH if name in SHALLOW else read


def _size_of_json(meter: Meter, value: Any, read: int, ensure_ascii: bool = False, indent: Any = None,
                  separators: Any = None, sort_keys: bool = False) -> int:  # noqa: ARG001 (as _to_json)
    count, _, depth = meter.measure(value)
    space = indent if isinstance(indent, int) else length(indent or "")
    for separator in separators or ():
        space += length(separator)
    return (6 if ensure_ascii else 1) * read + count * space * max(depth, 1)


def _metered_test(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    first = 1 if hasattr(function, "jinja_pass_arg") else 0

    @functools.wraps(function)
    def run(*args: Any) -> Any:
        meter = current.get()
        for arg in args[first:] if name in COMPARING else ():
            meter.read(arg)
        meter.pay(1)
        return function(*args)

    return run


def _to_json(value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None,
             sort_keys: bool = False) -> str:
    """Jinja's own filter escapes HTML; models are trained on plain JSON."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


@jinja2.pass_environment
def _sum(environment: Any, iterable: Iterable[Any], attribute: Any = None, start: Any = 0) -> Any:
    """Jinja's, but each addition is metered: a sum of lists can be of any size."""
    total = start
    find = jinja2.filters.make_attrgetter(environment, attribute) if attribute is not None else None
    for value in iterable:
        total = environment.call_binop(None, "+", total, find(value) if find else value)
    return total


# ---- what a template's own code becomes ------------------------------------------------------------------------------


@jinja2.pass_context
def _written(_context: Any, value: Any) -> Any:
    """Called with all that is written out, template text too."""
    meter = current.get()
    size = len(value) if type(value) is str else meter.read(value)
    meter.pay(1 + (size >> 10), size)
    return value


def _step(count: int) -> None:
    current.get().pay(count)


def _read(value: Any) -> Any:
    current.get().read(value)
    return value


def _made(value: Any) -> Any:
    return current.get().made(value)


def _concat(parts: list[Any]) -> str:
    meter = current.get()
    meter.room(sum(meter.read(part) for part in parts))
    return str(meter.made("".join(map(str, parts))))


class _Metering(NodeTransformer):
    """Puts the filters above into a template's tree, where Jinja has no hook for them."""

    def visit_For(self, node: nodes.For) -> Any:
        self._count(node)
        if node.test is not None:
            node.test = _through("_read", node.test)
        return node

    def visit_Macro(self, node: nodes.Macro) -> Any:
        return self._count(node)

    def visit_CallBlock(self, node: nodes.CallBlock) -> Any:
        return self._count(node)

    def visit_Block(self, node: nodes.Block) -> Any:
        return self._count(node)

    def _count(self, node: Any) -> Any:
        cost = 1 + sum(1 for part in node.body for _ in part.find_all(nodes.Node)) // NODES_A_STEP
        self.generic_visit(node)
        node.body.insert(0, nodes.ExprStmt(_through("_step", nodes.Const(cost)), lineno=node.lineno))
        return node

    def visit_TemplateData(self, node: nodes.TemplateData) -> Any:
        return nodes.Const(node.data, lineno=node.lineno)  # template text would be written without being counted

    def visit_Concat(self, node: nodes.Concat) -> Any:
        self.generic_visit(node)
        return _through("_concat", nodes.List(node.nodes, lineno=node.lineno))

    def visit_Compare(self, node: nodes.Compare) -> Any:
        self.generic_visit(node)
        part: Any
        for part in (node, *node.ops):
            if not isinstance(part.expr, nodes.Const):
                part.expr = _through("_read", part.expr)
        return node

    def visit_Getitem(self, node: nodes.Getitem) -> Any:
        self.generic_visit(node)
        if isinstance(node.arg, nodes.Slice):
            return _through("_made", node)
        if not isinstance(node.arg, nodes.Const):
            node.arg = _through("_read", node.arg)
        return node

    def visit_List(self, node: nodes.List) -> Any:
        self.generic_visit(node)
        return _through("_made", node)

    def visit_Dict(self, node: nodes.Dict) -> Any:
        self.generic_visit(node)
        for pair in node.items:
            pair.key = _through("_read", pair.key)
        return _through("_made", node)

    def visit_Tuple(self, node: nodes.Tuple) -> Any:
        self.generic_visit(node)
        return _through("_made", node) if node.ctx == "load" else node


def _through(name: str, node: Any) -> nodes.Filter:
    return nodes.Filter(node, name, [], [], None, None, lineno=node.lineno)


class _Generation(jinja2.ext.Extension):
    """{% generation %} marks what transformers trains on; here the mark is skipped, `data` finds the spans itself."""

    tags = {"generation"}  # noqa: RUF012 (jinja2 declares it so)

    def parse(self, parser: Any) -> Any:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)
