"""The questions of one request: they are submitted together, and one pass of the encoder answers those that it learned.
A model that writes text answers by letters, and what it did not learn is told apart.

A correction of exactly this question about this state is recalled before that. A question that nobody here can answer
is unanswered, with the reason and the way to teach it: no probability is invented.
"""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import chain

import numpy as np
from fastapi import Request

from ...daemon.api.asking import (
    AnsweredRequest,
    RecentAnswers,
    calling_when_gone,
    check_ended,
    log_answer,
    name_within,
)
from ...daemon.api.pools import Pools
from ...daemon.service import Service
from ...daemon.state.adapters import LATEST
from ...data.decisions import TypedQuestion, read_key, words
from ...data.letters import LETTERS, lettered
from ...errors import NotFoundError, TooMuchError, UnsupportedError, UsageError
from ...serving.completion import MODEL, Completion
from ...serving.encoder import Reader
from ...serving.encoder_model import EncoderModel
from ...serving.question import Message, Question
from .decided import Decided, certain, decided, learned_as
from .letters import LetterAsker

Submitted = dict[str, list[Completion]]
"""The completions of each question, by its name; of one that was not learned none."""
NEAR = 0.5  # cosine from which a learned question is proposed in place of one that was not


@dataclass
class DecisionRequest:
    """A state and what is asked about it. answers: of each question; unanswered: why the others have none.
    prompt_tokens: of the state, or of all that a model that writes text reads. adapter: the one that answers; "":
    nothing is learned yet. reader: it, opened, of an encoder; letters: what asks a model that writes text.
    """

    service: Service
    state: str
    questions: Mapping[str, TypedQuestion]
    model: str = ""
    id: str = field(default_factory=lambda: f"dec_{secrets.token_hex(12)}")
    answers: dict[str, Decided] = field(default_factory=dict)
    unanswered: dict[str, NotFoundError] = field(default_factory=dict)
    prompt_tokens: int = 0
    adapter: str = ""
    reader: Reader | None = None
    letters: LetterAsker | None = None

    async def answer(self, request: Request) -> None:
        """Fills the answers. Feedback can then name each by the id of the request and the name of the question. Raises
        NotFoundError for an unknown model, TooMuchError if another adapter becomes active meanwhile, and errors of the
        batcher.
        """
        pools: Pools = request.app.state.pools
        loop = asyncio.get_running_loop()
        ended: asyncio.Queue[None] = asyncio.Queue()

        def note(_completion: Completion, piece: str | None) -> None:  # on the batcher's thread
            if piece is None:
                with suppress(RuntimeError):  # the loop is closed: the client is gone
                    loop.call_soon_threadsafe(ended.put_nowait, None)

        submitted = await pools.take(lambda: self._submit(note))
        async with calling_when_gone(lambda: _cancel(submitted), request):
            for _ in chain.from_iterable(submitted.values()):
                await ended.get()
        await pools.take(lambda: self._take(submitted, request.app.state.recent))

    @property
    def headers(self) -> dict[str, str]:
        """What strict clients refuse in an answer: the id for feedback, and what is known of the answers."""
        sure = [name for name, found in self.answers.items() if found.is_sure]
        recalled = {name: found.recalled for name, found in self.answers.items() if found.recalled}
        untuned = [name for name, found in self.answers.items() if found.is_untuned]
        return {"x-request-id": self.id, "x-typesafe-request-id": self.id, "X-Edgetune-Adapter": self.adapter,
                "X-Edgetune-Sure": json.dumps(sure), "X-Edgetune-Recalled": json.dumps(recalled),
                **({"X-Edgetune-Untuned": json.dumps(untuned)} if self.letters else {})}

    # ---- on the threads of the pools --------------------------------------------------------------------------------

    def _submit(self, note: Callable[[Completion, str | None], None]) -> Submitted:
        """Puts the questions into the batcher's queue."""
        served = self.service.served
        self.adapter = self.service.adapter_for(self.model) or ""
        if isinstance(served, EncoderModel):
            self.reader = served.reader(self.adapter) if self.adapter else None
        else:
            self.letters = LetterAsker.of(self.service, self.adapter)
        unlearned: dict[str, TypedQuestion] = {}
        submitted: Submitted = {}
        try:
            with self.service.batcher.together():
                for name, question in self.questions.items():
                    submitted[name] = []
                    try:
                        for asked in self._asked(question):
                            submitted[name].append(self.service.ask(asked, note))
                    except (NotFoundError, UsageError) as error:
                        if isinstance(error, UsageError) and (self.reader or self.letters):
                            raise
                        unlearned[name] = question
        except Exception:
            _cancel(submitted)
            raise
        self.unanswered |= self._unlearned(unlearned)
        return submitted

    def _asked(self, question: TypedQuestion) -> Sequence[Question]:
        if self.letters:
            return self.letters.questions(self.state, question, self.model)
        return [Question(self._messages(question), model=self.model)]

    def _take(self, submitted: Submitted, recent: RecentAnswers) -> None:
        """Reads the answers, which have ended, and keeps them for feedback."""
        for name, question in self.questions.items():
            if submitted[name]:
                self._read(name, question, submitted[name])
            written = lettered(question) if self.letters else {}
            said = self.answers[name].label if name in self.answers else ""
            said = written.get(said, said)
            content = {"messages": [*self._messages(question)]}
            recent.add(name_within(self.id, name), AnsweredRequest(content, said, self.adapter, written))
            log_answer(self.service, self.id, content, said)

    def _read(self, name: str, question: TypedQuestion, completions: Sequence[Completion]) -> None:
        """Notes the answer to a question, by the first that a person corrected, or else by the model."""
        for completion in completions:
            check_ended(completion)
        count = sum(completion.prompt_tokens for completion in completions)
        self.prompt_tokens = self.prompt_tokens + count if self.letters else count
        for completion, labels in zip(completions, (question.labels, question.labels[::-1]), strict=False):
            if completion.source != MODEL:
                label = words(completion.text())
                letters = dict(zip(LETTERS, labels, strict=False)) if self.letters else {}
                return self._read_recalled(name, question, letters.get(label, label), completion)
        return self._read_model(name, question, completions)

    def _read_recalled(self, name: str, question: TypedQuestion, label: str, completion: Completion) -> None:
        if label in question.labels:
            recalled = str(completion.details.get("recalled", ""))
            is_same = "likeness" not in completion.details  # as the corrected state
            self.answers[name] = Decided(question, certain(question, label), is_same, recalled)
        else:
            self.unanswered[name] = NotFoundError(
                f"the question {name!r:.80} was corrected to {label!r:.80}, which is none of its options",
                "offer it, or correct the answer again")

    def _read_model(self, name: str, question: TypedQuestion, completions: Sequence[Completion]) -> None:
        if any((completion.adapter or "") != self.adapter for completion in completions):
            raise TooMuchError("another adapter became active while the question waited", "ask again")
        if self.letters:
            self.answers[name] = self.letters.decided(question, completions)
        else:
            self._read_head(name, question, completions[0])

    def _read_head(self, name: str, question: TypedQuestion, completion: Completion) -> None:
        assert self.reader
        learned = self.reader.learned
        if learned.options_of(learned_as(question, learned)) is None:
            self.unanswered |= self._unlearned({name: question})
            return
        try:
            self.answers[name] = decided(name, question, self.reader, np.exp(completion.among))
        except NotFoundError as error:
            self.unanswered[name] = error

    # ---- which question it is ---------------------------------------------------------------------------------------

    def _messages(self, question: TypedQuestion) -> list[Message]:
        """The question and the state as a conversation, by which corrections are kept and learned."""
        if self.letters:
            return self.letters.messages(self.state, question)
        asked: list[Message] = [{"role": "user", "content": self.state}]
        typed = learned_as(question, self.reader.learned) if self.reader else question.key
        return [{"role": "system", "content": typed}, *asked] if typed else asked

    def _unlearned(self, asked: Mapping[str, TypedQuestion]) -> dict[str, NotFoundError]:
        """Why nobody answers questions, each with the learned one that is nearest to it."""
        teach = 'teach it: send rows, or corrections to /v1/feedback with the id of this answer and "question": NAME'
        if self.reader is None and self.model and self.service.adapters.serving:
            teach = f"ask {self.service.name}{LATEST}, which has an adapter, or leave model out"
        near = self._nearest(asked)
        found = {}
        for name in asked:
            what = f"the question {name!r:.80} was not learned"
            if name in near:
                found[name] = NotFoundError(f"{what}; near to it is {near[name].instructions!r:.200}",
                                            f"ask in those words if that is meant, or {teach}")
            else:
                found[name] = NotFoundError(what, teach)
        return found

    def _nearest(self, asked: Mapping[str, TypedQuestion]) -> dict[str, TypedQuestion]:
        """The nearest learned question of each one's type, if one is near."""
        keys = getattr(self.reader.learned, "questions", ()) if self.reader and asked else ()
        known = [question for key in keys if (question := read_key(key[0]))]
        if not known:
            return {}
        try:
            vectors = self.service.embed([each.instructions for each in (*known, *asked.values())]).vectors
        except (UsageError, UnsupportedError):  # of a text that is too long
            return {}
        found = {}
        for (name, question), vector in zip(asked.items(), vectors[len(known):], strict=True):
            cosines = np.array([own @ vector if each.type == question.type else -1.0
                                for each, own in zip(known, vectors, strict=False)])
            if cosines.max() >= NEAR:
                found[name] = known[int(cosines.argmax())]
        return found


def _cancel(submitted: Submitted) -> None:
    for each in chain.from_iterable(submitted.values()):
        each.cancel()
