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
    alone = answers_to(setting, prompts, pairs, samples=options.samples, temperature=options.temperature,
                       max_tokens=options.max_tokens, seed=setting.seed(number, "generate"))
    shown = answers_behind_rows(setting, number, questions, pairs)
    return [[*own, *more] for own, more in zip(alone, shown, strict=True)]


def answers_behind_rows(setting: Setting, number: int, questions: Sequence[Question],
                        pairs: Lora) -> list[list[Said]]:
    """Those that the model gives behind labelled rows alone; none where none can be shown."""
    options = setting.options
    found: list[list[Said]] = [[] for _ in questions]
    views = list(_views(setting, questions))
    if not views:
        return found
    said = answers_to(setting, [prompt for _, _, prompt in views], pairs, temperature=options.temperature,
                      max_tokens=options.max_tokens, seed=setting.seed(number, "shown"))
    for (place, shown, _), of_view in zip(views, said, strict=True):
        found[place] += [replace(one, shown=shown.key) for one in of_view]
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
            if len(tokens) + setting.options.max_tokens <= setting.config.row_limit:
                yield place, shown, tokens
