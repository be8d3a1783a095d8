"""Describes a file (`info`) and the abilities of a machine (`doctor`)."""

from __future__ import annotations

import importlib.metadata
import platform
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict
from math import prod
from pathlib import Path
from typing import Any

from ..adapters import store
from ..adapters.lora import stack_of
from ..backends import cpu, native
from ..backends.opening import open_cuda
from ..errors import EdgetuneError, UsageError, install_hint, size_text
from ..formats import bundle, signature
from ..formats.gguf import ENCODERS, Gguf, check_network, open_gguf
from ..llamacpp.tokenizer import Tokenizer
from ..llamacpp.tokenizers import open_encoder_tokenizer
from ..machine import device
from ..machine.sensors import Readings, Sensors, gpu_mhz
from ..models.networks import open_network
from ..objectives.classify import Classify
from ..serving.sureness import ANSWERS, KINDS, Sureness, sureness_of
from ..training.config import LORA, TrainConfig
from ..training.sizing import make_plan
from ..version import __version__
from .names import EXTRAS

SHARES = (0.99, 0.95, 0.9, 0.8)  # of right answers, for which an encoder's answers count as sure


def describe(path: Path) -> dict[str, Any]:
    """Facts about a model, bundle or adapter. Raises FormatError for anything else."""
    if path.is_dir() and ((path / store.FILE).exists() or (path / "adapter_config.json").exists()):
        return _adapter(path)
    if path.is_dir():
        return _bundle(path)
    gguf = open_gguf(path)
    if gguf.metadata.get("general.type") == "adapter":
        return _adapter(path)
    return {"file": str(path), "kind": "model", **_model(gguf)}


def _model(gguf: Gguf) -> dict[str, Any]:
    arch = gguf.architecture
    formats = Counter[str]()
    for tensor in gguf.tensors.values():
        formats[tensor.format] += tensor.data.nbytes
    parameters = sum(prod(t.shape) for t in gguf.tensors.values())
    total = sum(formats.values())
    trainable = True
    why = ""
    needs = 0
    available = device.read_device().memory_available
    try:
        check_network(gguf)
        objective = None
        if arch in ENCODERS:
            open_encoder_tokenizer(gguf)
            objective = Classify(("yes", "no"))  # each further label takes a row of the width
        else:
            Tokenizer(gguf).close()  # llama.cpp may refuse the vocabulary
        needs = make_plan(open_network(gguf), TrainConfig(), objective=objective).peak_bytes
        if needs > available:
            trainable = False
            why = (f"training with the defaults needs {needs} bytes, {available} are available; "
                   "lower --micro-batch, --max-length or --rank")
    except EdgetuneError as error:
        trainable = False
        why = str(error)
    tokens = "tokenizer.ggml.tokens"
    facts = {
        "name": gguf.metadata.get("general.name", ""), "architecture": arch, "parameters": parameters,
        "bytes": gguf.path.stat().st_size, "bits_per_weight": round(8 * total / max(parameters, 1), 2),
        "formats": {name: f"{size / total:.0%}" for name, size in formats.most_common()},
        "blocks": gguf.metadata.get(f"{arch}.block_count", 0),
        "width": gguf.metadata.get(f"{arch}.embedding_length", 0),
        "context": gguf.metadata.get(f"{arch}.context_length", 0),
        "vocabulary": gguf.metadata.count(tokens) if tokens in gguf.metadata else 0,
        "chat_template": "tokenizer.chat_template" in gguf.metadata, "bytes_to_train": needs, "trainable": trainable}
    return facts if trainable else facts | {"why_not": why}


