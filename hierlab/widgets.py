"""Widgets for the classroom: decode a small class tree by hand, and look at rasters on a map.

Every widget has a picture that stands without it: :func:`decoding_figure` beside :func:`explore_decoding`, and
:func:`hierlab.plot.map_figure` beside the maps. Maps carry their rasters inside them (data URIs), so they work in a
static page, without a server; only the background tiles come from the network.
Shapes: L levels, K_l classes of level l, P paths, H W pixels.
"""

from __future__ import annotations

import base64
import html
import io
import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ._figure import Picture, picture, png, styled, text_width, true_colour
from .tree import IGNORE, RULES, ClassTree

SLIDERS = 24  # more logits than this cannot be set by hand
MERCATOR = "EPSG:3857"  # what web maps are drawn in
WIDTH = 700  # pixels of a page, about: what the first view of a map is chosen for
PANES = {"left": {"zIndex": 410}, "right": {"zIndex": 411}}

# ------------------------------------------------------------------ decoding


def path_scores(tree: ClassTree, logits: Sequence[Sequence[float]], rule: str) -> Tensor:
    """The score of every valid path, as :meth:`ClassTree.decode` adds it up: L vectors (K_l) -> (P)."""
    levels = [torch.as_tensor(level, dtype=torch.float32) for level in logits]
    levels = [level.sigmoid() if rule == "sigmoid" else level.log_softmax(0) for level in levels]
    return torch.stack([level[tree.paths[:, index]] for index, level in enumerate(levels)]).sum(0)


@styled
def decoding_figure(tree: ClassTree, logits: Sequence[Sequence[float]], rule: str = "sigmoid") -> Picture:
    """One pixel's logits, the score of every valid path under both rules, and which path ``rule`` chooses.

    ``logits``: a vector (K_l) a level, coarse to fine. Left: the logits, each level's largest filled. Right: the paths;
    for ``sigmoid`` the sum of σ(logit) over the levels, for ``log_softmax`` the product of the levels' softmax
    probabilities, whose logarithm is the score. Below: the classes that each level would have chosen on its own.
    """
    pixel = _pixel(tree, logits)
    chosen = {each: tree.decode(pixel, each)[0, :, 0, 0] for each in RULES}
    if rule not in RULES:
        raise ValueError(f"The decoding rule is one of {', '.join(RULES)}; got {rule!r}.")
    alone = torch.stack([level[0, :, 0, 0].argmax() for level in pixel])
    values = [level[0, :, 0, 0].tolist() for level in pixel]

    names = [name for level in tree.classes for name in level]
    paths = [_path_name(tree, path) for path in tree.paths]
    left, right = text_width(names) + 0.3, text_width(paths) + 0.25
    rows, bar = max(len(names) + tree.depth, len(paths)), 1.5
    width, height = left + right + 3 * bar + 1.15, 0.2 * rows + 1.25
    figure = picture(width, height, layout=None)

    def axes(x: float, number: float):
        size = 0.2 * number
        ax = figure.add_axes((x / width, (height - 0.35 - size) / height, bar / width, size / height))
        ax.set_ylim(number - 0.5, -0.5)
        ax.tick_params(axis="y", length=0)
        ax.spines["left"].set_visible(False)
        return ax

    ax = axes(left, len(names) + tree.depth)
    place, ticks, headings = 0, [], []
    for level, level_values in enumerate(values):
        headings.append(place)
        place += 1
        for index, value in enumerate(level_values):
            best = index == alone[level]
            color = tree.colors[level][index] / 255
            ax.barh(place, value, color=color if best else "white", edgecolor=color * 0.7, linewidth=0.9, height=0.7)
            ticks.append(place)
            place += 1
    ax.set_yticks(ticks + headings, names + list(tree.level_names))
    for label in ax.get_yticklabels()[len(ticks) :]:
        label.set_fontweight("bold")
    ax.axvline(0, color="0.3", linewidth=0.7)
    reach = max(1.0, *(abs(value) for level in values for value in level)) * 1.08
    ax.set(xlim=(-reach, reach), title="logits", xlabel="filled: largest of its level")

    for number, each in enumerate(RULES):
        ax = axes(left + bar + right + 0.25 + number * (bar + 0.35), len(paths))
        scores = path_scores(tree, values, each)
        shown = scores if each == "sigmoid" else scores.exp()
        winner = int((tree.paths == chosen[each]).all(1).nonzero()[0, 0])
        for row, value in enumerate(shown.tolist()):
            color = "#0072B2" if row == winner else "0.82"
            ax.barh(row, value, color=color, height=0.7, alpha=1.0 if each == rule else 0.5)
            text = f"{value:.2f}" if each == "sigmoid" else f"{value:.3f}"
            weight = "bold" if row == winner else "normal"
            ax.annotate(text, (value, row), (3, 0), textcoords="offset points", va="center", fontsize=7, weight=weight)
        ax.set_yticks(range(len(paths)), paths if number == 0 else [""] * len(paths))
        ax.set_xlim(0, tree.depth if each == "sigmoid" else max(1e-9, float(shown.max()) * 1.25))
        ax.set_title(each + (" (chosen)" if each == rule else ""), color="black" if each == rule else "0.5")
        ax.set_xlabel("sum of σ(logit)" if each == "sigmoid" else "product of softmax, exp(score)")

    valid = bool(tree.consistent(alone.view(1, -1, 1, 1)))
    verdict = "a valid path" if valid else "not a valid path"
    other = next(each for each in RULES if each != rule)
    agree = "agree" if chosen[rule].equal(chosen[other]) else "differ"
    lines = [
        f"decoded with {rule}: {_path_name(tree, chosen[rule])}   (the two rules {agree})",
        f"each level on its own: {_path_name(tree, alone)}   ({verdict})",
    ]
    figure.text(0.1 / width, 0.28 / height, lines[0], fontsize=8.5, fontweight="bold", va="bottom")
    figure.text(0.1 / width, 0.1 / height, lines[1], fontsize=8.5, va="bottom", color="0.2" if valid else "#B03000")
    figure.set_label(". ".join(lines) + ".")
    return figure


