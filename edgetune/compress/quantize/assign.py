"""Which format each matrix gets, so that the file keeps to a size and the model's answers move least.

Every matrix is rounded to every format that divides its rows (a sample of its rows, where it is large), and what the
error costs is read off the curvature of KL (importance.py). Costs add up, so the best choice is a knapsack, solved
exactly but for the grain in which sizes are counted.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ...errors import EdgetuneError
from ...formats.gguf import open_gguf, write_gguf
from ...formats.gguf.read import BY_NAME, Tensor
from ..progress import Progress, ignore, in_parallel, never
from ..source.floats import Floats, is_matrix
from .grid import compensated, factor_of, fit
from .sensitivity import Curvature
from .write import keys_of

# MXFP4 is not among them: it takes 1/4 bit less than IQ4_NL and loses twice as much. Q4_0 loses more in same bytes.
FORMATS_TRIED = ("Q8_0", "Q6_K", "Q5_1", "Q5_0", "Q5_K", "Q4_1", "Q4_K", "IQ4_NL", "IQ4_XS", "Q3_K", "Q2_K", "Q2_0")
REFERENCE = "Q4_0"
_COMPARED = "IQ4_NL"
SAMPLE = 1 << 16  # weights of a matrix that are tried
_GRAINS = 1 << 16  # parts in which the knapsack counts the limit at most


@dataclass(frozen=True)
class FormatChoice:
    """A matrix, its format and bytes, and the nats a token that it costs.

    sensitivity: what one matrix can be compared with another by: the nats a token that each byte costs which four bits
    a weight (IQ4_NL) would save of F16.
    """

    name: str
    type: str
    bytes: int
    kl: float
    sensitivity: float


@dataclass(frozen=True)
class Assigned:
    """The file's size in bytes, the sum of what the choices cost, and the choices, in the order of the file."""

    bytes: int
    kl: float
    choices: list[FormatChoice]

    @property
    def types(self) -> dict[str, str]:
        return {choice.name: choice.type for choice in self.choices}


@dataclass(frozen=True)
class Costs:
    """The formats that divide each matrix's rows, by its name, and the nats a token that each costs."""

    formats: dict[str, list[str]]
    kl: dict[str, list[float]]


def formats_of(model: Floats, formats: Sequence[str] = FORMATS_TRIED) -> dict[str, list[str]]:
    """The formats that divide each matrix's rows; F16 where none does."""
    return {name: [format for format in formats if array.shape[1] % BY_NAME[format].block == 0] or ["F16"]
            for name, array in model.tensors.items() if is_matrix(name, array)}


def measure(model: Floats, curvature: Curvature, *, formats: Sequence[str] = FORMATS_TRIED, threads: int = 1,
            on_progress: Progress = ignore, should_stop: Callable[[], bool] = never) -> Costs:
    """Every matrix in every format, on a sample of its rows; F16, at no cost, where no format divides them."""
    options = formats_of(model, formats)

    def work(name: str) -> list[float]:
        return _costs(name, model.tensors[name], options[name], curvature) if options[name] != ["F16"] else [0.0]

    return Costs(options, in_parallel(work, list(options), threads, "trying formats", on_progress, should_stop))


