"""Questions of an API answered by the service: pieces of the answers as they are made, or whole answers.

Every API of the daemon asks through `PendingQuestions.begin` and reads `pieces` or `whole`; only the shapes differ.
"""

from __future__ import annotations

import asyncio
import json
import logging
import secrets
import time
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from fastapi import Request
from starlette.exceptions import HTTPException
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from ...data.decisions import words
from ...errors import EdgetuneError, NotFoundError, UsageError
from ...llamacpp.tokenizer import Tokenizer
from ...serving.completion import MODEL, Completion, TokenLogprob
from ...serving.question import Question
from ...serving.thoughts import ThoughtReader
from ...serving.tool_calls import CallPiece, WholeCall, join
from ..service import Service
from .pools import Pools

MOST_MEASURED = 100_000  # log-probabilities of prompts in a response, some 200 bytes each

log = logging.getLogger("edgetune.daemon")


def note_ignored(request: Request, names: Sequence[str]) -> None:
    """Write into the log, once for each option, that it has no effect."""
    noted: set[str] = request.app.state.ignored
    for name in names:
        if name not in noted:
            noted.add(name)
            log.info("a client gave the option %s, which has no effect here", name)


@asynccontextmanager
async def calling_when_gone(act: Callable[[], None], request: Request) -> AsyncIterator[None]:
    """Calls `act` if the client disconnects within."""
    async def watch() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass
        act()

    watcher = asyncio.create_task(watch())
    try:
        yield
    finally:
        watcher.cancel()


@dataclass(frozen=True)
class AnswerPiece:
    """A part of an answer that is final. The last one of each has `finish`: stop, length or tool_calls."""

    index: int  # of the answer
    text: str = ""
    thinking: str = ""
    calls: Sequence[CallPiece] = ()
    logprobs: Sequence[TokenLogprob] = ()
    finish: str | None = None


@dataclass
class Said:
    """A whole answer."""

    text: str = ""
    thinking: str = ""
    calls: list[WholeCall] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    finish: str = ""


class _Given(NamedTuple):
    """Output of the batcher's thread: text of an answer, None at its end; tokens: their number so far."""

    answer: int
    text: str | None
    tokens: int


class AnswerStream(StreamingResponse):
    """Events of answers in progress. A client that disconnects cancels them at any moment."""

    def __init__(self, events: AsyncIterator[str], asked: PendingQuestions, media_type: str) -> None:
        super().__init__(events, headers=asked.headers, media_type=media_type)
        self._asked = asked

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._asked.cancel()


