"""/v1/feedback: given, read, edited and deleted; /v1/learn begins a training, and switches learning off and on.

/v1/proposals are corrections that people made in a chat, accepted as feedback or dismissed. /v1/drawn are questions
that were drawn from all that people asked, for a person to rate.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from fastapi import APIRouter, Request
from fastapi.responses import Response, StreamingResponse
from pydantic import Field, create_model

from ...errors import UsageError
from ..keys import KeyScope
from ..kinds.feedback import NEW
from ..kinds.registry import kinds
from ..learning.items import FeedbackItem, Heading
from ..state.database import dump
from .asking import name_within
from .completions import TheService
from .errors import JSONL, RESPONSES, JsonRoute, of_type
from .fine_tuning import After, Limit, job_object, page
from .fine_tuning_schemas import JobObject
from .generation import ChatMessage
from .schemas import Deleted, Page
from .security import needs
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
    question: str | None = Field(None, description="With completion_id: the name of the question, if the request asked "
                                 "several by name.")
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


router = APIRouter(route_class=JsonRoute, responses=RESPONSES)
WHAT_IS_NEW = LearnRequest.model_validate({})  # of a request without a body
AS_PROPOSED = ProposalAccept(correction=None)


@router.post("/v1/feedback", response_model=FeedbackObject)
@needs(KeyScope.FEEDBACK)
def give_feedback(body: FeedbackRequest, request: Request, service: TheService) -> Any:
    """Gives feedback on an answer. It waits to be learned, or is held out to evaluate what is learned."""
    return heading_object(service.feedback.add(**given(body, request)).heading)


def given(body: FeedbackRequest, request: Request) -> dict[str, Any]:
    """Returns the arguments of Feedback.add. Raises UsageError if no answer is named, or two are."""
    found: dict[str, Any] = {"rating": body.rating, "correction": body.correction, "rejected": body.rejected,
                             "model": body.model or "", "expires_in": body.expires_in}
    if body.completion_id is not None:
        if body.messages is not None or body.prompt is not None or body.answer is not None:
            raise UsageError("completion_id is given, and messages, prompt or answer too", "leave one of them out")
        named = body.completion_id if body.question is None else name_within(body.completion_id, body.question)
        answered = request.app.state.recent.get(named)
        found |= {**answered.question, "answer": answered.answer, "model": answered.model,
                  "correction": answered.as_written(body.correction), "rejected": answered.as_written(body.rejected)}
    elif body.question is not None:
        raise UsageError(f"question is {body.question!r:.80} without completion_id", "give the id of the answer")
    elif (body.messages is None) == (body.prompt is None):
        raise UsageError("neither completion_id nor messages nor prompt is given, or both of the latter",
                         "name an answer by one of them")
    elif body.messages is not None:
        messages = [message.plain() for message in body.messages]
        found |= {"messages": messages, "tools": body.tools, "answer": body.answer or ""}
    else:
        found |= {"prompt": body.prompt, "answer": body.answer or ""}
    return found


@router.get("/v1/feedback", response_model=FeedbackPage)
def list_feedback(service: TheService, after: After = None, limit: Limit = 100) -> Any:
    """Lists feedback, the newest first, with the beginnings of questions and answers."""
    found = [heading_object(heading) for heading in service.feedback.headings(after, limit + 1)]
    return {**page(found, limit), "counts": service.feedback.counts()}


@router.get("/v1/feedback/rows", response_class=Response, responses=of_type(JSONL))
def export_feedback(service: TheService) -> Response:
    """Returns right answers as rows of JSON Lines, the oldest first, as `edgetune train` takes them; `rejected` is the
    wrong answer. Feedback that is set aside or withdrawn, or that expires, is left out.
    """
    return StreamingResponse((f"{dump(row)}\n" for row in service.feedback.answers()), media_type=JSONL)


@router.get("/v1/feedback/{feedback_id}", response_model=WholeFeedback)
def get_feedback(feedback_id: str, service: TheService) -> Any:
    """Returns a piece of feedback, whole."""
    return _whole(service.feedback.get(feedback_id))


@router.patch("/v1/feedback/{feedback_id}", response_model=WholeFeedback)
def edit_feedback(feedback_id: str, body: FeedbackEdit, service: TheService) -> Any:
    """Changes the correction, which then waits to be learned again."""
    return _whole(service.feedback.edit(feedback_id, body.correction))


@router.delete("/v1/feedback/{feedback_id}", response_model=DeletedFeedback)
def delete_feedback(feedback_id: str, service: TheService) -> Any:
    """Deletes a piece of feedback for good: the next job learns without it."""
    return {"id": feedback_id, "object": "feedback", "remains": service.feedback.delete(feedback_id)}


def heading_object(heading: Heading) -> dict[str, Any]:
    """Returns a piece of feedback as the API shows it in lists."""
    return {**vars(heading), "held_out": heading.held, "question": heading.asked, "answer": heading.answer or None,
            "reason": heading.reason}


def _whole(item: FeedbackItem) -> dict[str, Any]:
    return {**heading_object(item.heading), "rejected": item.rejected, "row": item.row}


@router.post("/v1/learn", response_model=JobObject)
def learn_now(service: TheService, body: LearnRequest = WHAT_IS_NEW) -> Any:
    """Begins a job that learns from feedback, or from what a field names, now."""
    asked = [name for name, is_asked in body if is_asked]
    if len(asked) > 1:
        raise UsageError(f"{asked[0]} and {asked[1]} are both given", "begin one after the other")
    return job_object(service.learner.begin(*asked or [NEW]))


@router.patch("/v1/learn", response_model=LearnState)
def switch_learning(body: LearnSwitch, service: TheService) -> Any:
    """Switches off, or on again, all that the daemon learns by itself; a restart does not change it."""
    service.learner.switch(body.on)
    state = service.learner.state()
    return {"on": state["on"], "state": state["state"]}




@router.get("/v1/proposals", response_model=ProposalList)
def list_proposals(service: TheService) -> Any:
    """Lists corrections that people made in a chat, the newest first. None is learned before it is accepted."""
    return {"data": [proposal.heading() for proposal in service.proposals.list()]}


@router.post("/v1/proposals/{proposal_id}/accept", response_model=FeedbackObject)
def accept_proposal(proposal_id: str, service: TheService, body: ProposalAccept = AS_PROPOSED) -> Any:
    """Makes feedback of a proposal: the corrected question with its right answer."""
    return heading_object(service.proposals.accept(proposal_id, body.correction).heading)


@router.delete("/v1/proposals", response_model=DeletedProposals)
def dismiss_proposals(service: TheService) -> Any:
    """Dismisses all proposals: they are deleted for good."""
    return {"count": service.proposals.clear()}


@router.delete("/v1/proposals/{proposal_id}", response_model=Deleted)
def dismiss_proposal(proposal_id: str, service: TheService) -> Any:
    """Dismisses a proposal: it is deleted for good."""
    service.proposals.dismiss(proposal_id)
    return {"id": proposal_id, "object": "proposal"}




@router.get("/v1/drawn", response_model=DrawnList)
def list_drawn(service: TheService, limit: Limit = 100) -> Any:
    """Lists drawn questions whose answers nobody rated, in the order in which they are to be rated."""
    return {"data": service.traffic.unrated(limit), "counts": service.traffic.facts()}


@router.post("/v1/drawn", response_model=FeedbackObject)
def rate_drawn(body: FeedbackRequest, request: Request, service: TheService) -> Any:
    """Rates an answer to the first question of that list that somebody can rate, as feedback. Those before it, which
    nobody can rate, count as answered right; those after it, which nobody was asked about, do not count.
    """
    item = service.feedback.add(**given(body, request))
    service.traffic.check(item.question)
    return heading_object(item.heading)


@router.delete("/v1/drawn", response_model=DeletedDrawn)
def delete_drawn(service: TheService) -> Any:
    """Deletes all drawn questions for good. They stay held out, by their digests."""
    return {"count": service.traffic.clear()}
