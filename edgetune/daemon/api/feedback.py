"""/v1/feedback: given, read, edited and deleted; /v1/learn begins a training, and switches learning off and on;
/v1/prompts: those that the daemon keeps are listed, shown and deleted.
"""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request

from ...errors import UsageError
from ..kinds.feedback import ALL, NEW
from ..kinds.tutor import PROMPTS
from ..learning.items import FeedbackItem, Heading
from ..learning.prompts import KeptPrompt
from ..service import Service
from . import feedback_bodies as bodies
from .completions import TheService
from .errors import RESPONSES, JsonRoute
from .fine_tuning import After, Limit, job_object, page
from .schemas import Job

router = APIRouter(route_class=JsonRoute, responses=RESPONSES)
WHAT_IS_NEW = bodies.LearnRequest(all=False, prompts=False)  # of a request without a body


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
    """Begins a job that learns from feedback, or from kept prompts, now."""
    if body.all and body.prompts:
        raise UsageError("all and prompts are both given", "begin one after the other")
    return job_object(service.learner.begin(PROMPTS if body.prompts else ALL if body.all else NEW))


@router.patch("/v1/learn", response_model=bodies.LearnState)
def switch_learning(body: bodies.LearnSwitch, service: TheService) -> Any:
    """Switches off, or on again, all that the daemon learns by itself; a restart does not change it."""
    service.learner.switch(body.on)
    state = service.learner.state()
    return {"on": state["on"], "state": state["state"]}


@router.get("/v1/prompts", response_model=bodies.PromptPage)
def list_prompts(service: TheService, after: After = None, limit: Limit = 100) -> Any:
    """Lists the kept prompts, the newest first, with their beginnings."""
    found = [_prompt(prompt) for prompt in service.prompts.list(after, limit + 1)]
    return {**page(found, limit), "counts": service.prompts.counts()}


@router.get("/v1/prompts/{prompt_id}", response_model=bodies.WholePrompt)
def get_prompt(prompt_id: str, service: TheService) -> Any:
    """Returns a kept prompt, whole."""
    return _prompt(service.prompts.get(prompt_id))


@router.delete("/v1/prompts", response_model=bodies.DeletedPrompts)
def delete_prompts(service: TheService) -> Any:
    """Deletes all kept prompts for good."""
    return {"count": service.prompts.clear(), "remains": _remains(service)}


@router.delete("/v1/prompts/{prompt_id}", response_model=bodies.DeletedFeedback)
def delete_prompt(prompt_id: str, service: TheService) -> Any:
    """Deletes a kept prompt for good: no job that begins later asks it."""
    service.prompts.delete(prompt_id)
    return {"id": prompt_id, "object": "prompt", "remains": _remains(service)}


def _remains(service: Service) -> str:
    """Says which job still uses deleted prompts; "": none."""
    job = service.learner.unfinished(PROMPTS)
    return f"{job} is not finished and may ask them yet; cancel it to be rid of them at once" if job else ""


def _prompt(prompt: KeptPrompt) -> dict[str, Any]:
    return {**vars(prompt), "question": prompt.asked}
