"""The files in which each data set comes: folders, names, formats and codes of the real ones, filled by the twin.

A layout says which files one item becomes. Where a data set's own format is not published (WHU-H²SR-MT, Crop10m) or
cannot be written here (Sen4AgriNet's NetCDF-4 groups), the layout is this project's own and is described at its
function. Nothing in the files says where the real ones were taken: places, numbers and dates are the twin's.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import date, timedelta
from functools import cached_property, lru_cache
from pathlib import Path

import numpy as np

from hierlab.tree import IGNORE, ClassTree
from hierlab.twin import products
from hierlab.twin.datasets import TWIN_VERSION, TwinDataset
from hierlab.twin.sensor import CRS, transform

Make = Callable[[], np.ndarray]
Write = Callable[[Path], None]
Files = Iterator[tuple[str, Write]]
STATES = ("de_1m_2013", "md_1m_2013", "ny_1m_2013", "pa_1m_2013", "va_1m_2014", "wv_1m_2014")
_ROWS = {"train": {2: "10-12", 3: "10-12", 4: "10-12", 5: "10-12", 6: "7-12", 7: "7-9 11-12"}}
_ROWS["test"] = {2: "13-14", 3: "13-14", 4: "13-15", 5: "13-15", 6: "13-15", 7: "13-13"}
VAIHINGEN = {
    "train": (1, 3, 5, 7, 11, 13, 15, 17, 21, 23, 26, 28, 30, 32, 34, 37),
    "test": (2, 4, 6, 8, 10, 12, 14, 16, 20, 22, 24, 27, 29, 31, 33, 35, 38),
}
POTSDAM = {  # without 7_10, whose labels are faulty
    split: tuple(
        f"{row}_{column}"
        for row, spans in rows.items()
        for first, last in (map(int, span.split("-")) for span in spans.split())
        for column in range(first, last + 1)
    )
    for split, rows in _ROWS.items()
}
_QUARTERS = ("nw", "ne", "sw", "se")
_LOVEDA = {"train": (0, 1366), "val": (2522, 3514), "test": (4191, 5167)}  # first rural and first urban number


@dataclass(frozen=True)
class Item:
    """One item of a set, about to be written. It is rendered when a file of it is, and not kept in the cache."""

    data: TwinDataset
    n: int

    @cached_property
    def patch(self) -> dict[str, np.ndarray]:
        return self.data.patch(self.n, keep=False)

    @property
    def tag(self) -> str:
        region, x, y = self.data.place(self.n)
        return f"version {TWIN_VERSION}, {self.data.name}, seed {self.data.seed}, region {region}, pixel ({x}, {y})"

    def transform(self, step: int = 1):
        """The affine transform of the item's grid, or of one whose pixel is ``step`` times as long."""
        _, x, y = self.data.place(self.n)
        return transform(self.data.gsd * step, x // step, y // step)

    def image(self) -> np.ndarray:
        """The image, (C, H, W), in the sensor's own type."""
        return self.patch["image"]

    def codes(self) -> np.ndarray:
        """The label in the codes of the tree, uint8 (H, W)."""
        return disk_codes(self.data.tree)[self.patch["label"]].astype(np.uint8)

    def coloured(self, void: tuple[int, int, int] = (0, 0, 0)) -> np.ndarray:
        """The label in the colours of the tree, uint8 (3, H, W)."""
        return colours(self.data.tree, void)[self.patch["label"]].transpose(2, 0, 1)

    def translated(self, codes: dict[str, int], void: int) -> np.ndarray:
        """The label in other codes, given by class name, uint8 (H, W)."""
        table = np.full(256, void, np.uint8)
        classes = self.data.tree.classes[-1]
        table[: len(classes)] = [codes[name] for name in classes]
        return table[self.patch["label"]]

    def raw_lr(self) -> np.ndarray:
        """The label product in its own codes, uint8 (H, W)."""
        region, x, y = self.data.place(self.n)
        height, width = self.patch["label_lr"].shape
        return products.label(self.data.product, self.data.seed, region, (x, y, width, height), self.data.gsd)


@lru_cache(maxsize=64)
def disk_codes(tree: ClassTree) -> np.ndarray:
    """(256,) int64: the value on disk of every label of a tree; ignored ones become its first ignored code."""
    table = np.full(256, tree.ignore_codes[0] if tree.ignore_codes else IGNORE, np.int64)
    for code, label in sorted(tree.codes.items(), reverse=True):
        if label != IGNORE:
            table[label] = code
    return table


def colours(tree: ClassTree, void: tuple[int, int, int] = (0, 0, 0)) -> np.ndarray:
    """(256, 3) uint8: the official colour of every leaf of a tree, ``void`` for all else."""
    table = np.full((256, 3), void, np.uint8)
    table[: tree.num_leaves] = np.asarray(tree.colors[-1], np.uint8)
    return table


def geotiff(item: Item, make: Make, step: int = 1, nodata: int | None = None, names=()) -> Write:
    """A writer of (C, H, W) or (H, W) as a deflated GeoTIFF; ``names`` describe the bands."""
    import rasterio

    def write(path: Path) -> None:
        array = make()
        array = array if array.ndim == 3 else array[None]
        count, height, width = array.shape
        profile = {"count": count, "height": height, "width": width, "dtype": array.dtype, "nodata": nodata}
        profile |= {"compress": "deflate", "interleave": "pixel" if count < 5 else "band", "BIGTIFF": "IF_SAFER"}
        profile |= {"crs": CRS, "transform": item.transform(step)}
        with rasterio.open(path, "w", driver="GTiff", **profile) as file:
            file.write(array)
            file.update_tags(twin=item.tag)
            for number, name in enumerate(names, 1):
                file.set_band_description(number, name)

    return write


def picture(item: Item, make: Make, palette: np.ndarray | None = None) -> Write:
    """A writer of (C, H, W) or (H, W) uint8 as PNG, or as JPEG (quality 95) where the name says so."""
    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

    def write(path: Path) -> None:
        array = make()
        image = Image.fromarray(np.ascontiguousarray(array.transpose(1, 2, 0) if array.ndim == 3 else array))
        if palette is not None:
            image.putpalette(palette.tobytes())
        if path.suffix == ".jpg":
            image.save(path, "JPEG", quality=95, subsampling=0, comment=f"twin: {item.tag}")
        else:
            info = PngInfo()
            info.add_text("twin", item.tag)
            image.save(path, "PNG", pnginfo=info)

    return write


def mm5b(item: Item) -> Files:
    """``img_dir/SPLIT/NAME.tif`` and ``ann_dir/SPLIT/NAME_18label.tif``: 1–18, 0 unlabelled."""
    yield from _img_ann(item, {"gaofen2": "GF2", "sentinel2": "S2"}.get(item.data.sensor, "GE"), "_18label")


def crop10m(item: Item) -> Files:
    """As MM-5B, labels in ``NAME_label.tif`` in the codes of the tree. The real layout is not published."""
    yield from _img_ann(item, "S2", "_label")


def _img_ann(item: Item, prefix: str, suffix: str) -> Files:
    split = item.data.split
    stem = f"{prefix}_{split}_{item.n:06d}"
    yield f"img_dir/{split}/{stem}.tif", geotiff(item, item.image, names=item.data.bands)
    yield f"ann_dir/{split}/{stem}{suffix}.tif", geotiff(item, item.codes, nodata=_void(item))


def _void(item: Item) -> int:
    return int(disk_codes(item.data.tree)[IGNORE])


def whdld(item: Item) -> Files:
    """``Images/wdcdN.jpg`` and ``ImagesPNG/wdcdN.png`` (1–6); the real set has no splits: ``SPLIT.txt`` lists ours."""
    stem = f"wdcd{_base(item.data.split) + item.n}"
    yield f"Images/{stem}.jpg", picture(item, item.image)
    yield f"ImagesPNG/{stem}.png", picture(item, item.codes)


def _base(split: str) -> int:
    """The first number of a split, where all splits share a folder."""
    return {"train": 0, "val": 2_000_000, "test": 4_000_000}[split]


def chesapeake(item: Item) -> Files:
    """``STATE_extended-debuffered-SPLIT_tiles/m_*_{naip-new,nlcd,lc}.tif`` and ``SPLIT.csv`` of image and NLCD.

    ``lc`` holds 1 water, 2 tree, 3 low vegetation, 5 impervious (the twin joins barren and roads to the last).
    """
    state, number = item.data.turn(item.n)
    quad, quarter = divmod({"train": 0, "val": 100, "test": 105}[item.data.split] + number, 4)
    stem = f"m_{38 + quad // 64}{75 + state:03d}{quad % 64 + 1:02d}_{_QUARTERS[quarter]}_18_1"
    folder = f"{STATES[state]}_extended-debuffered-{item.data.split}_tiles"
    codes = {"water": 1, "tree": 2, "low vegetation": 3, "impervious": 5}
    yield f"{folder}/{stem}_naip-new.tif", geotiff(item, item.image, names=item.data.bands)
    yield f"{folder}/{stem}_nlcd.tif", geotiff(item, item.raw_lr)
    yield f"{folder}/{stem}_lc.tif", geotiff(item, lambda: item.translated(codes, void=15))


def poland(item: Item) -> Files:
    """``images`` and ``masks`` (OpenEarthMap codes) as LandCover.ai has them, and ``PRODUCT`` with its raw codes.

    ``SPLIT.csv`` names each image and its low-resolution label. Of OpenEarthMap's codes the twin uses 2 rangeland,
    3 developed space, 5 tree and 6 water: one for each of the four common classes.
    """
    stem = f"T-{item.data.split}-{item.n:04d}"
    codes = {"tree": 5, "low vegetation": 2, "water": 6, "built-up": 3}
    yield f"images/{stem}.tif", geotiff(item, item.image, names=item.data.bands)
    yield f"{item.data.product}/{stem}.tif", geotiff(item, item.raw_lr)
    yield f"masks/{stem}.tif", geotiff(item, lambda: item.translated(codes, void=0))


def loveda(item: Item) -> Files:
    """``{Train,Val,Test}/{Urban,Rural}/{images_png,masks_png}/N.png``: masks 0 no data, 1–7."""
    part, number = item.data.turn(item.n)
    folder = f"{item.data.split.title()}/{('Rural', 'Urban')[part]}"
    number += _LOVEDA[item.data.split][part]
    yield f"{folder}/images_png/{number}.png", picture(item, item.image)
    yield f"{folder}/masks_png/{number}.png", picture(item, item.codes)


def potsdam(item: Item) -> Files:
    """``4_Ortho_RGBIR/top_potsdam_R_C_RGBIR.tif`` and ``top_potsdam_R_C_label.tif`` in colour, in the top folder."""
    name = f"top_potsdam_{_named(item, POTSDAM)}"
    yield f"4_Ortho_RGBIR/{name}_RGBIR.tif", geotiff(item, item.image, names=item.data.bands)
    yield f"{name}_label.tif", geotiff(item, item.coloured)


def vaihingen(item: Item) -> Files:
    """``top/top_mosaic_09cm_areaN.tif`` and ``top_mosaic_09cm_areaN.tif``, the label in colour, in the top folder."""
    name = f"top_mosaic_09cm_area{_named(item, VAIHINGEN)}.tif"
    yield f"top/{name}", geotiff(item, item.image, names=item.data.bands)
    yield name, geotiff(item, item.coloured)


def _named(item: Item, names: dict[str, tuple]) -> str:
    """The real set's name of a tile; the real validation tiles are our test tiles, and ours for validation are new."""
    if item.data.split == "val":
        return f"9_{item.n + 1}" if names is POTSDAM else str(item.n + 101)
    return names[item.data.split][item.n]


def million_aid(item: Item) -> Files:
    """``SPLIT/GROUP/SUBGROUP/CLASS/PN.jpg``: the folders are the path of the class in the tree, each name once."""
    tree, leaf = item.data.tree, int(item.patch["scene"])
    if leaf == IGNORE:
        return
    path = next(p for p in tree.paths.tolist() if p[-1] == leaf)
    folders = dict.fromkeys(tree.classes[level][n].replace(" ", "_") for level, n in enumerate(path))
    name = f"P{_base(item.data.split) + item.n:07d}.jpg"
    yield "/".join([item.data.split, *folders, name]), picture(item, item.image)


def mapillary(item: Item) -> Files:
    """``{training,validation,testing}/{images,labels}``: JPEG, and PNG with the class numbers and their palette."""
    folder = {"train": "training", "val": "validation", "test": "testing"}[item.data.split]
    yield f"{folder}/images/{item.n:06d}.jpg", picture(item, item.image)
    label = picture(item, lambda: item.patch["label"], colours(item.data.tree))
    yield f"{folder}/labels/{item.n:06d}.png", label


def h2sr(item: Item) -> Files:
    """This project's own layout: ``SPLIT/hsi``, ``SPLIT/series`` and ``SPLIT/label``, one ``N.tif`` each.

    The series has date × band bands (dates slowest), each described as "YYYY-MM-DD name"; 0, which no
    other pixel has, is no data: cloud or shadow. Labels in the codes of the tree, 0 no class.
    """
    data, split, name = item.data, item.data.split, f"{item.n:05d}.tif"
    names = [f"{_date(data, day)} {band}" for day in data.days for band in data.series_bands]

    def stack() -> np.ndarray:
        return item.patch["series"].reshape(-1, *item.patch["series"].shape[2:])

    step = round(data.series_gsd / data.gsd)
    yield f"{split}/hsi/{name}", geotiff(item, item.image, names=data.bands)
    yield f"{split}/series/{name}", geotiff(item, stack, step=step, nodata=0, names=names)
    yield f"{split}/label/{name}", geotiff(item, item.codes, nodata=_void(item))


def _date(data: TwinDataset, day: int) -> date:
    return date(data.year, 1, 1) + timedelta(int(day) - 1)


def aerorit(item: Item) -> Files:
    """``SPLIT/image_hsi_radiance.tif`` and ``SPLIT/image_labels.tif`` in colour, (153, 0, 0) unspecified.

    The real set is one such pair, cut into splits afterwards; here each split is a scene far from the others.
    """
    yield f"{item.data.split}/image_hsi_radiance.tif", geotiff(item, item.image, names=item.data.bands)
    yield f"{item.data.split}/image_labels.tif", geotiff(item, lambda: item.coloured((153, 0, 0)))


def sen4agrinet(item: Item) -> Files:
    """``YEAR/TILE/YEAR_TILE_patch_R_C.nc``, a tile for each split, listed in ``SPLIT.txt``.

    NetCDF-3, which has no groups: what are groups in the real files are variables here. ``B01`` … (time, y, x),
    ``valid`` (time, y, x) 1 or 0, ``labels`` (y, x) in FAO-ICC codes, 0 for none, ``time`` in days since 1970.
    """
    from scipy.io import netcdf_file

    data, whole = item.data, ("time", "y", "x")
    tile = {"train": "50TWA", "val": "50TWB", "test": "50TWC"}[data.split]
    name = f"{data.year}_{tile}_patch_{item.n // 100:02d}_{item.n % 100:02d}"
    days = [(_date(data, day) - date(1970, 1, 1)).days for day in data.days]

    def write(path: Path) -> None:
        patch = item.patch
        with netcdf_file(path, "w", mmap=False) as file:
            file.twin, file.patch_full_name, file.patch_year, file.patch_tile = item.tag, name, data.year, tile
            for axis, length in zip(whole, patch["series_valid"].shape, strict=True):
                file.createDimension(axis, length)
            made = {band: (patch["series"][:, n], "i", whole) for n, band in enumerate(data.bands)}
            made |= {"valid": (patch["series_valid"], "b", whole), "time": (days, "i", ("time",))}
            made |= {"labels": (disk_codes(data.tree)[patch["label"]], "i", ("y", "x"))}
            for key, (values, kind, axes) in made.items():
                file.createVariable(key, kind, axes)[:] = values
            file.variables["time"].units = "days since 1970-01-01"

    yield f"{data.year}/{tile}/{name}.nc", write


LAYOUTS: dict[str, Callable[[Item], Files]] = {
    **dict.fromkeys(("mm5b-gaofen2", "mm5b-sentinel2", "mm5b-google"), mm5b),
    "crop10m": crop10m,
    "whdld": whdld,
    "chesapeake": chesapeake,
    "poland": poland,
    "loveda": loveda,
    "potsdam": potsdam,
    "vaihingen": vaihingen,
    "million-aid": million_aid,
    "mapillary": mapillary,
    "whu-h2sr-mt": h2sr,
    "aerorit": aerorit,
    "sen4agrinet": sen4agrinet,
}
LISTS = {"whdld": "txt", "sen4agrinet": "txt", "chesapeake": "csv", "poland": "csv"}  # sets with a list a split
