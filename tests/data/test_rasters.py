import pickle
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import rasterio
from affine import Affine
from rasterio.control import GroundControlPoint
from rasterio.enums import ColorInterp
from rasterio.transform import from_origin
from rasterio.windows import Window

from hierlab.data import Scene


@pytest.mark.parametrize(
    "dtype", ["uint8", "int8", "int16", "uint16", "int32", "uint32", "int64", "float32", "float64"]
)
@pytest.mark.parametrize("layout", [{}, {"tiled": True, "blockxsize": 16, "blockysize": 16, "compress": "deflate"}])
def test_reads_every_type_and_layout(write, noise, dtype, layout):
    array = noise(3, 41, 53).astype(dtype) % 100
    scene = Scene.open(write("a.tif", array, **layout))
    assert (scene.count, scene.height, scene.width, scene.dtype, scene.gsd) == (3, 41, 53, dtype, 10)
    image, valid = scene.read_valid()
    assert image.dtype == np.float32 and valid.dtype == bool and valid.all()
    np.testing.assert_array_equal(image, array)
    np.testing.assert_array_equal(scene.read(Window(7, 9, 20, 13)), array[:, 9:22, 7:27])


def test_stacks_files_in_the_order_given_and_names_bands(write, noise):
    a, b, c = noise(40, 30, seed=1), noise(40, 30, dtype="float32", seed=2), noise(2, 40, 30, seed=3)
    paths = [write("red.tif", a), write("nir.tif", b, descriptions=["near infrared"]), write("more.tif", c)]
    scene = Scene.open(paths)
    assert scene.bands == ("red", "near infrared", "more 1", "more 2")
    assert scene.dtype == "float32"
    np.testing.assert_array_equal(scene.read(), np.stack([a, b, *c]))
    chosen = Scene.open(paths, bands=["more 2", 1])
    assert chosen.bands == ("more 2", "red")
    np.testing.assert_array_equal(chosen.read(), np.stack([c[1], a]))
    with pytest.raises(ValueError, match=r"no band 'blue': there are 4.*red"):
        Scene.open(paths, bands=["blue"])


def test_names_are_unique_and_come_from_tags(write, noise, tmp_path):
    path = write("a.tif", noise(3, 8, 8), descriptions=["x", "x", "y"])
    assert Scene.open(path).bands == ("a 1", "a 2", "y")
    assert len(set(Scene.open([path, path]).bands)) == 6
    with rasterio.open(path, "r+") as file:
        file.set_band_description(3, "")
        file.update_tags(3, name="green", wavelength="0.56", wavelength_units="Micrometers")
        file.update_tags(1, wavelength="no number")
    scene = Scene.open(path)
    assert scene.bands[2] == "green"
    assert scene.wavelengths == (None, None, 560.0)


# -- valid pixels -------------------------------------------------------------------------------------


def test_nan_and_infinity_are_invalid_and_counted(write, noise):
    array = noise(2, 20, 20, dtype="float32")
    array[0, 3, 4], array[1, 3, 5], array[1, 6, 6] = np.nan, np.inf, -np.inf
    scene = Scene.open(write("a.tif", array))
    image, valid = scene.read_valid()
    assert sorted(map(tuple, np.argwhere(~valid))) == [(3, 4), (3, 5), (6, 6)]
    assert np.isfinite(image).all() and (image[:, ~valid] == 0).all()
    summary = scene.summary()
    assert summary["nonfinite"] == 3 and summary["sampled"] == 400 and summary["valid_share"] == 397 / 400
    assert any("3 pixels are NaN or infinite" in line for line in scene.describe())


def test_values_beyond_float32_are_invalid_not_a_warning(write):
    array = np.ones((1, 4, 4))
    array[0, 0, 0] = 1e300
    assert Scene.open(write("a.tif", array)).read_valid()[1].sum() == 15


def test_nodata_in_one_band_makes_a_pixel_invalid(write, noise):
    array = noise(3, 10, 10, dtype="int16")
    array[1, 2, 2] = -9999
    scene = Scene.open(write("a.tif", array, nodata=-9999))
    assert list(map(tuple, np.argwhere(~scene.read_valid()[1]))) == [(2, 2)]
    assert (scene.read()[:, 2, 2] == 0).all()


def test_nodata_zero_needs_all_bands_of_the_file(write, noise):
    array = noise(3, 10, 10, dtype="uint8")
    array[1, 2, 2] = 0  # a dark surface in one band
    array[:, 5, 5] = 0
    scene = Scene.open(write("a.tif", array, nodata=0))
    assert list(map(tuple, np.argwhere(~scene.read_valid()[1]))) == [(5, 5)]


@pytest.mark.parametrize("value", [-3.4028234663852886e38, 1e20, float("nan")])
def test_float_nodata(write, noise, value):
    array = noise(1, 10, 10, dtype="float32")
    array[0, 1, 1] = value
    scene = Scene.open(write("a.tif", array, nodata=value))
    assert scene.read_valid()[1].sum() == 99
    assert scene.summary()["nonfinite"] == 0  # nodata is no surprise


