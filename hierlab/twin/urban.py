"""Inside settlements: yards, parks, squares, a stadium, pavements and streets, and the things that stand on them.

What covers the ground is decided block by block and lot by lot (``quarters``); what has an outline of its own comes
from tables of things (``buildings``). Where the step is too coarse for them, each sample draws its cover from the
mixture of its block instead, so that the mean over many samples stays.
"""

from dataclasses import dataclass

import numpy as np

from hierlab.twin import buildings, precincts, quarters
from hierlab.twin.fields import Grid
from hierlab.twin.ground import LEAF, Ground
from hierlab.twin.hashing import derive, key, mix, unit
from hierlab.twin.places import CITY, SPREAD, VILLAGE, Settlements
from hierlab.twin.quarters import (
    CENTRE,
    FARMS,
    HOUSES,
    IDLE,
    PARK,
    PAVED,
    SITE_YEARS,
    SLABS,
    STADIUM,
    WORKS,
    Blocks,
    Town,
    stadium_square,
)  # fmt: skip
from hierlab.twin.rural import Land
from hierlab.twin.spectra import KIND
from hierlab.twin.things import draw, grit, joined

__all__ = ["build", "square_centre", "stadium_square"]

_GREEN = [KIND[n] for n in ("lawn", "sown grass", "meadow", "hedge", "vegetables", "street trees", "street conifers")]
COARSE = 6.0  # metres: from this step on there are no things, only mixtures
_LEAF = np.array([LEAF[n] for n in (
    *("urban residential", "rural residential", "urban residential", "urban residential", "industrial area"),
    *("park & square", "park & square", "bare land", "park & square"),
)], np.uint8)  # fmt: skip
# Shares of roofs, trees and paving on the lots of a zone, at gardens of average greenness; the rest is the yard.
_MIX = {
    HOUSES: (0.26, 0.17, 0.09),
    FARMS: (0.27, 0.14, 0.16),
    SLABS: (0.22, 0.12, 0.10),
    CENTRE: (0.56, 0.05, 0.02),
    WORKS: (0.47, 0.03, 0.03),
}
_YARDS = {  # kinds of yards: green ones, and others
    HOUSES: (("lawn", "lawn", "sown grass"), ("paving", "concrete", "gravel", "dirt road")),
    FARMS: (("lawn", "meadow", "sown grass"), ("dirt road", "concrete", "dirt road", "gravel")),
    SLABS: (("lawn",), ("concrete", "paving", "old asphalt")),
    CENTRE: (("lawn",), ("paving", "concrete", "old asphalt", "concrete")),
    WORKS: (("lawn", "meadow"), ("concrete", "old asphalt", "concrete", "dirt road", "gravel")),
}


def square_centre(level: int, angle: float, square: tuple[int, int]) -> tuple[float, float]:
    """Centre of a square between main streets, metres east and south of the settlement's, but for its bends."""
    u, v = (np.array(square) + 0.5) * quarters.SQUARE[level]
    return float(u * np.cos(angle) - v * np.sin(angle)), float(u * np.sin(angle) + v * np.cos(angle))


@dataclass(frozen=True)
class _Part:
    """The samples (N,) of one settlement on a tile: flat index, frame, block, and three textures."""

    town: Town
    grid: Grid
    q: np.ndarray
    u: np.ndarray
    v: np.ndarray
    block: np.ndarray
    blocks: Blocks
    fine: np.ndarray
    middle: np.ndarray
    grain: np.ndarray

    def zone(self, *zones: int) -> np.ndarray:
        return np.isin(self.blocks.zone, zones)[self.block]

    def per_block(self, values: np.ndarray) -> np.ndarray:
        """A float column of the blocks at the samples."""
        return values.astype(np.float32)[self.block]


