"""Lengths of rows and of their common beginnings: what a plan knows of the data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from .forest import grow, shared
from .packing import Example, grouped_indices

FORWARD = 1 / 3  # of a step's time is its forward pass, about
VALUE = 8  # bytes: a float in memory, and again while it is written
PASSES = 32  # tokens that are computed in the time of unpacking the weights for a prefix's passes, about


@dataclass(frozen=True)
class Unit:
    """A row, or the rows of a group. Tokens: of its longest row; of all its rows; those to compute, with what its rows
    begin with alike once; those that all its rows begin with, 0 for one row alone. supervised: positions.
    """

    longest: int
    rows: int
    computed: int
    shared: int = 0
    supervised: int = 0

    @property
    def size(self) -> int:
        """The tokens that a micro-batch must take to hold it."""
        return max(self.computed, self.supervised)


@dataclass(frozen=True)
class Lengths:
    """Lengths of a run's rows. shared: tokens that all of them begin with. prompt: of the longest one, where the rows
    are answers that the model is to give. aside: of the longest document that is read with them: an answer after
    another prompt, a conversation in which the model grades answers. known: bytes of memory besides the plan's: what
    the reference model says of answers after other prompts, processes that grade.
    """

    units: tuple[Unit, ...] = ()
    shared: int = 0
    prompt: int = 0
    aside: int = 0
    known: int = 0

    @property
    def longest(self) -> int:
        """Tokens of the longest row; 0 without rows, as all that follows."""
        return max((unit.longest for unit in self.units), default=0) and max(
            self.aside, *(unit.longest for unit in self.units))

    @property
    def longest_group(self) -> int:
        """Tokens that a micro-batch must take to hold any group of rows."""
        return max([self.aside, *(unit.size for unit in self.units)])

    def largest(self, units: int) -> int:
        """Tokens that a micro-batch must take to hold any so large a batch."""
        own = sorted((unit.computed - self.shared for unit in self.units), reverse=True)[:units]
        supervised = sorted((unit.supervised for unit in self.units), reverse=True)[:units]
        return max(self.shared + sum(own), sum(supervised)) if own else 0

    @property
    def prefix(self) -> int:
        """Tokens that a prefix has at most which many rows wait for, all or those of a group."""
        return max([self.shared, *(unit.shared for unit in self.units)]) - 1

    def cut(self, max_length: int) -> Lengths:
        """Cuts rows to max_length tokens; groups, whose rows are not known one by one, stay too large."""
        units = tuple(Unit(*(min(n, max_length) for n in vars(unit).values())) if unit.rows == unit.longest
                      else replace(unit, longest=min(unit.longest, max_length)) for unit in self.units)
        return Lengths(units, min(self.shared, max_length), self.prompt, self.aside, self.known)

    def with_known(self, nbytes: int) -> Lengths:
        return replace(self, known=self.known + nbytes)

    def computed_share(self, batch: int, max_tokens: int, prefix: int = 0, passed_again: float = 1.0) -> float:
        """Tokens to compute, as a share of those of the rows, where a batch has `batch` units of mean size, and
        micro-batches take `max_tokens`. What comes after a prefix in several micro-batches pays for `prefix` of its
        tokens once, and for a forward pass more through `passed_again` of the blocks, a share. 1 without rows.
        """
        if not self.units:
            return 1.0
        count = len(self.units)
        own = sum(unit.computed for unit in self.units) / count - self.shared
        computed = self.shared + batch * own
        if computed > max_tokens:
            apart = min(prefix, self.shared)
            again = self.shared - apart  # in each micro-batch
            twice = sum(max(0, min(prefix, unit.shared) - self.shared) for unit in self.units if unit.size > max_tokens)
            fit = max(1, int((max_tokens - again) / max(own, 1)))
            computed = -(-batch // fit) * again + apart + batch * own
            computed += passed_again * FORWARD * (apart + batch * twice / count)
            computed += PASSES if prefix else 0
        return computed * count / (batch * sum(unit.rows for unit in self.units))


Given = Lengths | Sequence[int | tuple[int, ...]]
"""Lengths; or the tokens of rows, those of a group in a tuple, that begin with nothing alike."""


def lengths_of(*parts: Sequence[Example], share: bool = True, top: int = 0) -> Lengths:
    """Measures examples, in parts that have no group in common. share False: each computed whole. top: likeliest tokens
    that are to be known of each of their positions, if that is needed.
    """
    units: list[Unit] = []
    for examples in parts:
        for indices in grouped_indices(examples):
            units.append(_unit([examples[i] for i in indices], share))
    every = [example for examples in parts for example in examples]
    aside = max((example.longest for example in every if example.prompts), default=0)
    values = sum(example.supervised * (2 * top or 1 + len(example.prompts)) for example in every if example.prompts)
    return Lengths(tuple(units), _alike(every) if share else 0, aside=aside, known=values * VALUE)


def _unit(group: Sequence[Example], share: bool) -> Unit:
    rows = [example.tokens.size for example in group]
    computed = rows[0] if len(group) == 1 else grow([example.tokens for example in group], share).tokens.size
    supervised = sum(example.supervised for example in group)
    return Unit(max(rows), sum(rows), computed, _alike(group) if share else 0, supervised)


def _alike(rows: Sequence[Example]) -> int:
    """The number of tokens that all begin with, 0 for one alone."""
    return min((shared(rows[0].tokens, row.tokens) for row in rows[1:]), default=0)


def read_lengths(given: Given, max_length: int) -> Lengths:
    """Makes Lengths; rows of which the tokens alone are given are cut to max_length."""
    if isinstance(given, Lengths):
        return given
    units = []
    for row in given:
        sizes = [min(n, max_length) for n in (row if isinstance(row, tuple) else (row,))]
        units.append(Unit(max(sizes), sum(sizes), sum(sizes)))
    return Lengths(tuple(units))
