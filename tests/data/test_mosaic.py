import numpy as np
import pytest
import rasterio
from rasterio.crs import CRS
from rasterio.enums import Resampling
from rasterio.transform import from_origin
from rasterio.warp import transform as transform_points
from rasterio.windows import Window

from hierlab.data.grid import Grid
from hierlab.data.mosaic import Band, overlaps, rasters_in, read_grey, read_mosaic, valid_share, write_mosaic

GRID = Grid(CRS.from_epsg(32633), from_origin(400_000, 5_800_000, 10, 10), 40, 60)


def test_aligned_bands_keep_their_values(write, noise):
    fine, coarse = noise(60, 80), noise(30, 40)
    place = from_origin(399_900, 5_800_100, 10, 10)
    layer = [
        Band(write("B2.tif", fine, transform=place)),
        Band(write("B5.tif", coarse, transform=from_origin(399_900, 5_800_100, 20, 20))),
    ]
    values, valid = read_mosaic(GRID, [layer], resampling=Resampling.nearest)
    assert valid.all() and values.shape == (2, 40, 60)
    np.testing.assert_array_equal(values[0], fine[10:50, 10:70])
    np.testing.assert_array_equal(values[1], np.kron(coarse, np.ones((2, 2)))[10:50, 10:70])
    smooth, _ = read_mosaic(GRID, [layer])
    np.testing.assert_array_equal(smooth[0], fine[10:50, 10:70])
    part, _ = read_mosaic(GRID, [layer], Window(5, 7, 20, 10))
    np.testing.assert_array_equal(part, smooth[:, 7:17, 5:25])


def test_the_first_layer_that_is_whole_wins(write):
    first = np.full((2, 40, 30), 100, np.uint16)  # covers the left half
    first[1, :10] = 0  # one band has no data in the first rows
    second = np.full((2, 40, 60), 200, np.uint16)
    second[:, 5:8] = 0
    a, b = write("a.tif", first, nodata=0), write("b.tif", second)
    layers = [[Band(a, 1), Band(a, 2)], [Band(b, 1, nodata=0), Band(b, 2, nodata=0)]]
    a2 = [Band(write("a1.tif", first[0], nodata=0)), Band(write("a2.tif", first[1], nodata=0))]
    values, valid = read_mosaic(GRID, [a2, layers[1]], resampling=Resampling.nearest)
    assert (values[:, :10, :30][:, [0, 9]] == 200).all() and (values[:, 10:, :30] == 100).all()
    assert (values[:, :, 30:][:, 8:] == 200).all()
    assert not valid[5:8].any() and (values[:, 5:8] == 0).all() and valid.mean() == 37 / 40
    far = [Band(write("far.tif", first, transform=from_origin(700_000, 5_800_000, 10, 10)), n) for n in (1, 2)]
    np.testing.assert_array_equal(read_mosaic(GRID, [far, a2, layers[1]], resampling=Resampling.nearest)[0], values)
    assert not overlaps(far[0].path, GRID) and overlaps(a, GRID)
    with pytest.raises(ValueError, match=r"the same bands; these have \[2, 1\]"):
        read_mosaic(GRID, [a2, a2[:1]])


def test_scale_offset_and_dark_ground(write, tmp_path):
    stored = np.full((40, 60), 3000, np.uint16)
    stored[0, 0], stored[1, 1], stored[2, 2] = 0, 900, 1000
    band = Band(write("B2.tif", stored, nodata=0), scale=1, offset=-1000)
    write_mosaic(tmp_path / "m.tif", GRID, [[band]], "uint16", names=["B2"], resampling=Resampling.nearest)
    with rasterio.open(tmp_path / "m.tif") as file:
        image = file.read(1)
        assert file.nodata == 0 and file.descriptions == ("B2",) and file.transform == GRID.transform
    assert image[5, 5] == 2000
    assert image[0, 0] == 0  # no data
    assert image[1, 1] == 1 and image[2, 2] == 1  # dark, but there
    assert valid_share(tmp_path / "m.tif") == 1 - 1 / 2400


def test_means_of_finer_pixels(write, tmp_path, monkeypatch):
    monkeypatch.setattr("hierlab.data.mosaic.BLOCK", 16)
    fine = np.random.default_rng(0).integers(1, 255, (3, 80, 120)).astype(np.uint8)
    path = write("rgb.tif", fine, transform=from_origin(400_000, 5_800_000, 5, 5))
    write_mosaic(tmp_path / "m.tif", GRID, [[Band(path, n) for n in (1, 2, 3)]], "uint8", mean=2)
    with rasterio.open(tmp_path / "m.tif") as file:
        np.testing.assert_array_equal(file.read(), np.rint(fine.reshape(3, 40, 2, 60, 2).mean((2, 4))))


def test_another_crs_and_a_file_without_one(write, tmp_path, noise):
    (lon,), (lat,) = transform_points(GRID.crs, "EPSG:4326", [400_300], [5_799_800])  # the grid's middle
    path = write("ll.tif", noise(50, 50), crs="EPSG:4326", transform=from_origin(lon, lat + 0.002, 0.0001, 0.0001))
    values, valid = read_mosaic(GRID, [[Band(path)]])
    assert valid.any() and not valid.all() and (values[0][valid] > 0).all() and (values[0][~valid] == 0).all()
    with pytest.raises(ValueError, match=r"bare\.tif has no CRS"):
        read_mosaic(GRID, [[Band(write("bare.tif", noise(8, 8), crs=None))]])


def test_folders_of_rasters(tmp_path, write, noise):
    (tmp_path / "notes.txt").write_text("")
    paths = [write("b.tif", noise(4, 4)), write("a.TIF", noise(4, 4))]
    assert rasters_in([tmp_path]) == sorted(paths)
    with pytest.raises(FileNotFoundError):
        rasters_in([tmp_path / "none"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="no raster files in"):
        rasters_in([tmp_path / "empty"])


def test_grey_pictures_for_comparison(write, monkeypatch):
    monkeypatch.setattr("hierlab.data.mosaic.BLOCK", 16)
    four = np.random.default_rng(1).integers(1, 900, (4, 40, 30)).astype(np.uint16)
    values, valid = read_grey(GRID, [write("a.tif", four, nodata=0)])
    np.testing.assert_allclose(values[:, :30], four[:3].mean(0), rtol=1e-6)
    assert valid[:, :30].all() and not valid[:, 30:].any() and values.dtype == np.float32
    one = write("b.tif", np.full((40, 60), 7, np.uint8))
    values, valid = read_grey(GRID, [write("c.tif", four, nodata=0), one])
    assert valid.all() and (values[:, 30:] == 7).all()
    np.testing.assert_array_equal(values[:, :30], four[0])  # what all files have
