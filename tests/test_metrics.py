"""Tree metrics against scikit-learn, against numbers worked out by hand, and against a slow reference."""

import itertools
import math
import pickle
import warnings

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from sklearn.metrics import confusion_matrix, f1_score, jaccard_score, precision_score, recall_score

from hierlab.metrics import SCALARS, TreeMetrics, per_class, summary, table
from hierlab.tree import IGNORE, ClassTree

X = IGNORE


def make_tree(levels: list[dict[str, list[str]]], name: str = "small") -> ClassTree:
    """A tree from, a level, class name -> names of its parents."""
    content = [
        {
            "name": f"L{number}",
            "classes": [
                {"name": cls, "color": "#808080"} | ({"parent": parents} if parents else {})
                for cls, parents in level.items()
            ],
        }
        for number, level in enumerate(levels, 1)
    ]
    return ClassTree.from_dict({"name": name, "levels": content})


@pytest.fixture
def tree() -> ClassTree:
    """L1 vegetation 0, water 1; L2 crop 0, forest 1 (vegetation), river 2, lake 3 (water)."""
    return make_tree(
        [
            {"vegetation": [], "water": []},
            {"crop": ["vegetation"], "forest": ["vegetation"], "river": ["water"], "lake": ["water"]},
        ]
    )


@pytest.fixture
def crops() -> ClassTree:
    """Crop10m in small: the leaf "other" (0) has the paths (0, 0, 0) and (1, 1, 0); rice (1) has (1, 1, 1)."""
    return make_tree(
        [
            {"other": [], "vegetation": []},
            {"other": ["other"], "cropland": ["vegetation"]},
            {"other": ["other", "cropland"], "rice": ["cropland"]},
        ],
        "crops",
    )


def pixels(*rows: tuple[int, ...]) -> torch.Tensor:
    """Pixels given as one tuple of classes each -> (1, L, 1, number of pixels)."""
    return torch.tensor(rows).T[None, :, None]


def measure(tree: ClassTree, pred: torch.Tensor, target: torch.Tensor) -> dict:
    metric = TreeMetrics(tree)
    metric.update(pred, target)
    return metric.compute()


def test_three_by_three_by_hand(tree):
    truth = torch.tensor([[[0, 0, 1], [0, 1, 2], [3, 3, X]]])  # crop crop forest / crop forest river / lake lake -
    level_1 = [[0, 0, 0], [1, 0, 1], [1, 1, 0]]
    level_2 = [[0, 1, 1], [2, 1, 2], [2, 3, 0]]
    # so: right, forest for crop, right / river for crop, right, right / river for lake, right, not counted
    result = measure(tree, torch.tensor([[level_1, level_2]]), truth)

    first, second = result["levels"]
    # L1, true vegetation: 5 pixels, 4 found; true water: 3, all found; 4 predicted as vegetation and 4 as water
    assert first["confusion"].tolist() == [[4, 1], [0, 3]]
    assert first["IoU"].tolist() == [4 / 5, 3 / 4]  # 4 / (4 + 1 + 0), 3 / (3 + 0 + 1)
    assert first["accuracy"].tolist() == [4 / 5, 1.0]
    assert first["precision"].tolist() == [1.0, 3 / 4]
    assert first["F1"].tolist() == pytest.approx([8 / 9, 6 / 7])  # 2 TP / (true + predicted): 8 / (5 + 4), 6 / (3 + 4)
    assert (first["mIoU"], first["mAcc"], first["OA"]) == pytest.approx((0.775, 0.9, 7 / 8))

    # L2, rows crop, forest, river, lake
    assert second["confusion"].tolist() == [[1, 1, 1, 0], [0, 2, 0, 0], [0, 0, 1, 0], [0, 0, 1, 1]]
    assert second["IoU"].tolist() == [1 / 3, 2 / 3, 1 / 3, 1 / 2]
    assert second["accuracy"].tolist() == [1 / 3, 1.0, 1.0, 1 / 2]
    assert (second["mIoU"], second["OA"]) == pytest.approx((11 / 24, 5 / 8))

    # 8 pixels of two nodes each: 16 true, 16 predicted; right are 7 on L1 and 5 on L2
    assert result["hP"] == result["hR"] == result["hF"] == 12 / 16
    # distances: crop-forest 2 (through vegetation), crop-river 4 (through the root), lake-river 2
    assert result["tree_distance"] == 8 / 8
    assert result["mistake_distance"] == pytest.approx(8 / 3)
    assert result["consistency"] == 1.0
    assert result["path_accuracy"] == result["consistent_accuracy"] == 5 / 8
    assert result["pixels"] == first["pixels"] == second["pixels"] == 8


