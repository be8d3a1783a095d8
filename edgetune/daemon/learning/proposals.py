"""Corrections that people made in the chat itself, such as "no, I meant the kitchen". None is learned unasked.

They are found by patterns (`data.remarks`) in a request whose last messages are a question, an answer and a remark.
A person confirms a proposal, perhaps with other words, and it becomes feedback; or dismisses it. A proposal holds a
conversation. It is stored where the daemon may keep prompts, and else in memory, until the daemon ends.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ...data.question import content_text, digest
from ...data.remarks import Remark, remark_of
from ...errors import DataError, FormatError, NotFoundError, UsageError
from ...evaluation.judge import is_json
from ...persisted import from_json
from ...serving.question import Question
from ..state.database import Store, dump, now
from .feedback import Feedback
from .items import SHOWN, FeedbackItem

MOST = 200  # proposals; the oldest leave first
LARGEST = 16 << 10  # bytes of a proposal as JSON


@dataclass(frozen=True)
class Proposal:
    """A proposed correction. messages: the conversation up to the question. answer: the one that was corrected by the
    remark. correction: what may be right: what the remark states, or else the answer that followed it. follows: the
    latter, which is wrong too if it is corrected in turn.
    """

    id: str
    created_at: int
    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]] | None
    answer: str
    remark: str
    correction: str
    follows: bool

    @property
    def asked(self) -> str:
        """Returns the question."""
        return content_text(self.messages[-1].get("content"))

    def heading(self) -> dict[str, Any]:
        """Returns it without the conversation, for lists; long texts are cut."""
        texts = {"question": self.asked, "answer": self.answer, "remark": self.remark}
        return {"id": self.id, "created_at": self.created_at, "correction": self.correction,
                **{name: text[:SHOWN] for name, text in texts.items()}}


class Proposals:
    """The proposals of a service. stores: whether those of requests that allow it are stored. For any thread."""

    def __init__(self, store: Store, feedback: Feedback, stores: bool) -> None:
        self.store = store
        self.feedback = feedback
        self.stores = stores
        self._lock = threading.Lock()
        self._here: dict[str, Proposal] = {}  # those in memory
        if not stores and store.read("SELECT 1 FROM proposals LIMIT 1"):
            self.clear()

    def see(self, question: Question, answer: str) -> Proposal | None:
        """Proposes a correction if the last message of a chat is one. answer: what the service answered to it."""
        messages = [dict(message) for message in question.messages or ()]
        corrected = _corrected(messages)
        if corrected is None:
            return None
        wrong, remark = corrected
        self._forget_refuted(messages)
        follows = not remark.right or (is_json(wrong) and not is_json(remark.right))
        said = content_text(messages[-1].get("content"))
        proposal = Proposal(_id_of(messages), now(), messages[:-2], [*map(dict, question.shown_tools or ())] or None,
                            wrong, said, answer.strip() if follows else remark.right, follows)
        try:
            written = dump(_columns(proposal))
        except (TypeError, ValueError, RecursionError):
            return None
        if len(written) > LARGEST:
            return None
        self._keep(proposal, self.stores and question.may_be_kept)
        return proposal

    def list(self) -> Sequence[Proposal]:
        """Returns all proposals, the newest first."""
        with self._lock:
            here = list(self._here.values())
        stored = self.store.objects("proposals", self.store.read("SELECT * FROM proposals"), _read)
        return sorted([*stored, *here], key=lambda each: (-each.created_at, each.id))

    def count(self) -> int:
        """Returns how many there are, without reading them."""
        ((stored,),) = self.store.read("SELECT count(*) FROM proposals")
        return int(stored) + len(self._here)

    def get(self, id: str) -> Proposal:
        """Returns a proposal. Raises NotFoundError."""
        found = next((each for each in self.list() if each.id == id), None)
        if found is None:
            raise NotFoundError(f"there is no proposal {id!r:.80}", "list them to see which wait")
        return found

    def accept(self, id: str, correction: str | None = None) -> FeedbackItem:
        """Makes feedback of a proposal, which then is gone. correction: the right answer, if it is another one. Raises
        NotFoundError, and the errors of Feedback.add.
        """
        proposal = self.get(id)
        right = proposal.correction if correction is None else correction
        if not right.strip():
            raise UsageError("the proposal has no right answer yet", "send it as correction")
        item = self.feedback.add(messages=proposal.messages, tools=proposal.tools, answer=proposal.answer,
                                 correction=right)
        self._delete(proposal.id)
        return item

    def dismiss(self, id: str) -> None:
        """Deletes a proposal permanently. Raises NotFoundError."""
        self._delete(self.get(id).id)

    def clear(self) -> int:
        """Deletes all proposals permanently; returns how many there were."""
        count = self.count()
        with self._lock:
            self._here.clear()
        with self.store.write() as db:
            ids = [id for (id,) in db.execute("SELECT id FROM proposals").fetchall()]
            db.execute("DELETE FROM proposals")
        for id in ids:  # damaged ones too
            self.store.forget("proposals", id)
        self.store.wipe()
        return count

    # ---- where they are -----------------------------------------------------------------------------------------

    def _keep(self, proposal: Proposal, is_stored: bool) -> None:
        self._delete(proposal.id)  # the same remark, answered again
        if not is_stored:
            with self._lock:
                self._here[proposal.id] = proposal
                while len(self._here) > MOST:
                    del self._here[next(iter(self._here))]
            return
        with self.store.write() as db:
            db.execute("INSERT OR REPLACE INTO proposals (id, created_at, row) VALUES (?, ?, ?)",
                       (proposal.id, proposal.created_at, dump(_columns(proposal))))
            db.execute("DELETE FROM proposals WHERE rowid NOT IN (SELECT rowid FROM proposals ORDER BY rowid DESC "
                       "LIMIT ?)", (MOST,))

    def _forget_refuted(self, messages: Sequence[Mapping[str, Any]]) -> None:
        """Forgets the proposal that the corrected answer was right, which the earlier remark of a chat had made."""
        if len(messages) < 3:
            return
        earlier = _id_of(messages[:-2])
        if any(each.id == earlier and each.follows for each in self.list()):
            self._delete(earlier)

    def _delete(self, id: str) -> None:
        with self._lock:
            self._here.pop(id, None)
        if not self.store.read("SELECT 1 FROM proposals WHERE id = ?", id):
            return
        with self.store.write() as db:
            db.execute("DELETE FROM proposals WHERE id = ?", (id,))
        self.store.forget("proposals", id)
        self.store.wipe()


def _corrected(messages: Sequence[Mapping[str, Any]]) -> tuple[str, Remark] | None:
    """(the answer, the remark that corrects it) at the end of a chat."""
    if [message.get("role") for message in messages[-3:]] != ["user", "assistant", "user"]:
        return None
    if messages[-2].get("tool_calls"):
        return None
    answer = content_text(messages[-2].get("content"))
    remark = remark_of(answer, content_text(messages[-1].get("content")))
    return (answer, remark) if remark and answer.strip() else None


def _id_of(messages: Sequence[Mapping[str, Any]]) -> str:
    """The same for the same conversation up to a remark."""
    try:
        return f"prop-{digest([dict(message) for message in messages])[:24]}"
    except DataError:
        return "prop-"


def _columns(proposal: Proposal) -> dict[str, Any]:
    return {name: value for name, value in vars(proposal).items() if name not in ("id", "created_at")}


def _read(columns: dict[str, Any]) -> Proposal:
    row = json.loads(columns.pop("row"))
    if not isinstance(row, dict) or not row.get("messages"):
        raise FormatError("a proposal has no messages")
    return from_json(Proposal, {**columns, **row}, "the row")
