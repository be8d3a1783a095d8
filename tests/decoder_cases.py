"""A decoder and the same model in transformers with PEFT, on one batch: what gradients are compared with."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from families import column_order, make_family, row_order
from peft import LoraConfig, get_peft_model
from random_adapters import distance
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel

from edgetune.adapters.base import Artifact
from edgetune.adapters.lora import Pair
from edgetune.adapters.low_rank import LoraFamily
from edgetune.adapters.peft import MODULES, modules_of
from edgetune.adapters.peft_modules import fused_of, join_fused
from edgetune.backends.arena import Arena, Buffer
from edgetune.backends.cpu import Cpu
from edgetune.data.forest import grow
from edgetune.data.packing import Batch, Example, collate
from edgetune.formats.bundle import open_bundle
from edgetune.formats.families import TARGETS
from edgetune.models.decoder import Decoder, Model
from edgetune.models.linear import RunShape, target_names

RANK = 4
SCALE = 0.75
LENGTHS = (37, 1, 60, 2, 29)  # documents of one batch: longer than gemma3's window, and too short to predict anything
ALL = tuple(TARGETS)
LIMIT = 1e-4  # relative L2; float32 against float32 in another order of summation stays far below


@dataclass
class Case:
    """A family's file opened by edgetune, the same model in transformers, one adapter for both, one batch."""

    decoder: Decoder
    model: PreTrainedModel
    pairs: dict[str, Pair]
    examples: list[Example]

    @property
    def batch(self) -> Batch:
        return collate(self.examples)

    @property
    def places(self) -> np.ndarray:
        """Where the batch has the tokens of the examples, one after another."""
        return np.concatenate(grow([example.tokens for example in self.examples]).places)


def make_case(
    name: str, folder: Path, targets: tuple[str, ...] = (), blocks: range | None = None, kept: int = 1,
    dropout: float = 0.0, threads: int = 2, **family: object) -> Case:
    path, hf = make_family(name, folder, **family)
    model = Model(open_bundle(path).gguf)
    run = RunShape(
        max_tokens=sum(LENGTHS) + 3, max_length=max(LENGTHS),
        family=LoraFamily(rank=RANK, alpha=RANK * SCALE, dropout=dropout),
        targets=named(model, targets) or model.structure.targets(),
        blocks=blocks or range(model.shape.n_layer), kept=min(kept, model.shape.n_layer - (blocks or range(1))[0]),
        threads=threads, precision="exact")
    decoder = make_decoder(model, run)
    rng = np.random.default_rng(3)
    pairs = {key: random_pair(rng, pair.a.shape, pair.b.shape) for key, pair in decoder.adapter.adapted.items()}
    decoder.adapter.load(Artifact(pairs), "pairs")
    return Case(decoder, hf, pairs, [random_example(rng, n, model.shape.n_vocab) for n in LENGTHS])


def named(model: Model, targets: tuple[str, ...]) -> tuple[str, ...]:
    """GGUF's names of these targets."""
    return target_names(targets, (*model.structure.targets(), *model.structure.named_targets()))


def make_decoder(model: Model, run: RunShape, beside: Iterable[Buffer] = ()) -> Decoder:
    """beside: buffers that its arena has too."""
    ops = Cpu(run.threads)
    parameters = sum(group.size for group in model.structure.parameters(run))
    adapter = [Buffer("lora", (parameters,), "run"), Buffer("dlora", (parameters,), "run")]
    return Decoder(model, run, ops, Arena([*adapter, *model.structure.buffers(run), *beside], ops.allocate))


def keeping(case: Case, kept: int) -> Case:
    """The case with a decoder that keeps activations of `kept` blocks, or of all; the others are computed again."""
    run = case.decoder.run
    model = case.decoder.model
    decoder = make_decoder(model, replace(run, kept=min(kept, model.shape.n_layer - run.blocks[0])))
    decoder.adapter.load(Artifact(case.pairs), "pairs")
    return replace(case, decoder=decoder)


