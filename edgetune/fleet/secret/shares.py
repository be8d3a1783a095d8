"""Shares of secrets: any `threshold` of them give a secret back, fewer say nothing of it.

Shamir's ("How to Share a Secret", CACM 1979) over the field of 256 elements, each byte alone: share x of a secret is
the value at x of a random polynomial of degree threshold - 1, whose value at 0 is the secret. N holders, S secrets.
"""

from __future__ import annotations

import secrets as random_source
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

MOST = 255  # holders: the elements of the field but 0
_POLYNOMIAL = 0x11B  # x^8 + x^4 + x^3 + x + 1, by which products are reduced
_GENERATOR = 3
Bytes = NDArray[np.uint8]


def _tables() -> tuple[Bytes, NDArray[np.int64]]:
    """Powers of the generator, [510], and logarithms, [256], of which the first is not used."""
    powers = np.zeros(2 * MOST, np.uint8)
    logs = np.zeros(MOST + 1, np.int64)
    value = 1
    for exponent in range(MOST):
        powers[exponent] = powers[exponent + MOST] = value
        logs[value] = exponent
        doubled = value << 1
        value = (doubled ^ (_POLYNOMIAL if doubled > MOST else 0)) ^ value
    return powers, logs


_POWERS, _LOGS = _tables()


def _times(values: Bytes, factor: int) -> Bytes:
    """Products in the field."""
    if not factor:
        return np.zeros_like(values)
    found: Bytes = _POWERS[_LOGS[values] + _LOGS[factor]]
    found[values == 0] = 0
    return found


def divide(secrets: Bytes, holders: int, threshold: int) -> Bytes:
    """The shares [N, S, bytes] of secrets [S, bytes]: those of holder i are at i."""
    assert 1 <= threshold <= holders <= MOST
    drawn = np.frombuffer(random_source.token_bytes((threshold - 1) * secrets.size), np.uint8)
    coefficients = drawn.reshape(threshold - 1, *secrets.shape)
    shares = np.empty((holders, *secrets.shape), np.uint8)
    for holder in range(holders):
        value = np.zeros_like(secrets)
        for coefficient in coefficients[::-1]:
            value = _times(value ^ coefficient, holder + 1)
        shares[holder] = value ^ secrets
    return shares


def join(shares: Mapping[int, Bytes]) -> Bytes:
    """The secrets, from the shares of `threshold` holders, all of one shape. By Lagrange's polynomials at 0."""
    secrets = np.zeros_like(next(iter(shares.values())))
    for holder, share in shares.items():
        weight = 0  # logarithm of the product of x / (x - own) over the others, where minus is exclusive or
        for other in shares:
            if other != holder:
                weight += int(_LOGS[other + 1]) - int(_LOGS[(other + 1) ^ (holder + 1)])
        secrets ^= _times(share, int(_POWERS[weight % MOST]))
    return secrets
