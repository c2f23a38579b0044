"""Districts of fields and their parcels: where they lie, and what is grown on each of them in a year.

Every district has its own direction, shape and size of fields. A parcel is decided whole, from its hash and from
smooth fields at its centre, in numbers that do not depend on the tile or the GSD that asked: a parcel is the same
field in every tile that shows a part of it.
"""

from typing import NamedTuple

import numpy as np

from hierlab.twin import drainage
from hierlab.twin.fields import Grid
from hierlab.twin.ground import LEAF, Boxes, divide
from hierlab.twin.hashing import derive, key, mix, pick, unit
from hierlab.twin.regions import Region, style
from hierlab.twin.spectra import KIND

_DISTRICT = 1050  # metres between districts
_SQUARE = 520.0  # metres a side of the squares that a district is cut into first
_CUTS = 8
_OTHER = (  # share up to; leaf and kind of the parcels that are no cropland
    (0.25, "artificial meadow", "sown grass"),
    (0.55, "forest", "orchard"),
    (0.70, "forest", "broadleaf forest"),
    (0.88, "natural meadow", "meadow"),
    (1.00, "bare land", "bare soil"),
)
_SINCE, _UNTIL = 1985, 2035  # the years between which parcels change their use


class Parcels(NamedTuple):
    """Parcels: what each sample (H, W) lies in, and the parcels themselves, (M,).

    ``u`` and ``v`` are metres along and across the parcel from its district's middle, ``edge`` metres to its side.
    ``x``, ``y`` are the parcel's centre, whole metres from the grid's anchor in warped coordinates; ``length`` and
    ``width`` its sides, ``u0``, ``v0`` its corner; ``damp``, ``film`` and ``lots`` smooth fields there;
    ``h`` its hash and ``district`` that of its district.
    """

    number: np.ndarray
    u: np.ndarray
    v: np.ndarray
    edge: np.ndarray
    h: np.ndarray
    district: np.ndarray
    x: np.ndarray
    y: np.ndarray
    u0: np.ndarray
    v0: np.ndarray
    length: np.ndarray
    width: np.ndarray
    damp: np.ndarray
    film: np.ndarray
    lots: np.ndarray

    def spread(self, values: np.ndarray) -> np.ndarray:
        """Values of the parcels (M,) at the samples (H, W)."""
        return values.take(self.number)


