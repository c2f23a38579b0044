"""What a model has to beat: the majority class, and a random forest that sees one pixel at a time.

Both are fitted to leaf labels and predict leaves; a leaf's path gives the coarser levels.
"""

import numpy as np
import torch
from torch.utils.data import Dataset

from ..metrics import TreeMetrics
from ..tree import ClassTree


def sample_pixels(dataset: Dataset, tree: ClassTree, count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Up to ``count`` pixels of ``dataset`` whose leaf is known, drawn evenly over its patches.

    Returns raw values (N, C) float32 and leaf classes (N,). Raises ValueError when no pixel has a known leaf.
    """
    generator = np.random.default_rng(seed)
    share = -(-count // len(dataset))
    values, leaves = [], []
    for index in range(len(dataset)):
        item = dataset[index]
        leaf = tree.targets(np.asarray(item["label"]))[-1]
        known = np.flatnonzero((leaf != 255) & np.asarray(item.get("valid", np.ones_like(leaf, bool))))
        chosen = generator.permutation(known)[:share]
        values.append(np.asarray(item["image"]).reshape(len(item["image"]), -1)[:, chosen].T)
        leaves.append(leaf.reshape(-1)[chosen])
    values, leaves = np.concatenate(values), np.concatenate(leaves)
    if not len(leaves):
        raise ValueError("No pixel of the data set has a known leaf class, so a baseline has nothing to learn from.")
    return values, leaves


class MajorityClass:
    """Predicts the most frequent leaf everywhere."""

    def fit(self, values: np.ndarray, leaves: np.ndarray, seed: int = 0) -> "MajorityClass":
        """``values`` (N, C) are not looked at; ``leaves`` (N,)."""
        self.leaf = int(np.bincount(leaves).argmax())
        return self

    def predict(self, values: np.ndarray) -> np.ndarray:
        """(N, C) -> leaf classes (N,)."""
        return np.full(len(values), self.leaf)


class PixelForest:
    """A random forest on the band values of single pixels (scikit-learn; 200 trees, at least 2 samples a leaf)."""

    def fit(self, values: np.ndarray, leaves: np.ndarray, seed: int = 0) -> "PixelForest":
        """``values`` (N, C) raw band values, ``leaves`` (N,) classes."""
        from sklearn.ensemble import RandomForestClassifier

        self.forest = RandomForestClassifier(200, min_samples_leaf=2, random_state=seed, n_jobs=-1)
        self.forest.fit(values, leaves)
        return self

    def predict(self, values: np.ndarray) -> np.ndarray:
        """(N, C) -> leaf classes (N,)."""
        return self.forest.predict(values)


def evaluate_pixels(model: MajorityClass | PixelForest, dataset: Dataset, tree: ClassTree) -> dict:
    """The tree metrics of a fitted baseline over a data set (see :class:`hierlab.metrics.TreeMetrics`)."""
    metrics = TreeMetrics(tree)
    for index in range(len(dataset)):
        item = dataset[index]
        label = torch.as_tensor(item["label"])[None]
        known = (label[0] != 255).numpy()
        leaf = np.zeros(known.shape, np.int64)
        if known.any():
            leaf[known] = model.predict(np.asarray(item["image"])[:, known].T)
        metrics.update(tree.paths_of(torch.from_numpy(leaf)[None]), tree.targets(label))
    return metrics.compute()
