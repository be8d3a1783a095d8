"""All options of training: name, type, default, unit and help."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import Field, asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypedDict

from ..data.around import Instruction
from ..errors import FormatError, UsageError
from ..formats.families import OTHER_TARGETS, TARGETS
from ..machine.device import is_removable, read_device, rss
from ..options import AUTO, check_options, declared, option, seconds_of, unknown_option
from ..persisted import checked_fields, from_json

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from ..adapters.base import Family

ADAPTER = "The adapter"  # the title of a group of options
LORA = "lora"  # the family of a training that names none

DEFAULT_MEMORY = "75%"
SECONDS = 300.0  # between two checkpoints by default,
WEARING_SECONDS = 900.0  # and on storage that wears out
AUTO_LENGTH = 512  # tokens that max_length "auto" is at least
BACKENDS = ("auto", "cpu", "cuda")  # as backends/opening.py takes them
RUN_OPTIONS = ("anchors", "eval_every", "patience", "checkpoint_every")  # used by `run` alone, not by a Trainer
READING = ("max_length", "overflow", "system", "prompt", "markup", "thinking")  # how rows are read
FILE_OPTIONS = ("prompt_column", "completion_column")  # of files of rows: a job's are in a known shape when it begins


@dataclass(frozen=True)
class CommonOptions:
    """The options of a training that all adapter families have."""

    # the adapted projections; a family says how
    targets: str = option("all", "Projections to train, comma separated: " + ", ".join(TARGETS) + "; or all, but those "
                          "of a mixture's experts, which are trained where they are named.",
                          group=ADAPTER)
    blocks: str = option("all", "Blocks to train: all, first:K or last:K (last:K is cheaper: backward stops early).")
    # the optimizer
    lr: float | Literal["auto"] = option("auto", "Peak learning rate of AdamW; auto: 1e-3 with steps of 4 rows or "
                                         "fewer, 2e-3 from 8 on, between them in proportion.", low=0.0, auto=float,
                                         common=True, group="The optimizer")
    schedule: str = option("linear", "What the learning rate does after the warm-up.",
                           choices=("constant", "linear", "cosine"))
    warmup: float = option(0.05, "Warm-up: below 1 a share of all steps, from 1 on a number of steps.", low=0.0)
    weight_decay: float = option(0.0, "Decoupled weight decay.", low=0.0)
    beta1: float = option(0.9, "AdamW's beta1.", low=0.0, high=0.9999)
    beta2: float = option(0.999, "AdamW's beta2.", low=0.0, high=0.999999)
    optimizer_state: str = option("auto", "AdamW's moments: float, or 8bit (a quarter of the memory, nearly the same "
                                  "loss); auto: 8bit only where memory demands it.",
                                  choices=("auto", "float", "8bit"))
    max_grad_norm: float | Literal["auto"] = option("auto", "Clip the gradient to this norm; 0: never; auto: 1, and "
                                                    "0.3 with gemma4, whose gradients can be large.", low=0.0,
                                                    auto=float)
    # the data
    epochs: float | Literal["auto"] = option("auto", "Passes over the data; auto: the more, the fewer rows there are.",
                                             low=0.0, high=1e6, auto=float, common=True, group="The data")
    steps: int = option(0, "Optimizer steps; overrides epochs when not 0.", low=0, high=10**9)
    batch_size: int | Literal["auto"] = option("auto", "Rows (with packing: packs) in an optimizer step; auto: 8, and "
                                               "down to 4 where rows are few.", low=1, auto=int)
    max_length: int | Literal["auto"] = option("auto", "Tokens in a row at most; auto: those of the longest row, at "
                                               "least 512, at most 4096 and what memory has room for.", low=2,
                                               auto=int)
    overflow: str = option("truncate", "What happens to a longer row.", choices=("truncate", "skip"))
    packing: bool = option(False, "Fill rows up to max-length with several documents that never see each other.")
    anchors: int | Literal["auto"] = option("auto", "Rows for each answer of the base itself that is learned with "
                                            "them, so that it stays as it was on unrelated text; 0: no such answers; "
                                            "auto: 5 for sft with --epochs auto, else 0.", low=0, high=10**9, auto=int)
    share_prefixes: str = option("auto", "Compute a common beginning of rows, such as a system message, once a batch; "
                                 "off: for each row. Results are equal up to rounding.",
                                 choices=("auto", "off"))
    shuffle: bool = option(True, "Shuffle the rows again in every epoch.")
    system: str = option("", "System message for rows that have none.", common=True)
    prompt: str = option("", "Prompt file for rows that have no system message; the adapter is saved with it.",
                         local=True)
    prompt_column: str = option("", "Key of a row's question, for rows of no known format [by the keys of known ones].")
    completion_column: str = option("", "Key of a row's answer, likewise.")
    markup: str = option("escape", "Control tokens such as <|im_end|> in a message: escape keeps them text; parse "
                         "makes tokens of them, so that a message can forge a turn.",
                         choices=("escape", "parse"))
    thinking: str = option("keep", "Thoughts before an answer, as <think> marks them: keep: they are learned; drop: "
                           "they are left out of the rows; mask: the model reads them, and learns only the answer.",
                           choices=("keep", "drop", "mask"))
    # the run
    memory: str = option("", "Memory of the whole process at most, such as 300M, 1.5G, or 25% of what is available "
                         "[75%]. What is traded for it is printed.", common=True, group="The run")
    micro_batch: int = option(1024, "Tokens computed at a time at most; memory grows with it, results do not change.",
                              low=1)
    recompute: str = option("auto", "Compute each block again in backward (little memory), or none (faster); auto: as "
                            "many as memory demands; disk: each, from inputs in a file, for long rows.",
                            choices=("auto", "block", "none", "disk"))
    weights: str = option("auto", "Keep all weights resident in memory, or have them streamed from the file at every "
                          "use; auto: as few as memory allows.", choices=("auto", "resident", "streamed"))
    precision: str = option("fast", "Products: fast (bf16 where the CPU is quick at it, else float), exact (float) or "
                            "int8 (8-bit integers where the CPU multiplies them, else as fast).",
                            choices=("fast", "exact", "int8"))
    eval_every: int = option(0, "Steps between two measurements of the held-out loss; auto: an epoch, with --epochs "
                             "auto at least five times a run.", low=0, zero=AUTO)
    patience: int | Literal["auto"] = option("auto", "Stop after this number of measurements without improvement; 0: "
                                             "never; auto: with --epochs auto after 3 in a row that are worse than "
                                             "the lowest by more than chance, else never.", low=0, auto=int)
    checkpoint_every: str = option("auto", "Save the run this often (90s, 5m, 2h), or never but when it is stopped; "
                                   "auto: 5m, or 15m on SD card, eMMC or USB stick, which wear out.")
    seed: int = option(0, "Seed of everything random. Same seed, data, machine and plan: the same bytes.", low=0,
                       high=2**63 - 1)
    threads: int = option(0, "Threads; auto: one a core that this process may use.", low=0, high=1024, zero=AUTO)
    backend: str = option("auto", "What computes: cpu, cuda (an NVIDIA GPU), or auto: the GPU where one can be used.",
                          choices=BACKENDS)


@dataclass(frozen=True, init=False)
class TrainConfig(CommonOptions):
    """Options of one training run. Immutable; stored whole in the adapter's run.json.

    family: the adapter family, by name or as a Family. Its options are given, changed and stored with the others:
    TrainConfig(rank=8, lr=1e-3) has a LoRA of rank 8.
    """

    family: Family = field(default_factory=lambda: _family(LORA, {}))

    def __init__(self, **options: Unpack[TrainOptions]) -> None:
        """Raises UsageError for a name that is no option, of all trainings or of the family."""
        given: dict[str, Any] = dict(options)
        family = given.pop("family", LORA)
        common = {spec.name: given.pop(spec.name) for spec in declared(CommonOptions) if spec.name in given}
        super().__init__(**common)
        object.__setattr__(self, "family", _family(family, given))

    @classmethod
    def read_json(cls, found: Mapping[str, Any], source: str) -> TrainConfig:
        """The inverse of `to_json`, of this edgetune or an earlier one. Raises FormatError."""
        from ..adapters.base import find_family
        rest = dict(found)
        name = str(rest.pop("family", LORA))
        kind = find_family(name)
        if kind is None:
            raise FormatError(f"{source} has the adapter family {name!r:.60}, which this edgetune does not know",
                              "use the edgetune that wrote it")
        own = {spec.name: rest.pop(spec.name) for spec in declared(kind) if spec.name in rest}
        return cls(family=from_json(kind, own, source), **checked_fields(CommonOptions, rest, source))

    def check(self) -> TrainConfig:
        """Returns self; raises UsageError for the first option of another type or out of its range."""
        self.family.check()
        check_options(self)
        self.target_names()
        self.block_range(10**6)
        self.memory_bytes(2**40)
        self.checkpoint_seconds()
        if self.system and self.prompt:
            raise UsageError(f"system is given with prompt {self.prompt}, which it would hide",
                             "write it into the prompt file, or leave one of them out")
        if self.steps == 0 and self.epochs == 0:
            raise UsageError("epochs and steps are both 0", "name how long to train with one of them")
        return self

    def target_names(self) -> tuple[str, ...]:
        """The projections to train, in the order of TARGETS."""
        if self.targets == "all":
            return tuple(TARGETS)
        asked = [name.strip() for name in self.targets.split(",") if name.strip()]
        known = (*TARGETS, *OTHER_TARGETS)
        unknown = [name for name in asked if name not in known]
        if unknown or not asked:
            raise UsageError(f"targets {self.targets!r} names {unknown[0] if unknown else 'nothing'!r}",
                             f"choose from {', '.join(known)}, or all")
        return tuple(name for name in known if name in asked)

    def block_range(self, n_layer: int) -> range:
        """The trained blocks of a model with n_layer blocks."""
        if self.blocks == "all":
            return range(n_layer)
        side, _, count = self.blocks.partition(":")
        if side not in ("first", "last") or not count.isdigit() or not 1 <= int(count) <= n_layer:
            raise UsageError(f"blocks {self.blocks!r} is not all, first:K or last:K with 1 <= K <= {n_layer}",
                             "for example --blocks last:8")
        k = int(count)
        return range(k) if side == "first" else range(n_layer - k, n_layer)

    @property
    def around(self) -> tuple[str, str, str] | None:
        """What is put around rows but a system message: a module, its function and the argument; None: nothing."""
        return ("edgetune.serving.prompt_file", "kept_prompt", self.prompt) if self.prompt else None

    @property
    def instruction(self) -> Instruction:
        """What rows that have no system message are given. Raises FormatError for a prompt file that is none."""
        from ..serving.prompt_file import kept_prompt
        return kept_prompt(self.prompt) if self.prompt else self.system or None

    @property
    def row_limit(self) -> int:
        """The largest number of tokens in a row; auto's least value if no row is known."""
        return AUTO_LENGTH if isinstance(self.max_length, str) else self.max_length

    def memory_bytes(self, available: int) -> int:
        """The budget of the whole process in bytes, when `available` bytes are available to it."""
        found = re.fullmatch(r"(\d+(?:\.\d+)?)([KMG]|%)", self.memory or DEFAULT_MEMORY, re.IGNORECASE)
        number = float(found[1]) if found else 0.0
        if found is None or number == 0 or (found[2] == "%" and number > 100):
            raise UsageError(f"memory is {self.memory!r}", "give it as 300M, 1.5G or 25%")
        unit = {"%": available / 100, "K": 2**10, "M": 2**20, "G": 2**30}[found[2].upper()]
        return int(number * unit)

    @property
    def memory_asked(self) -> str:
        """The budget as the user gave it, for messages."""
        return f"--memory {self.memory}" if self.memory else f"{DEFAULT_MEMORY} of what is available"

    def memory_here(self) -> int:
        """The budget of this process in bytes: it may take what it has and what is available."""
        return self.memory_bytes(read_device().memory_available + rss())

    def checkpoint_seconds(self, folder: Path | None = None) -> float:
        """Seconds between two checkpoints in a folder that exists; infinite for never."""
        if self.checkpoint_every == AUTO:
            return WEARING_SECONDS if folder and is_removable(folder) else SECONDS
        if self.checkpoint_every in ("never", "0"):
            return math.inf
        seconds = seconds_of(self.checkpoint_every)
        if not seconds:
            raise UsageError(f"checkpoint-every {self.checkpoint_every!r} is not a time",
                             "give 90s, 5m, 2h, never or auto")
        return seconds

    def check_held_out(self, held_out: bool) -> None:
        """Raises UsageError for an option that asks for measurements where no rows are held out for them."""
        if held_out:
            return
        for name, value in (("eval-every", self.eval_every), ("patience", self.patience)):
            if value not in (0, AUTO):
                what = f"{name} is {value}, and no rows are held out to measure"
                raise UsageError(what, f"name held-out rows with --eval, or leave --{name} out")

    def to_json(self) -> dict[str, Any]:
        """The options by name, those of the family among them."""
        common = {spec.name: getattr(self, spec.name) for spec in declared(CommonOptions)}
        return {"family": self.family.name, **self.family.options(), **common}


