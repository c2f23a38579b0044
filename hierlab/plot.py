"""Pictures of maps and results: labelled, to scale, stamped "twin" or "real", readable without colour vision.

No function shows anything or keeps a figure open: each returns one, which a notebook cell displays and :func:`save`
writes. Each figure carries a sentence about itself (``figure.get_label()``), its alternative text.
Shapes: C bands, L levels, K_l classes of level l, H W pixels; row 0 is the northern edge.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.transforms import ScaledTranslation

from ._figure import Picture, colour_blind_distance, hatches, picture, rgb_bands, save, styled, text_width, true_colour
from ._maps import levels_figure, map_figure
from .tree import ClassTree

__all__ = [
    "SERIES",
    "Picture",
    "class_bars",
    "colour_blind_distance",
    "confusion_figure",
    "diagram_figure",
    "hatches",
    "history_figure",
    "levels_figure",
    "map_figure",
    "picture",
    "rgb_bands",
    "save",
    "shares_figure",
    "styled",
    "true_colour",
]

# Okabe and Ito's colours for series that are not classes, each with a marker of its own
SERIES = (("#0072B2", "o"), ("#D55E00", "s"), ("#009E73", "^"), ("#CC79A7", "D"), ("#E69F00", "v"), ("#56B4E9", "P"))
NOT_LOSSES = ("step", "lr", "images_per_second", "gradient_norm")
NAMES = {"IoU": "mIoU", "accuracy": "mAcc", "F1": "mF1"}  # measure of a class -> its mean


@styled
def confusion_figure(result: dict, tree: ClassTree, level: int | str = -1) -> Picture:
    """The confusion matrix of one level of ``TreeMetrics.compute()``: rows true, columns predicted, % of the row.

    Lines part classes of different parents; a row without pixels is left blank.
    """
    index = tree.level_index(level)
    counts = np.asarray(result["levels"][index]["confusion"], float)
    support = np.asarray(result["levels"][index]["support"], float)[:, None]
    percent = np.divide(100 * counts, support, out=np.full_like(counts, np.nan), where=support > 0)
    names, size = tree.classes[index], tree.sizes[index]
    cell = 0.34 if size <= 20 else 0.24
    margin = 0.6 + text_width(names)
    figure = picture(size * cell + margin, size * cell + margin + 0.25)
    ax = figure.add_subplot()
    ax.imshow(percent, cmap="Blues", vmin=0, vmax=100)
    ax.spines[:].set_visible(False)
    ax.set_xticks(range(size), names, rotation=90)
    ax.set_yticks(range(size), names)
    ax.tick_params(length=0, pad=11)
    ax.set(xlabel="predicted class", ylabel="true class, % of its pixels")
    for axis, shift in (("x", (0, -6 / 72)), ("y", (-6 / 72, 0))):
        frame = ax.get_xaxis_transform() if axis == "x" else ax.get_yaxis_transform()
        frame = frame + ScaledTranslation(*shift, figure.dpi_scale_trans)
        for place, color in enumerate(tree.colors[index] / 255):
            x, y = (place, 0) if axis == "x" else (0, place)
            ax.plot(x, y, "s", color=color, ms=6, mec="0.4", mew=0.4, transform=frame, clip_on=False)
    ax.set(xlim=(-0.5, size - 0.5), ylim=(size - 0.5, -0.5))
    if index:
        parents = [tree.nodes[index][i].parents for i in range(size)]
        for place in (i for i in range(1, size) if parents[i] != parents[i - 1]):
            ax.axhline(place - 0.5, color="0.55", linewidth=0.7)
            ax.axvline(place - 0.5, color="0.55", linewidth=0.7)
    if size <= 24:
        for (row, column), value in np.ndenumerate(percent):
            if value >= 0.5:
                ink = "white" if value > 55 else "0.15"
                ax.text(column, row, f"{value:.0f}", ha="center", va="center", fontsize=7, color=ink)
    ax.set_title(f"{tree.level_names[index]} · OA {_number(result['levels'][index]['OA']):.3f}")
    worst = np.where(np.eye(size, dtype=bool), 0, np.nan_to_num(percent))
    row, column = np.unravel_index(worst.argmax(), worst.shape)
    figure.set_label(
        f"Confusion matrix of the {size} classes of {tree.level_names[index]}; the most frequent confusion is "
        f"{names[row]} mapped as {names[column]}, {worst[row, column]:.0f}% of its pixels."
    )
    return figure


@styled
def class_bars(
    results: dict | Mapping[str, dict],
    tree: ClassTree,
    measure: str = "IoU",
    levels: Sequence[int | str] | None = None,
) -> Picture:
    """A measure of every class (``IoU``, ``accuracy`` or ``F1``), a column a level, with the mean over classes.

    ``results``: one ``TreeMetrics.compute()``, drawn as bars in the classes' colours, or {name: result}, drawn as
    one marker a name. A class without a value has an empty row.
    """
    if measure not in NAMES:
        raise ValueError(f"The measure is one of {', '.join(NAMES)}; got {measure!r}.")
    results = {"": results} if "levels" in results else dict(results)
    chosen = [tree.level_index(level) for level in (range(tree.depth) if levels is None else levels)]
    values = {
        index: {name: np.asarray(result["levels"][index][measure], float) for name, result in results.items()}
        for index in chosen
    }
    figure, axes = _row_axes(tree, chosen, bool(len(results) > 1))
    for ax, index in zip(axes, chosen, strict=True):
        _rows(ax, tree, index, values[index], "{:.2f}")
        means = {name: _number(result["levels"][index][NAMES[measure]]) for name, result in results.items()}
        for (color, _), mean in zip(SERIES, means.values(), strict=False):
            ax.axvline(mean, color=color if len(results) > 1 else "0.35", linestyle=(0, (3, 2)), linewidth=0.9)
        said = [f"{mean:.3f}" for mean in means.values()]
        said = [", ".join(said[n : n + 3]) for n in range(0, len(said), 3)]  # more would run into the next column
        ax.set_title(f"{tree.level_names[index]} · {NAMES[measure]} " + ",\n".join(said))
        ax.set(xlim=(0, 1), xlabel=measure)
    _series_legend(figure, axes[-1], list(results))
    means = [
        f"{tree.level_names[i]} {_number(results[name]['levels'][i][NAMES[measure]]):.3f}"
        for name in results
        for i in chosen
    ]
    figure.set_label(f"{measure} of every class; mean {', '.join(means)}.")
    return figure


@styled
def shares_figure(
    shares: Mapping[str, Sequence[float]] | Sequence[float], tree: ClassTree, level: int | str = -1
) -> Picture:
    """The share of every class of one level in percent of the labelled pixels, on a logarithmic axis.

    ``shares``: pixel counts (or shares) (K_l), drawn as bars, or {name: counts}, one marker a name ("training",
    "validation"). A class without pixels has an empty row.
    """
    index = tree.level_index(level)
    shares = dict(shares) if isinstance(shares, Mapping) else {"": shares}
    percent = {}
    for name, counts in shares.items():
        counts = np.asarray(counts, float)
        if counts.shape != (tree.sizes[index],):
            raise ValueError(
                f"{tree.level_names[index]} of the tree '{tree.name}' has {tree.sizes[index]} classes; the counts "
                f"{f'of {name} ' if name else ''}have shape {counts.shape}."
            )
        with np.errstate(invalid="ignore"):
            percent[name] = np.where(counts > 0, 100 * counts / counts.sum(), np.nan)
    figure, (ax,) = _row_axes(tree, [index], len(shares) > 1, wide=4.2)
    low = min((np.nanmin(p) for p in percent.values() if not np.isnan(p).all()), default=1.0)
    ax.set(xscale="log", xlim=(10 ** math.floor(math.log10(low / 1.5)), 100), xlabel="% of the labelled pixels")
    _rows(ax, tree, index, percent, "{:.2g}")
    ax.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    ax.set_title(f"{tree.level_names[index]} · share of each class")
    _series_legend(figure, ax, list(shares))
    name, first = next(iter(percent.items()))
    order = np.argsort(-np.nan_to_num(first))[:3]
    largest = ", ".join(f"{tree.classes[index][i]} {first[i]:.2g}%" for i in order if first[i] > 0)
    figure.set_label(
        f"Share of each class of {tree.level_names[index]}{f' ({name})' if name else ''}; most: {largest}."
    )
    return figure


@styled
def history_figure(history: Sequence[Mapping]) -> Picture:
    """The course of a training run: the loss and its parts on the left, the validation's measures on the right.

    ``history``: the lines of :func:`hierlab.train.fit`, each a dict with ``step``: either ``loss`` and its parts, or
    ``validation``, a result of ``TreeMetrics.compute()``, of which the mIoU of every level and hF are drawn. Of more
    than 100 losses a running mean is drawn over the values. Raises ValueError when there is neither.
    """
    curves: dict[str, dict[str, list[tuple[float, float]]]] = {"loss": {}, "validation": {}}
    for line in history:
        points = {}
        if "loss" in line:
            points = {key: value for key, value in line.items() if key not in NOT_LOSSES}
        for key, value in points.items():
            curves["loss"].setdefault(key, []).append((line["step"], value))
        if "validation" in line:
            result = line["validation"]
            points = {f"mIoU {level['level']}": level["mIoU"] for level in result["levels"]} | {"hF": result["hF"]}
            for key, value in points.items():
                curves["validation"].setdefault(key, []).append((line["step"], _number(value)))
    curves = {title: group for title, group in curves.items() if group}
    if not curves:
        raise ValueError('The history has nothing to draw: no line has "loss" or "validation".')
    figure = picture(5.0 * len(curves), 2.7)
    for ax, (title, group) in zip(figure.subplots(1, len(curves), squeeze=False)[0], curves.items(), strict=True):
        for place, (key, points) in enumerate(sorted(group.items(), key=lambda item: item[0] != "loss")):
            color, marker = SERIES[place % len(SERIES)]
            steps, values = np.array(points, float).T
            many = len(steps) > 100
            if many:
                ax.plot(steps, values, color=color, linewidth=0.5, alpha=0.25)
                values = _running_mean(values, len(steps) // 25)
            dots = {"marker": marker, "markersize": 3.5} if len(steps) <= 25 else {}
            ax.plot(steps, values, color=color, linewidth=1.4, label=key, **dots)
        ax.set(title=title, xlabel="step", xlim=(0, None))
        if title == "validation":
            ax.set_ylim(0, 1)
        ax.grid(axis="y")
        ax.legend(loc="upper left", bbox_to_anchor=(1.01, 1), borderaxespad=0, handlelength=1.6)
    ends = ", ".join(f"{key} {points[-1][1]:.3g}" for group in curves.values() for key, points in group.items())
    figure.set_label(f"Course of the training; at the end {ends}.")
    return figure


@styled
def diagram_figure(
    boxes: Mapping[str, tuple],
    arrows: Sequence[tuple],
    *,
    title: str | None = None,
    alt: str | None = None,
) -> Picture:
    """Boxes joined by arrows: how the parts of a module are wired.

    ``boxes``: {name: (x, y, text)} or (x, y, text, colour); x and y place the middle, in inches, y upwards; a text
    without frame has the colour "none". ``arrows``: (from, to), (from, to, text) or (from, to, text, bend), names of
    boxes, with a text beside the middle and a bend from -1 (to the left) to 1.

    Raises ValueError for an arrow from or to a box that there is not.
    """
    if unknown := sorted({name for arrow in arrows for name in arrow[:2]} - set(boxes)):
        raise ValueError(f"An arrow names '{unknown[0]}'; the boxes are {', '.join(boxes)}.")
    lines = {name: box[2].split("\n") for name, box in boxes.items()}
    half = {name: (text_width(lines[name]) / 2 + 0.12, 0.075 * len(lines[name]) + 0.1) for name in boxes}
    west, east = (f(box[0] + s * half[name][0] for name, box in boxes.items()) for f, s in ((min, -1), (max, 1)))
    south, north = (f(box[1] + s * half[name][1] for name, box in boxes.items()) for f, s in ((min, -1), (max, 1)))
    north += 0.3 if title else 0.0
    figure = picture(east - west + 0.2, north - south + 0.2, layout=None)
    ax = figure.add_axes((0, 0, 1, 1), xlim=(west - 0.1, east + 0.1), ylim=(south - 0.1, north + 0.1))
    ax.set_axis_off()
    if title:
        ax.text(west, north - 0.05, title, ha="left", va="center", fontsize=9.5, fontweight="bold")
    drawn = {}
    for name, (x, y, text, *color) in boxes.items():
        face = color[0] if color else "white"
        frame = {"boxstyle": "round,pad=0.35", "facecolor": face, "edgecolor": "none" if face == "none" else "0.35"}
        drawn[name] = ax.text(x, y, text, ha="center", va="center", fontsize=8, linespacing=1.25, bbox=frame, zorder=2)
    for begin, end, *more in arrows:
        text, bend = [*more, "", 0.0][:2] if len(more) < 2 else more
        style = {
            "arrowstyle": "-|>",
            "mutation_scale": 9,
            "linewidth": 1.1,
            "color": "0.25",
            "shrinkA": 0,
            "shrinkB": 1,
        }
        style |= {"connectionstyle": f"arc3,rad={bend}"}
        style |= {"patchA": drawn[begin].get_bbox_patch(), "patchB": drawn[end].get_bbox_patch()}
        (x0, y0), (x1, y1) = boxes[begin][:2], boxes[end][:2]
        ax.annotate("", (x1, y1), (x0, y0), arrowprops=style, zorder=3)
        if text:
            x, y = (x0 + x1 + bend * (y1 - y0)) / 2, (y0 + y1 - bend * (x1 - x0)) / 2
            frame = {"facecolor": "white", "edgecolor": "none", "pad": 0.8}
            ax.text(x, y, text, ha="center", va="center", fontsize=7.5, color="0.25", bbox=frame, zorder=4)
    wired = ", ".join(f"{begin} to {end}" for begin, end, *_ in arrows)
    figure.set_label(alt or f"{title or 'Diagram'}: {wired}.")
    return figure


def _number(value: float | None) -> float:
    """A measure as a number; None, as JSON files have it, is NaN."""
    return math.nan if value is None else float(value)


def _running_mean(values: np.ndarray, window: int) -> np.ndarray:
    """Mean over ``window`` values around each, fewer at the ends."""
    kernel = np.ones(window)
    return np.convolve(values, kernel, "same") / np.convolve(np.ones_like(values), kernel, "same")


def _row_axes(tree: ClassTree, levels: Sequence[int], legend: bool, wide: float = 2.2) -> tuple[Picture, list[Axes]]:
    """One axes a level with a row a class, all rows of one height, aligned at the top."""
    row, top, bottom, gap = 0.2, 0.3, 0.5 + 0.25 * legend, 0.3
    names = [text_width(tree.classes[index]) + 0.12 for index in levels]
    rows = [tree.sizes[index] + 0.2 for index in levels]
    width, height = sum(names) + (wide + gap) * len(levels), top + row * max(rows) + bottom
    figure = picture(width, height, layout=None)
    axes, left = [], 0.0
    for index, name, count in zip(levels, names, rows, strict=True):
        box = (left + name, height - top - row * count, wide, row * count)
        ax = figure.add_axes((box[0] / width, box[1] / height, box[2] / width, box[3] / height))
        ax.set_ylim(count - 0.6, -0.6)
        ax.set_yticks(range(tree.sizes[index]), tree.classes[index])
        ax.tick_params(axis="y", length=0)
        ax.spines["left"].set_visible(False)
        ax.grid(axis="x")
        axes.append(ax)
        left += name + wide + gap
    return figure, axes


def _rows(ax: Axes, tree: ClassTree, level: int, values: Mapping[str, np.ndarray], text: str) -> None:
    """Bars in the classes' colours for one series, markers joined by a line for several."""
    if len(values) == 1:
        (series,) = values.values()
        colors = tree.colors[level] / 255
        ax.barh(range(len(series)), np.nan_to_num(series), color=colors, edgecolor="0.35", linewidth=0.4, height=0.72)
        for row, value in enumerate(series):
            if np.isfinite(value):
                halo = {"facecolor": "white", "edgecolor": "none", "alpha": 0.75, "pad": 0.6}
                options = {"xytext": (3, 0), "textcoords": "offset points", "va": "center", "fontsize": 7}
                ax.annotate(text.format(value), (value, row), bbox=halo, **options)
        return
    stacked = np.stack(list(values.values()))
    some = np.isfinite(stacked).any(0)
    rows = np.flatnonzero(some)
    ax.hlines(rows, np.nanmin(stacked[:, some], 0), np.nanmax(stacked[:, some], 0), color="0.75", linewidth=1.2)
    for place, series in enumerate(values.values()):
        color, marker = SERIES[place % len(SERIES)]
        ax.plot(series, range(len(series)), marker, color=color, markersize=4.5, markeredgecolor="white", mew=0.4)


def _series_legend(figure: Figure, ax: Axes, names: list[str]) -> None:
    """The names of several series below everything."""
    if len(names) > 1:
        lines = [line for line in ax.get_lines() if line.get_linestyle() == "None"]
        figure.legend(lines, names, loc="lower center", ncols=len(names), handletextpad=0.2, borderaxespad=0.2)
