"""The reference of the Python API: signatures, docstrings and attributes of the public names, as the code has them."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from dataclasses import dataclass, fields, is_dataclass
from functools import cached_property
from importlib import import_module
from typing import Any

import edgetune
from edgetune import errors
from edgetune.data.dataset import Reading


@dataclass(frozen=True)
class Name:
    """A public name. place: where it is imported from. members: of a class, those that are public; "": all. seen_as:
    a sentence on where a program gets it, of a class that it does not make itself. options_of: an earlier name that has
    the same options.
    """

    place: str
    members: str = ""
    seen_as: str = ""
    options_of: str = ""

    @property
    def found(self) -> Any:
        module, _, name = self.place.rpartition(".")
        return getattr(import_module(module), name)

    @property
    def own_members(self) -> list[str]:
        if self.members:
            return self.members.split()
        known = {spec.name for spec in fields(self.found)} if is_dataclass(self.found) else set()
        return [name for name in vars(self.found) if not name.startswith("_") and name not in known]


SECTIONS = {
    "Train": [Name("edgetune.train"), Name("edgetune.resume"), Name("edgetune.teach"), Name("edgetune.Result"),
              Name("edgetune.RunCallbacks"), Name("edgetune.TrainConfig", "check read_json to_json")],
    "Train step by step": [
        Name("edgetune.Trainer", "add add_examples total_steps steps_per_epoch step train evaluate measure peak_rate "
             "pairs save load"),
        Name("edgetune.StepResult"), Name("edgetune.run"), Name("edgetune.load"),
        Name("edgetune.load_rows", options_of="load"),
        Name("edgetune.data.dataset.Dataset", "asking", "`load`, `load_rows` and `trainer.add` return it.")],
    "Answer": [
        Name("edgetune.Served", "load_adapter use unload adapters chat generate complete logprobs logits system_of "
             "grammar_of embedder context reset close"),
        Name("edgetune.Classifier", "classify chat close"), Name("edgetune.vectors"),
        Name("edgetune.Index", "search close"),
        Name("edgetune.serving.classifier.Classified"),
        Name("edgetune.serving.sureness.Sureness", "threshold answered surest", "`Classifier.sureness`."),
        Name("edgetune.serving.completion.Completion", "text cancel",
             "`service.chat` and `service.generate` return it.")],
    "Models and adapters": [
        Name("edgetune.pull"), Name("edgetune.hub.Pulled", "", "`pull` returns it."),
        Name("edgetune.open_bundle"), Name("edgetune.Bundle"),
        Name("edgetune.open_gguf"), Name("edgetune.open_adapter"),
        Name("edgetune.adapters.store.Adapter", "", "`open_adapter` returns it."),
        Name("edgetune.Tokenizer", "encode decode piece is_end render close")],
    "The daemon without HTTP": [
        Name("edgetune.daemon.service.Service", "start stop models chat generate embed health memory device"),
        Name("edgetune.daemon.jobs.jobs.Jobs", "create create_from_rows get list events wait pause resume cancel",
             "It is `service.jobs`."),
        Name("edgetune.daemon.learning.feedback.Feedback", "add get edit delete list counts",
             "It is `service.feedback`."),
        Name("edgetune.daemon.state.adapters.Adapters", "list get promote rollback rename delete",
             "It is `service.adapters`.")],
}


def lines() -> Iterator[str]:
    for title, names in SECTIONS.items():
        yield f"- {title}: {', '.join(link(one) for one in names)}"
    yield from ("- Errors: [edgetune.errors](#errors)", "", "`Unpack[TrainOptions]` in a call: the [training options]"
                "(cli.md#training-options), with underscores.", "")
    for title, names in SECTIONS.items():
        yield from (f"## {title}", "")
        for one in names:
            yield from described(one)
    yield from error_lines()


def undocumented() -> set[str]:
    """The names that a program may import, and that have no place here."""
    return {*edgetune.__all__} - {one.place.removeprefix("edgetune.") for one in every()} - {
        "EdgetuneError", "__version__"}


def every() -> Iterator[Name]:
    for names in SECTIONS.values():
        yield from names


def link(one: Name) -> str:
    return f"[{one.place.rpartition('.')[2]}](#{one.place.lower().replace('.', '')})"


def described(one: Name) -> Iterator[str]:
    found = one.found
    yield from (f"### {one.place}", "")
    if one.seen_as:
        yield from (one.seen_as, "")
    else:
        yield from ("```py", *signature(one.place.rpartition(".")[2], found), "```", "")
    yield from prose(documented(found), names_of(found))
    kinds = {parameter.annotation for parameter in inspect.signature(found).parameters.values()}
    if "Unpack[Reading]" in kinds and not one.options_of:
        yield from prose(documented(Reading), {*Reading.__annotations__})
    elif one.options_of:
        yield from (f"Options: those of [{one.options_of}](#edgetune{one.options_of}).", "")
    if inspect.isclass(found):
        yield from members(one)


def names_of(found: Any) -> set[str]:
    """The parameters of a call, and the attributes of a class, which its docstring may describe."""
    names = set(inspect.signature(found).parameters)
    if inspect.isclass(found) and not is_dataclass(found):
        names |= set(re.findall(r"self\.([a-z]\w*)\b", inspect.getsource(found.__init__)))
    return names


def members(one: Name) -> Iterator[str]:
    """A line for each attribute and method; a method's further paragraphs follow it."""
    for name in one.own_members:
        member = inspect.getattr_static(one.found, name)
        if isinstance(member, classmethod | staticmethod):
            member = member.__func__
        text = documented(getattr(one.found, name) if callable(member) else member, f"{one.place}.{name}")
        if isinstance(member, property | cached_property):
            kind = inspect.signature(member.fget if isinstance(member, property) else member.func).return_annotation
            head = f"{name}: {kind}"
        else:
            head = in_one_line(signature(name, member))
        yield f"- `{head}`: {' '.join(text.split())}"
    yield ""


