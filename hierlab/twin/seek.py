"""Where a class of a data set's legend can be found, so that the rare ones are seen as often as the common ones.

``index`` knows where the 18 leaf classes are. A legend also has classes of finer things (cars, greenhouses, a crop),
which are found in three steps: a leaf class that has them or a sheet of truth in which they lie, one of its points,
and round that point the truth on the image's own grid, where one pixel of the class is taken.
"""

from functools import lru_cache
from typing import NamedTuple

import numpy as np

from hierlab.twin import index, legends, world
from hierlab.twin.fields import Grid
from hierlab.twin.ground import LEAVES
from hierlab.twin.hashing import derive, scalar
from hierlab.twin.spectra import KINDS
from hierlab.twin.world import TILE

_TRIES = 8  # points that are looked at before a class is given up
_RINGS = 3  # sheets each way
_FAR = 30_000.0  # metres: how far a kind is looked for
_FINEST = 500  # mm: the finest grid that is searched; things seen at 5 cm are there at half a metre too

_HOMES: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("white car", "dark car", "red car"), ("urban residential", "road", "industrial area")),
    **dict.fromkeys(("truck", "container"), ("industrial area", "road")),
    **dict.fromkeys(("asphalt", "old asphalt", "road marking"), ("road", "urban residential", "airport")),
    **dict.fromkeys(("concrete", "paving", "gravel"), ("park & square", "urban residential", "industrial area")),
    **dict.fromkeys(("red roof", "brown roof"), ("rural residential", "urban residential")),
    **dict.fromkeys(("grey roof", "dark roof"), ("urban residential", "industrial area")),
    **dict.fromkeys(("white roof", "blue roof", "steel roof", "solar panel"), ("industrial area",)),
    **dict.fromkeys(("street trees", "street conifers", "hedge"), ("urban residential", "park & square")),
    **dict.fromkeys(("track", "turf"), ("stadium",)),
    **dict.fromkeys(("ballast", "train"), ("railway station", "road")),
    **dict.fromkeys(("greenhouse", "glass greenhouse", "plastic mulch", "dirt road"), ("dry cropland",)),
    **dict.fromkeys(("reeds", "wet meadow"), ("lake", "river", "natural meadow")),
    **dict.fromkeys(("river water", "lake water", "pond water"), ("river", "lake", "pond")),
    **dict.fromkeys(("broadleaf forest", "conifer forest", "shrubland"), ("forest",)),
    **dict.fromkeys(("bare soil", "sand", "rock"), ("bare land",)),
    **dict.fromkeys(("meadow", "sown grass", "lawn"), ("natural meadow", "artificial meadow", "park & square")),
    "aircraft": ("airport",),
    "swimming pool": ("rural residential", "urban residential"),
    "tarpaulin": ("industrial area", "rural residential"),
    "building site": ("urban residential", "industrial area"),
}


class _Signs(NamedTuple):
    """Where to look for a class: leaf classes that mostly are it, leaf classes where it is at home, and its kinds."""

    mostly: tuple[str, ...]
    homes: tuple[str, ...]
    kinds: tuple[str, ...]


@lru_cache(maxsize=512)
def _signs(legend: str, wanted: int) -> _Signs:
    is_it = legends.LEGENDS[legend].table == wanted
    mostly = tuple(LEAVES[n] for n in np.nonzero(is_it.mean(1) >= 0.5)[0])
    only = [LEAVES[n] for n in np.nonzero(is_it.any(1))[0]]
    kinds = tuple(kind for n, kind in enumerate(KINDS) if is_it[:, n].any())
    known = (leaf for k in kinds for leaf in _HOMES.get(k, ()) if is_it[LEAVES.index(leaf), list(KINDS).index(k)])
    return _Signs(mostly, tuple(only if len(only) <= 3 else dict.fromkeys(known)), kinds)


