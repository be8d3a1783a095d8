"""The tutor in the tables of the API: options of a daemon that keeps prompts, and examples."""

from api_examples import AT, Example


def keeping(model, folder):  # noqa: ARG001 (as of all parts)
    """Options of a daemon that keeps prompts."""
    return {"keep_prompts": 100}


OPTIONS = (keeping,)
EXAMPLES = (
    Example("GET /v1/prompts", "See the newest kept prompt.", "/v1/prompts?limit=1", answer={
        "object": "list", "data": [{"id": "prompt-e02a", "object": "prompt", "created_at": AT,
                                    "question": "switch the lamp off", "job": None}],
        "has_more": False, "counts": {"kept": 1, "new": 1, "most": 100}}),
    Example("DELETE /v1/prompts", "Delete them.", answer={"object": "list", "count": 1, "remains": ""}),
)
