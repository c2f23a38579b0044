"""The world, assembled: everything that lies in one canonical tile.

A tile is ``tile_size`` pixels a side on the grid of a GSD, aligned to multiples of that, and is always computed
whole, with ``halo`` pixels round it, in a frame anchored to the tile. So a pixel's value does not depend on the
window that asked for it. Everything whose shape is longer than a tile comes from cached graphs (``drainage``,
``places``), whose own blocks are canonical too.
"""

from functools import lru_cache
from typing import NamedTuple

import numpy as np

from hierlab.twin import farmland, parcels, places, rural, shores, transport, urban
from hierlab.twin.fields import Grid
from hierlab.twin.ground import LEAF, Ground

TILE = 128  # pixels a side of a tile from 4 m up
HALO = 16  # pixels of margin at 4 m: the longest shadow (11) and the point spread (4)
YEAR = 2020  # the year that is looked at unless another is asked for
_CLEARED = 450.0  # metres beyond a settlement within which the woods give way to fields
_NO_PONDS = 0.6  # nearness above which a parcel is no fish pond


def tile_size(step_mm: int) -> int:
    """Pixels a side of a canonical tile on the grid of ``step_mm`` millimetres."""
    return TILE if step_mm >= 4000 else 512


def halo(step_mm: int) -> int:
    """Pixels of margin round a tile.

    From 1 m up it holds the longest shadow (48 m) and the point spread; below, the point spread alone, and
    the heights that throw shadows are looked up in tiles of a coarser grid.
    """
    if step_mm < 1000:
        return 8
    return 8 if step_mm >= 10_000 else HALO if step_mm >= 4000 else 8 + -(-48_000 // step_mm)


def inner(step_mm: int, oversample: int = 1) -> tuple:
    """The index of a tile without its margin, for arrays (…, H, W)."""
    n = halo(step_mm) * oversample
    return np.s_[..., n:-n, n:-n]


class Scene(NamedTuple):
    """One tile with its halo: what is on the ground and the elevation of the ground, metres."""

    ground: Ground
    relief: np.ndarray
    grid: Grid


def _nearness(x: np.ndarray, y: np.ndarray, towns: places.Settlements) -> np.ndarray:
    """How near points are to a settlement: 1 in it, falling to 0 where the woods are not cleared."""
    out = np.zeros(x.shape, np.float32)
    for cx, cy, radius in zip(towns.x, towns.y, towns.radius, strict=True):
        edge = 1.2 * radius + _CLEARED
        distance = np.hypot(x - x.dtype.type(cx), y - x.dtype.type(cy))
        np.maximum(out, (x.dtype.type(edge) - distance) / x.dtype.type(_CLEARED), out=out)
    return np.minimum(out, 1)


def survey(grid: Grid) -> Scene:
    """Everything on the samples of a grid, in the order in which one thing lies on another."""
    ground = Ground.blank(grid.shape)
    shared = rural.land(grid)
    fields = parcels.parcels(grid, shared.x, shared.y)
    plan = parcels.use(grid, fields)
    box = (float(grid.x[0]), float(grid.y[0]), float(grid.x[-1]), float(grid.y[-1]))
    around = (box[0] - _CLEARED, box[1] - _CLEARED, box[2] + _CLEARED, box[3] + _CLEARED)
    towns = places.settlements(grid.seed, grid.region, grid.ax, grid.ay, around)
    rural.cultivate(grid, ground, shared, fields, plan)
    farmland.work(grid, ground, shared, fields, plan)
    rural.grow(grid, ground, shared, fields, plan, _nearness(*grid.mesh, towns))
    lived = _nearness(fields.x, fields.y, towns) > _NO_PONDS
    banks = shores.flood(grid, ground, shared, fields, lived)
    found = places.cities(grid.seed, grid.region, grid.ax, grid.ay, box)
    ways = transport.Ways(grid, places.network(grid.seed, grid.region, grid.ax, grid.ay, box, 90))
    taken = transport.reserved(grid, ways, found)
    clear = ~taken & (banks.river > 11) & (banks.lake > 8)
    built = urban.build(grid, ground, shared, towns, clear)
    wet = np.isin(ground.leaf, (LEAF["river"], LEAF["lake"], LEAF["pond"]))
    transport.lay(grid, ground, shared, ways, built, wet, found)
    return Scene(ground, shared.relief, grid)


@lru_cache(maxsize=8)
def tile(seed: int, region: int, column: int, row: int, step_mm: int, oversample: int = 1, year: int = YEAR) -> Scene:
    """The canonical tile (column, row) of the grid of ``step_mm`` millimetres, ``oversample`` samples a pixel side.

    ValueError unless a pixel divides into samples of whole millimetres.
    """
    n, size, margin = oversample, tile_size(step_mm), halo(step_mm)
    if step_mm < 1 or n < 1 or step_mm % n:
        raise ValueError(f"{n} samples a side of {step_mm} mm: expected samples of whole millimetres.")
    first = (column * size - margin) * n, (row * size - margin) * n
    return survey(Grid.of(seed, region, *first, (size + 2 * margin) * n, step_mm // n, year))


def windows(window: tuple[int, int, int, int], step_mm: int = 4000):
    """The tiles that a window (x, y, width, height) meets, pixels: column, row, slices in the tile, in the window."""
    x, y, width, height = window
    size = tile_size(step_mm)
    for row in range(y // size, (y + height - 1) // size + 1):
        for column in range(x // size, (x + width - 1) // size + 1):
            x0, y0 = max(x, column * size), max(y, row * size)
            x1, y1 = min(x + width, (column + 1) * size), min(y + height, (row + 1) * size)
            part = np.s_[y0 - row * size : y1 - row * size, x0 - column * size : x1 - column * size]
            yield column, row, part, np.s_[y0 - y : y1 - y, x0 - x : x1 - x]
