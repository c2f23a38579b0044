"""Labels brought to other pixel sides, and scenes cut into patches that training reads.

Patches lie in the folders of MM-5B as published: ``img_dir/SPLIT/NAME.tif`` with ``ann_dir/SPLIT/NAME_SUFFIX.tif``,
which :class:`hierlab.data.pairs.PairFolder` reads.
"""

import os
from collections.abc import Iterator
from contextlib import ExitStack
from math import gcd
from pathlib import Path

import numpy as np
import rasterio
from affine import Affine
from rasterio.windows import Window

from hierlab.data.grid import compose
from hierlab.data.manifest import Ledger
from hierlab.data.mosaic import GTIFF
from hierlab.data.pairs import IMAGES, LABELS
from hierlab.data.rasters import open_raster

RULES = ("majority", "nearest")
_ROWS = 1024  # label pixels that are brought to another side at once


def resample_codes(codes: np.ndarray, side: int, new: int, rule: str = "majority") -> np.ndarray:
    """Label codes (H, W) of pixels of ``side`` metres on pixels of ``new`` metres, the first corners together.

    "majority": the code that covers most of the new pixel, to the exact area, the lowest of equals (so unlabelled,
    where that is 0). "nearest": the code at the new pixel's centre, right of or below a border that this lies on.
    ``side`` and ``new`` are whole numbers; H and W must fill whole pixels of ``new`` (ValueError).
    """
    if rule not in RULES:
        raise ValueError(f"codes are resampled by {' or '.join(RULES)}, not by {rule!r}")
    if any(length * side % new for length in codes.shape):
        raise ValueError(f"{codes.shape} pixels of {side} m do not fill whole pixels of {new} m")
    h, w = (length * side // new for length in codes.shape)
    if rule == "nearest" or side % new == 0:
        rows, columns = ((np.arange(n) * 2 + 1) * new // (2 * side) for n in (h, w))
        return codes[rows[:, None], columns]
    period = side * new // gcd(side, new)
    many, few = period // side, period // new  # pixels along a side of the smallest square that both fill
    edges, new_edges = np.arange(many + 1) * side, np.arange(few + 1) * new
    shared = np.minimum(edges[1:], new_edges[1:, None]) - np.maximum(edges[:-1], new_edges[:-1, None])
    shared = np.maximum(shared, 0).astype(np.float32)  # (few, many) metres along one axis
    result, most = np.zeros((h, w), codes.dtype), np.zeros((h, w), np.float32)
    squares = codes.reshape(codes.shape[0] // many, many, codes.shape[1] // many, many)
    for code in np.unique(codes):
        is_code = (squares == code).astype(np.float32)
        area = np.einsum("ri,aibj,cj->arbc", shared, is_code, shared, optimize=True).reshape(h, w)
        result[area > most] = code
        np.maximum(most, area, out=most)
    return result


def write_codes(
    out: Path, label: str | os.PathLike, new: int, rule: str = "majority", image: str | os.PathLike | None = None
) -> None:
    """Write a label raster, whose pixels have a side of whole metres, on pixels of ``new`` metres.

    image: a raster on the new pixels; where it has no data, the codes become the label's nodata value (0 without one).
    """
    with ExitStack() as stack:
        source = stack.enter_context(open_raster(os.fspath(label)))
        seen = None if image is None else stack.enter_context(open_raster(os.fspath(image)))
        side = round(source.transform.a)
        if abs(source.transform.a - side) > 1e-9 or source.transform.e != -source.transform.a:
            raise ValueError(f"{label}: its pixels, {source.transform.a} × {-source.transform.e}, have no whole metres")
        profile = source.profile | GTIFF
        profile |= {"height": source.height * side // new, "width": source.width * side // new}
        profile |= {"transform": compose(source.transform, Affine.scale(new / side))}
        step = max(1, _ROWS * side // (side * new)) * new  # pixels of the label: whole pixels of either side
        if seen is not None and (seen.height, seen.width) != (profile["height"], profile["width"]):
            raise ValueError(
                f"{image} has {seen.shape} pixels, the label would have {profile['height']}, {profile['width']}"
            )
        file = stack.enter_context(rasterio.open(out, "w", **profile))
        for top in range(0, source.height, step):
            rows = min(step, source.height - top)
            codes = source.read(1, window=Window(0, top, source.width, rows))
            made = resample_codes(codes, side, new, rule)
            place = Window(0, top * side // new, *made.shape[::-1])
            if seen is not None:
                made[seen.dataset_mask(window=place) == 0] = source.nodata or 0
            file.write(made, 1, window=place)


def cut(
    image: str | os.PathLike, label: str | os.PathLike, size: int, least: float = 0.0, unlabelled: int | None = 0
) -> Iterator[tuple[str, Window]]:
    """Where a scene gives patches: ("rROW_cCOLUMN", window) of whole, non-overlapping squares of ``size`` pixels.

    The squares start at the scene's first corner; what is left over at the far edges gives none. A square is left out
    where no more than the share ``least`` of its pixels is labelled (with ``unlabelled`` None: all are).
    ValueError where image and label do not have one size.
    """
    with open_raster(os.fspath(image)) as pixels, open_raster(os.fspath(label)) as codes:
        if pixels.shape != codes.shape:
            raise ValueError(f"{image} has {pixels.shape} pixels, {label} has {codes.shape}: they must be on one grid")
        for row in range(codes.height // size):
            for column in range(codes.width // size):
                window = Window(column * size, row * size, size, size)
                if unlabelled is None or (codes.read(1, window=window) != unlabelled).mean() > least:
                    yield f"r{row:03d}_c{column:03d}", window


def write_patches(
    ledger: Ledger, split: str, name: str, image: str | os.PathLike, label: str | os.PathLike, size: int, suffix: str,
    least: float = 0.0, unlabelled: int | None = 0,
) -> list[str]:  # fmt: skip
    """Write the patches of one scene (see :func:`cut`) into a ledger's folder; returns the names of their files.

    The files are called ``NAME_rROW_cCOLUMN`` (the label's with ``_SUFFIX``). Finished ones are kept.
    """
    names = []
    for place, window in cut(image, label, size, least, unlabelled):
        for source, file in (
            (image, f"{IMAGES}/{split}/{name}_{place}.tif"),
            (label, f"{LABELS}/{split}/{name}_{place}_{suffix}.tif"),
        ):
            ledger.write(file, lambda path, source=source, window=window: _write_window(path, source, window))
            names.append(file)
    return names


def _write_window(out: Path, source: str | os.PathLike, window: Window) -> None:
    with open_raster(os.fspath(source)) as file:
        profile = file.profile | GTIFF | {"tiled": False, "blockxsize": window.width, "blockysize": window.height}
        profile |= {"height": window.height, "width": window.width, "transform": file.window_transform(window)}
        with rasterio.open(out, "w", **profile) as target:
            target.write(file.read(window=window))
            target.descriptions = file.descriptions
