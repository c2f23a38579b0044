"""Patches of labelled scenes as torch datasets."""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import torch
from rasterio.windows import Window
from torch import Tensor
from torch.utils.data import Dataset

from hierlab.data.labels import LabelRaster
from hierlab.data.rasters import Scene, whole_window
from hierlab.data.series import Series
from hierlab.data.tiles import Split, edges, starts
from hierlab.tree import IGNORE

TRIES = 16  # random positions tried for a patch before one that is known to be good
SPOTS = 64  # pixels of a class remembered in each block, for patches that are drawn for a class


class LabelledScene:
    """A scene and its labels, read together; kept in memory after :meth:`preload`.

    labels: a :class:`LabelRaster` over the scene, or uint8 (H, W), 255 where there is none. Invalid image
    pixels are unlabelled. Pickled, it leaves its memory behind and loads again where it arrives. series: the time
    series beneath the scene, if there is one.
    """

    def __init__(self, scene: Scene, labels: LabelRaster | np.ndarray, series: Series | None = None) -> None:
        shape = labels.shape if isinstance(labels, np.ndarray) else (labels.height, labels.width)
        if shape != (scene.height, scene.width):
            raise ValueError(f"labels of shape {shape} are not on the scene's grid, {(scene.height, scene.width)}")
        self.scene, self.labels, self.series = scene, labels, series
        self.height, self.width, self.count = scene.height, scene.width, scene.count
        self.crs, self.transform, self.gsd, self.bands = scene.crs, scene.transform, scene.gsd, scene.bands
        self.keep = False
        self._memory: tuple[np.ndarray, np.ndarray, np.ndarray] | None = None

    @property
    def nbytes(self) -> int:
        """Bytes that the scene takes in memory, with its labels and series."""
        return self.height * self.width * (4 * self.count + 2) + (self.series.nbytes if self.series else 0)

    def preload(self) -> None:
        """Read everything at the next read, and keep it."""
        self.keep = True
        if self.series is not None:
            self.series.preload()

    def __getstate__(self) -> dict:
        return self.__dict__ | {"_memory": None}

    def _read_label(self, window: Window | None) -> np.ndarray:
        if isinstance(self.labels, LabelRaster):
            return self.labels.read(window)
        return self.labels if window is None else self.labels[window.toslices()]

    def _load(self, window: Window | None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        image, valid = self.scene.read_valid(window)
        return image, valid, np.where(valid, self._read_label(window), np.uint8(IGNORE))

    def read(self, window: Window) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Image float32 (C, h, w), valid bool (h, w), label uint8 (h, w); outside the scene 0, False, 255."""
        row, column, rows, columns = whole_window(window, self.height, self.width, boundless=True)
        if self.keep and self._memory is None:
            self._memory = self._load(None)
            self.scene.close()
            if isinstance(self.labels, LabelRaster):
                self.labels.close()
        image = np.zeros((self.count, rows, columns), np.float32)
        valid, label = np.zeros((rows, columns), bool), np.full((rows, columns), IGNORE, np.uint8)
        top, left = max(row, 0), max(column, 0)
        bottom, right = min(row + rows, self.height), min(column + columns, self.width)
        if bottom > top and right > left:
            if self._memory is None:
                part = self._load(Window(left, top, right - left, bottom - top))
            else:
                part = tuple(a[..., top:bottom, left:right] for a in self._memory)
            inside = (slice(top - row, bottom - row), slice(left - column, right - column))
            image[:, *inside], valid[inside], label[inside] = part
        return image, valid, label

    def read_valid(self, window: Window) -> tuple[np.ndarray, np.ndarray]:
        """Image and valid of a window, without the labels."""
        return self.read(window)[:2] if self.keep else self.scene.read_valid(window, boundless=True)

    def read_label(self, window: Window) -> np.ndarray:
        """Labels of a window, 255 where the image is invalid."""
        return self.read(window)[2]


Source = tuple[LabelledScene, Split | None]


class RasterDataset(Dataset):
    """Square patches of one part of labelled scenes, values as stored in the files.

    An item is ``{"image": float32 (C, P, P), "valid": bool (P, P), "label": int64 (P, P)}``; pixels outside
    the part, or invalid, have label 255. Beside a time series it also holds what :meth:`Series.beneath` gives for the
    patch, in arrays large enough for every patch of all sources.

    sources: pairs of a labelled scene and its split (None: all of it). patch: side P in pixels. part: "train",
    "validation" or "test".

    With ``samples``, that many random patches: item i depends on (seed, i) alone, not on workers or on what was
    drawn before. Blocks are drawn in proportion to their labelled pixels, and a patch holds at least one of
    them. No patch shares a pixel with a later part (see :func:`blocked_split`).

    ``balance``: share of these patches that are drawn for a class instead, every class of the part equally often:
    the block in proportion to its pixels of that class, then one of up to 64 of them (chosen once by the seed), then
    where in the patch it lies. So a class of a thousandth of the ground is still seen; 0 keeps the ground's shares.

    Without ``samples``, regular windows that show every labelled pixel of the part exactly once: windows
    start every ``stride`` pixels (default: ``patch``), and where two of them overlap, each pixel keeps its label
    in the one whose centre is nearer. Windows without a labelled pixel are left out.

    cache: scenes are kept in memory, first come first served, up to this many bytes (0: none).
    counts: labelled pixels of the part by label, (255,). unreachable: how many of them lie in blocks where no
    patch fits. dates: places for dates in ``series``, those of the longest series; 0 without one.
    ValueError where the part has no labelled pixel, band counts or the series' bands differ, or no patch fits between
    the blocks.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        patch: int,
        part: str = "train",
        samples: int | None = None,
        seed: int = 0,
        stride: int | None = None,
        cache: int = 2**31,
        balance: float = 0.0,
    ) -> None:
        if not sources:
            raise ValueError("no scene was given")
        counts = {scene.scene.paths[0]: scene.count for scene, _ in sources}
        if len(set(counts.values())) > 1:
            raise ValueError(f"all scenes must have the same bands, got {counts}")
        for scene, split in sources:
            if split is not None and (split.height, split.width) != (scene.height, scene.width):
                raise ValueError(
                    f"a split of {split.width}×{split.height} pixels was given for {scene.scene.paths[0]}, "
                    f"which has {scene.width}×{scene.height}"
                )
        series = [scene.series for scene, _ in sources]
        if len({None if s is None else s.bands for s in series}) > 1:
            bands = ", ".join("none" if s is None else f"{s.path} ({', '.join(s.bands)})" for s in series)
            raise ValueError(f"all scenes need a time series of the same bands, or none does; given {bands}")
        if patch < 1 or (samples is not None and samples < 1):
            raise ValueError(f"patch and samples must be at least 1, got {patch} and {samples}")
        if not 0 <= balance <= 1:
            raise ValueError(f"balance is a share from 0 to 1, got {balance}")
        self.sources, self.patch, self.part = list(sources), patch, part
        self.samples, self.seed, self.stride, self.balance = samples, seed, stride or patch, balance
        self.bands = sources[0][0].bands
        self.series_bands = series[0].bands if series[0] is not None else ()
        self.dates = max(len(s.dates) if s is not None else 0 for s in series)
        self._series_side = max(s.side(patch) if s is not None else 0 for s in series)
        self.counts, self.unreachable = np.zeros(255, np.int64), 0
        for scene, _ in self.sources:
            if scene.keep or scene.nbytes <= cache:
                cache -= scene.nbytes
                scene.preload()
        if samples is None:
            self._regular = [item for n in range(len(self.sources)) for item in self._lay(n)]
        else:
            self._spots: list[dict] = []
            self._blocks = [block for n in range(len(self.sources)) for block in self._find_blocks(n)]
            if self.counts.sum() and not self._blocks:
                raise ValueError(
                    f"no patch of {patch} pixels holds a {part} pixel and keeps clear of the other parts. "
                    "Choose a smaller patch or larger blocks"
                )
            self._share = np.cumsum([float(block[2]) for block in self._blocks])
            self._classes = self._find_classes()
        if not self.counts.sum():
            raise ValueError(f"the {part} part holds not one labelled, valid pixel. Choose another split")

    def __len__(self) -> int:
        return len(self._regular) if self.samples is None else self.samples

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        if not 0 <= index < len(self):
            raise IndexError(f"item {index} of {len(self)}")
        if self.samples is None:
            n, window, own = self._regular[index]
            image, valid, label = self._read(n, window)
            keep = np.full(label.shape, IGNORE, np.uint8)
            keep[own] = label[own]
            label = keep
        else:
            n, window, (image, valid, label) = self._draw(np.random.default_rng([self.seed, index]))
        arrays = {"image": image, "valid": valid, "label": label.astype(np.int64)}
        series = self.sources[n][0].series
        if series is not None:
            arrays |= series.beneath(window, self._series_side, self.dates)
        return {name: torch.from_numpy(array) for name, array in arrays.items()}

    def _read(self, n: int, window: Window) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        scene, split = self.sources[n]
        image, valid, label = scene.read(window)
        if split is not None:
            label = np.where(split.mask(self.part, window), label, np.uint8(IGNORE))
        return image, valid, label

    # -- regular windows --------------------------------------------------------------------------

    def _lay(self, n: int) -> list[tuple[int, Window, tuple[slice, slice]]]:
        """(scene, window, slices of the pixels that are its own) for the windows that hold a labelled pixel."""
        (scene, split), found = self.sources[n], []
        for top, rows in self._owned(scene.height):
            for left, columns in self._owned(scene.width):
                window = Window(left, top, self.patch, self.patch)
                if split is not None and not split.mask(self.part, window)[rows, columns].any():
                    continue
                count = np.bincount(self._read(n, window)[2][rows, columns].ravel(), minlength=256)[:255]
                self.counts += count
                if count.any():
                    found.append((n, window, (rows, columns)))
        return found

    def _owned(self, length: int) -> list[tuple[int, slice]]:
        """Along one axis: the start of every window and the slice of it that it does not leave to a neighbour."""
        first = starts(length, self.patch, self.stride)
        borders = [0, *((a + b + self.patch) // 2 for a, b in pairwise(first)), length]
        return [(s, slice(borders[i] - s, borders[i + 1] - s)) for i, s in enumerate(first)]

    # -- random patches ---------------------------------------------------------------------------

    def _find_blocks(self, n: int) -> list[tuple[int, tuple[int, int, int, int], int, Window]]:
        """(scene, box, labelled pixels, a good window) of every block that a patch can be drawn from."""
        scene, split = self.sources[n]
        if split is None:
            rows, columns = (edges(length, max(self.patch, 256)) for length in (scene.height, scene.width))
            split = Split(rows, columns, (0,) * ((len(rows) - 1) * (len(columns) - 1)))
            boxes = split.boxes("train")
        else:
            boxes = split.boxes(self.part)
        found = []
        for top, left, bottom, right in boxes.tolist():
            label = self._read(n, Window(left, top, right - left, bottom - top))[2]
            self.counts += (count := np.bincount(label.ravel(), minlength=256)[:255])
            if not count.any():
                continue
            good = self._good_window(
                n, np.argwhere(label != IGNORE) + np.array([top, left]), (top, left, bottom, right)
            )
            if good is None:
                self.unreachable += int(count.sum())
            else:
                found.append((n, (top, left, bottom, right), int(count.sum()), good))
                if self.balance:
                    self._spots.append(self._find_spots(n, label, (top, left, bottom, right)))
        return found

    def _find_spots(self, n: int, label: np.ndarray, box: tuple[int, int, int, int]) -> dict:
        """By label: how many pixels a block has of it, and up to SPOTS of them, (m, 2) rows and columns."""
        rng, spots = np.random.default_rng([self.seed, n, *box, SPOTS]), {}
        order = np.argsort(label, axis=None, kind="stable")
        values, first, count = np.unique(label.ravel()[order], return_index=True, return_counts=True)
        for value, start, size in zip(values.tolist(), first.tolist(), count.tolist(), strict=True):
            if value != IGNORE:
                chosen = order[start + np.sort(rng.choice(size, min(size, SPOTS), replace=False))]
                at = np.stack(np.unravel_index(chosen, label.shape), 1) + np.array(box[:2])
                spots[value] = (size, at.astype(np.int32))
        return spots

    def _find_classes(self) -> list[tuple[np.ndarray, list[tuple[int, np.ndarray]]]]:
        """A class an entry: the running sum of its pixels over the blocks that hold it, and (block, spots) of each."""
        held: dict[int, list] = {}
        for block, spots in enumerate(self._spots):
            for label, (size, at) in spots.items():
                held.setdefault(label, []).append((size, block, at))
        return [
            (np.cumsum([float(size) for size, _, _ in blocks]), [(block, at) for _, block, at in blocks])
            for _, blocks in sorted(held.items())
        ]

    def _good_window(self, n: int, labelled: np.ndarray, box: tuple[int, int, int, int]) -> Window | None:
        """A window that holds one of the labelled pixels (m, 2) and no pixel of a later part."""
        rng = np.random.default_rng([self.seed, n, *box])
        for row, column in labelled[rng.integers(len(labelled), size=64)].tolist():
            inside = [
                min(max(at - self.patch // 2, low), max(low, high - self.patch))
                for at, low, high in ((row, box[0], box[2]), (column, box[1], box[3]))
            ]
            anywhere = [at - int(rng.integers(self.patch)) for at in (row, column)]
            for top, left in (inside, anywhere):
                window = self._within(n, top, left)
                if self._is_clear(n, window):
                    return window
        return None

    def _within(self, n: int, top: int, left: int) -> Window:
        scene = self.sources[n][0]
        top = min(max(top, 0), max(0, scene.height - self.patch))
        left = min(max(left, 0), max(0, scene.width - self.patch))
        return Window(left, top, self.patch, self.patch)

    def _is_clear(self, n: int, window: Window) -> bool:
        split = self.sources[n][1]
        return split is None or split.clear(self.part, window)

    def _draw(self, rng: np.random.Generator) -> tuple[int, Window, tuple[np.ndarray, np.ndarray, np.ndarray]]:
        spots = None
        if self._classes and rng.random() < self.balance:
            share, blocks = self._classes[rng.integers(len(self._classes))]
            place, spots = blocks[_pick(share, rng)]
        else:
            place = _pick(self._share, rng)
        n, (top, left, bottom, right), _, good = self._blocks[place]
        for _ in range(TRIES):
            if spots is None:
                row, column = rng.integers(top, bottom), rng.integers(left, right)
            else:
                row, column = spots[rng.integers(len(spots))]
            window = self._within(n, int(row - rng.integers(self.patch)), int(column - rng.integers(self.patch)))
            if self._is_clear(n, window):
                patch = self._read(n, window)
                if (patch[2] != IGNORE).any():
                    return n, window, patch
        return n, good, self._read(n, good)


def _pick(share: np.ndarray, rng: np.random.Generator) -> int:
    """An index drawn in proportion to the steps of a running sum."""
    return min(int(np.searchsorted(share, rng.random() * share[-1], side="right")), len(share) - 1)
