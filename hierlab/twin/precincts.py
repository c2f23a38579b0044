"""Works, parks, sports grounds and streets of a settlement, and ``furnish``: all things of one of its squares."""

from functools import lru_cache

import numpy as np

from hierlab.twin import buildings
from hierlab.twin.buildings import (
    BUILDING,
    CARS,
    CROWN,
    GROUND,
    LOW,
    MARK,
    ROOF,
    SHEDS,
    VEHICLE,
    Builder,
    byte,
    choice,
    equipment,
    lot,
    trees,
)  # fmt: skip
from hierlab.twin.ground import Ground
from hierlab.twin.hashing import derive, mix, unit
from hierlab.twin.places import VILLAGE
from hierlab.twin.quarters import CENTRE, FARMS, HOUSES, PARK, PAVED, SLABS, STADIUM, WORKS, Town, lots, plan
from hierlab.twin.spectra import KIND
from hierlab.twin.things import CAR, DISC, DOME, FLAT, GABLE, PARAPET, SAW, VAULT, Things, ragged


@lru_cache(maxsize=256)
def furnish(town: Town, iu: int, iv: int, small: bool = True) -> Things:
    """Everything in the square (iu, iv) of a settlement, in metres east and south of its centre.

    Without ``small``, what is drawn up to a step of ``buildings.SMALL`` metres is left out.
    """
    p = plan(town, iu, iv, 1, 1)
    b = p.blocks
    plots = lots(town, b)
    build = Builder(town, b, plots, small)
    zone = b.zone[plots.block]
    inside = b.inside[plots.block]
    for kind, furnisher in _FURNISHERS:
        n = np.flatnonzero((zone == kind) & inside)
        if len(n):
            furnisher(build, n)
    _parks(build)
    _streets(build)
    return build.build()