def test_inconsistent_prediction(tree):
    pred = pixels((0, 3), (1, 1), (0, 0))  # vegetation + lake, water + forest: on no path
    truth = pixels((1, 3), (0, 0), (0, 0))  # lake, crop, crop
    result = measure(tree, pred, truth)
    # predicted nodes with ancestors: {vegetation, lake, water}, {water, forest, vegetation}, {vegetation, crop} = 8;
    # true nodes 2 a pixel = 6; common: {water, lake}, {vegetation}, {vegetation, crop} = 5
    assert (result["hP"], result["hR"]) == (5 / 8, 5 / 6)
    assert result["hF"] == pytest.approx(2 * (5 / 8) * (5 / 6) / (5 / 8 + 5 / 6))
    # the path through the predicted leaf: lake-lake 0, forest-crop 2, crop-crop 0
    assert (result["tree_distance"], result["mistake_distance"]) == (2 / 3, 2.0)
    assert result["consistency"] == 1 / 3
    assert result["path_accuracy"] == 1 / 3
    assert result["consistent_accuracy"] == 1.0


def test_leaf_with_two_paths(crops):
    pred = pixels((0, 0, 0), (0, 0, 0), (1, 1, 0), (0, 1, 0))
    truth = pixels((1, 1, 0), (X, X, 0), (1, 1, 1), (1, 1, 0))
    result = measure(crops, pred, truth)
    # 1: "other" is right, its path is not: 3 edges up to the root and 3 down, as a valid path counts as it is
    # 2: only the leaf is known, and either path fits: 0
    # 3: other and rice below cropland: 2
    # 4: (0, 1, 0) is no path; of the two through "other" the nearer is the true one: 0
    assert result["tree_distance"] == (6 + 0 + 2 + 0) / 4
    assert result["mistake_distance"] == (6 + 2) / 2
    assert result["consistency"] == 3 / 4
    # 1: 1 of 3 right; 2: 1 of 1; 3: 2 of 3; 4: "other" has no certain ancestor, "cropland" adds vegetation,
    # so 4 nodes {other1, vegetation, cropland, other3} of which 3 right
    assert result["hP"] == (1 + 1 + 2 + 3) / (3 + 1 + 3 + 4)
    assert result["hR"] == (1 + 1 + 2 + 3) / (3 + 1 + 3 + 3)
    assert result["path_accuracy"] == 1 / 4
    # labels: "other" alone (0) is known on L3 only, as in pixel 2
    assert measure(crops, pixels((0, 0, 0)), torch.tensor([[[0]]]))["levels"][0]["pixels"] == 0


def test_unknown_below_a_level(tree):
    label = torch.tensor([[[tree.label_of("vegetation"), tree.label_of("water"), 2]]])
    pred = pixels((0, 1), (0, 0), (1, 2))
    result = measure(tree, pred, label)
    first, second = result["levels"]
    assert (first["pixels"], second["pixels"]) == (3, 1)
    assert (first["OA"], second["OA"]) == (2 / 3, 1.0)
    # known nodes: 1 + 1 + 2; right: 1 + 0 + 2; the predicted forest and crop are not judged
    assert result["hP"] == result["hR"] == 3 / 4
    # vegetation-vegetation 0, vegetation-water through the root 2, river-river 0
    assert (result["tree_distance"], result["mistake_distance"]) == (2 / 3, 2.0)
    assert result["consistency"] == 1.0


def test_unanswered_levels(tree):
    result = measure(tree, pixels((0, X), (X, 3), (X, X)), pixels((0, 0), (1, 3), (1, 2)))
    first, second = result["levels"]
    assert first["confusion"].tolist() == [[1, 0], [0, 0]]
    assert first["unanswered"].tolist() == [0, 2]
    assert first["accuracy"].tolist() == [1.0, 0.0]  # an unanswered pixel is a miss
    assert second["predicted"].tolist() == [0, 0, 0, 1]
    # predicted {vegetation}, {lake, water}, {}: all right, 3 of 6 true nodes
    assert (result["hP"], result["hR"]) == (1.0, 0.5)
    # vegetation to crop 1 edge, lake 0, root to river 2
    assert result["tree_distance"] == 1.0
    assert result["consistency"] == 1.0


