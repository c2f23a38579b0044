import csv
import hashlib
import json
import shutil
import warnings
import zipfile

import numpy as np
import pytest
import rasterio
from affine import Affine
from fake_satellite import (
    LAT,
    LON,
    UTM,
    Satellite,
    texture,
    to_map,
    write_catalog,
    write_dem,
    write_item,
    write_rpb,
)  # fmt: skip
from rasterio.crs import CRS
from rasterio.transform import from_origin
from rasterio.warp import transform as transform_points

from hierlab.data.grid import apply, compose
from hierlab.data.pairs import PairFolder
from hierlab.tree import ClassTree

SCENES = {  # what the satellite's RPC model is wrong by, in metres; where its RPC is
    "GF2_PMS1__L1A0001064454-MSS1": (Satellite(320, tilt=16, error=(26.0, -18.0)), "rpb"),
    "GF2_PMS2__L1A0000564691-MSS2": (Satellite(320, tilt=-12, turn=189, error=(-14.0, 21.0)), "tags"),
}
SIZES = "64", "32", "96"
MIDDLE = [round(float(v) / 20) * 20 for v in to_map(LON, LAT)]


def codes24(x, y):
    """The ground truth: blocks of 90 m of the codes 0 to 24."""
    return ((np.asarray(x) // 90 * 7 + np.asarray(y) // 90 * 11) % 25).astype(np.uint8)


def reflectance(x, y, band):
    """10 000 times the reflectance in a band of Sentinel-2: a plane over the map."""
    return 4000 + 100 * band + (np.asarray(x) - MIDDLE[0]) + 0.75 * (np.asarray(y) - MIDDLE[1])


def colours(x, y):
    fine = (x // 1 * 37 + y // 1 * 59) ** 2 % 41  # from metre to metre
    return np.rint([80 + (x - MIDDLE[0]) / 20 + fine, 100 + (y - MIDDLE[1]) / 20 - fine, 140 + (x - MIDDLE[0]) / 40])


def lost(x, y):
    """A square that one band of Sentinel-2 does not show."""
    return (np.abs(x - MIDDLE[0] - 300) < 60) & (np.abs(y - MIDDLE[1]) < 60)


def centres(transform, height, width):
    return apply(transform, *np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5))


def write_map(path, paint, side, dtype, wide=1400, crs=UTM, **profile):
    """A raster of (C, H, W) painted by map coordinates, ``wide`` metres to each side of the middle."""
    transform = from_origin(MIDDLE[0] - wide, MIDDLE[1] + wide, side, side)
    n = 2 * wide // side
    values = np.rint(np.atleast_3d(paint(*centres(transform, n, n)).T).T).astype(dtype)
    profile = {"driver": "GTiff", "count": len(values), "dtype": dtype, "height": n, "width": n, "crs": crs} | profile
    path.parent.mkdir(parents=True, exist_ok=True)
    with rasterio.open(path, "w", transform=transform, **profile) as file:
        file.write(values)
    return path


def write_publisher(folder):
    """Five-Billion-Pixels, two scenes of it, in its folders, names and types."""
    warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
    folders = [
        folder / n for n in ("Image_16bit_BGRNir", "Image__8bit_NirRGB", "Annotation__index", "Coordinate_files")
    ]
    for made in folders:
        made.mkdir(parents=True)
    for scene, (satellite, model) in SCENES.items():
        image = satellite.picture(lambda x, y: np.stack([300 + 40 * texture(x, y) + 50 * n for n in range(4)]))
        label = satellite.picture(lambda x, y: codes24(x, y)[None])
        size = {"height": satellite.size, "width": satellite.size}
        with rasterio.open(folders[0] / f"{scene}.tiff", "w", driver="GTiff", count=4, dtype="uint16", **size) as file:
            file.write(np.rint(image).astype("uint16"))
            if model == "tags":
                file.rpcs = satellite.rpc
        with rasterio.open(folders[1] / f"{scene}.tif", "w", driver="GTiff", count=4, dtype="uint8", **size) as file:
            file.write((image / 8).astype("uint8"))
        with rasterio.open(
            folders[2] / f"{scene}_24label.png", "w", driver="PNG", count=1, dtype="uint8", **size
        ) as file:
            file.write(label)
        if model == "rpb":
            write_rpb(folders[3] / f"{scene}.rpb", satellite.rpc)
    return folder


def write_imagery(folder):
    """A static catalogue on disk: Sentinel-2 in two items that each cover a half, and colour images of 1 m."""

    def degrees(left, right):
        """Corners of what lies between two distances east of the middle."""
        corners = [
            (MIDDLE[0] + x, MIDDLE[1] + y) for x, y in ((left, -1400), (right, -1400), (right, 1400), (left, 1400))
        ]
        return list(zip(*transform_points(UTM, "EPSG:4326", *zip(*corners, strict=True)), strict=True))

    home = folder / "sentinel-2-l2a"
    keys = ("blue", "green", "red", "rededge1", "rededge2", "rededge3", "nir", "nir08", "swir16", "swir22")
    items = []
    for part in ("west", "east"):
        files = {}
        for band, key in enumerate(keys):

            def stored(x, y, band=band, part=part):
                there = x < MIDDLE[0] + 200 if part == "west" else x > MIDDLE[0] - 200
                if band == 6:
                    there &= ~lost(x, y)
                return np.where(there, reflectance(x, y, band) + 1000, 0)

            side = 20 if key not in ("blue", "green", "red", "nir") else 10
            name = write_map(home / f"{part}-{key}.tif", stored, side, "uint16", nodata=0).name
            digest = hashlib.sha256((home / name).read_bytes()).hexdigest()
            about = {"file:checksum": "1220" + digest, "raster:bands": [{"scale": 0.0001, "offset": -0.1}]}
            files[key] = (name, about)
        place = degrees(-1400, 200) if part == "west" else degrees(-200, 1400)
        for name, cloud in ((part, 3.0 if part == "west" else 8.0), (f"{part}-cloudy", 95)):
            items.append(write_item(home, name, files, "2015-09-13T03:06:36Z", place, **{"eo:cloud_cover": cloud}))
    write_map(folder / "photos" / "photo.tif", colours, 1, "uint8")
    three = [{"name": n, "common_name": n} for n in ("red", "green", "blue")]
    photo = {"visual": ("photo.tif", {"eo:bands": three})}
    item = write_item(
        folder / "photos", "photo", photo, "2016-05-01T00:00:00Z", degrees(-1400, 1400), collection="photos"
    )
    return write_catalog(folder, {"sentinel-2-l2a": items, "photos": [item]})


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """The publisher's files, elevations, reference imagery and catalogue."""
    folder = tmp_path_factory.mktemp("world")
    write_publisher(folder / "fbp")
    write_dem(folder / "dem.tif")
    write_map(folder / "reference.tif", lambda x, y: np.stack([120 + 30 * texture(x, y)] * 3), 4, "uint8")
    write_imagery(folder / "stac")
    (folder / "scenes.csv").write_text(
        "scene,sentinel2,test\n" + "".join(f"{s},2015-09-13,{int(n == 0)}\n" for n, s in enumerate(SCENES))
    )
    return folder


def arguments(world, out, *more, source="fbp"):
    return [
        world / source, out, "--scenes", world / "scenes.csv", "--dem", world / "dem.tif", "--reference",
        world / "reference.tif", "--window", 64, "--catalog", world / "stac" / "catalog.json", "--sentinel2-collection",
        "sentinel-2-l2a", "--rgb-collection", "photos", "--rgb-dates", "2016", "--sizes", *SIZES, "--threads", 1, *more,
    ]  # fmt: skip


@pytest.fixture(scope="module")
def made(world, mm5b):
    """A whole preparation: (exit code, folder)."""
    given = arguments(world, world / "out")
    given[given.index("2016")] = "2016-01-01/2016-12-31"
    return mm5b.run(mm5b.prepare, mm5b.parser(), [str(a) for a in given]), world / "out"


def report(out, scene, source="gaofen2"):
    return json.loads((out / "scenes" / source / f"{scene}.json").read_text())


def test_it_runs(made):
    assert made[0] == 0
    for source in ("gaofen2", "sentinel2", "rgb"):
        told = json.loads((made[1] / source / "manifest.json").read_text())
        assert told["complete"] and told["patches"]["train"] > 0 and told["patches"]["val"] > 0
        assert str(made[1].parent) not in json.dumps(told), "no place of this machine in a manifest"
        assert json.loads((made[1] / "scenes" / source / "manifest.json").read_text())["complete"]
    told = json.loads((made[1] / "scenes" / "gaofen2" / "manifest.json").read_text())
    assert set(told["inputs"]) == {"dem.tif", "reference.tif"}
    assert told["inputs"]["dem.tif"] == hashlib.sha256((made[1].parent / "dem.tif").read_bytes()).hexdigest()


@pytest.mark.parametrize("scene", SCENES)
def test_registration_is_reported_and_good(made, scene):
    """The RPC models are some 30 m off; after registration images lie within half a pixel of where they belong."""
    told = report(made[1], scene)
    said, error = told["registration"], np.hypot(*SCENES[scene][0].error) / 4
    assert said["before"]["median_px"] == pytest.approx(error, rel=0.35)  # the heights it hits differ, too
    assert said["before"]["median_m"] == pytest.approx(4 * said["before"]["median_px"], abs=0.01)
    assert said["after"]["median_px"] < 0.5 and said["after"]["p90_px"] < 1.5
    assert said["after_check"]["windows"] >= 8 and said["after_check"]["median_px"] < 0.5
    assert said["doubts"] == [] and said["reference"] == ["reference.tif"]
    assert told["rpc"] == ("rpb file" if SCENES[scene][1] == "rpb" else "tags")
    image = made[1].parent / "fbp" / "Image_16bit_BGRNir" / f"{scene}.tiff"
    assert told["inputs"][image.name] == hashlib.sha256(image.read_bytes()).hexdigest()


@pytest.mark.parametrize("scene", SCENES)
def test_labels_lie_on_the_ground_at_every_pixel_side(made, mm5b, scene):
    """Blocks of 90 m: all pixels whose surroundings have one code show it, at 4, 10 and 2 m, on one extent."""
    table, bounds = mm5b.recode_table(), set()
    for source, side in (("gaofen2", 4), ("sentinel2", 10), ("rgb", 2)):
        with rasterio.open(made[1] / "scenes" / source / f"{scene}_18label.tif") as file:
            codes, transform = file.read(1), file.transform
            bounds.add(tuple(file.bounds))
            assert (
                file.crs == CRS.from_user_input(UTM) and transform.a == side and all(v % 20 == 0 for v in file.bounds)
            )
        with rasterio.open(made[1] / "scenes" / source / f"{scene}.tif") as file:
            assert (file.height, file.width, file.transform) == (*codes.shape, transform)
        x, y = centres(transform, *codes.shape)
        truth = table[codes24(x, y)]
        margin = 6 + side / 2  # metres: what rectification and registration leave, and the pixel itself
        inside = np.minimum(np.minimum(x % 90, 90 - x % 90), np.minimum(y % 90, 90 - y % 90)) > margin
        seen = inside & (codes > 0)
        assert (codes == truth)[seen].mean() > 0.985, source
        assert seen.sum() * side**2 > 0.4e6  # m²
    assert len(bounds) == 1


def test_24_codes_become_18(mm5b):
    expected = {
        0: 0, 1: 9, 2: 1, 3: 2, 4: 2, 5: 3, 6: 3, 7: 3, 8: 13, 9: 4, 10: 5, 11: 6, 12: 10, 13: 7, 14: 8, 15: 8, 16: 0,
        17: 18, 18: 11, 19: 12, 20: 13, 21: 14, 22: 15, 23: 16, 24: 17,
    }  # fmt: skip
    table = mm5b.recode_table()
    assert {code: int(table[code]) for code in range(25)} == expected
    assert (table[25:] == 255).all()
    with pytest.raises(ValueError, match=r"a\.png holds codes that are none of 0 to 24: \[77\]"):
        mm5b.translate(np.array([[3, 77]]), table, "a.png")


@pytest.mark.parametrize("scene", SCENES)
def test_sentinel_2_is_reflectance_on_its_own_pixels(made, scene):
    with rasterio.open(made[1] / "scenes" / "sentinel2" / f"{scene}.tif") as file:
        image, transform = file.read(), file.transform
        assert file.descriptions == ("B2", "B3", "B4", "B5", "B6", "B7", "B8", "B8A", "B11", "B12")
    x, y = centres(transform, *image.shape[1:])
    hole = lost(x, y)
    assert (image[:, hole] == 0).all() and hole.sum() == 144
    with rasterio.open(made[1] / "scenes" / "sentinel2" / f"{scene}_18label.tif") as file:
        assert (file.read(1)[hole] == 0).all()  # no label where there is no image
    away = (np.abs(x - MIDDLE[0] - 200) > 30) & ~hole  # from where one item ends
    assert away.mean() > 0.9
    for band, values in enumerate(image):  # a pixel displaced by a tenth would make a difference of one
        assert np.abs(values - reflectance(x, y, band))[away].max() <= 1.5, band
    told = report(made[1], scene, "sentinel2")
    assert [item["id"] for item in told["items"]] == ["west", "east"] and told["items"][0]["cloud"] == 3
    assert told["valid"] == pytest.approx(1 - 144 / hole.size, abs=1e-4)
    assert told["items"][0]["scale_offset"][0] == [1, -1000]


def test_colours_are_means_of_1_m(made):
    scene = next(iter(SCENES))
    with rasterio.open(made[1] / "scenes" / "rgb" / f"{scene}.tif") as file:
        image, transform = file.read(), file.transform
        assert transform.a == 2 and file.descriptions == ("red", "green", "blue")
    h, w = image.shape[1:]
    metres = colours(*centres(compose(transform, Affine.scale(0.5)), 2 * h, 2 * w))
    assert np.abs(image - metres.reshape(3, h, 2, w, 2).mean((2, 4))).max() <= 0.5


def test_the_reader_reads_it(made):
    """Every patch, through the library's reader of MM-5B as published."""
    tree, sizes = ClassTree.load("mm5b"), dict(zip(("gaofen2", "sentinel2", "rgb"), map(int, SIZES), strict=True))
    held_out = "GF2_PMS1__L1A0001064454-MSS1"
    for source, size in sizes.items():
        for split in ("train", "val"):
            data = PairFolder(made[1] / source, split, tree)
            assert data.size == (size, size) and data.gsd == {"gaofen2": 4, "sentinel2": 10, "rgb": 2}[source]
            assert len(data.bands) == {"gaofen2": 4, "sentinel2": 10, "rgb": 3}[source] and not data.is_twin
            for (image, label), item in zip(data.pairs, data, strict=True):
                assert (held_out in image.name) == (split == "val") and label.name.endswith("_18label.tif")
                kept = item["label"][item["label"] != 255]
                assert len(kept) and kept.max() <= 17 and (item["image"].sum(0)[item["label"] != 255] > 0).all()
    with rasterio.open(made[1] / "scenes" / "gaofen2" / f"{held_out}_18label.tif") as file:
        codes = file.read(1)
    whole = [
        codes[r : r + 64, c : c + 64] for r in range(0, len(codes) - 63, 64) for c in range(0, codes.shape[1] - 63, 64)
    ]
    assert len(PairFolder(made[1] / "gaofen2", "val", tree)) == sum((part > 0).any() for part in whole)


def test_scenes_csv_and_shared_ground(made, mm5b):
    with open(made[1] / "scenes.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["scene"] for row in rows] == list(SCENES) and [row["split"] for row in rows] == ["val", "train"]
    assert float(rows[0]["before_px"]) > float(rows[0]["after_px"]) and rows[0]["crs"] == UTM
    reports = {scene: report(made[1], scene) for scene in SCENES}
    first, second = SCENES
    (line,) = mm5b.shared_ground(reports, {first: "val", second: "train"})
    assert line.startswith(f"{first} and {second}: ") and float(line.split()[-1][:-1]) > 60
    far = json.loads(json.dumps(reports[second]))
    far["outline"][0] = [lon + 1 for lon in far["outline"][0]]
    assert mm5b.shared_ground({first: reports[first], second: far}, {first: "val", second: "train"}) == []
    assert mm5b.shared_ground(reports, {first: "val", second: "val"}) == []


# -- going on, and what is refused ------------------------------------------------------------------------------------


def given_again(world, out, *more):
    given = arguments(world, out, *more)
    given[given.index("2016")] = "2016-01-01/2016-12-31"
    return given


def test_it_goes_on_after_the_last_finished_file(made, world, mm5b, go, monkeypatch, tmp_path):
    """Patches lost, patches damaged and an interruption: the end is the same, and finished files are not touched."""
    out = tmp_path / "out"
    shutil.copytree(made[1], out)
    sums = {path: path.read_bytes() for path in out.rglob("checksums.sha256")}
    patches = sorted((out / "sentinel2" / "img_dir").rglob("*.tif"))
    patches[0].unlink()
    patches[1].write_bytes(b"damaged")
    scene = next(iter(SCENES))
    (out / "scenes" / "gaofen2" / f"{scene}_18label.tif").unlink()
    kept = {path: path.stat().st_mtime_ns for path in out.rglob("*.tif") if path not in patches[:2]}
    write = mm5b.write_patches

    def interrupted(ledger, split, name, *rest):
        if ledger.folder.name == "sentinel2" and name == list(SCENES)[1]:
            raise KeyboardInterrupt
        return write(ledger, split, name, *rest)

    monkeypatch.setattr(mm5b, "write_patches", interrupted)
    code, _, err = go(mm5b, *given_again(world, out))
    assert code == 130 and "stopped. The same command goes on" in err
    monkeypatch.setattr(mm5b, "write_patches", write)
    code, text, _ = go(mm5b, *given_again(world, out))
    assert code == 0 and "Look at these scenes before you train on them: none" in text
    assert {path: path.read_bytes() for path in sums} == sums
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    code, _, err = go(mm5b, *given_again(world, out, "--label-rule", "nearest"))
    assert code == 2 and "was begun with other settings (label_rule" in err


def test_a_half_finished_input_is_refused_with_what_is_missing(world, mm5b, go, tmp_path):
    shutil.copytree(world / "fbp", tmp_path / "fbp")
    first, second = SCENES
    (tmp_path / "fbp" / "Annotation__index" / f"{first}_24label.png").unlink()
    image = tmp_path / "fbp" / "Image_16bit_BGRNir" / f"{second}.tiff"
    image.write_bytes(image.read_bytes()[:-5000])
    given = arguments(world, tmp_path / "out", "--sources", "gaofen2")
    given[0] = tmp_path / "fbp"
    code, _, err = go(mm5b, *given)
    assert code == 2 and "2 of 2 scenes are incomplete" in err
    assert f"{first}: label (Annotation__index)" in err and f"{second}:" in err and "truncated" in err
    assert "--partial" in err and not (tmp_path / "out" / "scenes").exists()
    (tmp_path / "fbp" / "Coordinate_files" / f"{first}.rpb").write_text("satId = 1;")
    shutil.copy(world / "fbp" / "Annotation__index" / f"{first}_24label.png", tmp_path / "fbp" / "Annotation__index")
    shutil.copy(world / "fbp" / "Image_16bit_BGRNir" / f"{second}.tiff", image)
    code, _, err = go(mm5b, *given)
    assert code == 2 and "1 of 2 scenes are incomplete" in err and "it lacks lineOffset" in err


def test_archives_rpc_alone_and_partial(world, mm5b, go, tmp_path):
    """The publisher's folders as archives; one scene's image never came; no reference imagery."""
    first, second = SCENES
    source = tmp_path / "fbp"
    source.mkdir()
    for folder in sorted((world / "fbp").iterdir()):
        with zipfile.ZipFile(source / f"{folder.name}.zip", "w") as archive:
            for path in folder.iterdir():
                if path.name != f"{second}.tiff":
                    archive.write(path, f"{folder.name}/{path.name}")
    given = [source, tmp_path / "out", "--scenes", world / "scenes.csv", "--dem", world / "dem.tif", "--threads", 1]
    given += ["--sizes", *SIZES, "--sources", "gaofen2"]
    code, _, err = go(mm5b, *given)
    assert code == 2 and f"{second}: image (Image_16bit_BGRNir)" in err
    code, text, _ = go(mm5b, *given, "--partial")
    assert code == 0 and f"{first}: not registered: no reference imagery here" in text
    assert [path.stem for path in (tmp_path / "out" / "scenes" / "gaofen2").glob("*.json")] == [first, "manifest"]
    told = report(tmp_path / "out", first)
    assert told["registration"] == {"doubts": ["not registered: no reference imagery here"]}


def test_scenes_without_imagery_are_listed_before_anything_is_fetched(made, world, mm5b, go, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(made[1] / "scenes" / "gaofen2", out / "scenes" / "gaofen2")
    code, _, err = go(mm5b, *given_again(world, out, "--max-cloud", 1, "--sources", "sentinel2"))
    assert code == 2 and "2 of 2 scenes have no sentinel2 image in sentinel-2-l2a (cloud cover up to 1 %)" in err
    assert f"{next(iter(SCENES))}: images of 2015-09-13 cover 0%" in err and "--partial" in err
    assert not (out / "scenes" / "sentinel2").exists()
    given = given_again(world, out, "--sources", "rgb")
    given[given.index("--rgb-collection") + 1] = "nowhere"
    code, _, err = go(mm5b, *given)
    assert code == 2 and "has no collection 'nowhere': it has photos, sentinel-2-l2a" in err


def test_the_list_of_scenes_and_the_split(mm5b, tmp_path):
    rows = mm5b.read_scenes(mm5b.Path(mm5b.__file__).with_name("mm5b-scenes.csv"))
    split = mm5b.split_of(rows)
    assert len(rows) == 136 and sum(row["test"] == "1" for row in rows) == 30
    held_out = {scene for scene, part in split.items() if part == "val"}
    assert len(held_out) == 29 and held_out < {row["scene"] for row in rows if row["test"] == "1"}
    assert split == mm5b.split_of(rows[::-1])  # whatever the order
    assert all(mm5b.stac.dates(row["sentinel2"])[0].year in range(2015, 2019) for row in rows)
    plain = tmp_path / "mine.csv"
    plain.write_text("scene,split\na,train\nb,val\n")
    assert mm5b.split_of(mm5b.read_scenes(plain)) == {"a": "train", "b": "val"}
    for text, words in (
        ("a\n1\n", "a column 'scene'"),
        ("scene\nx\nx\n", "names scenes twice: x"),
        ("scene,split\na,train\nb,\n", "says train or val for every scene"),
        ("scene,split\na,test\n", "says train or val for every scene"),
    ):
        plain.write_text(text)
        with pytest.raises(ValueError, match=words):
            mm5b.read_scenes(plain)


def test_help_says_what_goes_in_and_out(mm5b, capsys):
    with pytest.raises(SystemExit) as left:
        mm5b.parser().parse_args(["--help"])
    text = capsys.readouterr().out
    assert left.value.code == 0
    assert all(
        word in text for word in ("Image_16bit_BGRNir", "Coordinate_files", "--reference", "640 512 896", "--catalog")
    )
