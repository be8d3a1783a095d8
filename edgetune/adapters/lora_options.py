"""The options of LoRA, separate from the family that uses them (`low_rank`): the commands' help shows them, and the
family needs numpy and the kernels, which take 100 ms to import.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..options import option


@dataclass(frozen=True)
class LoraOptions:
    """After Hu et al. 2021 (arXiv:2106.09685)."""

    rank: int = option(8, "LoRA rank R of every trained projection.", low=1, common=True, group="The adapter")
    alpha: float = option(16.0, "LoRA alpha; the adapter is scaled by alpha / rank.", low=0.0)
    dropout: float = option(0.0, "Dropout on the input of the adapter, as a probability.", low=0.0, high=0.95)
    rslora: bool = option(False, "Scale by alpha / sqrt(rank) instead (rsLoRA, Kalajdzievski 2023).")
    lora_plus: float = option(1.0, "Learning rate of B as a multiple of A's (LoRA+, Hayou et al. 2024; try 16).",
                              low=0.01, high=1000.0)
