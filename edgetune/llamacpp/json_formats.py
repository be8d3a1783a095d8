"""Formats of strings in a JSON schema, as regular expressions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

LABEL = "[a-z0-9]{1,20}(-[a-z0-9]{1,20}){0,2}"  # of a host's name, 63 characters at most
LOCAL = "[a-z0-9]{1,20}([.-][a-z0-9]{1,20}){0,2}"  # of an address, 64 characters at most
FORMATS = {
    "date": r"^[0-9]{4}-(0[1-9]|1[0-2])-(0[1-9]|1[0-9]|2[0-8])$",  # a day that every month has
    "time": r"^([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](\.[0-9]{1,6})?(Z|[+-]([01][0-9]|2[0-3]):[0-5][0-9])$",
    "uuid": r"^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$",
    "email": rf"^{LOCAL}@{LABEL}(\.[a-z]{{2,12}}){{1,2}}$",
    "hostname": rf"^{LABEL}(\.{LABEL}){{0,3}}$",
    "ipv4": r"^((25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])\.){3}(25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])$",
    "ipv6": r"^([0-9a-f]{1,4}:){7}[0-9a-f]{1,4}$",
    "duration": r"^P([0-9]{1,3}W|[0-9]{1,3}D(T[0-9]{1,2}H)?|T([0-9]{1,2}H)?[0-9]{1,2}M([0-9]{1,2}S)?|T[0-9]{1,2}[HS])$",
    "uri": rf"^https?://{LABEL}(\.{LABEL}){{0,3}}(/[a-zA-Z0-9._~-]*)*$",
}
FORMATS["date-time"] = FORMATS["date"][:-1] + "T" + FORMATS["time"][1:]
OTHER_FORMATS = ("idn-email", "idn-hostname", "uri-reference", "iri", "iri-reference", "uri-template", "json-pointer",
                 "relative-json-pointer", "regex")  # of the standard too; any other name is a remark


def without_remark(schema: Mapping[str, Any]) -> Mapping[str, Any]:
    """Drops a format that says nothing of strings, or that the standard does not know: Home Assistant has such."""
    kinds = schema.get("type") or "string"
    of_strings = kinds == "string" or (isinstance(kinds, list) and "string" in kinds)
    holds = of_strings and schema.get("format") in (*FORMATS, *OTHER_FORMATS)
    return schema if holds or "format" not in schema else {k: v for k, v in schema.items() if k != "format"}
