"""A mixture of experts in place of the feed-forward part of some blocks: its sizes, from GGUF metadata."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..errors import UnsupportedError
from .gguf import check_experts
from .metadata import refuse_variants

if TYPE_CHECKING:
    from .families import Family
    from .metadata import MetadataReader

SHARED = "expert_shared_feed_forward_length"


@dataclass(frozen=True)
class Mixture:
    """count: experts. used: those that a token takes. width: of an expert. shared: of the expert that all tokens take
    besides; 0: there is none.
    """

    count: int = 0
    used: int = 0
    width: int = 0
    shared: int = 0


NONE = Mixture()


def read_mixture(get: MetadataReader, family: Family) -> Mixture:
    """NONE: all blocks are dense. Raises UnsupportedError where others than the family's experts are meant, FormatError
    where a token takes more than there are.
    """
    experts = get.integer("expert_count", 0)
    if family.feed != "experts" and not (family.may_have_experts and experts):
        if experts:
            raise UnsupportedError(f"{get.gguf.path} is a mixture of experts", f"edgetune trains dense {get.arch}")
        return NONE
    gating = 2 if family.gating == "sigmoid" else 1  # as files number them
    refuse_variants(get, {"expert_weights_scale": 1.0, "expert_weights_norm": family.norms_experts,
                          "expert_gating_func": gating, "expert_shared_count": 0,
                          **({} if family.shares_expert else {SHARED: 0})})
    used = get.integer("expert_used_count")
    check_experts(get.gguf, experts, [used])
    whole = get.integer("feed_forward_length")
    own = get.integer("expert_feed_forward_length", 0)
    width = own or (whole // used if family.shared_width else whole)
    return Mixture(experts, used, width, get.integer(SHARED, 0) if family.shares_expert else 0)


def feeds_of(get: MetadataReader, n_layer: int, mixture: Mixture, family: Family) -> tuple[str, ...]:
    """The kind of each block's feed-forward part: the first may be dense where others have experts."""
    dense = get.integer("leading_dense_block_count", 0) if family.dense_first else 0
    kind = ("shared experts" if mixture.shared else "experts") if mixture.count else family.feed
    return tuple("gated" if layer < dense else kind for layer in range(n_layer))
