"""Shares of sources: rows in proportion to each one's size, of which a cap counts at most (Raffel et al. 2020, arXiv
1910.10683), or to a weight that a person chose.
"""

from __future__ import annotations

from collections.abc import Mapping


def proportional(total: int, sizes: Mapping[str, int], cap: int = 0, weights: Mapping[str, float] | None = None,
                 ) -> dict[str, int]:
    """{source: rows} whose sum is `total`, or all rows where there are fewer; none gives more than it has.

    sizes: rows of each source. cap: rows of a source that count at most for its share; 0: all. weights: in place of
    the sizes, for the sources in it. What a small source cannot give is divided among the others.
    """
    given = dict.fromkeys(sizes, 0)
    weight = {name: float((weights or {}).get(name, min(size, cap) if cap else size)) for name, size in sizes.items()}
    left = min(total, sum(size for name, size in sizes.items() if weight[name] > 0))
    while left > 0:
        free = {name: weight[name] for name, size in sizes.items() if weight[name] > 0 and given[name] < size}
        for name, part in _divided(left, free).items():
            given[name] = min(sizes[name], given[name] + part)
        left = min(total, sum(size for name, size in sizes.items() if weight[name] > 0)) - sum(given.values())
    return given


def _divided(total: int, weights: Mapping[str, float]) -> dict[str, int]:
    """`total` in whole numbers by weights, the largest remainders rounded up (Hamilton's method)."""
    whole = sum(weights.values())
    exact = {name: total * weight / whole for name, weight in weights.items()}
    parts = {name: int(value) for name, value in exact.items()}
    for name in sorted(weights, key=lambda name: (parts[name] - exact[name], name))[:total - sum(parts.values())]:
        parts[name] += 1
    return parts
