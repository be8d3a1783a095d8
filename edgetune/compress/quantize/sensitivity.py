"""What a matrix's errors cost, from calibration text: how large its inputs are, and how much its outputs count.

`collect` is what llama.cpp calls an importance matrix. `curvature` adds the other side: the mean square of the gradient
at each output, of the log-probability of a token drawn from the model's own distribution. The two make the diagonal of
the Fisher matrix, which is the second derivative of KL, in the factors of K-FAC (Martens & Grosse 2015): an error E of
W [N, K] costs about 1/2 sum_nk outputs[n] inputs[k] E[n, k]^2 nats a token.
Letters: N rows, K columns, W windows of T tokens, V vocabulary, D model width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedModel

from ..progress import Progress, ignore, never, raise_if_stopped
from ..source import huggingface as hf
from ..source.floats import Floats, is_matrix

EMBEDDING = "token_embd.weight"
HEAD = "output.weight"
Columns = dict[str, NDArray[np.float32]]


def head_of(model: Floats) -> str:
    """The matrix that makes logits: the embedding where the two are tied."""
    return HEAD if HEAD in model.tensors else EMBEDDING


def products(model: Floats) -> list[str]:
    """The matrices that are multiplied by; an embedding that is only looked up is none."""
    return [name for name, array in model.tensors.items()
            if is_matrix(name, array) and (name != EMBEDDING or head_of(model) == EMBEDDING)]


def collect(model: Floats, windows: NDArray[np.int32], on_progress: Progress = ignore,
            should_stop: Callable[[], bool] = never) -> Columns:
    """Mean square of each matrix's input over windows [W, T]: {name: float32 [K]}; a tied embedding's as the head."""
    sums = _over(model, windows, lambda inputs: inputs.double().square().sum(0), on_progress, should_stop)
    return {name: (total / windows.size).float().numpy() for name, total in sums.items()}


def moments(model: Floats, windows: NDArray[np.int32], on_progress: Progress = ignore,
            should_stop: Callable[[], bool] = never) -> Columns:
    """Second moments of each matrix's input over windows [W, T]: {name: float32 [K, K]}.

    Matrices that see the same input share theirs: q, k and v, gate and up.
    """
    sums = _over(model, windows, lambda inputs: inputs.T @ inputs, on_progress, should_stop)
    means = {id(total): (total / windows.size).numpy() for total in sums.values()}
    return {name: means[id(total)] for name, total in sums.items()}


def _over(model: Floats, windows: NDArray[np.int32], measure: Callable[[Tensor], Tensor], on_progress: Progress,
          should_stop: Callable[[], bool]) -> dict[str, Tensor]:
    """Sum of measure(inputs [T, K]) over the windows, for each matrix; one tensor for those that share an input."""
    torch_model = hf.to_torch(model)
    sums = dict[str, Tensor]()
    last: list[tuple[Tensor, str]] = []  # the product before, for q, k and v see one input, and so do gate and up

    def see(name: str, inputs: Tensor, _: Tensor) -> None:
        if last and last[0][0] is inputs:
            sums[name] = sums[last[0][1]]
            return
        last[:] = [(inputs, name)]
        value = measure(inputs.reshape(-1, inputs.shape[-1]))
        sums[name] = sums[name].add_(value) if name in sums else value

    with torch.inference_mode(), _hooked(torch_model, model, see):
        for i, window in enumerate(windows):
            raise_if_stopped(should_stop)
            ids = torch.from_numpy(window.astype(np.int64))[None]
            torch_model(ids, **hf.unpadded(ids))
            on_progress("importance", i + 1, len(windows))
    return sums


@contextmanager
def _hooked(torch_model: PreTrainedModel, model: Floats, see: Callable[[str, Tensor, Tensor], None]) -> Iterator[None]:
    """see(name, input, output) at every product of the model."""
    def hook(name: str) -> Callable[..., None]:
        return lambda _, inputs, output: see(name, inputs[0], output)

    with ExitStack() as stack:
        for name in products(model):
            inside = hf.module_in_torch(name.removesuffix(".weight"), model.architecture)
            place = "lm_head" if name == head_of(model) else inside
            stack.callback(torch_model.get_submodule(place).register_forward_hook(hook(name)).remove)
        yield


@dataclass(frozen=True, eq=False)
class Curvature:
    """Each matrix by its name: `moments` [K, K] of its inputs and `outputs` [N], as this module's head says.

    The embedding as the table of inputs has its own, `looked_up`: how often each row is [V], the gradient there [D].
    """

    moments: Columns
    outputs: Columns
    looked_up: tuple[NDArray[np.float32], NDArray[np.float32]]

    def cost(self, name: str, error: NDArray[np.float32], rows: NDArray[np.intp], *,
             together: bool = True) -> NDArray[np.float64]:
        """Nats a token that an error [n, K] in these rows [n] of a matrix costs, row by row.

        together: with what errors in two columns do to one another; without, as if inputs had nothing in common.
        """
        kl = np.zeros(len(rows))
        squares = np.square(error)
        if name in self.outputs:
            moments = self.moments[name]
            lost = np.einsum("nk,nk->n", error @ moments, error) if together else squares @ moments.diagonal()
            kl += self.outputs[name][rows] * lost
        if name == EMBEDDING:
            often, columns = self.looked_up
            kl += often[rows] * (squares @ columns)
        return kl / 2

    def importance(self, name: str, width: int) -> NDArray[np.float32]:
        """The weight of each of a matrix's columns, [K]."""
        if name in self.moments:
            return np.ascontiguousarray(self.moments[name].diagonal())
        return self.looked_up[1] if name == EMBEDDING else np.ones(width, np.float32)

    def shares(self, name: str, rows: int) -> NDArray[np.float64]:
        """The cost of each of a matrix's rows [N], compared with the others, if all had errors alike; sums to 1."""
        weights = np.zeros(rows)
        if name in self.outputs:
            weights += self.outputs[name] * float(self.moments[name].trace())
        if name == EMBEDDING:
            weights += self.looked_up[0] * float(self.looked_up[1].sum())
        weights += 1e-9 * weights.max() + 1e-30
        shares: NDArray[np.float64] = weights / weights.sum()
        return shares


