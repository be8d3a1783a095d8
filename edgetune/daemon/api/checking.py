"""POST /v1/files/check: what a person should know of rows before a job learns them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Annotated, Any

from fastapi import APIRouter, File, Form, UploadFile

from ...data.check import Finding, findings
from ...data.facts import Inspection, TokenizeOptions, inspect
from ...data.files import read_rows
from ...data.rows import Row, RowParser
from ...training.length import reading_limit
from ..jobs.recipe import by_method, method_of
from ..service import Service
from ..state.files import printable
from ..state.uploads import check_length, form_of, spooled
from . import schemas
from .completions import TheService
from .errors import RESPONSES, JsonRoute

CHECKED_ROWS = 5000  # of each file at most: their facts are held in memory
CHECKED_BYTES = 8 << 20  # of their JSON, which is tokenized while others wait for answers
NAMED_LINES = 100  # of each finding
CHUNK = 1 << 16
OPTION_NAMES = {"eval": "validation_file"}  # of options of the command line, where those of a job differ
HeldOut = Annotated[UploadFile | None, File(description="Held-out rows, none of which may ask what is learned.")]
router = APIRouter(route_class=JsonRoute, responses=RESPONSES)


@router.post("/v1/files/check", response_model=schemas.RowsCheck)
def check_rows(file: schemas.RowsFile, service: TheService, validation_file: HeldOut = None,
               method: Annotated[str, Form(description="Of the job: supervised, dpo, ...")] = "supervised") -> Any:
    """Checks rows before a job learns them, as `edgetune data check` does. Nothing of them is kept."""
    kind = method_of({"type": method}, None, service.jobs.supervised)["type"]
    parser = by_method()[kind].rows
    train = service.train
    tokens = TokenizeOptions(service.served.tokenizer, reading_limit(train.max_length, service.served.context),
                             train.instruction, train.overflow)
    found = _inspected(file, service, tokens, parser)
    held_out = _inspected(validation_file, service, tokens, parser) if validation_file else None
    shapes: Sequence[str] = sorted({row.shape for row in found.rows}, key=lambda shape: shape == "text")
    return {"rows": found.count, "usable": len(found.rows), "shape": next(iter(shapes), ""),
            "longest": max(found.lengths, default=0),
            "findings": [_finding(each) for each in findings(found, held_out, tokens)
                         if each.kind != "none-held-out"]}  # which the daemon decides by its key


def _inspected(file: UploadFile, service: Service, tokens: TokenizeOptions, parser: RowParser) -> Inspection:
    name = printable(file.filename or "the file")
    form = form_of(name, file.file.read(CHUNK))
    file.file.seek(0)
    with spooled(iter(lambda: file.file.read(CHUNK), b""), form, service.config.max_upload) as path:
        return inspect(name, _first_rows(read_rows(path), service.config.max_body), tokens, parser)


def _first_rows(rows: Iterator[tuple[int, Row]], max_body: int) -> Iterator[tuple[int, Row]]:
    """The rows to check. Raises TooLargeError for one of more than `max_body` KiB, as an upload does."""
    size = 0
    for number, row in islice(rows, CHECKED_ROWS):
        length = len(json.dumps(row))
        check_length(number, length, max_body)
        size += length
        if size > CHECKED_BYTES:
            return
        yield number, row


def _finding(found: Finding) -> dict[str, Any]:
    hint = re.sub(r"--([a-z-]+)", lambda option: OPTION_NAMES.get(option[1], option[1].replace("-", "_")), found.hint)
    return {**vars(found), "hint": hint, "lines": found.lines[:NAMED_LINES]}
