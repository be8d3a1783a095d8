"""What compression did and what it cost, for people: one HTML file that needs nothing else, and lines for a terminal.

Both are made from the facts of the manifest, with what is too long for it: "tensors", "healing" and "answers". What is
absent is left out. The same facts give the same bytes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import prod
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from ..console import table
from ..errors import size_text
from ..formats.bundle import to_plain_json
from ..formats.gguf import Gguf
from ..runs import chart
from ..runs.chart import NOTHING, Chart, ChartLine, Content, Html, Style, element, figure, number
from ..version import __version__

Facts = dict[str, Any]
FILE = "report.html"
PARTS = ("embedding", "attention", "mlp", "norms", "output", "metadata")
_PART_OUTSIDE = {"token_embd.weight": "embedding", "output.weight": "output"}


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
    """Writes the report as one HTML file, whole or not at all."""
    facts = _plain(facts)
    name = (facts.get("source") or {}).get("name") or "A model"
    chart.write_page(path, f"{name}, compressed", _sections(facts))


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


def _sections(facts: Facts) -> Iterator[Content]:
    source = facts.get("source") or {}
    cost = facts.get("cost") or {}
    described = [source.get("kind"), source.get("revision") and f"revision {source['revision']}",
                 source.get("licence") and f"licence {source['licence']}",
                 source.get("quantized") and "already quantized when it came"]
    yield element("p", " · ".join(str(said) for said in described if said), class_="dim")
    yield chart.tiles(_tiles(facts))
    steps = [[row[key] for key in ("name", "weights", "perplexity", "kl", "top1", "facts")] for row in _steps(facts)]
    yield chart.section("Steps", chart.table(["step", "weights", "perplexity", "mean KL", "top-1", ""], steps,
                                           (1, 2, 3, 4)))
    yield chart.section("Distillation", *_distillation(facts.get("healing") or ()))
    shares = [[row[key] for key in ("part", "weights", "size", "share", "bits")] for row in _parts(facts)]
    yield chart.section("Parts of the file", chart.table(["part", "weights", "size", "share", "bits a weight"], shares,
                                                       (1, 2, 3, 4)))
    yield _device(facts.get("device") or {})
    yield chart.section("Answers before and after", *map(_answer, facts["answers"]))
    tensors = [[t["name"], t["type"], megabytes(t["bytes"]), number(t.get("sensitivity"), ".3g"),
                number(t.get("kl"), ".3g")] for t in facts.get("tensors") or ()]
    yield chart.details(f"All {len(tensors)} tensors", chart.table(["tensor", "type", "size", "sensitivity", "KL"],
                                                                 tensors, (2, 3, 4)))
    options = [(name.replace("_", "-"), _shown(value)) for name, value in (facts.get("options") or {}).items()
               if value not in ("", None)]
    yield chart.details("Options", chart.table([], options))
    measured = f"Costs were measured on {cost['tokens']:,} tokens of text that nothing was chosen by. " if cost.get(
        "tokens") else ""
    for said in (*(f"SHA-256 of {name}: {digest}" for name, digest in (source.get("sha256") or {}).items()),
                 f"{measured}KL in natural units, from the source to what was made; top-1: how often both find the "
                 f"same token likeliest. 1 MB is 10^6 bytes, 1 MiB 2^20. Made by edgetune {__version__}."):
        yield element("p", element("small", said), class_="dim")


def _answer(row: Facts) -> Html:
    shown = [element("div", element("small", name), element("p", row[name], class_="text"))
             for name in ("before", "after")]
    return element("div", element("p", row["prompt"], class_="text"), element("div", *shown), class_="answer")


def _distillation(rows: Sequence[Facts]) -> Iterator[Html | None]:
    """Charts of mean KL and perplexity over its steps."""
    for key, name in (("kl", "mean KL to the source"), ("perplexity", "perplexity")):
        points = [(row["step"], row[key]) for row in rows if row.get(key) is not None]
        yield figure(Chart(name, "step", name, [ChartLine(name, points, Style(0), dots=True)]))


def _tiles(facts: Facts) -> Iterator[tuple[str, str, str]]:
    """Name, value, and a word more, of what matters most."""
    cost = facts.get("cost") or {}
    device = facts.get("device") or {}
    if found := facts.get("parts"):
        total = sum(part["bytes"] for part in found)
        weights = sum(part["weights"] for part in found)
        stored = sum(part["bytes"] for part in found if part["part"] != "metadata")  # as `edgetune models info` counts
        yield "file", megabytes(total), f"{_millions(weights)} weights, {8 * stored / max(weights, 1):.2f} bits each"
    if cost.get("perplexity") is not None:
        before = cost.get("source_perplexity")
        yield "perplexity", f"{cost['perplexity']:,.2f}", f"the source has {before:,.2f}" if before is not None else ""
    if cost.get("kl") is not None:
        yield "mean KL to the source", f"{cost['kl']:.4f}", f"± {cost['kl_error']:.4f}" if cost.get("kl_error") else ""
    if cost.get("top1") is not None:
        yield "top-1 agreement", f"{cost['top1']:.1%}", f"of {cost['tokens']:,} tokens" if cost.get("tokens") else ""
    if cost.get("cosine") is not None:
        yield "cosine to the source", f"{cost['cosine']:.4f}", f"at least {cost['least_cosine']:.4f}"
    if device:
        rate = device.get("predicted_tokens_per_second")
        speed = f", about {rate:.0f} tokens/s" if rate else ""
        yield (f"to train on {device['name']}", size_text(device["predicted_peak_bytes"]),
               f"of {size_text(device['budget_bytes'])}{speed} (predicted)")


def _steps(facts: Facts) -> list[Facts]:
    """A row for each step, the source first where its perplexity is known."""
    before = (facts.get("cost") or {}).get("source_perplexity")
    first = [{"name": "source", "facts": "", "weights": NOTHING, "kl": NOTHING, "top1": NOTHING,
              "perplexity": number(before, ",.2f")}] if before is not None and facts.get("steps") else []
    return first + [_step(step, cost) for step, cost in _with_costs(facts)]


def _step(step: Facts, cost: Facts) -> Facts:
    said = {key: value for key, value in step.items() if key not in ("name", "weights", "cost")}
    name = "distill" if step["name"] == "heal" else str(step["name"]).replace("_", " ")  # manifests have "heal"
    return {"name": name, "facts": "; ".join(f"{key.replace('_', ' ')} {_shown(value)}" for key, value in said.items()),
            "weights": _millions(step.get("weights")), "perplexity": number(cost.get("perplexity"), ",.2f"),
            "kl": number(cost.get("kl"), ".4f"), "top1": number(cost.get("top1"), ".1%")}


def _with_costs(facts: Facts) -> list[tuple[Facts, Facts]]:
    """Steps, each with what it has cost ({}: not measured); the last one's is the finished file's."""
    steps = facts.get("steps") or []
    ends = [None] * (len(steps) - 1) + [facts.get("cost")]
    return [(step, step.get("cost") or end or {}) for step, end in zip(steps, ends, strict=True)] if steps else []


def _parts(facts: Facts) -> list[Facts]:
    found = facts.get("parts") or []
    total = sum(part["bytes"] for part in found)
    return [{"part": part["part"], "weights": _millions(part["weights"] or None), "size": megabytes(part["bytes"]),
             "share": f"{part['bytes'] / total:.1%}", "bits": number(part.get("bits_per_weight"), ".2f")}
            for part in found]


def _device(device: Facts) -> Html | None:
    if not device:
        return None
    rows = [("memory of the device", size_text(device["memory_bytes"])),
            ("budget of training", size_text(device["budget_bytes"])),
            ("predicted peak", size_text(device["predicted_peak_bytes"])), ("file", megabytes(device["file_bytes"]))]
    if rate := device.get("predicted_tokens_per_second"):
        rows.append(("predicted speed", f"{rate:.0f} tokens/s"))
    traded = [element("p", sentence, class_="dim") for sentence in device.get("traded") or ()]
    return chart.section(f"Training on {device['name']}", chart.table([], rows, (1,)), *traded)


def megabytes(n: float) -> str:
    return f"{n / 1e6:.1f} MB" if n >= 1e5 else f"{n / 1e3:.1f} kB"


def _millions(n: int | None) -> str:
    return NOTHING if n is None else f"{n / 1e6:.1f} M" if n >= 10**6 else f"{n:,}"


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
