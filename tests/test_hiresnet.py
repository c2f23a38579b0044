"""Hi-ResNet: published sizes, HRNet against timm's, every part against its formula written out, losses against loops
and SciPy, the contract flat and with three levels."""

import functools
import itertools
import math

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from contract import ModelContract
from safetensors.torch import save_file
from scipy import ndimage
from torch import nn

from hierlab.hierars import hierarchical
from hierlab.hiresnet import (
    NETWORKS,
    OCR,
    VARIANTS,
    WEIGHTS,
    Funnel,
    HiResNetLoss,
    IABlock,
    InvertedBottleneck,
    MapAttention,
    WindowAttention,
    build,
    edge_aware,
    edge_distance,
    from_windows,
    generalised_dice,
    label_smoothing,
    to_windows,
)
from hierlab.networks import describe, load_weights
from hierlab.tree import IGNORE, ClassTree

MM5B, LOVEDA = ClassTree.load("mm5b"), ClassTree.load("loveda")
SMALL = {"width": 0.125, "depth": 0.1}


def count(module):
    return sum(parameter.numel() for parameter in module.parameters())


def randomise(module):
    """Random values for every parameter and statistic, so that no part hides behind a zero or a layer scale."""
    random = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
            if tensor.is_floating_point():
                tensor.copy_(torch.randn(tensor.shape, generator=random) * 0.3)
                tensor.abs_().add_(0.5) if name.endswith("running_var") else None
    return module.eval()


# ------------------------------------------------------------------------------------------------- the contract


class TestHiResNet(ModelContract):
    bands, classes = 4, 7

    def make(self, bands, classes):
        return build("hiresnet", bands, classes, **SMALL)

    def loss(self, outputs, batch):
        total, parts = HiResNetLoss(LOVEDA)(outputs, batch)
        assert len(parts) == 6
        return total


class TestBase(ModelContract):
    def make(self, bands, classes):
        return build("hiresnet-base-funnel", bands, classes, **SMALL)


class TestHierarchical(ModelContract):
    """Three levels, with nothing but ``hierarchical(model, tree)``."""

    classes, sizes, band_counts = 18, (4, 9, 18), (3,)

    def make(self, bands, classes):
        return hierarchical(build("hiresnet", bands, classes, **SMALL), MM5B)

    def loss(self, outputs, batch):
        return HiResNetLoss(MM5B)(outputs, batch)[0]


# --------------------------------------------------------------------------------------------- published sizes

PUBLISHED = {  # millions of parameters
    "hrnet-w48": 68.65,
    "hiresnet-v1": 96.56,
    "hiresnet-v2": 153.32,
    "hiresnet-base": 46.50,
    "hiresnet-base-funnel": 50.25,
    "hiresnet": 26.0,
}


@functools.cache
def full_size(name, ocr=None):
    options = {} if ocr is None else {"ocr": ocr}
    with torch.device("meta"):
        return build(name, 3, 6, **options)


@pytest.mark.parametrize("name", PUBLISHED)
def test_full_size_networks_have_the_published_parameters(name):
    millions, network = PUBLISHED[name], full_size(name)
    assert network.params_without_ocr / 1e6 == pytest.approx(millions, rel=0.02 if name == "hiresnet" else 0.005)
    if name == "hiresnet":
        second = 512 * 6 - 6  # OCR's half of the classifier, which then has no bias
        assert network.params_without_ocr == count(full_size(name, ocr=False)) + second < count(network)
    else:
        assert network.params_without_ocr == count(network)


def test_multiply_accumulates_are_the_published():
    assert describe(full_size("hiresnet-base"))["gmac"] == pytest.approx(139.4, rel=0.005)