def test_internal_mask(write, noise):
    mask = np.full((12, 12), 255, np.uint8)
    mask[:4] = 0
    scene = Scene.open(write("a.tif", noise(2, 12, 12), mask=mask))
    np.testing.assert_array_equal(scene.read_valid()[1], mask > 0)


def test_alpha_band_masks_and_is_no_image_band(write, noise):
    array = noise(4, 12, 12, dtype="uint8")
    array[3] = 255
    array[3, :, :5] = 0
    path = write("a.tif", array, photometric="RGB", alpha="YES")
    with rasterio.open(path) as file:
        assert file.colorinterp[3] == ColorInterp.alpha
    scene = Scene.open(path)
    assert scene.count == 3
    np.testing.assert_array_equal(scene.read_valid()[1], array[3] > 0)
    all_four = Scene.open(path, bands=[1, 2, 3, 4])
    assert all_four.count == 4 and all_four.read_valid()[1].all()


def test_near_infrared_tagged_alpha_is_an_image_band(write, noise):
    array = noise(4, 12, 12, dtype="uint8")  # four uint8 bands: the fourth is tagged alpha by default
    path = write("a.tif", array, photometric=None)
    with rasterio.open(path) as file:
        assert file.colorinterp[3] == ColorInterp.alpha
    scene = Scene.open(path)
    assert scene.count == 4 and scene.read_valid()[1].all()
    assert "tagged alpha but holds a picture" in scene.notes[0]


@pytest.mark.parametrize("fill", [0, np.nan])
def test_no_valid_pixel_is_an_error(write, fill):
    dtype, nodata = ("uint8", 0) if fill == 0 else ("float32", None)
    path = write("a.tif", np.full((2, 600, 600), fill, dtype), nodata=nodata)
    with pytest.raises(ValueError, match=r"a\.tif: not one valid pixel: all of 600×600"):
        Scene.open(path)


def test_one_valid_pixel_is_enough_and_empty_bands_are_named(write):
    array = np.zeros((1, 700, 600), np.uint8)
    array[0, 699, 3] = 1
    assert Scene.open(write("a.tif", array, nodata=0)).read_valid()[1].sum() == 1
    stack = np.ones((3, 20, 20), np.int16)
    stack[1] = -1
    path = write("b.tif", stack, nodata=-1, descriptions=["a", "empty", "c"])
    with pytest.raises(ValueError, match=r"nodata only: \['empty'\]; leave them out with bands="):
        Scene.open(path)
    assert Scene.open(path, bands=["a", "c"]).count == 2


# -- windows ------------------------------------------------------------------------------------------


def test_boundless_windows(write, noise):
    array = noise(2, 20, 30)
    scene = Scene.open(write("a.tif", array))
    image, valid = scene.read_valid(Window(-5, 15, 12, 10), boundless=True)
    assert image.shape == (2, 10, 12) and valid.sum() == 5 * 7
    np.testing.assert_array_equal(image[:, :5, 5:], array[:, 15:, :7])
    assert (image[:, ~valid] == 0).all()
    assert not scene.read_valid(Window(100, 100, 4, 4), boundless=True)[1].any()
    with pytest.raises(ValueError, match=r"leaves the 30×20 scene: clip it, or pass boundless=True"):
        scene.read(Window(-5, 0, 10, 10))
    with pytest.raises(ValueError, match="whole pixels"):
        scene.read(Window(0.5, 0, 10, 10))
    with pytest.raises(ValueError, match="empty"):
        scene.read(Window(0, 0, 0, 10))


def test_pickle_threads_and_close(write, noise):
    array = noise(2, 64, 64)
    with Scene.open(write("a.tif", array)) as scene:
        scene.read()
        copy = pickle.loads(pickle.dumps(scene))
        np.testing.assert_array_equal(copy.read(), array)
        with ThreadPoolExecutor(4) as pool:
            rows = list(pool.map(lambda r: scene.read(Window(0, r, 64, 1)), range(64)))
        np.testing.assert_array_equal(np.concatenate(rows, axis=1), array)
    np.testing.assert_array_equal(scene.read(), array)  # opens again


# -- grids --------------------------------------------------------------------------------------------


def test_files_that_differ_in_grid(write, noise):
    a = write("a.tif", noise(20, 20))
    for name, array, changed, words in (
        ("size.tif", noise(20, 21), {}, "size 20×20 against 21×20"),
        ("crs.tif", noise(20, 20), {"crs": "EPSG:32634"}, "CRS EPSG:32633 against EPSG:32634"),
        ("shift.tif", noise(20, 20), {"transform": from_origin(400_005, 5_800_000, 10, 10)}, "transform"),
    ):
        with pytest.raises(ValueError, match=words) as caught:
            Scene.open([a, write(name, array, **changed)])
        assert "rio warp" in str(caught.value) and name in str(caught.value)
    tiny = write("tiny.tif", noise(20, 20), transform=from_origin(400_000.01, 5_800_000, 10, 10))
    assert Scene.open([a, tiny]).count == 2  # a thousandth of a pixel is no difference


