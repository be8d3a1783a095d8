"""What the blocks of a decoder may differ by: sizes, whose keys and values a block attends to, embeddings that each has
for itself, a mixture of experts in place of the feed-forward part, and the last ones that draft several tokens ahead
(multi-token prediction), which neither llama.cpp's answers nor training read.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..errors import FormatError, UnsupportedError
from .gguf import Gguf, check_experts
from .metadata import refuse_variants

if TYPE_CHECKING:
    from .families import ModelFamily
    from .metadata import MetadataReader
    from .shape import Shape

TABLE = "per_layer_token_embd.weight"  # the embeddings of all blocks, [V, blocks * their width]
SHARED = "shared attention"  # mixers, as in kinds.py
VALUELESS = "attention to keys"
EMBEDDED = ("inp_gate", "proj")  # projections to a block's embeddings and back
DRAFTING = "nextn_predict_layers"
SHARED_WIDTH = "expert_shared_feed_forward_length"


@dataclass(frozen=True)
class BlockSizes:
    """Sizes by which blocks may differ, of one block; as in Shape."""

    d_ff: int
    n_kv: int
    d_head: int
    n_rot: int


def read_sizes(get: MetadataReader, windows: Sequence[int], full_head: int, full_rot: int,
               family: ModelFamily) -> tuple[BlockSizes, ...]:
    """The sizes of each block; (): the family has blocks of one size. full_head, full_rot: the width of a head, and its
    rotated values, in blocks without a window.
    """
    if not family.sized_blocks:
        return ()
    if not isinstance(get.any("attention.sliding_window_pattern"), list) or not max(windows):
        raise FormatError(f"{get.gguf.path} lists no blocks with a window", "convert the model again")
    if get.text("rope.scaling.type", "none") != "none" or get.any("rope.scaling.factor"):
        raise UnsupportedError(f"{get.gguf.path} scales its rotary embedding",
                               f"edgetune trains {get.arch} without that")
    n_layer = len(windows)
    widths = get.integers("feed_forward_length", n_layer)
    heads = get.integers("attention.head_count_kv", n_layer)
    d_head = get.integer("attention.key_length_swa")
    n_rot = get.integer("rope.dimension_count_swa", full_rot)
    return tuple(BlockSizes(d_ff, n_kv, d_head if window else full_head, n_rot if window else full_rot)
                 for d_ff, n_kv, window in zip(widths, heads, windows, strict=True))


def shared_keys(get: MetadataReader, windows: Sequence[int], family: ModelFamily) -> tuple[int, ...]:
    """The block whose keys and values each block attends to; (): all attend to their own.

    The last `attention.shared_kv_layers` blocks take those of the last block before them that has a window as they do,
    or none.
    """
    shared = get.integer("attention.shared_kv_layers", 0) if family.shares_keys else 0
    if not shared:
        return ()
    n_layer = len(windows)
    first = n_layer - shared
    # llama.cpp takes those of these two, whatever windows they have
    if first < 2 or not windows[first - 2] or windows[first - 1]:
        raise UnsupportedError(f"{get.gguf.path} has {n_layer} blocks, of which the last {shared} take keys of others",
                               "edgetune needs a block with a window and one without just before them")
    return tuple(i if i < first else first - (2 if windows[i] else 1) for i in range(n_layer))


def read_mixers(get: MetadataReader, usual: Sequence[str], owners: Sequence[int],
                family: ModelFamily) -> tuple[str, ...]:
    """The kinds of mixers of all blocks. usual: where no block takes keys of another."""
    found = list(usual)
    for layer, owner in enumerate(owners or range(len(found))):
        if owner != layer:
            found[layer] = SHARED
        elif family.shares_keys and f"blk.{layer}.attn_v.weight" not in get.gguf.tensors:
            found[layer] = VALUELESS
    return tuple(found)


def table_row(gguf: Gguf) -> int:
    """Bytes that the file has of all blocks' embeddings of one token."""
    table = gguf.tensors.get(TABLE)
    if table is None or len(table.shape) != 2:
        raise FormatError(f"{gguf.path} lacks the tensor {TABLE} [V, blocks * width]", "convert the model again")
    return table.data.nbytes // table.shape[0]