def test_the_budget_of_the_blocks():
    network = full_size("hiresnet")
    blocks = [module for module in network.modules() if isinstance(module, IABlock)]
    assert len(blocks) == 2 * 4 + 4 * 3 * 12 == 152
    assert (network.params_without_ocr - sum(map(count, blocks))) / 1e6 == pytest.approx(7.55, abs=0.01)
    c = 96
    dense = 4 * c * c + 2 * c * c + c * c
    assert count(IABlock(c)) == dense + 81 * c + 2 * c + (3 + 1 + 1 + 2 + 1) * c  # kernel, BN, biases
    # the literal reading, a kernel of 7 and a usual SE would all miss 26.0M
    sizes = [48] * 52 + [96] * 52 + [192] * 48
    for other, below in (({"attention": "maps"}, 0.65), ({"kernel": 7}, 0.97), ({"reduction": 16}, 0.85)):
        with torch.device("meta"):
            blocks = {c: count(IABlock(c, **other)) for c in (48, 96, 192)}
        assert (7.55e6 + sum(blocks[c] for c in sizes)) / 26e6 < below


def test_stages_have_the_published_shapes():
    with torch.device("meta"):
        network = build("hiresnet", 3, 6, depth=0.1)
    stages = {s["name"]: (s["channels"], s["stride"]) for s in describe(network, size=512)["stages"]}
    assert stages == {
        "encoder 1": (48, 4),
        "encoder 2": (96, 8),
        "encoder 3": (192, 16),
        "decoder": (512, 4),
        "ocr": (512, 4),
        "classifier": (6, 4),
    }


# ------------------------------------------------------------------------------------------------- HRNet as timm's


def test_the_baseline_is_timms_hrnet_under_its_own_names(tmp_path, caplog):
    torch.manual_seed(1)
    theirs = timm.create_model("hrnet_w18_small_v2", num_classes=0).eval()
    for module in theirs.modules():
        if isinstance(module, nn.Upsample):  # segmentation resizes bilinearly
            module.mode, module.align_corners = "bilinear", False
    save_file(theirs.state_dict(), tmp_path / "hrnet.safetensors")
    ours = build(
        "hrnet-w48", 3, 5, channels=(18, 36, 72, 144), modules=(1, 3, 2), blocks=(2, 2, 2), stem_blocks=2
    ).eval()
    report = load_weights(ours, tmp_path / "hrnet.safetensors")
    own = [key for key in ours.state_dict() if key.startswith("encoder.")]
    assert set(own) == set(report["matched"]) and not report["mismatched"]
    image = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        x = theirs.act2(theirs.bn2(theirs.conv2(theirs.act1(theirs.bn1(theirs.conv1(image))))))
        for mine, their in zip(ours.encoder(image), theirs.stages(x), strict=True):
            torch.testing.assert_close(mine, their, rtol=1e-4, atol=1e-4)


