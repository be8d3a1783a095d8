"""From a source to a bundle: trim, prune, distill, store, measure, report. Each step is a module.

All work is done in NAME.edge.work beside the bundle; the bundle appears whole or not at all. A run that is stopped
while it distills keeps that folder, and resume=True continues from there: the steps before it are made again, to the
same weights, for the same source, options and seed give the same bytes.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..disk import new_folder, refuse_existing
from ..errors import Interrupted, UsageError
from ..formats import bundle as bundles
from ..formats import signature
from ..formats.gguf import open_gguf
from ..llamacpp.tokenizer import Tokenizer
from ..machine.device import thread_count
from ..serving.llama import LlamaModel
from ..serving.model import ServedModel
from ..serving.onnx import OnnxModel
from . import fits, memory, samples, texts
from .measure import compare
from .measured import Arrays, Measured
from .onnx import export as export_onnx
from .options import CompressConfig
from .progress import Progress, ignore, never
from .quantize import assign, sensitivity
from .quantize import write as quantize
from .report import report
from .shrink import distill, prune, trim
from .source import floats
from .source.floats import Floats
from .source.source import Source, open_source

DEFAULT_TYPE = "Q4_K_M"
WINDOW = 256  # tokens of a window to calibrate and measure on
RUN = "run.json"
DISTILLATION = "healing"  # the folder of its state, as runs that were stopped have it
MEASURED = "measured"
REPORT = "report.html"


def compress(name: str, out: Path, config: CompressConfig, *, key: Path | None = None, resume: bool = False,
             on_progress: Progress = ignore, should_stop: Callable[[], bool] = never) -> dict[str, Any]:
    """Make the bundle `out` from a source and return what its manifest says.

    key: file of an Ed25519 private key to sign with. Raises EdgetuneError for what a user can mend; Interrupted when
    should_stop() says so, and then there is no bundle.
    """
    config.check()
    refuse_existing(out)
    private = signature.private_key(key) if key else None  # before hours of work
    source = open_source(name)
    memory.for_steps(config, source.floats.weights)
    with _work_folder(out, config, source, resume) as folder:
        work = _Work(config, source, folder, private, on_progress, should_stop)
        try:
            return work.run(out)
        except Interrupted:
            work.measured.keep()
            raise


@contextmanager
def _work_folder(out: Path, config: CompressConfig, source: Source, resume: bool) -> Iterator[Path]:
    """NAME.edge.work; it stays only where it holds something to continue with."""
    folder = out.with_name(f"{out.name}.work")
    run = {"source": source.fingerprint, "options": config.to_json()}
    if folder.exists() and not resume:
        raise UsageError(f"{folder} holds a run that was stopped", "continue it with --resume, or remove it")
    if resume:
        _check_same(folder, run)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / RUN).write_text(json.dumps(run))
    keep = False
    try:
        yield folder
    except Interrupted as error:
        keep = (folder / DISTILLATION).exists() or any((folder / MEASURED).glob("*"))
        hint = (f"the same command with --resume continues, from {folder}" if keep
                else "nothing was measured yet: start again")
        raise Interrupted(error.what, hint) from None
    finally:
        if not keep:
            shutil.rmtree(folder, ignore_errors=True)


def _check_same(folder: Path, run: dict[str, Any]) -> None:
    try:
        before = json.loads((folder / RUN).read_text())
    except (OSError, ValueError):
        raise UsageError(f"{folder} holds no run to continue", "leave out --resume") from None
    changed = [key for key, value in run["options"].items() if before["options"].get(key) != value]
    if before["source"] != run["source"]:
        changed.append("source")
    if changed:
        raise UsageError(f"{changed[0].replace('_', '-')} is not what it was when {folder} was stopped",
                         "give the same source and options, or remove the folder")


class _Work:
    """The model on its way, and what was done to it."""

    def __init__(self, config: CompressConfig, source: Source, folder: Path, key: Any, on_progress: Progress,
                 should_stop: Callable[[], bool]) -> None:
        self.config = config
        self.source = source
        self.folder = folder
        self.key = key
        self.callbacks: dict[str, Any] = {"on_progress": on_progress, "should_stop": should_stop}
        self.threads = thread_count(config.threads)
        torch.set_num_threads(self.threads)
        self.model = source.floats
        self.uncut = source.floats  # but for its vocabulary
        self.measured = Measured(folder / MEASURED)
        self.kept: texts.Windows | None = None  # old ids of the tokens that are left; None: all
        self.steps: list[dict[str, Any]] = []
        self.curve: list[dict[str, Any]] = []
        self.reference = self._stored_source()
        self.tokenizer = Tokenizer(self.reference)
        self._read_texts()

    def run(self, out: Path) -> dict[str, Any]:
        """Every step in order; what the manifest of `out` says."""
        self.trim()
        self.prune()
        self.distill()
        with new_folder(out) as beside:
            facts = self.store_onnx(beside) if self.config.format == "onnx" else self.store_gguf(beside)
            report.write(beside / REPORT, facts)
            return self.seal(beside, facts)

    def _stored_source(self) -> Path:
        """The source's own GGUF, or one that is written now."""
        if self.source.kind == "gguf":
            return self.source.path
        if self.source.kind == "bundle":
            return self.source.path / bundles.MODEL
        return self._written("source", self.model)

    # ---- text ---------------------------------------------------------------------------------------------------

    def _read_texts(self) -> None:
        """Windows to calibrate and to measure on, in the ids that the model has now."""
        c = self.config
        self.calibration = None
        self.measuring = None
        if c.calibrate:
            rows = texts.windows(c.calibrate, self.tokenizer, WINDOW)
            calibration, held = (rows, None) if c.measure else texts.apart(rows)
            self.calibration = texts.at_most(calibration, c.calibrate_tokens)
            self.measuring = held
        if c.measure:
            self.measuring = texts.windows(c.measure, self.tokenizer, WINDOW)
        if self.measuring is not None:
            self.measuring = texts.at_most(self.measuring, c.measure_tokens)

    def _cost(self, path: Path) -> dict[str, Any] | None:
        """Of a GGUF of the model as it is now, beside the source; None without text."""
        if self.measuring is None:
            return None
        return asdict(compare(self.reference, path, self.measuring, self.kept, threads=self.threads, **self.callbacks))

    def _written(self, name: str, model: Floats) -> Path:
        path = self.folder / f"{name}.gguf"
        floats.write(path, model)
        return path

    def _did(self, name: str, model: Floats, facts: dict[str, Any]) -> None:
        """A step is done: its facts, and what the model costs after it."""
        self.model = model
        cost = self._cost(self._written("step", model)) if self.measuring is not None else None
        self.steps.append({"name": name, "weights": model.weights, **facts, "cost": cost})

    # ---- fewer weights ------------------------------------------------------------------------------------------

    def trim(self) -> None:
        if not self.config.vocab:
            return
        self.callbacks["on_progress"]("trimming the vocabulary", 0, 1)
        kept_texts = texts.strings(self.config.vocab_from, self.tokenizer)
        model, facts = trim.trim(self.model, kept_texts, self.config.vocab)
        self.kept = facts.kept
        self.uncut = model
        self.tokenizer.close()
        self.tokenizer = Tokenizer(self._written("trimmed", model))
        self._read_texts()
        self._did("trim", model, facts.to_json())

    def prune(self) -> None:
        c = self.config
        seen = self.calibration
        if c.drop_blocks:
            assert seen is not None  # config.check has seen to it
            model, dropped = prune.drop_blocks(self.model, seen, c.drop_blocks, **self.callbacks)
            self._did("drop_blocks", model, dropped.to_json())
        if c.width < 1:
            assert seen is not None
            model, narrowed = prune.narrow(self.model, seen, c.width, **self.callbacks)
            self._did("narrow", model, narrowed.to_json())

    def distill(self) -> None:
        c = self.config
        if not c.distill:
            return
        rows = texts.windows(c.distill, self.tokenizer, c.distill_length)
        model, facts = distill.distill(self.model, self.uncut, rows, c, self.folder / DISTILLATION,
                                       threads=self.threads, **self.callbacks)
        self.curve = [_untimed(asdict(point)) for point in facts.curve]
        self._did("heal", model, {key: value for key, value in facts.to_json().items() if key != "curve"})

    # ---- stored -------------------------------------------------------------------------------------------------

    def store_gguf(self, bundle: Path) -> dict[str, Any]:
        c = self.config
        path = bundle / bundles.MODEL
        size = c.target_bytes()
        if c.device and not c.type and not size:
            size = fits.largest_file(self.model, c.device)
        if size:
            tensors, made = self._fit(path, size)
            facts: dict[str, Any] = {"target_bytes": size}
        else:
            tensors = []
            facts = {"type": c.type or DEFAULT_TYPE}
            means = self._importance()
            self.callbacks["on_progress"]("quantizing", 0, 1)
            made = quantize.stock(self._written("floats", self.model), path, facts["type"], means, c.threads)
        cost = self._cost(path)
        self.steps.append({"name": "quantize", "weights": self.model.weights, **facts, **asdict(made),
                           "importance": self.calibration is not None, "cost": cost})
        gguf = open_gguf(path)
        return self._facts(LlamaModel(path), cost) | {
            "tensors": tensors, "parts": report.parts(gguf),
            "device": fits.on_device(gguf, c.device) if c.device else None}

    def _fit(self, path: Path, size: int) -> tuple[list[dict[str, Any]], quantize.Quantized]:
        """A file of at most `size` bytes: formats by what each matrix costs, errors that make up for each other."""
        seen = self.calibration
        assert seen is not None  # config.check has seen to it
        moments = self.measured.get("moments", lambda: sensitivity.moments(self.model, seen, **self.callbacks))
        kl = self.measured.get("costs", lambda: self._costs(seen, moments))
        costs = assign.Costs(assign.formats_of(self.model), {name: row.tolist() for name, row in kl.items()})
        chosen = assign.choose(self.model, size, costs)
        made = quantize.write(path, self.model, chosen.types, moments=moments, threads=self.threads, **self.callbacks)
        return [asdict(choice) for choice in chosen.choices], made

    def _importance(self) -> sensitivity.Columns | None:
        seen = self.calibration
        if seen is None:
            return None
        return self.measured.get("importance", lambda: sensitivity.collect(self.model, seen, **self.callbacks))

    def _costs(self, seen: texts.Windows, moments: sensitivity.Columns) -> Arrays:
        """What each matrix costs in each format: nats a token, float64 [formats]."""
        curvature = sensitivity.curvature(self.model, texts.at_most(seen, seen.size // 2), moments,
                                         seed=self.config.seed, **self.callbacks)
        costs = assign.measure(self.model, curvature, threads=self.threads, **self.callbacks)
        return {name: np.array(row) for name, row in costs.kl.items()}

    def store_onnx(self, bundle: Path) -> dict[str, Any]:
        assert self.measuring is not None  # config.check has seen to it
        made = export_onnx.export(self.model, bundle, self.measuring, threads=self.threads, **self.callbacks)
        cost = {"perplexity": made.int8.perplexity, "source_perplexity": made.source_perplexity, "kl": made.int8.kl,
                "top1": made.int8.top1, "tokens": made.tokens}
        self.steps.append({"name": "onnx", "weights": self.model.weights, **made.to_json(), "cost": cost})
        self.seal(bundle, {})  # the device's runtime opens nothing less
        return self._facts(OnnxModel(bundle), cost)

    def seal(self, bundle: Path, facts: dict[str, Any]) -> dict[str, Any]:
        """Write the manifest, and sign it where there is a key; what the manifest says."""
        manifest = bundles.write_manifest(bundle, facts)
        if self.key is not None:
            signature.sign(bundle / bundles.MANIFEST, self.key)
        return manifest

    def _facts(self, made: ServedModel, cost: dict[str, Any] | None) -> dict[str, Any]:
        """What manifest and report have in common in both formats; closes `made`."""
        self.callbacks["on_progress"]("answering", 0, 1)
        file = self.config.measure or self.config.calibrate
        asked = samples.samples(texts.read(file, self.tokenizer) if file else None, self.tokenizer)
        with closing(made), LlamaModel(self.reference) as source:
            pairs = zip(asked, samples.answered(source, asked), samples.answered(made, asked), strict=True)
            answers = [{"prompt": sample.question, "before": before, "after": after}
                       for sample, before, after in pairs]
        return {"source": self.source.to_json(), "options": self.config.to_json(), "steps": self.steps, "cost": cost,
                "healing": self.curve, "answers": answers}


def _untimed(facts: dict[str, Any]) -> dict[str, Any]:
    """Without times, so that the same run gives the same bytes."""
    return {key: value for key, value in facts.items() if key != "seconds"}