def build(grid: Grid, ground: Ground, s: Land, towns: Settlements, clear: np.ndarray) -> np.ndarray:
    """Draw the settlements where ``clear`` (H, W bool) allows it, and lawn where it does not.

    Returns where their blocks are (H, W bool).
    """
    built, standing, taken = (np.zeros(grid.shape, bool) for _ in range(3))
    columns = grid.shape[1]
    tables = []
    for x, y, radius, level, angle, h in zip(*towns, strict=True):
        reach = SPREAD * radius
        c0, c1 = np.searchsorted(grid.x, (x - reach, x + reach))
        r0, r1 = np.searchsorted(grid.y, (y - reach, y + reach))
        if c0 >= c1 or r0 >= r1:
            continue
        town = Town(grid.seed, grid.region, grid.ax + round(x), grid.ay + round(y), radius, int(level), angle, int(h))
        px, py = grid.x[c0:c1] - np.float32(x), grid.y[r0:r1] - np.float32(y)
        near = (px[None] ** 2 + py[:, None] ** 2 < np.float32(reach**2)) & ~taken[r0:r1, c0:c1]
        if not near.any():
            continue
        taken[r0:r1, c0:c1] |= near
        row, column = np.nonzero(near)
        part = _part(town, grid, s, (row + r0) * columns + column + c0, px[column], py[row])
        if part is not None:
            tables += _settle(part, ground, clear, built, standing)
    if tables:
        draw(grid, ground, joined(tables), standing)
        if grid.step <= 0.5:
            q = np.flatnonzero(built)
            rough = grit(grid, "grit", 180).ravel()[q]
            green = np.isin(ground.kind.ravel()[q], _GREEN)
            ground.bright.ravel()[q] *= 1 + np.where(green, np.float32(0.10), np.float32(0.035)) * rough
    return built


def _part(town: Town, grid: Grid, s: Land, q: np.ndarray, x: np.ndarray, y: np.ndarray) -> _Part | None:
    """The samples that lie in blocks which stand or are being built in the grid's year; None if there are none."""
    u, v = town.bend(x, y)
    size = quarters.SQUARE[town.level]
    iu, iv = int(np.floor(u.min() / size)), int(np.floor(v.min() / size))
    nu, nv = int(np.floor(u.max() / size)) - iu + 1, int(np.floor(v.max() / size)) - iv + 1
    p = quarters.plan(town, iu, iv, nu, nv)
    shown = p.blocks.inside & (p.blocks.renewed | (p.blocks.year - SITE_YEARS <= grid.year))
    if not shown.any():
        return None
    block = p.find(u, v)
    n = np.flatnonzero(shown[block])
    if not len(n):
        return None
    q = q[n]
    return _Part(
        town, grid, q, u[n], v[n], block[n], p.blocks, s.fine.ravel()[q], s.middle.ravel()[q], s.grain.ravel()[q]
    )


def _settle(p: _Part, ground: Ground, clear: np.ndarray, built: np.ndarray, standing: np.ndarray) -> list:
    """Paint the samples of a settlement, mark which are built and finished; returns the things that belong there."""
    g = ground.take(p.q)
    free = clear.ravel()[p.q]
    dry = free | ~np.isin(g.leaf, (LEAF["river"], LEAF["lake"], LEAF["pond"]))  # fish ponds make way
    _cover(g, p)
    _park(g, p)
    _stadium(g, p)
    site = _sites(g, p)
    _streets(g, p)
    g.paint(~free, "artificial meadow", "lawn", cover=0.85, dirt=0.2, height=0, bright=1)
    ground.put(p.q, g, dry)
    built.ravel()[p.q[free & dry]] = True
    standing.ravel()[p.q[free & dry & ~site]] = True
    if p.grid.step > COARSE:
        return []
    seen = np.unique(p.blocks.corner[np.bincount(p.block).nonzero()[0]], axis=0)
    dx, dy = p.town.x - p.grid.ax, p.town.y - p.grid.ay
    small = p.grid.step <= buildings.SMALL
    return [precincts.furnish(p.town, int(i), int(j), small).moved(dx, dy) for i, j in seen]


