"""Class trees: reading and its errors, labels, JSPS against brute force, aggregation, subsets."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hierlab.tree import IGNORE, RULES, ClassTree, TreeError, shipped

CROP10M = {
    "name": "crop10m",
    "levels": [
        {"name": "L1", "classes": [{"name": "other", "color": "#888888"}, {"name": "vegetation", "color": "#00aa00"}]},
        {
            "name": "L2",
            "classes": [
                {"name": "other", "color": "#888888", "parent": "other"},
                {"name": "cropland", "color": "#aaff00", "parent": "vegetation"},
            ],
        },
        {
            "name": "L3",
            "classes": [
                {"name": "other", "color": "#888888", "parent": ["other", "cropland"]},
                {"name": "rice", "color": "#00f096", "parent": "cropland"},
                {"name": "corn", "color": "#ffd400", "parent": "cropland"},
                {"name": "soybean", "color": "#267000", "parent": "cropland"},
            ],
        },
    ],
}


@st.composite
def trees(draw):
    """Random trees of one to four levels, some classes with several parents."""
    levels = []
    for level in range(draw(st.integers(1, 4))):
        above = [c["name"] for c in levels[-1]["classes"]] if levels else []
        classes = [
            {"name": f"c{index}", "color": "#000000", "parent": name} for index, name in enumerate(above)
        ]  # every class above has a child
        for _ in range(draw(st.integers(0 if above else 1, 4))):
            entry = {"name": f"c{len(classes)}", "color": "#000000"}
            if above:
                entry["parent"] = draw(st.lists(st.sampled_from(above), min_size=1, max_size=3, unique=True))
            classes.append(entry)
        levels.append({"name": f"L{level + 1}", "classes": draw(st.permutations(classes))})
    return ClassTree.from_dict({"name": "random", "levels": levels})


wild = st.sampled_from([float("nan"), float("inf"), float("-inf"), 3e38, -3e38, 1e-40, 0.0])


def brute_force(tree, logits, rule):
    """The best score over the paths, written out pixel by pixel from eq. 18, in double precision."""
    score = {"sigmoid": torch.sigmoid, "log_softmax": lambda x: torch.log_softmax(x, 1)}[rule]
    levels = [score(level.double()) for level in logits]
    per_path = torch.stack([sum(levels[i][:, c] for i, c in enumerate(path)) for path in tree.paths.tolist()], 1)
    return per_path


@pytest.mark.parametrize("name, sizes, paths", [("mm5b", (4, 9, 18), 18), ("five-billion-pixels", (4, 9, 18), 18)])
def test_hierars_trees(name, sizes, paths):
    tree = ClassTree.load(name)
    assert tree.sizes == sizes and len(tree.paths) == paths
    assert tree.classes[2][6] == "lake" and tuple(tree.colors[2][6]) == (0, 150, 200)


def test_shipped_trees_round_trip():
    assert {(4, 9, 18), (8, 16), (5, 15, 44)} <= {ClassTree.load(name).sizes for name in shipped()}
    for name in shipped():
        tree = ClassTree.load(name)
        again = ClassTree.from_dict(tree.to_dict())
        assert again == tree and again.fingerprint == tree.fingerprint and len(tree.source) > 20


def test_five_billion_pixels_merges_24_to_18():
    tree = ClassTree.load("five-billion-pixels")
    labels = tree.encode(np.arange(25))
    assert labels[0] == labels[16] == IGNORE  # unlabelled, snow
    names = {code: tree.label_names[label] for code, label in enumerate(labels) if label != IGNORE}
    assert names[3] == names[4] == "dry cropland" and names[5] == names[6] == names[7] == "forest"
    assert names[14] == names[15] == "pond" and names[8] == names[20] == "park & square"
    assert len(set(names.values())) == 18


def test_targets_of_leaves_inner_nodes_and_two_paths():
    tree = ClassTree.load("mm5b")
    vegetation, cropland, forest = tree.label_of("vegetation"), tree.label_of("cropland"), tree.label_of("forest", "L2")
    label = np.array([[0, 17, vegetation, cropland, forest, IGNORE]], np.uint8)
    expected = [
        [0, 3, 0, 0, 0, 255],
        [0, 8, 255, 0, 1, 255],
        [0, 17, 255, 255, 2, 255],  # L2 forest has one leaf, so that leaf is known
    ]
    assert tree.targets(label)[:, 0].tolist() == expected
    assert tree.targets(torch.from_numpy(label)[None]).shape == (1, 3, 1, 6)
    assert tree.targets(torch.from_numpy(label)[None])[0, :, 0].tolist() == expected
    assert tree.coarsen(label, "L2").tolist() == [expected[1]]
    crops = ClassTree.from_dict(CROP10M)
    assert crops.paths.tolist() == [[0, 0, 0], [1, 1, 0], [1, 1, 1], [1, 1, 2], [1, 1, 3]]
    assert crops.targets(np.array([0, 1]))[:, 0].tolist() == [255, 255, 0]  # "other": its group is not known


def test_encode_lists_unknown_codes_with_counts():
    tree = ClassTree.load("nlcd")
    codes = np.array([[11, 42, 4, 250], [99, 99, 7, 13]])
    with pytest.raises(TreeError, match=r"13: 1 px, 99: 2 px"):
        tree.encode(codes)
    labels = tree.encode(codes, valid=~np.isin(codes, (13, 99)))
    assert [tree.label_names[label] for label in labels[0, :3]] == ["open water", "evergreen forest", "forest"]
    assert labels[0, 3] == labels[1, 0] == IGNORE and labels.dtype == np.uint8
    with pytest.raises(TreeError, match="whole numbers"):
        tree.encode(codes.astype(float))
    with pytest.raises(TreeError, match="0 to 23"):
        tree.targets(np.array([24]))


@settings(max_examples=150, deadline=None)
@given(trees(), st.data())
def test_decode_is_exact_and_valid_for_any_tree_and_logits(tree, data):
    rule = data.draw(st.sampled_from(RULES))
    torch.manual_seed(data.draw(st.integers(0, 10**6)))
    logits = [torch.randn(2, size, 3, 2) * data.draw(st.sampled_from([0.1, 1.0, 8.0])) for size in tree.sizes]
    path = tree.decode(logits, rule)
    assert path.shape == (2, tree.depth, 3, 2) and tree.consistent(path).all()
    scores = brute_force(tree, logits, rule)
    chosen = scores.gather(1, tree.path_number(path)[:, None])[:, 0]
    assert (scores.max(1).values - chosen).max() < 1e-5  # the same best score, in single precision
    for level in logits:  # now with a few hostile numbers: still a valid path
        for index in data.draw(st.lists(st.integers(0, level.numel() - 1), max_size=6)):
            level.view(-1)[index] = data.draw(wild)
    assert tree.consistent(tree.decode(logits, rule)).all()


@pytest.mark.parametrize("rule", RULES)
def test_decode_equals_brute_force_bit_for_bit_on_mm5b(rule):
    torch.manual_seed(0)
    tree = ClassTree.load("mm5b")
    logits = [torch.randn(2, size, 40, 30, dtype=torch.float64) * 2 for size in tree.sizes]
    scores = brute_force(tree, logits, rule)
    assert torch.equal(tree.path_number(tree.decode(logits, rule)), scores.argmax(1))


def test_the_two_rules_part_as_the_logits_grow():
    """σ saturates and the log-softmax does not: on normal logits they agree on 96, 89, 77 % at scales 0.5, 1, 2."""
    tree = ClassTree.load("mm5b")
    agreement = []
    for scale in (0.5, 1.0, 2.0):
        torch.manual_seed(0)
        logits = [scale * torch.randn(1, size, 300, 300) for size in tree.sizes]
        same = tree.decode(logits) == tree.decode(logits, "log_softmax")
        agreement.append(same.all(1).float().mean().item())
    assert agreement == pytest.approx([0.965, 0.894, 0.772], abs=0.01)


def test_decode_takes_logits_with_gradients_and_half_precision():
    torch.manual_seed(0)
    tree = ClassTree.load("mm5b")
    logits = [torch.randn(1, size, 8, 8).bfloat16().requires_grad_() for size in tree.sizes]
    for rule in RULES:
        path = tree.decode(logits, rule)
        assert torch.equal(path, tree.decode([level.detach().double() for level in logits], rule))


def test_decode_takes_flat_logits_and_refuses_wrong_ones():
    tree = ClassTree.from_dict(CROP10M)
    leaf = torch.tensor([[5.0, 0, 0, 0], [0, 0, 5.0, 0]])[:, :, None, None]
    assert tree.decode([leaf])[:, :, 0, 0].tolist() == [[0, 0, 0], [1, 1, 2]]
    with pytest.raises(ValueError, match="channels"):
        tree.decode([leaf, leaf, leaf])
    with pytest.raises(ValueError, match="rule"):
        tree.decode([leaf], rule="argmax")


@pytest.mark.parametrize("rule", RULES)
def test_decode_holds_no_more_planes_than_it_says(rule):
    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        """Follows the bytes of the tensors alive, by storage."""

        def __init__(self):
            super().__init__()
            self.live, self.peak = {}, 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            import weakref

            out = func(*args, **(kwargs or {}))
            if isinstance(out, torch.Tensor):
                storage = out.untyped_storage()
                key = storage._cdata
                if key not in self.live:
                    self.live[key] = storage.nbytes()
                    weakref.finalize(storage, self.live.pop, key, None)
            self.peak = max(self.peak, sum(self.live.values()))
            return out

    tree = ClassTree.load("mm5b")
    logits = [torch.randn(1, size, 256, 256) for size in tree.sizes]
    inputs = sum(level.untyped_storage().nbytes() for level in logits)
    output = 3 * 256 * 256 * 8
    with Watch() as watch:
        tree.decode(logits, rule)
    # the inputs are seen too, as the storages behind their planes
    assert watch.peak <= inputs + output + (tree.depth + 4) * 256 * 256 * 4


def test_aggregate_sums_up_the_tree():
    torch.manual_seed(0)
    tree = ClassTree.load("mm5b")
    probability = torch.rand(2, 18, 4, 5).softmax(1)
    l1, l2, l3 = tree.aggregate(probability)
    assert torch.equal(l3, probability)
    assert torch.allclose(l2[:, 0], probability[:, 0] + probability[:, 1])
    assert torch.allclose(l1[:, 2], probability[:, 8:17].sum(1))
    crops = ClassTree.from_dict(CROP10M)
    l1, l2, _ = crops.aggregate(torch.tensor([0.5, 0.3, 0.1, 0.1]).view(1, 4, 1, 1))
    assert l1.flatten().tolist() == pytest.approx([0.25, 0.75])  # "other" shared between its two paths
    assert l1.sum() == pytest.approx(1.0) and l2.sum() == pytest.approx(1.0)


def test_consistent_is_membership_of_the_paths():
    tree = ClassTree.from_dict(CROP10M)
    valid = set(map(tuple, tree.paths.tolist()))
    for path in itertools.product(range(-1, 3), range(-1, 3), range(-1, 6)):
        assert bool(tree.consistent(torch.tensor(path).view(1, 3, 1, 1))) == (path in valid)


def test_subset_keeps_leaves_and_sends_codes_up():
    tree = ClassTree.load("nlcd")
    present = [tree.label_of(name) for name in ("open water", "evergreen forest", "shrub/scrub")]
    small = tree.subset(present)
    assert small.classes == (("water", "forest", "shrubland"), ("open water", "evergreen forest", "shrub/scrub"))
    labels = small.encode(np.array([11, 42, 41, 82, 0]))
    assert [small.label_names[label] for label in labels[:3]] == ["open water", "evergreen forest", "forest"]
    assert labels[3] == labels[4] == IGNORE
    assert ClassTree.from_dict(small.to_dict()) == small
    with pytest.raises(TreeError, match="leaf labels"):
        tree.subset([77])


def test_show_draws_every_class():
    tree = ClassTree.load("mm5b")
    texts = {text.get_text() for text in tree.show().axes[0].texts}
    assert set(itertools.chain(*tree.classes)) <= texts


BAD = {
    "cycle": (
        "- {name: x, color: '#000000', parent: y}\n      - {name: y, color: '#000000', parent: x}",
        "a cycle: x → y → x",
    ),
    "gap": ("- {name: a1, color: '#000000', parent: a}", "level gap: 'b'"),
    "no parent": ("- {name: x, color: '#000000'}", "needs a `parent`"),
    "misspelt": ("- {name: x, color: '#000000', parent: aa}", "no level has"),
    "name twice": (
        "- {name: x, color: '#000000', parent: a}\n      - {name: x, color: '#000000', parent: b}",
        "twice on one level .first on line 8",
    ),
    "code twice": (
        "- {name: x, color: '#000000', parent: a, codes: [7]}\n"
        "      - {name: y, color: '#000000', parent: b, codes: 7}",
        "code 7 of 'y' already belongs to 'x' .line 8",
    ),
    "ignored code": ("- {name: x, color: '#000000', parent: a, codes: 0}", "already belongs to the ignored codes"),
    "colour": ("- {name: x, color: red, parent: a}", "needs a `color`"),
    "key": ("- {name: x, colour: '#000000', parent: a}", "no `colour`"),
    "yaml 'no'": ("- {name: no, color: '#000000', parent: a}", "as text"),
    "code type": ("- {name: x, color: '#000000', parent: a, codes: [a]}", "whole number"),
    "key twice": ("- {name: x, name: y, color: '#000000', parent: a}", "'name' is given twice"),
}


@pytest.mark.parametrize("case", BAD)
def test_faulty_yaml_names_the_line_and_the_mend(tmp_path, case):
    classes, message = BAD[case]
    path = tmp_path / "mine.yaml"
    path.write_text(
        "ignore: [0]\nlevels:\n  - classes:\n      - {name: a, color: '#000000'}\n"
        f"      - {{name: b, color: '#000000'}}\n  - name: fine\n    classes:\n      {classes}\n"
    )
    with pytest.raises(TreeError, match=message) as caught:
        ClassTree.load(path)
    assert "mine.yaml, line " in str(caught.value)


def test_skipping_a_level_is_a_gap(tmp_path):
    content = {
        "name": "t",
        "levels": [
            {"classes": [{"name": "a", "color": "#000000"}]},
            {"classes": [{"name": "b", "color": "#000000", "parent": "a"}]},
            {"classes": [{"name": "c", "color": "#000000", "parent": "a"}]},
        ],
    }
    with pytest.raises(TreeError, match="level gap: 'c' on level 3 names 'a' of level 1"):
        ClassTree.from_dict(content)


def test_files_that_are_no_tree(tmp_path):
    path = tmp_path / "t.yaml"
    for text, message in [
        ("levels: [", "not valid YAML"),
        ("a: 1", "a list `levels`"),
        ("levels: [3]", "level 1 needs"),
    ]:
        path.write_text(text)
        with pytest.raises(TreeError, match=message):
            ClassTree.load(path)
    with pytest.raises(TreeError, match="Did you mean 'nlcd'"):
        ClassTree.load("nlcdd")
    with pytest.raises(TreeError, match="cannot be read"):
        ClassTree.load(tmp_path / "absent.yaml")
    many = [{"name": f"c{i}", "color": "#000000"} for i in range(256)]
    with pytest.raises(TreeError, match="at most 255"):
        ClassTree.from_dict({"name": "t", "levels": [{"classes": many}]})