def moisture(grid: Grid, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Mean 0, variance about 1, at points: whole metres from the grid's anchor."""
    return 0.8 * grid.scattered("moist", 4300, x, y) + 0.55 * grid.scattered("damp", 1500, x, y)


def parcels(grid: Grid, x: np.ndarray, y: np.ndarray) -> Parcels:
    """The parcels under the samples; ``x``, ``y`` (H, W) are their warped coordinates, metres from the anchor."""
    region = style(grid.seed, grid.region)
    corner = (float(x.min()), float(x.max())), (float(y.min()), float(y.max()))
    reach = 2 * _DISTRICT
    i, j = (
        np.arange((a + int(low) - reach) // _DISTRICT, (a + int(high) + reach) // _DISTRICT + 1, dtype=np.int64)
        for a, (low, high) in ((grid.ax, corner[0]), (grid.ay, corner[1]))
    )
    dx, dy, h = drainage.nodes(key(grid.seed, grid.region, "district"), _DISTRICT, i[None], j[:, None])
    sx, sy = (i[None] * _DISTRICT - grid.ax + dx).ravel(), (j[:, None] * _DISTRICT - grid.ay + dy).ravel()
    near = _may_own(corner, sx, sy)
    sx, sy, h = sx[near], sy[near], h.ravel()[near]
    owner = _nearest(x, y, sx, sy)
    turn, stretch = pick(h, 11, 0, np.pi).astype(float), pick(h, 12, 1, 0.6 + region.strips).astype(float)
    size = region.field * np.exp(pick(h, 13, np.log(1600), np.log(9000)).astype(float))
    cos, sin = np.cos(turn), np.sin(turn)
    shift = -(sx * cos + sy * sin), sx * sin - sy * cos
    c, s = cos.astype(np.float32)[owner], sin.astype(np.float32)[owner]
    u = x * c
    u += y * s
    u += shift[0].astype(np.float32)[owner]
    v = y * c
    v -= x * s
    v += shift[1].astype(np.float32)[owner]
    drawn = v * stretch.astype(np.float32)[owner]  # parcels are cut in coordinates in which they are not drawn out
    box, root, which = _squares(u, drawn, owner, h)
    tree = divide(box, (size * stretch)[which], _CUTS, 0.25)
    leaf = tree.find(root, u, drawn)
    return _assemble(grid, tree.leaves, leaf, u, v, (owner, h, stretch), (sx, sy, cos, sin))


def _may_own(corner: tuple, sx: np.ndarray, sy: np.ndarray) -> np.ndarray:
    """Districts that can be the nearest to some sample: no farther from the samples' box than the best bound."""
    (x0, x1), (y0, y1) = corner
    nearest = np.hypot(np.maximum(np.maximum(x0 - sx, sx - x1), 0), np.maximum(np.maximum(y0 - sy, sy - y1), 0))
    farthest = np.hypot(np.maximum(sx - x0, x1 - sx), np.maximum(sy - y0, y1 - sy))
    return nearest <= farthest.min() + 1


def _nearest(x: np.ndarray, y: np.ndarray, sx: np.ndarray, sy: np.ndarray) -> np.ndarray:
    """Number of the nearest of a few points, (H, W)."""
    owner = np.zeros(x.shape, np.int64)
    for n in range(len(sx)):
        # The squared distance less x² + y², which is the same for all.
        d = x * np.float32(-2 * sx[n])
        d += y * np.float32(-2 * sy[n])
        d += np.float32(sx[n] ** 2 + sy[n] ** 2)
        if n == 0:
            best = d
            continue
        closer = np.flatnonzero(d < best)
        owner.ravel()[closer] = n
        np.minimum(best, d, out=best)
    return owner


def _squares(u: np.ndarray, v: np.ndarray, owner: np.ndarray, h: np.ndarray) -> tuple[Boxes, np.ndarray, np.ndarray]:
    """The squares of the districts: boxes (M,) in float64, the square each sample is in, each square's district."""
    fu, fv = np.floor(u * np.float32(1 / _SQUARE)), np.floor(v * np.float32(1 / _SQUARE))
    a, b = int(fu.min()), int(fv.min())
    wide, high = int(fu.max()) - a + 1, int(fv.max()) - b + 1
    fu -= np.float32(a)
    fu *= np.float32(high)
    fu += fv
    fu -= np.float32(b)
    code = owner * (wide * high)
    code += fu.astype(np.int64)
    used = np.zeros(len(h) * wide * high, bool)
    used[code] = True
    present = np.flatnonzero(used)
    rank = np.cumsum(used) - 1
    which, iu, iv = present // (wide * high), present // high % wide + a, present % high + b
    number = ((iu * 0x8DA6B343 + iv * 0xD8163841) & 0xFFFFFFFF).astype(np.uint32)
    u0, v0 = iu * _SQUARE, iv * _SQUARE
    return Boxes(derive(h[which] ^ number, 3), u0, u0 + _SQUARE, v0, v0 + _SQUARE), rank.take(code), which


def _assemble(grid: Grid, box: Boxes, leaf: np.ndarray, u, v, districts: tuple, frame: tuple) -> Parcels:
    owner, dh, stretch = districts
    sx, sy, cos, sin = frame
    used = np.zeros(len(box.h), bool)
    used[leaf] = True
    keep = np.flatnonzero(used)
    number = (np.cumsum(used) - 1).take(leaf)
    box = Boxes(*(a[keep] for a in box))
    d = np.zeros(len(keep), np.int64)
    d[number] = owner
    cu, cv = box.centre
    cv = cv / stretch[d]
    cx, cy = (sx[d] + np.round(cu * cos[d] - cv * sin[d]), sy[d] + np.round(cu * sin[d] + cv * cos[d]))
    u0, v0 = box.u0, box.v0 / stretch[d]
    u1, v1 = box.u1, box.v1 / stretch[d]
    mu, mv = (a.astype(np.float32).take(number) for a in ((u0 + u1) / 2, (v0 + v1) / 2))
    hu, hv = (a.astype(np.float32).take(number) for a in ((u1 - u0) / 2, (v1 - v0) / 2))
    edge = np.minimum(hu - np.abs(u - mu), hv - np.abs(v - mv))
    scattered = [grid.scattered(name, scale, cx, cy) for name, scale in (("film", 2600), ("lots", 2100))]
    return Parcels(
        *(number, u, v, edge, box.h, dh[d], cx, cy, u0, v0, u1 - u0, v1 - v0, moisture(grid, cx, cy)), *scattered
    )


class Use(NamedTuple):
    """What is on each parcel (M,) in a year: leaf and kind, and how well it grows there (0 to 1)."""

    leaf: np.ndarray
    kind: np.ndarray
    vigour: np.ndarray


def by_weight(u: np.ndarray, weights: tuple[tuple[str, float], ...]) -> np.ndarray:
    """Kind numbers drawn with weights from uniform numbers (N,)."""
    table = np.array([KIND[name] for name, _ in weights], np.uint8)
    edges = np.cumsum([w for _, w in weights])[:-1]
    return table[np.searchsorted(edges, u, "right")]


def use(grid: Grid, p: Parcels) -> Use:
    """Rotation and change: paddy stays paddy, dry crops follow each other, and some parcels change for good."""
    region, h, year = style(grid.seed, grid.region), p.h, grid.year
    season = mix(key(year, "season"), h.astype(np.int64), 0)  # a new draw every year
    tenth = np.float32(0.1)
    # Dry crops: what the district grows, or what the farmer likes; grass and vines stay for years.
    common = by_weight(unit(mix(key(year, "season"), p.district.astype(np.int64), 1)), region.crops)
    own = np.where(unit(h, 33) < 0.2, unit(h, 42), unit(season, 42))  # every fifth parcel grows the same each year
    kind = np.where(unit(season, 43) < 0.3, common, by_weight(own, region.crops))
    stand = by_weight(unit(derive(h, (year + 3) // 4 % 2**20), 44), region.crops)
    kind = np.where(np.isin(kind, _LASTING), by_weight(unit(season, 45), _annual(region)), kind)
    kind = np.where(stand == KIND["alfalfa"], stand, kind)
    vines = dict(region.crops)["vineyard"]
    wish = 1.2 * grid.scattered("vines", 2900, p.x, p.y) + unit(h, 46) - p.damp
    kind = np.where(wish > 4.1 - 14 * vines, KIND["vineyard"], kind)
    mulch = np.isin(kind, [KIND[n] for n in ("vegetables", "potatoes")]) & (unit(season, 47) < 0.25)
    kind = np.where(mulch, KIND["plastic mulch"], kind)
    sheds = (p.film + unit(h, 48) + 0.8 * region.film > 2.6) | (unit(h, 52) < 0.003)
    glass = unit(p.district, 49) < 0.6 * (1 - region.warm)
    kind = np.where(sheds, np.where(glass, KIND["glass greenhouse"], KIND["greenhouse"]), kind)
    leaf = np.ones(len(h), np.uint8)
    # Paddy, where it is damp enough.
    damp = p.damp + region.wet
    paddy = (damp + 0.6 * (unit(h, 31) - 0.5) > 0.30 - 0.6 * region.rice) & ~sheds
    rice = np.where(unit(h, 51) < 0.7 - 0.5 * region.warm, KIND["rice"], KIND["early rice"])
    kind = np.where(paddy, np.where(unit(season, 50) < tenth / 3, KIND["fallow"], rice), kind)
    leaf[paddy] = 0
    _no_crops(p, leaf, kind, year)
    vigour = 0.4 * unit(h, 32) + 0.35 * unit(season, 32) + 0.25
    return Use(leaf, kind.astype(np.uint8), vigour.astype(np.float32))


_LASTING = [KIND["alfalfa"], KIND["vineyard"]]


def _annual(region: Region) -> tuple[tuple[str, float], ...]:
    crops = [(name, w) for name, w in region.crops if KIND[name] not in _LASTING]
    total = sum(w for _, w in crops)
    return tuple((name, w / total) for name, w in crops)


def _no_crops(p: Parcels, leaf: np.ndarray, kind: np.ndarray, year: int) -> None:
    """Parcels under something else, more of them here than there, and of sorts that neighbours share."""
    changes = unit(p.h, 34) < 0.4
    before = changes & (year < _SINCE + np.floor(unit(p.h, 35) * (_UNTIL - _SINCE)))
    wish = np.where(before, unit(p.h, 55), unit(p.h, 56))
    other = wish * np.exp(1.1 * p.lots) < 0.11
    sort = np.mod(0.55 * np.where(before, unit(p.h, 57), unit(p.h, 58)) + unit(p.district, 59), 1)
    low = 0.0
    for high, name, what in _OTHER:
        chosen = other & (sort >= low) & (sort < high)
        leaf[chosen], kind[chosen] = LEAF[name], KIND[what]
        low = high