def _bundle(path: Path) -> dict[str, Any]:
    """The origin of a bundle, from its manifest, and its model's facts where that is a GGUF."""
    manifest = bundle.open_folder(path)
    listed = {*manifest["files"], bundle.MANIFEST, signature.FILE}
    cost = manifest.get("cost")
    steps = manifest.get("steps")
    steps = steps if isinstance(steps, list) else []
    source = manifest.get("source")
    source = source if isinstance(source, dict) else {"name": source}
    facts = {
        "format": manifest.get("format", "gguf"), "made_by": f"edgetune {_word(manifest.get('edgetune')) or 'unknown'}",
        "source": _word(source.get("name")), "revision": _word(source.get("revision")),
        "licence": _word(source.get("licence")), "steps": [_step(step) for step in steps],
        **_cost(cost if isinstance(cost, dict) else {}), "signature": _signature(path),
        "files": sorted(manifest["files"]), "not_in_manifest": sorted({p.name for p in path.iterdir()} - listed)}
    model = (_model(open_gguf(path / bundle.MODEL)) if bundle.MODEL in manifest["files"] else
             {"bytes": sum((path / name).stat().st_size for name in manifest["files"])})
    return {"file": str(path), "kind": "bundle", **{key: value for key, value in facts.items() if value}, **model}


def _step(step: Any) -> dict[str, Any]:
    step = step if isinstance(step, dict) else {}
    weights = step.get("weights")
    cost = step.get("cost")
    return {"name": _word(step.get("name")), **({"weights": weights} if isinstance(weights, int) else {}),
            **_cost(cost if isinstance(cost, dict) else {})}


def _cost(cost: dict[str, Any]) -> dict[str, float]:
    return {key: round(value, 4) for key in ("perplexity", "source_perplexity", "kl", "top1", "cosine", "least_cosine")
            if isinstance(value := cost.get(key), int | float)}


def _signature(path: Path) -> str:
    signer = bundle.signer(path)
    if signer is None:
        return "not signed"
    return f"by {signer.public_key}, " + (f"trusted here as {_word(signer.name)}" if signer.name else
                                          "which says no more than the hashes, for no key is trusted here")


def _word(value: Any) -> str:
    """A manifest is other people's text: as much of it as fits a line or two."""
    return " ".join(value[:200].split()) if isinstance(value, str) else ""


def _adapter(path: Path) -> dict[str, Any]:
    gguf, found = store.read_any(path)
    run, schema = store.records_of(gguf)
    base, fingerprint = store.base_of(gguf)
    # blk.3.attn_q, but output too
    targets = Counter(stack_of(name)[0].split(".", 2)[-1] for name in found.pairs)
    held = run.get("held_out")
    facts: dict[str, Any] = {
        "file": str(gguf.path), "kind": "adapter", "architecture": gguf.architecture,
        "family": found.family or LORA, "answered_by": found.served_by,
        "trained_on": base, "fingerprint": fingerprint, **({
            "pairs": len(found.pairs), "targets": dict(targets),
            "ranks": sorted({pair.rank for pair in found.pairs.values()})} if found.pairs else {}),
        "parameters": sum(pair.a.size + pair.b.size for pair in found.pairs.values())
        + sum(array.size for array in found.tensors.values())
        + sum(prod(tensor.shape) for tensor in found.weights.values()),
        "bytes": gguf.path.stat().st_size, "status": run.get("status", "")}
    if trained := run.get("parameters"):
        facts["parameters_trained"] = trained
    if tokens := found.facts.get(store.TOKENS):
        facts["tokens_compiled"] = len(tokens)
    if labels := found.objective.get("labels"):
        facts["labels"] = len(labels)
    for prefix, name in (("", ANSWERS), ("kinds_", KINDS)):
        if sureness := sureness_of(found, str(path), name):
            facts |= {f"{prefix}sure_at_{share:.0%}": _sure(sureness, share) for share in SHARES}
    if schema is not None:
        facts["schema"] = schema
    if isinstance(held, dict):
        facts |= {f"held_out_{name}": held[name] for name in ("loss_before", "loss_after") if name in held}
    return facts


def _sure(sureness: Sureness, share: float) -> str:
    if answered := sureness.answered(share):
        return f"{answered:.0%} of {sureness.rows} rows"
    return f"none: {sureness.missing(share)}"


