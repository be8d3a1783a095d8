"""compress: the laptop's command."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import click

from ..compress.options import CompressConfig
from ..errors import UsageError, install_hint, lacking, named
from .app import command, config_options, out, show, step_progress, stop_on_signals
from .configured import config_option

SHORT = 1.5  # seconds of a step that is not named
Step = tuple[str, float]  # its name and its seconds


@command("compress", click.argument("source"),
         click.option("-o", "--out", "folder", type=click.Path(path_type=Path), required=True,
                      help="New bundle, such as NAME.edge."),
         click.option("--resume", is_flag=True, help="Refuse to begin a run; a stopped one is continued anyway."),
         click.option("--sign", "key", type=click.Path(path_type=Path),
                      help="File of an Ed25519 private key (PEM or OpenSSH) to sign the bundle with."),
         config_options(*(spec.name for spec in fields(CompressConfig)), of=CompressConfig), config_option())
def compress_command(source: str, folder: Path, resume: bool, key: Path | None, as_json: bool, **options: Any) -> None:
    """Make SOURCE smaller, on a laptop or server.

    SOURCE is a Hugging Face folder, a hub id such as HuggingFaceTB/SmolLM2-135M-Instruct, a GGUF or a bundle, of any
    architecture that is trained. Steps run in this order: trim the vocabulary, drop blocks, narrow, distill, store.
    Mixtures of experts are only trimmed and stored.
    An encoder (BERT, of sentence-transformers too) is only stored: it takes --type and --measure, or
    --static.

    The bundle NAME.edge contains model.gguf (or model.onnx), manifest.json and report.html, which says what it cost.
    First the time is estimated. After Ctrl-C or a kill the same command continues.
    """
    config = CompressConfig(**options).check()
    try:
        from ..compress import report
        from ..compress.pipeline import compress
    except ImportError as error:
        raise lacking(error) or UsageError(
            f"compress cannot be used with the packages that are installed ({named(error)})",
            f"{install_hint('host')}, into a fresh environment") from None
    from ..console import note, say
    with stop_on_signals() as should_stop, step_progress(out, as_json) as progress:
        def tell(steps: list[Step]) -> None:
            progress.expect(steps)
            if not as_json:
                say(out, estimated(steps))

        facts = compress(source, folder, config, key=key, resume=resume, on_progress=progress.step,
                         should_stop=should_stop, on_estimate=tell)
    notes = []
    if facts["source"]["quantized"]:
        notes.append(note(f"{source} was quantized already: what that cost is not in these numbers"))
    if facts["cost"] is None:
        notes.append(note("what it cost was not measured: give text with --calibrate or --measure"))
    show(as_json, {"out": str(folder), **facts}, *report.lines(facts), *notes,
         f"bundle in {folder}, report in {folder / report.FILE}")


def estimated(steps: list[Step]) -> str:
    """The estimated time of all steps, and of each that is not short."""
    from ..console import about
    parts = ", ".join(f"{what} {about(seconds)}" for what, seconds in steps if seconds >= SHORT)
    return f"about {about(sum(seconds for _, seconds in steps))} here{parts and f': {parts}'}"
