"""The open country: hills, forest, meadow and bare land, districts of fields, and the water that runs through it."""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from hierlab.twin import drainage
from hierlab.twin.fields import Grid
from hierlab.twin.ground import Boxes, Ground, choose, cut, distance, squares
from hierlab.twin.hashing import derive, key, pick, scalar, unit
from hierlab.twin.spectra import KIND, PHASES

_DISTRICT = 1050  # metres between districts
_BEND = 62  # metres by which districts and fields are bent
_LAKE = 100  # metres of radius from which standing water is a lake and no pond
_BANKS = 90.0  # metres beyond which the distance to water is not needed
_OTHER = (  # share from, to; leaf and kind of the parcels that are no cropland
    (0.00, 0.25, "artificial meadow", "sown grass"),
    (0.25, 0.55, "forest", "orchard"),
    (0.55, 0.70, "forest", "broadleaf forest"),
    (0.70, 0.88, "natural meadow", "meadow"),
    (0.88, 1.00, "bare land", "bare soil"),
)
_DRY = ["wheat and maize", "wheat", "maize", "vegetables", "rape", "wheat and maize", "fallow"]


@dataclass(frozen=True)
class Climate:
    """How a region differs from others: wet or dry, hilly or flat, its field size and its soil."""

    wet: float
    hilly: float
    field: float
    soil: float


@lru_cache(maxsize=256)
def climate(seed: int, region: int) -> Climate:
    """How a region differs from others, drawn once from its seed."""
    k = key(seed, region, "climate")
    return Climate(scalar(k, 1, -0.45, 0.5), scalar(k, 2, -0.35, 0.45), scalar(k, 3, 0.7, 1.7), scalar(k, 4, -1, 1))


@dataclass(frozen=True)
class Land:
    """Fields (H, W) that the parts of the world share: position along warped axes, hills, moisture, textures."""

    x: np.ndarray
    y: np.ndarray
    hill: np.ndarray
    moist: np.ndarray
    broad: np.ndarray  # features of hundreds of metres
    middle: np.ndarray  # of some fifty metres
    fine: np.ndarray  # of about ten metres
    grain: np.ndarray  # of the size of a tree
    relief: np.ndarray  # elevation, metres


def land(grid: Grid) -> Land:
    """The shared fields of a tile."""
    c = climate(grid.seed, grid.region)
    x, y = grid.mesh
    x = x + np.float32(_BEND) * grid.noise("bend x", 900, 3)
    y = y + np.float32(_BEND) * grid.noise("bend y", 900, 3)
    hill = grid.noise("hills", 6100, 3, 0.6) + np.float32(c.hilly)
    relief = grid.noise("relief", 1500, 5, 0.48) * np.float32(70) * np.clip(hill + np.float32(0.35), 0.06, 1.6)
    noise = [
        grid.noise(name, scale, n, 0.65) for name, scale, n in (("broad", 420, 3), ("middle", 48, 3), ("fine", 13, 2))
    ]
    return Land(x, y, hill, _moisture(grid, *grid.mesh), *noise, grid.noise("grain", 4), relief)


