"""A house of Home Assistant: it learns its entities' sentences, and answers before the model."""

from ...manifest import Extra, Manifest

MANIFEST = Manifest(
    name="home",
    commands={"Home": {"home": "commands"}},
    options="options:HomeOptions",
    running="source:running",
    extras=(Extra("home", "edgetune home", ("hassil", "home_assistant_intents", "yaml", "websockets")),),
    packages=("hassil", "home_assistant_intents", "unicode_rbnf", "yaml", "websockets"),
)
