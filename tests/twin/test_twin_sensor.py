"""Spectra, light and digital numbers of the twin, and its GeoTIFFs."""

import numpy as np
import pytest
import rasterio

from hierlab import twin
from hierlab.tree import ClassTree
from hierlab.twin import spectra, world
from hierlab.twin.ground import Ground
from hierlab.twin.sensor import GAOFEN2, SCENE, Flight, flight, shadows
from hierlab.twin.world import HALO


def test_spectra_have_their_known_shapes():
    m = {name: dict(zip(spectra.WAVELENGTHS, curve, strict=True)) for name, curve in spectra.MATERIALS.items()}
    assert all(0 < v < 0.7 for curve in m.values() for v in curve.values())
    for plant in ("broad leaf", "grass", "rice", "maize"):
        assert m[plant][550] > m[plant][450] and m[plant][550] > m[plant][675]  # green peak
        assert m[plant][850] > 5 * m[plant][675]  # red edge
        assert m[plant][1450] < 0.6 * m[plant][1650] and m[plant][1940] < 0.5 * m[plant][1650]  # leaf water
    for soil in ("dark soil", "light soil", "sand"):
        assert m[soil][450] < m[soil][650] < m[soil][850]
    assert m["clear water"][850] < 0.03 and m["turbid water"][550] > m["clear water"][550]
    assert m["red tile"][650] > 2 * m["red tile"][480]


def test_the_broad_bands_keep_the_red_edge():
    table = spectra.endmembers(GAOFEN2.wavelengths, GAOFEN2.widths)
    assert table.shape == (len(spectra.MATERIALS), 4)
    red, nir = table[:, 2], table[:, 3]
    ndvi = dict(zip(spectra.MATERIALS, (nir - red) / (nir + red), strict=True))
    assert ndvi["grass"] > 0.6 and ndvi["lake water" if "lake water" in ndvi else "clear water"] < 0
    assert abs(ndvi["concrete"]) < 0.1


@pytest.mark.parametrize("day", [1, 100, 200, 300, 365])
def test_fractions_of_materials_sum_to_one(day):
    ground = Ground.blank((len(spectra.KINDS), spectra.PHASES))
    ground.kind[:] = np.arange(len(spectra.KINDS))[:, None]
    ground.phase[:] = np.arange(spectra.PHASES)
    ground.cover[:], ground.dirt[:] = 0.8, 0.3
    materials, shares = ground.materials(day)
    assert all(s.min() >= 0 and s.max() <= 1 for s in shares)
    np.testing.assert_allclose(sum(shares), 1, atol=1e-6)
    assert max(m.max() for m in materials) < len(spectra.MATERIALS)


def test_crops_grow_and_are_cut():
    rice, maize = (spectra.KIND[n] * spectra.PHASES + 4 for n in ("rice", "maize"))
    spring, summer, autumn = (spectra.season(day) for day in (110, 205, 295))
    for crop in (rice, maize):
        assert spring[0][crop] < 0.2 < 0.8 < summer[0][crop]
        assert autumn[0][crop] < 0.2 and autumn[1][crop] > 0.3


def test_shadows_fall_away_from_the_sun_and_stay_in_the_halo():
    height = np.zeros((80, 80), np.float32)
    height[40, 40] = 12
    shade = shadows(height, Flight(150, 45.0, 135.0, 0.5, (1.0,) * 4), 4.0)  # the sun in the south-east
    assert shade[39, 39] > 0.5  # north-west
    assert shade[41:].sum() == 0 and shade[:, 41:].sum() == 0
    flights = [flight(GAOFEN2, 0, r, c, 0) for r in range(5) for c in range(40)]
    assert 36 / np.tan(np.radians(min(f.elevation for f in flights))) <= (HALO - 5) * 4
    assert all(90 < f.azimuth < 180 for f in flights)


def test_flights_differ_and_a_scene_has_one():
    a, b, c = (flight(GAOFEN2, 0, 0, column // SCENE, 0) for column in (0, SCENE - 1, SCENE))
    assert a == b != c


def test_digital_numbers_land_near_those_of_the_real_sensor():
    """Means and deviations of MM-5B's GaoFen-2 images, by the statistics its paper normalises with."""
    tiles = [twin.render("gaofen2", 0, r, (1280 * r, 6400 - 900 * r, 96, 96)).image for r in range(8)]
    pixels = np.concatenate([t.reshape(4, -1) for t in tiles], 1).astype(float)
    np.testing.assert_allclose(pixels.mean(1), (412.6, 317.7, 243.7, 292.6), rtol=0.2)
    assert (pixels.std(1) > 15).all() and (pixels.std(1) < 150).all()
    assert pixels.max() < 2**GAOFEN2.bits


def test_water_is_dark_and_forest_bright_in_the_near_infrared():
    r = twin.render("gaofen2", 0, 2, (0, 0, 384, 384))
    nir = r.image[3].astype(float)
    wet, wood = np.isin(r.label, (5, 6, 7)), r.label == 2
    assert wet.any() and wood.any()
    assert np.median(nir[wet]) + 60 < np.median(nir[wood])


def test_geotiffs_say_where_they_are_and_hold_the_window(tmp_path):
    window = (1000, -300, 90, 150)
    made = twin.render("gaofen2", 0, 4, window)
    twin.render_geotiff(tmp_path / "image.tif", "gaofen2", 0, 4, window)
    twin.render_geotiff(tmp_path / "truth.tif", "gaofen2", 0, 4, window, truth=True)
    with rasterio.open(tmp_path / "image.tif") as f:
        assert (f.read() == made.image).all() and f.dtypes == ("uint16",) * 4
        assert f.crs.to_string() == twin.CRS and f.transform == made.transform
        assert (f.bounds.left, f.bounds.top, *f.res) == (500_000 + 4000, 4_000_000 + 1200, 4, 4)
        assert f.descriptions == made.bands and f.tags(4)["wavelength"] == "830.0"
    with rasterio.open(tmp_path / "truth.tif") as f:
        codes = f.read(1)
        assert (codes == made.label + 1).all() and f.nodata == 0
        assert f.tags(1)["class_18"] == "bare land" and f.colormap(1)[18] == (200, 100, 50, 255)
        assert (ClassTree.load("mm5b").encode(codes) == made.label).all()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["image.tif", "truth.tif"]


def test_oversampling_keeps_the_labels():
    import dataclasses

    fine = dataclasses.replace(GAOFEN2, name="gaofen2 twice", oversample=2)
    a, b = twin.render(GAOFEN2, 0, 1, (0, 0, 64, 64)), twin.render(fine, 0, 1, (0, 0, 64, 64))
    assert (a.label == b.label).all() and a.image.shape == b.image.shape
    world.tile.cache_clear()
