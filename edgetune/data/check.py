"""What a person should know of rows before training on them: findings, by the facts of a file's rows.

Whether labels are right cannot be seen in rows, and nothing here claims to.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..llamacpp.tokenizer import Tokenizer
from .facts import Inspection, TokenizeOptions
from .files import Line
from .labelled import are_few
from .thoughts import DROP, KEEP, MASK

FEW = 20  # fewer rows teach little
MOSTLY = 0.75  # from this share on, all answers should be JSON
FAR = 10  # an answer this many times as long or as short as the median is named
LABEL = 60  # letters of a label at most
LONG = 500  # letters from which an answer can be far too long
SHORT = 50  # letters of a median answer from which one can be far too short
NAMED = 5  # lines named in a sentence
NEAR = 0.95  # cosine from which two questions mean nearly the same
COMPARED = 20_000  # rows, so that it takes a minute and no more
TOGETHER = 512  # rows that are compared with all at once
VectorsOf = Callable[[Sequence[Sequence[int]]], NDArray[np.float32]]  # token ids of n texts -> [n, D], of length 1
REASONS = 3  # different reasons named why rows cannot be used
SHAPES = {"messages": "messages", "prompt": "prompt and completion", "text": "text",
          "preference": "pairs of answers", "unpaired": "prompt, completion and label",
          "ranked": "prompt, completions and rewards", "tutored": "prompt, completion and reference",
          "privileged": "prompt, completion and privileged_context",
          "attempts": "prompt, completion, attempts and labels"}


@dataclass(frozen=True)
class Finding:
    """Something about the rows in `lines`, and what to do. `fatal`: training would fail, or be of no use."""

    kind: str
    what: str
    hint: str
    lines: list[int]
    fatal: bool = False

    def __str__(self) -> str:
        return f"{self.what}{_places(self.lines)}; {self.hint}"


def quantile(ascending: Sequence[int], share: float) -> int:
    """The least value that at least this share of the values does not exceed."""
    return ascending[max(-int(-share * len(ascending) // 1), 1) - 1]


def findings(data: Inspection, held_out: Inspection | None = None, tokens: TokenizeOptions | None = None,
             vectors: VectorsOf | None = None, thinking: str = KEEP) -> list[Finding]:
    """What keeps training from working first, then what may be meant. tokens: what `data` was inspected with. vectors:
    of questions, by the encoder whose tokens these are. thinking: what becomes of thoughts, as of data.thoughts.
    """
    found = [*_unusable(data), *_too_long(data, tokens)]
    if held_out is not None:
        found += [*_unusable(held_out), *_overlap(data, held_out)]
    found += [*_few(data, held_out), *_repeated(data), *_alike(data), *_contradictory(data), *_other_than_json(data),
              *_far(data), *_labels(data, tokens), *(_nearly_contradictory(data, vectors) if vectors else ())]
    found += [*_thoughts(data, thinking), *_of_questions(data, tokens, vectors)]
    return sorted(found, key=lambda finding: not finding.fatal)


def _of_questions(data: Inspection, tokens: TokenizeOptions | None, vectors: VectorsOf | None) -> Iterable[Finding]:
    """Flaws of typed questions."""
    def of_texts(texts: Sequence[str]) -> NDArray[np.float32]:
        assert tokens
        assert vectors
        return vectors([tokens.tokenizer.encode(text) for text in texts])

    return (Finding(*flaw) for flaw in data.decisions.flaws(of_texts if tokens and vectors else None))


def _thoughts(data: Inspection, thinking: str) -> Iterable[Finding]:
    """What becomes of thoughts."""
    if lines := [row.line for row in data.rows if row.thinks]:
        becomes = {KEEP: "learned", DROP: "left out", MASK: "read and not learned"}[thinking]
        some = "" if len(lines) == len(data.rows) else f", and {len(data.rows) - len(lines)} have none"
        yield Finding("thinking", f"{_rows(len(lines))} {'has' if len(lines) == 1 else 'have'} thoughts, which are "
                      f"{becomes} (--thinking {thinking}){some}", "choose --thinking keep, drop or mask",
                      lines if some else [])


def _unusable(data: Inspection) -> Iterable[Finding]:
    """What `train` refuses."""
    if not data.count:
        yield Finding("no-rows", f"{data.name} holds no rows", "write a row a line", [], fatal=True)
    yield from _refused(data)
    shapes = Counter(row.shape for row in data.rows if row.shape != "text")
    if len(shapes) > 1:
        usual = shapes.most_common(1)[0][0]
        lines = [row.line for row in data.rows if row.shape not in ("text", usual)]
        what = f"{_rows(len(lines))} of {data.name} {_are(lines)} not of {SHAPES.get(usual, usual)}, as the others are"
        yield Finding("shapes", what, "keep one shape in a file", lines, fatal=True)


def _refused(data: Inspection) -> Iterable[Finding]:
    """Rows that are not understood or have an empty answer, by the reason: the first reasons, then all others."""
    named = []
    others = []
    for kind, refusals in (("refused", data.refused), ("empty", data.empty)):
        by_reason: dict[tuple[str, str], list[int]] = defaultdict(list)
        for line, error in refusals:
            by_reason[error.what, error.hint].append(line)
        for (what, hint), lines in list(by_reason.items())[:REASONS]:
            text = f"{_rows(len(lines))} of {data.name} cannot be used: {what}"
            named.append(Finding(kind, text, hint, lines, fatal=True))
        rest = sorted(line for lines in list(by_reason.values())[REASONS:] for line in lines)
        if rest:
            others.append(Finding(kind, f"{_rows(len(rest))} more of {data.name} cannot be used, for other reasons",
                                  "mend the others, and check again", rest, fatal=True))
    return [*sorted(named, key=lambda finding: finding.lines), *others]


def _too_long(data: Inspection, tokens: TokenizeOptions | None) -> Iterable[Finding]:
    if tokens is None or not data.rows:
        return
    longest = data.lengths[-1] if data.lengths else 0
    limit = f"within {tokens.max_length} tokens"
    lost = [row.line for row in data.rows if row.is_lost]
    hint = f"raise --max-length (the longest has {longest}), or shorten what comes before the answer"
    if len(lost) == len(data.rows):
        yield Finding("lost", f"no row has anything to learn {limit}", hint, lost, fatal=True)
    elif lost:
        yield Finding("lost", f"{_rows(len(lost))} {_are(lost)} left out: nothing to learn {limit}", hint, lost)
    if cut := [row.line for row in data.rows if row.is_cut]:
        what = f"{_rows(len(cut))} {_are(cut)} cut after {tokens.max_length} tokens, and the rest not learned"
        yield Finding("cut", what, f"raise --max-length (the longest has {longest})", cut)


def _overlap(data: Inspection, held_out: Inspection) -> Iterable[Finding]:
    learned = {row.question for row in data.rows}
    if lines := [row.line for row in held_out.rows if row.question in learned]:
        verb = "asks" if len(lines) == 1 else "ask"
        yield Finding("overlap", f"{_rows(len(lines))} of {held_out.name} {verb} what {data.name} teaches",
                      "keep them in one file: what was learned does not tell how new questions are answered", lines,
                      fatal=True)


def _few(data: Inspection, held_out: Inspection | None) -> Iterable[Finding]:
    if not data.rows or {row.shape for row in data.rows} == {"text"}:
        return
    if len(data.rows) < FEW:
        yield Finding("few", f"{_rows(len(data.rows))} {_are(data.rows)} few to learn from",
                      "expect that they are memorised, and add rows", [])
    if held_out is None and not data.held_out() and not data.is_of_labels:
        yield Finding("none-held-out", "no row can be held out, so nothing will tell whether training helps",
                      "name held-out rows with --eval, or add rows with other questions", [])


def _labels(data: Inspection, tokens: TokenizeOptions | None) -> Iterable[Finding]:
    """Answers that an encoder gives in milliseconds, for a model that writes text."""
    answers = Counter(row.answer for row in data.rows)
    is_short = all(row.letters <= LABEL and row.answer is not None for row in data.rows)
    single = sum(count == 1 for count in answers.values())
    if is_short and len(data.rows) >= FEW and len(answers) > 1 and 2 * single <= len(data.rows) and not (
            tokens and not isinstance(tokens.tokenizer, Tokenizer)):
        yield Finding("labels", f"the answers are {len(answers)} short texts, each for several questions",
                      "an encoder learns such labels in seconds: edgetune train minilm", [])


def _repeated(data: Inspection) -> Iterable[Finding]:
    seen: set[str] = set()
    lines = []
    for row in data.rows:
        if row.digest in seen:
            lines.append(row.line)
        seen.add(row.digest)
    if lines:
        repeat = "repeats an earlier one" if len(lines) == 1 else "repeat earlier ones"
        yield Finding("repeated", f"{_rows(len(lines))} {repeat}", "remove them, unless they are to count more", lines)


def _alike(data: Inspection) -> Iterable[Finding]:
    answers = [row.answer for row in data.rows if row.answer is not None]
    if len(answers) > 1 and len(set(answers)) == 1:
        yield Finding("alike", f"all {len(answers)} answers are the same",
                      "add rows with other answers, or the model learns to give this one to every question", [])


def _contradictory(data: Inspection) -> Iterable[Finding]:
    """A question with several answers may be meant, so this is no reason to stop."""
    answers: dict[str, dict[str, int]] = defaultdict(dict)
    for row in data.rows:
        if row.answer is not None:
            answers[row.question].setdefault(row.answer, row.line)
    lines = sorted(line for of_one in answers.values() if len(of_one) > 1 for line in of_one.values())
    if lines:
        count = sum(len(of_one) > 1 for of_one in answers.values())
        questions = "1 question has" if count == 1 else f"{count} questions have"
        yield Finding("contradictory", f"{questions} several different answers",
                      "keep the right one, unless any of them will do", lines)


def _nearly_contradictory(data: Inspection, vectors: VectorsOf) -> Iterable[Finding]:
    """Questions of nearly one meaning with different labels. Values in JSON may differ by a word, so it is left out."""
    rows = [row for row in data.rows if row.asked and row.answer is not None and not row.is_json][:COMPARED]
    if len(rows) < 2 or not are_few([str(row.answer) for row in rows]):
        return
    pairs = [(rows[i].line, rows[j].line) for i, j in near_pairs(vectors([row.asked for row in rows]))
             if rows[i].answer != rows[j].answer and rows[i].question != rows[j].question]
    if pairs:
        lines = sorted({line for pair in pairs for line in pair})
        named = " and ".join(map(str, pairs[0]))
        what = f"{_rows(len(lines))} ask nearly what another asks and have another label, most alike are lines {named}"
        yield Finding("nearly-contradictory", what, "see which label is right", lines)


def near_pairs(vectors: NDArray[np.float32]) -> list[tuple[int, int]]:
    """The pairs i < j of vectors [n, D] of length 1 whose cosine is at least NEAR, the nearest first."""
    found: list[tuple[float, int, int]] = []
    for begin in range(0, len(vectors), TOGETHER):
        cosines = vectors[begin:begin + TOGETHER] @ vectors.T
        for i, j in zip(*np.nonzero(cosines >= NEAR), strict=True):
            if begin + i < j:
                found.append((-float(cosines[i, j]), begin + int(i), int(j)))
    return [(i, j) for _, i, j in sorted(found)]


def _other_than_json(data: Inspection) -> Iterable[Finding]:
    answered = [row for row in data.rows if row.answer is not None]
    other = [row.line for row in answered if not row.is_json]
    if other and len(answered) - len(other) >= MOSTLY * len(answered):
        what = f"{_answers(len(other))} {_are(other)} not JSON, as the other {len(answered) - len(other)} are"
        yield Finding("not-json", what, "mend them, or the model learns to answer both ways", other)


def _far(data: Inspection) -> Iterable[Finding]:
    """Answers of quite another length than the others are often cut, or hold what belongs to another place."""
    answered = [row for row in data.rows if row.answer is not None]
    if not answered:
        return
    median = quantile(sorted(row.letters for row in answered), 0.5)
    long = [row.line for row in answered if row.letters > max(FAR * median, LONG)]
    short = [row.line for row in answered if median >= SHORT and row.letters * FAR < median]
    for kind, lines, word in (("long", long, "more"), ("short", short, "less")):
        if lines:
            has = "has" if len(lines) == 1 else "have"
            share = f"{FAR} times the" if kind == "long" else f"a {FAR}th of the"
            what = f"{_answers(len(lines))} {has} {word} than {share} usual {median} letters"
            yield Finding(kind, what, "see whether they are whole and right", lines)


def _rows(count: int) -> str:
    return "1 row" if count == 1 else f"{count} rows"


def _answers(count: int) -> str:
    return "1 answer" if count == 1 else f"{count} answers"


def _are(things: Sequence[Any]) -> str:
    return "is" if len(things) == 1 else "are"


def _places(lines: Sequence[int]) -> str:
    """The first lines, in brackets; none for plain text."""
    shown = [line for line in lines[:NAMED] if line]
    named = [f"{line.name}:{line}" if isinstance(line, Line) else str(line) for line in shown]
    if not named:
        return ""
    rest = f" and {len(lines) - len(named)} more" if len(lines) > len(named) else ""
    return f" (line{'s' * (len(lines) > 1)} {', '.join(named)}{rest})"
