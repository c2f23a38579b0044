"""Inside settlements: superblocks, blocks, lots, roofs and yards, parks, a stadium, each decided whole.

Everything is drawn in the settlement's own frame (u, v): squares between main streets, cut into blocks, cut into
lots. A block belongs to the settlement or it does not, so that a town ends along its streets.
"""

from dataclasses import dataclass

import numpy as np

from hierlab.twin.fields import Grid
from hierlab.twin.ground import LEAF, Boxes, Ground, choose, cut, squares
from hierlab.twin.hashing import derive, pick, unit
from hierlab.twin.places import CITY, SPREAD, TOWN, VILLAGE, Settlements
from hierlab.twin.rural import Land
from hierlab.twin.spectra import KIND

# By level (village, town, city):
_SQUARE = np.array([150.0, 250.0, 370.0], np.float32)  # metres between main streets
_BLOCK_AREA = np.array([3200.0, 8500.0, 11500.0], np.float32)  # square metres
_MAIN = np.array([2.2, 6.5, 11.0], np.float32)  # half widths of main streets
_STREET = np.array([1.8, 3.6, 4.8], np.float32)  # and of the others
_HOUSES = ["red roof", "brown roof", "grey roof", "dark roof", "red roof", "concrete"]
_FLATS = ["grey roof", "concrete", "dark roof", "white roof", "brown roof", "grey roof"]
_SHEDS = ["blue roof", "steel roof", "white roof", "blue roof", "grey roof", "red roof", "concrete"]


def stadium_square(level: int, radius: float, h: np.uint32) -> tuple[int, int] | None:
    """The superblock of a settlement that holds its stadium, if it has one."""
    if level == VILLAGE or (level == TOWN and float(unit(np.atleast_1d(h), 70)[0]) > 0.45):
        return None
    span = max(1, int((0.2 if level == TOWN else 0.42) * radius / float(_SQUARE[level])))
    a, b = (int(float(unit(np.atleast_1d(h), 71 + n)[0]) * (2 * span + 1)) - span for n in (0, 1))
    return (a, b) if (a, b) != (0, 0) else (1, 0)


def square_centre(level: int, angle: float, square: tuple[int, int]) -> tuple[float, float]:
    """Centre of a superblock, metres east and south of the settlement's centre."""
    u, v = (np.array(square) + 0.5) * float(_SQUARE[level])
    return float(u * np.cos(angle) - v * np.sin(angle)), float(u * np.sin(angle) + v * np.cos(angle))


@dataclass(frozen=True)
class _Plan:
    """The samples in reach of a settlement, one value each: frame, level, size, hashes and boxes."""

    u: np.ndarray
    v: np.ndarray
    level: np.ndarray
    radius: np.ndarray
    h: np.ndarray
    squares: Boxes
    blocks: Boxes
    far: np.ndarray  # distance of the block's centre from the settlement's, in radii
    inside: np.ndarray
    industry: np.ndarray  # 1 towards the industrial quarter, −1 away from it
    stadium: np.ndarray
    plaza: np.ndarray


def build(grid: Grid, ground: Ground, s: Land, towns: Settlements, clear: np.ndarray) -> np.ndarray:
    """Draw the settlements where ``clear`` (H, W bool) allows it, and lawn where it does not.

    Returns where their blocks are (H, W bool).
    """
    built = np.zeros(grid.shape, bool)
    owner = np.full(grid.shape, -1, np.int64)
    x, y = grid.mesh
    for n, (cx, cy, radius) in enumerate(zip(towns.x, towns.y, towns.radius, strict=True)):
        near = (x - np.float32(cx)) ** 2 + (y - np.float32(cy)) ** 2 < np.float32((SPREAD * radius) ** 2)
        owner[near & (owner < 0)] = n
    q = np.flatnonzero(owner >= 0)
    if not len(q):
        return built
    p = _plan(grid, towns, owner.ravel()[q], x.ravel()[q], y.ravel()[q])
    part = ground.take(q)
    tone = s.fine.ravel()[q], s.middle.ravel()[q], s.grain.ravel()[q]
    _furnish(part, p, tone)
    free = clear.ravel()[q]
    part.paint(~free, "artificial meadow", "lawn", cover=0.85, dirt=0.2, height=0, bright=1)
    dry = ~np.isin(ground.leaf.ravel()[q], (LEAF["river"], LEAF["lake"], LEAF["pond"]))
    ground.put(q, part, p.inside & dry)
    built.ravel()[q[p.inside & free & dry]] = True
    return built


