"""The plan of a settlement: blocks and lots as tables, in the settlement's own bent frame (u, v).

Squares between main streets are cut into blocks, and blocks are divided into rows of lots with a front on a street.
The frame is turned by the settlement's angle and bent by a few long waves, so that streets curve; how much depends
on the region's style. A block belongs to the settlement or it does not, has a use (its zone) and a year from which
it stands.
"""

from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import NamedTuple

import numpy as np

from hierlab.twin.fields import scattered
from hierlab.twin.hashing import derive, key, pick, scalar, unit
from hierlab.twin.places import CITY, SPREAD, TOWN, VILLAGE
from hierlab.twin.regions import Region, style
from hierlab.twin.things import ragged

HOUSES, FARMS, SLABS, CENTRE, WORKS, PARK, PAVED, IDLE, STADIUM = range(9)
SITE_YEARS = 2  # a block is a building site for so long before it stands

# By level (village, town, city):
SQUARE = (150.0, 250.0, 370.0)  # metres between main streets
_BLOCK_AREA = (3200.0, 6400.0, 8000.0)  # square metres
_MAIN = (2.4, 6.5, 11.0)  # half widths of main streets
_STREET = (1.9, 3.4, 4.4)  # and of the others
_DEPTH = 6  # cuts of a square, at most
_WALK = (0.0, 2.2, 3.0)  # width of the pavements of streets; main streets have half as much again
_SCALES = ((110, 55), (420, 140), (1500, 500))  # metres: features of the ragged edge of a settlement


