"""Mapping: blending equal to brute force however the scene is cut, flat memory, and files that are whole or absent."""

import io
import os
import resource
import shutil
import signal
import threading
import tracemalloc
import xml.etree.ElementTree as ElementTree
from collections import namedtuple

import numpy as np
import pytest
import rasterio
import rasterio.shutil
import torch
from hypothesis import given
from hypothesis import strategies as st
from rasterio.transform import from_origin
from rasterio.windows import Window
from torch import nn

from hierlab import _blend, _cog, mapping
from hierlab._blend import Blender, Grid, ahead, blend_weights, window_starts
from hierlab.data.rasters import Scene
from hierlab.tree import ClassTree

UTM = {"crs": "EPSG:32612", "transform": from_origin(500_000, 4_000_000, 10, 10)}
TREE = ClassTree.from_dict(
    {
        "name": "small",
        "levels": [
            {
                "name": "L1",
                "classes": [{"name": "wet & <low>", "color": "#0000ff"}, {"name": "dry", "color": "#aa7700"}],
            },
            {
                "name": "L2",
                "classes": [
                    {"name": "eau", "color": "#0000aa", "parent": "wet & <low>"},
                    {"name": "marécage", "color": "#007788", "parent": "wet & <low>"},
                    {"name": "sand", "color": "#ffee88", "parent": "dry"},
                    {"name": "rock", "color": "#888888", "parent": "dry"},
                ],
            },
        ],
    }
)


class Small(nn.Module):
    """Two convolutions whose padding makes a window's edges differ from its middle, so that blending shows."""

    def __init__(self, bands=2, sizes=TREE.sizes):
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        self.sizes = list(sizes)
        self.layers = nn.Sequential(
            nn.Conv2d(bands, 6, 5, padding=2), nn.ReLU(), nn.Conv2d(6, sum(sizes), 3, padding=1)
        )
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=0.5, generator=generator)
        self.seen = []

    def forward(self, batch):
        self.seen.append((tuple(batch["image"].shape), tuple(batch["valid"].shape), batch["valid"].dtype))
        return {"logits": list(self.layers(batch["image"] / 1000).split(self.sizes, dim=1))}


@pytest.fixture
def make_scene(tmp_path):
    """Function from (height, width) to a Scene of smooth noise; ``holes`` are slices of nodata."""

    def make(height, width, holes=(), bands=2, name="scene.tif", **grid):
        values = np.random.default_rng(5).integers(1, 1000, (bands, height, width)).astype(np.uint16)
        for hole in holes:
            values[:, *hole] = 0
        path = tmp_path / "in" / name
        path.parent.mkdir(exist_ok=True)
        profile = {"driver": "GTiff", "dtype": "uint16", "nodata": 0, **(grid or UTM)}
        with rasterio.open(path, "w", height=height, width=width, count=bands, **profile) as file:
            file.write(values)
            file.descriptions = ["red", "nir", "swir", "green"][:bands]
        return Scene.open(path)

    return make


@pytest.fixture(params=[False, True], ids=["in turn", "side by side"])
def side_by_side(request, monkeypatch):
    """The network in the same thread as the blending, as on a CPU, and in another, as on a GPU."""
    if request.param:
        monkeypatch.setattr(mapping, "_beside", lambda device, outputs: ahead(outputs))


def brute_force(model, scene, window, overlap):
    """Blended logits (ΣK, H, W) float64, every window added to the whole scene."""
    image, valid = scene.read_valid()
    tops, down = blend_weights(scene.height, window, overlap)
    lefts, across = blend_weights(scene.width, window, overlap)
    more = ((0, max(0, window - scene.height)), (0, max(0, window - scene.width)))
    image, valid = np.pad(image, ((0, 0), *more), "edge"), np.pad(valid, more, "edge")
    total = np.zeros((sum(model.sizes), *valid.shape))
    for top, weight_y in zip(tops, down, strict=True):
        for left, weight_x in zip(lefts, across, strict=True):
            here = slice(top, top + window), slice(left, left + window)
            batch = {"image": torch.from_numpy(image[:, *here])[None], "valid": torch.from_numpy(valid[here])[None]}
            with torch.no_grad():
                logits = torch.cat(model(batch)["logits"], 1)[0].double().numpy()
            total[:, *here] += logits * weight_y[:, None] * weight_x
    return total[:, : scene.height, : scene.width]


