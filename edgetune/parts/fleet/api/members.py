"""/v1/fleet: devices that join a fleet, with a code and a person's approval."""

from __future__ import annotations

import time
from dataclasses import asdict
from typing import Any, Literal

from fastapi import APIRouter, Request
from pydantic import Field

from ....daemon.api.completions import TheService
from ....daemon.api.errors import RESPONSES, JsonRoute
from ....daemon.api.proxy import TrustedProxy
from ....daemon.api.shapes import Answer, Body, Time, Whole
from ....errors import UsageError
from ..membership import invites, members
from ..rounds.places import newest_number
from .dependencies import TheDevice, TheFolder, TheKey

PUBLIC = "64 hexadecimal digits."
router = APIRouter(prefix="/v1/fleet", route_class=JsonRoute, responses=RESPONSES)


class MemberObject(Answer):
    """A device that has asked to join."""

    device: str = Field(description="Its name.")
    key: str = Field(description="Its public Ed25519 key; a person compares the first digits.")
    state: Literal["waiting", "approved", "revoked"] = Field(description="Only approved ones take part.")
    asked_at: Time
    decided_at: int = Field(description="When it was approved or revoked; 0: not yet.")
    rotated_at: int = Field(description="When it changed its key; 0: never.")
    version: int = Field(description="Of this format.")
    edgetune: str = Field(description="The edgetune that wrote it.")
    key_before: str = Field(description="The Ed25519 key before; empty: none.")
    rotated_in: int = Field(description="The round in which the key before still counts; 0: in none.")


class MemberList(Answer):
    """All devices that have asked to join."""

    object: Literal["list"] = "list"
    joined: bool = Field(description="Whether only devices that joined take part.")
    data: list[MemberObject] = Field(description="The devices, by name.")
    unreadable: list[str] = Field(description="Why files of others could not be read.")


class InviteRequest(Body):
    """Options of a code."""

    seconds: Whole = Field(invites.SECONDS, ge=1, le=invites.MOST_SECONDS, description="Until it expires.")


class InviteObject(Answer):
    """A code for one device."""

    code: str = Field(description="It is shown once; the daemon keeps its hash.")
    expires_at: Time
    proxied: bool = Field(description="Whether the request came through the trusted proxy, whose address is only for "
                                      "people: devices need another.")


class JoinRequest(Body):
    """A device's request to join."""

    code: str = Field(max_length=64, description="The one-time code.")
    device: str = Field(description="The name that it wants.")
    key: str = Field(description=f"Its public Ed25519 key: {PUBLIC}")


class RotateRequest(Body):
    """A new key of a device, which signs the request with the old one."""

    key: str = Field(description=f"Its new public Ed25519 key: {PUBLIC}")


BY_DEFAULT = InviteRequest.model_validate({})


@router.get("/members", response_model=MemberList)
def list_members(folder: TheFolder) -> Any:
    """Lists the devices that have asked to join."""
    found, wrong = members.read_members(folder)
    return {"joined": members.is_joined(folder), "data": [asdict(one) for one in found.values()], "unreadable": wrong}


@router.post("/invites", response_model=InviteObject)
def make_invite(request: Request, service: TheService, folder: TheFolder, body: InviteRequest = BY_DEFAULT) -> Any:
    """Makes a code for one device. From then on, only devices that joined take part."""
    now = int(time.time())
    return {"code": invites.invite(folder, now, body.seconds), "expires_at": now + body.seconds,
            "proxied": TrustedProxy(service.config.trusted_proxy).sends(request.scope)}


@router.post("/join", response_model=MemberObject)
def join(body: JoinRequest, folder: TheFolder) -> Any:
    """Asks to join, with a code. The device waits until a person approves it. No key is needed."""
    return asdict(invites.join(folder, body.code, body.device, body.key, int(time.time())))


@router.get("/members/{device}", response_model=MemberObject)
def get_member(device: str, folder: TheFolder) -> Any:
    """Returns a device; it may ask for itself."""
    return asdict(members.read_member(folder, device))


@router.post("/members/{device}/approve", response_model=MemberObject)
def approve(device: str, folder: TheFolder) -> Any:
    """Lets a device take part."""
    return asdict(members.approve(folder, device, int(time.time())))


@router.post("/members/{device}/revoke", response_model=MemberObject)
def revoke(device: str, folder: TheFolder) -> Any:
    """Lets a device take part no longer. What it has sent does not count."""
    return asdict(members.revoke(folder, device, int(time.time())))


@router.post("/members/{device}/rotate", response_model=MemberObject)
def rotate(device: str, body: RotateRequest, folder: TheFolder, sender: TheDevice, key: TheKey) -> Any:
    """Replaces the signing key of a device, which signs the request with the key that it had."""
    if not sender:
        raise UsageError("the request is not signed by the device", "run edgetune fleet rotate on the device")
    return asdict(members.rotate(folder, device, body.key, int(time.time()), newest_number(folder), key))