def _cover(g: Ground, p: _Part) -> None:
    """The leaf of every block and the yards of its lots."""
    b, f = p.blocks, np.float32
    g.leaf[:] = _LEAF[b.zone][p.block]
    g.height[:], g.phase[:] = 0, 0
    if p.grid.step > COARSE:
        _mixture(g, p)
        return
    plots = quarters.lots(p.town, b)
    n = plots.find(b, p.block, p.u, p.v)
    kind, cover, bright, dirt = _yards(p.town, b.zone[plots.block], plots.h)
    g.kind[:] = kind[n]
    g.cover[:] = np.clip(cover[n] + f(0.06) * p.middle, 0, 1)
    g.dirt[:] = np.clip(dirt[n] + f(0.10) * p.middle + f(0.07) * p.fine, 0, 0.8)
    g.bright[:] = bright[n] + f(0.05) * p.fine + f(0.03) * p.grain


def _yards(town: Town, zone: np.ndarray, h: np.ndarray) -> tuple[np.ndarray, ...]:
    """Kind, cover, brightness and dirt (N,) of yards, by zone and hash."""
    kind = np.full(len(h), KIND["lawn"], np.uint8)
    green = np.array([0.45, 0.3, 0.45, 0.12, 0.12, 1, 1, 1, 1])[zone]
    green = green + np.array([0.5, 0.4, 0.4, 0.15, 0.1, 0, 0, 0, 0])[zone] * town.style.gardens
    leafy = unit(h, 30) < green
    for z, (lawns, others) in _YARDS.items():
        k = np.flatnonzero(zone == z)
        if len(k):
            kind[k] = np.where(leafy[k], buildings.choice(h[k], 31, lawns), buildings.choice(h[k], 32, others))
    f = np.float32
    cover = np.where(leafy, f(0.72) + f(0.26) * unit(h, 33), f(0.5) + f(0.45) * unit(h, 33))
    return kind, cover, f(0.88) + f(0.24) * unit(h, 34), f(0.1) + f(0.2) * unit(h, 35)


def _mixture(g: Ground, p: _Part) -> None:
    """Roof, tree, paving or yard for every sample, by the shares of its zone."""
    x, y = (np.floor(a).astype(np.int64) for a in (p.grid.x, p.grid.y))
    h = mix(key(p.town.seed, p.town.region, "mixture"), p.grid.ax + x, p.grid.ay + y[:, None]).ravel()[p.q]
    zone = p.blocks.zone[p.block]
    g.kind[:], g.cover[:], g.bright[:], g.dirt[:] = _yards(p.town, zone, h)
    r = unit(h, 50)
    village = p.town.level == VILLAGE
    for z, (roofs, trees, paved) in _MIX.items():
        n = np.flatnonzero(zone == z)
        if not len(n):
            continue
        trees = trees * (0.5 + p.town.style.gardens)
        k = n[r[n] < roofs]
        if z in (HOUSES, FARMS):
            g.kind[k] = buildings.choice(h[k], 51, p.town.style.roofs)
            g.height[k] = 4 if village else 6
        else:
            names = buildings.SHEDS if z == WORKS else buildings.FLATS
            g.kind[k] = buildings.choice(p.blocks.h[p.block[k]] ^ (h[k] & np.uint32(1)), 52, names)
            g.height[k] = np.array([0, 0, 24, 18, 9])[z]
        g.cover[k], g.dirt[k] = 0.85, 0.12
        k = n[(r[n] >= roofs) & (r[n] < roofs + trees)]
        g.kind[k], g.cover[k], g.height[k] = KIND["street trees"], 0.85, 4
        k = n[(r[n] >= roofs + trees) & (r[n] < roofs + trees + paved)]
        g.kind[k] = buildings.choice(h[k], 53, ("paving", "concrete", "old asphalt"))