class PendingQuestions:
    """Questions in progress; their answers are numbered through, `n` of the first question before the second's.

    id, created and model are for the head of a response; the last names who answers: the base or an adapter.
    sources: the passages that stand before the first question; None where no documents are asked.
    origin: the source of the first answer and its details, such as the feedback that it is from; empty for the model.
    """

    def __init__(self, questions: Sequence[Question], service: Service, recent: RecentAnswers, pools: Pools,
                 id: str) -> None:
        self.questions = questions
        self.service = service
        self.id = id
        self.created = int(time.time())
        self.completions: list[Completion] = []
        self.sources: Sequence[dict[str, Any]] | None = None  # of passages; None: no documents are asked
        self._recent = recent
        self._pools = pools
        self._given = asyncio.Queue[_Given]()
        self._raw: list[str] = []  # the text of each answer, with its calls

    @classmethod
    async def begin(cls, questions: Sequence[Question], request: Request, prefix: str) -> PendingQuestions:
        """Submits the questions, in a thread, because a long prompt takes a while to tokenize. prefix: of the id.

        Raises the errors of the questions.
        """
        state = request.app.state
        asked = cls(questions, state.service, state.recent, state.pools, prefix + secrets.token_hex(12))
        loop = asyncio.get_running_loop()
        await asked._pools.take(lambda: asked._submit(loop))
        asked._raw = [""] * len(asked.completions)
        return asked

    def _submit(self, loop: asyncio.AbstractEventLoop) -> None:
        def taker(index: int) -> Callable[[Completion, str | None], None]:
            def take(completion: Completion, text: str | None) -> None:  # on the batcher's thread
                with suppress(RuntimeError):  # the loop is closed: the client is gone
                    given = _Given(index, text, len(completion.logprobs))
                    loop.call_soon_threadsafe(self._given.put_nowait, given)

            return take

        most = self.service.batcher.parallel + self.service.batcher.queue
        if (count := sum(question.n for question in self.questions)) > most:
            raise UsageError(f"{count} answers are requested at once", f"ask for at most {most}, as --queue allows")
        measured = 0
        self.sources = self.service.sources_of(self.questions[0])
        try:
            for question in self.questions:
                asked = replace(question, model=self.service.chosen(question.model, question.content))
                for number in range(question.n):
                    on_piece = taker(len(self.completions))
                    self.completions.append(self.service.ask(asked, on_piece, number))
                    measured += self._measured(question, self.completions[-1])
                    if measured > MOST_MEASURED:
                        raise UsageError(f"the prompts have {measured} log-probabilities or more",
                                         f"ask for at most {MOST_MEASURED} at once: 1 + logprobs for each token")
        except Exception:
            self.cancel()
            raise

    @property
    def model(self) -> str:
        return self.completions[0].adapter or self.service.name

    @property
    def origin(self) -> dict[str, str | float]:
        first = self.completions[0]
        return {} if first.source == MODEL else {"source": first.source, **first.details}

    @property
    def headers(self) -> dict[str, str]:
        """The headers of the response that name the origin of the answer."""
        return {f"X-Edgetune-{name.capitalize()}": f"{value}" for name, value in self.origin.items()}

    @property
    def cited(self) -> dict[str, Any]:
        """The field of the response that names the sources; none where no documents are asked."""
        return {} if self.sources is None else {"sources": self.sources}

    @property
    def context(self) -> list[int]:
        """The token ids of the first question and its answer so far; none of an encoder."""
        tokenizer = self.service.served.tokenizer
        if not isinstance(tokenizer, Tokenizer):
            return []
        return [*self.completions[0].prompt, *tokenizer.encode(self._raw[0], special=False, continues=True)]

    @property
    def prompt_tokens(self) -> int:
        """The prompt tokens of all questions; a question with several answers counts once."""
        return sum(each.prompt_tokens for each in self._firsts)

    @property
    def completion_tokens(self) -> int:
        return sum(completion.completion_tokens for completion in self.completions)

    @property
    def cached_tokens(self) -> int:
        """Tokens of the prompts that were in the cache."""
        return sum(each.cached_tokens for each in self._firsts)

    @property
    def _firsts(self) -> Iterable[Completion]:
        """The first answer to each question."""
        at = 0
        for question in self.questions:
            yield self.completions[at]
            at += question.n

    def cancel(self) -> None:
        """End all soon. After the end this changes nothing."""
        for completion in self.completions:
            completion.cancel()

    async def pieces(self) -> AsyncIterator[AnswerPiece]:
        """All answers' pieces, in the order in which they come. Raises an answer's error, after which nothing comes."""
        readers = [self.service.call_reader(self._question(i)) for i in range(len(self.completions))]
        thoughts = [self._thoughts(i) for i in range(len(self.completions))]
        seen = [0] * len(readers)
        unsaid = [self._question(i).echo for i in range(len(readers))]
        running = len(readers)
        try:
            while running:
                given = await self._given.get()
                i = given.answer
                completion = self.completions[i]
                if given.text is None:
                    running -= 1
                    check_ended(completion)
                if unsaid[i]:
                    unsaid[i] = False
                    yield self._prompt(i)
                thinking, text = "", given.text or ""
                if reading := thoughts[i]:
                    thinking, text = reading.push(text, given.text is None)
                self._raw[i] += text
                reader = readers[i]
                said, calls = reader.push(text, given.text is None) if reader else (text, [])
                finish = completion.finish if given.text is None else None
                if finish == "stop" and reader and reader.count:
                    finish = "tool_calls"
                logprobs = completion.logprobs[seen[i] : given.tokens]
                seen[i] = given.tokens
                if said or thinking or calls or logprobs or finish:
                    yield AnswerPiece(i, said, thinking, calls, logprobs, finish)
            self._keep()
            if noting := [note for running in self.service.running.values() if (note := running.note)]:
                await self._pools.take(lambda: self._note(noting))
            if self.service.config.propose and len(self.questions[0].messages or ()) > 2:
                await self._pools.take(self._propose)
        finally:
            self.cancel()  # the client is gone

    async def whole(self, request: Request) -> list[Said]:
        """All answers; a client that leaves meanwhile cancels them."""
        found = [Said() for _ in self.completions]
        calls: list[list[CallPiece]] = [[] for _ in self.completions]
        async with calling_when_gone(self.cancel, request):
            async for piece in self.pieces():
                said = found[piece.index]
                said.text += piece.text
                said.thinking += piece.thinking
                said.logprobs += piece.logprobs
                said.finish = piece.finish or ""
                calls[piece.index] += piece.calls
        for said, parts in zip(found, calls, strict=True):
            said.calls = join(parts)
        return found

    def _thoughts(self, index: int) -> ThoughtReader | None:
        """A reader of an answer of a model that thinks, in a chat."""
        inside = self.completions[index].inside_thinking
        return None if inside is None or self._question(index).messages is None else ThoughtReader(inside)

    def _question(self, index: int) -> Question:
        for question in self.questions:
            if index < question.n:
                return question
            index -= question.n
        raise IndexError(index)

    def _prompt(self, index: int) -> AnswerPiece:
        """The prompt of an answer, as the beginning of that answer."""
        prompt = self._question(index).prompt or ""
        found = self.completions[index].prompt_logprobs
        if isinstance(prompt, str):
            return AnswerPiece(index, prompt, logprobs=spelling(found, prompt))
        return AnswerPiece(index, self.service.served.tokenizer.decode(prompt), logprobs=found)

    @staticmethod
    def _measured(question: Question, completion: Completion) -> int:
        """The number of log-probabilities of the prompt in the answer."""
        asked = question.echo and question.logprobs is not None
        return completion.prompt_tokens * (1 + (question.logprobs or 0)) if asked else 0

    def _keep(self) -> None:
        """The first answer, for feedback, which names it by its id."""
        content = self._readable(self.questions[0])
        self._recent.add(self.id, AnsweredRequest(content, self._raw[0], self.model))
        for i, answer in enumerate(self._raw):
            log_answer(self.service, self.id, self._readable(self._question(i)), answer)

    def _note(self, noting: Sequence[Callable[[Question], object]]) -> None:
        """Lets parts take note of the questions that the model answered. No other code does."""
        try:
            for question in self.questions if not self.origin else ():
                for note in noting:
                    note(question)
        except EdgetuneError as error:  # of the disk; the answer is whole all the same
            log.warning("no note is taken of a question: %s", error)

    def _propose(self) -> None:
        """Proposes a correction, where the question is one. No other code does."""
        try:
            self.service.proposals.see(self.questions[0], self._raw[0])
        except EdgetuneError as error:  # of the disk; the answer is whole all the same
            log.warning("a correction is not proposed: %s", error)

    def _readable(self, question: Question) -> dict[str, Any]:
        content = question.content
        if content.get("prompt") is not None and not isinstance(content["prompt"], str):
            content["prompt"] = self.service.served.tokenizer.decode(content["prompt"])
        return content


