"""Roads of several widths, railways, bridges and overpasses, interchanges, stations and airports."""

import numpy as np
from scipy import ndimage

from hierlab.twin import places
from hierlab.twin.fields import Grid
from hierlab.twin.ground import LEAF, Ground, distance
from hierlab.twin.places import AIRPORT, INTERCHANGE, STATION, City, Network
from hierlab.twin.rural import Land

_REACH = 60.0


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
    """Frames of the places whose stamp may touch the tile."""
    for x, y, angle in spots:
        if grid.x[0] - reach < x < grid.x[-1] + reach and grid.y[0] - reach < y < grid.y[-1] + reach:
            yield frame(grid, x, y, angle)


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
    for p, q in _stamps(grid, [tuple(j) for j in ways.net.junctions], 1.5 * INTERCHANGE):
        taken |= _interchange_grounds(p, q, 15)
    for p, q in _stamps(grid, stations(grid, found), STATION[0] + STATION[1]):
        taken |= (np.abs(p) < STATION[0] + 12) & (np.abs(q) < STATION[1] + 12)
    for p, q in _stamps(grid, airports(grid, found), sum(AIRPORT)):
        taken |= _airport_grounds(p, q, 20)
    return taken


def _airport_grounds(p: np.ndarray, q: np.ndarray, margin: float) -> np.ndarray:
    """A strip along the runway and a wider middle for apron and terminal."""
    strip = (np.abs(p) < AIRPORT[0] + margin) & (np.abs(q + 300) < 150 + margin)
    return strip | ((np.abs(p) < 900 + margin) & (np.abs(q) < AIRPORT[1] + margin))


def lay(grid: Grid, ground: Ground, s: Land, ways: Ways, built: np.ndarray, wet: np.ndarray, found: list[City]) -> None:
    """Draw all ways and stamps over what is there. ``built``: blocks of settlements, ``wet``: water (H, W bool)."""
    w = ways
    verge = ((w.road < 5) | (w.highway < 18) | (w.rail < 6)) & ~wet & ~built
    ground.paint(
        verge, "artificial meadow", "sown grass", cover=np.clip(0.7 + 0.15 * s.middle, 0, 1), height=0, phase=2
    )
    ground.paint(verge & (w.road > 0) & (s.broad > 0), "forest", "street trees", cover=0.8, height=6)
    surface = {"cover": np.clip(0.75 + 0.08 * s.fine, 0, 1), "height": 0, "bright": 1}
    lane = (w.lane < 0) & ~built & (ground.leaf != LEAF["lake"])
    unpaved = lane & (s.broad < -0.2)
    ground.paint(lane, "road", "concrete", dirt=0.25, **surface)
    ground.paint(unpaved, kind="dirt road")
    road, highway, rail = w.road < 0, w.highway < 0, w.rail < 0
    ground.paint(road, "road", "old asphalt", dirt=0.12, **surface)
    ground.paint(rail, "road", "ballast", dirt=0.2, **surface)
    ground.paint(highway, "road", "asphalt", dirt=0.05, **surface)
    ground.paint(highway & (w.highway < -11.4), kind="lawn", cover=0.7)
    over = np.zeros_like(road)
    for upper, lower in ((road, highway), (road, rail), (highway, rail)):
        if (upper & lower).any():
            over |= upper & _grown(upper & lower, 20, grid.step)
    ground.paint(over, "overpass", "concrete", dirt=0.1, height=7, cover=0.8, bright=1.05)
    for p, q in _stamps(grid, [tuple(j) for j in w.net.junctions], 1.5 * INTERCHANGE):
        _interchange(ground, s, p, q)
    for p, q in _stamps(grid, stations(grid, found), STATION[0] + STATION[1]):
        _station(ground, s, p, q)
    for p, q in _stamps(grid, airports(grid, found), sum(AIRPORT)):
        _airport(ground, s, p, q)


def _grown(mask: np.ndarray, margin: float, step: float) -> np.ndarray:
    """What lies at most ``margin`` metres from the mask, along rows or columns."""
    return ndimage.maximum_filter(mask, 2 * round(margin / step) + 1)


