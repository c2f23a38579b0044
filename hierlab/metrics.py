"""Metrics that know the class tree: streaming, exact, on any device, with torchmetrics' interface.

Every measure is a ratio of pixel counts (int64), so the result does not depend on the order or size of the batches,
on the device, or on how many processes shared the work. Shapes: B batch, L levels, K_l classes of level l, H W pixels.
"""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torchmetrics import Metric

from .tree import IGNORE, ClassTree

SCALARS = (
    "hP",
    "hR",
    "hF",
    "tree_distance",
    "mistake_distance",
    "consistency",
    "path_accuracy",
    "consistent_accuracy",
)
_TALLY = (
    "pixels",
    "common",
    "predicted",
    "true",
    "distance",
    "mistakes",
    "consistent",
    "exact",
    "consistent_exact",
)
_DENSE = 1 << 22  # up to this many (prediction, target) pairs are counted in a table, more by sorting
_ROWS = 1 << 16  # distinct pairs compared with the paths at once


class TreeMetrics(Metric):
    """Per-level and hierarchical measures of predictions against targets of a class tree.

    ``update(pred, target)`` takes per-level classes (B, L, H, W), or labels (B, H, W) of the tree (leaves, then inner
    nodes, 255), which become per-level classes by ``tree.targets``; the two may differ in form. 255 in the target
    means that the level is not known there: it counts in no measure. 255 in the prediction means that the model does
    not answer: a miss for the true class, a false alarm for none. Pixels with no known level are left out.

    ``compute()`` gives a dict with ``levels``, one dict a level, and the scalars below. Where there is nothing to
    divide by, a value is NaN.

    **Per level**, from the confusion matrix C (rows true, columns predicted; TP the diagonal, FN and FP the rest of
    row and column): ``IoU`` = TP / (TP + FP + FN), ``accuracy`` (recall, producer's accuracy) = TP / (TP + FN),
    ``precision`` (user's accuracy) = TP / (TP + FP), ``F1`` = 2 TP / (2 TP + FP + FN); float64 tensors (K_l).
    ``mIoU``, ``mAcc`` and ``mF1`` are means over the classes that have a value: as in MMSegmentation, a class that
    neither occurs nor is predicted is left out, one that is predicted but does not occur has IoU 0 and counts in mIoU
    and mF1, and mAcc is over the classes that occur. ``OA`` = ΣTP / ``pixels``. Also ``confusion`` (K_l, K_l) and
    ``unanswered`` (K_l), the pixels of each true class without a predicted one.

    **Ancestor sets.** For pixel i, T_i are the true nodes (level, class) on the known levels, and P_i the predicted
    nodes with their ancestors, on the same levels; the root is not counted. Micro-averaged,

        hP = Σ_i |P_i ∩ T_i| / Σ_i |P_i|,   hR = Σ_i |P_i ∩ T_i| / Σ_i |T_i|,   hF = 2 hP hR / (hP + hR)

    (Kiritchenko et al. 2006; recommended by Silla and Freitas 2011; a set-based measure of Kosmopoulos et al. 2015).
    An ancestor is a class that all valid paths through a node share. A prediction on a valid path has one node a
    level, so where all predictions do, hP = hR = hF, the mean of the levels' OA weighted by their known pixels. An
    inconsistent prediction brings more nodes than levels, which lowers hP; an unanswered level lowers hR.

    **Tree distance** in edges, between the predicted and the true class through their lowest common ancestor in the
    tree of path prefixes: with c common classes from the root, e + d − 2 c for classes at depths e and d. d is the
    deepest known level of the target and e the deepest answered one no deeper than d (0, the root, when there is
    none). The predicted path is the prediction where that is valid, else any path through the class at depth e; the
    true path is any that agrees with all known levels; of several, the nearest two count. ``tree_distance`` is the
    mean over all pixels, ``mistake_distance`` over those at a distance above 0 (Bertinetto et al. 2020, "mistake
    severity", there in the height of the common ancestor).

    **Consistency**: ``consistency`` is the share of pixels whose answered levels lie on one valid path,
    ``path_accuracy`` the share that are right on every known level, ``consistent_accuracy`` the same among the
    consistent pixels alone.

    Raises ValueError for shapes that do not fit, classes out of range, and targets that lie on no valid path.
    Keywords go to :class:`torchmetrics.Metric`.
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False

    def __init__(self, tree: ClassTree, **keywords):
        super().__init__(**keywords)
        self.tree = tree
        for level, size in enumerate(tree.sizes):
            zeros = torch.zeros(size, size + 1, dtype=torch.long)  # the last column: no answer
            self.add_state(f"confusion_{level}", zeros, dist_reduce_fx="sum")
        self.add_state("tally", torch.zeros(len(_TALLY), dtype=torch.long), dist_reduce_fx="sum")
        self._ancestors = _ancestor_tables(tree)
        self._prefixes = _prefix_tables(tree.paths)

    def update(self, pred: Tensor, target: Tensor) -> None:
        """Count one batch: ``pred`` and ``target`` (B, L, H, W) classes a level, or (B, H, W) labels."""
        pred, target = self._per_level(pred, "prediction"), self._per_level(target, "target")
        if pred.shape != target.shape:
            raise ValueError(
                f"Prediction and target differ in batch or image size: {tuple(pred.shape)} and "
                f"{tuple(target.shape)} as (B, L, H, W)."
            )
        pairs, counts = self._distinct(pred, target.to(pred.device))
        confusions = [torch.zeros_like(getattr(self, f"confusion_{level}")) for level in range(self.tree.depth)]
        tally = torch.zeros_like(self.tally)
        device = tally.device
        for rows, number in zip(pairs.to(device).split(_ROWS), counts.to(device).split(_ROWS), strict=True):
            p, t = rows[:, : self.tree.depth], rows[:, self.tree.depth :]
            for level, size in enumerate(self.tree.sizes):
                known = t[:, level] != IGNORE
                cell = t[known, level] * (size + 1) + p[known, level].clamp(max=size)
                confusions[level].view(-1).index_add_(0, cell, number[known])
            tally += (self._compare(p, t) * number).sum(1)
        for level, delta in enumerate(confusions):
            setattr(self, f"confusion_{level}", getattr(self, f"confusion_{level}") + delta)
        self.tally = self.tally + tally

    def _per_level(self, classes: Tensor, what: str) -> Tensor:
        """Labels or per-level classes, checked, as LongTensor (B, L, H, W)."""
        classes = torch.as_tensor(classes)
        if classes.is_floating_point() or classes.is_complex() or classes.dtype == torch.bool:
            raise ValueError(
                f"The {what} holds class indices, so whole numbers; got {classes.dtype}. "
                "tree.decode turns logits into them."
            )
        if classes.ndim == 3:
            return self.tree.targets(classes)
        if classes.ndim != 4 or classes.shape[1] != self.tree.depth:
            raise ValueError(
                f"The {what} has shape {tuple(classes.shape)}; the tree '{self.tree.name}' takes "
                f"(B, {self.tree.depth}, H, W) classes, a level each, or (B, H, W) labels."
            )
        classes = classes.long()
        for level, size in enumerate(self.tree.sizes):
            plane = classes[:, level]
            outside = ((plane < 0) | (plane >= size)) & (plane != IGNORE)
            if outside.any():
                raise ValueError(
                    f"The {what} holds {plane[outside].unique()[:10].tolist()} on level "
                    f"{self.tree.level_names[level]}, whose classes are 0 to {size - 1}, or {IGNORE} for unknown."
                )
        return classes

    def _distinct(self, pred: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """The distinct pixels (U, 2 L), prediction then target, of those with a known level, and their counts (U)."""
        known = (target != IGNORE).any(1)
        radices = [size + 1 for size in self.tree.sizes] * 2
        columns = [plane[known] for plane in (*pred.unbind(1), *target.unbind(1))]
        code = torch.zeros_like(columns[0])
        for column, radix in zip(columns, radices, strict=True):
            code = code * radix + column.clamp(max=radix - 1)
        if math.prod(radices) <= _DENSE:
            table = torch.bincount(code, minlength=math.prod(radices))
            code = table.nonzero().squeeze(1)
            counts = table[code]
        else:
            code, counts = code.unique(return_counts=True)
        decoded = []
        for radix in reversed(radices):
            digit = code % radix
            decoded.append(torch.where(digit == radix - 1, IGNORE, digit))
            code = code // radix
        return torch.stack(decoded[::-1], dim=1), counts

    def _compare(self, pred: Tensor, target: Tensor) -> Tensor:
        """What one pixel of each row adds to the tally: (U, L) twice -> (len(_TALLY), U)."""
        known, answered = target != IGNORE, pred != IGNORE
        common, predicted = self._ancestor_sets(pred, target)
        distance, consistent = self._distances(pred, target, known, answered)
        exact = ((pred == target) | ~known).all(1)
        pixels = torch.ones_like(distance)
        parts = (pixels, common, predicted, known.sum(1), distance, distance > 0, consistent, exact, consistent & exact)
        return torch.stack([part.long() for part in parts])

    def _ancestor_sets(self, pred: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """|P ∩ T| and |P| of each row."""
        common = torch.zeros(len(pred), dtype=torch.long, device=pred.device)
        predicted = common.clone()
        tables = [table.to(pred.device) for table in self._ancestors]
        for level in range(self.tree.depth):
            seen: list[Tensor] = []
            for below in range(level, self.tree.depth):
                node = tables[below][pred[:, below].clamp(max=self.tree.sizes[below]), level]
                new = (node != IGNORE) & (target[:, level] != IGNORE)
                for other in seen:
                    new &= node != other
                seen.append(node)
                predicted += new
                common += new & (node == target[:, level])
        return common, predicted

    def _distances(self, pred: Tensor, target: Tensor, known: Tensor, answered: Tensor) -> tuple[Tensor, Tensor]:
        """Tree distance, and whether the prediction is consistent, of each row."""
        paths = self.tree.paths.to(pred.device)
        depth = torch.arange(1, self.tree.depth + 1, device=pred.device)
        end = (known * depth).amax(1)
        answer = (answered * depth * (depth <= end[:, None])).amax(1)
        true = ((paths == target[:, None]) | ~known[:, None]).all(2)  # (U, P): the paths that fit the target
        if not true.any(1).all():
            row = target[~true.any(1)][0].tolist()
            raise ValueError(
                f"The target holds the classes {row} (coarse to fine, {IGNORE} unknown), which no valid path of the "
                f"tree '{self.tree.name}' contains; make targets with tree.targets(label)."
            )
        same = (paths == pred[:, None]) | ~answered[:, None]
        consistent = same.all(2).any(1)
        guess = (same | (depth > answer[:, None])[:, None]).all(2)
        last = (answer - 1).clamp(min=0)[:, None, None].expand(-1, len(paths), 1)
        through = same.gather(2, last).squeeze(2)
        guess = torch.where(guess.any(1, keepdim=True), guess, through)
        shared = torch.zeros_like(end)
        for level, prefix in enumerate(self._prefixes):
            prefix = prefix.to(pred.device)
            meet = ((guess.float() @ prefix > 0) & (true.float() @ prefix > 0)).any(1)
            shared += meet & (level < end) & (level < answer)
        return end + answer - 2 * shared, consistent

    def compute(self) -> dict:
        """``{"levels": [...], "hP": ..., ...}`` as described above; scalars are floats, tensors are on the CPU."""
        count = dict(zip(_TALLY, self.tally.tolist(), strict=True))
        precision, recall = _ratio(count["common"], count["predicted"]), _ratio(count["common"], count["true"])
        # equal to 2 hP hR / (hP + hR), and 0 rather than NaN when nothing is right
        f_score = _ratio(2 * count["common"], count["predicted"] + count["true"])
        levels = [
            _level_result(name, getattr(self, f"confusion_{level}").cpu())
            for level, name in enumerate(self.tree.level_names)
        ]
        return {
            "levels": levels,
            "pixels": count["pixels"],
            "hP": precision,
            "hR": recall,
            "hF": f_score,
            "tree_distance": _ratio(count["distance"], count["pixels"]),
            "mistake_distance": _ratio(count["distance"], count["mistakes"]),
            "consistency": _ratio(count["consistent"], count["pixels"]),
            "path_accuracy": _ratio(count["exact"], count["pixels"]),
            "consistent_accuracy": _ratio(count["consistent_exact"], count["consistent"]),
        }


def table(result: dict, tree: ClassTree) -> pd.DataFrame:
    """One row a level (index ``level``): number of classes, of them in the target, pixels, mIoU, mAcc, mF1, OA."""
    rows = [
        {
            "level": level["level"],
            "classes": size,
            "present": int((level["support"] > 0).sum()),
            "pixels": level["pixels"],
            **{key: level[key] for key in ("mIoU", "mAcc", "mF1", "OA")},
        }
        for level, size in zip(result["levels"], tree.sizes, strict=True)
    ]
    return pd.DataFrame(rows).set_index("level")


def per_class(result: dict, tree: ClassTree) -> pd.DataFrame:
    """One row a class (index ``level``, ``class``): IoU, accuracy, precision, F1, pixels true and predicted."""
    frames = []
    for level, names in zip(result["levels"], tree.classes, strict=True):
        index = pd.MultiIndex.from_product([[level["level"]], names], names=["level", "class"])
        columns = ("IoU", "accuracy", "precision", "F1", "support", "predicted")
        frames.append(pd.DataFrame({key: level[key].numpy() for key in columns}, index=index))
    return pd.concat(frames)


def summary(result: dict) -> pd.Series:
    """The measures that belong to no level: hP, hR, hF, tree distances, consistency and accuracies of paths."""
    return pd.Series({key: result[key] for key in SCALARS}, name="value")


def _level_result(name: str, matrix: Tensor) -> dict:
    """The measures of one level from its confusion matrix (K, K + 1), whose last column is "no answer"."""
    square = matrix[:, :-1]
    hit, support, predicted = square.diagonal(), matrix.sum(1), square.sum(0)
    result = {
        "IoU": _divide(hit, support + predicted - hit),
        "accuracy": _divide(hit, support),
        "precision": _divide(hit, predicted),
        "F1": _divide(2 * hit, support + predicted),
    }
    means = {mean: float(result[key].nanmean()) for mean, key in (("mIoU", "IoU"), ("mAcc", "accuracy"), ("mF1", "F1"))}
    pixels = int(support.sum())
    return {
        "level": name,
        "pixels": pixels,
        **means,
        "OA": _ratio(int(hit.sum()), pixels),
        **result,
        "support": support,
        "predicted": predicted,
        "confusion": square,
        "unanswered": matrix[:, -1],
    }


def _divide(above: Tensor, below: Tensor) -> Tensor:
    """Quotient in float64, NaN where nothing stands below."""
    return torch.where(below > 0, above.double() / below.clamp(min=1), math.nan)


def _ratio(above: int, below: int) -> float:
    return above / below if below else math.nan


def _ancestor_tables(tree: ClassTree) -> list[Tensor]:
    """For each level, (K_l + 1, L): every class with its ancestors, 255 below and where paths differ; last row 255."""
    tables = []
    for level, names in enumerate(tree.classes):
        labels = np.array([tree.label_of(name, level) for name in names])
        rows = np.full((len(names) + 1, tree.depth), IGNORE, np.int64)
        rows[:-1, : level + 1] = tree.targets(labels)[: level + 1].T
        tables.append(torch.from_numpy(rows))
    return tables


def _prefix_tables(paths: Tensor) -> list[Tensor]:
    """For each level l, float (P, X): which of the X different path prefixes of length l + 1 each path has."""
    tables = []
    for level in range(paths.shape[1]):
        prefixes, number = paths[:, : level + 1].unique(dim=0, return_inverse=True)
        tables.append(torch.nn.functional.one_hot(number, len(prefixes)).float())
    return tables