@dataclass(frozen=True)
class Town:
    """A settlement: its seed and region, centre (integer metres), radius, level, street angle and hash."""

    seed: int
    region: int
    x: int
    y: int
    radius: float
    level: int
    angle: float
    h: int

    @cached_property
    def style(self) -> Region:
        return style(self.seed, self.region)

    def random(self, salt: int, low: float = 0.0, high: float = 1.0) -> float:
        """A number in [low, high) of this town."""
        return scalar(np.uint32(self.h), salt, low, high)

    @cached_property
    def wide(self) -> float:
        """Factor on the width of streets, by region."""
        return scalar(key(self.seed, self.region, "streets"), 1, 0.85, 1.25)

    @property
    def main(self) -> float:
        return _MAIN[self.level] * self.wide

    @property
    def street(self) -> float:
        return _STREET[self.level] * self.wide

    @cached_property
    def waves(self) -> np.ndarray:
        """(n, 5): wave numbers along and across, phase and amplitudes, metres, of the bends of the frame."""
        strength = {"grid": 0.0, "bent": 0.7, "irregular": 1.1}[self.style.streets]
        strength = max(strength, 1.2) if self.level == VILLAGE else strength * self.random(80, 0.5, 1.0)
        length = (170.0, 420.0, 640.0)[self.level]
        out = []
        for n in range(3 if strength else 0):
            turn, size = self.random(90 + n, 0, np.pi) + n, length * self.random(93 + n, 0.7, 1.4)
            swing = 0.16 * strength * size / (2 * np.pi)
            lean = self.random(96 + n, 0, 2 * np.pi)
            k = 2 * np.pi / size
            out.append((k * np.cos(turn), k * np.sin(turn), self.random(99 + n, 0, 6.28), swing * np.cos(lean)))
            out[-1] += (swing * np.sin(lean),)
        return np.array(out).reshape(-1, 5)

    def bend(self, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Frame coordinates (u, v) of points in metres east and south of the centre; their float type is kept."""
        f = x.dtype.type
        cos, sin = f(np.cos(self.angle)), f(np.sin(self.angle))
        u, v = x * cos + y * sin, y * cos - x * sin
        du, dv = np.zeros_like(u), np.zeros_like(v)
        for ku, kv, phase, au, av in self.waves.tolist():
            s = np.sin(u * f(ku) + v * f(kv) + f(phase))
            du += f(au) * s
            dv += f(av) * s
        return u + du, v + dv

    def place(self, u: np.ndarray, v: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The reverse of ``bend``, float64: x, y and the direction of the u axis there, radians."""
        a, b = u.copy(), v.copy()
        turn = np.zeros_like(u)
        if len(self.waves):
            ku, kv, phase, au, av = self.waves.T[:, :, None]
            for _ in range(7):
                s = np.sin(ku * a + kv * b + phase)
                a, b = u - (au * s).sum(0), v - (av * s).sum(0)
            c = np.cos(ku * a + kv * b + phase)
            turn = -np.arctan2((av * ku * c - au * kv * c).sum(0), 2 + (au * ku * c + av * kv * c).sum(0))
        cos, sin = np.cos(self.angle), np.sin(self.angle)
        return a * cos - b * sin, a * sin + b * cos, turn + self.angle


class Blocks(NamedTuple):
    """Blocks (M,).

    Hash, place (M, 2) and hash of their square, sides u0 … v1 at the middle of streets and i0 … j1 behind the
    pavements, half widths (M, 4) of the four streets and whether each is a main street, zone, distance from the
    centre in radii, year of completion, whether something else stood there before, whether inside the settlement.
    """

    h: np.ndarray
    corner: np.ndarray
    square: np.ndarray
    u0: np.ndarray
    u1: np.ndarray
    v0: np.ndarray
    v1: np.ndarray
    i0: np.ndarray
    i1: np.ndarray
    j0: np.ndarray
    j1: np.ndarray
    half: np.ndarray
    main: np.ndarray
    zone: np.ndarray
    far: np.ndarray
    year: np.ndarray
    renewed: np.ndarray
    inside: np.ndarray


class Nodes(NamedTuple):
    """The cuts as a tree: where each is, whether it is one of v, its first child (itself for a block), its block."""

    place: np.ndarray
    tall: np.ndarray
    child: np.ndarray
    block: np.ndarray


class Plan(NamedTuple):
    """The blocks of a range of squares [iu, iu + nu) × [iv, iv + nv) and the tree that finds them."""

    blocks: Blocks
    nodes: Nodes
    iu: int
    iv: int
    nu: int
    nv: int
    size: float

    def find(self, u: np.ndarray, v: np.ndarray) -> np.ndarray:
        """The block (N,) of points (N,) float32 in the range."""
        f = np.float32
        column = np.clip(np.floor(u * f(1 / self.size)).astype(np.int32) - self.iu, 0, self.nu - 1)
        row = np.clip(np.floor(v * f(1 / self.size)).astype(np.int32) - self.iv, 0, self.nv - 1)
        node = row * self.nu + column
        while True:
            below = self.nodes.child[node] + (np.where(self.nodes.tall[node], v, u) > self.nodes.place[node])
            if (below == node).all():
                return self.nodes.block[node]
            node = below


def stadium_square(level: int, radius: float, h: np.uint32) -> tuple[int, int] | None:
    """The square of a settlement that holds its stadium, if it has one."""
    if level == VILLAGE or (level == TOWN and float(unit(np.atleast_1d(h), 70)[0]) > 0.45):
        return None
    span = max(1, int((0.2 if level == TOWN else 0.42) * radius / SQUARE[level]))
    a, b = (int(float(unit(np.atleast_1d(h), 71 + n)[0]) * (2 * span + 1)) - span for n in (0, 1))
    return (a, b) if (a, b) != (0, 0) else (1, 0)


@lru_cache(maxsize=256)
def plan(town: Town, iu: int, iv: int, nu: int, nv: int) -> Plan:
    """The blocks of a range of squares."""
    size = SQUARE[town.level]
    gi, gj = (a.ravel() for a in np.meshgrid(iu + np.arange(nu), iv + np.arange(nv)))
    number = (gi.astype(np.int64) * 0x8DA6B343 + gj.astype(np.int64) * 0xD8163841) & 0xFFFFFFFF
    h = derive(np.uint32(town.h) ^ number.astype(np.uint32), 3)
    boxes = np.stack([gi * size, (gi + 1) * size, gj * size, (gj + 1) * size], 1).astype(float)
    stadium = stadium_square(town.level, town.radius, np.uint32(town.h))
    whole = (gi == stadium[0]) & (gj == stadium[1]) if stadium else np.zeros(len(gi), bool)
    whole |= (gi == 0) & (gj == 0) & (town.level == CITY)
    of, first = np.arange(len(gi)), 0
    tree, leaves = [], []
    jitter = 0.5 if town.style.streets == "irregular" else 0.26
    for level in range(_DEPTH + 1):
        du, dv = boxes[:, 1] - boxes[:, 0], boxes[:, 3] - boxes[:, 2]
        on = (du * dv > _BLOCK_AREA[town.level] * (0.7 + unit(h))) & ~whole[of] & (level < _DEPTH)
        up = du <= dv * 1.1
        share = 0.5 + jitter * (unit(h, 1).astype(float) - 0.5)
        at = np.where(up, boxes[:, 2] + dv * share, boxes[:, 0] + du * share)
        node = first + np.arange(len(h))
        first += len(h)
        child = np.where(on, first + 2 * (np.cumsum(on) - 1), node)
        tree.append((np.where(on, at, np.inf).astype(np.float32), up & on, child.astype(np.int32)))
        leaves.append((h[~on], boxes[~on], of[~on], node[~on]))
        h, boxes, of, up, at = h[on], boxes[on], of[on], up[on], at[on]
        low, high = boxes.copy(), boxes.copy()
        rows = np.arange(len(h))
        low[rows, 1 + 2 * up], high[rows, 2 * up] = at, at
        boxes = np.stack([low, high], 1).reshape(-1, 4)
        h = np.stack([derive(h, 20 + level), derive(h + np.uint32(1), 20 + level)], 1).ravel()
        of = np.repeat(of, 2)
    h, boxes, of, node = (np.concatenate(c) for c in zip(*leaves, strict=True))
    block = np.zeros(first, np.int32)
    block[node] = np.arange(len(node))
    nodes = Nodes(*(np.concatenate(c) for c in zip(*tree, strict=True)), block)
    return Plan(_blocks(town, h, boxes, gi[of], gj[of]), nodes, iu, iv, nu, nv, size)


def _blocks(town: Town, h: np.ndarray, boxes: np.ndarray, gi: np.ndarray, gj: np.ndarray) -> Blocks:
    size = SQUARE[town.level]
    u0, u1, v0, v1 = boxes.T
    number = (gi.astype(np.int64) * 0x8DA6B343 + gj.astype(np.int64) * 0xD8163841) & 0xFFFFFFFF
    square = derive(np.uint32(town.h) ^ number.astype(np.uint32), 3)
    ends = np.stack([gi * size, (gi + 1) * size, gj * size, (gj + 1) * size], 1)
    main = np.abs(boxes - ends) < 0.01
    half = np.where(main, town.main, town.street)
    walk = half + _WALK[town.level] * np.where(main, 1.5, 1.0)
    sign = np.array([1, -1, 1, -1])
    inner = boxes + sign * walk
    u, v = (u0 + u1) / 2, (v0 + v1) / 2
    cos, sin = np.cos(town.angle), np.sin(town.angle)
    x, y = np.round(u * cos - v * sin), np.round(u * sin + v * cos)
    wide, narrow = _SCALES[town.level]
    noise = [
        scattered(key(town.seed, town.region, n), s, town.x, town.y, x, y)
        for n, s in (("suburb", wide), ("fringe", narrow))
    ]
    far = np.hypot(u, v) / town.radius
    ragged = (0.24 * noise[0] + 0.12 * noise[1]) * np.minimum(1, 1.5 * far)
    inside = (1 - far + ragged + 0.16 * (unit(h, 4) - 0.5) > 0) & (far < SPREAD - 0.12)
    stadium = stadium_square(town.level, town.radius, np.uint32(town.h))
    hall = (gi == stadium[0]) & (gj == stadium[1]) if stadium else np.zeros(len(gi), bool)
    plaza = (gi == 0) & (gj == 0) & (town.level == CITY)
    quarter = town.random(54, 0, 2 * np.pi)  # the same hash as City.industry
    industry = np.cos(np.arctan2(y, x) - quarter)
    zone = _zones(town, h, square, far, industry)
    zone = np.where(plaza, np.where(unit(h, 16) < 0.7, PAVED, PARK), np.where(hall, STADIUM, zone)).astype(np.uint8)
    core = town.random(81, 0.4, 0.75)  # what was there in 1985
    late = np.clip((far - core) / (1.1 - core), 0, 1) ** 0.7
    year = 1985 + 45 * late + 12 * (unit(h, 18) - 0.5)
    if town.level == VILLAGE:
        year = np.where(unit(h, 19) < 0.3, year, 1970)
    renewed = (unit(h, 20) < 0.05) & (zone != STADIUM) & (year < 1990)
    year = np.where(renewed, pick(h, 21, 2002, 2032), year)
    year = np.where(hall | plaza, 1980, year)
    renewed &= ~(hall | plaza)
    return Blocks(
        *(
            h,
            np.stack([gi, gj], 1),
            square,
            u0,
            u1,
            v0,
            v1,
            *inner.T,
            half,
            main,
            zone,
            far,
            np.round(year).astype(np.int16),
            renewed,
            inside,
        )
    )


def _zones(town: Town, h: np.ndarray, square: np.ndarray, far: np.ndarray, industry: np.ndarray) -> np.ndarray:
    """What each block is used for."""
    if town.level == VILLAGE:
        return np.full(len(h), FARMS)
    city = town.level == CITY
    r = [unit(h, 10 + n) for n in range(4)]
    quarter = unit(square, 10)
    zone = np.full(len(h), HOUSES)
    estate = 0.65 * unit(square, 11) + 0.35 * r[3]
    share = (0.55 if city else 0.35) + 0.12 * (1.4 - town.style.lot)
    zone[estate < share] = SLABS
    if city or town.radius > 700:
        zone[far < (0.28 if city else 0.16)] = CENTRE
    wish = 0.55 * industry + 0.9 * (far - 0.5) + 0.7 * (quarter - 0.5)
    zone[(wish > 0.52) | (r[1] < 0.03) & (far > 0.35)] = WORKS
    zone[r[2] < np.where(far > 0.75, 0.12, 0.015)] = IDLE
    green = (r[0] < 0.05) | (quarter < 0.045)
    zone[green] = np.where(unit(h, 16)[green] < 0.3, PAVED, PARK)
    return zone


class Lots(NamedTuple):
    """Lots (N,), block after block, row after row: block, hash, row, sides along the block (l0, l1) and the depths
    of front and back (front, back); and per block where its lots start, how many a row has, whether rows run along
    v, and the depth (M,) at which the second row begins."""

    block: np.ndarray
    h: np.ndarray
    row: np.ndarray
    l0: np.ndarray
    l1: np.ndarray
    front: np.ndarray
    back: np.ndarray
    start: np.ndarray
    count: np.ndarray
    tall: np.ndarray
    middle: np.ndarray

    def uv(self, n: np.ndarray, s: np.ndarray, t: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Points of lots ``n``: ``s`` metres along the front from its middle, ``t`` metres in from it."""
        along = (self.l0[n] + self.l1[n]) / 2 + s
        deep = self.front[n] + np.sign(self.back[n] - self.front[n]) * t
        up = self.tall[self.block[n]]
        return np.where(up, deep, along), np.where(up, along, deep)

    def find(self, b: Blocks, block: np.ndarray, u: np.ndarray, v: np.ndarray) -> np.ndarray:
        """The lot (P,) of points (P,) that lie in ``block`` (P,)."""
        f = np.float32
        up = self.tall[block]
        along, deep = np.where(up, v, u), np.where(up, u, v)
        first = np.where(self.tall, b.j0, b.i0).astype(f)
        length = (np.where(self.tall, b.j1, b.i1) - first).astype(f)
        count = self.count.astype(np.int32)
        k = np.floor((along - first[block]) * (count / length).astype(f)[block]).astype(np.int32)
        top = count[block]
        k = np.clip(k, 0, top - 1)
        n = self.start[block] + k + np.where(deep > self.middle[block], top, 0).astype(np.int32)
        return np.clip(n, 0, max(len(self.h) - 1, 0))


_WIDTH = (17.0, 19.0, 62.0, 26.0, 62.0, 0.0, 0.0, 0.0, 0.0)  # metres of front by zone; 0: no lots


def lots(town: Town, b: Blocks) -> Lots:
    """The lots of all blocks; a block without lots has one that fills it."""
    du, dv = b.i1 - b.i0, b.j1 - b.j0
    tall = dv > du
    length, depth = np.where(tall, dv, du), np.where(tall, du, dv)
    width = np.array(_WIDTH)[b.zone] * np.where(b.zone == HOUSES, town.style.lot**0.5, 1.0)
    width = width * (0.8 + 0.5 * unit(b.h, 22))
    count = np.where(width > 0, np.clip(np.round(length / np.maximum(width, 5)), 1, 12), 1).astype(np.int64)
    double = (width > 0) & (depth > np.where(b.zone == WORKS, 85, np.where(b.zone == SLABS, 62, 34)))
    low, high = np.where(tall, b.i0, b.j0), np.where(tall, b.i1, b.j1)
    share = 0.5 + 0.14 * (unit(b.h, 23) - 0.5)
    middle = np.where(double, low + depth * share, 1e9)
    total = count * (1 + double)
    block, n = ragged(total)
    row, k = n // count[block], n % count[block]
    first = np.where(tall, b.j0, b.i0)[block]
    side = (length / count)[block]
    second = row == 1
    front = np.where(second, high[block], low[block])
    back = np.where(double[block], middle[block], high[block])
    h = derive(derive(b.h[block], 24) ^ ((row * 64 + k) * 0x9E3779B1 & 0xFFFFFFFF).astype(np.uint32), 25)
    start = (np.cumsum(total) - total).astype(np.int32)
    return Lots(
        block, h, row, first + k * side, first + (k + 1) * side, front, back, start, count, tall,
        middle.astype(np.float32),
    )  # fmt: skip
