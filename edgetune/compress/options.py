"""Every option of `edgetune compress` once: its name, type, default and help, as config.py does for training."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from ..errors import UsageError
from ..machine.device import board_named
from ..options import AUTO, check_options, option

TEXTS = ("calibrate", "measure", "vocab_from", "distill")  # options that name a file of text
OF_DISTILLATION = ("steps", "distill_lr", "distill_rank", "distill_length", "distill_batch")
_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9}


@dataclass(frozen=True)
class CompressConfig:
    """Options of one compression. Immutable; stored whole in the bundle's manifest."""

    # text
    calibrate: str = option("", "Text (.txt) or rows (.jsonl) that measure the weights: needed to prune, for an "
                            "importance matrix and for --target-size.", common=True, group="Text")
    measure: str = option("", "Text or rows that measure the cost [the last fifth of --calibrate, which is left out "
                          "there].", common=True)
    calibrate_tokens: int = option(16384, "Tokens to calibrate on at most.", low=256)
    measure_tokens: int = option(4096, "Tokens to measure on at most.", low=256)
    # vocabulary
    vocab: int = option(0, "Trim the vocabulary to this number of tokens; 0: keep it.", low=0,
                        common=True, group="Fewer weights")
    vocab_from: str = option("", "Text or rows whose tokens are kept, the most frequent first.", common=True)
    # weights taken away
    drop_blocks: int = option(0, "Blocks to drop: those without which the answers change least.", low=0,
                              common=True)
    width: float = option(1.0, "Keep this share of MLP channels and attention groups, those that matter most.",
                          low=0.1, high=1.0, common=True)
    # distilled
    distill: str = option("", "Text or rows on which the smaller model learns the answers of the whole one.",
                          common=True, group="Distillation")
    steps: int = option(400, "Steps of distillation.", low=1, common=True)
    distill_lr: float = option(3e-4, "Peak learning rate of distillation; a LoRA takes about ten times that.", low=0.0)
    distill_rank: int = option(0, "Rank of a LoRA that distillation trains; 0: all weights of the blocks.", low=0)
    distill_length: int = option(256, "Tokens in a row of distillation.", low=16)
    distill_batch: int = option(4, "Rows in a step of distillation.", low=1)
    # stored
    format: str = option("gguf", "gguf, for llama.cpp and training, or onnx, for ONNX Runtime.",
                         choices=("gguf", "onnx"), common=True, group="What is stored")
    type: str = option("", "llama.cpp's type, such as Q4_K_M or Q8_0 [Q4_K_M].", common=True)
    static: int = option(0, "For an encoder: a table of a vector of this length a token, such as 256, which only numpy "
                         "serves; 0: the encoder itself.", low=0, high=4096)
    target_size: str = option("", "Bytes of the file at most, such as 80M (10^6 bytes each): the type of each tensor "
                              "is chosen by its cost.", common=True)
    device: str = option("", "Device, such as raspberry-pi-4-2gb: the report says what training takes there; without "
                         "--type and --target-size the file becomes as large as can be trained there.",
                         common=True)
    # the run
    seed: int = option(0, "Seed of everything random. Same source, options and seed: the same bytes.", low=0,
                       high=2**63 - 1, group="The run")
    threads: int = option(0, "Threads; auto: one a core that this process may use.", low=0, high=1024, zero=AUTO,
                          common=True)

    def check(self) -> CompressConfig:
        """Returns self; raises UsageError for the first option out of range or without what it needs."""
        check_options(self)
        self.target_bytes()
        chosen = [f"--{name.replace('_', '-')}" for name in ("type", "target_size", "device") if getattr(self, name)]
        if self.type and self.target_size:
            raise UsageError("--type and --target-size both say how large the model becomes", "give one of them")
        if chosen and self.format == "onnx":
            raise UsageError(f"{chosen[0]} is given with --format onnx", "ONNX is always int8, and is not trained")
        if self.format == "onnx" and not (self.measure or self.calibrate):
            raise UsageError("--format onnx needs text to compare with the source", "name it with --measure")
        if self.type:
            from ..llamacpp.quantizer import (
                type_named,  # only now: every command reads this module, and this takes memory
            )
            type_named(self.type)
        if self.device:
            board_named(self.device)
        for name in TEXTS:
            if (path := getattr(self, name)) and not Path(path).is_file():
                raise UsageError(f"--{name.replace('_', '-')} names {path}, which is no file", "check the path")
        needs = {"--drop-blocks": self.drop_blocks, "--width": self.width < 1, "--target-size": self.target_size,
                 "--device without --type": self.device and not self.type}
        for name, wanted in needs.items():
            if wanted and not self.calibrate:
                raise UsageError(f"{name} needs text to judge by", "name it with --calibrate")
        for spec in fields(self):
            if spec.name in OF_DISTILLATION and getattr(self, spec.name) != spec.default and not self.distill:
                raise UsageError(f"--{spec.name.replace('_', '-')} is given, and nothing is distilled",
                                 "name text to distill on with --distill, or leave it out")
        if bool(self.vocab) != bool(self.vocab_from):
            raise UsageError("--vocab and --vocab-from belong together", "give how many tokens, and text to keep")
        return self

    def target_bytes(self) -> int:
        """Bytes of --target-size, 0 without; as disks and download pages count, M is 10^6."""
        if not self.target_size:
            return 0
        found = re.fullmatch(r"(\d+(?:\.\d+)?)([KMG]?)B?", self.target_size, re.IGNORECASE)
        if not found or float(found[1]) == 0:
            raise UsageError(f"target-size is {self.target_size!r}", "give it as 80M or 1.2G")
        return int(float(found[1]) * _UNITS[found[2].upper()])

    def to_json(self) -> dict[str, Any]:
        return asdict(self)
