"""The command prompts: lists and deletes the prompts that a daemon keeps; its tutor's rows of edgetune status."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import click
from rich.text import Text

from ...cli.app import show
from ...cli.feedback import feedback
from ...cli.grouped import Listing
from ...cli.remote import begun_lines, format_time, latest, request, show_latest, url_path
from ...disk import json_text
from ...errors import UsageError, printable

PROMPTS = "/v1/prompts"
ID = click.argument("prompt_id", metavar="ID")


@feedback.group("prompts", cls=Listing)
def prompts() -> None:
    """List and learn the prompts that a daemon stores.

    It stores them with --keep-prompts. Without a command: list the latest.
    """


@request("list", click.option("--limit", type=click.IntRange(min=0), default=20, show_default=True,
                              help="Prompts at most; 0: all."), group=prompts)
def prompts_list(client: Any, limit: int, as_json: bool) -> None:
    """List the latest prompts first, and count them."""
    found, counts = latest(client, PROMPTS, limit)
    rows = [([each["id"], format_time(each["created_at"])], printable(" ".join(each["question"].split())))
            for each in found]
    counted = f"{counts['kept']} of {counts['most']} at most are kept, {counts['new']} were not asked by the tutor yet"
    show_latest(as_json, found, counts, rows, counted, "no prompts are kept")


@request("show", ID, group=prompts)
def prompts_show(client: Any, prompt_id: str, as_json: bool) -> None:
    """Show all that is stored of a prompt."""
    found = client.get(url_path(PROMPTS, prompt_id))
    show(as_json, found, Text(json_text(found["row"], indent=1)))


@request("learn", group=prompts)
def prompts_learn(client: Any, as_json: bool) -> None:
    """Begin the tutor's rounds over the stored prompts.

    The daemon must have been started with --learn tutor.
    """
    job = client.post("/v1/learn", {"prompts": True})
    show(as_json, job, *begun_lines(job))


@request("delete", click.argument("prompt_id", metavar="[ID]", required=False),
         click.option("--all", "everything", is_flag=True, help="Delete all of them."), group=prompts)
def prompts_delete(client: Any, prompt_id: str | None, everything: bool, as_json: bool) -> None:
    """Delete a prompt, or all, for good."""
    if (prompt_id is None) != everything:
        raise UsageError("an ID and --all are both given" if prompt_id else "no prompt is named",
                         "give an ID, which edgetune feedback prompts lists, or --all")
    found = client.delete(url_path(PROMPTS, prompt_id) if prompt_id else PROMPTS)
    said = f"{prompt_id} is deleted" if prompt_id else f"{found['count']} prompts are deleted"
    show(as_json, found, "; ".join(filter(None, [said, found["remains"]])))


def status_rows(facts: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yields for what the tutor of a daemon waits, and the results of the rounds of its latest job."""
    found = facts["learning"].get("tutor")
    if found is None:
        return
    counts = found["prompts"]
    lines = [found["state"], f"{counts['kept']} prompts of {counts['most']} at most are kept, {counts['new']} are new"]
    for one in found["rounds"]:
        said = "published" if one["published"] else "not published"
        lines.append(f"round {one['round']}, {said}: {one['reason']}")
    yield "tutor", "\n".join(lines)
