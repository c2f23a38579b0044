"""What stands on the lots and along the streets of a settlement, as tables of things, square by square."""

import numpy as np

from hierlab.twin import transport
from hierlab.twin.hashing import derive, unit
from hierlab.twin.places import CITY
from hierlab.twin.quarters import Blocks, Lots, Town
from hierlab.twin.spectra import KIND
from hierlab.twin.things import (
    CAR,
    DISC,
    DOME,
    FLAT,
    GABLE,
    HIP,
    PARAPET,
    STEP,
    Things,
    joined,
    ragged,
    things,
)  # fmt: skip

GROUND, MARK, LOW, VEHICLE, BUILDING, ROOF, CROWN = range(7)  # the order of drawing
CARS = (*("white car", "dark car") * 5, "red car")
FLATS = ("grey roof", "concrete", "dark roof", "white roof", "brown roof", "grey roof")
SHEDS = ("blue roof", "steel roof", "white roof", "blue roof", "grey roof", "red roof", "concrete")
_TURN = np.pi / 2
SMALL = 2.0  # metres: things that are drawn up to this step at most are left out where all steps are larger


def choice(h: np.ndarray, salt: int, names) -> np.ndarray:
    """Kind numbers (N,) drawn by hash from names, or from (name, share) pairs."""
    pairs = [(n, 1.0) if isinstance(n, str) else n for n in names]
    ends = np.cumsum([share for _, share in pairs])
    table = np.array([KIND[n] for n, _ in pairs], np.uint8)
    return table[np.minimum(np.searchsorted(ends, unit(h, salt) * ends[-1], "right"), len(pairs) - 1)]


class Builder:
    """Collects things in the frame of a settlement and places them on the ground.

    Without ``small``, things whose ``step`` is at most ``SMALL`` are left out: nothing is to be drawn that fine.
    """

    def __init__(self, town: Town, blocks: Blocks, plots: Lots, small: bool = True):
        self.town, self.b, self.lots, self.small = town, blocks, plots, small
        self.layers: list[tuple[int, Things]] = []

    def add(self, layer: int, u, v, turn, a, b, shape, kind, **values) -> None:
        """Things at (u, v), their long axis ``turn`` radians from u."""
        if np.size(u) and self.shows(values):
            self.layers.append((layer, things(u, v, turn, a, b, shape, kind, **values)))

    def on(self, layer: int, n: np.ndarray, s, t, a, b, shape, kind, deep=False, **values) -> None:
        """Things on lots ``n``, ``s`` along the front and ``t`` in from it; ``deep`` turns their long axis inwards."""
        if not len(n) or not self.shows(values):
            return
        u, v = self.lots.uv(n, np.asarray(s, float), np.asarray(t, float))
        turn = (self.lots.tall[self.lots.block[n]] ^ np.asarray(deep, bool)) * _TURN
        self.add(layer, u, v, turn, a, b, shape, kind, **values)

    def shows(self, values: dict) -> bool:
        """Whether things with these ``values`` are wanted."""
        return self.small or values.get("step", STEP) > SMALL

    def free(self, n: np.ndarray, s, t, radius) -> np.ndarray:
        """Which circles on lots ``n`` stay clear of big ways, stamps and water."""
        u, v = self.lots.uv(n, np.asarray(s, float), np.asarray(t, float))
        return ~self.blocked(u, v, radius)

    def blocked(self, u, v, radius) -> np.ndarray:
        """Which circles round (u, v) meet big ways, stamps or water."""
        x, y, _ = self.town.place(u, v)
        return transport.blocked(self.town.seed, self.town.region, self.town.x, self.town.y, x, y, radius)

    def build(self) -> Things:
        """All things, in the order of their layers, in metres east and south of the settlement's centre."""
        order = sorted(range(len(self.layers)), key=lambda n: (self.layers[n][0], n))
        table = joined([self.layers[n][1] for n in order])
        if not len(table.x):
            return table
        x, y, turn = self.town.place(table.x, table.y)
        cos, sin = np.cos(turn).astype(np.float32), np.sin(turn).astype(np.float32)
        c, s = table.cos, table.sin
        return table._replace(x=x, y=y, cos=c * cos - s * sin, sin=s * cos + c * sin)


