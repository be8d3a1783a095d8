"""tutor, tutor inspect, tutor rollback."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..training.config import FILE_OPTIONS, TrainConfig
from ..tutor.files import STEPS
from ..tutor.options import TutorOptions
from .app import (
    MODEL,
    TRAIN_OPTIONS,
    cli,
    command,
    config_options,
    explicit,
    governor_of,
    policy_file_option,
    policy_options,
    show,
    stop_on_signals,
    train_progress,
)
from .grouped import GroupedCommand
from .objective import with_defaults

if TYPE_CHECKING:
    from rich.console import RenderableType

RUN = "run"  # the name of the command that `edgetune tutor MODEL ...` is
NOT_HERE = (*FILE_OPTIONS, "eval_every", "patience", "steps", "packing", "overflow", "shuffle")


class Tutor(click.Group):
    """`edgetune tutor MODEL PROMPTS` runs rounds; a first word that names a command is that command."""

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


class RoundsCommand(GroupedCommand):
    """A command whose options of training have the tutor's defaults."""

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        from ..tutor.teach import DEFAULTS
        return with_defaults(super().get_params(ctx), DEFAULTS)


@cli.group("tutor", cls=Tutor)
def tutor() -> None:
    """Let the model answer, judge and correct itself, and learn.

    `edgetune tutor MODEL PROMPTS -o OUT` is short for `edgetune tutor run`, whose help has the options.
    """


@command(RUN, MODEL, click.argument("prompts", type=click.Path(path_type=Path), required=False),
         click.option("-o", "--out", "folder", type=click.Path(path_type=Path), required=True,
                      help="Folder of the rounds and of the adapter that they publish; one that has rounds is "
                           "continued."),
         click.option("--labelled", type=click.Path(path_type=Path), help="Rows with right answers, as `train` takes "
                      "them: learned first where there is no --start, and a fifth of them judges."),
         click.option("--held", type=click.Path(path_type=Path), help="Rows that judge and are never learned, with "
                      "right answers or, beside a grader, without [a fifth of the others]."),
         click.option("--grader", metavar="FILE", help="What judges answers whose right one is not known, as `grade` "
                      "takes it."),
         click.option("--start", type=click.Path(path_type=Path), help="Adapter to begin from."),
         click.option("--keep", type=click.Path(path_type=Path), help="Texts on which the model is to stay as it is "
                      "[some of edgetune's]."),
         click.option("--until", type=click.Choice(STEPS), metavar="STEP", help="Stop after this step of a round, to "
                      f"look at what it found: {', '.join(STEPS)}. The same command makes the next ones."),
         click.option("--unsafe-python", is_flag=True, help="Run python graders also where the kernel cannot confine "
                      "them."),
         config_options(*(spec.name for spec in fields(TutorOptions)), of=TutorOptions),
         config_options(*(name for name in TRAIN_OPTIONS if name not in NOT_HERE)), policy_file_option, policy_options,
         group=tutor, cls=RoundsCommand)
def tutor_command(model: Path, prompts: Path | None, folder: Path, labelled: Path | None, held: Path | None,
                  grader: str | None, start: Path | None, keep: Path | None, until: str | None, unsafe_python: bool,
                  policy_file: Path | None, as_json: bool, **options: Any) -> None:
    """Let MODEL answer PROMPTS, judge its answers, correct wrong ones, and learn from what is trusted, round by round.

    PROMPTS are rows as --method grpo takes them; a completion in one is its right answer. What a round learned is
    published to OUT only if held-out questions say that it is better, through llama.cpp. Ctrl-C stops; the same command
    continues. `edgetune tutor inspect OUT` shows what happened.
    """
    from ..adapters.store import recorded_size
    from ..evaluation.graders.base import load_grader
    from ..tutor.teach import DEFAULTS, teach
    governor = governor_of(policy_file, options)
    rounds = TutorOptions(**{spec.name: options.pop(spec.name) for spec in fields(TutorOptions)})
    config = TrainConfig(**{**options, **DEFAULTS, **recorded_size(start), **explicit(options)}).check()
    judge = load_grader(Path(grader), allow_unsafe_python=unsafe_python) if grader else None
    with stop_on_signals() as should_stop, train_progress(as_json) as progress:
        standing = teach(model, prompts, folder, labelled=labelled, held=held, grader=judge, start=start,
                         keep=keep, until=until or "", options=rounds, config=config, governor=governor,
                         should_stop=should_stop, on_event=progress.event)
    from ..tutor.inspect import lines, summary
    found = summary(folder)
    show(as_json, {"out": str(folder), "stopped": standing.stopped, **found}, *lines(found),
         f"stopped: {standing.stopped}", *_try(folder, standing.published is not None))


@command("inspect", click.argument("folder", metavar="OUT", type=click.Path(path_type=Path)),
         click.option("--round", "number", type=click.IntRange(0), help="Round whose answers are shown [the last]."),
         click.option("--prompts", "shown", type=click.IntRange(0), default=10, show_default=True,
                      help="Questions of it to show, and rows that were told again."),
         click.option("--watts", type=click.FloatRange(0, min_open=True), help="What the machine that made the rounds "
                      "takes meanwhile, by a meter: shows the energy of each."), group=tutor)
def inspect_command(folder: Path, number: int | None, shown: int, watts: float | None, as_json: bool) -> None:
    """Show the rounds in OUT, and for some questions the answers before, the judgment, the revision, those after."""
    from ..tutor.inspect import lines, summary, told
    found = summary(folder, watts or 0.0)
    questions, retold = told(folder, number, shown)
    printed: list[RenderableType] = [*lines(found)]
    for part in (*(one.lines() for one in questions), *(one.lines() for one in retold)):
        printed += ["", *part]
    show(as_json, {**found, "questions": [one.to_json() for one in questions],
                   "retold": [one.to_json() for one in retold]}, *printed)


@command("rollback", MODEL, click.argument("folder", metavar="OUT", type=click.Path(path_type=Path)), group=tutor)
def rollback_command(model: Path, folder: Path, as_json: bool) -> None:
    """Make the adapter in OUT the one that was published before it; the last three are kept."""
    from ..formats.bundle import open_bundle
    from ..tutor.loop import roll_back
    number = roll_back(folder, open_bundle(model).gguf)
    show(as_json, {"out": str(folder), "round": number}, f"{folder} holds the adapter of round {number} again")


def _try(folder: Path, published: bool) -> list[str]:
    if not published:
        return ["nothing was published; edgetune tutor inspect shows why"]
    return [f"adapter in {folder}; edgetune tutor inspect {folder} shows the rounds"]
