"""Pictures: what is drawn is what was given, nothing overlaps, nothing stays open, every file has its text."""

import itertools

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given
from matplotlib import pyplot
from matplotlib.backends.backend_agg import FigureCanvasAgg
from PIL import Image

from hierlab import plot
from hierlab._figure import CLOSE, HATCHES
from hierlab.metrics import TreeMetrics
from hierlab.tree import IGNORE, ClassTree


@pytest.fixture(scope="module")
def tree() -> ClassTree:
    return ClassTree.load("mm5b")


@pytest.fixture(scope="module")
def label(tree) -> np.ndarray:
    """All 18 leaves as stripes of 2 x 36 pixels, and a row without label."""
    label = np.repeat(np.arange(tree.num_leaves, dtype=np.uint8), 2)[None].repeat(30, 0)
    label[0] = IGNORE
    return label


@pytest.fixture(scope="module")
def result(tree, label) -> dict:
    pred = np.where(label == 3, 4, label)  # natural meadow, all of it, mapped as artificial meadow
    pred[0] = 0
    metric = TreeMetrics(tree)
    metric.update(torch.from_numpy(pred)[None], torch.from_numpy(label)[None])
    return metric.compute()


@pytest.fixture(autouse=True)
def nothing_stays_open():
    yield
    assert pyplot.get_fignums() == []


def drawn(figure) -> FigureCanvasAgg:
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return canvas


def legend_names(figure) -> list[str]:
    return [text.get_text() for ax in figure.axes if ax.get_legend() for text in ax.get_legend().get_texts()]


def overlapping(figure, texts) -> list[tuple[str, str]]:
    """Pairs of texts that overlap, and texts that leave the figure."""
    renderer = drawn(figure).get_renderer()
    boxes = [(text.get_text(), text.get_window_extent(renderer)) for text in texts if text.get_text()]
    page = figure.bbox
    outside = [
        (name, "page") for name, b in boxes if b.x0 < -1 or b.y0 < -1 or b.x1 > page.x1 + 1 or b.y1 > page.y1 + 1
    ]
    return outside + [(a, b) for (a, one), (b, two) in itertools.combinations(boxes, 2) if one.overlaps(two)]


# ------------------------------------------------------------------ colours


def test_colour_blind_distance():
    colors = np.array([[0, 0, 0], [255, 255, 255], [119, 119, 119], [200, 0, 0], [0, 150, 0], [0, 0, 200]], np.uint8)
    distance = plot.colour_blind_distance(colors)
    assert (distance == distance.T).all()
    assert (distance.diagonal() == 0).all()
    assert distance[0, 1] == pytest.approx(100, abs=0.1)  # black and white: L* 0 and 100, to every eye
    assert distance[0, 2] == pytest.approx(50, abs=0.2)  # sRGB 119 is the grey of L* 50
    assert distance[3, 4] < CLOSE  # this red and green differ by more than 100 to a normal eye
    assert distance[4, 5] > 40  # green and blue differ to all


@given(st.lists(st.tuples(*[st.integers(0, 255)] * 3), min_size=1, max_size=7), st.randoms(use_true_random=False))
def test_close_colours_get_different_hatches(colors, random):
    colors = np.array(colors, np.uint8)
    weights = [random.random() for _ in colors]
    chosen = plot.hatches(colors, weights)
    distance = plot.colour_blind_distance(colors)
    for i, j in itertools.combinations(range(len(colors)), 2):
        assert chosen[i] != chosen[j] or distance[i, j] >= CLOSE
    assert chosen[int(np.argmax(weights))] == ""  # the largest stays plain
    assert set(chosen) <= set(HATCHES)


@pytest.mark.parametrize(
    ("bands", "expected"),
    [
        (["blue", "green", "red", "near infrared"], ((2, 1, 0), "true colour")),
        (["B", "G", "R", "NIR"], ((2, 1, 0), "true colour")),
        (["B2", "B3", "B4", "B5", "B6", "B7", "B8", "B8A", "B11", "B12"], ((2, 1, 0), "true colour")),
        (["B02", "B03", "B04", "B08"], ((2, 1, 0), "true colour")),
        (["landsat_b2", "landsat_b3", "landsat_b4", "landsat_b5"], ((2, 1, 0), "true colour")),
        (["SR_B4", "SR_B3", "SR_B2"], ((0, 1, 2), "true colour")),
        (["green", "red", "nir"], ((2, 1, 0), "false colour: nir, red, green")),
        (["band 1", "band 2", "band 3", "band 4"], ((0, 1, 2), "false colour: band 1, band 2, band 3")),
        (["VV", "VH"], ((0, 0, 0), "VV")),
        (["dem"], ((0, 0, 0), "dem")),
    ],
)
def test_rgb_bands(bands, expected):
    assert plot.rgb_bands(bands, len(bands)) == expected


