"""A model file as a network, by its architecture."""

from __future__ import annotations

from collections.abc import Callable

from .families import FAMILIES
from .gguf import Gguf
from .model import Model
from .network import Network

NETWORKS: dict[str, Callable[[Gguf], Network]] = dict.fromkeys(FAMILIES, Model)
"""What opens the files of an architecture."""


def open_network(gguf: Gguf) -> Network:
    """Raises UnsupportedError for an architecture that is not in NETWORKS, and as its network does."""
    return NETWORKS.get(gguf.architecture, Model)(gguf)