def explore_decoding(tree: ClassTree, logits: Sequence[Sequence[float]] | None = None, rule: str = "sigmoid"):
    """Sliders for one pixel's logits and a menu for the rule; :func:`decoding_figure` redrawn at every change.

    Starts from ``logits`` (a vector (K_l) a level), by default such that each level on its own leaves the tree and the
    two rules disagree, if such are soon found. Returns an ``ipywidgets.VBox`` whose attributes ``sliders`` (a list a
    level), ``rule`` and ``picture`` are its parts. Raises ValueError for a tree of more than 24 classes in all.
    """
    import ipywidgets

    if sum(tree.sizes) > SLIDERS:
        raise ValueError(
            f"The tree '{tree.name}' has {sum(tree.sizes)} classes, too many for sliders (at most {SLIDERS}); "
            "take some of its leaves: tree.subset([0, 1, 5])."
        )
    logits = _instructive(tree) if logits is None else logits
    _pixel(tree, logits)
    style, wide = {"description_width": "9em"}, ipywidgets.Layout(width="22em")
    sliders = [
        [
            ipywidgets.FloatSlider(
                float(value),
                min=-6,
                max=6,
                step=0.1,
                description=name,
                style=style,
                layout=wide,
                continuous_update=False,
            )
            for name, value in zip(names, level, strict=True)
        ]
        for names, level in zip(tree.classes, logits, strict=True)
    ]
    menu = ipywidgets.Dropdown(options=RULES, value=rule, description="rule", style=style, layout=wide)
    image = ipywidgets.Image(format="png", layout=ipywidgets.Layout(max_width="100%"))

    def redraw(_=None) -> None:
        values = [[slider.value for slider in level] for level in sliders]
        image.value = png(decoding_figure(tree, values, menu.value), dpi=110)

    for slider in (slider for level in sliders for slider in level):
        slider.observe(redraw, "value")
    menu.observe(redraw, "value")
    redraw()
    columns = [
        ipywidgets.VBox([ipywidgets.HTML(f"<b>{html.escape(name)}</b>"), *level])
        for name, level in zip(tree.level_names, sliders, strict=True)
    ]
    box = ipywidgets.VBox([menu, ipywidgets.HBox(columns, layout=ipywidgets.Layout(flex_flow="row wrap")), image])
    box.sliders, box.rule, box.picture = sliders, menu, image
    return box


def _pixel(tree: ClassTree, logits: Sequence[Sequence[float]]) -> list[Tensor]:
    """Vectors of logits as L tensors (1, K_l, 1, 1)."""
    levels = [torch.as_tensor(level, dtype=torch.float32).flatten() for level in logits]
    if tuple(map(len, levels)) != tree.sizes:
        raise ValueError(
            f"The tree '{tree.name}' takes {tree.sizes} logits a level, coarse to fine; got {tuple(map(len, levels))}."
        )
    return [level.view(1, -1, 1, 1) for level in levels]


def _path_name(tree: ClassTree, path: Tensor) -> str:
    return " › ".join(names[index] for names, index in zip(tree.classes, path.tolist(), strict=True))


