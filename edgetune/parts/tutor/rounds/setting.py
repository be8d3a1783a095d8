"""The setting that all steps of the tutor share: model, tokenizer, questions, grader and options."""

from __future__ import annotations

import gc
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np

from ....adapters.lora import Lora
from ....adapters.store import open_adapter
from ....data.around import Instruction
from ....errors import Interrupted
from ....evaluation.graders.base import Grader
from ....formats.bundle import Bundle
from ....formats.gguf import Gguf
from ....llamacpp.sampling import SEED_LIMIT
from ....llamacpp.tokenizer import Tokenizer
from ....machine import device
from ....serving.rollouts.texts import Engine
from ....training.callbacks import RunCallbacks
from ....training.config import TrainConfig
from ....training.throttle import Courtesy
from .options import TutorOptions
from .questions import Pool

CONTINUE = "continue with the same command"
PURPOSES = ("draw", "train")


@dataclass(frozen=True, eq=False)
class RoundSetting:
    """The setting of all steps. grader: None without one; if it asks a model, that is the base. start: the folder of
    the start adapter; None: the base. judge: the encoder that answers prompts; None: the model does. callbacks: of the
    caller; an event is {"event": ..., "round": ...}, and a step that is stopped is repeated later.
    """

    bundle: Bundle
    tokenizer: Tokenizer
    pool: Pool
    grader: Grader | None
    options: TutorOptions
    config: TrainConfig
    out: Path
    start: Path | None = None
    judge: Gguf | None = None
    callbacks: RunCallbacks = field(default_factory=RunCallbacks)

    @cached_property
    def _courtesy(self) -> Courtesy:
        return Courtesy(self.callbacks.should_stop, self.callbacks.busy, self.callbacks.governor)

    @property
    def system(self) -> Instruction:
        return self.config.instruction

    @property
    def engine(self) -> Engine:
        """The engine of answers and log-probabilities, within the budget of training."""
        config = self.config
        return Engine(config.memory_here(), config.memory_asked, precision=config.precision, threads=config.threads,
                      backend=config.backend)

    def seed(self, number: int, purpose: str) -> int:
        """The seed of everything random in a round that serves a purpose."""
        words = np.random.SeedSequence([self.config.seed, number, PURPOSES.index(purpose)]).generate_state(1)
        return int(words[0]) % SEED_LIMIT

    def pairs(self, adapter: Path | None) -> Lora:
        return open_adapter(adapter, self.bundle.gguf).pairs if adapter else {}

    def release(self) -> None:
        """Releases memory of the previous step, so that the next one can plan with it."""
        gc.collect()  # of decoders and trainers, whose parts point to one another
        self.bundle.gguf.release()
        device.trim()

    def look(self) -> None:
        """Yields to answers, and waits as long as the governor says so. Raises Interrupted if the tutor is to stop."""
        if self._courtesy():
            raise Interrupted("the tutor was stopped", CONTINUE)
