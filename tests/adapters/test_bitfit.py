"""Tensors that take the place of the base's: what does not fit it, or is no number, is refused."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from small_families import OPTIONS, small, trained

from edgetune.adapters.merge import merge
from edgetune.adapters.store import read_artifact, save_artifact
from edgetune.errors import FormatError, MismatchError, NumericsError
from edgetune.formats.gguf import Tensor, write_gguf
from edgetune.training.trainer import Trainer


def vector(name: str, values: np.ndarray) -> Tensor:
    return Tensor(name, values.shape, "F32", values.astype(np.float32).view(np.uint8))


def test_weights_that_do_not_fit_or_are_no_numbers_are_refused(bundle, tmp_path):
    path = tmp_path / "adapter.gguf"
    made = trained(bundle, small("bitfit")).artifact()
    name = "blk.0.attn_norm.weight"
    for wrong, says in ((vector(name, np.ones(9)), r"changes blk\.0\.attn_norm of shape \[9\], .* has \[64\]"),
                        (vector("blk.9.x", np.ones(9)), r"changes blk\.9\.x .* has no such tensor")):
        found = replace(made, weights={**made.weights, wrong.name: wrong})
        save_artifact(path, found, bundle.gguf)
        for use in (lambda: read_artifact(path, bundle.gguf),
                    lambda found=found: merge(bundle.gguf, {}, tmp_path / "m.gguf", "keep", weights=found.weights)):
            with pytest.raises(MismatchError, match=says):
                use()
    with pytest.raises(NumericsError, match=r"attn_norm.* not finite"):
        save_artifact(path, replace(made, weights={name: vector(name, np.full(64, np.nan))}), bundle.gguf)
    with pytest.raises(MismatchError, match="--blocks"):
        Trainer(bundle, family=small("bitfit"), blocks="last:1", **OPTIONS).decoder.adapter.load(made, "it")


def test_a_damaged_file_is_refused(bundle, tmp_path):
    path = tmp_path / "adapter.gguf"
    metadata = {"general.type": "adapter", "adapter.type": "edgetune", "edgetune.family": "bitfit",
                "edgetune.served_by": "llama.cpp", "edgetune.replaces": True,
                "edgetune.setting": '{"options": {}, "targets": [], "blocks": [0, 1], "seed": 0}'}
    write_gguf(path, bundle.gguf.architecture, metadata, {"output_norm.weight": np.full(64, np.inf, np.float32)})
    with pytest.raises(FormatError, match=r"output_norm\.weight has values that are not finite"):
        read_artifact(path, bundle.gguf)
