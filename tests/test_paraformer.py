"""Paraformer: the contract on narrow forms, the sheet's sizes on full ones, PLAT against loops, one real patch."""

import functools
import math

import numpy as np
import pytest
import rasterio
import timm
import torch
from contract import ModelContract
from safetensors.torch import save_file
from torch import nn

from hierlab import paraformer
from hierlab.hierars import HSCLoss, hierarchical
from hierlab.losses import FlatLoss
from hierlab.metrics import TreeMetrics
from hierlab.networks import describe
from hierlab.paraformer import NETWORKS, PLAT, Paraformer, ResolutionPreserving, build, load_weights, mask_labels
from hierlab.tree import IGNORE, ClassTree
from hierlab.twin.legends import MERGES

FLAT, DEEP = ClassTree.load("chesapeake"), ClassTree.load("mm5b")  # 4 classes; 4, 9 and 18


def narrow(name="paraformer", bands=4, classes=4, weights=None, **options):
    return build(name, bands, classes, weights, **{"width": 1 / 16, "depth": 0.1, **options})


class TestParaformer(ModelContract):
    classes = 4

    def make(self, bands, classes):
        return narrow(bands=bands, classes=classes)

    def loss(self, outputs, batch):
        return PLAT(FLAT)(outputs, batch)[0]


class TestHierarchicalParaformer(ModelContract):
    classes = 18
    sizes = (4, 9, 18)
    band_counts = (3,)

    def make(self, bands, classes):
        return hierarchical(narrow(bands=bands, classes=classes), DEEP)

    def loss(self, outputs, batch):
        return PLAT(DEEP, HSCLoss(DEEP))(outputs, batch)[0]


class TestCNNBranch(ModelContract):
    def make(self, bands, classes):
        return narrow("paraformer-cnn", bands, classes)


class TestTransformerBranch(ModelContract):
    def make(self, bands, classes):
        return narrow("paraformer-transformer", bands, classes)


# ------------------------------------------------------------------------------------------- parameters and GMAC


@functools.cache
def full_size(name, classes=16):
    with torch.device("meta"):
        return build(name, 4, classes).eval()


def params(module):
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize(("name", "millions", "gmac"), [("paraformer", 145.4, 213), ("paraformer-light", 142.7, 148)])
def test_full_size_meets_the_sheet(name, millions, gmac):
    found = describe(full_size(name, 17), bands=4, size=224)
    assert found["name"] == name and found["outputs"] == [[1, 17, 224, 224]]
    assert found["params"] / 1e6 == pytest.approx(millions, abs=0.05)
    assert found["gmac"] == pytest.approx(gmac, abs=0.5)


def test_what_the_papers_counter_left_out():
    """Without standardised convolutions, GroupNorm, position embedding and classifier 1: 109.415M and 141.31 G."""
    from timm.layers import StdConv2d

    model, work = full_size("paraformer", 17), []
    leaves = [module for module in model.modules() if not list(module.children())]
    left_out = [m for m in leaves if isinstance(m, StdConv2d | nn.GroupNorm) or m is model.primal_classifier]
    counted = [module for module in leaves if module not in left_out]
    seen = sum(params(module) for module in counted)
    assert seen / 1e6 == pytest.approx(109.415, abs=0.001)
    assert sum(params(m) for m in left_out if isinstance(m, StdConv2d)) / 1e6 == pytest.approx(35.8, abs=0.01)

    def count(module, inputs, output):
        places = output.numel() // module.weight.shape[0]
        work.append(places * module.weight.numel())

    hooks = [m.register_forward_hook(count) for m in counted if isinstance(m, nn.Conv2d | nn.Linear)]
    model({"image": torch.empty(1, 4, 224, 224, device="meta")})
    for hook in hooks:
        hook.remove()
    assert sum(work) / 1e9 == pytest.approx(141.31, abs=0.01)


def test_the_sole_cnn_branch_is_4_46_megabytes_and_its_work_is_that_printed():
    model = full_size("paraformer-cnn")
    assert params(model.cnn) == pytest.approx(1.116e6, rel=5e-4)
    assert 4 * params(model.cnn) / 1e6 == pytest.approx(4.46, abs=0.005)
    pixels, heads = 224**2, 128 * 16
    convolutions = describe(model, 4, size=224)["gmac"] - 9 * heads * pixels / 1e9
    assert convolutions == pytest.approx(55.7, abs=0.05)
    norms = sum(m.num_features for m in model.modules() if isinstance(m, nn.BatchNorm2d))
    biases = norms + 128 + 16
    assert convolutions + (heads + biases + 2 * norms) * pixels / 1e9 == pytest.approx(56.10, abs=0.005)


