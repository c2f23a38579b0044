"""Orthorectification: satellite images with rational polynomial coefficients (RPC) and heights, onto a map grid.

An RPC model says where in the image a ground point is seen. With longitude λ, latitude φ and height h (metres above the
WGS 84 ellipsoid) shifted and scaled to L, P, H, the sample (column) and the line (row) are each a quotient of two cubic
polynomials::

    column = SAMP_OFF + SAMP_SCALE · N_s(L, P, H) / D_s(L, P, H)
    row    = LINE_OFF + LINE_SCALE · N_l(L, P, H) / D_l(L, P, H)

with twenty coefficients each, in the order of RPC00B. Heights matter: where the sensor looks φ degrees off the nadir,
an error of Δh metres moves the ground by Δh · tan φ.

Positions in an image are counted here as everywhere in this package: (0, 0) is the outer corner of the first pixel. The
RPC's own counting has (0, 0) at that pixel's centre; the half pixel between them is taken care of.
"""

import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import rasterio
from affine import Affine
from rasterio.crs import CRS
from rasterio.enums import Resampling
from rasterio.rpc import RPC
from rasterio.transform import from_origin
from rasterio.warp import reproject
from rasterio.warp import transform as transform_points
from rasterio.windows import Window
from scipy.ndimage import map_coordinates

from hierlab.data.grid import Grid, apply, compose, extent, extent_in
from hierlab.data.mosaic import GTIFF, Band, write_mosaic
from hierlab.data.rasters import open_raster
from hierlab.data.tiles import blocks

WGS84 = CRS.from_epsg(4326)
# powers of (L, P, H) in the twenty terms of RPC00B
TERMS = (
    (0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 1, 0), (1, 0, 1), (0, 1, 1), (2, 0, 0), (0, 2, 0), (0, 0, 2),
    (1, 1, 1), (3, 0, 0), (1, 2, 0), (1, 0, 2), (2, 1, 0), (0, 3, 0), (0, 1, 2), (2, 0, 1), (0, 2, 1), (0, 0, 3),
)  # fmt: skip
BLOCK = 1024  # pixels: side of the blocks in which an image is rectified
_RPB = {
    "lineOffset": "line_off", "sampOffset": "samp_off", "latOffset": "lat_off", "longOffset": "long_off",
    "heightOffset": "height_off", "lineScale": "line_scale", "sampScale": "samp_scale", "latScale": "lat_scale",
    "longScale": "long_scale", "heightScale": "height_scale", "errBias": "err_bias", "errRand": "err_rand",
    "lineNumCoef": "line_num_coeff", "lineDenCoef": "line_den_coeff", "sampNumCoef": "samp_num_coeff",
    "sampDenCoef": "samp_den_coeff",
}  # fmt: skip


def read_rpb(path: str | os.PathLike) -> RPC:
    """The RPC of an ``.rpb`` file, the text that comes beside a GaoFen or QuickBird image.

    ValueError that names what is missing or no number.
    """
    text = Path(path).read_text("latin-1")
    found = {}
    for name, value in re.findall(r"(\w+)\s*=\s*(\([^()]*\)|[^;()\n]+)\s*;", text):
        if name not in _RPB:
            continue
        numbers = value.strip().strip("()").split(",")
        try:
            found[_RPB[name]] = [float(number) for number in numbers]
        except ValueError:
            raise ValueError(f"{path}: {name} is no number: {value.strip()[:40]!r}") from None
    needed = [(own, key) for own, key in _RPB.items() if not key.startswith("err_")]
    lengths = {key: 20 if key.endswith("coeff") else 1 for _, key in needed}
    wrong = [own for own, key in needed if len(found.get(key, ())) != lengths[key]]
    if wrong:
        raise ValueError(f"{path}: no RPC, or a part of one: it lacks {', '.join(wrong)}. Fetch it again")
    return RPC(**{key: value if lengths.get(key) == 20 else value[0] for key, value in found.items()})


def rpc_of(image: str | os.PathLike, sidecar: str | os.PathLike | None = None) -> RPC:
    """The RPC of an image: from its ``.rpb`` file where one is given, else from the image's own tags.

    ValueError where neither has one.
    """
    if sidecar is not None:
        return read_rpb(sidecar)
    with open_raster(os.fspath(image)) as file:
        if file.rpcs is None:
            raise ValueError(f"{image} has no RPC tags: give the .rpb file that its publisher provides")
        return file.rpcs


