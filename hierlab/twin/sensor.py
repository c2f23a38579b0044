"""What a satellite makes of the world: bands, light and shadow, haze, point spread, noise and digital numbers.

A sensor's images come in scenes of ``SCENE`` tiles a side, each flown on its own day under its own sun and air, so
that radiometry differs from scene to scene as it does between real flights.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from hierlab._io import atomic
from hierlab.twin import world
from hierlab.twin.fields import Grid
from hierlab.twin.ground import LEAVES
from hierlab.twin.hashing import derive, key, scalar
from hierlab.twin.spectra import endmembers
from hierlab.twin.world import HALO, TILE

if TYPE_CHECKING:
    from rasterio import Affine

SCENE = 56  # tiles: 28.7 km at 4 m, about a GaoFen-2 scene
CRS = "EPSG:32650"  # UTM zone 50 north
ORIGIN = (500_000.0, 4_000_000.0)  # easting and northing of the twin's x = 0, y = 0
_LATITUDE = np.radians(32.0)  # for the sun's path
_LIMIT = 2**61  # metres: positions are 64-bit integers, with room for the graphs' margins


@dataclass(frozen=True)
class Sensor:
    """A sensor. Wavelengths in nm (centre, full width at half maximum); GSD in metres; psf in pixels (one sigma).

    A digital number is ``offset`` (the light of the air) + ``gain`` × reflectance, in a clear, average scene;
    ``noise`` is its standard deviation in digital numbers.
    """

    name: str
    title: str
    bands: tuple[str, ...]
    wavelengths: tuple[float, ...]
    widths: tuple[float, ...]
    gsd: float
    bits: int
    offset: tuple[float, ...]
    gain: tuple[float, ...]
    psf: float = 0.5
    noise: float = 2.0
    oversample: int = 1

    @property
    def step_mm(self) -> int:
        """The GSD in whole millimetres."""
        return round(self.gsd * 1000)


GAOFEN2 = Sensor(
    name="gaofen2",
    title="GaoFen-2-like multispectral, 4 m",
    bands=("blue", "green", "red", "near infrared"),
    wavelengths=(485.0, 555.0, 660.0, 830.0),
    widths=(70.0, 70.0, 60.0, 120.0),
    gsd=4.0,
    bits=10,
    offset=(343.0, 229.0, 138.0, 45.0),
    gain=(880.0, 840.0, 830.0, 800.0),
    psf=0.55,
    noise=2.2,
)
SENSORS: dict[str, Sensor] = {GAOFEN2.name: GAOFEN2}


class Render(NamedTuple):
    """A rendered window: ``image`` (C, H, W) uint16 digital numbers, ``label`` (H, W) uint8 leaf ids 0–17 of MM-5B.

    ``transform`` is the affine transform of the window in ``crs``, ``bands`` the names of the C bands.
    """

    image: np.ndarray
    label: np.ndarray
    transform: "Affine"
    crs: str
    bands: tuple[str, ...]


class Flight(NamedTuple):
    """The circumstances of one scene: day of the year, sun (degrees above the horizon, from north), air, gains."""

    day: int
    elevation: float
    azimuth: float
    haze: float
    gains: tuple[float, ...]


@lru_cache(maxsize=1024)
def flight(sensor: Sensor, seed: int, region: int, column: int, row: int) -> Flight:
    """The flight over the scene (column, row) of a sensor's grid of scenes."""
    k = key(seed, region, sensor.name, "flight", column, row)
    day = int(scalar(k, 0, 95, 300))
    declination = np.radians(-23.44) * np.cos(2 * np.pi * (day + 10) / 365)
    hour = np.radians(-22.0 + scalar(k, 1, -6, 6))  # mid morning
    up = np.sin(_LATITUDE) * np.sin(declination) + np.cos(_LATITUDE) * np.cos(declination) * np.cos(hour)
    south = np.sin(_LATITUDE) * np.cos(declination) * np.cos(hour) - np.cos(_LATITUDE) * np.sin(declination)
    azimuth = 180 - np.degrees(np.arctan2(-np.cos(declination) * np.sin(hour), south))
    gains = tuple(scalar(k, 10 + n, 0.93, 1.07) for n in range(len(sensor.bands)))
    return Flight(day, float(np.degrees(np.arcsin(up))), float(azimuth), scalar(k, 2, 0.0, 1.0), gains)


