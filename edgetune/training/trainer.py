"""The trainer that an app embeds: add examples, call `step()` in a loop, evaluate, save. Memory is one arena, carved
from the plan. Only `save` writes files; `run` adds a folder, metrics and resume.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from ..adapters import store
from ..adapters.base import OWN_ENGINE, Artifact, Group, Setting, slices
from ..adapters.lora import Lora, Pair
from ..backends.arena import Arena
from ..backends.base import Backend
from ..backends.opening import open_backend
from ..data.dataset import Dataset, load_rows
from ..data.formats import Columns
from ..data.lengths import Given, read_lengths
from ..data.packing import Example
from ..errors import DataError, Interrupted, MismatchError, NumericsError, UsageError
from ..formats.bundle import Bundle, open_bundle
from ..llamacpp.tokenizer import Tokenizer
from ..llamacpp.tokenizers import AnyTokenizer, open_tokenizer
from ..machine import device
from ..models.networks import open_network
from ..objectives.base import Objective
from ..objectives.sft import Sft
from ..version import __version__
from . import length, optim
from .batches import Batches, Micros
from .config import RUN_OPTIONS, TrainConfig, TrainOptions
from .passes import Gradient, LossMeasurement, Totals
from .reference import Reference
from .rewards import Expectation, Rewards
from .sizing import make_plan
from .source import ExampleSource, SourceParts, source_of
from .tradeoffs import Tradeoffs

if TYPE_CHECKING:
    from typing_extensions import Unpack

IMITATE = Sft()
ANCHOR = 1 << 16  # the number of a step's first micro-batch of anchors


@dataclass(frozen=True)
class StepResult:
    """One optimizer step. step: counts from 1. loss, metrics: the objective's, means over the step, natural log, before
    the update. lr: the learning rate. grad_norm: before it was clipped. tokens: of the rows. supervised: tokens whose
    weight is not 0. seconds: that it took. computed: of the tokens; common prefixes of rows are computed once.
    """

    step: int
    loss: float
    lr: float
    grad_norm: float
    tokens: int
    supervised: int
    seconds: float
    computed: int = 0
    metrics: dict[str, float] = field(default_factory=dict)


class Trainer:
    """Trains an adapter of one GGUF (a path or an open Bundle).

    It makes one step at a time, writes nothing but what `save` is given, and takes its memory at the start.

    >>> trainer = edgetune.Trainer("model.gguf", rank=8, lr=1e-3)

    config, options: those of TrainConfig, as an object, by name, or both.
    lengths: of the rows that will be added, as token counts or the result of lengths_of; sizes the buffers (default:
    rows of max_length).
    previous: the tradeoffs of an earlier plan, which repeat its micro-batches to the same bytes.
    tokenizer: of the model; the caller closes it. Default: one is opened when it is needed.
    objective: the rule by which rows are learned (default: imitation of their answers).
    rewards: the function that rewards answers, for an objective that learns from the model's own.
    ops: an open backend (default: the one that config.backend names, with config.threads).
    source: the source of a step's examples (default: the objective's, rows or answers to them).

    Raises the kinds of EdgetuneError for wrong input, UsageError also if memory is too small.
    """

    def __init__(self, model: Bundle | str | Path, config: TrainConfig | None = None, *, lengths: Given = (),
                 previous: Tradeoffs | None = None, tokenizer: Tokenizer | None = None,
                 objective: Objective | None = None, ops: Backend | None = None, rewards: Rewards | None = None,
                 source: type[ExampleSource] | None = None, **options: Unpack[TrainOptions]) -> None:
        for name in RUN_OPTIONS:
            if name in options:
                raise UsageError(f"{name} is an option of a run, a Trainer does not use it",
                                 "leave it out, or use edgetune.run")
        self.objective = (objective or IMITATE).check()
        asked: dict[str, Any] = {**(vars(config) if config else self.objective.defaults), **options}
        config = TrainConfig(**asked).check()
        self.config = config = length.sized(config, read_lengths(lengths, config.row_limit).longest)
        self.bundle = model if isinstance(model, Bundle) else open_bundle(model)
        self.bundle.gguf.file.check_path()  # rows may have been tokenised by the file that the path named
        self.model = open_network(self.bundle.gguf)
        self.config = config = length.fitted(config, self.model)
        self._tokenizer: AnyTokenizer | None = tokenizer
        self._own_tokenizer = tokenizer is None
        self.ops = ops or open_backend(config.backend, device.thread_count(config.threads))
        kind = source or source_of(self.objective)
        if kind.keeps_tokenizer:
            _ = self.tokenizer  # it stays open, so that the plan must know its memory
        self.plan = make_plan(self.model, config, ops=self.ops, lengths=lengths, previous=previous,
                              objective=self.objective, source=kind)
        self.arena = Arena(self.plan.buffers, self.ops.allocate)
        self.ops.use_scratch(self.arena.flat("scratch"))
        self.decoder = self.model.build(self.plan.run, self.ops, self.arena, self.plan.tradeoffs.streamed, config.seed)
        self.reference = Reference(self.decoder, self.plan.run.max_tokens, self.objective.needs_top)
        self.micros = Micros(self.decoder, config, self.plan.run.max_tokens, self.plan.run.prefix)
        self.keep_start()
        kept = cast(Tokenizer, self.tokenizer) if kind.keeps_tokenizer else None
        self.source = kind(SourceParts(self.decoder, self.objective, config, self.micros, self.reference,
                                       self.plan.answers, rewards, kept))
        self.examples: list[Example] = []
        self._batches = Batches(config)
        self.anchor_batches = range(0)
        self.steps_done = 0
        self.begun_at = 0  # the step after which the optimizer and its schedule began
        self.more = 0.0  # epochs from there; 0: those of the options
        self.best_known = False  # True once someone stored a measured best in the arena's `best`
        self.facts: dict[str, Any] = {}  # of the source

    # ---- data ---------------------------------------------------------------------------------------------------

    @property
    def tokenizer(self) -> AnyTokenizer:
        if self._tokenizer is None:
            self._tokenizer = open_tokenizer(self.bundle.gguf, self.config.markup, self.config.thinking)
        return self._tokenizer

    def add(self, rows: Iterable[dict[str, Any]] | dict[str, Any]) -> Dataset:
        """Append rows (`messages`, `prompt`/`completion` or `text`) to the training data; returns them tokenised."""
        dataset = self._tokenize(rows)
        self.add_examples(dataset.examples)
        return dataset

    def _tokenize(self, rows: Iterable[dict[str, Any]] | dict[str, Any]) -> Dataset:
        rows = [rows] if isinstance(rows, dict) else list(rows)
        self.arena.release()  # the vocabulary takes memory too
        try:
            found = load_rows(rows, cast(Tokenizer, self.tokenizer), max_length=self.plan.longest,
                              system=self.config.instruction, overflow=self.config.overflow,
                              parser=self.objective.rows, learnable=True,
                              columns=Columns(self.config.prompt_column, self.config.completion_column))
            return replace(found, examples=self.objective.prepared(found.examples))
        finally:
            if self.config.memory and self._own_tokenizer and not self.source.keeps_tokenizer:
                self.tokenizer.close()  # the next step needs its memory
                self._tokenizer = None
                device.trim()

    def add_examples(self, examples: Sequence[Example]) -> None:
        """Append rows that are token ids already. Raises DataError for one longer than the buffers or with bad ids."""
        for i, example in enumerate(examples):
            n = example.longest
            if not 2 <= n <= self.plan.longest:
                raise DataError(f"example {i} has {n} tokens, this trainer takes 2 to {self.plan.longest}",
                                "shorten it or raise max_length")
            tokens = np.concatenate([example.tokens, *example.prompts])
            if int(tokens.min()) < 0 or int(tokens.max()) >= self.model.structure.n_tokens:
                raise DataError(f"example {i} holds a token id outside 0..{self.model.structure.n_tokens - 1}",
                                "tokenise it with this model's tokenizer")
            classes = sum(head.size for head in self.objective.heads)
            if example.labels.size and not 0 <= int(example.labels.min()) <= int(example.labels.max()) < classes:
                raise DataError(f"example {i} has a label outside 0..{classes - 1}", "look at the rows' labels")
        last = max((example.group for example in self.examples), default=0)  # numbers of earlier calls are taken
        self.examples += [replace(e, group=last + e.group) if e.group and last else e for e in examples]
        self._batches = replace(self._batches, examples=self.examples)

    def add_anchors(self, anchors: Sequence[Example], rows_per_anchor: int, batches: range = range(0)) -> None:
        """Adds the base's answers (anchored.py) to the training: one anchor for each rows_per_anchor rows.
        batches: those in which they were drawn.
        """
        self.anchor_batches = batches
        self._batches = replace(self._batches, anchors=anchors, rows_per_anchor=rows_per_anchor if anchors else 0)

    @property
    def anchors(self) -> Sequence[Example]:
        return self._batches.anchors

    @property
    def rows_per_anchor(self) -> int:
        """0: no anchors are learned."""
        return self._batches.rows_per_anchor

    @property
    def peak_rate(self) -> float:
        """The highest learning rate."""
        return length.peak_rate(self.config, len(self._batches.units))

    @property
    def steps_per_epoch(self) -> int:
        """The number of steps in a pass over the added rows."""
        return self._batches.steps_per_epoch

    @property
    def total_steps(self) -> int:
        """The number of steps: config.steps, or config.epochs over the added rows; after begun_at, `more` epochs."""
        return self.begun_at + length.total_steps(self.config, len(self._batches.units), self.more)

    def batch(self, step: int) -> list[Example]:
        """The examples of step 1, 2, ...: a function of seed and data."""
        return self._batches.of_step(step)

    def computed_share(self) -> float:
        """The share of the rows' tokens that is computed, as common prefixes are shared."""
        return self._batches.computed_share(self.micros.max_tokens, self.plan.run.prefix)

    # ---- training -----------------------------------------------------------------------------------------------

    def step(self, should_stop: Callable[[], bool] | None = None) -> StepResult:
        """One optimizer step on the next batch: bounded work, batch_size rows of at most max_length tokens.

        should_stop is called before each block; where it returns True, the step is undone and Interrupted is raised.
        Raises DataError without examples, NumericsError when loss or gradient is not finite. After any error the
        adapter is the one before the step.
        """
        if not self.examples:
            raise DataError("there is nothing to train on", "add rows first")
        began = time.monotonic()
        step = self.steps_done + 1
        grad = self.arena.flat("dlora")
        with self.stoppable(should_stop):
            found = self.source.of_step(step, self._batches)
            examples, n, metrics = found.examples, found.n, found.metrics
            anchors = found.anchors if examples else []
            own, aside = IMITATE.count(examples), IMITATE.count(anchors)  # tokens, by which both are weighted
            grad.fill(0.0)
            self.decoder.adapter.before_step(optim.seed_of(self.config.seed, step))
            totals = self._learn(step, examples, n * (own + aside) / own if anchors else n)
            loss = found.loss + totals.loss / n
            if anchors:
                metrics = {**metrics, "anchor_loss": self._learn_anchors(step, anchors, own + aside, totals) / aside}
            lr = optim.learning_rate(self.config, self.peak_rate, step - self.begun_at,
                                     self.total_steps - self.begun_at)
            norm = self._update(grad, loss, lr, step) if examples else 0.0
        self.source.after_step(step, self._batches)
        self.steps_done = step
        return StepResult(step, loss, lr, norm, totals.tokens, totals.supervised, time.monotonic() - began,
                          totals.computed, {**metrics, **totals.metrics})

    def _learn(self, step: int, examples: Sequence[Example], n: float) -> Totals:
        """Adds up the gradient of a step, whose loss is divided by n."""
        totals = Totals()
        gradient = Gradient(self.decoder, self.objective, n, self.source.references, partial(self._before_part, step),
                            self.source.see)
        micros = self.micros.cut(examples)
        if self.objective.sees_step and len(micros) > 1:
            totals.add(micros, gradient.add_together(lambda: self.micros.one_by_one(micros)))
            return totals
        for number, micro in enumerate(self.micros.one_by_one(micros)):
            totals.add([micro], gradient.add(micro, number))
        return totals

    def _learn_anchors(self, step: int, anchors: Sequence[Example], n: float, totals: Totals) -> float:
        """Adds their gradient to that of the rows, and their tokens to the totals; returns the sum of their losses."""
        loss = 0.0
        gradient = Gradient(self.decoder, IMITATE, n, self.source.references, partial(self._before_part, step))
        for number, micro in enumerate(self.micros.one_by_one(self.micros.cut(anchors)), start=ANCHOR):
            signal = gradient.add(micro, number)
            loss += signal.loss
            totals.add([micro], replace(signal, loss=0.0))
        return loss

    def _update(self, grad: np.ndarray, loss: float, lr: float, step: int) -> float:
        self.decoder.adapter.before_update()
        norm = optim.clip(self.ops, grad, length.largest_norm(self.config, self.model))
        if not (math.isfinite(loss) and math.isfinite(norm)):
            raise NumericsError(f"the loss is {loss} and the gradient's norm {norm} in step {step}",
                                f"lower the learning rate, now {self.peak_rate:g}, or look at the rows of this batch")
        if not self.best_known:
            self.ops.copy(self.arena.flat("best"), self.arena.flat("lora"))  # its loss was a number
        moments = [self.arena.flat(name) for name in self.arena.buffers if name.startswith("adam_")]
        optim.adamw(self.ops, self.arena.flat("lora"), grad, moments, self._groups, self.config, lr,
                    step - self.begun_at)
        self.decoder.adapter.after_step(step - self.begun_at, self.total_steps - self.begun_at, lr)
        return norm

    def _before_part(self, step: int, number: int, part: int) -> None:
        """Seeds the pass of a part of a step's micro-batch or tree; the seed is the same for each repetition."""
        self.decoder.adapter.before_pass(optim.seed_of(self.config.seed, step, number, *([part] if part else [])))

    def train(self, on_step: Callable[[StepResult], None] | None = None) -> list[StepResult]:
        """All remaining steps."""
        results = []
        while self.steps_done < self.total_steps:
            results.append(self.step())
            if on_step is not None:
                on_step(results[-1])
        return results

    def evaluate(self, rows: Iterable[dict[str, Any]] | dict[str, Any]) -> float:
        """The objective's loss on held-out rows with the current adapter; by default mean -log p of their answers."""
        return self.loss(self._tokenize(rows).examples)[0]

    def loss(self, examples: Sequence[Example], should_stop: Callable[[], bool] | None = None) -> tuple[float, int]:
        """(the objective's loss, the number of supervised tokens), by this engine; no gradient."""
        measured = self.measure(examples, should_stop)
        return measured.loss, measured.supervised

    def measure(self, examples: Sequence[Example], should_stop: Callable[[], bool] | None = None) -> LossMeasurement:
        """The objective's loss and metrics, without a gradient. Raises DataError where nothing is supervised."""
        with self.stoppable(should_stop):
            return self.source.measure(examples)

    def refer(self, examples: Sequence[Example], should_stop: Callable[[], bool] | None = None) -> None:
        """Computes unknown log p by the reference model: the base, unless `reference` is the adapter in the arena."""
        with self.stoppable(should_stop):
            for example in self.reference.missing(examples):
                self.decoder.before_block()
                self.micros.computing = True
                self.reference.add(example)
                self.micros.computing = False

    def expect(self, should_stop: Callable[[], bool] | None = None) -> Expectation | None:
        """The expectation before training, if there is one. Raises UsageError if nothing can be learned."""
        with self.stoppable(should_stop):
            return self.source.expect(self.examples)

    def source_state(self) -> dict[str, Any] | None:
        """The state of the source, without rows and adapter: the next step depends on it."""
        return self.source.state(self.steps_done, self._batches)

    @contextmanager
    def stoppable(self, should_stop: Callable[[], bool] | None) -> Iterator[None]:
        """Makes passes within the context raise Interrupted before the next block once should_stop returns True."""
        def ask() -> None:
            if should_stop is not None and should_stop():
                raise Interrupted(f"stopped after step {self.steps_done} of {self.total_steps}")

        self.decoder.before_block = ask
        self.decoder.adapter.before_pass(None)
        try:
            yield
        finally:
            self.decoder.before_block = lambda: None
            self.decoder.adapter.before_pass(None)
            self.ops.synchronize()
            self.micros.computing = False

    def keep_best(self) -> None:
        """Makes the adapter in the arena the best one."""
        self.ops.copy(self.arena.flat("best"), self.arena.flat("lora"))
        self.ops.synchronize()

    def take_best(self) -> None:
        """The inverse of `keep_best`."""
        self.ops.copy(self.arena.flat("lora"), self.arena.flat("best"))
        self.ops.synchronize()

    def keep_start(self) -> None:
        """Makes the adapter in the arena the reference of answers, if the objective compares them with one."""
        if "start" in self.arena:
            self.ops.copy(self.arena.flat("start"), self.arena.flat("lora"))
            self.ops.synchronize()

    # ---- the adapter --------------------------------------------------------------------------------------------

    def conclude(self, held: Sequence[Example], should_stop: Callable[[], bool]) -> None:
        """Finds the facts that are kept with the adapter in the arena, also by held-out examples."""
        with self.stoppable(should_stop):
            self.facts = self.source.facts(self.examples, held)

    @cached_property
    def _groups(self) -> list[Group]:
        return self.model.structure.parameters(self.plan.run)

    @property
    def _parts(self) -> Iterator[tuple[Group, np.ndarray]]:
        """The trained groups with their values, which are views of the arena."""
        return zip(self._groups, slices(self._groups, self.arena.flat("lora")), strict=True)

    @property
    def pairs(self) -> Lora:
        """A copy of the current adapter, of a family that llama.cpp serves."""
        pairs = self.artifact().served_pairs("what is trained")
        return {name: Pair(p.a.copy(), p.b.copy(), p.scale) for name, p in pairs.items()}

    def artifact(self) -> Artifact:
        """The result of training, trained heads included; arrays may be views of the arena."""
        run = self.plan.run
        found = self.decoder.adapter.artifact()
        setting = Setting(run.family.options(), [*run.targets], [run.blocks.start, run.blocks.stop], self.config.seed)
        return replace(found, tensors={**found.tensors, **self._heads}, family=run.family.name, setting=setting,
                       served_by=OWN_ENGINE if self._heads else run.family.served_by,
                       objective=self.objective.to_json() if self._heads else {}, facts=self.facts)

    @property
    def _heads(self) -> dict[str, np.ndarray]:
        """The heads that are a part of the adapter, by their tensors' names."""
        return self.model.structure.exported_heads(self.plan.run, self.arena.flat("lora"))

    @property
    def unexported(self) -> dict[str, np.ndarray]:
        """Trained arrays that are no part of the adapter, such as a value head: views of the arena, by name."""
        return {group.name: part for group, part in self._parts if not group.exported}

    @property
    def state_arrays(self) -> list[str]:
        """The arrays of the arena on which the next step depends."""
        return [name for name, buffer in self.arena.buffers.items() if optim.is_state(buffer)]

    def save(self, folder: str | Path, record: dict[str, Any] | None = None) -> None:
        """Write a new adapter folder: adapter.gguf and run.json. Raises UsageError if it exists."""
        self.arena.release()
        store.save_adapter(folder, self.artifact(), self.bundle.gguf, self.record() | (record or {}))

    def load(self, path: str | Path) -> None:
        """Continue from an adapter of the same base, family, size and projections. Raises MismatchError for another."""
        found = store.read_artifact(path, self.bundle.gguf)
        heads = self._heads
        family = self.plan.run.family.name
        is_other = (found.family or family) != family and not found.is_lora
        if is_other or not set(heads) <= set(found.tensors):
            raise MismatchError(f"{path} is of the family {found.family} with {', '.join(found.tensors) or 'no head'}, "
                                f"trained is {family}", "begin from an adapter that the same method and family made")
        store.check_sizes(found, heads, str(path))
        for name, to in heads.items():
            to[:] = found.tensors[name]
        own = {name: value for name, value in found.tensors.items() if name not in heads}
        self.decoder.adapter.load(replace(found, tensors=own), str(path))

    def record(self) -> dict[str, Any]:
        """The part of run.json that describes the model, the options and the plan."""
        gguf = self.bundle.gguf
        return {"edgetune": __version__,
                "base": {"name": store.base_name(gguf), "path": str(self.bundle.path.resolve()),
                         "fingerprint": self.bundle.fingerprint, "architecture": gguf.architecture},
                "options": self.config.to_json(), "objective": self.objective.to_json(),
                "family": {"name": self.config.family.name, **self.config.family.options()},
                "parameters": sum(group.size for group in self._groups if group.exported),
                "seed": self.config.seed, "steps": self.steps_done, "anchors": len(self.anchors),
                "rows_per_anchor": self.rows_per_anchor, "total_steps": self.total_steps, "isa": self.ops.isa,
                "anchor_batches": [self.anchor_batches.start, self.anchor_batches.stop],
                "products": self.ops.products(self.config.precision), "threads": self.plan.run.threads,
                "plan": {"peak_mib": self.plan.peak_bytes / 2**20, "budget_mib": self.plan.limits.budget / 2**20,
                         "traded": list(self.plan.traded), **asdict(self.plan.tradeoffs)},
                "peak_rss_mib": device.peak_rss() / 2**20, "peak_children_mib": device.peak_of_children() / 2**20}