def test_stages_have_the_strides_of_the_sheet():
    found = describe(full_size("paraformer"), bands=4)
    assert {stage["name"]: (stage["channels"], stage["stride"]) for stage in found["stages"]} == {
        **{f"cnn {i}": (128, 1) for i in range(1, 6)},
        "primal_classifier": (16, 1),
        "stem 1": (640, 2),
        "stem 2": (1024, 4),
        "stem 3": (1024, 16),
        "decoder": (256, 1),
        "classifier": (16, 1),
    }


# -------------------------------------------------------------------------------------------------- the branches


def settled(model):
    """In evaluation, with batch norms that have seen something."""
    model.train()(
        {"image": torch.randn(2, model.bands, 32, 32)} if isinstance(model, Paraformer) else torch.randn(2, 4, 32, 32)
    )
    return model.eval()


def test_moving_the_input_by_a_pixel_moves_the_cnn_branch_by_a_pixel():
    cnn = settled(ResolutionPreserving(4, 8))
    image = torch.randn(1, 4, 60, 60)
    reach = 11  # of five blocks and the start convolution: the zeros beyond the edge are felt so far
    for rows, columns in ((1, 0), (0, 1), (3, 2)):
        before, after = cnn(image), cnn(image.roll((rows, columns), (2, 3)))
        inside = slice(reach + 3, 60 - reach)
        assert len(before) == 5
        for a, b in zip(before, after, strict=True):
            moved = a.roll((rows, columns), (2, 3))[..., inside, inside]
            torch.testing.assert_close(moved, b[..., inside, inside], rtol=1e-4, atol=1e-5)
            assert not torch.allclose(a[..., inside, inside], b[..., inside, inside], atol=1e-2)


def test_an_output_of_the_cnn_branch_depends_on_eleven_pixels_to_each_side():
    cnn = settled(ResolutionPreserving(4, 8))
    with torch.no_grad():  # all positive, so that no ReLU closes
        for parameter in cnn.parameters():
            parameter.abs_()
        for module in cnn.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.zero_()
    image = torch.rand(1, 4, 31, 31, requires_grad=True)
    cnn(image)[-1][0, :, 15, 15].square().sum().backward()
    rows, columns = image.grad[0].abs().sum(0).nonzero(as_tuple=True)
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (4, 26, 4, 26)


