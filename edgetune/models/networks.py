"""A model file as a network, by its architecture."""

from __future__ import annotations

from importlib import import_module
from pkgutil import iter_modules

from ..formats.gguf import Gguf
from .base import NETWORKS, Network
from .decoder import Model


def open_network(gguf: Gguf) -> Network:
    """Opens a file with the network of its architecture. Raises UnsupportedError for another architecture, and the
    errors of the network.
    """
    return network_of(gguf)(gguf)


def network_of(gguf: Gguf) -> type[Network]:
    """The network that is registered for a file's architecture; the modules of this folder are imported first, unless
    it is a decoder's: a board's memory holds all that are.
    """
    if gguf.architecture not in Model.architectures:
        for module in iter_modules(import_module(__package__).__path__):
            import_module(f"{__package__}.{module.name}")
    return NETWORKS.get(gguf.architecture, Model)