def test_rgb_bands_by_wavelength():
    names = [f"{nm:.2f} nm" for nm in range(400, 1000, 20)]
    assert plot.rgb_bands(names, 30) == ((12, 7, 3), "true colour")  # 640, 540 and 460 nm: ties go to the first
    infrared = [f"{nm} nm" for nm in (900, 1600, 2200)]
    assert plot.rgb_bands(infrared, 3)[1].startswith("false colour: 900 nm")


def test_rgb_bands_without_names():
    assert plot.rgb_bands(None, 3) == ((0, 1, 2), "true colour")
    assert plot.rgb_bands(None, 5) == ((0, 1, 2), "false colour: band 1, band 2, band 3")
    with pytest.raises(ValueError, match="2 band names"):
        plot.rgb_bands(["red", "green"], 3)


def test_true_colour():
    image = np.zeros((3, 10, 10), np.float32)
    image[0] = np.arange(100).reshape(10, 10)
    image[1] = 7  # constant: mid grey
    image[2] = 100 - image[0]
    image[2, 0, 0] = np.nan
    valid = np.ones((10, 10), bool)
    valid[9] = False
    rgba = plot.true_colour(image, ["red", "green", "blue"], valid, percent=(0, 100))
    assert rgba.shape == (10, 10, 4)
    assert rgba[0, 0].tolist() == [0, 0, 0, 0]
    assert (rgba[9] == 0).all()
    assert (rgba[..., 3] == 255).sum() == 89
    # red of the valid pixels runs from 1 to 89: 45 is the middle
    assert rgba[4, 5].tolist() == [128, 128, 128, 255]
    assert rgba[8, 9, 0] == 255
    assert rgba[0, 1, 2] == 255
    assert (plot.true_colour(np.full((1, 4, 4), np.nan)) == 0).all()


# ------------------------------------------------------------------ maps


def test_map_figure(tree, label):
    image = np.zeros((30, 36, 3), np.uint8)
    figure = plot.map_figure({"image": image, "reference": label}, tree, source="twin", gsd=4)
    assert [ax.get_title(loc="left") for ax in figure.axes] == ["image", "reference", ""]
    assert legend_names(figure) == [*tree.classes[-1], "no label"]
    shown = figure.axes[1].get_images()[0].get_array()
    assert (shown[5] == tree.colors[-1][label[5]]).all()
    texts = [text.get_text() for ax in figure.axes for text in ax.texts]
    assert texts == ["20 m", "▲ N", "twin"]  # a third of 36 pixels of 4 m is 48 m, rounded down to 1, 2 or 5
    (bar,) = figure.axes[0].lines
    assert np.ptp(bar.get_xdata()) == pytest.approx(20 / 4)
    handles = figure.axes[-1].get_legend().get_patches()
    hatched = {handle.get_hatch() for handle in handles}
    assert len(hatched) > 1
    legend = figure.axes[-1].get_legend().get_texts()
    assert overlapping(figure, [*legend, *figure.axes[0].texts, *figure.axes[1].texts]) == []
    assert "twin" in figure.get_label()
    assert "railway station" in figure.get_label()


def test_aids(tree, label):
    close = np.where(label < 9, 3, 4)  # natural and artificial meadow, which look alike
    plain = plot.map_figure({"a": close}, tree, source="twin", aid=None)
    hatched = plot.map_figure({"a": close}, tree, source="twin")
    numbered = plot.map_figure({"a": close}, tree, source="twin", aid="numbers")
    assert [len(figure.axes[0].collections) for figure in (plain, hatched, numbered)] == [0, 1, 0]
    assert {text.get_text() for text in numbered.axes[0].texts} >= {"3", "4"}
    assert legend_names(numbered) == ["3 natural meadow", "4 artificial meadow"]
    assert hatched.axes[0].get_xlim() == plain.axes[0].get_xlim()


def test_panels_of_one_level_and_of_inner_nodes(tree, label):
    figure = plot.map_figure(
        {"L1": (tree.coarsen(label, 0), "L1"), "inner": np.full((30, 36), tree.label_of("cropland"))},
        tree,
        source="real: Somewhere",
        columns=1,
    )
    assert "vegetation (L1)" in legend_names(figure)
    assert "cropland (L2)" in legend_names(figure)
    assert (figure.axes[1].get_images()[0].get_array() == tree.colors[1][0]).all()


def test_large_arrays_are_thinned_but_keep_their_scale(tree):
    figure = plot.map_figure({"a": np.zeros((2100, 2400), np.uint8)}, tree, source="twin", gsd=10)
    assert figure.axes[0].get_images()[0].get_array().shape == (700, 800, 3)
    assert figure.axes[0].texts[0].get_text() == "5 km"  # a third of 24 km is 8 km
    assert np.ptp(figure.axes[0].lines[0].get_xdata()) == pytest.approx(800 * 5 / 24)


