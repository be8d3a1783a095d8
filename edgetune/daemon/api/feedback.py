"""/v1/feedback: given, read, edited and deleted; /v1/learn begins a training, and switches learning off and on."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request

from ...errors import UsageError
from ..kinds.feedback import NEW
from ..learning.items import FeedbackItem, Heading
from . import feedback_bodies as bodies
from .completions import TheService
from .errors import RESPONSES, JsonRoute
from .fine_tuning import After, Limit, job_object, page
from .schemas import Job

router = APIRouter(route_class=JsonRoute, responses=RESPONSES)
WHAT_IS_NEW = bodies.LearnRequest.model_validate({})  # of a request without a body


@router.post("/v1/feedback", response_model=bodies.FeedbackObject)
def give_feedback(body: bodies.FeedbackRequest, request: Request, service: TheService) -> Any:
    """Gives feedback on an answer. It waits to be learned, or is held out to evaluate what is learned."""
    return heading_object(service.feedback.add(**given(body, request)).heading)


def given(body: bodies.FeedbackRequest, request: Request) -> dict[str, Any]:
    """Returns the arguments of Feedback.add. Raises UsageError if no answer is named, or two are."""
    found: dict[str, Any] = {"rating": body.rating, "correction": body.correction, "rejected": body.rejected,
                             "model": body.model or "", "expires_in": body.expires_in}
    if body.completion_id is not None:
        if body.messages is not None or body.prompt is not None or body.answer is not None:
            raise UsageError("completion_id is given, and messages, prompt or answer too", "leave one of them out")
        answered = request.app.state.recent.get(body.completion_id)
        found |= {**answered.question, "answer": answered.answer, "model": answered.model}
    elif (body.messages is None) == (body.prompt is None):
        raise UsageError("neither completion_id nor messages nor prompt is given, or both of the latter",
                         "name an answer by one of them")
    elif body.messages is not None:
        messages = [message.plain() for message in body.messages]
        found |= {"messages": messages, "tools": body.tools, "answer": body.answer or ""}
    else:
        found |= {"prompt": body.prompt, "answer": body.answer or ""}
    return found


@router.get("/v1/feedback", response_model=bodies.FeedbackPage)
def list_feedback(service: TheService, after: After = None, limit: Limit = 100) -> Any:
    """Lists feedback, the newest first, with the beginnings of questions and answers."""
    found = [heading_object(heading) for heading in service.feedback.headings(after, limit + 1)]
    return {**page(found, limit), "counts": service.feedback.counts()}


@router.get("/v1/feedback/{feedback_id}", response_model=bodies.WholeFeedback)
def get_feedback(feedback_id: str, service: TheService) -> Any:
    """Returns a piece of feedback, whole."""
    return _whole(service.feedback.get(feedback_id))


@router.patch("/v1/feedback/{feedback_id}", response_model=bodies.WholeFeedback)
def edit_feedback(feedback_id: str, body: bodies.FeedbackEdit, service: TheService) -> Any:
    """Changes the correction, which then waits to be learned again."""
    return _whole(service.feedback.edit(feedback_id, body.correction))


@router.delete("/v1/feedback/{feedback_id}", response_model=bodies.DeletedFeedback)
def delete_feedback(feedback_id: str, service: TheService) -> Any:
    """Deletes a piece of feedback for good: the next job learns without it."""
    return {"id": feedback_id, "object": "feedback", "remains": service.feedback.delete(feedback_id)}


def heading_object(heading: Heading) -> dict[str, Any]:
    """Returns a piece of feedback as the API shows it in lists."""
    return {**vars(heading), "held_out": heading.held, "question": heading.asked, "answer": heading.answer or None,
            "reason": heading.reason}


def _whole(item: FeedbackItem) -> dict[str, Any]:
    return {**heading_object(item.heading), "rejected": item.rejected, "row": item.row}


@router.post("/v1/learn", response_model=Job)
def learn_now(service: TheService, body: bodies.LearnRequest = WHAT_IS_NEW) -> Any:
    """Begins a job that learns from feedback, or from what a field names, now."""
    asked = [name for name, is_asked in body if is_asked]
    if len(asked) > 1:
        raise UsageError(f"{asked[0]} and {asked[1]} are both given", "begin one after the other")
    return job_object(service.learner.begin(*asked or [NEW]))


@router.patch("/v1/learn", response_model=bodies.LearnState)
def switch_learning(body: bodies.LearnSwitch, service: TheService) -> Any:
    """Switches off, or on again, all that the daemon learns by itself; a restart does not change it."""
    service.learner.switch(body.on)
    state = service.learner.state()
    return {"on": state["on"], "state": state["state"]}
