"""Where is the nearest …? An index of the 18 classes, so that even the rare ones can be looked at and trained on.

The index is made of sheets: point samples of the truth, 32 m apart. What the graphs know (airports, stations,
stadiums, overpasses, towns, villages, lakes, rivers) says which sheet to open; for all other classes, which are
common, sheets are opened in rings round the place asked for.
"""

from functools import lru_cache

import numpy as np

from hierlab.twin import drainage, places, urban, world
from hierlab.twin.fields import Grid
from hierlab.twin.ground import LEAF, LEAVES
from hierlab.twin.hashing import scalar
from hierlab.twin.places import CITY, TOWN, VILLAGE
from hierlab.twin.world import TILE

_SPACING = 32  # metres between the points of a sheet
SHEET = _SPACING * TILE  # metres a side of a sheet


def leaf_id(leaf: str | int) -> int:
    """The number 0–17 of a leaf class given by name or number; ValueError if there is none."""
    if isinstance(leaf, str) and leaf in LEAF:
        return LEAF[leaf]
    if not isinstance(leaf, str) and leaf == int(leaf) and 0 <= leaf < len(LEAVES):
        return int(leaf)
    raise ValueError(f"no leaf class {leaf!r}: expected 0–{len(LEAVES) - 1} or one of {', '.join(LEAVES)}.")


@lru_cache(maxsize=512)
def sheet(seed: int, region: int, i: int, j: int) -> np.ndarray:
    """Leaf ids (128, 128) uint8 at points 32 m apart: the sheet whose corner is (i, j) · ``SHEET`` metres."""
    return world.survey(Grid.of(seed, region, i * TILE, j * TILE, TILE, _SPACING * 1000)).ground.leaf