def _works(build: Builder, n: np.ndarray) -> None:
    """Sheds with loading yards, container and tank yards, car parks with an office."""
    w, d, h, r = lot(build, n)
    use = r(0)
    k = np.flatnonzero(use < 0.66)
    _sheds(build, n[k])
    k = np.flatnonzero((use >= 0.66) & (use < 0.78))
    _rows(build, n[k], 6.6, 3.2, 0.72, "container")
    k = np.flatnonzero((use >= 0.78) & (use < 0.86))
    m, i = ragged(np.full(len(k), 6))
    k = k[m]
    radius = np.minimum(w, d)[k] * (0.09 + 0.06 * unit(h[k], 70))
    s, t = ((i % 3) - 1) * w[k] * 0.3, (0.3 + 0.4 * (i // 3)) * d[k]
    ok = build.free(n[k], s, t, radius)
    k, i, s, t, radius = k[ok], i[ok], s[ok], t[ok], radius[ok]
    kind = choice(h[k], 71, ("white roof", "steel roof", "white roof", "grey roof"))
    build.on(GROUND, n[k], s, t, radius + 3, radius + 3, FLAT, "gravel", step=4.0)
    build.on(BUILDING, n[k], s, t, radius, radius, DOME, kind, base=9.0, rise=1.5, cover=0.95)
    k = np.flatnonzero(use >= 0.9)
    _rows(build, n[k], 2.7, 5.0, 0.6, "cars")
    for m in range(7):
        hm = derive(h, 80 + m)
        k = np.flatnonzero(unit(hm, 0) < 0.35)
        edge = np.where(m % 2, 1.8, d - 1.8)[k]
        trees(build, n[k], ((unit(hm, 2) - 0.5) * 0.96 * w)[k], edge, 1.5 + 1.6 * unit(hm[k], 8), hm[k])


def _sheds(build: Builder, n: np.ndarray) -> None:
    w, d, h, r = lot(build, n)
    hb = build.b.h[build.lots.block[n]]
    a, b = w / 2 - r(1, 2.5, 7), np.minimum(d * r(2, 0.28, 0.37), 42)
    t = d * 0.52 + r(3, -0.05, 0.05) * d
    ok = build.free(n, 0, t, np.hypot(a, b)) & (a > 8) & (b > 7)
    n, w, d, h, hb, a, b, t = (c[ok] for c in (n, w, d, h, hb, a, b, t))
    if not len(n):
        return
    r = lot(build, n)[3]
    high = r(4, 6.5, 12)
    along = a >= b
    shape = np.array([GABLE, PARAPET, GABLE, SAW, VAULT, FLAT])[np.minimum((6 * unit(h, 55)).astype(int), 5)]
    kind = np.where(unit(hb, 36) < 0.6, choice(hb, 33, SHEDS), choice(h, 33, SHEDS))
    rise = np.array([2.2, 0.8, 2.2, 1.8, 3.5, 0.0])[np.minimum((6 * unit(h, 55)).astype(int), 5)]
    look = {"cover": r(5, 0.7, 1), "dirt": r(6, 0.02, 0.25), "bright": r(7, 0.85, 1.12), "phase": byte(h)}
    la, lb = np.where(along, a, b), np.where(along, b, a)
    build.on(BUILDING, n, 0, t, la, lb, shape, kind, deep=~along, base=high, rise=rise, rib=1.1, **look)
    lights = np.where(np.isin(shape, (GABLE, FLAT, VAULT)) & (unit(h, 56) < 0.6), np.floor(2 * la / 9), 0)
    k, m = ragged(np.minimum(lights, 20).astype(np.int64))
    off = (m + 0.5) * 9 - la[k]
    for side in (-0.5, 0.5):
        s, tt = np.where(along[k], off, side * lb[k]), np.where(along[k], side * lb[k], off)
        strip = {"deep": along[k], "base": high[k] + 0.5 * rise[k], "step": 1.2, "bright": 1.1, "dirt": 0.3}
        build.on(ROOF, n[k], s, t[k] + tt, 0.36 * lb[k], 0.55, FLAT, "white roof", **strip)
    k = np.flatnonzero(np.isin(shape, (PARAPET, FLAT)))
    equipment(build, n[k], 0, t[k], a[k], b[k], high[k], hb[k], h[k])
    k = np.flatnonzero((r(8) < 0.15) & (shape != SAW))
    solar = {"base": high[k] + rise[k], "step": 2.5, "cover": 0.9, "rib": 2.0, "deep": ~along[k]}
    build.on(
        ROOF, n[k], 0, t[k] - 0.3 * np.where(along, lb, 0)[k], la[k] * 0.8, lb[k] * 0.3, FLAT, "solar panel", **solar
    )
    docks, m = ragged(np.floor(2 * a / 5.2).astype(np.int64))
    hd = derive(h[docks] + m.astype(np.uint32) * np.uint32(0x9E3779B1), 57)
    ok = (unit(hd, 1) < 0.22) & ((t - b)[docks] > 9)
    k, m, hd = docks[ok], m[ok], hd[ok]
    lorry = {"deep": True, "base": 3.4, "cover": 0.3 + 0.7 * unit(hd, 2), "step": 1.5, "rib": 0}
    build.on(VEHICLE, n[k], (m + 0.5) * 5.2 - a[k], (t - b)[k] - 6.5, 6.0, 1.25, FLAT, "truck", **lorry)


def _rows(build: Builder, n: np.ndarray, side: float, deep: float, share: float, what: str) -> None:
    """Rows of containers, or of parked cars on both sides of lanes, over whole lots."""
    w, d, h, _ = lot(build, n)
    cars = what == "cars"
    pitch = 16.5 if cars else 3.4
    across, rows = np.floor((w - 8) / side).astype(np.int64), np.floor((d - 8) / pitch).astype(np.int64)
    rows = rows * 2 if cars else rows
    k, m = ragged(np.maximum(across * rows, 0))
    i, j = m % across[k], m // across[k]
    s = (i + 0.5) * side - (w[k] - 8) / 2
    t = 4 + (j // 2) * pitch + 3 + (j % 2) * 10.4 if cars else 4 + (j + 0.5) * pitch
    hm = derive(h[k] + m.astype(np.uint32) * np.uint32(0x9E3779B1), 58)
    lane = np.zeros(len(k), bool) if cars else (j % 6 >= 4)
    ok = (unit(hm, 1) < share) & ~lane & build.free(n[k], s, t, 2.5)
    k, s, t, hm = k[ok], s[ok], t[ok], hm[ok]
    if cars:
        bay = {"deep": True, "step": 0.3, "cover": 0.7}
        build.on(MARK, k, s - side / 2, t, 2.4, 0.05, FLAT, "road marking", **bay)
        lots_here = np.unique(k)
        size = w[lots_here] / 2 - 2, d[lots_here] / 2 - 2
        build.on(GROUND, n[lots_here], 0, d[lots_here] / 2, *size, FLAT, "old asphalt", step=5.0, dirt=0.15)
        build.on(VEHICLE, n[k], s, t, 2.2, 0.9, CAR, choice(hm, 2, CARS), deep=True, base=0.9, rise=0.6, step=1.2)
        return
    stack = {"base": 2.6 * (1 + np.floor(3 * unit(hm, 3))), "step": 2.5, "rib": 0.5, "phase": byte(hm)}
    stack |= {
        "cover": unit(hm, 4) ** 2 + (unit(hm, 5) < 0.4),
        "dirt": 0.5 * unit(hm, 6),
        "bright": 0.8 + 0.3 * unit(hm, 7),
    }
    stack["cover"] = np.minimum(stack["cover"], 1)
    build.on(VEHICLE, n[k], s, t, 3.05, 1.25, FLAT, "container", **stack)


def _parks(build: Builder) -> None:
    """Groves, playing fields and the trees of squares."""
    b = build.b
    green = np.flatnonzero(np.isin(b.zone, (PARK, PAVED, STADIUM)) & b.inside)
    if not len(green):
        return
    w, d = (b.i1 - b.i0)[green], (b.j1 - b.j0)[green]
    u, v = (b.i0 + b.i1)[green] / 2, (b.j0 + b.j1)[green] / 2
    park, hall = b.zone[green] == PARK, b.zone[green] == STADIUM
    field = np.flatnonzero(park & (unit(b.h[green], 45) < 0.3) & (np.minimum(w, d) > 62))
    for k in field:
        long = w[k] >= d[k]
        _pitch(build, u[k], v[k], 0.0 if long else np.pi / 2, b.h[green[k]])
    fielded = np.zeros(len(green), bool)
    fielded[field] = True
    count = np.where(park | hall, w * d / np.where(fielded | hall, 150, 75), 0).astype(np.int64)
    k, m = ragged(np.minimum(count, 2500))
    h = mix(np.uint32(build.town.h), b.h[green].astype(np.int64)[k], m)
    s, t = (unit(h, 1) - 0.5) * (w[k] - 5), (unit(h, 2) - 0.5) * (d[k] - 5)
    rim = np.maximum(np.abs(s) / w[k], np.abs(t) / d[k]) > 0.4
    clump = np.sin(s / 17 + 6 * unit(b.h[green], 46)[k]) + np.sin(t / 19 + 6 * unit(b.h[green], 47)[k])
    ok = (
        (rim | (clump > 0.3))
        & ~(hall[k] & (np.hypot(s, t) < 140))
        & ~(fielded[k] & (np.abs(s) < 48 * (w >= d)[k] + 32) & (np.abs(t) < 80 - 48 * (w >= d)[k]))
    )
    k, h, s, t = k[ok], h[ok], s[ok], t[ok]
    _crowns(build, u[k] + s, v[k] + t, 1.8 + 3 * unit(h, 3), h)
    k = np.flatnonzero(~park & ~hall)
    nx = np.floor(w[k] / 9).astype(np.int64)
    k, nx = k[nx > 0], nx[nx > 0]
    i, m = ragged(nx * np.floor(d[k] / 9).astype(np.int64))
    s, t = (m % nx[i] + 0.5) * 9 - w[k[i]] / 2, (m // nx[i] + 0.5) * 9 - d[k[i]] / 2
    ok = (np.mod(m % nx[i], 4) < 2) & ((np.abs(s) > 16) | (np.abs(t) > 16))
    i, s, t = k[i[ok]], s[ok], t[ok]
    h = mix(np.uint32(build.town.h), b.h[green].astype(np.int64)[i], np.arange(len(i)))
    _crowns(build, u[i] + s, v[i] + t, 1.9 + unit(h, 3), h)
    k = np.flatnonzero(~park & ~hall)
    build.add(LOW, u[k], v[k], 0.0, 7.0, 7.0, DISC, "paving", step=2.0, bright=1.15)
    build.add(LOW, u[k], v[k], 0.0, 5.5, 5.5, DISC, "swimming pool", step=4.0, cover=0.8)


def _crowns(build: Builder, u, v, radius, h: np.ndarray) -> None:
    """Single crowns anywhere, clear of big ways."""
    ok = ~build.blocked(u, v, 1.0) if len(u) else np.zeros(0, bool)
    u, v, radius, h = u[ok], v[ok], radius[ok], h[ok]
    conifer = unit(h, 6) < 0.1 + 0.3 * max(build.town.style.conifers, 0)
    kind = np.where(conifer, KIND["street conifers"], KIND["street trees"])
    values = {"cover": 0.78 + 0.2 * unit(h, 4), "bright": 0.86 + 0.3 * unit(h, 5), "phase": byte(h)}
    values |= {"base": 0.9 * radius, "rise": 1.2 * radius, "dirt": 0.04, "step": 5.0}
    build.add(CROWN, u, v, 6.28 * unit(h, 7), radius, radius * 0.9, DOME, kind, **values)


def _pitch(build: Builder, u: float, v: float, turn: float, h: np.uint32) -> None:
    """A football pitch with its lines."""
    build.add(GROUND, u, v, turn, 34.0, 23.0, FLAT, "lawn", cover=0.95, dirt=0.03, bright=1.05, rib=9.0)
    _lines(build.add, u, v, turn, 32.0, 21.0)


def _lines(add, u: float, v: float, turn: float, a: float, b: float) -> None:
    """White lines of a pitch of half length ``a`` and half width ``b``, by a function like ``Builder.add``."""
    cos, sin = np.cos(turn), np.sin(turn)
    box = 0.4 * b
    rows = [(0, b, a, 0.06), (0, -b, a, 0.06), (a, 0, 0.06, b), (-a, 0, 0.06, b), (0, 0, 0.06, b)]
    for side in (-1, 1):
        rows += [
            (side * (a - 0.32 * a), 0, 0.06, box),
            *((side * (a - 0.16 * a), s * box, 0.16 * a, 0.06) for s in (-1, 1)),
        ]
    p, q, la, lb = np.array(rows, float).T
    values = {"step": 0.3, "cover": 0.8}
    add(MARK, u + p * cos - q * sin, v + p * sin + q * cos, turn, la, lb, FLAT, "road marking", **values)
    n = np.arange(28) * 2 * np.pi / 28
    ring = 0.24 * b + 2
    p, q = ring * np.cos(n), ring * np.sin(n)
    arc = {"step": 0.3, "cover": 0.8}
    turns = turn + n + np.pi / 2
    add(MARK, u + p * cos - q * sin, v + p * sin + q * cos, turns, ring * 0.113, 0.06, FLAT, "road marking", **arc)


def _streets(build: Builder) -> None:
    """Trees on the pavements, parked and moving cars, marks between the lanes, zebra crossings."""
    b, town = build.b, build.town
    n = np.flatnonzero(b.inside)
    sides = np.stack([b.u0, b.u1, b.v0, b.v1], 1)[n].ravel()
    block = np.repeat(n, 4)
    which = np.tile(np.arange(4), len(n))
    up = which < 2  # the street runs along v
    low, high = np.where(up, b.v0[block], b.u0[block]), np.where(up, b.v1[block], b.u1[block])
    half, main = b.half[n].ravel(), b.main[n].ravel()
    inward = np.where(which % 2 == 0, 1.0, -1.0)
    h = derive(derive(b.h[block], 26) + which.astype(np.uint32), 27)
    gap = 3.0 + np.where(up, b.half[block, 2], b.half[block, 0]) * 1.3
    length = np.maximum(high - low - 2 * gap, 0)

    def slots(pitch: np.ndarray, share: np.ndarray, salt: int):
        k, m = ragged(np.floor(length / pitch).astype(np.int64))
        hm = derive(h[k] + m.astype(np.uint32) * np.uint32(0x9E3779B1), salt)
        ok = unit(hm, 1) < share[k]
        k, m, hm = k[ok], m[ok], hm[ok]
        return k, low[k] + gap[k] + (m + 0.5) * np.broadcast_to(pitch, h.shape)[k], hm

    def spot(k, along, off):
        across = sides[k] + inward[k] * off
        return np.where(up[k], across, along), np.where(up[k], along, across)

    def put(layer, k, along, off, a, w, shape, kind, **values):
        u, v = spot(k, along, off)
        build.add(layer, u, v, up[k] * np.pi / 2, a, w, shape, kind, **values)

    village = town.level == VILLAGE
    zone = b.zone[block]
    if build.small:
        car = {"base": 0.9, "rise": 0.6, "step": 1.2}
        busy = np.where(village, 0.06, np.where(zone == CENTRE, 0.6, 0.42)) * np.where(main, 0.25, 1.0) * (half > 2.5)
        k, along, hm = slots(6.1, busy, 1)
        put(VEHICLE, k, along, half[k] - 1.05, 2.2, 0.88, CAR, choice(hm, 2, CARS), **car)
        k, along, hm = slots(np.where(main, 24.0, 60.0), np.where(village, 0.1, np.where(main, 0.5, 0.3)), 2)
        lane = half[k] * np.where(main[k] & (unit(hm, 3) < 0.5), 0.62, 0.27)
        put(
            VEHICLE,
            k,
            along + 8 * (unit(hm, 4) - 0.5),
            lane,
            2.25,
            0.9,
            CAR,
            choice(hm, 2, (*CARS, *CARS, "truck")),
            **car,
        )
    if village:
        return
    planted = np.where(unit(b.square[block], 63) < 0.67, np.where(main, 0.85, 0.45), 0.2) * (zone != WORKS)
    k, along, hm = slots(np.full(len(h), 9.0), planted, 3)
    u, v = spot(k, along, half[k] + 1.3)
    _crowns(build, u, v, 1.5 + 1.6 * unit(b.square[block[k]], 64) + 0.6 * unit(hm, 5), hm)
    if not build.small:
        return
    first = which % 2 == 0
    k, along, hm = slots(np.full(len(h), 9.0), np.where(first & (half > 3), 1.0, 0.0), 4)
    mark = {"step": 0.3, "cover": 0.85, "dirt": 0.1}
    put(MARK, k, along, 0.0, np.where(main[k], 4.5, 1.5), 0.075, FLAT, "road marking", **mark)
    k, along, hm = slots(np.full(len(h), 7.0), np.where(main & (half > 8), 1.0, 0.0), 5)
    put(MARK, k, along, half[k] * 0.45, 1.5, 0.075, FLAT, "road marking", **mark)
    k, m = ragged(np.where(main, 2 * np.floor((half - 0.4) / 1.0), 0).astype(np.int64))
    end = np.where(m % 2, high[k] - gap[k] + 2.6, low[k] + gap[k] - 2.6)
    put(MARK, k, end, 0.6 + m // 2, 1.5, 0.25, FLAT, "road marking", **mark)


def stadium(
    g: Ground, a: np.ndarray, b: np.ndarray, stands: bool, h: np.uint32, step: float, middle: np.ndarray
) -> None:
    """A stadium in its own frame, ``a`` along and ``b`` across (N,), over a park: pitch, track, stands, apron."""
    f = np.float32
    off = np.maximum(np.abs(a) - 46, 0)
    oval = np.hypot(off, b)
    reach = 84 if stands else 56
    one = np.atleast_1d(h)
    roof = choice(one, 61, ("white roof", "steel roof", "grey roof", "blue roof"))[0]
    g.paint(oval <= reach, "stadium", "paving", cover=0.8, dirt=0.1, bright=1 + f(0.02) * middle, height=0)
    g.paint((oval <= reach) & (np.hypot(np.maximum(np.abs(a) - 46, 0), b) > reach - 7), kind="old asphalt")
    turning = np.arctan2(b, np.sign(a) * off) * 46
    around = np.where(np.abs(a) > 46, turning, a)
    if stands:
        rows = 1 + f(0.10) * np.sign(np.sin(oval * f(7.4))) * (step < 0.4) - f(0.12) * (np.mod(around, 14) < 1.2)
        seats = (oval < 70) & (oval >= 47)
        g.paint(seats, kind="concrete", cover=0.85, bright=rows, height=4 + f(0.5) * (oval - 47))
        coloured = seats & (np.mod(np.floor(around / 14), 3) > 0)
        colour = choice(one, 63, ("blue roof", "red roof", "blue roof", "white roof"))[0]
        g.paint(coloured, kind=colour, cover=0.65)
        covered = (oval < 72) & (oval > 57) & ((np.abs(b) > 30) | (unit(one, 64)[0] < 0.5))
        ribs = 1 + f(0.12) * (np.mod(around, 7) < 0.8) - f(0.004) * (oval - 57)
        g.paint(covered, kind=roof, cover=0.9, bright=ribs, height=17 + f(0.25) * (oval - 57))
    lanes = 1 - f(0.03) * (step > 0.4) + f(0.25) * (np.abs(np.mod(oval - 35.6, 1.22) - 0.05) < 0.05) * (step <= 0.4)
    g.paint((oval < 46) & (oval >= 35.5), kind="track", cover=0.9, bright=lanes, height=0)
    ends = (oval < 35.5) & (np.abs(a) > 54)
    stripe = 1 + f(0.07) * np.sign(np.sin(a * f(0.55)))
    turf = "turf" if unit(one, 62)[0] < 0.5 else "lawn"
    g.paint(oval < 35.5, kind=turf, cover=0.95, dirt=0.03, bright=stripe, height=0)
    g.paint(ends & (oval < 33), kind="track", cover=0.6)
    if step <= 0.4:
        line = (np.abs(np.abs(b) - 33) < 0.07) & (np.abs(a) < 52) | (np.abs(np.abs(a) - 52) < 0.07) & (np.abs(b) < 33)
        line |= (np.abs(a) < 0.07) & (np.abs(b) < 33) | (np.abs(np.hypot(a, b) - 9.15) < 0.07)
        for deep, wide in ((16.5, 20.2), (5.5, 9.2)):
            line |= (np.abs(np.abs(a) - 52 + deep) < 0.07) & (np.abs(b) < wide)
            line |= (np.abs(np.abs(b) - wide) < 0.07) & (np.abs(a) < 52) & (np.abs(a) > 52 - deep)
        g.paint(line & (oval < 35.5), kind="road marking", cover=0.8)


_FURNISHERS = (
    (HOUSES, buildings.houses),
    (FARMS, buildings.farms),
    (SLABS, buildings.slabs),
    (CENTRE, buildings.centre),
    (WORKS, _works),
)
