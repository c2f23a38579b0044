"""How files become scenes and labels, and how a trained model recognises the ground that it was trained on."""

import numpy as np
import pytest
import torch
from test_cli import write

from hierlab import profiles, workflow
from hierlab.tree import ClassTree

TREE = ClassTree.load("nlcd")
GRID = np.indices((128, 160)).sum(0)


@pytest.fixture
def files(tmp_path):
    """Two scenes of two bands side by side, a label raster for each, and one that covers both."""
    rng = np.random.default_rng(0)
    both = np.where(GRID // 16 % 2, 11, 42).astype(np.uint8)
    both = np.concatenate([both, both], 1)
    names = {}
    for i, x in enumerate((500_000, 501_600)):
        image = rng.integers(1, 1000, (2, 128, 160)).astype(np.uint16)
        names[f"image{i}"] = write(tmp_path / f"image{i}.tif", image, origin=(x, 5_000_000))
        names[f"label{i}"] = write(tmp_path / f"label{i}.tif", both[:, :160], origin=(x, 5_000_000))
    names["labels"] = write(tmp_path / "labels.tif", both)
    names["three"] = write(tmp_path / "three.tif", rng.integers(1, 9, (3, 128, 160)).astype(np.uint16))
    return names


def test_multi_band_files_are_scenes_of_their_own(files):
    scenes = workflow.open_scenes([files["image0"], files["image1"]])
    assert [scene.count for scene in scenes] == [2, 2]
    with pytest.raises(ValueError, match="has 3 bands"):
        workflow.open_scenes([files["image0"], files["three"]])
    with pytest.raises(ValueError, match="No image"):
        workflow.open_scenes([])


def test_labels_are_paired_with_scenes_or_cover_them_all(files):
    scenes = workflow.open_scenes([files["image0"], files["image1"]])
    paired = workflow.open_labels([files["label0"], files["label1"]], scenes, TREE)
    covering = workflow.open_labels([files["labels"]], scenes, TREE)
    for own, shared in zip(paired, covering, strict=True):
        assert np.array_equal(own.read(), shared.read()) and own.counts()
    with pytest.raises(ValueError, match="2 images and 3 label files"):
        workflow.open_labels([files["labels"]] * 3, scenes, TREE)


def test_prepare_shrinks_the_patch_and_drops_absent_classes(files):
    recipe = workflow.DEFAULT_RECIPE.scaled("smoke").replace(patch=128)
    prepared = workflow.prepare([files["image0"]], [files["label0"]], TREE, recipe, only_present=True, block=48)
    assert prepared.patch == 32 and prepared.tree.classes[1] == ("open water", "evergreen forest")
    assert prepared.validation.counts.sum() > 0 and prepared.test is None
    assert prepared.validation.patch == 160  # the longer side: there is nothing to see beside so small a scene
    config = {"patch": 32, "data": workflow.data_config(prepared)}
    assert workflow.window_of(config) == 160
    assert workflow.window_of(config | {"patch": 192}) == 192 and workflow.window_of({"patch": 32}) == 256
    config["data"]["grids"].append([300, 90])
    assert workflow.window_of(config) == 256
    assert any("validation" in line for line in prepared.describe())


def test_bands_are_matched_by_name_then_by_number(files, tmp_path):
    swapped = write(tmp_path / "swapped.tif", np.ones((2, 20, 20), np.uint8), names=["red", "blue"])
    config = {"band_names": ["blue", "red"], "bands": 2}
    scene, note = workflow.open_for(config, [swapped])
    assert scene.bands == ("blue", "red") and note is None
    scene, note = workflow.open_for(config, [files["image0"]])
    assert "in this order" in note
    with pytest.raises(ValueError, match="trained on 2 bands"):
        workflow.open_for(config, [files["three"]])


def test_json_holds_tensors_and_missing_values(tmp_path):
    workflow.write_json(tmp_path / "a.json", {"x": torch.tensor([1.0, float("nan")]), "y": (np.int64(2), True)})
    assert (tmp_path / "a.json").read_text() == '{\n "x": [\n  1.0,\n  null\n ],\n "y": [\n  2,\n  true\n ]\n}\n'


def test_profiles_are_checked(monkeypatch):
    monkeypatch.setenv("HIERLAB_PROFILE", "gpu")
    assert profiles.current() == "gpu"
    monkeypatch.delenv("HIERLAB_PROFILE")
    assert profiles.current() == "laptop"
    with pytest.raises(ValueError, match="smoke, laptop, gpu, paper"):
        profiles.check("desktop")
