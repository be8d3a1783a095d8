"""Export to and import from PEFT's folders: adapter_model.safetensors and adapter_config.json.

A llama GGUF holds the rows of q and k in another order than transformers: llama.cpp rotates neighbours (2i, 2i + 1) of
a head, transformers (i, i + C/2). The rows of B follow. Source: llama.cpp, convert_hf_to_gguf.py, LlamaModel.permute.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..disk import new_folder, read_small
from ..errors import FormatError, UnsupportedError
from ..formats.families import OF_EXPERTS, TARGETS
from ..formats.gguf import Gguf
from ..formats.recurrent import RecurrentShape
from ..formats.safetensors import read_safetensors, write_safetensors
from ..formats.shape import Shape, read_shape
from .lora import Lora, Pair, expert_name, scale_of, stack_of
from .peft_modules import Parameter, fused_of, join_fused, parameters_of, split_fused
from .published import CARD, model_card, origin
from .store import check_fit

WEIGHTS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"

# a GGUF's projection -> its path within a layer of transformers
MODULES = {gguf: f"{'self_attn' if gguf.startswith('attn') else 'mlp'}.{name}" for name, gguf in TARGETS.items()}


def modules_of(shape: Shape) -> dict[str, str]:
    """The same of an architecture, with the projections of all its experts where each is a module, and modules that are
    several projections in place of these (peft_modules.py).
    """
    fused = fused_of(shape)
    found = MODULES | dict(shape.family.modules) | {module: module for module in fused}
    if shape.d_shared:
        found |= shape.family.shared_modules
    for parts in fused.values():
        for name in parts:
            found.pop(name, None)
    if shape.n_expert and not shape.family.fused_experts:
        for name, stack in OF_EXPERTS.items():
            part, _, leaf = found[TARGETS[name]].rpartition(".")
            found |= {expert_name(stack, i): f"{part}.experts.{i}.{leaf}" for i in range(shape.n_expert)}
    return found


_TENSOR = re.compile(
    r"base_model\.model\.(?P<path>(?:model\.|language_model\.model\.|model\.language_model\.)"
    r"layers\.(?P<layer>\d{1,6})\.(?P<module>(?:(?:self_attn|linear_attn|mlp|shared_mlp|mamba|conv|feed_forward)\."
    r"(?:experts\.\d{1,4}\.)?)?\w+))\.lora_(?P<side>[AB])\.weight"
)
Keys = Mapping[int, tuple[NDArray[np.floating[Any]], NDArray[np.floating[Any]]]]
"""Keys and values by the number of a block."""
_LARGEST = 1e6  # scale of an update
_NUMBER = 1e15  # rank or alpha
# Options of PEFT's LoraConfig that must be off, because a LoRA GGUF cannot express them.
_UNSUPPORTED = (
    "use_dora", "fan_in_fan_out", "lora_bias", "modules_to_save", "layer_replication", "target_parameters",
    "trainable_token_indices", "alora_invocation_tokens", "use_qalora", "use_bdlora", "arrow_config", "kasa_config",
    "monteclora_config", "velora_config",
)  # fmt: skip
# Initialisations that leave the base unchanged; others (pissa, olora, corda, loftq, ...) train against a changed one.
_PLAIN_STARTS = (True, False, None, "gaussian", "eva", "orthogonal")


def export_peft(pairs: Lora, base: Gguf, folder: str | os.PathLike[str], base_model: str = "",
                run: Mapping[str, Any] | None = None) -> None:
    """Write a new folder for PeftModel.from_pretrained on the transformers model that `base` was made from.

    base_model: the name or folder of that model, which AutoPeftModel loads; "": what origin(base) finds. run: the
    adapter's record, for the model card.

    Raises UsageError if `folder` exists, MismatchError if the pairs do not fit `base`, EdgetuneError where the disk
    refuses.
    """
    check_fit(pairs, base, "the adapter")
    shape = read_shape(base)
    tensors = {}
    pairs = join_fused(pairs, shape)
    parameters = parameters_of(pairs, shape)
    if parameters:
        pairs = {name: pair for name, pair in pairs.items() if stack_of(name)[1] < 0}
    for path, parameter in parameters.items():
        tensors[f"base_model.model.{path}.lora_A.weight"] = parameter.a
        tensors[f"base_model.model.{path}.lora_B.weight"] = parameter.b
    for name, pair in pairs.items():
        path = f"base_model.model.{_module_path(name, modules_of(shape))}"
        tensors[f"{path}.lora_A.weight"] = pair.a[:, np.argsort(column_order(name, pair.a.shape[1], shape))]
        tensors[f"{path}.lora_B.weight"] = pair.b[np.argsort(row_order(name, pair.b.shape[0], shape))]
    _write(folder, tensors, _config_of(pairs, parameters, shape), base, base_model, run)


def export_peft_prefix(keys: Keys, base: Gguf, folder: str | os.PathLike[str], base_model: str = "",
                       run: Mapping[str, Any] | None = None) -> None:
    """Write keys and values before each text as PEFT's prefix tuning. The rest is as in `export_peft`.

    keys: of each block of `base` those of P tokens, [P, G * C] each, for G heads of width C; keys are after rotation.
    """
    shape = read_shape(base)
    order = np.argsort(row_order("attn_k", shape.d_kv, shape))
    rows = [part for block in range(shape.n_layer) for part in (keys[block][0][:, order], keys[block][1])]
    prompt = np.concatenate(rows, axis=1, dtype=np.float32)  # [P, 2 * blocks * G * C]
    config = {"peft_type": "PREFIX_TUNING", "task_type": "CAUSAL_LM", "inference_mode": True,
              "num_virtual_tokens": len(prompt), "token_dim": shape.d_kv, "num_attention_heads": shape.n_kv,
              "num_layers": shape.n_layer, "num_transformer_submodules": 1, "encoder_hidden_size": shape.d_kv,
              "prefix_projection": False}
    _write(folder, {"prompt_embeddings": prompt}, config, base, base_model, run)


def _write(folder: str | os.PathLike[str], tensors: dict[str, NDArray[np.float32]], config: Mapping[str, Any],
           base: Gguf, base_model: str, run: Mapping[str, Any] | None) -> None:
    base_model = base_model or origin(base)
    use = f"AutoPeftModelForCausalLM.from_pretrained({Path(folder).name!r})"
    code = f"```py\nfrom peft import AutoPeftModelForCausalLM\n\nmodel = {use}\n```"
    card = model_card(run or {}, base, code, base_model)
    with new_folder(Path(folder)) as beside:
        write_safetensors(beside / WEIGHTS, tensors)
        (beside / CONFIG).write_text(json.dumps({**config, "base_model_name_or_path": base_model}, indent=2) + "\n")
        (beside / CARD).write_text(card)


def import_peft(folder: str | os.PathLike[str], base: Gguf) -> Lora:
    """The pairs of a PEFT LoRA folder, for `base`, the GGUF of the model that it was trained on.

    Raises FormatError for a missing or damaged file, UnsupportedError for what a LoRA GGUF cannot express,
    MismatchError where names or shapes do not fit `base`.
    """
    folder = Path(folder)
    config = _read_config(folder)
    shape = read_shape(base)
    halves: dict[str, dict[str, NDArray[np.float32]]] = {}
    paths = {}
    kinds = {module: gguf for gguf, module in modules_of(shape).items()}
    for key, values in _read_weights(folder).items():
        match = _TENSOR.fullmatch(key)
        gguf = kinds.get(match["module"]) if match else None
        if match is None or gguf is None or values.ndim != 2:
            raise UnsupportedError(f"{folder} holds {key} of shape {list(values.shape)}",
                                   f"edgetune imports LoRA on {', '.join(TARGETS)} of the text model")
        name = f"blk.{int(match['layer'])}.{gguf}"
        halves.setdefault(name, {})[match["side"]] = values
        paths[name] = match["path"]
    pairs = {name: _pair(folder, paths[name], sides, config) for name, sides in halves.items()}
    pairs = split_fused(pairs, shape)
    check_fit(pairs, base, str(folder))
    for name, pair in pairs.items():
        pair.b = pair.b[row_order(name, pair.b.shape[0], shape)]
        pair.a = pair.a[:, column_order(name, pair.a.shape[1], shape)]
    return pairs


# ---- names and rows --------------------------------------------------------------------------------------------------


def _module_path(name: str, modules: Mapping[str, str]) -> str:
    """blk.3.attn_q -> model.layers.3.self_attn.q_proj"""
    match = re.fullmatch(r"blk\.(\d+)\.([\w.]+)", name)
    if match and stack_of(name)[1] >= 0 and match[2] not in modules:
        raise UnsupportedError(f"the adapter changes {name}, and transformers holds all experts of such a block in one "
                               "parameter", "merge it into the model with edgetune adapters merge")
    if match is None or match[2] not in modules:
        known = [kind for kind in modules if stack_of(kind)[1] < 0]
        raise UnsupportedError(f"the adapter changes {name}", f"PEFT export knows {', '.join(known)}")
    return f"model.layers.{match[1]}.{modules[match[2]]}"


def row_order(name: str, rows: int, shape: Shape) -> NDArray[np.intp]:
    """Row i of the GGUF's tensor is row order[i] of transformers'."""
    order = np.arange(rows)
    if name.endswith((".attn_qkv", ".attn_gate")) and shape.recurrent.heads:
        return value_order(rows, shape.recurrent, shape.recurrent.state)
    heads = {"attn_q": shape.n_head, "attn_k": shape.n_kv}.get(name.rpartition(".")[2])
    if shape.family.moves_rows and heads is not None:
        order = order.reshape(heads, 2, -1).swapaxes(1, 2).reshape(-1)
    return order


def column_order(name: str, columns: int, shape: Shape) -> NDArray[np.intp]:
    """The same of columns."""
    is_reordered = name.endswith(".ssm_out") and "delta net" in shape.mixers
    return value_order(columns, shape.recurrent, shape.recurrent.state) if is_reordered else np.arange(columns)


def value_order(size: int, r: RecurrentShape, width: int) -> NDArray[np.intp]:
    """The order of a delta net's channels, the last of which are `width` of each value head: a GGUF has the first value
    head of each key head, then the second, transformers all of one key head.
    """
    heads = np.arange(r.heads).reshape(r.groups, -1).T.reshape(-1, 1)
    values = heads * width + np.arange(width)
    first = size - values.size
    return np.concatenate([np.arange(first), first + values.reshape(-1)])


# ---- the configuration -----------------------------------------------------------------------------------------------


def _config_of(pairs: Lora, parameters: Mapping[str, Parameter], shape: Shape) -> dict[str, Any]:
    """The most common rank and alpha, patterns for the pairs that differ."""
    of_kinds = modules_of(shape)
    modules = {name: _module_path(name, of_kinds) for name in pairs}
    updates: dict[str, Pair | Parameter] = {modules[name]: pair for name, pair in pairs.items()}
    updates |= {f"{path}.weight": parameter for path, parameter in parameters.items()}
    alphas = {path: _whole(update.scale * update.rank) for path, update in updates.items()}
    common = [*(parameters or updates).values()]
    rank = Counter(update.rank for update in common).most_common(1)[0][0]
    alpha = Counter(_whole(update.scale * update.rank) for update in common).most_common(1)[0][0]
    kinds = {name.split(".", 2)[2] for name in pairs}
    present = [_kinds_in(shape, layer) for layer in range(shape.n_layer)]
    complete = len(pairs) == sum(len(kinds & of_block) for of_block in present)
    of_leaf: dict[str, set[str]] = {}
    for kind in set().union(*present) & of_kinds.keys():
        of_leaf.setdefault(_leaf(of_kinds[kind]), set()).add(kind)
    for module in shape.family.expert_parameters if shape.n_expert else ():  # modules to PEFT, too
        of_leaf.setdefault(_leaf(module), set()).add(module)
    found = [module for kind, module in of_kinds.items() if kind in kinds]
    short = [*dict.fromkeys(_leaf(module) if of_leaf[_leaf(module)] <= kinds else module for module in found)]
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "inference_mode": True,
        "r": rank,
        "lora_alpha": alpha,
        "lora_dropout": 0.0,
        "bias": "none",
        "target_modules": short if complete else list(modules.values()),
        **({"target_parameters": [f"{path}.weight" for path in parameters]} if parameters else {}),
        "rank_pattern": {path: update.rank for path, update in updates.items() if update.rank != rank},
        "alpha_pattern": {path: value for path, value in alphas.items() if value != alpha},
    }


def _kinds_in(shape: Shape, layer: int) -> set[str]:
    """The names of a block's projections, each expert's for itself, and of modules that are several of them."""
    stacks = shape.stack_shapes(layer)
    kinds = {*shape.linear_shapes(layer), *(expert_name(name, i) for name in stacks for i in range(shape.n_expert))}
    for module, parts in fused_of(shape).items():
        kinds = kinds.difference(parts) | {module} if kinds.issuperset(parts) else kinds
    return kinds


def _leaf(module: str) -> str:
    return module.rpartition(".")[2]


def _whole(value: float) -> int | float:
    """alpha as people write it: 16, not 16.0 or 15.999999999999998."""
    nearest = round(value)
    return nearest if math.isclose(value, nearest, rel_tol=1e-12) else value


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / CONFIG
    try:
        config = json.loads(read_small(path))
    except OSError as error:
        raise FormatError(f"cannot read {path}: {error.strerror}", "name a folder saved by PEFT") from None
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{path} is not JSON: {error}", "save the adapter again") from None
    if not isinstance(config, dict):
        raise FormatError(f"{path} is not a JSON object", "save the adapter again")
    if config.get("peft_type") != "LORA":
        raise UnsupportedError(f"{path} says peft_type {config.get('peft_type')!r}", "edgetune imports LORA")
    on = [key for key in _UNSUPPORTED if config.get(key)]
    on += ["bias"] if config.get("bias", "none") != "none" else []
    on += ["init_lora_weights"] if config.get("init_lora_weights", True) not in _PLAIN_STARTS else []
    if on:
        raise UnsupportedError(f"{path} sets {on[0]} to {str(config[on[0]])[:60]!r}",
                               "a LoRA GGUF cannot express that: train without it, or merge the adapter in PEFT")
    return config


def _read_weights(folder: Path) -> dict[str, NDArray[np.float32]]:
    if not (folder / WEIGHTS).exists() and (folder / "adapter_model.bin").exists():
        raise UnsupportedError(f"{folder} holds adapter_model.bin, a pickle, which can run code when it is opened",
                               f"save it as {WEIGHTS}")
    tensors = read_safetensors(folder / WEIGHTS)
    if not tensors:
        raise FormatError(f"{folder / WEIGHTS} holds no tensors", "save the adapter again")
    return tensors


def _pair(folder: Path, path: str, sides: dict[str, NDArray[np.float32]], config: dict[str, Any]) -> Pair:
    a = sides.get("A")
    b = sides.get("B")
    if a is None or b is None or a.shape[0] != b.shape[1] or 0 in (*a.shape, *b.shape):
        found = ", ".join(f"lora_{side} {list(values.shape)}" for side, values in sorted(sides.items()))
        raise FormatError(f"{folder} holds {found} for {path}", "it needs lora_A [R, K] and lora_B [N, R], R >= 1")
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        raise FormatError(f"{folder}: {path} holds values that are not finite", "the adapter is of no use")
    rank = _of_module(folder, config, path, "r", "rank_pattern")
    alpha = _of_module(folder, config, path, "lora_alpha", "alpha_pattern")
    if rank != a.shape[0]:
        raise FormatError(f"{folder}: {path} has rank {a.shape[0]}, its {CONFIG} says {rank:g}", "save it again")
    scale = scale_of(alpha, a.shape[0], bool(config.get("use_rslora")))
    if not abs(scale) <= _LARGEST:
        raise FormatError(f"{folder}: {path} has lora_alpha {alpha:g}, which scales its update by {scale:g}",
                          f"up to {_LARGEST:g} can be applied")
    return Pair(a, b, scale)


def _of_module(folder: Path, config: dict[str, Any], path: str, key: str, pattern: str) -> float:
    """The number for a module: the first pattern that names it or an end of it, else the common one.

    PEFT reads patterns as regular expressions; names are what it and its users write, and all that is taken here.
    """
    # 8 is PEFT's default for r and lora_alpha
    value = config.get(key, 8)
    specials = config.get(pattern) or {}
    if not isinstance(specials, dict):
        raise FormatError(f"{folder / CONFIG}: {pattern} is {str(specials)[:60]!r}", "it must name modules")
    for name, special in specials.items():
        if not re.fullmatch(r"\^?[\w.]+", name):
            raise UnsupportedError(f"{folder / CONFIG}: {pattern} has the expression {name[:60]!r}",
                                   "edgetune reads plain module names there")
        if path == name.removeprefix("^") or (name[0] != "^" and path.endswith(f".{name}")):
            value = special
            break
    number = value if isinstance(value, int | float) and not isinstance(value, bool) else math.nan
    if not abs(number) <= _NUMBER:  # nor NaN; and no float holds 10**400
        raise FormatError(f"{folder / CONFIG}: {key} is {str(value)[:60]!r}",
                          f"it must be a number up to {_NUMBER:g}")
    return float(number)
