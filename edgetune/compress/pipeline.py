"""The way from a source to a bundle: trim, prune, distill, store, measure, report. Each step is a module.

All work is done in NAME.edge.work next to the bundle (work_folder.py); the bundle appears whole or not at all. What
takes minutes is kept there as soon as it is made, so the same command continues a run that was stopped or killed, and
ends with the same bytes: for the same source, text, options and seed give the same bytes.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from ..disk import new_folder
from ..errors import UsageError, install_hint, lacking, named
from ..formats import bundle as bundles
from ..formats import signature
from ..formats.gguf import open_gguf
from ..formats.work import finish, refuse_made
from ..llamacpp.tokenizer import Tokenizer
from ..machine.device import thread_count
from ..serving.llama import LlamaModel
from ..serving.model import ServedModel
from ..serving.onnx import OnnxModel
from . import encoder, estimate, measure, memory, report, texts
from .estimate import Step
from .measure import compare
from .options import CompressConfig
from .progress import Progress, ignore, never, unheard
from .quantize import assign, sensitivity
from .quantize import write as quantize
from .shrink import distill, prune, trim
from .source import floats
from .source import huggingface as hf
from .source.floats import Floats
from .source.source import Source, locate, open_source
from .work_folder import DISTILLATION, MEASURED, Measured, copy_files, place_of, work_folder

DEFAULT_TYPE = "Q4_K_M"
WINDOW = 256  # tokens of a window to calibrate and measure on
EXPORTED = ("llama", "qwen2", "qwen3", "gemma3")  # as ONNX
Pruned = tuple[Floats, prune.Dropped | prune.Narrowed]


def compress(name: str, out: Path, config: CompressConfig, *, key: Path | None = None, resume: bool = False,
             on_progress: Progress = ignore, should_stop: Callable[[], bool] = never,
             on_estimate: Callable[[list[Step]], None] = unheard) -> dict[str, Any]:
    """Make the bundle `out` from a source and return what its manifest says; or continue a run of the same source, text
    and options that was stopped or killed, and with `resume` nothing else.

    key: file of an Ed25519 private key to sign with. on_estimate: told what is left to do, before it begins. Raises
    EdgetuneError for what a user can mend; Interrupted when should_stop() says so, and then there is no bundle.
    """
    config.check()
    refuse_made(out, place_of(out))
    place = locate(name)
    if encoder.is_encoder(place):
        return encoder.compress(place, out, config, key, resume, on_progress)
    if config.static:
        raise UsageError("--static is given, and the source is no encoder", "leave it out, or name an encoder")
    if config.format == "onnx":
        exporter()  # before hours of work, as all that follows
    private = signature.private_key(key) if key else None
    source = open_source(place)
    _require_torch(config, source.floats.architecture)
    memory.for_steps(config, source.floats.weights)
    if config.drop_blocks:
        prune.require_blocks(source.floats.shape, config.drop_blocks)
    with work_folder(out, config, source, resume) as folder:
        memory.require_disk(config, source.floats, source.kind in ("gguf", "bundle"), folder)
        work = _Work(config, source, folder, private, on_progress, should_stop)
        on_estimate(work.estimate())
        return work.run(out)


def _require_torch(config: CompressConfig, architecture: str) -> None:
    """Raises UsageError where a step needs transformers' model of an architecture that it does not compute for us."""
    asked = [name for name in ("calibrate", "distill") if getattr(config, name)]
    if asked and not hf.computes(architecture):
        raise UsageError(f"--{asked[0]} needs the model in PyTorch, and {architecture} is quantized and trimmed alone",
                         f"leave out --{asked[0]}; --type, --vocab and --measure remain")
    if config.format == "onnx" and architecture not in EXPORTED:
        raise UsageError(f"--format onnx is given for {architecture}, and exported are {', '.join(EXPORTED)}",
                         "leave it out")


