"""Images: one or several raster files on one grid, read window by window."""

import os
import threading
import warnings
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from rasterio.crs import CRS
from rasterio.enums import ColorInterp, MaskFlags
from rasterio.errors import NotGeoreferencedWarning, RasterioError
from rasterio.windows import Window

from hierlab.data.grid import Grid, crs_name, extent, grid_differences, ground_size
from hierlab.data.tiles import blocks

SAMPLE_SIDE = 256  # pixels: side of the windows that a sample reads
SAMPLE_WINDOWS = 64
WHOLE_BELOW = 2**22  # pixels: scenes up to this size are summarised from every pixel
NANOMETRES = {"nanometers": 1, "nanometres": 1, "nm": 1, "micrometers": 1e3, "micrometres": 1e3, "um": 1e3}


class PerThread(ABC):
    """Open files kept once a process and thread, because a GDAL handle may not be shared between them.

    Subclasses give ``_open_files``. Pickled, an object leaves its handles behind and opens its own where it
    arrives. ``close`` lets all of them go; a later read opens them again.
    """

    def __init__(self) -> None:
        self._local = threading.local()
        self._opened: list[Any] = []

    @abstractmethod
    def _open_files(self) -> list[Any]: ...

    def _files(self) -> list[Any]:
        if getattr(self._local, "pid", None) != os.getpid():
            self._local.files = self._open_files()
            self._local.pid = os.getpid()
            self._opened.extend(self._local.files)
        return self._local.files

    def close(self) -> None:
        for file in reversed(self._opened):
            file.close()
        PerThread.__init__(self)

    def __enter__(self):
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def __getstate__(self) -> dict:
        return {k: v for k, v in self.__dict__.items() if k not in ("_local", "_opened")}

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state)
        PerThread.__init__(self)


def open_raster(path: str) -> rasterio.DatasetReader:
    """``rasterio.open`` whose errors name the file and a mend (FileNotFoundError, OSError, ValueError)."""
    if not path.startswith("/vsi") and ":" not in path and not Path(path).exists():
        raise FileNotFoundError(f"{path}: no such file (looked from {Path.cwd()}). Check the path")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", NotGeoreferencedWarning)  # our own checks say it, with a mend
            file = rasterio.open(path)
    except RasterioError as error:
        raise OSError(
            f"{path}: cannot be opened as a raster ({error}). It is of a format that GDAL does not read here, "
            "or truncated: compare its size with the source's and copy it again"
        ) from error
    if file.count == 0:
        inside = "\n  ".join(file.subdatasets) or "nothing that can be read"
        file.close()
        raise ValueError(f"{path}: no bands at the top of this file. Name one of its subdatasets:\n  {inside}")
    return file


def unreadable(path: str, error: Exception) -> OSError:
    """The error for pixels that cannot be read."""
    return OSError(
        f"{path}: pixels cannot be read ({error.__cause__ or error}). The file is probably truncated or damaged: "
        "compare its size with the source's and copy it again"
    )


