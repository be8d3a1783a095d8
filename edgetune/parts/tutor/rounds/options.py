"""The options of the tutor that training does not have: name, type, default and help."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from ....options import check_options, option

STEPS = ("labels", "draw", "choose", "train", "gate", "publish")  # of a round


@dataclass(frozen=True)
class TutorOptions:
    """Options of the rounds. What a round trains with are options of training (`TrainConfig`)."""

    rounds: int = option(1, "Rounds at most.", low=1, high=1000, common=True, group="The rounds")
    per_round: int = option(300, "Prompts that a round asks at most; those that were never asked come first.", low=1,
                            high=100_000, common=True)
    samples: int = option(6, "Answers to each prompt.", low=1, high=64, common=True)
    temperature: float = option(0.8, "Temperature of the answers.", low=0.0, high=4.0)
    max_tokens: int = option(96, "Tokens of an answer at most.", low=1, high=1 << 16, common=True)
    agreement: float = option(0.65, "Share of the answers to a prompt that must agree for it to be learned without a "
                              "grader.", low=0.0, high=1.0, common=True)
    judge: str = option("", "Encoder, such as minilm, that learns the labelled rows, whose answers must be labels, and "
                        "answers the prompts. The model learns what it is sure of.",
                        common=True)
    questions: int = option(100, "Held-out questions that a gate asks at most.", low=1, group="The gate")
    canary_rise: float = option(0.05, "Share by which the perplexity of unrelated text may rise over the base's, "
                                "such as 0.05 or 5%.", low=0.0, share=True)
    max_kl: float = option(0.1, "Nats a token by which the predictions on unrelated text may differ from the base's "
                           "(KL).", low=0.0)
    stop_after: int = option(1, "Stop after this number of rounds in a row that published nothing.", low=1)
    min_rows: int = option(8, "Stop where a round has fewer answers to learn.", low=1)

    def check(self) -> TutorOptions:
        """Returns self; raises UsageError for the first option of another type or out of its range."""
        check_options(self)
        return self


def of_earlier(given: Mapping[str, Any]) -> dict[str, Any]:
    """Options that an earlier edgetune stored, without those that are gone; rounds 0 was the labelled rows alone."""
    known = {spec.name for spec in fields(TutorOptions)}
    found = {name: value for name, value in given.items() if name in known}
    return {**found, "rounds": max(1, found["rounds"])} if "rounds" in found else found
