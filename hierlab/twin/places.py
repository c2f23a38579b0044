"""Where people are: villages, towns and cities on a hierarchy of sites, and the roads and railways between them.

A town is also a village site and a city also a town site, so that the networks of the three levels meet. Neighbours
are linked where no third site is nearer to both (the relative neighbourhood graph); a link belongs to the block of
its first site. Positions are int64 metres here, and float64 metres from the caller's anchor in what is returned.
"""

from functools import lru_cache
from typing import NamedTuple

import numpy as np

from hierlab.twin import drainage
from hierlab.twin.hashing import derive, key, mix, pick, scalar, unit
from hierlab.twin.regions import style

VILLAGE, TOWN, CITY = 0, 1, 2
CELL = (1800, 7200, 28800)  # metres between sites of a level; each is four of the one below
_PRESENT = (0.62, 0.78, 0.86)
RADIUS = ((100.0, 250.0), (420.0, 950.0), (1700.0, 3600.0))
SPREAD = 1.5  # a settlement reaches at most this many radii
_LINK = 2.2  # longest link, in cells
_BLOCK = (8, 4, 3)  # cells a block side of the link cache
AIRPORT = (1700.0, 480.0)  # half length and half width of the grounds, metres
STATION = (420.0, 62.0)
INTERCHANGE = 190.0  # half side of the square in which a junction is an overpass
_AIRPORT_REACH = int(1.45 * RADIUS[CITY][1] + 2200 + 2600 + np.hypot(*AIRPORT))


class Sites(NamedTuple):
    """Sites of one level: positions x, y (int64 metres), cells i, j, hashes h; all (N,)."""

    x: np.ndarray
    y: np.ndarray
    i: np.ndarray
    j: np.ndarray
    h: np.ndarray


def sites(seed: int, region: int, level: int, i: np.ndarray, j: np.ndarray) -> Sites:
    """The sites that exist in the cells of the ranges ``i`` × ``j`` of a level."""
    i, j = (a.ravel() for a in np.meshgrid(np.asarray(i, np.int64), np.asarray(j, np.int64)))
    h = mix(key(seed, region, "site", level), i, j)
    dense = style(seed, region).density if level == VILLAGE else 1.0
    here = unit(h, 0) < np.float32(_PRESENT[level] * dense)
    i, j, h = i[here], j[here], h[here]
    ci, cj = i, j
    for lower in range(level, 0, -1):  # down to the village cell that the site stands in
        choice = derive(mix(key(seed, region, "seat", lower), ci, cj), 1)
        ci, cj = 4 * ci + (choice & 3).astype(np.int64), 4 * cj + (choice >> 2 & 3).astype(np.int64)
    dx, dy, _ = drainage.nodes(key(seed, region, "village"), CELL[VILLAGE], ci, cj)
    return Sites(ci * CELL[VILLAGE] + dx.astype(np.int64), cj * CELL[VILLAGE] + dy.astype(np.int64), i, j, h)


