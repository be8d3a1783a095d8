"""Options, declared and checked: each is a field of a dataclass that knows its help, its choices and its range.

Flags, the daemon's schema and the documentation are made from these fields; nothing else spells an option.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, Field, field, fields
from importlib import import_module
from pkgutil import iter_modules
from typing import Any, Generic, TypeVar

from .errors import UsageError

T = TypeVar("T")
K = TypeVar("K", bound=type[Any])
AUTO = "auto"
_KINDS = {int: "a whole number", float: "a number", str: "text", bool: "True or False"}


def option(default: Any, help: str, *, choices: tuple[str, ...] = (), low: float | None = None,
           high: float | None = None, auto: type[int] | type[float] | None = None, zero: str = "",
           common: bool = False, group: str = "", share: bool = False, local: bool = False) -> Any:
    """A dataclass field that knows how it is shown and what range it has (low and high inclusive).

    auto: the type of number that may be given, where the alternative is "auto". zero: the word for 0 that a person
    reads, and may type. common: --help shows it, and not only --help-all. group: a group of this title begins with it.
    share: a percentage such as 5% may be typed for 0.05. local: it names something of this machine, such as a path, so
    that a client of a daemon may not give it.
    """
    return field(default=default, metadata={"help": help, "choices": choices, "low": low, "high": high, "auto": auto,
                                            "zero": zero, "common": common, "group": group, "share": share,
                                            "local": local})


def kind_of(spec: Field[Any]) -> Any:
    """The type of an option's values; that of the number where it is a number or "auto"."""
    return spec.metadata["auto"] or type(spec.default)


def takes_auto(spec: Field[Any]) -> bool:
    return spec.metadata["auto"] is not None


def share_of(text: str) -> float | None:
    """A percentage such as "5%" as 0.05; None for other text."""
    found = re.fullmatch(r"(\d{1,4}(?:\.\d{1,4})?)%", text)
    return float(found[1]) / 100 if found else None


def seconds_of(text: str) -> float | None:
    """A time such as "90s", "5m", "2h" or "1d" in seconds; a bare number is seconds; None for other text."""
    found = re.fullmatch(r"(\d{1,9}(?:\.\d{1,9})?)([smhd]?)", text)
    return float(found[1]) * {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}[found[2]] if found else None


def default_text(value: Any, zero: str = "") -> str:
    """A default as people read it: on, off, auto, a number or a word. zero: the word for 0."""
    if isinstance(value, bool):
        return "on" if value else "off"
    if zero and value == 0:
        return zero
    return f"{value:g}" if isinstance(value, float) else str(value)


def declared(options: Any) -> list[Field[Any]]:
    """The fields of a dataclass of options, or of its instance, that were made by `option`."""
    return [spec for spec in fields(options) if "help" in spec.metadata]


def groups_of(options: Any) -> dict[str, str]:
    """{field: title of its group} of a dataclass of options."""
    found: dict[str, str] = {}
    title = ""
    for spec in declared(options):
        title = spec.metadata["group"] or title
        found[spec.name] = title
    return found


def check_options(options: Any) -> None:
    """Raises UsageError for the first option of an instance that is of another type or out of its range."""
    for spec in declared(options):
        check_type(spec, getattr(options, spec.name))
        check_range(spec, getattr(options, spec.name))


def make_options(kind: type[T], given: Mapping[str, Any]) -> T:
    """An instance of a dataclass of options. Raises UsageError for a name that is not one of them."""
    known = [spec.name for spec in fields(kind) if spec.init]  # type: ignore[arg-type]
    for name in given:
        if name not in known:
            raise unknown_option(name, known)
    return kind(**given)


def unknown_option(name: str, known: Iterable[str]) -> UsageError:
    """The error for a misspelt name, which names the nearest ones, or else all."""
    from difflib import get_close_matches
    known = list(known)
    near = get_close_matches(name, known, n=3)
    hint = f"did you mean {' or '.join(near)}?" if near else f"the options are {', '.join(known) or 'none'}"
    return UsageError(f"{name!r:.80} is no option", hint)