def test_rp_block_written_out():
    block = paraformer.RPBlock(8)
    block.train()(torch.randn(4, 8, 9, 9))
    block.eval()
    x = torch.randn(1, 8, 12, 10)
    widths, scales = [], []
    for kernel, (conv, norm, _) in zip((1, 3, 5), block.scales, strict=True):
        y = nn.functional.conv2d(x, conv.weight, conv.bias, padding=kernel // 2)
        y = (y - norm.running_mean[:, None, None]) / (norm.running_var[:, None, None] + norm.eps).sqrt()
        scales.append(y.clamp(min=0))
        widths.append(conv.out_channels)
    conv, norm, _ = block.reduce
    y = torch.einsum("oc,bchw->bohw", conv.weight[:, :, 0, 0], torch.cat(scales, 1)) + conv.bias[:, None, None]
    y = (y - norm.running_mean[:, None, None]) / (norm.running_var[:, None, None] + norm.eps).sqrt()
    assert widths == [8, 4, 2]
    torch.testing.assert_close(block(x), x + y.clamp(min=0), rtol=1e-4, atol=1e-5)


def test_any_size_is_padded_by_replication_and_cropped():
    model = settled(narrow())
    image = torch.randn(1, 4, 45, 33)
    columns, rows = torch.arange(48).clamp(max=32), torch.arange(48).clamp(max=44)
    ours, whole = model({"image": image}), model({"image": image[:, :, rows][..., columns]})
    for a, b in ((ours["logits"][0], whole["logits"][0]), (ours["primal"], whole["primal"])):
        assert torch.equal(a, b[..., :45, :33])


def test_position_embedding_is_used_as_learned_at_224_and_interpolated_elsewhere():
    model = narrow()
    with torch.no_grad():
        model.vit.pos_embed.copy_(torch.arange(14.0).repeat(14)[None, :, None].expand(1, 196, 64))
        model.vit.patch_embed.proj.weight.zero_()
        model.vit.patch_embed.proj.bias.zero_()
    entering = []
    hook = model.vit.blocks[0].register_forward_pre_hook(lambda _, inputs: entering.append(inputs[0]))
    for height, width in ((224, 224), (112, 448)):
        model({"image": torch.randn(1, 4, height, width)})
    hook.remove()
    assert torch.equal(entering[0], model.vit.pos_embed)
    between = (torch.arange(28) + 0.5) / 2 - 0.5  # the columns' centres in those of the learned grid
    found = entering[1].view(7, 28, 64)
    torch.testing.assert_close(found[:, 3:-3, 0], between[3:-3].expand(7, -1), rtol=1e-4, atol=1e-4)


def test_which_parts_a_prediction_depends_on():
    model = narrow()
    outputs = model({"image": torch.randn(2, 4, 32, 32)})
    names, parameters = zip(*model.named_parameters(), strict=True)
    for output, parts in (
        (outputs["primal"], {"cnn", "primal_classifier"}),
        (outputs["logits"][0], {"cnn", "stem", "vit", "decoder", "classifier"}),
    ):
        found = torch.autograd.grad(output.square().sum(), parameters, retain_graph=True, allow_unused=True)
        assert {n.split(".")[0] for n, g in zip(names, found, strict=True) if g is not None} == parts


def test_wired_as_in_figure_3():
    model, seen = settled(narrow(depth=0.5)), {}
    for name in ("primal_classifier", "stem", "vit", "decoder"):
        module = model.get_submodule(name)
        module.register_forward_hook(lambda _, given, output, name=name: seen.update({name: (given, output)}))
    image = torch.randn(1, 4, 48, 80)
    model({"image": image})
    maps = model.cnn(image)
    assert len(maps) == 2 and torch.equal(seen["primal_classifier"][0][0], maps[-1])
    assert torch.equal(seen["stem"][0][0], torch.cat(maps, 1))
    stem = seen["stem"][1]
    assert [tuple(x.shape[2:]) for x in stem] == [(24, 40), (12, 20), (3, 5)]
    assert seen["vit"][0][0] is stem[-1]
    tokens, grid = seen["vit"][1], seen["decoder"][0][0]
    assert all(torch.equal(tokens[0, 5 * i + j], grid[0, :, i, j]) for i in range(3) for j in range(5))
    assert seen["decoder"][0][1] is stem and seen["decoder"][1].shape[2:] == (48, 80)


def test_branches_alone():
    image = {"image": torch.randn(1, 4, 32, 32)}
    cnn, transformer = narrow("paraformer-cnn"), narrow("paraformer-transformer")
    assert list(cnn(image)) == list(transformer(image)) == ["logits"]
    assert cnn.stem is cnn.vit is cnn.decoder is cnn.primal_classifier is None
    assert transformer.cnn is transformer.primal_classifier is None
    assert transformer.stem.stages[0][0].in_channels == 4
    with pytest.raises(ValueError, match="no 'primal'"):
        PLAT(FLAT)(cnn(image), {"label": torch.zeros(1, 32, 32)})


def test_average_of_both_heads_in_evaluation_only():
    model = settled(narrow(average_heads=True))
    image = {"image": torch.randn(1, 4, 32, 32)}
    mean = model(image)
    model.average_heads = False
    second = model(image)
    torch.testing.assert_close(mean["logits"][0], (second["primal"] + second["logits"][0]) / 2)
    assert not torch.allclose(mean["logits"][0], second["logits"][0], atol=1e-3)
    model.train()
    torch.manual_seed(1)
    plain = model(image)["logits"][0]
    model.average_heads = True
    assert torch.equal(plain, model(image)["logits"][0])
    with pytest.raises(ValueError, match="two summed classifiers"):
        hierarchical(narrow(classes=18, average_heads=True), DEEP)


def test_hierarchical_replaces_the_second_classifier_alone():
    model = hierarchical(narrow(classes=18), DEEP)
    assert model.layer == "classifier" and model.bhccm.heads[0].kernel_size == (3, 3)
    outputs = model({"image": torch.randn(1, 4, 40, 33)})
    assert [tuple(level.shape) for level in outputs["logits"]] == [(1, size, 40, 33) for size in DEEP.sizes]
    assert outputs["primal"].shape == (1, 18, 40, 33)


# ------------------------------------------------------------------------------------- pseudo-label-assisted training


def classes_through(label, tree):
    """The class of each level that all valid paths through a label agree on, None where they do not."""
    name_level = [(name, level) for level, names in enumerate(tree.classes) for name in names]
    if label == IGNORE:
        return [None] * tree.depth
    level, index = next(
        (level, tree.classes[level].index(name)) for name, level in name_level if tree.label_of(name, level) == label
    )
    through = [path for path in tree.paths.tolist() if path[level] == index]
    return [classes[0] if len(set(classes)) == 1 else None for classes in zip(*through, strict=True)]


def case(tree, seed=0, side=9):
    """Random predictions and labels: leaves, inner nodes and void, half of the leaves those predicted."""
    random = torch.Generator().manual_seed(seed)
    primal = torch.randn(2, tree.num_leaves, side, side, generator=random, requires_grad=True)
    levels = [torch.randn(2, size, side, side, generator=random, requires_grad=True) for size in tree.sizes]
    label = torch.randint(len(tree.label_names), (2, side, side), generator=random)
    label[:, ::2] = primal.detach().argmax(1)[:, ::2]
    label[0, :3] = IGNORE
    return {"primal": primal, "logits": levels}, {"label": label}


@pytest.mark.parametrize("name", ["chesapeake", "nlcd", "mm5b", "crop10m"])
def test_mask_label_against_a_loop(name):
    tree = ClassTree.load(name)
    outputs, batch = case(tree)
    ours = mask_labels(outputs["primal"], batch["label"], tree)
    found = set()
    for b in range(2):
        for i in range(9):
            for j in range(9):
                scores = outputs["primal"][b, :, i, j].tolist()
                own = classes_through(batch["label"][b, i, j].item(), tree)
                pseudo = classes_through(scores.index(max(scores)), tree)
                expected = IGNORE
                for level in range(tree.depth):
                    if own[level] is not None and own[level] == pseudo[level]:
                        expected = tree.label_of(tree.classes[level][own[level]], level)
                assert ours[b, i, j] == expected
                found.add("void" if expected == IGNORE else "leaf" if expected < tree.num_leaves else "inner")
    assert found == ({"void", "leaf"} if tree.depth == 1 else {"void", "leaf", "inner"})


def test_mask_of_one_level_is_equation_3():
    outputs, batch = case(FLAT)
    label, masked = batch["label"], mask_labels(outputs["primal"], batch["label"], FLAT)
    equal = label == outputs["primal"].argmax(1)
    assert torch.equal(masked != IGNORE, equal) and torch.equal(masked[equal], label[equal])


@pytest.mark.parametrize("weights", [(1.0, 1.0), (0.5, 0.5), (0.0, 1.0)])
def test_equations_1_2_and_4_against_loops(weights):
    outputs, batch = case(FLAT)
    first, second, kept, labelled = 0.0, 0.0, 0, 0
    for b in range(2):
        for i in range(9):
            for j in range(9):
                y = batch["label"][b, i, j].item()
                if y == IGNORE:
                    continue
                p1 = torch.exp(outputs["primal"][b, :, i, j].detach())
                p2 = torch.exp(outputs["logits"][0][b, :, i, j].detach())
                labelled += 1
                first -= math.log(p1[y] / p1.sum())
                if p1.argmax() == y:
                    kept += 1
                    second -= math.log(p2[y] / p2.sum())
    loss, parts = PLAT(FLAT, weights=weights)(outputs, batch)
    assert 0 < kept < labelled
    assert parts["primal_cross_entropy"].item() == pytest.approx(first / labelled, rel=1e-5)
    assert parts["masked_cross_entropy"].item() == pytest.approx(second / kept, rel=1e-5)
    assert parts["kept"].item() == pytest.approx(kept / labelled)
    assert loss.item() == pytest.approx(weights[0] * first / labelled + weights[1] * second / kept, rel=1e-5)


def test_each_level_learns_from_what_agrees_at_it():
    outputs, batch = case(DEEP)
    _, parts = PLAT(DEEP, HSCLoss(DEEP, consistency=None))(outputs, batch)
    own, pseudo = DEEP.targets(batch["label"]), DEEP.targets(outputs["primal"].argmax(1))
    pixels = []
    for level, name in enumerate(DEEP.level_names):
        kept = (own[:, level] == pseudo[:, level]) & (own[:, level] != IGNORE)
        log_prob = outputs["logits"][level].detach().log_softmax(1).movedim(1, -1)[kept]
        expected = -log_prob[torch.arange(len(log_prob)), own[:, level][kept]].mean()
        assert parts[f"masked_cross_entropy_{name}"].item() == pytest.approx(expected.item(), rel=1e-5)
        pixels.append(kept.sum().item())
    assert pixels[0] > pixels[1] > pixels[2] > 0  # each mask holds the next finer one


@pytest.mark.parametrize("second", [None, HSCLoss(DEEP)])
def test_no_gradient_passes_through_the_mask(second):
    outputs, batch = case(DEEP)
    loss = PLAT(DEEP, second, weights=(0.0, 1.0))
    (slope,) = torch.autograd.grad(loss(outputs, batch)[0], outputs["primal"])
    assert (slope == 0).all()
    assert not mask_labels(outputs["primal"], batch["label"], DEEP).requires_grad
    both, alone = PLAT(DEEP, second)(outputs, batch)[0], FlatLoss(DEEP)({"logits": [outputs["primal"]]}, batch)[0]
    ours, theirs = (torch.autograd.grad(value, outputs["primal"])[0] for value in (both, alone))
    torch.testing.assert_close(ours, theirs)


def slopes(loss, outputs, batch):
    """The loss, its parts, and the gradients of prediction 1 and of the levels of prediction 2."""
    value, parts = loss(outputs, batch)
    found = torch.autograd.grad(value, [outputs["primal"], *outputs["logits"]], allow_unused=True)
    return value, parts, found[0], [level for level in found[1:] if level is not None]


@pytest.mark.parametrize("second", [None, HSCLoss(DEEP), HSCLoss(DEEP, consistency="concat")])
def test_an_all_void_batch_gives_zero_loss(second):
    outputs, batch = case(DEEP)
    batch["label"].fill_(IGNORE)
    value, parts, first, levels = slopes(PLAT(DEEP, second), outputs, batch)
    assert value == 0 and all(part == 0 for part in parts.values())
    assert len(levels) == (1 if second is None else 3)
    assert all((slope == 0).all() for slope in [first, *levels])


@pytest.mark.parametrize("second", [None, HSCLoss(DEEP)])
def test_a_batch_that_never_agrees_adds_nothing_to_the_first_loss(second):
    outputs, batch = case(DEEP)
    other = {0: 17, 17: 0}  # a leaf of the first L1 class for one of the last, and back
    assert DEEP.paths[0, 0] != DEEP.paths[-1, 0]
    with torch.no_grad():
        outputs["primal"].fill_(-1.0)
        for leaf, opposite in other.items():
            outputs["primal"][leaf % 2, opposite] = 1.0
            batch["label"][leaf % 2] = leaf
    value, parts, first, levels = slopes(PLAT(DEEP, second), outputs, batch)
    assert parts["kept"] == 0 and value == parts["primal_cross_entropy"] > 0
    assert first.isfinite().all() and first.abs().sum() > 0
    assert all((slope == 0).all() for slope in levels)


def test_void_never_counts():
    outputs, batch = case(DEEP)
    loss = PLAT(DEEP, HSCLoss(DEEP))
    before, _, first, levels = slopes(loss, outputs, batch)
    void = batch["label"] == IGNORE
    assert all((slope.movedim(1, -1)[void] == 0).all() for slope in [first, *levels])
    with torch.no_grad():
        for output in [outputs["primal"], *outputs["logits"]]:
            output.movedim(1, -1)[void] = 50 * torch.randn(int(void.sum()), output.shape[1])
    assert torch.equal(loss(outputs, batch)[0], before)
    assert (mask_labels(outputs["primal"], batch["label"], DEEP)[void] == IGNORE).all()


def test_without_plat_the_second_prediction_learns_from_all_labels():
    outputs, batch = case(FLAT)
    loss, parts = PLAT(FLAT, mask=False)(outputs, batch)
    plain = [FlatLoss(FLAT)({"logits": [x]}, batch)[0] for x in (outputs["primal"], outputs["logits"][0])]
    assert loss.item() == pytest.approx(sum(plain).item()) and parts["kept"] == 1
    assert PLAT(FLAT, mask=False, weights=(0, 1))(outputs, batch)[0] == plain[1]


def test_the_low_resolution_label_may_stand_beside_the_true_one():
    outputs, batch = case(FLAT)
    both = {"label": torch.zeros_like(batch["label"]), "label_lr": batch["label"]}
    assert PLAT(FLAT, label="label_lr")(outputs, both)[0] == PLAT(FLAT)(outputs, batch)[0]
    with pytest.raises(ValueError, match="two factors"):
        PLAT(FLAT, weights=(1, -1))


# --------------------------------------------------------------------------------------------- names and weights


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"branches": "vit"}, "branches is one of"),
        ({"branches": "cnn", "average_heads": True}, "two predictions"),
        ({"channels": 30}, "multiples of 4"),
        ({"stem": (32, 48, 64)}, "multiples of 32"),
        ({"dim": 100}, "multiples of 64"),
        ({"decoder": (8, 8)}, "three widths"),
        ({"layers": 0}, "at least one band"),
    ],
)
def test_settings_that_do_not_fit_are_errors(change, said):
    with pytest.raises(ValueError, match=said):
        Paraformer(4, 4, **{"channels": 8, "stem": (32, 32, 32), "dim": 64, "layers": 1, "decoder": (8, 8, 8)} | change)


