#!/usr/bin/env python3
"""MM-5B from Five-Billion-Pixels: land use at 4, 10 and 2 m, hierarchy 4/9/18.

INPUT: Five-Billion-Pixels as published (https://x-ytong.github.io/project/Five-Billion-Pixels.html, for research; cite
Tong, Xia and Zhu, 2023), its folders or archives of them:

  Image_16bit_BGRNir/SCENE.tiff        GaoFen-2, level 1A: blue, green, red, near infrared
  Annotation__index/SCENE_24label.png  codes 1-24, 0 unlabelled
  Coordinate_files/SCENE.rpb           rational polynomial coefficients (RPC tags in the image will do)

and elevations around the scenes (the paper: Copernicus, 30 m), imagery of about 4 m to register to (the paper: Google
Earth), and a STAC catalogue for Sentinel-2 and for colour images of 1 m. Google Earth's images are in no catalogue:
other colour images make another data set, whose scores are not the paper's.

OUTPUT: scenes/SOURCE/SCENE.tif, SCENE_18label.tif and SCENE.json (grid, inputs, residuals) on grids that share their
borders; SOURCE/img_dir/SPLIT/*.tif and SOURCE/ann_dir/SPLIT/*_18label.tif, which hierlab reads; checksums and a
manifest beside each; scenes.csv. Labels: 1-18, 0 unlabelled.

What the paper leaves open: which scenes validate (see --scenes), how 4 m labels come to 10 m (--label-rule), which
squares become patches (here: whole ones that hold a label), and whether Sentinel-2's offset of -1000 was taken out
(here: yes). Rectifying takes some minutes a scene and core.
"""

import argparse
import csv
import hashlib
import os
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from affine import Affine
from rasterio.crs import CRS
from rasterio.enums import Resampling
from rasterio.features import rasterize
from rasterio.transform import from_origin
from rasterio.warp import transform as transform_points

from hierlab.data import coregister, imagery, ortho, stac
from hierlab.data.archives import is_archive, unpack
from hierlab.data.grid import Grid, compose, extent
from hierlab.data.manifest import Ledger, checksum
from hierlab.data.mosaic import overlaps, rasters_in, read_grey, valid_share, write_mosaic
from hierlab.data.patches import RULES, write_codes, write_patches
from hierlab.data.progress import run, track
from hierlab.data.rasters import check_ends, open_raster
from hierlab.tree import IGNORE, ClassTree

SOURCES = ("gaofen2", "sentinel2", "rgb")
SIZES = {"gaofen2": 640, "sentinel2": 512, "rgb": 896}
PUBLISHED = {  # patches: train, val
    "gaofen2": {"train": 15_091, "val": 4_110},
    "sentinel2": {"train": 2_370, "val": 632},
    "rgb": {"train": 28_679, "val": 7_635},
}
BANDS = {
    "gaofen2": ("blue", "green", "red", "near infrared"),
    "sentinel2": tuple(stac.SENTINEL2),
    "rgb": tuple(stac.RGB),
}
SENTINEL2 = (10, stac.SENTINEL2, 10_000, "uint16")  # metres, bands, what reflectance is multiplied by, type
COLOUR = (stac.RGB, 1, "uint8")
SIDE, SNAP = 4, 20  # metres: a pixel of GaoFen-2; the borders of all grids lie on multiples of 20 m, as Sentinel-2's do
VALIDATION = 29 / 136  # share of the scenes
LEAST_COVER = 0.95  # of a scene that imagery must cover
DOUBTFUL = {"median_px": 1.5, "p90_px": 3.0}  # residuals after registration above which a scene wants a look
LEAST_WINDOWS = 8  # matched windows below which it does


@dataclass(frozen=True)
class Input:
    """The publisher's files of a scene."""

    image: Path
    label: Path
    rpb: Path | None


# -- scenes and their files -------------------------------------------------------------------------------------------


