"""fleet rollout, advance, apply and slot: an adapter or a base reaches a fleet ring by ring."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ....cli.app import MODEL, ModelPath, Share, Time, command, show
from ....cli.remote import request
from ....errors import shell_word
from ....version import __version__
from .rounds import JOINED_AT, KEY, URLS, fleet

if TYPE_CHECKING:
    from ..rollout.folder import Order
    from ..rollout.reports import DeviceFile

FOLDER = click.argument("folder", type=click.Path(path_type=Path))


@command("rollout", click.argument("source", metavar="SOURCE", type=ModelPath()), FOLDER,
         click.option("--adapter", type=click.Path(path_type=Path), metavar="ADAPTER",
                      help="With a base: an adapter of it, which comes with it."),
         click.option("--rings", default="1,10%,all", show_default=True,
                      help="The devices that each ring reaches, those of earlier ones included."),
         click.option("--success", type=Share(), default="95%", show_default=True,
                      help="Share of outcomes that must be successes, else a person decides."),
         click.option("--error", type=Share(), default="2%", show_default=True,
                      help="Share of failures in a ring, above which the roll-out stops."),
         click.option("--quorum", type=Share(), default="50%", show_default=True,
                      help="Share of a ring's devices that must have an outcome, else a person decides."),
         click.option("--wait", type=Time(), default="7d", show_default=True,
                      help="Time that a ring waits for its devices."),
         click.option("--probation", type=Time(), default="24h", show_default=True,
                      help="Time in which bad ratings roll a device back."),
         click.option("--bad-ratings", type=click.IntRange(1, 1000), default=3,
                      show_default=True, help="Bad ratings that do, if good ones are fewer."),
         click.option("--required", type=click.Choice(["better", "not-worse"]), default="better", show_default=True,
                      help="What the gate of each device requires."),
         click.option("--if-none", type=click.Choice(["refuse", "canary"]), default="refuse", show_default=True,
                      help="What it does with fewer than 4 held-out questions."),
         click.option("--first", multiple=True, metavar="DEVICE", help="Device that comes before others; repeat it."),
         click.option("--least", default=__version__, show_default=True, help="Earliest edgetune that can use it."),
         KEY, group=fleet)
def fleet_rollout(source: Path, folder: Path, adapter: Path | None, rings: str, success: float, error: float,
                  quorum: float, wait: int, probation: int, bad_ratings: int, required: str, if_none: str,
                  first: tuple[str, ...], least: str, key: Path | None, as_json: bool) -> None:
    """Bring SOURCE to the devices of FOLDER in rings.

    SOURCE is an adapter, or a base: a bundle or a GGUF. A base reaches devices whose daemon serves a slot (fleet slot).
    The gate of each device decides. Run apply on each device, again and again, and advance here, unless a daemon serves
    FOLDER with --fleet.
    """
    from ..rollout.folder import begin
    from ..rollout.reports import read_devices
    from ..rollout.rings import RingPlan
    plan = RingPlan(tuple(rings.split(",")), success, error, quorum, wait)
    evaluation = {"required": required, "if_none": if_none, "probation": probation, "bad_ratings": bad_ratings}
    order = begin(folder, source, plan, evaluation, int(time.time()), first=first, adapter=adapter, least=least,
                  key=key)
    _show(order, *read_devices(folder), as_json)


@command("advance", FOLDER,
         click.option("--pause", is_flag=True, help="Let no further ring begin."),
         click.option("--resume", is_flag=True, help="Continue a paused roll-out, if need be with the next ring."),
         click.option("--stop", is_flag=True, help="Let no further device begin."),
         click.option("--undo", is_flag=True, help="Let every device go back to what it had before."),
         KEY, group=fleet)
def fleet_advance(folder: Path, pause: bool, resume: bool, stop: bool, undo: bool, key: Path | None,
                  as_json: bool) -> None:
    """Begin the next ring, by what devices have reported.

    A ring that fails stops the roll-out; one with too few successes pauses it.
    """
    from ....errors import UsageError
    from ..rollout.folder import step
    from ..rollout.rings import PAUSE, RESUME, STOP, UNDO
    asked = [word for word, given in ((PAUSE, pause), (RESUME, resume), (STOP, stop), (UNDO, undo)) if given]
    if len(asked) > 1:
        raise UsageError(f"--{asked[0]} and --{asked[1]} are given", "give one of them")
    _show(*step(folder, int(time.time()), asked[0] if asked else "", key), as_json)


@command("slot", MODEL, click.argument("path", type=click.Path(path_type=Path)), group=fleet)
def fleet_slot(model: Path, path: Path, as_json: bool) -> None:
    """Make a slot at PATH, which holds a copy of MODEL.

    edgetune serve PATH serves it, under the name of PATH. A roll-out may put another base into it.
    """
    from ..bases.slot import make_slot
    found = make_slot(model, path)
    show(as_json, {"path": str(found.path), "side": found.side}, f"{model} is in the slot {path}",
         f"start edgetune serve {shell_word(path)}")


@request("apply", click.argument("fleet_", metavar="FOLDER"),
         click.option("--lead-key-file", type=click.Path(path_type=Path),
                      help="At a URL that this device has not joined: file with a key."),
         JOINED_AT,
         click.option("--device", default="", help="Name of this device in the fleet [drawn once and kept]."),
         click.option("--base-slot", "slot", type=click.Path(path_type=Path), metavar="PATH",
                      help="Slot that the daemon serves: bases are taken, too."),
         click.option("--restart", metavar="COMMAND", default="",
                      help="Restarts the daemon, after the slot has another base."),
         click.option("--start-wait", type=Time(), default="15m", show_default=True,
                      help="Time in which it must answer after that."),
         group=fleet, shows=False)
def fleet_apply(client: Any, fleet_: str, lead_key_file: Path | None, joined_at: str, device: str, slot: Path | None,
                restart: str, start_wait: int, as_json: bool) -> None:
    """Do what the roll-out asks of this device's daemon.

    FOLDER may be the URL of a daemon that serves one with --fleet. The gate of the device decides, and what came
    of it is written there. Run it again and again, by a timer for instance.
    """
    from dataclasses import asdict

    from ....formats.signature import private_key
    from ..bases.slot import owned
    from ..bases.trial import settle
    from ..membership.device import check_no_signer, device_name, signer_at
    from ..membership.lead import open_lead
    from ..rollout.apply import apply
    from ..rollout.daemons import DaemonByHttp
    from ..rollout.http import LeadByHttp, copy_of, fetch, fetch_base
    from ..rollout.reports import sign, write_device
    here = DaemonByHttp(client)
    now = int(time.time())
    is_url = fleet_.startswith(URLS)
    if is_url:
        check_no_signer(fleet_, joined_at)
    signer = signer_at(joined_at, device) if joined_at else None
    with owned(slot, restart, start_wait, is_url) as owner:
        if owner:
            settle(owner, here, now)  # before anything that needs the fleet
        if is_url:
            other, name = open_lead(fleet_, lead_key_file, device)
            with other:
                lead = LeadByHttp(other)
                copy = copy_of(fleet_, name)
                fetch(lead, copy)
                if owner:
                    fetch_base(lead, copy, name)
                own, order = apply(copy, name, here, now, owner)
                lead.report(own)
        elif signer:  # its own file is in a copy: the one in the folder may be forged
            name, key = signer
            copy = copy_of(joined_at, name)
            own, order = apply(Path(fleet_), name, here, now, owner, copy)
            write_device(Path(fleet_), sign(own, private_key(key)))
        else:
            own, order = apply(Path(fleet_), device or device_name(), here, now, owner)
    about = f": {own.reason}" if own.reason else ""
    said = "nothing is rolled out" if order is None else f"{own.execution}{about}"
    show(as_json, asdict(own), f"{own.device}: {said}")


def _show(order: Order, devices: dict[str, DeviceFile], wrong: list[str], as_json: bool) -> None:
    from dataclasses import asdict

    from ....errors import printable
    from ..rollout.reports import reports_of
    from ..status import rollout_status
    from .status import rollout_lines
    reports = reports_of(devices, order.facts.rollout)
    found = rollout_status(order, devices)
    told = [f"{printable(name)}: {reports[name].execution}: {printable(reports[name].reason)}"
            for name in sorted(reports) if reports[name].execution in ("rejected", "closed") and
            reports[name].finished != "success"]
    *table, last = rollout_lines(found)
    facts = {"rollout": found.id, "status": found.status, "reason": found.reason, "ring": found.ring,
             "rings": found.rings, "devices": {name: asdict(report) for name, report in reports.items()},
             "unreadable": wrong}
    show(as_json, facts, *table, *told, *(f"left out: {printable(one)}" for one in wrong), last)
