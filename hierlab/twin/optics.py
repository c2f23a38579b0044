"""Light and glass: the sun, light on slopes and walls, shadows, the sky that is seen, point spread and noise.

Everything works on one canonical tile with its margin, so that what reaches over a tile's edge (a shadow, a blurred
pixel) is the same from both sides.
"""

from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch

from hierlab.twin import world
from hierlab.twin.arrays import Array, around, like, of, put, select
from hierlab.twin.fields import Grid
from hierlab.twin.hashing import derive, key

REACH = 48.0  # metres: shadows end here, so that a tile's margin can hold them
_AROUND = 6.0  # metres within which walls and trees hide the sky
_TABLE = 2**16  # values of the noise table
SPREAD = 2  # pixels each way that the point spread covers


class Sun(NamedTuple):
    """Where the sun stands: degrees above the horizon, and degrees from north through east."""

    elevation: float
    azimuth: float


def sun(latitude: float, day: float, hour: float) -> Sun:
    """The sun over a latitude (degrees north) on a day of the year, ``hour`` hours after local noon."""
    phi, turn = np.radians(latitude), np.radians(15.0 * hour)
    declination = np.radians(-23.44) * np.cos(2 * np.pi * (day + 10) / 365)
    up = np.sin(phi) * np.sin(declination) + np.cos(phi) * np.cos(declination) * np.cos(turn)
    south = np.sin(phi) * np.cos(declination) * np.cos(turn) - np.cos(phi) * np.sin(declination)
    azimuth = 180 + np.degrees(np.arctan2(np.cos(declination) * np.sin(turn), south))
    return Sun(float(np.degrees(np.arcsin(up))), float(azimuth))


def _shifted(a: Array, down: int, right: int) -> Array:
    """What lies ``down`` rows and ``right`` columns from each sample; far below the ground where nothing is known."""
    out = of(a).full_like(a, -1e4)
    rows, columns = (
        slice(max(-n, 0), max(size - max(n, 0), 0)) for n, size in zip((down, right), a.shape, strict=True)
    )
    from_rows, from_columns = (
        slice(max(n, 0), max(size + min(n, 0), 0)) for n, size in zip((down, right), a.shape, strict=True)
    )
    out[rows, columns] = a[from_rows, from_columns]
    return out


def _horizon(height: Array, light: Sun, step: float) -> Array:
    """Height (H, W) in metres up to which things towards the sun, ``step`` metres apart, keep the sun from a place.

    What stands within ``REACH`` metres counts; of taller things only the part whose shadow is no longer. By
    doubling: the horizon of 2n steps is that of n steps seen from two places.
    """
    slope = float(np.tan(np.radians(light.elevation)))
    east, north = np.sin(np.radians(light.azimuth)), np.cos(np.radians(light.azimuth))
    top = height.clip(None, REACH * slope)
    longest = min(float(top.max()) / slope, REACH) / step
    horizon = _shifted(top, round(-north), round(east)) - step * slope
    steps = 1
    while steps < longest:
        farther = _shifted(horizon, round(-steps * north), round(steps * east))
        farther -= steps * step * slope
        of(horizon).maximum(horizon, farther, out=horizon)
        steps *= 2
    horizon += 0.5 * step * slope  # a shadow's edge lies between two samples
    return horizon


def shadows(height: Array, light: Sun, step: float, beyond: Array | None = None) -> Array:
    """Share of direct light (H, W) that objects of ``height`` metres take from the samples, ``step`` metres apart.

    ``beyond`` (H, W) is the horizon in metres that things outside the array make.
    """
    shade = _horizon(height, light, step)
    if beyond is not None:
        of(shade).maximum(shade, beyond, out=shade)
    shade -= height
    shade *= 1 / max(step * float(np.tan(np.radians(light.elevation))), 0.15)
    return of(shade).clip(shade, 0, 1, out=shade)


def openness(height: Array, step: float) -> Array:
    """Share of the sky (H, W) that is seen from the samples between things of ``height`` metres."""
    size = 2 * max(1, round(_AROUND / step)) + 1
    above = around(height, size)
    above -= height
    return 1 / (1 + 0.07 * above.clip(0))


def _rise(a: Array, axis: int, step: float) -> Array:
    """Slope along an axis: half the difference of a sample's two neighbours, at the edges that to the one."""
    a = a.swapaxes(0, axis)
    out = of(a).empty_like(a)
    out[1:-1] = (a[2:] - a[:-2]) / (2 * step)
    out[0], out[-1] = (a[1] - a[0]) / step, (a[-1] - a[-2]) / step
    return out.swapaxes(0, axis)


def _slope(height: Array, axis: int, step: float) -> Array:
    """Rise of roofs and crowns per metre: the smaller of the steps to both sides, so that walls have none."""
    xp = of(height)
    after = xp.zeros_like(height)
    inner = np.s_[:-1] if axis == 0 else np.s_[:, :-1]
    after[inner] = xp.diff(height, 1, axis)
    before = xp.roll(after, 1, axis)
    smaller = xp.where(abs(after) < abs(before), after, before)
    smaller *= after * before > 0
    smaller *= 1 / step
    xp.clip(smaller, -1.5, 1.5, out=smaller)
    return around(smaller, 2 * round(0.2 / step) + 1) if step < 0.2 else smaller


