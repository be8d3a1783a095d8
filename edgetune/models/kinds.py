"""The kinds of sublayers, by their names in a Shape."""

from __future__ import annotations

from .attention import SelfAttention
from .delta_net import DeltaNet
from .experts import Experts
from .fused import FusedAttention, FusedGated
from .gated import Gated
from .gated_attention import GatedAttention
from .keyed import AttentionToKeys
from .mamba import Mamba
from .shared_attention import SharedAttention
from .shared_experts import SharedExperts
from .short_conv import ShortConv
from .sublayer import FeedForward, Mixer

MIXERS: dict[str, type[Mixer]] = {"attention": SelfAttention, "fused attention": FusedAttention,
                                 "attention to keys": AttentionToKeys, "shared attention": SharedAttention,
                                 "short convolution": ShortConv, "gated attention": GatedAttention,
                                 "delta net": DeltaNet, "mamba": Mamba}
FEEDS: dict[str, type[FeedForward]] = {"gated": Gated, "fused gated": FusedGated, "experts": Experts,
                                     "shared experts": SharedExperts}