def lot(build: Builder, n: np.ndarray):
    """Width, depth, hash of lots and a function that draws numbers in [low, high) for them."""
    w, d, h = build.lots.l1[n] - build.lots.l0[n], np.abs(build.lots.back[n] - build.lots.front[n]), build.lots.h[n]

    def draw(salt: int, low: float = 0.0, high: float = 1.0) -> np.ndarray:
        return low + (high - low) * unit(h, 40 + salt).astype(float)

    return w, d, h, draw


def byte(h: np.ndarray) -> np.ndarray:
    """A number from 0 to 255 of every hash, uint8: what sets one thing's look apart from another's."""
    return (derive(h, 7) & np.uint32(255)).astype(np.uint8)


def trees(build: Builder, n: np.ndarray, s, t, radius, h: np.ndarray, tall: float = 1.0) -> None:
    """Single crowns on lots."""
    kind = np.where(unit(h, 3) < 0.12 + 0.3 * max(build.town.style.conifers, 0), "street conifers", "street trees")
    kind = np.where(kind == "street trees", KIND["street trees"], KIND["street conifers"])
    values = {"cover": 0.78 + 0.2 * unit(h, 4), "bright": 0.86 + 0.3 * unit(h, 5), "phase": byte(h)}
    values |= {"base": 0.8 * radius * tall, "rise": 1.1 * radius * tall, "dirt": 0.04, "step": 5.0}
    build.on(CROWN, n, s, t, radius, radius * (0.82 + 0.3 * unit(h, 6)), DOME, kind, **values)


def _details(build: Builder, n, s, t, hw, hd, along, top, h: np.ndarray) -> None:
    """Chimneys, roof windows and solar panels on pitched roofs; ``top`` is the height of the eaves. All small."""
    if not build.small:
        return
    r = [unit(h, 60 + k).astype(float) for k in range(8)]
    k = np.flatnonzero(r[0] < 0.6)
    off = np.where(r[1] < 0.5, -1, 1) * 0.3
    cs, ct = np.where(along, off * hw, 0.08 * hw), np.where(along, 0.08 * hd, off * hd)
    small = {"base": top[k] + 3.4, "step": 0.35, "dirt": 0.3}
    build.on(ROOF, n[k], (s + cs)[k], (t + ct)[k], 0.45, 0.35, FLAT, "brown roof", **small)
    for sign in (-1, 1):
        k = np.flatnonzero(r[2 + (sign > 0)] < 0.3)
        cs, ct = np.where(along, 0.2 * hw, sign * 0.25 * hw), np.where(along, sign * 0.25 * hd, 0.2 * hd)
        window = {"base": top[k] + 1.2, "step": 0.3, "cover": 0.95, "bright": 0.7, "dirt": 0.0}
        build.on(ROOF, n[k], (s + cs)[k], (t + ct)[k], 0.6, 0.45, FLAT, "solar panel", **window)
    k = np.flatnonzero(r[4] < 0.13)
    sign = np.where(r[5] < 0.5, -1, 1)
    cs, ct = np.where(along, 0, sign * 0.25 * hw), np.where(along, sign * 0.25 * hd, 0)
    a, b = np.where(along, 0.3 * hw, 0.17 * hw)[k], np.where(along, 0.17 * hd, 0.3 * hd)[k]
    build.on(
        ROOF,
        n[k],
        (s + cs)[k],
        (t + ct)[k],
        a,
        b,
        FLAT,
        "solar panel",
        base=top[k] + 1.4,
        step=1.2,
        rib=1.0,
        cover=0.95,
    )


