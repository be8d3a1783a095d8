"""OpenAI's /v1/responses: answers as items, also for agents' frameworks that ask only there."""

from ...manifest import Manifest

MANIFEST = Manifest(name="responses", routes=("routes",))
