"""/v1/responses in the tables of all APIs: as a surface for answers, its fields and its examples."""

import json
from pathlib import Path

from api_examples import FILE, Story
from api_fields import FUNCTION, IGNORED, PARAMETERS, REFUSED, STORE, SUPPORTED, Endpoint, Field, ignored, supported
from surfaces import Said, Surface


def items(messages):
    """Messages as items of a response."""
    for message in messages:
        if message["role"] == "tool":
            yield {"type": "function_call_output", "call_id": message["tool_call_id"], "output": message["content"]}
        elif calls := message.get("tool_calls"):
            yield from ({"type": "function_call", "call_id": call["id"], **call["function"]} for call in calls)
        else:
            yield dict(message)


def responses(clients, messages, stream, model, *, max_tokens=None,
              tools=(), required=False, schema=None, seed=None,
              **options):
    asked = {"model": model, "input": list(items(messages)), "max_output_tokens": max_tokens,
             "extra_body": {"seed": seed}, **options}
    if tools:
        asked |= {"tools": [{"type": "function", **tool["function"]} for tool in tools],
                  "tool_choice": "required" if required else "auto"}
    if schema:
        asked["text"] = {"format": {"type": "json_schema", "name": "form", "schema": schema}}
    made = clients.openai.responses.create(**asked, stream=stream)
    whole = list(made)[-1].response if stream else made
    calls = [(item.name, json.loads(item.arguments)) for item in whole.output if item.type == "function_call"]
    finish = "length" if whole.status == "incomplete" else "stop"
    return Said(whole.output_text, finish, whole.usage.input_tokens, whole.usage.output_tokens, calls, whole.id)


SURFACES = (Surface(responses, stop=False),)

RESPONSES = Endpoint("/v1/responses", {"input": "turn", "max_output_tokens": 3}, [
    Field("input", SUPPORTED, [{"role": "user", "content": [{"type": "input_text", "text": "turn"}]}],
          "text, or messages of text, function_call and function_call_output"),
    *supported(model="tiny", instructions="the light", max_output_tokens=2, temperature=0.5, top_p=0.9, top_k=20,
                min_p=0.1, seed=7, stream=True, metadata={"a": "b"}),
    Field("tools", SUPPORTED, [{"type": "function", **FUNCTION}], "functions"),
    Field("tool_choice", SUPPORTED, "required", "auto, none, required, a function, or allowed_tools",
          {"tools": [{"type": "function", **FUNCTION}]}),
    Field("text", SUPPORTED, {"format": {"type": "json_schema", "name": "lamp", "schema": PARAMETERS}},
          "format: text, json_object, json_schema; verbosity: medium alone"),
    *ignored(user="me", safety_identifier="me", prompt_cache_key="k", prompt_cache_retention="24h"), STORE,
    Field("stream_options", IGNORED, {"include_obfuscation": True}),
    Field("service_tier", REFUSED, "flex", "but auto and default"),
    Field("truncation", REFUSED, "auto", "but disabled"),
    Field("parallel_tool_calls", REFUSED, False, "but true"), Field("background", REFUSED, True, "but false"),
    Field("include", REFUSED, ["message.output_text.logprobs"], "but reasoning.encrypted_content: there is none"),
    Field("top_logprobs", REFUSED, 2, "but 0"), Field("conversation", REFUSED, "conv_1"),
    Field("previous_response_id", REFUSED, "resp_1", "responses are not stored"),
    Field("reasoning", SUPPORTED, {"effort": "none"}, "effort none alone, of a model that does not think"),
    Field("prompt", REFUSED, {"id": "p"}),
    Field("max_tool_calls", REFUSED, 1), Field("context_management", REFUSED, []),
], ("output", 0, "content", 0, "text"))

ENDPOINTS = (RESPONSES,)


def tell(story: Story) -> None:
    story("POST /v1/responses", body={"input": "switch the lamp off", "max_output_tokens": 16},
          show="id object status output content text usage total_tokens")


TELLS = [(Path(__file__).with_name(FILE), tell)]
