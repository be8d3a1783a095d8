"""An encoder that answers before the model what it is sure of."""

from ...manifest import Manifest

MANIFEST = Manifest(
    name="first",
    options="options:FirstOptions",
    running="running:running",
    device="running:FirstDevice",
)
