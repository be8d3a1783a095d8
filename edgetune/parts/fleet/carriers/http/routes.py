"""/v1/fleet: rounds of devices that learn together, whose tasks they load and whose answers they send."""

from __future__ import annotations

import hashlib
import json
from typing import Annotated, Any

from fastapi import APIRouter, File, Header, UploadFile
from fastapi.responses import FileResponse, JSONResponse
from pydantic import Field
from starlette.responses import Response

from .....daemon.api.errors import RESPONSES, JsonRoute, of_type
from .....daemon.api.shapes import Answer
from .....formats import signature
from ...api.routes import BYTES, TheDevice, TheFolder, check_sender
from ...rounds import answer as answers
from .. import exchange

router = APIRouter(prefix="/v1/fleet", route_class=JsonRoute, responses=RESPONSES)
AnswerFile = Annotated[UploadFile, File(description=f"{answers.FACTS} of the answer.")]
UpdateFile = Annotated[UploadFile, File(description=f"{answers.UPDATE}, what was learned.")]
SignatureFile = Annotated[UploadFile | None, File(description=f"{signature.FILE}, where it is signed.")]
Known = Annotated[str, Header(alias="If-None-Match", description="The ETag of the last answer: while it holds, the "
                                                                 "answer is 304 without a body.")]


class RoundObject(Answer):
    """The newest round, for a device."""

    round: int = Field(description="Its number; 0: there is none yet.")
    task: str = Field(description="The name of its task: SHA-256 of its task.json.")
    files: dict[str, int] = Field(description="The files of the task that a device needs, bytes by name.")
    answered: bool = Field(description="Whether the device has answered.")


class TakenAnswer(Answer):
    """An answer that was taken."""

    device: str = Field(description="Whose it is.")
    task: str = Field(description="The name of the task.")
    update: str = Field(description="SHA-256 of what was learned.")
    rows: int = Field(description="Rows that were learned.")
    tokens: int = Field(description="Supervised tokens of them.")


@router.get("/round/{device}", response_model=RoundObject, responses={304: {"description": "It is as before."}})
def get_round(device: str, folder: TheFolder, known: Known = "") -> Response:
    """Returns the newest round, and whether the device has answered it."""
    found = exchange.served_round(folder, device)
    tag = f'"{hashlib.sha256(json.dumps(found).encode()).hexdigest()[:32]}"'
    headers = {"ETag": tag}
    return Response(status_code=304, headers=headers) if known == tag else JSONResponse(found, headers=headers)


@router.get("/rounds/{number}/task/{file:path}", response_class=Response, responses=of_type(BYTES))
def get_task_file(number: int, file: str, folder: TheFolder) -> Response:
    """Returns a file of the task of a round."""
    return FileResponse(exchange.served_task_file(folder, number, file), media_type=BYTES)


@router.put("/rounds/{number}/answers/{device}", response_model=TakenAnswer)
def put_answer(number: int, device: str, answer: AnswerFile, update: UpdateFile, folder: TheFolder,
               sender: TheDevice, signed: SignatureFile = None) -> Any:
    """Takes a device's answer to the newest round, as a form, whole or not at all. In a fleet that devices join, it
    signs the request.
    """
    check_sender(folder, sender)
    sent = {answers.FACTS: answer.file, answers.UPDATE: update.file}
    return vars(exchange.take_answer(folder, number, device,
                                   {**sent, signature.FILE: signed.file} if signed else sent))