def embedding_projections(s: Shape) -> dict[str, tuple[int, int]]:
    """[N, K] of a block's projections by which it adds its embeddings."""
    return dict(zip(EMBEDDED, ((s.d_block, s.d_model), (s.d_model, s.d_block)), strict=True)) if s.d_block else {}


def embedding_tensors(s: Shape) -> dict[str, tuple[int, ...]]:
    """Name -> shape of the tensors that embeddings of each block need."""
    if not s.d_block:
        return {}
    d = s.d_model
    width = s.n_layer * s.d_block
    found: dict[str, tuple[int, ...]] = {TABLE: (s.n_vocab, width), "per_layer_model_proj.weight": (width, d),
                                         "per_layer_proj_norm.weight": (s.d_block,)}
    for i in range(s.n_layer):
        found[f"blk.{i}.post_norm.weight"] = (d,)
    return found


def unused_tensors(s: Shape) -> dict[str, tuple[int, ...]]:
    """Name -> shape of what a file may hold of blocks that take the keys and values of others."""
    found: dict[str, tuple[int, ...]] = {}
    for i in range(s.n_layer):
        own = s.of(i)
        if s.owner(i) != i:
            found |= {f"blk.{i}.attn_k.weight": (own.d_kv, s.d_model), f"blk.{i}.attn_v.weight": (own.d_kv, s.d_model),
                      f"blk.{i}.attn_k_norm.weight": (own.d_head,)}
    return found


def drafting_blocks(get: MetadataReader) -> int:
    """The number of the file's last blocks that draft. Raises FormatError where they are all."""
    count = get.integer(DRAFTING, 0)
    if count and count >= get.integer("block_count"):
        raise FormatError(f"{get.gguf.path} has {get.arch}.{DRAFTING} = {count}, and no more blocks",
                          "take the file of the whole model")
    return count


def unread_tensors(gguf: Gguf, n_layer: int) -> dict[str, tuple[int, ...]]:
    """The tensors of blocks from n_layer on, if some draft."""
    if not gguf.metadata.get(f"{gguf.architecture}.{DRAFTING}", 0):
        return {}
    found = ((name, re.match(r"blk\.(\d+)\.", name)) for name in gguf.tensors)
    return {name: gguf.tensors[name].shape for name, block in found if block and int(block[1]) >= n_layer}


@dataclass(frozen=True)
class Mixture:
    """count: experts. used: those that a token takes. width: of an expert. shared: of the expert that all tokens take
    besides; 0: there is none.
    """

    count: int = 0
    used: int = 0
    width: int = 0
    shared: int = 0


NO_MIXTURE = Mixture()


def read_mixture(get: MetadataReader, family: ModelFamily) -> Mixture:
    """NO_MIXTURE: all blocks are dense. Raises UnsupportedError if others than the family's experts are meant, and
    FormatError if a token takes more than there are.
    """
    experts = get.integer("expert_count", 0)
    if family.feed != "experts" and not (family.may_have_experts and experts):
        if experts:
            raise UnsupportedError(f"{get.gguf.path} is a mixture of experts", f"edgetune trains dense {get.arch}")
        return NO_MIXTURE
    gating = 2 if family.gating == "sigmoid" else 1  # as files number them
    refuse_variants(get, {"expert_weights_scale": 1.0, "expert_weights_norm": family.norms_experts,
                          "expert_gating_func": gating, "expert_shared_count": 0,
                          **({} if family.shares_expert else {SHARED_WIDTH: 0})})
    used = get.integer("expert_used_count")
    check_experts(get.gguf, experts, [used])
    whole = get.integer("feed_forward_length")
    own = get.integer("expert_feed_forward_length", 0)
    width = own or (whole // used if family.shared_width else whole)
    return Mixture(experts, used, width, get.integer(SHARED_WIDTH, 0) if family.shares_expert else 0)


def feeds_of(get: MetadataReader, n_layer: int, mixture: Mixture, family: ModelFamily) -> tuple[str, ...]:
    """The kind of each block's feed-forward part: the first may be dense where others have experts."""
    dense = get.integer("leading_dense_block_count", 0) if family.dense_first else 0
    kind = ("shared experts" if mixture.shared else "experts") if mixture.count else family.feed
    return tuple("gated" if layer < dense else kind for layer in range(n_layer))
