"""adapters combine."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..errors import UsageError, size_text
from . import remote
from .app import command, show
from .files import base_of_run

if TYPE_CHECKING:
    from ..adapters.lora import Lora
    from ..adapters.store import Adapter


@command("combine", click.argument("adapters", nargs=-1, type=click.Path(path_type=Path)),
         click.option("-o", "--out", "folder", type=click.Path(path_type=Path), required=True, help="New folder."),
         click.option("--rank", type=click.IntRange(1), help="Rank to cut the sum to [all ranks together]."),
         click.option("--weight", "weights", type=float, multiple=True, metavar="W",
                      help="Weight of an adapter in the sum, once for each [1 / their number]."),
         click.option("--base", type=click.Path(path_type=Path), help="The model [where the first was trained on it]."),
         group=remote.adapters)
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
