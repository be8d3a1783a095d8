"""feedback proposed, accept and dismiss: corrections that people made in the chat itself."""

from __future__ import annotations

from typing import Any

import click
from rich.text import Text

from ..errors import printable
from .app import show
from .feedback import feedback
from .remote import format_time, request, url_path

PROPOSALS = "/v1/proposals"
ID = click.argument("proposal_id", metavar="ID")


@request("proposed", group=feedback)
def feedback_proposed(client: Any, as_json: bool) -> None:
    """List corrections that people made in a chat.

    They are learned only if you accept them.
    """
    found = client.get(PROPOSALS)
    lines = [Text(line) for each in found["data"] for line in _lines(each)]
    show(as_json, found, *(lines or [Text("no correction waits")]))


def _lines(found: dict[str, Any]) -> list[str]:
    said = {name: printable(" ".join(str(found[name]).split())) for name in ("question", "answer", "remark",
                                                                             "correction")}
    return [f"{found['id']}  {format_time(found['created_at'])}", f"  {said['question']} → {said['answer']}",
            f"  then: {said['remark']}", f"  right: {said['correction'] or 'not known'}"]


@request("accept", ID, click.argument("correction", required=False), group=feedback)
def feedback_accept(client: Any, proposal_id: str, correction: str | None, as_json: bool) -> None:
    """Make feedback of a proposed correction.

    CORRECTION is the right answer, if it is another one than the proposed.
    """
    body = {} if correction is None else {"correction": correction}
    found = client.post(url_path(PROPOSALS, proposal_id, "accept"), body)
    show(as_json, found, f"{found['id']} {found['reason']}")


@request("dismiss", ID, group=feedback)
def feedback_dismiss(client: Any, proposal_id: str, as_json: bool) -> None:
    """Delete a proposed correction."""
    found = client.delete(url_path(PROPOSALS, proposal_id))
    show(as_json, found, f"{proposal_id} is dismissed")
