"""Maps for :mod:`hierlab.plot`: images and labels in their classes' colours, legend, scale, north, source."""

from __future__ import annotations

import math
import re
import textwrap
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.patheffects import withStroke
from matplotlib.transforms import ScaledTranslation

from ._figure import Picture, hatches, picture, styled, text_width
from .tree import IGNORE, ClassTree

NO_LABEL = np.array([236, 236, 236], np.uint8)
LARGEST = 1000  # pixels a side that a panel shows
AIDS = ("hatch", "numbers", None)
FONT, LINE = 7.5, 0.153  # size of a legend's text in points, height of one of its lines in inches


@styled
def map_figure(
    panels: Mapping[str, np.ndarray | tuple[np.ndarray, int | str]],
    tree: ClassTree | None = None,
    *,
    source: str,
    gsd: float | None = None,
    aid: str | None = "hatch",
    columns: int = 4,
    alt: str | None = None,
) -> Picture:
    """Images and label maps of one area side by side, with one legend, a scale bar, north and the source.

    ``panels``: title -> an image (H, W, 3 or 4), uint8 or float in 0 … 1 (see :func:`true_colour`); or labels of
    ``tree`` (H, W), integers; or (classes (H, W), level). ``source`` is "twin" or "real: NAME of the data". ``gsd``, in
    metres a pixel of the first panel, draws the scale bar. ``aid`` helps where the tree's colours are too close for
    colour-blind eyes: "hatch" marks the smaller of such classes, "numbers" writes every class's index on its largest
    areas and in the legend, None does nothing. At most ``columns`` panels stand in a row.

    Raises ValueError for an empty ``panels``, a panel of another shape, labels that the tree does not have, or a
    ``source`` of another form.
    """
    _check(source, aid)
    if not panels:
        raise ValueError("map_figure needs at least one panel: {title: image or labels}.")
    classes = _Classes(tree, aid)
    shown = {}
    for title, panel in panels.items():
        array, level = panel if isinstance(panel, tuple) else (panel, None)
        array = np.asarray(array)
        if array.ndim == 2:
            classes.note(array, level)
        elif array.ndim != 3 or array.shape[2] not in (3, 4):
            raise ValueError(
                f"Panel '{title}' has shape {array.shape}; an image is (H, W, 3) or (H, W, 4), labels are (H, W)."
            )
        shown[title] = array, level
    classes.settle()

    columns = min(columns, len(shown))
    rows = math.ceil(len(shown) / columns)
    ratio = max(array.shape[0] / array.shape[1] for array, _ in shown.values())
    width = min(3.3 if len(shown) > 1 else 4.6, 10.5 / columns, 4.6 / ratio)
    height = rows * (width * ratio + 0.6)
    handles = classes.handles(2.3)
    legend_columns = math.ceil(_lines(handles) * LINE / max(height - 0.4, 1.0))
    side = legend_columns * _entry_width(handles) + 0.1 if handles else 0.0
    figure = picture(columns * (width + 0.1) + side, height)
    grid = figure.add_gridspec(rows, columns + 1, width_ratios=[width + 0.1] * columns + [side + 0.01])
    for number, (title, (array, level)) in enumerate(shown.items()):
        ax = figure.add_subplot(grid[number // columns, number % columns])
        classes.draw(ax, array, level)
        ax.set_title(title)
        if number == 0:
            _footer(ax, gsd, array.shape)
    _stamp(ax, source)
    if handles:
        _draw_legend(figure.add_subplot(grid[:, -1]), handles, legend_columns, "center left")
    listed = (
        f" Classes shown: {', '.join(handle.get_label().replace(chr(10), ' ') for handle in handles)}."
        if handles
        else ""
    )
    figure.set_label(alt or f"Maps side by side ({source}): {', '.join(panels)}.{listed}")
    return figure


@styled
def levels_figure(
    image: np.ndarray | None,
    pred: np.ndarray | Mapping[str, np.ndarray],
    tree: ClassTree,
    target: np.ndarray | None = None,
    *,
    source: str,
    gsd: float | None = None,
    aid: str | None = "hatch",
    alt: str | None = None,
) -> Picture:
    """The image, then a column a level; a row for the reference and one a prediction; the legends below.

    ``image`` (H, W, 3 or 4) as of :func:`true_colour`, or None; ``pred`` (L, H, W) classes a level, or
    {name: (L, H, W)}; ``target`` (L, H, W) as of ``tree.targets``, or labels (H, W). ``source``, ``gsd``, ``aid`` and
    the errors are those of :func:`map_figure`.
    """
    _check(source, aid)
    maps = dict(pred) if isinstance(pred, Mapping) else {"prediction": pred}
    if target is not None:
        target = np.asarray(target)
        maps = {"reference": tree.targets(target) if target.ndim == 2 else target} | maps
    classes = _Classes(tree, aid)
    for name, levels in maps.items():
        maps[name] = levels = np.asarray(levels)
        if levels.ndim != 3 or len(levels) != tree.depth:
            raise ValueError(
                f"'{name}' has shape {levels.shape}; a map of the tree '{tree.name}' is ({tree.depth}, H, W)."
            )
        for level, plane in enumerate(levels):
            classes.note(plane, level)
    classes.settle()

    first = int(image is not None)
    columns, rows = tree.depth + first, len(maps)
    tall, wide = next(iter(maps.values())).shape[1:]
    width = min(3.1, 11.5 / columns, 4.5 * wide / tall)
    handles = [classes.handles(width - 0.45, [level]) for level in range(tree.depth)]
    legend_columns = [max(1, min(int(width / _entry_width(some)), math.ceil(len(some) / 5))) for some in handles]
    lines = max(math.ceil(_lines(some) / number) for some, number in zip(handles, legend_columns, strict=True))
    heights = [width * tall / wide + 0.1] * rows + [lines * LINE + 0.1]
    figure = picture(columns * (width + 0.1) + 0.25, sum(heights) + 0.55)
    grid = figure.add_gridspec(rows + 1, columns, height_ratios=heights)
    for row, (name, levels) in enumerate(maps.items()):
        for level, plane in enumerate(levels):
            ax = figure.add_subplot(grid[row, level + first])
            classes.draw(ax, plane, level)
            if row == 0:
                ax.set_title(f"{tree.level_names[level]} · {tree.sizes[level]} classes")
            if level == 0:
                ax.set_ylabel(name, fontsize=9.5, fontweight="bold")
                corner = ax
    for level in range(tree.depth):
        ax = figure.add_subplot(grid[rows, level + first])
        _draw_legend(ax, handles[level], legend_columns[level], "upper left")
    if first:
        corner = figure.add_subplot(grid[:rows, 0])
        classes.draw(corner, np.asarray(image), None)
        corner.set_title("image")
    _footer(corner, gsd, (tall, wide))
    _stamp(corner, source)
    figure.set_label(alt or f"Land cover at {tree.depth} levels of detail ({source}): {', '.join(maps)}.")
    return figure


class _Classes:
    """The classes that the label panels of one figure show, each with its colour, hatch and area."""

    def __init__(self, tree: ClassTree | None, aid: str | None):
        self.tree, self.aid = tree, aid
        self.area: dict[tuple[int, int], int] = {}  # (level, class) -> pixels
        self.hatch: dict[tuple[int, int], str] = {}
        self.unlabelled = False

    def nodes(self, level: int | str | None) -> list[tuple[int, int]]:
        """The (level, class) of every value of a panel: classes of one level, or the tree's labels."""
        if self.tree is None:
            raise ValueError("A panel of labels needs the class tree: map_figure(panels, tree, ...).")
        last = self.tree.depth - 1
        levels = [last, *range(last)] if level is None else [self.tree.level_index(level)]
        return [(index, i) for index in levels for i in range(self.tree.sizes[index])]

    def note(self, panel: np.ndarray, level: int | str | None) -> None:
        """Count the classes of a label panel (H, W) and check that the tree has them."""
        nodes = self.nodes(level)
        if panel.dtype.kind not in "iu":
            raise ValueError(f"A panel of labels (H, W) holds whole numbers; got {panel.dtype}.")
        for value, count in zip(*(part.tolist() for part in np.unique(panel, return_counts=True)), strict=True):
            if value == IGNORE:
                self.unlabelled = True
            elif value not in range(len(nodes)):
                raise ValueError(
                    f"A label panel holds {value}; the tree '{self.tree.name}' has 0 to {len(nodes) - 1} there, and "
                    f"{IGNORE} for no label. Give a panel of one level's classes as (array, level)."
                )
            else:
                self.area[nodes[value]] = self.area.get(nodes[value], 0) + count

    def settle(self) -> None:
        """Choose the hatches, level by level: classes of different levels need not differ."""
        for level in range(self.tree.depth) if self.area and self.aid == "hatch" else ():
            nodes = [node for node in sorted(self.area) if node[0] == level]
            colors = self.tree.colors[level][[index for _, index in nodes]]
            self.hatch |= dict(zip(nodes, hatches(colors, [self.area[node] for node in nodes]), strict=True))

    def draw(self, ax: Axes, panel: np.ndarray, level: int | str | None) -> None:
        """An image or a label panel as an axes without ticks, north up."""
        step = _step(panel.shape)
        panel = panel[::step, ::step]
        ax.set(xticks=[], yticks=[], anchor="N")
        ax.spines[:].set_visible(False)
        if panel.ndim == 3:
            ax.imshow(panel, interpolation="antialiased")
            return
        nodes = self.nodes(level)
        palette = np.vstack([self.tree.colors[at][i] for at, i in nodes] + [NO_LABEL])
        ax.imshow(palette[np.where(panel == IGNORE, len(nodes), panel).astype(np.intp)], interpolation="nearest")
        for value in np.unique(panel[panel != IGNORE]).tolist():
            color = palette[value]
            if self.hatch.get(nodes[value]):
                _hatch(ax, panel == value, self.hatch[nodes[value]], _ink(color))
            elif self.aid == "numbers":
                _number(ax, panel == value, nodes[value][1])

    def handles(self, width: float, levels: Sequence[int] | None = None) -> list[Patch]:
        """One patch a class in the tree's order, coarse to fine, then "no label"; names wrapped at ``width`` inches."""
        nodes = [node for node in self.area if levels is None or node[0] in levels]
        several = len({level for level, _ in nodes}) > 1
        patches = []
        for level, index in sorted(nodes):
            color = self.tree.colors[level][index]
            name = f"{index} " * (self.aid == "numbers") + self.tree.classes[level][index]
            name += f" ({self.tree.level_names[level]})" * several
            hatch = self.hatch.get((level, index), "")
            patches.append(
                Patch(facecolor=color / 255, edgecolor=_ink(color), hatch=hatch, lw=0, label=_wrap(name, width))
            )
        if self.unlabelled:
            patches.append(Patch(facecolor=NO_LABEL / 255, lw=0, label="no label"))
        return patches


def _check(source: str, aid: str | None) -> None:
    if source != "twin" and not re.fullmatch(r"real: \S.*", source):
        raise ValueError(f'source is "twin" or "real: NAME of the data"; got {source!r}.')
    if aid not in AIDS:
        raise ValueError(f'aid is "hatch", "numbers" or None; got {aid!r}.')


def _step(shape: tuple[int, ...]) -> int:
    """Show every n-th pixel of so large an array."""
    return math.ceil(max(shape[:2]) / LARGEST)


def _ink(color: np.ndarray) -> tuple[float, float, float, float]:
    """Black or white, half transparent, whichever shows on ``color``."""
    dark = float(np.dot(color, (0.299, 0.587, 0.114))) < 100
    return (1.0, 1.0, 1.0, 0.8) if dark else (0.0, 0.0, 0.0, 0.55)


def _hatch(ax: Axes, mask: np.ndarray, hatch: str, ink: tuple[float, ...]) -> None:
    """Hatch the pixels of ``mask``, up to the edge of the map."""
    fine = max(1, 400 // max(mask.shape))  # so that the corners of large pixels stay square
    mask = np.pad(mask.repeat(fine, 0).repeat(fine, 1), 1, mode="edge")
    y, x = ((np.arange(size) - 0.5) / fine - 0.5 for size in mask.shape)
    limits = ax.get_xlim(), ax.get_ylim()
    filled = ax.contourf(x, y, mask, levels=[0.5, 1.5], colors="none", hatches=[hatch])
    filled.set(edgecolor=ink, linewidth=0)
    ax.set(xlim=limits[0], ylim=limits[1])


def _number(ax: Axes, mask: np.ndarray, number: int) -> None:
    """Write a class's index where it is densest, at most three times and well apart."""
    from scipy.ndimage import uniform_filter

    reach = max(3, round(0.045 * max(mask.shape)))
    density = mask.astype(np.float32)
    for _ in range(2):  # twice, so that the middle of a large area stands out
        density = uniform_filter(density, reach, mode="constant")
    for _ in range(3):
        y, x = np.unravel_index(density.argmax(), density.shape)
        if density[y, x] < 0.7:
            return
        halo = [withStroke(linewidth=1.6, foreground="white")]
        ax.text(x, y, str(number), ha="center", va="center", fontsize=7, path_effects=halo)
        density[max(0, y - 6 * reach) : y + 6 * reach, max(0, x - 6 * reach) : x + 6 * reach] = 0


def _draw_legend(ax: Axes, handles: list[Patch], columns: int, place: str) -> None:
    ax.set_axis_off()
    options = {
        "borderaxespad": 0,
        "borderpad": 0,
        "handlelength": 1.5,
        "handleheight": 1.15,
        "handletextpad": 0.5,
    }
    legend = ax.legend(
        handles=handles,
        ncols=columns,
        loc=place,
        fontsize=FONT,
        labelspacing=0.3,
        columnspacing=1.0,
        **options,
    )
    legend.set_in_layout(False)


def _wrap(name: str, width: float) -> str:
    """Break a name into lines of at most ``width`` inches."""
    share = width / max(text_width([name], FONT), width)
    return "\n".join(textwrap.wrap(name, max(8, int(share * len(name)))))


def _lines(handles: list[Patch]) -> int:
    return sum(handle.get_label().count("\n") + 1 for handle in handles)


def _entry_width(handles: list[Patch]) -> float:
    """Inches that the widest legend entry takes."""
    return 0.33 + text_width((line for handle in handles for line in handle.get_label().split("\n")), FONT)


def _footer(ax: Axes, gsd: float | None, shape: tuple[int, ...]) -> None:
    """Scale bar and north arrow below a panel whose whole array has this shape."""
    shown = ax.get_images()[0].get_array().shape[1]
    metres = (gsd or 0) * shape[1]
    length = _round_length(metres / 3) if gsd else 0
    end = length / metres * shown - 0.5 if gsd else -0.5
    below = ax.get_xaxis_transform()
    text = {"xycoords": below, "textcoords": "offset points", "va": "center", "fontsize": 8}
    if gsd:
        shift = below + ScaledTranslation(0, -9 / 72, ax.figure.dpi_scale_trans)
        bar = Line2D([-0.5, end], [0, 0], transform=shift, color="0.15", lw=2, solid_capstyle="butt", clip_on=False)
        ax.add_artist(bar)
        ax.annotate(f"{length / 1000:g} km" if length >= 1000 else f"{length:g} m", (end, 0), (4, -9), **text)
    ax.annotate("▲ N", (end, 0), (48 if gsd else 0, -9), **text)


def _round_length(metres: float) -> float:
    """The largest of 1, 2, 5 × a power of ten that is at most ``metres``."""
    power = 10.0 ** math.floor(math.log10(metres))
    return next(factor * power for factor in (5, 2, 1) if factor * power <= metres)


def _stamp(ax: Axes, source: str) -> None:
    """Say what the data are, at the lower right below a panel."""
    box = {"boxstyle": "round,pad=0.25", "facecolor": "white", "edgecolor": "0.5", "linewidth": 0.6}
    options = {"xycoords": "axes fraction", "textcoords": "offset points", "ha": "right", "va": "center"}
    ax.annotate(source, (1, 0), (-3, -9), fontsize=7.5, color="0.25", bbox=box, **options)
