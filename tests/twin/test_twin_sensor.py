"""Spectra, calendars, light and digital numbers of the twin, its truth, its GeoTIFFs, and that windows agree."""

import dataclasses

import numpy as np
import pytest
import rasterio

from hierlab import twin
from hierlab.tree import ClassTree
from hierlab.twin import imaging, optics, sensor, spectra, world
from hierlab.twin.ground import LEAVES
from hierlab.twin.optics import Sun, shadows
from hierlab.twin.sensor import ground_truth, render
from hierlab.twin.sensors import GAOFEN2, SENSORS

SMALL = {name: s for name, s in SENSORS.items() if not s.dates}


def test_spectra_have_their_known_shapes():
    m = {name: dict(zip(spectra.WAVELENGTHS, x.curve, strict=True)) for name, x in spectra.MATERIALS.items()}
    assert all(0 < v < 0.7 for curve in m.values() for v in curve.values())
    assert np.diff(spectra.WAVELENGTHS).max() <= 5
    assert spectra.WAVELENGTHS[0] <= 390 and spectra.WAVELENGTHS[-1] >= 2400
    for plant in ("broad leaf", "conifer", "grass", "rice", "maize", "soybean", "vine"):
        assert m[plant][550] > m[plant][450] and m[plant][550] > m[plant][675]  # green peak
        assert m[plant][850] > 5 * m[plant][675]  # red edge
        assert m[plant][970] < m[plant][900] and m[plant][1200] < m[plant][1100]  # leaf water
        assert m[plant][1450] < 0.6 * m[plant][1650] and m[plant][1940] < 0.5 * m[plant][1650]
    for soil in ("dark soil", "light soil", "sand"):
        assert m[soil][450] < m[soil][650] < m[soil][850]
        assert m[soil][2205] < m[soil][2150] and m[soil][1920] < m[soil][1750]  # clay, water
    assert m["red soil"][480] < 0.5 * m["light soil"][480] and m["red soil"][885] < m["red soil"][785]  # iron
    assert m["clear water"][850] < 0.03 and m["turbid water"][550] > m["clear water"][550]
    assert m["green water"][675] < m["green water"][705] > m["green water"][750]  # algae
    assert m["red tile"][650] > 2 * m["red tile"][480]
    for plastic in ("plastic film", "tarpaulin", "synthetic turf"):
        assert m[plastic][1730] < 0.93 * m[plastic][1650] and m[plastic][2310] < 0.95 * m[plastic][2200]  # C–H
    assert m["straw"][2100] < m["straw"][1650] and m["straw"][2310] < m["straw"][1650]  # cellulose


def test_objects_of_a_material_differ_and_stay_reflectances():
    centres = tuple(np.arange(395.0, 2400, 10))
    table = spectra.endmembers(centres, (10.0,) * len(centres))
    assert table.shape == (len(spectra.MATERIALS), 1 + spectra.MODES, len(centres))
    for sign in (-1, 1):
        for mode in range(spectra.MODES):
            one = table[:, 0] + sign * 1.8 * table[:, 1 + mode]
            assert one.min() > 0 and one.max() < 1
    near = np.array(centres) > 900
    assert np.abs(table[:, 3:, near] / table[:, :1, near]).max() < 1e-3  # the last two live in the visible


def test_bands_that_cannot_be_are_refused():
    for centre, width in ((300.0, 10.0), (2500.0, 10.0), (500.0, 1.0)):
        with pytest.raises(ValueError, match="390"):
            spectra.endmembers((centre,), (width,))
    with pytest.raises(ValueError, match="gain"):
        dataclasses.replace(GAOFEN2, gain=(1.0, 2.0))
    with pytest.raises(ValueError, match="millimetres"):
        dataclasses.replace(GAOFEN2, gsd=0.0005)


