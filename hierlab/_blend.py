"""Overlapping windows over a scene, read ahead and blended in memory that the scene's size leaves flat.

Holding the logits of a whole scene costs ΣK · H · W · 4 bytes (33 GB for 16,384² and 31 classes). Here every window is
blended in one buffer (ΣK, window, window), and at once the pixels that no later window covers, its **core**, are given
out. What remains are two margins: the right one is handed to the window beside it, the bottom one kept for the window
below. Windows are walked in **swaths**, a few columns of windows each, from top to bottom, so the bottom margins are as
long as a swath is wide, and not as the scene. The right margins of a swath's last windows wait for the next swath
in a temporary file, the same for all swaths (ΣK · window · overlap · 4 bytes a row of windows: 150 MB for 16,384²).

No window is computed twice; the price is a copy of each margin and the file's traffic once a swath. A pixel's sum is
built from the same terms in the same order however the scene is cut into swaths and batches, so no cut can be seen.

Shapes: B batch, C bands, K_l classes of level l (ΣK all levels together), H W pixels of the scene.
"""

import queue
import threading
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from itertools import pairwise
from typing import BinaryIO, NamedTuple, TypeVar

import numpy as np
import torch
from rasterio.windows import Window
from torch import Tensor

from .data.rasters import Scene

T = TypeVar("T")
STRIP = 64  # rows copied and weighted at a time