def test_levels_figure(tree, label):
    levels = tree.targets(label)
    image = np.zeros((*label.shape, 4), np.uint8)
    figure = plot.levels_figure(image, {"flat": levels, "BHCCM": levels}, tree, label, source="twin", gsd=1)
    titles = [ax.get_title(loc="left") for ax in figure.axes]
    assert [title for title in titles if title] == ["L1 · 4 classes", "L2 · 9 classes", "L3 · 18 classes", "image"]
    assert [ax.get_ylabel() for ax in figure.axes if ax.get_ylabel()] == ["reference", "flat", "BHCCM"]
    assert set(legend_names(figure)) == {name for level in tree.classes for name in level} | {"no label"}
    texts = [text for ax in figure.axes if ax.get_legend() for text in ax.get_legend().get_texts()]
    assert overlapping(figure, texts) == []
    without = plot.levels_figure(None, levels, tree, source="twin")
    assert len(without.axes) == 6  # three maps, three legends


def test_long_names_are_wrapped():
    corine = ClassTree.load("corine")
    label = np.arange(corine.num_leaves, dtype=np.uint8)[None].repeat(20, 0)
    figure = plot.levels_figure(None, corine.targets(label), corine, source="twin", aid=None)
    texts = [text for ax in figure.axes if ax.get_legend() for text in ax.get_legend().get_texts()]
    assert len(texts) == sum(corine.sizes)
    assert overlapping(figure, texts) == []


@pytest.mark.parametrize(
    ("panels", "options", "message"),
    [
        ({}, {"source": "twin"}, "at least one panel"),
        ({"a": np.zeros((4, 4), int)}, {"source": "Zion"}, '"real: NAME'),
        ({"a": np.zeros((4, 4), int)}, {"source": "twin", "aid": "dots"}, '"hatch", "numbers" or None'),
        ({"a": np.zeros((4, 4, 2))}, {"source": "twin"}, r"Panel 'a' has shape \(4, 4, 2\)"),
        ({"a": np.full((4, 4), 99)}, {"source": "twin"}, "holds 99.*0 to 30"),
        ({"a": (np.full((4, 4), 7), "L1")}, {"source": "twin"}, "holds 7.*0 to 3"),
        ({"a": np.zeros((4, 4))}, {"source": "twin"}, "whole numbers"),
    ],
)
def test_map_errors(tree, panels, options, message):
    with pytest.raises(ValueError, match=message):
        plot.map_figure(panels, tree, **options)


def test_other_errors(tree, label, result):
    with pytest.raises(ValueError, match="needs the class tree"):
        plot.map_figure({"a": label}, source="twin")
    with pytest.raises(ValueError, match=r"'prediction' has shape \(30, 36\)"):
        plot.levels_figure(None, label, tree, source="twin")
    with pytest.raises(ValueError, match="IoU, accuracy, F1"):
        plot.class_bars(result, tree, "Kappa")
    with pytest.raises(ValueError, match="18 classes; the counts of training have shape"):
        plot.shares_figure({"training": [1, 2]}, tree)
    with pytest.raises(ValueError, match="nothing to draw"):
        plot.history_figure([{"step": 1, "lr": 0.1}])


# ------------------------------------------------------------------ charts


def test_confusion_figure(tree, result):
    figure = plot.confusion_figure(result, tree)
    (ax,) = figure.axes
    cells = ax.get_images()[0].get_array()
    assert cells[3, 4] == 100
    assert cells[3, 3] == 0
    assert cells[0, 0] == 100
    assert "natural meadow mapped as artificial meadow, 100% of its pixels" in figure.get_label()
    assert "L3 · OA 0.944" in ax.get_title(loc="left")  # 17 of 18 classes, all of one size
    assert overlapping(figure, [*ax.get_xticklabels(), *ax.get_yticklabels()]) == []
    assert plot.confusion_figure(result, tree, "L1").axes[0].get_images()[0].get_array().shape == (4, 4)


def test_class_bars(tree, result):
    figure = plot.class_bars(result, tree)
    assert [len(ax.patches) for ax in figure.axes] == list(tree.sizes)
    widths = [bar.get_width() for bar in figure.axes[2].patches]
    assert widths == pytest.approx(result["levels"][2]["IoU"].tolist())
    assert figure.axes[2].get_title(loc="left") == f"L3 · mIoU {result['levels'][2]['mIoU']:.3f}"
    labels = [text for ax in figure.axes for text in ax.get_yticklabels()]
    assert overlapping(figure, labels) == []

    both = plot.class_bars({"one": result, "two": result}, tree, "F1", levels=["L2"])
    (ax,) = both.axes
    markers = [line for line in ax.lines if line.get_linestyle() == "None"]
    assert [line.get_xdata().tolist() for line in markers] == [result["levels"][1]["F1"].tolist()] * 2
    assert [text.get_text() for text in both.legends[0].get_texts()] == ["one", "two"]


