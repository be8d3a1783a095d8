"""A mixture of experts: of E gated feed-forward parts each token takes the K that a router finds best, and adds their
outputs by the router's weights (Shazeer et al. 2017, arXiv 1701.06538).

The router is frozen, and so are experts that no target names; their gradient for the input is exact, the router's
included. An expert computes its own tokens alone, one expert after the other. Its projections are adapted as others
are, each by itself: LoRA's A is [E, R, K] for all experts, as llama.cpp multiplies it. N tokens, D the model's width, F
an expert's, R rank.

An expert's answer is weighed after its last projection, o = p (W + s B A) act. Backward takes W and A with the gradient
of o that is not weighed, dp = <(W + s B A)^T do, act>; the adapter sees p act for its input, and p u for u = s A act,
which is the same product.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from numpy.typing import NDArray

from ..adapters.lora import expert_name
from ..backends.arena import Buffer
from ..backends.base import Array, floats
from ..formats.gguf import Tensor
from ..formats.shape import Shape
from .gated import Gated
from .linear import Activations, RunShape
from .sublayer import FeedForward

if TYPE_CHECKING:
    from .common import Common

ROWS = 256  # that numpy changes at a time, so that its copies are small
GATE = "ffn_gate_exps"
UP = "ffn_up_exps"
LEAST_SUM = 6.103515625e-5  # of the weights of a token, as in llama.cpp


@dataclass(frozen=True)
class Routing:
    """chosen: int [N, K], experts; weights: float32 [N, K], of their outputs; probabilities: float32 [N, E].

    order: the places of [N * K], by their experts; ends: [E], where the places of each end in it.
    """

    chosen: NDArray[np.intp]
    weights: NDArray[np.float32]
    probabilities: NDArray[np.float32]
    order: NDArray[np.intp]
    ends: NDArray[np.intp]

    def used(self) -> Iterator[tuple[int, slice, NDArray[np.intp]]]:
        """Yields each expert that has tokens, its part of `order`, and its places in [N * K]."""
        begin = 0
        for expert, end in enumerate(self.ends.tolist()):
            if end > begin:
                yield expert, slice(begin, end), self.order[begin:end]
            begin = end


class Experts(FeedForward):
    last = "ffn_down_exps"
    inputs: ClassVar[tuple[str, ...]] = (GATE, UP)
    repeats = False
    backward_share = 1.0

    @classmethod
    def widths(cls, s: Shape) -> dict[str, int]:
        return {"gate": s.n_used * s.d_expert, "up": s.n_used * s.d_expert, "p_experts": s.n_expert}

    @classmethod
    def buffers(cls, s: Shape, run: RunShape, tokens: int, prefix: int) -> list[Buffer]:  # noqa: ARG003
        half = run.activations
        width = s.n_used * s.d_expert
        return [Buffer("act", (tokens, width), "block", half),
                Buffer("dact", (tokens, width), "block", half, backward=True),
                Buffer("expert_in", (tokens, s.d_model), "block", half),
                Buffer("expert_out", (tokens, s.d_model), "block"), Buffer("expert_sum", (tokens, s.d_model), "block"),
                Buffer("drouter", (tokens, s.n_expert), "block", backward=True)]

    @classmethod
    def frozen_weights(cls, s: Shape) -> int:
        return s.n_expert * s.d_model * (3 * s.d_expert + 1)

    @classmethod
    def flops(cls, s: Shape, layer: int, lengths: Sequence[int]) -> int:  # noqa: ARG003
        """The router's, and those of the experts that a token takes."""
        return 2 * sum(lengths) * s.d_model * (3 * s.n_used * s.d_expert + s.n_expert)

    def forward(self, layer: int, norm: np.ndarray, k: Activations) -> np.ndarray:
        of = self.of
        s = of.shape
        router = self._router(layer)
        of.ops.matmul_forward(k["p_experts"], norm, router.data, router.format)
        routing = self._expected(layer, k)
        gate, up = self._inner(k)
        act = of.arena.view("act", len(gate), s.d_expert)
        for expert, part, places in routing.used():
            inp = self._taken(norm, places)
            for out, name in ((gate, GATE), (up, UP)):
                target = self._target(layer, name, expert)
                of.linear.forward(out[part], inp, layer, target, self._kept(k, name, expert, part))
        of.ops.glu_forward(act, gate, up, s.act)
        return act

    def project(self, out: np.ndarray, inner: np.ndarray, layer: int, k: Activations, accumulate: bool = False) -> None:
        total = self._output(len(out), inner, layer, k)
        if accumulate:
            self.of.ops.add(out.reshape(-1), total.reshape(-1))
        else:
            self.of.ops.copy(out, total)

    def _output(self, n: int, inner: np.ndarray, layer: int, k: Activations) -> np.ndarray:
        """The sublayer's output [N, D], in work space."""
        of = self.of
        routing = self._route(layer, k)
        weights = routing.weights.reshape(-1, 1)
        total = self._total(n)
        for expert, part, places in routing.used():
            answer = of.arena.view("expert_out", len(places), of.shape.d_model)
            kept = self._kept(k, self.last, expert, part)
            of.linear.forward(answer, inner[part], layer, self._target(layer, self.last, expert), kept)
            of.ops.synchronize()
            for rows in _parts(len(places)):
                answer[rows] *= weights[places[rows]]
            self._add(total, places, answer)
        return total

    def keep(self, inner: np.ndarray, layer: int, k: Activations) -> None:
        if f"u_{self.last}" in k:
            for expert, part, _ in self._route(layer, k).used():
                kept = self._kept(k, self.last, expert, part)
                self.of.linear.keep(inner[part], layer, expert_name(self.last, expert), kept)

    def backward(self, layer: int, dinp: np.ndarray | None, dout: np.ndarray, norm: np.ndarray, k: Activations,
                 deepest: int) -> None:
        of = self.of
        routing = self._expected(layer, k)
        gate, up = self._inner(k)
        act = of.arena.view("act", *gate.shape)
        dact = of.arena.view("dact", *gate.shape)
        of.ops.glu_forward(act, gate, up, of.shape.act)
        dweights = self._last_backward(layer, dact if deepest > 0 else None, act, dout, k, routing)
        if deepest == 0:
            return
        of.ops.glu_backward(dact, up, act, dact, gate, up, of.shape.act)  # up becomes its gradient
        total = None if dinp is None else self._total(len(dinp))
        for expert, part, places in routing.used():
            answer = None if dinp is None else of.arena.view("expert_out", len(places), of.shape.d_model)
            inp = self._taken(norm, places) if self._adapts(layer, GATE) or self._adapts(layer, UP) else None
            for grad, name in ((dact, GATE), (up, UP)):
                target = self._target(layer, name, expert)
                of.linear.backward(answer, grad[part], layer, target, self._kept(k, name, expert, part), grad is up)
                if inp is not None:
                    of.linear.finish(inp, layer, target)
            if answer is not None and total is not None:
                of.ops.synchronize()
                self._add(total, places, answer)
        if dinp is not None and total is not None:
            self._router_backward(dinp, layer, routing, dweights.reshape(routing.weights.shape))
            of.ops.add(dinp.reshape(-1), total.reshape(-1))

    def _last_backward(self, layer: int, dact: np.ndarray | None, act: np.ndarray, dout: np.ndarray, k: Activations,
                       routing: Routing) -> NDArray[np.float32]:
        """dact [N * K, F] (None: not wanted) = the gradient of what the last projection takes, from that of the output
        [N, D]. Returns the gradient of the weights of outputs, [N * K], which is set with dact alone. May change act.
        """
        linear = self.of.linear
        is_adapted = self._adapts(layer, self.last)
        weights = routing.weights.reshape(-1)
        dweights = np.empty(weights.size, np.float32)
        for expert, part, places in routing.used():
            target = self._target(layer, self.last, expert)
            kept = self._kept(k, self.last, expert, part)
            own = weights[places]
            for u in kept.values() if is_adapted else ():
                self._scale(u, own)
            linear.backward(None if dact is None else dact[part], self._taken(dout, places), layer, target, kept)
            self.of.ops.synchronize()
            if dact is not None:
                dweights[places] = self._weigh(dact[part], act[part], own)
            if is_adapted:
                self._scale(act[part], own)
                linear.finish(act[part], layer, target)
        return dweights

    def _router_backward(self, dinp: np.ndarray, layer: int, routing: Routing, dweights: NDArray[np.float32]) -> None:
        """dinp [N, D] = the gradient through the router, of that of the weights of outputs [N, K]."""
        s = self.of.shape
        rows = np.arange(len(dinp))[:, None]
        p = routing.probabilities
        chosen = p[rows, routing.chosen]
        if s.norms_experts:
            whole = np.maximum(chosen.sum(1, keepdims=True), LEAST_SUM)
            dweights = (dweights - (dweights * routing.weights).sum(1, keepdims=True)) / whole
        dlogits = self.of.arena.view("drouter", *p.shape)
        dlogits.fill(0)
        if s.gating == "sigmoid":
            dlogits[rows, routing.chosen] = dweights * chosen * (1 - chosen)
        else:
            dlogits[rows, routing.chosen] = dweights * chosen
            dlogits -= p * dlogits.sum(1, keepdims=True)
        router = self._router(layer)
        self.of.ops.matmul_backward(dinp, dlogits, router.data, router.format)

    def _route(self, layer: int, k: Activations) -> Routing:
        """Which experts take which tokens, by k["p_experts"], the router's logits [N, E]."""
        s = self.of.shape
        self.of.ops.synchronize()
        p = _probabilities(k["p_experts"], s.gating)
        chosen = self._chosen(layer, p)
        weights = np.take_along_axis(p, chosen, 1)
        if s.norms_experts:
            weights = weights / np.maximum(weights.sum(1, keepdims=True), LEAST_SUM)
        flat = chosen.reshape(-1)
        ends = np.cumsum(np.bincount(flat, minlength=s.n_expert))
        return Routing(chosen, weights, p, np.argsort(flat, kind="stable"), ends)

    def _expected(self, layer: int, k: Activations) -> Routing:
        """`_route`; what is taken is read ahead."""
        routing = self._route(layer, k)
        self.of.stream.expect(layer, [expert for expert, _, _ in routing.used()])
        return routing

    def _target(self, layer: int, name: str, expert: int) -> str:
        """The name of an expert's projection, of which the weights are in memory now."""
        self.of.stream.bring(layer, f"blk.{layer}.{name}.weight", expert)
        return expert_name(name, expert)

    def _chosen(self, layer: int, p: NDArray[np.float32]) -> NDArray[np.intp]:
        """The experts [N, K] of each token by p [N, E]; of equal ones the first. Some models have a bias of experts,
        which decides who is taken, and not by how much.
        """
        bias = self.of.vectors.get(f"blk.{layer}.exp_probs_b.bias")
        return np.argsort(-p if bias is None else -p - bias, axis=1, kind="stable")[:, :self.of.shape.n_used]

    def _inner(self, k: Activations) -> tuple[np.ndarray, np.ndarray]:
        """Gate and the rest, [N * K, F], in the order of experts."""
        f = self.of.shape.d_expert
        return k["gate"].reshape(-1, f), k["up"].reshape(-1, f)

    def _taken(self, rows: np.ndarray, places: NDArray[np.intp]) -> np.ndarray:
        """The rows [n, D] of the tokens at these places of [N * K], as activations."""
        of = self.of
        out = of.arena.view("expert_in", len(places), of.shape.d_model)
        of.ops.synchronize()
        tokens = places // of.shape.n_used
        if rows.dtype == out.dtype:
            np.take(rows, tokens, axis=0, out=out, mode="clip")
            return out
        for part in _parts(len(tokens)):
            self._set(out[part], floats(rows[tokens[part]]))
        return out

    def _set(self, rows: np.ndarray, values: NDArray[np.float32]) -> None:
        """Sets rows, float32 or bf16, by an op, which rounds ten times as fast as numpy."""
        self.of.ops.copy(rows, self.of.ops.place(values))
        self.of.ops.synchronize()

    def _weigh(self, dact: np.ndarray, act: np.ndarray, weights: NDArray[np.float32]) -> NDArray[np.float32]:
        """The gradient of the weights [n]; dact [n, F] becomes the gradient of what they weigh."""
        dweights = np.empty(len(weights), np.float32)
        for part in _parts(len(weights)):
            grad = floats(dact[part])
            dweights[part] = np.einsum("nf,nf->n", grad, floats(act[part]))
            self._set(dact[part], grad * weights[part, None])
        return dweights

    def _scale(self, rows: np.ndarray, weights: NDArray[np.float32]) -> None:
        """rows [n, width] *= weights [n]"""
        self.of.ops.synchronize()
        for part in _parts(len(rows)):
            self._set(rows[part], floats(rows[part]) * weights[part, None])

    def _add(self, total: np.ndarray, places: NDArray[np.intp], answer: np.ndarray) -> None:
        """total [N, D] += answer [n, D] of the tokens at these places, of which none is there twice."""
        for part in _parts(len(places)):
            total[places[part] // self.of.shape.n_used] += answer[part]

    def _total(self, n: int) -> np.ndarray:
        total: Array = self.of.arena.view("expert_sum", n, self.of.shape.d_model)
        self.of.ops.synchronize()
        total.fill(0)
        return total

    def _router(self, layer: int) -> Tensor:
        return self.of.weights[f"blk.{layer}.ffn_gate_inp.weight"]

    def _adapts(self, layer: int, name: str) -> bool:
        """Whether the experts of a block are adapted there; all are, or none."""
        return self.of.linear.adapts(expert_name(f"blk.{layer}.{name}", 0))

    def _kept(self, k: Activations, name: str, expert: int, part: slice) -> Activations:
        """What the adapter of an expert's projection keeps, as `Projections` takes it."""
        u = k.get(f"u_{name}")
        if u is None:
            return {}
        return {f"u_{expert_name(name, expert)}": u.reshape(-1, u.shape[1] // self.of.shape.n_used)[part]}


def _probabilities(logits: NDArray[np.float32], gating: str) -> NDArray[np.float32]:
    """[N, E], each by itself or all together 1."""
    if gating == "sigmoid":
        alone = 1 / (1 + np.exp(-np.clip(logits, -80, None)))
        return alone.astype(np.float32, copy=False)
    p = np.exp(logits - logits.max(1, keepdims=True))
    together: NDArray[np.float32] = p / p.sum(1, keepdims=True)
    return together


def _parts(n: int) -> Iterator[slice]:
    return (slice(begin, min(begin + ROWS, n)) for begin in range(0, n, ROWS))


class SharedExpert(Gated):
    """Granite's expert that all tokens take: its output is added unweighed, and its gradient to that of the others."""

    last = "ffn_down_shexp"
    inputs = ("ffn_gate_shexp", "ffn_up_shexp")
    kept = ("shared_gate", "shared_up")
    work = ("shared_act", "dshared_act")
    adds = True

    @classmethod
    def width(cls, s: Shape) -> int:
        return s.d_shared


class SharedExperts(Experts):
    """Both outputs are added. inner is that of the experts that the router chooses; the other's is in the arena."""

    also_last = (SharedExpert.last,)
    inputs = (*Experts.inputs, *SharedExpert.inputs)

    def __init__(self, of: Common) -> None:
        super().__init__(of)
        self._shared = SharedExpert(of)

    @classmethod
    def widths(cls, s: Shape) -> dict[str, int]:
        return super().widths(s) | SharedExpert.widths(s)

    @classmethod
    def buffers(cls, s: Shape, run: RunShape, tokens: int, prefix: int) -> list[Buffer]:
        return [*super().buffers(s, run, tokens, prefix), *SharedExpert.buffers(s, run, tokens, prefix)]

    def forward(self, layer: int, norm: np.ndarray, k: Activations) -> np.ndarray:
        self._shared.forward(layer, norm, k)
        return super().forward(layer, norm, k)

    def _output(self, n: int, inner: np.ndarray, layer: int, k: Activations) -> np.ndarray:
        total = super()._output(n, inner, layer, k)
        self._shared.project(total, self._shared_act(k), layer, k, accumulate=True)
        return total

    def keep(self, inner: np.ndarray, layer: int, k: Activations) -> None:
        super().keep(inner, layer, k)
        self._shared.keep(self._shared_act(k), layer, k)

    def backward(self, layer: int, dinp: np.ndarray | None, dout: np.ndarray, norm: np.ndarray, k: Activations,
                 deepest: int) -> None:
        super().backward(layer, dinp, dout, norm, k, deepest)
        self._shared.backward(layer, dinp, dout, norm, k, deepest)

    def _shared_act(self, k: Activations) -> np.ndarray:
        """What `forward` set, [N, F]."""
        act, _ = SharedExpert.work
        gate, _ = SharedExpert.kept
        return self.of.arena.view(act, *k[gate].shape)
