"""An adapter on disk: a folder with adapter.gguf (which llama.cpp loads), run.json and, from training, metrics.jsonl.

llama.cpp adds user_scale * s * B (A x) with s = alpha / (rank of that tensor), or 1 where alpha is 0. So the file holds
alpha = scale * rank where one number fits all pairs, which covers alpha / R and rsLoRA's alpha / sqrt(R); for pairs of
different scale * rank, B is multiplied by its scale and alpha is 0. Source: llama.cpp, src/llama-adapter.h, get_scale.
Experts: stacks.py.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from ..disk import MIB, json_text, new_folder, open_regular, read_object, replaced
from ..errors import FormatError, MismatchError, NumericsError, UnsupportedError
from ..formats.gguf import Gguf, Tensor, check_adapter, fingerprint, open_gguf, write_gguf
from ..formats.gguf.write import Weights
from ..llamacpp.kv_state import KeyValues
from ..version import __version__
from .base import LLAMA_CPP, Artifact, Setting, family_named
from .lora import Lora
from .stacks import pairs_of, stacked, tensor_shapes

LORA = "lora"  # the type of an adapter that llama.cpp applies, and the family of a run that names none
OURS = "edgetune"  # the type of any other adapter
_FAMILY = "edgetune.family"  # where it is another than LORA
_SERVED_BY = "edgetune.served_by"
_SETTING = "edgetune.setting"
_OBJECTIVE = "edgetune.objective"  # of an adapter with a head
_FACTS = "edgetune.facts"  # likewise
_REPLACES = "edgetune.replaces"  # whether its tensors take the place of the base's
_CHECKED = 1 << 18  # weights that are looked at together
NO_WEIGHTS: Mapping[str, Tensor] = {}
FILE = "adapter.gguf"
RUN = "run.json"
BESIDE = "beside.npz"  # arrays trained with it that are no part of it, such as a value head, by name
TOKENS = "tokens"  # of the facts of an adapter: what its keys and values stand for
COMPILED = "compiled"  # the status in the run.json of a compiled prompt
PROMPT = ("prompt.json", "prompt.jsonl")  # its prompt file, and the rows of `nearest`
SCHEMA = "schema.json"  # of the answers that it learned, if all are JSON
_ALPHA = "adapter.lora.alpha"
_BASE = "edgetune.base_fingerprint"
_NAME = "general.base_model.0.name"


@dataclass(frozen=True, eq=False)
class Adapter:
    """An opened adapter that answers. `path` is the GGUF file; `fingerprint`, `base_name` are "" where it has none."""

    path: Path
    architecture: str
    pairs: Lora  # read-only views of the file where it holds F32
    fingerprint: str = ""  # of the base that it was trained on
    base_name: str = ""
    run: dict[str, Any] = field(default_factory=dict)  # run.json; {} for a bare file
    schema: dict[str, Any] | None = None  # schema.json: the JSON schema of the answers that it learned
    keys: KeyValues = field(default_factory=dict)  # as of Family.served_keys
    tokens: Sequence[int] = ()  # that these keys and values stand for; none: for virtual ones
    own: Artifact | None = None  # instead of pairs or keys: what edgetune's own engine applies

    @property
    def system(self) -> str:
        """The system message that it was trained with, for chats that have none; "" for none."""
        return _system_of(self.run)


def open_adapter(path: str | os.PathLike[str], base: Gguf | None = None) -> Adapter:
    """Open an adapter folder or a LoRA GGUF, also one that llama.cpp's converter made.

    Raises FormatError for no such file, another kind of file or a damaged one. Raises UnsupportedError for what
    llama.cpp or edgetune cannot apply, and MismatchError where `base` is not the model that it was trained on.
    """
    gguf = _opened(path)
    return _adapter(gguf, Artifact(_read_artifact(gguf).served_pairs(str(gguf.path))), base)


def open_served(path: str | os.PathLike[str], base: Gguf, computed: Callable[[Artifact], KeyValues]) -> Adapter:
    """Open an adapter that is served: pairs that llama.cpp applies, keys and values that it holds, or what our own
    engine applies. computed: as of Family.served_keys. Errors: open_adapter's.
    """
    gguf = _opened(path)
    found = _read_artifact(gguf)
    if is_own(found):
        return replace(_adapter(gguf, Artifact(), base), own=found)
    may_have_keys = found.served_by == LLAMA_CPP and not found.is_lora
    if may_have_keys:
        _check_base(gguf, base)
    keys = found.make_family().served_keys(found, computed) if may_have_keys else {}
    adapter = _adapter(gguf, found if keys else Artifact(found.served_pairs(str(gguf.path))), base)
    tokens = found.facts.get(TOKENS, [])
    if tokens and (not isinstance(tokens, list) or len(tokens) != len(next(iter(keys.values()))[0])
                   or not all(isinstance(token, int) for token in tokens)):
        raise FormatError(f"{adapter.path} is damaged: its tokens are not those of its keys",
                          "compile the prompt again")
    return replace(adapter, keys=keys, tokens=tokens)


def is_own(found: Artifact) -> bool:
    """Whether edgetune's own engine answers with it, in text."""
    return found.served_by != LLAMA_CPP and not found.objective


