"""Windows that cover a scene, and spatially blocked splits of one or several scenes."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any, Protocol

import numpy as np
from affine import Affine
from rasterio.windows import Window

from hierlab.data.grid import Grid, apply, extent_in, grid_differences

PARTS = ("train", "validation", "test")
DEALS = 16  # tries of the random dealing of blocks


def starts(length: int, size: int, stride: int) -> list[int]:
    """First pixels of the windows along one axis: every ``stride`` pixels, the last one shifted inward.

    Where the axis is no longer than ``size`` there is one window, from 0.
    """
    if min(length, size, stride) < 1:
        raise ValueError(f"length, size and stride must be at least 1, got {length}, {size}, {stride}")
    if stride > size:
        raise ValueError(f"stride {stride} is larger than size {size}: pixels between windows would be missed")
    return [0] if length <= size else [*range(0, length - size, stride), length - size]


def windows(height: int, width: int, size: int, stride: int | None = None) -> list[Window]:
    """Square windows that together cover every pixel of a ``height`` × ``width`` scene, row by row.

    Windows are ``size`` pixels wide and start every ``stride`` pixels (default: ``size``). The last of a row or
    column is shifted inward instead of hanging over the edge, so it overlaps its neighbour by more. Where the
    scene is smaller than ``size``, the window is as small as the scene.
    """
    stride = size if stride is None else stride
    return [
        Window(column, row, min(size, width), min(size, height))
        for row in starts(height, size, stride)
        for column in starts(width, size, stride)
    ]


def blocks(height: int, width: int, size: int) -> list[Window]:
    """Disjoint windows that cover every pixel exactly once, row by row; those at the far edges are smaller."""
    return [
        Window(column, row, min(size, width - column), min(size, height - row))
        for row in range(0, height, size)
        for column in range(0, width, size)
    ]


def edges(length: int, block: int) -> tuple[int, ...]:
    """Borders of near-equal blocks along one axis, none shorter than ``block`` (but for a shorter axis)."""
    n = max(1, length // block)
    return tuple(round(length * i / n) for i in range(n + 1))


def _meets(boxes: np.ndarray, window: Window) -> np.ndarray:
    """bool (n,): which of the boxes (n, 4: top, left, bottom, right) share a pixel with a window."""
    top, left = window.row_off, window.col_off
    bottom, right = top + window.height, left + window.width
    return (boxes[:, 0] < bottom) & (boxes[:, 2] > top) & (boxes[:, 1] < right) & (boxes[:, 3] > left)


@dataclass(frozen=True)
class Split:
    """Which pixels of one scene train, validate or test. Made by :func:`blocked_split`.

    rows, columns: borders of the blocks, in pixels. part: for every block, row by row, 0 train, 1 validation,
    2 test. gap: pixels of a part that lie within ``gap`` pixels (the larger of row and column distance) of a
    pixel of a *later* part belong to none. others: (top, left, bottom, right, part) of the boxes, in this
    scene's pixels, on which blocks of overlapping scenes lie; they bar pixels like this scene's own blocks.
    """

    rows: tuple[int, ...]
    columns: tuple[int, ...]
    part: tuple[int, ...]
    gap: int = 0
    others: tuple[tuple[int, int, int, int, int], ...] = ()

    @property
    def height(self) -> int:
        return self.rows[-1]

    @property
    def width(self) -> int:
        return self.columns[-1]

    @cached_property
    def _boxes(self) -> np.ndarray:
        """(blocks, 5) top, left, bottom, right, part of the scene's own blocks, row by row."""
        across = list(pairwise(self.columns))
        spans = [(top, left, bottom, right) for top, bottom in pairwise(self.rows) for left, right in across]
        return np.concatenate([np.array(spans, np.int64), np.array(self.part, np.int64)[:, None]], axis=1)

    @cached_property
    def _barred(self) -> list[np.ndarray]:
        every = np.concatenate([self._boxes, np.array(self.others, np.int64).reshape(-1, 5)])
        return [every[every[:, 4] > part, :4] for part in range(len(PARTS))]

    def boxes(self, part: str) -> np.ndarray:
        """(n, 4) top, left, bottom, right of the blocks of a part."""
        return self._boxes[self._boxes[:, 4] == PARTS.index(part), :4]

    def barred(self, part: str) -> np.ndarray:
        """(n, 4) boxes of all later parts, those of overlapping scenes included, without the gap."""
        return self._barred[PARTS.index(part)]

    def clear(self, part: str, window: Window) -> bool:
        """Whether a window shares no pixel with a later part."""
        return not _meets(self.barred(part), window).any()

    def mask(self, part: str, window: Window | None = None) -> np.ndarray:
        """bool (h, w): the pixels of a part in a window (default: all); False outside the scene."""
        window = Window(0, 0, self.width, self.height) if window is None else window
        mask = np.zeros((int(window.height), int(window.width)), bool)
        grown = self.barred(part) + np.array([-self.gap, -self.gap, self.gap, self.gap])
        for boxes, value in ((self.boxes(part), True), (grown, False)):
            inside = boxes[_meets(boxes, window)] - np.array([window.row_off, window.col_off] * 2)
            for top, left, bottom, right in np.maximum(inside, 0).astype(int).tolist():
                mask[top:bottom, left:right] = value
        return mask

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> "Split":
        lists = {k: tuple(content[k]) for k in ("rows", "columns", "part")}
        return cls(**lists, gap=content["gap"], others=tuple(tuple(box) for box in content["others"]))


