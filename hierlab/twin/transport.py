"""Roads of several widths, railways, bridges and overpasses, interchanges, stations and airports, and their traffic."""

from functools import lru_cache

import numpy as np

from hierlab.twin import drainage, hubs, places
from hierlab.twin.fields import Grid
from hierlab.twin.ground import LEAF, Ground, distance
from hierlab.twin.hashing import derive, key, mix, unit
from hierlab.twin.places import AIRPORT, INTERCHANGE, STATION, City, Network
from hierlab.twin.rural import Land
from hierlab.twin.spectra import KIND
from hierlab.twin.things import CAR, DOME, FLAT, VAULT, Things, draw, joined, ragged, things

_REACH = 60.0
CARS = (*("white car", "dark car") * 5, "red car")
_CAR = np.array([KIND[n] for n in CARS], np.uint8)
_SMALL = 1.2  # metres: the largest step at which single cars are drawn
# Per sort of way: metres between places for cars, share taken, lanes (metres from the axis), marks between lanes.
_TRAFFIC = {
    "lanes": (90.0, 0.15, (1.5, -1.5), ()),
    "roads": (30.0, 0.28, (1.8, 5.2, -1.8, -5.2), (3.5, -3.5)),
    "highways": (34.0, 0.30, (3.5, 7.1, 10.7, -3.5, -7.1, -10.7), (5.3, 8.9, -5.3, -8.9)),
}


class Ways:
    """Signed distances (H, W) in metres to the edge of each sort of way, clamped at 60 m."""

    def __init__(self, grid: Grid, net: Network):
        x, y = grid.mesh
        self.net = net
        self.lane, self.road, self.highway, self.rail = (
            distance(grid, lines, _REACH, x, y) for lines in (net.lanes, net.roads, net.highways, net.rails)
        )


def frame(grid: Grid, x: float, y: float, angle: float) -> tuple[np.ndarray, np.ndarray]:
    """Coordinates (H, W) along and across a direction, seen from a point in metres from the grid's anchor."""
    px, py = grid.mesh[0] - np.float32(x), grid.mesh[1] - np.float32(y)
    cos, sin = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    return px * cos + py * sin, py * cos - px * sin


def _stamps(grid: Grid, spots: list[tuple[float, float, float]], reach: float):
    """The places whose stamp may touch the tile, each with its frame."""
    for spot in spots:
        x, y, angle = spot
        if grid.x[0] - reach < x < grid.x[-1] + reach and grid.y[0] - reach < y < grid.y[-1] + reach:
            yield spot, *frame(grid, x, y, angle)


def stations(grid: Grid, found: list[City]) -> list[tuple[float, float, float]]:
    """The railway stations of cities: place in metres from the grid's anchor, and direction of the tracks."""
    return [(c.x - grid.ax + c.station[0], c.y - grid.ay + c.station[1], c.station[2]) for c in found]


def airports(grid: Grid, found: list[City]) -> list[tuple[float, float, float]]:
    """The airports of cities that have one: place in metres from the grid's anchor, and direction of the runway."""
    stamps = [(c, places.airport(grid.seed, grid.region, c)) for c in found]
    return [(c.x - grid.ax + a[0], c.y - grid.ay + a[1], a[2]) for c, a in stamps if a]


def reserved(grid: Grid, ways: Ways, found: list[City]) -> np.ndarray:
    """Where no building, field or lane may be (H, W bool): corridors of big ways and the grounds of the stamps."""
    taken = (ways.highway < 22) | (ways.rail < 9)
    for _, p, q in _stamps(grid, [tuple(j) for j in ways.net.junctions], 1.5 * INTERCHANGE):
        taken |= hubs.interchange_grounds(p, q, 15)
    for _, p, q in _stamps(grid, stations(grid, found), STATION[0] + STATION[1]):
        taken |= (np.abs(p) < STATION[0] + 12) & (np.abs(q) < STATION[1] + 12)
    for _, p, q in _stamps(grid, airports(grid, found), sum(AIRPORT)):
        taken |= hubs.airport_grounds(p, q, 20)
    return taken


