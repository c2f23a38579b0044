"""Every data set's items keep their contract, and exported in the real layouts they read back as they were."""

import dataclasses
import hashlib
import json

import numpy as np
import pytest
import rasterio
import torch
from PIL import Image
from scipy.io import netcdf_file

from hierlab import twin
from hierlab.tree import ClassTree
from hierlab.twin import export, layouts, sensors
from hierlab.twin.sensors import lookup

FULL = {name: lookup(name).dates for name in ("sentinel2-series", "sentinel2-12-dates")}
DATES = 3  # of a series in the tests; the real numbers are asserted apart
BANDS = {
    **{"mm5b-gaofen2": 4, "mm5b-sentinel2": 10, "mm5b-google": 3, "crop10m": 10, "whdld": 3, "chesapeake": 4},
    **{"poland": 3, "loveda": 3, "potsdam": 4, "vaihingen": 3, "million-aid": 3, "mapillary": 3},
    **{"whu-h2sr-mt": 249, "aerorit": 51, "sen4agrinet": 13},
}
CLASSES = {
    **{"mm5b-gaofen2": 18, "mm5b-sentinel2": 18, "mm5b-google": 18, "crop10m": 4, "whdld": 6, "chesapeake": 4},
    **{"poland": 4, "loveda": 7, "potsdam": 6, "vaihingen": 6, "mapillary": 66, "whu-h2sr-mt": 8, "aerorit": 5},
    "sen4agrinet": 7,
}
METRES = {
    **{"mm5b-gaofen2": 4, "mm5b-sentinel2": 10, "mm5b-google": 2, "crop10m": 10, "whdld": 2, "chesapeake": 1},
    **{"poland": 0.5, "loveda": 0.3, "potsdam": 0.05, "vaihingen": 0.09, "million-aid": 1, "mapillary": 0.25},
    **{"whu-h2sr-mt": 1, "aerorit": 0.4, "sen4agrinet": 10},
}


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    """A cache of our own, and series of a few dates."""
    patch = pytest.MonkeyPatch()
    patch.setenv("HIERLAB_CACHE", str(tmp_path_factory.mktemp("cache")))
    for table in (sensors.SENSORS, sensors.VARIANTS):
        for name in FULL.keys() & table.keys():
            patch.setitem(table, name, dataclasses.replace(table[name], dates=FULL[name][5 : 5 + DATES]))
    yield
    patch.undo()


@pytest.fixture(scope="module")
def first():
    """First items of the training sets, by name, as small as their grids allow."""
    made = {}

    def get(name):
        if name not in made:
            size = {"whu-h2sr-mt": 30, "sen4agrinet": 61}.get(name, 64)
            made[name] = twin.dataset(name, "train", "smoke", size=size, count=1)
            made[name].prepare()
        return made[name]

    return get


@pytest.mark.parametrize("name", list(twin.PRESETS))
def test_an_item_keeps_the_contract(name, first):
    data, preset = first(name), twin.PRESETS[name]
    item, size = data[0], data.size
    assert data.is_twin and data.gsd == METRES[name] and len(data.bands) == BANDS[name]
    assert data.tree == ClassTree.load(preset.tree) and len(data) == 1
    if preset.sensor:
        assert item["image"].shape == (BANDS[name], size, size) and item["image"].dtype == torch.float32
        assert item["image"].min() >= 1 and item["image"].std() > 0
    if preset.scenes:
        assert item["scene"].shape == () and item["scene"].dtype == torch.int64
        assert item["scene"] == 0 and "label" not in item  # the first class has the first turn, and is found
    else:
        assert item["label"].shape == (size, size) and item["label"].dtype == torch.int64
        assert set(item["label"].unique().tolist()) <= {*range(CLASSES[name]), 255}
        assert data.tree.num_leaves == CLASSES[name]
    assert ("label_lr" in item) == (name in ("chesapeake", "poland"))
    if "label_lr" in item:
        assert item["label_lr"].shape == (size, size) and item["label_lr"].dtype == torch.int64
        assert set(item["label_lr"].unique().tolist()) <= {*range(data.tree_lr.num_leaves), 255}
        assert set(data.merge_lr[item["label_lr"]].ravel().tolist()) <= {*range(4), 255}
    assert ("series" in item) == (name in ("whu-h2sr-mt", "sen4agrinet"))
    if "series" in item:
        coarse = size // 10 if preset.sensor else size
        bands = len(data.series_bands)
        assert item["series"].shape == (DATES, bands, coarse, coarse) and item["series"].dtype == torch.float32
        assert item["series_valid"].shape == (DATES, coarse, coarse) and item["series_valid"].dtype == torch.bool
        nothing = (item["series"] == 0).all(1)
        assert torch.equal(nothing, ~item["series_valid"]) and len(data.days) == DATES


