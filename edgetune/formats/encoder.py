"""What an encoder looks like, read from GGUF metadata: sizes, and how a document's vector is made."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from ..errors import FormatError, UnsupportedError
from .gguf import ENCODER, MODERN, NOMIC, Gguf
from .metadata import MetadataReader, read_windows, refuse_variants
from .rope import Rope
from .shape import check_tensors

POOLINGS = {1: "mean", 2: "first"}
"""How the vector of a document is made of its tokens', by the number in GGUF."""
ACTIVATIONS = {"gelu": "gelu_erf", "silu": "silu", "swish": "silu", "swiglu": "silu"}
"""The activation of a ModernBERT's gate, as ops call it, by its name in GGUF."""
GLOBAL_EVERY = 3  # blocks of a ModernBERT whose file does not say so


class EncoderOrder(NamedTuple):
    """What the blocks of an architecture have. act: the activation of the MLP; "": that which the file names.
    norms_inputs: whether attention and MLP norm what they read, and the head too; else each sum is normed. is_bare:
    whether the first attention reads the embedding as it is. rotates: whether positions are rotations, not embeddings.
    is_joined: whether gate and values of the MLP come from one projection. is_lean: whether it has neither biases nor
    types of tokens. has_windows: whether some blocks see a window alone.
    """

    act: str = ""
    norms_inputs: bool = False
    is_bare: bool = False
    rotates: bool = False
    is_joined: bool = False
    is_lean: bool = False
    has_windows: bool = False


ORDERS = {ENCODER: EncoderOrder("gelu"), NOMIC: EncoderOrder("silu", rotates=True),
          MODERN: EncoderOrder(norms_inputs=True, is_bare=True, rotates=True, is_joined=True, is_lean=True,
                               has_windows=True)}
"""By architecture."""


@dataclass(frozen=True)
class EncoderShape:
    """Sizes of an encoder. Letters: D, F, H, C, V as of a decoder (shape.py)."""

    architecture: str
    n_layer: int
    d_model: int  # D
    d_ff: int  # F
    n_head: int  # H
    n_vocab: int  # V
    context: int  # tokens that the model was made for
    norm_eps: float
    pooling: str  # mean | first
    act: str  # gelu | silu | gelu_erf; the last two gate
    is_fused: bool  # whether queries, keys and values come from one projection
    ropes: tuple[Rope, ...]  # of blocks that see everything, of blocks with a window; (): positions have embeddings
    windows: tuple[int, ...]  # of a block: a token sees others at a distance below this; 0: all

    @property
    def order(self) -> EncoderOrder:
        return ORDERS[self.architecture]

    @property
    def is_gated(self) -> bool:
        return self.act != "gelu"

    def rope_of(self, layer: int) -> int:
        """Index into ropes."""
        return 1 if self.windows[layer] else 0

    @property
    def d_head(self) -> int:
        return self.d_model // self.n_head

    def linear_shapes(self) -> dict[str, tuple[int, int]]:
        """[N, K] of the projections of a block, by GGUF name."""
        d = self.d_model
        f = self.d_ff
        inputs = {"attn_qkv": (3 * d, d)} if self.is_fused else {f"attn_{name}": (d, d) for name in "qkv"}
        ups = {"ffn_up": (2 * f if self.order.is_joined else f, d)}
        if self.is_gated and not self.order.is_joined:
            ups = {"ffn_gate": (f, d), **ups}
        return {**inputs, "attn_output": (d, d), **ups, "ffn_down": (d, f)}

    @property
    def norms(self) -> list[str]:
        """The layer norms in the order of a pass."""
        inputs = self.order.norms_inputs
        kinds = ("attn_norm", "ffn_norm") if inputs else ("attn_output_norm", "layer_output_norm")
        of_blocks = [f"blk.{i}.{kind}" for i in range(self.n_layer) for kind in kinds]
        return ["token_embd_norm", *of_blocks[self.order.is_bare:], *["output_norm"] * inputs]


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
    n_layer = get.integer("block_count")
    order = ORDERS[arch]
    ropes = tuple(Rope(base=get.number(key, 10000.0))  # that of everywhere, then of windows
                  for key in ("rope.freq_base", "rope.freq_base_swa")) if order.rotates else ()
    shape = EncoderShape(architecture=arch, n_layer=n_layer, d_model=d_model,
                         d_ff=get.integer("feed_forward_length"), n_head=n_head,
                         n_vocab=tokens.shape[0] if tokens else 0, context=get.integer("context_length"),
                         norm_eps=get.number("attention.layer_norm_epsilon"), pooling=POOLINGS[pooling],
                         act=order.act or _activation(get, arch), is_fused="blk.0.attn_qkv.weight" in gguf.tensors,
                         ropes=ropes, windows=_windows(get, n_layer) if order.has_windows else (0,) * n_layer)
    _check_sizes(gguf, shape)
    _check_tensors(gguf, shape)
    return shape


def _activation(get: MetadataReader, arch: str) -> str:
    name = get.text("hidden_activation", "gelu")
    if name not in ACTIVATIONS:
        raise UnsupportedError(f"{get.gguf.path} has {arch}.hidden_activation = {name:.60}",
                               f"edgetune trains models with one of {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[name]


def _windows(get: MetadataReader, n_layer: int) -> tuple[int, ...]:
    """A file gives the width of a window, whose middle is the token; ops take how far it reaches."""
    width = get.integer("attention.sliding_window", 0)
    return read_windows(get, n_layer, width // 2 + 1 if width else 0, GLOBAL_EVERY, first=True)


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
    for rope in s.ropes:
        if s.d_head % 2 or not rope.base > 1:
            raise UnsupportedError(f"{gguf.path} has heads of {s.d_head} and a rotary base of {rope.base:g}",
                                   "edgetune takes even widths and a base over 1")
    if not s.norm_eps > 0:
        raise UnsupportedError(f"{gguf.path} has a norm epsilon of {s.norm_eps:g}", "edgetune takes positive ones")


def _check_tensors(gguf: Gguf, s: EncoderShape) -> None:
    d = s.d_model
    types = gguf.tensors.get("token_types.weight")
    expected: dict[str, tuple[int, ...]] = {"token_embd.weight": (s.n_vocab, d)}
    if not s.ropes:
        expected["position_embd.weight"] = (s.context, d)
    optional: dict[str, tuple[int, ...]] = {}
    if types and not s.order.is_lean:  # llama.cpp's quantizer writes a single row as a vector
        optional["token_types.weight"] = (d,) if types.shape == (d,) else (types.shape[0], d)
    expected |= {f"{name}.weight": (d,) for name in s.norms}
    if not s.order.is_lean:
        expected |= {f"{name}.bias": (d,) for name in s.norms}
    for i in range(s.n_layer):
        for name, (n, k) in s.linear_shapes().items():
            expected[f"blk.{i}.{name}.weight"] = (n, k)
            if not (s.is_gated and name.startswith("ffn")) and not s.order.is_lean:  # which llama.cpp would leave out
                optional[f"blk.{i}.{name}.bias"] = (n,)
    for name, tensor in gguf.tensors.items():
        if len(tensor.shape) == 1 and tensor.format != "F32":
            raise FormatError(f"{gguf.path} holds {name} in format {tensor.format}", "norms and biases must be F32")
    check_tensors(gguf, s.architecture, expected, optional)