def houses(build: Builder, n: np.ndarray) -> None:
    """Detached, paired and terraced houses with a drive, a garden, hedges and trees."""
    w, d, h, r = lot(build, n)
    style = build.town.style
    hb = build.b.h[build.lots.block[n]]
    terrace = (unit(hb, 30) < 0.32 - 0.2 * (style.lot - 1)) & (w < 24)
    hw = np.where(terrace, w, np.clip(w * r(0, 0.48, 0.66), 6.5, 17))
    hd = np.minimum(np.where(terrace, 8 + 3 * unit(hb, 31), r(1, 7.5, 11.5)), 0.55 * d)
    setback = np.minimum(2.5 + 6 * unit(hb, 32) + np.where(terrace, 0, r(2, -0.8, 1.6)), 0.25 * d)
    s = np.where(terrace, 0, (w - hw) * r(3, -0.34, 0.34))
    t = setback + hd / 2
    ok = (r(4) < 0.95) & (d > 11) & build.free(n, s, t, 0.5 * np.hypot(hw, hd))
    n, w, d, h, hb, terrace, hw, hd, s, t, setback = (c[ok] for c in (n, w, d, h, hb, terrace, hw, hd, s, t, setback))
    if not len(n):
        return
    r = lot(build, n)[3]
    eaves = np.where(terrace, 5.5 + 3 * (unit(hb, 33) < 0.3), np.where(r(5) < 0.5, 3.2, 5.8))
    along = (hw >= 0.95 * hd) | terrace
    pitch = np.minimum(hw, hd) * (0.24 + 0.14 * unit(hb, 34))
    pick = np.where(unit(hb, 35) < 0.55, unit(hb, 36), r(6))
    shape = np.where(pick < 0.55, GABLE, np.where(pick < 0.88, HIP, PARAPET))
    shape = np.where(terrace & (shape == HIP), GABLE, shape)
    kind = np.where(unit(hb, 37) < 0.6, choice(hb, 38, style.roofs), choice(h, 39, style.roofs))
    kind = np.where(shape == PARAPET, choice(h, 46, FLATS), kind)
    rise = np.where(shape == PARAPET, 0.4, pitch)
    look = {"cover": r(7, 0.75, 1), "dirt": r(8, 0.02, 0.2), "bright": r(9, 0.82, 1.14), "phase": byte(h)}
    build.on(
        *(BUILDING, n, s, t, np.where(along, hw, hd) / 2, np.where(along, hd, hw) / 2, shape, kind),
        **look | {"deep": ~along, "base": eaves, "rise": rise, "rib": 0.35},
    )
    k = np.flatnonzero((r(10) < 0.4) & ~terrace & (shape != PARAPET))
    side = np.where(r(11) < 0.5, -1, 1)[k]
    wing = {name: value[k] for name, value in look.items()}
    build.on(
        *(BUILDING, n[k], s[k] + side * hw[k] * 0.24, t[k] + 1.0, hd[k] / 2 + 1.4, hw[k] * 0.22, GABLE, kind[k]),
        **wing | {"deep": True, "base": eaves[k], "rise": 0.8 * rise[k], "rib": 0.35},
    )
    k = np.flatnonzero(shape != PARAPET)
    _details(build, n[k], s[k], t[k], hw[k], hd[k], along[k], eaves[k], h[k])
    _front(build, n, w, s, setback, hw, hd, h, r)
    _garden(build, n, w, d, t + hd / 2, h, r)


