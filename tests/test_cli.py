"""The command line as an analyst uses it: train, evaluate, map; and one clear message for every kind of bad input."""

import json
import shutil

import numpy as np
import pytest
import rasterio
from rasterio.transform import from_origin

from hierlab import workflow
from hierlab.cli import main, spread
from hierlab.crosswalk import Crosswalk, shipped
from hierlab.mapping import read_map
from hierlab.recipes import HIRESNET, PARAFORMER
from hierlab.workflow import DEFAULT_RECIPE

TREE = """
ignore: [0]
levels:
  - name: group
    classes:
      - {name: water, color: "#0000ff"}
      - {name: land, color: "#aa8800", codes: [9]}
  - name: class
    classes:
      - {name: lake, color: "#0000ff", parent: water, codes: [1]}
      - {name: field, color: "#ffff00", parent: land, codes: [2]}
      - {name: wood, color: "#008800", parent: land, codes: [3]}
"""
SIDE = 256


def write(path, array, crs="EPSG:32633", origin=(500_000, 5_000_000), nodata=None, names=None):
    array = array if array.ndim == 3 else array[None]
    grid = {"crs": crs, "transform": from_origin(*origin, 10, 10), "height": array.shape[1], "width": array.shape[2]}
    with rasterio.open(path, "w", driver="GTiff", count=len(array), dtype=array.dtype, nodata=nodata, **grid) as file:
        file.write(array)
        for number, name in enumerate(names or [], 1):
            file.set_band_description(number, name)
    return str(path)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a scene of three classes in stripes of 32 pixels, its labels and its tree."""
    folder = tmp_path_factory.mktemp("place")
    rng = np.random.default_rng(0)
    label = (np.indices((SIDE, SIDE)).sum(0) // 32 % 3 + 1).astype(np.uint8)
    brightness = label.astype(float)
    image = np.stack([brightness * 100, brightness * 50 + 200, 900 - brightness * 200]) + rng.normal(
        0, 5, (3, SIDE, SIDE)
    )
    label[:8, :8] = 9  # "land, kind unknown"
    write(folder / "image.tif", image.astype(np.uint16), names=["blue", "green", "red"])
    write(folder / "label.tif", label)
    (folder / "tree.yaml").write_text(TREE)
    return folder


@pytest.fixture(scope="module")
def trained(place):
    """The arguments of a training run that has been made once, in ``place/run``."""
    with pytest.raises(SystemExit) as end:
        main([*arguments(place), "--out", str(place / "run"), "--test", "0.2"])
    assert not end.value.code
    return place / "run"


def arguments(place, **changes):
    given = {"images": place / "image.tif", "labels": place / "label.tif", "tree": place / "tree.yaml", "device": "cpu"}
    given |= changes
    options = [word for name, value in given.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    return ["train", *options, "--profile", "smoke", "--steps", "2"]


def refused(capsys, arguments):
    """Run the command line, which must end with code 2, no traceback and one message; returns the message."""
    with pytest.raises(SystemExit) as end:
        main([str(argument) for argument in arguments])
    message = capsys.readouterr().err
    assert end.value.code == 2 and "Traceback" not in message
    return message


def test_several_values_after_one_option():
    given = ["train", "--images", "a", "b", "c", "--labels", "d", "--tree", "t", "--resume", "--bands", "1", "2"]
    want = ["train", "--images", "a", "--images", "b", "--images", "c", "--labels", "d", "--tree", "t", "--resume"]
    assert spread(given) == [*want, "--bands", "1", "--bands", "2"]


def test_train_leaves_a_complete_run(trained):
    names = {path.name for path in trained.iterdir()}
    expected = {"model.safetensors", "model.json", "log.jsonl", "metrics.json", "history.png", "classes.png", "map.png"}
    assert expected <= names
    config = json.loads((trained / "model.json").read_text())
    assert config["network"] == "resnet18-unet" and config["band_names"] == ["blue", "green", "red"]
    metrics = json.loads((trained / "metrics.json").read_text())
    assert metrics["metrics"]["consistency"] == 1.0 and "test blocks" in metrics["data"]


def test_evaluate_takes_the_held_out_blocks_of_its_own_images(trained, place, capsys):
    with pytest.raises(SystemExit) as end:
        main(["evaluate", str(trained), "--images", f"{place}/image.tif", "--labels", f"{place}/label.tif"])
    printed = capsys.readouterr().out
    assert not end.value.code and "the test blocks of the run" in printed
    again = json.loads((trained / "evaluation-test-image.json").read_text())["metrics"]
    first = json.loads((trained / "metrics.json").read_text())["metrics"]
    assert again["levels"][1]["confusion"] == first["levels"][1]["confusion"]


def test_map_is_on_the_scenes_grid_and_consistent(trained, place, capsys):
    out = place / "maps" / "map.tif"
    with pytest.raises(SystemExit) as end:
        main(["map", str(trained), f"{place}/image.tif", str(out), "--device", "cpu"])
    assert not end.value.code and out.with_name("map-preview.png").exists()
    classes, tree, about = read_map(out)
    with rasterio.open(place / "image.tif") as scene:
        assert about["crs"] == scene.crs and about["transform"] == scene.transform
    assert classes.shape == (2, SIDE, SIDE)
    parents = {0: 0, 1: 1, 2: 1}
    assert set(map(tuple, classes.reshape(2, -1).T.tolist())) <= {(parents[leaf], leaf) for leaf in parents}
    assert tree.classes[1] == ("lake", "field", "wood")
    before = out.read_bytes()
    assert (
        "exists already" in refused(capsys, ["map", trained, place / "image.tif", out]) and out.read_bytes() == before
    )


def test_single_band_files_are_stacked(place, tmp_path, capsys):
    with rasterio.open(place / "image.tif") as scene:
        paths = [write(tmp_path / f"b{i}.tif", scene.read(i)) for i in (1, 2, 3)]
    with pytest.raises(SystemExit) as end:
        main(
            [
                "train",
                "--images",
                *paths,
                *arguments(place)[3:],
                "--out",
                str(tmp_path / "run"),
                "--head",
                "flat",
                "--precision",
                "bf16-mixed",
            ]
        )
    assert not end.value.code and "3 (b1, b2, b3)" in capsys.readouterr().out
    config = json.loads((tmp_path / "run" / "model.json").read_text())
    assert config["bands"] == 3 and config["head"] == "flat"
    assert config["training"]["recipe"]["precision"] == "bf16-mixed"


@pytest.mark.parametrize(
    "old, new, message",
    [
        ("parent: water, codes: [1]", "parent: wood, codes: [1]", "names 'wood'|cycle|level gap"),
        ("name: wood", "name: field", "stands twice"),
        ("codes: [3]", "codes: [2]", "already belongs to 'field'"),
        ("parent: water, codes: [1]", "parent: land, codes: [1]", "level gap: 'water'"),
        ("codes: [3]", "codes: [4]", "3: .* px"),
    ],
)
def test_bad_trees(place, tmp_path, capsys, old, new, message):
    (tmp_path / "bad.yaml").write_text(TREE.replace(old, new))
    import re

    said = refused(capsys, [*arguments(place, tree=tmp_path / "bad.yaml"), "--out", tmp_path / "run"])
    assert re.search(message, said) and not (tmp_path / "run").exists()


def test_bad_rasters(place, tmp_path, capsys):
    with rasterio.open(place / "image.tif") as file:
        image = file.read()
    with rasterio.open(place / "label.tif") as file:
        label = file.read(1)
    truncated = tmp_path / "truncated.tif"
    truncated.write_bytes((place / "image.tif").read_bytes()[: image.nbytes // 2])
    (tmp_path / "text.tif").write_text("not a raster")
    nothing = np.full((3, SIDE, SIDE), np.nan, np.float32)
    cases = [
        ({"labels": write(tmp_path / "far.tif", label, origin=(0, 0))}, "overlap"),
        ({"labels": write(tmp_path / "free.tif", label, crs=None)}, "--label-crs"),
        ({"images": write(tmp_path / "image-free.tif", image, crs=None)}, "CRS"),
        ({"images": truncated}, "truncated.tif"),
        ({"images": tmp_path / "text.tif"}, "text.tif"),
        ({"images": tmp_path / "absent.tif"}, "absent.tif"),
        ({"images": write(tmp_path / "nothing.tif", nothing)}, "valid"),
        ({"network": "resnet18-untt"}, "resnet18-unet"),
        ({"head": "tree"}, "bhccm"),
        ({"device": "cuda:99"}, "not available"),
    ]
    for changes, expected in cases:
        said = refused(capsys, [*arguments(place, **changes), "--out", tmp_path / "run"])
        assert expected in said, said
        assert not (tmp_path / "run").exists()


def test_nan_pixels_are_counted_and_kept_out(place, tmp_path, capsys):
    with rasterio.open(place / "image.tif") as file:
        image = file.read().astype(np.float32)
    image[0, 50:60, 50:60], image[1, 70, 70] = np.nan, np.inf
    path = write(tmp_path / "wild.tif", image)
    with pytest.raises(SystemExit) as end:
        main([*arguments(place, images=path), "--out", str(tmp_path / "run")])
    assert not end.value.code and "101 pixels are NaN or infinite" in capsys.readouterr().out


def test_a_run_folder_is_never_overwritten_and_other_bands_are_refused(trained, place, tmp_path, capsys):
    before = (trained / "model.safetensors").read_bytes()
    assert "already holds a run" in refused(capsys, [*arguments(place), "--out", trained])
    assert (trained / "model.safetensors").read_bytes() == before
    two = write(tmp_path / "two.tif", np.ones((2, SIDE, SIDE), np.uint16))
    said = refused(capsys, ["map", trained, two, tmp_path / "map.tif"])
    assert "trained on 3 bands" in said and not (tmp_path / "map.tif").exists()
    assert "holds no trained model" in refused(capsys, ["map", tmp_path, place / "image.tif", tmp_path / "map.tif"])


@pytest.mark.parametrize(
    ("network", "recipe"), [("hiresnet", HIRESNET), ("paraformer-light", PARAFORMER), ("resnet18-unet", DEFAULT_RECIPE)]
)
def test_the_paper_profile_trains_by_the_papers_recipe(place, tmp_path, capsys, monkeypatch, network, recipe):
    given = []

    def stop(_images, _labels, _tree, recipe, **_options):
        given.append(recipe)
        raise ValueError("far enough")

    monkeypatch.setattr(workflow, "prepare", stop)
    options = [*arguments(place, network=network, out=tmp_path / "run")[:-4], "--profile", "paper"]
    assert "far enough" in refused(capsys, options)
    assert given == [recipe]


def test_a_full_disk_leaves_no_map(trained, place, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**9, 10**9, 0))
    assert "room" in refused(capsys, ["map", trained, place / "image.tif", tmp_path / "map.tif"])
    assert not list(tmp_path.iterdir())


def test_list_and_describe(capsys):
    for what, expected in [("trees", "mm5b"), ("networks", "convnext_base-upernet"), ("experiments", "table-07")]:
        with pytest.raises(SystemExit):
            main(["list", what])
        assert expected in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(["describe", "resnet18-unet", "--classes", "5", "--size", "64", "--json"])
    counted = json.loads(capsys.readouterr().out)
    assert counted["outputs"] == [[1, 5, 64, 64]] and counted["params"] > 1e7
    assert "one of networks" in refused(capsys, ["list", "models"])


def listed(capsys, *what):
    with pytest.raises(SystemExit) as end:
        main(["list", *what])
    assert not end.value.code
    return [line for line in capsys.readouterr().out.splitlines() if line.startswith("│")]


def test_list_alone_says_what_can_be_listed_and_each_can(capsys):
    kinds = [line.split()[1] for line in listed(capsys)]
    assert kinds == ["networks", "trees", "mappings", "datasets", "experiments"]
    for kind in kinds:
        assert listed(capsys, kind), kind


def test_list_mappings_shows_name_title_and_trees(capsys):
    lines = listed(capsys, "mappings")
    found = {name: Crosswalk.load(name) for name in shipped()}
    assert [line.split()[1] for line in lines if line.split()[1] in found] == list(found)
    for line in lines:
        crosswalk = found.get(line.split()[1])
        if crosswalk is not None:
            assert line.split("│")[3].strip() == f"{crosswalk.source.name} -> {crosswalk.target.name}"
            assert crosswalk.title.startswith(line.split("│")[2].strip())