def test_norm_comes_first_in_hiresnet_and_sums_are_its_fusion():
    torch.manual_seed(0)
    encoder = randomise(build("hiresnet", 3, 5, **SMALL)).encoder.model
    module = encoder.stage3[0]
    maps = [torch.randn(1, c, 16 // 2**i, 24 // 2**i) for i, c in enumerate(encoder.channels)]
    for branch in range(3):
        module.branches[branch] = nn.Identity()
    out = module(maps)

    def bn(x, layer):
        return F.batch_norm(x, layer.running_mean, layer.running_var, layer.weight, layer.bias)

    _, norm, conv = module.fuse_layers[0][2]  # 1/16 to 1/4
    up = F.conv2d(bn(F.interpolate(maps[2], scale_factor=4, mode="bilinear"), norm), conv.weight)
    _, norm, conv = module.fuse_layers[0][1]
    up = up + F.conv2d(bn(F.interpolate(maps[1], scale_factor=2, mode="bilinear"), norm), conv.weight)
    torch.testing.assert_close(out[0], maps[0] + up, rtol=1e-4, atol=1e-4)
    down = maps[0]
    for norm, conv in module.fuse_layers[2][0]:  # two steps down, linear
        down = F.conv2d(bn(down, norm), conv.weight, stride=2, padding=1)
    ((norm, conv),) = module.fuse_layers[2][1]
    down = down + F.conv2d(bn(maps[1], norm), conv.weight, stride=2, padding=1)
    torch.testing.assert_close(out[2], maps[2] + down, rtol=1e-4, atol=1e-4)


# ---------------------------------------------------------------------------------------------------- the funnel


def test_funnel():
    with torch.device("meta"):
        assert count(Funnel(3)) / 1e6 == pytest.approx(4.07, abs=0.01)  # blocks 4.03M and two convolutions
    torch.manual_seed(0)
    funnel = Funnel(5, 8, 2).eval()
    order = [type(module).__name__ for module in funnel.modules() if not list(module.children())][:4]
    assert order == ["BatchNorm2d", "Conv2d", "BatchNorm2d", "Conv2d"]
    x = torch.randn(2, 5, 32, 48)
    assert funnel(x).shape == (2, 32, 8, 12)
    assert all(torch.equal(block.scale, torch.full((32, 1, 1), 1e-6)) for block in list(funnel)[2:])
    block = randomise(InvertedBottleneck(3, 8))
    x = torch.randn(1, 3, 6, 5)
    y = F.conv2d(x, block.spread.weight, padding=1)
    y = F.batch_norm(y, block.norm.running_mean, block.norm.running_var, block.norm.weight, block.norm.bias)
    y = torch.einsum("oi,bihw->bohw", block.widen.weight[:, :, 0, 0], y) + block.widen.bias[:, None, None]
    y = 0.5 * y * (1 + torch.erf(y / 2**0.5))
    y = torch.einsum("oi,bihw->bohw", block.narrow.weight[:, :, 0, 0], y) + block.narrow.bias[:, None, None]
    torch.testing.assert_close(block(x), F.conv2d(x, block.skip.weight) + block.scale * y, rtol=1e-4, atol=1e-5)


# ------------------------------------------------------------------------------------------------------ IA block

SIZES = [(8, 12), (9, 6), (3, 2), (4, 5)]  # windows of 4: they divide the first only


@pytest.mark.parametrize("size", SIZES)
def test_windows_there_and_back(size):
    x = torch.randn(2, 3, *size)
    windows = to_windows(x, 4)
    assert windows.shape == (2, 3, math.ceil(size[0] / 4), math.ceil(size[1] / 4), 4, 4)
    assert torch.equal(from_windows(windows, *size), x)
    assert torch.equal(windows[1, 2, 0, 0, 1, : min(4, size[1])], x[1, 2, 1, :4])
    assert windows.sum() == pytest.approx(x.sum().item(), abs=1e-4)  # the rest is zeros


@pytest.mark.parametrize("size", SIZES)
def test_window_attention_against_a_loop(size):
    torch.manual_seed(0)
    layer = randomise(WindowAttention(6, window=4, head=2))
    assert layer.heads == 3
    x = torch.randn(2, 6, *size)
    q, k, v = layer.qkv(x).chunk(3, 1)
    gathered = torch.zeros_like(x)
    for b, top, left, head in itertools.product(range(2), range(0, size[0], 4), range(0, size[1], 4), range(3)):
        own = slice(2 * head, 2 * head + 2)
        place = (b, own, slice(top, top + 4), slice(left, left + 4))  # slices end at the edge: padding is not seen
        query, key, value = (t[place].flatten(1) for t in (q, k, v))  # (2, tokens)
        weight = (query.T @ key / 2**0.5).softmax(1)
        gathered[place] = (weight @ value.T).T.view_as(gathered[place])
    torch.testing.assert_close(layer(x), layer.project(gathered), rtol=1e-4, atol=1e-5)


def test_map_attention_against_a_loop():
    torch.manual_seed(0)
    layer = randomise(MapAttention(6, window=4))
    assert count(layer) == 4 * 4 * 4 + 4 * 4
    x = torch.randn(2, 6, 8, 7)
    padded, expected = F.pad(x, (0, 1)), torch.zeros(2, 6, 8, 8)
    for b, c, top, left in itertools.product(range(2), range(6), (0, 4), (0, 4)):
        rows = padded[b, c, top : top + 4, left : left + 4]  # four tokens of width four
        q, k, v = (rows @ layer.qkv.weight.T + layer.qkv.bias).split(4, 1)
        out = (q @ k.T / 2).softmax(1) @ v @ layer.project.weight.T + layer.project.bias
        expected[b, c, top : top + 4, left : left + 4] = out
    torch.testing.assert_close(layer(x), expected[..., :7], rtol=1e-4, atol=1e-5)


def test_ia_block_follows_fig_6():
    torch.manual_seed(0)
    block, x = randomise(IABlock(6, window=4, head=3, kernel=5, reduction=2)), torch.randn(2, 6, 9, 8)
    y = F.batch_norm(x, block.norm.running_mean, block.norm.running_var, block.norm.weight, block.norm.bias)
    y = y + block.attention(y)
    deep = F.conv2d(y, block.depthwise.weight, block.depthwise.bias, padding=2, groups=6)
    y = y + deep * torch.sigmoid(deep)
    hidden = y.mean((2, 3)) @ block.squeeze.weight[:, :, 0, 0].T + block.squeeze.bias
    assert hidden.shape == (2, 3)
    gate = torch.sigmoid((hidden * torch.sigmoid(hidden)) @ block.excite.weight[:, :, 0, 0].T + block.excite.bias)
    y = F.gelu(y * gate[:, :, None, None])
    torch.testing.assert_close(
        block(x), x + F.conv2d(y, block.project.weight, block.project.bias), rtol=1e-4, atol=1e-4
    )


def test_heads_always_divide_the_channels():
    assert [WindowAttention(c).heads for c in (48, 96, 192)] == [2, 4, 8]
    for channels in range(8, 200, 8):
        assert channels % WindowAttention(channels).heads == 0


# ----------------------------------------------------------------------------------------------------------- OCR


def test_ocr_against_loops():
    torch.manual_seed(0)
    ocr = randomise(OCR(6, 4))
    pixels, coarse = torch.randn(2, 6, 5, 3), torch.randn(2, 3, 5, 3)
    regions, relation = ocr.relations(pixels, coarse)
    query, refined = ocr.query(pixels), ocr(pixels, coarse)
    for b in range(2):
        feature = torch.zeros(6, 3)
        for k in range(3):
            share = coarse[b, k].flatten().softmax(0)  # over the pixels
            feature[:, k] = sum(w * p for w, p in zip(share, pixels[b].flatten(1).T, strict=True))
        torch.testing.assert_close(regions[b, :, :, 0], feature, rtol=1e-4, atol=1e-5)
        keys, values = (layer(feature[None, :, :, None])[0, :, :, 0] for layer in (ocr.key, ocr.value))
        for i, j in itertools.product(range(5), range(3)):
            weight = (keys.T @ query[b, :, i, j] / 2).softmax(0)
            torch.testing.assert_close(relation[b, :, i, j], weight, rtol=1e-4, atol=1e-5)
            context = ocr.widen((values @ weight)[None, :, None, None])
            alone = ocr.join(torch.cat([context, pixels[b : b + 1, :, i : i + 1, j : j + 1]], 1))
            torch.testing.assert_close(refined[b : b + 1, :, i : i + 1, j : j + 1], alone, rtol=1e-4, atol=1e-5)


def test_ocr_is_a_head_for_other_networks():
    import segmentation_models_pytorch as smp

    network = smp.Unet("resnet18", encoder_weights=None, classes=5, decoder_channels=(32, 16, 16, 16, 16))
    ocr, again = OCR(16, 8), nn.Conv2d(16, 5, 1)
    features = network.decoder(network.encoder(torch.randn(2, 3, 64, 64)))
    coarse = network.segmentation_head(features)
    refined = again(ocr(features, coarse))
    refined.square().mean().backward()
    assert refined.shape == coarse.shape
    assert all(p.grad is not None for p in [*network.segmentation_head.parameters(), *ocr.parameters()])


def test_logits_are_coarse_plus_refined_from_two_halves_of_one_convolution():
    torch.manual_seed(0)
    network = build("hiresnet", 3, 7, **SMALL).eval()
    seen = {}
    network.decoder.register_forward_hook(lambda _m, _i, output: seen.update(pixels=output))
    image = torch.randn(2, 3, 50, 70)
    with torch.no_grad():
        outputs = network({"image": image})
        (logits,) = outputs["logits"]
        torch.testing.assert_close(logits, outputs["coarse"] + outputs["refined"], rtol=1e-4, atol=1e-5)
        half = network.classifier.in_channels // 2
        coarse = F.conv2d(seen["pixels"], network.classifier.weight[:, :half])
        torch.testing.assert_close(
            outputs["coarse"],
            F.interpolate(coarse, scale_factor=4, mode="bilinear")[..., :50, :70],
            rtol=1e-4,
            atol=1e-5,
        )
        network.classifier.weight[:, half:] *= -1  # the refined classifier alone
        turned = network({"image": image})
    torch.testing.assert_close(turned["coarse"], outputs["coarse"])
    torch.testing.assert_close(turned["refined"], -outputs["refined"])


# --------------------------------------------------------------------------------------------------------- losses


def case(classes=4, size=(9, 11), seed=0):
    torch.manual_seed(seed)
    logits, target = torch.randn(2, classes, *size) * 2, torch.randint(0, classes - 1, (2, *size))  # the last: absent
    target[0, :2], target[1, 3:5, 4:] = IGNORE, IGNORE
    return logits.requires_grad_(), target


@pytest.mark.parametrize("power", [1, 2])
def test_generalised_dice_against_a_loop(power):
    logits, target = case()
    p, both, either = logits.detach().softmax(1).movedim(1, -1), 0.0, 0.0
    for k in range(4):
        true, predicted = [], []
        for y, row in zip(target.flatten().tolist(), p.flatten(0, 2), strict=True):
            if y != IGNORE:
                true.append(float(y == k))
                predicted.append(row[k].item())
        if sum(true):
            w = 1 / sum(true) ** power
            both += w * sum(r * q for r, q in zip(true, predicted, strict=True))
            either += w * sum(r + q for r, q in zip(true, predicted, strict=True))
    assert generalised_dice(logits, target, power).item() == pytest.approx(1 - 2 * both / either, rel=1e-5)
    perfect = 50.0 * F.one_hot(target % 4, 4).movedim(-1, 1)
    assert generalised_dice(perfect, target).item() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_label_smoothing_against_a_loop(smoothing):
    logits, target = case()
    log, total, n = logits.detach().log_softmax(1), 0.0, 0
    for b, i, j in itertools.product(range(2), range(9), range(11)):
        if target[b, i, j] != IGNORE:
            for k in range(4):
                y = 1 - smoothing if k == target[b, i, j] else smoothing / 3
                total -= y * log[b, k, i, j].item()
            n += 1
    assert label_smoothing(logits, target, smoothing).item() == pytest.approx(total / n, rel=1e-5)


def cityblock(mask):
    """Distance to the other side of the edge by SciPy, 0 where there is none."""
    if mask.all() or not mask.any():
        return np.zeros(mask.shape)
    inside = ndimage.distance_transform_cdt(mask, "taxicab")
    return np.where(mask, inside, ndimage.distance_transform_cdt(~mask, "taxicab")).astype(float)


@pytest.mark.parametrize("size", [(12, 17), (1, 9), (16, 16)])
def test_distances_are_exact_when_the_steps_suffice(size):
    random = np.random.default_rng(0)
    masks = random.random((6, *size)) < np.array([0.02, 0.1, 0.5, 0.9, 0.0, 1.0])[:, None, None]
    masks[0, 0, 0] = True
    given = torch.from_numpy(masks)[:, None]
    exact = np.stack([cityblock(mask) for mask in masks])
    enough = sum(size) - 2
    assert np.array_equal(edge_distance(given, steps=enough)[:, 0].numpy(), exact)
    corner = torch.zeros(1, 1, *size, dtype=torch.bool)
    corner[..., 0, 0] = True
    assert edge_distance(corner, steps=enough).max() == enough  # the farthest that there is
    for steps in (1, 3):  # beyond the steps they saturate
        assert np.array_equal(edge_distance(given, steps=steps)[:, 0].numpy(), np.minimum(exact, steps))


def test_unknown_pixels_make_no_edge():
    mask = torch.zeros(1, 1, 5, 9, dtype=torch.bool)
    mask[..., :4] = True
    known = torch.ones_like(mask)
    known[..., 4:7] = False  # between the class and the rest
    distance = edge_distance(mask, known, steps=20)[0, 0, 2]
    assert distance[:4].tolist() == [7, 6, 5, 4] and distance[7:].tolist() == [4, 5]
    known[..., 4:] = False  # nothing else is known: no edge at all
    assert edge_distance(mask, known, steps=20)[..., :4].max() == 0


@pytest.mark.parametrize("beta", [1.0, 2.0])
def test_cea_is_equations_5_to_7(beta):
    logits, target = case(size=(8, 10))
    target[target == IGNORE] = 0
    p, total, n = logits.detach().softmax(1), 0.0, 0
    for b, k in itertools.product(range(2), range(4)):
        true = (target[b] == k).numpy()
        if true.any():
            far = cityblock(true) ** beta + cityblock(p[b, k].numpy() > 0.5) ** beta
            total += (((true - p[b, k].numpy()) ** 2) * far).sum()
            n += true.size
    assert n == 2 * 3 * 80  # the fourth class is absent
    ours = edge_aware(logits, target, beta=beta, steps=16, classes="all")
    assert ours.item() == pytest.approx(total / n, rel=1e-5)


def test_cea_has_a_gradient_through_p_and_none_through_d():
    logits, target = case()
    loss = edge_aware(logits, target, classes="all")
    (slope,) = torch.autograd.grad(loss, logits)
    known = (target != IGNORE)[:, None].expand_as(slope)
    assert (slope[known] != 0).float().mean() > 0.9 and (slope[~known] == 0).all()
    true, p = F.one_hot(target % IGNORE, 4).movedim(-1, 1), logits.softmax(1)
    known = (target != IGNORE)[:, None]
    present = torch.tensor([True, True, True, False]).view(1, 4, 1, 1)
    maps = torch.stack([(true * known).bool(), p > 0.5]).flatten(0, 2)[:, None]
    far = edge_distance(maps, known.expand(2, 4, 9, 11).flatten(0, 1)[:, None].repeat(2, 1, 1, 1))
    assert not far.requires_grad
    far = (far**2).view(2, 2, 4, 9, 11).sum(0)  # a constant: the slope is that of (T − P)² alone
    constant = ((true - p).square() * far * known * present).sum() / (known.sum() * 3)
    torch.testing.assert_close(slope, torch.autograd.grad(constant, logits)[0])


def test_cea_draws_a_class_of_the_batch_each_step():
    logits, target = case()
    alone = []
    for k in range(3):  # the loss of class k against the rest, from all classes with the others made absent
        only = edge_aware(logits, target, classes="all") * 0
        p = logits.softmax(1)[:, k : k + 1]
        pair = torch.cat([(1 - p).log(), p.log()], 1)  # softmax gives 1 - p and p back
        known = target != IGNORE
        two = torch.where(known, (target == k).long(), IGNORE)
        both = edge_aware(pair, two, classes="all")  # class and rest err alike, and have one edge
        alone.append((only + both).item())
    assert len({round(value, 4) for value in alone}) == 3
    drawn = {round(edge_aware(logits, target).item(), 4) for _ in range(60)}
    assert drawn == {round(value, 4) for value in alone}


def test_ignored_pixels_never_count():
    logits, target = case()
    other = torch.where((target == IGNORE)[:, None], torch.randn_like(logits) * 9, logits.detach())
    for loss in (generalised_dice, label_smoothing, lambda *a: edge_aware(*a, classes="all")):
        assert loss(other, target).item() == pytest.approx(loss(logits, target).item(), rel=1e-6)


@pytest.mark.parametrize("classes", ["random", "all"])
def test_absent_classes_and_maps_without_an_edge(classes):
    logits, target = case()
    nothing = torch.full_like(target, IGNORE)
    for loss in (generalised_dice, label_smoothing, lambda *a: edge_aware(*a, classes=classes)):
        value = loss(logits, nothing)
        (slope,) = torch.autograd.grad(value, logits)
        assert value == 0 and torch.equal(slope, torch.zeros_like(slope))
    one = torch.full_like(target, 2)  # one class all over, rightly and with certainty: no edge anywhere
    certain = torch.full_like(logits, -50.0)
    certain[:, 2] = 50.0
    assert edge_aware(certain, one, classes=classes) == 0
    wrong = certain.roll(1, 1)  # all of it class 3: an error, but still no edge
    assert edge_aware(wrong, one, classes=classes) == 0 and label_smoothing(wrong, one) > 1


def outputs_of(tree, heads=("coarse", "refined"), seed=0):
    torch.manual_seed(seed)
    outputs = {name: torch.randn(2, tree.num_leaves, 9, 8, requires_grad=True) for name in heads}
    label = torch.randint(0, tree.num_leaves, (2, 9, 8))
    label[0, 0] = IGNORE
    return {**outputs, "logits": [sum(outputs.values())]}, label


@pytest.mark.parametrize("weights", ["v1", "v2", "v4", (1.0, 1.0, 0.0)])
@pytest.mark.parametrize("ratio", [(1.0, 1.0), (1.0, 0.4), (0.4, 1.0), (0.0, 1.0)])
def test_the_sum_is_equations_8_and_9(weights, ratio):
    outputs, label = outputs_of(LOVEDA)
    alpha, beta, gamma = WEIGHTS[weights] if isinstance(weights, str) else weights
    expected = 0.0
    for name, r in zip(("coarse", "refined"), ratio, strict=True):
        x = outputs[name]
        parts = generalised_dice(x, label), label_smoothing(x, label), edge_aware(x, label, steps=3, classes="all")
        expected += r * (alpha * parts[0] + beta * parts[1] + gamma * parts[2]).item()
    loss = HiResNetLoss(LOVEDA, weights, ratio, edges={"steps": 3, "classes": "all"})
    total, parts = loss(outputs, {"label": label})
    assert total.item() == pytest.approx(expected, rel=1e-5)
    heads = {"coarse", "refined"} if ratio[0] else {"refined"}
    names = {"dice", "label_smoothing"} | ({"edge_aware"} if gamma else set())
    assert set(parts) == {f"{head}_{name}" for head in heads for name in names}


def test_published_weights():
    assert WEIGHTS["v4"] == pytest.approx((0.3923, 0.3923, 0.2153), abs=1e-4)
    outputs, label = outputs_of(LOVEDA)
    drawn = HiResNetLoss(LOVEDA, "v3", edges={"classes": "all"})
    values = {round(drawn(outputs, {"label": label})[0].item(), 5) for _ in range(5)}
    assert len(values) == 5  # new weights each step
    total, parts = drawn(outputs, {"label": label})
    refined = [value.item() for name, value in parts.items() if name.startswith("refined")]
    coarse = [value.item() for name, value in parts.items() if name.startswith("coarse")]
    sums = [a + b for a, b in zip(coarse, refined, strict=True)]
    assert min(sums) < total.item() < max(sums)  # the weights are positive and sum to 1


def test_the_loss_sums_levels_and_takes_models_without_ocr():
    outputs, label = outputs_of(MM5B)
    targets = MM5B.targets(label)
    joined = {name: torch.randn(2, sum(MM5B.sizes), 9, 8) for name in ("coarse", "refined")}
    expected = 0.0
    for x in joined.values():
        for level, y in zip(x.split(MM5B.sizes, 1), targets.unbind(1), strict=True):
            expected += (generalised_dice(level, y) + label_smoothing(level, y)).item()
    loss = HiResNetLoss(MM5B, (1, 1, 0))
    assert loss({**joined, "logits": []}, {"label": label})[0].item() == pytest.approx(expected, rel=1e-5)
    flat = {"logits": outputs["logits"]}
    total, parts = loss(flat, {"label": label})
    by_hand = generalised_dice(outputs["logits"][0], label) + label_smoothing(outputs["logits"][0], label)
    assert total.item() == pytest.approx(by_hand.item(), rel=1e-5) and set(parts) == {"dice", "label_smoothing"}


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"weights": "v5"}, "v1, v2, v3, v4"),
        ({"weights": (1.0, 1.0)}, "3 numbers"),
        ({"weights": (1.0, -1.0, 1.0)}, "at least 0"),
        ({"ratio": (0.0, 0.0)}, "not all 0"),
    ],
)
def test_losses_say_what_is_wrong(options, said):
    with pytest.raises(ValueError, match=said):
        HiResNetLoss(LOVEDA, **options)
    with pytest.raises(ValueError, match="'random' or 'all'"):
        edge_aware(*case(), classes="one")