def _front(build: Builder, n, w, s, setback, hw, hd, h, r) -> None:
    """The drive with its garage and car, and the path to the door: all small."""
    if not build.small:
        return
    side = np.where(s > 0, -1.0, 1.0)
    room = w / 2 - side * s - hw / 2  # between the house and the side of the lot
    drive = np.flatnonzero((w > 11) & (r(12) < 0.72))
    k, ds = drive, (side * (w / 2 - 1.9))[drive]
    deep = (setback + np.where(room > 3.4, 0.5 * hd, 0.0) + 1)[k]
    kind = choice(h[k], 47, ("paving", "concrete", "gravel", "old asphalt", "paving"))
    build.on(
        GROUND, n[k], ds, deep / 2 - 1, deep / 2 + 1, 1.5, FLAT, kind, deep=True, step=1.5, bright=r(14, 0.9, 1.1)[k]
    )
    g = np.flatnonzero((room[k] > 3.4) & (r(15)[k] < 0.7))
    roof = choice(h[k[g]], 48, ("grey roof", "dark roof", "concrete", "brown roof"))
    build.on(
        *(BUILDING, n[k[g]], ds[g], deep[g] + 2.2, 3.1, 1.7, FLAT, roof),
        deep=True, base=2.6, step=2.0, bright=r(16, 0.85, 1.1)[k[g]],
    )  # fmt: skip
    c = np.flatnonzero(r(17)[k] < 0.5)
    car = choice(h[k[c]], 49, CARS)
    build.on(
        VEHICLE,
        n[k[c]],
        ds[c],
        np.maximum(deep[c] - 3, 2.2),
        2.2,
        0.9,
        CAR,
        car,
        deep=True,
        base=0.9,
        rise=0.6,
        step=1.2,
    )
    p = np.flatnonzero(setback > 3)
    build.on(GROUND, n[p], s[p], setback[p] / 2, setback[p] / 2, 0.6, FLAT, "paving", deep=True, step=0.6)


def _garden(build: Builder, n, w, d, rear, h, r) -> None:
    """Behind the house, from ``rear`` metres on: a terrace, a lawn with trees, hedges, a pool, a shed, beds."""
    style = build.town.style
    green = 0.3 + 0.7 * style.gardens
    space = d - rear
    k = np.flatnonzero((space > 6) & (r(20) < 0.7))
    build.on(GROUND, n[k], r(21, -0.2, 0.2)[k] * w[k], rear[k] + 1.6, r(22, 1.8, 3.2)[k], 1.6, FLAT, "paving", step=1.0)
    k = np.flatnonzero((space > 13) & (w > 13) & (r(23) < 0.03 + 0.1 * style.warm * style.gardens))
    ps, pt = r(24, -0.12, 0.12)[k] * w[k], rear[k] + 6.2
    shape = np.where(r(25)[k] < 0.6, FLAT, DISC)
    build.on(LOW, n[k], ps, pt, 5.0, 2.9, FLAT, "paving", step=1.5, bright=1.1)
    build.on(LOW, n[k], ps, pt, 4.1, 2.0, shape, "swimming pool", step=1.5, cover=0.92, dirt=0.0)
    k = np.flatnonzero((space > 8) & (r(26) < 0.45))
    side = np.where(r(27) < 0.5, -1, 1)[k]
    roof = choice(h[k], 50, ("brown roof", "grey roof", "dark roof"))
    build.on(BUILDING, n[k], side * (w[k] / 2 - 2.2), d[k] - 2.4, 1.6, 1.3, GABLE, roof, base=2.1, rise=0.6, step=1.5)
    k = np.flatnonzero((space > 9) & (r(28) < 0.16))
    bed = {"cover": r(29, 0.3, 0.9)[k], "rib": 0.9, "step": 1.0, "phase": byte(h[k])}
    build.on(LOW, n[k], r(30, -0.25, 0.25)[k] * w[k], d[k] - 4, 3.0, 1.8, FLAT, "vegetables", **bed)
    hedge = {"base": 1.5, "step": 1.0, "cover": 0.9, "dirt": 0.05}
    k = np.flatnonzero(r(31) < green * 0.8)
    build.on(LOW, n[k], w[k] / 2 - 0.3, d[k] / 2 + 2, d[k] / 2 - 2.2, 0.45, FLAT, "hedge", deep=True, **hedge)
    k = np.flatnonzero(r(32) < green * 0.7)
    build.on(LOW, n[k], 0, d[k] - 0.4, w[k] / 2 - 0.2, 0.5, FLAT, "hedge", **hedge)
    k = np.flatnonzero(r(33) < green * 0.45)
    build.on(LOW, n[k], 0.15 * w[k], 0.4, w[k] * 0.3, 0.4, FLAT, "hedge", **hedge | {"base": 1.0})
    bushes(build, n, w, d, rear, h, 7)
    for m in range(5):
        hm = derive(h, 80 + m)
        k = np.flatnonzero((unit(hm, 0) < green * (0.95, 0.75, 0.6, 0.45, 0.6)[m]) & (space > 5))
        tt = np.where(m < 4, rear + 2.5 + (space - 4) * unit(hm, 1), 1.8)[k]
        trees(build, n[k], ((unit(hm, 2) - 0.5) * 0.86 * w)[k], tt, 1.4 + 3.4 * unit(hm[k], 8) ** 1.5, hm[k])


