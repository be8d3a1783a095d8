"""Fewer weights, still an ordinary model: whole blocks dropped, or every block's MLP and attention made narrower.

Both judge by calibration text, and then fit what is left: the matrices that write to the residual stream are solved
again, block after block, so that the stream is as near as can be to the whole model's (`_fit`).
Letters: N windows, T tokens in a window, D, F, H, G, C as everywhere; a group is a key/value head and its query heads.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ...errors import DataError, UsageError
from ...formats.shape import Shape
from ..progress import Progress, ignore, never, raise_if_stopped
from ..source import huggingface as hf
from ..source.floats import Floats
from .blockwise import Blocks, divergence, fast, inputs_of

SEARCH_TOKENS = 2048  # that blocks are chosen by
LEAST_TOKENS = 256  # with which weights are compared at all
RIDGES = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)  # of the mean energy of what is fitted by
NEAR = 0.05  # how far from the asked width a multiple of 256 may be
_BATCH = 8  # windows that go through a block together
Stop = Callable[[], bool]
Kept = Callable[[str, Callable[[], Any]], Any]  # what was measured under a name before, else what measure() says now


@dataclass(frozen=True)
class Dropped:
    """The blocks that went, in that order, and the KL to the whole model after each, in nats a token.

    The KL is on the text by which they were chosen, before the rest was fitted.
    """

    blocks: list[int]
    kl: list[float]
    weights_before: int
    weights_after: int

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Narrowed:
    """Numbers of MLP channels and attention groups that every block keeps, and had."""

    channels: int
    channels_before: int
    groups: int
    groups_before: int
    weights_before: int
    weights_after: int

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, eq=False)
class KeptParts:
    """What one block keeps, ascending."""

    groups: NDArray[np.int64]
    channels: NDArray[np.int64]


def measure_now(_name: str, measure: Callable[[], Any]) -> Any:
    """Nothing is kept."""
    return measure()


def drop_blocks(model: Floats, windows: NDArray[np.int32], n: int, *, kept: Kept = measure_now,
                on_progress: Progress = ignore, should_stop: Stop = never) -> tuple[Floats, Dropped]:
    """`model` without n of its blocks, chosen on windows [N, T]: one after another the one that costs least.

    The cost is the KL to the whole model with the blocks dropped before it gone too, measured again for every block in
    every round (greedy, as BlockPruner, Zhong et al. 2024, does with perplexity): Block Influence, 1 - cosine of
    input and output (ShortGPT, Men et al. 2024), is cheaper, but blind to what the other blocks make of the change. It
    takes text: on 256 tokens the two were even on SmolLM2-135M (held-out KL 0.36 and 0.38 without 3 blocks, 0.75 and
    0.74 without 5), hence SEARCH_TOKENS.

    Raises UsageError unless a block goes and one stays, DataError for too little text, Interrupted.
    """
    shape = model.shape
    require_blocks(shape, n)
    ids = _ids(windows)
    whole = hf.to_torch(model)
    with torch.no_grad():
        blocks = Blocks(whole, shape.architecture, ids.shape[1])
        with fast():
            seen = ids[: -(-SEARCH_TOKENS // ids.shape[1])]
            gone, kl = kept("blocks", lambda: _search(blocks, shape, seen, n, on_progress, should_stop))
        stay = [i for i in range(shape.n_layer) if i not in gone]
        _fit(blocks, shape, ids, stay, (shape.n_kv, shape.d_ff), True, on_progress, should_stop)
    pruned = without_blocks(hf.from_torch(whole, model), stay)
    return pruned, Dropped(gone, kl, model.weights, pruned.weights)


def require_blocks(shape: Shape, n: int) -> None:
    """Raises UsageError unless a block goes and one stays, and where llama.cpp counts blocks."""
    if every := shape.family.unrotated_every:
        raise UsageError(f"every {every}th block of a {shape.architecture} has no rotary embedding, and without some "
                         "blocks others would be the ones", "leave out --drop-blocks; --width makes it narrower")
    if not 1 <= n < shape.n_layer:
        raise UsageError(f"{n} of {shape.n_layer} blocks are to be dropped", f"drop 1 to {shape.n_layer - 1}")


def narrow(model: Floats, windows: NDArray[np.int32], width: float, *, fit: bool = True,
           on_progress: Progress = ignore, should_stop: Stop = never) -> tuple[Floats, Narrowed]:
    """`model` with the share `width` of its MLP channels and attention groups, the same number in every block.

    Chosen by activations as in Minitron (Muralidharan et al. 2024): channels by the energy that they write,
    E[a_c^2] |down_c|^2, groups by that of their part of attention's output, on windows [N, T]. At least one group
    stays, and all do where llama.cpp wants heads that are together as wide as the model; channels are a multiple of 256
    where one lies within 5 % of what was asked (llama.cpp stores no other rows of ffn_down in K-quants), of 32 else.
    What stays is fitted, unless `fit` is False.

    On SmolLM2-135M a width of 0.7 takes as many weights as ten of 30 blocks; before fitting and distilling the KL is
    1.14 there and 1.78 without the ten blocks of least Block Influence (WikiText-2, held out). Fitting takes it from
    1.09 to 0.67, on other tokens. With 1 of 3 groups and 512 channels of ten blocks gone the KL was 0.53, with no group
    and 672 channels 0.58.

    Raises UsageError for a width that leaves nothing or takes nothing, DataError for too little text, Interrupted.
    """
    shape = model.shape
    if not 0 < width < 1:
        raise UsageError(f"width is {width:g}", "keep a share over 0 and below 1")
    groups = shape.n_kv if shape.family.narrow_heads else max(1, round(shape.n_kv * width))
    keep = (groups, channels_kept(shape.d_ff, width))
    if keep == (shape.n_kv, shape.d_ff):
        raise UsageError(f"a width of {width:g} takes none of {shape.n_kv} attention groups and {shape.d_ff} channels",
                         "choose a smaller one")
    ids = _ids(windows)
    whole = hf.to_torch(model)
    with torch.no_grad():
        blocks = Blocks(whole, shape.architecture, ids.shape[1])
        kept = _fit(blocks, shape, ids, range(shape.n_layer), keep, fit, on_progress, should_stop)
    pruned = narrowed(hf.from_torch(whole, model), kept)
    return pruned, Narrowed(keep[1], shape.d_ff, keep[0], shape.n_kv, model.weights, pruned.weights)


def channels_kept(d_ff: int, width: float) -> int:
    """A multiple of 256 below d_ff and within NEAR of d_ff * width if there is one, else of 32, at most d_ff."""
    wanted = d_ff * width
    round_number = round(wanted / 256) * 256
    if round_number < d_ff and abs(round_number - wanted) <= NEAR * wanted:
        return round_number
    return min(max(1, round(wanted / 32)) * 32, d_ff)


# ---- the smaller model -----------------------------------------------------------------------------------------------


def without_blocks(model: Floats, kept: Sequence[int]) -> Floats:
    """The blocks `kept`, ascending, renumbered; each sees as far back as it did."""
    shape = model.shape
    number = {old: new for new, old in enumerate(kept)}
    tensors = {}
    for name, array in model.tensors.items():
        part, _, rest = name.removeprefix("blk.").partition(".")
        if not name.startswith("blk."):
            tensors[name] = array
        elif int(part) in number:
            tensors[f"blk.{number[int(part)]}.{rest}"] = array
    values: dict[str, Any] = {"block_count": len(kept)}
    prefix = f"{model.architecture}."
    for key, value in model.metadata.items():
        if key.startswith(prefix) and isinstance(value, list) and len(value) == shape.n_layer:
            values[key.removeprefix(prefix)] = [value[i] for i in kept]
    if any(shape.windows):
        values["attention.sliding_window_pattern"] = [bool(shape.windows[i]) for i in kept]
    return _with(model, tensors, values)


def narrowed(model: Floats, kept: Sequence[KeptParts]) -> Floats:
    """Block i with the groups and channels kept[i] alone; as many in every block."""
    shape = model.shape
    tensors = dict(model.tensors)
    for i, block in enumerate(kept):
        q = _rows(block.groups, shape.d_q // shape.n_kv)
        kv = _rows(block.groups, shape.d_head)
        channels = block.channels
        up = np.concatenate([channels, channels + shape.d_ff]) if shape.feed(i) == "fused gated" else channels
        for name, rows in (("attn_q", q), ("attn_k", kv), ("attn_v", kv), ("ffn_gate", channels), ("ffn_up", up)):
            for kind in ("weight", "bias"):
                if (array := tensors.get(key := f"blk.{i}.{name}.{kind}")) is not None:
                    tensors[key] = array[rows]
        for name, columns in (("attn_output", q), ("ffn_down", channels)):
            if (key := f"blk.{i}.{name}.weight") in tensors:
                tensors[key] = np.ascontiguousarray(tensors[key][:, columns])
    groups = len(kept[0].groups)
    heads = {} if shape.family.narrow_heads else {
        "attention.head_count_kv": groups, "attention.head_count": groups * (shape.n_head // shape.n_kv),
        "attention.key_length": shape.d_head, "attention.value_length": shape.d_head,
        "rope.dimension_count": shape.n_rot}
    return _with(model, tensors, {"feed_forward_length": len(kept[0].channels), **heads})


def _rows(groups: NDArray[np.int64], height: int) -> NDArray[np.int64]:
    return np.asarray((groups[:, None] * height + np.arange(height)).reshape(-1), np.int64)


def _with(model: Floats, tensors: dict[str, NDArray[np.float32]], values: dict[str, Any]) -> Floats:
    """Gives the model these, attention scaled as it was: the 62-block gemma3 scales by D / H, so sizes say how much."""
    before = model.shape
    keys = {f"{model.architecture}.{name}": value for name, value in values.items()}
    types = {key: kind for key, kind in model.types.items()
             if key not in keys or kind.startswith("[") == isinstance(keys[key], list)}
    smaller = replace(model, metadata=model.metadata | keys, types=types, tensors=tensors)
    ratio = np.float32(before.attn_scale / smaller.shape.attn_scale)
    if before.qk_norm and ratio != 1:
        scaled = {name: array * ratio for name, array in tensors.items() if name.endswith(".attn_q_norm.weight")}
        smaller = replace(smaller, tensors=tensors | scaled)
    return smaller


# ---- which blocks ----------------------------------------------------------------------------------------------------


def _search(blocks: Blocks, shape: Shape, ids: Tensor, n: int, on_progress: Progress,
            should_stop: Stop) -> tuple[list[int], list[float]]:
    """The n blocks to drop, and the KL after each. A candidate costs the blocks after it and the head. One block with
    attention stays.
    """
    kept = list(range(len(blocks.blocks)))
    inputs = dict[int, Tensor]()
    hidden = blocks.embed(ids)
    for i in kept:
        inputs[i] = hidden
        hidden = blocks.block(i, hidden)
    target = blocks.final(hidden).flatten(0, 1)
    head = blocks.head
    gone = list[int]()
    costs = list[float]()
    done = 0
    total = sum(len(kept) - r for r in range(n))
    for _ in range(n):
        kl = {}
        with_attention = [i for i in kept if shape.mixer(i) != shape.family.elsewhere]
        for at, candidate in enumerate(kept):
            if with_attention == [candidate]:
                continue
            raise_if_stopped(should_stop)
            on_progress("choosing blocks", done, total)
            hidden = _onwards(blocks, kept[at + 1 :], inputs[candidate])
            kl[candidate] = sum(map(float, divergence(target, blocks.final(hidden).flatten(0, 1), head, head)))
            done += 1
        least = min(kl, key=kl.__getitem__)
        gone.append(least)
        costs.append(kl[least] / ids.numel())
        at = kept.index(least)
        hidden = inputs.pop(least)
        kept.remove(least)
        for i in kept[at:]:
            inputs[i] = hidden
            hidden = blocks.block(i, hidden)
    return gone, costs


# ---- what is left, fitted --------------------------------------------------------------------------------------------


def _fit(blocks: Blocks, shape: Shape, ids: Tensor, chosen: Sequence[int], keep: tuple[int, int], fit: bool,
         on_progress: Progress, should_stop: Stop) -> list[KeptParts]:
    """Changes the kept blocks of the model in place and says what each keeps of `keep` groups and channels.

    Columns of attn_output and ffn_down that go become 0, the others are solved by ridge regression (in float64, towards
    the weights that they had), on what the smaller model computes before them. Their target is what brings the residual
    stream back to where the whole model has it: after attention, and where the next kept block begins. gemma3
    normalises before it adds, so there the target is the whole model's own output of the matrix. (He et al. 2017, on
    networks for images.) On SmolLM2's first six blocks, narrowed to 0.7 with 3,072 tokens: KL 0.25 instead of 0.36.
    """
    small = _over(blocks.embed, ids)  # [N, T, D]: the residual stream in the smaller model
    whole = _onwards(blocks, range(chosen[0]), small)
    added = getattr(blocks.model.config, "residual_multiplier", 1.0)  # times an output is added to the stream
    kept = []
    for at, i in enumerate(chosen):
        raise_if_stopped(should_stop)
        on_progress("fitting blocks", at, len(chosen))
        o, down = blocks.last_of(i, shape)
        (heads, channels), after = _record(blocks, i, whole, o, down)
        parts = zip(heads.flatten(0, 1).chunk(shape.n_kv, 1), o.weight.chunk(shape.n_kv, 1), strict=True)
        energy = torch.stack([(x @ w.T).square().sum() for x, w in parts])  # of each group's part of the output
        groups = _largest(energy, keep[0])
        strongest = channels.flatten(0, 1).square().sum(0) * down.weight.square().sum(0)  # [F]
        kept.append(KeptParts(groups, _largest(strongest, keep[1])))
        written = o(heads)
        gated = down(channels)
        following = chosen[at + 1] if at + 1 < len(chosen) else shape.n_layer
        after = _onwards(blocks, range(i + 1, following), after)

        columns = torch.from_numpy(_rows(kept[-1].groups, shape.d_q // shape.n_kv))
        _mask(o, columns)
        (heads,), _ = _record(blocks, i, small, o)
        if fit:
            _solve(o, heads, written if shape.post_norms else written + (whole - small) / added, columns)

        columns = torch.from_numpy(kept[-1].channels)
        _mask(down, columns)
        (channels,), out = _record(blocks, i, small, down)
        if fit:
            _solve(down, channels, gated if shape.post_norms else (after - out) / added + down(channels), columns)
        whole = after
        small = _onwards(blocks, [i], small)
    return kept


def _largest(scores: Tensor, keep: int) -> NDArray[np.int64]:
    return np.sort(np.argsort(-scores.numpy(), kind="stable")[:keep])


def _mask(linear: nn.Linear, columns: Tensor) -> None:
    masked = torch.zeros_like(linear.weight)
    masked[:, columns] = linear.weight[:, columns]
    linear.weight.copy_(masked)


def _solve(linear: nn.Linear, inputs: Tensor, target: Tensor, columns: Tensor) -> None:
    """Moves the columns towards target [N, T, D] = linear(inputs [N, T, K]) in the sense of least squares.

    The ridge is the one that, fitted on three quarters of the tokens, does best on the last quarter; nothing is moved
    where none helps there. (Tokens weighed by 1 / their size, as the next norm does: a KL 11 % higher.)
    """
    x = inputs[..., columns].flatten(0, 1).double()
    y = (target - linear(inputs)).flatten(0, 1).double()
    begin = len(x) * 3 // 4
    fitted = _normal(x[:begin], y[:begin])
    held = _normal(x[begin:], y[begin:])
    energy = float(fitted[0].diagonal().mean())
    error, ridge = min((_error(_ridge(fitted, r * energy), held), r * energy) for r in RIDGES)
    if error < 0:
        linear.weight[:, columns] += _ridge((fitted[0] + held[0], fitted[1] + held[1]), ridge).T.float()


def _normal(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """x^T x [K, K] and x^T y [K, D]: all that a regression takes from its data."""
    return x.T @ x, x.T @ y


def _ridge(normal: tuple[Tensor, Tensor], ridge: float) -> Tensor:
    """The change [K, D] that the data asks for, the smaller the larger the ridge is."""
    gram, cross = normal
    change: Tensor = torch.linalg.solve(gram + ridge * torch.eye(len(gram), dtype=gram.dtype), cross)
    return change


def _error(change: Tensor, normal: tuple[Tensor, Tensor]) -> float:
    """|x change - y|^2, less |y|^2: below 0 where the change helps."""
    gram, cross = normal
    return float((change * (gram @ change - 2 * cross)).sum())


def _record(blocks: Blocks, i: int, hidden: Tensor, *modules: nn.Module) -> tuple[list[Tensor], Tensor]:
    """What `modules` of block i get, [N, T, K] each, and the block's output."""
    with inputs_of(*modules) as seen:
        out = _onwards(blocks, [i], hidden)
    return [torch.cat(seen[j :: len(modules)]) for j in range(len(modules))], out


def _onwards(blocks: Blocks, chosen: Sequence[int], hidden: Tensor) -> Tensor:
    for i in chosen:
        hidden = _over(partial(blocks.block, i), hidden)
    return hidden


def _over(function: Callable[[Tensor], Tensor], windows: Tensor) -> Tensor:
    return torch.cat([function(part) for part in torch.split(windows, _BATCH)])


def _ids(windows: NDArray[np.int32]) -> Tensor:
    if windows.size < LEAST_TOKENS:
        raise DataError(f"the calibration text has {windows.size} tokens, at least {LEAST_TOKENS} are needed to prune",
                        "give more text")
    return torch.from_numpy(windows.astype(np.int64))
