"""The kinds of sublayers, by their names in a Shape. A model imports those that its blocks have, and no others."""

from __future__ import annotations

from functools import cache
from importlib import import_module
from typing import Any

from .sublayer import FeedForward, Mixer

MIXERS = {"attention": "attention.SelfAttention", "fused attention": "fused.FusedAttention",
          "attention to keys": "keyed.AttentionToKeys", "shared attention": "shared_attention.SharedAttention",
          "short convolution": "short_conv.ShortConv", "gated attention": "gated_attention.GatedAttention",
          "delta net": "delta_net.DeltaNet", "mamba": "mamba.Mamba"}
FEEDS = {"gated": "gated.Gated", "fused gated": "fused.FusedGated", "experts": "experts.Experts",
         "shared experts": "shared_experts.SharedExperts"}
"""The module of this package and the class of each."""


@cache
def mixer_named(name: str) -> type[Mixer]:
    found: type[Mixer] = _class_at(MIXERS[name])
    return found


@cache
def feed_named(name: str) -> type[FeedForward]:
    found: type[FeedForward] = _class_at(FEEDS[name])
    return found


def _class_at(place: str) -> Any:
    module, _, name = place.partition(".")
    return getattr(import_module(f"{__package__}.{module}"), name)
