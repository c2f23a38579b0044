"""The world, assembled: everything that lies in one canonical tile.

A tile is ``TILE`` pixels a side on the grid of a GSD, aligned to multiples of ``TILE``, and is always computed
whole, with ``HALO`` pixels round it, in a frame anchored to the tile. So a pixel's value does not depend on the
window that asked for it. Everything whose shape is longer than a tile comes from cached graphs (``drainage``,
``places``), whose own blocks are canonical too.
"""

from functools import lru_cache
from typing import NamedTuple

import numpy as np

from hierlab.twin import places, rural, transport, urban
from hierlab.twin.fields import Grid
from hierlab.twin.ground import LEAF, Ground

TILE = 128  # pixels
_CLEARED = 450.0  # metres beyond a settlement within which the woods give way to fields
HALO = 16  # pixels: the longest shadow (11) and the point spread (3), with room


class Scene(NamedTuple):
    """One tile with its halo: what is on the ground and the elevation of the ground, metres."""

    ground: Ground
    relief: np.ndarray
    grid: Grid


def _nearness(grid: Grid, towns: places.Settlements) -> np.ndarray:
    """How near the samples (H, W) are to a settlement: 1 in it, falling to 0 where the woods are not cleared."""
    out = np.zeros(grid.shape, np.float32)
    x, y = grid.mesh
    for cx, cy, radius in zip(towns.x, towns.y, towns.radius, strict=True):
        edge = np.float32(1.2 * radius + _CLEARED)
        distance = np.hypot(x - np.float32(cx), y - np.float32(cy))
        np.maximum(out, (edge - distance) / np.float32(_CLEARED), out=out)
    return np.minimum(out, 1)


def survey(grid: Grid) -> Scene:
    """Everything on the samples of a grid, in the order in which one thing lies on another."""
    ground = Ground.blank(grid.shape)
    shared = rural.land(grid)
    fields = rural.parcels(grid, shared)
    box = (float(grid.x[0]), float(grid.y[0]), float(grid.x[-1]), float(grid.y[-1]))
    around = (box[0] - _CLEARED, box[1] - _CLEARED, box[2] + _CLEARED, box[3] + _CLEARED)
    towns = places.settlements(grid.seed, grid.region, grid.ax, grid.ay, around)
    rural.cultivate(grid, ground, shared, fields, _nearness(grid, towns))
    shores = rural.flood(grid, ground, shared, fields)
    found = places.cities(grid.seed, grid.region, grid.ax, grid.ay, box)
    ways = transport.Ways(grid, places.network(grid.seed, grid.region, grid.ax, grid.ay, box, 90))
    taken = transport.reserved(grid, ways, found)
    clear = ~taken & (shores.river > 11) & (shores.lake > 8)
    built = urban.build(grid, ground, shared, towns, clear)
    wet = np.isin(ground.leaf, (LEAF["river"], LEAF["lake"], LEAF["pond"]))
    transport.lay(grid, ground, shared, ways, built, wet, found)
    return Scene(ground, shared.relief, grid)


@lru_cache(maxsize=16)
def tile(seed: int, region: int, column: int, row: int, step_mm: int, oversample: int = 1) -> Scene:
    """The canonical tile (column, row) of the grid of ``step_mm`` millimetres, ``oversample`` samples a pixel side."""
    n = oversample
    first = (column * TILE - HALO) * n, (row * TILE - HALO) * n
    return survey(Grid.of(seed, region, *first, (TILE + 2 * HALO) * n, step_mm // n))


def windows(window: tuple[int, int, int, int]):
    """The tiles that a window (x, y, width, height) meets, pixels: column, row, slices in the tile, in the window."""
    x, y, width, height = window
    for row in range(y // TILE, (y + height - 1) // TILE + 1):
        for column in range(x // TILE, (x + width - 1) // TILE + 1):
            x0, y0 = max(x, column * TILE), max(y, row * TILE)
            x1, y1 = min(x + width, (column + 1) * TILE), min(y + height, (row + 1) * TILE)
            inner = np.s_[y0 - row * TILE : y1 - row * TILE, x0 - column * TILE : x1 - column * TILE]
            yield column, row, inner, np.s_[y0 - y : y1 - y, x0 - x : x1 - x]
