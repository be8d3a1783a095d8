"""prompt."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..prompting.options import PromptOptions
from .app import DATA, MODEL, RowsPath, adapter_option, command, config_options, out, show, step_progress

if TYPE_CHECKING:
    from ..prompting.find import Found
    from ..serving.prompt_file import Prompt

NOT_ACCEPTED = 3  # exit code, as of a training that is no better than no training
SHOWN = 12  # prompts in the table


@command("prompt", MODEL, DATA, adapter_option,
         click.option("-o", "--out", "target", type=click.Path(path_type=Path), required=True,
                      help="New prompt file: YAML where it ends with .yaml, else JSON."),
         click.option("--eval", "held_out", type=RowsPath(),
                      help="Rows that decide whether the prompt is accepted [a tenth of DATA, as in training]."),
         config_options(*(name for name in PromptOptions.__dataclass_fields__), of=PromptOptions))
def prompt_command(model: Path, data: Path, adapter: Path | None, target: Path, held_out: Path | None, as_json: bool,
                   **options: Any) -> None:
    """Find the prompt with which MODEL answers DATA best.

    Nothing is trained. It tries examples that are near to the question, examples that are the same for all questions,
    and instructions, by rules and by the model itself. Rows that chose the prompt do not decide about it: where it is
    not better for certain, no file is written, and the exit code is 3.

    eval, chat, generate, train and the daemon take the file as --prompt.
    """
    from ..disk import refuse_existing
    from ..prompting.find import find_prompt
    from ..serving.prompt_file import write_prompt
    refuse_existing(target)
    with step_progress(out, as_json) as progress:
        found = find_prompt(model, data, held_out, adapter=adapter, options=PromptOptions(**options),
                            show=progress.step)
    if found.decision.accepted:
        write_prompt(target, _beside(found.prompt, target))
    written = str(target) if found.decision.accepted else None
    show(as_json, found.to_json() | {"out": written}, *_lines(found, target))
    if not found.decision.accepted:
        click.get_current_context().exit(NOT_ACCEPTED)


def _beside(prompt: Prompt, target: Path) -> Prompt:
    """The prompt as a file names its rows: relative to its own folder."""
    from ..data.hub_rows import is_name
    from ..data.parts import names_of
    if prompt.nearest is None:
        return prompt
    names = [name if is_name(name) else os.path.relpath(name, target.absolute().parent)
             for name in names_of(Path(prompt.nearest.rows))]
    return replace(prompt, nearest=replace(prompt.nearest, rows=",".join(names)))


def _lines(found: Found, target: Path) -> list[Any]:
    from ..console import headline, table
    from ..evaluation.acceptance import wilson
    decision = found.decision
    before, after = decision.before, decision.after
    said = [f"{after.exact} of {after.rows} answers right with the prompt alone ({before.exact} before)"]
    lines: list[Any] = [headline([*said, "accepted" if decision.accepted else "not accepted"],
                                 "green" if decision.accepted else "yellow"), ""]
    rows = [[name, f"{side.exact / side.rows:.1%} ({low:.0%} to {high:.0%})", f"{side.loss:.4f}", f"{side.tokens:.0f}"]
            for name, side in (("before", before), (found.best.candidate.name, after))
            for low, high in [wilson(side.exact, side.rows)]]
    lines.append(table("", ["", "exact answers", "loss", "tokens a request"], rows))
    tried = sorted((one for one in found.tried if one.scores), key=lambda one: (one.exact is None, one.rank))[:SHOWN]
    lines += [f"\nbest of {len(found.tried)} prompts on the {len(found.parts.select)} rows that chose",
              table("", ["", "exact", "loss", "tokens", "rows"], [
                  [one.candidate.name, "" if one.exact is None else f"{one.exact:.0%}", f"{one.loss:.4f}",
                   f"{one.tokens:.0f}", str(len(one.scores))] for one in tried])]
    if found.nearest_row is not None:
        lines.append(f"the answer of the nearest row is right for {found.nearest_row} of {len(found.parts.decide)}, "
                     "without a model that writes")
    if found.without_encoder:
        lines.append(f"no examples were tried by nearness: {found.without_encoder}")
    lines.append(f"{target}: edgetune eval, chat, train and daemon take it with --prompt" if decision.accepted else
                 f"{target} is not written: on rows that did not choose it, the prompt is not better for certain")
    return lines
