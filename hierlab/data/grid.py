"""The geometry of raster grids: corners, extents, pixel size on the ground, and whether two grids agree."""

import re
from typing import NamedTuple

import numpy as np
from affine import Affine
from rasterio.crs import CRS
from rasterio.errors import CRSError, RasterioError
from rasterio.warp import transform as transform_points


class Grid(NamedTuple):
    """Where the pixels of a raster lie. Scenes and label rasters have the same four attributes."""

    crs: CRS
    transform: Affine
    height: int
    width: int


def apply(transform: Affine, columns, rows):
    """(x, y) of points given in pixels (0, 0 is the outer corner of the first pixel). Numbers or arrays."""
    a, b, c, d, e, f = tuple(transform)[:6]
    return a * columns + b * rows + c, d * columns + e * rows + f


def compose(outer: Affine, inner: Affine) -> Affine:
    """The transform that applies ``inner``, then ``outer``: a product that Affine's versions spell differently."""
    a, b, c, d, e, f = tuple(outer)[:6]
    g, h, i, j, k, m = tuple(inner)[:6]
    return Affine(a * g + b * j, a * h + b * k, a * i + b * m + c, d * g + e * j, d * h + e * k, d * i + e * m + f)


def outline(transform: Affine, height: int, width: int, points: int = 9) -> tuple[np.ndarray, np.ndarray]:
    """x and y along the edge of a grid, several points a side, so that reprojection keeps its bends."""
    t = np.linspace(0, 1, points)
    zero, one = np.zeros(points), np.ones(points)
    columns, rows = np.concatenate([t, one, t, zero]) * width, np.concatenate([zero, t, one, t]) * height
    return apply(transform, columns, rows)


def extent(transform: Affine, height: int, width: int) -> tuple[float, float, float, float]:
    """(left, bottom, right, top) of a grid in its own CRS, whatever its rotation."""
    x, y = outline(transform, height, width)
    return float(x.min()), float(y.min()), float(x.max()), float(y.max())


def extent_in(grid, crs: CRS) -> tuple[float, float, float, float]:
    """(left, bottom, right, top) of ``grid`` in another CRS; ValueError where it cannot be expressed there."""
    x, y = outline(grid.transform, grid.height, grid.width)
    try:
        x, y = (np.asarray(v) for v in transform_points(grid.crs, crs, x, y))
    except (CRSError, RasterioError) as error:
        raise ValueError(f"cannot go from {crs_name(grid.crs)} to {crs_name(crs)}: {error}") from error
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        raise ValueError(f"a grid in {crs_name(grid.crs)} lies where {crs_name(crs)} is not defined")
    return float(x.min()), float(y.min()), float(x.max()), float(y.max())


def crs_name(crs: CRS) -> str:
    """Short name: "EPSG:32612" where there is a code, else the name that the CRS gives itself."""
    authority = crs.to_authority(confidence_threshold=100)
    if authority:
        return ":".join(authority)
    found = re.search(r'"([^"]+)"', crs.to_wkt())
    return found.group(1) if found else crs.to_string()


def ground_size(crs: CRS, transform: Affine, height: int, width: int) -> float:
    """Ground sampling distance in metres: the square root of a pixel's area.

    The pixel size in the CRS's own units where its projection keeps lengths within 2 % (UTM and the like);
    else (degrees, Web Mercator) the distance on the WGS 84 ellipsoid at the scene's centre.
    """
    side = abs(transform.determinant) ** 0.5
    nominal = None if crs.is_geographic else side * crs.linear_units_factor[1]
    column, row = width / 2, height / 2
    x, y = apply(transform, np.array([column, column + 1, column]), np.array([row, row, row + 1]))
    try:
        lon, lat = (np.asarray(v) for v in transform_points(crs, CRS.from_epsg(4326), x, y))
    except (CRSError, RasterioError):
        return side if nominal is None else nominal  # a local CRS has no place on the Earth
    if not (np.isfinite(lon).all() and np.isfinite(lat).all()):
        return side if nominal is None else nominal
    a, e2 = 6378137.0, 0.00669437999014
    w = 1 - e2 * np.sin(np.radians(lat[0])) ** 2
    dx = np.radians((lon[1:] - lon[0] + 180) % 360 - 180) * np.cos(np.radians(lat[0])) * a / w**0.5
    dy = np.radians(lat[1:] - lat[0]) * a * (1 - e2) / w**1.5
    ground = float(abs(dx[0] * dy[1] - dx[1] * dy[0]) ** 0.5)
    return nominal if nominal is not None and abs(ground / nominal - 1) < 0.02 else ground


def grid_differences(a, b) -> list[str]:
    """What differs between two grids (anything with crs, transform, height, width), in words; [] when equal.

    Transforms are equal when no corner moves by more than a hundredth of a pixel.
    """
    found = []
    if (a.height, a.width) != (b.height, b.width):
        found.append(f"size {a.width}×{a.height} against {b.width}×{b.height} pixels")
    if a.crs != b.crs:
        found.append(f"CRS {crs_name(a.crs)} against {crs_name(b.crs)}")
    columns, rows = np.array([0, a.width, 0]), np.array([0, 0, a.height])
    moved = np.stack(apply(~a.transform, *apply(b.transform, columns, rows))) - np.stack([columns, rows])
    if np.abs(moved).max() > 0.01:
        found.append(f"transform {tuple(a.transform)[:6]} against {tuple(b.transform)[:6]}")
    return found
