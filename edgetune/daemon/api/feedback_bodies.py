"""Schemas of feedback, and of learning from it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, create_model

from ..kinds.registry import kinds
from .generation import ChatMessage
from .schemas import Deleted, Page
from .shapes import Answer, Body, Id, Time, Whole


class FeedbackRequest(Body):
    """Feedback on an answer: a correction, a thumb, or a worse answer to the same question.

    Name the answer by exactly one of completion_id, messages and prompt.
    """

    completion_id: str | None = Field(None, description="The id of an answer of this daemon. It knows the last 1,000 "
                                      "(4 MiB at most), until it restarts; after that give the question.")
    messages: list[ChatMessage] | None = Field(None, description="The question, as a conversation.")
    tools: list[dict[str, Any]] | None = Field(None, description="The tools of that question; with messages.")
    prompt: str | None = Field(None, description="The question, as one text.")
    answer: str | None = Field(None, description="The answer that was given; with rejected, the better one of two. Not "
                                                 "with completion_id, which knows it.")
    rating: Literal["up", "down"] | None = Field(None, description="up: the answer is right, and is learned; down: it "
                                                 "is wrong.")
    correction: str | None = Field(None, description="The right answer: this is learned.")
    rejected: str | None = Field(None, description="A worse answer to the same question.")
    model: str | None = Field(None, description="The model that answered. Not used with completion_id.")
    expires_in: Whole | None = Field(None, description="Seconds for which the right answer holds: it is recalled "
                                   "so long, and never learned. For facts that change, such as today's menu [for "
                                   "ever].")


class FeedbackObject(Answer):
    """A piece of feedback."""

    id: Id
    object: Literal["feedback"] = "feedback"
    created_at: Time
    rating: Literal["up", "down"] | None = Field(description="The thumb; null: there was none.")
    model: str = Field(description="The model that answered.")
    learns: bool = Field(description="Whether the daemon's method can learn from it.")
    state: Literal["new", "used", "aside", "withdrawn", "counted"] = Field(
        description="What became of it: see the table of states.")
    held_out: bool = Field(description="true: it is held out, and evaluates what is learned; it is never learned.")
    job: str | None = Field(description="The job that took it.")
    question: str | None = Field(description="The last question; in lists its first 300 characters.")
    answer: str | None = Field(description="The right answer, or the better of two; in lists its beginning; null: none "
                                           "is known.")
    rejected: str | None = Field(description="The wrong answer, or the worse of two; in lists its beginning.")
    expires_at: Time | None = Field(description="When it counts for nothing any more; null: never.")
    reason: str = Field(description="What becomes of it, in a sentence.")


class WholeFeedback(FeedbackObject):
    """A piece of feedback with its row."""

    row: dict[str, Any] | None = Field(description="The row to learn, whole; its answer is empty where no right one is "
                                       "known.")


class FeedbackEdit(Body):
    """Another correction."""

    correction: str = Field(description="The right answer.")


class FeedbackToLearn(Body):
    """What to learn. Without a field: the feedback that is new."""

    all: bool = Field(False, description="Learn all feedback again, as if it were new.")


if TYPE_CHECKING:
    LearnRequest = FeedbackToLearn
else:
    LearnRequest = create_model(
        "LearnRequest", __base__=FeedbackToLearn, __doc__=FeedbackToLearn.__doc__,
        **{name: (bool, Field(False, description=f"Learn from {name} instead."))
           for kind in kinds().values() for name in kind.starts})


class LearnSwitch(Body):
    """Whether the daemon may learn by itself."""

    on: bool = Field(description="false: it learns nothing by itself, and what it learns now is paused; true: that is "
                     "resumed.")


class LearnState(Answer):
    """Whether the daemon learns by itself."""

    object: Literal["learning"] = "learning"
    on: bool = Field(description="Whether it may.")
    state: str = Field(description="Why no job begins now, or which one runs.")


class DeletedFeedback(Deleted):
    """What was deleted, and what remains of it."""

    remains: str = Field(description="The jobs or adapters that still have it, in a sentence; empty: none.")


class FeedbackPage(Page[FeedbackObject]):
    """A list of feedback, the newest first."""

    counts: dict[str, int] = Field(description="Rows by state: new and used (to learn), held (held out), aside, "
                                               "withdrawn.")


class ProposalObject(Answer):
    """A correction that somebody made in a chat, which waits for somebody to accept it."""

    id: Id
    object: Literal["proposal"] = "proposal"
    created_at: Time
    question: str = Field(description="The question, or its first 300 characters.")
    answer: str = Field(description="The answer that the remark corrects, likewise.")
    remark: str = Field(description="The remark, such as \"no, I meant the kitchen\".")
    correction: str = Field(description="What may be right: what the remark states, or else the answer that followed.")


class ProposalList(Answer):
    """All proposals, the newest first."""

    object: Literal["list"] = "list"
    data: list[ProposalObject] = Field(description="The proposals.")


class ProposalAccept(Body):
    """The right answer, if it is not the proposed one."""

    correction: str | None = Field(None, description="The right answer. Without it, the proposed one is right.")


class DeletedProposals(Answer):
    """The number of proposals that were deleted."""

    object: Literal["list"] = "list"
    count: int = Field(description="Proposals that were deleted.")


class DrawnList(Answer):
    """Drawn questions that nobody rated, in the order of a check."""

    object: Literal["list"] = "list"
    data: list[dict[str, Any]] = Field(description="Rows of messages, with tools, or of a prompt.")
    counts: dict[str, int] = Field(description="days: for which a question is kept; kept: all drawn questions; "
                                               "unrated: those that nobody rated; checked: those that checks "
                                               "reached, if these decide, else 0.")


class DeletedDrawn(Answer):
    """The number of drawn questions that were deleted."""

    object: Literal["list"] = "list"
    count: int = Field(description="Questions that were deleted.")