def check_type(spec: Field[Any], value: Any) -> None:
    """Raises UsageError where value is not of the type of the default; a whole number may be given for a float."""
    assert spec.default is not MISSING
    if takes_auto(spec) and value == AUTO:
        return
    kind = kind_of(spec)
    is_number = kind is float and isinstance(value, int) and not isinstance(value, bool)
    is_right = isinstance(value, kind) and not (kind is int and isinstance(value, bool))
    if not (is_right or is_number):
        what = f"{_flag(spec)} is {value!r:.40}, of type {type(value).__name__}"
        raise UsageError(what, f"give {_KINDS[kind]}{', or' if takes_auto(spec) else ', such as'} {spec.default!r}")


def check_range(spec: Field[Any], value: Any) -> None:
    meta = spec.metadata
    name = _flag(spec)
    if meta["choices"] and value not in meta["choices"]:
        raise UsageError(f"{name} is {value!r}", f"choose from {', '.join(meta['choices'])}")
    if takes_auto(spec) and value == AUTO:
        return
    low = meta["low"]
    high = meta["high"]
    if isinstance(value, float) and not math.isfinite(value):
        raise UsageError(f"{name} is {value}, not a number", "give a finite number")
    if low is not None and value < low:
        raise UsageError(f"{name} is {value}, the least is {low:g}", f"raise --{name}")
    if high is not None and value > high:
        raise UsageError(f"{name} is {value}, the most is {high:g}", f"lower --{name}")


def _flag(spec: Field[Any]) -> str:
    return spec.name.rstrip("_").replace("_", "-")


class Registry(Generic[T]):
    """The dataclasses of options of one kind, each registered by a module of one package.

    package: its name; kind: their noun, for errors; unique: class variables that no two of them share, first the one
    that names them. others: modules of the package that register none, and are not imported. modules: {name: module} of
    those whose module is not called like them.
    """

    def __init__(self, package: str, kind: str, unique: tuple[str, ...] = ("name",), others: tuple[str, ...] = (),
                 modules: Mapping[str, str] | None = None) -> None:
        self.package = package
        self.others = others
        self.modules = modules or {}
        self.kind = kind
        self.unique = unique
        self._found: dict[str, type[T]] = {}
        self._is_read = False

    def register(self, one: K) -> K:
        """Registers a class, as a decorator. Raises ValueError where another has its name."""
        for other in self._found.values():
            is_same = (other.__module__, other.__qualname__) == (one.__module__, one.__qualname__)
            if not is_same and any(getattr(other, name) == getattr(one, name) for name in self.unique):
                raise ValueError(f"{one.__qualname__} has the {' or '.join(self.unique)} of {other.__qualname__}")
        self._found[getattr(one, self.unique[0])] = one
        return one

    def all(self) -> dict[str, type[T]]:
        """All that is registered, by name; the modules of the package are imported first."""
        if not self._is_read:
            for module in self._modules():
                import_module(f"{self.package}.{module}")
            self._is_read = True
        return dict(sorted(self._found.items()))

    def find(self, name: str) -> type[T] | None:
        """The class of that name; None where there is none. Of the package only its module is imported, as a board's
        memory holds all that are.
        """
        module = self.modules.get(name, name.replace("-", "_"))
        if name not in self._found and module in self._modules():
            import_module(f"{self.package}.{module}")
        return self._found.get(name) or self.all().get(name)

    def named(self, name: str) -> type[T]:
        """Raises UsageError for an unknown name."""
        found = self.find(name)
        if found is None:
            raise UsageError(f"there is no {self.kind} {name!r:.80}", f"choose from {', '.join(self.all())}")
        return found

    def _modules(self) -> list[str]:
        """The modules that may register a class."""
        names = [module.name for module in iter_modules(import_module(self.package).__path__)]
        return [name for name in names if name not in self.others]
