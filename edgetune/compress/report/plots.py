"""The report's plots, as SVG within a page: text in the page's font and colour, no colour behind, no reference to
anything outside, and the same bytes for the same numbers.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from io import StringIO
from math import log
from typing import Any

from matplotlib import rc_context, rcdefaults
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from ...formats.gguf.read import TYPES

WIDTH = 4.8  # inches of 72 units: narrow enough that a telephone shows its text at a readable size
SEEN = 0.005  # of a file is the least part that is drawn
INK = "#010203"  # becomes the page's own colour
# From few bits a weight to many; each is told from its neighbours and from a white and a black page.
COLOURS = ("#d1495b", "#e07a1f", "#c9a227", "#5a9a3c", "#1f9e89", "#3f88c5", "#7b6fd0", "#a45fa6", "#8a8f98")
LINE = COLOURS[5]
NOTHING = "–"
_Panel = tuple[str, str, Sequence[float | None], str]  # label, format of a value, values, colour
_STYLE: Any = {
    "svg.fonttype": "none", "font.size": 9.5, "text.color": INK, "axes.labelcolor": INK, "xtick.color": INK,
    "ytick.color": INK, "axes.edgecolor": INK, "axes.facecolor": "none", "figure.facecolor": "none",
    "savefig.facecolor": "none", "axes.spines.top": False, "axes.spines.right": False, "axes.linewidth": 0.6,
    "grid.color": INK, "grid.alpha": 0.15, "grid.linewidth": 0.6, "legend.frameon": False, "axes.axisbelow": True,
}
_BITS = {made.name: 8 * made.size / made.block for made in TYPES.values()}
_KINDS = ("token_embd", "output", "attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")


def parts(rows: Sequence[dict[str, Any]]) -> str:
    """Bars of bytes and bits a weight by part of the file, but for parts too small to be seen."""
    total = sum(row["bytes"] for row in rows)
    rows = [row for row in rows if row["bytes"] > SEEN * total]
    with _style():
        figure = Figure((WIDTH, 0.5 + 0.28 * len(rows)), layout="constrained")
        size, bits = figure.subplots(1, 2, sharey=True, width_ratios=(3, 2))
        names = [row["part"] for row in rows]
        places = range(len(rows))
        _bars(size, places, [row["bytes"] / 1e6 for row in rows], "MB", "{:.1f}")
        _bars(bits, places, [row["bits_per_weight"] or 0 for row in rows], "bits a weight", "{:.2f}")
        size.set_yticks(list(places), names)
        size.invert_yaxis()
        return _svg(figure, "size and bits a weight by part")


def costs(points: Sequence[tuple[str, float | None, float | None]]) -> str:
    """Bars of (step, mean KL, perplexity) after each step, in order."""
    panels = _panels([kl for _, kl, _ in points], [perplexity for _, _, perplexity in points])
    with _style():
        figure = Figure((WIDTH, 0.3 + 1.3 * len(panels)), layout="constrained")
        for axes, (label, form, values, colour) in zip(_above(figure, len(panels)), panels, strict=True):
            axes.bar(range(len(values)), [value or 0.0 for value in values], 0.6, color=colour)
            for at, value in enumerate(values):
                axes.annotate(NOTHING if value is None else format(value, form), (at, value or 0.0), (0, 3),
                              textcoords="offset points", ha="center", fontsize=8.5)
            axes.margins(y=0.2)
            axes.set_title(label, loc="left", fontsize=9.5)
            axes.set_xticks(range(len(points)), [name.replace("_", "\n") for name, _, _ in points])
            axes.tick_params(axis="x", length=0)
            axes.grid(axis="y")
        return _svg(figure, "cost after each step") if panels else ""


def distillation(rows: Sequence[dict[str, Any]]) -> str:
    """Mean KL and perplexity over the steps of distillation."""
    panels = _panels([row.get("kl") for row in rows], [row.get("perplexity") for row in rows])
    with _style():
        figure = Figure((WIDTH, 0.3 + 1.3 * len(panels)), layout="constrained")
        for axes, (label, _, values, colour) in zip(_above(figure, len(panels)), panels, strict=True):
            known = [(row["step"], value) for row, value in zip(rows, values, strict=True) if value is not None]
            axes.plot(*zip(*known, strict=True), color=colour, marker="o", markersize=4 if len(known) < 40 else 0)
            axes.margins(x=0.03, y=0.12)
            axes.set_title(label, loc="left", fontsize=9.5)
            axes.grid(axis="y")
        if panels:
            axes.set_xlabel("step")
        return _svg(figure, "distillation") if panels else ""


def sensitivity(tensors: Sequence[dict[str, Any]]) -> str:
    """A strip of bars for each kind of matrix, a bar a block: height is sensitivity (logarithmic), colour the type.

    "" where no tensor has a sensitivity.
    """
    known = [t for t in tensors if t.get("sensitivity") and t["sensitivity"] > 0]
    cells = [(kind, block, t["sensitivity"], t["type"]) for t in known if (place := _place(t["name"]))
             for kind, block in [place]]
    if not cells:
        return ""
    kinds = [kind for kind in _KINDS if any(cell[0] == kind for cell in cells)]
    types = sorted({cell[3] for cell in cells}, key=lambda name: (_BITS.get(name, 32), name))
    colour = dict(zip(types, _spread(len(types)), strict=True))
    least, most = (f(cell[2] for cell in cells) for f in (min, max))
    with _style():
        figure = Figure((WIDTH, 0.95 + 0.3 * len(kinds)), layout="constrained")
        axes = figure.subplots()
        for name in types:
            of_type = [cell for cell in cells if cell[3] == name]
            heights = [-0.12 - 0.76 * _share(cell[2], least, most) for cell in of_type]
            axes.bar([cell[1] for cell in of_type], heights, 0.84, [kinds.index(cell[0]) + 0.94 for cell in of_type],
                     color=colour[name])
        axes.set(ylim=(len(kinds), 0), xlabel="block")
        axes.set_yticks([row + 0.5 for row in range(len(kinds))], kinds)
        axes.tick_params(axis="y", length=0)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.spines[["left", "bottom"]].set_visible(False)
        figure.legend(handles=[Patch(color=colour[name], label=name) for name in types], loc="outside lower center",
                      ncols=min(len(types), 4), handlelength=1, handleheight=1)
        return _svg(figure, f"sensitivity of each tensor, from {least:.2g} (low) to {most:.2g} (high)")


@contextmanager
def _style() -> Iterator[None]:
    """Ours, whatever this user has set for other plots."""
    with rc_context():
        rcdefaults()
        with rc_context(_STYLE):
            yield


def _place(name: str) -> tuple[str, int] | None:
    """Kind and block of a matrix; what belongs to no block stands where block 0 does."""
    if found := re.fullmatch(r"(?:blk\.(\d+)\.)?(\w+)\.weight", name):
        return (found[2], int(found[1] or 0)) if found[2] in _KINDS else None
    return None


def _share(value: float, least: float, most: float) -> float:
    """0 to 1 on a logarithmic scale."""
    return log(value / least) / log(most / least) if most > least else 1.0


def _spread(n: int) -> list[str]:
    """n colours, as far from one another as there are."""
    last = len(COLOURS) - 1
    return [COLOURS[round(i * last / max(n - 1, 1))] if n <= len(COLOURS) else COLOURS[i % len(COLOURS)]
            for i in range(n)]


def _panels(kl: Sequence[float | None], perplexity: Sequence[float | None]) -> list[_Panel]:
    """Those of which anything is known."""
    both = (("mean KL to the source", ".4f", kl, LINE), ("perplexity", ",.2f", perplexity, COLOURS[1]))
    return [panel for panel in both if any(value is not None for value in panel[2])]


def _above(figure: Figure, n: int) -> list[Axes]:
    """n panels above one another that share x."""
    return list(figure.subplots(n, squeeze=False, sharex=True)[:, 0]) if n else []


def _bars(axes: Axes, places: Sequence[int], values: Sequence[float], label: str, form: str) -> None:
    axes.barh(places, values, 0.7, color=LINE)
    for place, value in zip(places, values, strict=True):
        axes.annotate(form.format(value) if value else "", (value, place), (3, 0), textcoords="offset points",
                      va="center", fontsize=8.5)
    axes.set_xlabel(label)
    axes.set_xlim(0, max(*values, 1e-9) * 1.28)
    axes.xaxis.set_major_locator(MaxNLocator(4))
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x")


def _svg(figure: Figure, title: str) -> str:
    """Only the element that HTML takes: without declaration, namespaces, metadata, style, size and names of groups."""
    drawn = StringIO()
    with rc_context({"svg.hashsalt": title}):  # names of shapes differ from plot to plot, not from run to run
        figure.savefig(drawn, format="svg", metadata={"Date": None})
    svg = drawn.getvalue()
    svg = svg[svg.index("<svg"):].strip()
    svg = re.sub(r"<metadata>.*?</metadata>|<defs>\s*<style.*?</style>\s*</defs>|<!--.*?-->", "", svg, flags=re.DOTALL)
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)
    svg = re.sub(r"\n\s*", "\n", svg).replace(INK, "currentColor")
    view = re.search(r'viewBox="[^"]*"', svg)
    assert view
    return re.sub(r"<svg[^>]*>", f'<svg {view[0]} role="img" aria-label="{title}">', svg, count=1)
