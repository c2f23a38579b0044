"""Data sets of the twin: the contract of a batch, all classes, disjoint splits, and a cache that can be trusted."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from hierlab import twin
from hierlab.tree import ClassTree
from hierlab.twin import datasets, legends, presets, seek, world
from hierlab.twin.fields import Grid

NAME = "mm5b-gaofen2"
MM5B = ("mm5b-gaofen2", "mm5b-sentinel2", "mm5b-google")


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    patch = pytest.MonkeyPatch()
    folder = tmp_path_factory.mktemp("cache")
    patch.setenv("HIERLAB_CACHE", str(folder))
    yield folder
    patch.undo()


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


def test_every_class_occurs_in_the_training_set():
    data, seen = twin.dataset(NAME, "train", "smoke", count=36), set()
    for n in range(1, len(data), 2):  # one turn of those that look for a class
        region, x, y = data.place(n)
        seen |= set(np.unique(world.survey(Grid.of(0, region, x, y, 64, 4000)).ground.leaf).tolist())
    assert seen == set(range(18))


def test_patches_are_the_windows_they_say_they_are():
    data = twin.dataset(NAME, "train", "laptop", count=2)
    region, x, y = data.place(1)
    made = twin.render("gaofen2", 0, region, (x, y, 128, 128))
    assert (data.patch(1)["image"] == made.image).all() and (data.patch(1)["label"] == made.label).all()


def test_splits_share_no_region():
    regions = [set(r) for r in datasets.SPLITS.values()]
    assert all(not a & b for n, a in enumerate(regions) for b in regions[:n])
    for split in datasets.SPLITS:
        data = twin.dataset(NAME, split, "smoke", count=4)
        assert {data.place(n)[0] for n in range(4)} <= set(datasets.SPLITS[split])


def test_areas_of_different_splits_never_meet():
    for name, preset in twin.PRESETS.items():
        areas = [
            (split, presets.region_of(name, 0, area.turn), area.reach)
            for part in preset.parts
            for split, found in part.areas.items()
            for area in found
        ]
        for one, region, (west, north, east, south) in areas:
            for other, there, (w, n, e, s) in areas:
                if one != other and region == there:
                    assert e <= west or east <= w or s <= north or south <= n, (name, one, other)


def test_patches_lie_in_the_areas_of_their_split():
    for split in datasets.SPLITS:
        data = twin.dataset("chesapeake", split, "smoke", count=2, state=3)
        part = twin.PRESETS["chesapeake"].parts[data.turn(0).part]
        assert part.value == 3
        reach = {presets.region_of("chesapeake", 0, area.turn): area.reach for area in part.areas[split]}
        for n in range(2):
            region, x, y = data.place(n)
            west, north, east, south = (v / data.gsd for v in reach[region])
            assert west <= x and x + data.size <= east and north <= y and y + data.size <= south


def test_the_mm5b_sets_show_the_same_places():
    sets = [twin.dataset(name, "train", "smoke") for name in MM5B]
    for n in range(6):
        region, x, y = sets[0].anchor(n)
        for data in sets:
            assert data.anchor(n) == (region, x, y)
            there, px, py = data.place(n)
            assert there == region
            assert 0 <= x - px * data.gsd < data.size * data.gsd and 0 <= y - py * data.gsd < data.size * data.gsd


def test_the_mm5b_sets_agree_where_they_overlap():
    n, coarse, fine = 2, *(twin.dataset(name, "train", "smoke") for name in MM5B[::2])
    (_, x, y), (_, u, v) = coarse.place(n), fine.place(n)
    label, other = coarse.patch(n)["label"], fine.patch(n)["label"]
    rows, columns = (np.arange(v, v + 64) // 2 - y), (np.arange(u, u + 64) // 2 - x)  # 2 m pixels in 4 m pixels
    inside = np.ix_((rows >= 0) & (rows < 64), (columns >= 0) & (columns < 64))
    seen = label[np.ix_(rows[(rows >= 0) & (rows < 64)], columns[(columns >= 0) & (columns < 64)])]
    assert seen.size > 500 and (seen == other[inside]).mean() > 0.9


SMALL = [n for n, p in twin.PRESETS.items() if p.tree not in ("mm5b", "mapillary", "million-aid")]


@pytest.mark.parametrize("name", SMALL)
def test_every_class_that_is_sought_is_found(name, monkeypatch):
    """The place of an item that looks for a class shows that class: all classes, from the same one scene."""
    preset, scene = twin.PRESETS[name], datasets._scene
    monkeypatch.setattr(datasets, "_scene", lambda *where: scene(*where[:4], 0))
    step, classes = max(datasets._step_mm(preset), 500), legends.LEGENDS[preset.tree].classes
    for wanted in range(len(classes)):
        region, x, y, _ = datasets.anchor.__wrapped__(name, "train", 0, 0, 2 * wanted + 1)
        ground = world.survey(Grid.of(0, region, x // step, y // step, 1, step, preset.year)).ground
        assert legends.classify(ground.leaf, ground.kind, preset.tree).item() == wanted, classes[wanted]


def test_every_class_of_every_legend_takes_its_turn(monkeypatch):
    """Whatever the legend, the classes that odd items look for are all of it, in turn."""
    monkeypatch.setattr(seek, "find", lambda legend, wanted, *_: asked.append(wanted))
    monkeypatch.setattr(seek, "leaf", lambda wanted, *_: asked.append(wanted))
    monkeypatch.setattr(datasets, "_scene", lambda *_: (0, 0, 0))
    for name, preset in twin.PRESETS.items():
        if preset.scenes:
            continue
        asked, classes = [], len(legends.LEGENDS[preset.tree].classes)
        for number in range(1, 2 * classes, 2):
            datasets.anchor.__wrapped__(name, "train", 0, 0, number)
        assert asked == list(range(classes)), name


def test_parts_take_their_share_and_keep_their_own_order():
    whole = twin.dataset("loveda", "train", "paper")
    turns = [whole.turn(n) for n in range(len(whole))]
    assert [sum(t.part == k for t in turns) for k in (0, 1)] == [1366, 1156]
    urban = [t.number for t in turns if t.part == 1]
    assert urban == list(range(1156))
    alone = twin.dataset("loveda", "train", "paper", domain="urban")
    assert len(alone) == 1156 and alone.turn(5) == (1, 5)
    assert len(twin.dataset("chesapeake", "train", "paper", state=0)) == 82 * 50
    assert sum(len(twin.dataset("chesapeake", "train", "paper", state=k)) for k in range(6)) == 29_100


def test_options_are_checked():
    with pytest.raises(ValueError, match="no option 'state': it takes none"):
        twin.dataset("whdld", "train", state=1)
    with pytest.raises(ValueError, match="no state 6: choose one of 'all', 0, 1, 2, 3, 4, 5"):
        twin.dataset("chesapeake", "train", state=6)
    with pytest.raises(ValueError, match="'from-glc10', 'esa-worldcover'"):
        twin.dataset("poland", "train", product="corine")
    with pytest.raises(ValueError, match="'urban'"):
        twin.dataset("loveda", "train", domain="suburban")
    with pytest.raises(ValueError, match="multiple of 10"):
        twin.dataset("whu-h2sr-mt", "train", size=64)
    a, b = (twin.dataset("poland", "train", "smoke", product=p) for p in ("esri", "glc-fcs30"))
    assert a.fingerprint != b.fingerprint and a.product == "esri" and a.tree_lr.name == "esri"


def test_profiles_and_overrides():
    for profile, size in (("smoke", 64), ("laptop", 128), ("gpu", 640), ("paper", 640)):
        assert twin.dataset(NAME, "train", profile).size == size
    data = twin.dataset(NAME, "train", "paper", size=96, count=7)
    assert (data.size, len(data)) == (96, 7)
    assert len(twin.dataset(NAME, "train", "paper")) == 15_091


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


def test_processes_side_by_side_render_what_one_renders(tmp_path, monkeypatch):
    wanted = [twin.dataset("mm5b-sentinel2", "val", "smoke", size=16, count=5)._render(n) for n in range(5)]
    monkeypatch.setenv("HIERLAB_CACHE", str(tmp_path))
    data = twin.dataset("mm5b-sentinel2", "val", "smoke", size=16, count=5)
    data.prepare(workers=2)
    files = sorted(path.name for path in data.folder.iterdir())
    assert files == [f"{n:06d}.npz" for n in range(5)]
    for n in range(5):
        assert all((data.patch(n)[k] == wanted[n][k]).all() for k in ("image", "label"))
    (data.folder / "000003.npz").unlink()
    asked = []
    monkeypatch.setattr(twin.TwinDataset, "_render", lambda self, n: asked.append(n) or wanted[n])
    data.prepare(workers=0)
    assert asked == [3] and sorted(path.name for path in data.folder.iterdir()) == files
    with pytest.raises(ValueError, match="workers is -2"):
        data.prepare(workers=-2)


@pytest.mark.parametrize(("daemon", "count", "many"), [(False, 200, 4), (False, 70, 2), (False, 40, 0), (True, 200, 0)])
def test_as_many_processes_as_pay(daemon, count, many, monkeypatch):
    data, started = twin.dataset("mm5b-sentinel2", "val", "smoke", size=16, count=count), []
    monkeypatch.setattr(datasets.torch, "get_num_threads", lambda: 4)
    monkeypatch.setattr(datasets.multiprocessing.current_process(), "_config", {"daemon": daemon})
    monkeypatch.setattr(data, "_path", lambda n: data.folder / "not there")
    monkeypatch.setattr(data, "_render", lambda n: None)
    monkeypatch.setattr(data, "_write", lambda path, patch: None)

    def side_by_side(missing, workers):
        started.append(workers)
        return (None for _ in missing)

    monkeypatch.setattr(data, "_side_by_side", side_by_side)
    data.prepare()
    assert started == ([many] if many else [])


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
        images = list(pool.map(lambda data: data[0]["image"], sets))
    assert all(torch.equal(images[0], image) for image in images)
    assert [p.name for p in sets[0].folder.iterdir()] == ["000000.npz"]


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
    with pytest.raises(ValueError, match="positive"):
        twin.dataset(NAME, "train", "smoke", size=(64, 0))