def in_parts(case: Case, max_tokens: int, prefix: int, kept: int, prefix_inputs: bool = False) -> Case:
    """The case with a decoder for fewer tokens at a time, behind a prefix that is computed apart."""
    model = case.decoder.model
    run = replace(case.decoder.run, max_tokens=max_tokens, prefix=prefix, prefix_inputs=prefix_inputs,
                  kept=min(kept, model.shape.n_layer - case.decoder.run.lowest))
    decoder = make_decoder(model, run)
    decoder.adapter.load(Artifact(case.pairs), "pairs")
    return replace(case, decoder=decoder)


def random_pair(rng: np.random.Generator, a: tuple[int, ...], b: tuple[int, ...]) -> Pair:
    """Strong enough that an adapter forgotten in one place shows."""
    draw = [rng.standard_normal(shape).astype(np.float32) / np.sqrt(shape[1]) for shape in (a, b)]
    return Pair(draw[0], draw[1], SCALE)


def random_example(rng: np.random.Generator, n: int, n_vocab: int) -> Example:
    """Signed weights, a third of them zero."""
    weights = rng.standard_normal(n).astype(np.float32) * (rng.random(n) > 0.3)
    weights[0] = 0
    return Example(rng.integers(0, n_vocab, n).astype(np.int32), weights.astype(np.float32))


def branching_examples(n_vocab: int) -> list[Example]:
    """Rows that begin alike: one twice, one that begins another, branches at several depths. Shared tokens too are
    supervised, with another weight in each row.
    """
    rng = np.random.default_rng(5)
    stem = random_example(rng, 30, n_vocab).tokens
    tails = [random_example(rng, n, n_vocab).tokens for n in (9, 7, 2, 1)]
    rows = [[*stem[:12], *tails[0]], stem, [*stem[:12], *tails[0][:4], *tails[1]], tails[2], stem, stem[:20],
            [*stem[:29], *tails[3]]]
    return [replace(random_example(rng, len(row), n_vocab), tokens=np.array(row, np.int32)) for row in rows]


def adapted(case: Case) -> PreTrainedModel:
    """The transformers model with the same adapter, by PEFT."""
    names = modules_of(case.decoder.shape)
    pairs = join_fused(case.pairs, case.decoder.shape)
    ranks = {hf_projection(key, names): pair.rank for key, pair in pairs.items()}
    config = LoraConfig(r=RANK, lora_alpha=RANK * SCALE, target_modules=list(ranks), rank_pattern=ranks,
                        alpha_pattern={module: rank * SCALE for module, rank in ranks.items()})
    peft = get_peft_model(case.model, config)
    with torch.no_grad():
        for key, pair in pairs.items():
            module = hf_projection(key, names)
            a, b = lora_parameters(peft, module)
            order = row_order(module, pair.b.shape[0], case.model)
            columns = column_order(module, pair.a.shape[1], case.model)
            a.copy_(torch.from_numpy(pair.a if columns is None else pair.a[:, np.argsort(columns)]))
            b.copy_(torch.from_numpy(pair.b if order is None else pair.b[np.argsort(order)]))
    return peft


def hf_projection(key: str, names: Mapping[str, str] = MODULES) -> str:
    """blk.3.attn_q -> model.layers.3.self_attn.q_proj"""
    _, layer, tensor = key.split(".", 2)
    return f"model.layers.{layer}.{names[tensor]}"


def lora_parameters(peft: PreTrainedModel, module: str) -> tuple[torch.Tensor, torch.Tensor]:
    layer = peft.get_submodule(f"base_model.model.{module}")
    return layer.lora_A["default"].weight, layer.lora_B["default"].weight


def truth(case: Case) -> tuple[np.ndarray, np.ndarray, dict[str, tuple[np.ndarray, np.ndarray]]]:
    """(logits [T, V], log p [S] of supervised targets, {name: (dA, dB)}): each document in a pass of its own."""
    peft = adapted(case)
    logits = []
    logps = []
    for example in case.examples:
        tokens = torch.from_numpy(example.tokens).long()
        out = peft(tokens[None], use_cache=False).logits[0]
        logits.append(out.detach().numpy())
        logp = torch.log_softmax(out[:-1], -1).gather(1, tokens[1:, None])[:, 0]
        weights = torch.from_numpy(example.weights[1:])
        logps.append(logp[weights != 0].detach().numpy())
        (-(weights * logp).sum()).backward()
    return np.concatenate(logits), np.concatenate(logps), gradients_by_peft(case, peft)


