"""The buffers and the FLOP of a decoder, by its shape."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pkgutil import resolve_name
from typing import Any

from ..adapters.base import BIASES, INPUT, KEYS, NORMS, SUBLAYERS, Group, Shapes
from ..adapters.heads import VALUE, HeadKind
from ..backends.arena import Buffer
from ..backends.base import HEAD_STATE
from ..errors import UsageError
from ..formats import block_sizes
from ..formats.block_sizes import EMBEDDED
from ..formats.shape import Shape
from .base import Flops, Structure
from .batch_arrays import placed_buffers
from .block_embedding import BlockEmbedding
from .cache import Cache
from .kept import Lent, copies_of
from .linear import RunShape
from .shared_keys import LENT, lent_buffers, prefix_buffers
from .stream import HEAD_TOKENS
from .sublayer import FeedForward, Mixer

HEAD_BYTES = 2 << 20  # logits held at a time: the size of a core's cache
FLOATS = ("lse", "rstd", "states", "u_", "p_")  # names of activations that are float32 begin so
Groups = tuple[tuple[str, ...], ...]
MIXERS = {"attention": "attention:SelfAttention", "fused attention": "attention:FusedAttention",
          "attention to keys": "attention:AttentionToKeys", "shared attention": "attention:SharedAttention",
          "short convolution": "short_conv:ShortConv", "gated attention": "attention:GatedAttention",
          "delta net": "delta_net:DeltaNet", "mamba": "mamba:Mamba"}
FEEDS = {"gated": "gated:Gated", "fused gated": "gated:FusedGated", "experts": "experts:Experts",
         "shared experts": "experts:SharedExperts"}
"""The module of this package and the class of each kind in a Shape. A model imports those that its blocks have."""


def mixer_of(s: Shape, layer: int) -> type[Mixer]:
    found: type[Mixer] = _resolved(MIXERS[s.mixer(layer)])
    return found


def feed_of(s: Shape, layer: int) -> type[FeedForward]:
    found: type[FeedForward] = _resolved(FEEDS[s.feed(layer)])
    return found


def groups(s: Shape, layer: int) -> Groups:
    """The projections of a block in the order in which backward reaches them; in the lowest trained block it ends with
    the last group with a trained one.
    """
    mixer = mixer_of(s, layer)
    feed = feed_of(s, layer)
    return (feed.last, *feed.also_last), feed.inputs, (mixer.last,), mixer.inputs


def kept_widths(s: Shape, run: RunShape, layer: int) -> dict[str, int]:
    """name -> values a token, of the activations that a block's backward reads and that only a product or attention
    could make again. FLOATS says which are float32; the others are of the run's type of activations.
    """
    own = s.of(layer)
    widths = {**mixer_of(s, layer).widths(own), "mid": s.d_model, **feed_of(s, layer).widths(own)}
    if s.post_norms:
        widths |= {"rstd_att": 1, "rstd_mlp": 1}
    if s.post_norms or SUBLAYERS in run.family.adapts:
        widths |= {"att_out": s.d_model, "mlp_out": s.d_model}
    if s.d_block:
        widths |= BlockEmbedding.widths(s) | BlockEmbedding.inputs_kept(s, run)
    if run.family.kept_width:
        linear = s.linear_shapes(layer)
        stacks = s.stack_shapes(layer)
        widths |= {f"u_{target}": run.family.kept_width for target in run.targets if target in linear}
        widths |= {f"u_{target}": s.n_used * run.family.kept_width for target in run.targets if target in stacks}
    return widths


def all_kept_widths(s: Shape, run: RunShape) -> list[dict[str, int]]:
    """Returns `kept_widths` of each block; blocks of one kind share the dict."""
    found = {kind: kept_widths(s, run, s.kinds.index(kind)) for kind in dict.fromkeys(s.kinds)}
    return [found[kind] for kind in s.kinds]


@dataclass(frozen=True)
class DecoderStructure(Structure):
    shape: Shape

    @property
    def n_layer(self) -> int:
        return self.shape.n_layer

    @property
    def n_tokens(self) -> int:
        return self.shape.n_vocab

    @property
    def cache(self) -> Cache | None:
        mixers = tuple(mixer_of(self.shape, layer) for layer in range(self.shape.n_layer))
        is_kept = all(mixer.state(self.shape) is not None for mixer in set(mixers))
        return Cache(self.shape, mixers) if is_kept else None

    @property
    def max_grad_norm(self) -> float:
        return self.shape.family.max_grad_norm

    def head_groups(self, heads: Sequence[HeadKind]) -> list[Group]:
        super().head_groups([head for head in heads if head != VALUE])
        return [Group("value", self.shape.d_model + 1, decay=False, exported=False)] if VALUE in heads else []

    @property
    def keeps_prefixes(self) -> bool:
        return all(mixer.keeps_prefixes for mixer in mixers_of(self.shape))

    def linear_shapes(self, layer: int) -> dict[str, tuple[int, int]]:
        return self.shape.linear_shapes(layer)

    def targets(self) -> tuple[str, ...]:
        return tuple(name for name in super().targets() if name not in EMBEDDED)

    def named_targets(self) -> tuple[str, ...]:
        return (*super().named_targets(), *block_sizes.embedding_projections(self.shape))

    def stack_shapes(self, layer: int) -> dict[str, tuple[int, int, int]]:
        return self.shape.stack_shapes(layer)

    def block_weights(self, layer: int) -> int:
        own = self.shape.of(layer)
        embedding = BlockEmbedding.frozen_weights(own) if own.d_block else 0
        return super().block_weights(layer) + feed_of(self.shape, layer).frozen_weights(own) + embedding

    def parts(self, kind: str, layer: int) -> tuple[Shapes, Shapes]:
        s = self.shape
        width = (s.d_model,)
        if kind == SUBLAYERS:
            return {"attention": width, "feed_forward": width}, {}
        # what is served of virtual tokens is their keys, and not the states that they leave
        if kind in (INPUT, KEYS) and not all(mixer.has_keys for mixer in mixers_of(s)):
            raise UsageError("this model has blocks without keys", "choose another --family, such as lora")
        if kind in (INPUT, KEYS) and (s.blocks or s.d_block):
            raise UsageError("virtual tokens have no embeddings of each block and no shared keys, as this model needs",
                             "choose another --family, such as lora")
        if kind == INPUT:
            return {}, {"input": width}
        if kind == KEYS:
            return {"keys": (s.of(layer).d_kv,)}, {}
        if kind == BIASES:
            linear = self.linear_shapes(layer)
            return {f"{name}.bias": linear[name][:1] for name in s.biases if name in linear}, {}
        if kind != NORMS:
            return super().parts(kind, layer)
        norms: Shapes = {name: (size,) for name, size in s.norm_widths(layer).items()}
        # of some models the last norm has another name, or is divided by the logits' scale when it is read
        is_plain = s.logit_scale == 1.0 and s.family.last_norm == "output_norm"
        return norms, {"output_norm": width} if is_plain else {}

    @property
    def head_weights(self) -> int:
        return self.shape.n_vocab * self.shape.d_model

    def buffers(self, run: RunShape) -> list[Buffer]:
        return buffers(self.shape, run, self.trained_shapes(run))

    def flops(self, run: RunShape, lengths: Sequence[int]) -> Flops:
        """The projections', and what each kind of sublayer adds to that."""
        s = self.shape
        tokens = sum(lengths)
        weights = [super(DecoderStructure, self).block_weights(layer) for layer in range(s.n_layer)]
        mixers = [mixer_of(s, layer) for layer in range(s.n_layer)]
        feeds = [feed_of(s, layer) for layer in range(s.n_layer)]
        mixing = [mixer.flops(s.of(layer), layer, lengths) for layer, mixer in enumerate(mixers)]
        feeding = [feed.flops(s.of(layer), layer, lengths) for layer, feed in enumerate(feeds)]
        mixing_back = [round(mixer.backward_share * flops) for mixer, flops in zip(mixers, mixing, strict=True)]
        feeding_back = [round(feed.backward_share * flops) for feed, flops in zip(feeds, feeding, strict=True)]
        if s.d_block:
            embedding = BlockEmbedding.flops(s, 0, lengths)
            feeding = [flops + embedding for flops in feeding]
            feeding_back = [flops + round(BlockEmbedding.backward_share * embedding) for flops in feeding_back]
        of = groups(s, run.lowest)
        deepest = deepest_group(of, run, run.lowest)
        linear = self.linear_shapes(run.lowest)
        reached = [*(name for group in of[:deepest] for name in group if name in linear),
                   *block_sizes.embedding_projections(s)]
        passed = sum(linear[name][0] * linear[name][1] for name in reached)  # lowest trained block
        above = run.lowest + 1
        lowest_mixing = mixing_back[run.lowest] if deepest == len(of) - 1 else 0
        head = 2 * (tokens - len(lengths)) * self.head_weights
        return Flops(2 * tokens * sum(weights) + sum(mixing) + sum(feeding),
                     2 * tokens * (sum(weights[above:]) + passed)
                     + sum(mixing_back[above:]) + lowest_mixing + sum(feeding_back[run.lowest:]), head)


