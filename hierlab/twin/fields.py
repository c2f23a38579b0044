"""Smooth random fields, and the frame that a canonical tile is computed in."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from hierlab.twin.hashing import key, mix, unit

_SPLINE_GAIN = 7.24  # makes the cubic B-spline of a uniform lattice have variance 1
_VALUE_GAIN = 4.66  # the same for the smoothed bilinear one


@dataclass(frozen=True)
class Grid:
    """Sample centres of one tile: an integer anchor in metres and small offsets from it.

    ``ax``, ``ay`` are Python integers, so positions are exact however far from the origin; x grows to the east
    and y to the south, as columns and rows do. ``x`` (W,) and ``y`` (H,) are float32 metres from the anchor.
    """

    seed: int
    region: int
    ax: int
    ay: int
    x: np.ndarray
    y: np.ndarray
    step: float

    @classmethod
    def of(cls, seed: int, region: int, column: int, row: int, size: int, step_mm: int) -> "Grid":
        """``size`` × ``size`` samples whose first one has the index (column, row) on the grid of ``step_mm``."""
        ax, fx = divmod(column * step_mm, 1000)
        ay, fy = divmod(row * step_mm, 1000)
        offsets = (np.arange(size) + 0.5) * (step_mm / 1000)
        x, y = (offsets + fx / 1000).astype(np.float32), (offsets + fy / 1000).astype(np.float32)
        return cls(seed, region, ax, ay, x, y, step_mm / 1000)

    @property
    def shape(self) -> tuple[int, int]:
        return len(self.y), len(self.x)

    @cached_property
    def mesh(self) -> tuple[np.ndarray, np.ndarray]:
        """x and y of every sample, each (H, W) float32."""
        return tuple(np.ascontiguousarray(a) for a in np.broadcast_arrays(self.x[None], self.y[:, None]))

    def noise(self, name: str, scale: int, octaves: int = 1, gain: float = 0.5) -> np.ndarray:
        """A field (H, W) of mean 0 and variance 1 whose features span two to three ``scale`` metres.

        The cubic B-spline of a hashed lattice, separable; every further octave has half the scale and ``gain``
        times the amplitude. Every octave is there at any GSD, so that a coarse grid holds samples of the same
        field as a fine one.
        """
        total, power = np.zeros(self.shape, np.float32), 0.0
        for octave in range(octaves):
            amplitude = gain**octave
            power += amplitude**2
            self._add_octave(total, key(self.seed, self.region, name, octave), max(scale >> octave, 1), amplitude)
        total /= np.float32(power**0.5)
        return total

    def _add_octave(self, total: np.ndarray, k: np.uint32, scale: int, amplitude: float) -> None:
        i, wx = _spline(self.ax % scale, self.x, scale)
        j, wy = _spline(self.ay % scale, self.y, scale)
        columns = self.ax // scale + np.arange(i[0] - 1, i[-1] + 3)
        rows = self.ay // scale + np.arange(j[0] - 1, j[-1] + 3)
        lattice = (unit(mix(k, columns[None], rows[:, None])) - np.float32(0.5)) * np.float32(_SPLINE_GAIN * amplitude)
        i, j = i - i[0], j - j[0]
        across = sum(wx[n] * lattice.take(i + n, 1) for n in range(4))
        for n in range(4):
            rows = across.take(j + n, 0)
            rows *= wy[n][:, None]
            total += rows

    def scattered(self, name: str, scale: int, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """``scattered`` of this grid's world at points (x, y) in metres from its anchor."""
        return scattered(key(self.seed, self.region, name), scale, self.ax, self.ay, x, y)


def _spline(origin: int, offsets: np.ndarray, scale: int) -> tuple[np.ndarray, list[np.ndarray]]:
    u = (origin + offsets.astype(np.float64)) / scale
    i = np.floor(u).astype(np.int64)
    t = (u - i).astype(np.float32)
    s = 1 - t
    return i, [s**3 / 6, (3 * t**3 - 6 * t**2 + 4) / 6, (3 * s**3 - 6 * s**2 + 4) / 6, t**3 / 6]


def scattered(k: np.uint32, scale: int, ax: int, ay: int, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """A field of mean 0 and variance 1 at arbitrary points, metres from the integer anchor (ax, ay).

    For points that are whole metres in float64 or int64 the value does not depend on the anchor, bit for bit.
    """
    (i, t), (j, s) = _cell(ax % scale, x, scale), _cell(ay % scale, y, scale)
    i0, j0 = int(i.min()), int(j.min())
    columns = ax // scale + np.arange(i0, int(i.max()) + 2)
    rows = ay // scale + np.arange(j0, int(j.max()) + 2)
    lattice = (unit(mix(k, columns[None], rows[:, None])) - np.float32(0.5)) * np.float32(_VALUE_GAIN)
    flat, width = lattice.ravel(), lattice.shape[1]
    n = (j - j0) * width + (i - i0)
    top = flat[n] + t * (flat[n + 1] - flat[n])
    n += width
    return top + s * (flat[n] + t * (flat[n + 1] - flat[n]) - top)


def _cell(origin: int, offsets: np.ndarray, scale: int) -> tuple[np.ndarray, np.ndarray]:
    p = offsets + np.asarray(origin, offsets.dtype)
    i = np.floor(p / scale)
    t = (p - i * scale) / scale
    return i.astype(np.int64), t * t * t * (t * (t * 6 - 15) + 10)
