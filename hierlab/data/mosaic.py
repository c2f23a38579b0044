"""Rasters of any grid put together on one grid, window by window."""

import os
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import numpy as np
import rasterio
from affine import Affine
from rasterio.enums import ColorInterp, Resampling
from rasterio.errors import RasterioError
from rasterio.vrt import WarpedVRT
from rasterio.windows import Window

from hierlab.data.grid import Grid, compose, extent, extent_in
from hierlab.data.rasters import open_raster, unreadable
from hierlab.data.tiles import blocks

BLOCK = 1024  # pixels: side of the blocks in which a mosaic is made
GTIFF = {
    "tiled": True, "blockxsize": 256, "blockysize": 256, "compress": "deflate", "BIGTIFF": "IF_SAFER",
    "photometric": "MINISBLACK",
}  # fmt: skip


class Band(NamedTuple):
    """One band of a file. Its value is ``stored × scale + offset``; ``nodata`` is used where the file names none."""

    path: str | os.PathLike
    number: int = 1
    scale: float = 1.0
    offset: float = 0.0
    nodata: float | None = None


def overlaps(path: str | os.PathLike, grid: Grid) -> bool:
    """Whether a raster file and a grid share ground, by their extents."""
    with open_raster(os.fspath(path)) as file:
        if not file.crs:
            raise ValueError(f"{path} has no CRS: write the right one into it, e.g. gdal_edit.py -a_srs EPSG:<code>")
        own = Grid(file.crs, file.transform, file.height, file.width)
    left, bottom, right, top = extent_in(own, grid.crs)
    mine = extent(grid.transform, grid.height, grid.width)
    return left < mine[2] and right > mine[0] and bottom < mine[3] and top > mine[1]


def rasters_in(paths: Sequence[str | os.PathLike]) -> list[Path]:
    """The GeoTIFFs, JPEG 2000 files and virtual rasters among files and folders, in order; ValueError for none."""
    found = []
    for path in map(Path, paths):
        if not path.exists():
            raise FileNotFoundError(f"{path}: no such file or folder")
        inside = sorted(path.rglob("*")) if path.is_dir() else [path]
        found += [p for p in inside if path.is_file() or p.suffix.lower() in (".tif", ".tiff", ".jp2", ".vrt")]
    if not found:
        raise ValueError(f"no raster files in {', '.join(map(str, paths))}")
    return found


def read_mosaic(
    grid: Grid,
    layers: Sequence[Sequence[Band]],
    window: Window | None = None,
    resampling: Resampling = Resampling.bilinear,
) -> tuple[np.ndarray, np.ndarray]:
    """Values float64 (C, h, w) and valid bool (h, w) of a window (default: all) of a mosaic.

    layers: each a list of C bands; at every pixel the first layer whose bands are all valid there gives the values, and
    where there is none they are 0. A layer on this very grid, or on one that it refines without a remainder of pixels,
    keeps its values. ValueError where layers differ in their number of bands.
    """
    window = Window(0, 0, grid.width, grid.height) if window is None else window
    with ExitStack() as stack:
        return _read(_opened(stack, grid, layers, resampling), window)


def read_grey(grid: Grid, paths: Sequence[str | os.PathLike]) -> tuple[np.ndarray, np.ndarray]:
    """The mean of the first three bands (or the first, where a file has fewer) of files on a grid, float32 (H, W), and
    where it is valid, bool (H, W)."""
    counts = []
    for path in paths:
        with open_raster(os.fspath(path)) as file:
            counts.append(3 if file.count >= 3 else 1)
    layers = [[Band(path, number + 1) for number in range(min(counts))] for path in paths]
    values, valid = np.zeros((grid.height, grid.width), np.float32), np.zeros((grid.height, grid.width), bool)
    with ExitStack() as stack:
        opened = _opened(stack, grid, layers, Resampling.bilinear)
        for window in blocks(grid.height, grid.width, BLOCK):
            part, seen = _read(opened, window)
            values[window.toslices()], valid[window.toslices()] = part.mean(0), seen
    return values, valid