def in_one_line(lines: list[str]) -> str:
    return " ".join(line.strip() for line in lines).replace("( ", "(").replace(", )", ")")


def documented(found: Any, name: str = "") -> str:
    """Its docstring. Raises AssertionError without one."""
    text = inspect.getdoc(found)
    assert text, f"{name or found} has no docstring"
    return text


def signature(name: str, found: Any) -> list[str]:
    """The call, in one line where it fits, else a parameter a line."""
    given = inspect.signature(found)
    parts = []
    for parameter in given.parameters.values():
        if parameter.name in ("self", "cls"):
            continue
        if parameter.kind is parameter.KEYWORD_ONLY and not any(part.startswith("*") for part in parts):
            parts.append("*")
        stars = {parameter.VAR_POSITIONAL: "*", parameter.VAR_KEYWORD: "**"}.get(parameter.kind, "")
        kind = "" if parameter.annotation is parameter.empty else f": {parameter.annotation}"
        parts.append(f"{stars}{parameter.name}{kind}{default_of(parameter)}")
    is_class = inspect.isclass(found) or given.return_annotation is given.empty
    end = ")" if is_class else f") -> {given.return_annotation}"
    line = f"{name}({', '.join(parts)}{end}"
    return [line] if len(line) <= 100 else [f"{name}(", *(f"    {part}," for part in parts), end]


def default_of(parameter: inspect.Parameter) -> str:
    if parameter.default is parameter.empty:
        return ""
    value = parameter.default
    return " = ..." if callable(value) or "<" in repr(value) else f" = {value!r}"


def prose(text: str, names: set[str]) -> Iterator[str]:
    """A docstring as Markdown: programs apart, and a line for each parameter that it describes."""
    for block in text.split("\n\n"):
        if block.startswith(">>>"):
            yield from ("```py", *(line[4:] for line in block.splitlines()), "```", "")
            continue
        before, parts = divided(" ".join(block.split()), names)
        if before:
            yield from (before, "")
        if parts:
            after = ""
            for name, said in parts:
                said, _, after = said.rstrip(";").partition(" Raises ")
                yield f"- {', '.join(f'`{each}`' for each in name.split(', '))}: {said}"
            yield ""
            if after:
                yield from (f"Raises {after}", "")


def divided(text: str, names: set[str]) -> tuple[str, list[tuple[str, str]]]:
    """(what comes before, [(names, what is said of them)])"""
    starts = [found for found in re.finditer(r"(?:^|(?<=[.;)] ))((?:[a-z_]+, )*[a-z_]+): ", text)
              if set(found[1].split(", ")) <= names]
    if not starts:
        return text, []
    ends = [found.start() for found in starts[1:]] + [len(text)]
    return (text[:starts[0].start()].strip(),
            [(found[1], text[found.end():end].strip()) for found, end in zip(starts, ends, strict=True)])


def error_lines() -> Iterator[str]:
    kinds = [kind for kind in vars(errors).values() if inspect.isclass(kind) and issubclass(kind, errors.EdgetuneError)]
    yield from ("## Errors", "", "Every error that a user can cause is an `edgetune.EdgetuneError`. Its `what` names "
                "the value and the limit, its `hint` the way out. The kinds are in `edgetune.errors`, here with their "
                "exit codes.", "")
    for kind in kinds:
        first = documented(kind).split("\n\n")[0]
        parent = "" if kind.__base__ in (errors.EdgetuneError, Exception) else f" (a {kind.__base__.__name__})"
        yield f"- `{kind.__name__}` ({kind.exit_code}): {' '.join(first.split())}{parent}"
    yield ""
