"""Every option of the tutor that training does not have: its name, type, default and help."""

from __future__ import annotations

from dataclasses import dataclass

from ..options import check_options, option


@dataclass(frozen=True)
class TutorOptions:
    """Options of the rounds. What a round trains with are options of training (`TrainConfig`)."""

    rounds: int = option(5, "Rounds at most; 0: learn the labelled rows alone.", low=0, high=1000, common=True,
                         group="The rounds")
    per_round: int = option(64, "Prompts in a round.", low=1, high=100_000, common=True)
    samples: int = option(6, "Answers to each prompt.", low=1, high=64, common=True)
    shown: int = option(3, "Further answers to each prompt, each with another labelled row shown before it, of those "
                        "whose questions are most like it.", low=0, high=64)
    temperature: float = option(0.8, "Of answers.", low=0.0, high=4.0)
    max_tokens: int = option(96, "Tokens of an answer at most.", low=1, high=1 << 16, common=True)
    unseen: float = option(0.2, "Share of a round's prompts that were never asked, as long as there are some.", low=0.0,
                           high=1.0)
    corrections: int = option(16, "Wrong answers to a round's prompts that are judged and revised at most, of those "
                              "whose right answer is known.", low=0, group="What is trusted")
    agreement: float = option(0.3, "How much of what is said the answers to a prompt must have in common with the one "
                              "that has most, where nothing else says what is right.", low=0.0, high=1.0)
    agreement_weight: float = option(0.5, "Weight of such an answer, times what is in common.", low=0.0, high=1.0)
    min_auc: float = option(0.75, "How well the model must tell right answers from wrong ones, on rows whose answer is "
                            "known, before it judges others; above 1: it never does.", low=0.5, high=1.01)
    judged_weight: float = option(0.25, "Weight of an answer that the model itself judged.", low=0.0, high=1.0)
    objective: str = option("sft", "How answers are learned: sft, imitated as a whole; nlft, where the right answer is "
                            "known, token by token by how likely it makes them, and wrong answers with a judgment too.",
                            choices=("sft", "nlft"), group="What is learned")
    retold: int = option(8, "Times that a round learns each labelled row with other values, of other rows and what "
                            "answers agree on, where answers are JSON with values of the question.", low=0, high=1000)
    replay: float = option(0.25, "Share of earlier and labelled rows in what a round learns, tokens times weight, "
                           "at least.", low=0.0, high=1.0)
    unverified: float = option(0.5, "Share of what a round learns, tokens times weight, that no grader, reference "
                               "or person verified, at most.", low=0.0, high=1.0)
    gate_alpha: float = option(0.1, "Chance that an adapter that is no better is ever published; the k-th test since "
                               "its questions were new takes gate-alpha / k (k + 1) of it.", low=0.0, high=1.0,
                               group="The gate")
    verified_alpha: float = option(0.5, "As --gate-alpha, of a test by few labelled rows told again, where all that a "
                                   "round learned is known to be right; 0: --gate-alpha.", low=0.0, high=1.0)
    questions: int = option(64, "Held-out questions that a gate asks at most.", low=1)
    canary_rise: float = option(0.02, "Share by which the perplexity of unrelated text may rise over the base's.",
                                low=0.0)
    max_kl: float = option(0.1, "Nats a token by which what the adapter expects of unrelated text may differ from the "
                           "base (KL).", low=0.0)
    max_change: float = option(0.1, "Share of its norm by which a weight may be changed.", low=0.0)
    stop_after: int = option(3, "Stop after this number of rounds in a row that published nothing.", low=1)
    min_rows: int = option(8, "Stop where a round found fewer rows to learn.", low=1)

    def check(self) -> TutorOptions:
        """Returns self; raises UsageError for the first option of another type or out of its range."""
        check_options(self)
        return self
