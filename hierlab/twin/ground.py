"""What lies on the ground, sample by sample, and the shapes that several parts of the world are drawn with."""

from dataclasses import dataclass, fields
from typing import NamedTuple

import numpy as np

from hierlab.twin.fields import Grid
from hierlab.twin.hashing import derive, pick, unit
from hierlab.twin.spectra import KIND, MATERIAL, PHASES, SOILS, mixtures, season

LEAVES = (
    *("paddy field", "dry cropland", "forest", "natural meadow", "artificial meadow", "river", "lake", "pond"),
    *("industrial area", "urban residential", "rural residential", "stadium", "park & square", "road", "overpass"),
    *("railway station", "airport", "bare land"),
)
LEAF = {name: n for n, name in enumerate(LEAVES)}


@dataclass
class Ground:
    """One value a sample, all of one shape: (H, W), or (N,) for a part of it.

    ``leaf`` is the class 0–17 and ``kind`` the finer one (``spectra.KINDS``); ``cover`` the share of the kind's top
    material at full growth, ``dirt`` the share of its third one, ``bright`` a factor on reflectance, ``height`` in
    metres, ``soil`` one of three soil types and ``phase`` how late the field's calendar is.
    """

    leaf: np.ndarray
    kind: np.ndarray
    cover: np.ndarray
    dirt: np.ndarray
    bright: np.ndarray
    height: np.ndarray
    soil: np.ndarray
    phase: np.ndarray

    @classmethod
    def blank(cls, shape: tuple[int, ...]) -> "Ground":
        integer, real = (np.zeros(shape, np.uint8) for _ in range(4)), (np.zeros(shape, np.float32) for _ in range(4))
        leaf, kind, soil, phase = integer
        return cls(leaf, kind, *real, soil, phase)

    def paint(self, where: np.ndarray, leaf: str | None = None, kind: str | np.ndarray | None = None, **values) -> None:
        """Overwrite what is ``where``: a leaf and kind by name (or an array of kind numbers), other fields by value."""
        if leaf is not None:
            self.leaf[where] = LEAF[leaf]
        if kind is not None:
            values["kind"] = KIND[kind] if isinstance(kind, str) else kind
        for name, value in values.items():
            np.copyto(getattr(self, name), value, where=where, casting="unsafe")

    def take(self, index: np.ndarray) -> "Ground":
        """The samples at a flat ``index``, as a copy."""
        return Ground(*(getattr(self, f.name).ravel()[index] for f in fields(self)))

    def put(self, index: np.ndarray, part: "Ground", keep: np.ndarray) -> None:
        """Write back those samples of ``part`` = ``take(index)`` that ``keep`` marks."""
        for f in fields(self):
            getattr(self, f.name).ravel()[index[keep]] = getattr(part, f.name)[keep]

    def materials(self, day: int) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """Material numbers and their fractions (they sum to 1) on a day of the year: two lists of three arrays."""
        green, straw = season(day)
        when = self.kind.astype(np.int64) * PHASES + self.phase
        top, under, third = (m[self.kind] for m in mixtures())
        under = np.where(under == _DARK_SOIL, under + self.soil % SOILS, under)
        first = np.clip(self.cover * green[when], 0, 1)
        last = (1 - first) * np.clip(self.dirt + straw[when], 0, 1)
        return [top, under, third], [first, 1 - first - last, last]


_DARK_SOIL = MATERIAL["dark soil"]


class Boxes(NamedTuple):
    """The rectangle that each sample falls in: its hash and its sides."""

    h: np.ndarray
    u0: np.ndarray
    u1: np.ndarray
    v0: np.ndarray
    v1: np.ndarray

    def edge(self, u: np.ndarray, v: np.ndarray) -> np.ndarray:
        """Distance to the nearest side."""
        return np.minimum(np.minimum(u - self.u0, self.u1 - u), np.minimum(v - self.v0, self.v1 - v))

    @property
    def area(self) -> np.ndarray:
        return (self.u1 - self.u0) * (self.v1 - self.v0)

    @property
    def centre(self) -> tuple[np.ndarray, np.ndarray]:
        return (self.u0 + self.u1) * np.float32(0.5), (self.v0 + self.v1) * np.float32(0.5)