def _costs(name: str, weights: NDArray[np.float32], formats: list[str], curvature: Curvature) -> list[float]:
    """What plain rounding to each format costs, times what compensation leaves of that in one of them.

    That share hangs on the inputs and hardly on the format. Rows are drawn evenly along the sum of their shares in the
    cost, so one that counts twice as much is drawn twice as often.
    """
    shares = curvature.shares(name, len(weights))
    count = max(64, SAMPLE // weights.shape[1])
    rows = np.arange(len(weights))
    scale = np.ones(len(weights))
    if count < len(weights):
        rows = np.searchsorted(np.cumsum(shares), (np.arange(count) + 0.5) / count).clip(0, len(weights) - 1)
        scale = 1 / (count * shares[rows])
    sample = weights[rows]
    importance = curvature.importance(name, weights.shape[1])

    def cost(data: NDArray[np.uint8], format: str, *, together: bool) -> float:
        error = Tensor(name, sample.shape, format, data.reshape(-1)).f32() - sample
        return float(scale @ curvature.cost(name, error, rows, together=together))

    plain = [cost(fit(sample, format, importance), format, together=False) for format in formats]
    if name not in curvature.moments:
        return plain
    whole = cost(fit(sample, REFERENCE, importance), REFERENCE, together=False)
    data = compensated(sample, REFERENCE, factor_of(curvature.moments[name]))
    left = cost(data, REFERENCE, together=True) / max(whole, 1e-30)
    return [left * price for price in plain]


def choose(model: Floats, size: int, costs: Costs) -> Assigned:
    """Formats for a file of `size` bytes at most. EdgetuneError with the least possible size where that is larger."""
    sizes = _sizes(model, costs.formats)
    fixed = require_size(model, size, costs.formats)
    picks = knapsack(list(sizes.values()), list(costs.kl.values()), size - fixed)
    choices = []
    for pick, (name, formats) in zip(picks, costs.formats.items(), strict=True):
        compared = formats.index(_COMPARED) if _COMPARED in formats else pick
        saved = 2 * model.tensors[name].size - sizes[name][compared]
        choices.append(FormatChoice(name, formats[pick], sizes[name][pick], costs.kl[name][pick],
                              costs.kl[name][compared] / max(saved, 1)))
    return Assigned(fixed + sum(choice.bytes for choice in choices), sum(choice.kl for choice in choices), choices)


def require_size(model: Floats, size: int, formats: dict[str, list[str]]) -> int:
    """Bytes of the file without matrices; EdgetuneError where even the smallest `formats` exceed `size`."""
    fixed = fixed_bytes(model)
    least = fixed + sum(min(row) for row in _sizes(model, formats).values())
    if least > size:
        raise EdgetuneError(f"the model cannot become {size} bytes, at least {least} are needed",
                            "allow more, or take weights away with --vocab, --drop-blocks or --width")
    return fixed


def _sizes(model: Floats, formats: dict[str, list[str]]) -> dict[str, list[int]]:
    return {name: [stored_bytes(model, name, format) for format in row] for name, row in formats.items()}


def knapsack(sizes: Sequence[Sequence[int]], costs: Sequence[Sequence[float]], limit: int) -> list[int]:
    """One option of each item, so that the sizes sum to at most `limit` and the costs to the least possible.

    Sizes are counted in what divides all differences between an item's options; where the limit has more than _GRAINS
    of that, in limit / _GRAINS, rounded up.
    """
    smallest = [min(row) for row in sizes]
    spare = limit - sum(smallest)
    grain = max(math.gcd(*(size - least for row, least in zip(sizes, smallest, strict=True) for size in row)),
                -(-spare // _GRAINS), 1)
    places = spare // grain + 1
    best = np.zeros(places)  # least cost of the items so far, by the grains that they may take over their smallest
    taken = np.zeros((len(sizes), places), np.uint8)
    for item, (row, prices) in enumerate(zip(sizes, costs, strict=True)):
        found = np.full(places, np.inf)
        for option, (size, price) in enumerate(zip(row, prices, strict=True)):
            step = -(-(size - smallest[item]) // grain)
            if step < places:
                total = best[: places - step] + price
                better = total < found[step:]
                found[step:][better] = total[better]
                taken[item, step:][better] = option
        best = found
    picks = [0] * len(sizes)
    left = places - 1
    for item in reversed(range(len(sizes))):
        picks[item] = int(taken[item, left])
        left -= -(-(sizes[item][picks[item]] - smallest[item]) // grain)
    return picks


def stored_bytes(model: Floats, name: str, format: str) -> int:
    """What a tensor takes in the file, its padding with it."""
    alignment = int(model.metadata.get("general.alignment", 32))
    size = model.tensors[name].size // BY_NAME[format].block * BY_NAME[format].size
    return -(-size // alignment) * alignment


def fixed_bytes(model: Floats) -> int:
    """What no choice changes: the header, whose length hangs on names and keys alone, and the vectors."""
    keys, kinds = keys_of(model)
    empty = {name: np.zeros((1,) * array.ndim, np.float32) for name, array in model.tensors.items()}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "header.gguf"
        write_gguf(path, model.architecture, keys, empty, kinds)
        header = open_gguf(path).data_start
    return header + sum(stored_bytes(model, name, "F32") for name, array in model.tensors.items()
                        if not is_matrix(name, array))
