"""Series of dates: phenology, clouds that move, their shadows and masks, and that windows agree."""

import dataclasses

import numpy as np
import pytest
import rasterio

from hierlab import twin
from hierlab.twin import imaging, series, world
from hierlab.twin.fields import Grid
from hierlab.twin.hashing import key
from hierlab.twin.optics import Sun
from hierlab.twin.sensor import ground_truth, render
from hierlab.twin.sensors import SENSORS
from hierlab.twin.spectra import KIND

FEW = dataclasses.replace(SENSORS["sentinel2-series"], name="few dates", dates=(30, 120, 185, 230, 290), clouds=0.4)

THIRTY = dataclasses.replace(SENSORS["landsat8-series"], name="few dates at 30 m", dates=(104, 200), clouds=0.5)


def test_a_series_has_its_dates_bands_and_masks():
    r = render("sentinel2-series", 0, 1, (100, 100, 6, 5))
    assert r.image.shape == (31, 10, 5, 6) and r.image.dtype == np.uint16
    assert r.valid.shape == (31, 5, 6) and r.valid.dtype == bool and 0.2 < r.valid.mean() < 0.95
    assert r.days.shape == (31,) and (np.diff(r.days) > 0).all() and r.days[0] >= 1 and r.days[-1] <= 365
    r = render("landsat8-series", 0, 1, (100, 100, 4, 4))
    assert r.image.shape == (23, 7, 4, 4) and r.valid.shape == (23, 4, 4)


@pytest.mark.parametrize("far", [0, 10**12])
@pytest.mark.parametrize("sensor", [FEW, THIRTY], ids=["10 m", "30 m"])
def test_windows_of_a_series_agree_however_they_are_cut(sensor, far):
    x0 = (far * 1000 // sensor.step_mm // 128 + 1) * 128 - 7
    whole = render(sensor, 2, 1, (x0, -5, 20, 16))
    rng = np.random.default_rng(3)
    for n in range(4):
        a, b = (int(v) for v in rng.integers(0, 12, 2))
        w, h = int(rng.integers(1, 20 - a + 1)), int(rng.integers(1, 16 - b + 1))
        if n == 2:
            for cache in (imaging.tile, imaging._mixture, world.tile):
                cache.cache_clear()
        part = render(sensor, 2, 1, (x0 + a, b - 5, w, h))
        assert (part.image == whole.image[..., b : b + h, a : a + w]).all()
        assert (part.valid == whole.valid[..., b : b + h, a : a + w]).all()


def test_clouds_are_bright_and_their_shadows_dark_and_the_mask_knows():
    light = Sun(45.0, 180.0)
    grid = Grid.of(4, 2, 0, 0, 300, 30_000)
    name = next(f"s{n}" for n in range(99) if 0.3 < series.cloudiness(key(4, 2, f"s{n}", "sky", 2020, 150), 0.4) < 0.6)
    above = series.sky(grid, name, 150, light, 0.4)
    assert 0.1 < (above.opacity > 0.5).mean() < 0.8
    assert above.valid.any() and not above.valid[(above.opacity > 0.1) | (above.shade > 0.1)].any()
    assert above.valid[(above.opacity < 0.1) & (above.shade < 0.1)].all()
    # The sun is in the south, so shadows lie north of the clouds: shifting the shade south lays it on the cloud.
    score = {n: np.corrcoef(np.roll(above.shade, n, 0).ravel(), above.opacity.ravel())[0, 1] for n in range(-90, 91, 3)}
    assert 15 <= max(score, key=score.get) <= 90
    other = series.sky(grid, name, 162, light, 0.4)
    assert (other.opacity != above.opacity).mean() > 0.2


def test_the_sky_is_the_same_from_any_window():
    light = Sun(40.0, 150.0)
    a = series.sky(Grid.of(1, 1, 0, 0, 64, 10_000), "s", 100, light, 0.5)
    b = series.sky(Grid.of(1, 1, 32, 16, 32, 10_000), "s", 100, light, 0.5)
    for p, q in zip(a, b, strict=True):
        np.testing.assert_allclose(p[16:48, 32:].astype(float), q.astype(float), atol=1e-4)


def test_some_dates_are_clear_and_some_overcast_and_the_mean_is_as_asked():
    shares = [series.cloudiness(key("s", n), 0.42) for n in range(400)]
    assert abs(np.mean(shares) - 0.42) < 0.05 and min(shares) < 0.03 and max(shares) > 0.97
    assert series.cloudiness(key("s"), 0.0) == 0


def test_clear_pixels_follow_the_crops_and_clouded_ones_do_not():
    clear = dataclasses.replace(FEW, name="clear", clouds=0.0)
    r = render(clear, 0, 1, (0, 0, 128, 128))
    assert r.valid.all()
    red, nir = r.image[:, 2].astype(float), r.image[:, 6].astype(float)
    ndvi = (nir - red) / (nir + red)
    conifers, crops = r.kind == KIND["conifer forest"], np.isin(r.label, (0, 1))
    assert np.ptp(ndvi, 0)[crops].mean() > 0.3
    if conifers.any():
        assert np.ptp(ndvi, 0)[conifers].mean() < 0.25
    cloudy = render(FEW, 0, 1, (0, 0, 128, 128))
    hidden = ~cloudy.valid & (cloudy.image[:, 0] > 3000)
    assert (cloudy.image[:, 0][hidden].mean()) > 2 * r.image[:, 0].mean()
    assert (ground_truth(0, 1, (0, 0, 128, 128), 10)[0] == cloudy.label).all()


def test_a_series_as_a_geotiff(tmp_path):
    twin.render_geotiff(tmp_path / "s.tif", FEW, 0, 1, (120, 0, 20, 20))
    r = render(FEW, 0, 1, (120, 0, 20, 20))
    with rasterio.open(tmp_path / "s.tif") as f:
        assert f.count == 50 and f.nodata == 0 and f.descriptions[10] == "day 120 B2"
        assert f.tags(11)["day"] == "120" and f.tags(11)["wavelength"] == "492.4"
        stack = f.read().reshape(5, 10, 20, 20)
    assert ((stack > 0).all(1) == r.valid).all()
    assert (stack[:, 3][r.valid] == r.image[:, 3][r.valid]).all()


def test_dates_share_one_ground():
    world.tile.cache_clear()
    render(FEW, 7, 1, (0, 0, 8, 8))
    assert world.tile.cache_info().misses == 1
