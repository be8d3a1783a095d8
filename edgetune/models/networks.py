"""A model file as a network, by its architecture."""

from __future__ import annotations

from ..formats.families import FAMILIES
from ..formats.gguf import Gguf
from .base import Network
from .decoder import Model

NETWORKS: dict[str, type[Network]] = dict.fromkeys(FAMILIES, Model)
"""The network that opens a file, by its architecture."""


def open_network(gguf: Gguf) -> Network:
    """Opens a file with the network of its architecture. Raises UnsupportedError for an architecture that is not in
    NETWORKS, and the errors of the network.
    """
    return network_of(gguf)(gguf)


def network_of(gguf: Gguf) -> type[Network]:
    """The network that opens a file."""
    return NETWORKS.get(gguf.architecture, Model)
