"""Rows from what a person has, and rows of several sources in one file."""

from ...manifest import Extra, Manifest

MANIFEST = Manifest(
    name="rows",
    commands={"Data": {"data": "commands"}},
    renamed={"mix": "data mix"},
    extras=(Extra("rows", "edgetune data mix, and edgetune data make", ("yaml", "rapidfuzz")),),
    packages=("yaml", "rapidfuzz"),
)
