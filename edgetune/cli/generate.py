"""generate."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from ..errors import UsageError
from .answer import (
    OWN,
    Serving,
    answer_options,
    busy_file_option,
    check_engine,
    markup_option,
    memory_option,
    new_file,
    runtime_option,
    served_model,
    structured_option,
)
from .app import (
    MODEL,
    adapter_option,
    backend_option,
    command,
    engine_option,
    out,
    precision_option,
    system_option,
    threads_option,
)
from .around import around_options, instruction_of, refuse_around, refuse_both, sources_of, sources_text, taken_around
from .choosing import choice_json, choice_options, choice_text, chosen_answer, taken_choosing
from .elsewhere import url_options
from .prose import Prose


@command("generate", MODEL, click.argument("prompt"), adapter_option, system_option, around_options, answer_options,
         click.option("--raw", is_flag=True, help="Continue PROMPT as it is, without the chat template."),
         engine_option("native: edgetune's own engine answers the prompts of a file together."),
         click.option("--samples", type=click.IntRange(1), default=1, show_default=True,
                      help="Answers, of which --choose takes one; with --engine native and without it all are given."),
         click.option("--parallel", type=click.IntRange(1), default=64, show_default=True,
                      help="With --engine native: answers in progress at once at most."),
         precision_option("With --engine native: how products are computed."),
         click.option("--save", type=click.Path(path_type=Path), callback=new_file,
                      help="With --engine native: new file for the answers [they are printed]."),
         memory_option, threads_option, backend_option, busy_file_option, runtime_option, markup_option,
         structured_option, choice_options, url_options)
def generate_command(model: Path, prompt: str, system: str, raw: bool, as_json: bool, engine: str,
                     **options: Any) -> None:
    """Answer PROMPT, or the prompts of a file.

    PROMPT is a user's message in the model's chat template; llama.cpp answers, or ONNX Runtime.

    With --engine native, PROMPT is a file with a JSON object a line, {"prompt": "..."} or {"messages": [...]}, and the
    answers are JSON lines. The same seed gives the same answers, whatever else is in the file.

    With --samples several answers are made together, and --choose takes one of them.
    """
    own = {name: options.pop(name) for name in OWN}
    choosing = taken_choosing(options, own["samples"], is_default=engine != "native")
    if raw:
        refuse_around(Serving.taken_from(dict(options)), "and --raw continues a text, which is no chat")
    if engine == "native":
        others = {name: options.pop(name) for name in ("busy_file", "runtime", "structured", "url", "key_file")}
        check_engine(engine, **others)
        from ..data.around import together
        from ..evaluation.native import engine_within
        from ..llamacpp.sampling import Sampling
        from .prompts import Questions, answer_file, show_lines
        save = own.pop("save")
        around, serving = taken_around(Serving.taken_from(options), system)
        instruction = together(around, system or instruction_of(serving.adapter))
        questions = Questions(Path(prompt), instruction, raw, serving.markup, own.pop("samples"),
                              options.pop("max_tokens"), options.pop("stop"), choosing)
        engine_used = engine_within(threads=serving.threads, **own)
        show_lines(answer_file(model, serving.adapter, questions, Sampling(**options), engine_used), save, as_json)
        return
    del own["samples"]
    check_engine(engine, **own)
    refuse_file(prompt)
    serving = Serving.taken_from(options)
    refuse_both(serving, system)
    with served_model(model, serving) as served:
        messages = [{"role": "system", "content": system}] if system else []
        messages.append({"role": "user", "content": prompt})
        choice = None
        if choosing:
            choice = chosen_answer(choosing, served, prompt, None if raw else messages, **options)
            pieces = iter([choice.drawn.text])
        else:
            pieces = served.generate(prompt, **options) if raw else served.chat(messages, **options)
        sources = None if raw else sources_of(served, messages)
        if as_json:
            named = {} if sources is None else {"sources": sources}
            said = choice_json(choice) if choice else {}
            click.echo(json.dumps({"prompt": prompt, "text": "".join(pieces), **said, **named}))
            return
        prose = Prose(out)
        for piece in pieces:
            prose.write(piece)
        prose.end()
        if choosing and choice:
            click.echo(choice_text(choosing, choice), err=True)
        if sources is not None:
            click.echo(f"\n{sources_text(sources)}")


def refuse_file(prompt: str) -> None:
    """Refuses a prompt that is the name of a file, which is probably a mistake. Raises UsageError."""
    try:
        is_file = Path(prompt).is_file()
    except (OSError, ValueError):  # too long for a name, or with a NUL byte
        return
    if is_file:
        raise UsageError(f"the prompt {prompt} is a file, and one text is answered at a time",
                         "give --engine native to answer the prompts in it, or the text itself")