def test_names_and_options():
    assert list(NETWORKS) == ["paraformer", "paraformer-light", "paraformer-cnn", "paraformer-transformer"]
    assert all(full_size(name).name == name for name in NETWORKS)
    assert len(full_size("paraformer").vit.blocks) == 12 and len(full_size("paraformer").cnn.blocks) == 5
    assert narrow(decoder=(256, 128, 64)).decoder.joins[-1][0].out_channels == 8
    for wrong, said in (
        ({"name": "paraformer-heavy"}, "paraformer-light"),
        ({"size": 3}, "no option size; it has branches"),
        ({"width": 0}, "positive width"),
    ):
        with pytest.raises(ValueError, match=said):
            narrow(**wrong)
    with pytest.raises(ValueError, match=r"takes images \(B, 4, H, W\)"):
        narrow()({"image": torch.randn(1, 3, 32, 32)})


def vit(**options):
    options = {"img_size": 96, "embed_dim": 64, "num_heads": 1, "depth": 2, "num_classes": 7} | options
    return timm.create_model("vit_base_patch16_224", **options)


@pytest.mark.parametrize("start", ["", "backbone.encoder."])
def test_weights_of_a_vit_from_a_file(tmp_path, start):
    source = vit().state_dict()
    save_file({start + key: value for key, value in source.items()}, tmp_path / "vit.safetensors")
    model = narrow(depth=1 / 6)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    report = load_weights(model, tmp_path / "vit.safetensors")
    after = model.state_dict()
    for key, value in after.items():
        if key.startswith("vit.blocks.") or key.startswith("vit.norm."):
            assert torch.equal(value, source[key.removeprefix("vit.")]) and key in report["matched"]
        elif key != "vit.pos_embed":
            assert torch.equal(value, before[key]), key
    grid = source["pos_embed"][:, 1:].view(1, 6, 6, 64).movedim(3, 1)  # without the class token's
    expected = nn.functional.interpolate(grid, size=(14, 14), mode="bicubic", antialias=True).flatten(2).mT
    torch.testing.assert_close(after["vit.pos_embed"], expected)
    assert report["mismatched"] == ["vit.patch_embed.proj.weight", "vit.patch_embed.proj.bias"]
    assert {"cnn.start.weight", "classifier.weight"} <= set(report["missing"])
    assert report["unused"] == sorted(start + key for key in ("cls_token", "head.bias", "head.weight"))