def window_starts(length: int, window: int, overlap: int) -> list[int]:
    """First pixels of the windows along an axis: as few as overlap by ``overlap`` or more, evenly spread.

    An axis no longer than a window has one, from 0.
    """
    spare = max(length - window, 0)
    count = -(-spare // (window - overlap))
    return [0] + [k * spare // count for k in range(1, count + 1)]


def blend_weights(length: int, window: int, overlap: int) -> tuple[list[int], np.ndarray]:
    """Starts of the windows along an axis, and their weights (windows, window), float32.

    A weight rises over ``overlap`` pixels from each end as a squared sine (half a Hann window), is 1 between and
    positive everywhere. Weights are divided by their sum over the windows that cover a pixel, so they sum to 1.
    The weight of a window in a scene is the product of those of its row and of its column.
    """
    starts = window_starts(length, window, overlap)
    rise = np.ones(window)
    if overlap:
        edge = np.minimum(np.arange(window), np.arange(window)[::-1]) + 0.5
        rise = np.sin(np.pi / 2 * np.minimum(edge / overlap, 1)) ** 2
    total = np.zeros(max(length, window))
    for start in starts:
        total[start : start + window] += rise
    return starts, np.stack([rise / total[start : start + window] for start in starts]).astype(np.float32)


class Grid:
    """The windows of a scene of ``height`` × ``width`` pixels, and the swaths in which they are walked.

    It depends on sizes alone: the windows are the same whatever the batch size and the swaths. Row i of windows
    starts at ``tops[i]`` and its cores are ``core_heights[i]`` high; ``lefts`` and ``core_widths`` likewise. A scene
    smaller than a window counts as large as one.
    """

    def __init__(self, height: int, width: int, window: int, overlap: int, swath_width: int):
        self.height, self.width, self.window = height, width, window
        self.tops, self.row_weights = blend_weights(height, window, overlap)
        self.lefts, self.column_weights = blend_weights(width, window, overlap)
        self.core_heights = [b - a for a, b in pairwise([*self.tops, max(height, window)])]
        self.core_widths = [b - a for a, b in pairwise([*self.lefts, max(width, window)])]
        columns = len(self.lefts)
        each = max(1, (swath_width - window) // max(self.core_widths[:-1], default=window) + 1)
        self.swaths = [range(a, min(a + each, columns)) for a in range(0, columns, each)]
        self.count = len(self.tops) * columns

    def margin_bytes(self, channels: int) -> int:
        """Bytes of the largest right margin."""
        return channels * self.window * (self.window - min(self.core_widths)) * 4

    def seam_bytes(self, channels: int) -> int:
        """Bytes of the file in which a swath's right margins wait for the next swath."""
        return self.margin_bytes(channels) * len(self.tops) if len(self.swaths) > 1 else 0


class Batch(NamedTuple):
    """Consecutive windows: (row, column, number in the batch, or None without a valid pixel) of each.

    ``image`` is (B, C, window, window) float32 and ``valid`` (B, window, window) bool; B may be 0. ``more`` are further
    arrays by name, one entry a window.
    """

    places: list[tuple[int, int, int | None]]
    image: np.ndarray
    valid: np.ndarray
    more: dict[str, np.ndarray] | None = None


def read_batches(scene: Scene, grid: Grid, batch_size: int) -> Generator[Batch]:
    """All windows in the grid's order, ``batch_size`` with something valid at a time."""
    shape = (batch_size, scene.count, grid.window, grid.window)
    places, images, valids, filled = [], np.empty(shape, np.float32), np.empty((batch_size, *shape[2:]), bool), 0
    for row, column, image, valid in _read_windows(scene, grid):
        if not valid.any():
            places.append((row, column, None))
            continue
        places.append((row, column, filled))
        images[filled], valids[filled] = image, valid
        filled += 1
        if filled == batch_size:
            yield Batch(places, images, valids)
            places, images, valids, filled = [], np.empty_like(images), np.empty_like(valids), 0
    if places:
        yield Batch(places, images[:filled], valids[:filled])


def _read_windows(scene: Scene, grid: Grid) -> Iterator[tuple[int, int, np.ndarray, np.ndarray]]:
    """Row, column, image (C, window, window) and valid (window, window) of every window, good until the next.

    A swath is read in slabs, a window high; the rows that two slabs share are kept, so that within a swath a pixel is
    read once. A scene smaller than a window is continued by its last row and column, as valid as they are.
    """
    size = grid.window
    for swath in grid.swaths:
        left, end = grid.lefts[swath[0]], grid.lefts[swath[-1]] + size
        width = min(end, grid.width) - left
        slab, slab_valid = np.empty((scene.count, size, end - left), np.float32), np.empty((size, end - left), bool)
        for row, top in enumerate(grid.tops):
            shared = 0
            if row:
                step = grid.core_heights[row - 1]
                shared = size - step
                slab[:, :shared], slab_valid[:shared] = slab[:, step:], slab_valid[step:]
            stop = min(size, grid.height - top)
            image, valid = scene.read_valid(Window(left, top + shared, width, stop - shared))
            slab[:, shared:stop, :width], slab_valid[shared:stop, :width] = image, valid
            slab[:, stop:], slab_valid[stop:] = slab[:, stop - 1, None], slab_valid[stop - 1]
            slab[:, :, width:], slab_valid[:, width:] = slab[:, :, width - 1, None], slab_valid[:, width - 1, None]
            for column in swath:
                x = grid.lefts[column] - left
                yield row, column, slab[:, :, x : x + size], slab_valid[:, x : x + size]


def ahead(items: Generator[T]) -> Generator[T]:
    """Run a generator in a thread of its own, one item ahead; its exceptions are raised here.

    An item is made while the one before is used, and none is kept longer. Closing this generator closes that one, in
    its thread, and waits for it.
    """
    ready: queue.SimpleQueue = queue.SimpleQueue()
    wanted = threading.Semaphore(1)
    stopped = threading.Event()

    def run() -> None:
        try:
            with closing(items):
                while wanted.acquire() and not stopped.is_set():
                    ready.put((next(items), None))
        except BaseException as error:  # raised again below, in the thread that waits; StopIteration is the end
            ready.put((None, error))

    thread = threading.Thread(target=run, name=f"hierlab-{items.__name__}", daemon=True)
    thread.start()
    try:
        while True:
            item, error = ready.get()
            if isinstance(error, StopIteration):
                return
            if error is not None:
                raise error
            wanted.release()
            yield item
            del item
    finally:
        stopped.set()
        wanted.release()
        thread.join()


class Blender:
    """Adds up weighted logits window by window, and gives out the core of each, whose sum is complete.

    ``seams`` is an open binary file for the margins between swaths, empty at first.
    """

    def __init__(self, grid: Grid, channels: int, device: torch.device, seams: BinaryIO):
        self.grid, self.channels, self.device, self.seams = grid, channels, device, seams
        self.row_weights = torch.from_numpy(grid.row_weights).to(device)
        self.column_weights = torch.from_numpy(grid.column_weights).to(device)
        self.total = torch.empty(channels, grid.window, grid.window, device=device)
        self.right: Tensor | None = None  # of the window before
        self.below: dict[int, Tensor] = {}  # of the row of windows above, by column
        self.kept = [False] * len(grid.tops)  # rows whose margin stands in the file
        self.slot = grid.margin_bytes(channels)
        self.first = {swath[0] for swath in grid.swaths[1:]}
        self.last = {swath[-1] for swath in grid.swaths[:-1]}
        # the memory of the margins, used again and again
        overlaps = (grid.window - min(grid.core_heights), grid.window - min(grid.core_widths))
        self.right_memory = torch.empty(channels, grid.window, overlaps[1], device=device)
        across = max(map(len, grid.swaths))
        self.below_memory = torch.empty(across, channels, overlaps[0], grid.window, device=device)

    def add(self, row: int, column: int, logits: Sequence[Tensor] | None) -> Tensor | None:
        """Logits (K_l, window, window) a level -> blended logits (ΣK, core height, core width) float32, a view.

        Windows come in the grid's order. ``None`` stands for one without a valid pixel: it has no core, and what its
        neighbours handed to it is nodata too, so every valid pixel has the terms of all windows that cover it.
        """
        height, width = self.grid.core_heights[row], self.grid.core_widths[column]
        from_left = self._take_seam(row, column) if column in self.first else self.right
        from_above = self.below.pop(column, None)
        self.right = None
        if column in self.last:
            self.kept[row] = logits is not None
        if logits is None:
            return None
        total = self.total
        weights = self.row_weights[row][:, None] * self.column_weights[column]
        for top in range(0, self.grid.window, STRIP):  # from pixel by pixel to plane by plane, within the cache
            strip, done = slice(top, top + STRIP), 0
            for level in logits:
                total[done : done + len(level), strip].copy_(level[:, strip])
                done += len(level)
            total[:, strip].mul_(weights[strip])
        if from_left is not None:
            total[:, :, : from_left.shape[2]] += from_left
        if from_above is not None:
            total[:, : from_above.shape[1], :width] += from_above
        if row + 1 < len(self.grid.tops):
            memory = self.below_memory[column % len(self.below_memory)]
            self.below[column] = memory[:, : self.grid.window - height, :width].copy_(total[:, height:, :width])
        if column in self.last:
            self.seams.seek(row * self.slot)
            self.seams.write(total[:, :, width:].contiguous().cpu().numpy().data)
        elif column + 1 < len(self.grid.lefts):
            self.right = self.right_memory[:, :, : self.grid.window - width].copy_(total[:, :, width:])
        return total[:, :height, :width]

    def _take_seam(self, row: int, column: int) -> Tensor | None:
        if not self.kept[row]:
            return None
        overlap = self.grid.window - self.grid.core_widths[column - 1]
        margin = np.empty((self.channels, self.grid.window, overlap), np.float32)
        self.seams.seek(row * self.slot)
        self.seams.readinto(margin.data)
        return torch.from_numpy(margin).to(self.device)
