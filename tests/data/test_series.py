"""Time series rasters beside an image: reading, patches, statistics and augmentation."""

import dataclasses
import pickle

import numpy as np
import pytest
import torch
from affine import Affine
from rasterio.transform import from_origin
from rasterio.windows import Window
from torch.utils.data import DataLoader

from hierlab import twin
from hierlab.checkpoints import Normalize
from hierlab.data import Augment, LabelledScene, RasterDataset, Scene, Series, augment, blocked_split, series_statistics
from hierlab.data.grid import apply
from hierlab.stsnet import grid_between, sample
from hierlab.twin import export, sensors

FINE = from_origin(400_000, 5_800_000, 1, 1)
COARSE = from_origin(399_997, 5_800_004, 10, 10)  # 3 columns and 4 rows of the image before its first pixel
DATES = ("2023-03-01", "2023-06-10", "2024-01-05")
NAMES = [f"{day} {band}" for day in DATES for band in ("red", "nir")]


@pytest.fixture
def scene(write, noise):
    return Scene.open(write("image.tif", noise(2, 60, 80), transform=FINE))


@pytest.fixture
def stack():
    """Three dates of two bands, 8 × 10 pixels, each value its own; the second date has a cloud, the last is dark."""
    values = np.arange(1, 3 * 2 * 8 * 10 + 1, dtype=np.uint16).reshape(3, 2, 8, 10)
    values[1, :, 2:4, 3:6] = 0
    values[2, 0] = 0  # one band alone is dark, not clouded
    return values


@pytest.fixture
def make(write, stack):
    def make(name="series.tif", values=None, names=NAMES, transform=COARSE, nodata=0, **more):
        values = stack if values is None else values
        values = values.reshape(-1, *values.shape[-2:])
        return write(name, values, transform=transform, descriptions=names, nodata=nodata, **more)

    return make


def test_dates_bands_clouds_and_place(scene, make, stack):
    series = Series.open(make(), scene)
    assert [str(day) for day in series.dates] == list(DATES) and series.bands == ("red", "nir") and series.count == 2
    assert series.days.tolist() == [60, 161, 370]  # the second year goes on counting, so that dates stay in order
    assert (series.height, series.width) == (7, 9) and series.gsd == 10 and series.covered == 1  # beneath the image
    found = series.beneath(Window(0, 0, 60, 60), side=8)
    assert found["series"].shape == (3, 2, 8, 8) and found["series"].dtype == np.float32
    np.testing.assert_array_equal(found["series"][..., :7, :7], stack[..., :7, :7])
    valid = (stack != 0).any(1)[:, :7, :7]
    np.testing.assert_array_equal(found["series_valid"][:, :7, :7], valid)
    assert valid[2].all() and not valid[1].all()
    assert not found["series_valid"][:, 7].any() and not found["series_valid"][..., 7].any()
    text = "\n".join(series.describe())
    assert "3 dates, 2023-03-01 to 2024-01-05" in text and "red, nir" in text and "covers" not in text


def test_a_nodata_value_that_is_not_zero_counts_in_one_band(scene, make, stack):
    values = stack.astype(np.float32)
    values[0, 1, 0, 0], values[0, 0, 0, 1] = -1, np.inf
    found = Series.open(make(values=values, nodata=-1), scene).beneath(Window(0, 0, 20, 20))
    assert found["series_valid"][0, 0].tolist() == [False, False, True]  # -1; infinite; seen
    assert (found["series"][0, :, 0, :2] == 0).all() and found["series_valid"][1:].all()


