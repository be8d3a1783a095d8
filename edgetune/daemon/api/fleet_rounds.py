"""/v1/fleet: rounds of devices that learn together, whose tasks they load and whose answers they send."""

from __future__ import annotations

import hashlib
import json
from typing import Annotated, Any, BinaryIO

from fastapi import APIRouter, File, Header, UploadFile
from fastapi.responses import FileResponse, JSONResponse
from pydantic import Field
from starlette.responses import Response

from ...fleet.carriers import served
from ...fleet.rounds import answer as answers
from ...fleet.secret import files
from ...formats import signature
from .completions import TheService
from .devices import TheDevice
from .errors import RESPONSES, JsonRoute, of_type
from .fleet import BYTES, check_sender, fleet_folder
from .shapes import Answer

router = APIRouter(prefix="/v1/fleet", route_class=JsonRoute, responses=RESPONSES)
AnswerFile = Annotated[UploadFile, File(description=f"{answers.FACTS} of the answer; {files.MASKED} where the round is "
                                                    "summed in secret.")]
UpdateFile = Annotated[UploadFile, File(description=f"{answers.UPDATE}, what was learned; "
                                                    f"{files.ARRAYS[files.MASKED]}.")]
RevealedFile = Annotated[UploadFile, File(description=f"{files.REVEALED}.")]
SharesFile = Annotated[UploadFile, File(description=f"{files.ARRAYS[files.REVEALED]}, the shares.")]
SignatureFile = Annotated[UploadFile | None, File(description=f"{signature.FILE}, where it is signed.")]
Known = Annotated[str, Header(alias="If-None-Match", description="The ETag of the last answer: while it holds, the "
                                                                 "answer is 304 without a body.")]


class RoundObject(Answer):
    """The newest round, for a device."""

    round: int = Field(description="Its number; 0: there is none yet.")
    task: str = Field(description="The name of its task: SHA-256 of its task.json.")
    files: dict[str, int] = Field(description="The files of the task that a device needs, bytes by name.")
    answered: bool = Field(description="Whether the device has answered.")
    request: str = Field(description="Of a round that is summed in secret, the name of its request for shares: SHA-256 "
                                     "of its request.json; empty: there is none yet.")
    request_files: dict[str, int] = Field(description="The files of the request, bytes by name.")
    revealed: bool = Field(description="Whether the device has revealed its shares.")


class TakenAnswer(Answer):
    """An answer that was taken."""

    device: str = Field(description="Whose it is.")
    task: str = Field(description="The name of the task.")
    update: str = Field(description="SHA-256 of what was learned.")
    rows: int = Field(description="Rows that were learned; 0: it is not said.")
    tokens: int = Field(description="Supervised tokens of them; 0: it is not said.")


@router.get("/round/{device}", response_model=RoundObject, responses={304: {"description": "It is as before."}})
def get_round(device: str, service: TheService, known: Known = "") -> Response:
    """Returns the newest round, and whether the device has answered it."""
    found = served.served_round(fleet_folder(service), device)
    tag = f'"{hashlib.sha256(json.dumps(found).encode()).hexdigest()[:32]}"'
    headers = {"ETag": tag}
    return Response(status_code=304, headers=headers) if known == tag else JSONResponse(found, headers=headers)


@router.get("/rounds/{number}/task/{file:path}", response_class=Response, responses=of_type(BYTES))
def get_task_file(number: int, file: str, service: TheService) -> Response:
    """Returns a file of the task of a round."""
    return FileResponse(served.served_task_file(fleet_folder(service), number, file), media_type=BYTES)


@router.put("/rounds/{number}/answers/{device}", response_model=TakenAnswer)
def put_answer(number: int, device: str, answer: AnswerFile, update: UpdateFile, service: TheService,
               sender: TheDevice, signed: SignatureFile = None) -> Any:
    """Takes a device's answer to the newest round, as a form, whole or not at all. In a fleet that devices join, it
    signs the request.
    """
    folder = fleet_folder(service)
    check_sender(folder, sender)
    return vars(served.take_answer(folder, number, device, _sent(answer, update, signed)))


@router.get("/rounds/{number}/request/{file}", response_class=Response, responses=of_type(BYTES))
def get_request_file(number: int, file: str, service: TheService) -> Response:
    """Returns a file of the request for shares of a round that is summed in secret."""
    return FileResponse(served.served_request_file(fleet_folder(service), number, file), media_type=BYTES)


@router.put("/rounds/{number}/revealed/{device}", response_model=TakenAnswer)
def put_revealed(number: int, device: str, answer: RevealedFile, update: SharesFile, service: TheService,
                 sender: TheDevice, signed: SignatureFile = None) -> Any:
    """Takes the shares that a device reveals for the request of the newest round, as put_answer takes an answer."""
    folder = fleet_folder(service)
    check_sender(folder, sender)
    return vars(served.take_revealed(folder, number, device, _sent(answer, update, signed)))


def _sent(answer: UploadFile, update: UploadFile, signed: UploadFile | None) -> dict[str, BinaryIO]:
    found = {answers.FACTS: answer.file, answers.UPDATE: update.file}
    return {**found, signature.FILE: signed.file} if signed else found