def test_absent_classes(tree):
    # truth crop only; predicted crop and forest: forest has IoU 0 and counts, river and lake have none
    level = measure(tree, pixels((0, 0), (0, 1)), pixels((0, 0), (0, 0)))["levels"][1]
    assert level["IoU"][:2].tolist() == [0.5, 0.0]
    assert level["IoU"][2:].isnan().all()
    assert level["mIoU"] == 0.25
    assert level["mAcc"] == 0.5  # over crop alone
    assert level["accuracy"][1:].isnan().all()


@pytest.mark.parametrize("name", ["mm5b", "corine"])  # corine has too many pairs of paths for a dense table
def test_against_scikit_learn(name):
    tree = ClassTree.load(name)
    generator = torch.Generator().manual_seed(0)
    label = torch.randint(0, len(tree.label_names), (2, 40, 50), generator=generator)
    label[torch.rand(label.shape, generator=generator) < 0.2] = X
    guess = torch.randint(0, tree.num_leaves, label.shape, generator=generator)
    leaf = torch.where((label < tree.num_leaves) & (torch.rand(label.shape, generator=generator) < 0.6), label, guess)
    result = measure(tree, tree.targets(leaf), label)
    target, pred = tree.targets(label), tree.targets(leaf)
    for number, (level, size) in enumerate(zip(result["levels"], tree.sizes, strict=True)):
        known = target[:, number] != X
        y, p = target[:, number][known].numpy(), pred[:, number][known].numpy()
        options = {"labels": range(size), "average": None, "zero_division": np.nan}
        assert (level["confusion"].numpy() == confusion_matrix(y, p, labels=range(size))).all()
        jaccard = jaccard_score(y, p, labels=range(size), average=None, zero_division=0)
        np.testing.assert_allclose(level["IoU"].nan_to_num(0), jaccard)
        np.testing.assert_allclose(level["F1"], f1_score(y, p, **options))
        np.testing.assert_allclose(level["accuracy"], recall_score(y, p, **options))
        np.testing.assert_allclose(level["precision"], precision_score(y, p, **options))
        assert level["OA"] == pytest.approx((y == p).mean())
    weights = [level["pixels"] for level in result["levels"]]
    mean_accuracy = np.average([level["OA"] for level in result["levels"]], weights=weights)
    assert result["hF"] == result["hP"] == pytest.approx(mean_accuracy)


# ------------------------------------------------------------------ a slow reference, pixel by pixel


def reference(tree: ClassTree, pred: list[tuple[int, ...]], truth: list[tuple[int, ...]]) -> dict[str, float]:
    """The hierarchical measures by sets and by walking the tree of path prefixes."""
    paths = [tuple(path) for path in tree.paths.tolist()]

    def closed(classes):
        nodes = {(level, index) for level, index in enumerate(classes) if index != X}
        for level, index in list(nodes):
            for up in range(level):
                above = {path[up] for path in paths if path[level] == index}
                nodes |= {(up, above.pop())} if len(above) == 1 else set()
        return nodes

    def edges(a, b):
        return min(len(a) + len(b) - 2 * c for c in range(min(len(a), len(b)) + 1) if a[:c] == b[:c])

    def fits(path, classes):
        return all(x in (X, y) for x, y in zip(classes, path, strict=False))

    common = predicted = true = distance = mistakes = consistent = exact = both = counted = 0
    for p, t in zip(pred, truth, strict=True):
        known = [level for level, index in enumerate(t) if index != X]
        if not known:
            continue
        counted += 1
        true_nodes = {(level, t[level]) for level in known}
        nodes = {node for node in closed(p) if node[0] in known}
        common, predicted, true = common + len(nodes & true_nodes), predicted + len(nodes), true + len(true_nodes)
        end = known[-1] + 1
        answer = max((level + 1 for level in range(end) if p[level] != X), default=0)
        ends = {path[:answer] for path in paths if fits(path[:answer], p)}
        ends = ends or {path[:answer] for path in paths if path[answer - 1] == p[answer - 1]}
        trues = {path[:end] for path in paths if fits(path, t)}
        away = min(edges(a, b) for a, b in itertools.product(ends, trues))
        on_path, right = any(fits(path, p) for path in paths), all(p[level] == t[level] for level in known)
        distance, mistakes = distance + away, mistakes + (away > 0)
        consistent, exact, both = consistent + on_path, exact + right, both + (on_path and right)

    def ratio(a, b):
        return a / b if b else math.nan

    h_p, h_r = ratio(common, predicted), ratio(common, true)
    return {
        "hP": h_p,
        "hR": h_r,
        "hF": ratio(2 * common, predicted + true),
        "tree_distance": ratio(distance, counted),
        "mistake_distance": ratio(distance, mistakes),
        "consistency": ratio(consistent, counted),
        "path_accuracy": ratio(exact, counted),
        "consistent_accuracy": ratio(both, consistent),
    }


