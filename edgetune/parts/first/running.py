"""The encoder within a daemon."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

from ...daemon.options import DaemonConfig
from ...daemon.running import RunningPart
from ...daemon.state.adapters import LATEST
from .contest import Contest
from .encoder import First, FirstEncoder
from .options import FirstOptions

if TYPE_CHECKING:
    from ...daemon.service import Service


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
