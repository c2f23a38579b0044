"""Data sets of the twin: the contract of a batch, all classes, disjoint splits, and a cache that can be trusted."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from hierlab import twin
from hierlab.tree import ClassTree
from hierlab.twin import datasets

NAME = "mm5b-gaofen2"


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    patch = pytest.MonkeyPatch()
    folder = tmp_path_factory.mktemp("cache")
    patch.setenv("HIERLAB_CACHE", str(folder))
    yield folder
    patch.undo()


@pytest.fixture(scope="module")
def train(cache):
    """Two turns of the classes: the first 36 patches of the laptop's training set."""
    return twin.dataset(NAME, "train", "laptop", count=36)


def test_a_batch_keeps_the_contract():
    data = twin.dataset(NAME, "val", "smoke", count=4)
    batch = next(iter(torch.utils.data.DataLoader(data, batch_size=4)))
    assert batch["image"].shape == (4, 4, 64, 64) and batch["image"].dtype == torch.float32
    assert batch["label"].shape == (4, 64, 64) and batch["label"].dtype == torch.int64
    assert batch["label"].min() >= 0 and batch["label"].max() < 18
    assert data.tree == ClassTree.load("mm5b") and data.is_twin is True
    assert (data.bands, data.gsd, data.sensor, data.name) == (twin.SENSORS["gaofen2"].bands, 4.0, "gaofen2", NAME)
    assert data.tree.targets(batch["label"]).shape == (4, 3, 64, 64)
    with pytest.raises(IndexError):
        data[4]


def test_every_class_occurs_in_the_training_set(train):
    seen = np.unique(np.concatenate([np.unique(train.patch(n)["label"]) for n in range(len(train))]))
    assert seen.tolist() == list(range(18))


def test_patches_are_the_windows_they_say_they_are(train):
    region, x, y = train.place(5)
    made = twin.render("gaofen2", 0, region, (x, y, 128, 128))
    assert (train.patch(5)["image"] == made.image).all() and (train.patch(5)["label"] == made.label).all()


def test_splits_share_no_region():
    regions = [set(r) for r in datasets.SPLITS.values()]
    assert all(not a & b for n, a in enumerate(regions) for b in regions[:n])
    for split in datasets.SPLITS:
        data = twin.dataset(NAME, split, "smoke", count=4)
        assert {data.place(n)[0] for n in range(4)} <= set(datasets.SPLITS[split])


def test_profiles_and_overrides():
    for profile, size in (("smoke", 64), ("laptop", 128), ("gpu", 640), ("paper", 640)):
        assert twin.dataset(NAME, "train", profile).size == size
    data = twin.dataset(NAME, "train", "paper", size=96, count=7)
    assert (data.size, len(data)) == (96, 7)
    assert len(twin.dataset(NAME, "train", "paper")) == 107 * 110


def test_fingerprints_tell_sets_apart_but_not_their_length():
    a = twin.dataset(NAME, "train", "smoke")
    others = [
        twin.dataset(NAME, "val", "smoke"),
        twin.dataset(NAME, "train", "smoke", seed=1),
        twin.dataset(NAME, "train", "smoke", size=32),
    ]
    assert len({a.fingerprint, *(o.fingerprint for o in others)}) == 4
    assert twin.dataset(NAME, "train", "smoke", count=3).fingerprint == a.fingerprint


def test_the_cache_is_read_back_and_a_longer_set_begins_with_the_shorter(monkeypatch):
    short = twin.dataset(NAME, "test", "smoke", count=2)
    short.prepare()
    longer = twin.dataset(NAME, "test", "smoke", count=4)
    monkeypatch.setattr(datasets, "render", None)  # nothing may be rendered
    for n in range(2):
        assert torch.equal(short[n]["image"], longer[n]["image"]) and torch.equal(short[n]["label"], longer[n]["label"])


@pytest.mark.parametrize("damage", [b"", b"PK\x03\x04 not a zip", "half", "flip"])
def test_a_damaged_file_is_rendered_again(damage):
    data = twin.dataset(NAME, "test", "smoke", count=1)
    whole = data[0]
    path = data.folder / "000000.npz"
    content = path.read_bytes()
    if damage == "half":
        damage = content[: len(content) // 2]
    elif damage == "flip":
        middle = len(content) // 2
        damage = content[:middle] + bytes([content[middle] ^ 255]) + content[middle + 1 :]
    path.write_bytes(damage)
    again = twin.dataset(NAME, "test", "smoke", count=1)
    with pytest.warns(UserWarning, match="rendered again"):
        patch = again[0]
    assert torch.equal(patch["image"], whole["image"]) and torch.equal(patch["label"], whole["label"])
    assert torch.equal(twin.dataset(NAME, "test", "smoke", count=1)[0]["image"], whole["image"])


def test_several_may_fill_one_cache_at_once():
    sets = [twin.dataset(NAME, "val", "smoke", seed=5, count=2) for _ in range(4)]
    with ThreadPoolExecutor(4) as pool:
        images = list(pool.map(lambda data: data[1]["image"], sets))
    assert all(torch.equal(images[0], image) for image in images)
    assert [p.name for p in sets[0].folder.iterdir()] == ["000001.npz"]


def test_an_unwritable_cache_says_what_to_do(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("HIERLAB_CACHE", str(tmp_path / "file"))
    with pytest.raises(OSError, match="HIERLAB_CACHE"):
        twin.dataset(NAME, "val", "smoke", count=1)[0]


def test_unknown_names_are_listed():
    with pytest.raises(ValueError, match=NAME):
        twin.dataset("mm5b-landsat", "train", "smoke")
    with pytest.raises(ValueError, match="val"):
        twin.dataset(NAME, "holdout", "smoke")
    with pytest.raises(ValueError, match="laptop"):
        twin.dataset(NAME, "train", "desktop")
    with pytest.raises(ValueError, match="positive"):
        twin.dataset(NAME, "train", "smoke", count=-1)
