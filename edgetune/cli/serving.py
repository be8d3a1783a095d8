"""Options by which something is put around every question: --prompt, and those of parts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import asdict, dataclass, field, fields, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import click

from ..errors import UsageError
from ..manifest import manifests
from .app import F, explicit

if TYPE_CHECKING:
    from ..data.around import Instruction
    from ..data.formats import Columns
    from ..evaluation.served import Grades
    from ..formats.gguf import Gguf
    from ..serving.classifier import Classifier

# fields of ServingOptions that are put around questions, here also where a daemon computes
AROUND = ("prompt_file", "more")


@dataclass(frozen=True)
class AroundOptions:
    """Options by which a part puts something around every question. flags: {name: what click.option takes}, None unless
    given. opened: takes their values and a number of threads, and yields the instruction, open. Raises UsageError.
    """

    flags: Mapping[str, Mapping[str, Any]]
    opened: Callable[[Mapping[str, Any], int], AbstractContextManager[Instruction]]


@cache
def more_around() -> tuple[AroundOptions, ...]:
    """Returns the options of the parts that have some."""
    return tuple(manifest.load(manifest.around) for manifest in manifests() if manifest.around)


def more_values(options: dict[str, Any]) -> dict[str, Any]:
    """Takes the values of the parts' options out of a command's options."""
    return {name: options.pop(name) for each in more_around() for name in each.flags if name in options}


def around_options(command: F) -> F:
    flags = [(name, flag) for each in more_around() for name, flag in each.flags.items()]
    for name, flag in reversed(flags):
        command = click.option(f"--{name}", **flag)(command)
    return click.option("--prompt", "prompt_file", type=click.Path(path_type=Path), help="Prompt file: system message "
                        "and examples of chats that have no system message.")(command)


@contextmanager
def around_of(serving: ServingOptions, system: str = "") -> Iterator[Instruction]:
    """Opens what the options put around questions. system: what --system says. Raises UsageError where both say it."""
    refuse_both(serving, system)
    has_more = any(value is not None for value in serving.more.values())
    if serving.prompt_file is None and not has_more:
        yield None
        return
    from ..data.around import together
    from ..serving.prompt_file import opened_around
    with ExitStack() as opened:
        around = [opened.enter_context(opened_around(serving.prompt_file, serving.threads))]
        around += [opened.enter_context(each.opened(serving.more, serving.threads)) for each in more_around()]
        yield together(*around)


def refuse_both(serving: ServingOptions, system: str) -> None:
    """Raises UsageError where two options say what the system message is."""
    if serving.prompt_file is not None and system:
        raise UsageError(f"--system is given with --prompt {serving.prompt_file}, which a system message would hide",
                         "write it into the prompt file, or leave one of them out")


def taken_around(serving: ServingOptions, system: str = "") -> tuple[Instruction, ServingOptions]:
    """What the options put around questions, open until the command ends, and the options without these. Errors: those
    of `around_of`.
    """
    found = click.get_current_context().with_resource(around_of(serving, system))
    return found, replace(serving, prompt_file=None, more={})


def beside_around(options: dict[str, Any]) -> dict[str, Any]:
    """The options of serving without those that are put around questions."""
    return {name: value for name, value in options.items() if name not in AROUND}


def instruction_of(adapter: Path | None) -> Instruction:
    """What an adapter was trained with: its prompt, or its system message."""
    from ..adapters.store import read_system
    from ..serving.prompt_file import prompt_of
    return prompt_of(adapter) or read_system(adapter) or None


def longest_text(gguf: Gguf) -> int:
    """The most tokens that a model reads."""
    return cast(int, gguf.metadata[f"{gguf.architecture}.context_length"])


def refuse_around(serving: ServingOptions, why: str) -> None:
    """Raises UsageError where something would be put around questions, and cannot be. why: the reason."""
    for flag, value in {"prompt": serving.prompt_file, **serving.more}.items():
        if value is not None:
            raise UsageError(f"--{flag} {value} is given, {why}", "leave it out")


def sources_of(served: Any, messages: Sequence[dict[str, Any]]) -> list[dict[str, Any]] | None:
    """The sources of an answer, if what is put around chats has some; else None."""
    from ..data.around import sourced
    found = sourced(getattr(served, "around", None))
    return found.sources(messages) if found else None


def sources_text(sources: Sequence[dict[str, Any]]) -> str:
    """The sources of an answer for a person."""
    if not sources:
        return "the index has nothing about this"
    return "sources: " + "; ".join(f"[{number}] {source['source']}" for number, source in enumerate(sources, 1))


def url_options(command: F) -> F:
    """--url and --key-file. --url is read first: MODEL is a daemon's name then."""
    command = click.option("--key-file", type=click.Path(path_type=Path),
                           help="With --url: file that holds a key (et-...) for the daemon [EDGETUNE_KEY].")(command)
    return click.option("--url", default="", is_eager=True,
                        help="Ask a daemon, http://HOST:PORT or unix:/PATH, which has its model loaded already; MODEL "
                             "is one of its names, such as NAME:latest.")(command)