@pytest.mark.parametrize(
    "transform",
    [
        COARSE,
        Affine(10, 0, 400_000, 0, -10, 5_800_000),
        Affine(3.7, 0, 399_992.7, 0, -2.2, 5_800_002.9),
        Affine(0.5, 0, 400_001.5, 0, -0.5, 5_799_999.75),
        Affine(8, 3, 399_985, 3, -8, 5_800_006),
    ],
    ids=["offset", "aligned", "odd", "finer", "rotated"],
)
def test_a_window_gets_the_pixels_beneath_it(scene, write, transform):
    """The series holds the map coordinates of its own pixels, so that what is beneath a pixel can be looked up."""
    columns, rows = np.meshgrid(np.arange(170) + 0.5, np.arange(140) + 0.5)
    x, y = apply(transform, columns, rows)
    values = np.stack([x - 399_000, y - 5_799_000]).astype(np.float32)
    path = write("s.tif", values, transform=transform, descriptions=["2023-03-01 x", "2023-03-01 y"], nodata=0)
    series = Series.open(path, scene)
    side = series.side(16)
    for left, top in [(0, 0), (13, 7), (64, 44), (31, 1)]:
        found = series.beneath(Window(left, top, 16, 16), side)
        grid = Affine(*found["series_grid"].tolist())
        whole = grid_between(FINE, transform)
        np.testing.assert_allclose(found["series_grid"][[0, 1, 3, 4]], whole[[0, 1, 3, 4]], rtol=1e-6)
        size = (abs(transform.a) + abs(transform.b)) / 2, (abs(transform.d) + abs(transform.e)) / 2
        for column, row in [(0.5, 0.5), (15.5, 3.5), (8, 15.9), (15.9, 15.9)]:
            u, v = apply(grid, column, row)
            if not found["series_valid"][0, int(v), int(u)]:
                assert transform.a == 0.5  # the finer one begins within the image
                continue
            at = found["series"][0, :, int(v), int(u)] + [399_000, 5_799_000]
            x, y = apply(FINE, left + column, top + row)
            assert abs(at[0] - x) <= size[0] + 0.01 and abs(at[1] - y) <= size[1] + 0.01
        u, v = apply(grid, np.array([0, 16, 0, 16]), np.array([0, 0, 16, 16]))
        assert not found["series_valid"][:, int(np.ceil(v.max() + 1e-4)) :].any()  # what the window does not touch
        assert not found["series_valid"][:, :, int(np.ceil(u.max() + 1e-4)) :].any()
    for left in range(0, 64):
        series.beneath(Window(left, left // 2, 16, 16), side)  # one size is enough for all
    with pytest.raises(ValueError, match="do not fit"):
        series.beneath(Window(0, 0, 32, 32), side)


def test_memory_and_pickle_change_nothing(scene, make):
    series, kept = Series.open(make(), scene), Series.open(make(), scene)
    kept.preload()
    kept = pickle.loads(pickle.dumps(kept))
    for window in (Window(0, 0, 80, 60), Window(37, 11, 16, 16), Window(70, 50, 32, 32)):
        one, other = series.beneath(window), kept.beneath(window)
        assert all(np.array_equal(one[name], other[name]) for name in one)
    assert len(pickle.dumps(kept)) < 5_000


def test_bands_are_matched_by_name_then_by_number(scene, make):
    given = Series.open(make(), scene, ["nir", "red"])
    own = Series.open(make(), scene)
    window = Window(0, 0, 60, 60)
    np.testing.assert_array_equal(given.beneath(window)["series"][:, ::-1], own.beneath(window)["series"])
    other = Series.open(make(), scene, ["B4", "B8"])
    assert other.bands == ("red", "nir") and "taken in this order" in other.describe()[-1]
    with pytest.raises(ValueError, match=r"2 bands a date \(red, nir\), where 3 are needed"):
        Series.open(make(), scene, ["a", "b", "c"])


def test_what_is_wrong_is_said(scene, make, stack, tmp_path):
    wrong = {
        r"band 1 is described as None.*YYYY-MM-DD": {"names": None},
        r"band 2 is described as 'nir'": {"names": ["2023-03-01 red", "nir", *NAMES[2:]]},
        r"band 1 is described as '2023-02-30 red'": {"names": ["2023-02-30 red", *NAMES[1:]]},
        r"2023-06-10 has the bands red, and 2023-03-01 has red, nir": {"values": stack[:2].reshape(4, 8, 10)[:3],
                                                                         "names": NAMES[:3]},
        r"2024-01-05 has the bands red, blue": {"names": [*NAMES[:5], "2024-01-05 blue"]},
        r"2023-03-01 stands in two places": {"names": [*NAMES[:4], *NAMES[:2]]},
        r"equal names: red, red": {"names": [name.replace("nir", "red") for name in NAMES]},
        r"its CRS is EPSG:32634, the image's EPSG:32633.*gdalwarp": {"crs": "EPSG:32634"},
        r"has no CRS": {"crs": None},
        r"do not overlap": {"transform": from_origin(500_000, 5_800_000, 10, 10)},
        r"not one valid pixel": {"values": np.zeros_like(stack)},
    }  # fmt: skip
    for number, (message, changes) in enumerate(wrong.items()):
        with pytest.raises(ValueError, match=message):
            Series.open(make(f"{number}.tif", **changes), scene)
    with pytest.raises(FileNotFoundError, match="no such file"):
        Series.open(tmp_path / "absent.tif", scene)
    path = make("cut.tif", values=np.random.default_rng(0).integers(1, 99, (3, 2, 200, 200)).astype(np.uint16))
    path.write_bytes(path.read_bytes()[:90_000])
    with pytest.raises(OSError, match=r"cut\.tif"):
        Series.open(path, scene)


def test_the_twins_own_files_are_read(tmp_path, monkeypatch):
    monkeypatch.setenv("HIERLAB_CACHE", str(tmp_path / "cache"))
    sensor = sensors.SENSORS["sentinel2-series"]
    monkeypatch.setitem(sensors.SENSORS, "sentinel2-series", dataclasses.replace(sensor, dates=sensor.dates[8:14]))
    data = twin.dataset("whu-h2sr-mt", "train", "smoke", size=30, count=1)
    export.export([data], tmp_path / "set")
    item = data[0]
    scene = Scene.open(next(tmp_path.glob("set/train/hsi/*.tif")))
    found = Series.open(next(tmp_path.glob("set/train/series/*.tif")), scene).beneath(Window(0, 0, 30, 30), 3)
    valid = item["series_valid"].numpy()
    np.testing.assert_array_equal(found["series_valid"], valid)
    np.testing.assert_array_equal(found["series"], np.where(valid[:, None], item["series"].numpy(), 0))
    assert found["series_days"].tolist() == list(data.days) and 0 < valid.mean() < 1
    np.testing.assert_allclose(found["series_grid"], [0.1, 0, 0, 0, 0.1, 0], atol=1e-6)


# ------------------------------------------------------------------------------------------- data sets, statistics


def labelled(scene, series):
    label = (np.indices((scene.height, scene.width)).sum(0) // 7 % 3).astype(np.uint8)
    return LabelledScene(scene, label, series)


def test_items_stack_whatever_their_series(scene, make, stack, write, noise):
    """Two scenes, one with a shorter series: what is missing is an invalid date of the same array."""
    shorter = Scene.open(write("second.tif", noise(2, 40, 40), transform=from_origin(400_020, 5_800_000, 1, 1)))
    short = Series.open(make("short.tif", values=stack[:2], names=NAMES[:4]), shorter)
    sources = [(labelled(scene, Series.open(make(), scene)), None), (labelled(shorter, short), None)]
    for options in ({"samples": 12}, {}):
        data = RasterDataset(sources, 16, **options)
        assert data.dates == 3 and data.series_bands == ("red", "nir")
        for batch in DataLoader(data, 4, drop_last=True):
            assert batch["series"].shape == (4, 3, 2, 3, 3) and batch["series_valid"].dtype == torch.bool
            assert batch["series_grid"].shape == (4, 6) and batch["series_days"].shape == (4, 3)
            for n, days in enumerate(batch["series_days"].tolist()):
                assert days[:2] == [60, 161] and days[2] in (0, 370)
                assert days[2] or not batch["series_valid"][n, 2].any()
    plain = RasterDataset([(LabelledScene(scene, sources[0][0].labels), None)], 16)
    assert not any(name.startswith("series") for name in plain[0]) and plain.dates == 0
    with pytest.raises(ValueError, match="or none does"):
        RasterDataset([sources[0], (LabelledScene(shorter, sources[1][0].labels), None)], 16)


def test_an_item_has_the_series_of_its_own_window(scene, make, write):
    """The image holds its pixels' places, so that the item tells which window it is."""
    places = np.stack(np.meshgrid(np.arange(60), np.arange(80), indexing="ij")).astype(np.uint16) + 1
    own = Scene.open(write("places.tif", places, transform=FINE))
    series = Series.open(make(), own)
    data = RasterDataset([(labelled(own, series), None)], 16, samples=10)
    again = RasterDataset([(labelled(own, series), None)], 16, samples=10, cache=0)
    for item, other in zip(data, again, strict=True):
        row, column = (int(item["image"][n, 0, 0]) - 1 for n in (0, 1))
        expected = series.beneath(Window(column, row, 16, 16), 3)
        for name, value in expected.items():
            np.testing.assert_array_equal(item[name], value)
            np.testing.assert_array_equal(other[name], value)


def test_statistics_are_those_of_the_valid_pixels_of_the_part(scene, make, stack):
    source = labelled(scene, Series.open(make(), scene))
    found = series_statistics([(source, None)])
    centres = [apply(COARSE, column + 0.5, row + 0.5) for row in range(8) for column in range(10)]
    inside = np.array([400_000 <= x < 400_080 and 5_799_940 < y <= 5_800_000 for x, y in centres]).reshape(8, 10)
    seen = (stack != 0).any(1) & inside
    values = stack.transpose(1, 0, 2, 3)[:, seen].astype(float)
    np.testing.assert_allclose(found.mean, values.mean(1), rtol=1e-9)
    np.testing.assert_allclose(found.std, values.std(1), rtol=1e-9)
    assert found.pixels == values.shape[1]
    split = blocked_split(source, 20, 0.3, 0)
    train = series_statistics([(source, split)])
    image = [apply(~FINE, *centre) for centre in centres]
    mask = split.mask("train")
    mine = np.array([i and mask[int(r), int(c)] for (c, r), i in zip(image, inside.ravel(), strict=True)])
    assert train.pixels == (seen & mine.reshape(8, 10)).sum() < found.pixels


def test_normalisation_has_its_own_bands_and_clouds_are_the_mean():
    normalize = Normalize([1.0], [2.0], {"mean": [10.0, 20.0], "std": [2.0, 4.0]})
    series = torch.tensor([12.0, 12.0]).view(1, 1, 2, 1, 1).repeat(1, 3, 1, 2, 2)
    valid = torch.ones(1, 3, 2, 2, dtype=torch.bool)
    valid[0, 1] = False
    batch = {"image": torch.zeros(1, 1, 4, 4), "series": series, "series_valid": valid, "series_days": 1}
    out = normalize(batch)
    assert out["series"][0, :, :, 0, 0].tolist() == [[1.0, -2.0], [0.0, 0.0], [1.0, -2.0]]
    assert torch.equal(normalize(batch | {"series_valid": valid[..., 0, 0]})["series"], out["series"])
    assert out["series_days"] == 1 and (out["image"] == -0.5).all()
    assert torch.equal(Normalize()(batch)["series"], torch.where(valid[:, :, None], series, 0))
    with pytest.raises(ValueError, match=r"series \(B, T, 2, h, w\); got \(1, 3, 1, 2, 2\)"):
        normalize(batch | {"series": series[:, :, :1]})


# ------------------------------------------------------------------------------------------------- augmentation


def test_a_turned_sample_samples_the_same_ground():
    """Every image pixel holds what the series tells at its place, before and after; and all eight moves happen."""
    random = torch.Generator().manual_seed(0)
    grid = torch.tensor([0.11, 0.03, 1.4, -0.02, 0.09, 0.8]).repeat(200, 1)
    series = torch.rand(200, 1, 1, 6, 6, generator=random)
    image = sample(series[:, 0], (24, 24), grid)
    batch = {"image": image, "label": (image[:, 0] * 10).long(), "series": series, "series_grid": grid}
    batch |= {"series_valid": series[:, :, 0] > 0.5, "series_days": torch.ones(200, 1)}
    out = augment(batch, Augment(scale=None), random)
    torch.testing.assert_close(sample(out["series"][:, 0], (24, 24), out["series_grid"]), out["image"])
    assert torch.equal(out["series_valid"], out["series"][:, :, 0] > 0.5)
    assert len({tuple(row) for row in out["series_grid"].mul(1e4).round().int().tolist()}) == 8
    alone = augment({**batch, "series_grid": grid[0]}, Augment(scale=None), torch.Generator().manual_seed(3))
    assert alone["series_grid"].shape == (200, 6)


def test_a_series_keeps_its_image_whole():
    batch = {"image": torch.rand(2, 1, 24, 24), "label": torch.zeros(2, 24, 24).long()}
    batch["series"] = torch.rand(2, 3, 1, 4, 5)
    for settings in (Augment(), Augment(scale=None, crop=16)):
        with pytest.raises(ValueError, match=r"away from its time series.*scale=None and crop=None"):
            augment(batch, settings, torch.Generator())
    with pytest.raises(ValueError, match="'series' has 4×5 pixels: quarter turns need squares"):
        augment(batch, Augment(scale=None), torch.Generator())
    out = augment(batch, Augment(horizontal=1.0, vertical=0.0, quarter_turns=False, scale=None), torch.Generator())
    assert torch.equal(out["series"], batch["series"].flip(-1))