def bushes(build: Builder, n, w, d, rear, h, count: int) -> None:
    """Small shrubs along the sides and the back of gardens."""
    if not build.small:
        return
    for m in range(count):
        hm = derive(h, 100 + m)
        k = np.flatnonzero((unit(hm, 0) < 0.25 + 0.5 * build.town.style.gardens) & (d - rear > 4))
        edge = unit(hm[k], 1) < 0.7
        side = np.where(unit(hm[k], 2) < 0.5, -1, 1)
        s = np.where(edge, side * (w[k] / 2 - 1.3 - unit(hm[k], 3)), (unit(hm[k], 3) - 0.5) * 0.8 * w[k])
        t = np.where(edge, rear[k] + 1 + (d - rear - 2)[k] * unit(hm[k], 4), d[k] - 1.5 - unit(hm[k], 4))
        radius = 0.45 + 0.8 * unit(hm[k], 5)
        look = {"base": 0.5, "rise": 0.9, "phase": byte(hm[k]), "step": 0.5, "bright": 0.85 + 0.4 * unit(hm[k], 6)}
        build.on(LOW, n[k], s, t, radius, 0.85 * radius, DOME, "hedge", cover=0.75 + 0.25 * unit(hm[k], 7), **look)


def farms(build: Builder, n: np.ndarray) -> None:
    """Village lots: a house on the lane, a barn behind a court, sheds, beds, fruit trees, now and then a glasshouse."""
    w, d, h, r = lot(build, n)
    style = build.town.style
    hw, hd = np.minimum(r(0, 9, 14), w - 1), np.minimum(r(1, 6.5, 9.5), 0.5 * d)
    s, t = (w - hw) * r(2, -0.45, 0.45), hd / 2 + r(3, 0.3, 3.5)
    ok = (r(4) < 0.93) & (d > 10) & build.free(n, s, t, 0.5 * np.hypot(hw, hd))
    n, w, d, h, hw, hd, s, t = (c[ok] for c in (n, w, d, h, hw, hd, s, t))
    if not len(n):
        return
    r = lot(build, n)[3]
    space = d - t - hd / 2
    court = choice(h, 47, ("concrete", "dirt road", "paving", "gravel", "concrete"))
    deep = np.minimum(space, 11)
    look = {"cover": r(6, 0.4, 0.9), "dirt": r(7, 0.1, 0.5), "step": 5.0, "bright": r(8, 0.85, 1.1)}
    build.on(GROUND, n, 0, t + hd / 2 + deep / 2 - 1, w / 2 - 1, deep / 2, FLAT, court, **look)
    build.on(GROUND, n, np.where(s > 0, -1, 1) * (w / 2 - 2), t, hd / 2 + 4, 1.6, FLAT, court, deep=True, **look)
    kind = choice(h, 39, style.roofs)
    shape = np.where(r(9) < 0.78, GABLE, np.where(r(9) < 0.9, HIP, PARAPET))
    look = {"cover": r(10, 0.65, 1), "dirt": r(11, 0.05, 0.3), "bright": r(12, 0.75, 1.12), "phase": byte(h)}
    rise = np.where(shape == PARAPET, 0.4, 2.4)
    build.on(BUILDING, n, s, t, hw / 2, hd / 2, shape, kind, base=r(13, 3, 5.6), rise=rise, rib=0.35, **look)
    _details(build, n, s, t, hw, hd, np.ones(len(n), bool), np.full(len(n), 3.2), h)
    k = np.flatnonzero((r(14) < 0.6) & (space > 12))
    side = np.where(r(15) < 0.5, -1, 1)[k]
    barn = choice(h[k], 51, ("brown roof", "steel roof", "red roof", "grey roof", "red roof"))
    a, b = np.minimum(space[k] * 0.36, r(16, 5, 10)[k]), np.minimum(r(17, 2.8, 4.4)[k], 0.25 * w[k])
    build.on(
        *(BUILDING, n[k], side * (w[k] / 2 - b - 0.6), (t + hd / 2)[k] + 2.5 + a, a, b, GABLE, barn),
        deep=True, base=3.6, rise=2.0, rib=0.5, bright=r(18, 0.8, 1.1)[k],
    )  # fmt: skip
    k = np.flatnonzero((r(19) < 0.35) & (space > 16))
    bed = {"cover": r(20, 0.3, 0.95)[k], "rib": 0.9, "step": 2.5, "phase": byte(h[k])}
    build.on(LOW, n[k], 0.1 * w[k], d[k] - 3.4, w[k] * 0.36, 2.6, FLAT, "vegetables", **bed)
    k = np.flatnonzero((r(21) < 0.05) & (space > 16))
    glass = {"base": 2.2, "rise": 1.2, "rib": 1.5, "step": 5.0}
    build.on(BUILDING, n[k], 0.15 * w[k], d[k] - 4.5, 6.0, 2.8, GABLE, "glass greenhouse", **glass)
    k = np.flatnonzero(r(22) < 0.25)
    car = choice(h[k], 49, (*CARS, "truck"))
    build.on(
        VEHICLE, n[k], r(23, -0.3, 0.3)[k] * w[k], (t + hd / 2)[k] + 4, 2.2, 0.9, CAR, car, base=0.9, rise=0.6, step=1.2
    )
    for m in range(4):
        hm = derive(h, 80 + m)
        k = np.flatnonzero((unit(hm, 0) < (0.4 + 0.4 * style.gardens) * (1, 0.8, 0.6, 0.5)[m]) & (space > 5))
        tt = (t + hd / 2 + 2 + (space - 2) * unit(hm, 1) ** 0.7)[k]
        trees(build, n[k], ((unit(hm, 2) - 0.5) * 0.9 * w)[k], tt, 1.5 + 3.2 * unit(hm[k], 8), hm[k])


