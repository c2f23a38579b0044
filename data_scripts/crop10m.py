#!/usr/bin/env python3
"""Crop10m: rice, corn and soybean in Heilongjiang on Sentinel-2 at 10 m, hierarchy 2/2/4.

INPUT: the 10 m crop map of Northeast China of one year (You et al., 2021, doi 10.1038/s41597-021-00827-9, CC BY 4.0; on
figshare, article 13090442), as downloaded:

  CDL2017_clip.tif, CDL2018_clip1.tif or CDL2019_clip.tif   codes 0 rice, 1 maize, 2 soybean, 3 other, 15 no data

a STAC catalogue for Sentinel-2, and the study regions: GeoJSON polygons in degrees, each with the properties "name" and
"split" (train or val).

OUTPUT: scenes/REGION.tif, REGION_label.tif and REGION.json; patches/img_dir/SPLIT/*.tif and
patches/ann_dir/SPLIT/*_label.tif, which hierlab reads; checksums and a manifest beside each. Labels as in Crop10m: 0
other, 1 rice, 2 corn, 3 soybean.

What the paper leaves open: its Fig. 7 draws the regions and does not print their corners, so they have to be given; the
dates (its authors' page says July to October 2019, without clouds; here: for each place the clearest image of these
months); and which squares become patches (here: those that are whole, in the region and on the map).
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np
import rasterio
from affine import Affine
from rasterio.enums import Resampling
from rasterio.features import rasterize
from rasterio.warp import transform_geom

from hierlab.data import imagery, ortho, stac
from hierlab.data.grid import Grid, compose
from hierlab.data.manifest import Ledger, check, checksum
from hierlab.data.mosaic import GTIFF, Band, read_mosaic, valid_share, write_mosaic
from hierlab.data.patches import write_patches
from hierlab.data.progress import run, track
from hierlab.data.rasters import check_ends, open_raster
from hierlab.data.tiles import blocks

SIDE, SNAP = 10, 20  # metres: Sentinel-2's pixels, and of what the borders of the scenes are multiples
VOID, NO_DATA = 255, 15  # no label, here and in the crop map
CODES = np.array([1, 2, 3, 0], np.uint8)  # of the map's 0 rice, 1 maize, 2 soybean, 3 other
MAPS = {  # as published: the files' MD5
    2017: "d047fbe4a85341fa6248fd7e0badab6c",
    2018: "b3bb4894478d10786aa798fb11693ec1",
    2019: "0d062bbd42e483fdc8239d22dba7020f",
}
PUBLISHED = {"train": 678, "val": 296}
LEAST_COVER = 0.98  # of a region that imagery must cover


def read_regions(path: Path) -> dict[str, dict]:
    """Name -> GeoJSON feature; ValueError where one is no polygon or lacks a name or a split."""
    try:
        features = json.loads(path.read_text("utf-8"))["features"]
    except (ValueError, KeyError, TypeError):
        raise ValueError(f"{path} is no GeoJSON file of features") from None
    found: dict[str, dict] = {}
    for number, feature in enumerate(features, start=1):
        facts, shape = feature.get("properties") or {}, feature.get("geometry") or {}
        name = str(facts.get("name", ""))
        if shape.get("type") != "Polygon" or facts.get("split") not in ("train", "val") or not name.isidentifier():
            raise ValueError(
                f"{path}: feature {number} needs a geometry of type Polygon and the properties name (letters, digits "
                f"and _) and split (train or val); it has {shape.get('type')}, {facts}"
            )
        if name in found:
            raise ValueError(f"{path} has two regions called {name}")
        found[name] = feature
    missing = {"train", "val"} - {feature["properties"]["split"] for feature in found.values()}
    if missing:
        raise ValueError(f"{path} has no region for {' and '.join(sorted(missing))}")
    return found


def inside(grid: Grid, feature: dict, step: int = 1) -> np.ndarray:
    """bool: which squares of ``step`` pixels of a grid have their centre in a region."""
    shape = transform_geom(ortho.WGS84, grid.crs, feature["geometry"])
    size = -(-grid.height // step), -(-grid.width // step)
    return rasterize([shape], size, transform=compose(grid.transform, Affine.scale(step))) > 0


def grid_over(feature: dict) -> Grid:
    lon, lat = np.array(feature["geometry"]["coordinates"][0], float)[:, :2].T
    return ortho.grid_over(lon, lat, ortho.utm(lon, lat), SIDE, SNAP)


def check_apart(regions: dict[str, dict]) -> None:
    """ValueError where a training and a validation region share ground."""
    for name, feature in regions.items():
        if feature["properties"]["split"] == "val":
            grid = grid_over(feature)
            own = inside(grid, feature, 10)
            for other, there in regions.items():
                if there["properties"]["split"] == "train" and (own & inside(grid, there, 10)).any():
                    raise ValueError(f"the regions {other} (train) and {name} (val) share ground: draw them apart")


def check_map(path: Path, year: int, md5: str | None) -> None:
    """ValueError where the crop map is not the published file, or a part of it."""
    with open_raster(str(path)) as file:
        check_ends(str(path), file)
        if file.count != 1 or not file.crs or file.nodata not in (None, NO_DATA):
            raise ValueError(
                f"{path}: the crop map has one band with a CRS and nodata {NO_DATA}; is this another file?"
            )
    if md5 != "none":
        check(path, md5 or MAPS[year], "md5")


def write_label(out: Path, crops: Path, grid: Grid, feature: dict, image: Path) -> None:
    """The crop map on a grid, in Crop10m's codes, 255 outside the region and where map or image have no data."""
    profile = {"count": 1, "dtype": "uint8", "nodata": VOID, "crs": grid.crs, "transform": grid.transform}
    where = inside(grid, feature)
    with (
        open_raster(str(image)) as seen,
        rasterio.open(out, "w", driver="GTiff", height=grid.height, width=grid.width, **profile, **GTIFF) as file,
    ):
        for window in blocks(grid.height, grid.width, 2048):
            layers = [[Band(crops, nodata=NO_DATA)]]
            codes, valid = read_mosaic(grid, layers, window, Resampling.nearest)
            codes = codes[0].astype(np.int64)
            unknown = np.unique(codes[valid & ((codes < 0) | (codes >= len(CODES)))])
            if unknown.size:
                raise ValueError(f"{crops} holds codes that the crop map does not have: {unknown.tolist()}")
            valid &= where[window.toslices()] & (seen.dataset_mask(window=window) > 0)
            file.write(np.where(valid, CODES[np.where(valid, codes, 0)], VOID), 1, window=window)


