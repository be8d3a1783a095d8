"""The contract of an objective, and how one is found by its name.

An objective is a rule from the log-probabilities of the supervised tokens to one signed weight a_t = -dL/dlogp_t each.
The engine turns weights into gradients: dL/dz_t = a_t (softmax(z_t) - onehot(y_t)), and never holds logits [T, V].

To add one, write a file of its name in this folder with a frozen dataclass that is an Objective, decorated with
`register`. A training imports the file of that objective alone, which saves memory.
Its fields are its options, made by `options.option`: the flags of `edgetune train`, the method and hyperparameters of a
daemon's job and the documentation are made from them. `sft.py` is the shortest; tests/toy_objectives.py has three more.

In each step the trainer asks `count` for N, by which the step's loss is divided, and then, for each micro-batch,
`weights`. With `needs_logp` the network first computes log p; without it, `a` must not depend on log p, and one pass of
the head is saved. A loss L of log-probabilities gives a_t = -dL/dlogp_t: for L = -sum_t w_t logp_t that is a_t = w_t.

A position is supervised if its weight in the row's Example is not 0. S: supervised positions of a batch
(`Batch.supervised`), in the order of its examples (`Batch.parts` gives each example its part).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

import numpy as np
from numpy.typing import NDArray

from ..adapters.heads import VALUE, VOCABULARY, HeadKind
from ..data import rows as supervised_rows
from ..data.lengths import Lengths, lengths_of
from ..data.packing import Batch, Example
from ..data.rows import RowParser
from ..options import Registry, check_options, declared, make_options

if TYPE_CHECKING:
    from ..formats.gguf import Gguf

T = TypeVar("T", bound="Objective")
ESTABLISHED = ("sft", "dpo", "kto", "orpo", "grpo", "rloo", "rest")
"""The methods that most people want, in that order."""
OF_ENCODERS = ("classify", "tag", "multilabel", "decide", "embed")
"""Those of encoders. All others are experimental."""


@dataclass(frozen=True)
class Signal:
    """An objective's answer for one micro-batch. All values are sums: the trainer adds up micro-batches, and divides
    `a` and the loss by N, a metric by its count.
    """

    a: NDArray[np.float32]  # [S], -d(loss)/dlogp of each supervised position; [S, 1 + k] with needs_top
    loss: float
    metrics: Mapping[str, tuple[float, float]] = field(default_factory=dict)  # name -> (sum, count)
    dvalues: NDArray[np.float32] | None = None  # [S], d(loss)/d(batch.values), with a value head
    losses: NDArray[np.float64] | None = None  # of each example, where it is not the loss of that example alone


@dataclass(frozen=True)
class Objective(ABC):
    """One way to learn. An instance holds its options; it keeps no state between calls.

    name: on the command line and in run.json; method: in a daemon's job, OpenAI's name where there is one, else `name`.
    needs_logp: whether `a` depends on the log-probabilities. A step with values, choices or a
    streamed head then takes one more pass of the head.
    needs_reference: whether `batch.reference`, log p by the base without an adapter or by the adapter that training
    starts from, is wanted. It is computed once an example.
    needs_top: k, the number of tokens wanted that the reference finds likeliest after a row's other prompt; they are
    `batch.choices` and `batch.choices_reference` [S, k]. log p and `a` are [S, 1 + k] then, the choices' after the
    target's. Needs needs_logp and needs_reference; 0: none.
    heads: the network's heads that it uses. log p is by the first; VALUE fills `batch.values`, and needs needs_logp.
    sees_step: whether the signal of an example depends on the others of its step, so that `weights` must see all at
    once. Several micro-batches are then computed once more. Needs needs_logp.
    needs_files: whether it needs a file of this machine, which a client of a daemon cannot name.
    rows: the module that reads its rows of data (see `rows.RowParser`).
    source: of the examples that it learns, as training/source.py names them.
    defaults: options that every training has, and that have another default with this objective, such as lr.
    """

    name: ClassVar[str]
    method: ClassVar[str]
    needs_logp: ClassVar[bool] = False
    needs_reference: ClassVar[bool] = False
    needs_top: ClassVar[int] = 0
    heads: ClassVar[tuple[HeadKind, ...]] = (VOCABULARY,)
    sees_step: ClassVar[bool] = False
    needs_files: ClassVar[bool] = False
    rows: ClassVar[RowParser] = supervised_rows
    source: ClassVar[str] = "rows"
    defaults: ClassVar[Mapping[str, Any]] = {}

    def __init_subclass__(cls) -> None:
        if "name" in vars(cls) and "method" not in vars(cls):
            cls.method = cls.name

    def check_model(self, gguf: Gguf) -> None:  # noqa: B027  # most learn any model
        """Raises EdgetuneError for a model that cannot learn by it, before its rows are read."""

    def fitted(self, learned: Sequence[Example]) -> Objective:  # noqa: ARG002
        """The objective for a run on these examples, such as one that knows their labels. Raises DataError."""
        return self

    def prepared(self, examples: Sequence[Example]) -> list[Example]:
        """The examples as the fitted objective learns them. Raises DataError."""
        return [*examples]

    def measured(self, held: Sequence[Example]) -> list[Example]:
        """Held-out examples, prepared, that a run on others can be right on. Raises DataError where there are none."""
        return self.prepared(held)

    @abstractmethod
    def count(self, examples: Sequence[Example]) -> float:
        """N, the divisor of the loss of a step over these examples; 0 if there is nothing to learn from them."""

    @abstractmethod
    def weights(self, logp: NDArray[np.float32], batch: Batch) -> Signal:
        """The weight of each supervised position, from log p [S] (natural) of its target.

        Without needs_logp it is called twice: with zeros, for `a`, and again with log p, for loss and metrics.
        """

    def room(self, example: Example) -> int:
        """Tokens that max_length must have for an example, so that nothing of it is cut."""
        return example.longest

    def lengths(self, *parts: Sequence[Example], max_length: int, share: bool) -> Lengths:  # noqa: ARG002
        """The lengths that are computed for rows, as of `lengths_of`; the parts have no group in common."""
        return lengths_of(*parts, share=share, top=self.needs_top)

    @property
    def needs_values(self) -> bool:
        return VALUE in self.heads

    def check(self: T) -> T:
        """Returns self; raises UsageError for the first option of another type or out of its range."""
        check_options(self)
        return self

    def options(self) -> dict[str, Any]:
        return asdict(self)

    def to_json(self) -> dict[str, Any]:
        return {"name": self.name, **self.options()}


_registry: Registry[Objective] = Registry(__package__, "objective", ("name", "method"))
register, find_objective = _registry.register, _registry.find


def objectives(common: Collection[str] = ()) -> dict[str, type[Objective]]:
    """Every registered objective by name, the established ones first; those of this folder are imported first.

    common: names of options that are given together with theirs. Raises ValueError for a name in both.
    """
    registered = _registry.all()
    found = {name: registered[name] for name in (*ESTABLISHED, *registered) if name in registered}
    for kind in found.values():
        for spec in declared(kind):
            if spec.name in common:
                raise ValueError(f"{kind.__qualname__} has an option {spec.name}, which every training has")
    return found


def make_objective(name: str, options: Mapping[str, Any]) -> Objective:
    """The objective of that name with these options. Raises UsageError for an unknown name, or a wrong option."""
    return make_options(_registry.named(name), options).check()


def read_objective(written: Mapping[str, Any]) -> Objective:
    """The inverse of `to_json`. Raises UsageError."""
    options = dict(written)
    return make_objective(str(options.pop("name", "")), options)
