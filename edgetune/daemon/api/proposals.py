"""/v1/proposals: corrections that people made in a chat, listed, accepted as feedback, and dismissed."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter

from . import feedback_bodies as bodies
from .completions import TheService
from .errors import RESPONSES, JsonRoute
from .feedback import heading_object
from .schemas import Deleted

router = APIRouter(route_class=JsonRoute, responses=RESPONSES)
AS_PROPOSED = bodies.ProposalAccept(correction=None)  # of a request without a body


@router.get("/v1/proposals", response_model=bodies.ProposalList)
def list_proposals(service: TheService) -> Any:
    """Lists corrections that people made in a chat, the newest first. None is learned before it is accepted."""
    return {"data": [proposal.heading() for proposal in service.proposals.list()]}


@router.post("/v1/proposals/{proposal_id}/accept", response_model=bodies.FeedbackObject)
def accept_proposal(proposal_id: str, service: TheService, body: bodies.ProposalAccept = AS_PROPOSED) -> Any:
    """Makes feedback of a proposal: the corrected question with its right answer."""
    return heading_object(service.proposals.accept(proposal_id, body.correction).heading)


@router.delete("/v1/proposals", response_model=bodies.DeletedProposals)
def dismiss_proposals(service: TheService) -> Any:
    """Dismisses all proposals: they are deleted for good."""
    return {"count": service.proposals.clear()}


@router.delete("/v1/proposals/{proposal_id}", response_model=Deleted)
def dismiss_proposal(proposal_id: str, service: TheService) -> Any:
    """Dismisses a proposal: it is deleted for good."""
    service.proposals.dismiss(proposal_id)
    return {"id": proposal_id, "object": "proposal"}