def read_scenes(path: Path) -> list[dict[str, str]]:
    """The rows of the scene list; ValueError where it lacks a column, repeats a scene or names an unknown split."""
    with open(path, newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    if not rows or "scene" not in rows[0]:
        raise ValueError(f"{path}: a scene list is a CSV with a column 'scene' (and sentinel2, test, split)")
    names = [row["scene"] for row in rows]
    if len(set(names)) < len(names):
        raise ValueError(f"{path} names scenes twice: {', '.join(sorted({n for n in names if names.count(n) > 1}))}")
    wrong = [row["scene"] for row in rows if row.get("split") not in (None, "", "train", "val")]
    if wrong or any(row.get("split") for row in rows) != all(row.get("split") for row in rows):
        raise ValueError(f"{path}: the column 'split' says train or val for every scene, or is left out")
    return rows


def split_of(rows: list[dict[str, str]], share: float = VALIDATION) -> dict[str, str]:
    """Scene -> train or val: as the list says; else the validation share is taken from the publisher's test scenes,
    then from the others, in the order of the SHA-256 of their names."""
    if rows and rows[0].get("split"):
        return {row["scene"]: row["split"] for row in rows}
    order = sorted(rows, key=lambda r: (r.get("test") != "1", hashlib.sha256(r["scene"].encode()).hexdigest()))
    held = {row["scene"] for row in order[: round(share * len(rows)) or min(1, len(rows) - 1)]}
    return {row["scene"]: "val" if row["scene"] in held else "train" for row in rows}


def find_inputs(folder: Path, scenes: list[str], unpacked: Path, partial: bool) -> dict[str, Input]:
    """The files of every scene; ValueError with a list of what is missing or broken."""
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder")
    roots = [folder]
    for archive in track([p for p in sorted(folder.iterdir()) if is_archive(p)], "unpack", "archives"):
        unpack(archive, unpacked / archive.name.split(".")[0])
        roots = [folder, unpacked]
    files = [path for root in roots for path in root.rglob("*") if path.is_file()]
    images = {p.stem: p for p in files if p.suffix.lower() in (".tif", ".tiff") and "16bit" in p.parent.name.lower()}
    labels = {p.stem: p for p in files if p.suffix.lower() == ".png" and p.stem.endswith("_24label")}
    models = {p.stem: p for p in files if p.suffix.lower() == ".rpb"}
    found, problems = {}, []
    for scene in track(scenes, "look at the input", "scenes"):
        lacks = [
            kind
            for kind, path in (
                ("image (Image_16bit_BGRNir)", images.get(scene)),
                ("label (Annotation__index)", labels.get(f"{scene}_24label")),
            )
            if path is None
        ]
        if not lacks:
            given = Input(images[scene], labels[f"{scene}_24label"], models.get(scene))
            lacks = broken(given)
            found[scene] = given
        problems += [f"{scene}: {what}" for what in lacks]
        if lacks:
            found.pop(scene, None)
    if problems and not (partial and found):
        missing = len(scenes) - len(found)
        raise ValueError(
            f"{missing} of {len(scenes)} scenes are incomplete in {folder}:\n  "
            + "\n  ".join(problems)
            + "\nFetch what "
            "is missing, name fewer scenes with --scenes, or go on without them with --partial"
        )
    return found


def broken(given: Input) -> list[str]:
    """What is wrong with a scene's files, in words."""
    try:
        ortho.rpc_of(given.image, given.rpb)
        with open_raster(str(given.image)) as image, open_raster(str(given.label)) as label:
            check_ends(str(given.image), image)
            check_ends(str(given.label), label)
            if image.count != 4 or image.dtypes[0] != "uint16":
                return [f"the image has {image.count} bands of {image.dtypes[0]}, expected 4 of uint16"]
            if image.shape != label.shape:
                return [f"the image has {image.shape} pixels, the label {label.shape}"]
    except (OSError, ValueError) as error:
        return [str(error)]
    return []


# -- GaoFen-2: rectified and registered -------------------------------------------------------------------------------


def recode_table() -> np.ndarray:
    """(256,) uint8: the codes of Five-Billion-Pixels (24) in those of MM-5B (18), by the two trees; 255 for no code."""
    old, new = ClassTree.load("five-billion-pixels"), ClassTree.load("mm5b")
    codes = {new.label_names[label]: code for code, label in new.codes.items() if label != IGNORE}
    table = np.full(256, 255, np.uint8)
    for code, label in old.codes.items():
        table[code] = new.ignore_codes[0] if label == IGNORE else codes[old.label_names[label]]
    return table


def translate(codes: np.ndarray, table: np.ndarray, where: Path) -> np.ndarray:
    made = table[codes]
    if (made == 255).any():
        raise ValueError(f"{where} holds codes that are none of 0 to 24: {np.unique(codes[made == 255]).tolist()}")
    return made


def align(given: Input, here: tuple, reference: list[Path], window: int, threads: int):
    """(correction in the map or None, the windows it was fitted on or None, report) of a scene against a reference."""
    rpc, heights, grid = here
    theirs, there = read_grey(grid, reference)
    ours = np.zeros((grid.height, grid.width), np.float32)
    for place, part in ortho.orthorectify(given.image, rpc, heights, grid, [1, 2, 3], threads=threads):
        ours[place.toslices()] = part.mean(0)
    before = coregister.measure(theirs, ours, there & (ours > 0), window)
    report = {"reference": [path.name for path in reference], "before": coregister.residuals(before, SIDE)}
    white = coregister.chessboard(before, window)
    if min(white.sum(), (~white).sum()) < LEAST_WINDOWS:
        white[:] = True  # too few to set some aside
    try:
        matrix, agree = coregister.fit(before.where(white))
    except ValueError as error:
        return None, None, report | {"doubts": [f"not registered: {error}"]}
    move = coregister.in_map(matrix, grid.transform)
    return move, white, report | {"correction": list(move)[:6], "agreeing_windows": int(agree.sum())}


def judge(image: Path, grid: Grid, reference: list[Path], window: int, fitted: np.ndarray) -> dict:
    """Residuals of the rectified image itself, those on the windows that had no part in the fit, and doubts."""
    (theirs, there), (ours, here) = read_grey(grid, reference), read_grey(grid, [image])
    after = coregister.measure(theirs, ours, there & here, window)
    said = coregister.residuals(after, SIDE)
    report = {"after": said}
    if not fitted.all():
        report["after_check"] = coregister.residuals(after.where(~coregister.chessboard(after, window)), SIDE)
    doubts = [f"{name} is {said[name]}" for name, most in DOUBTFUL.items() if said[name] is None or said[name] > most]
    doubts += [f"only {len(after)} windows matched"] if len(after) < LEAST_WINDOWS else []
    return report | {"doubts": doubts}


def rectify(scene: str, given: Input, ledger: Ledger, arguments: argparse.Namespace, table: np.ndarray) -> None:
    """Write SCENE.tif, SCENE_18label.tif and SCENE.json of GaoFen-2."""
    names = f"{scene}.tif", f"{scene}_18label.tif", f"{scene}.json"
    if all(ledger.has(name) for name in names):
        return
    rpc, threads = ortho.rpc_of(given.image, given.rpb), {"threads": arguments.threads}
    with open_raster(str(given.image)) as file:
        size = file.shape
    spread = abs(float(rpc.height_scale))
    heights = ledger.folder / f".{scene}.part.heights.tif"
    try:
        around = ortho.reach(rpc, *size, rpc.height_off - spread, rpc.height_off + spread)
        ortho.write_heights(heights, arguments.dem, around, arguments.geoid)
        outline = ortho.footprint(rpc, *size, heights)
        crs = ortho.utm(*outline)
        first = ortho.grid_over(*outline, crs, SIDE, SNAP)
        near = [path for path in arguments.reference if overlaps(path, first)]
        move, fitted, report = None, None, {"doubts": ["not registered: no reference imagery here"]}
        if near:
            move, fitted, report = align(given, (rpc, heights, first), near, arguments.window, arguments.threads)
        grid = ortho.grid_over(*outline, crs, SIDE, SNAP, move)
        there = {"grid": grid, "move": move, **threads}
        image = {"names": BANDS["gaofen2"], **there}
        label = {"resampling": Resampling.nearest, "recode": lambda v: translate(v, table, given.label), **there}
        ledger.write(names[0], lambda p: ortho.write_orthorectified(p, given.image, rpc, heights, **image))
        ledger.write(names[1], lambda p: ortho.write_orthorectified(p, given.label, rpc, heights, **label))
    finally:
        heights.unlink(missing_ok=True)
    if fitted is not None:
        report |= judge(ledger.folder / names[0], first, near, arguments.window, fitted)
    files = {path.name: checksum(path) for path in (given.image, given.label, given.rpb) if path}
    told = {"scene": scene, "inputs": files, "rpc": "rpb file" if given.rpb else "tags", "registration": report}
    told |= {"crs": crs.to_string(), "transform": list(grid.transform)[:6], "height": grid.height, "width": grid.width}
    ledger.write_json(names[2], told | {"outline": [list(map(float, v)) for v in outline]})


def grid_of(report: dict, side: float) -> Grid:
    """The grid of a scene on pixels of another side."""
    _, _, left, _, _, top = report["transform"]
    size = (round(report[name] * SIDE / side) for name in ("height", "width"))
    return Grid(CRS.from_string(report["crs"]), from_origin(left, top, side, side), *size)


# -- Sentinel-2 and colour images over the same ground ----------------------------------------------------------------


def plan(source: str, reports: dict[str, dict], rows: dict[str, dict], arguments) -> dict[str, list[stac.Item]]:
    """The items that cover each scene; ValueError with a list of the scenes that none cover."""
    catalog, collection, general = arguments.imagery[source]
    if not catalog or not collection:
        raise ValueError(f"{source} needs --catalog and --{source}-collection (or leave it out with --sources)")
    chosen, missing = {}, []
    for scene in track(list(reports), f"search {source}", "scenes"):
        when = (rows[scene].get("sentinel2") if source == "sentinel2" else None) or general
        if not when:
            raise ValueError(f"{scene}: no dates of {source} images: give --{source}-dates")
        items, covered = imagery.choose(catalog, collection, grid_of(reports[scene], 10), when, arguments.max_cloud)
        if covered < LEAST_COVER:
            missing.append(f"{scene}: images of {when} cover {covered:.0%}")
        else:
            chosen[scene] = items
    if missing and not (arguments.partial and chosen):
        raise ValueError(
            f"{len(missing)} of {len(reports)} scenes have no {source} image in {collection} (cloud cover up to "
            f"{arguments.max_cloud:g} %):\n  "
            + "\n  ".join(missing)
            + "\nGive other dates, allow more cloud, or go on "
            "without them with --partial"
        )
    return chosen


def collect(scene: str, source: str, items: list[stac.Item], report: dict, label: Path, ledger: Ledger, arguments):
    """Write SCENE.tif, SCENE_18label.tif and SCENE.json of one source, on the scene's ground."""
    names = f"{scene}.tif", f"{scene}_18label.tif", f"{scene}.json"
    if all(ledger.has(name) for name in names):
        return
    side, wanted, factor, dtype = SENTINEL2 if source == "sentinel2" else (arguments.rgb_metres, *COLOUR)
    layers, told = imagery.layers(items, wanted, arguments.downloads, factor)
    kind = {"dtype": dtype, "names": BANDS[source], "mean": 1 if source == "sentinel2" else side}
    ledger.write(names[0], lambda path: write_mosaic(path, grid_of(report, side), layers, **kind))
    image = ledger.folder / names[0]
    ledger.write(names[1], lambda path: write_codes(path, label, side, arguments.label_rule, image))
    ledger.write_json(names[2], {"scene": scene, "items": told, "valid": round(valid_share(image), 4)})


# -- what came of it --------------------------------------------------------------------------------------------------


def seen_on(report: dict, grid: Grid, step: int) -> np.ndarray:
    """bool: which squares of ``step`` pixels of a grid a scene's outline holds."""
    x, y = transform_points(ortho.WGS84, grid.crs, *report["outline"])
    ring = {"type": "Polygon", "coordinates": [list(zip(x, y, strict=True))]}
    shape = grid.height // step + 1, grid.width // step + 1
    return rasterize([ring], shape, transform=compose(grid.transform, Affine.scale(step))) > 0


def shared_ground(reports: dict[str, dict], split: dict[str, str]) -> list[str]:
    """Pairs of a validation and a training scene that show the same ground, and how much of the former, in words."""
    found, train = [], [scene for scene in reports if split[scene] == "train"]
    boxes = {scene: np.sort(report["outline"], axis=1)[:, [0, -1]] for scene, report in reports.items()}
    for val in (scene for scene in reports if split[scene] == "val"):
        grid = grid_of(reports[val], SIDE)
        own = seen_on(reports[val], grid, 16)
        for scene in train:
            if (boxes[val][:, 0] < boxes[scene][:, 1]).all() and (boxes[scene][:, 0] < boxes[val][:, 1]).all():
                share = (own & seen_on(reports[scene], grid, 16)).sum() / own.sum()
                found += [f"{val} and {scene}: {share:.1%}"] if share > 0.001 else []
    return found


def write_scenes_csv(path: Path, reports: dict[str, dict], split: dict[str, str]) -> None:
    """One row a scene: its split, grid and residuals."""
    columns = ("scene", "split", "crs", "left", "bottom", "right", "top", "before_px", "after_px", "after_m", "doubts")
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)
        for scene, report in reports.items():
            grid, told = grid_of(report, SIDE), report["registration"]
            before, after = told.get("before", {}), told.get("after", {})
            numbers = before.get("median_px"), after.get("median_px"), after.get("median_m")
            place = [f"{v:.0f}" for v in extent(grid.transform, grid.height, grid.width)]
            row = [scene, split[scene], report["crs"], *place, *numbers, "; ".join(told["doubts"])]
            writer.writerow(["" if v is None else v for v in row])


