"""Requests with their answers that docs/reference/http-api.md shows; tests/daemon/test_api_examples.py puts each to a
daemon, and compares the shape of the answer."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from part_tables import of_parts

ANSWER = "chatcmpl-5f0c"  # ids in the examples; a test replaces them by those of things that exist
FEEDBACK = "fb-7c1e"
JOB = "ftjob-21b5"
FILE = "file-7a31"
ADAPTER = "ft:model:home:1ad45f30"
LAMP = '{"device":"lamp","action":"off"}'
WRONG = '{"device":"lamp","action":"on"}'
ASK = [{"role": "user", "content": "switch the lamp off"}]
GRADER = {"type": "string_check", "name": "city", "operation": "ilike", "input": "{{ sample.output_text }}",
          "reference": "{{ item.city }}"}
SCHEMA = {"type": "object", "properties": {"on": {"type": "boolean"}}, "required": ["on"]}
ROW = '{"prompt": "lamp on", "completion": "on"}\n'
AT = 1767182400


@dataclass(frozen=True)
class Example:
    """A request. route: as the reference has it; path: the same with its ids; answer: some of its fields, with values
    of another time; None: it is no JSON, or stands with another route. of_encoder: the daemon's model must be one.
    """

    route: str
    what: str
    path: str = ""
    body: Any = None
    answer: Any = None
    is_upload: bool = False
    sends: str = "rows.jsonl"  # the file of an upload
    of_encoder: bool = False

    @property
    def method(self) -> str:
        return self.route.split()[0]

    @property
    def asked(self) -> str:
        return self.path or self.route.split()[1]


USAGE = {"prompt_tokens": 31, "completion_tokens": 12, "total_tokens": 43,
         "prompt_tokens_details": {"cached_tokens": 16}}
JOB_OBJECT = {
    "id": JOB, "object": "fine_tuning.job", "created_at": AT, "status": "queued", "origin": "api", "model": "model",
    "fine_tuned_model": None, "training_file": FILE, "suffix": "home", "seed": 0, "method": {"type": "supervised"},
    "error": None, "progress": None}
GIVEN = {
    "id": FEEDBACK, "object": "feedback", "created_at": AT, "rating": None, "model": "model", "learns": True,
    "state": "new", "held_out": False, "job": None, "question": "switch the lamp off", "answer": LAMP,
    "rejected": WRONG, "reason": "waits to be learned"}
FILE_OBJECT = {"id": FILE, "object": "file", "bytes": 4096, "created_at": AT, "filename": "rows.jsonl",
               "purpose": "fine-tune", "status": "processed", "rows": 62, "sha256": "9f86d081884c7d65..."}
ADAPTER_OBJECT = {"id": ADAPTER, "name": None, "object": "adapter", "created_at": AT, "state": "candidate", "job": JOB,
                  "probation": None,
                  "verdict": {"passed": True, "reason": "11 of 12 held-out questions right, 3 before"}}
SERVING = {"serving": ADAPTER}
ERROR = {"error": {"message": "messages: is missing; give it", "type": "invalid_request_error", "param": "messages",
                   "code": "invalid_value"}}


def _of_answers() -> Iterator[Example]:
    yield Example("POST /v1/chat/completions", "Ask the base and its active adapter. This answer is wrong; "
                  "[feedback](#post-v1feedback) corrects it.",
                  body={"model": "model:latest", "messages": ASK, "max_tokens": 40}, answer={
                      "id": ANSWER, "object": "chat.completion", "created": AT, "model": ADAPTER, "choices": [{
                          "index": 0, "message": {"role": "assistant", "content": WRONG}, "finish_reason": "stop"}],
                      "usage": USAGE})
    yield Example("POST /v1/chat/completions", "Get JSON of a form.", body={
        "messages": ASK, "max_tokens": 40,
        "response_format": {"type": "json_schema", "json_schema": {"name": "lamp", "schema": SCHEMA}}})
    yield Example("POST /v1/completions", "Continue a text.", body={"prompt": "The lamp is", "max_tokens": 8}, answer={
        "id": "cmpl-90ab", "object": "text_completion", "created": AT, "model": ADAPTER,
        "choices": [{"index": 0, "text": " on the table.", "finish_reason": "stop"}], "usage": USAGE})
    yield Example("POST /v1/embeddings", "Get the vectors of two texts.", body={"input": ["lamp off", "it is dark"]},
                  answer={"object": "list", "data": [{"object": "embedding", "index": 0, "embedding": [0.01, -0.02]}],
                          "model": "model", "usage": {"prompt_tokens": 9, "total_tokens": 9}})
    yield Example("POST /tokenize", "Count the tokens of a text.", body={"content": "lamp off"},
                  answer={"tokens": [51, 76]})
    yield Example("POST /v1/classify", "Classify two texts, by an encoder.", of_encoder=True,
                  body={"input": ["lamp off", "it is dark"]}, answer={
                      "id": "classify-3d1f", "object": "list", "created": AT, "model": ADAPTER, "labels": ["off", "on"],
                      "data": [{"index": 0, "label": "off", "probs": [0.98, 0.02], "num_classes": 2}],
                      "usage": {"prompt_tokens": 9, "completion_tokens": 0, "total_tokens": 9}})
    yield Example("GET /v1/models", "See which names a request may give.", answer={"object": "list", "data": [
        {"id": "model:latest", "object": "model", "created": AT, "owned_by": "edgetune", "system": ""}]})


def _of_jobs() -> Iterator[Example]:
    yield Example("POST /v1/files", "Upload rows.", is_upload=True, answer=FILE_OBJECT)
    yield Example("POST /v1/files/check", "Check rows before a job learns them.", is_upload=True, answer={
        "object": "rows.check", "rows": 62, "usable": 62, "shape": "prompt", "longest": 48, "findings": []})
    yield Example("GET /v1/files", "List the files.")
    yield Example("GET /v1/files/{file_id}/content", "Read the rows again.", f"/v1/files/{FILE}/content")
    yield Example("DELETE /v1/files/{file_id}", "Delete a file.", f"/v1/files/{FILE}",
                  answer={"id": FILE, "object": "file", "deleted": True})
    yield Example("POST /v1/fine_tuning/jobs", "Train on an uploaded file.", body={
        "model": "model", "training_file": FILE, "suffix": "home",
        "method": {"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": "auto", "rank": 8}}}},
        answer=JOB_OBJECT)
    yield Example("GET /v1/fine_tuning/jobs", "See the last job.", "/v1/fine_tuning/jobs?limit=1")
    yield Example("GET /v1/fine_tuning/jobs/{job}", "See how far a job is.", f"/v1/fine_tuning/jobs/{JOB}")
    yield Example("POST /v1/fine_tuning/jobs/{job}/pause", "Let answers have the machine.",
                  f"/v1/fine_tuning/jobs/{JOB}/pause")
    yield Example("POST /v1/fine_tuning/jobs/{job}/cancel", "Stop a job.", f"/v1/fine_tuning/jobs/{JOB}/cancel")
    yield Example("GET /v1/fine_tuning/jobs/{job}/events", "See what happened.", f"/v1/fine_tuning/jobs/{JOB}/events")
    yield Example("GET /v1/fine_tuning/jobs/{job}/checkpoints", "See the measurements.",
                  f"/v1/fine_tuning/jobs/{JOB}/checkpoints")
    yield Example("POST /v1/fine_tuning/alpha/graders/validate", "Check a grader.", body={"grader": GRADER})
    yield Example("POST /v1/fine_tuning/alpha/graders/run", "Grade one answer.",
                  body={"grader": GRADER, "model_sample": "It is Oslo.", "item": {"city": "Oslo"}},
                  answer={"reward": 1.0, "sub_rewards": {}, "metadata": {
                      "name": "city", "type": "string_check", "execution_time": 0.0002,
                      "errors": {"sample_parse_error": False}}})


def _of_adapters() -> Iterator[Example]:
    yield Example("GET /v1/adapters", "See all adapters, and which is active.", answer={
        "object": "list", "data": [ADAPTER_OBJECT], "serving": ADAPTER,
        "history": [{"at": AT, "adapter": ADAPTER, "cause": "asked for by a client"}]})
    yield Example("POST /v1/adapters", "Add one that another device made.", is_upload=True, sends="adapter.gguf",
                  answer={**ADAPTER_OBJECT, "job": "", "verdict": {
                      "passed": False, "reason": "a client added it; no gate has evaluated it"}})
    yield Example("GET /v1/adapters/{adapter}", "See one.", f"/v1/adapters/{ADAPTER}", answer=ADAPTER_OBJECT)
    yield Example("PATCH /v1/adapters/{adapter}", "Name it.", f"/v1/adapters/{ADAPTER}", {"name": "home"})
    yield Example("POST /v1/adapters/{adapter}/promote", "Activate it.", f"/v1/adapters/{ADAPTER}/promote",
                  answer=SERVING)
    yield Example("POST /v1/adapters/rollback", "Go back to the adapter before it.", answer=SERVING)
    yield Example("POST /v1/adapters/{adapter}/evaluate", "Let the gate compare it with the active one.",
                  f"/v1/adapters/{ADAPTER}/evaluate", {"promote": True, "probation": 86400},
                  answer={**JOB_OBJECT, "origin": "evaluate", "training_file": None,
                          "metadata": {"adapter": ADAPTER, "promote": "true"}})
    yield Example("POST /v1/adapters/recover", "Take lost adapters back.", answer={"recovered": [], "refused": {}})
    yield Example("GET /v1/adapters/{adapter}/download", "Fetch it.", f"/v1/adapters/{ADAPTER}/download")


def _of_feedback() -> Iterator[Example]:
    yield Example("POST /v1/feedback", "Correct an answer by its id.",
                  body={"completion_id": ANSWER, "correction": LAMP}, answer=GIVEN)
    yield Example("POST /v1/feedback", "Say that an answer is right.",
                  body={"prompt": "lamp on", "answer": "The lamp is on.", "rating": "up"})
    yield Example("POST /v1/feedback", "Say which of two answers is better.",
                  body={"prompt": "lamp on", "answer": "The lamp is on.", "rejected": "Lamp."})
    yield Example("GET /v1/feedback", "See the newest feedback.", "/v1/feedback?limit=1", answer={
        "object": "list", "data": [GIVEN], "has_more": True,
        "counts": {"new": 3, "used": 40, "held": 9, "aside": 0, "withdrawn": 2}})
    yield Example("PATCH /v1/feedback/{feedback_id}", "Change a correction.", f"/v1/feedback/{FEEDBACK}",
                  {"correction": LAMP})
    yield Example("DELETE /v1/feedback/{feedback_id}", "Delete it.", f"/v1/feedback/{FEEDBACK}",
                  answer={"id": FEEDBACK, "object": "feedback", "deleted": True, "remains": ""})
    yield Example("POST /v1/learn", "Train now on what was given since the last training.", body={})
    yield Example("PATCH /v1/learn", "Learn nothing by itself.", body={"on": False}, answer={
        "object": "learning", "on": False, "state": "is switched off: nothing is learned by itself"})


def _of_the_daemon() -> Iterator[Example]:
    yield Example("GET /healthz", "Ask whether all is well. No key is needed.",
                  answer={"status": "ok", "reasons": []})
    yield Example("GET /v1/device", "See memory, temperature and work.", answer={
        "object": "device", "model": "model",
        "memory": {"budget": 629145600, "used": 301989888, "available": 1610612736},
        "serving": {"requests": 40, "waiting": 0, "working": 1, "tokens_per_s": 21.5},
        "answered": {},
        "learning": {"on": True, "mode": "idle", "state": "waits for 17 more pieces of feedback", "needed": 20},
        "job": None, "governor": []})
    yield Example("GET /metrics", "Read the metrics.")


EXAMPLES = [*_of_answers(), *_of_jobs(), *_of_adapters(), *_of_feedback(),
            *_of_the_daemon(), *of_parts("EXAMPLES")]
