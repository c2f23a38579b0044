import pickle

import numpy as np
import pytest
import rasterio
from affine import Affine
from rasterio.transform import from_origin
from rasterio.warp import transform as transform_points
from rasterio.windows import Window

from hierlab.data import LabelRaster, Scene, read_labels
from hierlab.data.grid import apply
from hierlab.tree import ClassTree

CODES = np.array([0, 1, 2, 11, 12, 21, 22])


@pytest.fixture
def codes():
    """Random codes of the tree, in patches of ``cell`` pixels so that resampling keeps most of them."""

    def codes(height, width, cell=1, seed=0):
        small = np.random.default_rng(seed).choice(CODES, (-(-height // cell), -(-width // cell)))
        return np.kron(small, np.ones((cell, cell)))[:height, :width].astype(np.uint8)

    return codes


def brute_force(scene, path, crs, tree):
    """Labels by transforming every pixel's centre; second, how far (label pixels) each is from a border."""
    columns, rows = np.meshgrid(np.arange(scene.width) + 0.5, np.arange(scene.height) + 0.5)
    x, y = apply(scene.transform, columns.ravel(), rows.ravel())
    x, y = (np.array(v) for v in transform_points(scene.crs, crs, x, y))
    with rasterio.open(path) as file:
        array, inverse = file.read(1), ~file.transform
    column, row = apply(inverse, x, y)
    border = np.minimum(np.abs(column - np.round(column)), np.abs(row - np.round(row)))
    i, j = np.floor(row).astype(int), np.floor(column).astype(int)
    inside = (i >= 0) & (j >= 0) & (i < array.shape[0]) & (j < array.shape[1])
    labels = np.full(len(i), 255, np.uint8)
    labels[inside] = tree.encode(array[i[inside], j[inside]])
    shape = (scene.height, scene.width)
    return labels.reshape(shape), border.reshape(shape)


@pytest.mark.parametrize(
    ("crs", "transform", "shape"),
    [
        ("EPSG:32633", from_origin(399_993, 5_800_004, 13.7, 9.1), (75, 60)),
        ("EPSG:32633", Affine(9.7, 0, 399_993, 0, 11.3, 5_799_500), (60, 80)),  # south-up
        ("EPSG:4326", Affine(1.5e-4, 0, 13.5305, 0, -1e-4, 52.3405), (70, 100)),
        ("EPSG:3035", Affine(12, 0, 4_561_700, 0, -12, 3_254_050), (60, 70)),
        ("EPSG:32632", Affine(11, 3, 808_550, 3, -11, 5_808_800), (80, 80)),  # rotated
    ],
)
@pytest.mark.parametrize("rotated", [False, True])
def test_nearest_reprojection_equals_brute_force(write, noise, codes, tree, crs, transform, shape, rotated):
    place = Affine(9, 2, 400_000, 2, -9, 5_800_000) if rotated else from_origin(400_000, 5_800_000, 10, 10)
    scene = Scene.open(write("image.tif", noise(64, 70), transform=place))
    path = write("labels.tif", codes(*shape, cell=3), crs=crs, transform=transform)
    labels = LabelRaster.open(path, scene, tree)
    expected, border = brute_force(scene, path, crs, tree)
    got = labels.read()
    assert got.dtype == np.uint8 and (expected != 255).mean() > 0.3
    sure = border > 0.02
    assert sure.mean() > 0.8
    np.testing.assert_array_equal(got[sure], expected[sure])
    np.testing.assert_array_equal(read_labels(path, scene, tree), got)
    pieces = [labels.read(Window(0, r, 70, 16)) for r in range(0, 64, 16)]
    assert (np.concatenate(pieces) == got).mean() > 0.999
    counts = np.bincount(got.ravel(), minlength=256)
    assert labels.counts() == {i: n for i, n in enumerate(counts.tolist()) if n}


def test_a_centre_on_a_border_takes_the_higher_row_and_column(write, noise, codes, tree):
    scene = Scene.open(write("image.tif", noise(20, 20), transform=from_origin(400_000, 5_800_000, 20, 20)))
    array = codes(40, 40)
    north_up = write("a.tif", array)  # 10 m: every image centre is the corner of four label pixels
    np.testing.assert_array_equal(read_labels(north_up, scene, tree), tree.encode(array)[1::2, 1::2])
    south_up = write("b.tif", array[::-1], transform=Affine(10, 0, 400_000, 0, 10, 5_799_600))
    np.testing.assert_array_equal(read_labels(south_up, scene, tree), tree.encode(array)[0::2, 1::2])


def test_nodata_mask_alpha_and_ignored_codes_are_255(write, noise, codes, tree):
    scene = Scene.open(write("image.tif", noise(20, 20)))
    array = codes(20, 20)
    expected = tree.encode(array)
    assert (expected[array == 0] == 255).all()
    with_nodata = read_labels(write("n.tif", array, nodata=11), scene, tree)
    np.testing.assert_array_equal(with_nodata, np.where(array == 11, 255, expected))
    mask = np.full((20, 20), 255, np.uint8)
    mask[:7] = 0
    masked = np.where(mask > 0, expected, 255)
    np.testing.assert_array_equal(read_labels(write("m.tif", array, mask=mask), scene, tree), masked)
    alpha = write("al.tif", np.stack([array, mask]), alpha="YES")
    np.testing.assert_array_equal(read_labels(alpha, scene, tree), masked)


@pytest.mark.parametrize("dtype", ["int8", "int16", "uint16", "int32", "uint32", "float32", "float64"])
def test_label_types(write, noise, codes, tree, dtype):
    scene = Scene.open(write("image.tif", noise(20, 20)))
    array = codes(20, 20).astype(dtype)
    expected = tree.encode(codes(20, 20))
    if dtype.startswith("float"):
        array[3, 3] = np.nan
        expected[3, 3] = 255
    path = write("labels.tif", array, nodata=None if dtype in ("uint16", "uint32") else -1)
    np.testing.assert_array_equal(read_labels(path, scene, tree), expected)


@pytest.mark.parametrize("value", [11.5, np.inf])
def test_values_that_are_no_codes(write, noise, codes, tree, value):
    scene = Scene.open(write("image.tif", noise(20, 20)))
    array = codes(20, 20).astype("float32")
    array[4, 4] = value
    with pytest.raises(ValueError, match=rf"class codes are whole numbers.*{value:g}"):
        LabelRaster.open(write("labels.tif", array), scene, tree)


@pytest.mark.parametrize("dtype", ["uint8", "int16"])
def test_every_unknown_code_is_listed_with_its_count(write, noise, codes, tree, dtype):
    scene = Scene.open(write("image.tif", noise(2100, 60)))
    array = codes(2100, 60).astype(dtype)
    array[0, :7], array[2099, :3], array[1000, 5] = 77, 77, 99
    with pytest.raises(ValueError, match=r"2 code\(s\).*77: 10 px, 99: 1 px"):
        LabelRaster.open(write("labels.tif", array), scene, tree)


def test_first_file_that_names_a_class_wins(write, noise, codes, tree):
    scene = Scene.open(write("image.tif", noise(30, 30)))
    a, b = codes(30, 30, seed=1), codes(15, 30, seed=2)
    far = write("far.tif", codes(9, 9), transform=from_origin(900_000, 5_800_000, 10, 10))
    paths = [write("a.tif", a), far, write("b.tif", b)]
    expected = tree.encode(a)
    expected[:15] = np.where(expected[:15] == 255, tree.encode(b), expected[:15])
    labels = LabelRaster.open(paths, scene, tree)
    np.testing.assert_array_equal(labels.read(), expected)
    assert labels.notes == ["1 of 3 label files do not overlap the image, left out"]
    assert labels.counts()[255] == (expected == 255).sum()


def test_without_crs_and_with_a_wrong_one(write, noise, codes, tree):
    scene = Scene.open(write("image.tif", noise(20, 20)))
    array = codes(20, 20)
    bare = write("bare.tif", array, crs=None)
    with pytest.raises(ValueError, match=r"bare\.tif: has no CRS\. Give the right one with crs= \(--label-crs\)"):
        LabelRaster.open(bare, scene, tree)
    wrong = write("wrong.tif", array, crs="EPSG:32601")
    with pytest.raises(ValueError, match="do not overlap"):
        LabelRaster.open(wrong, scene, tree)
    for path in (bare, wrong):
        np.testing.assert_array_equal(read_labels(path, scene, tree, crs="EPSG:32633"), tree.encode(array))


def test_no_overlap_names_both_extents(write, noise, codes, tree):
    scene = Scene.open(write("image.tif", noise(20, 20)))
    path = write("labels.tif", codes(20, 20), transform=from_origin(500_000, 5_800_000, 10, 10))
    with pytest.raises(ValueError, match="do not overlap") as caught:
        LabelRaster.open(path, scene, tree)
    for words in ("image.tif: x 400000 to 400200", "labels.tif: x 500000 to 500200", "EPSG:32633"):
        assert words in str(caught.value)
    polar = write("polar.tif", codes(20, 20), crs="EPSG:3031", transform=from_origin(0, 0, 10, 10))
    with pytest.raises(ValueError, match="do not overlap"):
        LabelRaster.open(polar, scene, tree)


def test_files_that_are_no_label_rasters(write, noise, tree, tmp_path):
    scene = Scene.open(write("image.tif", noise(20, 20)))
    with pytest.raises(ValueError, match=r"one band of class codes, this file has 3 bands.*gdal_translate"):
        LabelRaster.open(write("three.tif", noise(3, 20, 20)), scene, tree)
    with pytest.raises(ValueError, match=r"not one labelled pixel on the image. Codes found there: 0: 400 px"):
        LabelRaster.open(write("zero.tif", np.zeros((20, 20), np.uint8)), scene, tree)
    with pytest.raises(FileNotFoundError, match="no such file"):
        LabelRaster.open(tmp_path / "none.tif", scene, tree)
    cut = write("cut.tif", noise(500, 500))
    cut.write_bytes(cut.read_bytes()[:200_000])
    with pytest.raises(OSError, match=r"cut\.tif.*truncated"):
        LabelRaster.open(cut, scene, tree)
    with pytest.raises(ValueError, match="no label file"):
        LabelRaster.open([], scene, tree)


def test_windows_pickle_and_description(write, noise, codes, tree):
    scene = Scene.open(write("image.tif", noise(20, 20)))
    labels = LabelRaster.open(write("labels.tif", codes(20, 20)), scene, tree)
    whole = labels.read()
    boundless = labels.read(Window(-3, 15, 8, 8), boundless=True)
    np.testing.assert_array_equal(boundless[:5, 3:], whole[15:, :5])
    assert (boundless[5:] == 255).all() and (boundless[:, :3] == 255).all()
    with pytest.raises(ValueError, match="leaves the 20×20 scene"):
        labels.read(Window(-3, 15, 8, 8))
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(labels)).read(), whole)
    text = "\n".join(labels.describe())
    assert "tree 'four'" in text and "lake" in text and "dry" in text and "%" in text


def test_codes_of_shipped_trees(write, noise):
    scene = Scene.open(write("image.tif", noise(2, 3)))
    nlcd = ClassTree.load("nlcd")
    got = read_labels(write("n.tif", np.array([[11, 42, 95], [4, 0, 255]], np.uint8)), scene, nlcd)
    names = [nlcd.label_names[i] if i != 255 else None for i in got.ravel()]
    assert names[1] == "evergreen forest" and names[3] == "forest" and names[4:] == [None, None]
