"""Sums in secret: an aggregator learns the sum of all vectors, and of one device only that it took part.

Bonawitz et al., "Practical Secure Aggregation for Privacy-Preserving Machine Learning", CCS 2017, with two exchanges in
place of four, since the devices' keys last. Two devices u and v derive a seed that only they know, from their X25519
keys and the round. From it u adds a mask and v takes it away. Each adds an own mask, too, and gives shares of its
seeds to the others (shares.py), sealed for each.

Who answered leaves its own mask in the sum, which must go: the others reveal their shares of that seed. Who did not has
left masks in the others' vectors: the others reveal their shares of the seeds with it. Of no device may both become
known, so a device reveals once a round. To tell devices different lists of who answered helps a lying aggregator only
where the threshold is at most (N + C) / 2, C of the N devices being with it. `least_threshold` is safe up to a third.

A lying device can spoil the sum, as it could with any vector; it learns nothing. Shares that are not those that were
dealt are found by their digests and left out, and so is who gave them.
"""

from __future__ import annotations

import hashlib
import secrets as random_source
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ...errors import FormatError, MismatchError, UsageError
from .shares import MOST, Bytes, divide, join

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
    from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

Words = NDArray[np.uint32]
KEY = 32  # bytes of keys and seeds
DIGEST = 16  # bytes of a share's digest
PIECE = 1 << 16  # words of a mask that are made at a time


def least_threshold(devices: int) -> int:
    """Devices that must answer and reveal."""
    return 2 * devices // 3 + 1


@dataclass(frozen=True)
class Circle:
    """The N devices of a round. keys: their public X25519 keys, by which they are numbered; round: 32 bytes that no
    other round has; names: of the devices, for people, or none. Raises UsageError for a threshold out of range,
    FormatError for keys that are none.
    """

    keys: tuple[bytes, ...]
    round: bytes
    threshold: int
    names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        n = len(self.keys)
        if not 2 <= n <= MOST:
            raise UsageError(f"{n} devices would sum in secret", f"it takes 2 to {MOST}")
        if not n / 2 < self.threshold <= n:
            raise UsageError(f"the threshold is {self.threshold} of {n} devices",
                             f"choose from {n // 2 + 1} to {n}; {least_threshold(n)} is usual")
        if len(set(self.keys)) < n or any(len(key) != KEY for key in self.keys):
            raise FormatError("the keys of a round's devices are not different ones of 32 bytes", "make the task again")

    def name(self, number: int) -> str:
        return self.names[number] if self.names else f"device {number}"


@dataclass(frozen=True)
class Masked:
    """What a device sends. words: its vector [V] under masks; sealed: for each device its shares; digests: of each
    share, [N, S, DIGEST], where S = N + 1: its own seed's, then those of the seeds with each device.
    """

    words: Words
    sealed: tuple[bytes, ...]
    digests: Bytes


@dataclass(frozen=True)
class Revealed:
    """What a device reveals, 32 bytes each. own: its shares of the own seeds of those that answered, by number. shared:
    its shares of the seeds of (who answered, who did not).
    """

    own: Mapping[int, bytes] = field(default_factory=dict)
    shared: Mapping[tuple[int, int], bytes] = field(default_factory=dict)


class Member:
    """One device of a circle. Raises MismatchError for a key that is not in it."""

    def __init__(self, circle: Circle, key: X25519PrivateKey) -> None:
        public = key.public_key().public_bytes_raw()
        if public not in circle.keys:
            raise MismatchError("this device is not among those of the round", "join the fleet, or wait for a round")
        self.circle = circle
        self.number = circle.keys.index(public)
        self._key = key

    def mask(self, words: Words) -> Masked:
        """words: [V], its vector."""
        n = len(self.circle.keys)
        own = random_source.token_bytes(KEY)
        seeds = [self._seed(other) for other in range(n)]
        masked = words.copy()
        _add(masked, own, True)
        for other in range(n):
            if other != self.number:
                _add(masked, seeds[other], self.number < other)
        secrets = np.frombuffer(own + b"".join(seeds), np.uint8).reshape(n + 1, KEY)
        shares = divide(secrets, n, self.circle.threshold)
        sealed = tuple(self._cipher(other, self.number).encrypt(bytes(12), shares[other].tobytes(), None)
                       for other in range(n))
        return Masked(masked, sealed, _digests(self.circle, self.number, shares))

    def reveal(self, answered: Mapping[int, bytes]) -> Revealed:
        """answered: of each device that answered, what it has sealed for this one.

        It must be called once a round: a second list of who answered would tell too much. Raises UsageError where too
        few answered, or this device did not. What cannot be opened, it does not reveal.
        """
        n = len(self.circle.keys)
        if len(answered) < self.circle.threshold or self.number not in answered or max(answered) >= n:
            raise UsageError(f"{len(answered)} of {n} devices have answered, and {self.circle.threshold} must, this "
                             "one among them", "take no part in this round")
        dropped = [other for other in range(n) if other not in answered]
        own = {}
        shared: dict[tuple[int, int], bytes] = {}
        for dealer, sealed in answered.items():
            shares = self._opened(dealer, sealed)
            if shares is None:
                continue
            own[dealer] = shares[0].tobytes()
            shared |= {(dealer, other): shares[1 + other].tobytes() for other in dropped}
        return Revealed(own, shared)

    def _opened(self, dealer: int, sealed: bytes) -> Bytes | None:
        """The shares [S, KEY] that a device has dealt to this one; None where they were not sealed by it, for it."""
        from cryptography.exceptions import InvalidTag
        n = len(self.circle.keys)
        try:
            opened = self._cipher(self.number, dealer).decrypt(bytes(12), sealed, None)
        except (InvalidTag, ValueError):
            return None
        if len(opened) != (n + 1) * KEY:
            return None
        return np.frombuffer(opened, np.uint8).reshape(n + 1, KEY)

    def _seed(self, other: int) -> bytes:
        """The seed that this device has with another one in this round; with itself it is one that nobody uses."""
        return self._derived(other, b"mask")

    def _cipher(self, holder: int, dealer: int) -> ChaCha20Poly1305:
        """What seals shares from a dealer for a holder, one of which is this device; each key seals one message."""
        from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
        other = dealer if holder == self.number else holder
        return ChaCha20Poly1305(self._derived(other, b"shares %d %d" % (dealer, holder)))

    def _derived(self, other: int, purpose: bytes) -> bytes:
        from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PublicKey
        from cryptography.hazmat.primitives.hashes import SHA256
        from cryptography.hazmat.primitives.kdf.hkdf import HKDF
        agreed = self._key.exchange(X25519PublicKey.from_public_bytes(self.circle.keys[other]))
        return HKDF(SHA256(), KEY, self.circle.round, b"edgetune fleet " + purpose).derive(agreed)