class Labels(Protocol):
    """What :func:`blocked_split` reads. With ``crs`` and ``transform`` too, scenes that overlap are noticed."""

    height: int
    width: int

    def read_label(self, window: Window) -> np.ndarray:
        """uint8 (h, w), 255 where a pixel is unlabelled or invalid."""


class LabelArray:
    """Labels in memory: uint8 (H, W), or a bool mask of the pixels to split (one class)."""

    def __init__(self, label: np.ndarray) -> None:
        self.label = np.where(label, 0, 255).astype(np.uint8) if label.dtype == bool else label
        self.height, self.width = label.shape

    def read_label(self, window: Window) -> np.ndarray:
        return self.label[window.toslices()]


def blocked_split(
    sources: Labels | np.ndarray | Sequence[Labels | np.ndarray],
    block: float,
    fraction: float = 0.2,
    seed: int = 0,
    test: float = 0.0,
    gap: int | None = None,
    metres: bool = False,
):
    """Split scenes into blocks of train, validation and (where ``test`` > 0) test.

    sources: a :class:`hierlab.data.LabelledScene`, an array (uint8 labels, or bool valid), or a list of them;
    a :class:`Split` comes back for each, in a list where a list was given. block: side of a block in pixels,
    or in metres on the ground; blocks are near-equal and none is smaller. fraction, test: shares of the
    labelled pixels. gap: guard in pixels, default an eighth of the block.

    Blocks are dealt at random, the rarest class first: a class found in two blocks or more is in both train and
    validation (three: and test); one found in a single block is in train. (The gap is cut out afterwards and may take
    a class whose few training pixels lie beside a held-out block.) Of several deals the one is kept
    whose shares, overall and by class, are nearest to those asked; few blocks and many classes still bend
    them. Scenes on the same grid (dates of one place) share their blocks.

    Guaranteed, in every scene, with Chebyshev (row or column, the larger) distances in pixels:

    1. a pixel is in one part at most;
    2. a training pixel is more than ``gap`` pixels from every validation and test pixel, a validation pixel
       from every test pixel: of its own scene, and of scenes that overlap it on the ground;
    3. ``split.clear("train", window)`` says whether a window touches a validation or test block;
       :class:`hierlab.data.RasterDataset` draws no other training patches, so that neither the labels nor the
       image of a training patch hold a validation or test pixel. Validation windows may see training pixels
       around their own, as maps do.

    ValueError where the shares make no sense, or fewer blocks are labelled than there are parts.
    """
    if not (0 < fraction < 1 and 0 <= test < 1 and fraction + test < 1):
        raise ValueError(f"fraction {fraction} and test {test} must be shares that leave some for training")
    single = isinstance(sources, np.ndarray) or not isinstance(sources, Sequence)
    given = [LabelArray(s) if isinstance(s, np.ndarray) else s for s in ([sources] if single else sources)]
    if metres and not all(hasattr(s, "gsd") for s in given):
        raise ValueError("arrays have no pixel size in metres: give block in pixels")
    sides = [max(1, round(block / s.gsd)) if metres else round(block) for s in given]
    if min(sides) < 1 or (gap is not None and gap < 0):
        raise ValueError(f"block must be at least 1 pixel and gap at least 0, got block {block}, gap {gap}")
    borders = [(edges(s.height, side), edges(s.width, side)) for s, side in zip(given, sides, strict=True)]
    groups = _same_grids(given)
    counts = [sum(_block_counts(given[i], *borders[group[0]]) for i in group) for group in groups]
    shares = [1 - fraction - test, fraction] + ([test] if test else [])
    dealt = _best_deal(np.concatenate(counts), shares, np.random.default_rng(seed), block)
    parts = np.split(dealt, np.cumsum([len(c) for c in counts])[:-1])
    splits: list[Any] = [None] * len(given)
    for group, part in zip(groups, parts, strict=True):
        for i in group:
            room = sides[i] // 8 if gap is None else gap
            splits[i] = Split(*borders[i], tuple(part.tolist()), room)
    splits = _bar_overlaps(given, splits, groups)
    return splits[0] if single else splits


def _grid_of(source: Any) -> Grid | None:
    return Grid(source.crs, source.transform, source.height, source.width) if hasattr(source, "crs") else None


def _same_grids(sources: list[Any]) -> list[list[int]]:
    """Indices of the sources, those on one grid together."""
    groups: list[list[int]] = []
    for i, source in enumerate(sources):
        grid = _grid_of(source)
        for group in groups if grid else []:
            first = _grid_of(sources[group[0]])
            if first and not grid_differences(first, grid):
                group.append(i)
                break
        else:
            groups.append([i])
    return groups


