"""What a part does in a daemon while it runs; edgetune/manifest.py says what a part is.

The order of a daemon's life: the parts are made, the model and the state are opened, each part joins the service,
all start, and in reverse order they stop and close.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from ..data.around import Instruction
from ..manifest import manifests
from .options import DaemonConfig

if TYPE_CHECKING:
    from prometheus_client import Metric
    from starlette.types import Scope

    from ..serving.question import Question
    from .service import Service
    from .sources import AnswerSource


Chooser = Callable[[Mapping[str, Any]], str]


class RunningPart:
    """A part within one daemon. The methods of this class do nothing; a part has those that it needs. What it opens
    before the model, in its constructor, is memory that the model leaves to it.
    """

    @property
    def busy_bytes(self) -> int:
        """Returns the bytes that its answers take in addition to what it takes at rest."""
        return 0

    @property
    def keeps_questions(self) -> bool:
        """Returns whether the operator lets it keep what people ask. Then proposed corrections are stored as well."""
        return False

    @property
    def note(self) -> Callable[[Question], object] | None:
        """Returns what takes note of each question over HTTP that the model answered, on any thread; None: nothing
        does. Its EdgetuneErrors go into the log.
        """
        return None

    @property
    def around(self) -> Instruction:
        """Returns what it puts around every chat."""
        return None

    def tool(self, given: Mapping[str, Any]) -> Instruction:  # noqa: ARG002
        """Returns what a tool of a request puts around its question, if the part runs this tool; else None. given: the
        tool, with its `type`. Raises errors for a tool that asks for what there is not.
        """
        return None

    def models(self) -> Sequence[str]:
        """Returns names for requests by which it chooses a model for each question."""
        return ()

    def chooser(self, model: str) -> Chooser | None:  # noqa: ARG002
        """Returns what chooses a name of `Service.models` for a question's content, as of AskedQuestion, where `model`
        is a name by which it chooses; else None. The chooser may raise NotFoundError.
        """
        return None

    def adapter(self, id: str) -> Mapping[str, int]:  # noqa: ARG002
        """Returns what it adds to the facts of an adapter: the numbers of the manifest's `adapter`."""
        return {}

    def join(self, service: Service) -> None:
        """Takes what it needs of a service whose model and state are open, and that answers nobody yet."""

    def sources(self) -> Sequence[AnswerSource]:
        """Returns its sources of answers."""
        return ()

    def start(self) -> None:
        """Starts its threads."""

    def stop(self) -> None:
        """Returns when its threads have ended."""

    def close(self) -> None:
        """Closes what the constructor and `join` opened."""

    def threads(self) -> Sequence[threading.Thread]:
        """Returns its threads. Those that were started live until it stops."""
        return ()

    def reasons(self) -> Sequence[str]:
        """Returns why some of its work does not continue now, a sentence each."""
        return ()

    def device(self) -> dict[str, Any]:
        """Returns what it adds to the answer of /v1/device: the fields of the manifest's `device`."""
        return {}

    def admit(self, scope: Scope) -> str | None:  # noqa: ARG002
        """Admits a request that the keys of the daemon need not cover: by who signed it, say, which it may note in the
        scope. Returns the SHA-256 that the body must have, "": any; None: the keys decide. Raises HTTPException for a
        request that must not reach the app. For the event loop.
        """
        return None

    def metrics(self) -> Iterator[Metric]:
        """Yields what it adds to /metrics."""
        yield from ()


def running_parts(config: DaemonConfig, opened: ExitStack) -> dict[str, RunningPart]:
    """Returns {name: part} of the parts that the options of a daemon ask for. opened: closes them."""
    found: dict[str, RunningPart] = {}
    for manifest in manifests():
        if manifest.running and (part := manifest.load(manifest.running)(config)):
            opened.callback(part.close)
            found[manifest.name] = part
    return found
