"""Rows from what a person has, and rows of several sources in one file."""

from ...manifest import Manifest

MANIFEST = Manifest(
    name="rows",
    commands={"Data": {"data": "commands"}},
    renamed={"mix": "data mix"},
    packages=("yaml", "rapidfuzz"),
)