def slabs(build: Builder, n: np.ndarray) -> None:
    """Blocks of flats and towers among lawns, with cars in front."""
    w, d, h, r = lot(build, n)
    hb = build.b.h[build.lots.block[n]]
    tower = unit(hb, 30) < (0.3 if build.town.level == CITY else 0.1)
    a = np.where(tower, r(0, 9.5, 13), w / 2 - r(1, 3.5, 8))
    b = np.where(tower, r(2, 9, 12), 5.2 + 2 * unit(hb, 31))
    t = d * 0.52 + r(3, -1.5, 1.5)
    ok = build.free(n, 0, t, np.hypot(a, b)) & (a > 6) & (d > 22) & (r(4) < 0.96)
    n, w, d, h, hb, tower, a, b, t = (c[ok] for c in (n, w, d, h, hb, tower, a, b, t))
    if not len(n):
        return
    r = lot(build, n)[3]
    high = np.where(tower, 42 + 50 * unit(hb, 32), 15 + 3 * np.floor(6 * unit(hb, 32)))
    kind = choice(hb, 33, FLATS)
    pitched = ~tower & (unit(hb, 34) < 0.25)
    kind = np.where(pitched, choice(hb, 38, build.town.style.roofs), kind)
    look = {"cover": r(5, 0.8, 1), "dirt": r(6, 0.05, 0.2), "bright": r(7, 0.9, 1.1), "phase": byte(h)}
    shape, rise = np.where(pitched, HIP, PARAPET), np.where(pitched, 2.6, 0.9)
    build.on(BUILDING, n, 0, t, a, b, shape, kind, base=high, rise=rise, **look)
    flat = np.flatnonzero(~pitched)
    equipment(build, n[flat], 0, t[flat], a[flat], b[flat], high[flat], hb[flat], h[flat])
    k = np.flatnonzero(t - b > 8)
    build.on(GROUND, n[k], 0, (t - b)[k] - 3.2, w[k] / 2, 2.6, FLAT, "old asphalt", step=5.0, dirt=0.2)
    slots, m = ragged(np.floor(w[k] / 2.9).astype(np.int64))
    hc = derive(h[k][slots] + m.astype(np.uint32) * np.uint32(0x9E3779B1), 52)
    parked = unit(hc, 1) < 0.5
    slots, m, hc = k[slots[parked]], m[parked], hc[parked]
    values = {"deep": True, "base": 0.9, "rise": 0.6, "step": 1.2}
    build.on(
        VEHICLE,
        n[slots],
        (m + 0.5) * 2.9 - w[slots] / 2,
        (t - b)[slots] - 3.4,
        2.2,
        0.88,
        CAR,
        choice(hc, 2, CARS),
        **values,
    )
    build.on(GROUND, n, 0, t + b + 2.4, a, 0.9, FLAT, "paving", step=1.2)
    for m in range(12):
        hm = derive(h, 80 + m)
        k = np.flatnonzero(unit(hm, 0) < 0.6 + 0.4 * build.town.style.gardens)
        behind = unit(hm, 1)[k]
        tt = np.where(m % 3 == 0, 2.0 + 2 * behind, (t + b)[k] + 4 + behind * np.maximum(d - t - b - 5, 1)[k])
        trees(build, n[k], ((unit(hm, 2) - 0.5) * 0.95 * w)[k], tt, 1.7 + 2.8 * unit(hm[k], 8), hm[k])


