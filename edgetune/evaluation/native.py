"""Held-out loss and exact answers by edgetune's engine, with any adapter and without training state."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ..adapters.base import Artifact
from ..adapters.lora import Lora
from ..data.around import Instruction
from ..data.dataset import Dataset
from ..data.question import question_text
from ..data.rows import prompt_of
from ..data.trees import micro_batches
from ..formats.bundle import Bundle
from ..objectives.sft import Sft
from ..serving.rollouts.scoring import open_scorer
from ..serving.rollouts.texts import Engine, TextAnswer, TokenPrompts
from ..serving.rollouts.texts import answers as answers_of
from ..serving.tool_calls import CallForm, CallReader, join
from ..training.config import TrainConfig
from ..training.passes import measure
from .graders.sample import Sample
from .judge import same
from .served import GradedAnswer, Grades, Scores, exact_share, parsed_share

if TYPE_CHECKING:
    from ..llamacpp.tokenizer import Tokenizer

MICRO_BATCH = 1024  # tokens of a pass that measures, where memory has room


def native_loss(bundle: Bundle, dataset: Dataset, adapter: Artifact | Lora | None = None,
                engine: Engine | None = None) -> tuple[float, int]:
    """(mean -log p of the supervised tokens by weight, in natural log, their number). Errors as in `open_scorer`."""
    longest = max(example.tokens.size for example in dataset.examples)
    engine = replace(engine or engine_within(), precision="exact")
    decoder = open_scorer(bundle.gguf, adapter or {}, engine, longest=longest, at_once=MICRO_BATCH)
    measured = measure(decoder, Sft(), micro_batches(dataset.examples, decoder.run.max_tokens))
    return measured.loss, measured.supervised


def native_match(bundle: Bundle, tokenizer: Tokenizer, dataset: Dataset, adapter: Artifact | None, engine: Engine, *,
                 system: Instruction = None, limit: int | None = None) -> list[GradedAnswer]:
    """Greedy answers to the first `limit` rows (None: all), in the order of the rows, as `served.exact_match` has them.

    Each may have twice the tokens of the expected one and 16 more, because a longer one is wrong.
    """
    rows = dataset.asking[:limit]
    pairs_of_text = [prompt_of(row, tokenizer, system) for row in rows]
    prompts = [tokenizer.encode(prompt, bos=True) for prompt, _ in pairs_of_text]
    budgets = [2 * len(tokenizer.encode(expected)) + 16 for _, expected in pairs_of_text]
    found: dict[int, GradedAnswer] = {}
    for answered in answers_of(bundle.gguf, tokenizer, adapter or {}, TokenPrompts(prompts, budgets), engine):
        index = answered.rollout.prompt
        prompt, expected = pairs_of_text[index]
        found[index] = GradedAnswer(prompt, expected, answered.text, same(expected, answered.text),
                                    answered.rollout.ended, question_text(rows[index]))
    return [found[index] for index in range(len(rows))]


def native_grade(bundle: Bundle, tokenizer: Tokenizer, dataset: Dataset, adapter: Artifact | None, engine: Engine, *,
                 answers: bool = True, system: Instruction = None, limit: int | None = None) -> Grades:
    """Held-out loss, and with `answers` the exact match of the first `limit` rows."""
    loss, tokens = native_loss(bundle, dataset, adapter, engine)
    given = native_match(bundle, tokenizer, dataset, adapter, engine, system=system, limit=limit) if answers else []
    scores = Scores("native", len(dataset.examples), tokens, loss, exact_share(given), len(given), parsed_share(given))
    return Grades(scores, [], given)


def engine_within(memory: str = "", **options: object) -> Engine:
    """Our own engine within a budget of this process such as 500M; "": of what is available, as training has it."""
    config = TrainConfig(memory=memory)
    return replace(Engine(config.memory_here(), config.memory_asked), **options)  # type: ignore[arg-type]


def answered_sample(answered: TextAnswer, tools: Sequence[Mapping[str, Any]] | None, form: CallForm) -> Sample:
    """The sample of an answer. tools: those that the row offers. form: the model's form of a call (`call_form`)."""
    text = answered.text
    calls: list[dict[str, Any]] = []
    names = [tool.get("function", {}).get("name") for tool in tools or ()]
    if names:
        text, pieces = CallReader(form.begin, form.end, [name for name in names if name]).push(text, last=True)
        calls = [{"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
                 for call in join(pieces)]
    return Sample(text, calls, answered.finish_reason, answered.rollout.tokens.tolist())