def deepest_group(of: Groups, run: RunShape, layer: int) -> int:
    """The index of the last of a block's groups that backward reaches; -1: it reaches none."""
    if layer != run.lowest or run.needs_dinp:
        return len(of) - 1
    return max((i for i, group in enumerate(of) if set(group) & set(run.targets)), default=-1)


def mixers_of(s: Shape) -> list[type[Mixer]]:
    """The kinds of mixers that some block has."""
    return list(dict.fromkeys(mixer_of(s, layer) for layer in range(s.n_layer)))


def feeds_of(s: Shape) -> list[type[FeedForward]]:
    """The kinds of feed-forward parts that some block has."""
    return list(dict.fromkeys(feed_of(s, layer) for layer in range(s.n_layer)))


def lent(s: Shape) -> Lent:
    """The buffers of keys and values of all blocks whose are lent, and of those that take them."""
    return {layer: {name: f"{name}@{s.owner(layer)}" for name in LENT}
            for layer in range(s.n_layer) if s.owner(layer) in s.lenders}


def kept_copies(s: Shape, run: RunShape) -> dict[str, tuple[int, int]]:
    """Buffer -> (copies, values a token) of all activations of `kept_widths`: one copy a kept block that has it."""
    return copies_of(all_kept_widths(s, run), run.kept, lent(s))


