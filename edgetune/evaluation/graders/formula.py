"""Formulas of multi graders: numbers, names, + - * / ^ with parentheses, and some functions.

Precedence is Python's, with ^ for its **: from the right, and before a sign on its left, so that -2 ^ 2 is -4.
"""

from __future__ import annotations

import math
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
DEEPEST = 30  # parentheses, signs and powers within one another
HINT = f"write numbers, the graders' keys, + - * / ^, parentheses and {', '.join(FUNCTIONS)}"
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
    value = parser.sum()
    if parser.kind != "end":
        raise parser.unexpected()
    return Formula(text, frozenset(parser.named), value)


class _Parser:
    """A recursive-descent parser that looks one token ahead."""

    def __init__(self, text: str, names: Collection[str]) -> None:
        self._text = text
        self._names = names
        self._at = 0
        self._depth = 0
        self.named: set[str] = set()
        self.kind = ""  # of the token ahead: number, name, end, or the sign itself
        self.token = ""
        self._next()

    def _next(self) -> None:
        found = _TOKEN.match(self._text, self._at)
        if found:
            self._at = found.end()
            number, name, sign = found.groups()
            self.token = number or name or sign
            self.kind = "number" if number else "name" if name else sign
        elif self._text[self._at:].strip():
            self.token = self._text[self._at:].strip()[:20]
            self.kind = "unknown"
        else:
            self.token = "its end"
            self.kind = "end"

    def unexpected(self) -> UsageError:
        return UsageError(f"the formula {self._text!r:.120} cannot be read at {self.token!r}", HINT)

    def _expect(self, sign: str) -> None:
        if self.kind != sign:
            raise self.unexpected()
        self._next()

    def _deeper(self) -> None:
        self._depth += 1
        if self._depth > DEEPEST:
            raise UsageError(f"the formula {self._text!r:.120} is nested more than {DEEPEST} levels", "simplify it")

    def sum(self) -> Value:
        return self._chain(self._product, {"+": lambda a, b: a + b, "-": lambda a, b: a - b})

    def _product(self) -> Value:
        return self._chain(self._signed, {"*": lambda a, b: a * b, "/": lambda a, b: a / b})

    def _chain(self, operand: Callable[[], Value], signs: Mapping[str, Callable[[float, float], float]]) -> Value:
        """Operands from left to right, computed in a loop: a long formula is not a deep one."""
        first = operand()
        rest: list[tuple[Callable[[float, float], float], Value]] = []
        while self.kind in signs:
            sign = signs[self.kind]
            self._next()
            rest.append((sign, operand()))

        def value(values: Mapping[str, float]) -> float:
            total = first(values)
            for sign, other in rest:
                total = sign(total, other(values))
            return total

        return value if rest else first

    def _signed(self) -> Value:
        if self.kind not in ("+", "-"):
            return self._power()
        is_minus = self.kind == "-"
        self._next()
        self._deeper()
        inner = self._signed()
        self._depth -= 1
        return (lambda values: -inner(values)) if is_minus else inner

    def _power(self) -> Value:
        base = self._atom()
        if self.kind != "^":
            return base
        self._next()
        self._deeper()
        exponent = self._signed()
        self._depth -= 1
        return lambda values: float(base(values)) ** float(exponent(values))

    def _atom(self) -> Value:
        token = self.token
        if self.kind == "number":
            self._next()
            number = float(token)
            return lambda _: number
        if self.kind == "(":
            self._next()
            self._deeper()
            inner = self.sum()
            self._depth -= 1
            self._expect(")")
            return inner
        if self.kind != "name":
            raise self.unexpected()
        self._next()
        return self._call(token) if self.kind == "(" else self._named(token)

    def _named(self, name: str) -> Value:
        if name not in self._names:
            raise UsageError(f"the formula {self._text!r:.120} names {name!r:.80}",
                             f"its graders are {', '.join(self._names)}")
        self.named.add(name)
        return lambda values: values[name]

    def _call(self, name: str) -> Value:
        if name not in FUNCTIONS:
            raise UsageError(f"the formula {self._text!r:.120} calls {name!r:.80}",
                             f"its functions are {', '.join(FUNCTIONS)}")
        self._next()
        self._deeper()
        given = [self.sum()]
        while self.kind == ",":
            self._next()
            given.append(self.sum())
        self._depth -= 1
        self._expect(")")
        if len(given) > 1 and name not in OF_MANY:
            raise UsageError(f"the formula {self._text!r:.120} gives {name} {len(given)} values", "it takes one")
        function = FUNCTIONS[name]
        if name in OF_MANY:
            return lambda values: function([value(values) for value in given])
        return lambda values: function(given[0](values))
