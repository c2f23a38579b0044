#!/usr/bin/env python3
"""WHDLD: six classes of Wuhan on 4,940 RGB images of 256 × 256 pixels at 2 m, hierarchy 4/6.

INPUT: the data set as published (Shao, Yang and Zhou, 2018; for research; cite it), a folder or its archive:

  Images/NAME.jpg      256 × 256, red, green, blue
  ImagesPNG/NAME.png   codes 1 building, 2 road, 3 pavement, 4 vegetation, 5 bare soil, 6 water

in these folders or all in one.

OUTPUT: img_dir/SPLIT/NAME.tif and ann_dir/SPLIT/NAME_label.tif, which hierlab reads; split.csv; checksums and a
manifest. The pixels are those of the files; nothing says where they lie on the Earth.

What HieraRS leaves open: it splits 2:1, into 3,294 and 1,646, and does not print the lists. Neighbours were cut from
one large image, so that a random split lets training see what it is tested on. Where the images lie is not published,
but they are numbered: by default runs of successive numbers are held out whole. --split random, or a file, does
otherwise.
"""

import argparse
import csv
import hashlib
import re
import sys
import warnings
from pathlib import Path

import numpy as np
import rasterio
from PIL import Image
from rasterio.errors import NotGeoreferencedWarning

from hierlab.data.archives import is_archive, unpack
from hierlab.data.manifest import Ledger, checksum
from hierlab.data.mosaic import GTIFF
from hierlab.data.pairs import IMAGES, LABELS
from hierlab.data.progress import run, track
from hierlab.tree import ClassTree

COUNT, SIDE = 4_940, 256  # images, and pixels along their sides
RUNS = 40  # into so many runs of successive numbers the images are divided


def natural(name: str) -> list:
    """A key that sorts names by the numbers in them."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)]


def find_pairs(folder: Path, partial: bool) -> dict[str, tuple[Path, Path]]:
    """Name -> image and label, by number; ValueError with a list of what is missing or there twice."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    sides: dict[str, dict[str, list[Path]]] = {}
    for kind, ends in (("image", (".jpg", ".jpeg")), ("label", (".png",))):
        sides[kind] = {}
        for path in files:
            if path.suffix.lower() in ends:
                sides[kind].setdefault(path.stem, []).append(path)
    names = sorted({*sides["image"], *sides["label"]}, key=natural)
    problems = []
    for name in names:
        for kind, found in sides.items():
            paths = found.get(name, [])
            if len(paths) != 1:
                there = " and ".join(str(path.relative_to(folder)) for path in paths)
                problems.append(f"{name}: " + (f"two {kind}s, {there}" if paths else f"no {kind}"))
    twice = [problem for problem in problems if ": two " in problem]
    whole = [name for name in names if all(len(found.get(name, [])) == 1 for found in sides.values())]
    if len(whole) != COUNT and not twice:
        problems.append(f"{len(whole)} pairs instead of {COUNT:,}")
    if not whole or twice or (problems and not partial):
        shown = problems[:40] + ([f"… {len(problems) - 40} more"] if len(problems) > 40 else [])
        raise ValueError(
            f"{folder} is not the whole of WHDLD:\n  " + "\n  ".join(shown) + "\nFetch it again, or go on with what is "
            "there with --partial"
        )
    return {name: (sides["image"][name][0], sides["label"][name][0]) for name in whole}


def read(path: Path, bands: int) -> np.ndarray:
    """(C, 256, 256) uint8 of a file; ValueError where it is damaged or of another kind.

    Pillow decodes, as nearly everywhere where this set is used: decoders fill in JPEG's coarser colours differently.
    """
    try:
        with Image.open(path) as file:
            kind = f"{len(file.getbands())} bands of {file.width} × {file.height} pixels ({file.mode})"
            if len(file.getbands()) != bands or file.size != (SIDE, SIDE) or file.mode not in ("RGB", "L", "P"):
                raise ValueError(f"{path} has {kind}, expected {bands} of {SIDE} × {SIDE}")
            values = np.asarray(file)
    except (OSError, SyntaxError) as error:  # which of them depends on where the file is damaged
        raise ValueError(f"{path} cannot be read ({error}): fetch it again") from error
    return values.transpose(2, 0, 1) if bands > 1 else values[None]


def check(pairs: dict[str, tuple[Path, Path]], tree: ClassTree) -> np.ndarray:
    """Pixels of each code (256,); ValueError with the files that cannot be read or hold unknown codes."""
    counts, problems = np.zeros(256, np.int64), []
    for image, label in track(list(pairs.values()), "check", "pairs"):
        try:
            read(image, 3)
            codes = read(label, 1)
        except ValueError as error:
            problems.append(str(error))
            continue
        counts += np.bincount(codes.ravel(), minlength=256)
        if unknown := tree.unknown_codes(codes):
            problems.append(f"{label} holds {', '.join(f'code {c}: {n} px' for c, n in sorted(unknown.items()))}")
    if problems:
        raise ValueError(
            f"{len(problems)} files of WHDLD are not as published (codes 1 to 6):\n  " + "\n  ".join(problems[:40])
        )
    return counts


