"""Questions and answers from a folder of documents, chunk by chunk.

A model writes questions with short answers in the text's own words. Without one, rules make them: gaps in sentences,
cells of tables, and headings. Their wordings are not those of people, so rows by a good model are better; a small model
writes worse ones than these rules (docs/results/prompts.md).

An answer is kept only if it stands in its chunk, or nearly so, with every number and name that it has, and if the
question is understood without the chunk, and does not tell its answer. With `check`, the model must also find the
answer again, by the question and the chunk alone. Questions that nearly repeat another are dropped.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from ...data.answer_schema import normal, stands_in
from ...data.words import plain, words_of
from ...errors import DataError, EdgetuneError, install_hint
from ...options import check_options
from ..documents.chunks import Chunk, chunks
from ..documents.paragraphs import files_of, paragraphs
from .askers import Asker
from .options import DocumentOptions
from .output import Made
from .source_rows import NearDuplicates

GAP = "___"
MOST_GAPS = 4  # of a chunk
MOST_WORDS = 40  # of a sentence with a gap, and of the answer to a heading
_SPAN = re.compile(r"`([^`\n]{2,60})`|\*\*([^*\n]{2,60})\*\*|"
                   r"(?<![\w.])(\d[\d.,:]*\d|\d)(?: ?(?:%|MiB|MB|GB|KiB)(?!\w))?")
_SENTENCE = re.compile(r"(?<=[.!?:])\s+(?=[A-Z`*\d])")
_LINK = re.compile(r"!?\[([^\]]*)\]\([^)]*\)")
_CELL = re.compile(r"(?<!\\)\|")


def questions(text: str, heading: str) -> Iterator[tuple[str, str]]:
    """(question, answer) of a chunk, whose heading stands before each question. text: Markdown or plain text."""
    prose, tables = _divided(text)
    title = f"{heading}: " if heading else ""
    seen = 0
    first = " ".join(prose[0].split()) if prose else ""
    if heading and first and len(first.split()) <= MOST_WORDS:
        yield f"What do you know of this: {heading}?", first
    for paragraph in prose:
        for sentence in _SENTENCE.split(" ".join(paragraph.split())):
            span = _SPAN.search(sentence)
            if not span or len(sentence.split()) > MOST_WORDS or len(sentence.split()) < 4 or seen == MOST_GAPS:
                continue
            seen += 1
            yield f"{title}fill the gap: {sentence[:span.start()]}{GAP}{sentence[span.end():]}", span[0].strip("`*")
    for head, cells in tables:
        for name, cell in zip(head[1:], cells[1:], strict=False):
            if cell and cells[0]:
                yield f"{title}{head[0]} {cells[0]}: {name}?", cell


def _divided(text: str) -> tuple[list[str], list[tuple[list[str], list[str]]]]:
    """(paragraphs, (header, cells) of each row of a table); programs between fences are left out."""
    prose: list[str] = []
    tables: list[tuple[list[str], list[str]]] = []
    head: list[str] | None = None
    taken: list[str] = []
    for line in [*re.sub(r"```.*?(?:```|$)", "", _LINK.sub(r"\1", text), flags=re.DOTALL).splitlines(), ""]:
        if line.lstrip().startswith("|"):
            cells = [cell.strip().strip("`*") for cell in _CELL.split(line.strip().strip("|"))]
            if head is None:
                head = cells
            elif not re.fullmatch(r"[\s|:-]+", line):
                tables.append((head, cells))
            continue
        head = None
        is_item = line.lstrip().startswith(("- ", "* "))
        if (not line.strip() or is_item) and taken:
            prose.append("\n".join(taken))
            taken = []
        if line.strip():
            taken.append(line.lstrip("-* "))
    return prose, tables


NEAR = 90  # of 100: the similarity of a longer answer to a passage of its chunk
AGREES = 80  # of 100: of two answers to one question
LONGEST_ANSWER = 80  # words
SHORTEST_QUESTION = 3  # words
UNGROUNDED = "the answer does not stand in its chunk"
NO_QUESTION = "it is no question with an answer"
POINTS = "the question speaks of the text, which nobody sees"
TELLS = "the question tells its answer"
DISAGREES = "a second answer from the chunk is another one"
_POINTING = re.compile(r"\b(?:this|the|given|above|following) (?:text|passage|document|chunk|paragraph|section|table|"
                       r"excerpt|example|question|answer)\b|\baccording to (?:the|this)\b|"
                       r"\b(?:diese[rmns]?|d(?:er|em|en|as)) (?:text|absatz|dokument|abschnitt)\b|"
                       r"\b(?:ce|le) (?:texte|passage|document|paragraphe)\b", re.IGNORECASE)
_EXACT = re.compile(r"[^\s,;!?\"'()]*[\d_/=$@\\-][^\s,;!?\"'()]*|[A-Z]{2,}\w*")  # numbers, options, paths, names


def flaw_of(question: str, answer: str, chunk: str) -> str:
    """Why a question with its answer is not kept; "" for one that is."""
    if len(words_of(question)) < SHORTEST_QUESTION or not plain(answer) or len(words_of(answer)) > LONGEST_ANSWER:
        return NO_QUESTION
    if _POINTING.search(question):
        return POINTS
    if not is_grounded(answer, chunk):
        return UNGROUNDED
    if f" {plain(answer)} " in f" {plain(question)} ":
        return TELLS
    return ""


def is_grounded(answer: str, chunk: str) -> bool:
    """Whether an answer stands in its chunk: to the letter, but for case, spaces and marks; or so nearly that RapidFuzz
    finds it there, with each number, option, path and name in it to the letter.
    """
    source = normal(chunk)
    if f" {plain(answer)} " in f" {plain(chunk)} ":
        return True
    if not all(stands_in(source, exact.strip(".:`*")) for exact in _EXACT.findall(answer) if exact.strip(".:`*-")):
        return False
    return len(words_of(answer)) > SHORTEST_QUESTION and _ratio(plain(answer), plain(chunk), partial=True) >= NEAR


def agree(one: str, other: str) -> bool:
    """Whether two answers say the same: one stands in the other, or most of their words are the same."""
    first, second = plain(one), plain(other)
    if not first or not second:
        return False
    if f" {first} " in f" {second} " or f" {second} " in f" {first} ":
        return True
    return _ratio(first, second, partial=False) >= AGREES


def _ratio(one: str, other: str, partial: bool) -> float:
    try:
        from rapidfuzz import fuzz
    except ModuleNotFoundError:
        raise EdgetuneError("answers are compared with their text by the package rapidfuzz, which is not installed",
                            install_hint("rows")) from None
    return float(fuzz.partial_ratio(one, other) if partial else fuzz.token_set_ratio(one, other))


OnProgress = Callable[[str, float, float], None]
TOKENS_PAIR, TOKENS_CHECK = 80, 60  # of an answer at most
REPEATED = "nearly repeats an earlier question"
ASK = """{text}

