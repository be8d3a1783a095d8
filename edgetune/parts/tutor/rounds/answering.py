"""Answers of the model with an adapter, by the engine that trains, within the budget of training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ....adapters.lora import Lora
from ....evaluation.graders.base import Grade
from ....evaluation.graders.sample import Sample
from ....llamacpp.sampling import Sampling
from ....serving.rollouts.scoring import open_scorer
from ....serving.rollouts.texts import TokenPrompts, answers
from ....training.rewards import EngineJudge
from .questions import TutorQuestion
from .setting import RoundSetting

JUDGE_TOKENS = 1024  # most tokens of a question with its answer that a grader shows to the base


@dataclass(frozen=True)
class ModelAnswer:
    """An answer: its text without space around it, its tokens, and whether the model ended it. probability: by the
    judge that gave it, else 0.
    """

    text: str
    tokens: int
    ended: bool
    probability: float = 0.0


def draw(setting: RoundSetting, number: int, questions: Sequence[TutorQuestion],
         pairs: Lora) -> list[list[ModelAnswer]]:
    """Several answers to each question, the same each time. Raises UsageError where memory has room for none."""
    options = setting.options
    sampling = Sampling(temperature=options.temperature, top_k=0, top_p=1.0, min_p=0.0,
                        seed=setting.seed(number, "draw"))
    prompts = [question.prompt_tokens(setting.tokenizer, setting.system) for question in questions]
    asked = TokenPrompts(prompts, [options.max_tokens] * len(prompts), options.samples, sampling)
    found: list[list[Any]] = [[None] * options.samples for _ in prompts]
    for answered in answers(setting.bundle.gguf, setting.tokenizer, pairs, asked, setting.engine):
        setting.look()
        rollout = answered.rollout
        found[rollout.prompt][rollout.sample] = ModelAnswer(answered.text.strip(), int(rollout.tokens.size),
                                                            rollout.ended)
    return found


def graded(setting: RoundSetting, questions: Sequence[TutorQuestion],
           answers: Sequence[Sequence[ModelAnswer]]) -> list[list[Grade]]:
    """A grade of each answer; empty lists without a grader. May ask the base. Raises the grader's EdgetuneError."""
    grader = setting.grader
    if grader is None:
        return [[] for _ in questions]
    if grader.needs_model:
        scorer = open_scorer(setting.bundle.gguf, {}, setting.engine, longest=JUDGE_TOKENS, at_once=JUDGE_TOKENS)
        grader = grader.with_model(EngineJudge(scorer, scorer.run, setting.tokenizer))
    samples = [Sample(one.text, finish_reason="stop" if one.ended else "length") for of in answers for one in of]
    items: list[Mapping[str, Any]] = [question.item for question, of in zip(questions, answers, strict=True)
                                      for _ in of]
    grades = iter(grader.grade(samples, items))
    return [[next(grades) for _ in of] for of in answers]
