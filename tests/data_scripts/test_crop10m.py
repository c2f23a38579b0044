import hashlib
import json

import numpy as np
import pytest
import rasterio
from fake_satellite import UTM, write_catalog, write_item
from rasterio.transform import from_origin
from rasterio.warp import transform as transform_points

from hierlab.data.grid import apply
from hierlab.data.pairs import PairFolder
from hierlab.tree import ClassTree

LEFT, TOP = 500_000, 5_300_000  # of the ground, in UTM zone 50
WIDE, HIGH = 6_000, 4_000  # metres
KEYS = ("B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B11", "B12")
STEP = 8.983152841195208e-05  # degrees: the crop map's pixels


def crops(x, y):
    """The crop map's codes on the ground: stripes of 400 m, rice, maize, soybean, other; no data in the far east."""
    return np.where(np.asarray(x) > LEFT + 5_700, 15, np.asarray(x) // 400 % 4).astype(np.uint8)


def reflectance(x, y, band):
    return 3000 + 100 * band + (x - LEFT) / 4 + (TOP - y) / 2


def centres(transform, height, width):
    return apply(transform, *np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5))


def degrees(*corners):
    return [list(p) for p in zip(*transform_points(UTM, "EPSG:4326", *zip(*corners, strict=True)), strict=True)]


def rectangle(left, top, right, bottom):
    return degrees(*((LEFT + x, TOP - y) for x, y in ((left, top), (right, top), (right, bottom), (left, bottom))))


def region(name, split, *place):
    ring = rectangle(*place)
    shape = {"type": "Polygon", "coordinates": [[*ring, ring[0]]]}
    return {"type": "Feature", "properties": {"name": name, "split": split}, "geometry": shape}


def write_regions(path, *features):
    path.write_text(json.dumps({"type": "FeatureCollection", "features": features}))
    return path


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """The crop map as published (degrees, LZW), two regions, and Sentinel-2 in a catalogue on disk."""
    folder = tmp_path_factory.mktemp("crops")
    corners = np.array(rectangle(-300, -300, WIDE + 300, HIGH + 300))
    west, north = corners[:, 0].min(), corners[:, 1].max()
    size = [int(np.ptp(corners[:, n]) / STEP) + 1 for n in (1, 0)]
    transform = from_origin(west, north, STEP, STEP)
    lon, lat = centres(transform, *size)
    x, y = (np.reshape(v, size) for v in transform_points("EPSG:4326", UTM, lon.ravel(), lat.ravel()))
    profile = {"driver": "GTiff", "count": 1, "dtype": "uint8", "height": size[0], "width": size[1]}
    profile |= {"crs": "EPSG:4326", "transform": transform, "compress": "lzw", "predictor": 2}
    with rasterio.open(folder / "CDL2019_clip.tif", "w", **profile) as file:
        file.write(crops(x, y), 1)

    home, files = folder / "stac" / "sentinel-2-l2a", {}
    home.mkdir(parents=True)
    for band, key in enumerate(KEYS):
        side = 10 if key in ("B02", "B03", "B04", "B08") else 20
        transform = from_origin(LEFT - 200, TOP + 200, side, side)
        shape = (HIGH + 400) // side, (WIDE + 400) // side
        values = np.rint(reflectance(*centres(transform, *shape), band)).astype("uint16")
        if key == "B08":
            values[220, 100:120] = 0  # a line was lost
        kind = {"height": shape[0], "width": shape[1], "crs": UTM, "transform": transform, "nodata": 0}
        with rasterio.open(home / f"{key}.tif", "w", driver="GTiff", count=1, dtype="uint16", **kind) as file:
            file.write(values, 1)
        files[key] = (f"{key}.tif", {})
    place = rectangle(-200, -200, WIDE + 200, HIGH + 200)
    items = [
        write_item(home, "clear", files, "2019-08-20T02:30:00Z", place, **{"eo:cloud_cover": 0.5}),
        write_item(home, "hazy", files, "2019-09-20T02:30:00Z", place, **{"eo:cloud_cover": 4}),
        write_item(home, "spring", files, "2019-05-20T02:30:00Z", place, **{"eo:cloud_cover": 0}),
    ]
    write_catalog(folder / "stac", {"sentinel-2-l2a": items})
    write_regions(
        folder / "regions.json",
        region("west", "train", 0, 0, 3_000, 3_800),
        region("east", "val", 3_100, 0, 5_900, 3_800),
    )
    return folder


