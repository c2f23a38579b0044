"""Time series rasters: dates × bands in one file, on a grid of their own, read where they lie beneath an image.

Letters: T dates, C bands of one date, h w pixels of the series.
"""

import os
import re
from collections.abc import Iterable, Sequence
from datetime import date
from math import ceil, floor
from typing import Any

import numpy as np
from affine import Affine
from rasterio.enums import MaskFlags
from rasterio.errors import RasterioError
from rasterio.windows import Window

from hierlab.data.grid import apply, crs_name, extent, ground_size
from hierlab.data.rasters import PerThread, check_ends, open_raster, placed_crs, unreadable
from hierlab.data.tiles import blocks

DESCRIBED = re.compile(r"(\d{4}-\d{2}-\d{2})\s+(\S.*)")
LOOK = 256  # pixels: side of the blocks in which valid pixels are looked for
POINTS = 64  # an axis: the points of the image of which the share that the series covers is told


class Series(PerThread):
    """The part of a time series raster that lies beneath an image. Made by :meth:`Series.open`.

    The file has dates × bands bands, dates slowest, each described as "YYYY-MM-DD name". A pixel of a date is
    **invalid** (cloud, or nothing taken) where it is nodata, 0 where the file says none, masked, NaN or infinite.
    Nodata 0 must be in all bands of the date, any other in one, as for :class:`Scene`. Its grid may have any
    ratio and offset to the image's, in the same CRS.

    Attributes: ``path``, ``dates`` (datetime.date), ``days`` (int64 (T,), counted from 1 January of the first date's
    year, which is 1), ``bands`` (names), ``count`` (C), ``grid`` (affine, from the image's (column, row) to the
    file's), ``gsd`` (metres), ``covered`` (share of the image that the file covers), ``notes``, and, of the part,
    ``height`` and ``width``.
    """

    @classmethod
    def open(cls, path: str | os.PathLike, scene, bands: Sequence[str] | None = None) -> "Series":
        """The series beneath ``scene`` (anything with crs, transform, height and width).

        ``bands``: those wanted, by name; where the file has not all of them but as many bands, all its own in their
        order. Raises FileNotFoundError and OSError (no raster, truncated), ValueError (bands without date and name,
        dates whose bands differ, other bands than wanted, another CRS, no overlap, no valid pixel).
        """
        return cls(path, scene, bands)

    def __init__(self, path, scene, bands=None) -> None:
        super().__init__()
        self.path, self.notes, self.keep = os.fspath(path), [], False
        self._memory: tuple[np.ndarray, np.ndarray] | None = None
        try:
            self._probe(scene, bands)
            self._check()
        finally:
            self.close()

    def _open_files(self) -> list[Any]:
        return [open_raster(self.path)]

    # -- understanding the file -------------------------------------------------------------------

    def _probe(self, scene, wanted: Sequence[str] | None) -> None:
        (file,) = self._files()
        self.dates, names = _dates_and_bands(self.path, file.descriptions)
        places = self._places(names, wanted)
        self.bands = tuple(names[place] for place in places)
        self.count = len(self.bands)
        first = date(self.dates[0].year, 1, 1)
        self.days = np.array([(day - first).days + 1 for day in self.dates], np.int64)
        self._numbers = [t * len(names) + place + 1 for t in range(len(self.dates)) for place in places]
        stored = set(file.nodatavals)
        if len(stored) > 1:
            raise ValueError(f"{self.path}: its bands have different nodata values, {stored}; give all the same.")
        nodata = stored.pop()
        self.nodata = 0 if nodata is None else nodata
        flags = file.mask_flag_enums[0]
        self._masked = MaskFlags.per_dataset in flags and MaskFlags.alpha not in flags

        if not file.crs:
            raise ValueError(
                f"{self.path}: has no CRS. Write it into the file: gdal_edit.py -a_srs EPSG:<code> {self.path}"
            )
        crs = placed_crs(self.path, file, file.crs, "")
        if crs != scene.crs:
            raise ValueError(
                f"{self.path}: its CRS is {crs_name(crs)}, the image's {crs_name(scene.crs)}. Warp the series first, "
                f"e.g. gdalwarp -r near -t_srs {crs_name(scene.crs)} {self.path} warped.tif"
            )
        self.gsd = ground_size(crs, file.transform, file.height, file.width)
        there, here = (np.array(tuple(t)[:9]).reshape(3, 3) for t in (~file.transform, scene.transform))
        self.grid = Affine(*(there @ here)[:2].ravel().tolist())
        left, top, right, bottom = _touched(self.grid, scene.height, scene.width)
        self._left, self._top = max(left, 0), max(top, 0)
        self.width, self.height = min(right, file.width) - self._left, min(bottom, file.height) - self._top
        if self.width < 1 or self.height < 1:
            own = extent(file.transform, file.height, file.width)
            image = extent(scene.transform, scene.height, scene.width)
            raise ValueError(
                f"{self.path} and the image do not overlap: in {crs_name(crs)} the series has left, bottom, right, top "
                f"{own}, the image {image}."
            )
        spots = [(np.arange(POINTS) + 0.5) / POINTS * length for length in (scene.width, scene.height)]
        x, y = apply(self.grid, *np.meshgrid(*spots))
        self.covered = float(((x >= 0) & (x < file.width) & (y >= 0) & (y < file.height)).mean())

    def _places(self, names: list[str], wanted: Sequence[str] | None) -> list[int]:
        """Which bands of a date are read."""
        if wanted is None or set(wanted) <= set(names):
            return [names.index(name) for name in (names if wanted is None else wanted)]
        if len(names) != len(wanted):
            raise ValueError(
                f"{self.path}: {len(names)} bands a date ({', '.join(names)}), where {len(wanted)} are needed "
                f"({', '.join(wanted)}). Give the same bands."
            )
        self.notes.append(
            f"the model knows the bands as {', '.join(wanted)}, this series as {', '.join(names)}: taken in this order"
        )
        return list(range(len(names)))

    def _check(self) -> None:
        check_ends(self.path, self._files()[0])
        if not any(self._read(window)[1].any() for window in blocks(self.height, self.width, LOOK)):
            raise ValueError(
                f"{self.path}: not one valid pixel beneath the image on any date: all are nodata ({self.nodata}), "
                "masked, NaN or infinite. Is the nodata tag right?"
            )

    # -- reading ----------------------------------------------------------------------------------

    @property
    def nbytes(self) -> int:
        """Bytes that the part takes in memory."""
        return len(self.dates) * self.height * self.width * (4 * self.count + 1)

    def preload(self) -> None:
        """Read everything at the next read, and keep it."""
        self.keep = True

    def __getstate__(self) -> dict:
        return super().__getstate__() | {"_memory": None}

    def _read(self, window: Window) -> tuple[np.ndarray, np.ndarray]:
        """Values float32 (T, C, h, w), 0 where invalid, and valid bool (T, h, w), of a window of the part."""
        (file,) = self._files()
        inside = Window(self._left + window.col_off, self._top + window.row_off, window.width, window.height)
        try:
            stored = file.read(self._numbers, window=inside)
            mask = file.read_masks(1, window=inside) != 0 if self._masked else True
        except RasterioError as error:
            raise unreadable(self.path, error) from error
        stored = stored.reshape(-1, self.count, *stored.shape[1:])
        absent = np.isnan(stored) if np.isnan(self.nodata) else stored == self.nodata
        with np.errstate(over="ignore"):  # a float64 beyond float32 becomes infinite, hence invalid
            values = stored.astype(np.float32)
        valid = ~(absent.all(axis=1) if self.nodata == 0 else absent.any(axis=1)) & np.isfinite(values).all(axis=1)
        valid &= mask
        return np.where(valid[:, None], values, np.float32(0)), valid

    def side(self, patch: int) -> int:
        """Pixels of the series a side that are enough for any patch of ``patch`` pixels of the image."""
        a, b, _, d, e, _ = tuple(self.grid)[:6]
        return ceil(round(patch * max(abs(a) + abs(b), abs(d) + abs(e)), 6)) + 1

    def beneath(self, window: Window, side: int | None = None, dates: int | None = None) -> dict[str, np.ndarray]:
        """The pixels of the series that a window of the image touches, in arrays of one size.

        ``side`` (by default that of :meth:`side`) and ``dates`` (T) are those of the arrays; what they have more is
        invalid, and so is what lies beyond the file or beyond the image. Returns ``series`` float32
        (dates, C, side, side), 0 where invalid, ``series_valid`` bool (dates, side, side), ``series_days`` int64
        (dates,), 0 for a date that is none, and ``series_grid`` float32 (6,), from the (column, row) of the window to
        those of the arrays, as :func:`hierlab.stsnet.grid_between` has it. Raises ValueError where they are too small.
        """
        side = side or self.side(max(window.height, window.width))
        dates = dates or len(self.dates)
        grid = _from(self.grid, *apply(self.grid, window.col_off, window.row_off))
        left, top, right, bottom = _touched(grid, window.height, window.width)
        if dates < len(self.dates) or side < max(right - left, bottom - top):
            raise ValueError(
                f"{self.path}: {len(self.dates)} dates of {right - left}×{bottom - top} pixels do not fit into "
                f"{dates} of {side}×{side}."
            )
        found = {
            "series": np.zeros((dates, self.count, side, side), np.float32),
            "series_valid": np.zeros((dates, side, side), bool),
            "series_days": np.pad(self.days, (0, dates - len(self.days))),
            "series_grid": np.array(tuple(_from(grid, grid.c - left, grid.f - top))[:6], np.float32),
        }
        rows = slice(max(top, self._top), min(bottom, self._top + self.height))
        columns = slice(max(left, self._left), min(right, self._left + self.width))
        if rows.start < rows.stop and columns.start < columns.stop:
            there = (slice(rows.start - top, rows.stop - top), slice(columns.start - left, columns.stop - left))
            here = Window.from_slices(_less(rows, self._top), _less(columns, self._left))
            values, valid = self._kept(here) if self.keep else self._read(here)
            found["series"][: len(self.dates), :, *there] = values
            found["series_valid"][: len(self.dates), *there] = valid
        return found

    def _kept(self, window: Window) -> tuple[np.ndarray, np.ndarray]:
        if self._memory is None:
            self._memory = self._read(Window(0, 0, self.width, self.height))
            self.close()
        values, valid = self._memory
        return values[..., *window.toslices()], valid[..., *window.toslices()]

    # -- saying what was found --------------------------------------------------------------------

    def describe(self) -> list[str]:
        """What the file holds, as lines for people."""
        seen = total = 0
        for window in blocks(self.height, self.width, LOOK)[:POINTS]:
            valid = self._read(window)[1]
            seen, total = seen + int(valid.sum()), total + valid.size
        self.close()
        names = ", ".join(self.bands)
        lines = [
            f"series  {self.path}: {len(self.dates)} dates, {min(self.dates)} to {max(self.dates)}, of {self.count} "
            f"bands ({names}); {self.width}×{self.height} pixels of {self.gsd:.4g} m beneath the image, "
            f"{seen / total:.1%} seen"
        ]
        if self.covered < 1:
            lines.append(f"note    the series covers {self.covered:.1%} of the image; elsewhere the image is alone")
        return lines + [f"note    {note}" for note in self.notes]


