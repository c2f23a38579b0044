"""What every picture of :mod:`hierlab.plot` stands on: style, a figure without pyplot, writing, colours, bands."""

from __future__ import annotations

import functools
import io
import os
import re
from collections.abc import Callable, Iterable, Sequence

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.textpath import TextPath

from ._io import atomic

STYLE = {
    "font.size": 8.5,
    "axes.titlesize": 9.5,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "axes.labelsize": 8.5,
    "axes.edgecolor": "0.35",
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "xtick.major.size": 2.5,
    "ytick.major.size": 2.5,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "grid.color": "0.88",
    "grid.linewidth": 0.6,
    "legend.fontsize": 8,
    "legend.frameon": False,
    "hatch.linewidth": 0.5,
}
HATCHES = ("", "////", "....", "\\\\\\\\", "xxxx", "----", "++++", "oooo")
CLOSE = 10.0  # CIELAB distance below which two classes get different hatches


class Picture(Figure):
    """A figure that shows itself in a notebook, with its alternative text, even where pyplot was never imported."""

    def _repr_png_(self) -> tuple[bytes, dict]:
        return png(self), {"alt": self.get_label()}


def picture(width: float, height: float, layout: str | None = "constrained") -> Picture:
    """An empty figure of this size in inches."""
    return Picture(figsize=(width, height), dpi=120, layout=layout, facecolor="white")


def styled(function: Callable[..., Picture]) -> Callable[..., Picture]:
    """Run a function that builds a figure under the house style, and leave matplotlib's own settings alone."""

    @functools.wraps(function)
    def wrapper(*arguments, **keywords):
        with matplotlib.rc_context(STYLE):
            return function(*arguments, **keywords)

    return wrapper


def png(figure: Figure, **options) -> bytes:
    """A figure as PNG bytes."""
    buffer = io.BytesIO()
    with matplotlib.rc_context(STYLE):
        figure.savefig(buffer, format="png", **options)
    return buffer.getvalue()


def text_width(texts: Iterable[str], size: float = 8.0) -> float:
    """Inches that the widest of some lines of text takes at a font size in points."""
    return max((TextPath((0, 0), text or " ", size=size).get_extents().width / 72 for text in texts), default=0.0)


def save(figure: Figure, path: str | os.PathLike, alt: str | None = None, dpi: int = 160) -> None:
    """Write a figure as PNG, whole or not at all; ``alt`` (default: its own description) goes into the metadata.

    The same figure gives the same bytes. Raises ValueError without a description or for another suffix.
    """
    alt = alt or figure.get_label()
    if not alt:
        raise ValueError("A picture needs alternative text: pass `alt`, one sentence that says what it shows.")
    if os.path.splitext(path)[1].lower() != ".png":
        raise ValueError(f"Pictures are written as PNG; '{path}' should end in .png.")
    with atomic(path) as part:
        part.write_bytes(png(figure, dpi=dpi, metadata={"Description": alt, "Software": None}))