def split_of(names: list[str], rule: str) -> dict[str, str]:
    """Name -> train or val. ``rule``: runs, random, or a CSV with the columns name and split.

    A third (rounded down) validates. "random" takes the names whose SHA-256 comes first; "runs" divides the names, by
    number, into runs and takes whole runs in the order of the SHA-256 of their first names, and of the last as many as
    are still wanted.
    """
    if rule not in ("runs", "random"):
        with open(rule, newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        given = {row.get("name", ""): row.get("split") for row in rows}
        lost = [name for name in names if given.get(name) not in ("train", "val")]
        if lost:
            raise ValueError(f"{rule} says train or val in its column 'split' not for {', '.join(lost[:10])}")
        return {name: given[name] for name in names}

    def hashed(name: str) -> str:
        return hashlib.sha256(name.encode()).hexdigest()

    order = sorted(names, key=hashed)
    if rule == "runs":
        runs = [part.tolist() for part in np.array_split(sorted(names, key=natural), RUNS) if len(part)]
        order = [name for part in sorted(runs, key=lambda part: hashed(part[0])) for name in part]
    held_out = set(order[: len(names) // 3])
    return {name: "val" if name in held_out else "train" for name in names}


def write(path: Path, values: np.ndarray, names: tuple[str, ...]) -> None:
    colour = {"photometric": "RGB" if len(values) == 3 else "MINISBLACK", "tiled": False}
    profile = GTIFF | {"blockxsize": SIDE, "blockysize": SIDE} | colour
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        with rasterio.open(
            path, "w", driver="GTiff", count=len(values), dtype="uint8", height=SIDE, width=SIDE, **profile
        ) as file:
            file.write(values)
            file.descriptions = names


def prepare(arguments: argparse.Namespace) -> None:
    source, archives = arguments.input, {}
    if source.is_file():
        if not is_archive(source):
            raise ValueError(f"{source} is no archive that is unpacked here: unpack it and give its folder")
        archives = {source.name: checksum(source)}
        source = arguments.out.with_name(arguments.out.name + "-unpacked")
        for archive in track([arguments.input], "unpack", "archives"):
            unpack(archive, source)
    elif not source.is_dir():
        raise FileNotFoundError(f"{source}: no such folder or archive")
    pairs = find_pairs(source, arguments.partial)
    counts = check(pairs, tree := ClassTree.load("whdld"))
    split = split_of(list(pairs), arguments.split)
    listed = "".join(f"{name},{part}\n" for name, part in split.items())
    ledger = Ledger(arguments.out, {"split": hashlib.sha256(listed.encode()).hexdigest(), "archives": archives})
    files = []
    for name, (image, label) in track(list(pairs.items()), "write", "pairs"):
        for folder, end, path, names in (
            (IMAGES, "", image, ("red", "green", "blue")),
            (LABELS, "_label", label, ("class",)),
        ):
            files.append(f"{folder}/{split[name]}/{name}{end}.tif")
            ledger.write(files[-1], lambda out, path=path, names=names: write(out, read(path, len(names)), names))
    ledger.write("split.csv", lambda path: path.write_text("name,split\n" + listed, "utf-8"))
    shares = {tree.label_names[tree.codes[code]]: int(counts[code]) for code in np.flatnonzero(counts).tolist()}
    parts = {part: sum(p == part for p in split.values()) for part in ("train", "val")}
    sums = "".join(f"{checksum(path)}  {path.name}\n" for pair in pairs.values() for path in pair)
    inputs = hashlib.sha256(sums.encode()).hexdigest()  # of their list, as sha256sum writes it
    ledger.finish([*files, "split.csv"], pairs=parts, pixels=shares, inputs=inputs)
    print(f"train {parts['train']:,}, val {parts['val']:,} (the paper: 3,294 and 1,646)")
    for name, number in shares.items():
        print(f"{number / counts.sum():7.2%}  {name}")


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="whdld.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("input", type=Path, help="folder of WHDLD, or its archive (zip, tar)")
    made.add_argument("out", type=Path, help="folder to make; an interrupted preparation goes on")
    made.add_argument("--split", default="runs", help="runs, random, or a CSV with the columns name and split")
    made.add_argument("--partial", action="store_true", help="go on where images are missing")
    return made


if __name__ == "__main__":
    sys.exit(run(prepare, parser()))