def _adapter(gguf: Gguf, found: Artifact, base: Gguf | None) -> Adapter:
    run, schema = records_of(gguf)
    adapter = Adapter(
        path=gguf.path,
        architecture=gguf.architecture,
        pairs=found.pairs,
        fingerprint=base_of(gguf)[1],
        base_name=base_of(gguf)[0],
        run=run,
        schema=schema,
    )
    if base is not None:
        _check_base(gguf, base)
        check_fit(adapter.pairs, base, str(adapter.path))
    return adapter


def base_of(gguf: Gguf) -> tuple[str, str]:
    """The name and the fingerprint of the base that an adapter's file was trained on; "" where it says none."""
    return str(gguf.metadata.get(_NAME, "")), str(gguf.metadata.get(_BASE, ""))


def read_artifact(path: str | os.PathLike[str], base: Gguf) -> Artifact:
    """The result of training to continue from, also of a family that llama.cpp does not serve. Errors: open_adapter's.
    """
    gguf = _opened(path)
    _check_base(gguf, base)
    found = _read_artifact(gguf)
    check_fit(found.pairs, base, str(gguf.path), found.weights)
    return found


def read_any(path: str | os.PathLike[str]) -> tuple[Gguf, Artifact]:
    """The file of an adapter of any family, and what it holds. Errors: open_adapter's."""
    gguf = _opened(path)
    return gguf, _read_artifact(gguf)


def read_description(path: str | os.PathLike[str]) -> Artifact:
    """An adapter without its arrays, of which none is read. Errors: open_adapter's."""
    return _described(_opened(path))


def check_sizes(found: Artifact, heads: Mapping[str, np.ndarray], source: str) -> None:
    """Raises MismatchError where an adapter has heads of other sizes, so of other labels. source: names it."""
    if any(found.tensors[name].size != own.size for name, own in heads.items()):
        raise MismatchError(f"{source} has other labels than the rows", "leave --start out, or learn the same labels")


def blank_pairs(path: str | os.PathLike[str]) -> Lora:
    """The pairs of a LoRA GGUF with zeros, which take no memory, in place of its values, of which none is read. Errors
    as in open_adapter.
    """
    gguf = _opened(path)
    found: Lora = {}
    for name in gguf.tensors:
        tensor, _, half = name.rpartition(".weight.")
        if half == "lora_a":
            a, b = (np.broadcast_to(np.float32(0.0), gguf.tensors[f"{tensor}.weight.{one}"].shape)
                    for one in ("lora_a", "lora_b"))
            found |= pairs_of(tensor, a, b, 0.0)
    return found


def fingerprint_of(path: str | os.PathLike[str]) -> str:
    """The fingerprint of an adapter's file. Errors as in open_adapter."""
    return fingerprint(_opened(path))


def load_gguf(path: str | os.PathLike[str]) -> Lora:
    """The pairs of a LoRA GGUF, with llama.cpp's scale. Errors as in open_adapter."""
    return open_adapter(path).pairs