@pytest.mark.parametrize(
    ("crs", "transform", "gsd", "within"),
    [
        ("EPSG:32633", Affine(8.660254, 5, 0, 5, -8.660254, 0), 10, 1e-6),
        ("EPSG:32633", Affine(10, 0, 4e5, 0, 10, 5.8e6), 10, 1e-9),  # south-up
        ("EPSG:4326", Affine(0.0001, 0, 13, 0, -0.0001, 60), (11.132 * 0.5014 * 11.141) ** 0.5, 0.01),
        ("EPSG:3857", Affine(10, 0, 0, 0, -10, 8_399_737.89), 5.01, 0.01),  # 60° N: half of the nominal 10 m
        ("EPSG:2263", Affine(10, 0, 981_000, 0, -10, 200_000), 3.048, 1e-3),  # US feet
        ("EPSG:3035", Affine(20, 0, 4.3e6, 0, -20, 3.2e6), 20, 1e-9),
    ],
)
def test_pixel_size_on_the_ground(write, noise, crs, transform, gsd, within):
    if transform.c == 0 and crs == "EPSG:32633":
        transform = Affine(transform.a, transform.b, 4e5, transform.d, transform.e, 5.8e6)
    array = noise(16, 16)
    scene = Scene.open(write("a.tif", array, crs=crs, transform=transform))
    assert scene.gsd == pytest.approx(gsd, rel=max(within, 1e-9))
    np.testing.assert_array_equal(scene.read()[0], array)
    assert scene.summary()["crs"] == crs


def test_profile_writes_a_scene_like_it(write, noise, tmp_path):
    scene = Scene.open(write("a.tif", noise(2, 9, 9, dtype="int16"), nodata=-1))
    with rasterio.open(tmp_path / "b.tif", "w", **scene.profile) as file:
        file.write(scene.read().astype("int16"))
    again = Scene.open(tmp_path / "b.tif")
    assert again.profile == scene.profile


def test_summary_of_a_large_scene_is_a_sample(write):
    array = np.zeros((1, 2300, 2300), np.uint8)
    array[0, :1150] = 7
    summary = Scene.open(write("a.tif", array, nodata=0)).summary()
    assert summary["sampled"] < 2300**2
    assert summary["valid_share"] == pytest.approx(0.5, abs=0.1)


# -- bad files ----------------------------------------------------------------------------------------


def test_without_crs_or_place(write, noise, tmp_path):
    bare = write("bare.tif", noise(8, 8), crs=None)
    with pytest.raises(ValueError, match=r"bare\.tif: has no CRS.*gdal_edit"):
        Scene.open(bare)
    assert Scene.open(bare, crs="EPSG:32633").gsd == 10
    with pytest.warns(rasterio.errors.NotGeoreferencedWarning):
        flat = write("flat.tif", noise(8, 8), crs=None, transform=Affine.identity())
    with pytest.raises(ValueError, match="no geotransform"):
        Scene.open(flat)
    gcps = [GroundControlPoint(r, c, 13 + c, 50 - r) for r, c in ((0, 0), (0, 8), (8, 0), (8, 8))]
    with rasterio.open(tmp_path / "gcp.tif", "w", driver="GTiff", width=8, height=8, count=1, dtype="uint8") as file:
        file.write(noise(1, 8, 8, dtype="uint8"))
        file.gcps = (gcps, rasterio.crs.CRS.from_epsg(4326))
    with pytest.raises(ValueError, match=r"only ground control points.*gdalwarp"):
        Scene.open(tmp_path / "gcp.tif")


def test_complex_values_are_refused(write):
    with pytest.raises(ValueError, match="complex numbers"):
        Scene.open(write("a.tif", np.ones((1, 8, 8), np.complex64)))


@pytest.mark.parametrize("layout", [{}, {"compress": "deflate", "tiled": True, "blockxsize": 64, "blockysize": 64}])
@pytest.mark.parametrize("kept", [0.0, 0.05, 0.6, 0.95])
def test_truncated_files_are_found_at_opening(write, layout, kept):
    array = np.random.default_rng(0).integers(0, 2**16, (3, 256, 256)).astype(np.uint16)
    path = write("cut.tif", array, **layout)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * kept)])
    with pytest.raises(OSError, match=r"cut\.tif.*truncated"):
        Scene.open(path)


def test_missing_and_foreign_files(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere\.tif: no such file"):
        Scene.open(tmp_path / "nowhere.tif")
    (tmp_path / "text.tif").write_text("not a raster")
    with pytest.raises(OSError, match=r"text\.tif: cannot be opened as a raster"):
        Scene.open(tmp_path / "text.tif")
    with pytest.raises(ValueError, match="no image file"):
        Scene.open([])


def test_a_file_that_breaks_later_says_which(write, noise):
    path = write("a.tif", noise(1, 64, 64))
    scene = Scene.open(path)
    path.write_bytes(path.read_bytes()[:3000])
    with pytest.raises(OSError, match=r"a\.tif"):
        scene.read()
