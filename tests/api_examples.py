"""Requests that docs/reference/http-api.md shows, and tests/daemon/test_api_examples.py puts to a daemon."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

ANSWER = "chatcmpl-5f0c"  # an id in the examples; a test replaces it by that of a real answer
FEEDBACK = "fb-12"
JOB = "ftjob-21b5"
FILE = "file-7a31"
LAMP = '{"device":"lamp","action":"off"}'
GRADER = {"type": "string_check", "name": "city", "operation": "ilike", "input": "{{ sample.output_text }}",
          "reference": "{{ item.city }}"}


@dataclass(frozen=True)
class Example:
    """A request. route: as the reference has it; path: the same with its ids; what: what it does."""

    route: str
    what: str
    path: str = ""
    body: dict[str, Any] | None = None

    @property
    def method(self) -> str:
        return self.route.split()[0]

    @property
    def asked(self) -> str:
        return self.path or self.route.split()[1]


ASK = [{"role": "user", "content": "switch the lamp off"}]
EXAMPLES = [
    Example("POST /v1/chat/completions", "Ask the base and its active adapter.",
            body={"model": "model:latest", "messages": ASK, "max_tokens": 40}),
    Example("POST /v1/chat/completions", "Get JSON of a form.", body={
        "messages": ASK, "max_tokens": 40, "response_format": {"type": "json_schema", "json_schema": {
            "name": "lamp", "schema": {"type": "object", "properties": {"on": {"type": "boolean"}},
                                       "required": ["on"]}}}}),
    Example("POST /v1/completions", "Continue a text.", body={"prompt": "The lamp is", "max_tokens": 8}),
    Example("POST /v1/responses", "Ask by OpenAI's newer API.",
            body={"input": "switch the lamp off", "max_output_tokens": 40}),
    Example("POST /v1/embeddings", "Get the vectors of two texts.", body={"input": ["lamp off", "it is dark"]}),
    Example("POST /v1/fine_tuning/jobs", "Train on an uploaded file of rows.", body={
        "model": "model", "training_file": FILE, "suffix": "home",
        "method": {"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": "auto"}}}}),
    Example("POST /v1/fine_tuning/jobs/{job}/cancel", "Stop a job.", f"/v1/fine_tuning/jobs/{JOB}/cancel"),
    Example("POST /v1/fine_tuning/alpha/graders/run", "Grade one answer.",
            body={"grader": GRADER, "model_sample": "It is Oslo.", "item": {"city": "Oslo"}}),
    Example("POST /v1/feedback", "Correct an answer by its id.",
            body={"completion_id": ANSWER, "correction": LAMP}),
    Example("POST /v1/feedback", "Say that an answer is right.", body={"completion_id": ANSWER, "rating": "up"}),
    Example("POST /v1/feedback", "Say which of two answers is better.",
            body={"prompt": "lamp on", "answer": "The lamp is on.", "rejected": "Lamp."}),
    Example("PATCH /v1/feedback/{feedback_id}", "Change a correction.", f"/v1/feedback/{FEEDBACK}",
            {"correction": LAMP}),
    Example("DELETE /v1/feedback/{feedback_id}", "Delete it.", f"/v1/feedback/{FEEDBACK}"),
    Example("POST /v1/learn", "Train now on what was given since the last training.", body={}),
    Example("POST /api/chat", "Ask as Ollama's clients do.",
            body={"model": "model", "messages": ASK, "stream": False, "options": {"num_predict": 40}}),
]