def assert_same_map(labels, logits, tree, sizes, valid):
    """Labels equal those decoded from ``logits``, save where the best two paths score the same to 1e-4."""
    levels = torch.from_numpy(logits)[None].split(list(sizes), 1)
    expected = tree.decode(levels)[0].numpy()
    if len(sizes) == 1:
        best = levels[0].topk(2, dim=1).values
    else:
        scores = sum(torch.sigmoid(level)[:, tree.paths[:, i]] for i, level in enumerate(levels))
        best = scores.topk(2, dim=1).values
    clear = (best[:, 0] - best[:, 1] > 1e-4)[0].numpy() & valid
    assert clear.sum() > 0.99 * valid.sum()
    assert np.array_equal(labels[:, clear], expected[:, clear])
    assert (labels[:, ~valid] == 255).all()
    assert (labels[:, valid] != 255).all()


# ---------------------------------------------------------------- windows and blending


@given(st.integers(1, 400), st.integers(1, 90), st.data())
def test_windows_cover_an_axis_with_the_overlap_asked_for(length, window, data):
    overlap = data.draw(st.integers(0, window - 1))
    starts, weights = blend_weights(length, window, overlap)
    assert starts == window_starts(length, window, overlap)
    assert starts[0] == 0
    assert starts[-1] == max(length - window, 0)
    steps = np.diff(starts)
    assert (steps >= 1).all()
    assert (steps <= window - overlap).all()
    assert steps.size == 0 or steps.max() - steps.min() <= 1
    assert (weights > 0).all()
    total = np.zeros(max(length, window))
    for start, weight in zip(starts, weights, strict=True):
        total[start : start + window] += weight
    assert np.allclose(total, 1, atol=1e-5)


def blended(height, width, window, overlap, swath_width, logits):
    """All cores of a Blender put together, (ΣK, H, W)."""
    grid = Grid(height, width, window, overlap, swath_width)
    channels = next(iter(logits.values())).shape[0]
    blender = Blender(grid, channels, torch.device("cpu"), seams := io.BytesIO())
    whole = torch.full((channels, max(height, window), max(width, window)), torch.nan)
    for swath in grid.swaths:
        for row, top in enumerate(grid.tops):
            for column in swath:
                core = blender.add(row, column, logits[row, column].split([1, channels - 1]))
                left = grid.lefts[column]
                whole[:, top : top + core.shape[1], left : left + core.shape[2]] = core
    assert len(seams.getvalue()) <= grid.seam_bytes(channels)
    assert not blender.below
    return grid, whole


@pytest.mark.parametrize(
    ("height", "width", "window", "overlap"),
    [
        (61, 83, 16, 4),
        (64, 96, 16, 0),
        (40, 45, 16, 13),
        (17, 70, 16, 8),
        (90, 17, 16, 3),
        (5, 9, 16, 4),
        (16, 16, 16, 8),
    ],
)
def test_blending_equals_brute_force_bit_for_bit_whatever_the_swaths(height, width, window, overlap):
    rows, columns = (len(window_starts(n, window, overlap)) for n in (height, width))
    logits = {(i, j): torch.randn(3, window, window) for i in range(rows) for j in range(columns)}
    grid, whole = blended(height, width, window, overlap, 10**6, logits)
    assert len(grid.swaths) == 1
    expected = torch.zeros(whole.shape, dtype=torch.float64)
    for (i, j), values in logits.items():
        y, x = grid.tops[i], grid.lefts[j]
        weights = torch.from_numpy(np.outer(grid.row_weights[i], grid.column_weights[j]))
        expected[:, y : y + window, x : x + window] += values.double() * weights
    assert torch.allclose(whole.double(), expected, atol=1e-5)
    for swath_width in (1, 2 * window, 3 * window):
        assert torch.equal(blended(height, width, window, overlap, swath_width, logits)[1], whole)


# ---------------------------------------------------------------- whole maps