def _family(asked: Family | str, options: Mapping[str, Any]) -> Family:
    """The family with these options changed; None for an option that only other families have is passed over."""
    from ..adapters.base import family_named
    kind = family_named(asked) if isinstance(asked, str) else type(asked)
    kept = {} if isinstance(asked, str) else asdict(asked)
    known = [spec.name for spec in declared(kind)]
    for name, value in options.items():
        if name not in known and value is not None:
            raise unknown_option(name, [*known, "family", *(spec.name for spec in declared(CommonOptions))])
    return kind(**{**kept, **{name: options[name] for name in known if name in options}})


def train_options(family: str = "") -> dict[str, Field[Any]]:
    """Every option of training by name: the common ones and those of a family; by default of all families, where
    LoRA's stands for others of its name.
    """
    from ..adapters.base import families, family_named
    kinds = [family_named(family)] if family else [family_named(LORA), *families().values()]
    own = {spec.name: spec for kind in reversed(kinds) for spec in declared(kind)}
    return {**own, **{spec.name: spec for spec in declared(CommonOptions)}}


def defaults_of(options: Mapping[str, Any]) -> dict[str, Any]:
    """The defaults of all options of a training, by the family that its options name, as far as it is known."""
    from ..adapters.base import find_family
    family = str(options.get("family", LORA))
    own = train_options(family if find_family(family) else LORA)
    return {"family": LORA, **{name: spec.default for name, spec in own.items()}}


class TrainOptions(TypedDict, total=False):
    """The options of TrainConfig as keyword arguments, so that a type checker finds a misspelt one. A family other than
    LoRA is given with its options, family=Other(width=6).
    """

    family: Family | str
    rank: int
    alpha: float
    targets: str
    blocks: str
    dropout: float
    rslora: bool
    lora_plus: float
    lr: float | Literal["auto"]
    schedule: str
    warmup: float
    weight_decay: float
    beta1: float
    beta2: float
    optimizer_state: str
    max_grad_norm: float | Literal["auto"]
    epochs: float | Literal["auto"]
    steps: int
    batch_size: int | Literal["auto"]
    max_length: int | Literal["auto"]
    overflow: str
    packing: bool
    anchors: int | Literal["auto"]
    share_prefixes: str
    shuffle: bool
    system: str
    prompt: str
    prompt_column: str
    completion_column: str
    markup: str
    thinking: str
    memory: str
    micro_batch: int
    recompute: str
    weights: str
    precision: str
    eval_every: int
    patience: int | Literal["auto"]
    checkpoint_every: str
    seed: int
    threads: int
    backend: str
