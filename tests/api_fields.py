"""What becomes of the fields of requests: docs/reference/http-api.md shows it, and
tests/daemon/test_schema.py asks a daemon for it.

A field is supported, ignored (taken, without effect on the answer) or refused; `value` is what the test gives it.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from part_tables import of_parts

SUPPORTED = "supported"
IGNORED = "ignored"
REFUSED = "refused"
PARAMETERS = {"type": "object", "properties": {"on": {"type": "boolean"}}, "required": ["on"]}
FUNCTION = {"name": "lamp", "parameters": PARAMETERS}
TOOL = {"type": "function", "function": FUNCTION}
FORMAT = {"type": "json_schema", "json_schema": {"name": "lamp", "schema": PARAMETERS}}


@dataclass(frozen=True)
class Field:
    """given: further fields that it needs beside it. remark: for the page."""

    name: str
    becomes: str
    value: Any
    remark: str = ""
    given: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Endpoint:
    """body: what must be given. within: the object that holds the fields of a second list. reads: where in a response
    that is not streamed the answer is.
    """

    path: str
    body: dict[str, Any]
    fields: list[Field]
    reads: tuple[str | int, ...]
    within: str = ""
    inner: list[Field] = field(default_factory=list)

    def all(self) -> Iterator[tuple[str, Field, dict[str, Any]]]:
        """(its full name, it, a body that has it)"""
        for each in self.fields:
            yield each.name, each, {**self.body, **each.given, each.name: each.value}
        for each in self.inner:
            options = {**self.body.get(self.within, {}), **each.given, each.name: each.value}
            yield f"{self.within}.{each.name}", each, {**self.body, self.within: options}


def supported(**values: Any) -> list[Field]:
    return [Field(name, SUPPORTED, value) for name, value in values.items()]


def ignored(**values: Any) -> list[Field]:
    return [Field(name, IGNORED, value) for name, value in values.items()]


SAMPLING = supported(temperature=0.5, top_p=0.9, top_k=20, min_p=0.1, seed=7, stop=["on"], frequency_penalty=0.5,
                      presence_penalty=0.5, repeat_penalty=1.1, repeat_last_n=32)
KEPT_NOWHERE = ignored(user="me", metadata={"a": "b"}, service_tier="auto", safety_identifier="me",
                        prompt_cache_key="k", prompt_cache_retention="24h", prediction={"type": "content"},
                        cache_prompt=True)
STORE = Field("store", SUPPORTED, False, "false: the prompt is not kept, where --keep-prompts keeps some")
GENERATION = [
    Field("model", SUPPORTED, "tiny", "absent or empty: the active adapter"),
    *SAMPLING, *supported(max_tokens=3, n=2, stream=True), Field("logit_bias", SUPPORTED, {"5": -100}, "of token ids"),
    Field("stream_options", SUPPORTED, {"include_usage": True}, "include_obfuscation is ignored", {"stream": True}),
    Field("response_format", SUPPORTED, FORMAT, "text, json_object (also with llama-server's schema), json_schema"),
    Field("json_schema", SUPPORTED, PARAMETERS, "as in llama-server"),
    Field("grammar", SUPPORTED, 'root ::= "on" | "off"', "GBNF"), STORE, *KEPT_NOWHERE,
]

CHAT = Endpoint("/v1/chat/completions", {"messages": [{"role": "user", "content": "turn"}], "max_tokens": 3}, [
    Field("messages", SUPPORTED, [{"role": "developer", "content": "the"}, {"role": "user", "content": "turn"}],
          "of text; images and sound are refused"),
    *GENERATION, Field("max_completion_tokens", SUPPORTED, 2), Field("tools", SUPPORTED, [TOOL], "functions"),
    Field("tool_choice", SUPPORTED, "required", "auto, none, required, a function, allowed_tools", {"tools": [TOOL]}),
    Field("logprobs", SUPPORTED, True), Field("top_logprobs", SUPPORTED, 2, "up to 20", {"logprobs": True}),
    Field("parallel_tool_calls", IGNORED, False), Field("modalities", REFUSED, ["audio"], "but text"),
    Field("audio", REFUSED, {}), Field("functions", REFUSED, [FUNCTION], "the older name of tools"),
    Field("function_call", REFUSED, "auto", "the older name of tool_choice"),
    Field("reasoning_effort", SUPPORTED, "none", "none alone, of a model that does not think"),
    Field("reasoning_budget", SUPPORTED, 0, "0 alone, of a model that does not think"),
    Field("verbosity", REFUSED, "low"),
    Field("web_search_options", REFUSED, {}),
], ("choices", 0, "message", "content"))

COMPLETIONS = Endpoint("/v1/completions", {"prompt": "turn", "max_tokens": 3}, [
    Field("prompt", SUPPORTED, ["turn", "the light"], "text, token ids, or a list of either"), *GENERATION,
    Field("logprobs", SUPPORTED, 2, "up to 20"),
    Field("best_of", SUPPORTED, 1, "more than n needs a temperature, and no stream"),
    Field("echo", SUPPORTED, True, "with logprobs those of the prompt too; max_tokens may be 0"),
    Field("suffix", REFUSED, "off", "but empty"),
], ("choices", 0, "text"))

EMBEDDINGS = Endpoint("/v1/embeddings", {"input": "turn"}, [
    Field("input", SUPPORTED, [[5, 6], [7]], "text, token ids, or a list of up to 2,048 of either"),
    *supported(model="tiny", encoding_format="base64"),
    Field("dimensions", REFUSED, 3, "but what the model has"), *ignored(user="me"),
], ("data", 0, "embedding"))

ENDPOINTS = (CHAT, COMPLETIONS, EMBEDDINGS, *of_parts("ENDPOINTS"))