def _on_the_sheet(
    legend: str, wanted: int, i: int, j: int, h: np.uint32, seed: int, region: int, year: int
) -> tuple[int, int] | None:
    """A point of the class on one sheet of the index, picked by hash; None if there is none."""
    sheet, spacing = index.sheet(seed, region, i, j, year), index.SHEET // TILE
    rows, columns = np.nonzero(legends.classify(sheet.leaf, sheet.kind, legend) == wanted)
    if not len(rows):
        return None
    n = int(scalar(h, 1, 0, len(rows)))
    return tuple(cell * spacing + spacing // 2 for cell in (i * TILE + int(columns[n]), j * TILE + int(rows[n])))


def _on_a_sheet(
    legend: str, wanted: int, x: int, y: int, h: np.uint32, seed: int, region: int, year: int
) -> tuple[int, int] | None:
    """A point of the class on the nearest sheet that has it, picked by hash."""
    cells = sorted(
        ((a, b) for a in range(-_RINGS, _RINGS + 1) for b in range(-_RINGS, _RINGS + 1)),
        key=lambda cell: (max(map(abs, cell)), cell),
    )
    for a, b in cells:
        cell = x // index.SHEET + a, y // index.SHEET + b
        place = _on_the_sheet(legend, wanted, *cell, h, seed, region, year)
        if place:
            return place
    return None


def leaf(name: str | int, x: int, y: int, h: np.uint32, seed: int, region: int, year: int) -> tuple[int, int] | None:
    """A place of one of the 18 leaf classes, metres: on the sheet of a point, or else near the nearest one."""
    cell = x // index.SHEET, y // index.SHEET
    place = _on_the_sheet("mm5b", index.leaf_id(name), *cell, h, seed, region, year)
    return place or index.sample(name, x, y, h, seed, region, year)


def _of_a_kind(
    kinds: tuple[str, ...], x: int, y: int, h: np.uint32, seed: int, region: int, year: int
) -> tuple[int, int] | None:
    """A place of one of the kinds, found by the index from a point nearby."""
    kind = kinds[int(scalar(h, 3, 0, len(kinds)))]
    u, v = (w + int(scalar(h, salt, -1, 1) * index.SHEET) for salt, w in ((4, x), (5, y)))
    return index.nearest_kind(kind, u, v, seed, region, _FAR, year)


def _close_by(
    legend: str, wanted: int, x: int, y: int, h: np.uint32, seed: int, region: int, step_mm: int, year: int
) -> tuple[int, int] | None:
    """The middle of a pixel of the class within 64 pixels of a point, millimetres, picked by hash; None if none is."""
    step = max(step_mm, _FINEST)
    column, row = x * 1000 // step - TILE // 2, y * 1000 // step - TILE // 2
    ground = world.survey(Grid.of(seed, region, column, row, TILE, step, year)).ground
    rows, columns = np.nonzero(legends.classify(ground.leaf, ground.kind, legend) == wanted)
    if not len(rows):
        return None
    n = int(scalar(h, 2, 0, len(rows)))
    return (column + int(columns[n])) * step + step // 2, (row + int(rows[n])) * step + step // 2


def find(
    legend: str, wanted: int, x: int, y: int, h: np.uint32, seed: int, region: int, step_mm: int, year: int
) -> tuple[int, int] | None:
    """A place (x, y), millimetres, that shows a class of a legend near a point, metres; which, the hash ``h`` decides.

    ``step_mm``: the pixel on whose grid the class must be seen. None if nothing was found where it was looked for.
    """
    signs = _signs(legend, wanted)
    for n in range(_TRIES):
        turn = derive(h, 90 + n)[0]
        if signs.kinds and n >= _TRIES // 2:
            place = _of_a_kind(signs.kinds, x, y, turn, seed, region, year)
        elif signs.mostly or (signs.homes and n % 2 == 0):
            names = signs.mostly or signs.homes
            place = leaf(names[int(scalar(turn, 0, 0, len(names)))], x, y, turn, seed, region, year)
        else:
            place = _on_a_sheet(legend, wanted, x, y, turn, seed, region, year)
        found = place and _close_by(legend, wanted, *place, turn, seed, region, step_mm, year)
        if found:
            return found
    return None
