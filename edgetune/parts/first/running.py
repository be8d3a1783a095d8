"""The encoder within a daemon, and whether the model answers better where it is sure of a question's kind only.

While nobody asks, the model answers such questions among the rows that the encoder's training held out, once for each
active adapter. It is better if it answers more of them right, not by chance. Until that is known,
and where the rows are gone, the encoder answers. Rows that the model learned make it look better than it is: with a
file of rows in common both trainings hold the same ones out.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from pydantic import BaseModel, Field

from ...adapters import store
from ...daemon.options import DaemonConfig
from ...daemon.running import RunningPart
from ...daemon.sources import AskedQuestion, ModelSource
from ...daemon.state.adapters import LATEST
from ...daemon.threads import Background
from ...data.labelled import question_and_answer
from ...errors import EdgetuneError, Interrupted
from ...evaluation.acceptance import Decision, HeldOut, Paired, Value, decide
from ...evaluation.judge import same
from ...formats.bundle import Bundle
from ...objectives.base import read_objective
from ...persisted import from_json
from ...training.config import TrainConfig
from ...training.origin import TENTH, read_origin
from ...training.sizing import least_held_out, load_run
from .encoder import First, FirstEncoder
from .options import FirstOptions

if TYPE_CHECKING:
    from ...daemon.service import Service

log = logging.getLogger("edgetune.daemon")
MOST = 40  # questions
CHECK_SECONDS = 5.0
SPARE_TOKENS = 16  # of an answer, above twice the right one's


class Contest:
    """The encoder and the model on the same questions. It has one thread, from start to stop."""

    def __init__(self, encoder: FirstEncoder, model: ModelSource, stopping: threading.Event) -> None:
        self._encoder = encoder
        self._model = model
        self._stopping = stopping
        self._known: dict[str | None, Decision] = {}  # by adapter: whether the model is better
        self._pairs: list[tuple[str, str]] | None = None  # None: not looked for yet
        self._thread = Background("first", self._look, stopping, "compare the encoder and the model")

    def start(self) -> None:
        if self._encoder.has_kinds:
            self._thread.start()

    def stop(self) -> None:
        self._thread.stop()

    def threads(self) -> Sequence[threading.Thread]:
        return [self._thread]

    def reasons(self) -> Sequence[str]:
        return [self._thread.failure] if self._thread.failure else []

    def is_better(self) -> bool:
        """Whether the model is known to be better with its active adapter. For any thread."""
        found = self._known.get(self._model.adapters.serving)
        return found is not None and found.is_better

    def facts(self) -> dict[str, Any]:
        """compared: the questions that both answered; encoder, model: right answers of one alone; unsure: who answers
        questions of a sure kind where the answer is not sure.
        """
        known = self._known.get(self._model.adapters.serving)
        found = known.right if known else Paired(0, 0)
        return {"compared": found.rows, "encoder": found.losses, "model": found.wins,
                "unsure": "model" if self.is_better() else "encoder"}

    def _look(self) -> None:
        """Compares them on the active adapter, once."""
        if self._pairs is None:
            self._pairs = unsure(self._encoder)
        if self._stopping.wait(CHECK_SECONDS if self._pairs else None):
            return
        adapter = self._model.adapters.serving
        if adapter not in self._known and (found := self.compare(self._pairs, adapter)):
            self._known[adapter] = found
            log.info("of %d questions the encoder alone has %d right and the model alone %d: unsure answers are "
                     "the %s's", found.right.rows, found.right.losses, found.right.wins, self.facts()["unsure"])

    def compare(self, pairs: Sequence[tuple[str, str]], adapter: str | None) -> Decision | None:
        """Answers of both to (question, right answer); None where it was stopped, or another adapter became active."""
        said: list[tuple[Value, Value]] = []
        for question, right in pairs:
            while self._model.batcher.busy and not self._stopping.wait(CHECK_SECONDS):
                pass
            if self._stopping.is_set() or self._model.adapters.serving != adapter:
                return None
            answer = self._encoder.answer(question)
            assert answer
            with suppress(Interrupted):
                says = self._says(question, right)
                said.append(((float(same(right, answer.text)), 0.0), (float(same(right, says)), 0.0)))
        return decide([old for old, _ in said], [new for _, new in said], HeldOut())

    def _says(self, question: str, right: str) -> str:
        """The model's answer; "" where it cannot be asked."""
        messages = [{"role": "user", "content": question}]
        served = self._model.served
        try:
            prompt = served.render(messages, None, self._model.adapters.serving)
            most = 2 * served.count(right) + SPARE_TOKENS
            asked = AskedQuestion({"messages": messages}, prompt, options={"max_tokens": most, "temperature": 0.0})
            return self._model.answer(asked).text()
        except Interrupted:
            raise
        except EdgetuneError as error:
            log.info("the model does not answer %.80r: %s", question, error.what)
            return ""


def unsure(encoder: FirstEncoder) -> list[tuple[str, str]]:
    """Held-out questions of a sure kind whose answers are not sure, with the right answers."""
    pairs = map(question_and_answer, held_out(encoder.path, encoder.bundle))
    answers = ((pair, encoder.answer(pair[0])) for pair in pairs)
    return [pair for pair, answer in answers if answer and not answer.is_sure][:MOST]


def held_out(adapter: Path, bundle: Bundle) -> Sequence[Any]:
    """The rows that a training of an encoder held out, none where its files are gone or changed."""
    folder = adapter if adapter.is_dir() else adapter.parent
    try:
        run = store.read_run(folder)
        origin = read_origin(folder)
        if not origin.data or not run.get("held_out"):
            return []
        config = from_json(TrainConfig, run["options"], f"the options in {folder}")
        given = None if origin.held_out == TENTH else origin.held_out
        objective = read_objective(origin.objective)
        held = load_run(bundle, Path(origin.data), given, config, objective,
                        least=least_held_out(objective, config, run["start"]))[-1]
    except EdgetuneError as error:
        log.info("the encoder and the model are not compared: %s", error.what)
        return []
    return held.rows if held and held.digest == run["held_out"]["digest"] else []


class RunningFirst(RunningPart):
    """The encoder, and its contest with the model."""

    def __init__(self, encoder: FirstEncoder) -> None:
        self.encoder = encoder

    @property
    def busy_bytes(self) -> int:
        return self.encoder.busy_bytes

    def join(self, service: Service) -> None:
        self.contest = Contest(self.encoder, service.model, service.stopping)
        self._source = First(self.encoder, service.served, service.adapters, ("", service.name + LATEST),
                             service.recall.is_disputed, self.contest.is_better)

    def sources(self) -> Sequence[First]:
        return [self._source]

    def start(self) -> None:
        self.contest.start()

    def stop(self) -> None:
        self.contest.stop()

    def threads(self) -> Sequence[threading.Thread]:
        return self.contest.threads()

    def reasons(self) -> Sequence[str]:
        return self.contest.reasons()

    def device(self) -> dict[str, Any]:
        return {"first": self.contest.facts()}


def running(config: DaemonConfig) -> RunningFirst | None:
    """Returns the encoder that a daemon's options name, opened; None if they name none. Raises the errors of
    FirstEncoder.
    """
    options = cast(FirstOptions, config)
    return RunningFirst(FirstEncoder(options.first, options.first_share, config.threads)) if options.first else None


class FirstDevice(BaseModel):
    """The encoder and the model on the same questions."""

    first: dict[str, Any] | None = Field(
        None, description="Of --first: compared, held-out questions of a sure kind with an unsure answer that both "
        "answered; encoder, model: how many only that one has right; unsure: who gives such answers.")