def curvature(model: Floats, windows: NDArray[np.int32], second: Columns, *, seed: int = 0,
              on_progress: Progress = ignore, should_stop: Callable[[], bool] = never) -> Curvature:
    """A backward pass over windows [W, T]; `second` are moments' answer."""
    torch_model = hf.to_torch(model).requires_grad_(False)
    draw = torch.Generator().manual_seed(seed)
    embedding = torch_model.get_input_embeddings()
    outputs: dict[str, Any] = {}

    def see(name: str, _: Tensor, output: Tensor) -> None:
        if output.requires_grad and name != head_of(model):
            output.register_hook(lambda gradient: add(name, gradient))  # type: ignore[no-untyped-call]

    def add(name: str, gradient: Tensor) -> None:
        outputs[name] = outputs.get(name, 0) + gradient.double().square().flatten(0, -2).sum(0)

    with _hooked(torch_model, model, see):
        for i, window in enumerate(windows):
            raise_if_stopped(should_stop)
            embedded = embedding(torch.from_numpy(window.astype(np.int64))[None]).requires_grad_(True)
            logits = torch_model(inputs_embeds=embedded, **hf.unpadded(embedded)).logits[0]  # [T, V]
            p = torch.softmax(logits.detach(), -1)
            outputs[head_of(model)] = outputs.get(head_of(model), 0) + (p - p * p).sum(0).double()
            drawn = torch.multinomial(p, 1, generator=draw)
            logits.backward(p.scatter_add(1, drawn, -torch.ones_like(drawn, dtype=p.dtype)))
            add("", embedded.grad * getattr(embedding, "embed_scale", 1.0))
            on_progress("sensitivity", i + 1, len(windows))
    means = {name: (total / windows.size).float().numpy() for name, total in outputs.items()}
    counts = np.bincount(windows.reshape(-1), minlength=model.shape.n_vocab).astype(np.float32)
    often = (counts + 0.5) / (windows.size + 0.5 * counts.size)  # a token that this text lacks may come all the same
    looked_up = often, means.pop("")
    return Curvature(second, {name: values[hf.gguf_rows(name, len(values), model.shape)] if name.startswith("blk.")
                              else values for name, values in means.items()}, looked_up)