def _interchange(ground: Ground, s: Land, p: np.ndarray, q: np.ndarray) -> None:
    """A clover leaf where a highway meets the ring road: p points out of the city, q along the ring."""
    a, b = np.abs(p), np.abs(q)
    box = _interchange_grounds(p, q, 0)
    ramps = box & (np.abs(np.hypot(a - 195, b - 195) - 178) < 4.8)
    lawn = box & ~np.isin(ground.leaf, (LEAF["river"], LEAF["lake"], LEAF["pond"]))
    ground.paint(lawn, "artificial meadow", "sown grass", cover=0.85, dirt=0.15, height=0, bright=1, phase=2)
    ground.paint(lawn & (s.middle + 0.4 * s.grain > 0.9), kind="street trees", height=5)
    loops = np.abs(np.hypot(a - 72, b - 72) - 58) < 4.8
    arms = (b < 13) | (a < 13)
    avenue = (b < 11) & (p < 0) & (p > -2.2 * INTERCHANGE)
    ground.paint(avenue & ~box, "road", "asphalt", cover=0.75, dirt=0.1, height=0, bright=1)
    ground.paint(box & (loops | ramps | arms), "overpass", "asphalt", cover=0.55, dirt=0.2, height=0, bright=1.05)
    ground.paint(box & arms & (a < 60) & (b < 60), kind="old asphalt", cover=0.7, height=7)


def _interchange_grounds(p: np.ndarray, q: np.ndarray, margin: float) -> np.ndarray:
    """What the four ramps enclose."""
    a, b = np.abs(p), np.abs(q)
    return (a < INTERCHANGE + margin) & (b < INTERCHANGE + margin) & (np.hypot(a - 195, b - 195) > 173 - margin)


def _station(ground: Ground, s: Land, p: np.ndarray, q: np.ndarray) -> None:
    """Tracks and roofed platforms side by side, a hall and a forecourt."""
    taper = np.clip((STATION[0] - np.abs(p)) / 120, 0, 1)
    yard = (np.abs(p) < STATION[0]) & (np.abs(q) < 7 + (STATION[1] - 7) * taper)
    ground.paint(
        yard, "railway station", "ballast", cover=0.8, dirt=np.clip(0.2 + 0.1 * s.fine, 0, 0.6), height=0, bright=1
    )
    platform = yard & (np.abs(p) < 230) & (np.mod(q + 60, 21) < 9) & (q < 34)
    ground.paint(platform, kind="steel roof", cover=0.85, dirt=0.1, height=6)
    hall = yard & (np.abs(p) < 75) & (q > 36) & (q < 56)
    ground.paint(hall, kind="white roof", cover=0.8, height=18)
    ground.paint(yard & (q > 56) & (np.abs(p) < 110), kind="concrete", cover=0.85)


def _airport(ground: Ground, s: Land, p: np.ndarray, q: np.ndarray) -> None:
    """A runway with its taxiway at q < 0, an apron with aircraft, a terminal and a car park towards q > 0."""
    a = np.abs(p)
    grass = np.clip(0.65 + 0.15 * s.broad + 0.08 * s.fine, 0, 1)
    grounds = _airport_grounds(p, q, 0)
    ground.paint(grounds, "airport", "meadow", cover=grass, dirt=0.15, height=0, bright=1, phase=3)
    runway = (a < 1450) & (np.abs(q + 330) < 25)
    taxi = (a < 1450) & (np.abs(q + 210) < 11)
    links = (a < 1462) & (np.mod(p + 1450, 725) < 24) & (q > -330) & (q < -150) | (a < 14) & (q > -210) & (q < -90)
    ground.paint(grounds & (runway | taxi | links), kind="old asphalt", cover=0.85, dirt=0.1, bright=1)
    marks = runway & ((np.abs(q + 330) < 2) & (np.mod(p, 60) < 36) | (a > 1385) & (np.mod(q + 332, 12) < 6))
    ground.paint(grounds & marks, kind="white roof", cover=0.6)
    apron = (a < 620) & (q > -150) & (q < 20)
    ground.paint(grounds & apron, kind="concrete", cover=0.85, dirt=0.1, bright=1 + 0.04 * s.middle)
    stand = np.mod(p, 62) - 31
    body = (np.abs(stand) < 3.0) & (np.abs(q + 24) < 19)
    wing = (np.abs(stand) < 18) & (np.abs(q + 22 - 0.5 * np.abs(stand)) < 4)
    ground.paint(grounds & apron & (a < 430) & (body | wing), kind="white roof", cover=0.9, height=5)
    terminal = (a < 330) & (q > 26) & (q < 82) & ((q > 45) | (np.mod(p, 62) < 14))
    ground.paint(grounds & terminal, kind="steel roof", cover=0.85, dirt=0.1, height=17)
    parking = (a < 380) & (q > 130) & (q < 290)
    ground.paint(grounds & parking, kind="asphalt", cover=0.6, dirt=np.clip(0.3 + 0.2 * s.grain, 0, 0.9))
    ground.paint(grounds & parking & (np.mod(q, 26) < 6), kind="street trees", cover=0.6, height=4)
    ground.paint(grounds & (a < 9) & (q > 90), kind="asphalt", cover=0.8, height=0)
