"""What a farmer's work leaves to be seen: rows, tracks, beds, tunnels, trees on a grid, bunds and hedges.

Stripes are averaged over the width of a sample, so that a coarse grid shows their mean and no moiré.
"""

import numpy as np

from hierlab.twin.fields import Grid
from hierlab.twin.ground import Ground, modulo, stripes
from hierlab.twin.hashing import pick, unit
from hierlab.twin.parcels import Parcels, Use
from hierlab.twin.regions import style
from hierlab.twin.rural import Land
from hierlab.twin.spectra import KIND
from hierlab.twin.woods import CROWNS, scatter

# Metres between rows, their width, and how bare the ground between them is (0 to 1).
_ROWS = {
    "maize": (0.75, 0.45, 0.5),
    "wheat and maize": (0.6, 0.4, 0.4),
    "sunflower": (0.75, 0.45, 0.6),
    "soybean": (0.5, 0.35, 0.4),
    "potatoes": (0.8, 0.5, 0.7),
    "vegetables": (1.5, 1.1, 0.8),
    "plastic mulch": (1.3, 0.8, 1.0),
    "rape": (0.4, 0.3, 0.2),
    "wheat": (0.15, 0.1, 0.3),
    "barley": (0.15, 0.1, 0.3),
    "oats": (0.15, 0.1, 0.3),
    "rice": (0.3, 0.15, 0.4),
    "early rice": (0.3, 0.15, 0.4),
    "vineyard": (2.3, 1.0, 1.0),
}
_TRACKED = ("wheat", "barley", "oats", "rape", "wheat and maize", "maize", "potatoes")  # sprayed from tracks
_TRACK = 0.5  # metres: the width of a wheel track


def _table(values: dict[str, tuple], n: int) -> np.ndarray:
    out = np.zeros(len(KIND), np.float32)
    for name, row in values.items():
        out[KIND[name]] = row[n]
    return out


_PERIOD, _WIDTH, _GAP = (_table(_ROWS, n) for n in range(3))
_HAS_TRACKS = np.isin(np.arange(len(KIND)), [KIND[n] for n in _TRACKED])


def work(grid: Grid, ground: Ground, s: Land, p: Parcels, plan: Use) -> None:
    """Everything inside the parcels and between them, on what ``cultivate`` has laid."""
    crops = plan.leaf < 2
    _passes(ground, p, crops)
    _rows(grid, ground, p, plan, crops)
    _tunnels(grid, ground, p, plan)
    _orchards(grid, ground, s, p, plan)
    _plots(grid, ground, p, plan)
    _margins(grid, ground, s, p, crops)
    meadow = p.spread(np.isin(plan.kind, [KIND["meadow"], KIND["sown grass"], KIND["fallow"]]))
    scatter(grid, ground, s, meadow, "meadow trees", 29, ("street trees", "street conifers"), 9, 0.14, (0.09, 0.19))


def _passes(ground: Ground, p: Parcels, crops: np.ndarray) -> None:
    """Strips a machine wide that grew a little better or worse."""
    wide = pick(p.h, 80, 3, 12)
    strength = np.where(crops, pick(p.h, 81, 0.01, 0.06), np.float32(0.015))
    table = (unit((np.arange(1024) * 0x9E3779B1 & 0xFFFFFFFF).astype(np.uint32), 3) - np.float32(0.5)) * np.float32(2)
    t = p.v * p.spread(1 / wide)
    number = t.astype(np.int32)
    number += p.spread((p.h & np.uint32(1023)).astype(np.int32))
    number &= 1023
    tone = table.take(number)
    tone *= p.spread(strength)
    ground.cover += tone
    tone += 1
    ground.bright *= tone
    np.clip(ground.cover, 0, 1, out=ground.cover)


def _across(grid: Grid, p: Parcels, q: np.ndarray, n: np.ndarray) -> np.ndarray:
    """Metres across the rows at the samples ``q`` of the parcels ``n``: rows run along, and across at the ends."""
    u, v = p.u.ravel()[q], p.v.ravel()[q]
    along = u - p.u0.astype(np.float32).take(n)
    across = v - p.v0.astype(np.float32).take(n)
    turn = pick(p.h, 82, 4, 11).take(n)
    ends = np.minimum(along, p.length.astype(np.float32).take(n) - along) < turn
    return np.where(ends, along, across)