def equipment(build: Builder, n, s, t, a, b, high, hb: np.ndarray, h: np.ndarray) -> None:
    """On flat roofs: lift houses, machines, roof lights, rows of solar panels. All small."""
    if not build.small:
        return
    s = np.broadcast_to(s, n.shape)
    for m, place in enumerate((-0.55, 0.05, 0.6)):
        hm = derive(h, 90 + m)
        k = np.flatnonzero((unit(hm, 0) < 0.75) & (a > 5))
        size = 0.9 + 1.6 * unit(hm[k], 1)
        kind = choice(hm[k], 2, ("concrete", "steel roof", "grey roof", "white roof"))
        ms, mt = s[k] + place * a[k], t[k] + (unit(hm[k], 3) - 0.5) * 0.8 * b[k]
        build.on(ROOF, n[k], ms, mt, size, size * 0.75, FLAT, kind, base=high[k] + 2.4, step=0.8)
    rows = np.where(unit(hb, 35) < 0.3, np.floor(a * 2 / 2.6), 0).astype(np.int64)
    k, m = ragged(np.minimum(rows, 28))
    panel = {"base": high[k] + 0.9, "step": 0.6, "cover": 0.95, "deep": False}
    build.on(
        ROOF, n[k], s[k] + (m + 0.5) * 2.6 - a[k], t[k] - 0.35 * b[k], 0.95, 0.2 * b[k], FLAT, "solar panel", **panel
    )


