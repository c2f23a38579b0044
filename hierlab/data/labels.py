"""Label rasters on the grid of an image: reprojected, encoded to a tree's labels, read window by window."""

import os
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from rasterio.crs import CRS
from rasterio.enums import ColorInterp, Resampling
from rasterio.errors import RasterioError
from rasterio.vrt import WarpedVRT
from rasterio.windows import Window

from hierlab.data.grid import crs_name, extent, extent_in
from hierlab.data.rasters import (
    PerThread,
    Scene,
    check_ends,
    open_raster,
    placed_crs,
    unreadable,
    whole_window,
)
from hierlab.data.tiles import blocks
from hierlab.tree import IGNORE, ClassTree

TOLERANCE = 0.01  # label pixels by which the warper may approximate a position


class LabelRaster(PerThread):
    """Labels (uint8, 255 = none) on the grid of a scene. Made by :meth:`LabelRaster.open`.

    Each image pixel takes the label pixel that holds its centre (nearest neighbour, positions exact to 0.01
    label pixels). A centre exactly on the border of two label pixels takes the one with the higher column or
    row number: right or lower where the label raster is north-up. Of several files, the first that names a
    class at a pixel wins. Nodata, masked and NaN pixels and the tree's ignore codes are 255.

    Attributes: ``paths`` (of the files that overlap the scene), ``tree``, ``height``, ``width``, ``crs``,
    ``transform`` (the scene's), ``notes``.
    """

    @classmethod
    def open(
        cls,
        paths: str | os.PathLike | Iterable[str | os.PathLike],
        scene: Scene,
        tree: ClassTree,
        crs: CRS | str | None = None,
    ) -> "LabelRaster":
        """Open label files over ``scene`` and look at every pixel of them on its grid.

        crs: the label files' CRS, used instead of what they say (the command line's --label-crs).
        Raises OSError (unreadable) and ValueError: no CRS, no overlap, codes that the tree does not know (all
        of them, with their counts in image pixels), values that are no whole numbers, no labelled pixel.
        """
        return cls(paths, scene, tree, crs)

    def __init__(self, paths, scene: Scene, tree: ClassTree, crs=None) -> None:
        super().__init__()
        paths = [paths] if isinstance(paths, str | os.PathLike) else list(paths)
        self.paths = [os.fspath(p) for p in paths]
        if not self.paths:
            raise ValueError("no label file was given")
        self.tree, self.notes = tree, []
        self.height, self.width, self.crs, self.transform = (
            scene.height,
            scene.width,
            scene.crs,
            scene.transform,
        )
        self._known = np.array([tree.codes.get(code, IGNORE) for code in range(256)], np.uint8)
        try:
            self._place(scene, crs)
            self._counts = self._survey()
        finally:
            self.close()

    def _place(self, scene: Scene, crs) -> None:
        self._sources: list[tuple[str, CRS]] = []
        apart = []
        for path in self.paths:
            with open_raster(path) as file:
                placed = placed_crs(path, file, crs, "crs= (--label-crs)")
                codes = [i for i in range(file.count) if file.colorinterp[i] != ColorInterp.alpha]
                if len(codes) != 1:
                    raise ValueError(
                        f"{path}: a label raster has one band of class codes, this file has {file.count} bands. "
                        f"Take the band with the codes out first: gdal_translate -b <number> {path} labels.tif"
                    )
                if file.dtypes[codes[0]].startswith("complex"):
                    raise ValueError(f"{path}: class codes are whole numbers, this file holds {file.dtypes[0]}")
                check_ends(path, file)
                left, bottom, right, top = extent(file.transform, file.height, file.width)
                own = f"{path}: {_extent_words((left, bottom, right, top))} in {crs_name(placed)}"
                try:
                    seen = extent_in(scene, placed)
                except ValueError as error:
                    apart.append(f"{own} ({error})")
                    continue
                if seen[0] < right and seen[2] > left and seen[1] < top and seen[3] > bottom:
                    self._sources.append((path, placed))
                else:
                    apart.append(f"{own}, where the image would be at {_extent_words(seen)}")
        if not self._sources:
            raise ValueError(
                f"image and labels do not overlap. {scene.paths[0]}: "
                f"{_extent_words(extent(scene.transform, scene.height, scene.width))} in {crs_name(scene.crs)}; "
                f"{'; '.join(apart)}. Are they of one place? If the labels' CRS tag is wrong, give the right one "
                "with crs= (--label-crs)"
            )
        if apart:
            self.notes.append(f"{len(apart)} of {len(self.paths)} label files do not overlap the image, left out")
        self.paths = [path for path, _ in self._sources]

    def _open_files(self) -> list[Any]:
        files = []
        for path, crs in self._sources:
            file = open_raster(path)
            warped = WarpedVRT(
                file, src_crs=crs, crs=self.crs, transform=self.transform, width=self.width, height=self.height,
                resampling=Resampling.nearest, tolerance=TOLERANCE, add_alpha=ColorInterp.alpha not in file.colorinterp,
            )  # fmt: skip
            files += [file, warped]
        return files

    # -- reading ----------------------------------------------------------------------------------

    def read(self, window: Window | None = None, boundless: bool = False) -> np.ndarray:
        """uint8 (h, w) labels of a window of whole pixels (default: all).

        boundless: 255 outside the scene; otherwise leaving it is a ValueError. OSError where a file cannot be
        read.
        """
        row, column, rows, columns = whole_window(window, self.height, self.width, boundless)
        top, left = max(row, 0), max(column, 0)
        bottom, right = min(row + rows, self.height), min(column + columns, self.width)
        result = np.full((rows, columns), IGNORE, np.uint8)
        if bottom > top and right > left:
            inside = result[top - row : bottom - row, left - column : right - column]
            for i in range(len(self._sources)):
                open_ = inside == IGNORE
                if not open_.any():
                    break
                codes, valid = self._codes(i, Window(left, top, right - left, bottom - top))
                inside[open_] = self._encode(codes, valid)[open_]
        return result

    def _codes(self, i: int, window: Window) -> tuple[np.ndarray, np.ndarray]:
        """Integer codes (h, w) of one file and where they count (bool)."""
        path, warped = self._sources[i][0], self._files()[2 * i + 1]
        alpha = warped.colorinterp.index(ColorInterp.alpha) + 1
        try:
            codes, mask = warped.read([1 if alpha != 1 else 2, alpha], window=window)
        except RasterioError as error:
            raise unreadable(path, error) from error
        valid = mask != 0
        if codes.dtype.kind != "f":
            return codes, valid
        valid &= ~np.isnan(codes)
        codes = np.where(valid, codes, 0)
        odd = np.unique(codes[(codes != np.floor(codes)) | (np.abs(codes) > 2**53)])
        if odd.size:
            raise ValueError(
                f"{path}: class codes are whole numbers, but this {codes.dtype} raster holds "
                f"{', '.join(f'{v:g}' for v in odd[:5])}{', …' if odd.size > 5 else ''}. Is it the label raster?"
            )
        return codes.astype(np.int64), valid

    def _encode(self, codes: np.ndarray, valid: np.ndarray) -> np.ndarray:
        if codes.dtype == np.uint8:  # a table look-up is ten times faster
            return np.where(valid, self._known[codes], np.uint8(IGNORE))
        return self.tree.encode(codes, valid)

    # -- counting ---------------------------------------------------------------------------------

    def _survey(self) -> np.ndarray:
        """Pixels of each label (256), streamed; raises for unknown codes and where nothing is labelled."""
        counts, found, unknown = np.zeros(256, np.int64), Counter(), Counter()
        for window in blocks(self.height, self.width, 1024):
            for i in range(len(self._sources)):
                codes, valid = self._codes(i, window)
                if codes.dtype == np.uint8:
                    times = np.bincount(codes[valid], minlength=256)
                    here = Counter({code: int(times[code]) for code in np.flatnonzero(times).tolist()})
                else:
                    values, times = np.unique(codes[valid], return_counts=True)
                    here = Counter(dict(zip(values.tolist(), times.tolist(), strict=True)))
                found.update(here)
                unknown.update({code: n for code, n in here.items() if code not in self.tree.codes})
            if not unknown:
                counts += np.bincount(self.read(window).ravel(), minlength=256)
        if unknown:
            raise self.tree.unknown_codes_error(unknown, f"{', '.join(self.paths)} (counted on the image's grid)")
        if counts[:IGNORE].sum() == 0:
            listed = ", ".join(f"{code}: {n} px" for code, n in sorted(found.items())) or "none but nodata"
            raise ValueError(
                f"{', '.join(self.paths)}: not one labelled pixel on the image. Codes found there: {listed}; "
                f"the tree '{self.tree.name}' ignores them"
            )
        return counts

    def counts(self) -> dict[int, int]:
        """Image pixels of each label present, 255 (unlabelled) included."""
        return {int(label): int(self._counts[label]) for label in np.flatnonzero(self._counts)}

    def describe(self) -> list[str]:
        """What was found, as lines for people: classes and their shares, most frequent first."""
        total = self._counts[:IGNORE].sum()
        names = self.tree.label_names
        lines = [
            f"labels  {', '.join(Path(p).name for p in self.paths)}, tree '{self.tree.name}'",
            f"        {total:,} of {self._counts.sum():,} image pixels are labelled",
        ]
        order = sorted((n, label) for label, n in self.counts().items() if label != IGNORE)
        lines += [f"        {n / total:7.2%}  {names[label]}" for n, label in reversed(order)]
        return lines + [f"note    {note}" for note in self.notes]


def read_labels(paths, scene: Scene, tree: ClassTree, crs: CRS | str | None = None) -> np.ndarray:
    """uint8 (H, W) labels of the whole scene, 255 where there is none. See :class:`LabelRaster`."""
    with LabelRaster.open(paths, scene, tree, crs) as labels:
        return labels.read()


def _extent_words(box: tuple[float, float, float, float]) -> str:
    left, bottom, right, top = box
    return f"x {left:.6g} to {right:.6g}, y {bottom:.7g} to {top:.7g}"