def check_ends(path: str, file: rasterio.DatasetReader) -> None:
    """Read the last block of every band, so that a truncated file is found before long work."""
    try:
        for band, (rows, columns) in enumerate(file.block_shapes, start=1):
            last = ((file.height - 1) // rows, (file.width - 1) // columns)
            file.read(band, window=file.block_window(band, *last))
    except RasterioError as error:
        raise unreadable(path, error) from error


def placed_crs(path: str, file: rasterio.DatasetReader, crs: CRS | str | None, option: str) -> CRS:
    """The CRS of a file, ``crs`` before its own; ValueError where the file is not georeferenced."""
    if file.transform.is_identity:
        why = "only ground control points" if file.gcps[0] else "no geotransform"
        raise ValueError(
            f"{path}: has {why}, so its pixels have no place on a map. Warp it first, "
            f"e.g. gdalwarp -t_srs EPSG:<code> {path} placed.tif"
        )
    if file.transform.is_degenerate:
        raise ValueError(f"{path}: its geotransform {tuple(file.transform)[:6]} has pixels of no area")
    crs = CRS.from_user_input(crs) if crs is not None else file.crs
    if not crs:
        raise ValueError(
            f"{path}: has no CRS. Give the right one with {option}, or write it into the file: "
            f"gdal_edit.py -a_srs EPSG:<code> {path}"
        )
    return crs


def whole_window(window: Window | None, height: int, width: int, boundless: bool) -> tuple[int, int, int, int]:
    """(row, column, rows, columns) of a window of whole pixels; ValueError where it leaves the scene."""
    if window is None:
        return 0, 0, height, width
    given = (window.row_off, window.col_off, window.height, window.width)
    row, column, rows, columns = (round(v) for v in given)
    if max(abs(a - b) for a, b in zip(given, (row, column, rows, columns), strict=True)) > 1e-6:
        raise ValueError(f"{window} does not lie on whole pixels: round its offsets and lengths")
    if rows < 1 or columns < 1:
        raise ValueError(f"{window} is empty")
    inside = row >= 0 and column >= 0 and row + rows <= height and column + columns <= width
    if not inside and not boundless:
        raise ValueError(f"{window} leaves the {width}×{height} scene: clip it, or pass boundless=True")
    return row, column, rows, columns


def spread_windows(height: int, width: int) -> list[Window]:
    """Windows for a quick look: all of a small scene, else SAMPLE_WINDOWS spread evenly over it."""
    if height * width <= WHOLE_BELOW:
        return blocks(height, width, SAMPLE_SIDE)
    n = round(SAMPLE_WINDOWS**0.5)
    rows = np.unique(np.linspace(0, max(0, height - SAMPLE_SIDE), n).astype(int))
    columns = np.unique(np.linspace(0, max(0, width - SAMPLE_SIDE), n).astype(int))
    side = (min(SAMPLE_SIDE, width), min(SAMPLE_SIDE, height))
    return [Window(int(c), int(r), *side) for r in rows for c in columns]


class Scene(PerThread):
    """One image: the bands of one or several files that share a grid. Made by :meth:`Scene.open`.

    Attributes: ``paths``, ``bands`` (names), ``wavelengths`` (nm, or None, a band), ``count``, ``height``,
    ``width``, ``crs``, ``transform``, ``gsd`` (metres), ``dtype`` (of the files), ``nodata`` (None where the
    files disagree), ``notes`` (what a reader should know about how the files were understood).

    A pixel is **invalid** where a mask, an alpha band or a nodata value says so in any file, or where any band
    is NaN or infinite. Nodata in only some bands of a file makes the pixel invalid too, except for nodata 0,
    which in a single band may be a dark surface: there all the bands read from that file must be 0. Values are
    returned as stored (scale and offset tags are not applied), as float32.
    """

    @classmethod
    def open(
        cls,
        paths: str | os.PathLike | Iterable[str | os.PathLike],
        bands: Iterable[int | str] | None = None,
        crs: CRS | str | None = None,
    ) -> "Scene":
        """Open one multi-band file, or several files stacked as bands in the order given.

        bands: names, or numbers from 1 counted through the stack; None takes all but alpha bands. A band
        that is tagged alpha but named here is read as an image band and masks nothing.
        crs: used instead of what the files say.
        Raises FileNotFoundError and OSError (no raster, truncated), ValueError (no CRS, grids that differ,
        complex values, no valid pixel).
        """
        return cls(paths, bands, crs)

    def __init__(self, paths, bands=None, crs=None) -> None:
        super().__init__()
        paths = [paths] if isinstance(paths, str | os.PathLike) else list(paths)
        self.paths = [os.fspath(p) for p in paths]
        if not self.paths:
            raise ValueError("no image file was given")
        self.notes: list[str] = []
        try:
            self._probe(None if bands is None else list(bands), crs)
            self._check()
        finally:
            self.close()

    def _open_files(self) -> list[Any]:
        return [open_raster(path) for path in self.paths]

    # -- understanding the files ------------------------------------------------------------------

    def _probe(self, wanted: list[int | str] | None, crs) -> None:
        files = self._files()
        for path, file in zip(self.paths, files, strict=True):
            placed = placed_crs(path, file, crs, "crs=")
            if file is files[0]:
                self.crs, self.transform = placed, file.transform
                self.height, self.width = file.height, file.width
                continue
            differences = grid_differences(self, Grid(placed, file.transform, file.height, file.width))
            if differences:
                raise ValueError(
                    f"{self.paths[0]} and {path} are not on one grid, so they cannot be stacked as bands: "
                    f"{'; '.join(differences)}. Resample one onto the other, e.g. rio warp {path} aligned.tif "
                    f"--like {self.paths[0]}; images of different places are given as separate scenes"
                )
        every = [(f, b) for f, file in enumerate(files) for b in range(1, file.count + 1)]
        names = self._names(files, every)
        alphas = {(f, self._alpha(f, file)) for f, file in enumerate(files)}
        chosen = [i for i, key in enumerate(every) if key not in alphas]
        if wanted is not None:
            chosen = [self._find(w, names) for w in wanted]
        if not chosen:
            raise ValueError(f"{self.paths}: no image band is left of {names}")
        self.bands = tuple(names[i] for i in chosen)
        self.count = len(self.bands)
        self.wavelengths = tuple(_wavelength(files[every[i][0]], every[i][1]) for i in chosen)
        used = [every[i] for i in chosen]
        kinds = [files[f].dtypes[b - 1] for f, b in used]
        complex_ = [n for n, kind in zip(self.bands, kinds, strict=True) if kind.startswith("complex")]
        if complex_:
            raise ValueError(f"{self.paths}: bands {complex_} hold complex numbers. Store amplitude or power instead")
        self.dtype = kinds[0] if len(set(kinds)) == 1 else str(np.result_type(*kinds))
        nodata = {files[f].nodatavals[b - 1] for f, b in used}
        self.nodata = nodata.pop() if len(nodata) == 1 else None
        # a file: its bands, their places in the stack, the nodata of each, and where its mask comes from
        self._plan = []
        for f, file in enumerate(files):
            places = [i for i, (g, _) in enumerate(used) if g == f]
            if places:
                numbers = [used[i][1] for i in places]
                alpha = next((b for g, b in alphas if g == f and b not in numbers), None)
                flags = file.mask_flag_enums[numbers[0] - 1]
                masked = MaskFlags.per_dataset in flags and MaskFlags.alpha not in flags
                self._plan.append((f, numbers, places, [file.nodatavals[b - 1] for b in numbers], alpha, masked))
        self.gsd = ground_size(self.crs, self.transform, self.height, self.width)

    def _names(self, files: list, every: list[tuple[int, int]]) -> list[str]:
        names = []
        for f, b in every:
            tags = files[f].tags(b)
            given = files[f].descriptions[b - 1] or tags.get("name") or tags.get("NAME") or tags.get("BAND_NAME")
            if given is None and files[f].count == 1:
                given = Path(self.paths[f]).stem
            names.append(given or (f"band {b}" if len(files) == 1 else f"{Path(self.paths[f]).stem} {b}"))
        names = _unique(names, [f"{Path(self.paths[f]).stem} {b}" for f, b in every])
        return _unique(names, [f"{name} ({i})" for i, name in enumerate(names, start=1)])

    @staticmethod
    def _find(wanted: int | str, names: list[str]) -> int:
        if isinstance(wanted, int) and 1 <= wanted <= len(names):
            return wanted - 1
        if wanted in names:
            return names.index(wanted)
        raise ValueError(f"no band {wanted!r}: there are {len(names)}, numbered from 1, with the names {names}")

    def _alpha(self, f: int, file: rasterio.DatasetReader) -> int | None:
        """Number of the file's alpha band. A fourth uint8 band is tagged alpha by default when written, so a
        near-infrared band may wear that tag: it is no mask where over 5 % of a sample is neither 0 nor full."""
        if ColorInterp.alpha not in file.colorinterp:
            return None
        band = file.colorinterp.index(ColorInterp.alpha) + 1
        between = total = 0
        for window in spread_windows(file.height, file.width)[:: max(1, SAMPLE_WINDOWS // 16)]:
            try:
                values = file.read(band, window=window)
            except RasterioError as error:
                raise unreadable(self.paths[f], error) from error
            full = np.iinfo(values.dtype).max if values.dtype.kind in "iu" else 1
            between += int(((values != 0) & (values != full) & (values != 255)).sum())
            total += values.size
        if between <= 0.05 * total:
            return band
        self.notes.append(f"band {band} of {self.paths[f]} is tagged alpha but holds a picture: read as an image band")
        return None

    def _check(self) -> None:
        for path, file in zip(self.paths, self._files(), strict=True):
            check_ends(path, file)
        for window in (*spread_windows(self.height, self.width), *blocks(self.height, self.width, 512)):
            if self._read(window)[1].any():
                return
        empty = []
        for f, numbers, places, nodata, _, _ in self._plan:
            for number, place, value in zip(numbers, places, nodata, strict=True):
                if value is not None and np.isfinite(value):
                    seen = (self._files()[f].read(number, window=w) for w in spread_windows(self.height, self.width))
                    if all((values == value).all() for values in seen):
                        empty.append(self.bands[place])
        which = (
            f" Bands that hold nodata only: {empty}; leave them out with bands=." if 0 < len(empty) < self.count else ""
        )
        raise ValueError(
            f"{', '.join(self.paths)}: not one valid pixel: all of {self.width}×{self.height} are nodata "
            f"({self.nodata}), masked, NaN or infinite.{which} Is the nodata tag right?"
        )

    # -- reading ----------------------------------------------------------------------------------

    @property
    def profile(self) -> dict[str, Any]:
        """Grid and type, the keywords of ``rasterio.open`` with which a GeoTIFF like this scene is written."""
        return {
            "driver": "GTiff", "dtype": self.dtype, "nodata": self.nodata, "count": self.count,
            "height": self.height, "width": self.width, "crs": self.crs, "transform": self.transform,
        }  # fmt: skip

    def read(self, window: Window | None = None, boundless: bool = False) -> np.ndarray:
        """float32 (C, h, w) of a window (default: all), invalid pixels 0. See :meth:`read_valid`."""
        return self.read_valid(window, boundless)[0]

    def read_valid(self, window: Window | None = None, boundless: bool = False) -> tuple[np.ndarray, np.ndarray]:
        """Image float32 (C, h, w) and valid bool (h, w) of a window of whole pixels.

        boundless: what lies outside the scene is returned as invalid; otherwise it is a ValueError.
        OSError where the file cannot be read.
        """
        row, column, rows, columns = whole_window(window, self.height, self.width, boundless)
        top, left = max(row, 0), max(column, 0)
        bottom, right = min(row + rows, self.height), min(column + columns, self.width)
        if (top, left, bottom - top, right - left) == (row, column, rows, columns):
            return self._read(Window(column, row, columns, rows))[:2]
        image, valid = np.zeros((self.count, rows, columns), np.float32), np.zeros((rows, columns), bool)
        if bottom > top and right > left:
            inside = (slice(top - row, bottom - row), slice(left - column, right - column))
            part = self._read(Window(left, top, right - left, bottom - top))
            image[:, *inside], valid[inside] = part[:2]
        return image, valid

    def thumbnail(self, size: int = 1024) -> tuple[np.ndarray, np.ndarray]:
        """The whole scene at most ``size`` pixels wide and high (nearest pixels, overviews used): image and valid."""
        scale = max(1, self.height / size, self.width / size)
        shape = (ceil(self.height / scale), ceil(self.width / scale))
        return self._read(Window(0, 0, self.width, self.height), shape)[:2]

    def _read(self, window: Window, shape: tuple[int, int] | None = None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Image, valid, and bool (h, w) where a pixel that is not nodata is NaN or infinite in some band."""
        shape = shape or (int(window.height), int(window.width))
        image, valid = np.empty((self.count, *shape), np.float32), np.ones(shape, bool)
        wild = np.zeros(shape, bool)
        files = self._files()
        for f, numbers, places, nodata, alpha, masked in self._plan:
            try:
                values = files[f].read(numbers, window=window, out_shape=(len(numbers), *shape))
                mask = files[f].read(alpha, window=window, out_shape=shape) if alpha else None
                if mask is None and masked:
                    mask = files[f].read_masks(numbers[0], window=window, out_shape=shape)
            except RasterioError as error:
                raise unreadable(self.paths[f], error) from error
            if mask is not None:
                valid &= mask != 0
            valid &= ~_is_nodata(values, nodata)
            with np.errstate(over="ignore"):  # a float64 beyond float32 becomes infinite, hence invalid
                image[places] = values
            if values.dtype.kind == "f":
                wild |= ~np.isfinite(image[places]).all(axis=0)
        wild &= valid
        valid &= ~wild
        image[:, ~valid] = 0
        return image, valid, wild

    # -- saying what was found --------------------------------------------------------------------

    def summary(self) -> dict[str, Any]:
        """What the files hold; shares are of ``sampled`` pixels (all of a scene up to 2048²)."""
        valid = wild = sampled = 0
        for window in spread_windows(self.height, self.width):
            _, good, bad = self._read(window)
            valid, wild, sampled = valid + int(good.sum()), wild + int(bad.sum()), sampled + good.size
        return {
            "files": self.paths, "width": self.width, "height": self.height, "crs": crs_name(self.crs),
            "extent": extent(self.transform, self.height, self.width), "gsd": self.gsd, "bands": self.bands,
            "wavelengths": self.wavelengths, "dtype": self.dtype, "nodata": self.nodata,
            "valid_share": valid / sampled, "nonfinite": wild, "sampled": sampled, "notes": list(self.notes),
        }  # fmt: skip

    def describe(self) -> list[str]:
        """:meth:`summary` as lines for people."""
        s = self.summary()
        names = ", ".join(self.bands if self.count <= 12 else (*self.bands[:3], "…", self.bands[-1]))
        share = f"{s['valid_share']:.1%} of {s['sampled']:,} pixels looked at"
        lines = [
            f"image   {', '.join(Path(p).name for p in self.paths)}",
            f"grid    {self.width}×{self.height} pixels of {self.gsd:.4g} m, {s['crs']}",
            f"bands   {self.count} ({names}), {self.dtype}, nodata {self.nodata}",
            f"valid   {share}",
        ]
        if s["nonfinite"]:
            lines.append(f"NaN/inf {s['nonfinite']:,} pixels are NaN or infinite and are kept out")
        return lines + [f"note    {note}" for note in self.notes]


def _is_nodata(values: np.ndarray, nodata: list[float | None]) -> np.ndarray:
    """bool (h, w): nodata by the rule of :class:`Scene`. values (n, h, w) in the file's own type."""
    hit = np.zeros(values.shape, bool)
    for plane, value, where in zip(values, nodata, hit, strict=True):
        if value is None:
            continue
        if np.isnan(value):
            where[:] = np.isnan(plane)
            continue
        with np.errstate(over="ignore", invalid="ignore"):
            where[:] = plane == (plane.dtype.type(value) if plane.dtype.kind == "f" else value)
    dark = all(v == 0 for v in nodata)
    return hit.all(axis=0) if dark else hit.any(axis=0)


def _unique(names: list[str], instead: list[str]) -> list[str]:
    """Names, with those that occur more than once replaced."""
    times = Counter(names)
    return [other if times[name] > 1 else name for name, other in zip(names, instead, strict=True)]


def _wavelength(file: rasterio.DatasetReader, band: int) -> float | None:
    """Centre wavelength in nm from the tags of a band (ENVI's, or GDAL's IMAGERY domain)."""
    central = file.tags(band, ns="IMAGERY").get("CENTRAL_WAVELENGTH_UM")
    tags = {k.lower(): v for k, v in file.tags(band).items()}
    value, unit = (central, "um") if central else (tags.get("wavelength"), tags.get("wavelength_units", "nm"))
    try:
        return None if value is None else round(float(value) * NANOMETRES[unit.lower()], 6)
    except (ValueError, KeyError):
        return None
