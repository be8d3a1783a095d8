"""The buffers and the FLOP of a decoder, by its shape."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..adapters.base import BIASES, INPUT, KEYS, NORMS, SUBLAYERS, Group, Shapes
from ..adapters.heads import VALUE, HeadKind
from ..backends.arena import Buffer
from ..backends.base import HEAD_STATE
from ..formats.shape import Shape
from .base import Flops, Structure
from .linear import RunShape
from .placed import placed_buffers
from .prefix import prefix_buffers
from .stream import HEAD_TOKENS
from .value import value_group

HEAD_BYTES = 2 << 20  # logits held at a time: the size of a core's cache
# Backward walks the projections in this order; in the lowest trained block it stops after the last trained group.
BACKWARD_GROUPS = (("ffn_down",), ("ffn_gate", "ffn_up"), ("attn_output",),
                   ("attn_q", "attn_k", "attn_v", "attn_qkv"))


def kept_widths(s: Shape, run: RunShape) -> dict[str, int]:
    """name -> values a token, of the activations that a block's backward reads and that only a product or attention
    could make again. Those named lse, rstd_* and u_* are float32, the others of the run's type of activations.
    """
    widths = {"q": s.d_q, "k": s.d_kv, "v": s.d_kv, "att": s.d_q, "lse": s.n_head, "mid": s.d_model, "gate": s.d_ff,
              "up": s.d_ff}
    if s.qk_norm:
        norms = s.qk_norm_widths()
        widths |= {"q_raw": s.d_q, "k_raw": s.d_kv, "rstd_q": s.d_q // norms["attn_q_norm"],
                   "rstd_k": s.d_kv // norms["attn_k_norm"]}
    if s.post_norms:
        widths |= {"rstd_att": 1, "rstd_mlp": 1}
    if s.post_norms or SUBLAYERS in run.family.adapts:
        widths |= {"att_out": s.d_model, "mlp_out": s.d_model}
    if run.family.kept_width:
        widths |= {f"u_{target}": run.family.kept_width for target in run.targets}
    return widths


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
    def cache(self) -> Shape:
        return self.shape

    def head_groups(self, heads: Sequence[HeadKind]) -> list[Group]:
        super().head_groups([head for head in heads if head != VALUE])
        return [value_group(self.shape.d_model)] if VALUE in heads else []

    @property
    def keeps_prefixes(self) -> bool:
        return True

    def linear_shapes(self) -> dict[str, tuple[int, int]]:
        return self.shape.linear_shapes()

    def parts(self, kind: str) -> tuple[Shapes, Shapes]:
        s = self.shape
        width = (s.d_model,)
        if kind == SUBLAYERS:
            return {"attention": width, "feed_forward": width}, {}
        if kind == INPUT:
            return {}, {"input": width}
        if kind == KEYS:
            return {"keys": (s.d_kv,)}, {}
        if kind == BIASES:
            return {f"{name}.bias": self.linear_shapes()[name][:1] for name in s.biases}, {}
        if kind != NORMS:
            return super().parts(kind)
        norms: Shapes = {name: (size,) for name, size in s.norm_widths().items()}
        # the last norm's weight is divided by the logits' scale while the model is read
        return norms, {"output_norm": width} if s.logit_scale == 1.0 else {}

    @property
    def head_weights(self) -> int:
        return self.shape.n_vocab * self.shape.d_model

    def buffers(self, run: RunShape) -> list[Buffer]:
        return buffers(self.shape, run, self.trained_shapes(run))

    def flops(self, run: RunShape, lengths: Sequence[int]) -> Flops:
        """Forward 4 C a head and pair of tokens that see each other for attention, backward twice that."""
        s = self.shape
        tokens = sum(lengths)
        weights = {name: n * k for name, (n, k) in s.linear_shapes().items()}
        attention = [4 * s.n_head * s.d_head * sum(_pairs(n, window) for n in lengths) for window in s.windows]
        deepest = deepest_group(run, run.lowest)
        passed = sum(weights[name] for group in BACKWARD_GROUPS[:deepest] for name in group)  # lowest trained block
        above = run.lowest + 1
        lowest_attention = attention[run.lowest] if deepest == len(BACKWARD_GROUPS) - 1 else 0
        head = 2 * (tokens - len(lengths)) * self.head_weights
        whole = sum(weights.values())
        return Flops(2 * tokens * s.n_layer * whole + sum(attention),
                     2 * tokens * ((s.n_layer - above) * whole + passed)
                     + 2 * (sum(attention[above:]) + lowest_attention), head)


def deepest_group(run: RunShape, layer: int) -> int:
    """The index of the last of BACKWARD_GROUPS that backward reaches in a block."""
    if layer != run.lowest or run.needs_dinp:
        return len(BACKWARD_GROUPS) - 1
    return max(i for i, group in enumerate(BACKWARD_GROUPS) if set(group) & set(run.targets))


def _pairs(n: int, window: int) -> int:
    """(t, s) with s <= t < n, and s > t - window where there is a window."""
    w = min(window or n, n)
    return w * (w + 1) // 2 + (n - w) * w


def buffers(s: Shape, run: RunShape, adapted: Shapes) -> list[Buffer]:
    """The table of all large arrays of forward and backward."""
    t = run.max_tokens + run.virtual
    behind = run.prefix and run.prefix + run.virtual
    length = run.max_length + run.virtual
    d = s.d_model
    half = run.activations
    at_once = min(run.max_tokens, HEAD_TOKENS)
    n_live = s.n_layer - run.lowest  # blocks that backward passes through
    table = [
        # float32 if blocks are computed again from it; if only backward reads it, the type of activations
        Buffer("block_x", (n_live, t, d), "step", half if run.kept == n_live else "float32",
               backward=True),
        *(Buffer(name, (run.kept, t, width), "step", "float32" if name.startswith(("lse", "rstd", "u_")) else half)
          for name, width in kept_widths(s, run).items()),
        # of lifetime "step": backward of the last block reads them after the head's pass
        Buffer("x", (t, d), "step"), Buffer("dx", (t, d), "step", backward=True),
        Buffer("norm1", (t, d), "step", half), Buffer("rstd1", (t,), "step"),
        Buffer("norm2", (t, d), "step", half), Buffer("rstd2", (t,), "step"),
        Buffer("dnorm", (t, d), "step"), Buffer("logp", (t,), "step"),
        Buffer("act", (t, s.d_ff), "block", half), Buffer("dact", (t, s.d_ff), "block", half, backward=True),
        *(Buffer(name, (t, s.d_q), "block", half, backward=True) for name in ("datt", "dq")),
        *(Buffer(name, (behind + t, s.d_kv), "block", half, backward=True) for name in ("dk", "dv")),
        Buffer("delta", (s.n_head, t), "block", backward=True),
        *run.family.buffers(t, adapted, half), *placed_buffers(t, behind),
        Buffer("head_x", (t, d), "head"), Buffer("head_h", (t, d), "head", half), Buffer("head_rstd", (t,), "head"),
        Buffer("logits", (at_once, head_block(s, at_once)), "head"),
        Buffer("exps", (at_once, head_block(s, at_once)), "head", half),
        Buffer("head_state", (at_once, HEAD_STATE), "head"),
    ]
    for i, _ in enumerate(s.ropes[:2 if any(s.windows) else 1]):
        table += [Buffer(f"cos{i}", (length, s.n_rot // 2), "run"),
                  Buffer(f"sin{i}", (length, s.n_rot // 2), "run")]
    if SUBLAYERS in run.family.adapts:
        table.append(Buffer("dpost", (t, d), "block", backward=True))
    elif s.post_norms:
        table.append(Buffer("dpost", (t, d), "block", half, backward=True))
    return table + prefix_buffers(s, run)


def head_block(s: Shape, tokens: int) -> int:
    """Entries of the vocabulary whose logits are held at a time."""
    return min(s.n_vocab, max(256, HEAD_BYTES // (4 * tokens) // 256 * 256))
