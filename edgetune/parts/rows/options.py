"""Options of each source of rows, apart from the sources: the command line reads them when it starts."""

from __future__ import annotations

from dataclasses import dataclass

from ...options import option


@dataclass(frozen=True)
class TemplateOptions:
    """Options of rows from templates."""

    count: int = option(400, "Rows to learn.", low=1, high=1_000_000, common=True)
    held_out: float = option(0.2, "Share of the templates that is kept apart for test rows.", low=0, high=0.9,
                             share=True, common=True)
    test_count: int = option(100, "Test rows, of those templates.", low=0, high=100_000, common=True)
    cap: int = option(1000, "Sentences of an intent that count at most for its share; 0: all.", low=0)
    seed: int = option(0, "Decides templates, values and order.", low=0)


@dataclass(frozen=True)
class OpenWebuiOptions:
    """Options of rows from Open WebUI."""

    shape: str = option("answers", "Rows of right answers, of labels (for the method kto) or of pairs (for dpo).",
                        choices=("answers", "labels", "pairs"), common=True)
    comments: str = option("stated", "Comments on a thumb down that are right answers: stated, those that say so, such "
                           "as \"it should be ...\"; all; or none.", choices=("stated", "all", "none"), common=True)
    model: str = option("", "Only answers of this model.", common=True)


@dataclass(frozen=True)
class LogOptions:
    """Options of rows from a log."""

    confirmed: str = option("", "Key that says whether an answer was confirmed; by default confirmed, rating, feedback "
                            "or thumbs.", common=True)
    tools: str = option("", "JSON file with today's tools, as OpenAI writes them; by default the newest record's.",
                        common=True, local=True)


@dataclass(frozen=True)
class DocumentOptions:
    """Options of rows from documents."""

    questions: int = option(4, "Questions of a chunk at most, where a model writes them.", low=1, high=20, common=True)
    words: int = option(160, "Words of a chunk at most.", low=30, high=1000, common=True)
    check: bool = option(True, "Keep a question only if the model finds its answer again in the chunk.", common=True)
    near: float = option(0.9, "Similarity from which two questions are the same; 1: only equal words.", low=0.5, high=1)
    seed: int = option(0, "Seed of the model's answers.", low=0)


@dataclass(frozen=True)
class PassageOptions:
    """Options of rows with passages."""

    count: int = option(3, "Passages of a question.", low=1, high=20, common=True)
    without: float = option(0.2, "Share of the rows without the passage that holds the answer.", low=0, high=1,
                            share=True, common=True)
    seed: int = option(0, "Decides the rows without it, and the order of passages.", low=0)