def project(rpc: RPC, lon, lat, height) -> tuple[np.ndarray, np.ndarray]:
    """Where ground points are seen: (columns, rows) of longitudes and latitudes (degrees) and heights (metres)."""
    lon, lat, height = np.broadcast_arrays(*(np.asarray(v, float) for v in (lon, lat, height)))
    norm = (
        (lon - rpc.long_off) / rpc.long_scale,
        (lat - rpc.lat_off) / rpc.lat_scale,
        (height - rpc.height_off) / rpc.height_scale,
    )
    terms = np.stack([norm[0] ** i * norm[1] ** j * norm[2] ** k for i, j, k in TERMS])
    line, line_below, sample, sample_below = (
        np.tensordot(np.asarray(c, float), terms, 1)
        for c in (rpc.line_num_coeff, rpc.line_den_coeff, rpc.samp_num_coeff, rpc.samp_den_coeff)
    )
    columns = sample / sample_below * rpc.samp_scale + rpc.samp_off + 0.5
    return columns, line / line_below * rpc.line_scale + rpc.line_off + 0.5


def locate(rpc: RPC, columns, rows, height) -> tuple[np.ndarray, np.ndarray]:
    """Where on the ground pixels look: (longitudes, latitudes) of places in the image at heights in metres.

    Newton's method on :func:`project`, to a thousandth of a pixel. ValueError where it does not converge.
    """
    columns, rows, height = np.broadcast_arrays(*(np.asarray(v, float) for v in (columns, rows, height)))
    lon, lat = np.full(columns.shape, rpc.long_off), np.full(columns.shape, rpc.lat_off)
    step = 1e-4 * np.array([rpc.long_scale, rpc.lat_scale])
    for _ in range(30):
        at = np.stack(project(rpc, lon, lat, height))
        error = np.stack([columns, rows]) - at
        if np.abs(error).max() < 1e-3:
            return lon, lat
        east = (np.stack(project(rpc, lon + step[0], lat, height)) - at) / step[0]
        north = (np.stack(project(rpc, lon, lat + step[1], height)) - at) / step[1]
        scale = east[0] * north[1] - east[1] * north[0]
        if not (np.isfinite(scale).all() and np.abs(scale).min() > 0):
            break
        lon = lon + (error[0] * north[1] - error[1] * north[0]) / scale
        lat = lat + (error[1] * east[0] - error[0] * east[1]) / scale
    raise ValueError(
        "the RPC model cannot be inverted: it leads from no ground point to this place in the image. Does the .rpb "
        "file belong to this image?"
    )


def write_heights(
    out: str | os.PathLike,
    dem: Sequence[str | os.PathLike],
    bounds: tuple[float, float, float, float],
    geoid: str | os.PathLike | None = None,
) -> None:
    """Write the heights that an RPC model wants, float32 metres above the ellipsoid, over ``bounds`` in degrees.

    dem: files that together cover the bounds (left, bottom, right, top), in any CRS; gaps and nodata count as sea
    level. The grid is that of the first file where its CRS is WGS 84, else one arc second.
    geoid: a raster of the geoid's undulation (metres), which is added: elevation models such as Copernicus count from
    the geoid (EGM2008), RPC models from the ellipsoid, up to 100 m away. Without it, heights are taken as they are.
    ValueError where no file meets the bounds, or the geoid does not cover them.
    """
    step, (left, top) = (1 / 3600, 1 / 3600), (bounds[0], bounds[3])
    used = []
    for path in dem:
        with open_raster(os.fspath(path)) as file:
            own = extent_in(Grid(file.crs, file.transform, file.height, file.width), WGS84)
            if own[0] < bounds[2] and own[2] > bounds[0] and own[1] < bounds[3] and own[3] > bounds[1]:
                if not used and file.crs == WGS84:
                    step = abs(file.transform.a), abs(file.transform.e)
                    left = file.transform.c + np.floor((left - file.transform.c) / step[0]) * step[0]
                    top = file.transform.f + np.ceil((top - file.transform.f) / step[1]) * step[1]
                used.append(path)
    if not used:
        raise ValueError(
            f"none of the {len(dem)} elevation files covers {bounds[0]:.3f} to {bounds[2]:.3f} E, "
            f"{bounds[1]:.3f} to {bounds[3]:.3f} N: add the tiles of this place"
        )
    size = int(np.ceil((top - bounds[1]) / step[1])), int(np.ceil((bounds[2] - left) / step[0]))
    grid = Grid(WGS84, from_origin(left, top, *step), *size)
    write_mosaic(out, grid, [[Band(path)] for path in used], dtype="float32", nodata=None)
    if geoid is None:
        return
    with rasterio.open(out, "r+") as file:
        lon, lat = apply(grid.transform, np.arange(size[1]) + 0.5, np.arange(size[0]) + 0.5)
        undulation = sample(geoid, *np.meshgrid(lon, lat))
        if not np.isfinite(undulation).all():
            raise ValueError(f"{geoid} does not cover {bounds}: give a geoid raster of this place")
        file.write(file.read(1) + undulation.astype("float32"), 1)


