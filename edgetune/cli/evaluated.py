"""adapters evaluate: the daemon's gate evaluates an adapter from another place."""

from __future__ import annotations

from typing import Any

import click

from .app import Time, show
from .remote import ADAPTERS, adapters, request, url_path


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
