"""The buffers and the FLOP of an encoder, by its shape."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..adapters.base import Group
from ..adapters.heads import CLASSES, MULTILABEL, TAGS, VECTOR, HeadKind
from ..backends.arena import Buffer
from ..errors import UsageError
from ..formats.encoder import EncoderShape
from .base import Flops, Structure
from .linear import RunShape
from .norms import layer_norm_buffers
from .structure import deepest_group

BACKWARD_GROUPS = (("ffn_down",), ("ffn_gate", "ffn_up"), ("attn_output",),
                   ("attn_q", "attn_k", "attn_v", "attn_qkv"))  # as of structure.groups
LEAST_DOCUMENT = 2  # tokens
LABELLING = (CLASSES.name, TAGS.name, MULTILABEL.name)  # heads with parameters
ALONE = (VECTOR.name, MULTILABEL.name)  # heads that give several numbers at a position, and so come without others


def kept_widths(s: EncoderShape, run: RunShape) -> dict[str, int]:
    """name -> values a token, of the activations that a block's backward reads; types as of a decoder's (structure.py).
    """
    d = s.d_model
    widths = {"q": d, "k": d, "v": d, "att": d, "lse": s.n_head, "mid": d, "up": s.d_ff}
    if s.is_gated:
        widths["gate"] = s.d_ff
    if run.family.kept_width:
        widths |= {f"u_{target}": run.family.kept_width for target in run.targets}
    return widths


@dataclass(frozen=True)
class EncoderStructure(Structure):
    shape: EncoderShape

    @property
    def n_layer(self) -> int:
        return self.shape.n_layer

    @property
    def n_tokens(self) -> int:
        return self.shape.n_vocab

    @property
    def longest(self) -> int:
        return self.shape.context

    @property
    def head_weights(self) -> int:
        return 0

    def linear_shapes(self, layer: int) -> dict[str, tuple[int, int]]:  # noqa: ARG002
        return self.shape.linear_shapes()

    def head_groups(self, heads: Sequence[HeadKind]) -> list[Group]:
        """A weight [size, D] and a bias [size] of each head of labels."""
        for head in heads:
            is_alone = head.name not in ALONE or len(heads) == 1
            if head.name not in (*LABELLING, VECTOR.name) or not is_alone:
                raise UsageError(f"an encoder has no head for {head.name}" + ("" if is_alone else " with others"),
                                 "choose another method or another model")
        return [Group(head.parameters, head.size * (self.shape.d_model + 1), decay=False)
                for head in heads if head.name in LABELLING]

    def buffers(self, run: RunShape) -> list[Buffer]:
        s = self.shape
        t = run.max_tokens
        d = s.d_model
        half = run.activations
        n_live = s.n_layer - run.lowest
        labels = max(head.size for head in run.heads)
        of_documents = sum(head.name == CLASSES.name for head in run.heads) * -(-t // LEAST_DOCUMENT)
        return [
            # float32 if blocks are computed again from it; if only backward reads it, the type of activations
            Buffer("block_x", (1 if run.on_disk else n_live, t, d), "step",
                   half if run.kept == n_live else "float32", backward=True),
            *(Buffer(name, (run.kept, t, width), "step", "float32" if name.startswith(("lse", "u_")) else half)
              for name, width in kept_widths(s, run).items()),
            Buffer("x", (t, d), "step"), Buffer("dx", (t, d), "step"),  # dx holds positions, too
            *layer_norm_buffers(t), Buffer("logp", (t + of_documents,), "step"),
            *(Buffer(name, (t,), "step", "int32") for name in ("positions", "begins", "ends")),
            Buffer("norm", (t, d), "block", half, backward=not s.order.norms_inputs),
            Buffer("act", (t, s.d_ff), "block", half), Buffer("dact", (t, s.d_ff), "block", half, backward=True),
            *(Buffer(name, (t, d), "block", half, backward=True) for name in ("datt", "dq", "dk", "dv")),
            Buffer("delta", (s.n_head, t), "block", backward=True),
            *self._other_buffers(run), *run.family.buffers(t, self.trained_shapes(run), half),
            Buffer("head_h", (t, d), "head"), Buffer("head_x", (t, d), "head"), Buffer("head_z", (t, labels), "head"),
        ]

    def _other_buffers(self, run: RunShape) -> list[Buffer]:
        """The buffers of some architectures."""
        s = self.shape
        table = []
        if s.is_fused:
            table.append(Buffer("qkv", (run.max_tokens, 3 * s.d_model), "block", run.activations))
        if s.order.is_joined:
            table.append(Buffer("gate_up", (run.max_tokens, 2 * s.d_ff), "block", run.activations))
        if not (s.ropes and s.order.is_lean):  # it holds positions and types
            table.append(Buffer("places", (run.max_length, s.d_model), "run"))
        for i in sorted({s.rope_of(layer) for layer in range(s.n_layer)} if s.ropes else ()):
            table += [Buffer(f"{name}{i}", (run.max_length, s.d_head // 2), "run") for name in ("cos", "sin")]
        return table

    def flops(self, run: RunShape, lengths: Sequence[int]) -> Flops:
        """Forward 4 D a pair of tokens that see each other for attention, backward twice that."""
        s = self.shape
        tokens = sum(lengths)
        weights = {name: n * k for name, (n, k) in s.linear_shapes().items()}
        whole = sum(weights.values())
        attention = [4 * s.d_model * sum(_pairs(n, window) for n in lengths) for window in s.windows]
        deepest = deepest_group(BACKWARD_GROUPS, run, run.lowest)
        passed = sum(weights.get(name, 0) for group in BACKWARD_GROUPS[:deepest] for name in group)
        above = run.lowest + 1
        lowest_attention = attention[run.lowest] if deepest == len(BACKWARD_GROUPS) - 1 else 0
        rows = {CLASSES.name: len(lengths), MULTILABEL.name: len(lengths), TAGS.name: tokens}
        head = sum(2 * rows[head.name] * head.size * s.d_model for head in run.heads if head.name in rows)
        return Flops(2 * tokens * s.n_layer * whole + sum(attention),
                     2 * tokens * ((s.n_layer - above) * whole + passed)
                     + 2 * (sum(attention[above:]) + lowest_attention), head)


def _pairs(n: int, window: int) -> int:
    """(t, s) of n tokens, with |t - s| < window where there is a window."""
    w = min(window or n, n)
    return n * (2 * w - 1) - w * (w - 1)
