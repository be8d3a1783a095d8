"""The command feedback: gives, lists, edits, deletes and learns feedback on a daemon's answers."""

from __future__ import annotations

import sys
from contextlib import suppress
from typing import Any

import click
from rich.text import Text

from ..errors import UsageError, printable
from .app import cli, show
from .grouped import Listing
from .remote import begun_lines, format_time, latest, request, show_latest, url_path

FEEDBACK = "/v1/feedback"
BRIEF = 60  # characters of a question, and of an answer, in a list
ID = click.argument("feedback_id", metavar="ID")


@cli.group("feedback", cls=Listing)
def feedback() -> None:
    """List, edit and learn feedback on answers.

    Without a command: list the latest.
    """


@request("list", click.option("--limit", type=click.IntRange(min=0), default=20, show_default=True,
                              help="Pieces at most; 0: all."), group=feedback)
def feedback_list(client: Any, limit: int, as_json: bool) -> None:
    """List the latest feedback first."""
    found, counts = latest(client, FEEDBACK, limit)
    rows = [([each["id"], each["state"], format_time(each["created_at"])], _brief(each)) for each in found]
    counted = ", ".join(f"{count} {name}" for name, count in counts.items())
    show_latest(as_json, found, counts, rows, counted, "there is no feedback")


def _brief(found: dict[str, Any]) -> str:
    if found["question"] is None:
        return str(found["reason"])
    said = [_short(found["answer"])] if found["answer"] else []
    said += [f"not {_short(found['rejected'])}"] if found["rejected"] else []
    return f"{_short(found['question'])} → {', '.join(said) or 'no answer'}: {found['reason']}"


def _short(text: str | None) -> str:
    line = printable(" ".join((text or "").split()))
    return line if len(line) <= BRIEF else f"{line[: BRIEF - 1]}…"


@request("show", ID, group=feedback)
def feedback_show(client: Any, feedback_id: str, as_json: bool) -> None:
    """Show a piece of feedback whole.

    It has the conversation, its right answer, and the wrong or worse one.
    """
    found = client.get(url_path(FEEDBACK, feedback_id))
    wrong = [f"not: {_lines(found['rejected'])}"] if found["rejected"] else []
    show(as_json, found, Text("\n".join([*_conversation(found["row"] or {}), *wrong,
                                         f"state: {found['state']}: {found['reason']}"])))


def _conversation(row: dict[str, Any]) -> list[str]:
    if "prompt" in row:
        said = [("prompt", row["prompt"]), ("answer", row["completion"])]
    else:
        said = [(message["role"], message["content"]) for message in row.get("messages", [])]
    return [f"{who}: {_lines(what)}" for who, what in said if what]


def _lines(content: Any) -> str:
    """The text as it is written, without control characters, which a terminal would obey."""
    return "".join(c if c.isprintable() or c == "\n" else printable(c) for c in str(content))


@request("add", click.option("--completion-id", metavar="ID", help="Id of an answer: one of the daemon's last 1,000."),
         click.option("--prompt", help="The question, in place of an answer's id."),
         click.option("--answer", help="The answer that was given; with --rejected, the better one of two."),
         click.option("--correction", help="The right answer: this is learned."),
         click.option("--rejected", help="A worse answer to the same question."),
         click.option("--rating", type=click.Choice(["up", "down"]), help="Whether the answer is right."),
         click.option("--expires-in", type=click.IntRange(1), metavar="SECONDS",
                      help="How long the right answer holds: it is recalled until then, and never learned."),
         group=feedback)
def feedback_add(client: Any, as_json: bool, **given: Any) -> None:
    """Correct an answer, rate it, or compare two answers.

    \b
      --completion-id ID --correction "..."  the right answer
      --completion-id ID --rating up         it was right

    --prompt, --answer and --rejected say that the first of two answers is better. ID is that of a completion
    (chatcmpl-...).
    """
    if (given["completion_id"] is None) == (given["prompt"] is None):
        raise UsageError("--completion-id and --prompt are both given" if given["prompt"] else "no question is given",
                         "name an answer with --completion-id, or its question with --prompt")
    prompt = given.pop("prompt")
    asked = {"messages": [{"role": "user", "content": prompt}]} if prompt is not None else {}
    found = client.post(FEEDBACK, asked | {name: value for name, value in given.items() if value is not None})
    show(as_json, found, f"{found['id']} {found['reason']}")


