"""Where is the nearest …? An index of classes and kinds, so that even the rare ones can be looked at and trained on.

The index is made of sheets: point samples of the truth, 32 m apart. What the graphs know (airports, stations,
stadiums, overpasses, towns, villages, lakes, rivers) says which sheet to open; for all other classes, which are
common, sheets are opened in rings round the place asked for. Things smaller than the points are far apart (cars,
pools, aircraft) are looked for in the truth at 1 m round the places where they are at home.
"""

from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from hierlab.twin import drainage, places, urban, world
from hierlab.twin.fields import Grid
from hierlab.twin.ground import LEAF, LEAVES
from hierlab.twin.hashing import scalar
from hierlab.twin.places import CITY, TOWN, VILLAGE
from hierlab.twin.spectra import KIND
from hierlab.twin.world import TILE, YEAR

_SPACING = 32  # metres between the points of a sheet
SHEET = _SPACING * TILE  # metres a side of a sheet
_LIMIT = 120_000.0  # metres
_CLOSE = 1000  # millimetres: the grid on which small things are looked for
_TRIES = 16  # places of a sort at which they are looked for
_HOMES = {  # where the small things are
    "aircraft": "airport",
    "train": "railway station",
    "ballast": "railway station",
    "turf": "stadium",
    "track": "stadium",
    **dict.fromkeys(("white car", "dark car", "red car", "road marking", "street conifers"), "urban residential"),
    **dict.fromkeys(("truck", "container", "solar panel", "steel roof"), "industrial area"),
    **dict.fromkeys(("swimming pool", "tarpaulin"), "rural residential"),
    **dict.fromkeys(("paving", "gravel"), "park & square"),
}


class Sheet(NamedTuple):
    """Leaf ids and kinds (128, 128) uint8 at points 32 m apart."""

    leaf: np.ndarray
    kind: np.ndarray


class _Wanted(NamedTuple):
    """What is looked for: a field of the ground, by name, and its value; and in which world and year."""

    field: str
    value: int
    seed: int
    region: int
    year: int


def leaf_id(leaf: str | int) -> int:
    """The number 0–17 of a leaf class given by name or number; ValueError if there is none."""
    if isinstance(leaf, str) and leaf in LEAF:
        return LEAF[leaf]
    if not isinstance(leaf, str) and leaf == int(leaf) and 0 <= leaf < len(LEAVES):
        return int(leaf)
    raise ValueError(f"no leaf class {leaf!r}: expected 0–{len(LEAVES) - 1} or one of {', '.join(LEAVES)}.")


def kind_id(kind: str | int) -> int:
    """The number of a kind given by name or number; ValueError if there is none."""
    if isinstance(kind, str) and kind in KIND:
        return KIND[kind]
    if not isinstance(kind, str) and kind == int(kind) and 0 <= kind < len(KIND):
        return int(kind)
    raise ValueError(f"no kind {kind!r}: expected 0–{len(KIND) - 1} or one of {', '.join(KIND)}.")


@lru_cache(maxsize=512)
def sheet(seed: int, region: int, i: int, j: int, year: int = YEAR) -> Sheet:
    """The sheet whose corner is (i, j) · ``SHEET`` metres."""
    ground = world.survey(Grid.of(seed, region, i * TILE, j * TILE, TILE, _SPACING * 1000, year)).ground
    return Sheet(ground.leaf, ground.kind)


def nearest(
    leaf: str | int, x: float, y: float, seed: int = 0, region: int = 0, limit: float = _LIMIT, year: int = YEAR
) -> tuple[int, int] | None:
    """A place (x, y), whole metres, where the class is; None if there is none within ``limit`` metres of (x, y).

    For classes that the graphs know it lies at the nearest airport, station, town, lake … that shows the class, as
    near to its middle as the index can tell; for the others it is the nearest point of the index with the class.
    """
    wanted = _Wanted("leaf", leaf_id(leaf), seed, region, year)
    x, y = int(x), int(y)
    if LEAVES[wanted.value] in _FEATURES:
        return _at_feature(LEAVES[wanted.value], wanted, _in_sheet_at, x, y, limit)
    return _on_sheets(wanted, x, y, limit)


def nearest_kind(
    kind: str | int, x: float, y: float, seed: int = 0, region: int = 0, limit: float = _LIMIT, year: int = YEAR
) -> tuple[int, int] | None:
    """The same for the finer classes, ``spectra.KINDS``: for example the nearest "greenhouse" or "white car".

    Small things are not always the nearest of their kind: they are those at the nearest place where they are at home.
    """
    number, x, y = kind_id(kind), int(x), int(y)
    wanted, name = _Wanted("kind", number, seed, region, year), list(KIND)[number]
    if name in _HOMES:
        return _at_feature(_HOMES[name], wanted, _in_tile_at, x, y, limit)
    return _on_sheets(wanted, x, y, limit)