def _dates_and_bands(path: str, descriptions: Iterable[str | None]) -> tuple[list[date], list[str]]:
    """The dates of a file and the names of the bands that each of them has."""
    found: list[tuple[date, list[str]]] = []
    for number, text in enumerate(descriptions, start=1):
        match = DESCRIBED.fullmatch((text or "").strip())
        try:
            day = date.fromisoformat(match[1]) if match else None
        except ValueError:  # the 30th of February
            day = None
        if match is None or day is None:
            raise ValueError(
                f"{path}: band {number} is described as {text!r}. Every band of a time series needs a description "
                '"YYYY-MM-DD name", all bands of one date before those of the next, '
                "e.g. file.set_band_description(1, '2024-05-17 red') with rasterio."
            )
        if not found or found[-1][0] != day:
            found.append((day, []))
        found[-1][1].append(match[2])
    dates, names = [day for day, _ in found], found[0][1]
    if len(set(dates)) < len(dates):
        twice = next(day for n, day in enumerate(dates) if day in dates[:n])
        raise ValueError(f"{path}: {twice} stands in two places. All bands of one date must stand together.")
    for day, bands in found:
        if bands != names:
            raise ValueError(
                f"{path}: {day} has the bands {', '.join(bands)}, and {dates[0]} has {', '.join(names)}. Every date "
                "needs the same bands in the same order; one that was not taken is nodata."
            )
    if len(set(names)) < len(names):
        raise ValueError(f"{path}: the bands of a date have equal names: {', '.join(names)}. Name each differently.")
    return dates, names


def _from(grid: Affine, c: float, f: float) -> Affine:
    """The grid with another place for the first pixel's corner."""
    return Affine(grid.a, grid.b, c, grid.d, grid.e, f)


def _touched(grid: Affine, height: int, width: int) -> tuple[int, int, int, int]:
    """(left, top, right, bottom) of the whole pixels that an image of this size touches; ``grid`` leads to them."""
    x, y = apply(grid, np.array([0, width, 0, width]), np.array([0, 0, height, height]))
    (left, top), (right, bottom) = ([round(float(f(v)), 6) for v in (x, y)] for f in (np.min, np.max))
    return floor(left), floor(top), ceil(right), ceil(bottom)


def _less(span: slice, offset: int) -> slice:
    return slice(span.start - offset, span.stop - offset)
