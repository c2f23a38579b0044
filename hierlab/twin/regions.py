"""How regions differ: climate, landforms, fields, crops, woods, building and air, drawn once from a region's number.

Region numbers are free integers. Nothing here is tied to a place on the real Earth: a style is drawn from the seed
and the number, and its parts hang together (what is warm and wet grows rice, what is cool grows barley and potatoes
and has more conifers, and so on).
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from hierlab.twin.hashing import key, scalar

Weights = tuple[tuple[str, float], ...]  # (kind, share) pairs, the shares summing to 1

# How a crop likes it: weight, then preference (−1 to 1) for warmth, for wetness.
_CROPS = {
    "wheat and maize": (1.5, 0.7, -0.1),
    "wheat": (1.1, -0.4, -0.1),
    "maize": (1.0, 0.2, 0.1),
    "soybean": (0.8, 0.3, 0.1),
    "barley": (0.6, -0.9, -0.2),
    "oats": (0.3, -1.0, 0.4),
    "rape": (0.8, -0.3, 0.3),
    "sunflower": (0.5, 0.4, -0.9),
    "potatoes": (0.5, -0.8, 0.3),
    "alfalfa": (0.5, 0.0, -0.6),
    "vegetables": (1.0, 0.3, 0.2),
    "vineyard": (0.25, 0.6, -0.8),
    "fallow": (0.5, 0.0, -0.4),
}
_ROOFS = {"red roof": 1.6, "brown roof": 1.0, "grey roof": 1.0, "dark roof": 0.9, "blue roof": 0.15, "concrete": 0.6}
_STREETS = ("grid", "bent", "irregular")


@dataclass(frozen=True)
class Region:
    """The style of a region.

    Land: ``wet`` (−0.45 to 0.5), ``warm`` (0 to 1), ``hilly`` (−0.35 to 0.45), ``woods`` (−0.2 to 0.2, how much of
    the hills is wooded), ``conifers`` (−0.5 to 0.5), ``soil`` (−1 dark to 1 red).
    Farming: ``field`` (factor on the area of parcels, 0.6 to 2.4), ``strips`` (1 to 3, how drawn out parcels are),
    ``hedges`` (0 to 0.6, share of districts with hedges), ``crops`` (weights of the dry crops by kind), ``rice``
    (−0.4 to 0.25, by how much paddies spread), ``film`` (−0.5 to 0.5, by how much greenhouses do), ``season`` (days
    by which the growing season is late, −25 to 25).
    Building: ``density`` (factor on the number and size of settlements, 0.6 to 1.4), ``lot`` (factor on the area of
    lots, 0.7 to 2.2), ``gardens`` (0 to 1, how green yards are), ``streets`` ("grid", "bent" or "irregular"),
    ``roofs`` (weights of the roofs of houses by kind).
    Air: ``haze`` (0 to 1, how hazy a usual day is) and ``aerosol`` (optical depth at 550 nm on such a day).
    """

    wet: float
    warm: float
    hilly: float
    woods: float
    conifers: float
    soil: float
    field: float
    strips: float
    hedges: float
    crops: Weights
    rice: float
    film: float
    season: float
    density: float
    lot: float
    gardens: float
    streets: str
    roofs: Weights
    haze: float
    aerosol: float


def _weights(table: dict[str, float], k: np.uint32, salt: int, spread: float) -> Weights:
    """A table's weights, each times a hashed factor of e^±spread, brought to the sum 1."""
    raw = {name: w * np.exp(scalar(k, salt + n, -spread, spread)) for n, (name, w) in enumerate(table.items())}
    total = sum(raw.values())
    return tuple((name, float(w / total)) for name, w in raw.items())


@lru_cache(maxsize=256)
def style(seed: int, region: int) -> Region:
    """The style of a region, drawn once from the seed and the region's number."""
    k = key(seed, region, "climate")
    wet, warm = scalar(k, 1, -0.45, 0.5), scalar(k, 5, 0, 1)
    likes = {
        name: weight * np.exp(1.3 * (warm - 0.5) * 2 * heat + 1.3 * wet * 2 * rain)
        for name, (weight, heat, rain) in _CROPS.items()
    }
    haze = scalar(k, 19, 0, 1)
    return Region(
        wet=wet,
        warm=warm,
        hilly=scalar(k, 2, -0.35, 0.45),
        woods=scalar(k, 6, -0.2, 0.2),
        conifers=scalar(k, 7, -0.3, 0.3) + 0.4 * (0.5 - warm),
        soil=scalar(k, 4, -1, 1),
        field=0.6 * 4.0 ** scalar(k, 3),
        strips=scalar(k, 8, 1, 3),
        hedges=0.6 * scalar(k, 9) ** 2,
        crops=_weights(likes, k, 40, 0.9),
        rice=0.5 * (warm - 0.5) + scalar(k, 10, -0.15, 0),
        film=scalar(k, 11, -0.5, 0.5),
        season=25 * (1 - 2 * warm) * 0.6 + scalar(k, 12, -10, 10),
        density=scalar(k, 13, 0.6, 1.4),
        lot=0.7 * 3.14 ** scalar(k, 14),
        gardens=scalar(k, 15),
        streets=_STREETS[int(3 * scalar(k, 16))],
        roofs=_weights(_ROOFS, k, 60, 1.4),
        haze=haze,
        aerosol=0.06 + 0.3 * haze * scalar(k, 20, 0.6, 1.2),
    )


def like(seed: int, count: int, first: int = 0, **bounds: tuple[float, float]) -> tuple[int, ...]:
    """The first ``count`` region numbers from ``first`` on whose style lies in the bounds, e.g. ``warm=(0, 0.4)``.

    ValueError if a thousand numbers do not hold enough.
    """
    found = []
    for region in range(first, first + 1000):
        s = style(seed, region)
        if all(low <= getattr(s, name) <= high for name, (low, high) in bounds.items()):
            found.append(region)
            if len(found) == count:
                return tuple(found)
    raise ValueError(f"only {len(found)} of {count} regions from {first} on have {bounds}: widen the bounds.")
