"""Co-registration: how far an image lies from a reference, and the map correction that brings it there.

Windows of the two images are compared by phase correlation. For windows r and m with spectra R and M, the surface

    c = F⁻¹[ W · M R* / |M R*| ]

has its peak where m is r displaced; W, a Gaussian low-pass, leaves out the frequencies that hold noise alone (and those
that a coarser reference lacks). The peak is refined on a finer grid by evaluating the inverse transform there. Each
window's result is believed as far as the two windows correlate once the displacement is undone. A plane through all
displacements but those that disagree with most (RANSAC, then least squares) is the correction.

Images are float arrays (H, W) on one grid; displacements are pixels, rows down and columns to the right: a positive
displacement says that the image shows a thing further down or right than the reference does.
"""

from dataclasses import dataclass

import numpy as np
from affine import Affine

from hierlab.data.grid import compose

WINDOW = 256  # pixels: side of the windows that are compared
LEAST_SCORE = 0.3  # correlation of two windows below which a displacement is not believed
LEAST_VALID = 0.9  # share of a window's pixels that must be valid in both images
WITHIN = 1.5  # pixels: how far a displacement may lie from the plane to count as agreeing with it
_CUTOFF = 0.15  # cycles a pixel: standard deviation of the low-pass
_FINE = 20  # positions a pixel on which the peak is refined
_AFFINE, _STRAIN = 6, 0.01  # windows that an affine needs, and how far it may differ from a shift


@dataclass(frozen=True)
class Matches:
    """Displacements measured at windows: arrays (N,) each.

    ``rows``, ``columns``: the windows' centres; ``down``, ``right``: displacement of the image there; ``score``: the
    windows' correlation with the displacement undone, at most 1. ``tried``: windows that were valid enough to compare.
    """

    rows: np.ndarray
    columns: np.ndarray
    down: np.ndarray
    right: np.ndarray
    score: np.ndarray
    tried: int

    def __len__(self) -> int:
        return len(self.rows)

    def where(self, keep: np.ndarray) -> "Matches":
        """The windows for which ``keep`` (bool, (N,)) is true."""
        arrays = (self.rows, self.columns, self.down, self.right, self.score)
        return Matches(*(array[keep] for array in arrays), int(keep.sum()))