def test_weights_from_the_hub(monkeypatch):
    asked = []
    monkeypatch.setattr(paraformer, "from_hub", lambda name: asked.append(name) or vit().state_dict())
    model = narrow(depth=1 / 6, weights="imagenet")
    assert asked == ["vit_base_patch16_224"] and len(model.vit.blocks) == 2


def test_weights_of_a_paraformer_for_another_legend_and_other_bands(tmp_path):
    source = narrow(bands=4, classes=16)
    save_file({f"network.{key}": value for key, value in source.state_dict().items()}, tmp_path / "run.safetensors")
    model = narrow(bands=3, classes=5)
    report = load_weights(model, tmp_path / "run.safetensors")
    other = {f"{c}.{p}" for c in ("cnn.start", "classifier", "primal_classifier") for p in ("weight", "bias")}
    assert set(report["mismatched"]) == other and not report["missing"] and not report["unused"]
    ours = model.state_dict()
    assert all(torch.equal(ours[key], value) for key, value in source.state_dict().items() if key not in other)


def test_weights_that_do_not_fit_are_errors(tmp_path):
    save_file({"stem.weight": torch.zeros(3)}, tmp_path / "other.safetensors")
    save_file(vit(embed_dim=128, num_heads=2).state_dict(), tmp_path / "wide.safetensors")
    for path, said in (("other.safetensors", "no weights of a ViT"), ("wide.safetensors", "of another ViT")):
        with pytest.raises(ValueError, match=said):
            narrow(depth=1 / 6, weights=tmp_path / path)
    with pytest.raises(ValueError, match="no transformer"):
        narrow("paraformer-cnn", weights=tmp_path / "wide.safetensors")
    with pytest.raises(FileNotFoundError, match="no weights file"):
        narrow(weights=tmp_path / "absent.safetensors")


