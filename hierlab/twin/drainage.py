"""Rivers that join, and lakes: a graph on jittered nodes at two scales, cached by block.

Every node drains to the lowest of its eight neighbours. Elevations are integers, computed relative to the block in
a way that does not depend on the block, and an edge belongs to the block of its upper node, so that no edge is
ever computed twice. A river grows with the number of nodes above it, counted up to ``hops`` steps.

Positions in a block are float64 metres from its corner, multiples of 1/8 m, so that moving them to another origin
is exact.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from scipy.spatial import cKDTree

from hierlab.twin.fields import scattered
from hierlab.twin.hashing import key, mix, pick, scalar, unit

_NEIGHBOURS = [(-1, -1), (-1, 0), (-1, 1), (0, -1), (0, 1), (1, -1), (1, 0), (1, 1)]


@dataclass(frozen=True)
class Level:
    """One scale of the drainage. Lengths in metres; ``nodes`` a block side; ``hops`` the reach of accumulation."""

    name: str
    cell: int
    nodes: int
    hops: int
    pieces: int  # straight pieces an edge
    wobble: float  # sideways displacement as a share of the edge

    @property
    def block(self) -> int:
        return self.cell * self.nodes

    @property
    def reach(self) -> int:
        """How far an edge may leave the block of its upper node, with its banks."""
        return 3 * self.cell


RIVER = Level("river", 6000, 4, 9, 36, 0.24)
STREAM = Level("stream", 1100, 8, 8, 10, 0.2)
LEVELS = (RIVER, STREAM)
_VALLEY = 5000  # metres over which the land falls towards a river
_BANK = 650  # a stream node nearer than this to a river ends in it
LAKE_MARGIN = 2.4  # a lake reaches at most this many times its radius


class Water(NamedTuple):
    """``courses`` (N, 6): x0, y0, x1, y1, half width at both ends; ``lakes`` (M, 5): x, y, radius, and the
    direction and square root of the ratio of their longer axis. Metres and radians."""

    courses: np.ndarray
    lakes: np.ndarray

    def moved(self, dx: int, dy: int) -> "Water":
        courses = self.courses + np.array([dx, dy, dx, dy, 0, 0], np.float64)
        return Water(courses, self.lakes + np.array([dx, dy, 0, 0, 0], np.float64))


def nodes(k: np.uint32, cell: int, i: np.ndarray, j: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Jitter in whole metres (float64) inside the cells (i, j), and the hash of each node."""
    h = mix(k, i, j)
    return (
        np.floor(pick(h, 1, 0.12, 0.88) * cell).astype(float),
        np.floor(pick(h, 2, 0.12, 0.88) * cell).astype(float),
        h,
    )


def downstream(e: np.ndarray) -> np.ndarray:
    """For elevations (n, n) the flat index of the lowest neighbour if it is lower, else -1 (always on the rim)."""
    n = len(e)
    index = np.arange(n * n).reshape(n, n)
    best, to = e[1:-1, 1:-1].copy(), np.full((n - 2, n - 2), -1)
    for dj, di in _NEIGHBOURS:
        window = np.s_[1 + dj : n - 1 + dj, 1 + di : n - 1 + di]
        lower = e[window] < best
        best[lower], to[lower] = e[window][lower], index[window][lower]
    out = np.full((n, n), -1)
    out[1:-1, 1:-1] = to
    return out


def _accumulate(to: np.ndarray, hops: int) -> np.ndarray:
    """Number of nodes (self included) at most ``hops`` steps upstream of each node; ``to`` flat."""
    flows, total = to >= 0, np.ones(len(to))
    for _ in range(hops):
        total = 1 + np.bincount(to[flows], total[flows], len(to))
    return total


