"""compile-prompt."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from ..errors import DataError, shell_word, size_text
from .app import MODEL, command, out, show, threads_option
from .lab import lab

if TYPE_CHECKING:
    from ..serving.compiled import CompiledPrompt

LARGEST = 1 << 24  # bytes of a prompt's file


@command("compile-prompt", MODEL, click.argument("prompt", type=click.Path(path_type=Path)),
         click.option("-o", "--out", "folder", type=click.Path(path_type=Path), required=True, help="New folder."),
         threads_option, group=lab)
def compile_prompt_command(model: Path, prompt: Path, folder: Path, threads: int, as_json: bool) -> None:
    """Compute PROMPT once, and store it for every request.

    No request then has to wait for it.

    PROMPT is a text file with a system message, or a request's JSON with messages and tools. The result is an adapter:
    --adapter OUT answers as if the prompt had just been read. A chat without a system message is given this one.
    `edgetune train --family prefix --start OUT` trains from it.
    """
    from ..adapters.store import FILE
    from ..formats.bundle import open_bundle
    from ..formats.named import name_of
    from ..serving.compiled import compile_prompt
    bundle = open_bundle(model)
    with out.status("reading the prompt"):
        tokens = compile_prompt(bundle, _prompt(prompt), folder, threads)
    size = (folder / FILE).stat().st_size
    show(as_json, {"out": str(folder), "tokens": tokens, "bytes": size},
         f"{tokens} tokens in {folder}, {size_text(size)}; try: "
         f"edgetune chat {shell_word(name_of(model))} --adapter {shell_word(folder)}")


def _prompt(path: Path) -> CompiledPrompt:
    """The prompt of a text, or of a request's system message and tools. Raises DataError."""
    from ..data.prompts import check_learnable
    from ..disk import read_object, read_small
    from ..serving.compiled import CompiledPrompt
    if path.suffix != ".json":
        try:
            return CompiledPrompt(read_small(path, LARGEST).decode().strip())
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"{path} cannot be read: {error}", "name a text file with a system message") from None
    request = read_object(path, "write a request as a client sends it", LARGEST)
    if request is None:
        raise DataError(f"{path} does not exist", "name a request's JSON, or a text file with a system message")
    check_learnable(request)
    messages = request.get("messages", [])
    system = next((message["content"] for message in messages if message.get("role") == "system"), "")
    return CompiledPrompt(system, request.get("tools"))
