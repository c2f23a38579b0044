"""Smooth random fields, and the frame that a canonical tile is computed in."""

from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from functools import cached_property

import numpy as np
import torch

from hierlab.twin.arrays import matmul
from hierlab.twin.hashing import key, mix, unit

_SPLINE_GAIN = 7.24  # makes the cubic B-spline of a uniform lattice have variance 1
_VALUE_GAIN = 4.66  # the same for the smoothed bilinear one
_DENSE = 96  # lattice points a side up to which interpolation is done as a matrix product


@dataclass(frozen=True)
class Grid:
    """Sample centres of one tile: an integer anchor in metres and small offsets from it.

    ``ax``, ``ay`` are Python integers, so positions are exact however far from the origin; x grows to the east
    and y to the south, as columns and rows do. ``x`` (W,) and ``y`` (H,) are float32 metres from the anchor, ``step``
    the metres between samples, and ``year`` is when the world is looked at.
    """

    seed: int
    region: int
    ax: int
    ay: int
    x: np.ndarray
    y: np.ndarray
    step: float
    year: int = 2020
    device = None  # fields are made by NumPy

    @classmethod
    def of(cls, seed: int, region: int, column: int, row: int, size: int, step_mm: int, year: int = 2020) -> "Grid":
        """``size`` × ``size`` samples whose first one has the index (column, row) on the grid of ``step_mm``."""
        ax, fx = divmod(column * step_mm, 1000)
        ay, fy = divmod(row * step_mm, 1000)
        offsets = (np.arange(size) + 0.5) * (step_mm / 1000)
        x, y = (offsets + fx / 1000).astype(np.float32), (offsets + fy / 1000).astype(np.float32)
        return cls(seed, region, ax, ay, x, y, step_mm / 1000, year)

    @property
    def shape(self) -> tuple[int, int]:
        return len(self.y), len(self.x)

    @cached_property
    def mesh(self) -> tuple[np.ndarray, np.ndarray]:
        """x and y of every sample, each (H, W) float32."""
        return tuple(np.ascontiguousarray(a) for a in np.broadcast_arrays(self.x[None], self.y[:, None]))

    def noise(self, name: str, scale: float, octaves: int = 1, gain: float = 0.5) -> np.ndarray:
        """A field (H, W) float32 of mean 0 and variance 1 whose features span two to three ``scale`` metres.

        The cubic B-spline of a hashed lattice, separable; every further octave has half the scale and ``gain``
        times the amplitude. Every octave is there at any GSD, so that a coarse grid holds samples of the same
        field as a fine one. ``scale`` is a whole number of millimetres.
        """
        below, across, dense = [], [], []
        for lattice, i, j, wx, wy in self._octaves(name, scale, octaves, gain):
            rows, columns = lattice.shape
            if rows <= _DENSE and columns <= _DENSE:
                across.append(lattice @ _matrix(i, wx, columns).T)
                below.append(_matrix(j, wy, rows))
            else:
                dense.append(_taps(lattice.astype(np.float32), i, j, wx, wy))
        if across:
            dense.append((np.concatenate(below, 1) @ np.concatenate(across)).astype(np.float32))
        return sum(dense[1:], dense[0])

    def _octaves(self, name: str, scale: float, octaves: int, gain: float) -> Iterator[tuple]:
        """Of each octave of ``noise``: the lattice, the first points of columns and rows, and their weights."""
        power = sum(gain ** (2 * octave) for octave in range(octaves)) ** 0.5
        for octave in range(octaves):
            width = max(round(1000 * scale) >> octave, 1)
            k = key(self.seed, self.region, name, octave)
            i, wx, columns = _spline(self.ax, self.x, width)
            j, wy, rows = _spline(self.ay, self.y, width)
            lattice = unit(mix(k, columns[None], rows[:, None])) - np.float32(0.5)
            yield lattice * (_SPLINE_GAIN * gain**octave / power), i, j, wx, wy

    def zeros(self) -> np.ndarray:
        """A field (H, W) float32 that is 0 everywhere."""
        return np.zeros(self.shape, np.float32)

    def smooth(self, name: str, scale: int) -> np.ndarray:
        """The field of ``scattered`` at every sample (H, W), but for rounding."""
        (i, t), (j, s) = _cell(self.ax % scale, self.x, scale), _cell(self.ay % scale, self.y, scale)
        columns, rows = self.ax // scale + np.arange(i[0], i[-1] + 2), self.ay // scale + np.arange(j[0], j[-1] + 2)
        k = key(self.seed, self.region, name)
        lattice = (unit(mix(k, columns[None], rows[:, None])) - np.float32(0.5)) * _VALUE_GAIN
        wx, wy = (_matrix(n - n[0], [1 - f, f], len(c)) for n, f, c in ((i, t, columns), (j, s, rows)))
        return (wy @ (lattice @ wx.T)).astype(np.float32)

    def scattered(self, name: str, scale: int, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """``scattered`` of this grid's world at points (x, y) in metres from its anchor."""
        return scattered(key(self.seed, self.region, name), scale, self.ax, self.ay, x, y)

    def on(self, device: torch.device | None) -> "Grid":
        """The same grid, whose ``noise`` is made on a torch device; itself for None."""
        if device is None:
            return self
        return DeviceGrid(*(getattr(self, f.name) for f in fields(Grid)), device=device)


@dataclass(frozen=True)
class DeviceGrid(Grid):
    """A grid whose fields are tensors on ``device``, equal to NumPy's but for rounding (some 10⁻⁶)."""

    device: torch.device = field(kw_only=True)

    def noise(self, name: str, scale: float, octaves: int = 1, gain: float = 0.5) -> torch.Tensor:
        """``Grid.noise`` as a tensor (H, W) float32."""
        total = self.zeros()
        for lattice, i, j, wx, wy in self._octaves(name, scale, octaves, gain):
            rows, columns = lattice.shape
            across = matmul(self._put(lattice), self._put(_matrix(i, wx, columns)).T)
            total += matmul(self._put(_matrix(j, wy, rows)), across)
        return total

    def zeros(self) -> torch.Tensor:
        return torch.zeros(self.shape, device=self.device)

    def _put(self, values: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(values.astype(np.float32)).to(self.device)


def _spline(anchor: int, offsets: np.ndarray, width: int) -> tuple[np.ndarray, list[np.ndarray], np.ndarray]:
    """First lattice point of each offset, its four weights, and the lattice's indices; ``width`` in millimetres."""
    first, rest = divmod(anchor * 1000, width)
    u = (rest + offsets.astype(np.float64) * 1000) / width
    i = np.floor(u).astype(np.int64)
    t = u - i
    s = 1 - t
    weights = [s**3 / 6, (3 * t**3 - 6 * t**2 + 4) / 6, (3 * s**3 - 6 * s**2 + 4) / 6, t**3 / 6]
    return i - i[0], weights, first + np.arange(i[0] - 1, i[-1] + 3)


def _matrix(i: np.ndarray, weights: list[np.ndarray], size: int) -> np.ndarray:
    """Interpolation as a matrix (N, size) float64: row n holds the weights from column ``i[n]`` on."""
    out = np.zeros((len(i), size))
    for n, w in enumerate(weights):
        out[np.arange(len(i)), i + n] = w
    return out


def _taps(lattice: np.ndarray, i: np.ndarray, j: np.ndarray, wx: list, wy: list) -> np.ndarray:
    """The same for lattices nearly as dense as the samples, one weight after the other."""
    across = sum(w.astype(np.float32) * lattice.take(i + n, 1) for n, w in enumerate(wx))
    total = np.zeros((len(j), len(i)), np.float32)
    for n, w in enumerate(wy):
        rows = across.take(j + n, 0)
        rows *= w.astype(np.float32)[:, None]
        total += rows
    return total


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
