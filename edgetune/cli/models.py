"""The commands pull, which downloads models by name, and models, which lists and describes those here."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import asdict
from typing import Any

import click

from ..errors import size_text
from .app import cli, command, out, show, step_progress
from .grouped import Listing


@command("pull", click.argument("name"))
def pull_command(name: str, as_json: bool) -> None:
    """Download the model NAME.

    NAME is one that edgetune models lists, or hf:ORG/REPO:FILE.gguf, a file on the Hugging Face hub. A download that
    broke off continues. The file is kept once its SHA-256 is the hub's and edgetune can open it. Every command takes
    NAME as a model then.
    """
    from ..console import Copied
    from ..formats.named import terms_of
    from ..hub import pull
    with step_progress(out, as_json) as progress:
        found = pull(name, progress.step)
    licence = found.licence or "none named: look at its page"
    limits = [f"terms, as far as edgetune knows: {terms}"] if (terms := terms_of(found.name)) else []
    show(as_json, asdict(found), Copied(f"{found.name}: {found.path}"), f"{size_text(found.bytes)}, licence {licence}",
         *limits, Copied(f"SHA-256 {found.sha256}"), *([] if found.downloaded else ["it was here already"]))


@cli.group("models", cls=Listing)
def models() -> None:
    """List the models of this device, and describe one.

    Without a command: list them.
    """


@command("list", group=models)
def models_command(as_json: bool) -> None:
    """List the models that are on this device.

    It shows their size, licence and path, and names others that edgetune pull knows.
    """
    from ..console import Copied
    here, others = _listed()
    lines = [Copied(f"{model['name']}  {size_text(model['bytes'])}  {model['licence'] or 'no licence named'}\n"
                    f"  {model['path']}") for model in here]
    more = [f"edgetune pull gets: {', '.join(others)}"] if others else []
    show(as_json, {"models": here, "known": others}, *(lines or [Copied("no models are here")]), *more)


def _listed() -> tuple[list[dict[str, Any]], list[str]]:
    """Models that are on this device, and names of known ones that are not."""
    from ..errors import NotFoundError
    from ..formats import named
    from ..formats.gguf import open_gguf
    found = dict(named.stored_models())
    with suppress(NotFoundError):
        found = {named.PACKAGED: named.packaged_model(), **found}
    here = []
    for name, path in found.items():
        licence = named.read_record(path).get("licence") or open_gguf(path).metadata.get("general.license") or ""
        here.append({"name": name, "path": str(path), "bytes": path.stat().st_size, "licence": str(licence)})
    return here, [name for name in (named.PACKAGED, *named.KNOWN) if name not in found]