def save_gguf(path: str | os.PathLike[str], pairs: Lora, base: Gguf, format: str = "F32") -> None:
    """Write a LoRA GGUF for `base`, replacing `path` at once or not at all. `format` is "F32" or "F16".

    Raises NumericsError for values that are not finite in that format, EdgetuneError where the disk refuses.
    """
    save_artifact(path, Artifact(pairs), base, format)


def save_artifact(path: str | os.PathLike[str], found: Artifact, base: Gguf, format: str = "F32") -> None:
    """Write a GGUF of the result of training, as save_gguf does. It is a LoRA if there are only pairs, else of another
    type, which llama.cpp refuses.
    """
    alpha = _common_alpha(found.pairs)
    values = {}
    for name, pair in found.pairs.items():
        values[f"{name}.weight.lora_a"] = pair.a
        values[f"{name}.weight.lora_b"] = pair.b if alpha else pair.b * np.float32(pair.scale)
    tensors: dict[str, Weights] = {**found.weights}
    for name, tensor in found.weights.items():
        if not _is_finite(tensor):
            raise NumericsError(f"{name} holds values that are not finite", "lower --lr")
    for name, array in {**values, **found.tensors}.items():
        with np.errstate(over="ignore"):  # found on the next line
            stored = array.astype(np.float16) if format == "F16" else array
        if not np.isfinite(stored).all():
            part = name.replace(".weight.", ".")
            raise NumericsError(f"{part} holds values that are not finite in {format}", "lower --lr")
        tensors[name] = stored
    tensors = stacked(tensors)
    metadata = {
        "general.type": "adapter",
        "adapter.type": LORA if found.is_lora else OURS,
        **({_FAMILY: found.family} if found.family not in ("", LORA) or not found.is_lora else {}),
        **({} if found.is_lora else {_SERVED_BY: found.served_by, _SETTING: json_text(vars(found.setting))}),
        **({_OBJECTIVE: json_text(found.objective)} if found.objective else {}),
        **({_FACTS: json_text(found.facts)} if found.facts else {}),
        **({_REPLACES: True} if found.weights else {}),
        _ALPHA: alpha,
        "general.name": f"LoRA for {base_name(base)}",
        "general.base_model.count": 1,
        _NAME: base_name(base),
        _BASE: fingerprint(base),
        "edgetune.version": __version__,
    }
    write_gguf(path, base.architecture, metadata, tensors)


def save_run(folder: Path, found: Artifact | Lora, base: Gguf, run: dict[str, Any], format: str = "F32") -> None:
    """Write adapter.gguf and run.json into a folder that exists; each file is replaced at once or not at all."""
    save_artifact(folder / FILE, found if isinstance(found, Artifact) else Artifact(found), base, format)
    save_record(folder, run)


def save_record(folder: Path, run: dict[str, Any]) -> None:
    """Write run.json into a folder that exists; it is replaced at once or not at all."""
    with replaced(folder / RUN) as beside:
        beside.write_text(json.dumps(run, indent=2) + "\n")


def save_schema(folder: Path, schema: dict[str, Any] | None) -> None:
    """Write schema.json into a folder that exists, replaced at once or not at all; None: remove it."""
    if schema is None:
        (folder / SCHEMA).unlink(missing_ok=True)
        return
    with replaced(folder / SCHEMA) as beside:
        beside.write_text(json_text(schema, indent=1) + "\n", encoding="utf-8")


