"""The contract of an adapter family, whose parameters are trained with a frozen network; families by name.

To add one, write two classes in a file of this folder that has the family's name, so that it is found alone:

- a Family, a frozen dataclass decorated with `register`, whose fields are its options, made by `options.option`: the
  flags of `edgetune train`, a job's hyperparameters and the documentation are made from them. It names the trained
  parameters and their memory; the planner calls it for many sizes before anything is allocated.
- a Carved, the family in the memory of an arena, which computes. `Family.carve` makes it.

All parameters of a family are one flat array, `lora` in the arena, its groups one after another, and their gradients
are `dlora`. The optimizer, the plan and checkpoints know only the groups. Gradients accumulate over a step's
micro-batches; the trainer sets them to zero before a step.

Before a step `before_step` is called. Before each pass of a part of it `before_pass` is called, then for each trained
projection `forward`, and in the opposite order `backward` followed by its `finish`. Where a block is computed again,
forward is called again, or `keep` where the product itself is not needed. The methods of other parts (`Family.adapts`)
are called in the same order. `before_update` precedes the optimizer's update, and `after_step` follows it.

`low_rank.py` is LoRA; `factored.py` is the base of families that compute A and B from what they train, and export a
LoRA; `arrays.py` is that of families which train other arrays. tests/adapters/test_family.py has a family with a
proximal step, tests/adapters/test_parts.py one each of sublayers, norms and virtual tokens.
Letters: T tokens, N outputs, K inputs of a projection, D the model's width.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar, TypeVar

import numpy as np

from ..backends.arena import Arena, Buffer
from ..backends.base import Array, Backend, LowRank
from ..errors import UnsupportedError, UsageError
from ..formats.gguf import Gguf, Tensor
from ..llamacpp.kv_state import KeyValues
from ..options import Registry, check_options, make_options
from .lora import Lora

T = TypeVar("T", bound="Family")
LLAMA_CPP = "llama.cpp"
MERGED = "edgetune's own engine, or llama.cpp after edgetune adapters merge"
OWN_ENGINE = "edgetune's own engine"  # that trains: serving/own_engine.py

PROJECTIONS = "projections"
SUBLAYERS = "sublayers"
NORMS = "norms"
BIASES = "biases"
INPUT = "input"
KEYS = "keys"
"""The parts of a network that a family may adapt: its `adapts`."""

Shapes = Mapping[str, tuple[int, ...]]
"""The shape of every part that a family adapts, by its name: [N, K] of a projection such as "blk.0.attn_q" (its GGUF
name without ".weight"), [D] of a sublayer's output ("blk.0.attention", "blk.0.feed_forward"), of a norm's weight
("blk.0.attn_norm", "output_norm") and of the first block's input ("input"), where D is the model's width, [N] of a
projection's bias ("blk.0.attn_q.bias"), and [G * C] of keys and values ("blk.0.keys"), for G heads of width C.
"""
NOTHING: LowRank = (None, None)
"""A product without a low-rank part."""


@dataclass(frozen=True)
class Setting:
    """Builds a family again: its options, the adapted projections of a block, [first, end] of the blocks, the seed."""

    options: dict[str, Any] = field(default_factory=dict)
    targets: list[str] = field(default_factory=list)
    blocks: list[int] = field(default_factory=list)
    seed: int = 0


@dataclass(frozen=True)
class Artifact:
    """The result of training; its arrays may be views of the arena, which training changes in place.

    pairs: the updates that llama.cpp applies to the base. weights: tensors that replace the base's, by their names in
    its file. tensors: other arrays, by name. family: the name of the family that made it; served_by: the engine that
    answers with it; setting: for an engine that builds it again. objective: as JSON, where `tensors` hold a head of
    its, such as one with labels. facts: other JSON that training found about the heads.
    """

    pairs: Lora = field(default_factory=dict)
    weights: Mapping[str, Tensor] = field(default_factory=dict)
    tensors: Mapping[str, np.ndarray] = field(default_factory=dict)
    family: str = ""
    served_by: str = LLAMA_CPP
    setting: Setting = field(default_factory=Setting)
    objective: Mapping[str, Any] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)

    @property
    def is_lora(self) -> bool:
        """Whether llama.cpp applies it as it is."""
        return self.served_by == LLAMA_CPP and not self.tensors and not self.weights

    def make_family(self) -> Family:
        """The family that made it. Raises UsageError for one that is not known, or a wrong option."""
        return make_options(family_named(self.family), self.setting.options).check()

    def served_pairs(self, source: str) -> Lora:
        """The pairs. Raises UnsupportedError if there is more than pairs. source: names the adapter."""
        if self.objective:
            raise UnsupportedError(f"{source} has a head of labels or tags, which llama.cpp cannot apply",
                                   "answer with edgetune generate, or write it with edgetune adapters export --to onnx")
        if not self.is_lora:
            ways = {MERGED: "write a model with edgetune adapters merge, or answer with edgetune's commands and daemon",
                    LLAMA_CPP: "answer with edgetune's commands and daemon",
                    OWN_ENGINE: "answer with edgetune's commands and daemon"}
            way = ways.get(self.served_by, f"{self.served_by} serves it")
            raise UnsupportedError(f"{source} is an adapter of the family {self.family}, which is no LoRA",
                                   f"{way}, or train one that other programs can apply: --family lora")
        return self.pairs


@dataclass(frozen=True)
class Group:
    """Parameters that the optimizer treats alike. lr_scale multiplies the learning rate; decay: whether they decay.

    exported: whether they are part of the adapter; if not, a run stores them in another file next to it.
    """

    name: str
    size: int
    lr_scale: float = 1.0
    decay: bool = True
    exported: bool = True


@dataclass(frozen=True, eq=False)
class Frozen:
    """A frozen projection: its weight, its products and their precision.

    name: such as "blk.0.attn_q"; target: such as "attn_q". precision: of a family's products in backward;
    forward_precision: of all products in forward. needs_exact_dinp: whether dinp is computed exactly.
    """

    name: str
    target: str
    ops: Backend
    weight: Tensor
    bias: Array | None
    precision: str
    forward_precision: str
    needs_exact_dinp: bool

    def forward(self, out: Array, inp: Array, accumulate: bool, low_rank: LowRank = NOTHING) -> None:
        """out [T, N] (+)= inp [T, K] . w^T + low_rank + bias"""
        w = self.weight
        self.ops.matmul_forward(out, inp, w.data, w.format, 1.0, accumulate, low_rank, self.forward_precision)
        if self.bias is not None:
            self.ops.add_bias(out, self.bias)

    def backward(self, dinp: Array, dout: Array, accumulate: bool, low_rank: LowRank = NOTHING) -> None:
        """dinp [T, K] (+)= dout [T, N] . w + low_rank"""
        w = self.weight
        precision = "exact" if self.needs_exact_dinp else self.precision
        self.ops.matmul_backward(dinp, dout, w.data, w.format, 1.0, accumulate, low_rank, precision)


@dataclass(frozen=True)
class Family(ABC):
    """One way to adapt a network. An instance holds its options.

    name: of --family, in run.json and in the comparison of a resumed run. adapts: the parts of a network that it
    changes; a network refuses those that it does not have. served_by: the engine that answers with its artifact. size:
    options that a start adapter decides. rate: by which --lr auto is multiplied, which was found for LoRA. libraries:
    bytes of those that it alone needs in training. takes_experts: whether it adapts a mixture's, each as a
    projection; their ranks are equal, because a file has one for all.
    """

    name: ClassVar[str]
    adapts: ClassVar[tuple[str, ...]] = (PROJECTIONS,)
    served_by: ClassVar[str] = LLAMA_CPP
    size: ClassVar[tuple[str, ...]] = ()
    rate: ClassVar[float] = 1.0
    libraries: ClassVar[int] = 0
    takes_experts: ClassVar[bool] = False

    def check(self: T) -> T:
        """Returns self; raises UsageError for the first option of another type or out of its range."""
        check_options(self)
        return self

    def smaller(self) -> dict[str, Any]:
        """Options with which it takes less memory, for a refusal that names the one that helps most."""
        return {}

    @property
    def virtual_tokens(self) -> int:
        """Tokens before the first one of every document: the family has their embeddings (INPUT), or their keys and
        values in every block (KEYS).
        """
        return 0

    def check_shapes(self, shapes: Shapes) -> None:  # noqa: B027  # most families fit every shape
        """Raises UsageError where the options do not fit these projections."""

    def served_keys(self, found: Artifact, computed: Callable[[Artifact], KeyValues]) -> KeyValues:  # noqa: ARG002
        """The keys, as they are after rotation, and values [virtual_tokens, G * C] of each block of an artifact, where
        llama.cpp is to hold them before each text; {}: it has none. computed: those that its embeddings have.
        """
        return {}

    @abstractmethod
    def parameters(self, shapes: Shapes) -> list[Group]:
        """The groups of parameters, in the order in which they are stored."""

    @property
    def kept_width(self) -> int:
        """Floats a token and projection that forward keeps for backward (`kept` of Carved); 0: none."""
        return 0

    def buffers(self, tokens: int, shapes: Shapes, activations: str) -> list[Buffer]:  # noqa: ARG002  # most have none
        """Work space for T = tokens, of lifetime "block". activations: their numpy type."""
        return []

    def state(self, shapes: Shapes) -> list[Buffer]:  # noqa: ARG002  # most families have none
        """Arrays besides the parameters on which the next step depends: checkpoints hold them. Lifetime "run"."""
        return []

    @abstractmethod
    def carve(self, shapes: Shapes, arena: Arena, ops: Backend, seed: int) -> Carved:
        """The family in an arena: views into its `lora` and `dlora`, with `lora` set to its start by the seed."""

    def options(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def cut(cls, found: Artifact, rank: int) -> Artifact:  # noqa: ARG003  # most families cannot
        """An adapter of this family at a smaller rank. Raises UnsupportedError where its ranks are not nested."""
        raise UnsupportedError(f"an adapter of the family {cls.name} cannot be cut to another rank",
                               "train with --family dylora, which learns every rank at once")


class Carved(ABC):
    """A family in the memory of an arena. It overrides the methods of the parts that it adapts.

    kept [T, kept_width], float32: what `forward` fills for `backward`; None where kept_width is 0. accumulate: add to
    the output instead of overwriting it. Gradients of parameters accumulate. A projection's other arrays may be bf16,
    which ops read and numpy does not (`backends.base.floats`); arrays of other parts are float32. Code that uses numpy
    calls the backend's `synchronize` first.
    """

    def read_base(self, base: Gguf) -> None:  # noqa: B027  # most begin by the seed
        """Sets parameters that start as weights of the base's file. Called once, after `Family.carve`."""

    def forward(self, linear: Frozen, out: Array, inp: Array, kept: Array | None, accumulate: bool) -> None:
        """out [T, N] (+)= the adapted projection of inp [T, K]."""
        raise NotImplementedError

    def keep(self, linear: Frozen, inp: Array, kept: Array | None) -> None:  # noqa: B027  # nothing is kept
        """Fills `kept` as `forward` does, without computing the product."""

    def backward(self, linear: Frozen, dinp: Array | None, dout: Array, kept: Array | None, accumulate: bool) -> None:
        """dinp [T, K] (None: not needed) (+)= its gradient; gradients of parameters that do not need inp accumulate.

        `finish` for the same projection is called before the next one's backward.
        """
        raise NotImplementedError

    def finish(self, linear: Frozen, inp: Array) -> None:  # noqa: B027  # all is done in backward
        """The gradients of parameters that need the projection's input [T, K], which is made again only then. `dout` of
        the backward is as it was.
        """

    def sublayer_forward(self, name: str, out: Array) -> None:
        """Changes out [T, D] in place: a sublayer's output, before its sum with the residual stream."""
        raise NotImplementedError

    def sublayer_backward(self, name: str, dout: Array, out: Array) -> None:
        """dout [T, D], in place: from the gradient of the changed output to that of `out`, the unchanged one."""
        raise NotImplementedError

    def norm(self, name: str, weight: Array) -> Array:
        """A norm's weight [D], from the frozen one; in the backend's memory."""
        raise NotImplementedError

    def norm_backward(self, name: str, dweight: np.ndarray) -> None:
        """Takes the gradient [D] of that weight."""
        raise NotImplementedError

    def bias(self, name: str) -> Array:
        """A projection's bias [N], which is the same array from now on; in the backend's memory."""
        raise NotImplementedError

    def bias_backward(self, name: str, dbias: np.ndarray) -> None:
        """Takes the gradient [N] of that bias."""
        raise NotImplementedError

    def virtual_forward(self) -> np.ndarray:
        """The embeddings [virtual_tokens, D] of the virtual tokens."""
        raise NotImplementedError

    def virtual_backward(self, drows: np.ndarray) -> None:
        """Takes the gradient [virtual_tokens, D] of these embeddings."""
        raise NotImplementedError

    def keys_forward(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """The keys, as they are after rotation, and the values [virtual_tokens, G * C] of the virtual tokens."""
        raise NotImplementedError

    def keys_backward(self, name: str, dkeys: np.ndarray, dvalues: np.ndarray) -> None:
        """Takes their gradients."""
        raise NotImplementedError

    def before_step(self, seed: int) -> None:  # noqa: B027  # most families draw nothing
        """Precedes all passes of a step, with the seed of what it draws for the whole step."""

    def before_pass(self, seed: int | None) -> None:  # noqa: B027  # most families draw nothing
        """Precedes a pass that learns, with the seed of its random numbers; None: the next passes measure."""

    def before_update(self) -> None:  # noqa: B027  # most have no penalty
        """Precedes the optimizer's update, when the gradient of the step is whole: a penalty adds its own."""

    def after_step(self, step: int, total: int, lr: float) -> None:  # noqa: B027  # most have no such step
        """Follows the optimizer's update in step 1 to `total`, with its learning rate: a proximal step, a budget of
        ranks. The gradient is still that of the step.
        """

    @property
    def repeats(self) -> bool:
        """Whether its ops are the same in all passes of as many tokens, so that a device may record them. They are not
        if they take random numbers.
        """
        return False

    @abstractmethod
    def artifact(self) -> Artifact:
        """The result of training."""

    @abstractmethod
    def load(self, found: Artifact, source: str) -> None:
        """The inverse of `artifact`. Raises MismatchError for one that this adapter cannot become."""


FILES = ("joined", "merge", "ollama", "peft", "peft_modules", "published", "stacks", "store")
"""Modules of this folder without a family."""
_registry: Registry[Family] = Registry(__package__, "adapter family", others=FILES, modules={"lora": "low_rank"})
register, families, find_family = _registry.register, _registry.all, _registry.find
REFUSED = {
    "dora": ("the family dora cannot be served: llama.cpp adds low-rank updates, and DoRA scales each row of the sum "
             "of weights and update", "take --family lora with --rslora, or --family adalora"),
    "adapterfusion": ("the family adapterfusion is not here: its attention over adapters has three matrices of the "
                      "model's width squared in each block, 22 % of SmolLM2's own weights",
                      "weigh adapters with edgetune adapters combine and --family fusion"),
    "vera": ("the family vera was taken out: its files had eight times LoRA's bytes, and fewer right answers; adapters "
             "of it still answer", "train another with --family lora"),
    "o-lora": ("the family o-lora was taken out: it was no better than lora on a second task; adapters of it still "
               "answer", "train another with --family lora"),
}
"""Families that people ask for, or used, with the reason why there is none and what to take."""


def family_named(name: str) -> type[Family]:
    """Raises UsageError for an unknown name."""
    if name in REFUSED:
        raise UsageError(*REFUSED[name])
    return _registry.named(name)


def slices(groups: Sequence[Group], flat: np.ndarray) -> list[np.ndarray]:
    """The part of a flat array that belongs to each group."""
    ends = np.cumsum([group.size for group in groups])
    return [flat[end - group.size:end] for group, end in zip(groups, ends, strict=True)]