def test_the_paper_profile_is_the_real_sets_size():
    real = {  # patch, then the counts that the papers print or that follow from their tiles
        "mm5b-sentinel2": (512, 2_370, 632),
        "mm5b-google": (896, 28_679, 7_635),
        "crop10m": (512, 678, 296),
        "whdld": (256, 3_294, 1_646),
        "loveda": (1024, 2_522, 1_669),
        "whu-h2sr-mt": (300, 1_519, 253),
        "mapillary": (256, 400_000, 10_000),
        "million-aid": (400, 1_000_000, 10_000),
    }
    for name, (patch, train, val) in real.items():
        count = twin.PRESETS[name].count["paper"]
        assert (twin.PRESETS[name].patch["paper"], count["train"], count["val"]) == (patch, train, val), name
    tiles = {name: twin.PRESETS[name].tiles["paper"] for name in ("chesapeake", "potsdam", "vaihingen")}
    assert sum(tiles["chesapeake"].values()) == 732 and twin.PRESETS["chesapeake"].tile["paper"] == (7500, 6000)
    assert (
        (tiles["potsdam"]["train"], tiles["potsdam"]["test"]) == (23, 14) == tuple(map(len, layouts.POTSDAM.values()))
    )
    assert (tiles["vaihingen"]["train"], tiles["vaihingen"]["test"]) == (16, 17)


def test_series_have_the_dates_of_the_real_sets():
    assert {name: len(dates) for name, dates in FULL.items()} == {"sentinel2-series": 31, "sentinel2-12-dates": 12}


def tiff(path):
    with rasterio.open(path) as file:
        return file.read(), file.profile | {"names": file.descriptions, "tags": file.tags()}


def picture(path):
    array = np.asarray(Image.open(path))
    return array.transpose(2, 0, 1) if array.ndim == 3 else array


def close(path, image):
    """A JPEG is lossy: near the image, on the whole, and of its shape."""
    seen = picture(path)
    assert seen.shape == image.shape
    return np.abs(seen.astype(int) - image).mean() < 6


def codes(data, label):
    return layouts.disk_codes(data.tree)[label]


@pytest.mark.parametrize("name", list(twin.PRESETS))
def test_an_export_reads_back_as_the_items(name, first, tmp_path):
    data = first(name)
    patch, made = data.patch(0), export.export([data], tmp_path / "out")
    root, tree = tmp_path / "out", data.tree
    files = sorted(p.relative_to(root).as_posix() for p in root.rglob("*") if p.is_file())
    listed = dict(line.split("  ")[::-1] for line in (root / "checksums.sha256").read_text().splitlines())
    assert set(files) == {*listed, "twin.json", "checksums.sha256"} and made == {"written": len(listed), "kept": 0}
    for path, digest in listed.items():
        assert hashlib.sha256((root / path).read_bytes()).hexdigest() == digest
    assert json.loads((root / "twin.json").read_text())["name"] == name
    colours = np.asarray(tree.colors[-1]) if not data._preset.scenes else None
    if name.startswith("mm5b") or name == "crop10m":
        (ann,), (img,) = (list(root.glob(f"{d}/train/*.tif")) for d in ("ann_dir", "img_dir"))
        image, about = tiff(img)
        assert (image == patch["image"]).all() and about["names"] == data.bands and "twin" in about["tags"]
        _, x, y = data.place(0)
        assert about["transform"] == twin.transform(data.gsd, x, y) and about["crs"] == twin.CRS
        assert (tiff(ann)[0][0] == codes(data, patch["label"])).all()
        assert ann.name == img.stem + ("_label.tif" if name == "crop10m" else "_18label.tif")
        if name != "crop10m":
            assert (tiff(ann)[0][0] == patch["label"] + 1).all()
    elif name == "whdld":
        assert close(root / "Images/wdcd0.jpg", patch["image"])
        assert (picture(root / "ImagesPNG/wdcd0.png") == patch["label"] + 1).all()
        assert (root / "train.txt").read_text() == "Images/wdcd0.jpg\n"
    elif name in ("chesapeake", "poland"):
        image, low = (root / "train.csv").read_text().splitlines()[1].split(",")
        assert (root / "train.csv").read_text().startswith("image_fn,label_fn\n")
        truth = {"chesapeake": image.replace("naip-new", "lc"), "poland": image.replace("images", "masks")}[name]
        assert (tiff(root / image)[0] == patch["image"]).all()
        assert (data.tree_lr.encode(tiff(root / low)[0][0]) == patch["label_lr"]).all()
        assert (tree.encode(tiff(root / truth)[0][0]) == patch["label"]).all()
    elif name == "loveda":
        images, masks = (list(root.glob(f"Train/*/{d}/*.png")) for d in ("images_png", "masks_png"))
        assert (picture(images[0]) == patch["image"]).all() and (picture(masks[0]) == patch["label"] + 1).all()
        assert files[-3:-1] == [p.relative_to(root).as_posix() for p in (*images, *masks)] or len(files) == 4
    elif name in ("potsdam", "vaihingen", "aerorit"):
        image, label = {
            "potsdam": ("4_Ortho_RGBIR/top_potsdam_2_10_RGBIR.tif", "top_potsdam_2_10_label.tif"),
            "vaihingen": ("top/top_mosaic_09cm_area1.tif", "top_mosaic_09cm_area1.tif"),
            "aerorit": ("train/image_hsi_radiance.tif", "train/image_labels.tif"),
        }[name]
        assert (tiff(root / image)[0] == patch["image"]).all()
        seen, known = tiff(root / label)[0].transpose(1, 2, 0), patch["label"] != 255
        assert (seen[known] == colours[patch["label"][known]]).all()
        assert (seen[~known] == (153, 0, 0)).all()
    elif name == "million-aid":
        (path,) = root.glob("train/**/*.jpg")
        assert path.parent.name == tree.classes[-1][int(patch["scene"])].replace(" ", "_")
        assert close(path, patch["image"])
    elif name == "mapillary":
        assert close(root / "training/images/000000.jpg", patch["image"])
        assert (picture(root / "training/labels/000000.png") == patch["label"]).all()
    elif name == "whu-h2sr-mt":
        series, about = tiff(root / "train/series/00000.tif")
        assert (tiff(root / "train/hsi/00000.tif")[0] == patch["image"]).all()
        assert (series.reshape(patch["series"].shape) == patch["series"]).all() and about["nodata"] == 0
        assert (
            about["transform"].a == 10 and about["names"][0].startswith("2020-") and len(about["names"]) == DATES * 10
        )
        assert (tiff(root / "train/label/00000.tif")[0][0] == codes(data, patch["label"])).all()
    else:
        (path,) = root.glob("2019/50TWA/*.nc")
        with netcdf_file(path, mmap=False) as file:
            values = {key: v[:] for key, v in file.variables.items()}
        assert (np.stack([values[b] for b in data.bands], 1) == patch["series"]).all()
        assert (values["valid"] == patch["series_valid"]).all()
        assert set(np.unique(values["labels"])) <= {0, 110, 120, 130, 150, 330, 435, 510}
        assert (tree.encode(values["labels"]) == patch["label"]).all()


