"""What the model answers to the questions of a round: by itself, and with what people answered to questions like it.

Right answers to the nearest labelled questions, one at a time, are another view of the same question: what goes wrong
with them is not what goes wrong without, so that what both say is right more often than what either says.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from ..adapters.lora import Lora
from .answering import Said, answers_to
from .nearest import Nearest
from .questions import Question, conversation_tokens
from .setting import Setting


def generate(setting: Setting, number: int, questions: Sequence[Question], pairs: Lora) -> list[list[Said]]:
    """The answers to each question, those that the model gives by itself first."""
    options = setting.options
    prompts = [question.prompt_tokens(setting.tokenizer, setting.system) for question in questions]
    found = answers_to(setting, prompts, pairs, samples=options.samples, temperature=options.temperature,
                       max_tokens=options.max_tokens, seed=setting.seed(number, "generate"))
    views = list(_views(setting, questions))
    if not views:
        return found
    more = answers_to(setting, [prompt for _, _, prompt in views], pairs, temperature=options.temperature,
                      max_tokens=options.max_tokens, seed=setting.seed(number, "shown"))
    for (place, shown, _), said in zip(views, more, strict=True):
        found[place] += [replace(one, shown=shown.key) for one in said]
    return found


def _views(setting: Setting, questions: Sequence[Question]) -> Iterator[tuple[int, Question, list[int]]]:
    """(place of a question, the labelled question that is shown before it, the tokens of both), where there is room."""
    count = setting.options.shown
    if setting.tokenizer.chat_template is None or not count:
        return
    nearest = Nearest(setting.pool.labelled)
    for place, question in enumerate(questions):
        for shown in nearest.to(question, count):
            tokens = conversation_tokens(question.behind(shown), setting.tokenizer, setting.system, question.tools)
            if len(tokens) + setting.options.max_tokens <= setting.config.max_length:
                yield place, shown, tokens