def _within(seed: int, region: int, level: int, ax: int, ay: int, box, margin: float) -> Sites:
    """Sites of the cells that a box (metres from the anchor), grown by ``margin``, touches."""
    cell = CELL[level]
    i = np.arange((ax + int(box[0] - margin)) // cell, (ax + int(box[2] + margin)) // cell + 1)
    j = np.arange((ay + int(box[1] - margin)) // cell, (ay + int(box[3] + margin)) // cell + 1)
    return sites(seed, region, level, i, j)


@lru_cache(maxsize=1024)
def _links(seed: int, region: int, level: int, bi: int, bj: int) -> tuple[Sites, Sites]:
    """The two ends of the links that belong to the block (bi, bj)."""
    n, margin = _BLOCK[level], 4
    s = sites(seed, region, level, bi * n + np.arange(-margin, n + margin), bj * n + np.arange(-margin, n + margin))
    own = (s.i >= bi * n) & (s.i < (bi + 1) * n) & (s.j >= bj * n) & (s.j < (bj + 1) * n)
    d = (s.x[:, None] - s.x) ** 2 + (s.y[:, None] - s.y) ** 2
    first = (s.i[:, None] < s.i) | ((s.i[:, None] == s.i) & (s.j[:, None] < s.j))
    a, b = np.nonzero(own[:, None] & first & (d <= int(_LINK * CELL[level]) ** 2))
    free = ~((np.maximum(d[a], d[b]) < d[a, b][:, None]).any(1))
    return Sites(*(v[a[free]] for v in s)), Sites(*(v[b[free]] for v in s))


def _polyline(a, b, ta, tb, h, pieces: int, sway: float) -> np.ndarray:
    """Hermite curves (N, pieces + 1, 2) from a to b, (N, 2), swaying by a share of their length."""
    t = np.linspace(0, 1, pieces + 1)[None, :, None]
    a, b, ta, tb = a[:, None], b[:, None], ta[:, None], tb[:, None]
    curve = (2 * t**3 - 3 * t**2 + 1) * a + (t**3 - 2 * t**2 + t) * ta + (3 * t**2 - 2 * t**3) * b + (t**3 - t**2) * tb
    side = np.stack([a[..., 1] - b[..., 1], b[..., 0] - a[..., 0]], -1)
    for n in range(1, 5):
        swing = (2 * unit(h, 40 + n) - 1).astype(float)[:, None, None] * sway / n
        curve = curve + swing * np.sin(np.pi * n * t) * np.sin(np.pi * t) * side
    return np.round(curve * 8) / 8


def _segments(curve: np.ndarray, half_width: float) -> np.ndarray:
    """(N, P, 2) → (N·(P−1), 5): x0, y0, x1, y1, half width."""
    lines = np.concatenate([curve[:, :-1], curve[:, 1:]], -1).reshape(-1, 4)
    return np.column_stack([lines, np.full(len(lines), half_width)])


class City(NamedTuple):
    """A city: its cell, its centre (int metres), radius, the angle of its street grid, its station from the centre."""

    i: int
    j: int
    x: int
    y: int
    radius: float
    angle: float
    h: np.uint32
    station: tuple[float, float, float]  # dx, dy, direction of the tracks
    industry: float  # direction of the industrial quarter

    def ring(self, angle: np.ndarray) -> np.ndarray:
        """Points (…, 2) of the ring road, relative to the centre, seen in the given directions."""
        p, q = scalar(self.h, 60, 0, 6.3), scalar(self.h, 61, 0, 6.3)
        r = (1.15 * self.radius + 150) * (1 + 0.07 * np.cos(2 * angle + p) + 0.04 * np.cos(3 * angle + q))
        return np.stack([r * np.cos(angle), r * np.sin(angle)], -1)


@lru_cache(maxsize=1024)
def city(seed: int, region: int, i: int, j: int) -> City | None:
    """The city of the cell (i, j), if there is one."""
    s = sites(seed, region, CITY, np.array([i]), np.array([j]))
    if not len(s.x):
        return None
    x, y, h = int(s.x[0]), int(s.y[0]), s.h[0]
    radius = float(_radius(seed, region, CITY, s.h)[0])
    where = scalar(h, 50, 0, 2 * np.pi)
    r = 0.5 * radius
    station = (r * np.cos(where), r * np.sin(where), where + np.pi / 2 + scalar(h, 51, -0.3, 0.3))
    return City(i, j, x, y, radius, scalar(h, 53, 0, np.pi / 2), h, station, scalar(h, 54, 0, 2 * np.pi))


@lru_cache(maxsize=1024)
def airport(seed: int, region: int, c: City) -> tuple[float, float, float] | None:
    """A city's airport, if it has one: dx, dy from the centre and the direction of the runway.

    The best of twelve places round the city: far from big rivers and lakes and off the ways to other cities.
    """
    i, j, x, y, radius, h = c.i, c.j, c.x, c.y, c.radius, c.h
    if scalar(h, 52) > 0.85:
        return None
    around = sites(seed, region, CITY, np.arange(i - 2, i + 3), np.arange(j - 2, j + 3))
    other = (around.x != x) | (around.y != y)
    ways = np.arctan2((around.y[other] - y).astype(float), (around.x[other] - x).astype(float))
    angle = scalar(h, 55, 0, 2 * np.pi) + np.arange(12) * np.pi / 6
    r = 1.45 * radius + 2200 + pick(mix(h, np.arange(12), 0), 1, 0, 2600).astype(float)
    p = np.round(np.stack([r * np.cos(angle), r * np.sin(angle)], -1))
    reach = float(np.abs(p).max())
    water = drainage.near(seed, region, drainage.RIVER, x, y, (-reach, -reach, reach, reach))
    run = angle + np.pi / 2 + scalar(h, 56, -0.25, 0.25)
    along = np.linspace(-AIRPORT[0], AIRPORT[0], 9)[:, None, None]
    strip = p + along * np.stack([np.cos(run), np.sin(run)], -1)  # (9, 12, 2)
    clear = np.full(12, 6000.0)
    if len(water.courses):
        off = strip[..., None, :] - (water.courses[:, :2] + water.courses[:, 2:4]) / 2
        clear = np.hypot(off[..., 0], off[..., 1]).min((0, 2))
    for lx, ly, lr, *_ in water.lakes:
        off = np.hypot(strip[..., 0] - lx, strip[..., 1] - ly).min(0)
        clear = np.minimum(clear, off - drainage.LAKE_MARGIN * lr)
    if len(ways):
        off = np.abs((angle[:, None] - ways + np.pi) % (2 * np.pi) - np.pi).min(1)
        clear = np.minimum(clear, r * np.sin(np.minimum(off, np.pi / 2)))
    best = int(np.argmax(clear))
    if clear[best] < 650:
        return None
    return float(p[best, 0]), float(p[best, 1]), float(run[best])


def _radius(seed: int, region: int, level: int, h: np.ndarray) -> np.ndarray:
    """Radii (N,), metres: within ``RADIUS`` everywhere, and larger ones oftener where a region is densely settled."""
    low, high = RADIUS[level]
    return low + (high - low) * unit(h, 5).astype(float) ** ((1.6 if level else 1.0) / style(seed, region).density)


def cities(seed: int, region: int, ax: int, ay: int, box, margin: float = _AIRPORT_REACH) -> list[City]:
    """Cities whose airport, station or streets may touch ``box``, metres from the anchor (ax, ay)."""
    s = _within(seed, region, CITY, ax, ay, box, margin)
    return [city(seed, region, int(i), int(j)) for i, j in zip(s.i, s.j, strict=True)]


class Settlements(NamedTuple):
    """Settlements (N,): x, y from the anchor, radius, level, street angle, hash. Bigger ones first."""

    x: np.ndarray
    y: np.ndarray
    radius: np.ndarray
    level: np.ndarray
    angle: np.ndarray
    h: np.ndarray


def settlements(seed: int, region: int, ax: int, ay: int, box) -> Settlements:
    """Settlements whose streets may touch ``box``. What would lie in a bigger one or on an airport is not founded."""
    found, taken = [], []
    for c in cities(seed, region, ax, ay, box, _AIRPORT_REACH + 4000):
        x, y = float(c.x - ax), float(c.y - ay)
        found.append((x, y, c.radius, CITY, c.angle, c.h))
        taken.append((x, y, SPREAD * c.radius))
        stamp = airport(seed, region, c)
        if stamp:
            taken.append((x + stamp[0], y + stamp[1], AIRPORT[0] + 250))
    for level in (TOWN, VILLAGE):
        high = RADIUS[level][1]
        s = _within(
            seed, region, level, ax, ay, box, SPREAD * (high + (RADIUS[TOWN][1] + high if level == TOWN else 0))
        )
        x, y, radius = (s.x - ax).astype(float), (s.y - ay).astype(float), _radius(seed, region, level, s.h)
        free = np.ones(len(x), bool)
        for tx, ty, tr in taken:
            free &= np.hypot(x - tx, y - ty) > tr + 0.8 * radius
        angle = pick(s.h, 53, 0, np.pi / 2).astype(float)
        new = [v[free] for v in (x, y, radius, angle, s.h)]
        found += [(a, b, r, level, t, h) for a, b, r, t, h in zip(*new, strict=True)]
        taken += [(a, b, SPREAD * r) for a, b, r, _, _ in zip(*new, strict=True)]
    wide = 1.5 * RADIUS[TOWN][1] + 500
    shore = (box[0] - wide, box[1] - wide, box[2] + wide, box[3] + wide)
    lakes = np.concatenate([drainage.near(seed, region, k, ax, ay, shore).lakes for k in drainage.LEVELS])
    near = [
        f
        for f in found
        if (f[3] == CITY or (np.hypot(lakes[:, 0] - f[0], lakes[:, 1] - f[1]) > 1.3 * lakes[:, 2] + 0.4 * f[2]).all())
        and box[0] - SPREAD * f[2] < f[0] < box[2] + SPREAD * f[2]
        and box[1] - SPREAD * f[2] < f[1] < box[3] + SPREAD * f[2]
    ]
    columns = list(zip(*near, strict=True)) if near else [()] * 6
    kinds = (float, float, float, np.int64, float, np.uint32)
    return Settlements(*(np.array(c, k) for c, k in zip(columns, kinds, strict=True)))


class Network(NamedTuple):
    """Segments (N, 5) of lanes, main roads, highways and railways, and junctions (M, 3): x, y, direction."""

    lanes: np.ndarray
    roads: np.ndarray
    highways: np.ndarray
    rails: np.ndarray
    junctions: np.ndarray


@lru_cache(maxsize=1024)
def _ways(seed: int, region: int, level: int, bi: int, bj: int) -> Network:
    """The ways that belong to a block, metres from its corner."""
    a, b = _links(seed, region, level, bi, bj)
    ox, oy = bi * _BLOCK[level] * CELL[level], bj * _BLOCK[level] * CELL[level]
    none5, none3 = np.zeros((0, 5)), np.zeros((0, 3))
    if not len(a.x):
        return Network(none5, none5, none5, none5, none3)
    p, q = np.stack([a.x - ox, a.y - oy], -1).astype(float), np.stack([b.x - ox, b.y - oy], -1).astype(float)
    h = derive(a.h ^ derive(b.h, 7), 8)
    if level < CITY:
        lines = _polyline(p, q, q - p, q - p, h, (20, 48)[level], (0.16, 0.11)[level])
        main = _segments(lines, (3.2, 7.0)[level])
        return (
            Network(main, none5, none5, none5, none3) if level == VILLAGE else Network(none5, main, none5, none5, none3)
        )
    ends = [
        (city(seed, region, int(i), int(j)), city(seed, region, int(k), int(m)))
        for i, j, k, m in zip(a.i, a.j, b.i, b.j, strict=True)
    ]
    there = np.arctan2(q[:, 1] - p[:, 1], q[:, 0] - p[:, 0])
    start = p + np.array([c.ring(t) for (c, _), t in zip(ends, there, strict=True)])
    stop = q + np.array([c.ring(t + np.pi) for (_, c), t in zip(ends, there, strict=True)])
    highways = _segments(_polyline(start, stop, stop - start, stop - start, h, 96, 0.10), 13.0)
    out = np.arctan2(stop[:, 1] - start[:, 1], stop[:, 0] - start[:, 0])
    ways_out = [
        np.array([_between(c[n], t, o) for c, t, o in zip(ends, there + n * np.pi, out + n * np.pi, strict=True)])
        for n in (0, 1)
    ]
    junctions = np.concatenate([np.column_stack([start, ways_out[0]]), np.column_stack([stop, ways_out[1]])])
    rails = _segments(_rails(p, q, ends, h), 6.0)
    return Network(none5, none5, highways, rails, np.round(junctions * 4096) / 4096)


def _between(c: City, where: float, out: float) -> float:
    """Halfway between a highway's direction and the normal of the ring, which it leaves in the direction ``where``."""
    a, b = c.ring(np.array([where - 0.02, where + 0.02]))
    normal = np.arctan2(b[1] - a[1], b[0] - a[0]) - np.pi / 2
    return out + 0.5 * ((normal - out + np.pi) % (2 * np.pi) - np.pi)


def _rails(p, q, ends, h) -> np.ndarray:
    """Railways from station to station, leaving both along the tracks."""
    s = [np.array([c[n].station for c in ends]) for n in (0, 1)]
    start, stop = p + s[0][:, :2], q + s[1][:, :2]
    length = np.hypot(*(stop - start).T)
    tangents = []
    for axis in (s[0][:, 2], s[1][:, 2]):
        t = np.stack([np.cos(axis), np.sin(axis)], -1)
        forward = np.sign((t * (stop - start)).sum(1))
        tangents.append(t * (np.where(forward == 0, 1, forward) * np.minimum(1.1 * length, 30000))[:, None])
    return _polyline(start, stop, *tangents, derive(h, 9), 56, 0.03)


@lru_cache(maxsize=256)
def _ring(seed: int, region: int, i: int, j: int) -> np.ndarray:
    c = city(seed, region, i, j)
    curve = np.round(c.ring(np.linspace(0, 2 * np.pi, 145)) * 8) / 8
    return _segments(curve[None], 13.0)


def network(seed: int, region: int, ax: int, ay: int, box, margin: float) -> Network:
    """All ways within ``margin`` metres of ``box``, in metres from the anchor (ax, ay)."""
    parts = {name: [] for name in Network._fields}
    for level in (VILLAGE, TOWN, CITY):
        size = _BLOCK[level] * CELL[level]
        reach = int((_LINK + 0.6) * CELL[level] + margin)
        for bj in range((ay + int(box[1]) - reach) // size, (ay + int(box[3]) + reach) // size + 1):
            for bi in range((ax + int(box[0]) - reach) // size, (ax + int(box[2]) + reach) // size + 1):
                for name, lines in zip(Network._fields, _ways(seed, region, level, bi, bj), strict=True):
                    if len(lines):
                        parts[name].append((lines, bi * size - ax, bj * size - ay))
    s = _within(seed, region, CITY, ax, ay, box, 2 * RADIUS[CITY][1])
    for x, y, i, j in zip(s.x, s.y, s.i, s.j, strict=True):
        parts["highways"].append((_ring(seed, region, int(i), int(j)), int(x) - ax, int(y) - ay))
    out = []
    for name, found in parts.items():
        wide = 3 if name == "junctions" else 5
        moved = [np.zeros((0, wide))]
        for lines, dx, dy in found:
            shift = [dx, dy, 0] if wide == 3 else [dx, dy, dx, dy, 0]
            ends = lines[:, [0, 1, 0, 1]] if wide == 3 else lines
            local = (box[0] - dx, box[1] - dy, box[2] - dx, box[3] - dy)
            near = drainage.touching(ends, local, max(margin, INTERCHANGE * 1.5) if wide == 3 else margin)
            moved.append(lines[near] + np.array(shift, float))
        out.append(np.concatenate(moved))
    return Network(*out)