def _curves(level: Level, start, p, to, total, hashes, half_width) -> np.ndarray:
    """Courses (N·pieces, 6) from the nodes ``start`` to where they drain: Hermite curves with hashed meanders."""
    order = np.argsort(total, kind="stable")
    order = order[to[order] >= 0]
    above = np.full(len(to), -1)
    above[to[order]] = order  # the last one written is the largest
    self_ = np.arange(len(to))
    to_next, from_last = p[np.where(to >= 0, to, self_)] - p, p - p[np.where(above >= 0, above, self_)]
    length = np.hypot(*to_next.T) + np.hypot(*from_last.T)
    tangent = to_next + from_last
    tangent *= (0.5 * length / np.maximum(np.hypot(*tangent.T), 1))[:, None]  # so that sharp turns are rounded, too
    end = to[start]
    t = np.linspace(0, 1, level.pieces + 1)[None, :, None]
    a, b, ta, tb = (v[:, None] for v in (p[start], p[end], tangent[start], tangent[end]))
    curve = (2 * t**3 - 3 * t**2 + 1) * a + (t**3 - 2 * t**2 + t) * ta + (3 * t**2 - 2 * t**3) * b + (t**3 - t**2) * tb
    side = np.stack([p[start, 1] - p[end, 1], p[end, 0] - p[start, 0]], -1)[:, None]
    for n in range(1, 6):
        swing = level.wobble / n * (2 * unit(hashes[start], 10 + n) - 1).astype(float)
        curve = curve + swing[:, None, None] * np.sin(np.pi * n * t) * np.sin(np.pi * t) * side
    curve = np.round(curve * 8) / 8
    width = half_width(total[start])[:, None] + (half_width(total[end]) - half_width(total[start]))[:, None] * t[..., 0]
    return np.concatenate([curve[:, :-1], curve[:, 1:], width[:, :-1, None], width[:, 1:, None]], -1).reshape(-1, 6)


class _Block(NamedTuple):
    """Nodes of a block with its margin, flattened: positions from the block's corner, hashes, who is inside."""

    p: np.ndarray
    h: np.ndarray
    inside: np.ndarray
    side: int


def _block(seed: int, region: int, level: Level, bi: int, bj: int) -> _Block:
    margin = level.hops + 4
    local = np.arange(-margin, level.nodes + margin)
    jx, jy, h = nodes(
        key(seed, region, level.name), level.cell, bi * level.nodes + local[None], bj * level.nodes + local[:, None]
    )
    p = np.stack([jx + local[None] * level.cell, jy + local[:, None] * level.cell], -1).reshape(-1, 2)
    own = (local >= 0) & (local < level.nodes)
    return _Block(p, h.ravel(), (own[None] & own[:, None]).ravel(), len(local))


def _elevation(seed: int, region: int, level: Level, bi: int, bj: int, p: np.ndarray) -> np.ndarray:
    """Integer elevation in millimetres at the nodes: a regional tilt and noise, exact in any block."""
    x, y = p[:, 0], p[:, 1]
    angle = scalar(key(seed, region, "tilt"), 0, 0, 2 * np.pi)
    tilt = (int(1100 * np.cos(angle)) * x + int(1100 * np.sin(angle)) * y) / 1000  # 1.1 m a km, in mm
    ax, ay = bi * level.block, bj * level.block
    noise = sum(
        height * scattered(key(seed, region, "valley", scale), scale, ax, ay, x, y)
        for scale, height in ((61000, 21.0), (23000, 8.0), (9000, 2.4))
    )
    return np.round(tilt).astype(np.int64) + np.round(noise * 1000).astype(np.int64)


def _basins(b: _Block, lake: np.ndarray, radius: np.ndarray) -> np.ndarray:
    h = b.h[lake]
    shape = pick(h, 36, 0, np.pi).astype(float), pick(h, 37, 1.0, 1.42).astype(float)
    return np.column_stack([b.p[lake], np.round(radius[lake]), *shape])


def _river_width(total: np.ndarray) -> np.ndarray:
    return np.where(total < 2, 3.0, 9.0 * total**0.55)


def _stream_width(total: np.ndarray) -> np.ndarray:
    return np.where(total < 2, 1.0, 1.5 * np.minimum(total, 60) ** 0.55)


@lru_cache(maxsize=1024)
def rivers(seed: int, region: int, bi: int, bj: int) -> Water:
    """Rivers and the lakes on them whose upper node lies in the block (bi, bj) of ``RIVER.block`` metres."""
    b = _block(seed, region, RIVER, bi, bj)
    to = downstream(_elevation(seed, region, RIVER, bi, bj, b.p).reshape(b.side, b.side)).ravel()
    total = _accumulate(to, RIVER.hops)
    start = np.flatnonzero(b.inside & (to >= 0) & (total >= 2))
    courses = _curves(RIVER, start, b.p, to, total, b.h, _river_width)
    ends = b.inside & (to < 0)
    dammed = b.inside & (to >= 0) & (total >= 3) & (unit(b.h, 30) < 0.22)
    radius = np.where(ends, 320 + 130 * np.sqrt(total), 260 + 640 * unit(b.h, 31))
    radius[unit(b.h, 32) < 0.3] *= 1.5
    lake = ends | dammed
    return Water(courses, _basins(b, lake, radius))