# ----------------------------------------------------------------------------------------------------- the builder


def test_names_and_settings():
    assert set(NETWORKS) == set(VARIANTS) == set(PUBLISHED)
    for name in NETWORKS:
        network = build(name, 2, 3, **SMALL)
        assert network.name == name and network({"image": torch.randn(1, 2, 33, 65)})["logits"][0].shape[1:] == (
            3,
            33,
            65,
        )
    for option in (
        {"stem": "bottleneck"},
        {"block": "basic"},
        {"norm_first": False},
        {"ocr": False},
        {"channels": (24, 40), "modules": (2,), "blocks": (3,)},
        {"ia": {"attention": "maps", "window": 5}},
        {"ia": {"kernel": 3, "reduction": 4, "window": 4, "head": 8}},
    ):
        network = build("hiresnet", 2, 3, **SMALL, **option)
        outputs = network({"image": torch.randn(1, 2, 33, 65)})
        assert outputs["logits"][0].shape == (1, 3, 33, 65)
        assert ("coarse" in outputs) == option.get("ocr", True)
    narrow, full = build("hiresnet", 3, 5, width=0.5, depth=0.5), full_size("hiresnet")
    assert narrow.encoder.model.channels == tuple(c // 2 for c in full.encoder.model.channels)
    assert [len(narrow.encoder.model.stage3), len(narrow.encoder.model.stage3[0].branches[0])] == [2, 6]


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("hiresnet-v3", {}, "hiresnet-base-funnel"),
        ("hiresnet", {"bands": 0}, "bands=0"),
        ("hiresnet", {"colour": 1}, "no setting colour"),
        ("hiresnet", {"blocks": (4, 4, 4)}, "n modules and n blocks"),
        ("hiresnet", {"stem": "wide"}, "bottleneck, funnel"),
        ("hiresnet", {"weights": "imagenet"}, "no ImageNet weights"),
        ("hiresnet", {"ia": {"attention": "linear"}}, "tokens or maps"),
        ("hiresnet", {"ia": {"kernel": 4}}, "odd kernel"),
        ("hiresnet", {"ia": {"colour": 1}}, "ia has no setting colour; it has window"),
    ],
)
def test_what_cannot_be_built_says_why(name, options, said):
    with pytest.raises(ValueError, match=said):
        build(name, options.pop("bands", 3), 5, **SMALL, **options)