def collect(name: str, feature: dict, items: list[stac.Item], crops: Path, scenes: Ledger, downloads: Path) -> None:
    """Write REGION.tif, REGION_label.tif and REGION.json."""
    files = f"{name}.tif", f"{name}_label.tif", f"{name}.json"
    if all(scenes.has(file) for file in files):
        return
    grid, image = grid_over(feature), scenes.folder / files[0]
    layers, told = imagery.layers(items, stac.SENTINEL2, downloads, 10_000)
    kind = {"dtype": "uint16", "names": tuple(stac.SENTINEL2)}
    scenes.write(files[0], lambda path: write_mosaic(path, grid, layers, **kind))
    scenes.write(files[1], lambda path: write_label(path, crops, grid, feature, image))
    scenes.write_json(files[2], {"region": name, "items": told, "valid": round(valid_share(image), 4)})


def prepare(arguments: argparse.Namespace) -> None:
    regions = read_regions(arguments.regions)
    check_apart(regions)
    check_map(arguments.map, arguments.year, arguments.md5)
    when = arguments.dates or f"{arguments.year}-07-01/{arguments.year}-10-31"
    chosen, missing = {}, []
    for name, feature in track(list(regions.items()), "search", "regions"):
        search = arguments.catalog, arguments.collection, grid_over(feature), when, arguments.max_cloud
        chosen[name], covered = imagery.choose(*search)
        missing += [f"{name}: images of {when} cover {covered:.0%}"] if covered < LEAST_COVER else []
    if missing:
        raise ValueError(
            f"{len(missing)} of {len(regions)} regions are not covered by {arguments.collection} (cloud cover up to "
            f"{arguments.max_cloud:g} %):\n  " + "\n  ".join(missing) + "\nGive other --dates or allow more --max-cloud"
        )

    shapes = {name: [f["properties"]["split"], f["geometry"]["coordinates"]] for name, f in regions.items()}
    settings = {"map": checksum(arguments.map), "dates": when, "collection": arguments.collection}
    settings |= {"cloud": arguments.max_cloud, "regions": shapes}
    scenes = Ledger(arguments.out / "scenes", settings)
    downloads = arguments.downloads or arguments.out / "downloads"
    for name, feature in track(list(regions.items()), "collect", "regions"):
        collect(name, feature, chosen[name], arguments.map, scenes, downloads)
    scenes.finish()

    patches, names = Ledger(arguments.out / "patches", settings | {"size": arguments.size}), []
    for name, feature in track(list(regions.items()), "cut", "regions"):
        scene = [scenes.folder / f"{name}{end}.tif" for end in ("", "_label")]
        part = feature["properties"]["split"]
        names += write_patches(patches, part, name, *scene, arguments.size, "label", 1 - 1e-9, VOID)
    counts = {part: sum(name.startswith(f"img_dir/{part}/") for name in names) for part in PUBLISHED}
    patches.finish(names, patches=counts)
    print(", ".join(f"{part} {number:,} (the paper: {PUBLISHED[part]})" for part, number in counts.items()))


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="crop10m.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = made.add_argument
    add("map", type=Path, help="the crop map, CDL2019_clip.tif")
    add("out", type=Path, help="folder to make; an interrupted preparation goes on")
    add("--regions", type=Path, required=True, help="GeoJSON of the training and validation regions")
    add("--year", type=int, choices=sorted(MAPS), default=2019, help="of the crop map (%(default)s)")
    add("--md5", help="what the map's MD5 must be, or none (default: that of the published file of the year)")
    add("--catalog", required=True, help="STAC catalogue: an address or a file")
    add("--collection", default="sentinel-2-c1-l2a", help="collection of surface reflectance (%(default)s)")
    add("--dates", help="START/END of the images (July to October of the year)")
    add("--max-cloud", type=float, default=5, help="percent of cloud up to which an image is taken (%(default)s)")
    add("--size", type=int, default=512, help="pixels: side of the patches (%(default)s)")
    add("--downloads", type=Path, help="folder for downloaded images (OUT/downloads); may be removed afterwards")
    return made


if __name__ == "__main__":
    sys.exit(run(prepare, parser()))