def prepare(arguments: argparse.Namespace) -> None:
    out = arguments.out
    rows = {row["scene"]: row for row in read_scenes(arguments.scenes)}
    arguments.dem = rasters_in(arguments.dem)
    arguments.reference = rasters_in(arguments.reference) if arguments.reference else []
    arguments.downloads = arguments.downloads or out / "downloads"
    arguments.imagery = {  # source -> catalogue, collection, dates
        "sentinel2": (arguments.catalog, arguments.sentinel2_collection, arguments.sentinel2_dates),
        "rgb": (arguments.rgb_catalog or arguments.catalog, arguments.rgb_collection, arguments.rgb_dates),
    }
    inputs = find_inputs(arguments.input, list(rows), out / "unpacked", arguments.partial)
    split = split_of(list(rows.values()))

    base = {"geoid": arguments.geoid and arguments.geoid.name, "dem": [p.name for p in arguments.dem]}
    base |= {"reference": [p.name for p in arguments.reference], "window": arguments.window}
    ledgers = {"gaofen2": Ledger(out / "scenes" / "gaofen2", base)}
    table = recode_table()
    for scene in track(list(inputs), "rectify", "scenes"):
        rectify(scene, inputs[scene], ledgers["gaofen2"], arguments, table)
    others = [*arguments.dem, *arguments.reference, *([arguments.geoid] if arguments.geoid else [])]
    ledgers["gaofen2"].finish(inputs={path.name: checksum(path) for path in track(others, "checksums")})
    reports = {scene: ledgers["gaofen2"].read_json(f"{scene}.json") for scene in inputs}

    for source in (s for s in arguments.sources if s != "gaofen2"):
        items = plan(source, reports, rows, arguments)
        settings = dict(zip(("collection", "dates"), arguments.imagery[source][1:], strict=True))
        settings |= {"cloud": arguments.max_cloud, "label_rule": arguments.label_rule, "gaofen2": base}
        settings |= {"rgb_metres": arguments.rgb_metres} if source == "rgb" else {}
        ledgers[source] = Ledger(out / "scenes" / source, settings)
        for scene in track(list(items), f"collect {source}", "scenes"):
            label = ledgers["gaofen2"].folder / f"{scene}_18label.tif"
            collect(scene, source, items[scene], reports[scene], label, ledgers[source], arguments)

    sizes = dict(zip(SOURCES, arguments.sizes, strict=True))
    print(f"{'patches':12} {'size':>5} {'train (paper)':>17} {'val (paper)':>17}")
    for source in arguments.sources:
        scenes = [s for s in inputs if ledgers[source].has(f"{s}.json")]
        for scene in scenes if source != "gaofen2" else ():
            valid = ledgers[source].read_json(f"{scene}.json")["valid"]
            if valid < LEAST_COVER:  # the catalogue promised more than the files hold
                reports[scene]["registration"]["doubts"].append(f"{source} shows {valid:.0%} of it")
        if source != "gaofen2":
            ledgers[source].finish()
        settings = {"size": sizes[source], "least_labelled": arguments.least_labelled}
        settings |= {"split": {s: split[s] for s in scenes}, "made_from": ledgers[source].settings}
        target, names = Ledger(out / source, settings), []
        for scene in track(scenes, f"cut {source}", "scenes"):
            files = [ledgers[source].folder / f"{scene}{end}.tif" for end in ("", "_18label")]
            names += write_patches(
                target, split[scene], scene, *files, sizes[source], "18label", arguments.least_labelled
            )
        counts = {part: sum(name.startswith(f"img_dir/{part}/") for name in names) for part in ("train", "val")}
        target.finish(names, patches=counts)
        numbers = [f"{counts[part]:8,} ({PUBLISHED[source][part]:6,})" for part in ("train", "val")]
        print(f"{source:12} {sizes[source]:5} {' '.join(numbers)}")

    write_scenes_csv(out / "scenes.csv", reports, split)
    doubtful = [f"{s}: {'; '.join(d)}" for s, r in reports.items() if (d := r["registration"]["doubts"])]
    for title, lines in (
        ("Look at these scenes before you train on them", doubtful),
        ("Ground that is in train and val", shared_ground(reports, split)),
    ):
        print(f"{title}: {len(lines) or 'none'}", *(f"  {line}" for line in lines), sep="\n")


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="mm5b.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = made.add_argument
    add("input", type=Path, help="folder of Five-Billion-Pixels, its folders or archives")
    add("out", type=Path, help="folder to make; an interrupted preparation goes on")
    add("--scenes", type=Path, default=Path(__file__).with_name("mm5b-scenes.csv"),
        help="CSV with the columns scene, and optionally sentinel2 (dates), test (1: held out first) and split (train "
        "or val). The default lists the 136 scenes of MM-5B with the days of its Sentinel-2 images, and as test the 30 "
        "test scenes of Five-Billion-Pixels. The paper does not say which 29 scenes validate: here 29 of these 30, in "
        "the order of the SHA-256 of their names")  # fmt: skip
    add("--dem", type=Path, nargs="+", required=True, help="elevation rasters around the scenes, files or folders")
    add("--geoid", type=Path, help="raster of the geoid's height (EGM2008) in degrees; without it elevations are taken "
        "as heights above the ellipsoid, which they are tens of metres off")  # fmt: skip
    add("--reference", type=Path, nargs="+", help="rasters to register to, files or folders, 4 m or finer is best; "
        "without them the RPC models alone place the scenes, tens of metres off")  # fmt: skip
    add("--window", type=int, default=coregister.WINDOW, help="pixels: side of the windows that are matched (256)")
    add("--sources", nargs="+", choices=SOURCES, default=list(SOURCES), help="what to make (all three)")
    add("--catalog", help="STAC catalogue: an address or a file, say https://earth-search.aws.element84.com/v1")
    add("--sentinel2-collection", default="sentinel-2-c1-l2a", help="collection of surface reflectance (%(default)s)")
    add("--sentinel2-dates", help="START/END for scenes whose dates the list does not give")
    add("--max-cloud", type=float, default=20, help="percent of cloud up to which an image is taken (%(default)s)")
    add("--rgb-catalog", help="STAC catalogue of the colour images, if another")
    add("--rgb-collection", help="collection of colour images of 1 m or finer")
    add("--rgb-dates", help="START/END of the colour images")
    add("--rgb-metres", type=int, choices=(1, 2), default=2, help="pixel side: 2 (the paper's: means of 1 m) or 1")
    add("--label-rule", choices=RULES, default="majority", help="how 4 m labels come to 10 m (%(default)s, by area)")
    add("--sizes", type=int, nargs=3, default=list(SIZES.values()), metavar=("GF2", "S2", "RGB"),
        help="pixels: sides of the patches (640 512 896)")  # fmt: skip
    add("--least-labelled", type=float, default=0.0, help="a patch is kept where more than this share is labelled (0)")
    add("--partial", action="store_true", help="go on without the scenes of which something is missing")
    add("--downloads", type=Path, help="folder for downloaded images (OUT/downloads); may be removed afterwards")
    add("--threads", type=int, default=os.cpu_count() or 1, help="threads that rectify (all)")
    return made


if __name__ == "__main__":
    sys.exit(run(prepare, parser()))
