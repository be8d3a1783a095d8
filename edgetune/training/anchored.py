"""Anchors of a run (data/anchors.py), which every step learns together with its rows. The base draws them before the
first step. They are stored as tokens: in the run's folder for a resume, in the user's cache for later runs.

The files are npz: `name` (the key of what decides them), `tokens`, `sizes` [n], `begins` [n] of the base's answers.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from ..backends.opening import open_backend
from ..data import loader
from ..data.anchors import BEGINNINGS, LONGEST, QUESTIONS, ROWS_PER_ANCHOR, TOKENS, asking, of_batch
from ..data.lengths import Lengths
from ..data.packing import Example
from ..disk import cache, cache_folder, replaced
from ..errors import DataError, Interrupted, UsageError
from ..formats.bundle import Bundle
from ..machine import device
from ..models.decoder import Model
from ..objectives.base import Objective
from ..objectives.sft import Sft
from . import length
from .batches import shares
from .config import TrainConfig
from .reference import unreadable

FILE = "anchors.npz"
BATCHES = "anchor_batches"  # of run.json: the first that is learned, and the one after the last
BATCH = 64  # anchors that are drawn together and stored in one file
MOST = 1024  # different anchors of a run; beyond that they are repeated, and repeated ones are soon memorised
PARALLEL = 32  # drawn at once: more take more memory than training does
CACHED = 128  # files in the cache, the newest
Prompts = list[list[int]]


@dataclass(frozen=True)
class AnchorQuestions:
    """Texts to continue and questions, as tokens; the tokens that end an answer."""

    texts: Prompts
    chats: Prompts
    ends: set[int]


def rows_per_anchor(config: TrainConfig, objective: Objective) -> int:
    """0: no anchors are learned."""
    if isinstance(config.anchors, str):
        return ROWS_PER_ANCHOR if objective.name == Sft.name and length.is_auto(config) else 0
    return config.anchors


def lengths_with_anchors(objective: Objective, config: TrainConfig, *parts: Sequence[Example]) -> Lengths:
    """Returns the lengths of a run's rows, in parts as in `Objective.lengths`, with room for an anchor if any is
    learned. Unknown rows need no more room.
    """
    found = objective.lengths(*parts, max_length=config.row_limit, share=shares(config))
    if not (found.units and rows_per_anchor(config, objective)):
        return found
    return replace(found, aside=max(found.aside, min(LONGEST, config.row_limit)))


def batches_of(number: int, record: Mapping[str, Any], start: Mapping[str, Any]) -> range:
    """The batches of about `number` anchors, MOST at most; batches are the same modulo MOST / BATCH. record: run.json
    of a resumed run. start: run.json of the run that made the start adapter; the anchors after its last one are taken.
    """
    learned = start.get(BATCHES, [0, -(-start.get("anchors", 0) // BATCH)])
    first = record.get(BATCHES, learned[1:])[0]
    return range(first, first - -min(number, MOST) // BATCH)


def prepare(bundle: Bundle, config: TrainConfig, batches: range, should_stop: Callable[[], bool],
            on_event: Callable[[dict[str, Any]], None], check: Callable[[], object] = lambda: None) -> list[Example]:
    """The anchors of some batches, without empty ones: from the cache where possible, else drawn. The list is empty if
    the base cannot draw any within training's memory; an event gives the reason.

    check: called before any is drawn; may raise. Raises Interrupted once should_stop returns True.
    """
    name = _name(bundle, config)
    asked: AnchorQuestions | None = None
    found: list[Example] = []
    for done, batch in enumerate(number % (MOST // BATCH) for number in batches):
        path = cache_folder() / "anchors" / f"{sha256(name.encode()).hexdigest()[:32]}-{batch}.npz"
        part = read(path, name)
        if not part:
            if asked is None:
                check()
            on_event({"event": "anchors", "done": done * BATCH, "of": len(batches) * BATCH})
            try:
                asked = asked or _questions(bundle, config)
                part = _drawn(bundle, config, asked, batch, should_stop)
            except (UsageError, DataError) as error:
                on_event({"event": "anchors_missing", "reason": error.what})
                return []
            if part:
                cache(path, partial(save, path, part, name), CACHED)
        found += part
    return [cut for one in found if (cut := _cut(one, config.row_limit)).supervised]


def _name(bundle: Bundle, config: TrainConfig) -> str:
    """Returns a key of everything that decides which tokens are drawn, except their number."""
    ops = open_backend(config.backend, device.thread_count(config.threads), lambda _: None)
    asked = sha256(json.dumps([BEGINNINGS, QUESTIONS]).encode()).hexdigest()[:16]
    return json.dumps([bundle.fingerprint, bool(config.instruction), asked, TOKENS, ops.isa, config.precision,
                       ops.products(config.precision)])


def _cut(example: Example, max_length: int) -> Example:
    limit = min(LONGEST, max_length)
    return _example(example.tokens[:example.begin].tolist(), example.tokens[example.begin:limit])


def _drawn(bundle: Bundle, config: TrainConfig, questions: AnchorQuestions, batch: int,
           should_stop: Callable[[], bool]) -> list[Example]:
    """Draws a batch of anchors. Raises UsageError if they do not fit into memory or the model's context."""
    from ..llamacpp.sampling import Sampling  # here: most trainings draw none
    from ..serving.rollouts.texts import Engine, TokenPrompts, draw
    prompts = of_batch(questions.texts, batch) + of_batch(questions.chats, batch)
    engine = Engine(config.memory_here(), config.memory_asked, PARALLEL, config.precision, config.threads,
                    config.backend)
    natural = Sampling(temperature=1.0, top_k=0, top_p=1.0, min_p=0.0, seed=batch)  # tokens as likely as the base says
    asked = TokenPrompts(prompts, [TOKENS] * len(prompts), BATCH // len(prompts), natural)

    def before_block() -> None:
        if should_stop():
            raise Interrupted("stopped while the base drew its anchors, before the first step", "begin again")

    found = {}
    for one in draw(Model(bundle.gguf), {}, asked, engine, questions.ends.__contains__, before_block=before_block):
        if one.tokens.size > 1 or not one.ended:  # else the answer is empty
            found[one.prompt, one.sample] = _example(prompts[one.prompt], one.tokens)
    return [found[key] for key in sorted(found)]


def _questions(bundle: Bundle, config: TrainConfig) -> AnchorQuestions:
    """Returns texts to continue and questions; a model without a chat template has texts alone."""
    end = bundle.gguf.metadata.get("tokenizer.ggml.eos_token_id")
    ends = {end} if isinstance(end, int) else set()
    plain = replace(config, markup="escape", prompt_column="", completion_column="", max_length=LONGEST,
                    overflow="skip", system="")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "questions.jsonl"
        for chats in (True, False):
            rows = asking(bool(config.instruction), chats)
            path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
            try:
                loaded, = loader.load(bundle.gguf.path, [path], plain)
            except DataError:  # it has no chat template
                if chats:
                    continue
                raise
            break
    assert loaded
    texts = [one for one in loaded.examples if one.begin <= 1]  # all of it is supervised
    said = [one for one in loaded.examples if one.begin > 1]
    ends |= {int(one.tokens[-1]) for one in said}
    return AnchorQuestions([one.tokens.tolist() for one in texts], [one.tokens[:one.begin].tolist() for one in said],
                           ends)


def _example(prompt: Sequence[int], said: np.ndarray) -> Example:
    tokens = np.concatenate([np.array(prompt, np.int32), said.astype(np.int32)])
    weights = np.zeros(tokens.size, np.float32)
    weights[len(prompt):] = 1.0
    return Example(tokens, weights)


# ---- on disk ---------------------------------------------------------------------------------------------------------


def read(path: Path, name: str = "") -> list[Example]:
    """Returns the anchors of a file; none if it is missing or damaged, or has another `name`."""
    with suppress(*unreadable()), path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
        if name in ("", str(file["name"])):
            parts = np.split(file["tokens"].astype(np.int32), np.cumsum(file["sizes"])[:-1])
            return [_example(part[:begin].tolist(), part[begin:])
                    for part, begin in zip(parts, file["begins"], strict=True)]
    return []


def save(path: Path, anchors: Sequence[Example], name: str = "") -> None:
    """Writes them whole. Raises DiskError."""
    tokens = np.concatenate([one.tokens for one in anchors])
    with replaced(path) as beside, beside.open("wb") as file:
        np.savez(file, name=np.array(name), tokens=tokens, sizes=np.array([one.tokens.size for one in anchors]),
                 begins=np.array([one.begin for one in anchors]))