def phase_shift(reference: np.ndarray, image: np.ndarray) -> tuple[float, float]:
    """(down, right): how far ``image`` is displaced against ``reference``, two windows (h, w) of one size.

    To about a tenth of a pixel, and a hundredth of the displacement: take a large one out and measure again. One of
    more than half the side cannot be told from what it leaves of it.
    """
    if reference.shape != image.shape:
        raise ValueError(f"windows of one size are compared, not {reference.shape} and {image.shape}")
    h, w = image.shape
    taper = np.hanning(h)[:, None] * np.hanning(w)
    spectra = [np.fft.fft2((a - a.mean()) * taper) for a in (reference, image)]
    cross = spectra[1] * np.conj(spectra[0])
    size = np.abs(cross)
    fy, fx = np.fft.fftfreq(h)[:, None], np.fft.fftfreq(w)
    low = np.exp(-(fy**2 + fx**2) / (2 * _CUTOFF**2))
    cross = low * np.divide(cross, size, out=np.zeros_like(cross), where=size > 1e-12 * max(size.max(), 1e-300))
    surface = np.fft.ifft2(cross).real
    peak = np.unravel_index(surface.argmax(), surface.shape)
    near = np.arange(-_FINE, _FINE + 1) / _FINE
    down, right = ((p if p <= n // 2 else p - n) + near for p, n in zip(peak, (h, w), strict=True))
    rows = np.exp(2j * np.pi * np.outer(down, fy[:, 0]))
    columns = np.exp(2j * np.pi * np.outer(fx, right))
    fine = (rows @ cross @ columns).real
    best = np.unravel_index(fine.argmax(), fine.shape)
    return float(down[best[0]]), float(right[best[1]])


def coarse_shift(reference: np.ndarray, image: np.ndarray, valid: np.ndarray, side: int = 512) -> tuple[int, int]:
    """(down, right) in whole pixels of the images as a whole, found on means of blocks no finer than ``side`` a side.

    valid: bool (H, W), where both images count. (0, 0) where the shift found does not make them more alike.
    """
    step = max(1, -(-max(image.shape) // side))
    h, w = (n // step for n in image.shape)
    weight = _means(valid.astype(float), step, h, w)
    small = [_means(np.where(valid, a, 0.0), step, h, w) / np.maximum(weight, 1e-9) for a in (reference, image)]
    small = [np.where(weight > 0.5, a, a[weight > 0.5].mean() if (weight > 0.5).any() else 0) for a in small]
    down, right = (round(v) for v in phase_shift(*small))
    if _alike(small[0], small[1], down, right) <= _alike(small[0], small[1], 0, 0):
        return 0, 0
    return down * step, right * step


def measure(
    reference: np.ndarray,
    image: np.ndarray,
    valid: np.ndarray | None = None,
    window: int = WINDOW,
    step: int | None = None,
    guess: tuple[int, int] | None = None,
    least_score: float = LEAST_SCORE,
) -> Matches:
    """Displacements of ``image`` against ``reference`` at windows every ``step`` pixels (default: ``window``).

    reference, image: (H, W). valid: bool (H, W), where both count (default: everywhere). guess: displacement of the
    whole, which is taken out of each comparison and put back (default: :func:`coarse_shift`).
    """
    if reference.shape != image.shape:
        raise ValueError(f"images on one grid are compared, not of {reference.shape} and {image.shape} pixels")
    valid = np.isfinite(reference) & np.isfinite(image) & (True if valid is None else valid)
    if guess is None:
        guess = coarse_shift(reference, image, valid) if valid.any() else (0, 0)
    found, tried = [], 0
    for top in range(0, image.shape[0] - window + 1, step or window):
        for left in range(0, image.shape[1] - window + 1, step or window):
            ours = _square(top, left, window)
            if valid[ours].mean() < LEAST_VALID:
                continue
            pattern = _filled(reference[ours], valid[ours])
            match = _find(pattern, image, valid, top + guess[0], left + guess[1])
            if match is not None:
                tried += 1
                row, column, score = match
                drift = max(abs(row - top - guess[0]), abs(column - left - guess[1]))
                if score >= least_score and drift < window / 3:
                    found.append((top + window / 2, left + window / 2, row - top, column - left, score))
    return Matches(*np.array(found, float).reshape(-1, 5).T, tried)


def _find(pattern: np.ndarray, image: np.ndarray, valid: np.ndarray, row: int, column: int):
    """(row, column, score) of where a window is found in the image near a place; None where that is not valid."""
    window = len(pattern)
    for _ in range(3):  # again where the window compared was not yet that of the same ground
        at = _clipped(row, column, window, image.shape)
        there = _square(*at, window)
        if valid[there].mean() < LEAST_VALID:
            return None
        seen = _filled(image[there], valid[there])
        down, right = phase_shift(pattern, seen)
        row, column = at[0] + round(down), at[1] + round(right)
        if _clipped(row, column, window, image.shape) == at:
            break
    return at[0] + down, at[1] + right, _alike(pattern, seen, round(down), round(right))


def _square(top: int, left: int, window: int) -> tuple[slice, slice]:
    return slice(top, top + window), slice(left, left + window)


def fit(matches: Matches, within: float = WITHIN, seed: int = 0) -> tuple[Affine, np.ndarray]:
    """The displacement that most windows agree on, and which do: an affine, and bool (N,).

    The affine goes from (column, row) in the image to (column, row) in the reference. It is a mere shift where fewer
    than six windows agree, or where shear, turn or scale would exceed a hundredth, which no RPC model is wrong by.
    ValueError where fewer than three windows agree on anything.
    """
    n = len(matches)
    if n < 3:
        raise ValueError(
            f"only {n} of {matches.tried} windows could be matched with the reference, three are needed. Does it show "
            "the same ground, and land rather than water or cloud?"
        )
    at = np.stack([matches.columns + matches.right, matches.rows + matches.down], 1)  # where the image shows it
    target = np.stack([matches.columns, matches.rows], 1)
    rng, best = np.random.default_rng(seed), np.zeros(n, bool)
    for trial in range(n + 500 * (n >= _AFFINE)):
        one = [trial] if trial < n else rng.choice(n, 3, replace=False)
        matrix = _solve(at[one], target[one])
        agree = _errors(matrix, at, target) < within
        if agree.sum() > best.sum() and (trial < n or agree.sum() >= _AFFINE):
            best = agree
    if best.sum() < 3:
        raise ValueError(f"the {n} matched windows agree on no displacement: at most {best.sum()} of them do")
    for _ in range(10):
        matrix = _solve(at[best], target[best], best.sum() >= _AFFINE)
        agree = _errors(matrix, at, target) < within
        if (agree == best).all() or agree.sum() < 3:
            break
        best = agree
    (a, d), (b, e), (c, f) = matrix.tolist()
    return Affine(a, b, c, d, e, f), best


def in_map(matrix: Affine, transform: Affine) -> Affine:
    """A correction in pixels as one in the map coordinates of a grid with this transform."""
    return compose(transform, compose(matrix, ~transform))


def residuals(matches: Matches, gsd: float, within: float = WITHIN) -> dict:
    """What is left between image and reference, as JSON: over all windows, in pixels and in metres of ``gsd``.

    ``windows`` matched of ``tried``; ``mean_down`` and ``mean_right``; ``median``, ``p90`` and ``rmse`` of the lengths;
    ``within``: the share of windows displaced by less than that many pixels. Numbers are None where nothing matched.
    """
    length = np.hypot(matches.down, matches.right)
    told = {"windows": len(matches), "tried": matches.tried, "gsd": gsd}
    numbers = {"mean_down": matches.down.mean, "mean_right": matches.right.mean}
    numbers |= {"median": lambda: np.median(length), "p90": lambda: np.quantile(length, 0.9)}
    numbers |= {"rmse": lambda: np.sqrt((length**2).mean())}
    for name, number in numbers.items():
        value = float(number()) if len(matches) else None
        told[f"{name}_px"] = None if value is None else round(value, 3)
        told[f"{name}_m"] = None if value is None else round(value * gsd, 3)
    told[f"within_{within:g}_px"] = round(float((length < within).mean()), 4) if len(matches) else None
    return told


def chessboard(matches: Matches, window: int = WINDOW) -> np.ndarray:
    """bool (N,): the windows on the white squares of a chessboard; fit on these, check on the others."""
    return (matches.rows // window + matches.columns // window).astype(int) % 2 == 0


def _solve(at: np.ndarray, target: np.ndarray, affine: bool = True) -> np.ndarray:
    """(3, 2): the least-squares affine from points to points (n, 2); a shift where it would not be plausible."""
    centre = at.mean(0)
    shift = np.vstack([np.eye(2), target.mean(0) - centre])
    spread = np.linalg.svd(at - centre, compute_uv=False)
    if not affine or len(at) < 3 or spread[-1] < 1e-3 * max(spread[0], 1):
        return shift
    solved = np.linalg.lstsq(np.column_stack([at - centre, np.ones(len(at))]), target, rcond=None)[0]
    if np.abs(solved[:2] - np.eye(2)).max() > _STRAIN:
        return shift
    return np.vstack([solved[:2], solved[2] - centre @ solved[:2]])


def _errors(matrix: np.ndarray, at: np.ndarray, target: np.ndarray) -> np.ndarray:
    return np.hypot(*(at @ matrix[:2] + matrix[2] - target).T)


def _clipped(top: int, left: int, window: int, shape: tuple[int, int]) -> tuple[int, int]:
    return min(max(top, 0), shape[0] - window), min(max(left, 0), shape[1] - window)


def _filled(array: np.ndarray, valid: np.ndarray) -> np.ndarray:
    return array if valid.all() else np.where(valid, array, array[valid].mean())


def _means(array: np.ndarray, step: int, h: int, w: int) -> np.ndarray:
    return array[: h * step, : w * step].reshape(h, step, w, step).mean((1, 3))


def _alike(reference: np.ndarray, image: np.ndarray, down: int, right: int) -> float:
    """Correlation of two windows over what they share once the image is moved back by whole pixels."""
    h, w = reference.shape
    if abs(down) >= h or abs(right) >= w:
        return -1.0
    a = reference[max(0, -down) : h - max(0, down), max(0, -right) : w - max(0, right)]
    b = image[max(0, down) : h - max(0, -down), max(0, right) : w - max(0, -right)]
    a, b = a - a.mean(), b - b.mean()
    scale = np.sqrt((a**2).sum() * (b**2).sum())
    return float((a * b).sum() / scale) if scale > 0 else 0.0
