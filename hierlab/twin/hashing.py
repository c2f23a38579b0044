"""Randomness without a generator: integer hashes of (seed, region, name, cell).

Everything random in the twin is a hash of where it is, so that a pixel does not depend on which pixels were made
before it. Hashes are 32-bit words in ``np.uint32`` arrays; positions are 64-bit, so that cells far from the origin
are as different from each other as cells near it.
"""

import hashlib
from functools import lru_cache

import numpy as np

_MULTIPLIERS = np.uint32(0x7FEB352D), np.uint32(0x846CA68B)
_STRIDE = 0x9E3779B1


@lru_cache(maxsize=4096)
def key(*parts: int | str) -> np.uint32:
    """The 32-bit key of a tuple of Python integers (any size) and names."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=4).digest()
    return np.uint32(int.from_bytes(digest, "little"))


def _avalanche(h: np.ndarray) -> np.ndarray:
    """Spread every input bit over every output bit, in place."""
    h ^= h >> np.uint32(16)
    h *= _MULTIPLIERS[0]
    h ^= h >> np.uint32(15)
    h *= _MULTIPLIERS[1]
    h ^= h >> np.uint32(16)
    return h


def mix(k: np.uint32, i: np.ndarray, j: np.ndarray) -> np.ndarray:
    """Hash of integer cells (i, j), which broadcast; int64, any value. Returns uint32 of the broadcast shape.

    Each coordinate is hashed on its own first, so a lattice given as a row and a column costs little.
    """
    a, b = _coordinate(k, i), _coordinate(k ^ np.uint32(_STRIDE), j)
    return _avalanche(a ^ (b * np.uint32(0x85EBCA6B) + np.uint32(1)))


def _coordinate(k: np.uint32, i: np.ndarray) -> np.ndarray:
    i = np.atleast_1d(np.asarray(i, np.int64))
    low, high = (i & 0xFFFFFFFF).astype(np.uint32), (i >> 32 & 0xFFFFFFFF).astype(np.uint32)
    return _avalanche(_avalanche(low ^ k) + high)


def derive(h: np.ndarray, salt: int) -> np.ndarray:
    """Another hash, independent of ``h``, for each integer ``salt``."""
    return _avalanche(np.atleast_1d(h) ^ np.uint32((salt + 1) * _STRIDE & 0xFFFFFFFF))


def unit(h: np.ndarray, salt: int | None = None) -> np.ndarray:
    """float32 in [0, 1) from a hash (derived by ``salt`` first, if given)."""
    h = h if salt is None else derive(h, salt)
    return (h >> np.uint32(8)).astype(np.float32) * np.float32(2.0**-24)


def pick(h: np.ndarray, salt: int, low: float, high: float) -> np.ndarray:
    """float32, uniform in [low, high)."""
    return np.float32(low) + unit(h, salt) * np.float32(high - low)


def scalar(k: np.uint32, salt: int, low: float = 0.0, high: float = 1.0) -> float:
    """``pick`` for a single hash, as a Python float."""
    return float(pick(np.atleast_1d(k), salt, low, high)[0])