def squares(u: np.ndarray, v: np.ndarray, size: np.ndarray | float, h: np.ndarray) -> Boxes:
    """Squares of a regular grid in the frame (u, v); their hashes follow from ``h`` and their place."""
    iu, iv = np.floor(u / size), np.floor(v / size)
    number = (iu.astype(np.int64) * 0x8DA6B343 + iv.astype(np.int64) * 0xD8163841) & 0xFFFFFFFF
    u0, v0 = (iu * size).astype(np.float32), (iv * size).astype(np.float32)
    return Boxes(
        derive(h ^ number.astype(np.uint32), 3), u0, (u0 + size).astype(np.float32), v0, (v0 + size).astype(np.float32)
    )


def cut(
    boxes: Boxes, u: np.ndarray, v: np.ndarray, target: np.ndarray | float, depth: int, jitter: float = 0.22
) -> Boxes:
    """Cut rectangles across their longer side, again and again, until they are near ``target`` square metres."""
    h, u0, u1, v0, v1 = boxes
    for level in range(depth):
        du, dv = u1 - u0, v1 - v0
        on = du * dv > target * (np.float32(0.7) + unit(h))
        if not on.any():
            break
        share = np.float32(0.5 - jitter / 2) + np.float32(jitter) * unit(h, 1)
        tall = du <= dv * np.float32(1.1)
        place = np.where(tall, v0 + dv * share, u0 + du * share)
        beyond = np.where(tall, v, u) > place
        across, along = on & ~tall, on & tall
        u0, u1 = np.where(across & beyond, place, u0), np.where(across & ~beyond, place, u1)
        v0, v1 = np.where(along & beyond, place, v0), np.where(along & ~beyond, place, v1)
        h = np.where(on, derive(h + beyond, 20 + level), h)
    return Boxes(h, u0, u1, v0, v1)


def choose(h: np.ndarray, salt: int, names: list[str]) -> np.ndarray:
    """One of several kinds, by hash: an array of kind numbers."""
    table = np.array([KIND[n] for n in names], np.uint8)
    return table[np.minimum(pick(h, salt, 0, len(names)).astype(np.int64), len(names) - 1)]


def distance(grid: Grid, lines: np.ndarray, reach: float, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Signed distance (H, W) in metres to the edge of the nearest line, clamped at ``reach``; negative inside.

    ``lines`` (N, 5 or 6): x0, y0, x1, y1 and the half width, at the start and, if given, at the end. ``x``, ``y``
    are the samples' coordinates, at most 40 m away from those of the grid.
    """
    out = np.full(grid.shape, np.float32(reach))
    rows, columns = grid.shape
    slack = reach + 40
    for line in lines:
        x0, y0, x1, y1, w0, w1 = (float(n) for n in (*line, line[-1])[:6])
        pad = slack + max(w0, w1)
        a = max(int((min(x0, x1) - pad - float(grid.x[0])) / grid.step), 0)
        b = min(int((max(x0, x1) + pad - float(grid.x[0])) / grid.step) + 2, columns)
        c = max(int((min(y0, y1) - pad - float(grid.y[0])) / grid.step), 0)
        d = min(int((max(y0, y1) + pad - float(grid.y[0])) / grid.step) + 2, rows)
        if a >= b or c >= d:
            continue
        window = np.s_[c:d, a:b]
        vx, vy = x1 - x0, y1 - y0
        square = max(vx * vx + vy * vy, 1e-6)
        px, py = x[window] - np.float32(x0), y[window] - np.float32(y0)
        t = px * np.float32(vx / square)
        t += py * np.float32(vy / square)
        np.clip(t, 0, 1, out=t)
        px -= t * np.float32(vx)
        py -= t * np.float32(vy)
        px *= px
        py *= py
        px += py
        np.sqrt(px, out=px)
        px -= np.float32(w0) if w0 == w1 else np.float32(w0) + t * np.float32(w1 - w0)
        np.minimum(out[window], px, out=out[window])
    return out
