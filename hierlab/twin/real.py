"""Readers of the small real scenes that the twin is compared with.

The scenes are public but not part of the project. Each reader takes the folder that holds them and returns a case of
``calibration``: a list of patches. What was measured on them is stored in the book's run records.
"""

from pathlib import Path

import numpy as np

from hierlab.twin.calibration import IGNORE, Patch
from hierlab.twin.legends import MERGES

SOURCES = {
    "landsat": "Landsat-8 bands 2-5 and NLCD 2011, Zion (Nowosad/spDataLarge, CC0)",
    "naip": "NAIP, 1 m labels and NLCD, eight patches in West Virginia (calebrob6/land-cover)",
    "sentinel2": "TerraMesh: Sentinel-2 L2A and Esri land cover (IBM/terramind, CC BY-SA 4.0)",
    "series": "Sentinel-2 L1C, five dates, and land use, Slovenia (sentinel-hub/eo-learn, MIT, Copernicus)",
    "hyperspectral": "EnMAP L2A, Potsdam (EnMAP-Box, © DLR, GeoBasis-DE)",
}
TILES = {"A": "282D_485L_3_3", "B": "433D_629L_3_1", "C": "637U_59R_1_3"}


def landsat(folder: Path) -> list[Patch]:
    """Landsat-8 over Zion with NLCD's level-II codes, brought to the image's grid by nearest neighbour."""
    import rasterio
    from rasterio.warp import Resampling, reproject

    bands = []
    for n in (2, 3, 4, 5):
        with rasterio.open(folder / f"zion/landsat_b{n}.tif") as file:
            bands.append(file.read(1).astype(np.float32))
            crs, transform = file.crs, file.transform
    image = np.stack(bands)
    with rasterio.open(folder / "zion/nlcd2011.tif") as file:
        codes = np.zeros(image.shape[1:], np.uint8)
        source = {"src_transform": file.transform, "src_crs": "EPSG:26912", "src_nodata": 0}  # its own tag is wrong
        target = {"dst_transform": transform, "dst_crs": crs, "dst_nodata": 0}
        reproject(file.read(1), codes, resampling=Resampling.nearest, **source, **target)
    return [Patch(image, np.where((codes > 0) & (codes < 250) & (image.min(0) > 0), codes, IGNORE).astype(np.uint8))]


def naip(folder: Path) -> list[Patch]:
    """Eight NAIP patches at 1 m with four classes; the weak labels are NLCD's."""
    high, low, patches = MERGES["chesapeake-hr"], MERGES["nlcd-dfc2021"], []
    for path in sorted((folder / "chesapeake/train").glob("*.npz")):
        with np.load(path) as file:
            layers = file["arr_0"][0]
        patches.append(Patch(layers[:4], high.apply(layers[8].astype(np.uint8)), low.apply(layers[9].astype(np.uint8))))
    return patches


def sentinel2(folder: Path, tile: str) -> list[Patch]:
    """One TerraMesh tile: ten bands of 10 and 20 m, and Esri's codes."""
    import rasterio

    with rasterio.open(folder / f"terramesh/S2L2A/{TILES[tile]}.tif") as file:
        image = file.read([2, 3, 4, 5, 6, 7, 8, 9, 11, 12]).astype(np.float32)
    with rasterio.open(folder / f"terramesh/LULC/{TILES[tile]}.tif") as file:
        codes = file.read(1)
    return [Patch(image, np.where(codes == 0, IGNORE, codes).astype(np.uint8))]


def series(folder: Path) -> list[Patch]:
    """Five dates of 13 bands in Slovenia, date by date, and the codes of land use."""
    image = np.load(folder / "slovenia/REFERENCE_SCENES.npy").transpose(0, 3, 1, 2)
    codes = np.load(folder / "slovenia/LULC.npy")[..., 0]
    image = np.ascontiguousarray(image.reshape(-1, *codes.shape), np.float32)
    return [Patch(image, np.where(codes == 0, IGNORE, codes).astype(np.uint8))]


def hyperspectral(folder: Path) -> list[Patch]:
    """EnMAP tiles of 32×32 pixels with six classes, parted as the files that come with them say."""
    import rasterio

    patches = []
    for name in ("train", "validation", "test"):
        for line in (folder / f"enmap/{name}_files.csv").read_text().splitlines()[1:]:
            image, label = (folder / "enmap" / part.strip().replace("\\", "/") for part in line.split(","))
            with rasterio.open(image) as file:
                values = np.delete(file.read(), range(129, 135), axis=0)  # bands without data
            with rasterio.open(label) as file:
                codes = file.read(1)
            patches.append(Patch(values, np.where(codes == 0, IGNORE, codes).astype(np.uint8), test=name == "test"))
    return patches


CASES = {"landsat": landsat, "naip": naip, "series": series, "hyperspectral": hyperspectral}


def case(name: str, folder: str | Path) -> list[Patch]:
    """The patches of a case by name; FileNotFoundError if the folder lacks its files."""
    kind, _, tile = name.partition(" ")
    return sentinel2(Path(folder), tile) if kind == "sentinel2" else CASES[kind](Path(folder))