def arguments(world, out, *more, regions="regions.json"):
    return [
        world / "CDL2019_clip.tif", out, "--regions", world / regions, "--catalog", world / "stac" / "catalog.json",
        "--collection", "sentinel-2-l2a", "--size", "64", "--md5", "none", *more,
    ]  # fmt: skip


@pytest.fixture(scope="module")
def made(world, crop10m):
    code = crop10m.run(crop10m.prepare, crop10m.parser(), [str(a) for a in arguments(world, world / "out")])
    return code, world / "out"


def test_labels_lie_on_the_ground_in_crop10m_s_codes(made):
    """The published map counts rice, maize, soybean, other from 0; Crop10m counts other, rice, corn, soybean."""
    assert made[0] == 0
    for name, left, right in (("west", 0, 3_000), ("east", 3_100, 5_900)):
        with rasterio.open(made[1] / "scenes" / f"{name}_label.tif") as file:
            codes, transform = file.read(1), file.transform
            assert file.crs == rasterio.crs.CRS.from_user_input(UTM) and file.nodata == 255
            assert transform.a == 10 and all(v % 20 == 0 for v in file.bounds)
        x, y = centres(transform, *codes.shape)
        truth = np.array([1, 2, 3, 0] + [255] * 12)[crops(x, y)]
        away = np.minimum(x % 400, 400 - x % 400) > 15  # metres from where crops change
        seen = codes != 255
        assert (codes == truth)[away & seen].all()
        assert set(np.unique(codes)) == {0, 1, 2, 3, 255}
        from_edge = np.minimum(np.minimum(x - LEFT - left, LEFT + right - x), np.minimum(TOP - y, y - TOP + 3_800))
        assert not seen[from_edge < -10].any() and (from_edge < -10).any()  # outside the region
        assert seen[(from_edge > 10) & (truth != 255)].mean() > 0.995  # all but the lost line


def test_images_are_reflectance(made):
    told = json.loads((made[1] / "scenes" / "west.json").read_text())
    assert [item["id"] for item in told["items"]] == ["clear"] and len(told["items"][0]["sha256"]) == 10
    with rasterio.open(made[1] / "scenes" / "west.tif") as file:
        image, transform = file.read(), file.transform
        assert file.descriptions == ("B2", "B3", "B4", "B5", "B6", "B7", "B8", "B8A", "B11", "B12")
    x, y = centres(transform, *image.shape[1:])
    there = image[0] > 0
    assert there.mean() > 0.99
    for band, values in enumerate(image):
        assert np.abs(values - reflectance(x, y, band))[there].max() <= 1.5


def test_the_reader_reads_whole_patches(made):
    tree, shapes = ClassTree.load("crop10m"), {}
    for split in ("train", "val"):
        data = PairFolder(made[1] / "patches", split, tree)
        shapes[split] = len(data)
        assert data.size == (64, 64) and data.gsd == 10 and len(data.bands) == 10
        for item in data:
            assert (item["image"] > 0).all() and item["label"].max() <= 3 and item["label"].min() >= 0
    # 3.0 × 3.8 km hold 4 × 5 squares of 640 m, less those that the lost line and the region's edges spoil
    assert 9 <= shapes["train"] < 20 and 6 <= shapes["val"] <= 20
    told = json.loads((made[1] / "patches" / "manifest.json").read_text())
    assert told["complete"] and told["patches"] == shapes
    assert str(made[1].parent) not in json.dumps(told)


