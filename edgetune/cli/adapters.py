"""The commands adapters, for those of a running daemon."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from ..errors import shell_word, size_text
from ..manifest import manifests
from .app import Time, cli, show
from .grouped import Listing
from .remote import entries, format_time, request, url_path

ADAPTERS = "/v1/adapters"
BASE = "the base alone"


@cli.group("adapters", cls=Listing)
def adapters() -> None:
    """List the daemon's adapters, and choose one.

    Without a command: list them.
    """


@request("list", group=adapters)
def adapters_list(client: Any, as_json: bool) -> None:
    """List all adapters, and why each is active or not."""
    found = client.get(ADAPTERS)
    facts = [fact for manifest in manifests() for fact in manifest.adapter]
    verdicts = [a.get("verdict") or {} for a in found["data"]]
    rows = [([a["id"], a["state"], format_time(a["created_at"]), a.get("name") or "",
              *(f"{a[fact]} {fact}" if a.get(fact) else "" for fact in facts)],
             "; ".join(filter(None, (verdict.get("reason"), verdict.get("remembered")))))
            for a, verdict in zip(found["data"], verdicts, strict=True)]
    show(as_json, found, *(entries(rows) if rows else ["there are no adapters"]), _serving(found))


def _serving(found: dict[str, Any]) -> str:
    return f"active: {found['serving'] or BASE}"


@request("promote", click.argument("adapter"), group=adapters)
def adapters_promote(client: Any, adapter: str, as_json: bool) -> None:
    """Activate ADAPTER, whatever the gate said of it.

    It answers from the next request on.
    """
    _change(client, as_json, url_path(ADAPTERS, adapter, "promote"))


@request("rollback", click.argument("adapter", required=False), group=adapters)
def adapters_rollback(client: Any, adapter: str | None, as_json: bool) -> None:
    """Activate the adapter that was active before.

    With ADAPTER: only if that one is active now.
    """
    _change(client, as_json, url_path(ADAPTERS, "rollback"), {"adapter": adapter})


@request("add", click.argument("adapter", type=click.Path(path_type=Path)),
         click.option("--suffix", default="", help="A word for the adapter's name."), group=adapters)
def adapters_add(client: Any, adapter: Path, suffix: str, as_json: bool) -> None:
    """Add ADAPTER, a folder from another place.

    A compiled prompt is one too. It is a candidate, which evaluate or promote activates.
    """
    from ..console import Copyable
    found = client.add_adapter(adapter, suffix)
    show(as_json, found, f"{found['id']} is a candidate",
         Copyable(f"edgetune adapters evaluate {shell_word(found['id'])} --promote"))


@request("recover", group=adapters)
def adapters_recover(client: Any, as_json: bool) -> None:
    """Take back adapters that a lost database left aside.

    They are candidates then, which promote activates.
    """
    found = client.post(url_path(ADAPTERS, "recover"))
    lines = [f"{adapter} is a candidate again" for adapter in found["recovered"]]
    lines += [f"{folder} remains: {reason}" for folder, reason in found["refused"].items()]
    show(as_json, found, "\n".join(lines) or "no adapters are set aside")


def _change(client: Any, as_json: bool, path: str, body: dict[str, Any] | None = None) -> None:
    client.post(path, body)
    found = client.get(ADAPTERS)
    show(as_json, found, _serving(found))


@request("delete", click.argument("adapter"), group=adapters)
def adapters_delete(client: Any, adapter: str, as_json: bool) -> None:
    """Remove ADAPTER for good; not the active one."""
    found = client.delete(url_path(ADAPTERS, adapter))
    show(as_json, found, f"{adapter} is removed")


@request("rename", click.argument("adapter"), click.argument("name"), group=adapters)
def adapters_rename(client: Any, adapter: str, name: str, as_json: bool) -> None:
    """Give ADAPTER a NAME that requests may use; "": none."""
    found = client.patch(url_path(ADAPTERS, adapter), {"name": name})
    show(as_json, found, f"{adapter} is called {found['name']}" if found["name"] else f"{adapter} has no other name")


@request("download", click.argument("adapter"),
         click.option("-o", "--out", "target", type=click.Path(path_type=Path), required=True, help="New zip file."),
         group=adapters)
def adapters_download(client: Any, adapter: str, target: Path, as_json: bool) -> None:
    """Write ADAPTER into a zip file.

    It holds adapter.gguf, a model card, and run.json without questions, answers and paths.
    """
    client.download(url_path(ADAPTERS, adapter, "download"), target)
    show(as_json, {"out": str(target), "bytes": target.stat().st_size}, f"{target}: {size_text(target.stat().st_size)}")


@request("evaluate", click.argument("adapter"),
         click.option("--promote", is_flag=True, help="Activate it if it passes."),
         click.option("--required", type=click.Choice(["better", "not-worse"]), default="better", show_default=True,
                      help="better: surely better than the active adapter; not-worse: not surely worse."),
         click.option("--if-none", type=click.Choice(["refuse", "canary"]), default="refuse", show_default=True,
                      help="With fewer than 4 held-out questions: refuse, or let unrelated text decide (canary)."),
         click.option("--probation", type=Time(), default="0s", metavar="TIME",
                      help="With --promote: bad ratings within this time roll it back, such as 24h [none]."),
         click.option("--bad-ratings", type=click.IntRange(1, 1000), default=3, show_default=True,
                      help="Bad ratings that roll it back, if good ones are fewer."),
         group=adapters)
def adapters_evaluate(client: Any, adapter: str, promote: bool, required: str, if_none: str, probation: int,
                      bad_ratings: int, as_json: bool) -> None:
    """Evaluate ADAPTER by this device's held-out questions.

    The gate compares it with the active adapter. It exits with 0 if the adapter passed, with 3 if it was refused.
    """
    url_path(ADAPTERS, adapter)  # raises for a name that is none
    found = client.evaluate_adapter(adapter, {"promote": promote, "required": required, "if_none": if_none,
                                              "probation": probation, "bad_ratings": bad_ratings})
    verdict = found["verdict"]
    state = "active" if found["state"] == "serving" else "passed" if verdict["passed"] else "refused"
    show(as_json, found, f"{found['id']} is {state}: {verdict['reason']}")
    if not verdict["passed"]:
        click.get_current_context().exit(3)