@request("edit", ID, click.argument("correction", required=False), group=feedback)
def feedback_edit(client: Any, feedback_id: str, correction: str | None, as_json: bool) -> None:
    """Replace the right answer by CORRECTION.

    Without CORRECTION an editor opens. The new answer waits to be learned.
    """
    path = url_path(FEEDBACK, feedback_id)
    if correction is None:
        correction = _edited(client.get(path)["row"] or {})
    found = client.patch(path, {"correction": correction})
    show(as_json, found, f"{feedback_id} {found['reason']}")


def _edited(row: dict[str, Any]) -> str:
    before = row["messages"][-1]["content"] if "messages" in row else row.get("completion", "")
    after = click.edit(str(before))
    if after is None:
        raise UsageError("nothing was saved in the editor", "save the text to change it, or give it as CORRECTION")
    return after.rstrip("\n")


@request("delete", ID, group=feedback)
def feedback_delete(client: Any, feedback_id: str, as_json: bool) -> None:
    """Remove it: the next training is without it."""
    found = client.delete(url_path(FEEDBACK, feedback_id))
    show(as_json, found, "; ".join(filter(None, [f"{feedback_id} is removed", found["remains"]])))


@request("learn", click.option("--all", "everything", is_flag=True, help="Learn again all that was ever learned, and "
                               "leave what is new for later."),
         click.option("--on/--off", "on", default=None, help="Let the daemon learn by itself, or not: a training that "
                      "runs is resumed or paused, none begins."), group=feedback)
def feedback_learn(client: Any, everything: bool, on: bool | None, as_json: bool) -> None:
    """Begin a training from the feedback so far.

    With --off and --on: switch all learning off and on.
    """
    if on is not None:
        if everything:
            raise UsageError(f"--all and --{'on' if on else 'off'} are both given", "leave one of them out")
        found = client.patch("/v1/learn", {"on": on})
        show(as_json, found, f"learning is {'on' if on else 'off'}: {found['state']}")
        return
    job = client.post("/v1/learn", {"all": everything})
    show(as_json, job, *begun_lines(job))


PROPOSALS = "/v1/proposals"
PROPOSAL_ID = click.argument("proposal_id", metavar="ID")


@request("proposed", group=feedback)
def feedback_proposed(client: Any, as_json: bool) -> None:
    """List corrections that people made in a chat.

    They are learned only if you accept them.
    """
    found = client.get(PROPOSALS)
    lines = [Text(line) for each in found["data"] for line in _proposal_lines(each)]
    show(as_json, found, *(lines or [Text("no correction waits")]))


def _proposal_lines(found: dict[str, Any]) -> list[str]:
    said = {name: printable(" ".join(str(found[name]).split())) for name in ("question", "answer", "remark",
                                                                             "correction")}
    return [f"{found['id']}  {format_time(found['created_at'])}", f"  {said['question']} → {said['answer']}",
            f"  then: {said['remark']}", f"  right: {said['correction'] or 'not known'}"]


@request("accept", PROPOSAL_ID, click.argument("correction", required=False), group=feedback)
def feedback_accept(client: Any, proposal_id: str, correction: str | None, as_json: bool) -> None:
    """Make feedback of a proposed correction.

    CORRECTION is the right answer, if it is another one than the proposed.
    """
    body = {} if correction is None else {"correction": correction}
    found = client.post(url_path(PROPOSALS, proposal_id, "accept"), body)
    show(as_json, found, f"{found['id']} {found['reason']}")


@request("dismiss", PROPOSAL_ID, group=feedback)
def feedback_dismiss(client: Any, proposal_id: str, as_json: bool) -> None:
    """Delete a proposed correction."""
    found = client.delete(url_path(PROPOSALS, proposal_id))
    show(as_json, found, f"{proposal_id} is dismissed")


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
