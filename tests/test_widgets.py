"""Classroom widgets: the picture follows the sliders and agrees with the library; maps carry their pixels."""

import base64
import io

import hypothesis.strategies as st
import numpy as np
import pytest
import rasterio
import torch
from affine import Affine
from hypothesis import given, settings
from PIL import Image

from hierlab import widgets
from hierlab._figure import png
from hierlab.tree import IGNORE, RULES, ClassTree

UTM = {"transform": Affine(10, 0, 500_000, 0, -10, 4_000_000), "crs": "EPSG:32612"}


@pytest.fixture(scope="module")
def tree() -> ClassTree:
    """2/3/5 classes of MM-5B."""
    return ClassTree.load("mm5b").subset([0, 1, 2, 5, 6])


# two L1 classes, three L2, five L3: each level on its own says vegetation, water, lake; the rules differ
LOGITS = [[1.0, 0.5], [0.0, 0.2, 0.3], [0.1, 0.0, -0.2, 0.1, 2.0]]


def decoded(tree: ClassTree, logits, rule: str) -> str:
    pixel = [torch.tensor(level).view(1, -1, 1, 1) for level in logits]
    path = tree.decode(pixel, rule)[0, :, 0, 0].tolist()
    return " › ".join(names[index] for names, index in zip(tree.classes, path, strict=True))


@settings(max_examples=8)
@given(st.lists(st.floats(-6, 6, width=32), min_size=10, max_size=10), st.sampled_from(RULES))
def test_figure_equals_decode(values, rule):
    tree = ClassTree.load("mm5b").subset([0, 1, 2, 5, 6])
    logits = [values[:2], values[2:5], values[5:]]
    figure = widgets.decoding_figure(tree, logits, rule)
    assert f"decoded with {rule}: {decoded(tree, logits, rule)} " in figure.get_label()
    for ax, each in zip(figure.axes[1:], RULES, strict=True):
        weights = [text.get_fontweight() for text in ax.texts]
        row = weights.index("bold")
        path = " › ".join(names[i] for names, i in zip(tree.classes, tree.paths[row].tolist(), strict=True))
        assert path == decoded(tree, logits, each)
        lengths = [bar.get_width() for bar in ax.patches]
        assert lengths[row] == pytest.approx(max(lengths), rel=1e-5)


def test_scores_by_hand(tree):
    # paths: paddy, dry, forest, river, lake; σ(1) = .7311, σ(.5) = .6225, σ(.3) = .5744, σ(2) = .8808
    scores = widgets.path_scores(tree, LOGITS, "sigmoid")
    assert scores[4].item() == pytest.approx(0.6225 + 0.5744 + 0.8808, abs=1e-4)
    assert scores.argmax() == 4
    # log-softmax: L1 -ln(1 + e^-.5) = -.4741 for vegetation
    assert widgets.path_scores(tree, [[1, 0.5], [0, 0, 0], [0] * 5], "log_softmax")[0].item() == pytest.approx(
        -0.4741 - np.log(3) - np.log(5), abs=1e-4
    )


def test_figure_says_when_levels_disagree(tree):
    figure = widgets.decoding_figure(tree, LOGITS)
    assert "each level on its own: vegetation › water › lake   (not a valid path)" in figure.get_label()
    agreeing = widgets.decoding_figure(tree, [[2, 0], [2, 0, 0], [2, 0, 0, 0, 0]])
    assert "paddy field   (a valid path)" in agreeing.get_label()
    assert "the two rules agree" in agreeing.get_label()
    with pytest.raises(ValueError, match=r"takes \(2, 3, 5\) logits"):
        widgets.decoding_figure(tree, LOGITS[:2])
    with pytest.raises(ValueError, match="sigmoid, log_softmax"):
        widgets.decoding_figure(tree, LOGITS, "softmax")


def test_explorer_redraws(tree):
    explorer = widgets.explore_decoding(tree, LOGITS)
    assert [len(level) for level in explorer.sliders] == [2, 3, 5]
    assert [slider.description for slider in explorer.sliders[0]] == ["vegetation", "water"]

    def expected():
        values = [[slider.value for slider in level] for level in explorer.sliders]
        return png(widgets.decoding_figure(tree, values, explorer.rule.value), dpi=110)

    assert explorer.picture.value == expected()
    pictures = [explorer.picture.value]
    explorer.sliders[2][0].value = 5.0
    pictures.append(explorer.picture.value)
    explorer.rule.value = "log_softmax"
    pictures.append(explorer.picture.value)
    assert len(set(pictures)) == 3
    assert pictures[-1] == expected()