def shadows(height: np.ndarray, sun: Flight, step: float) -> np.ndarray:
    """Share of direct light (H, W) that objects of ``height`` metres take from the samples; valid inside the halo."""
    reach = height.max() / np.tan(np.radians(sun.elevation)) / step
    steps = min(int(np.ceil(reach)), int((HALO - 5) * max(1, round(4 / step))))
    shade = np.zeros_like(height)
    east, north = np.sin(np.radians(sun.azimuth)), np.cos(np.radians(sun.azimuth))
    fall = step * np.tan(np.radians(sun.elevation))
    for n in range(1, steps + 1):
        towards = np.roll(height, (round(n * north), -round(n * east)), (0, 1))
        np.maximum(shade, (towards - np.float32(n * fall) - height) * np.float32(0.4), out=shade)
    return np.clip(shade, 0, 1)


def _light(scene: world.Scene, sun: Flight) -> tuple[np.ndarray, np.ndarray]:
    """Direct light (H, W) relative to flat open ground, and the share of the sky that is seen."""
    zenith, azimuth = np.radians(90 - sun.elevation), np.radians(sun.azimuth)
    down, right = np.gradient(scene.relief, np.float32(scene.grid.step))
    sx, sy = np.sin(zenith) * np.sin(azimuth), -np.sin(zenith) * np.cos(azimuth)
    facing = (np.cos(zenith) - right * np.float32(sx) - down * np.float32(sy)) / np.sqrt(1 + right**2 + down**2)
    shade = shadows(scene.ground.height, sun, scene.grid.step)
    direct = np.clip(facing / np.float32(np.cos(zenith)), 0.15, 1.8) * (1 - shade)
    return direct.astype(np.float32), (1 - np.float32(0.3) * shade).astype(np.float32)


def _blur(image: np.ndarray, sigma: float) -> np.ndarray:
    """Gaussian point spread over two pixels each way, (C, H, W)."""
    weights = np.exp(-0.5 * (np.arange(-2, 3) / sigma) ** 2)
    weights = (weights / weights.sum()).astype(np.float32)
    for axis in (1, 2):
        out = weights[2] * image
        for n in (1, 2):
            out += weights[2 + n] * (np.roll(image, n, axis) + np.roll(image, -n, axis))
        image = out
    return image


def _noise(k: np.uint32, shape: tuple[int, ...]) -> np.ndarray:
    """Nearly Gaussian noise of variance 1: the sum of a hash's four bytes."""
    h = derive(np.arange(np.prod(shape), dtype=np.uint32) * np.uint32(0x9E3779B1) ^ k, 5)
    total = (h & 255) + (h >> np.uint32(8) & 255) + (h >> np.uint32(16) & 255) + (h >> np.uint32(24))
    return ((total.astype(np.float32) - np.float32(510)) / np.float32(147.8)).reshape(shape)