def _beyond(grid: Grid, light: Sun) -> tuple[Array, Array]:
    """Horizon and openness (H, W) on a grid below 1 m whose margin is too narrow, from a coarser survey round it.

    The coarser one has a quarter of the resolution, or an eighth; its horizon is that of things outside the grid.
    """
    millimetres = round(grid.step * 1000)
    ratio = 8 if millimetres < 80 else 4
    pad = -(-round(REACH * 1000 + 2000) // (millimetres * ratio))
    rows, columns = (-(-n // ratio) + 2 * pad for n in grid.shape)
    first = [
        (a * 1000 + round((float(f[0]) - grid.step / 2) * 1000)) for a, f in ((grid.ax, grid.x), (grid.ay, grid.y))
    ]
    coarse = millimetres * ratio
    at = [v // coarse - pad for v in first]
    height = world.survey(Grid.of(grid.seed, grid.region, *at, max(rows, columns), coarse, grid.year)).ground.height
    sky = openness(height, coarse / 1000)
    height[pad : rows - pad, pad : columns - pad] = 0
    horizon = _horizon(height, light, coarse / 1000)
    return tuple(_finer(put(a, grid.device), pad, ratio, grid.shape) for a in (horizon, sky))


def _finer(a: Array, pad: int, ratio: int, shape: tuple[int, int]) -> Array:
    """Bilinear values of coarse cell centres at the centres of ``ratio`` times finer cells, after ``pad`` cells."""
    for axis in (0, 1):
        at = pad + (np.arange(shape[axis]) + 0.5) / ratio - 0.5
        low = np.floor(at).astype(np.int64)
        share = (at - low).astype(np.float32)
        share = like(share[:, None] if axis == 0 else share, a)
        a = select(a, low, axis) * (1 - share) + select(a, low + 1, axis) * share
    return a


def lit(scene: world.Scene, light: Sun) -> tuple[Array, Array]:
    """Direct light (H, W) relative to flat open ground, and light from the sky relative to a free horizon."""
    step, height = scene.grid.step, scene.ground.height
    zenith, azimuth = np.radians(90 - light.elevation), np.radians(light.azimuth)
    down, right = (_rise(scene.relief, axis, step) for axis in (0, 1))
    if step <= 1.25:
        down += _slope(height, 0, step)
        right += _slope(height, 1, step)
    if step < 1:
        horizon, sky = _beyond(scene.grid, light)
        shade = shadows(height, light, step, horizon)
    else:
        shade, sky = shadows(height, light, step), openness(height, step)
    tilt, xp = np.float32(np.tan(zenith)), of(height)
    east, north = (float(tilt * np.float32(f(azimuth))) for f in (np.sin, np.cos))
    facing = 1 - right * east + down * north
    right *= right
    down *= down
    right += down
    right += 1
    facing /= xp.sqrt(right, out=right)
    xp.clip(facing, 0.12, 1.9, out=facing)
    facing *= 1 - shade
    return facing, sky


def diffuse(wavelengths: tuple[float, ...], haze: float) -> np.ndarray:
    """Share (C,) of the light on flat ground that comes from the sky, by wavelength (nm) and haze (0 to 1)."""
    nm = np.array(wavelengths)
    return np.clip(0.12 * (nm / 550) ** -2.2 + (0.03 + 0.09 * haze) * (nm / 550) ** -1.0, 0.02, 0.6)


def blur(image: Array, sigma: float) -> Array:
    """Gaussian point spread of an image (H, W, C) over ``SPREAD`` pixels each way: (H − 2 SPREAD, W − 2 SPREAD, C)."""
    weights = np.exp(-0.5 * (np.arange(SPREAD + 1) / sigma) ** 2)
    weights = (weights / (2 * weights.sum() - weights[0])).tolist()
    channels = image.shape[2]
    image = _weighted(image.reshape(len(image), -1), weights)
    image = _weighted(image.reshape(len(image), -1, channels).swapaxes(0, 1), weights).swapaxes(0, 1)
    return image


def _weighted(a: Array, weights: list[float]) -> Array:
    """Weighted sum over the neighbours along the first axis."""
    n = len(weights) - 1
    out = weights[0] * a[n:-n]
    for k in range(1, n + 1):
        sides = a[n - k : -n - k] + a[n + k : len(a) - n + k]
        sides *= weights[k]
        out += sides
    return out


@lru_cache(maxsize=8)
def _pieces(length: int, device: torch.device | None = None) -> Array:
    """All pieces (_TABLE, length) of a ring of nearly Gaussian values of variance 1: sums of a hash's four bytes."""
    h = derive(np.arange(_TABLE, dtype=np.uint32) * np.uint32(0x9E3779B1) ^ key("noise table"), 5)
    total = (h & 255) + (h >> np.uint32(8) & 255) + (h >> np.uint32(16) & 255) + (h >> np.uint32(24))
    values = (total.astype(np.float32) - np.float32(510)) / np.float32(147.8)
    values = put(np.concatenate([values, values[: length - 1]]), device)
    return np.lib.stride_tricks.sliding_window_view(values, length) if device is None else values.unfold(0, length, 1)


def add_noise(image: Array, k: np.uint32, first: int, band: int, sigma: np.ndarray) -> None:
    """Add noise of standard deviation ``sigma`` (C,) to bands (C, H, W), the first of which is number ``band``.

    In place. Every row is a piece of one table, at a place hashed from the tile's key ``k``, the band and the row's
    number in the tile, ``first`` and on.
    """
    bands, rows, columns = image.shape
    number = np.arange(first, first + rows, dtype=np.uint32)
    number = number + np.uint32(4096) * np.arange(band, band + bands, dtype=np.uint32)[:, None]
    places = derive(number * np.uint32(0x85EBCA6B) ^ k, 9) & np.uint32(_TABLE - 1)
    table = _pieces(columns, image.device if isinstance(image, torch.Tensor) else None)
    pieces = table[like(places.astype(np.int64), image)]
    pieces *= like(sigma.astype(np.float32)[:, None, None], image)
    image += pieces
