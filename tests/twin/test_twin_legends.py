"""Every class list is a mapping of the same truth: total, on the trees, with the published merges."""

import numpy as np
import pytest

from hierlab.tree import IGNORE, ClassTree, shipped
from hierlab.twin.ground import LEAF, LEAVES
from hierlab.twin.legends import COVERS, LEGENDS, MERGES, PLACES, SCENES, classify, lookup, scene
from hierlab.twin.spectra import KIND, KINDS

NAMES = (
    *("mm5b", "crop10m", "whdld", "chesapeake", "nlcd16", "poland", "loveda", "potsdam", "vaihingen", "h2sr"),
    *("aerorit", "sen4agrinet", "mapillary", "million-aid", "worldcover", "esri", "from-glc10", "glc-fcs30"),
)
# Classes of a real legend that the twin has no ground for, or that no single sample is (mixed forest).
UNSEEN = {
    "nlcd16": {"perennial ice/snow", "mixed forest", "woody wetlands"},
    "worldcover": {"snow and ice", "mangroves", "moss and lichen"},
    "esri": {"snow/ice"},
    "from-glc10": {"tundra", "snow/ice"},
}


def test_all_legends_are_there_and_their_trees_load():
    assert set(LEGENDS) == set(NAMES)
    assert {legend.tree for legend in LEGENDS.values()} <= set(shipped())


def test_covers_are_a_partition_of_the_kinds():
    listed = [kind for kinds in COVERS.values() for kind in kinds]
    assert sorted(listed) == sorted(KINDS)
    assert all(COVERS[name] == (name,) for name in set(COVERS) & set(KINDS))  # no name means two things
    assert {leaf for leaves in PLACES.values() for leaf in leaves} <= set(LEAVES)


@pytest.mark.parametrize("name", NAMES)
def test_a_legend_speaks_of_every_leaf_with_every_kind(name):
    legend = LEGENDS[name]
    assert legend.table.shape == (len(LEAVES), len(KINDS)) and legend.table.dtype == np.uint8
    assert legend.classes == ClassTree.load(legend.tree).classes[-1]
    used = set(np.unique(legend.table)) - {IGNORE}
    assert max(used) < len(legend.classes)
    missing = {c for n, c in enumerate(legend.classes) if n not in used}
    assert missing == UNSEEN.get(name, set()) if name != "glc-fcs30" else len(used) == 12
    ignores = name in ("h2sr", "aerorit", "sen4agrinet", "million-aid")
    assert (legend.table == IGNORE).any() == ignores


