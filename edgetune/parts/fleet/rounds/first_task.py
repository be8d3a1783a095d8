"""The first task of a fleet: from a model, options, and perhaps an adapter that it begins from."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ....adapters import store
from ....adapters.lora import Lora, Pair, init_pairs, scale_of
from ....disk import refuse_existing
from ....errors import MismatchError, UnsupportedError
from ....formats.bundle import Bundle
from ....models.networks import open_network
from ....objectives.sft import Sft
from ....training.config import TrainConfig
from ....training.sizing import make_plan, objective_for
from .options import RoundOptions
from .task import Content, of_round, write_task


def make_task(bundle: Bundle, folder: Path, config: TrainConfig, options: RoundOptions, *, start: Path | None = None,
              least_rows: int = 1, key: Path | None = None) -> Lora:
    """Writes the task of round 1; returns the pairs that it begins with. config: of each device's run, whose family the
    aggregation decides. start: an adapter to begin from [one that changes nothing, drawn by the seed]. key: of the file
    that signs it.

    Raises UsageError if the folder exists or options do not fit, UnsupportedError for a model that learns labels.
    """
    refuse_existing(folder)
    options.check()
    if objective_for(bundle.gguf).name != Sft.name:
        raise UnsupportedError(f"{bundle.path} is an encoder, and a fleet trains language models",
                               "give a model such as smollm2")
    config = of_round(config, options, 1).check()
    pairs = _drawn(bundle, config)
    if start:
        pairs = _begun(bundle, start, pairs)
    write_task(folder, bundle, pairs, Content(config, options, least_rows=least_rows), key=key)
    return pairs


def _drawn(bundle: Bundle, config: TrainConfig) -> Lora:
    """Returns A as LoRA draws it by the seed, B zero, of the projections that the options name."""
    network = open_network(bundle.gguf)
    shapes = network.structure.trained_shapes(make_plan(network, config).run)
    size = config.family.options()
    return init_pairs(shapes, size["rank"], scale_of(size["alpha"], size["rank"]), config.seed)


def _begun(bundle: Bundle, start: Path, drawn: Lora) -> Lora:
    """Returns the pairs of a start adapter, at the scale of the task."""
    found = store.open_adapter(start, bundle.gguf).pairs
    if {name: pair.a.shape for name, pair in found.items()} != {name: pair.a.shape for name, pair in drawn.items()}:
        ranks = sorted({pair.rank for pair in found.values()})
        rank = next(iter(drawn.values())).rank
        raise MismatchError(f"{start} has {len(found)} pairs of rank {', '.join(map(str, ranks))}, the task has "
                            f"{len(drawn)} of rank {rank}", "give --rank, --targets and --blocks its values")
    return {name: Pair(pair.a, pair.b * np.float32(pair.scale / drawn[name].scale), drawn[name].scale)
            for name, pair in found.items()}