def total(circle: Circle, masked: Mapping[int, Masked], revealed: Mapping[int, Revealed]) -> tuple[Words, list[int]]:
    """The sum [V] modulo 2^32 of the vectors of all that answered, and the devices that revealed what was not dealt.

    masked: of all that answered, by number, each looked at twice; revealed: of those that revealed. Raises
    MismatchError where fewer than the threshold did, or shares of a device are wrong because of itself.
    """
    dropped = [other for other in range(len(circle.keys)) if other not in masked]
    checked = _Checked(circle, masked, revealed)
    summed = np.zeros(next(iter(masked.values())).words.size, np.uint32)
    for number, sent in masked.items():
        summed += sent.words
        _add(summed, checked.own(number), False)
        for other in dropped:
            _add(summed, checked.seed(number, other), number > other)
    return summed, sorted(checked.liars)


class _Checked:
    """What was revealed, as far as it is what was dealt."""

    def __init__(self, circle: Circle, masked: Mapping[int, Masked], revealed: Mapping[int, Revealed]) -> None:
        self._circle = circle
        self._digests = {number: sent.digests for number, sent in masked.items()}
        self._revealed = revealed
        self.liars: set[int] = set()

    def own(self, number: int) -> bytes:
        return self._joined(number, 0, ((holder, said.own.get(number)) for holder, said in self._revealed.items()))

    def seed(self, number: int, other: int) -> bytes:
        """The seed of a device that answered with one that did not."""
        return self._joined(number, 1 + other, ((holder, said.shared.get((number, other)))
                                                for holder, said in self._revealed.items()))

    def _joined(self, dealer: int, secret: int, shares: Iterator[tuple[int, bytes | None]]) -> bytes:
        right: dict[int, Bytes] = {}
        for holder, share in shares:
            if share is None:
                continue
            digest = _digest(self._circle, dealer, holder, secret, share)
            if digest != self._digests[dealer][holder, secret].tobytes():
                self.liars.add(holder)
            elif len(right) < self._circle.threshold:
                right[holder] = np.frombuffer(share, np.uint8)
        if len(right) < self._circle.threshold:
            raise MismatchError(f"{len(right)} devices have revealed right shares of {self._circle.name(dealer)}, "
                                f"and {self._circle.threshold} must", "wait for more, or repeat the round without it")
        return join(right).tobytes()


def _add(words: Words, seed: bytes, adds: bool) -> None:
    """Adds a mask to the words, or takes it away: ChaCha20's key stream (RFC 8439), which nobody can tell from random
    words without the seed.
    """
    from cryptography.hazmat.primitives.ciphers import Cipher
    from cryptography.hazmat.primitives.ciphers.algorithms import ChaCha20
    cipher = Cipher(ChaCha20(seed, bytes(16)), None).encryptor()
    for at in range(0, words.size, PIECE):
        piece = words[at:at + PIECE]
        mask = np.frombuffer(cipher.update(bytes(4 * piece.size)), "<u4")
        if adds:
            piece += mask
        else:
            piece -= mask


def _digests(circle: Circle, dealer: int, shares: Bytes) -> Bytes:
    """Returns the digests [N, S, DIGEST] of shares [N, S, KEY]."""
    holders, secrets, _ = shares.shape
    found = b"".join(_digest(circle, dealer, holder, secret, shares[holder, secret].tobytes())
                     for holder in range(holders) for secret in range(secrets))
    return np.frombuffer(found, np.uint8).reshape(holders, secrets, DIGEST)


def _digest(circle: Circle, dealer: int, holder: int, secret: int, share: bytes) -> bytes:
    place = b"%d %d %d " % (dealer, holder, secret)
    return hashlib.sha256(circle.round + place + share).digest()[:DIGEST]


