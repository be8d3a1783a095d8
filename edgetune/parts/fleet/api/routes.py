"""The API of a fleet: roll-outs of its folder, devices that join it, what its owner sees and decides; and another base
for the daemon's slot, evaluated before a roll-out lets the daemon answer with it.
"""

from __future__ import annotations

import time
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Request
from fastapi.responses import FileResponse
from starlette.responses import Response

from ....daemon.api.completions import TheService
from ....daemon.api.errors import RESPONSES, JsonRoute, of_type
from ....daemon.api.fine_tuning import job_object
from ....daemon.api.fine_tuning_schemas import JobObject
from ....daemon.api.security import TrustedProxy
from ....errors import UsageError
from ..bases.job import BaseRequest, begin_base_evaluation
from ..membership import invites, members
from ..rollout import http as rollout_http
from ..rollout import rings
from ..rounds.places import newest_number
from ..running import advancer_of
from ..status import rollout_status, status_json, status_of
from .schemas import (
    BaseEvaluation,
    DeviceReport,
    FleetRollout,
    FleetStatusObject,
    InviteObject,
    InviteRequest,
    JoinRequest,
    MemberList,
    MemberObject,
    OrderObject,
    RotateRequest,
)

BYTES = "application/octet-stream"
BY_DEFAULT = InviteRequest.model_validate({})
router = APIRouter(route_class=JsonRoute, responses=RESPONSES)


async def _device_of(request: Request) -> str:
    return getattr(request.state, "device", "")


async def _key_of(request: Request) -> str:
    return getattr(request.state, "key", "")


async def _folder_of(service: TheService) -> Path:
    return advancer_of(service).folder


TheFolder = Annotated[Path, Depends(_folder_of)]  # of the fleet; NotFoundError: the daemon serves none
TheDevice = Annotated[str, Depends(_device_of)]  # who signed the request; "": nobody did
TheKey = Annotated[str, Depends(_key_of)]  # by which public key


def check_sender(folder: Path, sender: str) -> None:
    """Raises UsageError for what nobody signed, in a fleet that devices join."""
    if members.is_joined(folder) and not sender:
        raise UsageError("the request is not signed by a device of the fleet", members.ASK)


@router.post("/v1/base/evaluate", response_model=JobObject)
def evaluate_base(body: BaseEvaluation, service: TheService) -> Any:
    """Begins a job in which the gate evaluates the base in the other side of the daemon's slot, with the adapter that
    comes with it, compared with the present one and its active adapter. The verdict is in the last event of the job.
    Nothing becomes active.
    """
    return job_object(begin_base_evaluation(service, BaseRequest(**body.model_dump())))


@router.get("/v1/fleet/order", response_model=OrderObject)
def get_order(folder: TheFolder) -> Any:
    """Returns the order that counts. A daemon has one if it was started with --fleet."""
    return rollout_http.served_order(folder)


@router.get("/v1/fleet/rollouts/{rollout}/{file:path}", response_class=Response, responses=of_type(BYTES))
def get_file(rollout: str, file: str, folder: TheFolder) -> Response:
    """Returns a file of the artifact of a roll-out."""
    return FileResponse(rollout_http.served_file(folder, rollout, file), media_type=BYTES)


@router.put("/v1/fleet/devices/{device}", response_model=DeviceReport)
def put_report(device: str, body: DeviceReport, folder: TheFolder, sender: TheDevice) -> Any:
    """Replaces what a device reports. In a fleet that devices join, it signs the request."""
    check_sender(folder, sender)
    return asdict(rollout_http.take_report(folder, device, body.model_dump()))


@router.get("/v1/fleet/members", response_model=MemberList)
def list_members(folder: TheFolder) -> Any:
    """Lists the devices that have asked to join."""
    found, wrong = members.read_members(folder)
    return {"joined": members.is_joined(folder), "data": [asdict(one) for one in found.values()], "unreadable": wrong}


@router.post("/v1/fleet/invites", response_model=InviteObject)
def make_invite(request: Request, service: TheService, folder: TheFolder, body: InviteRequest = BY_DEFAULT) -> Any:
    """Makes a code for one device. From then on, only devices that joined take part."""
    now = int(time.time())
    return {"code": invites.invite(folder, now, body.seconds), "expires_at": now + body.seconds,
            "proxied": TrustedProxy(service.config.trusted_proxy).sends(request.scope)}


@router.post("/v1/fleet/join", response_model=MemberObject)
def join(body: JoinRequest, folder: TheFolder) -> Any:
    """Asks to join, with a code. The device waits until a person approves it. No key is needed."""
    return asdict(invites.join(folder, body.code, body.device, body.key, int(time.time())))


@router.get("/v1/fleet/members/{device}", response_model=MemberObject)
def get_member(device: str, folder: TheFolder) -> Any:
    """Returns a device; it may ask for itself."""
    return asdict(members.read_member(folder, device))


@router.post("/v1/fleet/members/{device}/approve", response_model=MemberObject)
def approve(device: str, folder: TheFolder) -> Any:
    """Lets a device take part."""
    return asdict(members.approve(folder, device, int(time.time())))


@router.post("/v1/fleet/members/{device}/revoke", response_model=MemberObject)
def revoke(device: str, folder: TheFolder) -> Any:
    """Lets a device take part no longer. What it has sent does not count."""
    return asdict(members.revoke(folder, device, int(time.time())))


@router.post("/v1/fleet/members/{device}/rotate", response_model=MemberObject)
def rotate(device: str, body: RotateRequest, folder: TheFolder, sender: TheDevice, key: TheKey) -> Any:
    """Replaces the signing key of a device, which signs the request with the key that it had."""
    if not sender:
        raise UsageError("the request is not signed by the device", "run edgetune fleet rotate on the device")
    return asdict(members.rotate(folder, device, body.key, int(time.time()), newest_number(folder), key))


@router.get("/v1/fleet/status", response_model=FleetStatusObject)
def get_status(service: TheService) -> Any:
    """Returns the devices of a fleet, its newest roll-out and its rounds."""
    advancer = advancer_of(service)
    found = status_of(advancer.folder)
    running = found.rollout if found.rollout and found.rollout.status in (rings.RUNNING, rings.UNDOING) else None
    return {**status_json(found),
            "obstacle": advancer.obstacle(running.id, running.signer) if running else ""}


@router.post("/v1/fleet/rollout/{change}", response_model=FleetRollout)
def change_rollout(change: Literal["advance", "pause", "resume", "stop", "undo"], service: TheService) -> Any:
    """Pauses, resumes, stops or undoes the newest roll-out. Each counts the reports, as advance does, which begins the
    next ring where the rules allow it. The daemon does that by itself, too, within a minute. Where the orders are
    signed, it needs --fleet-sign to write another.
    """
    return vars(rollout_status(*advancer_of(service).change(change)))
