"""The same code on real files: Landsat-8 with NLCD over Zion, NAIP, EnMAP."""

import numpy as np
import pytest
import rasterio
from rasterio.warp import transform as transform_points
from rasterio.windows import Window

from hierlab.data import LabelledScene, LabelRaster, RasterDataset, Scene, blocked_split, statistics
from hierlab.data.grid import apply
from hierlab.tree import ClassTree


@pytest.fixture
def zion(shared_data):
    folder = shared_data("zion")
    scene = Scene.open([folder / f"landsat_b{b}.tif" for b in (2, 3, 4, 5)])
    return folder, scene, ClassTree.load("nlcd")


def test_zion_scene(zion):
    _, scene, _ = zion
    assert (scene.height, scene.width, scene.count, scene.gsd) == (1428, 1128, 4, 30)
    assert scene.bands == ("landsat_b2", "landsat_b3", "landsat_b4", "landsat_b5")
    summary = scene.summary()
    assert summary["crs"] == "EPSG:32612" and summary["valid_share"] == 1 and summary["nonfinite"] == 0
    found = statistics([scene])
    with rasterio.open(scene.paths[0]) as file:
        tags = file.tags(1)
    assert found.mean[0] == pytest.approx(float(tags["STATISTICS_MEAN"]), rel=0.01)
    assert found.std[0] == pytest.approx(float(tags["STATISTICS_STDDEV"]), rel=0.05)


def test_zion_labels_agree_with_a_transform_of_every_pixel(zion):
    folder, scene, tree = zion
    labels = LabelRaster.open(folder / "nlcd2011.tif", scene, tree, crs="EPSG:26912")
    window = Window(300, 400, 200, 150)
    columns, rows = np.meshgrid(np.arange(300, 500) + 0.5, np.arange(400, 550) + 0.5)
    x, y = transform_points(scene.crs, "EPSG:26912", *(v.ravel() for v in apply(scene.transform, columns, rows)))
    with rasterio.open(folder / "nlcd2011.tif") as file:
        column, row = apply(~file.transform, np.array(x), np.array(y))
        codes = file.read(1)[np.floor(row).astype(int), np.floor(column).astype(int)]
    border = np.minimum(np.abs(column - np.round(column)), np.abs(row - np.round(row)))
    expected, got = tree.encode(codes), labels.read(window).ravel()
    assert (got == expected)[border > 0.02].all()
    # every level-II code coarsens to the level-I class that its own file (1 to 8, in the tree's order) gives it
    with rasterio.open(folder / "nlcd.tif") as file, rasterio.open(folder / "nlcd2011.tif") as fine:
        level_one, level_two = np.unique(np.stack([file.read(1).ravel(), fine.read(1).ravel()]), axis=1)
    assert len(level_two) == 14
    np.testing.assert_array_equal(tree.coarsen(tree.encode(level_two), 0), level_one - 1)
    assert len(labels.counts()) == 14 and sum(labels.counts().values()) == 1428 * 1128


def test_zion_split_and_patches(zion):
    folder, scene, tree = zion
    source = LabelledScene(scene, LabelRaster.open(folder / "nlcd2011.tif", scene, tree, crs="EPSG:26912"))
    split = blocked_split(source, 128, 0.2, seed=0)
    train = RasterDataset([(source, split)], 64, samples=20)
    validation = RasterDataset([(source, split)], 64, "validation")
    present = np.flatnonzero(train.counts + validation.counts)
    assert len(present) == 14 and (train.counts[present] > 0).all() and (validation.counts[present] > 0).all()
    assert validation.counts.sum() / scene.height / scene.width == pytest.approx(0.2, abs=0.03)
    assert sum(int((item["label"] != 255).sum()) for item in validation) == validation.counts.sum()
    assert all((item["label"] != 255).any() for item in train)


def test_dates_of_naip_overlap_without_leaking(shared_data):
    paths = sorted(shared_data("naip_north_dakota").glob("*.tif"))
    scenes = [Scene.open(path) for path in paths]
    assert all(s.count == 4 and s.gsd == 5 for s in scenes)
    sources = [LabelledScene(s, np.zeros((s.height, s.width), np.uint8)) for s in scenes]
    splits = blocked_split(sources, 128, 0.2, seed=0)
    for split in splits:  # grids differ by a pixel or two, so each bars the others' blocks
        assert split.others
        assert 0.1 < split.mask("train").mean() < 0.8


def test_enmap_empty_bands_are_named(shared_data):
    path = sorted((shared_data("enmap") / "images").glob("*.tif"))[0]
    with pytest.raises(ValueError, match=r"nodata only: \['band 130 .*'band 135"):
        Scene.open(path)
    scene = Scene.open(path, bands=[*range(1, 130), *range(136, 225)])
    assert scene.count == 218 and scene.wavelengths[0] == 418.24 and scene.read_valid()[1].all()