def _machine(here: device.Device) -> dict[str, Any]:
    return {"board": here.model, "machine": here.machine, "cpu": here.cpu, "cores": here.cores,
            "memory_total": here.memory_total, "memory_available": here.memory_available,
            "profile": here.profile.name if here.profile else ""}


def describe_device(root: Path) -> dict[str, Any]:
    """The machine below `root`: detected facts, the profile with the reason for it, overrides, and the state of its
    sensors. Raises UsageError where there is no /proc below root.
    """
    here = _device(root)
    profile = {k: v for k, v in asdict(here.profile).items() if v and k != "name"} if here.profile else {}
    return {**_machine(here), "matched": here.matched, "overrides": here.overrides(), "processors": here.processors,
            "memory_installed": here.memory_installed, "power_mode": here.power_mode, "profile_says": profile,
            **_sensed(_sensors_of(root, here).read(), root)}


def sensor_reader(root: Path) -> Callable[[], dict[str, Any]]:
    """A function that reads the machine's present state; it raises the same errors as `describe_device`."""
    sensors = _sensors_of(root, _device(root))

    def read() -> dict[str, Any]:
        r = sensors.read()
        return {"memory_available": r.available, "power_mode": r.power_mode, **_sensed(r, root),
                "processors": r.processors, "kept_busy_by_others": round(r.others_busy, 1)}

    return read


def _device(root: Path) -> device.Device:
    if not (root / "proc").is_dir():
        raise UsageError(f"{root} has no folder proc", "name the root of a machine's files, / for this one")
    return device.read_device(root)


def _sensors_of(root: Path, here: device.Device) -> Sensors:
    return Sensors(root, here.profile.zones if here.profile else ())


def _sensed(r: Readings, root: Path) -> dict[str, Any]:
    return {"gpu_load_percent": r.gpu_load, "gpu_mhz": None if r.gpu_load is None else gpu_mhz(root),
            "temperature": r.temperature, "zone": r.zone, "kernel_throttles_at": r.trip, "throttled": r.throttled,
            "on_battery": r.on_battery, "battery_percent": r.battery, "waiting_for_memory_percent": r.memory_stall}


def examine() -> dict[str, Any]:
    """Facts about this machine and this installation, and the parts that commands lack."""
    here = device.read_device()
    missing: list[str] = []
    ready = True
    try:
        from ..llamacpp import library as llamacpp
        has = re.findall(r"(\w+) = 1\b", llamacpp.load().llama_print_system_info().decode())
        llama = f"{importlib.metadata.version('llama-cpp-python')}: {', '.join(has)}"
    except (ImportError, OSError, RuntimeError) as error:
        llama = "not usable"
        ready = False
        missing.append(f"llama.cpp ({error}): pip install llama-cpp-python")
    missing += [f"for {extra.needed_by}: {install_hint(extra.name)}" for extra in EXTRAS if extra.missing()]
    usable = [name for name in cpu.isa_names() if cpu.usable(name)]
    return {"edgetune": __version__, "python": platform.python_version(), **_machine(here),
            "cpu_features": cpu.cpu_features(), "kernels": usable[0], "kernels_usable": usable,
            "products": {p: cpu.Cpu(1).products(p) for p in native.PRECISIONS},
            "gpu": gpu_facts(), "llama_cpp": llama, "missing": missing, "ready": ready,
            "verdict": verdict(here, usable[0], missing, ready)}


def gpu_facts() -> str:
    """The GPU that would compute, or a sentence that says why none does."""
    try:
        return open_cuda(lambda _: None).isa
    except EdgetuneError as error:
        return f"none: {error}"


def verdict(here: device.Device, kernels: str, missing: list[str], ready: bool) -> str:
    """Says in a sentence whether models can be trained and answer here."""
    if not ready:
        return f"Not ready: models are neither trained nor answer without {missing[0]}."
    return (f"Ready: trains with the kernels {kernels} on {here.cores} cores in "
            f"{size_text(here.memory_available)} of free memory, and answers through llama.cpp.")
