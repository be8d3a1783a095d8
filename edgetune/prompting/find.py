"""A search in one call: rows are divided, prompts are tried, the best one is put to rows that did not choose it."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..adapters.store import read_system
from ..data.asking import asking_rows
from ..data.question import question_text
from ..data.rows import Row
from ..errors import NotFoundError, UnsupportedError, UsageError
from ..evaluation.judge import same
from ..evaluation.native import engine_within
from ..formats.bundle import Bundle, open_bundle
from ..formats.gguf import ENCODERS
from ..llamacpp.tokenizer import Tokenizer
from ..serving.nearest import ENCODER, NearestRows
from ..serving.prompt_file import Prompt
from ..training.sized import context_of
from .candidates import Candidate, Tried
from .decision import Decision, Show, answered, decide
from .instructions import answer_of
from .options import PromptOptions
from .proposals import proposed
from .scoring import Scorer
from .search import Search
from .split import Parts, split

CONTEXT = 4096  # tokens of llama.cpp's context, if the model has as many and no prompt needs more


@dataclass(frozen=True)
class Found:
    """What a search found. best: the chosen prompt with its scores; prompt: the same, which names the rows of `data`.
    decision: on the rows that decide. tried: all candidates. without_encoder: why no examples were tried by nearness.
    nearest_row: the number of rows that decide to which the answer of the nearest row is right, without any model that
    writes; None without an encoder.
    """

    best: Tried
    prompt: Prompt
    decision: Decision
    tried: Sequence[Tried]
    parts: Parts
    without_encoder: str = ""
    nearest_row: int | None = None

    def to_json(self) -> dict[str, Any]:
        """What a program reads of it."""
        return {**self.decision.to_json(), "chosen": self.best.to_json(), "prompt": self.prompt.to_json(),
                "rows": {"examples": len(self.parts.pool), "select": len(self.parts.select),
                         "decide": len(self.parts.decide)},
                "nearest_row": None if self.nearest_row is None else self.nearest_row / len(self.parts.decide),
                "without_encoder": self.without_encoder or None,
                "tried": [tried.to_json() for tried in sorted(self.tried, key=lambda tried: tried.rank)]}


def find_prompt(model: str | Path | Bundle, data: str | Path, eval: str | Path | None = None, *,
                adapter: str | Path | None = None, options: PromptOptions | None = None,
                show: Show = lambda _what, _done, _total: None) -> Found:
    """Searches the prompt with which a model answers the rows of a file best.

    >>> found = find_prompt("smollm2", "rows.jsonl")
    >>> print(found.decision.accepted, found.prompt.system)

    model: a GGUF, a bundle or a name. data: rows with a question and an answer. eval: rows that decide; None: those
    that training holds out of `data`. adapter: with which the model answers. show: is told what is done, how much of
    it, and of how much.

    Raises DataError for rows that are too few, UnsupportedError for an encoder, NotFoundError for a model for vectors
    that is named and is not on this device, and UsageError where memory does not suffice.
    """
    options = (options or PromptOptions()).check()
    bundle = model if isinstance(model, Bundle) else open_bundle(model)
    if bundle.gguf.architecture in ENCODERS:
        raise UnsupportedError("the model is an encoder, which reads a question alone", "name a model that writes text")
    adapter = Path(adapter) if adapter else None
    options = replace(options, system=options.system or read_system(adapter))
    parts = split(asking_rows(Path(data)), asking_rows(Path(eval)) if eval else None, options)
    with ExitStack() as opened:
        tokenizer = opened.enter_context(closing(Tokenizer(bundle.gguf)))
        near, without = _near(parts.pool, options)
        if near:
            opened.callback(near.close)
        engine = engine_within(options.memory, threads=options.threads, backend=options.backend)
        scorer = Scorer(bundle, tokenizer, adapter, engine, _longest(bundle, tokenizer, parts, options))
        search = Search(scorer, parts, near, options, lambda: proposed(
            bundle.gguf, tokenizer, adapter, parts.pool, options.proposals, options.seed, engine), show)
        best = search.run()
        decision = _decided(scorer, [search.tried[0].candidate, best.candidate], near, parts.decide, adapter, options,
                            show)
        alone = _right_alone(near, parts.decide) if near else None
    return Found(best, _final(best.candidate.prompt, str(data)), decision, search.tried, parts, without, alone)


def _decided(scorer: Scorer, pair: Sequence[Candidate], near: NearestRows | None, rows: Sequence[Row],
             adapter: Path | None, options: PromptOptions, show: Show) -> Decision:
    """The old prompt and the new one on rows that fit with both."""
    around = [candidate.opened(near) for candidate in pair]
    fitting = [row for row in rows if all(scorer.fits(each, row) for each in around)]
    if not fitting:
        raise UsageError(f"longest is {options.longest} tokens, and all rows that decide have more", "raise --longest")
    losses = [scorer.losses(each, fitting) or [] for each in around]
    scorer.rest()
    context = max(scorer.longest, min(CONTEXT, context_of(scorer.bundle.gguf)))
    right = answered(scorer.bundle.gguf, adapter, around, fitting, context, options.threads, show)
    before, after = ([*zip(flags, known, strict=True)] for flags, known in zip(right, losses, strict=True))
    return decide(before, after)


def _right_alone(near: NearestRows, rows: Sequence[Row]) -> int:
    """The number of rows whose answer is that of the nearest other row."""
    return sum(same(answer_of(row), answer_of(near.rows[near.order(question_text(row))[0]])) for row in rows)


def _near(pool: Sequence[Row], options: PromptOptions) -> tuple[NearestRows | None, str]:
    """The rows by nearness, or the reason why there are none."""
    if not options.nearest:
        return None, ""
    try:
        return NearestRows(pool, options.encoder, options.threads), ""
    except NotFoundError as error:
        if options.encoder != ENCODER:
            raise
        return None, f"{error.what}: {error.hint}"


def _longest(bundle: Bundle, tokenizer: Tokenizer, parts: Parts, options: PromptOptions) -> int:
    """Tokens of a prompt with its answer at most."""
    rows = (*parts.select, *parts.decide)
    answer = max(len(tokenizer.encode(answer_of(row))) for row in rows) + 16
    return min(context_of(bundle.gguf), options.longest + answer)


def _final(prompt: Prompt, data: str) -> Prompt:
    """The prompt whose nearest examples come from all rows of the file."""
    return replace(prompt, nearest=replace(prompt.nearest, rows=data)) if prompt.nearest else prompt