@pytest.mark.parametrize(
    "name, leaf, kind, expected",
    [
        ("mm5b", "park & square", "pond water", "park & square"),
        ("crop10m", "dry cropland", "soybean", "soybean"),
        ("crop10m", "dry cropland", "wheat and maize", "corn"),
        ("crop10m", "dry cropland", "street trees", "other"),
        ("whdld", "road", "white car", "road"),
        ("whdld", "urban residential", "concrete", "pavement"),
        ("whdld", "rural residential", "red roof", "building"),
        ("chesapeake", "bare land", "bare soil", "impervious"),
        ("chesapeake", "urban residential", "street trees", "tree"),
        ("chesapeake", "river", "river water", "water"),
        ("nlcd16", "urban residential", "lawn", "developed, open space"),
        ("nlcd16", "artificial meadow", "meadow", "pasture/hay"),
        ("nlcd16", "natural meadow", "meadow", "grassland/herbaceous"),
        ("nlcd16", "forest", "orchard", "cultivated crops"),
        ("poland", "dry cropland", "rape", "low vegetation"),
        ("poland", "bare land", "sand", "built-up"),
        ("loveda", "dry cropland", "meadow", "agriculture"),
        ("loveda", "natural meadow", "meadow", "background"),
        ("loveda", "urban residential", "street trees", "background"),
        ("loveda", "forest", "street trees", "forest"),
        ("loveda", "road", "ballast", "road"),
        ("potsdam", "road", "red car", "car"),
        ("potsdam", "pond", "pond water", "clutter"),
        ("potsdam", "urban residential", "hedge", "tree"),
        ("vaihingen", "urban residential", "red roof", "building"),
        ("h2sr", "paddy field", "meadow", "paddy field"),
        ("h2sr", "dry cropland", "greenhouse", "greenhouse"),
        ("h2sr", "overpass", "asphalt", "highway"),
        ("h2sr", "bare land", "rock", None),
        ("aerorit", "road", "dark car", "cars"),
        ("aerorit", "railway station", "train", None),
        ("sen4agrinet", "forest", "vineyard", "grapes"),
        ("sen4agrinet", "dry cropland", "oats", None),
        ("mapillary", "overpass", "asphalt", "bridge deck"),
        ("mapillary", "road", "track", "track"),
        ("million-aid", "airport", "concrete", "apron"),
        ("million-aid", "park & square", "lawn", None),
        ("worldcover", "dry cropland", "greenhouse", "cropland"),
        ("esri", "urban residential", "lawn", "built area"),
        ("from-glc10", "natural meadow", "shrubland", "shrubland"),
        ("glc-fcs30", "forest", "conifer forest", "evergreen needleleaved forest"),
    ],
)
def test_what_a_legend_calls_things(name, leaf, kind, expected):
    got = int(classify(np.array(LEAF[leaf]), np.array(KIND[kind]), name))
    assert got == (IGNORE if expected is None else LEGENDS[name].classes.index(expected))


def test_classify_keeps_the_shape_and_names_what_is_wrong():
    leaf, kind = np.zeros((3, 5), np.uint8), np.full((3, 5), KIND["rice"], np.uint8)
    assert classify(leaf, kind, "mm5b").shape == (3, 5)
    assert (classify(leaf, kind, LEGENDS["h2sr"]) == 0).all()
    with pytest.raises(ValueError, match="potsdam"):
        lookup("postdam")


def test_crop10m_is_a_set_of_five_paths():
    tree = ClassTree.load("crop10m")
    assert tree.sizes == (2, 2, 4)
    names = {tuple(tree.classes[level][i] for level, i in enumerate(path)) for path in tree.paths.tolist()}
    assert names == {
        ("other", "other", "other"),
        *(("vegetation", "cropland", leaf) for leaf in ("other", "rice", "corn", "soybean")),
    }
    other = np.array([tree.label_of("other", "L3")], np.uint8)
    assert tree.targets(other).ravel().tolist() == [IGNORE, IGNORE, 0]  # its two paths differ above the leaf


@pytest.mark.parametrize(
    "name, classes, codes, colors",
    [
        (
            "whdld",
            ("building", "road", "pavement", "vegetation", "bare soil", "water"),
            range(1, 7),
            [(255, 0, 0), (255, 255, 0), (192, 192, 0), (0, 255, 0), (128, 128, 128), (0, 0, 255)],
        ),
        (
            "loveda",
            ("background", "building", "road", "water", "barren", "forest", "agriculture"),
            range(1, 8),
            [(255,) * 3, (255, 0, 0), (255, 255, 0), (0, 0, 255), (159, 129, 183), (0, 255, 0), (255, 195, 128)],
        ),
        (
            "potsdam",
            ("impervious surfaces", "building", "low vegetation", "tree", "car", "clutter"),
            range(6),
            [(255,) * 3, (0, 0, 255), (0, 255, 255), (0, 255, 0), (255, 255, 0), (255, 0, 0)],
        ),
        (
            "aerorit",
            ("buildings", "vegetation", "roads", "water", "cars"),
            range(5),
            [(255, 0, 0), (0, 255, 0), (0, 0, 255), (0, 255, 255), (255, 127, 80)],
        ),
        (
            "sen4agrinet",
            ("wheat", "maize", "rice", "barley", "grapes", "rapeseed", "potatoes"),
            (110, 120, 130, 150, 330, 435, 510),
            None,
        ),
        (
            *("h2sr", ("paddy field", "dry farmland", "forest land", "grassland", "building", "highway", "greenhouse")),
            *(range(1, 8), None),
        ),
    ],
)
def test_classes_codes_and_colors_of_the_data_sets(name, classes, codes, colors):
    tree = ClassTree.load(name)
    assert tree.classes[-1][: len(classes)] == classes
    assert tree.encode(np.array(list(codes))).tolist() == list(range(len(classes)))
    if colors:
        assert [tuple(c) for c in tree.colors[-1].tolist()] == colors


