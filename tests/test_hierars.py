"""HieraRS stage I: BHCCM against its equations written out, its parameter counts, the head on three kinds of network,
and both readings of the consistency loss against loops."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from hierlab.hierars import BHCCM, FUSIONS, HSCLoss, MergingBlock, hierarchical
from hierlab.tree import ClassTree

MM5B = ClassTree.load("mm5b")


def count(module):
    return sum(parameter.numel() for parameter in module.parameters())


def randomise(module):
    """Random values for every parameter, the scalars too, so that no term can hide behind a one or a zero."""
    torch.manual_seed(3)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.5 + 0.3)
    return module


def test_parameter_counts_of_the_paper():
    assert count(MergingBlock(4, 18)) == 2 * 4 * 18 + 98
    bhccm = BHCCM(512, (4, 9, 18))
    assert count(bhccm) - count(bhccm.heads) == 1678
    assert count(bhccm) - count(nn.Conv2d(512, 18, 1)) == 8347
    assert count(BHCCM(512, (4, 9, 18), residual=True)) - count(bhccm) == 3
    assert count(BHCCM(512, (4, 9, 18), fusion="none")) == 512 * 31 + 31
    assert sum(p.numel() for p in bhccm.w.values()) == sum(p.numel() for p in bhccm.y.values()) == 5
    assert all(p.item() == 1 for p in [*bhccm.w.values(), *bhccm.y.values()])


def test_merging_block_follows_fig_5():
    block, x = randomise(MergingBlock(3, 5)), torch.randn(2, 3, 9, 8)
    mlp, conv, project = block.mlp.weight, block.spatial.weight, block.project.weight[:, :, 0, 0]
    channel = torch.sigmoid(x.flatten(2).max(2)[0] @ mlp.T + x.flatten(2).mean(2) @ mlp.T)
    pooled = F.pad(torch.stack([x.max(1)[0], x.mean(1)], 1), (3, 3, 3, 3))
    for b, i, j in [(0, 0, 0), (1, 4, 5), (1, 8, 7)]:
        spatial = torch.sigmoid((pooled[b, :, i : i + 7, j : j + 7] * conv[0]).sum())
        expected = (project @ x[b, :, i, j]) * channel[b] * spatial
        assert torch.allclose(block(x)[b, :, i, j], expected, atol=1e-5)


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("fusion", FUSIONS)
def test_bhccm_is_equations_1_to_6(fusion, residual):
    m, x = randomise(BHCCM(7, (2, 3, 5), fusion, residual)), torch.randn(2, 7, 6, 6)
    in1, in2, in3 = (head(x) for head in m.heads)
    if fusion in ("both", "coarse_to_fine"):
        mid2 = m.w["0_1"] * m.down["0_1"](in1) + m.w["1_1"] * in2
        mid3 = m.w["0_2"] * m.down["0_2"](in1) + m.w["1_2"] * m.down["1_2"](in2) + m.w["2_2"] * in3
    else:
        mid2, mid3 = in2, in3
    mid1 = in1
    if fusion in ("both", "fine_to_coarse"):
        out1 = m.y["2_0"] * m.up["2_0"](mid3) + m.y["1_0"] * m.up["1_0"](mid2) + m.y["0_0"] * mid1
        out2 = m.y["2_1"] * m.up["2_1"](mid3) + m.y["1_1"] * mid2
    else:
        out1, out2 = mid1, mid2
    expected = [out1, out2, mid3]
    if residual:
        expected = [own + z * out for own, z, out in zip((in1, in2, in3), m.z, expected, strict=True)]
    for ours, theirs in zip(m(x), expected, strict=True):
        assert torch.allclose(ours, theirs, atol=1e-5)
    sum(level.square().sum() for level in m(x)).backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in m.parameters())


@pytest.mark.parametrize("sizes", [(4,), (2, 6), (2, 3, 5, 11)])
def test_bhccm_takes_any_number_of_levels(sizes):
    shapes = [tuple(level.shape) for level in BHCCM(8, sizes)(torch.randn(1, 8, 5, 4))]
    assert shapes == [(1, size, 5, 4) for size in sizes]


class ByHand(nn.Module):
    def __init__(self, classes=18, tail=None):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(4, 12, 3, stride=2, padding=1), nn.BatchNorm2d(12), nn.ReLU())
        self.classify = nn.Conv2d(12, classes, 1)
        self.auxiliary = nn.Conv2d(12, classes, 1)  # not on the way to the output
        self.tail = tail or nn.Identity()

    def forward(self, x):
        features = self.body(x)
        self.auxiliary(features)
        return self.tail(F.interpolate(self.classify(features), size=x.shape[-2:], mode="bilinear"))


def check_levels(model, batch, sizes=(4, 9, 18)):
    logits = model.eval()(batch)["logits"]
    b, _, h, w = batch["image"].shape
    assert [tuple(level.shape) for level in logits] == [(b, size, h, w) for size in sizes]
    HSCLoss(MM5B)(model(batch), {"label": torch.randint(0, 18, (b, h, w))})[0].backward()
    assert all(p.grad.abs().sum() > 0 for p in model.bhccm.parameters())


def test_hierarchical_on_a_hand_written_network():
    flat = ByHand().train()
    model = hierarchical(flat, MM5B)
    assert model.layer == "classify" and model.network.body.training
    assert isinstance(flat.classify, nn.Conv2d)  # the network given is untouched
    check_levels(model, {"image": torch.randn(2, 4, 20, 22)})


def test_hierarchical_is_bhccm_then_the_networks_own_tail():
    model = hierarchical(ByHand(), MM5B).eval()
    image = torch.randn(1, 4, 10, 12)
    by_hand = [F.interpolate(x, size=(10, 12), mode="bilinear") for x in model.bhccm(model.network.body(image))]
    for ours, theirs in zip(model({"image": image})["logits"], by_hand, strict=True):
        assert torch.allclose(ours, theirs, atol=1e-6)


def test_hierarchical_on_torchvision():
    from torchvision.models.segmentation import fcn_resnet50, lraspp_mobilenet_v3_large

    flat = lraspp_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=18)
    with pytest.raises(ValueError, match="two summed classifiers"):
        hierarchical(flat, MM5B)
    flat = fcn_resnet50(weights=None, weights_backbone=None, num_classes=18, aux_loss=True)
    model = hierarchical(flat, MM5B)
    assert model.layer == "classifier.4"
    outputs = model.eval()({"image": torch.randn(1, 3, 64, 64)})
    assert [level.shape[1] for level in outputs["logits"]] == [4, 9, 18] and outputs["aux"].shape[1] == 18


def test_hierarchical_on_segmentation_models_pytorch():
    import segmentation_models_pytorch as smp

    flat = smp.Unet("resnet18", encoder_weights=None, in_channels=4, classes=18)
    model = hierarchical(flat, MM5B)
    assert model.layer == "segmentation_head.0" and model.bhccm.heads[0].kernel_size == (3, 3)
    check_levels(model, {"image": torch.randn(2, 4, 64, 64)})


@pytest.mark.parametrize(
    "network, options, message",
    [
        (ByHand(17), {}, "18 outputs"),
        (ByHand(tail=nn.Softmax(1)), {}, "mixes or bends"),
        (ByHand(tail=nn.Sigmoid()), {}, "mixes or bends"),
        (ByHand(tail=nn.Conv2d(18, 18, 1)), {"layer": "classify"}, "does not run with BHCCM"),
        (ByHand(), {"layer": "absent"}, "no layer 'absent'"),
        (ByHand(), {"layer": "body"}, "Sequential"),
        (nn.Flatten(), {}, "no nn.Conv2d"),
    ],
)
def test_hierarchical_says_why_it_cannot(network, options, message):
    with pytest.raises((ValueError, RuntimeError), match=message):
        hierarchical(network, MM5B, **options)


def random_case(seed=0):
    torch.manual_seed(seed)
    logits = [torch.randn(2, size, 4, 5, requires_grad=True) for size in MM5B.sizes]
    label = torch.randint(0, 18, (2, 4, 5))
    label[0, 0] = 255
    label[1, 1] = MM5B.label_of("cropland")  # known at L1 and L2 only
    return logits, label


@pytest.mark.parametrize("consistency", ["path", "concat"])
def test_consistency_loss_against_a_loop(consistency):
    logits, label = random_case()
    targets, total, n = MM5B.targets(label), 0.0, 0
    for b in range(2):
        for i in range(4):
            for j in range(5):
                true = targets[b, :, i, j].tolist()
                if 255 in true:
                    continue
                pixel = [level[b, :, i, j].detach() for level in logits]
                if consistency == "path":
                    logs = [torch.log(torch.exp(p) / torch.exp(p).sum()) for p in pixel]
                    scores = [sum(log[c] for log, c in zip(logs, p, strict=True)) for p in MM5B.paths.tolist()]
                    own = MM5B.paths.tolist().index(true)
                    total -= math.log(math.exp(scores[own]) / sum(math.exp(score) for score in scores))
                else:
                    joint = torch.cat(pixel).softmax(0)
                    places = [true[0], 4 + true[1], 4 + 9 + true[2]]
                    total -= sum(math.log(joint[place]) for place in places)
                n += 1
    ours, parts = HSCLoss(MM5B, alpha=2.0, consistency=consistency)({"logits": logits}, {"label": label})
    assert parts["path_consistency"].item() == pytest.approx(total / n, rel=1e-5)
    expected = 2 * total / n
    for level in range(3):
        expected += F.cross_entropy(logits[level], targets[:, level], ignore_index=255).item()
    assert ours.item() == pytest.approx(expected, rel=1e-5)


def test_hce_counts_coarse_levels_where_the_leaf_is_unknown():
    logits, label = random_case()
    label[:] = MM5B.label_of("cropland")
    _, parts = HSCLoss(MM5B)({"logits": logits}, {"label": label})
    assert parts["cross_entropy_L1"] > 0 and parts["cross_entropy_L2"] > 0
    assert parts["cross_entropy_L3"] == 0 and parts["path_consistency"] == 0


@pytest.mark.parametrize("consistency", ["path", "concat", None])
def test_a_batch_of_ignored_pixels_gives_zero_and_zero_gradients(consistency):
    logits, label = random_case()
    loss, _ = HSCLoss(MM5B, consistency=consistency)({"logits": logits}, {"label": torch.full_like(label, 255)})
    loss.backward()
    assert loss.item() == 0 and all(level.grad.abs().max() == 0 for level in logits)


def test_concat_has_its_minimum_at_l_log_l_and_path_at_zero():
    label = torch.full((1, 1, 1), 9)
    perfect = [torch.full((1, size, 1, 1), -40.0) for size in MM5B.sizes]
    for level, index in zip(perfect, MM5B.targets(label)[0, :, 0, 0], strict=True):
        level[0, index] = 40.0
    concat = HSCLoss(MM5B, consistency="concat")({"logits": perfect}, {"label": label})[1]["path_consistency"]
    path = HSCLoss(MM5B, consistency="path")({"logits": perfect}, {"label": label})[1]["path_consistency"]
    assert concat.item() == pytest.approx(3 * math.log(3)) and path.item() == pytest.approx(0, abs=1e-6)


def test_level_weights_and_bad_arguments():
    logits, label = random_case()
    batch, outputs = {"label": label}, {"logits": logits}
    parts = HSCLoss(MM5B, consistency=None)(outputs, batch)[1]
    weighted = HSCLoss(MM5B, consistency=None, weights=(0.5, 2, 3))(outputs, batch)[0]
    expected = 0.5 * parts["cross_entropy_L1"] + 2 * parts["cross_entropy_L2"] + 3 * parts["cross_entropy_L3"]
    assert weighted.item() == pytest.approx(expected.item())
    with pytest.raises(ValueError, match="3 levels need 3 weights"):
        HSCLoss(MM5B, weights=(1, 2))
    with pytest.raises(ValueError, match="consistency is"):
        HSCLoss(MM5B, consistency="kl")
    with pytest.raises(ValueError, match="the model gives 1"):
        HSCLoss(MM5B)({"logits": logits[-1:]}, batch)
    with pytest.raises(ValueError, match="fusion is one of"):
        BHCCM(8, (2, 3), fusion="up")
