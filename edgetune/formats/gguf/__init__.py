"""GGUF files: held by a descriptor (file.py), read strictly (read.py), checked (check.py), written (write.py)."""

from ...backends.native import FORMATS, Format
from .check import (
    ENCODER,
    ENCODERS,
    MODERN,
    NOMIC,
    TABLE,
    check_adapter,
    check_encoder,
    check_experts,
    check_model,
    check_network,
    check_table,
    check_vocabulary,
)
from .file import OpenFile
from .read import Gguf, Metadata, Tensor, fingerprint, open_gguf
from .write import write_gguf

__all__ = [
    "ENCODER",
    "ENCODERS",
    "FORMATS",
    "MODERN",
    "NOMIC",
    "TABLE",
    "Format",
    "Gguf",
    "Metadata",
    "OpenFile",
    "Tensor",
    "check_adapter",
    "check_encoder",
    "check_experts",
    "check_model",
    "check_network",
    "check_table",
    "check_vocabulary",
    "fingerprint",
    "open_gguf",
    "write_gguf",
]