def test_it_goes_on(made, world, crop10m, go):
    lost = sorted((made[1] / "patches").rglob("*_label.tif"))[0]
    before = {path: path.read_bytes() for path in made[1].rglob("checksums.sha256")}
    kept = {path: path.stat().st_mtime_ns for path in made[1].rglob("*.tif") if path != lost}
    lost.unlink()
    code, text, _ = go(crop10m, *arguments(world, made[1]))
    assert code == 0 and "(the paper: 678)" in text and lost.exists()
    assert {path: path.read_bytes() for path in before} == before
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    code, _, err = go(crop10m, *arguments(world, made[1], "--dates", "2019-08"))
    assert code == 2 and "was begun with other settings (dates" in err


def test_another_file_or_a_part_is_refused(world, crop10m, go, tmp_path):
    whole = (world / "CDL2019_clip.tif").read_bytes()
    given = arguments(world, tmp_path / "out")
    at = given.index("--md5")
    published = [*given[:at], *given[at + 2 :]]
    code, _, err = go(crop10m, *published)
    assert code == 2 and f"the publisher's file has {crop10m.MAPS[2019]}" in err and not (tmp_path / "out").exists()
    given[at + 1] = hashlib.md5(whole).hexdigest()
    (tmp_path / "CDL2019_clip.tif").write_bytes(whole[: len(whole) // 2])
    code, _, err = go(crop10m, tmp_path / "CDL2019_clip.tif", *given[1:])
    assert code == 2 and "truncated" in err
    crop10m.check_map(world / "CDL2019_clip.tif", 2019, given[at + 1])


def test_codes_that_the_map_does_not_have(world, crop10m, go, tmp_path):
    with rasterio.open(world / "CDL2019_clip.tif") as file:
        values, profile = file.read(), file.profile
    values[0, 200, 200] = 9
    with rasterio.open(tmp_path / "map.tif", "w", **profile) as file:
        file.write(values)
    code, _, err = go(crop10m, tmp_path / "map.tif", *arguments(world, tmp_path / "out")[1:])
    assert code == 2 and "holds codes that the crop map does not have: [9]" in err


def test_regions_without_images_are_listed(world, crop10m, go, tmp_path):
    code, _, err = go(crop10m, *arguments(world, tmp_path / "out", "--max-cloud", "0.1"))
    assert code == 2 and "2 of 2 regions are not covered by sentinel-2-l2a (cloud cover up to 0.1 %)" in err
    assert "west: images of 2019-07-01/2019-10-31 cover 0%" in err and not (tmp_path / "out").exists()


def test_regions_must_be_apart_and_complete(world, crop10m, go, tmp_path):
    west, east = region("west", "train", 0, 0, 3_000, 3_800), region("east", "val", 2_500, 0, 5_900, 3_800)
    for features, words in (
        ((west, east), "the regions west (train) and east (val) share ground"),
        ((west,), "has no region for val"),
        ((west, region("west", "val", 3_100, 0, 4_000, 900)), "two regions called west"),
        ((west, region("no name", "val", 3_100, 0, 4_000, 900)), "feature 2 needs a geometry of type Polygon"),
        ((west, region("x", "test", 3_100, 0, 4_000, 900)), "feature 2 needs"),
    ):
        path = write_regions(tmp_path / "r.json", *features)
        given = arguments(world, tmp_path / "out")
        given[given.index("--regions") + 1] = path
        code, _, err = go(crop10m, *given)
        assert code == 2 and words in err, words
    (tmp_path / "r.json").write_text("[]")
    assert "no GeoJSON file of features" in go(crop10m, *given)[2]
    assert not (tmp_path / "out").exists()


def test_help_says_what_goes_in_and_out(crop10m, capsys):
    with pytest.raises(SystemExit) as left:
        crop10m.parser().parse_args(["--help"])
    text = capsys.readouterr().out
    assert left.value.code == 0 and "CDL2019_clip.tif" in text and "--regions" in text
