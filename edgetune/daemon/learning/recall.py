"""Corrections that answer: an exact repeat of a question gets its correction as answer, until a training has learned
it.

The newest feedback on exactly this question, its messages and its tools, counts, unless the request allows variety. The
base alone, and adapters by their names, answer for themselves. If the gate found that the active adapter has not
learned a correction, it is still recalled. One row is read, by the digest of its question.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, ClassVar

from ...data.question import digest, question_digest
from ...errors import DataError, FormatError, NotFoundError, UsageError
from ...serving.completion import Completion
from ...serving.served import Served
from ..jobs.exam import read_scores
from ..sources import RECALL, AskedQuestion, whole_answer
from ..state.adapters import Adapters
from ..state.database import now
from .curriculum import as_conversation
from .feedback import Feedback
from .items import FeedbackItem, answer_of, item_of, make_row
from .row_kinds import HAS_ANSWER

NEWEST = """SELECT * FROM feedback WHERE question = ? AND row IS NOT NULL AND {} AND state != 'withdrawn'
            AND (expires_at IS NULL OR expires_at > ?) ORDER BY rowid DESC LIMIT 1"""
LEARNED_BY = """SELECT 1 FROM feedback WHERE id = ? AND rowid <= (SELECT max(rowid) FROM feedback
                WHERE state = 'used' AND job = (SELECT job FROM adapters WHERE id = ?))"""


class Recall:
    """The corrections of a service's feedback as answers. models: the names of models that recall them; others answer
    for themselves. imitates: whether the service's method learns to say right answers, or only that they are better
    than others. For any number of threads.
    """

    name: ClassVar[str] = "recall"
    place: ClassVar[int] = RECALL

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
        if not self.serves(asked) or (item := self.find(asked.content)) is None:
            return None
        return self.completion(item, asked)

    def serves(self, asked: AskedQuestion) -> bool:
        """Returns whether corrections may answer a question: an answer with variety must be the model's."""
        return bool(asked.content) and asked.model in self.models and asked.options.get("temperature", 0) == 0

    def completion(self, item: FeedbackItem, asked: AskedQuestion, **details: float) -> Completion | None:
        """Returns a correction as an answer; errors and None as of `whole_answer`."""
        return whole_answer(item.answer, asked, self.served, self.adapters.serving, {"recalled": item.id, **details})

    def find(self, question: Mapping[str, Any]) -> FeedbackItem | None:
        """Returns the newest correction of a question, if it counts."""
        found = self._newest(question, HAS_ANSWER)
        return found if found is not None and self.counts(found) else None

    def counts(self, item: FeedbackItem) -> bool:
        """Returns whether a correction is still needed: not where the active adapter has learned it, or it was set
        aside.
        """
        return item.state != "aside" and not self._is_learned(item)

    def newest(self, name: str) -> FeedbackItem | None:
        """Returns the newest correction of the question with this digest, without tools, whether it counts or not."""
        found = self.store.objects("feedback", self.store.read(NEWEST.format(HAS_ANSWER), name, now()), item_of)
        return found[0] if found and found[0].row and "tools" not in found[0].row else None

    def is_disputed(self, question: Mapping[str, Any], answer: str) -> bool:
        """Returns whether the newest feedback on a question says that an answer is wrong."""
        if (found := self._newest(question)) is None:
            return False
        assert found.row is not None
        right = answer_of(found.row)
        return right != answer if right else found.rejected == answer

    def _newest(self, question: Mapping[str, Any], condition: str = "TRUE") -> FeedbackItem | None:
        """Returns the newest feedback on a question that meets a condition of the table."""
        try:
            row = make_row(question.get("messages"), question.get("prompt"), "", question.get("tools"))
            name = question_digest(row, by_shape=True)
        except (DataError, UsageError, TypeError, ValueError, RecursionError):  # no feedback could match it
            return None
        found = self.store.objects("feedback", self.store.read(NEWEST.format(condition), name, now()),
                                   item_of)
        if not found or found[0].row is None or found[0].row.get("tools") != row.get("tools"):
            return None
        return found[0]

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