def sample(path: str | os.PathLike, lon, lat) -> np.ndarray:
    """The values of a raster in WGS 84 at points, bilinear between pixel centres; NaN outside."""
    lon, lat = np.asarray(lon, float), np.asarray(lat, float)
    with open_raster(os.fspath(path)) as file:
        if file.crs != WGS84:
            raise ValueError(f"{path} is in {file.crs}, longitude and latitude (EPSG:4326) are needed here")
        column, row = apply(~file.transform, lon, lat)
        inside = (column >= 0) & (row >= 0) & (column <= file.width) & (row <= file.height)
        if not inside.any():
            return np.full(lon.shape, np.nan)
        first = [max(0, int(np.floor(v[inside].min())) - 1) for v in (row, column)]
        last = [int(np.ceil(v[inside].max())) + 1 for v in (row, column)]
        window = Window.from_slices(
            (first[0], min(file.height, last[0])), (first[1], min(file.width, last[1])), height=file.height,
            width=file.width,
        )  # fmt: skip
        values = file.read(1, window=window).astype(float)
    at = [row - 0.5 - first[0], column - 0.5 - first[1]]
    return np.where(inside, map_coordinates(values, at, order=1, mode="nearest"), np.nan)


def footprint(rpc: RPC, height: int, width: int, heights: str | os.PathLike | None = None, points: int = 9):
    """The outline of an image of ``height`` × ``width`` pixels on the ground: (longitudes, latitudes), a closed ring.

    heights: a file of :func:`write_heights`; the outline lies on this terrain. Without it, at the RPC's mean height.
    """
    t = np.linspace(0, 1, points)[:-1]
    zero, one = np.zeros(points - 1), np.ones(points - 1)
    columns, rows = np.concatenate([t, one, 1 - t, zero]) * width, np.concatenate([zero, t, one, 1 - t]) * height
    at = np.full(columns.shape, float(rpc.height_off))
    lon, lat = locate(rpc, columns, rows, at)
    for _ in range(20 if heights is not None else 0):
        seen = sample(heights, lon, lat)
        at = np.where(np.isfinite(seen), (at + seen) / 2, at)  # halfway, so that steep ground does not make it swing
        lon, lat = locate(rpc, columns, rows, at)
    return np.append(lon, lon[0]), np.append(lat, lat[0])


def reach(rpc: RPC, height: int, width: int, low: float, high: float) -> tuple[float, float, float, float]:
    """(left, bottom, right, top) in degrees that an image sees, whatever the terrain between two heights (metres)."""
    columns, rows = np.array([0, width, width, 0] * 2), np.array([0, 0, height, height] * 2)
    lon, lat = locate(rpc, columns, rows, np.repeat([low, high], 4))
    return float(lon.min()), float(lat.min()), float(lon.max()), float(lat.max())


def ground_side(rpc: RPC, height: int, width: int, crs: CRS) -> float:
    """The side of a pixel on the ground, in units of ``crs``, in the middle of an image: the root of its area."""
    columns, rows = width / 2 + np.array([0.0, 1, 0]), height / 2 + np.array([0.0, 0, 1])
    x, y = (np.asarray(v) for v in transform_points(WGS84, crs, *locate(rpc, columns, rows, rpc.height_off)))
    return float(abs((x[1] - x[0]) * (y[2] - y[0]) - (x[2] - x[0]) * (y[1] - y[0])) ** 0.5)