def _moisture(grid: Grid, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Mean 0, variance about 1; by points, so that a whole parcel can be decided at its centre."""
    return np.float32(0.8) * grid.scattered("moist", 4300, x, y) + np.float32(0.55) * grid.scattered("damp", 1500, x, y)


@dataclass(frozen=True)
class Fields:
    """Parcels of the districts: their boxes, the samples' place in them, and what a district shares."""

    boxes: Boxes
    u: np.ndarray
    v: np.ndarray
    edge: np.ndarray  # metres to the side of the parcel
    x: np.ndarray  # the parcel's centre, metres from the anchor, in warped coordinates
    y: np.ndarray
    damp: np.ndarray  # moisture there
    district: np.ndarray  # hash


def parcels(grid: Grid, shared: Land) -> Fields:
    """Jittered Voronoi districts in warped coordinates, each with its own direction, shape and size of fields."""
    margin = 4 * _BEND + 2 * _DISTRICT
    i = np.arange(
        (grid.ax - margin) // _DISTRICT, (grid.ax + int(grid.x[-1]) + margin) // _DISTRICT + 1, dtype=np.int64
    )
    j = np.arange(
        (grid.ay - margin) // _DISTRICT, (grid.ay + int(grid.y[-1]) + margin) // _DISTRICT + 1, dtype=np.int64
    )
    dx, dy, h = drainage.nodes(key(grid.seed, grid.region, "district"), _DISTRICT, i[None], j[:, None])
    sx = (i[None] * _DISTRICT - grid.ax + dx).ravel().astype(np.float32)
    sy = (j[:, None] * _DISTRICT - grid.ay + dy).ravel().astype(np.float32)
    h = h.ravel()
    near = np.flatnonzero(_may_own(shared, sx, sy))
    best, owner = np.full(grid.shape, np.float32(np.inf)), np.zeros(grid.shape, np.int64)
    for n in near:
        a, b = shared.x - sx[n], shared.y - sy[n]
        a *= a
        b *= b
        a += b
        closer = a < best
        owner[closer] = n
        np.minimum(best, a, out=best)
    c = climate(grid.seed, grid.region)
    turn = pick(h, 11, 0, np.pi)
    cos, sin, stretch = np.cos(turn)[owner], np.sin(turn)[owner], pick(h, 12, 1.0, 2.6)[owner]
    size = (np.float32(c.field) * np.exp(pick(h, 13, np.log(1800), np.log(9000))))[owner]
    px, py = shared.x - sx[owner], shared.y - sy[owner]
    u, v = px * cos + py * sin, (py * cos - px * sin) * stretch
    boxes = cut(squares(u, v, 520.0, h[owner]), u, v, size * stretch, 7, 0.25)
    cu, cv = boxes.centre
    cv = cv / stretch
    edge = np.minimum(np.minimum(u - boxes.u0, boxes.u1 - u), np.minimum(v - boxes.v0, boxes.v1 - v) / stretch)
    cx, cy = sx[owner] + cu * cos - cv * sin, sy[owner] + cu * sin + cv * cos
    return Fields(boxes, u, v, edge, cx, cy, _moisture(grid, cx, cy), h[owner])


def _may_own(shared: Land, sx: np.ndarray, sy: np.ndarray) -> np.ndarray:
    """Districts that can be the nearest to some sample: no farther from the samples' box than the best bound."""
    x0, x1, y0, y1 = shared.x.min(), shared.x.max(), shared.y.min(), shared.y.max()
    nearest = np.hypot(np.maximum(np.maximum(x0 - sx, sx - x1), 0), np.maximum(np.maximum(y0 - sy, sy - y1), 0))
    farthest = np.hypot(np.maximum(sx - x0, x1 - sx), np.maximum(sy - y0, y1 - sy))
    return nearest <= farthest.min()


def cultivate(grid: Grid, ground: Ground, shared: Land, f: Fields, near: np.ndarray) -> None:
    """Give every sample a crop, a forest, a meadow or bare land; ``near`` (H, W), 0 to 1, is nearness to people."""
    c = climate(grid.seed, grid.region)
    h, s = f.boxes.h, shared
    r = [unit(h, 30 + n) for n in range(6)]
    damp = f.damp + np.float32(c.wet)
    ground.phase[:] = (derive(h, 40) & np.uint32(PHASES - 1)).astype(np.uint8)
    ground.soil[:] = np.clip(pick(f.district, 41, 0, 2.4) + np.float32(0.7 * c.soil), 0, 2.99).astype(np.uint8)
    # Cropland, one decision a parcel.
    crops = choose(f.district, 42, _DRY)
    np.copyto(crops, choose(h, 43, _DRY), where=r[0] > 0.55)
    paddy = damp + np.float32(0.6) * (r[1] - np.float32(0.5)) > 0.28
    ripple = np.float32(0.05) * np.sin(f.v * pick(h, 44, 0.25, 0.8))
    vigour = (
        np.float32(0.55) + np.float32(0.45) * r[2] + np.float32(0.12) * s.middle + np.float32(0.05) * s.fine + ripple
    )
    ground.paint(np.s_[...], kind=np.where(paddy, choose(h, 45, ["rice", "rice", "early rice"]), crops))
    ground.leaf[:] = np.where(paddy, 0, 1)
    ground.cover[:] = np.clip(vigour, 0.1, 1)
    ground.dirt[:] = np.clip(np.float32(0.10) + np.float32(0.25) * r[3] + np.float32(0.10) * s.middle, 0, 0.7)
    ground.bright[:] = np.float32(0.88) + np.float32(0.24) * r[4] + np.float32(0.03) * s.fine + ripple
    film = grid.scattered("film", 2600, f.x, f.y) + r[5] > np.float32(2.6)
    ground.paint(
        film & ~paddy, kind="greenhouse", cover=np.float32(0.45) + np.float32(0.5) * r[2] + ripple * 3, phase=0
    )
    # Parcels under something else, more of them here than there, and of kinds that neighbours share.
    other = unit(h, 46) * np.exp(np.float32(1.1) * grid.scattered("lots", 2100, f.x, f.y)) < 0.11
    sort = np.mod(np.float32(0.55) * unit(h, 50) + unit(f.district, 51), 1)
    for low, high, leaf, kind in _OTHER:
        ground.paint(other & (sort >= low) & (sort < high), leaf, kind)
    ground.paint(other & (sort < _OTHER[0][1]), cover=np.float32(0.75) + np.float32(0.25) * r[2])
    # Bunds, tracks and hedges between the parcels belong to the cropland.
    bund = f.edge < np.float32(1.2) + np.float32(1.4) * unit(f.district, 47)
    ground.paint(bund & (ground.leaf < 2), kind=choose(f.district, 48, ["meadow", "dirt road", "meadow"]), cover=0.6)
    hedge = (f.edge < 4.5) & (unit(f.district, 49) < 0.3) & (s.middle > 0.2) & (ground.leaf < 2)
    ground.paint(hedge, kind="street trees", cover=0.8, height=6)
    # Hills, and what grows by itself.
    wild = (
        s.hill + np.float32(0.38) * s.broad + np.float32(0.05) * s.middle + np.float32(0.35) * (r[1] - np.float32(0.5))
    )
    wild -= np.float32(0.9) * near
    growth = np.float32(0.75) * (s.moist + np.float32(c.wet)) + np.float32(0.75) * grid.noise("growth", 760, 6, 0.6)
    growth += np.float32(0.45) * s.hill
    _wild(ground, s, wild > 0.62, growth)
    _canopy(grid, ground, s, h)


def _wild(ground: Ground, s: Land, wild: np.ndarray, growth: np.ndarray) -> None:
    """Forest, meadow and bare land by terrain and moisture; the parcels are not seen any more."""
    tone = np.float32(0.06) * s.middle + np.float32(0.04) * s.fine
    ground.paint(wild, phase=3, bright=1 + tone, dirt=np.clip(np.float32(0.14) + np.float32(0.1) * s.middle, 0, 0.6))
    ground.paint(wild & (growth > -0.35), "forest", "broadleaf forest")
    meadow = wild & (growth <= -0.35) & (growth > -1.25)
    ground.paint(meadow, "natural meadow", "meadow", cover=np.clip(0.5 + 0.3 * (growth + 1.25) + 2 * tone, 0.1, 1))
    ground.paint(meadow & (growth < -0.6) & (s.fine + s.grain > 1.1), kind="shrubland", height=1.5)
    bare = wild & (growth <= -1.25)
    ground.paint(bare, "bare land", "bare soil", cover=np.clip(0.5 + 0.35 * s.middle + 0.15 * s.broad, 0, 1))
    ground.paint(bare & (s.middle + 0.6 * s.fine > 1.2), kind="rock")
    ground.paint(bare, dirt=np.clip(np.float32(0.2) + np.float32(0.16) * (s.fine + s.grain), 0, 0.8))


def _canopy(grid: Grid, ground: Ground, s: Land, h: np.ndarray) -> None:
    """Trees: conifers on the heights and in patches, crowns that differ, gaps."""
    trees = (ground.leaf == 2) & (ground.kind == KIND["broadleaf forest"])
    conifer = (
        np.float32(0.5) * s.hill + np.float32(0.6) * grid.noise("stands", 330, 3) + np.float32(0.05) * s.fine > 0.75
    )
    crown = np.clip(np.float32(0.5) + np.float32(0.28) * s.grain + np.float32(0.12) * s.fine, 0, 1)
    ground.paint(trees & conifer, kind="conifer forest")
    ground.paint(trees, cover=np.float32(0.55) + np.float32(0.45) * crown, height=np.float32(6) + np.float32(9) * crown)
    ground.paint(trees, bright=np.float32(0.72) + np.float32(0.42) * crown + np.float32(0.04) * s.middle, dirt=0.2)
    rows = (ground.leaf == 2) & (ground.kind == KIND["orchard"])
    ground.paint(rows, cover=np.float32(0.35) + np.float32(0.35) * crown + np.float32(0.2) * unit(h, 32), height=3)


@dataclass(frozen=True)
class Shores:
    """Signed distances (H, W) in metres to the edge of the water, negative in it, clamped at 90 m."""

    river: np.ndarray
    lake: np.ndarray


def flood(grid: Grid, ground: Ground, s: Land, f: Fields) -> Shores:
    """Rivers, lakes and ponds with their banks."""
    box = (float(grid.x[0]) - 150, float(grid.y[0]) - 150, float(grid.x[-1]) + 150, float(grid.y[-1]) + 150)
    water = [drainage.near(grid.seed, grid.region, k, grid.ax, grid.ay, box) for k in drainage.LEVELS]
    x, y = grid.mesh
    wander = np.clip(np.float32(7) * s.broad + np.float32(3) * s.middle + np.float32(0.5) * s.fine, -26, 26)
    x, y = x + wander, y - wander
    river = np.minimum(*(distance(grid, w.courses, _BANKS, x, y) for w in water))
    pools = np.concatenate([w.lakes for w in water])
    lake, small = (_lakes(grid, s, pools[chosen]) for chosen in (pools[:, 2] >= _LAKE, pools[:, 2] < _LAKE))
    both = np.minimum(river, np.minimum(lake, small))
    h = f.boxes.h
    # Fish ponds: whole parcels, in clusters, away from running water.
    wish = grid.scattered("fish", 2300, f.x, f.y) + np.float32(0.5) * f.damp + unit(h, 60)
    pond = ((wish > 2.7) | (unit(h, 61) < 0.008)) & (ground.leaf < 2) & (f.boxes.area > 900)
    ring = np.float32(2.5) + np.float32(2) * unit(h, 62) + np.float32(0.6) * s.fine
    ground.paint(pond & (f.edge <= ring + 4), "dry cropland", "dirt road", cover=0.5, height=0)
    basin = pond & (f.edge > ring) & (both > 14)
    # Banks: reeds, trees and sand.
    bank = both < np.float32(7) + np.float32(7) * s.middle
    ground.paint(
        bank, "natural meadow", "wet meadow", cover=np.clip(0.65 + 0.2 * s.fine, 0, 1), height=0, bright=1, phase=3
    )
    wooded = bank & (s.broad + 0.6 * s.fine > 0.5)
    ground.paint(wooded, "forest", "broadleaf forest", cover=0.85, height=8 + 3 * s.grain, bright=0.9 + 0.12 * s.grain)
    sand = (river < np.float32(9) * (s.middle - np.float32(0.5))) & (s.broad > -0.3)
    ground.paint(sand, "bare land", "sand", cover=np.clip(0.7 + 0.2 * s.fine, 0, 1), height=0, bright=1)
    depth = np.clip(-both / 25, 0, 1)
    calm = {"height": 0, "bright": 1 + np.float32(0.03) * s.fine, "phase": 0}
    murk = np.float32(0.5) + np.float32(0.25) * np.tanh(s.broad)
    mud = np.float32(0.35) * np.exp(-8 * depth) + np.float32(0.05)
    ground.paint(river < 0, "river", "river water", cover=np.clip(murk + 0.1, 0, 1), dirt=mud, **calm)
    ground.paint(lake < 0, "lake", "lake water", cover=np.clip(0.35 + 0.6 * depth, 0, 1), dirt=mud, **calm)
    green = np.clip(pick(h, 63, 0.15, 0.95) + np.float32(0.06) * s.middle, 0, 1)
    ground.paint((small < 0) & (lake >= 0), "pond", "pond water", cover=0.6, dirt=mud, **calm)
    ground.paint(basin, "pond", "pond water", cover=green, dirt=0.06, **calm)
    return Shores(river, np.minimum(lake, small))


def _lakes(grid: Grid, s: Land, lakes: np.ndarray) -> np.ndarray:
    """Signed distance, roughly, to lakes whose shores bend at several scales."""
    out = np.full(grid.shape, np.float32(_BANKS))
    x, y = grid.mesh
    if not len(lakes):
        return out
    bend = np.clip(np.float32(0.30) * grid.noise("shore", 620, 3, 0.65), -0.5, 0.7)
    cove = grid.noise("cove", 170, 4, 0.6) + np.float32(0.06) * s.middle
    for cx, cy, radius, angle, stretch in lakes:
        dx, dy, cos, sin = x - np.float32(cx), y - np.float32(cy), np.float32(np.cos(angle)), np.float32(np.sin(angle))
        r = np.hypot((dx * cos + dy * sin) / np.float32(stretch), (dy * cos - dx * sin) * np.float32(stretch))
        shore = r - np.float32(radius) * (1 + bend) + np.clip(np.float32(min(0.22 * radius, 32)) * cove, -45, 45)
        np.minimum(out, np.minimum(shore, r - np.float32(0.7 * radius)), out=out)
    return out
