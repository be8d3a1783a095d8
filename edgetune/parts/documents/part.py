"""A person's documents: indexed, searched, and put before questions; OpenAI's vector stores."""

from ...manifest import Extra, Manifest

MANIFEST = Manifest(
    name="documents",
    commands={"Serve": {"documents": "commands"}},
    renamed={"index": "documents index", "search": "documents search"},
    options="options:DocumentsOptions",
    running="running:running",
    device="routes:DocumentsDevice",
    routes=("routes", "rerank"),
    panel=True,
    around="commands:INDEX",
    purposes={"assistants": "paragraphs:require_name"},
    library={"Index": "search:Index"},
    extras=(Extra("retrieval", "edgetune documents and --index", ("apsw", "sqlite_vec", "pypdf")),),
    face=("chunks", "paragraphs", "passages", "search"),
)