@lru_cache(maxsize=256)
def _obstacles(seed: int, region: int, ax: int, ay: int, box: tuple[int, int, int, int]):
    """What buildings keep clear of near a box, metres from the anchor: lines (N, 6), circles (M, 3), stamps."""
    net = places.network(seed, region, ax, ay, box, 60)
    water = [drainage.near(seed, region, k, ax, ay, box) for k in drainage.LEVELS]
    lines = [
        np.column_stack([w[:, :4], w[:, -1:] + m, w[:, -1:] + m])
        for w, m in ((net.roads, 3), (net.highways, 22), (net.rails, 9))
    ]
    lines += [w.courses[:, :6] + np.array([0, 0, 0, 0, 18, 18]) for w in water]
    circles = np.concatenate([w.lakes[:, :3] + (0, 0, 6) for w in water])
    found = places.cities(seed, region, ax, ay, box)
    grid = Grid(seed, region, ax, ay, np.zeros(1, np.float32), np.zeros(1, np.float32), 1.0)
    return np.concatenate(lines), circles, net.junctions, stations(grid, found), airports(grid, found)


def blocked(seed: int, region: int, ax: int, ay: int, x: np.ndarray, y: np.ndarray, radius) -> np.ndarray:
    """Which circles (N,) round (x, y), metres from the anchor, meet a big way, water, a station or an airport."""
    if not len(x):
        return np.zeros(0, bool)
    low, high = (np.floor(np.array([f(x), f(y)]) / 256).astype(int) * 256 for f in (np.min, np.max))
    box = (int(low[0]) - 128, int(low[1]) - 128, int(high[0]) + 384, int(high[1]) + 384)
    lines, circles, junctions, halls, fields = _obstacles(seed, region, ax, ay, box)
    radius = np.broadcast_to(np.asarray(radius, float), x.shape)
    out = np.zeros(x.shape, bool)
    x0, y0, x1, y1, w0, w1 = (c[:, None] for c in lines.T)
    vx, vy = x1 - x0, y1 - y0
    t = np.clip(((x - x0) * vx + (y - y0) * vy) / np.maximum(vx * vx + vy * vy, 1e-6), 0, 1)
    out |= (np.hypot(x - x0 - t * vx, y - y0 - t * vy) < w0 + t * (w1 - w0) + radius).any(0)
    cx, cy, r = (c[:, None] for c in circles.T)
    out |= (np.hypot(x - cx, y - cy) < r + radius).any(0)
    for spots, grounds in (
        (junctions, hubs.interchange_grounds),
        (halls, hubs.station_grounds),
        (fields, hubs.airport_grounds),
    ):
        for px, py, angle in spots:
            cos, sin = np.cos(angle), np.sin(angle)
            p, q = (x - px) * cos + (y - py) * sin, (y - py) * cos - (x - px) * sin
            out |= grounds(p, q, 15 + radius)
    return out


