import pickle

import numpy as np
import pytest
import torch
from rasterio.transform import from_origin
from rasterio.windows import Window
from torch.utils.data import DataLoader

from hierlab.data import LabelledScene, LabelRaster, RasterDataset, Scene, blocked_split


@pytest.fixture
def pair(write, tree):
    """Function giving a scene whose two bands hold each pixel's row and column, its labels, and a split."""

    def pair(height=150, width=170, block=24, name="a", seed=0, invalid=True, as_file=True, **split):
        rng = np.random.default_rng(seed)
        image = np.stack(np.meshgrid(np.arange(height), np.arange(width), indexing="ij")).astype("float32") + 1
        if invalid:
            image[:, 20:30, 40:55] = np.nan
        codes = np.kron(
            rng.choice([0, 11, 12, 21, 22, 2], (height // 10 + 1, width // 10 + 1), p=[0.5, *[0.1] * 5]),
            np.ones((10, 10), int),
        )[:height, :width].astype(np.uint8)
        scene = Scene.open(write(f"{name}.tif", image))
        labels = LabelRaster.open(write(f"{name}_labels.tif", codes), scene, tree)
        source = LabelledScene(scene, labels if as_file else labels.read())
        return source, blocked_split(source, block, 0.25, seed, **split)

    return pair


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def test_an_item_is_the_window_of_the_files(pair):
    source, split = pair()
    data = RasterDataset([(source, split)], 16, samples=60)
    label = source.read_label(Window(0, 0, 170, 150))
    train, held_out = split.mask("train"), split.mask("validation")
    for item in data:
        assert item["image"].shape == (2, 16, 16) and item["image"].dtype == torch.float32
        assert item["valid"].dtype == torch.bool and item["label"].dtype == torch.int64
        valid = item["valid"].numpy()
        rows, columns = (item["image"][i].numpy()[valid].astype(int) - 1 for i in range(2))
        assert not held_out[rows, columns].any()
        expected = np.where(train[rows, columns], label[rows, columns], 255)
        np.testing.assert_array_equal(item["label"].numpy()[valid], expected)
        assert (item["label"].numpy()[~valid] == 255).all() and (item["image"].numpy()[:, ~valid] == 0).all()
        assert (item["label"] != 255).any()
    with pytest.raises(IndexError):
        data[60]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("patch", "block", "gap"), [(16, 24, 4), (24, 24, 0), (31, 24, 2), (8, 12, 6)])
def test_no_training_patch_sees_a_held_out_pixel(pair, seed, patch, block, gap):
    """By position, not by value: every pixel of the window, valid or not."""
    source, split = pair(seed=seed, block=block, gap=gap, test=0.1, invalid=False)
    data = RasterDataset([(source, split)], patch, samples=80, seed=seed)
    held_out = np.zeros((150, 170), bool)
    for top, left, bottom, right in split.barred("train"):
        held_out[top:bottom, left:right] = True
    for item in data:
        valid = item["valid"].numpy()
        rows, columns = (item["image"][i].numpy()[valid].astype(int) - 1 for i in range(2))
        assert not held_out[rows, columns].any()
        assert (item["label"] != 255).any()
    assert data.counts.sum() > data.unreachable


def test_patches_reach_the_whole_part(pair):
    source, split = pair(invalid=False)
    data = RasterDataset([(source, split)], 16, samples=1500)
    seen = np.zeros((150, 170), bool)
    for item in data:
        rows, columns = (item["image"][i].numpy()[(item["label"] != 255).numpy()].astype(int) - 1 for i in (0, 1))
        seen[rows, columns] = True
    labelled = (source.read_label(Window(0, 0, 170, 150)) != 255) & split.mask("train")
    assert labelled.sum() == data.counts.sum()
    assert (seen & labelled).sum() / labelled.sum() > 0.97


@pytest.mark.parametrize("part", ["train", "validation"])
@pytest.mark.parametrize(("patch", "stride"), [(16, None), (32, 20), (200, None), (64, 1)])
def test_regular_windows_show_every_labelled_pixel_once(pair, part, patch, stride):
    if stride == 1 and part == "train":
        stride = 13
    source, split = pair(height=70, width=90, block=16)
    data = RasterDataset([(source, split)], patch, part, stride=stride)
    times = np.zeros((70, 90), int)
    label = source.read_label(Window(0, 0, 90, 70))
    for item in data:
        assert item["image"].shape == (2, patch, patch)
        labelled = (item["label"] != 255).numpy()
        assert labelled.any()
        rows, columns = (item["image"][i].numpy()[labelled].astype(int) - 1 for i in range(2))
        times[rows, columns] += 1
        np.testing.assert_array_equal(item["label"].numpy()[labelled], label[rows, columns])
    np.testing.assert_array_equal(times, (label != 255) & split.mask(part))
    np.testing.assert_array_equal(data.counts, np.bincount(label[times > 0], minlength=255))


def test_overlap_goes_to_the_nearer_centre(pair):
    source, _ = pair(height=40, width=40, invalid=False, block=10)
    full = LabelledScene(source.scene, np.zeros((40, 40), np.uint8))
    data = RasterDataset([(full, None)], 20, stride=10)
    assert [int((item["label"] != 255).sum()) for item in data] == [225, 150, 225, 150, 100, 150, 225, 150, 225]


def test_items_depend_on_seed_and_index_alone(pair):
    source, split = pair()
    make = lambda seed, samples=20, cache=2**31: RasterDataset(  # noqa: E731
        [(source, split)], 16, samples=samples, seed=seed, cache=cache
    )
    one, again, longer, other = make(5), make(5), make(5, 40), make(6)
    for i in (7, 0, 19, 7):
        assert same(one[i], again[i]) and same(one[i], longer[i])
    assert not all(same(one[i], other[i]) for i in range(20))
    uncached_source, _ = pair(name="b")
    uncached = RasterDataset([(uncached_source, split)], 16, samples=20, seed=5, cache=0)
    assert not uncached_source.keep and source.keep
    assert all(same(one[i], uncached[i]) for i in range(20))


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_workers_give_the_same_items(pair, method):
    source, split = pair(height=60, width=60, block=12)
    data = RasterDataset([(source, split)], 12, samples=12, cache=0 if method == "fork" else 2**31)
    alone = list(DataLoader(data, 4))
    loader = DataLoader(data, 4, num_workers=2, multiprocessing_context=method)
    together = list(loader)
    assert len(alone) == len(together) == 3
    assert all(same(a, b) for a, b in zip(alone, together, strict=True))


def test_a_pickled_scene_leaves_its_memory_behind(pair):
    source, split = pair()
    data = RasterDataset([(source, split)], 16, samples=3)
    content = pickle.dumps(data)
    assert len(content) < 20_000 < source.nbytes
    assert same(pickle.loads(content)[1], data[1])


def test_a_scene_smaller_than_the_patch_is_padded(pair):
    source, _ = pair(height=20, width=30, block=10)
    for data in (RasterDataset([(source, None)], 40, samples=3), RasterDataset([(source, None)], 40)):
        item = data[0]
        assert item["image"].shape == (2, 40, 40)
        assert not item["valid"][20:].any() and not item["valid"][:, 30:].any() and item["valid"].any()
        assert (item["label"][20:] == 255).all()
    assert len(data) == 1


def test_several_scenes(pair, write, noise):
    a, b = pair(name="a", seed=1), pair(name="b", seed=2, height=60, width=50, as_file=False)
    data = RasterDataset([a, b], 12, samples=200)
    parts = [RasterDataset([p], 12, samples=1).counts for p in (a, b)]
    np.testing.assert_array_equal(data.counts, sum(parts))
    from_b = sum(
        int((item["valid"] & (item["image"][0] > 60)).any() or (item["image"][1] > 50).any()) == 0 for item in data
    )
    assert 0 < from_b < 100
    validation = RasterDataset([a, b], 12, "validation")
    assert sum(int((i["label"] != 255).sum()) for i in validation) == validation.counts.sum()
    three = LabelledScene(Scene.open(write("c.tif", noise(3, 60, 50))), np.zeros((60, 50), np.uint8))
    with pytest.raises(ValueError, match=r"same bands.*a\.tif.*2.*c\.tif.*3"):
        RasterDataset([a, (three, None)], 12)


def test_errors_come_before_work(pair, write, noise):
    source, split = pair()
    with pytest.raises(ValueError, match="not on the scene's grid"):
        LabelledScene(source.scene, np.zeros((3, 3), np.uint8))
    with pytest.raises(ValueError, match=r"a split of 60×60 pixels was given for .*a\.tif, which has 170×150"):
        RasterDataset([(source, blocked_split(np.zeros((60, 60), np.uint8), 10))], 16)
    with pytest.raises(ValueError, match="test part holds not one labelled"):
        RasterDataset([(source, split)], 16, "test")
    with pytest.raises(ValueError, match=r"no patch of 140 pixels.*smaller patch or larger blocks"):
        RasterDataset([(source, split)], 140, samples=10)
    with pytest.raises(ValueError, match="balance is a share from 0 to 1, got 2"):
        RasterDataset([(source, split)], 16, samples=10, balance=2)
    with pytest.raises(ValueError, match="at least 1"):
        RasterDataset([(source, split)], 0)
    with pytest.raises(ValueError, match="no scene"):
        RasterDataset([], 16)


def test_balanced_patches_show_every_class_equally_often(write, noise):
    """Classes of a tenth to a ten-thousandth of the ground; a patch drawn for a class holds a pixel of it."""
    scene = Scene.open(write("a.tif", noise(512, 512), transform=from_origin(4e5, 5.8e6, 10, 10)))
    label = np.zeros((512, 512), np.uint8)
    label[:160, :160] = 1
    label[400:405, 400:405] = 2
    label[300, 10] = 3  # the one rare pixel of its block
    source = LabelledScene(scene, label)
    rates = []
    for balance in (0.0, 0.5, 1.0):
        data = RasterDataset([(source, None)], 8, samples=800, balance=balance)
        seen = [set(item["label"].unique().tolist()) for item in data]
        rates.append([np.mean([k in found for found in seen]) for k in range(4)])
    natural, half, even = rates
    assert natural[2] < 0.01 and natural[3] < 0.01
    assert all(rate > 0.2 for rate in even) and max(even[2:]) < 0.3  # a quarter of the draws each
    assert all(0.09 < rate < 0.17 for rate in half[2:])


@pytest.mark.parametrize("balance", [0.4, 1.0])
def test_balanced_patches_keep_clear_of_the_held_out_blocks(pair, balance):
    source, split = pair(invalid=False)
    data = RasterDataset([(source, split)], 16, samples=120, balance=balance)
    held_out = np.zeros((150, 170), bool)
    for top, left, bottom, right in split.barred("train"):
        held_out[top:bottom, left:right] = True
    for item in data:
        rows, columns = (item["image"][i].numpy().astype(int) - 1 for i in range(2))
        assert not held_out[rows, columns].any() and (item["label"] != 255).any()
    assert same(data[7], RasterDataset([(source, split)], 16, samples=9, balance=balance)[7])


def test_sparse_labels_are_found(write, noise):
    scene = Scene.open(write("a.tif", noise(300, 300), transform=from_origin(4e5, 5.8e6, 10, 10)))
    label = np.full((300, 300), 255, np.uint8)
    label[5, 290] = 3
    data = RasterDataset([(LabelledScene(scene, label), None)], 8, samples=30)
    assert all((item["label"] == 3).sum() == 1 for item in data)