# ---------------------------------------------------------------------------------------------------- a real patch


def test_overfits_a_real_patch_with_its_nlcd_labels(shared_data):
    """NAIP at 1 m with NLCD at 30 m, of West Virginia: hay fields and forest."""
    path = sorted((shared_data("chesapeake") / "train").glob("*.npz"))[0]
    tree = ClassTree.load("nlcd")
    with np.load(path) as file:
        patch = file["arr_0"][0, :, 96:160, 96:160]
    image = torch.from_numpy(patch[:4])
    image = (image - image.mean((1, 2), keepdim=True)) / image.std((1, 2), keepdim=True)
    label = torch.from_numpy(tree.encode(patch[9].astype(np.int64))).long()
    batch = {"image": image[None], "label": label[None]}
    model, loss = hierarchical(narrow(classes=16, width=1 / 8), tree), PLAT(tree, HSCLoss(tree))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    history = []
    for _ in range(60):
        value, parts = loss(model(batch), batch)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        history.append((value.item(), parts["kept"].item()))
    assert history[-1][0] < 0.2 * history[0][0] and history[-1][1] > 0.75 > history[0][1]
    right = (tree.decode(model(batch)["logits"]) == tree.targets(batch["label"])).float().mean((0, 2, 3))
    assert label.unique().numel() > 1 and right.min() > 0.9


