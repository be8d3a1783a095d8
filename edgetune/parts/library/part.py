"""A library of adapters, of which NAME:auto chooses one for each question."""

from ...manifest import Manifest

MANIFEST = Manifest(
    name="library",
    commands={"Serve": {"adapters": "commands"}},
    options="options:LibraryOptions",
    running="library:running",
    adapter={"questions": "Questions of its task, by which NAME:auto chooses it; 0: it does not."},
    routes=("routes",),
)