def buffers(s: Shape, run: RunShape, adapted: Shapes) -> list[Buffer]:
    """The table of all large arrays of forward and backward."""
    t = run.max_tokens + run.virtual
    behind = run.prefix and run.prefix + run.virtual
    length = run.max_length + run.virtual
    d = s.d_model
    half = run.activations
    at_once = min(run.max_tokens, HEAD_TOKENS)
    n_live = s.n_layer - run.lowest  # blocks that backward passes through
    inner = max(mixer_of(s, i).inner_width(s.of(i)) for i in range(s.n_layer))
    table = [
        # float32 if blocks are computed again from it; if only backward reads it, the type of activations
        Buffer("block_x", (1 if run.on_disk else n_live, t, d), "step", half if run.kept == n_live else "float32",
               backward=True),
        *(Buffer(name, (copies, t, width), "step", "float32" if name.startswith(FLOATS) else half)
          for name, (copies, width) in kept_copies(s, run).items()),
        # of lifetime "step": backward of the last block reads them after the head's pass
        Buffer("x", (t, d), "step"), Buffer("dx", (t, d), "step", backward=True),
        Buffer("norm1", (t, d), "step", half), Buffer("rstd1", (t,), "step"),
        Buffer("norm2", (t, d), "step", half), Buffer("rstd2", (t,), "step"),
        Buffer("dnorm", (t, d), "step"), Buffer("logp", (t,), "step"),
        *(Buffer(name, (t, inner), "block", half, backward=True) for name in ("datt", "dq")),
        *sublayer_buffers(s, run, t, behind), *lent_buffers(s, run, t),
        *run.family.buffers(t, adapted, half), *placed_buffers(t, behind),
        Buffer("head_x", (t, d), "head"), Buffer("head_h", (t, d), "head", half), Buffer("head_rstd", (t,), "head"),
        Buffer("logits", (at_once, head_block(s, at_once)), "head"),
        Buffer("exps", (at_once, head_block(s, at_once)), "head", half),
        Buffer("head_state", (at_once, HEAD_STATE), "head"),
    ]
    for i, _ in enumerate(s.ropes[:2 if any(s.windows) else 1]):
        table += [Buffer(f"cos{i}", (length, s.rotated(i) // 2), "run"),
                  Buffer(f"sin{i}", (length, s.rotated(i) // 2), "run")]
    if s.last_maker < s.n_layer - 1:  # blocks of needed tokens alone, which are computed again
        table.append(Buffer("own_x", (t, d), "block", backward=True))
    if SUBLAYERS in run.family.adapts:
        table.append(Buffer("dpost", (t, d), "block", backward=True))
    elif s.post_norms:
        table.append(Buffer("dpost", (t, d), "block", half, backward=True))
    return table + prefix_buffers(s, run)


def sublayer_buffers(s: Shape, run: RunShape, tokens: int, prefix: int) -> list[Buffer]:
    """Returns the buffers of all kinds of sublayers. One that several kinds have is as large as the largest."""
    found: dict[str, Buffer] = {}
    layers = [s.kinds.index(kind) for kind in dict.fromkeys(s.kinds)]  # the first of each kind
    kinds = [*((mixer_of(s, i), s.of(i)) for i in layers), *((feed_of(s, i), s.of(i)) for i in layers)]
    for kind, own in dict.fromkeys(kinds):
        for buffer in kind.buffers(own, run, tokens, prefix):
            if buffer.name not in found or buffer.nbytes > found[buffer.name].nbytes:
                found[buffer.name] = buffer
    return [*found.values(), *(BlockEmbedding.buffers(s, run, tokens, prefix) if s.d_block else ())]


def head_block(s: Shape, tokens: int) -> int:
    """Entries of the vocabulary whose logits are held at a time."""
    return min(s.n_vocab, max(256, HEAD_BYTES // (4 * tokens) // 256 * 256))


@cache
def _resolved(name: str) -> Any:
    return resolve_name(f"{__package__}.{name}")