@pytest.mark.parametrize(("height", "width"), [(150, 203), (97, 64), (30, 41)])
def test_a_map_equals_brute_force_whatever_the_batches_and_swaths(make_scene, tmp_path, monkeypatch, height, width):
    scene, model = make_scene(height, width), Small()
    logits = brute_force(model, scene, 64, 16)
    maps = []
    for batch_size, swath_bytes in ((1, 2**25), (5, 2**25), (3, 2**10)):
        monkeypatch.setattr(mapping, "SWATH_BYTES", swath_bytes)
        out = tmp_path / f"map{len(maps)}.tif"
        stats = mapping.map_scene(model, TREE, scene, out, window=64, overlap=16, batch_size=batch_size)
        assert stats["windows"] == len(window_starts(height, 64, 16)) * len(window_starts(width, 64, 16))
        maps.append(mapping.read_map(out)[0])
    assert_same_map(maps[0], logits, TREE, model.sizes, np.ones((height, width), bool))
    assert (maps[0] == maps[1]).mean() > 0.999
    assert (maps[0] == maps[2]).mean() > 0.999
    assert TREE.consistent(torch.from_numpy(maps[0]).long()[None]).all()


def test_the_network_may_run_beside_the_blending(make_scene, tmp_path, side_by_side):
    scene, model = make_scene(70, 90), Small()
    mapping.map_scene(model, TREE, scene, tmp_path / "map.tif", window=32, batch_size=3)
    labels, _, _ = mapping.read_map(tmp_path / "map.tif")
    assert_same_map(labels, brute_force(model, scene, 32, 4), TREE, model.sizes, np.ones((70, 90), bool))


def test_a_flat_model_is_mapped_up_the_tree(make_scene, tmp_path):
    scene, model = make_scene(70, 90), Small(sizes=TREE.sizes[-1:])
    mapping.map_scene(model, TREE, scene, tmp_path / "map.tif", window=32)
    labels, _, _ = mapping.read_map(tmp_path / "map.tif")
    assert_same_map(labels, brute_force(model, scene, 32, 4), TREE, model.sizes, np.ones((70, 90), bool))


def test_nodata_is_masked_and_windows_of_nothing_else_are_skipped(make_scene, tmp_path, monkeypatch):
    holes = [(slice(40, 160), slice(50, 230)), (slice(0, 20), slice(0, 20)), (slice(190, 200), slice(90, 93))]
    scene, model = make_scene(200, 260, holes), Small()
    valid = scene.read_valid()[1]
    logits = brute_force(model, scene, 32, 8)
    for swath_bytes in (2**25, 2**10):
        monkeypatch.setattr(mapping, "SWATH_BYTES", swath_bytes)
        model.seen.clear()
        stats = mapping.map_scene(
            model, TREE, scene, tmp_path / "map.tif", window=32, overlap=8, batch_size=4, overwrite=True
        )
        labels, _, _ = mapping.read_map(tmp_path / "map.tif")
        assert_same_map(labels, logits, TREE, model.sizes, valid)
        assert stats["skipped"] >= 20
        assert sum(image[0] for image, _, _ in model.seen) == stats["windows"] - stats["skipped"]
        assert stats["valid"] == pytest.approx(valid.mean())
    assert model.seen[0] == ((4, 2, 32, 32), (4, 32, 32), torch.bool)


def test_statistics_count_pixels_and_hectares(make_scene, tmp_path):
    scene = make_scene(130, 80, [(slice(0, 50), slice(0, 80))])
    stats = mapping.map_scene(Small(), TREE, scene, tmp_path / "map.tif", window=64)
    labels, _, _ = mapping.read_map(tmp_path / "map.tif")
    for level, plane in zip(stats["levels"], labels, strict=True):
        pixels = [c["pixels"] for c in level["classes"]]
        assert pixels == [(plane == k).sum() for k in range(len(pixels))]
        assert sum(c["share"] for c in level["classes"]) == pytest.approx(1)
        assert [c["hectares"] for c in level["classes"]] == pytest.approx([n * 0.01 for n in pixels])
    assert stats["levels"][1]["classes"][1]["name"] == "marécage"
    assert stats["mpx_per_s"] == pytest.approx(130 * 80 / 1e6 / stats["seconds"])
    assert stats["peak_rss_mb"] > 50


def test_areas_in_degrees_shrink_towards_the_pole(make_scene, tmp_path):
    scene = make_scene(100, 64, crs="EPSG:4326", transform=from_origin(10, 70, 0.1, 0.1))
    stats = mapping.map_scene(Small(), TREE, scene, tmp_path / "map.tif", window=64)
    hectares = sum(c["hectares"] for c in stats["levels"][0]["classes"])
    zone = np.radians(6.4) * (np.sin(np.radians(70)) - np.sin(np.radians(60))) * 6371.0072**2 * 100
    assert hectares == pytest.approx(zone, rel=1e-4)


