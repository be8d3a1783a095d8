"""Tools for templates, and a vocabulary in the manner of SentencePiece."""

from pathlib import Path

import gguf
from tiny import write_tiny

TOOLS = [{"type": "function", "function": {
    "name": "weather", "description": "Weather <now> & later, in °C",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}}}]
TALK = [
    {"role": "system", "content": "Help & don't <guess>."},
    {"role": "user", "content": "Weather in Kraków and Ōsaka?"},
    {"role": "assistant",
     "tool_calls": [{"type": "function", "function": {"name": "weather", "arguments": {"city": "Kraków", "n": 2}}}]},
    {"role": "tool", "name": "weather", "content": '{"c": 3}'},
    {"role": "assistant", "content": " It is 3 °C. "},
    {"role": "user", "content": "Thanks"},
]


def write_sentencepiece(path: Path, **metadata: object) -> Path:
    """A vocabulary in the manner of Llama 2: a space is put before the text, bytes stand for unknown characters."""
    words = ["▁", "▁h", "hi", "▁hi", "h", "i", "▁ho", "ho", "o", "▁▁"]
    words += [f"zz{i}" for i in range(50)]  # which no text is cut into: tiny models want so many
    kinds = gguf.TokenType
    tokens = ["<unk>", "<s>", "</s>"] + [f"<0x{b:02X}>" for b in range(256)] + words
    types = [kinds.UNKNOWN, *[kinds.CONTROL] * 2, *[kinds.BYTE] * 256, *[kinds.NORMAL] * len(words)]
    fields = {
        "tokenizer.ggml.model": "llama", "tokenizer.ggml.pre": None, "tokenizer.ggml.merges": None,
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.scores": [0.0] * 259 + [-float(i) for i in range(len(words))],
        "tokenizer.ggml.token_type": [int(kind) for kind in types], "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2, "tokenizer.ggml.padding_token_id": None,
        "tokenizer.ggml.add_bos_token": True, "tokenizer.chat_template": None}
    return write_tiny(path, metadata=fields | metadata, n_vocab=len(tokens))
