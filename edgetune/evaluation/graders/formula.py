"""Formulas of multi graders: numbers, names, + - * / ^ with parentheses, and some functions.

Precedence is Python's, with ^ for its **: from the right, and before a sign on its left, so that -2 ^ 2 is -4.
"""

from __future__ import annotations

import ast
import math
import operator
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

from ...errors import UsageError

Value = Callable[[Mapping[str, float]], float]
FUNCTIONS: dict[str, Callable[..., float]] = {
    "min": min, "max": max, "abs": abs, "floor": lambda x: float(math.floor(x)), "ceil": lambda x: float(math.ceil(x)),
    "exp": math.exp, "sqrt": math.sqrt, "log": math.log}  # of floats alone: whole numbers have no limit in Python
OF_MANY = ("min", "max")  # functions of one value or more; the others are of one
LONGEST = 2000  # characters
DEEPEST = 30  # operations within one another, of which the terms of a sum are one
HINT = f"write numbers, the graders' keys, + - * / ^, parentheses and {', '.join(FUNCTIONS)}"
SIGNS: dict[type, Callable[[float, float], float]] = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv,
    ast.Pow: operator.pow}
_TOKEN = re.compile(r"\s*(?:((?:\d+(?:\.\d*)?|\.\d+)(?:[eE][-+]?\d+)?)|([A-Za-z_]\w*)|([-+*/^(),]))")


class NoValueError(ArithmeticError):
    """A formula has no finite value here: it divides by 0, takes the logarithm of 0, or the like."""


@dataclass(frozen=True)
class Formula:
    """A parsed formula. text: as it was written. names: its variables."""

    text: str
    names: frozenset[str]
    _value: Value

    def __call__(self, values: Mapping[str, float]) -> float:
        """The value of the formula. Raises NoValueError where that is not a finite number."""
        try:
            value = self._value(values)
        except (ArithmeticError, ValueError, TypeError) as error:  # TypeError: of a complex number, (-3) ^ 0.5
            raise NoValueError(str(error)) from None
        if isinstance(value, complex) or not math.isfinite(value):
            raise NoValueError(f"{self.text} is {value}")
        return float(value)


def parse_formula(text: str, names: Collection[str]) -> Formula:
    """Parses a formula. names: the variables that it may use. Raises UsageError."""
    if len(text) > LONGEST:
        raise UsageError(f"the formula has {len(text)} characters, the limit is {LONGEST}", "simplify it")
    parser = _Parser(text, names)
    value = parser.value(parser.tree())
    return Formula(text, frozenset(parser.named), value)


class _Parser:
    """Writes a formula in Python's tokens, and makes functions of the nodes of Python's syntax tree."""

    def __init__(self, text: str, names: Collection[str]) -> None:
        self._text = text
        self._names = names
        self.named: set[str] = set()

    def _wrong(self, what: str, hint: str = HINT) -> UsageError:
        return UsageError(f"the formula {self._text!r:.120} {what}", hint)

    def tree(self) -> ast.expr:
        """The syntax tree. Its numbers are floats; its names begin with _, so that none is a word of Python."""
        words = []
        at = 0
        while found := _TOKEN.match(self._text, at):
            number, name, sign = found.groups()
            if number:
                words.append(number if "e" in number.lower() else f"{number}e0")
            else:
                words.append(f"_{name}" if name else sign.replace("^", "**"))
            at = found.end()
        if rest := self._text[at:].strip():
            raise self._wrong(f"cannot be read at {rest[:20]!r}")
        try:
            return ast.parse(" ".join(words), mode="eval").body
        except (SyntaxError, RecursionError, MemoryError) as error:
            raise self._wrong(f"cannot be read ({getattr(error, 'msg', 'it is too deep')})") from None

    def value(self, node: ast.expr, depth: int = 0) -> Value:
        """The function of a node. Operands from left to right are a loop: a long formula is not a deep one."""
        if depth > DEEPEST:
            raise self._wrong(f"is nested more than {DEEPEST} levels", "simplify it")
        match node:
            case ast.Constant(value=float(number)):
                return lambda _: number
            case ast.Name(id=name):
                return self._named(name[1:])
            case ast.UnaryOp(op=op, operand=operand):
                inner = self.value(operand, depth + 1)
                return (lambda values: -inner(values)) if isinstance(op, ast.USub) else inner
            case ast.BinOp():
                return self._chain(node, depth + 1)
            case ast.Call(func=ast.Name(id=name), args=args):
                return self._call(name[1:], [self.value(each, depth + 1) for each in args])
        raise self._wrong("cannot be read")

    def _chain(self, node: ast.expr, depth: int) -> Value:
        rest: list[tuple[Callable[[float, float], float], Value]] = []
        while isinstance(node, ast.BinOp):
            rest.append((SIGNS[type(node.op)], self.value(node.right, depth)))
            node = node.left
        first = self.value(node, depth)

        def value(values: Mapping[str, float]) -> float:
            total = first(values)
            for sign, other in reversed(rest):
                total = sign(total, other(values))
            return total

        return value

    def _named(self, name: str) -> Value:
        if name not in self._names:
            raise self._wrong(f"names {name!r:.80}", f"its graders are {', '.join(self._names)}")
        self.named.add(name)
        return lambda values: values[name]

    def _call(self, name: str, given: list[Value]) -> Value:
        if name not in FUNCTIONS:
            raise self._wrong(f"calls {name!r:.80}", f"its functions are {', '.join(FUNCTIONS)}")
        if not given or (len(given) > 1 and name not in OF_MANY):
            raise self._wrong(f"gives {name} {len(given)} values", "it takes one")
        function = FUNCTIONS[name]
        if name in OF_MANY:
            return lambda values: function([value(values) for value in given])
        return lambda values: function(given[0](values))