def test_bf16_agrees_with_single_precision(make_scene, tmp_path):
    scene = make_scene(80, 100)
    options = [{}, {"precision": "bf16-mixed"}, {"channels_last": False}]
    maps = []
    for number, option in enumerate(options):
        mapping.map_scene(Small(), TREE, scene, tmp_path / f"{number}.tif", window=64, **option)
        maps.append(mapping.read_map(tmp_path / f"{number}.tif")[0])
    assert 0.97 < (maps[0] == maps[1]).mean() < 1
    assert (maps[0] == maps[2]).mean() > 0.999


def test_the_model_keeps_its_training_flags(make_scene, tmp_path):
    model = Small()
    model.layers[1].eval()
    mapping.map_scene(model, TREE, make_scene(20, 20), tmp_path / "map.tif", window=16)
    assert model.training
    assert model.layers[0].training
    assert not model.layers[1].training


def test_progress_is_shown(make_scene, tmp_path, capsys):
    mapping.map_scene(Small(), TREE, make_scene(20, 20), tmp_path / "map.tif", window=16, progress=True)
    assert "Mpx/s" in capsys.readouterr().out


def test_memory_does_not_grow_with_the_scene(make_scene, tmp_path, monkeypatch):
    monkeypatch.setattr(mapping, "SWATH_BYTES", 2**19)
    held = []

    class Weighed(Blender):
        def add(self, row, column, logits):
            core = super().add(row, column, logits)
            kept = [self.total, *self.below.values()] + ([] if self.right is None else [self.right])
            held[-1] = max(held[-1], sum(tensor.nbytes for tensor in kept))
            return core

    monkeypatch.setattr(mapping, "Blender", Weighed)
    peaks = []
    for side in (640, 1600):
        scene = make_scene(side, side)
        held.append(0)
        tracemalloc.start()
        mapping.map_scene(Small(), TREE, scene, tmp_path / f"{side}.tif", window=128, overlap=16)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert held[1] < 1.1 * held[0]
    assert peaks[1] < 1.25 * peaks[0]


# ---------------------------------------------------------------- the file


def test_the_file_is_a_cog_on_the_scenes_grid(make_scene, tmp_path):
    scene = make_scene(1100, 700)
    mapping.map_scene(Small(), TREE, scene, tmp_path / "map.tif", window=256, tags={"twin": "yes"})
    with rasterio.open(tmp_path / "map.tif") as file:
        assert file.tags(ns="IMAGE_STRUCTURE")["LAYOUT"] == "COG"
        assert file.profile["tiled"]
        assert file.compression.value == "ZSTD"
        assert file.overviews(1) == [2, 4]
        assert (file.height, file.width, file.count) == (1100, 700, 2)
        assert (file.crs, file.transform) == (scene.crs, scene.transform)
        assert file.nodata == 255
        assert file.dtypes == ("uint8", "uint8")
        assert file.descriptions == ("L1", "L2")
        assert file.tags(2)["class_1"] == "marécage"
        assert file.tags(1)["color_1"] == "#aa7700"
        assert file.tags(1)["class_0"] == "wet & <low>"
        assert {k: v[:3] for k, v in file.colormap(1).items() if k < 2} == {0: (0, 0, 255), 1: (0xAA, 0x77, 0)}
    names = ElementTree.parse(tmp_path / "map.tif.aux.xml").findall("PAMRasterBand[@band='2']//Category")
    assert [name.text for name in names] == list(TREE.classes[1])
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in", "map.tif", "map.tif.aux.xml"]

    labels, tree, about = mapping.read_map(tmp_path / "map.tif")
    assert tree == TREE
    assert about["twin"] == "yes"
    assert about["rule"] == "sigmoid"
    assert about["window"], about["overlap"] == ("256", "32")
    assert about["model"] == mapping.fingerprint(Small())
    part, _, about = mapping.read_map(tmp_path / "map.tif", Window(100, 200, 30, 40))
    assert np.array_equal(part, labels[:, 200:240, 100:130])
    assert about["transform"] == from_origin(501_000, 3_998_000, 10, 10)

    small, colors = mapping.preview(tmp_path / "map.tif", size=256)
    assert small.shape == (2, 256, 163)
    assert colors.shape == (2, 256, 163, 3)
    assert np.array_equal(colors[1], TREE.colors[1][small[1]])


