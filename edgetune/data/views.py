"""An answer after other prompts: a row's views, such as its question with a reference answer or a judgment with it.

Nothing is trained on them. The reference model reads them, once a row, with its own prompt in one forest, so that what
the prompts begin with alike is computed once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from .packing import Example


def documents(example: Example) -> list[Example]:
    """The example's answer after each of its other prompts that it has."""
    answer = slice(example.begin, None)
    return [replace(example, tokens=np.concatenate([prompt, example.tokens[answer]]),
                    weights=np.concatenate([np.zeros(prompt.size, np.float32), example.weights[answer]]), prompts=())
            for prompt in example.prompts if prompt.size]


def spread(examples: Sequence[Example], values: Sequence[NDArray[np.float32]]) -> NDArray[np.float32] | None:
    """[V, S]: what was read after the other prompts of some examples, nan where a row lacks one; None where all do.

    values: [documents, supervised] of each example, flat, in the order of `documents`.
    """
    count = max((len(example.prompts) for example in examples), default=0)
    if not count:
        return None
    parts = []
    for example, value in zip(examples, values, strict=True):
        part = np.full((count, example.supervised), np.nan, np.float32)
        part[[i for i, prompt in enumerate(example.prompts) if prompt.size]] = value.reshape(-1, example.supervised)
        parts.append(part)
    return np.concatenate(parts, axis=1)