def _park(g: Ground, p: _Part) -> None:
    """Lawns with paths and a pond, paved squares, and ground that lies idle."""
    b, f = p.blocks, np.float32
    n = np.flatnonzero(p.zone(PARK, PAVED, IDLE, STADIUM))
    if not len(n):
        return
    block, fine, middle = p.block[n], p.fine[n], p.middle[n]
    cu, cv = ((b.u0 + b.u1) / 2).astype(f)[block], ((b.v0 + b.v1) / 2).astype(f)[block]
    u, v, zone = p.u[n] - cu, p.v[n] - cv, b.zone[block]
    r = [unit(b.h, 40 + k)[block] for k in range(5)]
    part = g.take(n)
    lawn = (zone == PARK) | (zone == STADIUM)
    part.paint(lawn, kind="lawn", cover=np.clip(0.88 + 0.05 * middle, 0, 1), dirt=np.clip(0.12 + 0.1 * middle, 0, 0.6))
    lawn &= zone == PARK
    bend = f(18) * np.sin(v / f(23) + 6 * r[0])
    path = lawn & ((np.abs(u + bend) < 1.8) | (np.abs(v + f(15) * np.sin(u / f(21) + 6 * r[1])) < 1.6))
    part.paint(path, kind="paving", cover=0.85, dirt=0.1)
    paved = zone == PAVED
    tiles = f(0.06) * ((np.mod(u, 6) < 0.5) | (np.mod(v, 6) < 0.5)) if p.grid.step < 1.5 else f(0.01)
    part.paint(paved, kind="paving", cover=np.clip(0.85 + 0.08 * fine, 0, 1), dirt=0.05, bright=1.04 - tiles)
    beds = paved & (np.abs(np.mod(u, 36) - 18) < 5) & (np.abs(np.mod(v, 36) - 18) < 5)
    part.paint(beds & (np.hypot(u, v) > 16), kind="lawn", cover=0.9, dirt=0.1)
    size = f(0.24) * np.minimum(b.u1 - b.u0, b.v1 - b.v0).astype(f)[block]
    deep = np.hypot(u - size * (r[2] - f(0.5)), v * f(1.3)) - size * (1 + f(0.2) * middle)
    pool = lawn & (unit(b.h, 45)[block] > 0.5) & (deep < 0)
    part.paint(lawn & (unit(b.h, 45)[block] > 0.5) & (deep < 1.8), kind="gravel", cover=0.8)
    part.paint(pool, "pond", "pond water", cover=0.5 + 0.4 * r[3], dirt=0.06, bright=1)
    idle = zone == IDLE
    kind = buildings.choice(b.h, 34, ("building site", "bare soil", "fallow"))[block]
    part.paint(
        idle, kind=kind, cover=np.clip(0.5 + 0.2 * middle + 0.1 * fine, 0, 1), dirt=np.clip(0.2 + 0.3 * fine, 0, 0.7)
    )
    g.put(n, part, np.ones(len(n), bool))


def _stadium(g: Ground, p: _Part) -> None:
    """A pitch in a running track in stands on a paved apron, turned with the streets."""
    hall = np.flatnonzero((p.blocks.zone == STADIUM) & np.isin(np.arange(len(p.blocks.zone)), p.block))
    for k in hall:
        n = np.flatnonzero(p.block == k)
        part = g.take(n)
        b = p.blocks
        x, y, turn = p.town.place((b.u0 + b.u1)[[k]] / 2, (b.v0 + b.v1)[[k]] / 2)
        dx, dy = p.town.x - p.grid.ax + x[0], p.town.y - p.grid.ay + y[0]
        row, column = np.divmod(p.q[n], p.grid.shape[1])
        px, py = p.grid.x[column] - np.float32(dx), p.grid.y[row] - np.float32(dy)
        angle = float(turn[0]) + np.pi / 2 * int(derive(b.h[[k]], 60)[0] & 1)
        cos, sin = np.float32(np.cos(angle)), np.float32(np.sin(angle))
        precincts.stadium(
            part, px * cos + py * sin, py * cos - px * sin, p.town.level == CITY, b.h[k], p.grid.step, p.middle[n]
        )
        g.put(n, part, np.ones(len(n), bool))