def _on_sheets(wanted: _Wanted, x: int, y: int, limit: float) -> tuple[int, int] | None:
    """The nearest point of the index, ring by ring."""
    best, best_distance = None, np.inf
    ci, cj = x // SHEET, y // SHEET
    for ring in range(int(limit // SHEET) + 2):
        if best_distance <= (ring - 1) * SHEET:
            break
        for i, j in _ring(ci, cj, ring):
            place, distance = _in_sheet(wanted, x, y, i, j)
            if distance < best_distance:
                best, best_distance = place, distance
    return best if best_distance <= limit else None


def sample(
    leaf: str | int, x: float, y: float, h: np.uint32, seed: int = 0, region: int = 0, year: int = YEAR
) -> tuple[int, int] | None:
    """Some place of the class near a point: the one that the hash ``h`` picks from the sheet of ``nearest``."""
    return _some("leaf", leaf_id(leaf), nearest(leaf, x, y, seed, region, year=year), h, seed, region, year)


def sample_kind(
    kind: str | int, x: float, y: float, h: np.uint32, seed: int = 0, region: int = 0, year: int = YEAR
) -> tuple[int, int] | None:
    """The same for a kind. A small thing is the one that ``nearest_kind`` finds, if the sheet has no other."""
    return _some("kind", kind_id(kind), nearest_kind(kind, x, y, seed, region, year=year), h, seed, region, year)


def _some(field: str, value: int, found, h: np.uint32, seed: int, region: int, year: int) -> tuple[int, int] | None:
    if found is None:
        return None
    i, j = found[0] // SHEET, found[1] // SHEET
    rows, columns = np.nonzero(getattr(sheet(seed, region, i, j, year), field) == value)
    if not len(rows):
        return found
    n = int(scalar(h, 80, 0, len(rows)))
    return _position(i, columns[n]), _position(j, rows[n])


def _position(cell: int, n: int) -> int:
    return cell * SHEET + int(n) * _SPACING + _SPACING // 2


def _in_sheet(wanted: _Wanted, x: int, y: int, i: int, j: int) -> tuple[tuple[int, int] | None, float]:
    """The point of a sheet that is nearest to (x, y), and how far it is."""
    found = getattr(sheet(wanted.seed, wanted.region, i, j, wanted.year), wanted.field)
    rows, columns = np.nonzero(found == wanted.value)
    if not len(rows):
        return None, np.inf
    half = _SPACING // 2
    d = np.hypot(columns * _SPACING + float(i * SHEET + half - x), rows * _SPACING + float(j * SHEET + half - y))
    n = int(np.argmin(d))
    return (_position(i, columns[n]), _position(j, rows[n])), float(d[n])


def _in_sheet_at(wanted: _Wanted, x: int, y: int) -> tuple[int, int] | None:
    return _in_sheet(wanted, x, y, x // SHEET, y // SHEET)[0]


def _in_tile_at(wanted: _Wanted, x: int, y: int) -> tuple[int, int] | None:
    """The pixel of the 1 m tile round a place that is nearest to it, whole metres."""
    size = world.tile_size(_CLOSE) * _CLOSE // 1000
    column, row = x // size, y // size
    ground = world.tile(wanted.seed, wanted.region, column, row, _CLOSE, 1, wanted.year).ground
    rows, columns = np.nonzero(getattr(ground, wanted.field)[world.inner(_CLOSE)] == wanted.value)
    if not len(rows):
        return None
    n = int(np.argmin(np.hypot(columns - float(x - column * size), rows - float(y - row * size))))
    return column * size + int(columns[n]), row * size + int(rows[n])


def _ring(ci: int, cj: int, ring: int) -> list[tuple[int, int]]:
    """Cells at Chebyshev distance ``ring`` from (ci, cj)."""
    span = range(-ring, ring + 1)
    return [(ci + a, cj + b) for b in span for a in span if max(abs(a), abs(b)) == ring]


def _at_feature(
    feature: str, wanted: _Wanted, look: Callable[..., tuple[int, int] | None], x: int, y: int, limit: float
) -> tuple[int, int] | None:
    """What ``look`` finds at the nearest places that the graphs know for a class."""
    reach, seen = 8_000.0, 0
    while True:
        reach = min(reach, limit)
        box = (-reach, -reach, reach, reach)
        found = np.array(_FEATURES[feature](wanted.seed, wanted.region, x, y, box), float).reshape(-1, 2)
        distance = np.hypot(*found.T)
        order = np.argsort(distance, kind="stable")
        for n in order[seen:]:
            if distance[n] > reach or (look is _in_tile_at and seen >= _TRIES):
                break
            seen += 1
            place = look(wanted, x + int(np.floor(found[n, 0])), y + int(np.floor(found[n, 1])))
            if place is not None:
                return place
        if reach >= limit or (look is _in_tile_at and seen >= _TRIES):
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
