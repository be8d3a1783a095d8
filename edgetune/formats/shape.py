"""What a decoder looks like, read from GGUF metadata: sizes, switches, rotary tables.

One block structure (RMSNorm, rotary attention with grouped heads, gated MLP) serves all of families.py; they differ by
the numbers and switches below and by which tensors are present.

A scale r of what is added to the residual stream is no switch: the stream is computed divided by r, x / r, which the
norms undo. Their epsilon becomes eps / r^2, and the embedding's scale is divided by r, too.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from functools import cached_property

from ..errors import FormatError, UnsupportedError
from . import block_sizes, kinds
from .block_sizes import BlockSizes, drafting_blocks, feeds_of, read_mixture, unread_tensors
from .families import FAMILIES, ModelFamily
from .gguf import FORMATS, Gguf, Tensor
from .metadata import MetadataReader, read_windows, refuse_variants
from .recurrent import NONE, RecurrentShape, check_sections, read_recurrent, recurrent_mixers
from .rope import Rope, read_rope


@dataclass(frozen=True)
class Shape:
    """Sizes and switches of a decoder. Letters as everywhere: D, F, H, G, C, V.

    Where `blocks` lists sizes, they are those of each block, which `of` gives, and the shape's own are the largest.
    """

    architecture: str
    n_layer: int
    d_model: int  # D
    d_ff: int  # F
    n_head: int  # H
    n_kv: int  # G
    d_head: int  # C
    n_vocab: int  # V
    n_rot: int  # rotated values of a head, even, <= C
    context: int  # tokens that the model was made for
    norm_eps: float
    neox: bool  # rotary order: pairs (i, i + n_rot/2) instead of (2i, 2i+1)
    act: str  # silu | gelu
    embed_scale: float
    attn_scale: float
    qk_norm: str  # as of ModelFamily
    post_norms: bool  # a sublayer's output is normed before it is added
    ropes: tuple[Rope, Rope]  # of blocks that see everything, of blocks with a window
    windows: tuple[int, ...]  # a block's sliding window in tokens, 0: none
    biases: tuple[str, ...] = ()  # projections that have one in every block
    pre_norms: bool = True  # a sublayer's input is normed
    unrotated: tuple[int, ...] = ()  # blocks without a rotary embedding
    logit_scale: float = 1.0  # logits are divided by it
    logit_cap: float = 0.0  # then they are cap * tanh(z / cap); 0: they stay
    mixers: tuple[str, ...] = ()  # a block's kind of mixer (kinds.py); (): attention in all
    feeds: tuple[str, ...] = ()  # a block's kind of feed-forward part; (): gated in all
    conv: int = 0  # tokens that a short convolution sees
    recurrent: RecurrentShape = NONE  # of blocks with a state
    inner_eps: float = 0.0  # of norms within a mixer, whatever scales the residual stream
    n_expert: int = 0
    n_used: int = 0  # experts that a token takes
    d_expert: int = 0  # an expert's width
    d_shared: int = 0  # of the expert that all tokens take besides
    gating: str = "softmax"  # as of ModelFamily, like the next
    norms_experts: bool = False
    blocks: tuple[BlockSizes, ...] = ()
    owners: tuple[int, ...] = ()  # of each block, whose keys and values it attends to; (): its own
    norms_values: bool = False  # as of ModelFamily
    d_block: int = 0  # the width of the embeddings of each block; 0: there are none
    block_row: int = 0  # bytes that the file has of them for a token

    @property
    def family(self) -> ModelFamily:
        return FAMILIES[self.architecture]

    @property
    def d_q(self) -> int:
        return self.n_head * self.d_head

    @property
    def d_kv(self) -> int:
        return self.n_kv * self.d_head

    def of(self, layer: int) -> Shape:
        """The shape of a decoder whose blocks all have the sizes of this one: itself where blocks do not differ."""
        return self._of_blocks[layer] if self.blocks else self

    @cached_property
    def _of_blocks(self) -> tuple[Shape, ...]:
        found = {sizes: replace(self, blocks=(), **asdict(sizes)) for sizes in dict.fromkeys(self.blocks)}
        return tuple(found[sizes] for sizes in self.blocks)

    def mixer(self, layer: int) -> str:
        """The kind of a block's mixer, as in kinds.py."""
        return self.mixers[layer] if self.mixers else "attention"

    def feed(self, layer: int) -> str:
        """The kind of a block's feed-forward part."""
        return self.feeds[layer] if self.feeds else "gated"

    @cached_property
    def kinds(self) -> tuple[tuple[str, str, BlockSizes | None], ...]:
        """Each block's mixer, feed-forward part, and sizes where blocks differ in them. Projections and activations
        of blocks of one kind are the same.
        """
        return tuple((self.mixer(i), self.feed(i), self.blocks[i] if self.blocks else None)
                     for i in range(self.n_layer))

    def owner(self, layer: int) -> int:
        """The block whose keys and values a block attends to: itself, or one before it."""
        return self.owners[layer] if self.owners else layer

    @cached_property
    def lenders(self) -> tuple[int, ...]:
        """The blocks whose keys and values others attend to."""
        return tuple(sorted({owner for layer, owner in enumerate(self.owners) if owner != layer}))

    @cached_property
    def last_maker(self) -> int:
        """The last block that makes keys, or what else later tokens read of a token. Its output and that of the blocks
        after it is needed only of tokens from which something is predicted.
        """
        return max(layer for layer in range(self.n_layer) if self.owner(layer) == layer)

    def norm_widths(self, layer: int) -> dict[str, int]:
        """Values that each norm of a block has, by GGUF name."""
        own = kinds.NORMS.get(self.mixer(layer))
        before = ("attn_norm", self.family.feed_norm) if self.pre_norms else ()
        after = ("post_attention_norm", "post_ffw_norm") if self.post_norms else ()
        return {**dict.fromkeys(before, self.d_model), **(own(self.of(layer)) if own else {}),
                **dict.fromkeys(after, self.d_model)}

    def rope_of(self, layer: int) -> int:
        """Index into ropes."""
        return 1 if self.windows[layer] else 0

    def rotated(self, rope: int) -> int:
        """Rotated values of a head in blocks of this index into ropes."""
        return next((self.of(i).n_rot for i in range(self.n_layer) if self.rope_of(i) == rope), self.n_rot)

    def linear_shapes(self, layer: int) -> dict[str, tuple[int, int]]:
        """[N, K] of the projections of a block, by GGUF name. Blocks of one kind share the dict: read it only."""
        return self._projections[layer]

    @cached_property
    def _projections(self) -> tuple[dict[str, tuple[int, int]], ...]:
        """What `linear_shapes` gives; a planner asks thousands of times."""
        found = {}
        for layer, kind in enumerate(self.kinds):
            if kind not in found:
                s = self.of(layer)
                found[kind] = {**kinds.PROJECTIONS[self.mixer(layer)](s), **kinds.PROJECTIONS[self.feed(layer)](s),
                               **block_sizes.embedding_projections(s)}
        return tuple(found[kind] for kind in self.kinds)

    def stack_shapes(self, layer: int) -> dict[str, tuple[int, int, int]]:
        """[E, N, K] of the stacks of matrices of a block, by GGUF name."""
        of_kind = kinds.STACKS.get(self.feed(layer))
        return of_kind(self) if of_kind else {}


