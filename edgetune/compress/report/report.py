"""What compression did and what it cost, for people: one HTML file that needs nothing else, and lines for a terminal.

Both are made from the facts of the manifest, with what is too long for it: "tensors", "healing" and "answers". What is
absent is left out. The same facts give the same bytes.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import prod
from pathlib import Path
from typing import Any

from jinja2 import ChainableUndefined, Environment
from rich.table import Table
from rich.text import Text

from ...console import mib, table
from ...disk import replaced
from ...formats.bundle import to_plain_json
from ...formats.gguf import Gguf
from ...version import __version__

Facts = dict[str, Any]
NOTHING = "–"
PARTS = ("embedding", "attention", "mlp", "norms", "output", "metadata")
_PART_OUTSIDE = {"token_embd.weight": "embedding", "output.weight": "output"}
_PAGE = Path(__file__).with_name("report.html")


def parts(gguf: Gguf) -> list[Facts]:
    """Weights, bytes and bits a weight of each part of a file, in the order of PARTS; all bytes are those of the file.

    "metadata" is all that is no tensor: keys, vocabulary, names and padding.
    """
    weights = dict.fromkeys(PARTS, 0)
    sizes = dict.fromkeys(PARTS, 0)
    for name, tensor in gguf.tensors.items():
        part = _part_of(name)
        weights[part] += prod(tensor.shape)
        sizes[part] += tensor.data.nbytes
    sizes["metadata"] = int(gguf.data.size) - sum(sizes.values())
    return [{"part": part, "weights": weights[part], "bytes": sizes[part],
             "bits_per_weight": 8 * sizes[part] / weights[part] if weights[part] else None}
            for part in PARTS if sizes[part]]


def _part_of(name: str) -> str:
    if "norm" in name:
        return "norms"
    if not name.startswith("blk."):
        return _PART_OUTSIDE.get(name, "attention")  # rope_freqs
    return "mlp" if ".ffn_" in name else "attention"


def write(path: Path, facts: Facts) -> None:
    """The report as one HTML file, whole or not at all."""
    page = Environment(autoescape=True, trim_blocks=True, undefined=ChainableUndefined).from_string(_PAGE.read_text())
    with replaced(path) as beside:
        beside.write_text(page.render(_page(facts)) + "\n")


def lines(facts: Facts) -> list[Table | Text]:
    """The same for a terminal after a run, in short."""
    facts = _plain(facts)
    shown = list[Table | Text]()
    if steps := [[row[key] for key in ("name", "weights", "perplexity", "kl", "top1")] for row in _steps(facts)]:
        columns = ["step", "weights", "perplexity", "mean KL", "top-1"]
        shown.append(table("", columns, [[Text(cell) for cell in row] for row in steps], (1, 2, 3, 4)))
    if rows := [[row[key] for key in ("part", "size", "share", "bits")] for row in _parts(facts)]:
        shown += [Text(), table("", ["part", "size", "share", "bits a weight"],
                                [[Text(cell) for cell in row] for row in rows], (1, 2, 3)), Text()]
    shown += [Text(f"{name}: {value}{', ' if more else ''}{more}") for name, value, more in _tiles(facts)]
    if device := facts.get("device"):
        shown += [Text(f"traded there: {sentence}") for sentence in device.get("traded") or ()]
    return shown


def _plain(facts: Facts) -> Facts:
    """Answers stay as they are: they may begin like a path."""
    return {**to_plain_json({key: value for key, value in facts.items() if key != "answers"}),
            "answers": facts.get("answers") or []}


def _page(facts: Facts) -> Facts:
    """What the template shows: rows of strings, and plots."""
    facts = _plain(facts)
    source = facts.get("source") or {}
    cost = facts.get("cost") or {}
    described = [source.get("kind"), source.get("revision") and f"revision {source['revision']}",
                 source.get("licence") and f"licence {source['licence']}",
                 source.get("quantized") and "already quantized when it came"]
    measured = f"Costs were measured on {cost['tokens']:,} tokens of text that nothing was chosen by. " if cost.get(
        "tokens") else ""
    return {
        "title": f"{source.get('name') or 'A model'}, compressed",
        "origin": " · ".join(str(said) for said in described if said),
        "tiles": list(_tiles(facts)), "steps": _steps(facts), "plots": list(_plots(facts)), "parts": _parts(facts),
        "device": _device(facts.get("device")), "answers": facts["answers"],
        "tensors": [{"name": t["name"], "type": t["type"], "size": megabytes(t["bytes"]),
                     "sensitivity": _number(t.get("sensitivity"), ".3g"), "kl": _number(t.get("kl"), ".3g")}
                    for t in facts.get("tensors") or ()],
        "options": [(name.replace("_", "-"), _shown(value)) for name, value in (facts.get("options") or {}).items()
                    if value not in ("", None)],
        "checksums": list((source.get("sha256") or {}).items()),
        "footer": f"{measured}KL in natural units, from the source to what was made; top-1: how often both find the "
                  f"same token likeliest. 1 MB is 10^6 bytes, 1 MiB 2^20. Made by edgetune {__version__}."}


def _tiles(facts: Facts) -> Iterator[tuple[str, str, str]]:
    """Name, value, and a word more, of what matters most."""
    cost = facts.get("cost") or {}
    device = facts.get("device") or {}
    if found := facts.get("parts"):
        total = sum(part["bytes"] for part in found)
        weights = sum(part["weights"] for part in found)
        stored = sum(part["bytes"] for part in found if part["part"] != "metadata")  # as `edgetune info` counts
        yield "file", megabytes(total), f"{_millions(weights)} weights, {8 * stored / max(weights, 1):.2f} bits each"
    if cost.get("perplexity") is not None:
        before = cost.get("source_perplexity")
        yield "perplexity", f"{cost['perplexity']:,.2f}", f"the source has {before:,.2f}" if before is not None else ""
    if cost.get("kl") is not None:
        yield "mean KL to the source", f"{cost['kl']:.4f}", f"± {cost['kl_error']:.4f}" if cost.get("kl_error") else ""
    if cost.get("top1") is not None:
        yield "top-1 agreement", f"{cost['top1']:.1%}", f"of {cost['tokens']:,} tokens" if cost.get("tokens") else ""
    if device:
        rate = device.get("predicted_tokens_per_second")
        speed = f", about {rate:.0f} tokens/s" if rate else ""
        yield (f"to train on {device['name']}", mib(device["predicted_peak_bytes"]),
               f"of {mib(device['budget_bytes'])}{speed} (predicted)")


def _steps(facts: Facts) -> list[Facts]:
    """A row for each step, the source first where its perplexity is known."""
    before = (facts.get("cost") or {}).get("source_perplexity")
    first = [{"name": "source", "facts": "", "weights": NOTHING, "kl": NOTHING, "top1": NOTHING,
              "perplexity": _number(before, ",.2f")}] if before is not None and facts.get("steps") else []
    return first + [_step(step, cost) for step, cost in _with_costs(facts)]


def _step(step: Facts, cost: Facts) -> Facts:
    said = {key: value for key, value in step.items() if key not in ("name", "weights", "cost")}
    return {"name": _title(step), "facts": "; ".join(f"{key.replace('_', ' ')} {_shown(value)}"
                                                                       for key, value in said.items()),
            "weights": _millions(step.get("weights")), "perplexity": _number(cost.get("perplexity"), ",.2f"),
            "kl": _number(cost.get("kl"), ".4f"), "top1": _number(cost.get("top1"), ".1%")}


def _title(step: Facts) -> str:
    """Of a step, for people: manifests name distillation "heal"."""
    if step["name"] == "heal":
        return "distill"
    return str(step["name"]).replace("_", " ")


def _with_costs(facts: Facts) -> list[tuple[Facts, Facts]]:
    """Steps, each with what it has cost ({}: not measured); the last one's is the finished file's."""
    steps = facts.get("steps") or []
    ends = [None] * (len(steps) - 1) + [facts.get("cost")]
    return [(step, step.get("cost") or end or {}) for step, end in zip(steps, ends, strict=True)] if steps else []


def _plots(facts: Facts) -> Iterator[tuple[str, str]]:
    """Caption and SVG."""
    from . import plots
    before = (facts.get("cost") or {}).get("source_perplexity")
    points = [(_title(step), cost.get("kl"), cost.get("perplexity")) for step, cost in _with_costs(facts) if cost]
    tensors = [t for t in facts.get("tensors") or () if t.get("sensitivity")]
    drawn = {
        "Size and bits a weight by part": plots.parts(facts["parts"]) if facts.get("parts") else "",
        "Cost after each step": plots.costs([("source", 0.0, before), *points] if before is not None else points),
        "Sensitivity of each tensor: the higher the bar (on a logarithmic scale), the more it costs to store it in few "
        "bits; the colour is the type that it got": plots.sensitivity(tensors),
        "Distillation: the smaller model learns the answers of the whole one": plots.distillation(
            facts.get("healing") or ()),
    }
    yield from ((caption, svg) for caption, svg in drawn.items() if svg)


def _parts(facts: Facts) -> list[Facts]:
    found = facts.get("parts") or []
    total = sum(part["bytes"] for part in found)
    return [{"part": part["part"], "weights": _millions(part["weights"] or None), "size": megabytes(part["bytes"]),
             "share": f"{part['bytes'] / total:.1%}", "bits": _number(part.get("bits_per_weight"), ".2f")}
            for part in found]


def _device(device: Facts | None) -> Facts | None:
    if not device:
        return None
    rows = [("memory of the device", mib(device["memory_bytes"])), ("budget of training", mib(device["budget_bytes"])),
            ("predicted peak", mib(device["predicted_peak_bytes"])), ("file", megabytes(device["file_bytes"]))]
    if rate := device.get("predicted_tokens_per_second"):
        rows.append(("predicted speed", f"{rate:.0f} tokens/s"))
    return {"name": device["name"], "rows": rows, "traded": device.get("traded") or []}


def megabytes(n: float) -> str:
    return f"{n / 1e6:.1f} MB" if n >= 1e5 else f"{n / 1e3:.1f} kB"


def _millions(n: int | None) -> str:
    return NOTHING if n is None else f"{n / 1e6:.1f} M" if n >= 10**6 else f"{n:,}"


def _number(value: float | None, form: str) -> str:
    return NOTHING if value is None else format(value, form)


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key}: {_shown(item)}" for key, item in value.items())
    if isinstance(value, list):
        return ", ".join(map(_shown, value)) if len(value) <= 16 else f"{len(value)} values"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) else str(value) if value is not None else NOTHING