def check_ended(completion: Completion) -> None:
    """Raises the error of a completion that has ended, and HTTPException for one that was broken off."""
    if completion.error:
        raise completion.error
    if completion.finish == "cancelled":
        raise HTTPException(503, "the answer was broken off because the daemon stops; ask again")


def log_answer(service: Service, id: str, question: dict[str, Any], answer: str) -> None:
    """Writes a question and its answer into the log, if --log-prompts asks for it."""
    if service.config.log_prompts:
        log.info("%s: %s", id, json.dumps({**question, "answer": answer}, ensure_ascii=False))


def spelling(found: Sequence[TokenLogprob], text: str) -> list[TokenLogprob]:
    """The tokens of a prompt that was given as text. Bytes that they add before it (BOS, or a space) are removed."""
    added = sum(len(each.piece) for each in found) - len(text.encode())
    spelled = list(found)
    for i, each in enumerate(found):
        if added <= 0:
            break
        spelled[i] = replace(each, piece=each.piece[added:])
        added -= len(each.piece)
    return spelled


class AnsweredRequest(NamedTuple):
    """A request with its answer. question: messages and tools, or prompt. written: how the model writes each of the
    answers that a person may name, if it writes them otherwise.
    """

    question: dict[str, Any]
    answer: str
    model: str
    written: dict[str, str] = {}  # noqa: RUF012 - a NamedTuple copies it to no class

    def as_written(self, correction: str | None) -> str | None:
        """Returns a correction as the model would write it. Raises UsageError for one that is no option."""
        if correction is None or not self.written:
            return correction
        if (found := self.written.get(words(correction))) is None:
            raise UsageError(f"the correction is {correction!r:.80}, which is no option",
                             f"choose from {', '.join(self.written):.200}")
        return found


def name_within(id: str, question: str) -> str:
    """Returns the name by which RecentAnswers has the answer to one of a request's questions."""
    return f"{id} {question}"


class RecentAnswers:
    """The last answers by their ids, for feedback; in memory only. `count` of them, and `size` characters at most.

    They are kept as JSON: objects would take many times as much.
    """

    def __init__(self, count: int = 1000, size: int = 4 << 20) -> None:
        self.count = count
        self.size = size
        self._answers: dict[str, str] = {}
        self._characters = 0

    def add(self, id: str, answered: AnsweredRequest) -> None:
        text = json.dumps(answered)
        self._answers[id] = text
        self._characters += len(text)
        while len(self._answers) > self.count or (self._characters > self.size and len(self._answers) > 1):
            self._characters -= len(self._answers.pop(next(iter(self._answers))))

    def get(self, id: str) -> AnsweredRequest:
        """Raises NotFoundError."""
        text = self._answers.get(id)  # once: answers leave on another thread
        if text is None:
            raise NotFoundError(f"the answer {id!r:.100} is not among the last ones",
                                "send the messages (or prompt) and the answer themselves")
        return AnsweredRequest(*json.loads(text))
