"""Images, series and true labels of any window of the twin, and its GeoTIFFs.

A sensor's images come in flights, each on its own day under its own sun and air, so that radiometry differs from
flight to flight as it does between real ones; a series has one flight a date.
"""

from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch

from hierlab._io import atomic
from hierlab.twin import arrays, imaging, world
from hierlab.twin.hashing import key
from hierlab.twin.sensors import SENSORS, Sensor, lookup
from hierlab.twin.world import YEAR

if TYPE_CHECKING:
    from rasterio import Affine

__all__ = ["CRS", "ORIGIN", "SENSORS", "Render", "Sensor", "ground_truth", "lookup", "render", "render_geotiff"]
__all__ += ["transform", "truth"]

CRS = "EPSG:32650"  # UTM zone 50 north
ORIGIN = (500_000.0, 4_000_000.0)  # easting and northing of the twin's x = 0, y = 0
_LIMIT = 2**61  # metres: positions are 64-bit integers, with room for the graphs' margins
_PIECE = 2**26  # values that a file is written by at a time, unless one tile has more
_BLOCK = 256  # pixels a side of a block of a file
_CACHE = 2**29  # bytes of blocks that GDAL may hold while a file is written; its own limit grows with the machine
_CENTRES = 4.0  # metres: up to this GSD a label is that of the pixel's centre


class Render(NamedTuple):
    """A rendered window.

    ``image`` (C, H, W) digital numbers, uint8 or uint16; of a series (T, C, H, W). ``label`` (H, W) uint8: leaf ids
    0–17 of MM-5B, and ``kind`` (H, W) uint8 the finer kinds (numbers in ``spectra.KINDS``), both by the rule of
    ``ground_truth``. ``transform`` is the affine transform of the window in ``crs``, ``bands`` the names of the C
    bands. ``days`` (T,) are a series' days of the year and ``valid`` (T, H, W) bool says where neither cloud nor
    cloud shadow lies; both are None for a single image.
    """

    image: np.ndarray
    label: np.ndarray
    transform: "Affine"
    crs: str
    bands: tuple[str, ...]
    kind: np.ndarray
    valid: np.ndarray | None = None
    days: np.ndarray | None = None


def _checked(window: tuple[int, int, int, int], gsd: float) -> tuple[int, int, int, int]:
    values = tuple(int(v) for v in window)
    if len(values) != 4 or values != tuple(window) or min(values[2:]) < 1:
        raise ValueError(
            f"window {window}: expected four integers (x, y, width, height) in pixels with width and height ≥ 1."
        )
    if max(abs(v) for v in values) * gsd >= _LIMIT:
        raise ValueError(f"window {window}: positions must stay within ±2**61 metres of the origin.")
    return values