def _sites(g: Ground, p: _Part) -> np.ndarray:
    """Blocks that are being built: bare ground, heaps and pits. Returns where they are (N,)."""
    b = p.blocks
    site = (b.year > p.grid.year) & (b.year - SITE_YEARS <= p.grid.year) & ~np.isin(b.zone, (PARK, IDLE))
    if not site.any():
        return site[p.block]
    site = site[p.block]
    n = np.flatnonzero(site)
    part = g.take(n)
    fine, middle = p.fine[n], p.middle[n]
    part.paint(np.s_[...], "bare land", "building site", height=0, bright=1 + np.float32(0.05) * p.grain[n])
    part.cover[:] = np.clip(0.55 + 0.25 * middle + 0.15 * fine, 0, 1)
    part.dirt[:] = np.clip(0.08 + 0.1 * fine, 0, 0.5)
    g.put(n, part, np.ones(len(n), bool))
    return site


def _streets(g: Ground, p: _Part) -> None:
    """Pavements, kerbs and carriageways; a village's lanes stay part of the village."""
    b, f = p.blocks, np.float32
    u, v, block = p.u, p.v, p.block
    inner = np.minimum(
        np.minimum(u - p.per_block(b.i0), p.per_block(b.i1) - u),
        np.minimum(v - p.per_block(b.j0), p.per_block(b.j1) - v),
    )
    n = np.flatnonzero((inner < 0) & ~(p.zone(STADIUM) & (inner > -2)))
    if not len(n):
        return
    u, v, block = u[n], v[n], block[n]
    off = np.stack(
        [u - b.u0.astype(f)[block], b.u1.astype(f)[block] - u, v - b.v0.astype(f)[block], b.v1.astype(f)[block] - v]
    )
    off -= b.half.astype(f).T[:, block]  # metres from the kerb, negative on the carriageway
    kerb = off.min(0)
    main = ((off < 0) & b.main.T[:, block]).any(0)
    fine, middle = p.fine[n], p.middle[n]
    part = g.take(n)
    village = p.town.level == VILLAGE
    street = kerb < 0
    if village:
        kind = buildings.choice(np.atleast_1d(np.uint32(p.town.h)), 64, ("concrete", "dirt road", "old asphalt"))[0]
        part.paint(street, kind=kind, cover=np.clip(0.7 + 0.1 * fine, 0, 1), height=0, bright=1, dirt=0.15)
    else:
        walk = ~street
        part.paint(walk, kind="paving", cover=np.clip(0.8 + 0.08 * fine, 0, 1), dirt=0.12, height=0, bright=1)
        strip = walk & (derive(b.square, 65)[block] % 3 == 0) & (kerb > 0.4) & (kerb < 2.0) & main_side(b, block, off)
        part.paint(strip, kind="lawn", cover=0.8, dirt=0.2)
        age = f(0.12) * (unit(b.square, 66)[block] - f(0.5))
        part.paint(street, "road", np.where(main, KIND["asphalt"], KIND["old asphalt"]), height=0, dirt=0.12)
        part.paint(street, cover=np.clip(0.72 + 0.08 * fine, 0, 1), bright=1 + age + f(0.05) * middle)
        if p.grid.step <= 0.4:
            part.paint(np.abs(kerb) < 0.11, kind="concrete", cover=1, bright=1.1)
            worn = street & (np.abs(kerb + 1.6) < 0.5)
            part.paint(worn, bright=f(0.93) + age)
        if p.grid.step > 1.2:
            part.paint(street, bright=f(1.03) + age, dirt=0.15)  # the cars that are too small to be seen
    g.put(n, part, np.ones(len(n), bool))


def main_side(b: Blocks, block: np.ndarray, off: np.ndarray) -> np.ndarray:
    """Whether the street nearest to each sample, of distances (4, N), is a main street."""
    return b.main[block, off.argmin(0)]
