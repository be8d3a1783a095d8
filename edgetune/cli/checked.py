"""feedback check: a person rates answers to questions that were drawn from all that people asked."""

from __future__ import annotations

import sys
from contextlib import suppress
from typing import Any

import click

from ..errors import UsageError, printable
from .app import show
from .feedback import feedback
from .remote import request

DRAWN = "/v1/drawn"
CHAT = "/v1/chat/completions"
TEXT = "/v1/completions"
SKIP = "-"
ASK = f"Enter: right. {SKIP}: skip. Or type the right answer"


@request("check", click.option("--limit", type=click.IntRange(1, 100), default=20, show_default=True,
                               help="Questions at most."),
         click.option("--clear", is_flag=True, help="Delete all drawn questions instead."), group=feedback)
def feedback_check(client: Any, limit: int, clear: bool, as_json: bool) -> None:
    """Rate the answers by which new adapters are tested.

    One question in five is drawn when it is asked, to test new adapters by. Once you have rated eight, those that you
    were asked about decide, and what you skipped counts as right. With --json, list the questions.
    """
    if clear:
        found = client.delete(DRAWN)
        show(as_json, found, f"{found['count']} questions are deleted")
        return
    found = client.get(DRAWN, limit=limit)
    if as_json or not found["data"]:
        show(as_json, found, "every drawn question is rated")
        return
    with client.understood():
        questions = [(row, _text(row)) for row in found["data"]]
    if not is_terminal():
        raise UsageError(f"{len(questions)} answers wait for a rating, and standard input is no terminal",
                         "run edgetune feedback check in a terminal, or list them with --json")
    click.echo(f"{len(questions)} answers that nobody rated. {ASK}. Ctrl-D ends.\n")
    rated = 0
    with suppress(click.Abort):
        for row, question in questions:
            rated += _rated(client, row, question)
    click.echo(f"\n{rated} answers are rated")


def is_terminal() -> bool:
    return sys.stdin.isatty()


def _text(row: dict[str, Any]) -> str:
    """The question of a row, as a line that a terminal may show."""
    return printable(str(row["messages"][-1]["content"] if "messages" in row else row["prompt"]))


def _rated(client: Any, row: dict[str, Any], question: str) -> bool:
    """Asks the daemon and then the person; returns whether the answer was rated."""
    answer, is_whole = _answer(client, row)
    click.echo(f"{question}\n  → {printable(answer)}{'' if is_whole else ' (cut)'}")
    said = click.prompt("  right?", default="", show_default=False, prompt_suffix=" ").strip()
    if said == SKIP or not (said or is_whole):  # what is cut is not the right answer
        return False
    right = {"rating": "up"} if said in ("", answer) else {"correction": said}
    client.post(DRAWN, {**row, "answer": answer, **right})
    return True


def _answer(client: Any, row: dict[str, Any]) -> tuple[str, bool]:
    """The active adapter's answer, and whether the model ended it."""
    is_chat = "messages" in row
    asked = {**row, "temperature": 0, "store": False}  # a check is not drawn again, nor kept
    found = client.post(CHAT if is_chat else TEXT, asked)
    with client.understood():
        choice = found["choices"][0]
        text = str((choice["message"]["content"] if is_chat else choice["text"]) or "")
        return text.strip(), choice["finish_reason"] != "length"