def lay(grid: Grid, ground: Ground, s: Land, ways: Ways, built: np.ndarray, wet: np.ndarray, found: list[City]) -> None:
    """Draw all ways and stamps over what is there. ``built``: blocks of settlements, ``wet``: water (H, W bool)."""
    w = ways
    verge = ((w.road < 5) | (w.highway < 18) | (w.rail < 6)) & ~wet & ~built
    if verge.any():
        grass = {"cover": np.clip(0.7 + 0.15 * s.middle, 0, 1), "height": 0, "phase": 2, "bright": 1}
        ground.paint(verge, "artificial meadow", "sown grass", dirt=np.clip(0.2 + 0.1 * s.fine, 0, 0.6), **grass)
        if grid.step > 2.5:
            ground.paint(verge & (w.road > 0) & (s.broad > 0), kind="street trees", cover=0.6, height=3)
    lane = (w.lane < 0) & ~built & (ground.leaf != LEAF["lake"])
    road, highway, rail = w.road < 0, w.highway < 0, w.rail < 0
    surface = {"cover": np.clip(0.75 + 0.08 * s.fine, 0, 1), "height": 0}
    tone = 1 + np.float32(0.04) * s.middle + np.float32(0.02) * s.fine
    if lane.any():
        unpaved = lane & (s.broad < -0.2)
        ground.paint(lane, "road", "concrete", dirt=0.25, bright=tone, **surface)
        ground.paint(unpaved, kind="dirt road")
        if grid.step <= 1:
            ground.paint(unpaved & (np.abs(w.lane + 3.2) < 0.5), kind="meadow", cover=0.6)
    if road.any():
        ground.paint(road, "road", "old asphalt", dirt=0.12, bright=tone, **surface)
    if rail.any():
        _tracks(grid, ground, w.rail, rail, surface, tone)
    if highway.any():
        ground.paint(highway, "road", "asphalt", dirt=0.05, bright=tone, **surface)
        median = highway & (w.highway < -11.5)
        ground.paint(median, kind="lawn", cover=0.7)
        ground.paint(highway & (w.highway < -12.3), kind="hedge", cover=0.85, height=1.2)
    paved = (lane | road | highway) & ~(highway & (w.highway < -11.5))
    if grid.step <= 0.5:
        _edges(ground, w, road, highway)
    if grid.step > _SMALL:  # cars too small to be seen
        ground.paint(paved & (road | highway), bright=tone * np.float32(1.02))
    ground.paint((road | highway | rail) & wet, height=6, bright=1.06)  # bridges
    over = _overpasses(grid, w.net, road, highway)
    ground.paint(over, "overpass", "concrete", dirt=0.1, height=7, cover=0.8, bright=1.05)
    if grid.step <= 5:
        draw(grid, ground, _roadside(grid, w.net, s, built | wet | road | highway | rail | lane))
    if grid.step <= _SMALL and (paved.any() or rail.any()):
        draw(grid, ground, _traffic(grid, w.net), paved, lift=True)
        draw(grid, ground, _trains(grid, w.net.rails), rail & ~highway, lift=True)
    for spot, p, q in _stamps(grid, [tuple(j) for j in w.net.junctions], hubs.AVENUE):
        hubs.interchange(grid, ground, s, p, q, spot, built | wet)
    for spot, p, q in _stamps(grid, stations(grid, found), STATION[0] + STATION[1]):
        hubs.station(grid, ground, s, p, q, spot)
    for spot, p, q in _stamps(grid, airports(grid, found), sum(AIRPORT)):
        hubs.airport(grid, ground, s, p, q, spot)


def _tracks(grid: Grid, ground: Ground, edge: np.ndarray, rail: np.ndarray, surface: dict, tone: np.ndarray) -> None:
    """Two tracks in ballast: sleepers darker, rails brighter where the step shows them."""
    ground.paint(rail, "road", "ballast", dirt=0.2, bright=tone, **surface)
    if grid.step <= 1:
        off = np.abs(np.abs(edge + 6) - np.float32(2.3))
        ground.paint(rail & (off < 1.3), bright=tone * np.float32(0.82), dirt=0.35)
        if grid.step <= 0.3:
            ground.paint(rail & (np.abs(off - np.float32(0.72)) < 0.06), kind="train", cover=0.9, bright=0.9)


def _edges(ground: Ground, w: Ways, road: np.ndarray, highway: np.ndarray) -> None:
    """Solid lines along the edges and, on roads, in the middle."""
    lines = road & ~highway & ((np.abs(w.road + 0.4) < 0.08) | (np.abs(w.road + 6.8) < 0.07))
    lines |= highway & ((np.abs(w.highway + 0.55) < 0.09) | (np.abs(w.highway + 11.2) < 0.09))
    ground.paint(lines, kind="road marking", cover=0.8, dirt=0.1)