def test_wrong_number_of_bands_says_so():
    with pytest.raises(ValueError, match=r"images \(B, 3, H, W\), given \(1, 4, 32, 32\)"):
        build("hiresnet", 3, 5, **SMALL)({"image": torch.zeros(1, 4, 32, 32)})


def test_bhccm_takes_the_place_of_the_one_classifier():
    torch.manual_seed(0)
    model = hierarchical(build("hiresnet", 3, 18, **SMALL), MM5B).eval()
    assert model.layer == "classifier" and model.bhccm.in_channels == 2 * model.network.ocr.value[0].in_channels
    outputs = model({"image": torch.randn(1, 3, 32, 32)})
    assert [level.shape[1] for level in outputs["logits"]] == [4, 9, 18]
    assert outputs["coarse"].shape[1] == outputs["refined"].shape[1] == 31


def test_it_learns_a_drawn_patch():
    label = torch.zeros(1, 64, 64, dtype=torch.long)
    label[:, 10:30, 5:40], label[:, 20:60, 44:58], label[:, 40:44], label[:, :, 60:] = 1, 2, 3, IGNORE
    color = torch.randn(4, 3)
    batch = {"image": color[label % IGNORE].movedim(-1, 1) + 0.3 * torch.randn(1, 3, 64, 64), "label": label}
    known = label != IGNORE
    majority = label[known].bincount().max().item() / known.sum().item()
    model, loss = build("hiresnet", 3, 7, width=0.125, depth=0.1), HiResNetLoss(LOVEDA)
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    for _ in range(40):
        optimizer.zero_grad()
        loss(model(batch), batch)[0].backward()
        optimizer.step()
    right = (model(batch)["logits"][0].argmax(1) == label)[known].float().mean().item()
    assert right > majority + 0.5 * (1 - majority), f"{right:.2f} of the pixels, the majority class has {majority:.2f}"