def _rows(grid: Grid, ground: Ground, p: Parcels, plan: Use, crops: np.ndarray) -> None:
    """Plants in rows with soil between them, and the tracks of the sprayer."""
    step = grid.step
    period, width = _PERIOD[plan.kind], _WIDTH[plan.kind]
    seen = crops & (width + np.float32(step) <= period)
    tracked = crops & _HAS_TRACKS[plan.kind] & (unit(p.h, 83) < 0.7)
    every = np.float32(3) * np.floor(pick(p.h, 84, 5, 10))
    if step > CROWNS:  # the tracks are not seen, only that there is a little less of the crop
        bare = np.where(tracked, np.float32(2 * _TRACK) / every, np.float32(0))
        ground.cover *= p.spread(1 - np.float32(0.8) * bare)
        ground.bright *= p.spread(1 - np.float32(0.12) * bare)
        tracked = np.zeros_like(tracked)
    if not (seen | tracked).any():
        return
    q = np.flatnonzero(p.spread(seen | tracked))
    if not len(q):
        return
    n = p.number.ravel()[q]
    t = _across(grid, p, q, n)
    cover, bright = ground.cover.ravel(), ground.bright.ravel()
    if seen.any():
        k = seen.take(n)
        i, m = q[k], n[k]
        a, b = period.take(m), width.take(m)
        share = b / a
        rise = stripes(t[k], a, b, step) - share
        c = cover[i]
        # As much as leaves every value between 0 and 1, so that the mean stays.
        room = _GAP[plan.kind].take(m) * np.minimum(c / share, (1 - c) / (1 - share))
        cover[i] = c + rise * room
        bright[i] *= 1 + np.float32(0.1) * rise
    if tracked.any():
        k = tracked.take(n)
        i, m = q[k], n[k]
        a = every.take(m)
        bare = stripes(t[k], a, _TRACK, step) + stripes(t[k] + np.float32(1.8), a, _TRACK, step)
        cover[i] *= 1 - np.float32(0.8) * bare
        bright[i] *= 1 - np.float32(0.12) * bare


def _tunnels(grid: Grid, ground: Ground, p: Parcels, plan: Use) -> None:
    """Greenhouses: film tunnels with ditches between them, glass under ridged roofs, with paths across both."""
    film, glass = plan.kind == KIND["greenhouse"], plan.kind == KIND["glass greenhouse"]
    q = np.flatnonzero(p.spread(film | glass))
    if not len(q):
        return
    n = p.number.ravel()[q]
    step, h = np.float32(grid.step), p.h
    along = p.u.ravel()[q] - p.u0.astype(np.float32).take(n)
    across = p.v.ravel()[q] - p.v0.astype(np.float32).take(n)
    every = np.where(film, pick(h, 85, 8, 11), np.float32(40)).astype(np.float32).take(n)
    wide = every - np.where(film, pick(h, 86, 1.0, 2.0), np.float32(3)).astype(np.float32).take(n)
    run = pick(h, 87, 45, 90).take(n)
    roof = stripes(across, every, wide, step) * stripes(along, run, run - np.float32(4), step)
    inside = p.edge.ravel()[q] > 2.5
    roof = np.where(inside, roof, 0)
    film = film.take(n)
    ridge = np.where(film, every, np.float32(3.2))
    place = modulo(across, ridge) / np.where(film, wide, np.float32(3.2)) - np.float32(0.5)
    arch = np.clip(1 - 4 * place * place, 0, 1)
    clean = (np.float32(0.55) + np.float32(0.4) * unit(h, 88)).take(n)
    lit = np.where(film, 1 + np.float32(0.1) * place, 1 + np.float32(0.25) * np.sign(place))
    ground.at(
        q,
        cover=roof * clean,
        dirt=np.float32(0.12) + np.float32(0.1) * (1 - roof),
        bright=np.where(grid.step <= 2, lit, 1) * (np.float32(0.9) + np.float32(0.2) * unit(h, 89).take(n)),
        height=np.where(roof > 0.5, np.where(film, 1 + 2 * arch, 4 + arch), 0),
    )


def _orchards(grid: Grid, ground: Ground, s: Land, p: Parcels, plan: Use) -> None:
    """Trees on a grid, in grass."""
    q = np.flatnonzero(p.spread(plan.kind == KIND["orchard"]))
    if not len(q):
        return
    n, h = p.number.ravel()[q], p.h
    a, b = pick(h, 85, 3.5, 7.5), pick(h, 86, 2.8, 6.5)
    radius = np.minimum(np.minimum(a, b) * pick(h, 87, 0.28, 0.48), np.float32(2.8))
    share = (np.float32(np.pi) * radius**2 / (a * b)).take(n)
    a, b, radius, dirt = a.take(n), b.take(n), radius.take(n), pick(h, 88, 0.3, 0.8).take(n)
    if grid.step <= CROWNS:
        x = p.v.ravel()[q] - p.v0.astype(np.float32).take(n)
        y = p.u.ravel()[q] - p.u0.astype(np.float32).take(n)
        i, j = np.floor(x / a), np.floor(y / b)
        lost = unit((h.take(n) ^ (i * 7919 + j * 104729).astype(np.int64).astype(np.uint32)), 9)
        d = np.hypot(x - (i + np.float32(0.5)) * a, y - (j + np.float32(0.5)) * b)
        d += np.float32(0.12) * s.take("speck", q)
        wild = np.float32(0.85) + np.float32(0.3) * lost
        trees = np.clip((radius * wild - d) / np.float32(grid.step) + np.float32(0.5), 0, 1)
        trees = np.where(lost < 0.04, 0, trees)
        dome = np.sqrt(np.clip(1 - (d / radius) ** 2, 0, 1))
        bright = np.float32(1) + trees * (np.float32(-0.17) + np.float32(0.22) * dome)
        tall = trees * (np.float32(1) + np.float32(2.4) * dome)
    else:
        trees, tall, bright = share * np.float32(0.98), np.float32(2.45) * share, np.float32(0.987)
    ground.at(
        q,
        cover=np.float32(0.12) + np.float32(0.8) * trees,
        dirt=dirt * (1 - trees) + np.float32(0.1) * trees,
        bright=bright * ground.bright.ravel()[q],
        height=tall,
    )