# Machado, Oliveira and Fernandes (2009), severity 1.0, on linear RGB: protanopia, deuteranopia, tritanopia
_MACHADO = np.array(
    [
        [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
        [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
        [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
    ]
)
_SRGB_TO_XYZ = np.array(
    [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]
)


def colour_blind_distance(colors: np.ndarray) -> np.ndarray:
    """How far apart colours are to the eye that tells them apart least: (K, 3) uint8 sRGB -> (K, K).

    The smallest CIELAB (1976, D65) distance of each pair over normal vision, protanopia, deuteranopia and tritanopia,
    simulated with the matrices of Machado, Oliveira and Fernandes (2009), "A physiologically-based model for simulation
    of color vision deficiency", IEEE TVCG 15(6), at full severity. About 2 is just noticeable side by side; classes of
    a map should differ by 10 and more.
    """
    value = np.asarray(colors, np.float64) / 255
    linear = np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)
    smallest = np.full((len(value), len(value)), np.inf)
    for matrix in (np.eye(3), *_MACHADO):
        xyz = np.clip(linear @ matrix.T, 0, 1) @ _SRGB_TO_XYZ.T / _SRGB_TO_XYZ.sum(1)
        f = np.where(xyz > 216 / 24389, np.cbrt(xyz), (24389 / 27 * xyz + 16) / 116)
        lab = np.stack([116 * f[:, 1] - 16, 500 * (f[:, 0] - f[:, 1]), 200 * (f[:, 1] - f[:, 2])], 1)
        smallest = np.minimum(smallest, np.linalg.norm(lab[:, None] - lab[None], axis=2))
    return smallest


def hatches(colors: np.ndarray, weights: Sequence[float] | None = None) -> list[str]:
    """A matplotlib hatch for each colour, such that colours closer than ``CLOSE`` differ in theirs.

    Greedy from the largest weight (a class's area), so that large areas stay plain; "" is plain. When a colour has more
    close neighbours than there are hatches, the last one is used again.
    """
    close = colour_blind_distance(colors) < CLOSE
    weights = np.ones(len(colors)) if weights is None else np.asarray(weights, float)
    chosen = [-1] * len(colors)
    for index in np.argsort(-weights, kind="stable"):
        taken = {chosen[other] for other in np.flatnonzero(close[index]) if other != index}
        chosen[index] = next((i for i in range(len(HATCHES)) if i not in taken), len(HATCHES) - 1)
    return [HATCHES[i] for i in chosen]


_BAND_NAMES = {
    "red": r"red|r|(.*[^a-z0-9])?(sr_?)?b_?0?4",
    "green": r"green|g|(.*[^a-z0-9])?(sr_?)?b_?0?3",
    "blue": r"blue|b|(.*[^a-z0-9])?(sr_?)?b_?0?2",
    "nir": r"(.*[^a-z])?(nir|near[ _-]?infra[ _-]?red|n)[0-9]?|(.*[^a-z0-9])?(sr_?)?b_?0?8",
}


def rgb_bands(bands: Sequence[str] | None, count: int) -> tuple[tuple[int, int, int], str]:
    """Which of ``count`` bands to show as red, green and blue, and what to call that.

    By name (``red``, ``R``, Sentinel-2's and Landsat-8's ``B4``, …) in any order: the true colours; without all three
    but with near infrared, (nir, red, green) as far as there are; of bands named by their wavelength ("650 nm") those
    nearest to 650, 550 and 470 nm; else the first three bands; one band as grey.
    """
    if bands is not None and len(bands) != count:
        raise ValueError(f"{len(bands)} band names ({', '.join(bands)}) for an image of {count} bands.")
    found = {}
    for color, pattern in _BAND_NAMES.items():
        named = [i for i, name in enumerate(bands or ()) if re.fullmatch(pattern, name.strip().lower())]
        if named:
            found[color] = named[0]
    if {"red", "green", "blue"} <= found.keys():
        return (found["red"], found["green"], found["blue"]), "true colour"
    if {"nir", "red", "green"} <= found.keys():
        return (found["nir"], found["red"], found["green"]), "false colour: nir, red, green"
    waves = [re.fullmatch(r"([0-9.]+) ?nm", name.strip()) for name in bands or ()]
    if count >= 3 and all(waves) and waves:
        nm = np.array([float(wave[1]) for wave in waves])
        near = [int(np.abs(nm - wanted).argmin()) for wanted in (650, 550, 470)]
        if all(abs(nm[i] - wanted) <= 30 for i, wanted in zip(near, (650, 550, 470), strict=True)):
            return tuple(near), "true colour"
    if count == 3 and bands is None:
        return (0, 1, 2), "true colour"
    chosen = (0, 1, 2) if count >= 3 else (0, 0, 0)
    names = [bands[i] if bands else f"band {i + 1}" for i in dict.fromkeys(chosen)]
    return chosen, names[0] if len(names) == 1 else "false colour: " + ", ".join(names)


def true_colour(
    image: np.ndarray,
    bands: Sequence[str] | None = None,
    valid: np.ndarray | None = None,
    percent: tuple[float, float] = (2, 98),
) -> np.ndarray:
    """An image (C, H, W) as RGBA uint8 (H, W, 4), each shown band stretched between two percentiles.

    Bands are chosen by :func:`rgb_bands`. Pixels with NaN or infinity in a shown band, or false in ``valid`` (H, W),
    are transparent and count in no percentile; an image without a valid pixel is wholly transparent.
    """
    image = np.asarray(image)
    chosen, _ = rgb_bands(bands, image.shape[0])
    shown = np.stack([image[i] for i in chosen]).astype(np.float32)
    good = np.isfinite(shown).all(0)
    if valid is not None:
        good &= np.asarray(valid, bool)
    rgba = np.zeros((*good.shape, 4), np.uint8)
    if good.any():
        thin = slice(None, None, max(1, int(good.sum()) // 1_000_000))
        for place, band in enumerate(shown):
            low, high = np.percentile(band[good][thin], percent)
            scaled = (band[good] - low) / (high - low) if high > low else np.full(good.sum(), 0.5)
            rgba[good, place] = np.clip(scaled, 0, 1) * 255 + 0.5
        rgba[good, 3] = 255
    return rgba
