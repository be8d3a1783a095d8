"""Rows with passages of an index before their questions, so that a model learns to answer from documents.

T. Zhang et al.: RAFT: Adapting Language Model to Domain Specific RAG (2024). The passages are those that a search
finds, in the form in which the model is asked when it serves: the one with the answer, and others that distract.
In a share of the rows the first is left out, so that the model does not believe that the answer is always there.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from pathlib import Path

from ...data.around import last_question
from ...data.question import asking_rows, question_text
from ...data.rows import answered_messages
from ...errors import UsageError
from ...options import check_options
from ..documents.passages import with_passages
from ..documents.search import Index, Passage
from .documents import is_grounded
from .options import PassageOptions
from .output import Made

LOOKED_AT = 20  # passages among which the one with the answer is looked for
NOWHERE = "no passage of the index holds its answer"
ALONE = "no other passages are found"
OnProgress = Callable[[str, float, float], None]


def make_with_passages(data: Path, index: Index, options: PassageOptions,
                       on_progress: OnProgress | None = None) -> Made:
    """The rows of a file with passages in their last questions. on_progress gets rows done and all. Raises DataError
    for a file without questions and answers, and the errors of the index.
    """
    check_options(options)
    if options.count < 2 and options.without:
        raise UsageError(f"count is {options.count}, and a share of {options.without:g} is to be without the passage "
                         "with the answer", "take two passages or more, or --without 0")
    made = Made()
    rows = asking_rows(data)
    for number, row in enumerate(rows):
        if on_progress:
            on_progress("searching", number, len(rows))
        made.read += 1
        assert not isinstance(row, str)
        messages = answered_messages(row)
        found = index.search(question_text(row), LOOKED_AT, least=0.0).passages
        answer = str(messages[-1].get("content") or "")
        passages = chosen(found, answer, options, random.Random(f"{options.seed} {number}"))
        if isinstance(passages, str):
            made.drop(passages)
            continue
        at = last_question(messages)
        assert at is not None
        messages[at] = with_passages(messages[at], passages)
        tools = {"tools": row["tools"]} if "tools" in row else {}
        made.rows.append({**tools, "messages": messages})
    return made


def chosen(found: Sequence[Passage], answer: str, options: PassageOptions,
           chance: random.Random) -> list[Passage] | str:
    """The passages of a question, in any order: the first that holds the answer among others, or others alone. Or why
    there are none.
    """
    oracle = next((passage for passage in found if is_grounded(answer, passage.text)), None)
    if oracle is None:
        return NOWHERE
    others = [passage for passage in found if not is_grounded(answer, passage.text)]
    without = chance.random() < options.without
    count = options.count if without else options.count - 1
    if len(others) < count:
        return ALONE
    passages = others[:count] if without else [oracle, *others[:count]]
    chance.shuffle(passages)
    return passages