def _instructive(tree: ClassTree, tries: int = 2000) -> list[list[float]]:
    """Logits whose levels disagree and whose decoding depends on the rule; the last tried when none are found."""
    random = np.random.default_rng(0)
    for _ in range(tries):
        logits = [np.round(random.normal(0, 2, size), 1).clip(-6, 6).tolist() for size in tree.sizes]
        pixel = _pixel(tree, logits)
        alone = torch.stack([level.argmax(1) for level in pixel], 1)
        if not tree.consistent(alone).any() and not tree.decode(pixel, RULES[0]).equal(tree.decode(pixel, RULES[1])):
            break
    return logits


# ------------------------------------------------------------------ maps


def overlay(
    source,
    *,
    tree: ClassTree | None = None,
    level: int | str | None = None,
    transform=None,
    crs=None,
    name: str = "raster",
    size: int = 1024,
    opacity: float = 1.0,
):
    """A raster as an ``ipyleaflet.ImageOverlay`` that carries its pixels: what :func:`raster_map` puts on a map.

    ``source``: the path of an image, or a :class:`hierlab.data.Scene`, shown by :func:`hierlab.plot.true_colour`; or an
    array with ``transform`` and ``crs``: an image (H, W, 3 or 4) uint8, or labels (H, W) of ``tree`` (of one ``level``
    of it, if given; 255 is transparent). At most ``size`` pixels a side are kept, warped to the web's Mercator grid.
    """
    import ipyleaflet

    if isinstance(source, np.ndarray):
        if transform is None or crs is None:
            raise ValueError(
                "An array has no place on a map: give its `transform` and `crs` (scene.transform, scene.crs)."
            )
        step = math.ceil(max(source.shape[:2]) / size)
        rgba = _rgba(source[::step, ::step], tree, level)
        transform = _coarser(transform, step, step)
    else:
        rgba, transform, crs = _scene_rgba(source, size)
    rgba, bounds = _to_mercator(rgba, transform, crs)
    return ipyleaflet.ImageOverlay(url=_data_uri(rgba), bounds=bounds, name=name, opacity=opacity)


def raster_map(source, *, basemap: bool = True, height: int = 460, **options):
    """A leafmap map of one raster: a path, a Scene, an array or an :func:`overlay`.

    ``options`` are those of :func:`overlay`; labels get a legend of their classes. ``height`` in screen pixels; without
    ``basemap`` nothing is fetched from the network. Returns a ``leafmap.Map``.
    """
    layer = _as_overlay(source, options)
    view = _map(layer.bounds, basemap, height)
    view.add(layer)
    _add_legend(view, [source], options)
    return view


def compare_maps(left, right, *, basemap: bool = True, height: int = 460, **options):
    """Two rasters on one map with a slider between them; each side as for :func:`raster_map`.

    ``options`` go to both sides; a side that needs others is given as an :func:`overlay`. Returns a ``leafmap.Map``.
    """
    import ipyleaflet

    layers = [_as_overlay(side, options) for side in (left, right)]
    for layer, pane in zip(layers, PANES, strict=True):
        layer.pane = pane  # the control clips whole panes: in a shared one the left raster would vanish
    view = _map(layers[0].bounds, basemap, height)
    view.panes = PANES
    view.add(ipyleaflet.SplitMapControl(left_layer=layers[0], right_layer=layers[1]))
    _add_legend(view, [left, right], options)
    return view


def _as_overlay(source, options: dict):
    import ipyleaflet

    return source if isinstance(source, ipyleaflet.ImageOverlay) else overlay(source, **options)


def _map(bounds, basemap: bool, height: int):
    """A leafmap map that shows ``bounds`` when it opens, without a kernel's help."""
    import leafmap

    (south, west), (north, east) = bounds
    view = leafmap.Map(
        center=((south + north) / 2, (west + east) / 2),
        zoom=_zoom(bounds, height),
        height=f"{height}px",
        draw_control=False,
        toolbar_control=False,
        fullscreen_control=True,
        scale_control=True,
    )
    if not basemap:
        view.layers = ()
    return view


def _zoom(bounds, height: int) -> int:
    """The closest zoom level at which a page's width and ``height`` pixels hold the bounds."""
    (south, west), (north, east) = bounds
    up = [math.asinh(math.tan(math.radians(latitude))) / (2 * math.pi) for latitude in (south, north)]
    across = max((east - west) / 360, 1e-9)  # of the world's width, which is 256 pixels at zoom 0
    return max(0, min(20, math.floor(math.log2(min(WIDTH / across, height / max(up[1] - up[0], 1e-9)) / 256))))


