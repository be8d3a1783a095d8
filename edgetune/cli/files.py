"""The commands of adapters' files: export, import and merge."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..errors import UsageError, size_text
from .adapters import adapters
from .app import MODEL, ModelPath, column_options, command, explicit, out, show, system_option, threads_option
from .compare import SHOWN, comparison_lines, discordant_table, exact_text
from .serving import ServingOptions, instruction_of, served_model

if TYPE_CHECKING:
    from ..adapters.lora import Lora
    from ..adapters.store import Adapter
    from ..data.around import Instruction
    from ..data.formats import Columns
    from ..evaluation.served import Grades
    from ..formats.gguf import Gguf

base_option = click.option("--base", type=ModelPath(),
                           help="The model that the adapter was trained on [where it was then].")


@command("export", click.argument("adapter", type=click.Path(path_type=Path)),
         click.option("--to", "to", type=click.Choice(["peft", "ollama", "onnx"]), default="peft", show_default=True,
                      help="For which program."), base_option,
         click.option("--base-name", default="",
                      help="The base as that program knows it: peft: an id on the hub or a folder [as the GGUF names "
                           "it]; ollama: a model's name [the GGUF's path]."),
         click.option("--rank", type=click.IntRange(1), default=None,
                      help="Instead: cut an adapter of the family dylora to this rank, as an adapter of edgetune."),
         click.option("--system", default=None, help="ollama: the system message of every chat [that of training]."),
         click.option("-o", "--out", "folder", type=click.Path(path_type=Path), help="New folder [ADAPTER-peft]."),
         group=adapters)
def export_command(adapter: Path, to: str, base: Path | None, base_name: str, rank: int | None, system: str | None,
                   folder: Path | None, as_json: bool) -> None:
    """Write ADAPTER for another program.

    It writes a folder, with a model card. peft: for transformers on the model that the GGUF was made from. ollama: a
    Modelfile for ollama create. onnx: an encoder with the adapter and its labels, for ONNX Runtime.
    """
    from ..adapters.store import read_any, read_run, records_of
    from ..formats.bundle import open_bundle
    if system is not None and to != "ollama":
        raise UsageError(f"--system is given with --to {to}, which has no place for it", "leave it out")
    if rank is not None:
        if chosen := explicit({"to": to, "base_name": base_name}):
            raise UsageError(f"--rank is given with --{next(iter(chosen)).replace('_', '-')}",
                             "cut the adapter first, then export what that wrote")
        show(as_json, *_cut(adapter, rank, base, folder or adapter.with_name(f"{adapter.name}-rank{rank}")))
        return
    folder = folder or adapter.with_name(f"{adapter.name}-{to}")
    if to == "onnx":
        gguf = open_bundle(base or base_of_run(read_run(adapter), adapter)).gguf
        facts, lines = _to_onnx(adapter, gguf, folder)
        show(as_json, {"out": str(folder), "to": to, **facts}, *lines)
        return
    gguf = open_bundle(base or base_of_run(records_of(read_any(adapter)[0])[0], adapter)).gguf
    _refuse_encoder(gguf, "write its adapter with --to onnx, or merge one of vectors")
    if to == "peft":
        facts, lines = _to_peft(adapter, gguf, folder, base_name)
    else:
        facts, lines = _to_ollama(adapter, gguf, folder, base_name, system)
    show(as_json, {"out": str(folder), "to": to, **facts}, *lines)


def _cut(adapter: Path, rank: int, base: Path | None, folder: Path) -> tuple[dict[str, Any], str]:
    """Writes an adapter at a smaller rank; returns its facts, and a sentence."""
    from ..adapters.base import family_named
    from ..adapters.store import FILE, LORA, read_any, read_artifact, records_of, save_adapter
    from ..formats.bundle import open_bundle
    gguf, found = read_any(adapter)
    cut = family_named(found.family or LORA).cut(found, rank)
    run, schema = records_of(gguf)
    opened = open_bundle(base or base_of_run(run, adapter)).gguf
    read_artifact(adapter, opened)
    save_adapter(folder, cut, opened, {**run, "options": {**run.get("options", {}), "rank": rank}}, schema=schema)
    nbytes = (folder / FILE).stat().st_size
    return ({"out": str(folder), "rank": rank, "pairs": len(cut.pairs), "bytes": nbytes},
            f"{folder}: rank {rank}, {size_text(nbytes)}")


def _refuse_encoder(base: Gguf, way: str) -> None:
    """Raises UsageError for an encoder, whose adapters other programs have in no common form."""
    from ..formats.gguf import ENCODERS
    if base.architecture in ENCODERS:
        raise UsageError(f"{base.path.name} is an encoder, and PEFT and Ollama are for models that write text", way)


def _to_onnx(adapter: Path, base: Gguf, folder: Path) -> tuple[dict[str, Any], list[str]]:
    from ..formats.gguf import ENCODERS
    if base.architecture not in ENCODERS:
        raise UsageError(f"{base.path.name} writes text, and adapters of encoders alone are written as ONNX",
                         "merge it, and compress the model with --format onnx")
    from ..compress.onnx.encoder import export_onnx
    facts = export_onnx(adapter, base, folder)
    return facts, [f"{folder}/model.onnx in float32: {size_text(facts['bytes'])}; model-int8.onnx: "
                   f"{size_text(facts['int8_bytes'])}",
                   f"outputs: {', '.join(facts['outputs'])}; labels.json says what they mean"]


def _to_peft(adapter: Path, base: Gguf, folder: Path, base_name: str) -> tuple[dict[str, Any], list[str]]:
    from ..adapters.peft import export_peft, export_peft_prefix
    from ..adapters.published import origin
    from ..adapters.store import open_served
    from ..console import Copyable
    from ..serving.virtual_keys import virtual_keys
    base_name = base_name or origin(base)
    opened = open_served(adapter, base, lambda found: virtual_keys(base, found))
    if opened.own:
        opened.own.served_pairs(str(adapter))  # which refuses it
    if opened.keys:
        export_peft_prefix(opened.keys, base, folder, base_name, opened.run)
        count = {"virtual_tokens": len(opened.keys[0][0])}
        what = f"{count['virtual_tokens']} virtual tokens"
    else:
        export_peft(opened.pairs, base, folder, base_name, opened.run)
        count = {"pairs": len(opened.pairs)}
        what = f"{count['pairs']} pairs"
    return {"base_name": base_name, **count}, [
        f"{what} written to {folder}; load them with:",
        Copyable(f"peft.PeftModel.from_pretrained(model, {str(folder)!r})"),
        f"for the model {base_name}; another: --base-name"]


def _to_ollama(adapter: Path, base: Gguf, folder: Path, base_name: str,
               system: str | None) -> tuple[dict[str, Any], list[str]]:
    from ..adapters.ollama import export_ollama
    from ..adapters.store import open_adapter
    from ..console import Copyable
    pairs = open_adapter(adapter, base).pairs
    has_template = export_ollama(adapter, base, folder, model=base_name, system=system)
    lines: list[str] = [f"written to {folder}; next:",
                        Copyable(f"cd {folder} && ollama create {folder.name} -f Modelfile")]
    if not has_template:
        lines.append("the base's chat template writes more than Ollama's can, or there is none: the Modelfile has no "
                     "TEMPLATE, and Ollama chooses one, which may differ from that of training")
    return {"template": has_template, "pairs": len(pairs)}, lines


def base_of_run(run: dict[str, Any], adapter: Path) -> Path:
    """The model that an adapter was trained on. Raises UsageError where it is not there."""
    base = run.get("base")
    path = base.get("path") if isinstance(base, dict) else None
    if not isinstance(path, str) or not Path(path).exists():
        raise UsageError(f"{adapter} was trained on {path or 'a model it does not name'}, which does not exist here",
                         "name the model with --base")
    return Path(path)


@command("import", click.argument("peft_folder", type=click.Path(path_type=Path)),
         click.option("--base", type=ModelPath(), required=True, help="The GGUF that it is for."),
         click.option("-o", "--out", "folder", type=click.Path(path_type=Path), required=True, help="New folder."),
         group=adapters)
def import_command(peft_folder: Path, base: Path, folder: Path, as_json: bool) -> None:
    """Turn a LoRA folder of PEFT into an adapter."""
    from ..adapters.peft import import_peft
    from ..adapters.store import base_name, save_adapter
    from ..formats.bundle import open_bundle
    bundle = open_bundle(base)
    _refuse_encoder(bundle.gguf, "train an adapter with edgetune train")
    pairs = import_peft(peft_folder, bundle.gguf)
    run = {"status": "imported", "base": {"name": base_name(bundle.gguf), "path": str(base.resolve()),
                                          "fingerprint": bundle.fingerprint,
                                          "architecture": bundle.gguf.architecture}, "from": str(peft_folder)}
    save_adapter(folder, pairs, bundle.gguf, run)
    show(as_json, {"out": str(folder), "pairs": len(pairs)}, f"{len(pairs)} pairs written to {folder}")


@command("merge", MODEL, click.argument("adapter", type=click.Path(path_type=Path)),
         click.option("-o", "--out", "target", type=click.Path(path_type=Path), required=True, help="New GGUF."),
         click.option("--to", "to", default="",
                      help="llama.cpp's name of the type to requantize to, or F32, F16, keep "
                           "[Q8_0; keep for an adapter that has whole weights]."),
         click.option("--eval", "held_out", type=click.Path(path_type=Path),
                      help="Held-out rows: measure what merging cost, in loss and exact answers."),
         system_option, column_options, threads_option,
         group=adapters)
def merge_command(model: Path, adapter: Path, target: Path, to: str, held_out: Path | None, system: str,
                  prompt_column: str, completion_column: str, threads: int, as_json: bool) -> None:
    """Write MODEL with ADAPTER added into its weights."""
    from ..adapters.merge import KEEP, merge
    from ..adapters.store import read_artifact
    from ..data.formats import Columns
    from ..formats.bundle import open_bundle
    of_rows = {"system": system, "prompt_column": prompt_column, "completion_column": completion_column}
    for name in explicit(of_rows) if held_out is None else ():
        raise UsageError(f"--{name.replace('_', '-')} is given without --eval", "name the held-out rows, too")
    gguf = open_bundle(model).gguf
    found = read_artifact(adapter, gguf)
    if found.weights and held_out:
        raise UsageError(f"--eval compares answers before and after, and llama.cpp cannot apply {adapter} before",
                         "merge first, and measure the new model with edgetune eval")
    to = to or (KEEP if found.weights else "Q8_0")
    pairs = {} if found.weights else found.served_pairs(str(adapter))
    with nullcontext() if as_json else out.status("merging"):
        merge(gguf, pairs, target, to, threads, found.weights)
    result: dict[str, Any] = {"out": str(target), "to": to, "bytes": target.stat().st_size}
    lines: list[Any] = [f"{target}: {size_text(target.stat().st_size)}"]
    if found.weights:
        lines.append("with the weights as they were measured" if to == KEEP else
                     "what other formats cost was not measured: compare with edgetune eval")
    elif held_out is None:
        lines.append("what merging cost was not measured: give held-out rows with --eval")
    else:
        columns = Columns(prompt_column, completion_column)
        instruction = system or instruction_of(adapter)
        before, after = (_graded(path, serving, held_out, instruction, columns) for path, serving in (
            (model, ServingOptions(adapter, threads)), (target, ServingOptions(None, threads))))
        facts, said = _cost(before, after)
        result |= facts
        lines += said
    show(as_json, result, *lines)


def _graded(model: Path, serving: ServingOptions, data: Path, system: Instruction, columns: Columns) -> Grades:
    """Grades the answers to held-out rows."""
    from ..data.dataset import load
    from ..evaluation.served import grade
    with served_model(model, serving) as served:
        rows = load(data, served.tokenizer, max_length=served.context, system=system, columns=columns)
        return grade(served, rows, system=system)


def _cost(before: Grades, after: Grades) -> tuple[dict[str, Any], list[Any]]:
    from ..evaluation.compare import compare
    names = ("with the adapter", "merged")
    found = compare(before, after)
    old = before.scores
    new = after.scores
    facts = {"loss_with_adapter": old.loss, "loss_merged": new.loss, "exact_with_adapter": old.exact,
             "exact_merged": new.exact, "exact_rows": old.exact_rows, "compared": found.to_json(SHOWN)}
    lines: list[Any] = [f"held-out loss {old.loss:.4f} with the adapter, {new.loss:.4f} merged: "
                        f"{(new.loss / old.loss - 1) * 100:+.1f} %"]
    if found.answers:
        lines.append(f"exact answers {exact_text(old)} with the adapter, {exact_text(new)} merged")
    lines += comparison_lines(found, *names)
    return facts, [*lines, "", discordant_table(found, *names)] if found.discordant else lines


@command("combine", click.argument("adapters", nargs=-1, type=click.Path(path_type=Path)),
         click.option("-o", "--out", "folder", type=click.Path(path_type=Path), required=True, help="New folder."),
         click.option("--rank", type=click.IntRange(1), help="Rank to cut the sum to [all ranks together]."),
         click.option("--weight", "weights", type=float, multiple=True, metavar="W",
                      help="Weight of an adapter in the sum, once for each [1 / their number]."),
         click.option("--base", type=click.Path(path_type=Path), help="The model [where the first was trained on it]."),
         group=adapters)
def merge_adapters_command(adapters: Sequence[Path], folder: Path, rank: int | None, weights: Sequence[float],
                           base: Path | None, as_json: bool) -> None:
    """Write the weighted sum of LoRAs as one LoRA.

    Without --rank the sum is exact, and `edgetune train --start OUT` trains only the weights: the family fusion. With
    --rank it is the nearest sum of that rank, as small as one of them.
    """
    from ..adapters.joined import cut, similarity, stacked
    from ..adapters.store import FILE, open_adapter, read_run, save_adapter
    from ..formats.bundle import open_bundle
    if len(adapters) < 2:
        raise UsageError(f"{len(adapters)} adapters are named", "name two or more")
    weights = weights or [1 / len(adapters)] * len(adapters)
    if len(weights) != len(adapters):
        raise UsageError(f"--weight is given {len(weights)} times, for {len(adapters)} adapters",
                         "give it once for each, or leave it out")
    gguf = open_bundle(base or base_of_run(read_run(adapters[0]), adapters[0])).gguf
    opened = [open_adapter(adapter, gguf) for adapter in adapters]
    loras = [each.pairs for each in opened]
    pairs = stacked(loras, weights)
    ranks = max(pair.rank for pair in pairs.values())
    if rank is not None and rank >= ranks:
        raise UsageError(f"--rank is {rank}, and the sum has {ranks}", "give less, or leave it out")
    if rank is not None:
        pairs = cut(pairs, rank)
    save_adapter(folder, pairs, gguf, _run(opened, pairs, adapters, whole=rank is None))
    alike = [similarity(loras[0], lora) for lora in loras[1:]]
    nbytes = (folder / FILE).stat().st_size
    show(as_json, {"out": str(folder), "rank": rank or ranks, "bytes": nbytes, "similarity": alike},
         f"{folder}: rank {rank or ranks}, {size_text(nbytes)}",
         f"similarity of the updates to the first: {', '.join(f'{each:.2f}' for each in alike)}")


def _run(opened: Sequence[Adapter], pairs: Lora, adapters: Sequence[Path], whole: bool) -> dict[str, Any]:
    """The content of run.json, from which a training continues: its family is fusion if the sum is whole."""
    first = opened[0].run
    common = {name: value for name, value in first.get("options", {}).items() if name in ("targets", "blocks")
              and all(each.run.get("options", {}).get(name) == value for each in opened)}
    rank = max(pair.rank for pair in pairs.values())
    of_family = {"family": "fusion", "sources": len(opened)} if whole else {"family": "lora", "alpha": float(rank)}
    system = opened[0].system if len({each.system for each in opened}) == 1 else ""
    return {"status": "merged", "base": first.get("base", {}), "from": [str(path) for path in adapters],
            "system": system, "options": {**of_family, "rank": rank, **common}}