def render(
    sensor: str | Sensor,
    seed: int,
    region: int,
    window: tuple[int, int, int, int],
    year: int = YEAR,
    day: int | None = None,
    device: str | torch.device | None = None,
) -> Render:
    """The image, or the series, and the true labels of a window.

    ``window`` = (x, y, width, height) in pixels of the sensor's grid: pixel (x, y) covers the metres
    [x, x + 1) · GSD to the east and [y, y + 1) · GSD to the south of the region's origin. ``day`` (1–365) puts all
    flights on one day of the year. The result is a pure function of (sensor, seed, region, year, day, pixel):
    however a window is cut, its pixels are the same, bit for bit. Memory grows with the window alone; for scenes
    that should not be held whole, use ``render_geotiff``. ValueError for a window or day out of range, and for a
    ``day`` with a series, whose dates are fixed.

    With a torch ``device`` ("cuda") the image is made there: light, air, bands and noise; what stands on the ground
    stays the host's work, and the labels are the same. The same holds of it on that device, but beside the host's
    image some pixels differ by one digital number, as sums are rounded in another order. ValueError where there is
    no such device.
    """
    sensor, where = lookup(sensor), arrays.place(device)
    x, y, width, height = window = _checked(window, sensor.gsd)
    if day is not None and (sensor.dates or not 1 <= day <= 365):
        raise ValueError(f"day {day}: expected 1–365, and none for a series.")
    dates = len(sensor.dates) or 1
    image = np.empty((dates, len(sensor.bands), height, width), sensor.dtype)
    valid = np.empty((dates, height, width), bool) if sensor.dates else None
    label, kind = (np.empty((height, width), np.uint8) for _ in range(2))
    for column, row, (rows, columns), outer in world.windows(window, sensor.step_mm):
        for n, tile in enumerate(imaging.tile(sensor, seed, region, column, row, year, day, where)):
            k = key(seed, region, sensor.name, "noise", year, n, column, row)
            part = image[n][(slice(None), *outer)]
            for first in range(rows.start // imaging.STRIP * imaging.STRIP, rows.stop, imaging.STRIP):
                a, b = max(first, rows.start), min(first + imaging.STRIP, rows.stop)
                place = part[:, a - rows.start : b - rows.start]
                imaging.strip(sensor, tile, k, first, place, slice(a - first, b - first), columns)
            if valid is not None:
                valid[n][outer] = tile.valid[rows, columns]
        found = _truth(seed, region, column, row, sensor.step_mm, year)  # while its samples are still at hand
        label[outer], kind[outer] = (a[rows, columns] for a in found)
    image = image if sensor.dates else image[0]
    days = np.array(sensor.dates) if sensor.dates else None
    return Render(image, label, transform(sensor.gsd, x, y), CRS, sensor.bands, kind, valid, days)


def _samples(step_mm: int) -> int:
    """Samples across a pixel for its label: 1 where its centre decides, else 4, or what divides the pixel."""
    if step_mm <= _CENTRES * 1000:
        return 1
    return next((n for n in (4, 5, 3, 6, 7) if step_mm % n == 0), 1)


def _most(values: np.ndarray, chosen: np.ndarray, n: int) -> np.ndarray:
    """The value (H, W) that most of the ``chosen`` samples (H·n, W·n) of a pixel have.

    Among equals, the one of a sample next to the pixel's centre, then the smallest.
    """
    rows, columns = (s // n for s in values.shape)
    central = values.reshape(rows, n, columns, n)[:, n // 2, :, n // 2]
    best, out = np.full((rows, columns), -1, np.int16), np.zeros((rows, columns), np.uint8)
    for value in np.unique(values):
        there = ((values == value) & chosen).view(np.uint8)
        there = sum(there[k::n] for k in range(1, n)) + there[::n]
        count = 2 * (sum(there[:, k::n] for k in range(1, n)) + there[:, ::n]).astype(np.int16)
        count += (central == value) & (count > 0)
        better = count > best
        out[better], best[better] = value, count[better]
    return out


@lru_cache(maxsize=48)
def _truth(seed: int, region: int, column: int, row: int, step_mm: int, year: int) -> tuple[np.ndarray, np.ndarray]:
    """Leaf and kind (size, size) of one tile."""
    n = _samples(step_mm)
    ground = world.tile(seed, region, column, row, step_mm, n, year).ground
    leaf, kind = (np.ascontiguousarray(a[world.inner(step_mm, n)]) for a in (ground.leaf, ground.kind))
    if n > 1:
        most = _most(leaf, np.ones_like(leaf, bool), n)
        leaf, kind = most, _most(kind, leaf == most.repeat(n, 0).repeat(n, 1), n)
    return leaf, kind


def ground_truth(
    seed: int, region: int, window: tuple[int, int, int, int], gsd: float, year: int = YEAR
) -> tuple[np.ndarray, np.ndarray]:
    """Leaf ids (0–17 of MM-5B) and kinds (numbers in ``spectra.KINDS``) of a window, each (H, W) uint8.

    On the grid of ``gsd`` metres: up to 4 m what lies at the pixel's centre; above, the leaf that covers most of 16
    samples of the pixel, and the kind that most of these have. ValueError for a window or GSD out of range.
    """
    window = _checked(window, gsd)
    if gsd <= 0 or abs(gsd * 1000 - round(gsd * 1000)) > 1e-6:
        raise ValueError(f"gsd {gsd}: expected a positive number of whole millimetres, in metres.")
    step = round(gsd * 1000)
    leaf, kind = (np.empty((window[3], window[2]), np.uint8) for _ in range(2))
    for column, row, inner, outer in world.windows(window, step):
        leaf[outer], kind[outer] = (a[inner] for a in _truth(seed, region, column, row, step, year))
    return leaf, kind


def truth(seed: int, region: int, window: tuple[int, int, int, int], gsd: float, year: int = YEAR) -> np.ndarray:
    """Leaf ids (H, W) uint8 of ``ground_truth``."""
    return ground_truth(seed, region, window, gsd, year)[0]


def transform(gsd: float, x: int, y: int) -> "Affine":
    """Affine transform of a grid whose first pixel is (x, y): easting = 500 000 + x, northing = 4 000 000 − y metres.

    Every region uses the same mapping. Far from the origin the coordinates leave the zone's area of use; they stay
    plain metres there.
    """
    from rasterio import Affine

    return Affine(gsd, 0.0, ORIGIN[0] + x * gsd, 0.0, -gsd, ORIGIN[1] - y * gsd)


def _cuts(first: int, last: int, step: int, size: int) -> Iterator[tuple[int, int]]:
    """[first, last) cut at every ``step``-th edge of tiles of ``size``: pairs of a start and a stop."""
    while first < last:
        stop = min((first // size + step) * size, last)
        yield first, stop
        first = stop


def _pieces(window: tuple[int, int, int, int], size: int, wide: int, panel: int) -> Iterator[tuple[int, int, int, int]]:
    """A window cut along the edges of tiles of ``size`` pixels, a row of tiles high and at most ``wide`` tiles wide.

    In panels of ``panel`` tiles, each from top to bottom, row by row.
    """
    x, y, width, height = window
    for start, stop in _cuts(x, x + width, panel, size):
        for top, bottom in _cuts(y, y + height, 1, size):
            for left, right in _cuts(start, stop, wide, size):
                yield left, top, right - left, bottom - top


def _panel(size: int, bytes_per_pixel: int) -> int:
    """Tiles of ``size`` pixels across a panel of a file, so that a row of them and the blocks that it leaves
    unfinished below fit in GDAL's cache: a block is then written once, but at the panels' sides."""
    rows = (-(-size // _BLOCK) + 1) * _BLOCK  # of the blocks that a row of tiles touches, wherever it starts
    return max(1, (_CACHE // (bytes_per_pixel * rows) - _BLOCK) // size)


class _Map(NamedTuple):
    """A map to write: its name, class names and colours by code, and the codes (H, W) uint8 of any window."""

    name: str
    classes: dict[int, str]
    colors: dict[int, tuple[int, ...]]
    codes: Callable[[tuple[int, int, int, int]], np.ndarray]


def _map(sensor: Sensor, seed: int, region: int, year: int, legend: str | None, product: str | None) -> _Map:
    """The true classes of a legend, or a label product, on the sensor's grid."""
    from hierlab.tree import ClassTree

    if not (legend or product):
        first = ClassTree.load("mm5b")
        return _Map("mm5b", *_legend(first), lambda w: truth(seed, region, w, sensor.gsd, year) + np.uint8(1))
    from hierlab.twin import legends, products

    if product:
        if product not in products.PRODUCTS:
            raise ValueError(f"no product {product!r} in the twin: choose one of {', '.join(products.PRODUCTS)}.")
        tree = ClassTree.load(products.PRODUCTS[product].tree)
        return _Map(product, *_legend(tree), lambda w: products.label(product, seed, region, w, sensor.gsd))
    if legend not in legends.LEGENDS:
        raise ValueError(f"no legend {legend!r} in the twin: choose one of {', '.join(legends.LEGENDS)}.")
    own = legends.LEGENDS[legend]
    if own.tree is None:
        names, colors = dict(enumerate(own.classes)), {}
    else:
        names, colors = _legend(ClassTree.load(own.tree))
    table = np.full(256, 255, np.uint8)
    table[: len(names)] = list(names)

    def codes(window: tuple[int, int, int, int]) -> np.ndarray:
        return table[legends.classify(*ground_truth(seed, region, window, sensor.gsd, year), legend)]

    return _Map(legend, names, colors, codes)


def _legend(tree) -> tuple[dict[int, str], dict[int, tuple[int, ...]]]:
    """Names and colours of a tree's leaves by their (first) code on disk."""
    codes = [node.codes[0] if node.codes else n for n, node in enumerate(tree.nodes[-1])]
    colors = {code: (*rgb, 255) for code, rgb in zip(codes, tree.colors[-1].tolist(), strict=True)}
    return dict(zip(codes, tree.classes[-1], strict=True)), colors


def render_geotiff(
    path: str,
    sensor: str | Sensor,
    seed: int,
    region: int,
    window: tuple[int, int, int, int],
    truth: bool = False,
    year: int = YEAR,
    legend: str | None = None,
    product: str | None = None,
    device: str | torch.device | None = None,
) -> None:
    """Write a window as a tiled GeoTIFF, piece by piece, so that memory does not grow with the window.

    GDAL, too, holds no more than ``_CACHE`` bytes of it.

    The image has one band a spectral band, with its name and wavelength; a series has its bands date by date, and
    in the band's tags the day of the year. Pixels of a series under a cloud or its shadow are 0, the nodata value,
    which no other pixel has.

    Instead of the image the file holds a map on the sensor's grid: with ``truth`` the true classes of MM-5B, with
    ``legend`` those of another of ``legends.LEGENDS``, with ``product`` a label product (``products.PRODUCTS``). The
    map has the codes that the class tree gives its classes on disk (MM-5B: leaf id + 1, so 1–18), 255 or MM-5B's 0
    for unlabelled as nodata, the classes' names in its tags and their colours in its colour table.
    ``transform`` says how it maps to ``CRS``. ``device`` as in ``render``. ValueError for a bad name or window.
    """
    import rasterio
    from rasterio.windows import Window

    sensor, where = lookup(sensor), arrays.place(device)
    x, y, width, height = window = _checked(window, sensor.gsd)
    made = _map(sensor, seed, region, year, legend, product) if truth or legend or product else None
    profile = {"driver": "GTiff", "width": width, "height": height, "crs": CRS, "compress": "deflate"}
    profile |= {"tiled": True, "blockxsize": _BLOCK, "blockysize": _BLOCK, "BIGTIFF": "IF_SAFER", "interleave": "band"}
    profile |= {"transform": transform(sensor.gsd, x, y)}
    if made:
        profile |= {"count": 1, "dtype": "uint8", "nodata": 0 if made.name == "mm5b" else 255}
    else:
        profile |= {"count": len(sensor.bands) * (len(sensor.dates) or 1), "dtype": sensor.dtype}
        profile |= {"nodata": 0} if sensor.dates else {}
    limit = rasterio.Env(GDAL_CACHEMAX=_CACHE)
    with limit, atomic(path) as temporary, rasterio.open(temporary, "w", **profile) as file:
        file.update_tags(twin=f"sensor {sensor.name}, seed {seed}, region {region}, window {window}, year {year}")
        if made:
            file.update_tags(map=made.name)
            file.update_tags(1, **{f"class_{code}": name for code, name in made.classes.items()})
            if made.colors:
                file.write_colormap(1, {profile["nodata"]: (0, 0, 0, 0)} | made.colors)
        else:
            _describe(file, sensor)
        size = world.tile_size(sensor.step_mm)
        wide = max(1, _PIECE // profile["count"] // size**2)
        panel = _panel(size, profile["count"] * np.dtype(profile["dtype"]).itemsize)
        for piece in _pieces(window, size, wide, panel):
            place = Window(piece[0] - x, piece[1] - y, *piece[2:])
            if made:
                file.write(made.codes(piece), 1, window=place)
                continue
            seen = render(sensor, seed, region, piece, year, device=where)
            image = seen.image
            if seen.valid is not None:
                image = (image * seen.valid[:, None]).reshape(-1, *image.shape[2:])
            file.write(image, window=place)


def _describe(file, sensor: Sensor) -> None:
    """Names, wavelengths and days of a file's bands."""
    number = 0
    for day in sensor.dates or (None,):
        for name, wavelength in zip(sensor.bands, sensor.wavelengths, strict=True):
            number += 1
            file.set_band_description(number, name if day is None else f"day {day} {name}")
            file.update_tags(number, wavelength=wavelength, wavelength_units="nm")
            if day is not None:
                file.update_tags(number, day=day)