Write {count} different questions that people may ask, and that this text answers. Each answer is short, and in the \
text's own words. People do not see the text, so each question says what it is about."""
CHECK = "{text}\n\nAnswer from this text alone, in a few of its words: {question}"


def make_from_documents(folder: Path, options: DocumentOptions, asker: Asker | None = None,
                        on_progress: OnProgress | None = None) -> Made:
    """Rows of the documents of a folder, or of one. asker: None: questions by rules. `read` counts questions.

    on_progress gets the chunks that were read, and all. Raises UsageError for what is no folder, and the errors of the
    asker. A file that cannot be read is skipped and noted.
    """
    check_options(options)
    made = Made()
    pieces = list(pieces_of(folder, options, made))
    near = NearDuplicates(options.near)
    for number, (name, chunk) in enumerate(pieces):
        for question, answer in _asked(chunk, options, asker, number, made):
            made.read += 1
            flaw = flaw_of(question, answer, chunk.whole)
            if not flaw and not near.add(question):
                flaw = REPEATED
            if not flaw and asker and options.check:
                again = asker.answer(CHECK.format(text=chunk.whole, question=question), TOKENS_CHECK)
                flaw = "" if agree(answer, again) else DISAGREES
            if flaw:
                made.drop(flaw)
                continue
            made.rows.append({"prompt": question, "completion": answer, "source": name})
        if on_progress:
            on_progress("chunks", number + 1, len(pieces))
    made.notes.append(f"{len(pieces)} chunks, questions by {asker.name if asker else 'rules'}")
    return made


def pieces_of(folder: Path, options: DocumentOptions, made: Made) -> Iterator[tuple[str, Chunk]]:
    """The chunks of all documents, of at most `options.words` words, with their files, and their lines or pages."""
    for file in files_of(folder):
        try:
            for chunk in chunks(paragraphs(file.path), lambda text: len(text.split()), options.words, 0.0):
                place = f"page {chunk.page}" if chunk.page else f"line {chunk.line}"
                yield f"{file.name}, {place}", chunk
        except DataError as error:
            made.notes.append(f"{file.name} was skipped: {error.what}")


def _asked(chunk: Chunk, options: DocumentOptions, asker: Asker | None, number: int,
           made: Made) -> Iterable[tuple[str, str]]:
    """Questions and answers about a chunk, not checked yet."""
    if asker is None:
        return list(questions(chunk.text, chunk.heading.replace(" > ", ", ")))
    asked = ASK.format(text=chunk.whole, count=options.questions)
    said = asker.answer(asked, TOKENS_PAIR * options.questions, schema_of(options.questions), options.seed + number)
    found = pairs_in(said)
    if not found:
        made.read += 1
        made.drop(NO_QUESTION)
    return found


def schema_of(count: int) -> dict[str, Any]:
    """The form of an answer: a list of at most `count` questions with answers."""
    text = {"type": "string"}
    pair = {"type": "object", "properties": {"question": text, "answer": text}, "required": ["question", "answer"],
            "additionalProperties": False}
    return {"type": "array", "items": pair, "minItems": 1, "maxItems": count}


def pairs_in(said: str) -> list[tuple[str, str]]:
    """The pairs of an answer, as far as it is whole: the list may be cut, or within a fence."""
    decode = json.JSONDecoder().raw_decode
    found = []
    at = said.find("{")
    while at >= 0:
        try:
            value, end = decode(said, at)
        except ValueError:
            end = at + 1
        else:
            if isinstance(value, dict) and all(isinstance(value.get(key), str) for key in ("question", "answer")):
                found.append((value["question"].strip(), value["answer"].strip()))
        at = said.find("{", end)
    return found
