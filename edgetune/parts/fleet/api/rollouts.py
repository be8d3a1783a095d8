"""/v1/fleet: the roll-outs of a folder, for devices that fetch them, and their reports."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any, Literal

from fastapi import APIRouter
from fastapi.responses import FileResponse
from pydantic import Field
from starlette.responses import Response

from ....daemon.api.errors import RESPONSES, JsonRoute, of_type
from ....daemon.api.shapes import Answer, Body, Whole
from ..rollout import http as rollout_http
from .dependencies import TheDevice, TheFolder, check_sender

BYTES = "application/octet-stream"
router = APIRouter(prefix="/v1/fleet", route_class=JsonRoute, responses=RESPONSES)


class OrderObject(Answer):
    """What a fleet's devices are to do."""

    rollout: str = Field(description="The roll-out; empty: there is none.")
    number: int = Field(description="The number of the order; the highest counts.")
    order: str = Field(description="The text of its order.json.")
    signature: str = Field(description="The text of its manifest.sig; empty: it is not signed.")
    files: list[str] = Field(description="The files of its artifact.")


class DeviceReport(Body):
    """What a device of a fleet last did."""

    device: str = Field(description="The name of the device.")
    at: Whole = Field(description="When, seconds since 1970.")
    model: str = Field(description="sha256 of its model.")
    rollout: str = Field(description="The roll-out that it is about.")
    execution: Literal["none", "downloaded", "proceeding", "closed", "rejected", "canceled"] = Field(
        description="closed: there is an outcome; rejected: its gate refused it; canceled: it went back.")
    finished: Literal["none", "success", "failure"] = Field(description="The outcome.")
    reason: str = Field(description="A sentence, for a person.")
    adapter: str = Field(description="The adapter's id on the device.")
    verdict: dict[str, Any] = Field(description="Numbers of its gate.")
    installed: list[str] = Field(description="Digests of what roll-outs brought.")
    superseded: list[str] = Field(description="Digests of what those replaced.")
    kept: list[str] = Field(description="Ids of those that its daemon has.")
    version: Whole = Field(description="Of this format.")
    edgetune: str = Field(description="The device's edgetune.")
    kind: str = Field("", description="What kind of device it is, such as Raspberry Pi 5, aarch64.")
    base: str = Field("", description="The name of its model.")
    active: str = Field("", description="The adapter that answers there; empty: none.")
    number: Whole = Field(0, description="Rises with each report.")
    signature: str = Field("", max_length=128, description="Where devices join, of all other fields by the device's "
                                                           "key; empty: none.")


@router.get("/order", response_model=OrderObject)
def get_order(folder: TheFolder) -> Any:
    """Returns the order that counts. A daemon has one if it was started with --fleet."""
    return rollout_http.served_order(folder)


@router.get("/rollouts/{rollout}/{file:path}", response_class=Response, responses=of_type(BYTES))
def get_file(rollout: str, file: str, folder: TheFolder) -> Response:
    """Returns a file of the artifact of a roll-out."""
    return FileResponse(rollout_http.served_file(folder, rollout, file), media_type=BYTES)


@router.put("/devices/{device}", response_model=DeviceReport)
def put_report(device: str, body: DeviceReport, folder: TheFolder, sender: TheDevice) -> Any:
    """Replaces what a device reports. In a fleet that devices join, it signs the request."""
    check_sender(folder, sender)
    return asdict(rollout_http.take_report(folder, device, body.model_dump()))
