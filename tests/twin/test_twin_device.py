"""Images made by torch: those of NumPy but for rounding, the same however they are cut, and apart from the others."""

import numpy as np
import pytest
import torch

from hierlab import twin
from hierlab.twin import arrays, optics
from hierlab.twin.fields import Grid
from hierlab.twin.optics import Sun
from hierlab.twin.sensors import lookup


@pytest.mark.parametrize("name", sorted({*twin.SENSORS} - {"sentinel2-series", "landsat8-series"}))
def test_every_sensor_sees_the_same_on_a_device(name):
    side = 24 if twin.SENSORS[name].gsd >= 10 else 96
    window = (100, -60, side, side)
    here, there = twin.render(name, 3, 1, window), twin.render(name, 3, 1, window, device="cpu")
    assert there.image.dtype == here.image.dtype and there.image.flags.writeable
    apart = np.abs(here.image.astype(int) - there.image)
    assert apart.max() <= 1 and (apart > 0).mean() < 2e-3  # a value at a half is rounded the other way
    assert (here.label == there.label).all() and (here.kind == there.kind).all()
    assert here.image.std() > 5  # there is something to see


def test_a_series_sees_the_same_clouds_on_a_device():
    sensor = lookup("landsat8-series")
    window = (40, 30, 48, 48)
    here, there = twin.render(sensor, 3, 1, window), twin.render(sensor, 3, 1, window, device="cpu")
    apart = np.abs(here.image.astype(int) - there.image)
    assert apart.max() <= 1 and (apart > 0).mean() < 5e-3
    assert (here.valid == there.valid).mean() > 0.9999 and 0.05 < here.valid.mean() < 0.95


def test_on_a_device_too_a_window_is_the_same_however_it_is_cut():
    whole = twin.render("google-1m", 2, 0, (480, 500, 64, 40), device="cpu").image
    for x, y, width, height in ((490, 505, 20, 20), (505, 510, 30, 25)):  # one of them across two tiles
        part = twin.render("google-1m", 2, 0, (x, y, width, height), device="cpu").image
        assert (part == whole[:, y - 500 : y - 500 + height, x - 480 : x - 480 + width]).all()


def test_a_file_is_what_render_gives_on_the_device(tmp_path):
    import rasterio

    twin.render_geotiff(tmp_path / "image.tif", "sentinel2", 0, 4, (90, 100, 30, 20), device="cpu")
    with rasterio.open(tmp_path / "image.tif") as file:
        assert (file.read() == twin.render("sentinel2", 0, 4, (90, 100, 30, 20), device="cpu").image).all()


def test_fields_keep_every_digit_whatever_precision_is_set_elsewhere():
    grid = Grid.of(1, 0, 7000, -300, 64, 1000)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        there = grid.on(torch.device("cpu")).noise("x", 40, 3)
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before)
    assert there.dtype == torch.float32
    np.testing.assert_allclose(there.numpy(), grid.noise("x", 40, 3), atol=2e-5)


def test_light_and_noise_agree_with_numpy():
    height = np.random.default_rng(0).random((60, 50)).astype(np.float32) * 20
    for light in (Sun(30.0, 200.0), Sun(62.0, 110.0)):
        there = optics.shadows(torch.from_numpy(height), light, 1.0)
        np.testing.assert_allclose(there.numpy(), optics.shadows(height, light, 1.0), atol=1e-5)
    np.testing.assert_allclose(optics.openness(torch.from_numpy(height), 1.0), optics.openness(height, 1.0), rtol=1e-5)
    here, there = np.zeros((3, 5, 40), np.float32), torch.zeros(3, 5, 40)
    for image in (here, there):
        optics.add_noise(image, np.uint32(7), 32, 2, np.array([1.0, 2.0, 4.0]))
    assert (here == there.numpy()).all() and here.std() > 1


def test_numbers_above_32767_come_back_whole():
    values = torch.tensor([1.0, 32767.0, 32768.0, 65535.0])
    assert arrays.numbers(values, "uint16").tolist() == [1, 32767, 32768, 65535]
    assert arrays.numbers(values[:1], "uint8").dtype == np.uint8


@pytest.mark.parametrize("device", ["nowhere", "cuda:99", "meta"])
def test_a_device_that_is_not_there_is_told_at_once(device, tmp_path):
    if device == "cuda:99" and torch.cuda.device_count() > 99:
        pytest.skip("this machine has a hundredth GPU")
    match = f"device '{device}': images cannot be made there"
    with pytest.raises(ValueError, match=match):
        twin.render("gaofen2", 0, 0, (0, 0, 8, 8), device=device)
    with pytest.raises(ValueError, match=match):
        twin.render_geotiff(tmp_path / "image.tif", "gaofen2", 0, 0, (0, 0, 8, 8), device=device)
    with pytest.raises(ValueError, match=match):
        twin.dataset("mm5b-sentinel2", "train", "smoke", device=device)
    assert not list(tmp_path.iterdir())


def test_a_set_made_on_a_device_has_a_cache_of_its_own(tmp_path, monkeypatch):
    monkeypatch.setenv("HIERLAB_CACHE", str(tmp_path))
    here, there = (
        twin.dataset("mm5b-sentinel2", "train", "smoke", size=16, count=1, device=device) for device in (None, "cpu")
    )
    assert here.fingerprint != there.fingerprint and here.folder != there.folder
    a, b = here[0], there[0]
    assert (a["image"] - b["image"]).abs().max() <= 1 and (a["label"] == b["label"]).all()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
def test_a_gpu_sees_what_the_processor_sees():
    for name in ("google-1m", "hyperspectral-1m", "sentinel2"):
        here, there = (twin.render(name, 3, 1, (100, -60, 64, 64), device=device) for device in (None, "cuda"))
        apart = np.abs(here.image.astype(int) - there.image)
        assert apart.max() <= 1 and (apart > 0).mean() < 2e-3