@pytest.mark.parametrize(
    ("merge", "accuracy", "ious"),
    [("nlcd-later", 0.809, (0.374, 0.827, 0.334, 0.273)), ("nlcd-dfc2021", 0.820, (0.374, 0.829, 0.343, 0.368))],
)
def test_the_bar_on_the_real_tile_is_that_of_nlcd(shared_data, merge, accuracy, ious):
    """What a model trained on NLCD alone has to beat; the bar depends on the table that joins NLCD's codes."""
    codes = {}
    for name in ("nlcd", "lc"):
        (path,) = (shared_data("chesapeake") / "tile").glob(f"*_{name}.tif")
        with rasterio.open(path) as file:
            codes[name] = file.read(1)
    found, truth = MERGES[merge].apply(codes["nlcd"]), MERGES["chesapeake-hr"].apply(codes["lc"])
    np.testing.assert_array_equal(truth, FLAT.encode(codes["lc"]))
    metrics = TreeMetrics(FLAT)
    metrics.update(torch.from_numpy(found)[None, None].long(), torch.from_numpy(truth)[None, None].long())
    level = metrics.compute()["levels"][0]
    assert level["OA"] == pytest.approx(accuracy, abs=5e-4)
    assert level["IoU"].tolist() == pytest.approx(ious, abs=5e-4)
