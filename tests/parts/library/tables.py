"""The example of the library's route for the reference."""

from api_examples import ADAPTER, FILE, Example

EXAMPLES = [Example("POST /v1/adapters/{adapter}/questions", "Let model:auto choose it for questions like its rows.",
    f"/v1/adapters/{ADAPTER}/questions", {"file": FILE})]
