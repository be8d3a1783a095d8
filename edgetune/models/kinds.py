"""The kinds of sublayers, by their names in a Shape. A model imports those that its blocks have, and no others."""

from __future__ import annotations

from functools import cache
from pkgutil import resolve_name

from .sublayer import FeedForward, Mixer

MIXERS = {"attention": "attention:SelfAttention", "fused attention": "fused:FusedAttention",
          "attention to keys": "keyed:AttentionToKeys", "shared attention": "shared_attention:SharedAttention",
          "short convolution": "short_conv:ShortConv", "gated attention": "gated_attention:GatedAttention",
          "delta net": "delta_net:DeltaNet", "mamba": "mamba:Mamba"}
FEEDS = {"gated": "gated:Gated", "fused gated": "fused:FusedGated", "experts": "experts:Experts",
         "shared experts": "shared_experts:SharedExperts"}
"""The module of this package and the class of each."""


@cache
def mixer_named(name: str) -> type[Mixer]:
    found: type[Mixer] = resolve_name(f"{__package__}.{MIXERS[name]}")
    return found


@cache
def feed_named(name: str) -> type[FeedForward]:
    found: type[FeedForward] = resolve_name(f"{__package__}.{FEEDS[name]}")
    return found
