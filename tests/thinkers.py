"""A tiny random model that thinks as Qwen3 does: <think> and </think> are tokens, and its template has the switch."""

from pathlib import Path

import gguf
from tiny import SHAPES, tokenizer_metadata, write_tiny

BEGIN, END = "<think>", "</think>"
N_VOCAB = SHAPES["qwen3"].n_vocab
BEGIN_ID, END_ID = N_VOCAB - 2, N_VOCAB - 1
# Of an earlier answer the thoughts are left out, as by Qwen3's template; {opening} follows the generation prompt.
TEMPLATE = """\
{%- for message in messages -%}
{%- set content = message['content'] or '' -%}
{%- if message['role'] == 'assistant' and '</think>' in content and not loop.last -%}
{%- set content = content.split('</think>')[-1].lstrip('\\n') -%}
{%- endif -%}
{{ '<|im_start|>' + message['role'] + '\\n' + content + '<|im_end|>\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{ '<|im_start|>assistant\\n' }}
{%- if enable_thinking is defined and enable_thinking is false %}{{ '<think>\\n\\n</think>\\n\\n' }}\
{% else %}OPENING{% endif -%}
{%- endif -%}
"""


def write_thinker(path: Path, opens: bool = False) -> Path:
    """opens: the prompt begins the thinking, as of DeepSeek's distilled models."""
    known = tokenizer_metadata(N_VOCAB, pre="qwen3")
    tokens = [*known["tokenizer.ggml.tokens"][:-2], BEGIN, END]  # type: ignore[index]
    types = [*known["tokenizer.ggml.token_type"][:-2], *[int(gguf.TokenType.USER_DEFINED)] * 2]  # type: ignore[index]
    opening = "{{ '<think>\\n' }}" if opens else ""
    return write_tiny(path, "qwen3", "Q8_0", metadata={
        "tokenizer.ggml.tokens": tokens, "tokenizer.ggml.token_type": types,
        "tokenizer.chat_template": TEMPLATE.replace("OPENING", opening)})