def write_mosaic(
    out: str | os.PathLike,
    grid: Grid,
    layers: Sequence[Sequence[Band]],
    dtype: str,
    nodata: float | None = 0,
    names: Sequence[str] = (),
    resampling: Resampling = Resampling.bilinear,
    mean: int = 1,
) -> None:
    """Write :func:`read_mosaic` of the whole grid as a tiled GeoTIFF.

    Whole-number types are rounded and clipped to what they hold; valid values that would become ``nodata`` are moved up
    by one, so that dark ground stays valid. mean: read the layers on pixels of 1/mean the side, and write their means.
    """
    whole = np.issubdtype(np.dtype(dtype), np.integer)
    fine = Grid(grid.crs, compose(grid.transform, Affine.scale(1 / mean)), grid.height * mean, grid.width * mean)
    with ExitStack() as stack:
        opened = _opened(stack, fine, layers, resampling)
        profile = {"count": len(layers[0]), "dtype": dtype, "nodata": nodata, "crs": grid.crs}
        profile |= {"height": grid.height, "width": grid.width, "transform": grid.transform}
        file = stack.enter_context(rasterio.open(out, "w", driver="GTiff", **profile, **GTIFF))
        for number, name in enumerate(names, start=1):
            file.set_band_description(number, name)
        for place in blocks(grid.height, grid.width, BLOCK):
            wide = Window(*(int(v) * mean for v in (place.col_off, place.row_off, place.width, place.height)))
            values, valid = _read(opened, wide)
            if mean > 1:
                shape = (place.height, mean, place.width, mean)
                values = values.reshape(len(values), *shape).mean((2, 4))
                valid = valid.reshape(shape).all((1, 3))
            if whole:
                values = np.clip(np.rint(values), *_range(dtype))
                if nodata is not None:
                    values[:, valid] = np.where(values[:, valid] == nodata, nodata + 1, values[:, valid])
            if nodata is not None:
                values[:, ~valid] = nodata
            file.write(values.astype(dtype), window=place)


def valid_share(path: str | os.PathLike) -> float:
    """The share of a raster's pixels that are not nodata in all bands."""
    with open_raster(os.fspath(path)) as file:
        places = blocks(file.height, file.width, BLOCK)
        return sum(int((file.dataset_mask(window=p) > 0).sum()) for p in places) / (file.height * file.width)


def _range(dtype: str) -> tuple[int, int]:
    info = np.iinfo(dtype)
    return info.min, info.max


_Layer = list[tuple[WarpedVRT, int, list[tuple[int, Band]]]]  # a file, its alpha band, and its (place, band)s


def _opened(
    stack: ExitStack, grid: Grid, layers: Sequence[Sequence[Band]], resampling: Resampling
) -> tuple[int, list[_Layer]]:
    """How many bands a layer has, and the layers' files as if they were on the grid; those elsewhere are left out."""
    if len({len(layer) for layer in layers}) != 1:
        raise ValueError(f"the layers of a mosaic need the same bands; these have {[len(layer) for layer in layers]}")
    where = {"crs": grid.crs, "transform": grid.transform, "width": grid.width, "height": grid.height}
    found = []
    for layer in layers:
        files: dict[str, list[tuple[int, Band]]] = {}
        for place, band in enumerate(layer):
            files.setdefault(os.fspath(band.path), []).append((place, band))
        if not all(overlaps(path, grid) for path in files):
            continue
        opened = []
        for path, bands in files.items():
            file = stack.enter_context(open_raster(path))
            nodata = next((band.nodata for _, band in bands if band.nodata is not None), None)
            hole = {"src_nodata": nodata} if file.nodata is None and nodata is not None else {}
            alpha = ColorInterp.alpha not in file.colorinterp
            warped = WarpedVRT(file, **where, **hole, resampling=resampling, tolerance=0.01, add_alpha=alpha)
            stack.enter_context(warped)
            opened.append((warped, warped.colorinterp.index(ColorInterp.alpha) + 1, bands))
        found.append(opened)
    return len(layers[0]), found


def _read(opened: tuple[int, list[_Layer]], window: Window) -> tuple[np.ndarray, np.ndarray]:
    count, layers = opened
    values = np.zeros((count, int(window.height), int(window.width)))
    valid = np.zeros(values.shape[1:], bool)
    for layer in layers:
        if valid.all():
            break
        mine, seen = np.empty_like(values), ~valid
        for file, alpha, bands in layer:
            try:
                *stored, mask = file.read([*(band.number for _, band in bands), alpha], window=window)
            except RasterioError as error:
                raise unreadable(os.fspath(bands[0][1].path), error) from error
            seen &= mask > 0
            for (place, band), numbers in zip(bands, stored, strict=True):
                mine[place] = numbers.astype(float) * band.scale + band.offset
                seen &= np.isfinite(mine[place])
            if not seen.any():
                break
        else:
            values[:, seen] = mine[:, seen]
            valid |= seen
    return values, valid
