"""Ollama's API in the tables of all APIs: as a surface for answers, its fields and its examples."""

import json
from pathlib import Path

import ollama
from api_examples import ASK, FILE, Story
from api_fields import IGNORED, PARAMETERS, REFUSED, SAMPLING, SUPPORTED, TOOL, Endpoint, Field, ignored, supported
from daemons import PATIENCE
from surfaces import Said, Surface


def ollama_chat(clients, messages, stream, model, *, tools=(), schema=None, **options):
    told = [replaced(message) for message in messages]
    with ollama.Client(host=clients.url, timeout=PATIENCE) as client:
        made = client.chat(tag(model), told, tools=tools, format=schema, stream=stream, options=named(options))
        parts = list(made) if stream else [made]
    calls = [(call.function.name, dict(call.function.arguments)) for part in parts
             for call in part.message.tool_calls or ()]
    return Said("".join(part.message.content or "" for part in parts), *end(parts), calls)


def replaced(message):
    """With arguments as an object, and the name of a tool, as Ollama has them."""
    calls = [{"function": {**call["function"], "arguments": json.loads(call["function"]["arguments"])}}
             for call in message.get("tool_calls", ())]
    return {**message, **({"tool_calls": calls} if calls else {}),
            **({"tool_name": message["name"]} if "name" in message else {})}


def ollama_generate(clients, messages, stream, model, *, schema=None, **options):
    with ollama.Client(host=clients.url, timeout=PATIENCE) as client:
        made = client.generate(tag(model), messages[-1]["content"], format=schema, stream=stream,
                               options=named(options))
        parts = list(made) if stream else [made]
    return Said("".join(part.response for part in parts), *end(parts))


def tag(model):
    return f"{model}:base" if model == "tiny" else model


def named(options):
    return {"num_predict" if name == "max_tokens" else name: value for name, value in options.items()}


def end(parts):
    assert [part.done for part in parts] == [False] * (len(parts) - 1) + [True]
    return parts[-1].done_reason, parts[-1].prompt_eval_count, parts[-1].eval_count


SURFACES = (Surface(ollama_chat, required=False, ids=False, error=ollama.ResponseError),
            Surface(ollama_generate, tools=False, required=False, ids=False, error=ollama.ResponseError))

OF_OPTIONS = [
    *SAMPLING, Field("num_predict", SUPPORTED, -1, "-1 and -2: what the context holds, the default; 1,024 with format"),
    Field("num_ctx", IGNORED, 8192, "--context decides"),
    *ignored(num_keep=4, num_batch=8, num_gpu=1, main_gpu=0, num_thread=2, low_vram=True, f16_kv=True, logits_all=True,
              vocab_only=False, use_mmap=True, use_mlock=True, numa=True, mirostat_tau=5.0, mirostat_eta=0.1),
    Field("mirostat", REFUSED, 2, "but 0"), Field("tfs_z", REFUSED, 0.5, "but 1"),
    Field("typical_p", REFUSED, 0.5, "but 1"), Field("penalize_newline", REFUSED, True, "but false"),
    Field("embedding_only", REFUSED, True, "but false"),
]
COMMON = [
    Field("model", SUPPORTED, "tiny:base", "without a tag :latest is meant"),
    Field("stream", SUPPORTED, True, "true unless given"), Field("format", SUPPORTED, PARAMETERS, "json, or a schema"),
    Field("options", SUPPORTED, {"seed": 1}, "below"), Field("keep_alive", IGNORED, "5m", "the model stays loaded"),
    Field("think", SUPPORTED, False, "false alone, of a model that does not think"),
    Field("logprobs", SUPPORTED, True), Field("top_logprobs", SUPPORTED, 2, "up to 20", {"logprobs": True}),
]
CALLED = [{"role": "user", "content": "turn"},
          {"role": "assistant", "content": "",
           "tool_calls": [{"function": {"name": "lamp", "arguments": {"on": True}}}]},
          {"role": "tool", "content": "1", "tool_name": "lamp"}]
LEAST = {"model": "tiny:base", "stream": False, "options": {"num_predict": 3}}

CHAT = Endpoint("/api/chat", {**LEAST, "messages": [{"role": "user", "content": "turn"}]}, [
    Field("messages", SUPPORTED, CALLED, "of text, tool_calls and tool_name; thinking is ignored, images are refused"),
    *COMMON, Field("tools", SUPPORTED, [TOOL], "functions"),
], ("message", "content"), "options", OF_OPTIONS)

GENERATE = Endpoint("/api/generate", {**LEAST, "prompt": "turn"}, [
    *supported(prompt="the light", system="the light", raw=True), *COMMON,
    Field("suffix", REFUSED, "off"), Field("template", REFUSED, "{{ .Prompt }}", "but the model's own"),
    Field("context", SUPPORTED, [5, 6], "that of an earlier answer"), Field("images", REFUSED, ["eA=="]),
], ("response",), "options", OF_OPTIONS)

EMBEDDINGS = Endpoint("/api/embeddings", {"model": "tiny:base", "prompt": "turn"}, [
    Field("model", SUPPORTED, "tiny", "with or without :latest; adapters make no vectors"),
    Field("prompt", SUPPORTED, "the light"),
    Field("options", IGNORED, {"num_ctx": 512}), Field("keep_alive", IGNORED, "5m", "the model stays loaded"),
], ("embedding",))

EMBED = Endpoint("/api/embed", {"model": "tiny:base", "input": "turn"}, [
    Field("model", SUPPORTED, "tiny", "with or without :latest; adapters make no vectors"),
    Field("input", SUPPORTED, ["turn", "the light"], "a text, or a list of up to 2,048"),
    Field("truncate", SUPPORTED, False, "true unless given"), Field("dimensions", REFUSED, 3, "but what the model has"),
    Field("options", IGNORED, {"num_ctx": 512}), Field("keep_alive", IGNORED, "5m", "the model stays loaded"),
], ("embeddings", 0))

ENDPOINTS = (CHAT, GENERATE, EMBED, EMBEDDINGS)


def tell(story: Story) -> None:
    options = {"num_predict": 40}
    story("POST /api/chat", body={"model": "model", "messages": ASK, "stream": False, "options": options},
          show="model message role content done")
    story("POST /api/generate", body={"model": "model", "prompt": "switch the lamp off", "stream": False,
                                      "options": options}, show="response done")
    story("POST /api/embed", body={"model": "model", "input": "lamp off"}, show="model embeddings")
    story("POST /api/embeddings", body={"model": "model", "prompt": "lamp off"})
    story("GET /api/tags", show="models name size details family parameter_size")
    story("GET /api/ps", show="models name expires_at context_length")
    story("POST /api/show", body={"model": "model"}, show="capabilities")
    story("GET /api/version")
    story("POST /api/pull", body={"model": "model", "stream": False})


TELLS = [(Path(__file__).with_name(FILE), tell)]
