"""What a round trains on: answers that are trusted, weighted by how far, and earlier rows again.

Most of what a small model can lose is in rows that it has not seen for long, and most of what can go wrong is in rows
that nobody verified. So a share of the tokens, at least, are labelled and earlier rows, and of those that no grader,
reference or person verified at most a share is learned, the surest first. Tokens count by their weights there: what is
trusted a third teaches a third.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ..adapters import store
from ..data import holdout, tutored
from ..data.anchors import ROWS_PER_ANCHOR
from ..data.answer_schema import derive
from ..data.dataset import Dataset, fitting, load_rows
from ..data.packing import Example
from ..data.rows import Row
from ..errors import Interrupted
from ..objectives.base import make_objective
from ..objectives.nlft import Nlft
from ..options import AUTO
from ..persisted import from_json
from ..training.length import batch_of, epochs_of, peak_rate
from ..training.run import run
from .questions import Question
from .setting import CONTINUE, Setting

LABELLED, REPLAYED, ANSWERED, REVISED, AGREED = "labelled", "replayed", "answered", "revised", "agreed"
RETOLD = "retold"  # a labelled row with other values
WRONG = "wrong"  # an answer with a judgment, of which some tokens are made less likely
MOST_WRONG = 0.3  # of the tokens of what is imitated


@dataclass(frozen=True)
class Taught:
    """One answer to learn. key: of its question; weight: of its tokens; source: where it is from; tokens: of it.
    judgment: of a wrong one. asked: other words of its question; "": its own.
    """

    key: str
    text: str
    weight: float
    source: str
    tokens: int
    judgment: str = ""
    asked: str = ""

    @property
    def is_verified(self) -> bool:
        return self.source != AGREED

    @property
    def mass(self) -> float:
        """What it adds to a training: tokens times their weight."""
        return self.tokens * self.weight

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def taught(setting: Setting, question: Question, text: str, weight: float, source: str, judgment: str = "",
           asked: str = "") -> Taught:
    return Taught(question.key, text, weight, source, len(setting.tokenizer.encode(text)) + 1, judgment, asked)


def read_taught(found: Sequence[Mapping[str, Any]], path: Path) -> list[Taught]:
    return [from_json(Taught, one, str(path)) for one in found]


def lesson(setting: Setting, number: int, new: Sequence[Taught], earlier: Sequence[Taught]) -> list[Taught]:
    """The rows of round `number`. new: what it found; earlier: what rounds before found, of which the newest answer to
    a question counts. Without `new` all labelled rows.
    """
    labelled = [taught(setting, question, question.reference, 1.0, LABELLED) for question in setting.pool.labelled]
    if not new:
        return labelled
    options = setting.options
    rng = np.random.default_rng(setting.seed(number, "rows"))
    known = {one.key for one in new} | {one.key for one in labelled}
    replayed = {one.key: replace(one, source=REPLAYED if one.is_verified else AGREED) for one in earlier
                if one.key not in known}
    again = [labelled[i] for i in rng.permutation(len(labelled))]
    older = list(replayed.values())
    again += [older[i] for i in rng.permutation(len(older))]
    wanted = options.replay / max(1e-9, 1 - options.replay) * sum(one.mass for one in new)
    chosen = _first(again, max(wanted, sum(one.mass for one in new if not one.is_verified)))
    kept = _surest([one for one in (*new, *chosen) if one.source != WRONG], options.unverified)
    return [*kept, *_wrong(new, MOST_WRONG * sum(one.tokens for one in kept))]


def _wrong(rows: Sequence[Taught], most: float) -> list[Taught]:
    """The first wrong answers, of at most as many tokens together."""
    found: list[Taught] = []
    for one in rows:
        if one.source == WRONG and one.tokens <= most:
            found.append(one)
            most -= one.tokens
    return found


def _first(rows: Sequence[Taught], mass: float) -> list[Taught]:
    """The first of the rows, of as much mass together, or all."""
    found: list[Taught] = []
    for one in rows:
        if mass <= 0:
            break
        found.append(one)
        mass -= one.mass
    return found


def _surest(rows: Sequence[Taught], share: float) -> list[Taught]:
    """Without those of the unverified that would be more than a share of all mass, the least sure first."""
    kept = list(rows)
    doubtful = sorted((one for one in rows if not one.is_verified), key=lambda one: one.weight)
    for one in doubtful:
        unverified = sum(other.mass for other in kept if not other.is_verified)
        if unverified <= share * sum(other.mass for other in kept):
            break
        kept.remove(one)
    return kept


def train(setting: Setting, number: int, rows: Sequence[Taught], start: Path | None, lr_scale: float,
          out: Path) -> dict[str, Any]:
    """run.json's content of a run that learns the rows from an adapter; one that was stopped is continued.

    lr_scale: factor of the learning rate. Raises Interrupted, and the errors of `run`.
    """
    seed = setting.seed(number, "train")
    config = setting.config
    if number == 0:
        config = replace(config, epochs="auto", batch_size="auto", lr="auto")  # the recipe of `train`
    batch_size = batch_of(config, len(rows))
    lr = peak_rate(config, len(rows)) * (lr_scale if number else 1.0)
    passes = max(1, round(epochs_of(config, len(rows))))
    anchors = ROWS_PER_ANCHOR if config.anchors == AUTO else config.anchors
    config = replace(config, seed=seed, epochs=1.0, batch_size=batch_size, lr=lr, shuffle=False,
                     anchors=anchors)
    setting.look()
    data = dataset_of(setting, rows, passes, seed)
    record = store.read_run(out)
    try:
        if record.get("status") != "done":  # else it was killed between this and the step's file
            record = run(setting.bundle, data, out, config, start=start, resume=out.exists(),
                         should_stop=setting.should_stop, governor=setting.governor, busy=setting.busy,
                         objective=make_objective(setting.options.objective, {}) if number else None,
                         on_event=lambda event: setting.on_event({**event, "round": number}))
        store.save_schema(out, data.schema)
        return record
    except Interrupted as stop:  # a run by itself would be continued with another command
        raise Interrupted(f"round {number} was {stop.what}", CONTINUE) from None


def dataset_of(setting: Setting, rows: Sequence[Taught], passes: int, seed: int) -> Dataset:
    """The rows in the order in which they are learned: several times, each time in another order. Each token has its
    row's weight.
    """
    rng = np.random.default_rng(seed)
    order = [int(i) for _ in range(passes) for i in rng.permutation(len(rows))]
    learned = [(_row_of(setting, one), one.weight) for one in rows]
    mixed = [learned[i] for i in order]
    made: dict[int, list[Example]] = {}  # of each row, which comes several times
    examples = []
    for row, weight in mixed:
        if id(row) not in made:
            made[id(row)] = _weighted(setting, row, weight)
        examples += made[id(row)]
    written = [row for row, _ in mixed]
    digest = holdout.digest_of([{"row": row, "weight": weight} for row, weight in mixed])
    right = [row for (row, _), one in zip(learned, rows, strict=True) if one.source != WRONG]
    return Dataset(examples, written, "messages", 0, 0, digest, derive(right))


def _row_of(setting: Setting, one: Taught) -> Row:
    """With the right answer, and the judgment, where evidence is read by them."""
    question = setting.pool[one.key]
    if one.asked:
        question = question.asking(one.asked)
    if setting.options.objective == Nlft.name and one.source in (ANSWERED, WRONG) and question.reference:
        return question.with_evidence(one.text, one.judgment)
    return question.with_answer(one.text)


def _weighted(setting: Setting, row: Row, weight: float) -> list[Example]:
    """One whose evidence is longer than a row may be is imitated as it is, if it is right."""
    longest = setting.config.row_limit
    if isinstance(row, dict) and "reference" in row:
        found = [*tutored.examples_of(row, tutored.SHAPE, setting.tokenizer, setting.system, longest)]
        made = [fit for _, fit in fitting(found, longest, "skip")]
        if not made and not row["judgment"]:
            plain = [replace(one, prompts=()) for one in found]
            made = [fit for _, fit in fitting(plain, longest, "truncate")]
    else:
        made = load_rows([row], setting.tokenizer, max_length=longest, system=setting.system).examples
    return [replace(one, weights=one.weights * np.float32(weight)) for one in made]