def _plots(grid: Grid, ground: Ground, p: Parcels, plan: Use) -> None:
    """Paddies are made of level plots with low bunds between them."""
    paddy = plan.leaf == 0
    q = np.flatnonzero(p.spread(paddy))
    if not len(q):
        return
    n, h, step = p.number.ravel()[q], p.h, np.float32(grid.step)
    along = p.u.ravel()[q] - p.u0.astype(np.float32).take(n)
    across = p.v.ravel()[q] - p.v0.astype(np.float32).take(n)
    a, b = pick(h, 85, 28, 70).take(n), pick(h, 86, 12, 30).take(n)
    wide = pick(h, 87, 0.4, 0.9).take(n)
    bund = np.maximum(stripes(along, a, wide, step), stripes(across, b, wide, step))
    # Each plot stands a little deeper in water, or not so deep.
    tone = unit((h.take(n) ^ ((along / a).astype(np.int32) * 31 + (across / b).astype(np.int32)).astype(np.uint32)), 7)
    cover, bright, dirt = ground.cover.ravel(), ground.bright.ravel(), ground.dirt.ravel()
    cover[q] *= (np.float32(0.9) + np.float32(0.2) * tone) * (1 - np.float32(0.5) * bund)
    np.clip(cover, 0, 1, out=cover)
    bright[q] *= (np.float32(0.95) + np.float32(0.1) * tone) * (1 + np.float32(0.15) * bund)
    dirt[q] += np.float32(0.4) * bund * (1 - dirt[q])


def _margins(grid: Grid, ground: Ground, s: Land, p: Parcels, crops: np.ndarray) -> None:
    """Bunds, tracks and hedges between the parcels belong to the cropland."""
    d, edge = p.district, p.edge
    hedges = style(grid.seed, grid.region).hedges
    q = np.flatnonzero((edge < 4.5) & p.spread(crops))
    if not len(q):
        return
    n, e = p.number.ravel()[q], edge.ravel()[q]
    middle, fine = s.middle.ravel()[q], s.fine.ravel()[q]
    track = unit(d, 48) < 0.4
    half = np.where(track, pick(d, 47, 1.2, 2.6), pick(d, 47, 0.4, 2.2)).take(n) + np.float32(0.15) * fine
    bund = e < half
    on, k = q[bund], n[bund]
    worn = track.take(k)
    grass = np.clip(np.float32(0.6) + np.float32(0.15) * fine[bund], 0, 1)
    rut = np.float32(0.28)  # its mean
    if grid.step <= 1:
        rut = np.clip(1 - np.abs(e[bund] - np.float32(0.8)) / np.float32(0.45), 0, 1)
    ground.at(
        on,
        kind=np.where(worn, KIND["dirt road"], KIND["meadow"]),
        cover=np.where(worn, np.float32(0.55) + np.float32(0.3) * rut, grass),
        dirt=np.where(worn, np.float32(0.35) * (1 - rut) + np.float32(0.05), np.float32(0.15)),
        bright=(1 + np.where(worn, np.float32(0.1) * rut, 0)) * (1 + np.float32(0.06) * s.take("speck", on)),
        height=0,
    )
    wooded = (unit(d, 49) < hedges).take(n)
    shrubs = wooded & (e < np.float32(1.4) + np.float32(0.9) * fine) & (middle > -0.6)
    ground.at(
        q[shrubs],
        kind="hedge",
        cover=np.float32(0.85),
        dirt=np.float32(0.1),
        bright=np.float32(0.93) + np.float32(0.1 if grid.step <= CROWNS else 0) * s.grain.ravel()[q[shrubs]],
        height=np.clip(np.float32(2.4) + fine[shrubs], 1, 5),
    )
    trees = wooded & (e < 3.5) & (middle > 0.2)
    if grid.step > CROWNS:
        tops = q[trees & (s.grain.ravel()[q] > -0.5)]
        means = {"cover": 0.87, "dirt": 0.1, "bright": 0.95, "height": 6.6}
        ground.at(tops, kind="street trees", **{k: np.float32(v) for k, v in means.items()})
        return
    where = np.zeros(grid.shape, bool)
    where.ravel()[q[trees]] = True
    scatter(grid, ground, s, where, "hedge trees", 8, ("street trees", "street trees"), 8, 0.85, (0.4, 0.65))