def _add_legend(view, sources: list, options: dict) -> None:
    """The classes that the label arrays among ``sources`` show, in the lower right corner of a map."""
    import ipyleaflet
    import ipywidgets

    shown = [np.unique(source) for source in sources if isinstance(source, np.ndarray) and source.ndim == 2]
    if not shown:
        return
    names, colors = _labels(options["tree"], options.get("level"))
    rows = [
        f'<div><span style="display:inline-block;width:1em;height:1em;vertical-align:middle;'
        f'background:rgb({",".join(map(str, colors[value]))})"></span> {html.escape(names[value])}</div>'
        for value in np.unique(np.concatenate(shown)).tolist()
        if value != IGNORE
    ]
    style = "background:white;padding:4px 8px;font-size:11px;line-height:1.45;max-height:260px;overflow-y:auto"
    box = ipywidgets.HTML(f'<div style="{style}">{"".join(rows)}</div>')
    view.add(ipyleaflet.WidgetControl(widget=box, position="bottomright"))


def _labels(tree: ClassTree, level: int | str | None) -> tuple[list[str], np.ndarray]:
    """Names and colours of a label array's values: the tree's labels, or the classes of one level."""
    if level is not None:
        index = tree.level_index(level)
        return list(tree.classes[index]), tree.colors[index]
    return list(tree.label_names), np.vstack([tree.colors[-1], *tree.colors[:-1]])


def _rgba(array: np.ndarray, tree: ClassTree | None, level: int | str | None) -> np.ndarray:
    """An image or labels as RGBA uint8 (H, W, 4)."""
    if array.ndim == 3 and array.shape[2] in (3, 4) and array.dtype == np.uint8:
        opaque = np.full((*array.shape[:2], 4 - array.shape[2]), 255, np.uint8)
        return np.concatenate([array, opaque], axis=2)
    if array.ndim != 2 or array.dtype.kind not in "iu" or tree is None:
        raise ValueError(
            f"A map takes an image (H, W, 3 or 4) uint8, as plot.true_colour makes it, or integer labels (H, W) with "
            f"their `tree`; got {array.dtype} of shape {array.shape}{'' if tree else ' and no tree'}."
        )
    names, colors = _labels(tree, level)
    wrong = np.setdiff1d(array, [*range(len(names)), IGNORE])
    if len(wrong):
        raise ValueError(
            f"The labels hold {wrong[:10].tolist()}; the tree '{tree.name}' has 0 to {len(names) - 1} there, "
            f"and {IGNORE} for none."
        )
    palette = np.zeros((IGNORE + 1, 4), np.uint8)
    palette[: len(colors)] = np.column_stack([colors, np.full(len(colors), 255)])
    palette[IGNORE] = 0
    return palette[array]


def _scene_rgba(source, size: int):
    """A path or Scene as RGBA, thinned to at most ``size`` pixels a side, with its transform and CRS."""
    from .data import Scene

    scene = source if isinstance(source, Scene) else Scene.open(source)
    image, valid = scene.thumbnail(size)
    transform = _coarser(scene.transform, scene.width / image.shape[2], scene.height / image.shape[1])
    return true_colour(image, scene.bands, valid), transform, scene.crs


def _coarser(transform, across: float, down: float):
    """The affine transform of a raster whose pixels are so many times as wide and high."""
    a, b, c, d, e, f = tuple(transform)[:6]
    return type(transform)(a * across, b * down, c, d * across, e * down, f)


def _to_mercator(rgba: np.ndarray, transform, crs):
    """RGBA warped (nearest) to the Mercator grid, and its ((south, west), (north, east)) in degrees."""
    from rasterio.transform import array_bounds
    from rasterio.warp import calculate_default_transform, reproject, transform_bounds

    rows, columns = rgba.shape[:2]
    edges = array_bounds(rows, columns, transform)
    target, width, height = calculate_default_transform(crs, MERCATOR, columns, rows, *edges)
    warped = np.zeros((4, height, width), np.uint8)
    reproject(
        np.ascontiguousarray(rgba.transpose(2, 0, 1)),
        warped,
        src_transform=transform,
        src_crs=crs,
        dst_transform=target,
        dst_crs=MERCATOR,
    )
    west, south, east, north = transform_bounds(MERCATOR, "EPSG:4326", *array_bounds(height, width, target))
    return warped.transpose(1, 2, 0), ((south, west), (north, east))


def _data_uri(rgba: np.ndarray) -> str:
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(rgba), "RGBA").save(buffer, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