def read_shape(gguf: Gguf) -> Shape:
    """Raises UnsupportedError for another architecture or format, FormatError where metadata and tensors disagree."""
    arch = gguf.architecture
    if arch not in FAMILIES:
        raise UnsupportedError(f"{gguf.path} has architecture {arch!r}", f"edgetune trains {', '.join(FAMILIES)}")
    family = FAMILIES[arch]
    get = MetadataReader(gguf, arch)
    mixture = read_mixture(get, family)
    mixers, n_kv = _mixers(get, family)
    n_layer = get.integer("block_count") - drafting_blocks(get)
    if n_layer == family.untrained_blocks:
        raise UnsupportedError(f"{gguf.path} is an {arch} of {n_layer} blocks, of which some see a window",
                               "edgetune trains smaller ones")
    d_model = get.integer("embedding_length")
    n_head = get.integer("attention.head_count")
    d_head = get.integer("attention.key_length", d_model // max(n_head, 1))
    n_rot = get.integer("rope.dimension_count", d_head)
    narrow = get.integer("attention.key_length_swa", d_head) if family.sized_blocks else d_head
    refuse_variants(get, {"attention.value_length": d_head, "attention.key_length_swa": narrow,
                           "attention.value_length_swa": narrow, "attention.causal": True,
                           "embedding_length_out": d_model, "attn_logit_softcapping": 0.0,
                           **({} if family.sized_blocks else {"rope.dimension_count_swa": n_rot}),
                           **({} if family.caps_logits else {"final_logit_softcapping": 0.0}), **family.usual})
    global_rope = read_rope(gguf, get, family)
    local_rope = (Rope(base=get.number("rope.freq_base_swa", global_rope.base)) if family.plain_windows else
                  Rope(base=get.number("rope.freq_base_swa", 10000.0), attn_factor=global_rope.attn_factor))
    if family.sections:
        check_sections(get, n_rot)
    wide = n_layer == family.wide_blocks
    scales = _read_scales(get, d_model, d_model // n_head if wide else d_head, family)
    windows = (read_windows(get, n_layer, get.integer("attention.sliding_window", 0), family.windows_every)
               if family.windows_every else (0,) * n_layer)
    blocks = block_sizes.read_sizes(get, windows, d_head, n_rot, family)
    owners = block_sizes.shared_keys(get, windows, family)
    d_block = get.integer("embedding_length_per_layer_input") if family.embeds_blocks else 0
    shape = Shape(
        architecture=arch, n_layer=n_layer, d_model=d_model,
        d_ff=max(own.d_ff for own in blocks) if blocks else get.integer("feed_forward_length"),
        blocks=blocks, owners=owners, norms_values=family.norms_values, d_block=d_block,
        block_row=block_sizes.table_row(gguf) if d_block else 0,
        logit_cap=get.number("final_logit_softcapping", 0.0) if family.caps_logits else 0.0,
        n_expert=mixture.count, n_used=mixture.used, d_expert=mixture.width, d_shared=mixture.shared,
        gating=family.gating,
        norms_experts=family.norms_experts,
        n_head=n_head, n_kv=n_kv, d_head=d_head,
        n_vocab=_embedding(gguf).shape[0], n_rot=n_rot,
        context=_context(get, family), norm_eps=get.number("attention.layer_norm_rms_epsilon") / scales.residual**2,
        neox=family.neox, act=family.act, embed_scale=scales.embedding / scales.residual, attn_scale=scales.attention,
        logit_scale=scales.logits, qk_norm=family.qk_norm, pre_norms=family.pre_norms, post_norms=family.post_norms,
        ropes=(global_rope, local_rope), windows=windows, unrotated=_unrotated(get, n_layer, family),
        mixers=block_sizes.read_mixers(get, mixers, owners, family),
        conv=get.integer("shortconv.l_cache") if "short convolution" in mixers else 0,
        recurrent=read_recurrent(get, mixers), inner_eps=get.number("attention.layer_norm_rms_epsilon"),
        feeds=feeds_of(get, n_layer, mixture, family),
        biases=tuple(name for name in family.biases
                     if all(f"blk.{i}.{name}.bias" in gguf.tensors for i in range(n_layer))))
    _check_sizes(gguf, shape)
    check_tensors(gguf, arch, expected_tensors(shape), optional_tensors(shape) | unread_tensors(gguf, n_layer))
    return shape


def _mixers(get: MetadataReader, family: ModelFamily) -> tuple[tuple[str, ...], int]:
    """The kinds of mixers of all blocks, and the heads of keys where there are some: one number a block, or one."""
    n_layer = get.integer("block_count")
    if family.attends_every:
        return recurrent_mixers(get, family), get.integer("attention.head_count_kv")
    found = get.any("attention.head_count_kv")
    if family.sized_blocks:
        return (family.mixer,) * n_layer, max(get.integers("attention.head_count_kv", n_layer))
    if not family.elsewhere or not isinstance(found, list):
        return (family.mixer,) * n_layer, get.integer("attention.head_count_kv", get.integer("attention.head_count"))
    heads = {count for count in found if count}
    if len(found) != n_layer or len(heads) != 1:
        raise UnsupportedError(f"{get.gguf.path} has {get.arch}.attention.head_count_kv = {str(found)[:60]}",
                               "edgetune needs the same number in all blocks with attention, and one such block")
    return tuple(family.mixer if count else family.elsewhere for count in found), int(heads.pop())


@dataclass(frozen=True)
class _Scales:
    """Factors of the embedding, of what is added to the residual stream, and of scores; logits are divided by theirs.
    """

    embedding: float
    residual: float
    attention: float
    logits: float


def _read_scales(get: MetadataReader, d_model: int, width: int, family: ModelFamily) -> _Scales:
    """width: of a head, for its scores. As in llama.cpp a scale of 0 is none."""
    embedding = math.sqrt(d_model) if family.scaled_embedding else 1.0
    attention = 1.0 if family.plain_scores else 1.0 / math.sqrt(width)
    if not family.scales:
        return _Scales(embedding, 1.0, attention, 1.0)
    found = _Scales(get.number("embedding_scale", 0.0) or embedding, get.number("residual_scale", 0.0) or 1.0,
                    get.number("attention.scale", 0.0) or attention, get.number("logit_scale"))
    if min(found.embedding, found.residual, found.attention, found.logits) <= 0:
        raise UnsupportedError(f"{get.gguf.path} has scales of {found.embedding:g}, {found.residual:g}, "
                               f"{found.attention:g} and {found.logits:g}", "edgetune takes positive ones")
    return found


def _unrotated(get: MetadataReader, n_layer: int, family: ModelFamily) -> tuple[int, ...]:
    if family.scales and get.any("rope.scaling.finetuned") is False:
        return tuple(range(n_layer))
    every = family.unrotated_every
    return tuple(range(every - 1, n_layer, every)) if every else ()


def _context(get: MetadataReader, family: ModelFamily) -> int:
    """Tokens that the model was made for, up to which it scales no queries by their position and no rotation."""
    context = get.integer("context_length")
    if family.long_keys or (family.yarn_keys and get.number("attention.temperature_scale", 0.0)):
        return min(context, get.integer("rope.scaling.original_context_length", context))
    return context


def _embedding(gguf: Gguf) -> Tensor:
    tensor = gguf.tensors.get("token_embd.weight")
    if tensor is None or len(tensor.shape) != 2:
        raise FormatError(f"{gguf.path} lacks the tensor token_embd.weight [V, D]", "convert the model again")
    return tensor


def _check_sizes(gguf: Gguf, s: Shape) -> None:
    limits = {"block_count": (s.n_layer, 512), "embedding_length": (s.d_model, 1 << 20),
              "feed_forward_length": (s.d_ff, 1 << 22), "attention.head_count": (s.n_head, 4096),
              "attention.head_count_kv": (s.n_kv, s.n_head), "attention.key_length": (s.d_head, 512),
              "rope.dimension_count": (s.n_rot, s.d_head)}
    if "short convolution" in s.mixers:
        limits["shortconv.l_cache"] = (s.conv, 8)
    for key, (value, limit) in limits.items():
        if not 1 <= value <= limit:
            raise UnsupportedError(f"{gguf.path} has {s.architecture}.{key} = {value}",
                                   f"edgetune takes 1 to {limit} there")
    if s.family.narrow_heads and s.d_q != s.d_model:
        raise FormatError(f"{gguf.path} has heads of {s.d_q} values together, the model is {s.d_model} wide",
                          f"llama.cpp computes {s.architecture} where both are equal")
    if s.family.ungrouped and s.n_kv != s.n_head:
        raise FormatError(f"{gguf.path} has {s.n_head} heads and {s.n_kv} key heads",
                          f"llama.cpp computes {s.architecture} where both are equal")
    for i in range(s.n_layer):
        own = s.of(i)
        if s.n_head % own.n_kv or own.n_rot % 2 or own.n_rot > own.d_head:
            raise FormatError(f"{gguf.path} has {s.n_head} heads for {own.n_kv} key heads and {own.n_rot} rotated "
                              f"values in heads of {own.d_head}",
                              "the first must be a multiple of the second, the third even and less")
        if (lender := s.of(s.owner(i))).d_kv != own.d_kv:
            raise FormatError(f"{gguf.path} has keys of {own.d_kv} values in block {i}, which takes {lender.d_kv}",
                              "convert the model again")
    if not s.norm_eps > 0:
        raise UnsupportedError(f"{gguf.path} has a norm epsilon of {s.norm_eps:g}", "edgetune takes positive ones")
    if (n := len(s.ropes[0].factors)) not in (0, s.rotated(0) // 2):
        raise FormatError(f"{gguf.path} has {n} rotary factors", f"it needs {s.rotated(0) // 2}")


def expected_tensors(s: Shape) -> dict[str, tuple[int, ...]]:
    """Name -> shape of every tensor that the decoder must have."""
    d = s.d_model
    expected: dict[str, tuple[int, ...]] = {"token_embd.weight": (s.n_vocab, d), f"{s.family.last_norm}.weight": (d,)}
    if s.family.own_head:
        expected["output.weight"] = (s.n_vocab, d)
    for i in range(s.n_layer):
        for name, shape in {**s.linear_shapes(i), **s.stack_shapes(i)}.items():
            expected[f"blk.{i}.{name}.weight"] = shape
        for kind in (s.mixer(i), s.feed(i)):
            expected |= {f"blk.{i}.{name}": shape for name, shape in kinds.frozen(kind, s.of(i)).items()}
        if s.family.biased_experts and s.feed(i) == "experts":
            expected[f"blk.{i}.exp_probs_b.bias"] = (s.n_expert,)
        for name, width in s.norm_widths(i).items():
            expected[f"blk.{i}.{name}.weight"] = (width,)
    if s.family.sized_blocks and not all(s.windows):
        expected["rope_freqs.weight"] = (s.rotated(0) // 2,)
    return expected | block_sizes.embedding_tensors(s)


def optional_tensors(s: Shape) -> dict[str, tuple[int, ...]]:
    """Name -> shape of tensors that some models have: a separate head, biases, factors of the rotary embedding."""
    optional = {"output.weight": (s.n_vocab, s.d_model), **block_sizes.unused_tensors(s)}
    for i in range(s.n_layer):
        linear = s.linear_shapes(i)
        for name in s.family.biases:
            if name in linear:
                optional[f"blk.{i}.{name}.bias"] = (linear[name][0],)
        if s.family.sized_blocks:
            optional[f"blk.{i}.layer_output_scale.weight"] = (1,)
    if s.family.rope_factors:
        optional["rope_freqs.weight"] = (len(s.ropes[0].factors),)
    if s.family.long_keys:
        optional |= dict.fromkeys(("rope_factors_short.weight", "rope_factors_long.weight"), (len(s.ropes[0].factors),))
    return optional


def _without_ones(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape without leading ones: llama-quantize drops them, converters do not."""
    return _without_ones(shape[1:]) if len(shape) > 1 and shape[0] == 1 else shape


def check_tensors(gguf: Gguf, architecture: str, expected: dict[str, tuple[int, ...]],
                  optional: dict[str, tuple[int, ...]]) -> None:
    """Raises the errors of read_shape unless the file has all expected tensors and no others but optional ones, each in
    its shape and a format that ops read.
    """
    for name in expected:
        if name not in gguf.tensors:
            raise FormatError(f"{gguf.path} lacks the tensor {name}", "convert the model again")
    known = expected | optional
    for name, tensor in gguf.tensors.items():
        if name not in known:
            raise UnsupportedError(f"{gguf.path} has the tensor {name}, which edgetune's {architecture} does not use",
                                   "the model is of a variant that cannot be trained yet")
        shape = known[name]
        if _without_ones(tensor.shape) != _without_ones(shape):
            raise FormatError(f"{gguf.path} has {name} of shape {list(tensor.shape)}, metadata says {list(shape)}",
                              "the file is corrupt or was converted wrongly")
        if tensor.format not in FORMATS:
            raise UnsupportedError(f"{gguf.path} holds {name} in format {tensor.format}",
                                   f"edgetune trains on {', '.join(FORMATS)}: requantize with llama-quantize")