def test_two_level_trees():
    assert ClassTree.load("whdld").sizes == (4, 6)
    assert ClassTree.load("mapillary").sizes[-1] == 66
    fcs = ClassTree.load("glc-fcs30")
    assert fcs.targets(fcs.encode(np.array([62])))[0, 0] == fcs.classes[0].index("forest")


NLCD = (0, 11, 12, 21, 22, 23, 24, 31, 41, 42, 43, 52, 71, 81, 82, 90, 95)
WATER, TREE, LOW, IMPERVIOUS = range(4)


@pytest.mark.parametrize(
    "name, expected",
    [
        (
            "nlcd-dfc2021",
            (IGNORE, 0, IGNORE, LOW, *[IMPERVIOUS] * 3, IMPERVIOUS, *[TREE] * 4, *[LOW] * 3, TREE, TREE),
        ),
        ("nlcd-later", (IGNORE, 0, IGNORE, *[IMPERVIOUS] * 4, LOW, *[TREE] * 3, *[LOW] * 4, TREE, LOW)),
    ],
)
def test_both_published_merges_of_nlcd(name, expected):
    merge = MERGES[name]
    assert merge.apply(np.array(NLCD, np.uint8)).tolist() == list(expected)
    assert set(np.flatnonzero(merge.table != IGNORE)) <= set(NLCD)


def test_merges_of_truths_and_products():
    for merge in MERGES.values():
        assert tuple(merge.codes) == ClassTree.load(merge.tree).classes[-1]
        codes = [code for group in merge.codes.values() for code in group]
        assert len(codes) == len(set(codes))
    hr, oem = MERGES["chesapeake-hr"], MERGES["openearthmap"]
    assert hr.apply(np.arange(7)).tolist() == [IGNORE, WATER, TREE, LOW, IMPERVIOUS, IMPERVIOUS, IMPERVIOUS]
    assert hr.apply(np.array([15])) == IGNORE
    assert oem.apply(np.arange(9)).tolist() == [IGNORE, 3, 1, 3, 3, 0, 2, 1, 3]
    for name, merge in (("chesapeake", hr), ("poland", oem)):
        known = np.flatnonzero(merge.table != IGNORE)
        assert (ClassTree.load(name).encode(known) == merge.apply(known)).all()
    for name, tree in (("from-glc10",) * 2, ("esri",) * 2, ("esa-worldcover", "worldcover"), ("glc-fcs30",) * 2):
        known = np.flatnonzero(MERGES[name].table != IGNORE)
        assert (ClassTree.load(tree).encode(known) != IGNORE).all()


def test_a_scene_is_called_by_what_is_rare_in_it():
    classes = LEGENDS["million-aid"].classes
    leaf = np.full((20, 20), LEAF["dry cropland"])
    kind = np.full((20, 20), KIND["wheat"])
    assert classes[scene(leaf, kind)] == "dry field"
    leaf[:4, :10], kind[:4, :10] = LEAF["stadium"], KIND["concrete"]
    assert classes[scene(leaf, kind)] == "stadium"
    assert scene(np.full((4, 4), LEAF["park & square"]), np.full((4, 4), KIND["lawn"])) == IGNORE
    assert set(SCENES) < set(classes)
