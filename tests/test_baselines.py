"""The baselines: what they are fitted to, and that they are scored like every other model."""

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset

from hierlab.baselines.pixel import MajorityClass, PixelForest, evaluate_pixels, sample_pixels
from hierlab.tree import ClassTree

TREE = ClassTree.load("nlcd")


class Stripes(Dataset):
    """Two bands whose first tells the class (11 open water: 0, or evergreen forest: 8), with unlabelled columns."""

    def __init__(self, count=4, water=0.25):
        self.count, self.water = count, water

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        rng = np.random.default_rng(index)
        label = np.where(rng.random((16, 16)) < self.water, 0, 8)
        image = np.stack([label * 10.0 + rng.normal(0, 0.5, label.shape), rng.normal(0, 1, label.shape)])
        label[:, :3] = 255
        label[:, 3] = TREE.label_of("forest")
        return {"image": torch.from_numpy(image.astype(np.float32)), "label": torch.from_numpy(label)}


def test_sampling_takes_known_leaves_alone_and_the_same_ones_again():
    values, leaves = sample_pixels(Stripes(), TREE, 200, seed=3)
    assert values.shape == (200, 2) and set(leaves.tolist()) == {0, 8}
    assert np.array_equal(leaves == 8, values[:, 0] > 40)
    again = sample_pixels(Stripes(), TREE, 200, seed=3)
    assert np.array_equal(values, again[0]) and np.array_equal(leaves, again[1])


def test_nothing_to_learn_from_is_an_error():
    class Blank(Stripes):
        def __getitem__(self, index):
            return {**super().__getitem__(index), "label": torch.full((16, 16), 255)}

    with pytest.raises(ValueError, match="nothing to learn"):
        sample_pixels(Blank(), TREE, 10)


def test_majority_scores_the_share_of_its_class():
    values, leaves = sample_pixels(Stripes(), TREE, 1000)
    result = evaluate_pixels(MajorityClass().fit(values, leaves), Stripes(), TREE)
    labels = torch.stack([Stripes()[i]["label"] for i in range(4)])
    known = labels[(labels != 255) & (labels < 16)]
    assert result["levels"][1]["OA"] == pytest.approx((known == 8).float().mean().item())
    assert result["consistency"] == 1


def test_forest_finds_what_one_pixel_tells():
    values, leaves = sample_pixels(Stripes(), TREE, 1000)
    result = evaluate_pixels(PixelForest().fit(values, leaves), Stripes(), TREE)
    assert result["levels"][1]["OA"] > 0.99 and result["hF"] > 0.99
