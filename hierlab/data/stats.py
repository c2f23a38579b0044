"""Mean and standard deviation of every band, for normalisation."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from affine import Affine
from rasterio.windows import Window

from hierlab.data.datasets import LabelledScene
from hierlab.data.grid import apply
from hierlab.data.rasters import Scene
from hierlab.data.tiles import Split, blocks

WINDOW = 256  # pixels: side of the windows that are sampled
PER_WINDOW = 2**14  # pixels taken from one window, unless there are too few windows: so that many places are seen


@dataclass(frozen=True)
class Statistics:
    """mean, std: one a band, in the files' units. pixels: valid pixels they were worked out from. windows:
    windows looked at, of ``windows_in_all``."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    pixels: int
    windows: int
    windows_in_all: int

    def __str__(self) -> str:
        bands = "  ".join(f"{m:.4g} ± {s:.4g}" for m, s in zip(self.mean, self.std, strict=True))
        return f"{bands}  (from {self.pixels:,} pixels in {self.windows} of {self.windows_in_all} windows)"


def statistics(
    sources: Sequence[Scene | tuple[LabelledScene | Scene, Split | None]],
    part: str = "train",
    pixels: int = 2**20,
    seed: int = 0,
) -> Statistics:
    """Statistics of about ``pixels`` valid pixels of a part, drawn from windows in random (seeded) order.

    Sums run in float64 and are merged window by window (Chan, Golub and LeVeque 1983), so that neither large
    offsets nor many pixels cost precision. The standard deviation divides by n. A constant band gets std 1, so
    that dividing by it is safe. ValueError where the part has no valid pixel.
    """
    return _statistics([(s, None) if isinstance(s, Scene) else s for s in sources], part, pixels, seed, _image_values)


def series_statistics(
    sources: Sequence[tuple[LabelledScene, Split | None]], part: str = "train", pixels: int = 2**20, seed: int = 0
) -> Statistics:
    """:func:`statistics` of the time series beneath the scenes, over all dates together.

    A pixel of the series belongs to the part in which its centre lies, and counts on every date on which it is valid.
    """
    return _statistics(sources, part, pixels, seed, _series_values)


def _image_values(scene: LabelledScene | Scene, window: Window, wanted: np.ndarray) -> np.ndarray:
    image, valid = scene.read_valid(window)
    return image[:, valid & wanted]


def _series_values(scene: LabelledScene, window: Window, wanted: np.ndarray) -> np.ndarray:
    found = scene.series.beneath(window)
    columns, rows = np.meshgrid(*(np.arange(found["series"].shape[-1]) + 0.5,) * 2)
    columns, rows = (np.floor(v.round(3)).astype(int) for v in apply(~Affine(*found["series_grid"]), columns, rows))
    inside = (rows >= 0) & (rows < window.height) & (columns >= 0) & (columns < window.width)
    mine = inside.copy()
    mine[inside] = np.broadcast_to(wanted, (window.height, window.width))[rows[inside], columns[inside]]
    return found["series"].transpose(1, 0, 2, 3)[:, found["series_valid"] & mine]


def _statistics(
    pairs: Sequence[tuple[LabelledScene | Scene, Split | None]],
    part: str,
    pixels: int,
    seed: int,
    read: Callable[..., np.ndarray],
) -> Statistics:
    """``read(scene, window, wanted)`` gives the values (C, n) of the wanted pixels (h, w) of a window."""
    places = [(n, w) for n, (scene, _) in enumerate(pairs) for w in blocks(scene.height, scene.width, WINDOW)]
    most = max(PER_WINDOW, -(-pixels // len(places)))
    rng = np.random.default_rng(seed)
    count, looked, mean, spread = 0, 0, 0.0, 0.0
    for at in rng.permutation(len(places)).tolist():
        if count >= pixels:
            break
        n, window = places[at]
        scene, split = pairs[n]
        looked += 1
        wanted = split.mask(part, window) if split is not None else np.True_
        if not wanted.any():
            continue
        values = read(scene, window, wanted).astype(np.float64)
        if values.shape[1] > most:
            values = values[:, rng.choice(values.shape[1], most, replace=False)]
        m = values.shape[1]
        if m == 0:
            continue
        here = values.mean(axis=1)
        apart = here - mean
        spread = spread + ((values - here[:, None]) ** 2).sum(axis=1) + apart**2 * (count * m / (count + m))
        mean = mean + apart * (m / (count + m))
        count += m
    if count == 0:
        raise ValueError(f"the {part} part holds not one valid pixel to take statistics from")
    std = np.sqrt(spread / count)
    flat = std <= 1e-7 * np.maximum(np.abs(mean), 1e-30)  # float32's resolution: no real spread
    std = np.where(flat, 1.0, std)
    return Statistics(tuple(mean.tolist()), tuple(std.tolist()), count, looked, len(places))