def save_beside(folder: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write arrays that were trained with an adapter into its folder, at once or not at all; nothing without any."""
    if arrays:
        with replaced(folder / BESIDE) as beside, beside.open("wb") as file:
            np.savez(file, **arrays)  # type: ignore[arg-type]  # it takes names that are no parameters


def read_beside(folder: Path) -> dict[str, np.ndarray]:
    """Arrays that were trained with an adapter; {} where its folder has none. Raises FormatError for a damaged one."""
    path = folder / BESIDE
    import zipfile  # here: few trainings have such arrays
    try:
        with open_regular(path) as opened, np.load(opened, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise FormatError(f"{path} is damaged: {error}", "remove it to begin with new ones") from None


def save_adapter(folder: str | os.PathLike[str], found: Artifact | Lora, base: Gguf, run: dict[str, Any],
                 format: str = "F32", schema: dict[str, Any] | None = None) -> None:
    """Write a new adapter folder, whole or not at all. Raises UsageError if `folder` exists, else as save_gguf."""
    with new_folder(Path(folder)) as beside:
        save_run(beside, found, base, run, format)
        save_schema(beside, schema)


def base_name(base: Gguf) -> str:
    """The name of a base for people: its file's name, or its bundle's where the file is a bundle's model.gguf."""
    folder = base.path.resolve().parent
    return folder.name if folder.suffix == ".edge" else base.path.name


def read_run(folder: Path) -> dict[str, Any]:
    """run.json's content; {} where the folder has none. Raises FormatError for a damaged one."""
    return read_object(folder / RUN, "remove it to use the adapter without its record") or {}


def records_of(gguf: Gguf) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """What run.json and schema.json next to an adapter.gguf hold; ({}, None) for a file of another name. Raises
    FormatError for a damaged one.
    """
    folder = gguf.path.parent
    return (read_run(folder), read_schema(folder)) if gguf.path.name == FILE else ({}, None)


def recorded_size(start: str | os.PathLike[str] | None) -> dict[str, Any]:
    """The options of an adapter's run that decide what is trained, as far as known; {} for None."""
    options = read_run(Path(start)).get("options", {}) if start is not None else {}
    size = family_named(options.get("family", LORA)).size
    return {name: options[name] for name in ("family", *size, "targets", "blocks") if name in options}


def is_compiled(folder: Path) -> bool:
    """Whether an adapter folder holds a compiled prompt, whose keys and values are the base's own."""
    return read_run(folder).get("status") == COMPILED


def read_system(path: str | os.PathLike[str] | None) -> str:
    """`Adapter.system` of an adapter folder, or its adapter.gguf; "" for None. Raises FormatError for a damaged one."""
    if path is None:
        return ""
    file = _find(Path(path))
    return _system_of(read_run(file.parent)) if file.name == FILE else ""


def _system_of(run: Mapping[str, Any]) -> str:
    """A run of an earlier version has only the option."""
    options = run.get("options")
    found = run.get("system") or (options.get("system") if isinstance(options, Mapping) else "")
    return found if isinstance(found, str) else ""


def read_schema(folder: Path) -> dict[str, Any] | None:
    """schema.json's content; None where the folder has none. Raises FormatError for a damaged one."""
    return read_object(folder / SCHEMA, "remove it to use the adapter without its schema", MIB)


# ---- reading ---------------------------------------------------------------------------------------------------------


def _find(path: Path) -> Path:
    if not path.is_dir():
        return path
    if (path / FILE).is_file():
        return path / FILE
    if (path / "adapter_config.json").is_file():
        raise FormatError(f"{path} is an adapter of PEFT, not of edgetune",
                          "turn it into one with edgetune adapters import")
    raise FormatError(f"{path} holds no {FILE}", "name an adapter folder or a LoRA GGUF")


def _opened(path: str | os.PathLike[str]) -> Gguf:
    gguf = open_gguf(_find(Path(path)))
    if gguf.metadata.get("adapter.type") != OURS:
        check_adapter(gguf)
    return gguf


def _read_artifact(gguf: Gguf) -> Artifact:
    alpha = float(gguf.metadata.get(_ALPHA, 0.0))  # type: ignore[arg-type]  # a number, by check_adapter or as written
    pairs: Lora = {}
    tensors = {}
    weights = {}
    is_lora = gguf.metadata["adapter.type"] == LORA
    replaces = not is_lora and gguf.metadata.get(_REPLACES) is True
    for name in gguf.tensors:
        tensor, _, half = name.rpartition(".")
        if replaces:
            weights[name] = gguf.tensors[name]
            if not _is_finite(weights[name]):
                raise FormatError(f"{gguf.path}: {name} has values that are not finite", "take an earlier adapter")
            continue
        if half not in ("lora_a", "lora_b") and not is_lora:
            tensors[name] = gguf.tensors[name].f32()
            continue
        if not tensor.endswith(".weight"):
            raise UnsupportedError(f"{gguf.path} changes {tensor}", "edgetune takes adapters of weights")
        if half == "lora_a":
            a = gguf.tensors[f"{tensor}.lora_a"].f32()
            b = gguf.tensors[f"{tensor}.lora_b"].f32()
            if not (np.isfinite(a).all() and np.isfinite(b).all()):
                raise FormatError(f"{gguf.path}: {tensor} has an update that is not finite", "take an earlier adapter")
            pairs |= pairs_of(tensor.removesuffix(".weight"), a, b, alpha)
    return replace(_described(gguf), pairs=pairs, weights=weights, tensors=tensors)


def _described(gguf: Gguf) -> Artifact:
    is_lora = gguf.metadata["adapter.type"] == LORA
    return Artifact(family=str(gguf.metadata.get(_FAMILY, "")), served_by=str(gguf.metadata.get(_SERVED_BY, LLAMA_CPP)),
                    setting=Setting() if is_lora else _read_setting(gguf), objective=_read_json(gguf, _OBJECTIVE),
                    facts=_read_json(gguf, _FACTS))


def _read_setting(gguf: Gguf) -> Setting:
    try:
        found = json.loads(str(gguf.metadata[_SETTING]))
        first, end = map(int, found["blocks"])
        return Setting(dict(found["options"]), [*map(str, found["targets"])], [first, end], int(found["seed"]))
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise FormatError(f"{gguf.path} is damaged: {_SETTING} is no setting ({error})",
                          "take an earlier adapter") from None


def _read_json(gguf: Gguf, key: str) -> dict[str, Any]:
    try:
        found = json.loads(str(gguf.metadata.get(key, "{}")))
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise FormatError(f"{gguf.path} is damaged: {key} is no JSON object", "take an earlier adapter")
    return found


def _check_base(gguf: Gguf, base: Gguf) -> None:
    """Compares fingerprints where the adapter has one; other adapters must fit by architecture."""
    name = str(gguf.metadata.get(_NAME, ""))
    trained = str(gguf.metadata.get(_BASE, ""))
    trained_on = f"was trained on {name or 'another ' + gguf.architecture}"
    if trained and trained != (given := fingerprint(base)):
        raise MismatchError(
            f"{gguf.path} {trained_on} ({trained[:19]}), not on {base.path} ({given[:19]})",
            "give the model it was trained on, or train on this one",
        )
    if gguf.architecture != base.architecture:
        raise MismatchError(
            f"{gguf.path} is for {gguf.architecture}, {base.path} is {base.architecture}",
            "give the model it was trained on, or train on this one",
        )


def check_fit(pairs: Lora, base: Gguf, source: str, weights: Mapping[str, Tensor] = NO_WEIGHTS) -> None:
    """Raises MismatchError unless every pair, and every tensor in place of the base's, has its tensor in `base`, of its
    shape; a stack of experts must have a pair for each of them. `source` names them.
    """
    replaced_by = [(name, tensor.shape) for name, tensor in weights.items()]
    for name, shape in [*tensor_shapes(pairs), *replaced_by]:
        tensor = base.tensors.get(name)
        has = "no such tensor" if tensor is None else f"{list(tensor.shape)}"
        if tensor is None or tensor.shape != shape:
            raise MismatchError(
                f"{source} changes {name.removesuffix('.weight')} of shape {list(shape)}, {base.path} has {has}",
                "give the model it was trained on",
            )


def _is_finite(tensor: Tensor) -> bool:
    return all(np.isfinite(part.f32()).all() for _, part in tensor.parts(_CHECKED))


# ---- writing ---------------------------------------------------------------------------------------------------------


def _common_alpha(pairs: Lora) -> float:
    """scale * rank if that is one positive number for all pairs, else 0: the scales must go into B."""
    alphas = [pair.scale * pair.rank for pair in pairs.values()] or [0.0]
    same = all(math.isclose(alpha, alphas[0], rel_tol=1e-9) for alpha in alphas)
    return alphas[0] if same and alphas[0] > 0 else 0.0
