import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rasterio.transform import from_origin
from rasterio.windows import Window
from scipy.ndimage import distance_transform_cdt

from hierlab.data import Split, blocked_split, blocks, windows
from hierlab.data.tiles import PARTS, LabelArray, edges

side = st.integers(1, 90)


@given(side, side, st.integers(1, 40), st.integers(1, 40))
def test_windows_cover_every_pixel_and_stay_inside(height, width, size, stride):
    seen = np.zeros((height, width), int)
    found = windows(height, width, size, min(stride, size))
    for w in found:
        assert (w.height, w.width) == (min(size, height), min(size, width))
        assert w.row_off >= 0 and w.row_off + w.height <= height
        assert w.col_off >= 0 and w.col_off + w.width <= width
        seen[w.toslices()] += 1
    assert seen.min() >= 1
    assert len({(w.row_off, w.col_off) for w in found}) == len(found)


@given(side, side, st.integers(1, 40))
def test_blocks_cover_every_pixel_once(height, width, size):
    seen = np.zeros((height, width), int)
    for w in blocks(height, width, size):
        seen[w.toslices()] += 1
    assert (seen == 1).all()


def test_windows_refuse_gaps_and_nonsense():
    with pytest.raises(ValueError, match="pixels between windows would be missed"):
        windows(100, 100, 10, 11)
    with pytest.raises(ValueError, match="at least 1"):
        windows(0, 100, 10)
    assert windows(10, 10, 4)[-1] == Window(6, 6, 4, 4)
    assert windows(3, 10, 4) == [Window(0, 0, 4, 3), Window(4, 0, 4, 3), Window(6, 0, 4, 3)]


@given(st.integers(1, 500), st.integers(1, 100))
def test_edges_are_near_equal_and_not_short(length, block):
    sizes = np.diff(edges(length, block))
    assert sizes.sum() == length and np.ptp(sizes) <= 1 and sizes.min() >= min(block, length)


# -- splits -------------------------------------------------------------------------------------------