def test_explorer_starts_where_the_rules_differ(tree):
    explorer = widgets.explore_decoding(tree)
    logits = [[slider.value for slider in level] for level in explorer.sliders]
    assert decoded(tree, logits, "sigmoid") != decoded(tree, logits, "log_softmax")
    with pytest.raises(ValueError, match=r"31 classes, too many .* tree\.subset"):
        widgets.explore_decoding(ClassTree.load("mm5b"))


# ------------------------------------------------------------------ maps


def pixels(layer) -> np.ndarray:
    head, data = layer.url.split(",")
    assert head == "data:image/png;base64"
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))


def test_overlay_lies_where_the_raster_does():
    image = np.full((60, 40, 3), (10, 20, 30), np.uint8)
    layer = widgets.overlay(image, **UTM, name="here")
    (south, west), (north, east) = layer.bounds
    # 500 km east in UTM is the zone's central meridian, 111 degrees west
    assert west == pytest.approx(-111, abs=1e-4)
    assert east - west == pytest.approx(400 / (111_320 * np.cos(np.radians(36.1))), rel=0.03)
    assert north - south == pytest.approx(600 / 111_000, rel=0.03)
    shown = pixels(layer)
    assert shown[30, 20].tolist() == [10, 20, 30, 255]
    assert set(shown[..., 3].flat) <= {0, 255}
    assert layer.name == "here"


def test_overlay_of_labels(tree):
    label = np.zeros((50, 50), np.uint8)
    label[:, 25:] = 3
    label[:10] = IGNORE
    shown = pixels(widgets.overlay(label, tree=tree, **UTM))
    assert shown[40, 10].tolist() == [*tree.colors[-1][0], 255]
    assert shown[40, 40].tolist() == [*tree.colors[-1][3], 255]
    assert (shown[2] == 0).all()
    first = pixels(widgets.overlay((label > 0).astype(np.uint8), tree=tree, level="L1", **UTM))
    assert first[40, 40].tolist() == [*tree.colors[0][1], 255]


def test_large_rasters_are_thinned():
    layer = widgets.overlay(np.zeros((300, 200, 4), np.uint8), **UTM, size=100)
    assert max(pixels(layer).shape) <= 105
    (south, _), (north, _) = layer.bounds
    assert north - south == pytest.approx(3000 / 111_000, rel=0.03)


def test_maps(tree, tmp_path):
    import leafmap
    from ipyleaflet import ImageOverlay, SplitMapControl, TileLayer, WidgetControl

    path = tmp_path / "scene.tif"
    profile = {"driver": "GTiff", "width": 40, "height": 60, "count": 3, "dtype": "uint16", "nodata": 0, **UTM}
    with rasterio.open(path, "w", **profile) as file:
        file.write(np.random.default_rng(0).integers(1, 999, (3, 60, 40)).astype(np.uint16))
        file.descriptions = ("red", "green", "blue")
    label = np.zeros((60, 40), np.uint8)

    view = widgets.raster_map(path)
    assert isinstance(view, leafmap.Map)
    assert [type(layer) for layer in view.layers] == [TileLayer, ImageOverlay]
    (south, west), (north, east) = view.layers[1].bounds
    assert south < view.center[0] < north
    assert west < view.center[1] < east
    across = 256 * 2**view.zoom * (east - west) / 360
    assert 100 < across <= 700

    offline = widgets.raster_map(label, tree=tree, basemap=False, **UTM)
    assert [type(layer) for layer in offline.layers] == [ImageOverlay]
    (legend,) = [control for control in offline.controls if isinstance(control, WidgetControl)]
    assert tree.classes[-1][0] in legend.widget.value
    assert tree.classes[-1][1] not in legend.widget.value

    both = widgets.compare_maps(path, widgets.overlay(label, tree=tree, **UTM), basemap=False)
    (split,) = [control for control in both.controls if isinstance(control, SplitMapControl)]
    assert split.left_layer.pane != split.right_layer.pane
    assert set(both.panes) == {split.left_layer.pane, split.right_layer.pane}


@pytest.mark.parametrize(
    ("array", "options", "message"),
    [
        (np.zeros((4, 4, 3), np.uint8), {}, "give its `transform` and `crs`"),
        (np.zeros((4, 4, 3)), UTM, r"got float64 of shape \(4, 4, 3\)"),
        (np.zeros((4, 4), np.uint8), UTM, "and no tree"),
    ],
)
def test_map_errors(array, options, message):
    with pytest.raises(ValueError, match=message):
        widgets.overlay(array, **options)


def test_unknown_labels(tree):
    with pytest.raises(ValueError, match=r"hold \[77\]; the tree 'mm5b' has 0 to 9"):
        widgets.overlay(np.full((4, 4), 77, np.uint8), tree=tree, **UTM)
