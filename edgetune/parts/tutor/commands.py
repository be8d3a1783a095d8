"""tutor, tutor inspect, tutor rollback."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.text import Text

from ...cli.app import (
    MODEL,
    command,
    config_options,
    explicit,
    governor_of,
    policy_file_option,
    policy_options,
    show,
    stop_on_signals,
    train_progress,
    training_options,
)
from ...cli.configured import config_option
from ...cli.lab import lab
from ...errors import WORSE, printable, shell_word
from ...training.config import FILE_OPTIONS, TrainConfig
from .rounds.options import STEPS, TutorOptions

if TYPE_CHECKING:
    from rich.console import RenderableType

    from .rounds.inspect import PromptReport

SHOWN_LETTERS = 300  # of a text
RUN = "run"  # the name of the command that `edgetune lab tutor MODEL ...` is
NOT_HERE = (*FILE_OPTIONS, "eval_every", "patience", "steps", "packing", "overflow", "shuffle")


class TutorGroup(click.Group):
    """`edgetune lab tutor MODEL PROMPTS` runs rounds; a first word that names a command is that command."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        return super().parse_args(ctx, args if not args or args[0] in ctx.help_option_names else self._named(args))

    def resolve_command(self, ctx: click.Context,
                        args: list[str]) -> tuple[str | None, click.Command | None, list[str]]:
        return super().resolve_command(ctx, self._named(args))

    def _named(self, args: list[str]) -> list[str]:
        return args if args[0] in self.commands else [RUN, *args]

    def format_usage(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        formatter.write_usage(ctx.command_path, "MODEL [PROMPTS] -o OUT [OPTIONS]")

    def list_commands(self, _ctx: click.Context) -> list[str]:
        return [RUN, "inspect", "rollback"]


@lab.group("tutor", cls=TutorGroup)
def tutor() -> None:
    """Learn from few labelled rows and many prompts.

    The model answers the prompts itself, and learns the answers that agree.

    `edgetune lab tutor MODEL PROMPTS -o OUT` is short for `edgetune lab tutor run`, whose help has the options.
    """


@command(RUN, MODEL, click.argument("prompts", type=click.Path(path_type=Path)),
         click.option("-o", "--out", "folder", type=click.Path(path_type=Path), required=True,
                      help="Folder of the rounds and of the adapter that they publish; rounds in it are continued."),
         click.option("--labelled", type=click.Path(path_type=Path), help="Rows with right answers, as `train` takes "
                      "them; a fifth of them is held out until the gate has decided."),
         click.option("--held", type=click.Path(path_type=Path), help="Held-out rows, with right answers unless there "
                      "is a grader [a fifth of the others]."),
         click.option("--grader", metavar="FILE", help="Grader whose passing answers are learned, as `grade` takes it "
                      "[those that agree are]."),
         click.option("--start", type=click.Path(path_type=Path), help="Adapter to begin from."),
         click.option("--keep", type=click.Path(path_type=Path), help="Texts on which the model shall stay as it is "
                      "[some of edgetune's]."),
         click.option("--until", type=click.Choice(STEPS), metavar="STEP", help="Stop after this step of a round: "
                      f"{', '.join(STEPS)}. The same command continues."),
         click.option("--unsafe-python", is_flag=True, help="Run python graders also where the kernel cannot confine "
                      "them."),
         config_options(*(spec.name for spec in fields(TutorOptions)), of=TutorOptions),
         training_options(*NOT_HERE), policy_file_option, policy_options, config_option(),
         group=tutor)
def tutor_command(model: Path, prompts: Path, folder: Path, labelled: Path | None, held: Path | None,
                  grader: str | None, start: Path | None, keep: Path | None, until: str | None, unsafe_python: bool,
                  policy_file: Path | None, as_json: bool, **options: Any) -> None:
    """Learn the answers of MODEL to PROMPTS that agree.

    Each prompt is answered several times. Answers that agree, or pass a grader, are learned with the labelled rows.

    PROMPTS are rows as --method grpo takes them; a completion in one is its right answer. The adapter is published to
    OUT only if it answers held-out questions better through llama.cpp; the exit code is 3 if none is. Ctrl-C stops; the
    same command continues.
    `edgetune lab tutor inspect OUT` shows what happened.
    """
    from ...adapters.store import recorded_size
    from ...evaluation.graders.base import load_grader
    from ...evaluation.graders.sandbox import limited_processes, share_of
    from ...machine.device import rss
    from ...training.callbacks import RunCallbacks
    from .rounds.teach import TutorFiles, teach
    governor = governor_of(policy_file, options)
    rounds = TutorOptions(**{spec.name: options.pop(spec.name) for spec in fields(TutorOptions)})
    config = TrainConfig(**{**options, **recorded_size(start), **explicit(options)}).check()
    judge = load_grader(Path(grader), allow_unsafe_python=unsafe_python) if grader else None
    share = share_of(config.memory_here() - rss(), judge.process_bytes) if judge else 0
    if share:
        config = replace(config, memory=f"{max((config.memory_here() - share) >> 20, 1)}M")
    with limited_processes(share), stop_on_signals() as should_stop, train_progress(as_json) as progress:
        state = teach(model, TutorFiles(prompts, labelled, held, keep), folder, grader=judge, start=start,
                      until=until or "", options=rounds, config=config,
                      callbacks=RunCallbacks(progress.event, should_stop, governor))
    from .rounds.inspect import summary
    found = summary(folder)
    came = f"adapter in {folder}" if state.published else "nothing was published"
    show(as_json, {"out": str(folder), "stopped": state.stopped, **found}, _headline(found["rounds"]),
         *_rounds(found["rounds"]), f"stopped: {state.stopped}",
         f"{came}; edgetune lab tutor inspect {shell_word(folder)} shows the rounds")
    if not state.published and not until:
        click.get_current_context().exit(WORSE)


@command("inspect", click.argument("folder", metavar="OUT", type=click.Path(path_type=Path)),
         click.option("--round", "number", type=click.IntRange(1), help="Round whose answers are shown [the last]."),
         click.option("--prompts", "shown", type=click.IntRange(0), default=10, show_default=True,
                      help="Prompts of it to show."),
         click.option("--watts", type=click.FloatRange(0, min_open=True), help="Power of the machine that made the "
                      "rounds, by a meter: shows the energy of each."), group=tutor)
def inspect_command(folder: Path, number: int | None, shown: int, watts: float | None, as_json: bool) -> None:
    """Show the rounds in OUT, and answers to some prompts."""
    from .rounds.inspect import reports, summary
    found = summary(folder, watts or 0.0)
    prompts = reports(folder, number, shown)
    show(as_json, {**found, "prompts": [asdict(one) for one in prompts]}, *_rounds(found["rounds"]),
         *(Text(line) for one in prompts for line in ["", *_lines(one)]))


@command("rollback", MODEL, click.argument("folder", metavar="OUT", type=click.Path(path_type=Path)), group=tutor)
def rollback_command(model: Path, folder: Path, as_json: bool) -> None:
    """Publish the adapter before the last one again.

    The last three are stored in OUT.
    """
    from ...formats.bundle import open_bundle
    from .rounds.folder import roll_back
    number = roll_back(folder, open_bundle(model).gguf)
    show(as_json, {"out": str(folder), "round": number}, f"{folder} holds the adapter of round {number} again")


def _headline(rounds: Sequence[Mapping[str, Any]]) -> Text:
    """Says whether a round published an adapter, and why."""
    from ...console import headline
    published = [one for one in rounds if "publish" in one]
    decided = [one["gate"]["reason"] for one in published or rounds if "gate" in one]
    return headline(["published" if published else "not published", *decided[-1:]], "green" if published else "yellow")


def _rounds(rounds: Sequence[Mapping[str, Any]]) -> list[RenderableType]:
    from ...console import duration, table
    rows = []
    reasons: list[RenderableType] = []
    for one in rounds:
        chosen = one.get("choose", {})
        decision = one.get("gate")
        rows.append([str(one["round"]), str(one.get("draw", {}).get("answers", "")),
                     str(chosen.get("chosen", "")), str(one.get("train", {}).get("rows", "")),
                     str(one.get("train", {}).get("steps", "")), f"{decision['held_out']:.0%}" if decision else "",
                     "" if decision is None else decision["adapter"] or "no", f"{one['drawn']:,}",
                     f"{one['trained']:,}", duration(one["seconds"]),
                     *([f"{one['watt_hours']:.2g} Wh"] if "watt_hours" in one else [])])
        if reason := decision["reason"] if decision else chosen.get("stop"):
            reasons.append(Text(f"round {one['round']}: {reason}"))
    heads = ["round", "answers", "chosen", "rows", "steps", "held out", "published", "tokens drawn", "tokens trained",
             "time", "energy"]
    return [table("", heads[:len(rows[0])] if rows else heads, rows), *reasons]


def _lines(one: PromptReport) -> list[str]:
    """A prompt with its answers; those that pass or agree are marked."""
    return [_short(one.asked), *(f"  {'+' if right else '-'} {_short(text)}" for text, right in one.answers),
            f"  learned, {one.source} ({one.rate:.0%}): {_short(one.label)}" if one.label else "  not learned",
            *([f"  later: {_short(one.after)}"] if one.after else [])]


def _short(text: str) -> str:
    return printable(text if len(text) <= SHOWN_LETTERS else text[:SHOWN_LETTERS - 4] + " ...")
