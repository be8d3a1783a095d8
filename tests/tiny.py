"""Tiny random models as GGUF files that llama.cpp loads, decodes and tokenizes with. Needs numpy, gguf and llama_cpp.

Letters: D model width, F MLP width, H heads, G kv heads, C head width, V vocabulary.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import gguf
import numpy as np
from formats_of_ggml import ggml_type, quantize
from json_lines import write_lines

SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
END_OF_TEXT, IM_START, IM_END = range(3)
N_BYTES = 256
WORDS = ["user", "system", "assistant", "tool", "Ġthe", "Ġturn", "Ġlight", "Ġoff", "Ġon", "Ġset", "Ġto", '{"', '":',
         '"}', "10"]
# ChatML, with tools listed for the system turn and calls written as JSON in <tool_call> tags.
CHAT_TEMPLATE = """\
{%- set system = messages[0]['content'] if messages[0]['role'] == 'system' else '' -%}
{%- if system or tools -%}
{{ '<|im_start|>system\\n' + system }}
{%- for tool in tools or [] %}{{ '\\n<tool>' + (tool | tojson) + '</tool>' }}{% endfor -%}
{{ '<|im_end|>\\n' }}
{%- endif -%}
{%- for message in messages if message['role'] != 'system' -%}
{{ '<|im_start|>' + message['role'] + '\\n' + (message['content'] or '') }}
{%- for call in message['tool_calls'] or [] %}{{ '<tool_call>' + (call['function'] | tojson) + '</tool_call>' }}\
{% endfor -%}
{{ '<|im_end|>\\n' }}
{%- endfor -%}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif -%}
"""


@dataclass(frozen=True)
class Shape:
    """What a tiny model is made of; `write_tiny` takes every field as an override."""

    d_model: int = 64
    n_blocks: int = 2
    n_heads: int = 4
    n_kv_heads: int = 2
    head_width: int = 16
    d_ff: int = 128
    n_vocab: int = 416
    n_context: int = 512
    rope_base: float = 10000.0
    rms_eps: float = 1e-5
    tied: bool = True
    qkv_bias: bool = False
    qk_norm: str = ""  # as of edgetune.formats.families.Family, like norms
    norms: str = "before"
    window: int = 0
    window_pattern: int = 2  # every n-th block sees everything
    fused: bool = False  # queries, keys and values are one matrix
    fused_feed: bool = False  # gate and the rest are one matrix
    conv: tuple[int, ...] = ()  # blocks with a short convolution in place of attention
    dense_first: int = 0  # blocks without experts; the others' have a bias
    experts: tuple[int, ...] = ()  # how many there are, and how many of them a token takes
    d_expert: int = 0  # an expert's width; 0: d_ff
    d_shared: int = 0  # of the expert that all tokens take besides
    narrow_width: int = 0  # of a head, in blocks with a window; 0: blocks do not differ in sizes
    shared: int = 0  # the last blocks, which take keys and values of others, and are twice as wide
    keyed: bool = False  # blocks without a window have half the key heads, whose keys are values
    d_block: int = 0  # embeddings of each block
    cap: float = 0.0  # of logits
    delta: tuple[int, ...] = ()  # heads of keys, heads of values, their width; all but each n-th block are delta nets
    attends_every: int = 2  # n
    drafts: int = 0  # blocks at the end that draft tokens ahead
    mamba: tuple[int, ...] = ()  # heads, values of a state and groups of Mamba 2, in all blocks but `attends`
    attends: tuple[int, ...] = ()
    scales: tuple[float, ...] = ()  # of embedding, residual sums, attention and logits
    add_bos: bool = False


SHAPES = {
    "llama": Shape(),
    "qwen2": Shape(qkv_bias=True, rope_base=1e6),
    "qwen3": Shape(qk_norm="head", head_width=32, rope_base=1e6),
    "gemma3": Shape(qk_norm="head", norms="both", head_width=32, rope_base=1e6, rms_eps=1e-6, window=24),
    "gemma4": Shape(qk_norm="head", norms="both", n_blocks=6, head_width=32, narrow_width=16, rope_base=1e6,
                    rms_eps=1e-6, window=24, shared=2, d_block=32, cap=20.0),
    "smollm3": Shape(n_blocks=4, rope_base=1e6),
    "granite": Shape(scales=(12.0, 0.22, 0.05, 8.0)),
    "ernie4_5": Shape(rope_base=5e5),
    "olmo2": Shape(qk_norm="width", norms="after", tied=False),
    "exaone4": Shape(qk_norm="head", norms="after", rope_base=1e6),
    "mistral3": Shape(rope_base=1e6, head_width=32, tied=False),
    "hunyuan-dense": Shape(qk_norm="rotated", head_width=32),
    "phi3": Shape(fused=True, fused_feed=True),
    "glm4": Shape(norms="both", fused_feed=True),
    "internlm2": Shape(tied=False),
    "lfm2": Shape(qk_norm="head", rope_base=1e6, n_blocks=3, conv=(0, 2)),
    "lfm2moe": Shape(qk_norm="head", rope_base=1e6, n_blocks=3, conv=(0, 2), experts=(6, 2), dense_first=1,
                    d_expert=48),
    "qwen3moe": Shape(qk_norm="head", head_width=32, rope_base=1e6, experts=(6, 2)),
    "olmoe": Shape(qk_norm="width", n_kv_heads=4, tied=False, experts=(5, 3)),
    "granitemoe": Shape(scales=(12.0, 0.22, 0.05, 8.0), experts=(4, 2)),
    "granitehybrid": Shape(scales=(12.0, 0.22, 0.05, 8.0), n_blocks=3, mamba=(8, 32, 1), attends=(1,)),
    "qwen35": Shape(qk_norm="head", head_width=32, rope_base=1e6, n_blocks=3, delta=(2, 4, 16)),
}


PLAIN = (".conv.weight", ".ssm_conv1d.weight", ".ssm_norm.weight", ".ssm_a", ".ssm_d")  # that are never quantized


def write_tiny(
    path: str | Path, architecture: str = "llama", formats: str | Mapping[str, str] = "F32", seed: int = 0,
    metadata: Mapping[str, object] | None = None, **overrides: object) -> Path:
    """Write a random model of `architecture` to `path`: the same arguments give the same bytes.

    formats: one format for all 2-D weights, or {part of a tensor's name: format} (first match, F32 else).
    metadata: GGUF keys to add or replace; None removes a key. overrides: fields of `Shape`.
    """
    shape = replace(SHAPES[architecture], **overrides)
    rng = np.random.default_rng(seed)
    tensors = {}
    for name, size in tensor_shapes(shape):
        spread = 0.1 if len(size) == 1 else 1 / np.sqrt(size[-1])
        center = 1.0 if name.endswith(("norm.weight", "output_scale.weight")) else 0.0
        if name.endswith("ssm_a"):
            center, spread = -0.5, 0.1
        if shape.narrow_width and name.endswith(("attn_q_norm.weight", "attn_k_norm.weight")):
            center = 0.4  # scores are not scaled: norms are learned that keep them small
        tensors[name] = (center + spread * rng.standard_normal(size)).astype(np.float32)
    if shape.narrow_width:  # of blocks without a window, a quarter of whose pairs rotate
        pairs = shape.head_width // 2
        tensors["rope_freqs.weight"] = np.where(np.arange(pairs) < pairs // 4, 1, 1e30).astype(np.float32)
    fields = tokenizer_metadata(shape.n_vocab, shape.add_bos, pre=architecture) | model_metadata(architecture, shape)
    return write_gguf(path, architecture, fields | dict(metadata or {}), tensors, formats)


def write_place(folder: Path, rows: Iterable[Mapping[str, object]]) -> Path:
    """Writes a model.gguf in Q8_0 and these rows.jsonl into a folder, and returns it."""
    write_tiny(folder / "model.gguf", formats="Q8_0")
    write_lines(folder / "rows.jsonl", rows)
    return folder


def tensor_shapes(shape: Shape) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names and sizes (rows first) of every tensor, in file order."""
    d = shape.d_model
    yield "token_embd.weight", (shape.n_vocab, d)
    if shape.narrow_width:
        yield "rope_freqs.weight", (shape.head_width // 2,)
    if shape.d_block:
        yield "per_layer_token_embd.weight", (shape.n_vocab, shape.n_blocks * shape.d_block)
        yield "per_layer_model_proj.weight", (shape.n_blocks * shape.d_block, d)
        yield "per_layer_proj_norm.weight", (shape.d_block,)
    for i in range(shape.n_blocks):
        if shape.norms != "after":
            yield f"blk.{i}.attn_norm.weight", (d,)
        yield from _mixer(shape, i)
        if shape.norms != "before" or shape.delta:
            yield f"blk.{i}.post_attention_norm.weight", (d,)
        if shape.norms != "after" and not shape.delta:
            yield f"blk.{i}.ffn_norm.weight", (d,)
        yield from _feed_forward(shape, i)
        if shape.norms != "before":
            yield f"blk.{i}.post_ffw_norm.weight", (d,)
        if shape.d_block:
            yield f"blk.{i}.inp_gate.weight", (shape.d_block, d)
            yield f"blk.{i}.proj.weight", (d, shape.d_block)
            yield f"blk.{i}.post_norm.weight", (d,)
        if shape.narrow_width:
            yield f"blk.{i}.layer_output_scale.weight", (1,)
    for i in range(shape.n_blocks, shape.n_blocks + shape.drafts):
        yield from _draft(shape, i)
    yield "token_embd_norm.weight" if shape.conv else "output_norm.weight", (d,)
    if not shape.tied:
        yield "output.weight", (shape.n_vocab, d)


def _mixer(shape: Shape, i: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    d = shape.d_model
    is_narrow = shape.narrow_width and has_window(shape, i)
    width = shape.narrow_width if is_narrow else shape.head_width
    is_keyed = shape.keyed and not is_narrow
    q = shape.n_heads * width
    kv = key_heads(shape, i) * width
    if i in shape.conv:
        yield f"blk.{i}.shortconv.in_proj.weight", (3 * d, d)
        yield f"blk.{i}.shortconv.conv.weight", (d, 3)
        yield f"blk.{i}.shortconv.out_proj.weight", (d, d)
        return
    if shape.mamba and i not in shape.attends:
        yield from _mamba(shape, i)
        return
    if shape.delta and (i + 1) % shape.attends_every:
        yield from _delta_net(shape, i)
        return
    q_rows = 2 * q if shape.delta else q  # with the gates
    separate = (("q", q),) if i >= shape.n_blocks - shape.shared else (("q", q_rows), ("k", kv), ("v", kv))
    for name, rows in (("qkv", q + 2 * kv),) if shape.fused else separate[:2] if is_keyed else separate:
        yield f"blk.{i}.attn_{name}.weight", (rows, d)
        if shape.qkv_bias:
            yield f"blk.{i}.attn_{name}.bias", (rows,)
    if shape.qk_norm:
        is_whole = shape.qk_norm == "width"
        yield f"blk.{i}.attn_q_norm.weight", (q if is_whole else width,)
        if len(separate) > 1:
            yield f"blk.{i}.attn_k_norm.weight", (kv if is_whole else width,)
    yield f"blk.{i}.attn_output.weight", (d, q)


def has_window(shape: Shape, i: int) -> bool:
    return shape.window > 0 and (i + 1) % shape.window_pattern > 0


def key_heads(shape: Shape, i: int) -> int:
    return shape.n_kv_heads // 2 if shape.keyed and not has_window(shape, i) else shape.n_kv_heads


def feed_width(shape: Shape, i: int) -> int:
    return shape.d_ff * (2 if i >= shape.n_blocks - shape.shared else 1)


def _delta_net(shape: Shape, i: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    d = shape.d_model
    keys, values, width = shape.delta
    channels = (2 * keys + values) * width
    block = f"blk.{i}"
    yield f"{block}.attn_qkv.weight", (channels, d)
    yield f"{block}.attn_gate.weight", (values * width, d)
    yield f"{block}.ssm_conv1d.weight", (channels, 4)
    yield f"{block}.ssm_dt.bias", (values,)
    yield f"{block}.ssm_a", (values,)
    yield f"{block}.ssm_alpha.weight", (values, d)
    yield f"{block}.ssm_beta.weight", (values, d)
    yield f"{block}.ssm_norm.weight", (width,)
    yield f"{block}.ssm_out.weight", (d, values * width)


def _draft(shape: Shape, i: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    """As a block with attention, which takes a token's embedding and the last block's output."""
    d = shape.d_model
    yield f"blk.{i}.attn_norm.weight", (d,)
    shape = replace(shape, attends_every=1, n_blocks=i + 1)
    yield from _mixer(shape, i)
    yield f"blk.{i}.post_attention_norm.weight", (d,)
    yield from _feed_forward(shape, i)
    yield f"blk.{i}.nextn.eh_proj.weight", (d, 2 * d)
    yield f"blk.{i}.nextn.enorm.weight", (d,)
    yield f"blk.{i}.nextn.hnorm.weight", (d,)


def _mamba(shape: Shape, i: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    inner = 2 * shape.d_model
    heads, state, groups = shape.mamba
    channels = inner + 2 * groups * state
    block = f"blk.{i}"
    yield f"{block}.ssm_in.weight", (inner + channels + heads, shape.d_model)
    yield f"{block}.ssm_conv1d.weight", (channels, 4)
    yield f"{block}.ssm_conv1d.bias", (channels,)
    yield f"{block}.ssm_dt.bias", (heads,)
    yield f"{block}.ssm_a", (heads, 1)
    yield f"{block}.ssm_d", (heads, 1)
    yield f"{block}.ssm_norm.weight", (groups, inner // groups)
    yield f"{block}.ssm_out.weight", (shape.d_model, inner)


def _feed_forward(shape: Shape, i: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    d = shape.d_model
    f = feed_width(shape, i)
    block = f"blk.{i}"
    if shape.experts and i >= shape.dense_first:
        n = shape.experts[0]
        f = shape.d_expert or f
        if shape.dense_first:
            yield f"{block}.exp_probs_b.bias", (n,)
        yield f"{block}.ffn_gate_inp.weight", (n, d)
        yield from ((f"{block}.ffn_{name}_exps.weight", (n, f, d)) for name in ("gate", "up"))
        yield f"{block}.ffn_down_exps.weight", (n, d, f)
        if shape.d_shared:
            yield from ((f"{block}.ffn_{name}_shexp.weight", (shape.d_shared, d)) for name in ("gate", "up"))
            yield f"{block}.ffn_down_shexp.weight", (d, shape.d_shared)
        return
    if not shape.fused_feed:
        yield f"{block}.ffn_gate.weight", (f, d)
    yield f"{block}.ffn_up.weight", (2 * f if shape.fused_feed else f, d)
    yield f"{block}.ffn_down.weight", (d, f)


def model_metadata(architecture: str, shape: Shape) -> dict[str, object]:
    """The hyperparameters under the keys that llama.cpp reads."""
    fields: dict[str, object] = {
        "context_length": shape.n_context, "embedding_length": shape.d_model, "block_count": shape.n_blocks,
        "feed_forward_length": shape.d_ff, "vocab_size": shape.n_vocab, "attention.head_count": shape.n_heads,
        "attention.head_count_kv": shape.n_kv_heads, "attention.key_length": shape.head_width,
        "attention.value_length": shape.head_width, "attention.layer_norm_rms_epsilon": shape.rms_eps,
        "rope.dimension_count": shape.head_width, "rope.freq_base": shape.rope_base}
    fields |= zip(("embedding_scale", "residual_scale", "attention.scale", "logit_scale"), shape.scales, strict=False)
    fields |= zip(("expert_count", "expert_used_count"), shape.experts, strict=False)
    if shape.conv:
        fields["shortconv.l_cache"] = 3
        fields["attention.head_count_kv"] = [0 if i in shape.conv else shape.n_kv_heads for i in range(shape.n_blocks)]
    if shape.drafts:
        fields |= {"block_count": shape.n_blocks + shape.drafts, "nextn_predict_layers": shape.drafts}
    if shape.delta:
        fields |= delta_metadata(*shape.delta, shape.attends_every, rotated=shape.head_width // 2)
    if shape.mamba:
        fields |= mamba_metadata(shape.mamba, shape.d_model)
        fields["attention.head_count_kv"] = [shape.n_kv_heads if i in shape.attends else 0
                                             for i in range(shape.n_blocks)]
    if shape.experts and architecture in ("qwen3moe", "lfm2moe"):
        fields["expert_feed_forward_length"] = shape.d_expert or shape.d_ff
    if shape.d_shared:
        fields["expert_shared_feed_forward_length"] = shape.d_shared
    if shape.dense_first:
        fields |= {"leading_dense_block_count": shape.dense_first, "expert_gating_func": 2}
    if shape.window:
        fields["attention.sliding_window"] = shape.window
        fields["attention.sliding_window_pattern"] = shape.window_pattern
    if shape.narrow_width:
        every = range(shape.n_blocks)
        fields |= {"attention.key_length_swa": shape.narrow_width, "attention.value_length_swa": shape.narrow_width,
                   "rope.dimension_count_swa": shape.narrow_width, "rope.freq_base_swa": 1e4,
                   "attention.shared_kv_layers": shape.shared, "final_logit_softcapping": shape.cap,
                   "embedding_length_per_layer_input": shape.d_block,
                   "attention.sliding_window_pattern": [has_window(shape, i) for i in every],
                   "attention.head_count_kv": [key_heads(shape, i) for i in every],
                   "feed_forward_length": [feed_width(shape, i) for i in every]}
    return {f"{architecture}.{key}": value for key, value in fields.items()}


def delta_metadata(keys: int, values: int, width: int, attends_every: int, rotated: int) -> dict[str, object]:
    """Those of blocks with a delta net, and of a head of which some values are rotated."""
    sections = [-(-(rotated // 2 - i) // 3) for i in range(3)]
    return {"ssm.conv_kernel": 4, "ssm.state_size": width, "ssm.group_count": keys, "ssm.time_step_rank": values,
            "ssm.inner_size": values * width, "full_attention_interval": attends_every,
            "rope.dimension_count": rotated, "rope.dimension_sections": [*sections, 0]}


def mamba_metadata(sizes: tuple[int, ...], d_model: int) -> dict[str, object]:
    """Those of blocks with Mamba 2, whose others have no rotary embedding."""
    heads, state, groups = sizes
    return {"ssm.conv_kernel": 4, "ssm.state_size": state, "ssm.group_count": groups, "ssm.time_step_rank": heads,
            "ssm.inner_size": 2 * d_model, "rope.scaling.finetuned": False}


def tokenizer_metadata(n_vocab: int, add_bos: bool = False, pre: str = "llama") -> dict[str, object]:
    """A byte-level BPE tokenizer: specials, all bytes, merges, then unused tokens up to `n_vocab`."""
    merges = list(dict.fromkeys(f"{word[:i]} {word[i]}" for word in WORDS for i in range(1, len(word))))
    tokens = SPECIALS + byte_letters() + [merge.replace(" ", "") for merge in merges]
    if len(tokens) > n_vocab:
        raise ValueError(f"n_vocab {n_vocab} is below the tokenizer's {len(tokens)} tokens")
    unused = [f"<|unused_{i}|>" for i in range(n_vocab - len(tokens))]
    control = gguf.TokenType.CONTROL
    normal = gguf.TokenType.NORMAL
    spare = gguf.TokenType.UNUSED
    types = [control] * len(SPECIALS) + [normal] * (len(tokens) - len(SPECIALS)) + [spare] * len(unused)
    return {
        "tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": {"llama": "smollm"}.get(pre, "qwen2"),
        "tokenizer.ggml.tokens": tokens + unused, "tokenizer.ggml.token_type": [int(t) for t in types],
        "tokenizer.ggml.merges": merges, "tokenizer.ggml.bos_token_id": END_OF_TEXT,
        "tokenizer.ggml.eos_token_id": IM_END, "tokenizer.ggml.padding_token_id": END_OF_TEXT,
        "tokenizer.ggml.add_bos_token": add_bos, "tokenizer.chat_template": CHAT_TEMPLATE}


def byte_letters() -> list[str]:
    """The letter that stands for each byte in byte-level BPE: itself where it prints, else the next from U+0100."""
    prints = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [b for b in range(N_BYTES) if b not in prints]
    return [chr(b) if b in prints else chr(0x100 + others.index(b)) for b in range(N_BYTES)]


def write_gguf(
    path: str | Path, architecture: str, metadata: Mapping[str, object], tensors: Mapping[str, np.ndarray],
    formats: str | Mapping[str, str] = "F32") -> Path:
    """Write with the gguf package. Integers become uint32, floats float32, None nothing; 1-D tensors stay F32."""
    scalar = {bool: gguf.GGUFValueType.BOOL, int: gguf.GGUFValueType.UINT32, float: gguf.GGUFValueType.FLOAT32}
    writer = gguf.GGUFWriter(path, architecture)
    for key, value in metadata.items():
        if value is None:
            continue
        kind = scalar.get(type(value)) or (gguf.GGUFValueType.STRING if isinstance(value, str) else None)
        writer.add_key_value(key, value, kind or gguf.GGUFValueType.ARRAY)
    for name, tensor in tensors.items():
        format = "F32" if tensor.ndim != 2 or name.endswith(PLAIN) else format_of(name, formats)
        data = quantize(tensor, format)
        writer.add_tensor_info(name, tensor.shape, np.dtype(np.float32), data.nbytes, raw_dtype=ggml_type(format)[0])
        writer.tensors[-1][name].tensor = data
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return Path(path)


def format_of(name: str, formats: str | Mapping[str, str]) -> str:
    """The format that `formats` (see `write_tiny`) gives to the tensor `name`."""
    if isinstance(formats, str):
        return formats
    return next((format for part, format in formats.items() if part in name), "F32")