def _block_counts(source: Labels, rows: Sequence[int], columns: Sequence[int]) -> np.ndarray:
    """Labelled pixels (blocks, 255) of every label in every block."""
    return np.stack(
        [
            np.bincount(source.read_label(Window(left, top, right - left, bottom - top)).ravel(), minlength=256)[:255]
            for top, bottom in pairwise(rows)
            for left, right in pairwise(columns)
        ]
    )


def _best_deal(counts: np.ndarray, shares: list[float], rng: np.random.Generator, block: float) -> np.ndarray:
    """Part (blocks,) of every block, of several deals the one with the fewest empty classes and best shares."""
    labelled = int(counts.any(axis=1).sum())
    if labelled < len(shares):
        raise ValueError(
            f"{labelled} block(s) of side {block:g} hold labels, too few for {len(shares)} parts "
            f"({', '.join(PARTS[: len(shares)])}). Choose smaller blocks"
        )
    counts = counts[:, counts.any(axis=0)]

    def cost(part: np.ndarray) -> tuple[int, float]:
        held = np.stack([counts[part == p].sum(axis=0) for p in range(len(shares))])
        by_class = np.abs(held / held.sum(axis=0) - np.array(shares)[:, None]).mean()
        overall = np.abs(held.sum(axis=1) / held.sum() - shares).mean()
        return int((held == 0).sum()), float(by_class + overall)

    return min((_deal(counts, shares, rng) for _ in range(DEALS)), key=cost)


def _deal(counts: np.ndarray, shares: list[float], rng: np.random.Generator) -> np.ndarray:
    """One deal: iterative stratification (Sechidis et al. 2011, ECML PKDD), in which a part that lacks the class
    at hand comes first."""
    labelled = np.flatnonzero(counts.any(axis=1))
    totals = counts.sum(axis=0)
    present = counts > 0
    wish = np.outer(shares, totals)
    held = np.zeros(wish.shape, np.int64)
    part = np.full(len(counts), -1)
    order = rng.permutation(labelled)

    def give(i: int, p: int) -> None:
        part[i] = p
        wish[p] -= counts[i]
        held[p] += present[i]

    while (left := order[part[order] < 0]).size:
        blocks_left = present[left].sum(axis=0)
        label = min(np.flatnonzero(blocks_left), key=lambda k: (blocks_left[k], totals[k], k))
        for i in left[present[left, label]]:
            lacking = np.flatnonzero(held[:, label] == 0)
            give(i, int(lacking[0] if lacking.size else wish[:, label].argmax()))
    for p in range(len(shares)):  # where every class has a block of its own, some part may still be empty
        if not (part == p).any():
            donor = np.bincount(part[labelled]).argmax()
            part[order[part[order] == donor][0]] = p
    part[part < 0] = 0
    return part


def _bar_overlaps(sources: list[Any], splits: list[Split], groups: list[list[int]]) -> list[Split]:
    """Add to each split the later parts' blocks of the scenes that overlap it on other grids."""
    grids = [_grid_of(s) for s in sources]
    group_of = {i: n for n, group in enumerate(groups) for i in group}
    boxes: dict[str, np.ndarray] = {}
    result = []
    for i, (grid, split) in enumerate(zip(grids, splits, strict=True)):
        if grid is None:
            result.append(split)
            continue
        key = grid.crs.to_wkt()
        if key not in boxes:
            boxes[key] = np.array([_box_in(other, grid.crs) for other in grids])
        own = boxes[key][i]
        near = (boxes[key][:, :2] < own[2:]).all(axis=1) & (boxes[key][:, 2:] > own[:2]).all(axis=1)
        found = []
        for j in np.flatnonzero(near).tolist():
            if group_of[j] != group_of[i] and j == groups[group_of[j]][0]:
                found += _project(grids[j], splits[j], grid, split.gap)
        result.append(Split(split.rows, split.columns, split.part, split.gap, tuple(found)))
    return result


def _box_in(grid: Grid | None, crs) -> tuple[float, float, float, float]:
    try:
        return (np.nan,) * 4 if grid is None else extent_in(grid, crs)
    except ValueError:  # not expressible there, so it does not overlap
        return (np.nan,) * 4


def _project(source: Grid, split: Split, target: Grid, gap: int) -> list[tuple[int, int, int, int, int]]:
    """The later parts' blocks of one scene as boxes in the pixels of another, where they come near it."""
    found = []
    for part, name in enumerate(PARTS[1:], start=1):
        for top, left, bottom, right in split.boxes(name).tolist():
            a, b, _, d, e, _ = tuple(source.transform)[:6]
            x, y = apply(source.transform, left, top)
            area = Grid(source.crs, Affine(a, b, x, d, e, y), bottom - top, right - left)
            x0, y0, x1, y1 = extent_in(area, target.crs)
            columns, rows = apply(~target.transform, np.array([x0, x1, x0, x1]), np.array([y0, y0, y1, y1]))
            box = (
                int(np.floor(rows.min())), int(np.floor(columns.min())),
                int(np.ceil(rows.max())), int(np.ceil(columns.max())),
            )  # fmt: skip
            if _meets(np.array([box]), Window(-gap, -gap, target.width + 2 * gap, target.height + 2 * gap))[0]:
                found.append((*box, part))
    return found