def utm(lon, lat) -> CRS:
    """The UTM zone (WGS 84) of the middle of some points in degrees."""
    lon, lat = np.asarray(lon), np.asarray(lat)
    zone = int(((lon.min() + lon.max()) / 2 + 180) // 6) % 60 + 1
    return CRS.from_epsg((32600 if (lat.min() + lat.max()) / 2 >= 0 else 32700) + zone)


def grid_over(lon, lat, crs: CRS, gsd: float, snap: float, move: Affine | None = None) -> Grid:
    """The north-up grid of pixel side ``gsd`` that holds an outline, its borders on multiples of ``snap`` metres.

    move: a correction in map coordinates that is applied to the outline first. Grids of one outline and ``snap``, but
    with other pixel sides that divide it, have the same borders. ValueError where ``gsd`` does not divide ``snap``.
    """
    if abs(snap / gsd - round(snap / gsd)) > 1e-9:
        raise ValueError(f"a pixel of {gsd} m does not fit whole times into {snap} m")
    x, y = (np.asarray(v) for v in transform_points(WGS84, crs, np.asarray(lon), np.asarray(lat)))
    if move is not None:
        x, y = apply(move, x, y)
    left, bottom = np.floor(x.min() / snap) * snap, np.floor(y.min() / snap) * snap
    right, top = np.ceil(x.max() / snap) * snap, np.ceil(y.max() / snap) * snap
    size = round((top - bottom) / gsd), round((right - left) / gsd)
    return Grid(crs, from_origin(float(left), float(top), gsd, gsd), *size)


def orthorectify(
    image: str | os.PathLike,
    rpc: RPC,
    heights: str | os.PathLike,
    grid: Grid,
    bands: Sequence[int] | None = None,
    resampling: Resampling = Resampling.bilinear,
    move: Affine | None = None,
    threads: int = 1,
):
    """Yield (window, values (C, h, w)) of the image on a map grid, block by block; 0 where the image does not see.

    heights: a file of :func:`write_heights` around the image. bands: numbers from 1 (None: all). move: a correction in
    the grid's map coordinates, from where a thing is seen without it to where it belongs; the image is still resampled
    only once. The position of every pixel is exact, not interpolated between some.
    """
    turned = grid.transform if move is None else compose(~move, grid.transform)
    with open_raster(os.fspath(image)) as file:
        seen = file.read(None if bands is None else list(bands))  # GDAL takes an RPC beside an array only
    scale = min(1.0, ground_side(rpc, *seen.shape[1:], grid.crs) / abs(grid.transform.a))  # else guessed, by block
    for window in blocks(grid.height, grid.width, BLOCK):
        values = np.zeros((len(seen), window.height, window.width), seen.dtype)
        here = compose(turned, Affine.translation(window.col_off, window.row_off))
        reproject(
            seen, values, rpcs=rpc, src_crs=WGS84, dst_crs=grid.crs, dst_transform=here, resampling=resampling,
            tolerance=0, num_threads=threads, dst_nodata=0, RPC_DEM=os.fspath(heights),
            RPC_DEMINTERPOLATION="bilinear", XSCALE=scale, YSCALE=scale,
        )  # fmt: skip
        yield window, values


def write_orthorectified(
    out: str | os.PathLike,
    *arguments,
    names: Sequence[str] = (),
    recode: Callable[[np.ndarray], np.ndarray] | None = None,
    **options,
) -> None:
    """Write what :func:`orthorectify` yields (the same arguments) as a tiled GeoTIFF with nodata 0.

    names: of the bands. recode: applied to each block, say to translate the codes of a label.
    """
    grid = arguments[3] if len(arguments) > 3 else options["grid"]
    file = None
    try:
        for window, values in orthorectify(*arguments, **options):
            values = values if recode is None else recode(values)
            if file is None:
                profile = {"count": len(values), "dtype": values.dtype, "nodata": 0, "crs": grid.crs}
                profile |= {"height": grid.height, "width": grid.width, "transform": grid.transform}
                file = rasterio.open(out, "w", driver="GTiff", **profile, **GTIFF)
                for number, name in enumerate(names, start=1):
                    file.set_band_description(number, name)
            file.write(values, window=window)
    finally:
        if file is not None:
            file.close()


def bounds_of(grid: Grid, margin: float = 0.0) -> tuple[float, float, float, float]:
    """(left, bottom, right, top) of a grid in degrees, ``margin`` of the grid's units wider on every side."""
    left, bottom, right, top = extent(grid.transform, grid.height, grid.width)
    step = grid.transform.a
    wide = Grid(
        grid.crs, from_origin(left - margin, top + margin, step, step),
        int(np.ceil((top - bottom + 2 * margin) / step)), int(np.ceil((right - left + 2 * margin) / step)),
    )  # fmt: skip
    return extent_in(wide, WGS84)
