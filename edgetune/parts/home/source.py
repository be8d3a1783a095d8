"""A house that answers before the model: Home Assistant's requests, with calls of its tools.

A house with a decoder asks the same model with the house's own adapter, by the sentence alone, without the prompt.
The model itself gets what the house is not sure of, if its template knows tools or an adapter is active, and every
request without Home Assistant's tools.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, cast

from ...daemon.options import DaemonConfig
from ...daemon.running import RunningPart
from ...daemon.sources import CERTAIN, FORMS, AnswerSource, AskedQuestion, whole_answer
from ...daemon.state.adapters import LATEST, Adapters
from ...serving.answering import Answering
from ...serving.completion import Completion
from ...serving.llama import LlamaModel
from ...serving.served import Served
from ...serving.tool_calls import CallForm
from .house import House
from .language import language_of
from .options import HomeOptions
from .replies import Replies, Reply, question_of
from .understanding import ByDecoder, by_encoder, in_turn

if TYPE_CHECKING:
    from ...daemon.service import Service


class HouseReplies:
    """An opened house; it answers one question at a time. Raises the errors of House.open and Encoder."""

    def __init__(self, folder: Path, threads: int) -> None:
        self._house = House.open(folder)
        self._encoder = by_encoder(self._house, threads)
        self.busy_bytes = self._encoder.busy_bytes if self._encoder else 0
        self._turn = threading.Lock()

    def join(self, answering: Answering[Any]) -> None:
        """Takes the daemon's model for what the house's decoder answers. Raises MismatchError where it learned another
        model.
        """
        decoder = ByDecoder(self._house, answering) if self._house.facts.decoder else None
        self._replies = Replies(in_turn(self._house, self._encoder, decoder), language_of(self._house.facts.language))

    def reply(self, content: Mapping[str, Any], alone: bool) -> Reply | None:
        """Returns the reply to a conversation; None leaves it to the model, unless the house answers alone. For any
        thread.
        """
        names = [tool["function"]["name"] for tool in content.get("tools") or ()]
        with self._turn:
            return self._replies.reply(content.get("messages") or (), names, alone)


class RunningHouse(RunningPart):
    """The house of a daemon. Raises the errors of HouseReplies."""

    def __init__(self, replies: HouseReplies) -> None:
        self._replies = replies

    @property
    def busy_bytes(self) -> int:
        return self._replies.busy_bytes

    def join(self, service: Service) -> None:
        self._replies.join(service.batcher)
        form = cast(LlamaModel, service.served).call_form
        self._source = HouseSource(self._replies, service.served, service.adapters, ("", service.name + LATEST),
                                   service.recall.is_disputed, form)

    def sources(self) -> Sequence[AnswerSource]:
        return [self._source]


def running(config: DaemonConfig) -> RunningHouse | None:
    """Returns the house that a daemon's options name, opened; None if they name none."""
    folder = cast(HomeOptions, config).home
    return RunningHouse(HouseReplies(Path(folder).expanduser(), config.threads)) if folder else None


class HouseSource:
    """The replies of a house as a source. models: names that it answers for. is_disputed: whether feedback says that an
    answer to a question is wrong. form: in which the model writes calls.
    """

    name: ClassVar[str] = "house"
    place: ClassVar[int] = CERTAIN

    def __init__(self, replies: HouseReplies, served: Served, adapters: Adapters, models: Collection[str],
                 is_disputed: Callable[[Mapping[str, Any], str], bool], form: CallForm) -> None:
        self._replies = replies
        self._served = served
        self._adapters = adapters
        self._models = models
        self._is_disputed = is_disputed
        self._form = form

    def answer(self, asked: AskedQuestion) -> Completion | None:
        """Returns the answer to a request of Home Assistant of which it is sure. Raises the errors of Batcher.submit.
        """
        has_form = asked.options.get("logprobs") is not None or any(asked.options.get(name) for name in FORMS)
        if has_form or not asked.content.get("tools") or asked.model not in self._models:
            return None
        # a small model that has learned no calls reads the whole prompt, and then writes text without end
        alone = self._adapters.serving is None and not self._served.calls_tools
        if (found := self._replies.reply(asked.content, alone)) is None:
            return None
        text = written(found, self._form)
        if self._is_disputed(asked.content, text):
            return None
        read = replace(asked, prompt=question_of(asked.content["messages"]))  # the rest may be longer than the context
        return whole_answer(text, read, self._served, self._adapters.serving, {})


def written(reply: Reply, form: CallForm) -> str:
    """A reply as the model would write it."""
    calls = [f"{form.before}{json.dumps(call.name)}{form.between}{json.dumps(call.arguments, ensure_ascii=False)}"
             f"{form.after}" for call in reply.calls]
    return "\n".join(calls) or reply.text
