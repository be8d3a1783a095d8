"""The tutor in the tables of the API: options of a daemon that keeps prompts, and examples."""

from pathlib import Path

from api_examples import FILE, Story


def keeping(model, folder):  # noqa: ARG001 (as of all parts)
    """Options of a daemon that keeps prompts."""
    return {"keep_prompts": 100}


def tell(story: Story) -> None:
    prompt = story("GET /v1/prompts", query="?limit=1",
                   show="data id question counts kept new")["data"][0]["id"]
    story("GET /v1/prompts/{prompt_id}", prompt_id=prompt, show="id row messages role content")
    story("DELETE /v1/prompts/{prompt_id}", prompt_id=prompt)
    story("DELETE /v1/prompts")


OPTIONS = (keeping,)
TELLS = [(Path(__file__).with_name(FILE), tell)]
