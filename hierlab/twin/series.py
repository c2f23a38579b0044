"""The sky over a series of dates: clouds, their shadows, thin haze, and what of the ground can be used.

Clouds are fields that are fixed to the ground for the moment of an overpass: every date has its own, so they move
from date to date. A cloud's shadow lies away from the sun, by its height over the tangent of the sun's elevation.
"""

import dataclasses
from statistics import NormalDist
from typing import NamedTuple

import numpy as np

from hierlab.twin.arrays import Array
from hierlab.twin.fields import Grid
from hierlab.twin.hashing import key, scalar
from hierlab.twin.optics import Sun

_CLEAR = 0.1  # opacity, and share of light lost to a cloud's shadow, below which a pixel is valid
_SOFT = 0.4  # standard deviations of the field from a cloud's edge to its thick part


class Sky(NamedTuple):
    """What clouds do to the pixels (H, W): ``opacity`` 0–1, ``shade`` (share of light lost) 0–1, ``haze`` ≥ 0.

    ``valid`` is true where neither a cloud nor its shadow is in the way.
    """

    opacity: Array
    shade: Array
    haze: Array
    valid: Array


def cloudiness(k: np.uint32, mean: float) -> float:
    """Share of the sky under cloud on a date with the key ``k``: some dates clear, some overcast, ``mean`` overall."""
    u = scalar(k, 1)
    share = np.sin(0.5 * np.pi * u) ** 2  # the arcsine distribution: its mean is 1/2
    return float(share ** (np.log(mean) / np.log(0.5))) if mean > 0 else 0.0


def _opacity(grid: Grid, name: str, share: float, fronts: float) -> Array:
    """Clouds over ``share`` of the sky; ``fronts`` (0 to 1) is how much they stand together."""
    if share <= 0.01:
        return grid.zeros()
    field = fronts * grid.noise(f"{name} fronts", 9000, 3)
    field += (1 - fronts**2) ** 0.5 * grid.noise(name, 1500, 5, 0.62)
    rise = field - NormalDist().inv_cdf(1 - min(share, 0.99))
    thick = (rise * (1 / _SOFT)).clip(0, 1)
    return thick * thick * (3 - 2 * thick)


def sky(grid: Grid, name: str, day: int, light: Sun, mean: float) -> Sky:
    """The sky over the pixels of a grid on one date of a series: ``name`` is the series', ``mean`` its cloud cover."""
    k = key(grid.seed, grid.region, name, "sky", grid.year, day)
    field, share = f"{name} clouds {grid.year} {day}", cloudiness(k, mean)
    fronts = scalar(k, 4, 0.4, 0.92)
    opacity = _opacity(grid, field, share, fronts)
    reach = scalar(k, 2, 600, 2600) / np.tan(np.radians(light.elevation))
    east, north = np.sin(np.radians(light.azimuth)), np.cos(np.radians(light.azimuth))
    towards = dataclasses.replace(grid, ax=grid.ax + round(reach * east), ay=grid.ay - round(reach * north))
    shade = 0.62 * _opacity(towards, field, share, fronts) * (1 - opacity)
    thin = (grid.noise(f"{field} thin", 5000, 3) + scalar(k, 3, -1.2, 1.0)).clip(0)
    haze = 0.5 * thin * (0.5 + share)
    return Sky(opacity, shade, haze, (opacity < _CLEAR) & (shade < _CLEAR))