def tree_of(root):
    return {p.relative_to(root).as_posix(): p.read_bytes() for p in root.rglob("*") if p.is_file()}


def test_an_export_resumes(tmp_path, monkeypatch):
    made = export.sets("mm5b-gaofen2", ("val", "test"), "smoke", seed=3, count=2)
    root, calls = tmp_path / "out", []
    whole = layouts.TwinDataset.patch

    def stop_after_two(self, n, keep=True):
        calls.append(n)
        if len(calls) > 2:
            raise KeyboardInterrupt
        return whole(self, n, keep)

    monkeypatch.setattr(layouts.TwinDataset, "patch", stop_after_two)
    with pytest.raises(KeyboardInterrupt):
        export.export(made, root)
    monkeypatch.setattr(layouts.TwinDataset, "patch", whole)
    assert not list(root.rglob(".*.part*"))
    finished = tree_of(root)
    victim = next(p for p in root.rglob("*.tif"))
    victim.write_bytes(b"damaged")
    (victim.parent / ".left.12345678.part.tif").write_bytes(b"half")
    with open(root / "checksums.sha256", "a") as file:
        file.write("0123")  # a line cut off
    assert export.export(made, root) == {"written": 5, "kept": 3}
    again = tree_of(root)
    assert all(again[name] == content for name, content in finished.items() if name != "checksums.sha256")
    assert export.export(made, root) == {"written": 0, "kept": 8}
    assert tree_of(root) == again and len(again) == 10


def test_finished_files_are_not_rendered_again(tmp_path, monkeypatch):
    made = export.sets("mm5b-gaofen2", ("val",), "smoke", seed=3, count=1)
    export.export(made, tmp_path / "out")
    monkeypatch.setattr(layouts.TwinDataset, "patch", None)
    assert export.export(made, tmp_path / "out") == {"written": 0, "kept": 2}


def test_a_folder_of_something_else_is_refused(tmp_path):
    made = export.sets("mm5b-gaofen2", ("val",), "smoke", seed=3, count=1)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="something else"):
        export.export(made, tmp_path / "mine")
    assert tree_of(tmp_path / "mine") == {"notes.txt": b"mine"}
    with pytest.raises(ValueError, match="is a file"):
        export.export(made, tmp_path / "mine" / "notes.txt")
    export.export(made, tmp_path / "out")
    before = tree_of(tmp_path / "out")
    for other in (
        export.sets("mm5b-gaofen2", ("val",), "smoke", seed=4, count=1),
        export.sets("mm5b-gaofen2", ("val",), "laptop", seed=3, count=1),
    ):
        with pytest.raises(ValueError, match="another export"):
            export.export(other, tmp_path / "out")
    assert tree_of(tmp_path / "out") == before


def test_whole_tiles_and_their_names():
    train, test = export.sets("potsdam", ("train", "test"), "laptop")
    assert (train.size, len(train), len(test)) == (512, 23, 14)
    (aerorit,) = export.sets("aerorit", ("train",), "laptop")
    assert aerorit.size == (256, 512) and len(aerorit) == 1
    (state,) = export.sets("chesapeake", ("train",), "paper", state=0)
    assert state.size == (7500, 6000) and len(state) == 82
    with pytest.raises(ValueError, match="names for 23 train files; 24 were asked for"):
        export.sets("potsdam", ("train",), "laptop", count=24)
    with pytest.raises(ValueError, match="no data set"):
        export.sets("berlin")
