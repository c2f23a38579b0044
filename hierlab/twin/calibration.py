"""How hard is a scene? The same per-pixel random forest on real scenes and on like scenes of the twin.

A **case** is a list of patches of one kind (``real.CASES`` reads them from files, ``likeness.CASES`` makes them in the
twin), a **row** is one measurement on a case: some of its bands, pixels or their surroundings, and a way to part
training from test pixels. Real and twin run through the same function, so that whatever differs is the scene.
Nothing here looks at a network.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

IGNORE = 255
TREES, TRAINING, SCORED = 200, 20_000, 20_000  # of the forest; pixels it learns from and is scored on, at most
TEST_SHARE = 0.3  # of the blocks
WINDOW = 9  # pixels a side of the surroundings
LAGS = (1, 2, 4, 8, 16)  # pixels, of the semivariograms


class Patch(NamedTuple):
    """``image`` (C, H, W) float32, ``label`` (H, W) uint8, 255 where there is none.

    ``weak`` (H, W): a coarser product's label in the same classes, to learn from. ``test``: whether the patch is held
    out; None where the row decides. ``whole`` (H, W): the label before pixels were left out of it.
    """

    image: np.ndarray
    label: np.ndarray
    weak: np.ndarray | None = None
    test: bool | None = None
    whole: np.ndarray | None = None


class Row(NamedTuple):
    """One measurement. ``bands``: places in the image's first axis, None for all of them.

    ``split``: "blocks" holds out squares of ``block`` pixels in every patch; "windows" holds out whole patches, in
    ``folds`` turns (patch n in fold n modulo ``folds``), or those that the case itself marks when ``folds`` is 1.
    ``context`` adds each band's mean and deviation in a square of ``WINDOW`` pixels. ``weak`` learns from the weak
    labels. ``tens`` merges the classes by their tens digit, as NLCD's levels do. ``mixed`` leaves out the patches
    with hardly more than one class (the largest has 95 % or more).
    """

    case: str
    title: str
    bands: tuple[int, ...] | None = None
    split: str = "blocks"
    block: int = 32
    folds: int = 4
    context: bool = False
    weak: bool = False
    tens: bool = False
    mixed: bool = False


_RGB = (2, 1, 0)
ENMAP_TEN = (16, 25, 45, 57, 64, 74, 90, 93, 140, 190)  # of the 218 bands that are left of EnMAP's 224
ENMAP_RGB = (45, 25, 16)


def _dates(date: int, bands: Sequence[int] = range(13)) -> tuple[int, ...]:
    return tuple(13 * date + band for band in bands)


ROWS: dict[str, Row] = {
    "landsat level II": Row("landsat", "Landsat-8, 4 bands, NLCD level II", block=128),
    "landsat level I": Row("landsat", "Landsat-8, 4 bands, NLCD level I", block=128, tens=True),
    "naip across": Row("naip", "NAIP, 4 bands, 4 classes, whole patches held out", split="windows", folds=8),
    "naip across, NLCD": Row("naip", "NAIP, the same trained on NLCD", split="windows", folds=8, weak=True),
    "naip within": Row("naip", "NAIP, patches with several classes, blocks held out", mixed=True),
    "naip context": Row("naip", "NAIP, the same with local mean and deviation", mixed=True, context=True),
    "naip windows": Row("naip", "NAIP, the same, whole patches held out", mixed=True, split="windows", folds=8),
    "sentinel2 A": Row("sentinel2 A", "Sentinel-2, 10 bands, Esri, tile A"),
    "sentinel2 A, RGB": Row("sentinel2 A", "Sentinel-2, RGB, Esri, tile A", _RGB),
    "sentinel2 B": Row("sentinel2 B", "Sentinel-2, 10 bands, Esri, tile B"),
    "sentinel2 B, RGB": Row("sentinel2 B", "Sentinel-2, RGB, Esri, tile B", _RGB),
    "sentinel2 B, context": Row("sentinel2 B", "Sentinel-2, 10 bands, Esri, tile B, with context", context=True),
    "sentinel2 C": Row("sentinel2 C", "Sentinel-2, 10 bands, Esri, tile C"),
    "sentinel2 C, RGB": Row("sentinel2 C", "Sentinel-2, RGB, Esri, tile C", _RGB),
    **{
        f"series RGB {t + 1}": Row(
            "series", f"Sentinel-2, 5 classes, date {t + 1}, RGB", _dates(t, (3, 2, 1)), block=20
        )
        for t in (0, 4)
    },
    **{
        f"series date {t + 1}": Row("series", f"Sentinel-2, 5 classes, date {t + 1}, 13 bands", _dates(t), block=20)
        for t in range(5)
    },
    "series five dates": Row("series", "Sentinel-2, five classes, five dates, 13 bands", block=20),
    "hyperspectral": Row("hyperspectral", "EnMAP, 218 bands, 6 classes", split="windows", folds=1),
    "hyperspectral ten": Row("hyperspectral", "EnMAP, 10 bands, 6 classes", ENMAP_TEN, split="windows", folds=1),
    "hyperspectral RGB": Row("hyperspectral", "EnMAP, RGB, 6 classes", ENMAP_RGB, split="windows", folds=1),
}


def forest(values: np.ndarray, labels: np.ndarray, seed: int = 0, trees: int = TREES, jobs: int = 1):
    """A random forest fitted to at most ``TRAINING`` of the pixels (N, F), drawn evenly; labels (N,)."""
    from sklearn.ensemble import RandomForestClassifier

    chosen = np.random.default_rng(seed).permutation(len(labels))[:TRAINING]
    model = RandomForestClassifier(trees, min_samples_leaf=2, n_jobs=jobs, random_state=seed)
    return model.fit(values[chosen], labels[chosen])


def score(truth: np.ndarray, predicted: np.ndarray) -> dict:
    """OA, mIoU over the classes of ``truth``, the share of its largest class, their number, and IoU by class."""
    classes = np.unique(truth)
    hit = truth == predicted
    iou = {}
    for c in classes:
        union = np.count_nonzero((truth == c) | (predicted == c))
        iou[str(int(c))] = float(np.count_nonzero(hit & (truth == c)) / union)
    counts = np.unique(truth, return_counts=True)[1]
    return {
        "OA": float(hit.mean()),
        "mIoU": float(np.mean(list(iou.values()))),
        "majority": float(counts.max() / counts.sum()),
        "classes": len(classes),
        "IoU": iou,
    }


def held_out(height: int, width: int, block: int, seed: int = 0) -> np.ndarray:
    """Squares of ``block`` pixels, each held out with probability ``TEST_SHARE``: bool (H, W), never all or none."""
    rows, columns = -(-height // block), -(-width // block)
    out = np.random.default_rng(seed).random((rows, columns)) < TEST_SHARE
    if out.all() or not out.any():
        out.flat[seed % out.size] ^= True
    return np.kron(out, np.ones((block, block), bool))[:height, :width]


def surroundings(image: np.ndarray, window: int = WINDOW) -> np.ndarray:
    """The image with the local mean and deviation of each band, over squares of ``window``: (3·C, H, W)."""
    from scipy.ndimage import uniform_filter

    mean = uniform_filter(image, (0, window, window))
    square = uniform_filter(image.astype(np.float64) ** 2, (0, window, window))
    deviation = np.sqrt(np.maximum(square - mean.astype(np.float64) ** 2, 0)).astype(np.float32)
    return np.concatenate([image, mean, deviation])


def _flat(patch: Patch, row: Row) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Values (N, F), labels (N,) and the labels to learn from (N,) of all pixels of a patch."""
    image = patch.image if row.bands is None else patch.image[list(row.bands)]
    if row.context:
        image = surroundings(image)
    label, learn = patch.label, patch.weak if row.weak else patch.label
    if row.tens:
        label, learn = (np.where(y == IGNORE, IGNORE, y // 10) for y in (label, learn))
    return image.reshape(len(image), -1).T, label.ravel(), learn.ravel()


def _largest(label: np.ndarray) -> float:
    counts = np.bincount(label[label != IGNORE])
    return counts.max() / counts.sum()


def measure(row: Row, patches: Sequence[Patch], seed: int = 0, trees: int = TREES, jobs: int = 1) -> dict:
    """What the forest reaches in a row: ``score`` of the test pixels of all folds together.

    ValueError if there is nothing to learn from or to score.
    """
    if row.mixed:
        patches = [p for p in patches if _largest(p.label) < 0.95]
    flat = [_flat(p, row) for p in patches]
    if row.split == "blocks":
        tests = [[held_out(*p.label.shape, row.block, seed + n).ravel() for n, p in enumerate(patches)]]
    elif row.folds == 1:
        tests = [[np.full(p.label.size, p.test) for p in patches]]
    else:
        folds = min(row.folds, len(patches))
        tests = [[np.full(p.label.size, n % folds == k) for n, p in enumerate(patches)] for k in range(folds)]
    truth, predicted = [], []
    values, labels, learn = (np.concatenate(part) for part in zip(*flat, strict=True))
    for fold in tests:
        test = np.concatenate(fold)
        train = np.flatnonzero(~test & (learn != IGNORE))
        chosen = np.flatnonzero(test & (labels != IGNORE))
        if not len(train) or not len(chosen):
            raise ValueError(
                f"{row.title}: {len(train)} pixels to learn from and {len(chosen)} to score; both need some."
            )
        chosen = np.random.default_rng(seed + 1).permutation(chosen)[: SCORED // len(tests)]
        model = forest(values[train], learn[train], seed, trees, jobs)
        truth.append(labels[chosen]), predicted.append(model.predict(values[chosen]))
    return score(np.concatenate(truth), np.concatenate(predicted))


RED_INFRARED = {"landsat": (2, 3), "naip": (0, 3), "sentinel2": (2, 6), "series": (55, 59), "hyperspectral": (45, 74)}


def statistics(patches: Sequence[Patch], red: int, infrared: int) -> dict:
    """How scenes are patterned, in numbers that do not depend on their units: means over the patches.

    ``variogram red`` and ``variogram infrared`` with a lag: the mean squared difference of pixels that far apart in a
    row or column, over twice the variance (0 for a smooth scene, near 1 where pixels no longer resemble each other).
    ``correlation``: of red and infrared. ``edges``: the share of neighbouring labelled pixels of different classes.
    """
    found: dict[str, list[float]] = {}
    for patch in patches:
        for name, band in (("red", red), ("infrared", infrared)):
            x = patch.image[band].astype(np.float64)
            for lag in (n for n in LAGS if n < min(x.shape)):
                across, down = x[:, lag:] - x[:, :-lag], x[lag:] - x[:-lag]
                gamma = ((across**2).mean() + (down**2).mean()) / 2 / (2 * max(x.var(), 1e-12))
                found.setdefault(f"variogram {name} {lag}", []).append(gamma)
        both = patch.image[[red, infrared]].reshape(2, -1)
        found.setdefault("correlation", []).append(np.corrcoef(both)[0, 1])
        label = patch.label if patch.whole is None else patch.whole
        pairs = [(label[:, 1:], label[:, :-1]), (label[1:], label[:-1])]
        known = [(a != IGNORE) & (b != IGNORE) for a, b in pairs]
        differ = sum(np.count_nonzero(k & (a != b)) for k, (a, b) in zip(known, pairs, strict=True))
        if sum(map(np.count_nonzero, known)):
            found.setdefault("edges", []).append(differ / sum(map(np.count_nonzero, known)))
    return {name: float(np.mean(values)) for name, values in found.items()}