def _plan(grid: Grid, towns: Settlements, n: np.ndarray, x: np.ndarray, y: np.ndarray) -> _Plan:
    f4 = np.float32
    level, radius, h = towns.level[n], towns.radius[n].astype(f4), towns.h[n]
    cos, sin = np.cos(towns.angle).astype(f4)[n], np.sin(towns.angle).astype(f4)[n]
    cx, cy = towns.x.astype(f4)[n], towns.y.astype(f4)[n]
    px, py = x - cx, y - cy
    u, v = px * cos + py * sin, py * cos - px * sin
    big = squares(u, v, _SQUARE[level], h)
    blocks = cut(big, u, v, _BLOCK_AREA[level], 6, 0.3)
    bu, bv = blocks.centre
    bx, by = cx + bu * cos - bv * sin, cy + bu * sin + bv * cos
    ragged = np.zeros(len(n), f4)
    for rank, scale in ((VILLAGE, 110), (TOWN, 420), (CITY, 1500)):
        k = level == rank
        if k.any():
            ragged[k] = 0.24 * grid.scattered("suburb", scale, bx[k], by[k])
            ragged[k] += 0.12 * grid.scattered("fringe", scale // 3, bx[k], by[k])
    far = np.hypot(bu, bv) / radius
    inside = (1 - far + ragged + f4(0.16) * (unit(blocks.h, 4) - f4(0.5)) > 0) & (far < SPREAD - 0.12)
    quarter = pick(h, 54, 0, 2 * np.pi)  # the same hash as City.industry
    direction = np.cos(np.arctan2(by - cy, bx - cx) - quarter)
    halls = [stadium_square(*row) for row in zip(towns.level.tolist(), towns.radius, towns.h, strict=True)]
    place = np.array([(-99, -99) if a is None else a for a in halls])[n]
    iu, iv = np.floor(u / _SQUARE[level]).astype(np.int64), np.floor(v / _SQUARE[level]).astype(np.int64)
    stadium = (iu == place[:, 0]) & (iv == place[:, 1])
    plaza = (iu == 0) & (iv == 0) & (level == CITY)
    return _Plan(u, v, level, radius, h, big, blocks, far, inside, direction, stadium, plaza)


def _furnish(g: Ground, p: _Plan, tone: tuple[np.ndarray, ...]) -> None:
    """Zones, lots, buildings, then parks and streets over them."""
    fine, middle, grain = tone
    f4 = np.float32
    village, city = p.level == VILLAGE, p.level == CITY
    r = [unit(p.blocks.h, 10 + n) for n in range(8)]
    zone = unit(p.squares.h, 10)
    green = ~village & ((r[0] < 0.05) | (zone < 0.045)) & ~p.stadium | p.plaza
    wish = f4(0.55) * p.industry + f4(0.9) * (p.far - f4(0.5)) + f4(0.7) * (zone - f4(0.5))
    works = ~village & ~green & ~p.stadium & ((wish > 0.52) | (r[1] < 0.03))
    idle = ~village & ~green & ~p.stadium & (r[2] < np.where(p.far > 0.75, f4(0.12), f4(0.015)))
    works &= ~idle
    centre = ~works & (p.far < 0.28) & city
    estate = f4(0.65) * unit(p.squares.h, 11) + f4(0.35) * r[3]
    slab = ~village & ~works & ~centre & (estate < np.where(city, f4(0.55), f4(0.35)))

    lots = cut(p.blocks, p.u, p.v, _lot_area(village, works, centre, r[4]), 7, 0.2)
    s = [unit(lots.h, 10 + n) for n in range(9)]
    roof, ridge = _roof(p, lots, s, works | centre)
    row, along = _rows(p, r)
    roof = np.where(slab, row & along, roof)
    roof &= s[7] < np.where(village, f4(0.86), np.where(works, f4(0.9), f4(0.95)))
    # Yards.
    leafy = s[5] < np.where(works, f4(0.12), np.where(centre, f4(0.2), f4(0.2) + f4(0.6) * unit(p.squares.h, 12)))
    yard = np.where(leafy, KIND["lawn"], choose(lots.h, 30, ["concrete", "old asphalt", "dirt road"]))
    trees = leafy & (grain + fine + f4(0.8) * (s[6] - f4(0.5)) > 0.5)
    g.leaf[:] = np.where(village, 10, np.where(works, 8, 9))
    g.paint(
        np.s_[...],
        kind=np.where(trees, KIND["street trees"], yard),
        cover=np.where(trees, f4(0.75), f4(0.45) + f4(0.45) * s[8]),
        dirt=np.clip(f4(0.22) + f4(0.12) * middle + f4(0.10) * fine, 0, 0.8),
        bright=f4(0.9) + f4(0.2) * s[6] + f4(0.04) * fine,
        height=np.where(trees, f4(5), f4(0)),
        phase=0,
    )
    houses = choose(lots.h, 31, _HOUSES)
    flats = choose(p.blocks.h, 32, _FLATS)
    tall = np.where(
        centre, 12 + 24 * s[3] ** 2, np.where(slab, 15 + 17 * r[5], np.where(works, 9, np.where(village, 5, 8)))
    )
    g.paint(
        roof,
        kind=np.where(works, choose(lots.h, 33, _SHEDS), np.where(slab | centre, flats, houses)),
        cover=f4(0.6) + f4(0.4) * s[4],
        dirt=f4(0.15),
        bright=(f4(0.8) + f4(0.4) * s[6]) * (1 + np.where(works | centre | slab, f4(0.03), f4(0.14)) * ridge),
        height=tall,
    )
    g.paint(idle, "bare land", choose(p.blocks.h, 34, ["building site", "bare soil", "building site"]), height=0)
    g.paint(idle, cover=np.clip(0.5 + 0.2 * middle + 0.1 * fine, 0, 1), dirt=np.clip(0.2 + 0.3 * fine, 0, 0.7))
    _park(g, p, green, r, tone)
    _stadium(g, p, tone)
    _streets(g, p, tone)


def _lot_area(village: np.ndarray, works: np.ndarray, centre: np.ndarray, r: np.ndarray) -> np.ndarray:
    area = np.where(
        works, 2600 + 5200 * r, np.where(centre, 1500 + 1500 * r, np.where(village, 300 + 260 * r, 420 + 420 * r))
    )
    return area.astype(np.float32)


def _roof(p: _Plan, lots: Boxes, s: list[np.ndarray], big: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A roof on each lot, set back from its sides, and the side of its ridge (±1)."""
    f4 = np.float32
    du, dv = lots.u1 - lots.u0, lots.v1 - lots.v0
    low = np.where(big, f4(0.07), f4(0.13))
    u0, u1 = lots.u0 + du * (low + f4(0.16) * s[0]), lots.u1 - du * (low + f4(0.14) * s[1])
    v0, v1 = lots.v0 + dv * (low + f4(0.14) * s[1]), lots.v1 - dv * (low + f4(0.18) * s[2])
    roof = (p.u > u0) & (p.u < u1) & (p.v > v0) & (p.v < v1)
    notch = (s[2] < 0.3) & (p.u > (u0 + u1) / 2) & (p.v > (v0 + v1) / 2)
    ridge = np.where(du > dv, np.sign(p.v - (v0 + v1) / 2), np.sign(p.u - (u0 + u1) / 2))
    return roof & ~notch, ridge.astype(np.float32)


def _rows(p: _Plan, r: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Blocks of flats in parallel rows along u."""
    f4 = np.float32
    gap = f4(24) + f4(14) * r[5]
    row = np.mod(p.v - p.blocks.v0 - 8, gap) < f4(11) + f4(3) * r[6]
    run = f4(40) + f4(30) * r[7]
    along = np.mod(p.u - p.blocks.u0 - 8, run) < run - f4(9)
    return row, along & (p.blocks.edge(p.u, p.v) > 9)


def _park(g: Ground, p: _Plan, green: np.ndarray, r: list[np.ndarray], tone: tuple[np.ndarray, ...]) -> None:
    """Lawns and groves with paths and a pond, or a paved square with trees."""
    fine, middle, grain = tone
    u, v = p.blocks.centre
    edge = p.blocks.edge(p.u, p.v)
    paved = green & (r[6] < np.where(p.plaza, 0.7, 0.3))
    lawn = green & ~paved
    g.paint(green, "park & square", "lawn", cover=0.85, dirt=np.clip(0.15 + 0.1 * middle, 0, 0.6), height=0)
    grove = lawn & (middle + fine + grain + 2 * r[5] > 1.3)
    g.paint(grove, kind="street trees", cover=0.85, height=7 + 2 * grain, bright=np.clip(0.9 + 0.1 * grain, 0.6, 1.3))
    g.paint(paved, kind="concrete", cover=np.clip(0.8 + 0.1 * fine, 0, 1), bright=1.05)
    beds = paved & (np.abs(np.mod(p.u - u, 36) - 18) < 6) & (np.abs(np.mod(p.v - v, 36) - 18) < 6)
    g.paint(beds, kind="street trees", cover=0.7, height=5)
    bend = np.float32(18) * np.sin(p.v / np.float32(23) + 6 * r[4])
    path = lawn & ((np.abs(p.u - u + bend) < 2.2) | (np.abs(p.v - v + bend) < 2.0))
    g.paint(path, kind="concrete", cover=0.8, height=0)
    size = np.float32(0.26) * np.minimum(p.blocks.u1 - p.blocks.u0, p.blocks.v1 - p.blocks.v0)
    pool = lawn & (r[7] < 0.55) & (np.hypot(p.u - u, (p.v - v) * 1.3) < size * (1 + 0.28 * middle)) & (edge > 14)
    g.paint(pool, "pond", "pond water", cover=0.5 + 0.4 * r[4], dirt=0.06, height=0, bright=1)


def _stadium(g: Ground, p: _Plan, tone: tuple[np.ndarray, ...]) -> None:
    """A pitch in a running track in stands, on a paved apron; the rest of the superblock is a park."""
    _, middle, grain = tone
    u, v = p.squares.centre
    swap = derive(p.squares.h, 60) & np.uint32(1)
    a, b = np.where(swap, p.v - v, p.u - u), np.where(swap, p.u - u, p.v - v)
    oval = np.hypot(np.maximum(np.abs(a) - 46, 0), b)
    stands = p.level == CITY
    reach = np.where(stands, np.float32(84), np.float32(56))
    rest = p.stadium & (oval > reach)
    g.paint(rest, "park & square", "lawn", cover=0.85, dirt=0.15, height=0, bright=1)
    g.paint(rest & (middle + grain > 0.4), kind="street trees", height=7)
    g.paint(p.stadium & (oval <= reach), "stadium", "concrete", cover=0.8, dirt=0.1, bright=1, height=0)
    seats = p.stadium & stands & (oval < 70) & (oval >= 47)
    g.paint(seats, kind=choose(p.squares.h, 61, ["white roof", "steel roof", "grey roof", "blue roof"]), height=16)
    g.paint(p.stadium & (oval < 45), kind="track", cover=0.9, bright=1, height=0)
    stripe = 1 + np.float32(0.07) * np.sign(np.sin(a * np.float32(0.55)))
    turf = np.where(unit(p.squares.h, 62) < 0.5, KIND["turf"], KIND["lawn"])
    g.paint(p.stadium & (oval < 35.5), kind=turf, cover=0.95, dirt=0.03, bright=stripe)


def _streets(g: Ground, p: _Plan, tone: tuple[np.ndarray, ...]) -> None:
    """Main streets between superblocks, streets between blocks; a village's lanes stay part of the village."""
    fine, middle, _ = tone
    main = p.squares.edge(p.u, p.v) < _MAIN[p.level]
    small = (p.blocks.edge(p.u, p.v) < _STREET[p.level]) & ~p.stadium & ~p.plaza
    street, village = main | small, p.level == VILLAGE
    walk = ~village & ~street & (p.squares.edge(p.u, p.v) < _MAIN[p.level] + 5)
    g.paint(walk & (derive(p.squares.h, 63) % 3 > 0) & (middle > -0.4), kind="street trees", cover=0.75, height=6)
    paving = np.where(main, KIND["asphalt"], KIND["old asphalt"])
    g.paint(street & village, kind=choose(p.h, 64, ["concrete", "dirt road", "old asphalt"]), cover=0.7, height=0)
    g.paint(street & ~village, "road", paving, cover=np.clip(0.7 + 0.08 * fine, 0, 1), dirt=0.15, height=0, bright=1)
