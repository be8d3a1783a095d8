"""Typed questions about a state, answered with probabilities by an encoder that learned them, or by letters."""

from ...manifest import Manifest

MANIFEST = Manifest(
    name="decisions",
    commands={"Try": {"decide": "commands"}, "Data": {"data": "label"}},
    routes=("systemone", "openai", "questions"),
    errors={"/v1/systemone": "systemone:with_detail"},
    panel=True,
)