def test_the_broad_bands_keep_the_red_edge():
    red, nir = spectra.endmembers(GAOFEN2.wavelengths, GAOFEN2.widths)[:, 0, 2:].T
    ndvi = dict(zip(spectra.MATERIALS, (nir - red) / (nir + red), strict=True))
    assert ndvi["grass"] > 0.6 and ndvi["clear water"] < 0 and abs(ndvi["concrete"]) < 0.1


def test_names_of_kinds_and_groups():
    assert all(set(group) <= set(spectra.KINDS) for group in spectra.GROUPS.values())
    used = {name for kind in spectra.KINDS.values() for name in kind[:3]}
    assert used | {"light soil", "red soil"} == set(spectra.MATERIALS)


@pytest.mark.parametrize("day", [1, 100.5, 200, 300, 365])
def test_the_state_of_the_plants_is_a_share(day):
    green, straw = spectra.season(day)
    assert green.shape == straw.shape == (len(spectra.KINDS) * spectra.PHASES,)
    for share in (green, straw):
        assert share.min() >= 0 and share.max() <= 1
    assert spectra.ripeness(day).min() >= 0


def test_crops_grow_and_are_cut():
    late = 8 * 4 + 3  # neither early nor late, first year
    rice, maize = (spectra.KIND[n] * spectra.PHASES + late % 8 for n in ("rice", "maize"))
    spring, summer, autumn = (spectra.season(day) for day in (110, 220, 292))
    for crop in (rice, maize):
        assert spring[0][crop] < 0.2 < 0.8 < summer[0][crop]
        assert autumn[0][crop] < 0.2 and autumn[1][crop] > 0.3
    wheat = spectra.KIND["wheat"] * spectra.PHASES + late % 8
    assert spectra.season(120)[0][wheat] > 0.8 and spectra.season(200)[0][wheat] < 0.1


def test_the_year_has_no_seam_and_calendars_are_mixed():
    before, after = spectra.season(365)[0], spectra.season(1)[0]
    assert np.abs(before - after).max() < 0.15
    by_kind = np.stack([spectra.season(d)[0].reshape(len(spectra.KINDS), -1) for d in range(60, 300, 30)])
    for crop in ("rice", "maize", "wheat", "soybean", "vegetables", "rape"):
        assert np.ptp(by_kind[:, spectra.KIND[crop]], 1).max() > 0.5, crop  # early and late, one crop and two
    assert np.ptp(by_kind[:, spectra.KIND["conifer forest"]]) == 0
    rape = spectra.ripeness(104).reshape(len(spectra.KINDS), -1)[spectra.KIND["rape"]]
    assert rape.max() > 2 and spectra.ripeness(60).reshape(rape.size, -1).max() < 3  # in flower


def test_the_sun_stands_where_it_does():
    noon = optics.sun(32, 172, 0)
    assert abs(noon.elevation - (90 - 32 + 23.44)) < 0.1 and abs(noon.azimuth - 180) < 0.5
    morning, afternoon = (optics.sun(32, 81, hour) for hour in (-3, 3))
    assert 90 < morning.azimuth < 180 < afternoon.azimuth < 270
    assert abs(morning.elevation - afternoon.elevation) < 1e-6


def test_shadows_fall_away_from_the_sun_as_far_as_they_should():
    height = np.zeros((140, 140), np.float32)
    height[70:73, 70:73] = 12
    shade = shadows(height, Sun(45.0, 135.0), 1.0)  # the sun in the south-east
    assert shade[66, 66] > 0.5 and shade[64, 64] > 0.5  # 12 m to the north-west
    assert shade[74:].sum() == 0 and shade[:, 74:].sum() == 0
    length = np.argmax(shade.diagonal() > 0.5)
    assert abs((70 - length) * 2**0.5 - 12) < 2.2
    height[:] = 0
    height[100, 100] = 500
    shade = shadows(height, Sun(30.0, 180.0), 1.0)
    assert shade[100 - 55 :].any() and not shade[: 100 - 55].any() and not shade[101:].any()  # ends at REACH


