"""Label products: exact at any cut, generalised as maps are, and as far from the truth as real ones."""

import numpy as np
import pytest
from scipy import ndimage

from hierlab import twin
from hierlab.tree import IGNORE, ClassTree
from hierlab.twin import likeness, products, world
from hierlab.twin.fields import Grid
from hierlab.twin.legends import LEGENDS, classify
from hierlab.twin.products import PRODUCTS, TILE, label, offset

FAR = 10**12


def forget():
    products._tile.cache_clear()
    world.tile.cache_clear()


def truth(region, x, y, size, gsd, year=2020):
    """Leaf and kind (size, size) of a square whose corner is the pixel (x, y), seed 0."""
    ground = world.survey(Grid.of(0, region, x, y, size, gsd * 1000, year)).ground
    return ground.leaf, ground.kind


def iou(confusion):
    return np.diag(confusion) / (confusion.sum(0) + confusion.sum(1) - np.diag(confusion))


@pytest.mark.parametrize("name, x, y", [("nlcd", 1400, -60), ("esri", FAR + 400, -FAR), ("glc-fcs30", -100, FAR)])
def test_a_product_is_the_same_however_it_is_cut(name, x, y):
    whole = label(name, 3, 1, (x, y, 150, 130), 2)
    forget()
    again = np.zeros_like(whole)
    g = np.random.default_rng(1)
    xs, ys = ([0, *sorted(g.choice(np.arange(1, n), 2, replace=False)), n] for n in (150, 130))
    parts = [(a, b) for a in range(3) for b in range(3)]
    g.shuffle(parts)
    for a, b in parts:
        window = (x + xs[a], y + ys[b], xs[a + 1] - xs[a], ys[b + 1] - ys[b])
        again[ys[b] : ys[b + 1], xs[a] : xs[a + 1]] = label(name, 3, 1, window, 2)
    assert (whole == again).all() and len(np.unique(whole)) > 1


def test_image_grids_of_any_size_show_the_same_map():
    five, one = label("nlcd", 0, 9, (400, 400, 40, 30), 5), label("nlcd", 0, 9, (2000, 2000, 200, 150), 1)
    assert (one[2::5, 2::5] == five).all()
    own = label("nlcd", 0, 9, (60, 60, 12, 12), 30)
    east, south = (round(n / 1000) for n in offset("nlcd", 0, 9))
    moved = label("nlcd", 0, 9, (1800 + east, 1800 + south, 360, 360), 1)[15::30, 15::30]
    assert max(abs(east), abs(south)) <= 15 and (moved == products._tile("nlcd", 0, 9, 1, 1, 2016)[12:24, 12:24]).all()
    assert (own == moved).mean() > 0.5


@pytest.mark.parametrize("name", PRODUCTS)
def test_codes_are_those_of_the_tree_and_small_areas_are_gone(name):
    product = PRODUCTS[name]
    tree = ClassTree.load(product.tree)
    codes = label(name, 0, 11, (10, 20, TILE + 30, TILE), product.gsd)
    labels = tree.encode(codes)
    assert (labels < tree.num_leaves).all() and (product.codes[labels] == codes).all()
    assert set(product.confusions) <= set(tree.classes[-1])
    assert all(sum(others.values()) < 1 for others in product.confusions.values())
    for n in set(np.unique(labels)) - {tree.classes[-1].index(c) for c in product.fine}:
        areas, count = ndimage.label(np.pad(labels == n, 1, constant_values=False))
        inside = set(range(1, count + 1)) - set(np.unique(np.concatenate([areas[1], areas[-2], *areas[:, [1, -2]].T])))
        sizes = np.bincount(areas.ravel(), minlength=count + 1)
        assert all(sizes[a] >= product.unit for a in inside)


def test_developed_land_is_graded_by_its_impervious_share():
    """21 below 20 %, 22 to 49 %, 23 to 79 %, 24 above: one pixel block of each share, far from anything else."""
    product, names = PRODUCTS["nlcd"], PRODUCTS["nlcd"].classes
    table = LEGENDS["nlcd16"]
    lawn = np.argwhere(table.table == names.index("developed, open space"))[0]
    roof = np.argwhere(table.table == names.index("developed, medium intensity"))[0]
    for share, code in ((0, 21), (3, 21), (4, 22), (7, 22), (8, 23), (12, 23), (13, 24), (16, 24)):
        leaf, kind = (np.full((9, 9, 16), lawn[n]) for n in (0, 1))
        leaf[..., :share], kind[..., :share] = roof
        assert (product.codes[products._nlcd(product, leaf, kind)] == code).all()


