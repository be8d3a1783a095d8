"""The memory that answers through llama.cpp take, known before its library is loaded."""

from __future__ import annotations

from pathlib import Path

from ..adapters.store import FILE
from ..errors import EdgetuneError, size_text
from ..formats.gguf import Gguf
from ..formats.shape import read_shape
from ..llamacpp.context import OUTPUTS, PARALLEL, SMALL_BATCH
from ..machine import device
from ..models.structure import DecoderStructure

CONTEXT = 1024  # tokens, in which several questions are answered together
ROOM = 64  # tokens after the longest row: an answer that needs more is wrong
_READ = 4  # times the size of an adapter's file that reading it takes at most, as half floats become floats
_LIBRARY = 24 << 20  # bytes of llama.cpp's code and of its Python module
_SEQUENCES = 1 + PARALLEL + 2  # of a context
_TOKEN = 160  # bytes that a vocabulary takes a token
_PLAIN = ("F32", "F16", "BF16")  # weights that llama.cpp never copies to another order


def bytes_to_read(adapter: Path) -> int:
    """Bytes that reading an adapter takes at most; 0 for a folder that holds none."""
    file = adapter / FILE if adapter.is_dir() else adapter
    return _READ * file.stat().st_size if file.exists() else 0


def cache_bytes(base: Gguf, context: int) -> int:
    """Bytes of the keys and values of a context of this number of tokens, which are 16-bit floats, and of a state of
    each sequence.
    """
    shape = read_shape(base)
    cache = DecoderStructure(shape).cache
    makers = cache.keys if cache else range(shape.n_layer)
    states = _SEQUENCES * cache.state_bytes if cache else 0
    return 2 * 2 * context * sum(shape.of(layer).d_kv for layer in makers) + states


def busy_bytes(base: Gguf, context: int) -> int:
    """Bytes that answers and vectors add to a process that has answered none: logits, and a second context for the
    vectors of a long text.
    """
    return 4 * OUTPUTS * read_shape(base).n_vocab + cache_bytes(base, context)


def memory_needed(base: Gguf, context: int, repack: bool) -> int:
    """Bytes that llama.cpp adds to this process at most, for answers in a context of this number of tokens.

    The file is mapped whole; with repack matrices in blocks may be copied to another order for this CPU; a batch has
    SMALL_BATCH tokens, and of at most OUTPUTS of them logits are held.
    """
    shape = read_shape(base)
    copies = sum(t.data.nbytes for t in base.tensors.values() if t.format not in _PLAIN) if repack else 0
    batch = 4 * SMALL_BATCH * (8 * shape.d_model + 4 * shape.d_ff)
    vocabulary = (4 * OUTPUTS + _TOKEN) * shape.n_vocab
    return base.data.nbytes + copies + cache_bytes(base, context) + batch + vocabulary + _LIBRARY


def context_of(base: Gguf, longest: int) -> int:
    """Tokens of a context for answers to rows of at most this number of tokens."""
    return min(read_shape(base).context, max(longest + ROOM, CONTEXT))


def least_with(base: Gguf, context: int) -> int:
    """Bytes that this process has at most once llama.cpp has opened the model without copies."""
    return device.rss() + memory_needed(base, context, repack=False)


def may_repack(base: Gguf, context: int, budget: int) -> bool:
    """Whether llama.cpp may copy weights in this process, whose budget is in bytes."""
    return device.rss() + memory_needed(base, context, repack=True) <= budget


def repack_within(base: Gguf, context: int, budget: int, way_out: str) -> bool:
    """`may_repack`; raises EdgetuneError, with this way out, where the budget has no room for the model at all."""
    needed = least_with(base, context)
    if needed > budget:
        raise EdgetuneError(f"llama.cpp would need up to {size_text(needed)}, the budget is {size_text(budget)}",
                            way_out)
    return may_repack(base, context, budget)