def _overpasses(grid: Grid, net: Network, road: np.ndarray, highway: np.ndarray) -> np.ndarray:
    """Where a way crosses another one on a bridge (H, W bool)."""
    over = np.zeros(grid.shape, bool)
    for upper, mask, lower in (
        (net.roads, road, net.highways),
        (net.roads, road, net.rails),
        (net.highways, highway, net.rails),
    ):
        if not len(upper) or not len(lower) or not mask.any():
            continue
        for x, y, angle, reach in _crossings(upper, lower):
            if grid.x[0] - 90 < x < grid.x[-1] + 90 and grid.y[0] - 90 < y < grid.y[-1] + 90:
                p, q = frame(grid, x, y, angle)
                over |= mask & (np.abs(p) < np.float32(reach)) & (np.abs(q) < 16)
    return over


def _crossings(upper: np.ndarray, lower: np.ndarray) -> np.ndarray:
    """Where lines (N, 5) cross lines (M, 5): x, y, direction of the upper one, half length of the bridge."""
    ax, ay, bx, by = (upper[:, None, n] for n in range(4))
    cx, cy, dx, dy = (lower[None, :, n] for n in range(4))
    ux, uy, vx, vy = bx - ax, by - ay, dx - cx, dy - cy
    cross = ux * vy - uy * vx
    safe = np.where(np.abs(cross) < 1e-9, 1, cross)
    t, s = ((cx - ax) * vy - (cy - ay) * vx) / safe, ((cx - ax) * uy - (cy - ay) * ux) / safe
    i, j = np.nonzero((np.abs(cross) > 1e-9) & (t >= 0) & (t < 1) & (s >= 0) & (s < 1))
    t, ux, uy = t[i, j], ux[i, 0], uy[i, 0]
    sine = np.abs(cross[i, j]) / (np.hypot(ux, uy) * np.hypot(vx[0, j], vy[0, j]))
    reach = np.minimum((lower[j, 4] + 12) / np.maximum(sine, 0.25), 85)
    return np.column_stack([upper[i, 0] + t * ux, upper[i, 1] + t * uy, np.arctan2(uy, ux), reach])


def _along(grid: Grid, lines: np.ndarray, pitch: float, salt: int):
    """Places every ``pitch`` metres along lines (N, 5): x, y, direction, hash and the number of the line."""
    length = np.hypot(lines[:, 2] - lines[:, 0], lines[:, 3] - lines[:, 1])
    n, k = ragged(np.floor(length / pitch).astype(np.int64))
    t = (k + 0.5) * pitch / np.maximum(length[n], 1e-6)
    x, y = (lines[n, c] + t * (lines[n, c + 2] - lines[n, c]) for c in (0, 1))
    near = (x > grid.x[0] - 40) & (x < grid.x[-1] + 40) & (y > grid.y[0] - 40) & (y < grid.y[-1] + 40)
    n, k, x, y = n[near], k[near], x[near], y[near]
    first = np.floor(lines[n, :2]).astype(np.int64)
    h = mix(key(grid.seed, grid.region, "along"), grid.ax + first[:, 0], grid.ay + first[:, 1])
    h = derive(h + k.astype(np.uint32) * np.uint32(0x9E3779B1), salt)
    return x, y, np.arctan2(lines[n, 3] - lines[n, 1], lines[n, 2] - lines[n, 0]), h, n