def refuse_beside(url: str, key_file: Path | None, **options: Any) -> None:
    """Refuses options of local computing where a daemon computes, and a key without one. Raises UsageError."""
    if not url and key_file is not None:
        raise UsageError(f"--key-file {key_file} is given without --url", "leave it out, or name the daemon with --url")
    for name in explicit(options) if url else ():
        raise UsageError(f"--{name.replace('_', '-')} is given with --url, where the daemon computes",
                         "leave one of them out")


@contextmanager
def remote_model(model: Path, url: str, key_file: Path | None) -> Iterator[Any]:
    from ..daemon.client import Client, RemoteModel, read_key
    with Client(url, read_key(key_file)) as client:
        yield RemoteModel(client, str(model))


def classifier_of(model: Gguf, adapter: Path | None, threads: int) -> Classifier:
    """An encoder with its head. Raises UsageError without an adapter."""
    from ..serving.classifier import Classifier
    if adapter is None:
        raise UsageError(f"{model.path} is an encoder, which answers with a head that was trained",
                         "name it with --adapter")
    return Classifier(model, adapter, threads)


def graded_by_encoder(model: Gguf, adapters: Sequence[Path | None], data: Path, columns: Columns, limit: int | None,
                      threads: int) -> list[Grades]:
    """Grades with each adapter: of labels, or of vectors where one of them was trained for these; None: without one."""
    from ..data import labelled, paired
    from ..data.files import read_rows
    from ..data.formats import recognised
    from ..evaluation.encoders import grade_labels
    if any(adapter and _is_of_vectors(adapter) for adapter in adapters):
        from ..evaluation.encoders import grade_vectors
        from ..serving.encoder import Encoder
        pairs = [recognised(row, [paired], columns) for _, row in read_rows(data)]
        encoder = Encoder(model, threads)
        return [grade_vectors(encoder, adapter, pairs, limit) for adapter in adapters]
    rows = [recognised(row, [labelled], columns) for _, row in read_rows(data)]
    graded = []
    for adapter in adapters:
        with classifier_of(model, adapter, threads) as served:
            graded.append(grade_labels(served, rows, limit))
    return graded


def _is_of_vectors(adapter: Path) -> bool:
    """Whether an adapter of an encoder has no labels, as `--method embed` makes it."""
    from ..adapters.store import read_any
    return not read_any(adapter)[1].objective


def answer_options(command: F) -> F:
    from ..llamacpp.sampling import Sampling
    s = Sampling()
    for flag, kind, default, text in (
            ("--seed", int, 0, "Seed of sampling."),
            ("--min-p", float, s.min_p, "Leave out tokens less likely than this share of the likeliest."),
            ("--top-p", float, s.top_p, "Sample among the likeliest tokens that make up this probability."),
            ("--top-k", int, s.top_k, "Sample among the K likeliest tokens; 0: all."),
            ("--temperature", float, s.temperature, "0: always the likeliest token."),
            ("--max-tokens", int, 256, "Tokens of an answer at most.")):
        command = click.option(flag, type=kind, default=default, show_default=True, help=text)(command)
    return click.option("--stop", multiple=True, help="Text that ends the answer; may be repeated.")(command)


