"""Crosswalks: shipped and faulty mappings, merged trees, and what fusing two predictions refuses."""

import pytest
import torch

from hierlab.crosswalk import Crosswalk, shipped
from hierlab.tree import ClassTree, TreeError

MM5B, CROPS = ClassTree.load("mm5b"), ClassTree.load("crop10m")
TO_CROPS = Crosswalk.load("landuse-to-crops")


def test_shipped_mappings_are_read_and_written_back():
    assert {"landuse-to-crops", "landuse-to-whdld", "industry-to-storage-tanks", "road-to-highway"} <= set(shipped())
    for name in shipped():
        given = Crosswalk.load(name)
        again = Crosswalk.from_dict(given.to_dict(), given.source, given.target)
        assert again.nodes == given.nodes and again.rest == given.rest and again.to_dict() == given.to_dict()
    assert ClassTree.load("crops") == CROPS and ClassTree.load("landuse") == MM5B


GOOD = {"L1/vegetation": "L1/vegetation", "L2/cropland": "cropland"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"nodes": {**GOOD, "L2/croplnd": "cropland"}}, "'crop10m' has no class 'L2/croplnd'; near: L2/cropland"),
        ({"nodes": {**GOOD, "L2/cropland": "croplands"}}, "'mm5b' has no class 'croplands'; near: L2/cropland"),
        ({"nodes": {**GOOD, "L2/cropland": "L9/cropland"}}, "no class 'L9/cropland'"),
        ({"nodes": {**GOOD, "L2/cropland": "water"}}, "several levels of 'mm5b'; write L1/water or L2/water"),
        ({"rest": []}, r"no class on other > other > other is mapped.*no ancestor in the source tree 'mm5b'"),
        ({"nodes": {"L3/rice": "paddy field"}}, r"vegetation > cropland > corn; vegetation > cropland > soybean"),
        ({"rest": ["other", "vegetation"]}, "'L1/vegetation' is mapped and one of the rest"),
        ({"nodes": {**GOOD, "L2/other": "forest", "L1/other": "L1/water"}, "rest": ["L3/other"]}, "several levels"),
        ({"nodes": {**GOOD, "L1/other": ["L1/water", "L1/vegetation"]}, "rest": ["L2/other"]}, "share source classes"),
        ({"nodes": {**GOOD, "L2/cropland": "transportation"}}, "does not lie within that of 'L1/vegetation'"),
        ({"nodes": {**GOOD, "L2/other": "L1/water"}, "rest": ["L1/other"]}, "lies below 'L1/other', one of the rest"),
        ({"nodes": {**GOOD, "cropland": "cropland"}}, "'cropland' is given twice"),
        ({"nodes": {}}, "a mapping has `nodes`"),
        ({"nodes": {**GOOD, "L2/cropland": []}}, "the source of 'L2/cropland' is the name of a class"),
        ({"nodes": {**GOOD, "L2/cropland": 3}}, "the source of 'L2/cropland' is the name of a class"),
        ({"nodes": {**GOOD, 7: "cropland"}}, "a class is named by text"),
        ({"colour": 1}, "has no `colour`"),
        ({"target": "crop11m"}, "Did you mean 'crop10m'"),
        ({"target": None}, "`target` is the name of a tree"),
    ],
)
def test_bad_mappings_say_what_is_wrong(changes, message):
    content = {"source": "mm5b", "target": "crop10m", "nodes": GOOD, "rest": ["other"]} | changes
    with pytest.raises(TreeError, match=message):
        Crosswalk.from_dict(content, where="mine.yaml")


def test_mapping_files(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(
        "source: mm5b\ntarget: crop10m\nnodes:\n  L1/vegetation: L1/vegetation\n  L1/vegetation: L1/water\n"
    )
    with pytest.raises(TreeError, match=r"mine.yaml, line 5: 'L1/vegetation' is given twice"):
        Crosswalk.load(path)
    with pytest.raises(TreeError, match="Did you mean 'landuse-to-crops'"):
        Crosswalk.load("land-use-to-crops")
    with pytest.raises(TreeError, match=r"landuse-to-crops.yaml: .*written for 'mm5b'; the source is 'nlcd'"):
        Crosswalk.load("landuse-to-crops", source=ClassTree.load("nlcd"))


def test_merged_trees_keep_every_old_class_and_divide_the_right_one():
    crops = TO_CROPS.merged
    assert crops.sizes == (4, 9, 21)
    assert all(new[: len(old)] == old for new, old in zip(crops.classes, MM5B.classes, strict=True))
    assert crops.classes[2][18:] == ("rice", "corn", "soybean")
    assert sorted(crops.paths.tolist()) == sorted([*MM5B.paths.tolist(), *([0, 0, leaf] for leaf in (18, 19, 20))])
    tanks = Crosswalk.load("industry-to-storage-tanks").merged  # the paper's example: below a leaf, so a fourth level
    assert tanks.sizes == (4, 9, 18, 19) and tanks.level_names == ("L1", "L2", "L3", "L4")
    below = [p[3] for p in tanks.paths.tolist() if p[2] == MM5B.label_of("industrial area")]
    assert [tanks.classes[3][i] for i in below] == ["industrial area", "storage tank"]
    roads = Crosswalk.load("road-to-highway").merged
    below = [p[3] for p in roads.paths.tolist() if roads.classes[2][p[2]] == "road"]
    assert [roads.classes[3][i] for i in below] == ["road", "highway"]
    assert len(roads.paths) == 19
    land = Crosswalk.load("landuse-to-whdld").merged
    assert land.classes[1][9:] == ("building", "road", "pavement")
    assert land.classes[2][18:] == ("building", "road (whdld)", "pavement")


def test_fusion_refuses_paths_that_are_none():
    old, new = torch.zeros(1, 3, 2, 2, dtype=torch.long), torch.zeros(1, 3, 2, 2, dtype=torch.long)
    old[0, 1, 0, 0] = 3  # vegetation > water
    with pytest.raises(ValueError, match="'mm5b' does not have; decode"):
        TO_CROPS.fuse(old, new)


def test_a_class_of_several_origins_is_merged_below_each():
    nodes = {(0, 0): [(0, 2)], (1, 0): [(1, 4), (1, 5)]}
    detached = ClassTree.from_dict(
        {
            "name": "houses",
            "levels": [
                {"name": "L1", "classes": [{"name": "built", "color": "#ff0000"}]},
                {"name": "L2", "classes": [{"name": "plot", "color": "#ff0000", "parent": "built"}]},
                {"name": "L3", "classes": [{"name": "house", "color": "#aa0000", "parent": "plot"}]},
            ],
        }
    )
    merged = Crosswalk(MM5B, detached, nodes).merged
    assert merged.nodes[2][-1].parents == ("industry", "residence") and merged.sizes == (4, 9, 19)
    uneven = Crosswalk(MM5B, detached, {(0, 0): [(0, 2)], (1, 0): [(1, 4), (2, 13)]})
    with pytest.raises(TreeError, match="several levels, so what lies below"):
        _ = uneven.merged
