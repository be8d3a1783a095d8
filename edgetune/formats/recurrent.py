"""Blocks whose mixer has a state in place of keys and values: which they are, and their sizes, from GGUF metadata."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..errors import FormatError, UnsupportedError
from .block_sizes import drafting_blocks

if TYPE_CHECKING:
    from .families import ModelFamily
    from .metadata import MetadataReader


@dataclass(frozen=True)
class RecurrentShape:
    """GGUF's keys "ssm.*". taps: tokens that the convolution before the state sees. inner: values a token of all heads
    together. state: values of a key of a delta net, or of B and C. groups: heads with queries and keys, or B and C.
    """

    taps: int
    inner: int
    state: int
    heads: int
    groups: int


NONE = RecurrentShape(0, 0, 0, 0, 0)


def read_recurrent(get: MetadataReader, mixers: Collection[str]) -> RecurrentShape:
    """The sizes of blocks with these kinds of mixers; NONE: no kind has a state. Raises FormatError for sizes that they
    cannot have.
    """
    checks = [check for kind, check in CHECKS.items() if kind in mixers]
    if not checks:
        return NONE
    found = RecurrentShape(get.integer("ssm.conv_kernel"), get.integer("ssm.inner_size"), get.integer("ssm.state_size"),
                           get.integer("ssm.time_step_rank"), get.integer("ssm.group_count"))
    checks[0](get, found)
    return found


def recurrent_mixers(get: MetadataReader, family: ModelFamily) -> tuple[str, ...]:
    """The kind of each block's mixer: the file lists those with a state, or all but each n-th have one."""
    n_layer = get.integer("block_count")
    found = get.any("attention.recurrent_layers")
    if found is None:
        n = get.integer("full_attention_interval", family.attends_every)
        found = [(layer + 1) % max(n, 1) != 0 for layer in range(n_layer)]
    if not isinstance(found, list) or len(found) != n_layer:
        raise FormatError(f"{get.gguf.path} has {get.arch}.attention.recurrent_layers = {str(found)[:60]}",
                          f"it must say of each of {n_layer} blocks whether it has a state: convert the model again")
    kinds = [family.elsewhere if has_state else family.mixer for has_state in found]
    return tuple(kinds[:n_layer - drafting_blocks(get)])


def _check_delta_net(get: MetadataReader, r: RecurrentShape) -> None:
    """Raises FormatError for sizes that no gated delta net has, and for such as the kernels do not take."""
    sizes = {"ssm.conv_kernel": (r.taps, 8), "ssm.state_size": (r.state, 128), "ssm.time_step_rank": (r.heads, 4096),
             "ssm.group_count": (r.groups, r.heads)}
    for key, (value, limit) in sizes.items():
        if not 1 <= value <= limit:
            raise FormatError(f"{get.gguf.path} has {get.arch}.{key} = {value}", f"edgetune takes 1 to {limit} there")
    if r.state % 4 or r.heads % r.groups or r.inner != r.heads * r.state:
        raise FormatError(f"{get.gguf.path} has {r.heads} value heads of {r.inner} values in all, {r.groups} key heads "
                          f"and keys of {r.state}",
                          "values must be as wide as keys, by fours, and the value heads a multiple of the key heads")


def _check_mamba(get: MetadataReader, r: RecurrentShape) -> None:
    """Raises FormatError for sizes of Mamba 2 that llama.cpp or the kernels do not compute."""
    sizes = {"ssm.conv_kernel": (r.taps, 8), "ssm.state_size": (r.state, 128), "ssm.time_step_rank": (r.heads, 4096),
             "ssm.group_count": (r.groups, r.heads)}
    for key, (value, limit) in sizes.items():
        if not 1 <= value <= limit:
            raise FormatError(f"{get.gguf.path} has {get.arch}.{key} = {value}", f"edgetune takes 1 to {limit} there")
    if r.inner != 2 * get.integer("embedding_length"):
        raise FormatError(f"{get.gguf.path} has {get.arch}.ssm.inner_size = {r.inner}",
                          "it must be twice the embedding length")
    if r.inner % (16 * r.heads) or r.inner > 128 * r.heads or r.state % 16 or r.heads % r.groups:
        raise FormatError(f"{get.gguf.path} has {r.heads} heads of {r.inner} values in all, {r.groups} groups of them, "
                          f"and states of {r.state}",
                          "edgetune takes heads and states of 16 to 128 values, by sixteens, in groups of equal size")


CHECKS: dict[str, Callable[[MetadataReader, RecurrentShape], None]] = {
    "delta net": _check_delta_net, "mamba": _check_mamba}


def check_sections(get: MetadataReader, n_rot: int) -> None:
    """Raises UnsupportedError unless positions in a text rotate all pairs of a head: pair i goes by section i mod 3, up
    to three times its size, and then by positions that are 0 in a text.
    """
    found = get.any("rope.dimension_sections")
    sections = [int(n) for n in found] if isinstance(found, list) and len(found) == 4 else [0] * 4
    total = sum(sections)
    if total < 1 or not all(pair % total < 3 * sections[pair % total % 3] for pair in range(n_rot // 2)):
        raise UnsupportedError(f"{get.gguf.path} has {get.arch}.rope.dimension_sections = {str(found)[:60]}",
                               f"edgetune takes four sections that rotate all {n_rot // 2} pairs")
