"""--family, and the flags of adapter families: made when a command is parsed, not before."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import Field
from typing import Any

import click

from ..training.config import ADAPTER, LORA
from .grouped import ARGS, GroupedOption

FLAG = "--family"


def family_flags(ctx: click.Context, typed: Callable[[Field[Any]], Any], defaults: bool) -> Iterator[click.Option]:
    """Makes --family and the options of all families. Help shows the options of the named family, and --family where
    there is a choice. typed, defaults: as in `app.config_options`.
    """
    from ..adapters.base import families
    from ..options import declared
    known = families()
    chosen = named(ctx.meta.get(ARGS, ()), FLAG, LORA)
    yield GroupedOption([FLAG, "family"], type=click.Choice(list(known)), default=LORA if defaults else None,
                        show_default=defaults, metavar="NAME", group=ADAPTER, hidden=len(known) == 1,
                        help=f"What is trained: {', '.join(known)}. {FLAG} NAME --help shows its options.")
    own = {spec.name: spec for spec in declared(known.get(chosen, known[LORA]))}
    others = {spec.name: spec for kind in known.values() for spec in declared(kind) if spec.name not in own}
    for name, spec in {**own, **others}.items():
        flag = "--" + name.replace("_", "-")
        if isinstance(spec.default, bool):
            flag = f"{flag}/--no-{flag[2:]}"
        default = spec.default if defaults and name in own else None
        yield GroupedOption([flag, name], type=typed(spec), default=default, group=ADAPTER, hidden=name in others,
                            common=spec.metadata["common"], show_default=default is not None,
                            help=spec.metadata["help"])


def named(args: Sequence[str], flag: str, default: str) -> str:
    """The value after the last occurrence of a flag; the default without one."""
    found = default
    for i, word in enumerate(args):
        if word == flag and i + 1 < len(args):
            found = args[i + 1]
        elif word.startswith(f"{flag}="):
            found = word.removeprefix(f"{flag}=")
    return found