def test_nlcd_agrees_with_the_truth_as_the_real_one_does():
    """In five places whose class shares are those of the real tile, in regions like it.

    The real tile has 0.81 overall, IoU .37 water, .83 tree, .33 low vegetation, .27 impervious.
    """
    merge, confusion, shares = PRODUCTS["nlcd"].merging, np.zeros((4, 4)), (0.012, 0.791, 0.149, 0.048)
    for seed in range(5):
        region, side = likeness._region("naip", seed), 400
        _, x, y = likeness.find(dict(enumerate(shares)), likeness.tables()["naip"], 4.0 * side, seed, region)
        window = (x // 4, y // 4, side, side)
        ground = world.survey(Grid.of(seed, region, *window[:3], 4000, 2020)).ground
        got = merge.apply(label("nlcd", seed, region, window, 4))
        assert (got != IGNORE).all()
        real = classify(ground.leaf, ground.kind, "chesapeake")
        confusion += np.bincount(real.ravel() * 4 + got.ravel(), minlength=16).reshape(4, 4)
    matched = confusion / confusion.sum(1, keepdims=True) * np.array(shares)[:, None]
    (water, tree, low, impervious), overall = iou(matched), np.trace(matched)
    assert 0.77 < overall < 0.87 and 0.78 < tree < 0.88
    assert 0.25 < low < 0.43 and 0.25 < water < 0.6 and 0.15 < impervious < 0.4


def test_the_four_products_of_the_poland_set_are_hard_and_the_coarsest_is_hardest():
    """Mean IoU of the unified classes in three villages with what lies round them."""
    quality, scenes = {}, []
    for region in (0, 5, 8):
        x, y = (n // 480 * 240 + 20 for n in twin.nearest("rural residential", 3000, 5000, region=region))
        leaf, kind = truth(region, x, y, 200, 2)  # within one tile of 480 m
        scenes.append((region, (x, y, 200, 200), classify(leaf, kind, "poland")))
    for name in ("from-glc10", "esa-worldcover", "esri", "glc-fcs30"):
        confusion = np.zeros((4, 4))
        for region, window, real in scenes:
            got = PRODUCTS[name].merging.apply(label(name, 0, region, window, 2))
            seen = got != IGNORE
            confusion += np.bincount(real[seen] * 4 + got[seen], minlength=16).reshape(4, 4)
        quality[name] = np.nanmean(iou(confusion))
    assert all(0.3 < q < 0.65 for q in quality.values())
    assert quality["glc-fcs30"] == min(quality.values())


def test_a_map_of_an_earlier_year_is_wrong_where_things_changed():
    region, name = 0, "from-glc10"
    then, now = (classify(*truth(region, 0, 0, 200, 20, year), name) for year in (2000, 2020))
    areas, count = ndimage.label(then != now)
    row, column = ndimage.maximum_position(ndimage.distance_transform_edt(areas > 0))
    assert count > 3
    x, y = 2 * column - 40, 2 * row - 40  # the place on the grid of 10 m, in the middle
    then, now = (classify(*truth(region, x, y, 80, 10, year), name) for year in (2000, 2020))
    tree, window = ClassTree.load(name), (x, y, 80, 80)
    old, new = (tree.encode(label(name, 0, region, window, 10, year)) for year in (2000, 2020))
    changed = then != now
    assert (old == now)[changed].mean() < 0.3 < 0.4 < (old == then)[changed].mean()
    assert (old == now)[~changed].mean() > 0.5
    near = ndimage.binary_dilation(changed, iterations=4)
    assert (old != new)[changed].mean() > 0.3 and (old != new)[~near].mean() < 0.01
    assert (label("glc-fcs30", 0, region, window, 10) == label("glc-fcs30", 0, region, window, 10, 2015)).all()


def test_bad_questions_get_clear_answers():
    with pytest.raises(ValueError, match="esa-worldcover"):
        label("corine", 0, 0, (0, 0, 8, 8), 1)
    with pytest.raises(ValueError, match="four integers"):
        label("nlcd", 0, 0, (0, 0, 8, 0), 1)
    with pytest.raises(ValueError, match="millimetres"):
        label("nlcd", 0, 0, (0, 0, 8, 8), 0.0004)
    with pytest.raises(ValueError, match="2\\*\\*61"):
        label("nlcd", 0, 0, (2**62, 0, 8, 8), 1)