def nearest(
    leaf: str | int, x: float, y: float, seed: int = 0, region: int = 0, limit: float = 120_000.0
) -> tuple[int, int] | None:
    """A place (x, y), whole metres, where the class is; None if there is none within ``limit`` metres of (x, y).

    For classes that the graphs know it lies at the nearest airport, station, town, lake … that shows the class, as
    near to its middle as the index can tell; for the others it is the nearest point of the index with the class.
    """
    leaf, x, y = leaf_id(leaf), int(x), int(y)
    if LEAVES[leaf] in _FEATURES:
        return _at_feature(leaf, x, y, seed, region, limit)
    best, best_distance = None, np.inf
    ci, cj = x // SHEET, y // SHEET
    for ring in range(int(limit // SHEET) + 2):
        if best_distance <= (ring - 1) * SHEET:
            break
        for i, j in _ring(ci, cj, ring):
            place, distance = _in_sheet(leaf, x, y, seed, region, i, j)
            if distance < best_distance:
                best, best_distance = place, distance
    return best if best_distance <= limit else None


def sample(leaf: str | int, x: float, y: float, h: np.uint32, seed: int = 0, region: int = 0) -> tuple[int, int] | None:
    """Some place of the class near a point: the pixel that the hash ``h`` picks from the sheet of ``nearest``."""
    found = nearest(leaf, x, y, seed, region)
    if found is None:
        return None
    i, j = found[0] // SHEET, found[1] // SHEET
    rows, columns = np.nonzero(sheet(seed, region, i, j) == leaf_id(leaf))
    n = int(scalar(h, 80, 0, len(rows)))
    return _position(i, columns[n]), _position(j, rows[n])


def _position(cell: int, n: int) -> int:
    return cell * SHEET + int(n) * _SPACING + _SPACING // 2


def _in_sheet(
    leaf: int, x: int, y: int, seed: int, region: int, i: int, j: int
) -> tuple[tuple[int, int] | None, float]:
    """The point of a sheet with the class that is nearest to (x, y), and how far it is."""
    rows, columns = np.nonzero(sheet(seed, region, i, j) == leaf)
    if not len(rows):
        return None, np.inf
    half = _SPACING // 2
    d = np.hypot(columns * _SPACING + float(i * SHEET + half - x), rows * _SPACING + float(j * SHEET + half - y))
    n = int(np.argmin(d))
    return (_position(i, columns[n]), _position(j, rows[n])), float(d[n])


def _ring(ci: int, cj: int, ring: int) -> list[tuple[int, int]]:
    """Cells at Chebyshev distance ``ring`` from (ci, cj)."""
    span = range(-ring, ring + 1)
    return [(ci + a, cj + b) for b in span for a in span if max(abs(a), abs(b)) == ring]


def _at_feature(leaf: int, x: int, y: int, seed: int, region: int, limit: float) -> tuple[int, int] | None:
    reach = 8_000.0
    while True:
        reach = min(reach, limit)
        found = np.array(_FEATURES[LEAVES[leaf]](seed, region, x, y, (-reach, -reach, reach, reach)), float).reshape(
            -1, 2
        )
        distance = np.hypot(*found.T)
        for n in np.argsort(distance, kind="stable"):
            if distance[n] > reach:
                break
            px, py = x + int(np.floor(found[n, 0])), y + int(np.floor(found[n, 1]))
            place, _ = _in_sheet(leaf, px, py, seed, region, px // SHEET, py // SHEET)
            if place is not None:
                return place
        if reach >= limit:
            return None
        reach *= 2


def _settled(seed: int, region: int, x: int, y: int, box, levels: tuple[int, ...]) -> list[tuple[float, float]]:
    s = places.settlements(seed, region, x, y, box)
    return [(a, b) for a, b, level in zip(s.x, s.y, s.level, strict=True) if level in levels]


def _towns(seed: int, region: int, x: int, y: int, box) -> list[tuple[float, float]]:
    return _settled(seed, region, x, y, box, (TOWN, CITY))


def _villages(seed: int, region: int, x: int, y: int, box) -> list[tuple[float, float]]:
    return _settled(seed, region, x, y, box, (VILLAGE,))


def _stadiums(seed: int, region: int, x: int, y: int, box) -> list[tuple[float, float]]:
    found = []
    for cx, cy, radius, level, angle, h in zip(*places.settlements(seed, region, x, y, box), strict=True):
        square = urban.stadium_square(int(level), float(radius), h)
        if square is not None:
            dx, dy = urban.square_centre(int(level), float(angle), square)
            found.append((cx + dx, cy + dy))
    return found


def _junctions(seed: int, region: int, x: int, y: int, box) -> list[tuple[float, float]]:
    return [(a, b) for a, b, _ in places.network(seed, region, x, y, box, 0).junctions]


def _stations(seed: int, region: int, x: int, y: int, box) -> list[tuple[float, float]]:
    return [(c.x - x + c.station[0], c.y - y + c.station[1]) for c in places.cities(seed, region, x, y, box)]


def _airports(seed: int, region: int, x: int, y: int, box) -> list[tuple[float, float]]:
    found = places.cities(seed, region, x, y, box)
    stamps = [(c, places.airport(seed, region, c)) for c in found]
    return [(c.x - x + a[0], c.y - y + a[1]) for c, a in stamps if a]


def _lakes(seed: int, region: int, x: int, y: int, box) -> list[tuple[float, float]]:
    return [tuple(p) for k in drainage.LEVELS for p in drainage.near(seed, region, k, x, y, box).lakes[:, :2]]


def _rivers(seed: int, region: int, x: int, y: int, box) -> list[tuple[float, float]]:
    return [tuple(p) for p in drainage.near(seed, region, drainage.RIVER, x, y, box).courses[::4, :2]]


_FEATURES = {
    "river": _rivers,
    "lake": _lakes,
    "industrial area": _towns,
    "urban residential": _towns,
    "rural residential": _villages,
    "stadium": _stadiums,
    "park & square": _towns,
    "overpass": _junctions,
    "railway station": _stations,
    "airport": _airports,
}