@pytest.mark.parametrize("step", [0.5, 1.0, 2.5, 4.0, 7.5])
def test_shadows_are_the_same_metres_at_any_step(step):
    size = int(240 / step)
    place = (np.arange(size) + 0.5) * step
    height = np.zeros((size, size), np.float32)
    height[(place > 120) & (place < 130)] = 20
    shade = shadows(height, Sun(40.0, 180.0), step)
    length = shade[:, size // 2][place < 120].sum() * step
    assert abs(length - 20 / np.tan(np.radians(40))) < max(1.0, 0.75 * step)


def test_things_hide_the_sky_and_slopes_face_the_sun():
    height = np.zeros((60, 60), np.float32)
    height[20:40, 20:40] = 15
    seen = optics.openness(height, 1.0)
    assert seen[30, 30] == 1 and seen[30, 41] < 0.75 < seen[30, 45] <= seen[5, 5] == 1
    scene = world.tile(0, 0, 2, 2, 1000)
    ground = dataclasses.replace(scene.ground, height=np.zeros_like(scene.relief))
    ridge = np.minimum(np.arange(scene.relief.shape[1]), np.arange(scene.relief.shape[1])[::-1])
    ground.height[:] = 0.5 * ridge.astype(np.float32)
    flat = scene._replace(ground=ground, relief=np.zeros_like(scene.relief))
    direct, _ = optics.lit(flat, Sun(50.0, 90.0))
    rows = direct.shape[0] // 2
    assert direct[rows, 350] > 1.2 and direct[rows, 200] < 0.8  # the east of the ridge, and its west


def test_flights_differ_and_a_scene_has_one():
    a, b, c = (imaging.flight(GAOFEN2, 0, 0, column, 0) for column in (0, 0, 1))
    assert a == b != c
    for s in SMALL.values():
        flights = [imaging.flight(s, 0, r, n, 0) for r in range(3) for n in range(12)]
        assert all(s.days[0] <= f.day <= s.days[1] and 20 < f.sun.elevation < 85 for f in flights)
        assert len({f.gains for f in flights}) == 36
    assert imaging.flight(GAOFEN2, 0, 0, 0, 0, 2021) != a
    assert imaging.flight(GAOFEN2, 0, 0, 0, 0, 2020, 77).day == 77


def test_noise_has_the_deviation_asked_for_and_no_pattern():
    image, other = np.zeros((2, 64, 512), np.float32)
    optics.add_noise(image[None], np.uint32(7), 0, 1, np.array([3.0]))
    assert abs(image.std() - 3) < 0.06 and abs(image.mean()) < 0.1
    assert np.abs(np.corrcoef(image) - np.eye(64)).max() < 0.25
    for key, first, band in ((8, 0, 1), (7, 0, 2), (7, 64, 1)):
        other[:] = 0
        optics.add_noise(other[None], np.uint32(key), first, band, np.array([3.0]))
        assert abs(np.corrcoef(image.ravel(), other.ravel())[0, 1]) < 0.05
    both = np.zeros((2, 64, 512), np.float32)
    optics.add_noise(both, np.uint32(7), 0, 1, np.array([3.0, 6.0]))
    assert (both[0] == image).all() and abs(both[1].std() - 6) < 0.12  # bands together are the bands one by one


@pytest.mark.parametrize("name", SMALL)
def test_every_sensor_gives_its_bands(name):
    s = SENSORS[name]
    r = render(name, 0, 0, (1300, 2100, 9, 7))
    assert r.image.shape == (len(s.bands), 7, 9) and r.image.dtype == s.dtype and r.bands == s.bands
    assert r.label.shape == r.kind.shape == (7, 9) and r.label.max() < len(LEAVES)
    assert r.image.min() >= 1 and r.image.max() <= 2**s.bits - 1 and r.valid is None and r.days is None
    assert len(set(s.bands)) == len(s.bands) == len(s.wavelengths)


def test_the_bands_of_the_brief():
    count = {name: len(s.bands) for name, s in SENSORS.items()}
    assert count == {
        "gaofen2": 4,
        "google-1m": 3,
        "sentinel2": 10,
        "sentinel2-series": 10,
        "landsat8": 7,
        "landsat8-series": 7,
        "naip": 4,
        "hyperspectral-1m": 249,
        "aerorit": 51,
        "aerial-25cm": 3,
        "aerial-50cm": 3,
        "ortho-5cm": 4,
        "ortho-9cm": 3,
    }
    assert SENSORS["hyperspectral-1m"].wavelengths[::248] == (391.0, 984.0)
    assert SENSORS["aerorit"].wavelengths[::50] == (397.0, 1003.0)
    assert len(SENSORS["sentinel2-series"].dates) == 31 and len(SENSORS["landsat8-series"].dates) == 23
    assert all(s.oversample >= 4 for s in SENSORS.values() if s.gsd >= 10)


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("far", [0, 10**12])
def test_windows_agree_however_they_are_cut(name, far):
    """Random cuts in random order, across the corner of four tiles, near the origin and 10¹² m from it."""
    s = SENSORS[name]
    size = world.tile_size(s.step_mm)
    x0, y0 = (far * 1000 // s.step_mm // size + 3) * size - 11, -2 * size - 9
    whole = render(name, 5, 3, (x0, y0, 22, 20))
    rng = np.random.default_rng(far % 97 + s.step_mm)
    for n in range(6):
        a, b = (int(v) for v in rng.integers(0, 16, 2))
        w, h = (int(v) for v in (rng.integers(1, 22 - a + 1), rng.integers(1, 20 - b + 1)))
        if n == 2:  # made anew, from the ground up
            for cache in (imaging.tile, imaging._mixture, world.tile):
                cache.cache_clear()
        part = render(name, 5, 3, (x0 + a, y0 + b, w, h))
        for one, other in ((part.image, whole.image), (part.label, whole.label), (part.kind, whole.kind)):
            assert (one == other[..., b : b + h, a : a + w]).all()


def test_what_reaches_over_a_tiles_edge_is_the_same_from_both_sides():
    """The lit ground of a tile's margin is that of its neighbour: shadows, sky and point spread included."""
    for step, n in ((4000, 1), (10_000, 4)):
        size, halo = world.tile_size(step), world.halo(step)
        east = [world.tile(5, 3, c, 0, step, n) for c in (0, 1)]
        light = Sun(38.0, 140.0)
        a, b = (optics.lit(scene, light) for scene in east)
        edge = 3 * n  # pixels that the point spread takes from beyond the edge
        for p, q in zip(a, b, strict=True):
            p = p[:, (halo + size) * n - edge : (halo + size) * n + edge][halo * n : -halo * n]
            q = q[:, halo * n - edge : halo * n + edge][halo * n : -halo * n]
            np.testing.assert_allclose(p, q, atol=2e-3)


def test_fine_shadows_have_no_seams():
    """Below 1 m the margin is narrower than a shadow: what stands beyond it is seen coarsely, but it is seen."""
    from hierlab.twin import places

    towns = places.settlements(0, 0, 0, 0, (0, 0, 20_000, 20_000))
    town = int(np.argmax(towns.radius))
    column, row = int(towns.x[town] // 128), int(towns.y[town] // 128)
    light, halo = Sun(36.0, 130.0), world.halo(250)
    wide = 0
    for c in range(column, column + 3):
        a, b = (optics.lit(world.tile(0, 0, n, row, 250), light)[0] for n in (c, c + 1))
        p, q = a[halo:-halo, -halo - 3 : -halo + 3], b[halo:-halo, halo - 3 : halo + 3]  # what the point spread sees
        assert (np.abs(p - q) > 0.3).mean() < 0.08
        wide += (p < 0.5).mean()
    assert wide > 0.1  # there are shadows to compare


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


def test_many_bands_are_as_good_as_computed_one_by_one():
    """The basis of the hyperspectral sensor misses nothing that matters: ten of its bands alone give the same."""
    full = SENSORS["aerorit"]
    chosen = list(range(2, 51, 5))
    few = dataclasses.replace(
        full,
        noise=0.0,
        spread=0.0,
        **{f: tuple(getattr(full, f)[i] for i in chosen) for f in ("bands", "wavelengths", "widths", "offset", "gain")},
    )
    many = dataclasses.replace(full, noise=0.0, spread=0.0)
    a, b = (render(s, 1, 2, (40, 40, 50, 50), day=200).image.astype(int) for s in (few, many))
    assert np.abs(a - b[chosen]).max() <= 3


def test_truth_is_the_centre_of_a_fine_pixel_and_the_most_of_a_coarse_one():
    window = (130, 200, 24, 24)
    leaf, kind = ground_truth(0, 2, window, 10)
    samples, finer = ground_truth(0, 2, tuple(4 * v for v in window), 2.5)
    assert (twin.truth(0, 2, window, 10) == leaf).all()
    blocks = samples.reshape(24, 4, 24, 4).swapaxes(1, 2).reshape(-1, 16)
    counts = np.stack([(blocks == n).sum(1) for n in range(18)], 1)
    assert (counts[np.arange(576), leaf.ravel()] == counts.max(1)).all()
    fine = finer.reshape(24, 4, 24, 4).swapaxes(1, 2).reshape(-1, 16)
    own = np.stack([((fine == n) & (blocks == leaf.ravel()[:, None])).sum(1) for n in range(len(spectra.KINDS))], 1)
    assert (own[np.arange(576), kind.ravel()] == own.max(1)).all()
    fine4, _ = ground_truth(0, 2, (100, 100, 30, 30), 4)
    assert (render("gaofen2", 0, 2, (100, 100, 30, 30)).label == fine4).all()


def test_years_and_days_change_the_image():
    a, b = (render("gaofen2", 0, 1, (0, 0, 40, 40), day=day).image.astype(int) for day in (120, 215))
    assert np.abs(a - b).mean() > 5
    c = render("gaofen2", 0, 1, (0, 0, 40, 40), year=2016, day=120).image.astype(int)
    assert np.abs(a - c).mean() > 1
    for bad in (0, 366):
        with pytest.raises(ValueError, match="day"):
            render("gaofen2", 0, 1, (0, 0, 4, 4), day=bad)
    with pytest.raises(ValueError, match="day"):
        render("sentinel2-series", 0, 1, (0, 0, 4, 4), day=100)


def test_bad_names_and_windows_are_refused():
    with pytest.raises(ValueError, match="gaofen2"):
        render("no such", 0, 0, (0, 0, 4, 4))
    for window in ((0, 0, 0, 4), (0, 0, 4), (0.5, 0, 4, 4), (2**62, 0, 4, 4)):
        with pytest.raises(ValueError, match="window"):
            render("gaofen2", 0, 0, window)
    with pytest.raises(ValueError, match="gsd"):
        ground_truth(0, 0, (0, 0, 4, 4), 0.00001)


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
    with pytest.raises(ValueError, match="no legend"):
        twin.render_geotiff(tmp_path / "no.tif", "gaofen2", 0, 4, window, legend="no such")
    with pytest.raises(ValueError, match="no product"):
        twin.render_geotiff(tmp_path / "no.tif", "gaofen2", 0, 4, window, product="no such")


def test_oversampling_keeps_the_labels():
    fine = dataclasses.replace(GAOFEN2, oversample=2)
    a, b = twin.render(GAOFEN2, 0, 1, (0, 0, 64, 64)), twin.render(fine, 0, 1, (0, 0, 64, 64))
    assert (a.label == b.label).all() and a.image.shape == b.image.shape
    assert np.corrcoef(a.image.ravel(), b.image.ravel())[0, 1] > 0.9


def test_files_are_written_in_pieces_that_cover_the_window_once(tmp_path, monkeypatch):
    seen = np.zeros((300, 410), int)
    for x, y, w, h in sensor._pieces((-70, 1000, 410, 300), 128, 2, 3):
        seen[y - 1000 : y - 1000 + h, x + 70 : x + 70 + w] += 1
        assert w <= 256 and h <= 128
    assert (seen == 1).all()
    monkeypatch.setattr(sensor, "_PIECE", 1)
    twin.render_geotiff(tmp_path / "image.tif", "gaofen2", 0, 4, (90, 100, 60, 50))
    with rasterio.open(tmp_path / "image.tif") as f:
        assert (f.read() == twin.render("gaofen2", 0, 4, (90, 100, 60, 50)).image).all()


def test_what_gdal_holds_of_a_file_does_not_grow_with_the_window(tmp_path, monkeypatch):
    limits, real = set(), sensor.render

    def spy(*given, **named):
        limits.add(rasterio.env.getenv()["GDAL_CACHEMAX"])
        return real(*given, **named)

    monkeypatch.setattr(sensor, "render", spy)
    monkeypatch.setattr(sensor, "_CACHE", 2**20)
    window = (100, 90, 900, 300)
    twin.render_geotiff(tmp_path / "image.tif", "gaofen2", 0, 4, window)
    assert limits == {2**20}
    with rasterio.open(tmp_path / "image.tif") as f:
        assert (f.read() == real("gaofen2", 0, 4, window).image).all()


@pytest.mark.parametrize(("size", "count"), [(512, 249), (128, 310), (128, 4)])
def test_blocks_that_a_row_of_tiles_leaves_unfinished_stay_in_the_cache(size, count):
    block, room = sensor._BLOCK, sensor._CACHE // (2 * count * sensor._BLOCK**2)
    window, panel = (37, -91, 60 * size, 4 * size), sensor._panel(size, 2 * count)
    held, thrown, again = {}, set(), 0  # blocks, the one least recently written to first
    for x, y, w, h in sensor._pieces(window, size, 1, panel):
        left, top = x - window[0], y - window[1]
        for row in range(top // block, (top + h - 1) // block + 1):
            for column in range(left // block, (left + w - 1) // block + 1):
                place = row, column
                again += place in thrown
                thrown.discard(place)
                held.pop(place, None)
                held[place] = True
                if len(held) > room:
                    oldest = next(iter(held))
                    del held[oldest]
                    thrown.add(oldest)
    assert again <= (-(-61 // panel) - 1) * -(-window[3] // block)  # where one panel meets the next


def test_legends_and_products_as_geotiffs_read_back_through_their_trees(tmp_path):
    from hierlab.twin import legends, products

    window = (60, 40, 50, 30)
    leaf, kind = ground_truth(0, 2, window, 10)
    for name in ("chesapeake", "crop10m"):
        twin.render_geotiff(tmp_path / "legend.tif", "sentinel2", 0, 2, window, legend=name)
        tree = ClassTree.load(legends.LEGENDS[name].tree)
        with rasterio.open(tmp_path / "legend.tif") as f:
            codes = f.read(1)
            assert f.tags()["map"] == name and f.colormap(1)
        ours = legends.classify(leaf, kind, name)
        assert (tree.encode(codes, codes != 255)[codes != 255] == ours[codes != 255]).all()
        assert ((codes == 255) == (ours == 255)).all()
    twin.render_geotiff(tmp_path / "product.tif", "sentinel2", 0, 2, window, product="nlcd")
    with rasterio.open(tmp_path / "product.tif") as f:
        assert (f.read(1) == products.label("nlcd", 0, 2, window, 10.0)).all()
        assert "class_11" in f.tags(1) and f.tags()["map"] == "nlcd"