busy_file_option = click.option("--busy-file", type=click.Path(path_type=Path),
                                help="File that exists while an answer is made; edgetune train --busy-file pauses.")
runtime_option = click.option("--runtime", type=click.Choice(["llama", "onnx"]),
                              help="What computes: llama.cpp, or ONNX Runtime [what the bundle was made for].")
markup_option = click.option("--markup", type=click.Choice(["escape", "parse"]), default="escape", show_default=True,
                             help="Control tokens in a message, as in training.")
memory_option = click.option("--memory", default="", help="With --engine native: memory of this process at most, such "
                             "as 500M or 25% [75% of what is available].")
structured_option = click.option("--structured", type=click.Choice(["auto", "off"]), default="auto", show_default=True,
                                 help="Hold answers to the schema of the training rows, if all are JSON.")
NO_PROMPT = "and the model is an encoder, which reads a question alone"


@dataclass(frozen=True)
class ServingOptions:
    """The options of a command by which a model is opened for answers."""

    adapter: Path | None = None
    threads: int = 0
    busy_file: Path | None = None
    runtime: str | None = None
    markup: str = "escape"
    url: str = ""
    key_file: Path | None = None
    structured: str = "auto"
    prompt_file: Path | None = None
    more: Mapping[str, Any] = field(default_factory=dict)  # of the parts' options around a question

    @classmethod
    def taken_from(cls, options: dict[str, Any]) -> ServingOptions:
        """Takes the options of serving out of a command's options."""
        return cls(**{spec.name: options.pop(spec.name) for spec in fields(cls) if spec.name in options},
                   more=more_values(options))


@contextmanager
def served_model(model: Path, serving: ServingOptions) -> Iterator[Any]:
    """The model, in the runtime that `serving` or its bundle asks for, with its adapter in use; or a daemon's."""
    refuse_beside(**beside_around(asdict(serving)))
    with around_of(serving) as around, _opened_model(model, serving) as served:
        if around:
            served.around = around
        yield served


@contextmanager
def _opened_model(model: Path, serving: ServingOptions) -> Iterator[Any]:
    if serving.url:
        with remote_model(model, serving.url, serving.key_file) as served:
            yield served
        return
    adapter = serving.adapter
    threads = serving.threads or None
    from ..formats.bundle import open_bundle
    from ..formats.gguf import ENCODERS
    from ..serving.llama import LlamaModel
    from ..serving.onnx import OnnxModel, holds_onnx
    if serving.runtime == "onnx" or (serving.runtime is None and holds_onnx(model)):
        if adapter is not None:
            raise UsageError(f"--adapter {adapter} is given with ONNX Runtime, adapters work with llama.cpp alone",
                             "leave it out, or use a GGUF of the model")
        with OnnxModel(model, threads=threads, busy_file=serving.busy_file) as served:
            served.tokenizer.markup = serving.markup
            yield served
        return
    gguf = open_bundle(model).gguf
    if gguf.architecture in ENCODERS:
        refuse_around(serving, NO_PROMPT)
        with classifier_of(gguf, adapter, serving.threads) as classifier:
            yield classifier
        return
    with LlamaModel(gguf, threads=threads, busy_file=serving.busy_file) as served:
        served.tokenizer.markup = serving.markup
        served.structured = serving.structured == "auto"
        if adapter is not None:
            served.load_adapter(adapter, adapter.name)
            served.use(adapter.name)
        yield served


OWN_ENGINE = ("samples", "memory", "parallel", "precision", "backend", "save")  # options of edgetune's own engine alone


def check_engine(engine: str, **options: Any) -> None:
    """Raises UsageError for options that the engine does not have."""
    for name in explicit(options):
        flag = f"--{name.replace('_', '-')}"
        if engine != "native" and name in OWN_ENGINE:
            raise UsageError(f"{flag} is given without --engine native, whose option it is", "leave one of them out")
        if engine == "native" and name not in OWN_ENGINE:
            raise UsageError(f"{flag} is given with --engine native, which does not have it",
                             "leave one of them out, or answer through llama.cpp")