def patchy(height, width, classes, seed, cell=9):
    """Labels in cells, rarer classes with higher numbers, some unlabelled."""
    rng = np.random.default_rng(seed)
    p = 0.5 ** np.arange(1, classes + 2)
    small = rng.choice(classes + 1, (-(-height // cell), -(-width // cell)), p=p / p.sum()).astype(np.uint8)
    small[small == classes] = 255
    return np.kron(small, np.ones((cell, cell), np.uint8))[:height, :width]


@given(
    st.integers(30, 150), st.integers(30, 150), st.integers(8, 30), st.integers(0, 6),
    st.sampled_from([0.0, 0.2]), st.integers(0, 99),
)  # fmt: skip
def test_guard_gap(height, width, block, gap, test, seed):
    label = patchy(height, width, 5, seed)
    try:
        split = blocked_split(label, block, 0.25, seed, test=test, gap=gap)
    except ValueError as error:
        assert "too few" in str(error)
        return
    masks = {part: split.mask(part) for part in PARTS}
    assert sum(m.astype(int) for m in masks.values()).max() <= 1
    for part, later in (("train", ("validation", "test")), ("validation", ("test",))):
        others = np.any([masks[p] for p in later], axis=0) if part == "train" else masks["test"]
        # blocks of a later part bar pixels even where its own pixels yield to a part later still
        barred = np.zeros_like(others)
        for top, left, bottom, right in split.barred(part):
            barred[top:bottom, left:right] = True
        assert not (others & ~barred).any()
        if barred.any() and masks[part].any():
            distance = distance_transform_cdt(~barred, "chessboard")
            assert distance[masks[part]].min() > gap
    rng = np.random.default_rng(seed)
    for _ in range(10):  # windows of the mask, also beyond the scene, agree with the whole
        r, c = int(rng.integers(-20, height)), int(rng.integers(-20, width))
        whole = np.pad(masks["train"], 60)[60 + r : 60 + r + 40, 60 + c : 60 + c + 40]
        np.testing.assert_array_equal(split.mask("train", Window(c, r, 40, 40)), whole)
        held_out = np.pad(masks["validation"] | masks["test"], 60)[60 + r : 60 + r + 40, 60 + c : 60 + c + 40]
        if split.clear("train", Window(c, r, 40, 40)):
            assert not held_out.any()


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("test", [0.0, 0.2])
def test_every_class_that_can_be_is_in_every_part_and_shares_hold(seed, test):
    label = patchy(600, 500, 7, seed)
    label[:9, :9] = 200  # a class in one block only
    split = blocked_split(label, 40, 0.2, seed, test=test)
    counts = {part: np.bincount(label[split.mask(part)], minlength=256)[:255] for part in PARTS}
    for part in PARTS[: 3 if test else 2]:
        assert (counts[part][:7] > 0).all(), part
    assert counts["validation"][200] == counts["test"][200] == 0
    total = (label != 255).sum()
    assert counts["validation"].sum() / total == pytest.approx(0.2, abs=0.06)
    assert counts["test"].sum() / total == pytest.approx(test, abs=0.06)
    assert counts["train"].sum() / total > 0.4


def test_a_split_is_seeded_and_survives_json():
    label = patchy(300, 300, 5, 0)
    one, same, other = (blocked_split(label, 30, 0.2, seed) for seed in (1, 1, 2))
    assert one == same and one != other
    assert Split.from_dict(json.loads(json.dumps(one.to_dict()))) == one
    assert one.gap == 30 // 8


def test_bool_masks_lists_and_metres():
    valid = np.ones((120, 120), bool)
    valid[:, 60:] = False
    split = blocked_split(valid, 20, 0.25, 0, gap=0)
    assert (split.mask("validation") & valid).sum() / valid.sum() == pytest.approx(0.25, abs=0.1)
    splits = blocked_split([valid, valid], 20, 0.25, 0)
    assert len(splits) == 2 and splits[0] != splits[1]  # arrays have no place: each is dealt by itself
    located = Located(np.zeros((120, 120), np.uint8), 0, 0)
    assert blocked_split(located, 300, 0.25, 0, metres=True).rows == tuple(range(0, 121, 30))
    with pytest.raises(ValueError, match="arrays have no pixel size"):
        blocked_split(valid, 300, 0.25, 0, metres=True)


@pytest.mark.parametrize(
    ("changed", "words"),
    [({"fraction": 0.0}, "shares that leave"), ({"fraction": 0.6, "test": 0.4}, "shares that leave"),
     ({"block": 200}, "1 block.* too few for 2 parts"), ({"gap": -1}, "gap at least 0"),
     ({"block": 0}, "at least 1 pixel")],
)  # fmt: skip
def test_splits_that_cannot_be(changed, words):
    with pytest.raises(ValueError, match=words):
        blocked_split(np.zeros((100, 100), np.uint8), **({"block": 20, "fraction": 0.2, "seed": 0} | changed))


def test_each_class_in_its_own_block_still_fills_both_parts():
    label = np.full((20, 20), 255, np.uint8)
    label[2, 2], label[2, 15], label[15, 15] = 0, 1, 2
    split = blocked_split(label, 10, 0.3, 0, gap=0)
    assert sum(label[split.mask("validation")] != 255) == 1
    assert sum(label[split.mask("train")] != 255) == 2


class Located(LabelArray):
    def __init__(self, label, column, row, gsd=10, crs="EPSG:32633"):
        from rasterio.crs import CRS

        super().__init__(label)
        self.crs, self.gsd = CRS.from_user_input(crs), gsd
        self.transform = from_origin(400_000 + 10 * column, 5_800_000 - 10 * row, gsd, gsd)


def test_dates_of_one_place_share_their_blocks():
    a, b = (Located(patchy(200, 200, 3, s), 0, 0) for s in (0, 1))
    one, two = blocked_split([a, b], 20, 0.2, 0)
    assert one == two and not one.others


@pytest.mark.parametrize(("gsd", "offset"), [(10, (70, 50)), (20, (71, -33)), (5, (40, 40))])
def test_overlapping_scenes_do_not_leak(gsd, offset):
    """On the ground, in fine cells, no cell that one scene trains on lies near one that the other holds out."""
    gap = 3
    a = Located(patchy(160, 160, 4, 0), 0, 0)
    b = Located(patchy(160, 160, 4, 1), *offset, gsd=gsd)
    splits = blocked_split([a, b], 24, 0.25, 0, gap=gap)
    assert all(s.others for s in splits)
    cells = {}
    for name, scene, split in zip("ab", (a, b), splits, strict=True):
        for part in ("train", "validation"):
            grown = np.kron(split.mask(part), np.ones((scene.gsd // 5, scene.gsd // 5), bool))
            ground = np.zeros((1200, 1200), bool)
            row = round((5_800_000 - scene.transform.f) / 5) + 300
            column = round((scene.transform.c - 400_000) / 5) + 300
            ground[row : row + grown.shape[0], column : column + grown.shape[1]] = grown
            cells[name, part] = ground
    for trains, holds, pixel in (("a", "b", 10), ("b", "a", gsd)):
        near = distance_transform_cdt(~cells[holds, "validation"], "chessboard")
        assert cells[trains, "train"].any()
        assert near[cells[trains, "train"]].min() > gap * pixel / 5 - 1
