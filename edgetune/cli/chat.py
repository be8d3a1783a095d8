"""chat: a conversation with a model, in a terminal or for a program."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import click

from .answer import Serving, answer_options, busy_file_option, markup_option, runtime_option, served_model
from .app import MODEL, adapter_option, command, out, system_option, threads_option


@command("chat", MODEL, adapter_option, system_option, answer_options, threads_option, busy_file_option,
         runtime_option, markup_option)
def chat_command(model: Path, system: str, as_json: bool, **options: Any) -> None:
    """Talk to the model. An empty line, /exit or Ctrl-D ends it; /reset forgets what was said.

    With --json each answer is a JSON line, for programs that write to standard input.
    """
    start = [{"role": "system", "content": system}] if system else []
    messages = list(start)
    interactive = sys.stdin.isatty() and not as_json
    with served_model(model, Serving.taken_from(options)) as served:
        while True:
            if interactive:
                out.print("[bold green]>[/] ", end="")
            line = sys.stdin.readline().strip()
            if line in ("", "/exit"):
                return
            if line == "/reset":
                messages = list(start)
                continue
            messages.append({"role": "user", "content": line})
            answer = ""
            for piece in served.chat(messages, **options):
                answer += piece
                if not as_json:
                    click.echo(piece, nl=False)
            click.echo(json.dumps({"text": answer}) if as_json else "")
            messages.append({"role": "assistant", "content": answer})