def test_a_preview_is_white_where_there_is_nothing(make_scene, tmp_path):
    scene = make_scene(40, 40, [(slice(0, 40), slice(0, 20))])
    mapping.map_scene(Small(), TREE, scene, tmp_path / "map.tif", window=16, compress="DEFLATE")
    labels, colors = mapping.preview(tmp_path / "map.tif")
    assert (labels[:, :, :20] == 255).all()
    assert (colors[:, :, :20] == 255).all()
    assert not (colors[:, :, 20:] == 255).all(-1).any()


def test_the_fingerprint_follows_values():
    model, other = Small(), Small()
    assert mapping.fingerprint(model) == mapping.fingerprint(other)
    with torch.no_grad():
        other.layers[0].bias[0] += 1e-3
    assert mapping.fingerprint(model) != mapping.fingerprint(other)


def test_reading_another_file_as_a_map_is_refused(make_scene):
    path = make_scene(20, 20).paths[0]
    with pytest.raises(ValueError, match="no class tree in its tags"):
        mapping.read_map(path)
    with pytest.raises(ValueError, match="no class tree in its tags"):
        mapping.preview(path)


# ---------------------------------------------------------------- what is refused, and what fails on the way


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"bands": 4}, r"trained on 4 bands; scene.tif has 2 \(red, nir\)"),
        ({"bands": ("red", "nir", "swir")}, r"trained on 3 bands \(red, nir, swir\); scene.tif has 2"),
        ({"bands": ("nir", "red")}, "same bands, in the same order"),
        ({"window": 16, "overlap": 16}, "overlap 16 do not fit"),
        ({"window": 0}, "window 0"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"rule": "best"}, "sigmoid, log_softmax; got 'best'"),
        ({"precision": "16"}, "32-true, bf16-mixed for mapping; got '16'"),
    ],
)
def test_options_that_do_not_fit_are_refused_before_work(make_scene, tmp_path, options, message):
    model = Small()
    with pytest.raises(ValueError, match=message):
        mapping.map_scene(model, TREE, make_scene(20, 20), tmp_path / "map.tif", **options)
    assert not model.seen
    assert [p.name for p in tmp_path.iterdir()] == ["in"]


def test_other_band_names_in_no_conflict_pass(make_scene, tmp_path):
    mapping.map_scene(Small(), TREE, make_scene(20, 20), tmp_path / "map.tif", window=16, bands=("2019_B4", "2019_B5"))


def test_an_output_that_exists_or_is_an_input_is_refused(make_scene, tmp_path):
    scene, out = make_scene(20, 20), tmp_path / "map.tif"
    with pytest.raises(ValueError, match="a file of the scene itself"):
        mapping.map_scene(Small(), TREE, scene, scene.paths[0], overwrite=True)
    with pytest.raises(ValueError, match=r"ends in \.tif"):
        mapping.map_scene(Small(), TREE, scene, tmp_path / "map.png")
    out.write_bytes(b"precious")
    with pytest.raises(FileExistsError, match=r"map\.tif exists already"):
        mapping.map_scene(Small(), TREE, scene, out, window=16)
    assert out.read_bytes() == b"precious"
    mapping.map_scene(Small(), TREE, scene, out, window=16, overwrite=True)
    assert mapping.read_map(out)[1] == TREE


def assert_nothing_left(folder):
    assert [p.name for p in folder.iterdir()] == ["in"]
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("hierlab-")]
    assert not torch.is_inference_mode_enabled()
    assert not torch.is_autocast_enabled("cpu")


def test_logits_that_do_not_fit_the_tree_are_refused(make_scene, tmp_path):
    scene = make_scene(40, 40)
    with pytest.raises(ValueError, match=r"asks for 2/4 channels, or 4 for a flat model"):
        mapping.map_scene(Small(sizes=(3, 5)), TREE, scene, tmp_path / "map.tif", window=16)
    broken = Small()
    with torch.no_grad():
        broken.layers[0].weight.fill_(torch.nan)
    with pytest.raises(ValueError, match="NaN or infinite logits"):
        mapping.map_scene(broken, TREE, scene, tmp_path / "map.tif", window=16)
    assert_nothing_left(tmp_path)


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_an_interruption_leaves_nothing(make_scene, tmp_path, side_by_side, error):
    class Interrupted(Small):
        def forward(self, batch):
            if len(self.seen) == 3:
                raise error
            return super().forward(batch)

    with pytest.raises(error):
        mapping.map_scene(Interrupted(), TREE, make_scene(90, 90), tmp_path / "map.tif", window=16, batch_size=2)
    assert_nothing_left(tmp_path)


