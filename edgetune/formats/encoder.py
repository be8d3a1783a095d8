"""What an encoder looks like, read from GGUF metadata: sizes, and how a document's vector is made."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import FormatError, UnsupportedError
from .gguf import ENCODER, Gguf
from .shape import MetadataReader, Rope, check_tensors, refuse_variants

POOLINGS = {1: "mean", 2: "first"}
"""How the vector of a document is made of its tokens', by the number in GGUF."""


@dataclass(frozen=True)
class EncoderShape:
    """Sizes of a BERT. Letters: D, F, H, C, V as of a decoder (shape.py). A nomic-bert differs: its positions are
    rotations, its MLP is gated by SiLU, its queries, keys and values come from one projection.
    """

    architecture: str
    n_layer: int
    d_model: int  # D
    d_ff: int  # F
    n_head: int  # H
    n_vocab: int  # V
    context: int  # tokens that the model was made for
    norm_eps: float
    pooling: str  # mean | first
    rope: Rope | None  # None: positions have embeddings

    @property
    def is_nomic(self) -> bool:
        return self.architecture != ENCODER

    @property
    def d_head(self) -> int:
        return self.d_model // self.n_head

    def linear_shapes(self) -> dict[str, tuple[int, int]]:
        """[N, K] of the projections of a block, by GGUF name."""
        d = self.d_model
        f = self.d_ff
        if self.is_nomic:
            return {"attn_qkv": (3 * d, d), "attn_output": (d, d), "ffn_gate": (f, d), "ffn_up": (f, d),
                    "ffn_down": (d, f)}
        return {"attn_q": (d, d), "attn_k": (d, d), "attn_v": (d, d), "attn_output": (d, d), "ffn_up": (f, d),
                "ffn_down": (d, f)}

    @property
    def norms(self) -> list[str]:
        """The layer norms in the order of a pass: before the first block, within and after each."""
        return ["token_embd_norm", *(f"blk.{i}.{name}" for i in range(self.n_layer)
                                     for name in ("attn_output_norm", "layer_output_norm"))]


def read_encoder(gguf: Gguf) -> EncoderShape:
    """Raises UnsupportedError for a variant or format that is not known, FormatError where metadata and tensors
    disagree.
    """
    arch = gguf.architecture
    get = MetadataReader(gguf, arch)
    n_head = get.integer("attention.head_count")
    d_model = get.integer("embedding_length")
    refuse_variants(get, {"attention.head_count_kv": n_head, "expert_count": 0, "moe_every_n_layers": 0,
                          "rope.scaling.type": "none", "rope.dimension_count": d_model // max(n_head, 1)})
    if get.any("attention.causal") is not False:
        raise UnsupportedError(f"{gguf.path} does not say that its tokens see both ways ({arch}.attention.causal)",
                               "convert the model again")
    pooling = get.integer("pooling_type", 1)
    if pooling not in POOLINGS:
        known = ", ".join(f"{number} ({name})" for number, name in POOLINGS.items())
        raise UnsupportedError(f"{gguf.path} has the pooling_type {pooling}", f"edgetune trains encoders of {known}")
    tokens = gguf.tensors.get("token_embd.weight")
    rope = None if arch == ENCODER else Rope(base=get.number("rope.freq_base", 10000.0))
    shape = EncoderShape(architecture=arch, n_layer=get.integer("block_count"), d_model=d_model,
                         d_ff=get.integer("feed_forward_length"), n_head=n_head,
                         n_vocab=tokens.shape[0] if tokens else 0, context=get.integer("context_length"),
                         norm_eps=get.number("attention.layer_norm_epsilon"), pooling=POOLINGS[pooling], rope=rope)
    _check_sizes(gguf, shape)
    if "blk.0.attn_qkv.weight" in gguf.tensors and arch == ENCODER:
        raise UnsupportedError(f"{gguf.path} holds queries, keys and values as one matrix",
                               "convert the model with a newer llama.cpp, or with edgetune compress")
    _check_tensors(gguf, shape)
    return shape


def _check_sizes(gguf: Gguf, s: EncoderShape) -> None:
    limits = {"block_count": (s.n_layer, 512), "embedding_length": (s.d_model, 1 << 20),
              "feed_forward_length": (s.d_ff, 1 << 22), "attention.head_count": (s.n_head, s.d_model),
              "context_length": (s.context, 1 << 20)}
    for key, (value, limit) in limits.items():
        if not 1 <= value <= limit:
            raise UnsupportedError(f"{gguf.path} has {s.architecture}.{key} = {value}",
                                   f"edgetune takes 1 to {limit} there")
    if s.d_model % s.n_head or s.d_head > 256:
        raise UnsupportedError(f"{gguf.path} has {s.n_head} heads in a width of {s.d_model}",
                               "edgetune takes heads of equal width, up to 256")
    if s.rope and (s.d_head % 2 or not s.rope.base > 1):
        raise UnsupportedError(f"{gguf.path} has heads of {s.d_head} and a rotary base of {s.rope.base:g}",
                               "edgetune takes even widths and a base over 1")
    if not s.norm_eps > 0:
        raise UnsupportedError(f"{gguf.path} has a norm epsilon of {s.norm_eps:g}", "edgetune takes positive ones")


def _check_tensors(gguf: Gguf, s: EncoderShape) -> None:
    d = s.d_model
    types = gguf.tensors.get("token_types.weight")
    expected: dict[str, tuple[int, ...]] = {"token_embd.weight": (s.n_vocab, d)}
    if not s.rope:
        expected["position_embd.weight"] = (s.context, d)
    optional: dict[str, tuple[int, ...]] = {"token_types.weight": (types.shape[0] if types else 0, d)}
    for name in s.norms:
        expected |= {f"{name}.weight": (d,), f"{name}.bias": (d,)}
    for i in range(s.n_layer):
        for name, (n, k) in s.linear_shapes().items():
            expected[f"blk.{i}.{name}.weight"] = (n, k)
            if not (s.is_nomic and name.startswith("ffn")):  # which llama.cpp would leave out
                optional[f"blk.{i}.{name}.bias"] = (n,)
    for name, tensor in gguf.tensors.items():
        if len(tensor.shape) == 1 and tensor.format != "F32":
            raise FormatError(f"{gguf.path} holds {name} in format {tensor.format}", "norms and biases must be F32")
    check_tensors(gguf, s.architecture, expected, optional)
