"""teach: a teacher's file, on a laptop."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from ..training.config import FILE_OPTIONS, READING
from .answer import new_file
from .app import (
    DATA,
    MODEL,
    adapter_option,
    command,
    config_options,
    out,
    show,
    step_progress,
    stop_on_signals,
    threads_option,
)
from .data import data


@command("teach", MODEL, DATA,
         click.option("-o", "--out", "path", type=click.Path(path_type=Path), required=True, callback=new_file,
                      help="New file, such as NAME.teacher."), adapter_option,
         click.option("--top", type=click.IntRange(1, 256), default=32, show_default=True,
                      help="The likeliest tokens that are told apart at each token; all others are one."),
         click.option("--temperature", type=click.FloatRange(0.1, 20), default=1.0, show_default=True,
                      help="Temperature of the teacher's distribution, and of the student's that is compared with it."),
         config_options(*READING, *FILE_OPTIONS), threads_option, group=data)
def teach_command(model: Path, data: Path, path: Path, adapter: Path | None, top: int, temperature: float,
                  threads: int, as_json: bool, **reading: Any) -> None:
    """Write what MODEL expects in DATA, for a student.

    That is the likeliest tokens at each token of its answers, with their log-probabilities: about 130 bytes a token,
    or 200 with a vocabulary above 65,536. A smaller model with the same tokenizer and chat template learns them on the
    device: edgetune train --method distill --teacher FILE. Rows to hold out belong into DATA too. Options that change
    how rows are read must be those of the training.
    """
    from ..errors import size_text
    from ..runs.teaching import teach
    from ..training.config import TrainConfig
    with stop_on_signals() as should_stop, step_progress(out, as_json) as progress:
        header = teach(model, data, path, adapter=adapter, top=top, temperature=temperature,
                       reading=TrainConfig(**reading).check(), threads=threads, on_progress=progress.step,
                       should_stop=should_stop)
    facts = {**asdict(header), "out": str(path), "bytes": header.file_bytes}
    show(as_json, facts, f"{header.positions} tokens of {header.examples} rows, {size_text(header.file_bytes)}, in "
         f"{path}")
