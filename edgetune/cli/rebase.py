"""The command rebase: trains all that a daemon has learned on another base."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from ..daemon.options import DaemonConfig
from ..training.config import FILE_OPTIONS, TrainConfig
from .app import (
    MODEL,
    command,
    config_options,
    policy_file_option,
    policy_of,
    policy_options,
    show,
    stop_on_signals,
    train_progress,
    training_options,
)
from .lab import lab

OF_DAEMON = ("memory", "context", "threads", "canary", "canary_rise", "max_kl")


@command("rebase", MODEL,
         click.option("--from", "state", type=click.Path(path_type=Path), required=True, metavar="STATE",
                      help="State folder of a daemon that does not run."),
         click.option("-o", "--out", "folder", type=click.Path(path_type=Path), required=True,
                      help="New folder of the adapter."),
         config_options(*OF_DAEMON, of=DaemonConfig), training_options(*FILE_OPTIONS, *OF_DAEMON, "shuffle"),
         policy_file_option, policy_options, group=lab)
def rebase_command(model: Path, state: Path, folder: Path, policy_file: Path | None, as_json: bool,
                   **options: Any) -> None:
    """Move what a daemon has learned to another MODEL.

    All feedback in STATE, which does not change, is learned again on MODEL. The same questions are held out, and
    compared with only MODEL; the verdict is in OUT's run.json. Ctrl-C stops; the same command continues.
    """
    from ..daemon.rebase import rebase
    policy = policy_of(policy_file, options)
    config = DaemonConfig(**{name: options[name] for name in OF_DAEMON}).check()
    rest: dict[str, Any] = {name: value for name, value in options.items() if name not in OF_DAEMON}
    train = TrainConfig(**rest, threads=config.threads).check()
    with stop_on_signals() as should_stop, train_progress(as_json) as progress:
        found = rebase(model, state, folder, config=config, policy=policy, train=train, should_stop=should_stop,
                       on_event=progress.event)
    remembered = [found.verdict["remembered"]] if found.verdict["remembered"] else []
    show(as_json, {"out": str(folder), "rows": found.rows, "held_out": found.held, "verdict": found.verdict},
         found.sentence, *remembered, f"adapter in {folder}")