def centre(build: Builder, n: np.ndarray) -> None:
    """Houses side by side along the streets round a court; towers on some blocks."""
    w, d, h, r = lot(build, n)
    block = build.lots.block[n]
    hb = build.b.h[block]
    b = np.minimum(6.5 + 2.5 * unit(hb, 31) + r(0, -0.6, 0.6), 0.42 * d)
    ok = build.free(n, 0, b, 0.5 * np.hypot(w, 2 * b)) & (r(1) < 0.96)
    n, w, d, h, hb, b, block = (c[ok] for c in (n, w, d, h, hb, b, block))
    if not len(n):
        return
    r = lot(build, n)[3]
    tower = (unit(hb, 30) < 0.3 + 0.2 * (build.town.level == CITY)) & (r(2) < 0.3) & (d > 26)
    high = 9 + 3 * np.floor(1 + 4 * unit(hb, 32) + 2 * r(3))
    pitched = unit(hb, 34) < 0.5
    kind = np.where(pitched, choice(h, 38, build.town.style.roofs), choice(h, 33, FLATS))
    look = {"cover": r(5, 0.75, 1), "dirt": r(6, 0.05, 0.2), "bright": r(7, 0.85, 1.12), "phase": byte(h)}
    shape, rise = np.where(pitched, GABLE, PARAPET), np.where(pitched, 3.2, 0.9)
    build.on(BUILDING, n, 0, b, w / 2, b, shape, kind, base=high, rise=rise, rib=np.where(pitched, 0.35, 0), **look)
    ends = build.lots
    edge = np.abs(ends.l0[n] - np.where(ends.tall, build.b.j0, build.b.i0)[block]) < 0.1
    last = np.abs(ends.l1[n] - np.where(ends.tall, build.b.j1, build.b.i1)[block]) < 0.1
    k = np.flatnonzero((edge | last) & (d > 2 * b + 4))
    side = np.where(edge[k], -1, 1) * np.where(r(8)[k] < 2, 1, 1)
    part = {name: value[k] for name, value in look.items()}
    deep = (d[k] - 2 * b[k]) / 2
    build.on(
        *(BUILDING, n[k], side * (w[k] / 2 - 0.85 * b[k]), 2 * b[k] + deep, deep, 0.85 * b[k], shape[k], kind[k]),
        **part | {"deep": True, "base": high[k], "rise": rise[k]},
    )
    k = np.flatnonzero((r(9) < 0.5) & (d > 2 * b + 9) & ~edge & ~last)
    kind = choice(h[k], 53, FLATS)
    build.on(BUILDING, n[k], 0, d[k] - 3.5, w[k] * 0.4, 3.2, FLAT, kind, base=4.0, step=5.0)
    k = np.flatnonzero(tower)
    a = r(10, 11, 16)[k]
    top = 45 + 85 * r(11)[k] ** 1.5
    tone = {"bright": r(7, 0.9, 1.1)[k], "phase": byte(h[k])}
    build.on(
        ROOF,
        n[k],
        0,
        np.minimum(a + 1, d[k] - a),
        a,
        a * 0.9,
        PARAPET,
        choice(h[k], 54, FLATS),
        base=top,
        rise=1.2,
        **tone,
    )
    equipment(build, n[k], np.zeros(len(k)), np.minimum(a + 1, d[k] - a), a, a * 0.9, top, hb[k], h[k])
    k = np.flatnonzero(~pitched & ~tower)
    equipment(build, n[k], 0, b[k], w[k] / 2, b[k], high[k], hb[k], h[k])
    for m in range(2):
        hm = derive(h, 80 + m)
        k = np.flatnonzero((unit(hm, 0) < 0.5) & (d > 2 * b + 6) & ~edge & ~last)
        trees(
            build,
            n[k],
            ((unit(hm, 2) - 0.5) * 0.8 * w)[k],
            (2 * b + 3 + 4 * unit(hm, 1))[k],
            1.6 + 2 * unit(hm[k], 8),
            hm[k],
        )
        hc = derive(h, 86 + m)
        k = np.flatnonzero((unit(hc, 0) < 0.6) & (d > 2 * b + 5))
        where, kind = ((unit(hc, 2) - 0.5) * 0.6 * w)[k], choice(hc[k], 3, CARS)
        build.on(VEHICLE, n[k], where, (2 * b)[k] + 2.6, 2.2, 0.9, CAR, kind, deep=True, base=0.9, rise=0.6, step=1.2)