@lru_cache(maxsize=1024)
def streams(seed: int, region: int, bi: int, bj: int) -> Water:
    """Streams and small lakes of the block (bi, bj) of ``STREAM.block`` metres; the land falls to the rivers."""
    b = _block(seed, region, STREAM, bi, bj)
    low, high = b.p.min() - _VALLEY, b.p.max() + _VALLEY
    big = near(seed, region, RIVER, bi * STREAM.block, bj * STREAM.block, (low, low, high, high)).courses
    distance, foot = _to_courses(b.p, big)
    height = 1.1 * np.minimum(np.round(distance), _VALLEY).astype(np.int64)
    ax, ay = bi * STREAM.block, bj * STREAM.block
    for scale, amplitude in ((7000, 900.0), (2600, 420.0)):
        rough = scattered(key(seed, region, "brook", scale), scale, ax, ay, b.p[:, 0], b.p[:, 1])
        height = height + np.round(amplitude * rough)
    to = downstream(height.reshape(b.side, b.side)).ravel()
    joins = distance < _BANK
    to[joins] = -1
    total = _accumulate(to, STREAM.hops)
    start = np.flatnonzero(b.inside & (to >= 0) & (total >= 3))
    courses = _curves(STREAM, start, b.p, to, total, b.h, _stream_width)
    mouth = np.flatnonzero(b.inside & joins & (total >= 3) & (distance > 1))
    width = _stream_width(total[mouth])[:, None]
    last = np.concatenate([b.p[mouth], np.round(foot[mouth] * 8) / 8, width, width], 1)
    pits = b.inside & (to < 0) & ~joins
    radius = np.where(pits, 38 * np.sqrt(total) * pick(b.h, 33, 0.6, 1.4), pick(b.h, 34, 90, 330))
    lake = pits | (b.inside & ~joins & (unit(b.h, 35) < 0.03))
    return Water(np.concatenate([courses, last]), _basins(b, lake, radius))


def _to_courses(p: np.ndarray, courses: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Distance (N,) of points (N, 2) to the nearest vertex of the courses, capped at ``_VALLEY``, and it (N, 2)."""
    if not len(courses):
        return np.full(len(p), float(_VALLEY)), p.copy()
    vertices = np.concatenate([courses[:, :2], courses[:, 2:4]])
    distance, n = cKDTree(vertices).query(p)
    return np.minimum(distance, _VALLEY), vertices[n]


def near(seed: int, region: int, level: Level, ax: int, ay: int, box: tuple[float, float, float, float]) -> Water:
    """All water of a level that may touch ``box`` = (x0, y0, x1, y1), metres from the integer anchor (ax, ay)."""
    make, size, reach = (rivers if level is RIVER else streams), level.block, level.reach
    rows = range((ay + int(box[1]) - reach) // size, (ay + int(box[3]) + reach) // size + 1)
    columns = range((ax + int(box[0]) - reach) // size, (ax + int(box[2]) + reach) // size + 1)
    found = [make(seed, region, i, j).moved(i * size - ax, j * size - ay) for j in rows for i in columns]
    courses = np.concatenate([w.courses for w in found])
    lakes = np.concatenate([w.lakes for w in found])
    return Water(courses[touching(courses, box, courses[:, 4:].max(1))], lakes[_lakes_touching(lakes, box)])


def touching(lines: np.ndarray, box: tuple[float, float, float, float], margin: np.ndarray | float) -> np.ndarray:
    """Which lines (N, ≥4: x0, y0, x1, y1) have a bounding box that, grown by ``margin``, meets ``box``."""
    x0, y0, x1, y1 = lines.T[:4]
    return (
        (np.maximum(x0, x1) + margin >= box[0])
        & (np.minimum(x0, x1) - margin <= box[2])
        & (np.maximum(y0, y1) + margin >= box[1])
        & (np.minimum(y0, y1) - margin <= box[3])
    )


def _lakes_touching(lakes: np.ndarray, box: tuple[float, float, float, float]) -> np.ndarray:
    return touching(lakes[:, [0, 1, 0, 1]], box, LAKE_MARGIN * lakes[:, 2])
