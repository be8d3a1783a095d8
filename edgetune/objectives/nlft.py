"""Natural language fine-tuning: tokens of the model's own answers count by how likely they are in the light of a
reference answer, and of a judgment (Liu et al. 2024, arXiv 2412.20382; its authors' code differs from its description).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from ..data import tutored
from ..data.packing import Batch, Example
from ..data.rows import RowParser
from ..data.tutored import WITH_JUDGMENT, WITH_REFERENCE
from ..errors import UsageError
from ..options import option
from .answers import sigmoid
from .base import Objective, Signal, register

Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]
SURE = 1 - 1e-4  # the most that a probability counts as where it is lowered
PUBLISHED = {"nll": 1.0, "wrong_weight": 1.0, "scale": 10.0, "clamp": 0.0, "push_cap": 0.0}  # by --nlft-compat


@register
@dataclass(frozen=True)
class Nlft(Objective):
    """L = (1/N) sum over N answers of (1/T) sum_t -W_t log b_t - S_t log(1 - b_t), over the T tokens of each.

    b_t is the probability of the answer's token after its prompt; c_t and w_t are those with the reference and with
    the judgment in view. c, w and the b that they are compared with are the reference model's, computed once; only the
    b_t of the loss carries a gradient.

    A right answer, one without a judgment or with a score of clear_score at least: W_t = 1 + ((c_t - core)/(1 -
    core))^core_power of a core token, one with c_t > core; (c_t/core)^near_power within `radius` tokens of one;
    (c_t/core)^far_power else. A wrong one: S_t = push * s(w_t/b_t - threshold) of a bad token, one with w_t > ratio *
    b_t, w_t > ratio * c_t and w_t > least; 0 within `radius` tokens of one; W_t = wrong_weight * sqrt(c_t) else, and 0
    where more than most_bad of its tokens are bad. The published code finds what is near by hidden states, with the
    comparison inverted; here it is by distance. Its second term for wrong answers takes probabilities at the places of
    another prompt, and is left out. Both are times the row's weights, which are 1 in rows of this method; an answer
    that was read without a reference has W = 1.
    """

    name: ClassVar[str] = "nlft"
    needs_logp: ClassVar[bool] = True
    needs_reference: ClassVar[bool] = True
    rows: ClassVar[RowParser] = tutored
    defaults: ClassVar[Mapping[str, Any]] = {"lr": 1e-3}
    core: float = option(0.95, "Tokens likelier than this with the reference are the core of a right answer.",
                         low=0.01, high=0.999)
    core_power: float = option(5.0, "How fast the weight of core tokens grows from 1 to 2.", low=0.0, high=100.0)
    near_power: float = option(0.3, "How fast the weight falls near a core token, with (c/core).", low=0.0, high=100.0)
    far_power: float = option(0.6, "How fast the weight of other tokens falls.", low=0.0, high=100.0)
    radius: int = option(3, "Tokens on either side of a core or bad token that are near it; 0: none.", low=0, high=1000)
    ratio: float = option(1.5, "A token is bad where the judgment makes it likelier by this factor.", low=1.0, high=1e6)
    least: float = option(0.01, "A token less likely than this with the judgment is not bad.", low=0.0, high=1.0)
    threshold: float = option(1.5, "Where the weight of bad tokens is half of the most.", low=0.0, high=1e6)
    push: float = option(2.0, "The most weight of a bad token.", low=0.0, high=1e6)
    most_bad: float = option(0.06, "Where more than this share of a wrong answer is bad, the rest is not imitated.",
                             low=0.0, high=1.0)
    wrong_weight: float = option(0.25, "Weight of the other tokens of wrong answers; 0: they are not imitated.",
                                 low=0.0, high=100.0)
    clear_score: float = option(7.0, "From this score on, an answer is right whatever its judgment says.")
    nll: float = option(0.0, "Weight of plain imitation of right answers, added to that of their tokens.", low=0.0,
                        high=100.0)
    scale: float = option(1.0, "Factor of the loss.", low=1e-6, high=1e6)
    clamp: float = option(4.0, "A bad token pushes at most this many times as strongly as a token is imitated; 0: "
                          "no limit.", low=0.0, high=1e6)
    push_cap: float = option(1.0, "The bad tokens of an answer push together at most this many times as strongly as a "
                             "whole answer is imitated; 0: no limit.", low=0.0, high=1e6)
    nlft_compat: bool = option(False, "The published code's constants: nll 1, wrong-weight 1, scale 10, no limits.")

    def count(self, examples: Sequence[Example]) -> float:
        return float(sum(example.supervised > 0 for example in examples))

    def weights(self, logp: NDArray[np.float32], batch: Batch) -> Signal:
        used = replace(self, **PUBLISHED) if self.nlft_compat else self  # type: ignore[arg-type]
        return used._weights(logp, batch)

    def _weights(self, logp: NDArray[np.float32], batch: Batch) -> Signal:
        assert batch.reference is not None
        a = np.zeros(logp.size, np.float32)
        loss = 0.0
        counts = dict.fromkeys(("core", "bad"), (0.0, 0.0))
        for example, part in batch.parts():
            now = logp[part].astype(np.float64)
            keep, push, found, name = self._judged(batch, example, part)
            p = np.minimum(np.exp(now), SURE)
            counts[name] = (counts[name][0] + float(found.sum()), counts[name][1] + now.size)
            loss -= self.scale * float((keep * now + push * np.log1p(-p)).sum()) / max(now.size, 1)
            a[part] = self.scale / max(now.size, 1) * (keep - self._limited(push * p / (1 - p)))
        return Signal(a, loss, counts)

    def _judged(self, batch: Batch, example: Example, part: slice) -> tuple[Floats, Floats, Mask, str]:
        """(W, S, core or bad tokens, which of both) of an answer, times the row's weights. An answer that was read
        without a reference is imitated.
        """
        assert batch.reference is not None
        given = batch.supervised_weights[part].astype(np.float64)
        if batch.views is None or np.isnan(batch.views[WITH_REFERENCE, part]).any():
            return given, np.zeros(given.size), np.zeros(given.size, np.bool_), "core"
        b, c, w = np.exp(np.array([batch.reference[part], batch.views[WITH_REFERENCE, part],
                                   batch.views[WITH_JUDGMENT, part]], np.float64))
        is_right = bool(np.isnan(w).any()) or example.reward >= self.clear_score
        keep, push, found = self._right(c) if is_right else self._wrong(b, c, w)
        return given * keep, given * push, found, "core" if is_right else "bad"

    def _right(self, c: Floats) -> tuple[Floats, Floats, Mask]:
        """(W, S, core tokens) of a right answer."""
        core = c > self.core
        near = near_to(core, self.radius)
        share = np.minimum(c / self.core, 1.0)
        lower = np.where(near, share**self.near_power, share**self.far_power)
        higher = 1 + (np.maximum(c - self.core, 0.0) / (1 - self.core)) ** self.core_power
        return np.where(core, higher, lower) + self.nll, np.zeros(c.size), core

    def _wrong(self, b: Floats, c: Floats, w: Floats) -> tuple[Floats, Floats, Mask]:
        """(W, S, bad tokens) of a wrong answer."""
        bad = (w > self.ratio * b) & (w > self.ratio * c) & (w > self.least)
        rest = np.zeros(b.size)
        if bad.sum() <= self.most_bad * b.size:
            rest = np.where(near_to(bad, self.radius), 0.0, self.wrong_weight * np.sqrt(c))
        against = w / np.maximum(b, np.finfo(np.float64).tiny)
        return rest, np.where(bad, self.push * sigmoid(against - self.threshold), 0.0), bad

    def _limited(self, push: Floats) -> Floats:
        """The push of an answer's tokens, within the limits."""
        if self.clamp:
            push = np.minimum(push, self.clamp)
        most = self.push_cap * push.size
        return push * (most / push.sum()) if most and push.sum() > most else push

    def check(self) -> Nlft:
        super().check()
        for name in PUBLISHED if self.nlft_compat else ():
            if getattr(self, name) != getattr(type(self), name):
                raise UsageError(f"{name.replace('_', '-')} is {getattr(self, name):g}, and nlft-compat has another",
                                 "leave one of them out")
        return self


def near_to(found: Mask, radius: int) -> Mask:
    """Whether each token, or one at most `radius` tokens before or after it, was found."""
    width = np.ones(2 * radius + 1)
    return np.convolve(found, width)[radius:radius + found.size] > 0