def _traffic(grid: Grid, net: Network) -> Things:
    """Cars, lorries and the marks between lanes."""
    tables = []
    for name, (pitch, share, lanes, marks) in _TRAFFIC.items():
        lines = getattr(net, name)
        if not len(lines):
            continue
        if grid.step <= 0.3:
            for off in marks:
                x, y, turn, _, _ = _along(grid, lines, 15.0 if name == "highways" else 9.0, 0)
                long = 3.0 if name == "highways" else 1.5
                x, y = x - off * np.sin(turn), y + off * np.cos(turn)
                tables.append(things(x, y, turn, long, 0.075, FLAT, "road marking", cover=0.85, step=0.3))
        for m, off in enumerate(lanes):
            x, y, turn, h, _ = _along(grid, lines, pitch, 10 + m)
            n = np.flatnonzero(unit(h, 1) < share)
            x, y, turn, h = x[n], y[n], turn[n], h[n]
            slide = (unit(h, 2) - 0.5) * (pitch - 14)
            sway = off + 0.4 * (unit(h, 3) - 0.5)
            x, y = x + slide * np.cos(turn) - sway * np.sin(turn), y + slide * np.sin(turn) + sway * np.cos(turn)
            lorry = (unit(h, 4) < (0.25 if abs(off) > 9 else 0.1)) & (name != "lanes")
            kind = np.where(lorry, KIND["truck"], _CAR[(h % len(_CAR)).astype(int)])
            size = {"base": np.where(lorry, 3.6, 0.9), "rise": np.where(lorry, 0, 0.6), "step": _SMALL}
            a, b = np.where(lorry, 5.5, 2.25), np.where(lorry, 1.25, 0.9)
            size["cover"] = np.where(lorry, 0.4 + 0.6 * unit(h, 5), 0.92)
            facing = turn + np.where(off > 0, 0, np.pi)
            tables.append(things(x, y, facing, a, b, np.where(lorry, FLAT, CAR), kind, **size))
    return joined(tables)


def _trains(grid: Grid, rails: np.ndarray) -> Things:
    """Trains: runs of carriages on some stretches of some tracks."""
    if not len(rails):
        return joined([])
    x, y, turn, _, n = _along(grid, rails, 26.2, 1)
    start = np.floor(rails[n, :2]).astype(np.int64)
    tables = []
    for side in (-1, 1):
        own = mix(key(grid.seed, grid.region, "train", side), grid.ax + start[:, 0], grid.ay + start[:, 1])
        length = np.hypot(rails[n, 2] - rails[n, 0], rails[n, 3] - rails[n, 1])
        t = np.hypot(x - rails[n, 0], y - rails[n, 1])
        first = unit(own, 1) * np.maximum(length - 210, 0)
        k = np.flatnonzero((unit(own, 2) < 0.22) & (t >= first) & (t < first + 190 + 150 * unit(own, 3)))
        values = {"base": 3.2, "rise": 0.9, "cover": 0.3 + 0.7 * unit(own[k], 4), "dirt": 0.6 * unit(own[k], 5)}
        values |= {"step": _SMALL, "bright": 0.8 + 0.3 * unit(own[k], 6)}
        off = side * 2.3
        tables.append(things(
            x[k] - off * np.sin(turn[k]), y[k] + off * np.cos(turn[k]), turn[k], 12.8, 1.55, VAULT, "train", **values
        ))  # fmt: skip
    return joined(tables)


def _roadside(grid: Grid, net: Network, s: Land, taken: np.ndarray) -> Things:
    """Rows of trees along some stretches of roads, as single crowns."""
    if grid.step > 2.5 or not len(net.roads):
        return joined([])
    tables = []
    for side in (-1, 1):
        x, y, turn, h, n = _along(grid, net.roads, 8.5, 3 + side)
        first = np.floor(net.roads[n, :2] / 1).astype(np.int64)
        row = unit(mix(key(grid.seed, grid.region, "avenue", side), grid.ax + first[:, 0], grid.ay + first[:, 1]))
        off = side * (10.0 + 1.0 * unit(h, 2))
        x, y = x - off * np.sin(turn), y + off * np.cos(turn)
        column = np.clip(((x - grid.x[0]) / grid.step).astype(int), 0, grid.shape[1] - 1)
        line = np.clip(((y - grid.y[0]) / grid.step).astype(int), 0, grid.shape[0] - 1)
        k = np.flatnonzero((row < 0.5) & (unit(h, 1) < 0.85) & ~taken[line, column])
        radius = 1.7 + 1.8 * unit(h[k], 3)
        values = {"base": radius, "rise": 1.3 * radius, "cover": 0.8 + 0.2 * unit(h[k], 4), "dirt": 0.05}
        values |= {"bright": 0.86 + 0.3 * unit(h[k], 5), "phase": h[k] & np.uint32(255)}
        tables.append(things(x[k], y[k], 6 * unit(h[k], 6), radius, 0.9 * radius, DOME, "street trees", **values))
    return joined(tables)