def logp_by_peft(peft: PreTrainedModel, tokens: np.ndarray) -> torch.Tensor:
    """log p [T - 1] of each token but the first, after those before it."""
    found = torch.from_numpy(tokens).long()
    logits = peft(found[None], use_cache=False).logits[0, :-1]
    return torch.log_softmax(logits, -1).gather(1, found[1:, None])[:, 0]


def logp_with_updates(case: Case, names: Iterable[str],
                      update: Callable[[str, torch.Tensor], torch.Tensor]) -> np.ndarray:
    """log p [S] of the supervised tokens by transformers, after a backward pass of the loss. To the projections `names`
    update(name, x [..., K]) adds [..., N], in the order of our rows.
    """
    def hook(name: str) -> RemovableHandle:
        def added(_module: torch.nn.Module, inp: tuple[torch.Tensor], out: torch.Tensor) -> torch.Tensor:
            order = row_order(hf_projection(name), out.shape[-1], case.model)
            back = slice(None) if order is None else torch.from_numpy(np.argsort(order).copy())
            return out + update(name, inp[0])[..., back]

        return case.model.get_submodule(hf_projection(name)).register_forward_hook(added)

    hooks = [hook(name) for name in names]
    logps = []
    for example in case.examples:
        logp = logp_by_peft(case.model, example.tokens)
        weights = torch.from_numpy(example.weights[1:])
        (-(weights * logp).sum()).backward()
        logps.append(logp[weights != 0].detach().numpy())
    for each in hooks:
        each.remove()
    return np.concatenate(logps)


def gradients_by_peft(case: Case, peft: PreTrainedModel) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """{name: (dA, dB)} after a backward pass, in the order of our rows."""
    grads = {}
    names = modules_of(case.decoder.shape)
    fused = {kind: (module, i) for module, kinds in fused_of(case.decoder.shape).items()
             for i, kind in enumerate(kinds)}
    for key, pair in case.pairs.items():
        block, kind = key.rsplit(".", 1) if key.rpartition(".")[2] in fused else (key, "")
        module = hf_projection(f"{block}.{fused[kind][0]}" if kind else key, names)
        a, b = (p.grad.numpy() for p in lora_parameters(peft, module))
        if kind:  # its own rows of a, and of b its own rows and columns
            own, rows = (slice(fused[kind][1] * n, (fused[kind][1] + 1) * n) for n in (pair.rank, len(pair.b)))
            a, b = a[own], b[rows, own]
        order = row_order(module, pair.b.shape[0], case.model)
        columns = column_order(module, pair.a.shape[1], case.model)
        grads[key] = a if columns is None else a[:, columns], b if order is None else b[order]
    return grads


def train_once(case: Case) -> np.ndarray:
    """log p [S]; gradients start from zero and end in the arena."""
    case.decoder.arena.flat("dlora").fill(0.0)
    return pass_once(case).copy()


def pass_once(case: Case) -> np.ndarray:
    """log p [S]; adds to the gradients."""
    case.decoder.forward(case.batch, keep=True)
    return case.decoder.backward(case.batch, case.batch.supervised_weights)


def check(case: Case, *kept: int) -> None:
    """Of the case, and with activations of this many blocks kept. The truth, which takes longest, is asked once."""
    found = truth(case)
    compare(case, *found)
    for blocks in kept:
        compare(keeping(case, blocks), *found)


def compare(case: Case, logits: np.ndarray, logp: np.ndarray, grads: dict[str, tuple[np.ndarray, np.ndarray]]) -> None:
    errors = {
        "logits": distance(case.decoder.logits(case.batch)[case.places], logits),
        "score": distance(case.decoder.score(case.batch), logp),
        "train": distance(train_once(case), logp),
    }
    assert grads.keys() == case.decoder.adapter.adapted.keys()
    for key, pair in case.decoder.adapter.adapted.items():
        for kind, ours, theirs in zip("AB", (pair.da, pair.db), grads[key], strict=True):
            assert np.linalg.norm(theirs) > 1e-3, f"{key} {kind}: no gradient to compare"
            errors[f"{key} {kind}"] = distance(ours, theirs)
    assert {what: error for what, error in errors.items() if not error < LIMIT} == {}