@st.composite
def trees(draw) -> ClassTree:
    """Trees of one to three levels whose classes may have several parents."""
    depth = draw(st.integers(1, 3))
    levels = [{f"0-{index}": [] for index in range(draw(st.integers(1, 3)))}]
    for level in range(1, depth):
        above = list(levels[-1])
        size = draw(st.integers(len(above), 4))
        parents = [draw(st.sets(st.sampled_from(above), max_size=2)) for _ in range(size)]
        for index, parent in enumerate(above):  # so that every class has a child, and every class a parent
            parents[index].add(parent)
        levels.append({f"{level}-{i}": sorted(found or {above[0]}) for i, found in enumerate(parents)})
    return make_tree(levels)


@st.composite
def cases(draw):
    """A tree, predictions (any classes, some unanswered) and targets (valid paths with unknown levels)."""
    tree = draw(trees())
    number = draw(st.integers(1, 6))
    classes = st.tuples(*[st.sampled_from([*range(size), X]) for size in tree.sizes])
    pred = draw(st.lists(classes, min_size=number, max_size=number))
    paths = st.sampled_from(tree.paths.tolist())
    hide = st.lists(st.booleans(), min_size=tree.depth, max_size=tree.depth)
    truth = [tuple(X if hidden else index for index, hidden in zip(draw(paths), draw(hide), strict=True)) for _ in pred]
    return tree, pred, truth


@settings(max_examples=120, deadline=None)
@given(cases())
def test_equals_slow_reference(case):
    tree, pred, truth = case
    result = measure(tree, pixels(*pred), pixels(*truth))
    expected = reference(tree, pred, truth)
    for key in SCALARS:
        assert result[key] == pytest.approx(expected[key], nan_ok=True), key


@settings(max_examples=40, deadline=None)
@given(cases(), st.randoms(use_true_random=False))
def test_properties(case, random):
    tree, pred, truth = case
    result = measure(tree, pixels(*pred), pixels(*truth))
    order = random.sample(range(len(pred)), len(pred))
    shuffled = measure(tree, pixels(*[pred[i] for i in order]), pixels(*[truth[i] for i in order]))
    assert summary(shuffled).equals(summary(result))
    right = measure(tree, pixels(*[tree.paths[i % len(tree.paths)].tolist() for i in order]), pixels(*truth))
    assert right["consistency"] == 1.0 or right["pixels"] == 0
    # for one valid path a pixel the measures of sets agree, and consistency is that of the tree
    full = [tuple(0 if index == X else index for index in row) for row in pred]
    rate = tree.consistent(pixels(*full)).double().mean()
    known = pixels(*[tree.paths[0].tolist()] * len(full))
    assert measure(tree, pixels(*full), known)["consistency"] == pytest.approx(float(rate))


def random_batches(tree, number=3):
    generator = torch.Generator().manual_seed(1)
    for size in range(5, 5 + number):
        pred = torch.stack([torch.randint(0, k, (2, size, 7), generator=generator) for k in tree.sizes], 1)
        yield pred, torch.randint(0, tree.num_leaves, (2, size, 7), generator=generator).to(torch.uint8)


def same(a: dict, b: dict, tree: ClassTree) -> bool:
    return summary(a).equals(summary(b)) and per_class(a, tree).equals(per_class(b, tree))