@lru_cache(maxsize=48)
def _tile(sensor: Sensor, seed: int, region: int, column: int, row: int) -> tuple[np.ndarray, np.ndarray]:
    """Image (C, TILE, TILE) uint16 and labels (TILE, TILE) uint8 of one canonical tile."""
    scene = world.tile(seed, region, column, row, sensor.step_mm, sensor.oversample)
    sun = flight(sensor, seed, region, column // SCENE, row // SCENE)
    direct, open_sky = _light(scene, sun)
    materials, shares = scene.ground.materials(sun.day)
    table = endmembers(sensor.wavelengths, sensor.widths)
    shares = [s * scene.ground.bright for s in shares]
    sky = np.clip(0.13 * (np.array(sensor.wavelengths) / 550) ** -1.6 + 0.04 + 0.06 * sun.haze, 0.03, 0.5)
    size = TILE + 2 * HALO
    image = np.empty((len(sensor.bands), size, size), np.float32)
    air = np.float32(0.35) * scene_haze(sensor, seed, region, column, row)
    for b, share in enumerate(sky.astype(np.float32)):
        reflected = sum(table[m, b] * s for m, s in zip(materials, shares, strict=True))
        reflected *= (1 - share) * direct + share * open_sky
        if sensor.oversample > 1:
            n = sensor.oversample
            reflected = reflected.reshape(size, n, size, n).mean((1, 3))
        veil = np.float32(0.94 + 0.12 * sun.haze)
        image[b] = sensor.offset[b] * (veil + np.float32(0.1) * air) * np.float32(sun.gains[b] ** 0.5)
        image[b] += np.float32(sensor.gain[b] * sun.gains[b] * (1.06 - 0.12 * sun.haze)) * reflected
    inner = np.s_[..., HALO:-HALO, HALO:-HALO]
    image = _blur(image, sensor.psf)[inner]
    noise = _noise(key(seed, region, sensor.name, "noise", column, row), image.shape)
    image = np.round(np.clip(image + np.float32(sensor.noise) * noise, 1, 2**sensor.bits - 1)).astype(np.uint16)
    flat = world.tile(seed, region, column, row, sensor.step_mm)
    return image, np.ascontiguousarray(flat.ground.leaf[inner])


def scene_haze(sensor: Sensor, seed: int, region: int, column: int, row: int) -> np.ndarray:
    """The slow variation of the air over a tile with its halo, variance about 1."""
    grid = Grid.of(seed, region, column * TILE - HALO, row * TILE - HALO, TILE + 2 * HALO, sensor.step_mm)
    return grid.noise(f"haze {sensor.name}", 4000, 2)


def _checked(window: tuple[int, int, int, int], gsd: float) -> tuple[int, int, int, int]:
    values = tuple(int(v) for v in window)
    if len(values) != 4 or values != tuple(window) or min(values[2:]) < 1:
        raise ValueError(
            f"window {window}: expected four integers (x, y, width, height) in pixels with width and height ≥ 1."
        )
    if max(abs(v) for v in values) * gsd >= _LIMIT:
        raise ValueError(f"window {window}: positions must stay within ±2**61 metres of the origin.")
    return values


def lookup(sensor: str | Sensor) -> Sensor:
    """The sensor of that name; a ``Sensor`` is returned as it is. ValueError if there is none."""
    if isinstance(sensor, Sensor):
        return sensor
    if sensor not in SENSORS:
        raise ValueError(f"no sensor {sensor!r} in the twin: choose one of {', '.join(SENSORS)}.")
    return SENSORS[sensor]


def render(sensor: str | Sensor, seed: int, region: int, window: tuple[int, int, int, int]) -> Render:
    """The image and the true labels of a window.

    ``window`` = (x, y, width, height) in pixels of the sensor's grid: pixel (x, y) covers the metres
    [x, x + 1) · GSD to the east and [y, y + 1) · GSD to the south of the region's origin. The result is a pure
    function of (sensor, seed, region, pixel): however a window is cut, its pixels are the same, bit for bit.
    Memory grows with the window alone; for scenes that should not be held whole, use ``render_geotiff``.
    """
    sensor = lookup(sensor)
    x, y, width, height = window = _checked(window, sensor.gsd)
    image = np.empty((len(sensor.bands), height, width), np.uint16)
    label = np.empty((height, width), np.uint8)
    for column, row, inner, outer in world.windows(window):
        tile_image, tile_label = _tile(sensor, seed, region, column, row)
        image[(..., *outer)], label[outer] = tile_image[(..., *inner)], tile_label[inner]
    return Render(image, label, transform(sensor.gsd, x, y), CRS, sensor.bands)


def truth(seed: int, region: int, window: tuple[int, int, int, int], gsd: float) -> np.ndarray:
    """Leaf ids (H, W) uint8, 0–17 of MM-5B, at the pixel centres of a window on the grid of ``gsd`` metres."""
    window = _checked(window, gsd)
    if gsd * 1000 != round(gsd * 1000) or gsd <= 0:
        raise ValueError(f"gsd {gsd}: expected a positive number of whole millimetres, in metres.")
    out = np.empty((window[3], window[2]), np.uint8)
    for column, row, inner, outer in world.windows(window):
        leaf = world.tile(seed, region, column, row, round(gsd * 1000)).ground.leaf
        out[outer] = leaf[HALO:-HALO, HALO:-HALO][inner]
    return out


def transform(gsd: float, x: int, y: int) -> "Affine":
    """Affine transform of a grid whose first pixel is (x, y): easting = 500 000 + x, northing = 4 000 000 − y metres.

    Every region uses the same mapping. Far from the origin the coordinates leave the zone's area of use; they stay
    plain metres there.
    """
    from rasterio import Affine

    return Affine(gsd, 0.0, ORIGIN[0] + x * gsd, 0.0, -gsd, ORIGIN[1] - y * gsd)


def _strips(window: tuple[int, int, int, int]) -> Iterator[tuple[int, int, int, int]]:
    x, y, width, height = window
    top = y
    while top < y + height:
        bottom = min((top // TILE + 1) * TILE, y + height)
        yield x, top, width, bottom - top
        top = bottom


def render_geotiff(
    path: str, sensor: str | Sensor, seed: int, region: int, window: tuple[int, int, int, int], truth: bool = False
) -> None:
    """Write a window as a tiled GeoTIFF, row of tiles by row of tiles, so that memory does not grow with its height.

    The image has one uint16 band a spectral band, with its name and wavelength. With ``truth`` the file holds the
    labels instead, in MM-5B's codes on disk: leaf id + 1, so 1–18, and 0 for unlabelled (the nodata value, which
    does not occur); its tags name the classes and its colour table shows them.
    ``transform`` says how both map to ``CRS``.
    """
    import rasterio
    from rasterio.windows import Window

    from hierlab.tree import ClassTree

    sensor = lookup(sensor)
    x, y, width, height = window = _checked(window, sensor.gsd)
    profile = {"driver": "GTiff", "width": width, "height": height, "crs": CRS, "compress": "deflate"}
    profile |= {"tiled": True, "blockxsize": 256, "blockysize": 256, "BIGTIFF": "IF_SAFER"}
    profile |= {"transform": transform(sensor.gsd, x, y)}
    profile |= {"count": 1, "dtype": "uint8", "nodata": 0} if truth else {"count": len(sensor.bands), "dtype": "uint16"}
    with atomic(path) as temporary, rasterio.open(temporary, "w", **profile) as file:
        file.update_tags(twin=f"sensor {sensor.name}, seed {seed}, region {region}, window {window}")
        if truth:
            file.update_tags(1, **{f"class_{n}": name for n, name in enumerate(LEAVES, 1)})
            colors = ClassTree.load("mm5b").colors[-1].tolist()
            file.write_colormap(1, {0: (0, 0, 0, 0)} | {n: (*rgb, 255) for n, rgb in enumerate(colors, 1)})
        for n, name in enumerate(() if truth else sensor.bands, 1):
            file.set_band_description(n, name)
            file.update_tags(n, wavelength=sensor.wavelengths[n - 1], wavelength_units="nm")
        for strip in _strips(window):
            made = render(sensor, seed, region, strip)
            place = Window(0, strip[1] - y, width, strip[3])
            if truth:
                file.write(made.label + 1, 1, window=place)
            else:
                file.write(made.image, window=place)
