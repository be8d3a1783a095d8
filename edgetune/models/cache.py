"""What answers keep of earlier tokens: keys and values of each token, in blocks of CACHE tokens, and the states of
sequences (states.py). A kind of mixer says which of both its blocks have (sublayer.py).

G heads of keys, C their width.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..backends.arena import Arena, Buffer
from ..backends.base import CACHE, Array, Backend
from ..formats.shape import Shape
from .sublayer import Mixer


@dataclass(frozen=True)
class Cache:
    """The sizes of all that is kept, and the buffers for it. mixers: of each block, kinds that answer."""

    shape: Shape
    mixers: tuple[type[Mixer], ...]

    @property
    def keys(self) -> list[int]:
        """The blocks that make keys and values."""
        return [layer for layer, mixer in enumerate(self.mixers) if mixer.has_keys and self.shape.owner(layer) == layer]

    @property
    def groups(self) -> dict[tuple[int, int], list[int]]:
        """(G, C) -> the blocks that make keys of these sizes."""
        found: dict[tuple[int, int], list[int]] = {}
        for layer in self.keys:
            own = self.shape.of(layer)
            found.setdefault((own.n_kv, own.d_head), []).append(layer)
        return found

    @property
    def names(self) -> list[tuple[str, str]]:
        """The buffers of keys and of values of each of `groups`."""
        return [(f"cache_keys{i or ''}", f"cache_values{i or ''}") for i in range(len(self.groups))]

    @property
    def states(self) -> dict[str, tuple[list[int], tuple[int, ...]]]:
        """name -> (the blocks that have it, the shape of one), of float32 arrays that a sequence has."""
        found: dict[str, tuple[list[int], tuple[int, ...]]] = {}
        for layer, mixer in enumerate(self.mixers):
            for name, shape in (mixer.state(self.shape) or {}).items():
                found.setdefault(name, ([], shape))[0].append(layer)
        return found

    @property
    def state_bytes(self) -> int:
        """Bytes of all states of one sequence."""
        return sum(4 * len(layers) * int(np.prod(shape)) for layers, shape in self.states.values())

    def buffers(self, blocks: int, slots: int, activations: str) -> list[Buffer]:
        """blocks: of keys and values, which have the numpy type `activations`; slots: of states."""
        made = zip(self.names, self.groups.items(), strict=True)
        return [*(buffer for (keys, values), ((g, c), layers) in made
                  for buffer in (Buffer(keys, (len(layers), blocks, g, c, CACHE), "run", activations),
                                 Buffer(values, (len(layers), blocks, g, CACHE, c), "run", activations))),
                *(Buffer(f"cache_{name}", (len(having), slots, *shape), "run")
                  for name, (having, shape) in self.states.items())]

    def work(self, tokens: int, runs: int, activations: str) -> list[Buffer]:
        """Work space of passes that continue up to `runs` states with up to `tokens` tokens in all."""
        kinds = dict.fromkeys(self.mixers)
        return [buffer for kind in kinds for buffer in kind.answer_buffers(self.shape, tokens, runs, activations)]


class CacheArrays:
    """The arrays of a cache, by block. keys [blocks, G, C, CACHE], values [blocks, G, CACHE, C]; states: by name, of
    each block that has it, [slots, ...]. A block that takes the keys of another has the other's arrays.
    """

    def __init__(self, cache: Cache, arena: Arena) -> None:
        def whole(name: str) -> Array:
            return arena.flat(name).reshape(arena.buffers[name].shape)

        s = cache.shape
        self._whole = [whole(name) for pair in cache.names for name in pair]
        self._states = {name: whole(f"cache_{name}") for name in cache.states}
        made = [{layer: one for group, layers in zip(self._whole[i::2], cache.groups.values(), strict=True)
                 for layer, one in zip(layers, group, strict=True)} for i in range(2)]
        users = [layer for layer, mixer in enumerate(cache.mixers) if mixer.has_keys]
        self.keys, self.values = ({layer: of[s.owner(layer)] for layer in users} for of in made)
        self.states = {name: dict(zip(layers, self._states[name], strict=True))
                       for name, (layers, _) in cache.states.items()}

    def attend(self, ops: Backend, s: Shape, layer: int, out: Array, q: Array, key: Array, v: Array, slots: Array,
               paths: Array) -> None:
        """Does what `store` does; out [T, H * C] = attention of q [T, H, C] along paths [T, P], as of
        Ops.attention_cached.
        """
        self.store(ops, s, layer, key, v, slots)
        ops.attention_cached(out.reshape(q.shape), q, self.keys[layer], self.values[layer], paths, s.attn_scale,
                             s.windows[layer])

    def store(self, ops: Backend, s: Shape, layer: int, key: Array, v: Array, slots: Array) -> None:
        """Stores key and v [T, G, C] in their slots [T], if the block has made them."""
        if s.owner(layer) == layer:
            ops.cache_store(self.keys[layer], self.values[layer], key, v, slots)

    def copy_block(self, source: int, block: int) -> None:
        for array in self._whole:
            array[:, block] = array[:, source]

    def copy_state(self, source: int, slot: int) -> None:
        for array in self._states.values():
            array[:, slot] = array[:, source]