def test_ctrl_c_while_the_network_runs_leaves_nothing(make_scene, tmp_path, side_by_side):
    class Interrupted(Small):
        def forward(self, batch):
            if len(self.seen) == 2:
                os.kill(os.getpid(), signal.SIGINT)
            return super().forward(batch)

    with pytest.raises(KeyboardInterrupt):
        mapping.map_scene(Interrupted(), TREE, make_scene(600, 600), tmp_path / "map.tif", window=16, batch_size=1)
    assert_nothing_left(tmp_path)


def test_an_interruption_while_decoding_leaves_nothing(make_scene, tmp_path, monkeypatch, side_by_side):
    monkeypatch.setattr(ClassTree, "decode", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        scene = make_scene(90, 90)
        mapping.map_scene(Small(), TREE, scene, tmp_path / "map.tif", window=16, precision="bf16-mixed")
    assert_nothing_left(tmp_path)


def test_a_scene_that_cannot_be_read_to_its_end_leaves_nothing(make_scene, tmp_path, monkeypatch):
    scene, read = make_scene(90, 90), Scene.read_valid

    def failing(self, window=None, boundless=False):
        if window.row_off > 40:
            raise OSError("scene.tif: pixels cannot be read")
        return read(self, window, boundless)

    monkeypatch.setattr(Scene, "read_valid", failing)
    with pytest.raises(OSError, match="pixels cannot be read"):
        mapping.map_scene(Small(), TREE, scene, tmp_path / "map.tif", window=16)
    assert_nothing_left(tmp_path)


def test_too_little_room_is_said_before_work(make_scene, tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**9, 10**9 - 1000, 1000))
    model = Small()
    with pytest.raises(OSError, match=r"no room for the map.*about 0\.8 MB of disk, and 0\.0 MB are free"):
        mapping.map_scene(model, TREE, make_scene(300, 300), tmp_path / "map.tif", window=16)
    assert not model.seen
    assert_nothing_left(tmp_path)


@pytest.fixture
def small_files():
    """Files may not grow beyond 300 kB: writing fails as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("seams", [False, True])
def test_a_disk_that_fills_is_said_and_leaves_nothing(make_scene, tmp_path, monkeypatch, request, seams):
    scene = make_scene(600, 640)
    request.getfixturevalue("small_files")
    monkeypatch.setattr(_cog, "CACHE_BYTES", 2**16)
    if seams:
        monkeypatch.setattr(mapping, "SWATH_BYTES", 2**10)
    with pytest.raises(OSError, match=r"could not be written.*free some space.*Nothing was left behind"):
        mapping.map_scene(Small(), TREE, scene, tmp_path / "map.tif", window=128)
    assert_nothing_left(tmp_path)


@pytest.mark.parametrize("kept", [0.5, 0.97])
def test_a_cog_cut_short_without_an_error_is_noticed(make_scene, tmp_path, monkeypatch, kept):
    copy = rasterio.shutil.copy

    def cut(source, target, **options):
        copy(source, target, **options)
        with open(target, "r+b") as file:
            file.truncate(int(kept * target.stat().st_size))

    scene = make_scene(300, 300)
    monkeypatch.setattr(rasterio.shutil, "copy", cut)
    with pytest.raises(OSError, match="could not be written"):
        mapping.map_scene(Small(), TREE, scene, tmp_path / "map.tif", window=64)
    assert_nothing_left(tmp_path)


def test_strips_of_any_height_blend_alike(monkeypatch):
    logits = {(i, j): torch.randn(3, 16, 16) for i in range(3) for j in range(4)}
    whole = blended(40, 52, 16, 4, 10**6, logits)[1]
    monkeypatch.setattr(_blend, "STRIP", 5)
    assert torch.equal(blended(40, 52, 16, 4, 10**6, logits)[1], whole)