def test_measures_without_value(tree, label):
    metric = TreeMetrics(tree)
    metric.update(torch.zeros(1, 2, 2, dtype=torch.long), torch.zeros(1, 2, 2, dtype=torch.long))
    figure = plot.class_bars(metric.compute(), tree)
    assert sum(bar.get_width() > 0 for bar in figure.axes[2].patches) == 1
    drawn(plot.confusion_figure(metric.compute(), tree))
    from_json = {"levels": [{"level": "L1", "IoU": [None, 0.5, 1, None], "mIoU": None}]}
    assert "nan" in plot.class_bars(from_json, tree, levels=[0]).axes[0].get_title(loc="left")


def test_shares_figure(tree):
    counts = np.zeros(18)
    counts[[0, 2]] = 25, 75
    figure = plot.shares_figure(counts, tree)
    assert [bar.get_width() for bar in figure.axes[0].patches][:3] == [25, 0, 75]
    assert "forest 75%, paddy field 25%" in figure.get_label()
    two = plot.shares_figure({"training": counts, "validation": counts[::-1]}, tree)
    assert np.isnan(two.axes[0].lines[0].get_xdata()).sum() == 16
    drawn(two)
    drawn(plot.shares_figure(np.zeros(18), tree))


def test_history_figure(result):
    history = [
        {"step": step, "loss": 3 / step, "hce": 2 / step, "lr": 0.1, "images_per_second": 9.0} for step in range(1, 121)
    ]
    history.insert(60, {"step": 60, "validation": result})
    history.append({"step": 120, "validation": result | {"hF": None}})
    figure = plot.history_figure(history)
    losses, measures = figure.axes
    named = {line.get_label(): line for line in losses.lines if not line.get_label().startswith("_")}
    assert list(named) == ["loss", "hce"]
    assert losses.lines[0].get_ydata()[:2].tolist() == [3, 1.5]  # the values, below their running mean
    assert named["loss"].get_ydata()[0] == pytest.approx(np.mean([3, 3 / 2]))  # 4 around each, 2 at the start
    assert [line.get_label() for line in measures.lines] == ["mIoU L1", "mIoU L2", "mIoU L3", "hF"]
    assert measures.lines[2].get_xdata().tolist() == [60, 120]
    drawn(figure)


def test_diagram_figure():
    boxes = {"in": (0, 2, "input", "none"), "long": (0, 1, "a rather long name\nof two lines"), "out": (1.5, 0, "out")}
    figure = plot.diagram_figure(boxes, [("in", "long"), ("long", "out", "scores", 0.2)], title="Wiring")
    drawn(figure)
    renderer = FigureCanvasAgg(figure).get_renderer()
    texts = {text.get_text(): text for text in figure.axes[0].texts}
    assert {"Wiring", "scores", *(box[2] for box in boxes.values())} <= set(texts)
    frame = figure.bbox
    for text in texts.values():
        extent = text.get_window_extent(renderer)
        assert frame.x0 <= extent.x0 and extent.x1 <= frame.x1 and frame.y0 <= extent.y0 and extent.y1 <= frame.y1
    assert figure.get_label() == "Wiring: in to long, long to out."
    with pytest.raises(ValueError, match="names 'nowhere'; the boxes are in, long, out"):
        plot.diagram_figure(boxes, [("in", "nowhere")])


# ------------------------------------------------------------------ files


def test_save(tree, label, tmp_path):
    figure = plot.map_figure({"reference": label}, tree, source="twin")
    plot.save(figure, tmp_path / "deep" / "map.png", dpi=50)
    plot.save(figure, tmp_path / "again.png", alt="Two words.", dpi=50)
    plot.save(figure, tmp_path / "same.png", alt="Two words.", dpi=50)
    with Image.open(tmp_path / "deep" / "map.png") as image:
        assert image.text["Description"] == figure.get_label()
        assert image.size[0] == int(figure.get_figwidth() * 50)
    assert (tmp_path / "again.png").read_bytes() == (tmp_path / "same.png").read_bytes()
    data, metadata = figure._repr_png_()
    assert data.startswith(b"\x89PNG")
    assert metadata == {"alt": figure.get_label()}

    with pytest.raises(ValueError, match="alternative text"):
        plot.save(plot.Picture(), tmp_path / "none.png")
    with pytest.raises(ValueError, match=r"\.png"):
        plot.save(figure, tmp_path / "map.jpg")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["again.png", "deep", "same.png"]