def test_streaming_merging_resetting(tree):
    batches = list(random_batches(tree))
    whole = TreeMetrics(tree)
    flat = [(pred.flatten(2)[:, :, None], label.flatten(1)[:, None]) for pred, label in batches]
    whole.update(torch.cat([pred for pred, _ in flat], 3), torch.cat([label for _, label in flat], 2))

    streamed = TreeMetrics(tree)
    for pred, label in batches:
        assert streamed(pred, label)["pixels"] == label.numel()  # forward: the batch's own result
    assert same(streamed.compute(), whole.compute(), tree)

    parts = [TreeMetrics(tree) for _ in batches]
    for part, batch in zip(parts, batches, strict=True):
        part.update(*batch)
    parts[0].merge_state(parts[1])
    parts[0].merge_state(parts[2])
    assert same(parts[0].compute(), whole.compute(), tree)

    # two processes with equal batches: every state is gathered and summed
    single, paired = (
        TreeMetrics(tree),
        TreeMetrics(tree, dist_sync_fn=lambda state, group: [state, state], distributed_available_fn=lambda: True),
    )
    single.update(*batches[0])
    paired.update(*batches[0])
    assert paired.compute()["pixels"] == 2 * single.compute()["pixels"]
    assert summary(paired.compute()).equals(summary(single.compute()))
    restored = pickle.loads(pickle.dumps(single))
    assert same(restored.compute(), single.compute(), tree)

    streamed.reset()
    streamed.update(*batches[0])
    assert same(streamed.compute(), single.compute(), tree)


def test_nothing_to_count(tree):
    empty = [
        (torch.zeros(0, 2, 3, 3, dtype=torch.long), torch.zeros(0, 3, 3, dtype=torch.long)),
        (torch.zeros(1, 2, 3, 3, dtype=torch.long), torch.full((1, 3, 3), X)),
    ]
    for pred, target in empty:
        result = measure(tree, pred, target)
        assert summary(result).isna().all()
        assert table(result, tree)[["mIoU", "mAcc", "mF1", "OA"]].isna().all(axis=None)
        assert per_class(result, tree)["IoU"].isna().all()
        assert result["pixels"] == 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torchmetrics says that compute came before update
        assert math.isnan(TreeMetrics(tree).compute()["hF"])


def test_flat_labels_and_one_level(tree):
    label = torch.tensor([[[0, 1, 2, X]]])
    leaves = torch.tensor([[[0, 0, 2, 2]]])
    by_label, by_path = measure(tree, leaves, label), measure(tree, tree.targets(leaves), tree.targets(label))
    assert same(by_label, by_path, tree)
    one = make_tree([{"a": [], "b": [], "c": []}])
    result = measure(one, leaves[:, None].clamp(max=2), label)
    assert result["levels"][0]["OA"] == result["hF"] == 2 / 3
    assert result["mistake_distance"] == 2.0  # up to the root and down


def test_tables(tree):
    result = measure(tree, pixels((0, 0), (1, 2)), pixels((0, 0), (1, 3)))
    rows = table(result, tree)
    assert rows.index.tolist() == ["L1", "L2"]
    assert rows.loc["L2", ["classes", "present", "pixels", "OA"]].tolist() == [4, 2, 2, 0.5]
    classes = per_class(result, tree)
    assert classes.loc[("L2", "lake"), "support"] == 1
    assert classes.loc["L1"].index.tolist() == ["vegetation", "water"]
    assert summary(result).index.tolist() == list(SCALARS)


@pytest.mark.parametrize(
    ("pred", "target", "message"),
    [
        (torch.zeros(1, 3, 2, 2, dtype=torch.long), torch.zeros(1, 2, 2, dtype=torch.long), r"takes \(B, 2, H, W\)"),
        (torch.zeros(1, 2, 2, 2, dtype=torch.long), torch.zeros(1, 3, 3, dtype=torch.long), "differ in batch or image"),
        (torch.zeros(1, 2, 2, 2), torch.zeros(1, 2, 2, dtype=torch.long), "whole numbers"),
        (torch.full((1, 2, 2, 2), 4), torch.zeros(1, 2, 2, dtype=torch.long), r"prediction holds \[4\] on level L1"),
        (torch.zeros(1, 2, 1, 1, dtype=torch.long), pixels((0, 3)), r"classes \[0, 3\].*no valid path"),
        (torch.zeros(1, 2, 2, 2, dtype=torch.long), torch.full((1, 2, 2), 77), "Labels of the tree"),
    ],
)
def test_errors(tree, pred, target, message):
    metric = TreeMetrics(tree)
    with pytest.raises(ValueError, match=message):
        metric.update(pred, target)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_gpu_equals_cpu(tree):
    on_gpu, on_cpu = TreeMetrics(tree).to("cuda"), TreeMetrics(tree)
    for pred, label in random_batches(tree):
        on_gpu.update(pred.cuda(), label.cuda())
        on_cpu.update(pred, label)
    assert same(on_gpu.compute(), on_cpu.compute(), tree)