def exporter() -> ModuleType:
    """The module that exports ONNX. Raises UsageError where its packages are missing or do not fit one another."""
    try:
        from .onnx import export
    except ImportError as error:
        raise lacking(error) or UsageError(
            f"--format onnx cannot be used with the packages that are installed ({named(error)})",
            f"{install_hint('host')}, into a fresh environment, or leave --format out") from None
    return export


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

    def estimate(self) -> list[Step]:
        """What takes time and is not done yet, in order."""
        c = self.config
        size = c.target_bytes()
        shape = estimate.ModelSizes(self.source.floats, c, fitted=bool(size or (c.device and not c.type)))
        speeds = estimate.measure(self.source.floats, self.reference, self.threads)
        left = {"distilling": 1 - distill.steps_done(self.folder / DISTILLATION) / c.steps}
        return [(what, seconds * left.get(what, 1.0))
                for names, (what, seconds) in estimate.steps(shape, speeds, self.calibration, self.measuring)
                if not any(map(self.measured.has, names))]

    def run(self, out: Path) -> dict[str, Any]:
        """Every step in order; what the manifest of `out` says."""
        self.trim()
        self.prune()
        self.distill()
        with new_folder(out) as beside:
            facts = self.store_onnx(beside) if self.config.format == "onnx" else self.store_gguf(beside)
            report.write(beside / report.FILE, facts)
            manifest = self.seal(beside, facts)
            finish(self.folder, beside)
            return manifest

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

    def _cost(self, name: str, written: Callable[[], Path]) -> dict[str, Any] | None:
        """Measures a GGUF of the model as it is now against the source; None without text. name: of the step before."""
        seen = self.measuring
        if seen is None:
            return None
        cost: dict[str, Any] = self.measured.facts(f"cost_{name}", lambda: asdict(
            compare(self.reference, written(), seen, self.kept, threads=self.threads, **self.callbacks)))
        return cost

    def _written(self, name: str, model: Floats) -> Path:
        path = self.folder / f"{name}.gguf"
        floats.write(path, model)
        return path

    def _did(self, name: str, model: Floats, facts: dict[str, Any]) -> None:
        """A step is done: its facts, and what the model costs after it."""
        self.model = model
        cost = self._cost(name, lambda: self._written("step", model))
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
        if c.drop_blocks:
            self._prune("drop_blocks", lambda seen: prune.drop_blocks(
                self.model, seen, c.drop_blocks, kept=self.measured.facts, **self.callbacks))
        if c.width < 1:
            self._prune("narrow", lambda seen: prune.narrow(self.model, seen, c.width, **self.callbacks))

    def _prune(self, name: str, step: Callable[[texts.Windows], Pruned]) -> None:
        seen = self.calibration
        assert seen is not None  # config.check has seen to it

        def make(folder: Path) -> dict[str, Any]:
            model, facts = step(seen)
            floats.write_exactly(folder / bundles.MODEL, model)
            described: dict[str, Any] = facts.to_json()
            return described

        folder, facts = self.measured.made(name, make)
        self._did(name, floats.read(open_gguf(folder / bundles.MODEL)), facts)

    def distill(self) -> None:
        c = self.config
        if not c.distill:
            return
        rows = texts.windows(c.distill, self.tokenizer, c.distill_length)
        model, facts = distill.distill(self.model, self.uncut, rows, c, self.folder / DISTILLATION,
                                       threads=self.threads, **self.callbacks)
        self.curve = [{key: value for key, value in asdict(point).items() if key != "seconds"}  # of the same bytes
                      for point in facts.curve]
        self._did("heal", model, {key: value for key, value in facts.to_json().items() if key != "curve"})

    # ---- stored -------------------------------------------------------------------------------------------------

    def store_gguf(self, bundle: Path) -> dict[str, Any]:
        c = self.config
        size = c.target_bytes()
        if c.device and not c.type and not size:
            size = memory.largest_file(self.model, c.device)
        if size:
            assign.require_size(self.model, size, assign.formats_of(self.model))  # before minutes of work
        folder, made = self.measured.made(
            "quantized", lambda folder: self._fit(folder, size) if size else self._stock(folder))
        tensors = made.pop("tensors", [])
        copy_files(folder, bundle)
        path = bundle / bundles.MODEL
        cost = self._cost("quantize", lambda: path)
        self.steps.append({"name": "quantize", "weights": self.model.weights, **made,
                           "importance": self.calibration is not None, "cost": cost})
        gguf = open_gguf(path)
        return self._facts(lambda: LlamaModel(path, threads=self.threads), cost) | {
            "tensors": tensors, "parts": report.parts(gguf),
            "device": memory.on_device(gguf, c.device) if c.device else None}

    def _stock(self, folder: Path) -> dict[str, Any]:
        """A file of one of llama.cpp's own types."""
        c = self.config
        chosen = c.type or DEFAULT_TYPE
        seen = self.calibration
        means = None if seen is None else self.measured.arrays(
            "importance", lambda: sensitivity.collect(self.model, seen, **self.callbacks))
        self.callbacks["on_progress"]("quantizing", 0, 1)
        written = self._written("floats", self.model)
        return {"type": chosen, **asdict(quantize.stock(written, folder / bundles.MODEL, chosen, means, c.threads))}

    def _fit(self, folder: Path, size: int) -> dict[str, Any]:
        """A file of at most `size` bytes: formats by what each matrix costs, errors that make up for each other."""
        seen = self.calibration
        assert seen is not None  # config.check has seen to it
        moments = self.measured.arrays("moments", lambda: sensitivity.moments(self.model, seen, **self.callbacks))
        kl = self.measured.facts("costs", lambda: self._costs(seen, moments))
        chosen = assign.choose(self.model, size, assign.Costs(assign.formats_of(self.model), kl))
        made = quantize.write(folder / bundles.MODEL, self.model, chosen.types, moments=moments, threads=self.threads,
                              **self.callbacks)
        return {"target_bytes": size, **asdict(made), "tensors": [asdict(choice) for choice in chosen.choices]}

    def _costs(self, seen: texts.Windows, moments: sensitivity.Columns) -> dict[str, list[float]]:
        """What each matrix costs in each format, in nats a token."""
        curvature = sensitivity.curvature(self.model, texts.at_most(seen, seen.size // 2), moments,
                                         seed=self.config.seed, **self.callbacks)
        return assign.measure(self.model, curvature, threads=self.threads, **self.callbacks).kl

    def store_onnx(self, bundle: Path) -> dict[str, Any]:
        seen = self.measuring
        assert seen is not None  # config.check has seen to it
        folder, made = self.measured.made("onnx", lambda folder: exporter().export(
            self.model, folder, seen, threads=self.threads, **self.callbacks).to_json())
        copy_files(folder, bundle)
        cost = {"perplexity": made["int8"]["perplexity"], "source_perplexity": made["source_perplexity"],
                "kl": made["int8"]["kl"], "top1": made["int8"]["top1"], "tokens": made["tokens"]}
        self.steps.append({"name": "onnx", "weights": self.model.weights, **made, "cost": cost})
        self.seal(bundle, {})  # the device's runtime opens nothing less
        return self._facts(lambda: OnnxModel(bundle, threads=self.threads), cost)

    def seal(self, bundle: Path, facts: dict[str, Any]) -> dict[str, Any]:
        """Write the manifest, and sign it where there is a key; what the manifest says."""
        manifest = bundles.write_manifest(bundle, facts)
        if self.key is not None:
            signature.sign(bundle / bundles.MANIFEST, self.key)
        return manifest

    def _facts(self, opened: Callable[[], ServedModel], cost: dict[str, Any] | None) -> dict[str, Any]:
        """What manifest and report have in common in both formats. opened: what was made, as it is served."""
        answers = self.measured.facts("answers", lambda: self._answers(opened()))
        return {"source": self.source.to_json(), "options": self.config.to_json(), "steps": self.steps, "cost": cost,
                "healing": self.curve, "answers": answers}

    def _answers(self, made: ServedModel) -> list[dict[str, str]]:
        file = self.config.measure or self.config.calibrate
        asked = measure.samples(texts.read(file, self.tokenizer) if file else None, self.tokenizer)
        with closing(made), LlamaModel(self.reference, threads=self.threads) as source:
            before, after = (self._answered(model, asked, i) for i, model in enumerate((source, made)))
        return [{"prompt": sample.question, "before": old, "after": new}
                for sample, old, new in zip(asked, before, after, strict=True)]

    def _answered(self, model: ServedModel, asked: list[measure.SampleRow], number: int) -> list[str]:
        """Answers by the first or the second of two models."""
        answers = []
        for i, sample in enumerate(asked):
            self.callbacks["on_progress"]("answering", number * len(asked) + i, 2 * len(asked))
            answers.append(measure.answered(model, sample))
        return answers
