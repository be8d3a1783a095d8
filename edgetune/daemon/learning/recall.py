"""Corrections that answer: an exact repeat of a question gets its correction as answer, until a training has learned
it.

The newest feedback on exactly this question, its messages and its tools, counts, unless the request allows variety. The
base alone, and adapters by their names, answer for themselves. If the gate found that the active adapter has not
learned a correction, it is still recalled. One row is read, by the digest of its question.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, ClassVar

from ...data.question import digest, question_digest
from ...errors import DataError, FormatError, NotFoundError, UsageError
from ...serving.completion import Completion, OnPiece
from ...serving.served import Served
from ..jobs.exam import read_scores
from ..sources import AskedQuestion
from ..state.adapters import Adapters
from .curriculum import as_conversation
from .feedback import Feedback
from .items import FeedbackItem, item_of
from .kinds import HAS_ANSWER
from .rows import answer_of, make_row

LATEST_WORD = f"""SELECT * FROM feedback WHERE question = ? AND row IS NOT NULL AND {HAS_ANSWER}
                  AND state != 'withdrawn' ORDER BY rowid DESC LIMIT 1"""
LEARNED_BY = """SELECT 1 FROM feedback WHERE id = ? AND rowid <= (SELECT max(rowid) FROM feedback
                WHERE state = 'used' AND job = (SELECT job FROM adapters WHERE id = ?))"""


class Recall:
    """The corrections of a service's feedback as answers. models: the names of models that recall them; others answer
    for themselves. imitates: whether the service's method learns to say right answers, or only that they are better
    than others. For any number of threads.
    """

    name: ClassVar[str] = "recall"

    def __init__(self, feedback: Feedback, adapters: Adapters, served: Served, models: Collection[str],
                 imitates: bool = True) -> None:
        self.feedback = feedback
        self.models = models
        self.imitates = imitates
        self.store = feedback.store
        self.adapters = adapters
        self.served = served

    def answer(self, asked: AskedQuestion) -> Completion | None:
        """Returns the correction of exactly this question, or None. Raises the errors of Batcher.submit."""
        if not asked.content or asked.model not in self.models:
            return None
        return self._recalled(asked.content, asked.prompt, **asked.options)

    def _recalled(self, question: Mapping[str, Any], text: str | Sequence[int], *, max_tokens: int = 256,
                  stop: str | Iterable[str] = (), seed: int | None = None, temperature: float = 0.0,
                  on_piece: OnPiece | None = None, **sampling: Any) -> Completion | None:
        """Returns the recalled answer, or None. The options are those of Batcher.submit. A temperature above 0 requires
        variety, and an answer that a stop string or `max_tokens` would cut is no correction.
        """
        if temperature != 0 or (item := self.find(question)) is None:
            return None
        assert item.row is not None
        answer = answer_of(item.row)
        tokens = self.served.count(answer)
        stops = [stop] if isinstance(stop, str) else [*stop]
        request = self.served.prepare(text, max_tokens, stops, temperature=temperature, seed=seed or 0, **sampling)
        if tokens > request.budget or any(each in answer for each in stops):
            return None
        made = Completion(self.adapters.serving, len(request.tokens), wake=lambda: None, on_piece=on_piece)
        made.details = {"recalled": item.id}
        made.completion_tokens = tokens
        made.end("stop", answer)
        return made

    def find(self, question: Mapping[str, Any]) -> FeedbackItem | None:
        """Returns the newest feedback on a question, unless the active adapter has learned it, or it was set aside."""
        try:
            row = make_row(question.get("messages"), question.get("prompt"), "", question.get("tools"))
            name = question_digest(row, by_shape=True)
        except (DataError, UsageError, TypeError, ValueError, RecursionError):  # no feedback could match it
            return None
        found = self.store.objects("feedback", self.store.read(LATEST_WORD, name), item_of)
        if not found or found[0].state == "aside" or self._is_learned(found[0]):
            return None
        assert found[0].row is not None
        return found[0] if found[0].row.get("tools") == row.get("tools") else None

    def _is_learned(self, item: FeedbackItem) -> bool:
        """Returns whether the active adapter has learned an item: all that was learned before, nothing held out."""
        serving = self.adapters.serving
        if serving is None or item.held or item.state != "used":
            return False
        return bool(self.store.read(LEARNED_BY, item.id, serving)) and self._says_it(item, serving)

    def _says_it(self, item: FeedbackItem, serving: str) -> bool:
        """Returns whether the active adapter gives this answer: by its score in the gate, else as it imitated it."""
        assert item.row is not None
        try:
            scores = read_scores(self.adapters.get(serving).verdict.get("scores", {}))
        except (NotFoundError, FormatError):  # deleted meanwhile; of another version
            return True
        asked = [score for row in (item.row, as_conversation(item.row)) if (score := scores.get(digest(row)))]
        if not asked:
            return self.imitates
        return not any(score.right is False and not score.prose for score in asked)
