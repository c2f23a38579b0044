"""TransLU: the attention against a loop, exactness at the start, what is frozen and what learns, masks and guide, the
loss, the fused prediction."""

import copy

import pytest
import torch
import torch.nn.functional as F
from contract import ModelContract
from torch import nn

from hierlab._blocks import blocks_of
from hierlab.crosswalk import Crosswalk
from hierlab.hierars import HSCLoss, hierarchical
from hierlab.networks import build
from hierlab.networks.deformable import DeformableAttention, _sample_by_index, sample
from hierlab.translu import CDKS, CDSA, BranchInteraction, TransLU, TransLULoss, fused_prediction
from hierlab.tree import ClassTree

MM5B, CROPS = ClassTree.load("mm5b"), ClassTree.load("crop10m")
TO_CROPS = Crosswalk.load("landuse-to-crops")
NARROW = {
    "convnext_base-upernet": {"width": 0.125, "depth": 0.04},
    "deit3_base-upernet": {"width": 0.09, "depth": 0.3},
    "swin_tiny-upernet": {"width": 0.34, "depth": 0.2, "decoder": {"channels": 64}},
    "segnext-s": {"width": 0.125, "depth": 0.5},
    "resnet18-unet": {"width": 0.25},
    "mobilenetv3_small_050-unet": {},
}


def source_model(name="convnext_base-upernet", bands=3):
    return hierarchical(build(name, bands, 18, **NARROW[name]), MM5B)


def randomise(module, scale=0.3):
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn_like(parameter) * scale)
    return module


class Contract(ModelContract):
    classes = 4
    sizes = (2, 2, 4)
    band_counts = (10,)
    name = "convnext_base-upernet"

    def make(self, bands, classes):
        return TransLU(source_model(self.name, bands), TO_CROPS)


class TestConvNeXt(Contract):
    pass


class TestDeiT(Contract):
    name = "deit3_base-upernet"

    def make(self, bands, classes):
        return TransLU(source_model(self.name, bands), TO_CROPS, merge="steps", others="complement")


# ------------------------------------------------------------------------------------------- deformable attention


def bilinear(grid, x, y):
    """The value of grid[:, row, column], pixel centres at .5, at (x, y) in pixels; 0 outside."""
    _, h, w = grid.shape
    total = torch.zeros(len(grid))
    for row in range(h):
        for column in range(w):
            near = max(0.0, 1 - abs(x - column - 0.5)) * max(0.0, 1 - abs(y - row - 0.5))
            total += near * grid[:, row, column]
    return total


def test_deformable_attention_is_its_formula():
    h, w, d, m, k = 4, 6, 8, 2, 3
    layer = randomise(DeformableAttention(d, heads=m, points=k, ratio=0.75), 1.0)
    query, value = torch.randn(2, h * w, d), torch.randn(2, h * w, d)
    ours = layer(query, value, (h, w))
    c = 6 // m
    for b in range(2):
        v = (value[b] @ layer.value.weight.T + layer.value.bias).T.reshape(m, c, h, w)
        for n in range(h * w):
            offsets = (layer.offsets.weight @ query[b, n] + layer.offsets.bias).reshape(m, k, 2)
            weights = (layer.weights.weight @ query[b, n] + layer.weights.bias).reshape(m, k)
            heads = []
            for head in range(m):
                a = weights[head].exp() / weights[head].exp().sum()
                x, y = n % w + 0.5 + offsets[head, :, 0], n // w + 0.5 + offsets[head, :, 1]
                heads.append(sum(a[i] * bilinear(v[head], x[i].item(), y[i].item()) for i in range(k)))
            expected = layer.out.weight @ torch.cat(heads) + layer.out.bias
            torch.testing.assert_close(ours[b, n], expected, rtol=1e-3, atol=1e-4)


def test_deterministic_sampling_gives_the_same_values_and_gradients():
    values, places = torch.randn(3, 5, 4, 7), torch.rand(3, 11, 2, 2) * 3 - 1.5  # a third of them outside
    both = []
    for function in (sample, _sample_by_index):
        v, p = values.clone().requires_grad_(), places.clone().requires_grad_()
        out = function(v, p)
        (out * torch.arange(out.numel()).view_as(out)).sum().backward()
        both.append((out, v.grad, p.grad))
    for one, other in zip(*both, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-3)
    assert both[0][0].shape == (3, 5, 11, 2)


def test_attention_starts_as_rings_around_each_pixel():
    layer = DeformableAttention(32, heads=8, points=4)
    offsets = layer.offsets(torch.randn(1, 32)).view(8, 4, 2)
    assert torch.allclose(offsets.abs().amax(-1), torch.arange(1.0, 5).expand(8, 4), atol=1e-6)
    assert offsets[0, 2].tolist() == pytest.approx([3, 0]) and offsets[2, 0].tolist() == pytest.approx([0, 1], abs=1e-6)
    with pytest.raises(ValueError, match="no multiple of 16 heads"):
        DeformableAttention(24)


# ------------------------------------------------------------------------------------------------------------ CDKS


@pytest.mark.parametrize(("width", "parameters"), [(128, 67_552), (256, 216_832), (512, 761_152), (1024, 2_832_832)])
def test_interaction_units_have_the_published_size(width, parameters):
    with torch.device("meta"):
        unit = BranchInteraction(width)
    assert sum(p.numel() for p in unit.parameters()) == parameters
    assert unit.attention.heads == 16 and unit.attention.points == 4 and unit.drop_path.drop_prob == 0.4


def test_interaction_unit_is_equations_7_and_8():
    unit = randomise(BranchInteraction(16, heads=2)).eval()
    x1, x2 = torch.randn(2, 12, 16), torch.randn(2, 12, 16)

    def norm(x, layer):
        centred = x - x.mean(-1, keepdim=True)
        return centred / (centred.square().mean(-1, keepdim=True) + 1e-6).sqrt() * layer.weight + layer.bias

    fc = x2 @ unit.project.weight.T + unit.project.bias
    attended = unit.attention(norm(x1, unit.norm_query), norm(fc, unit.norm_value), (3, 4))
    hat = x1 + unit.gamma * attended
    hidden = unit.ffn.inward(norm(hat, unit.norm_ffn)).mT.reshape(2, 4, 3, 4)
    kernel = unit.ffn.depthwise.weight[:, 0]
    windows = F.pad(hidden, (1, 1, 1, 1)).unfold(2, 3, 1).unfold(3, 3, 1)
    hidden = (windows * kernel[None, :, None, None]).sum((-2, -1)) + unit.ffn.depthwise.bias[:, None, None]
    refined = unit.ffn.outward(F.gelu(hidden).flatten(2).mT)
    torch.testing.assert_close(unit(x1, x2, (3, 4)), hat + unit.tau * refined, rtol=1e-4, atol=1e-5)


def test_places_of_the_interactions():
    with torch.device("meta"):
        convnext, deit = (build(name, 3, 18) for name in ("convnext_base-upernet", "deit3_base-upernet"))
        shared = CDKS(convnext)
    counted, number = {}, 0  # blocks and downsamplers in one row, as the published runs count them
    for stage, names in enumerate(blocks_of(convnext.encoder)):
        number += stage > 0
        for name in names:
            counted[name], number = number, number + 1
    assert number == 39
    assert [counted[name] for name in shared.blocks] == [2, 6, 10, 13, 16, 19, 22, 25, 28, 31, 34, 38]
    assert [unit.gamma.numel() for unit in shared.units] == [128, 256, *[512] * 9, 1024]
    assert shared.merged == [0, 1, 2, 3] and [len(w) for w in shared.w] == [2] * 4
    with torch.device("meta"):
        shared = CDKS(deit)
    assert shared.blocks == [f"model.model.blocks.{i}" for i in range(12)] and shared.merged == [3]
    convolutions = [m for m in shared.sides.modules() if isinstance(m, nn.Conv2d)]
    assert [c.kernel_size for c in convolutions] == [(3, 3)] * 4
    with torch.device("meta"):
        assert len(CDKS(convnext, interval=9).blocks) == 6 and len(CDKS(deit, merge="none").w) == 0
        with pytest.raises(ValueError, match="merge is one of"):
            CDKS(convnext, merge="sum")
    with pytest.raises(ValueError, match="knows no blocks"):
        blocks_of(build("vgg11-upernet", 3, 2, decoder={"channels": 16}).encoder)


def single(model):
    """Branch 1 alone, as a hierarchical network of its own."""
    return copy.deepcopy(model.branch1).eval()


@pytest.mark.parametrize(
    ("name", "merge"), [*((name, "steps") for name in NARROW), *((name, "none") for name in list(NARROW)[:2])]
)
def test_at_the_start_branch_1_is_the_single_model_bit_for_bit(name, merge):
    model = TransLU(source_model(name), TO_CROPS, cdsa=False, merge=merge).eval()
    batch = {"image": torch.randn(2, 3, 70, 96)}
    with torch.no_grad():
        ours, alone = model(batch), single(model)(batch)
        source = model.branch2(batch)
    assert all(torch.equal(a, b) for a, b in zip(ours["logits"], alone["logits"], strict=True))
    assert all(torch.equal(a, b) for a, b in zip(ours["source_logits"], source["logits"], strict=True))
    randomise(model.cdks, 0.1)
    with torch.no_grad():
        assert not torch.equal(model(batch)["logits"][-1], ours["logits"][-1])


@pytest.mark.parametrize("name", ["convnext_base-upernet", "deit3_base-upernet"])
def test_merged_outputs_start_from_the_maps_of_the_single_model(name):
    model = TransLU(source_model(name), TO_CROPS, cdsa=False).eval()
    image = torch.randn(1, 3, 64, 96)
    seen = {}
    hook = model.branch1.network.decoder.register_forward_hook(lambda _, inputs, out: seen.update(maps=inputs[0]))
    with torch.no_grad():
        model({"image": image})
        hook.remove()
        alone = single(model).network.encoder(image)
        assert len(model.cdks.merged) == (1 if model.cdks.plain else 4)
        for i, (own, merged) in enumerate(zip(alone, seen["maps"], strict=True)):
            if i in model.cdks.merged:
                one, two = model.cdks.sides[model.cdks.merged.index(i)]
                own = one(own) + two(own)  # both branches have the same maps at the start, both scalars are 1
            assert torch.equal(own, merged)


def test_branch_1_starts_from_the_weights_of_the_source_but_for_its_head():
    source = source_model()
    model = TransLU(source, TO_CROPS)
    own, given = model.branch1.network.state_dict(), source.network.state_dict()
    same = [key for key in given if not key.startswith("classifier.")]
    assert all(torch.equal(own[key], given[key]) for key in same) and len(same) > 50
    assert [head.out_channels for head in model.branch1.bhccm.heads] == [2, 2, 4]
    other = build("convnext_base-upernet", 3, 4, **NARROW["convnext_base-upernet"])
    model = TransLU(source, TO_CROPS, start=other)
    assert all(torch.equal(model.branch1.network.state_dict()[key], other.state_dict()[key]) for key in same)


def test_the_encoder_is_left_as_it_was():
    model = TransLU(source_model("resnet18-unet"), TO_CROPS).train()
    model({"image": torch.randn(2, 3, 64, 64)})
    assert not any(module._forward_hooks for module in model.modules())
    assert model.branch1.training and model.branch1.network.encoder.training


# ------------------------------------------------------------------------------------------- frozen and learning


@pytest.mark.parametrize("name", ["resnet18-unet", "segnext-s", "convnext_base-upernet"])
def test_branch_2_never_changes(name):
    model = TransLU(source_model(name), TO_CROPS)
    before = copy.deepcopy(model.branch2.state_dict())
    one = copy.deepcopy(model.branch1.state_dict())
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.5)
    batch = {"image": torch.randn(2, 3, 64, 64), "label": torch.randint(4, (2, 64, 64))}
    model.train()
    for module in (model.branch2, *model.branch2.modules()):
        module.train()
    expected = copy.deepcopy(model.branch2).eval()(batch)["logits"]
    outputs = model(batch)
    assert all(torch.equal(a, b) for a, b in zip(outputs["source_logits"], expected, strict=True))
    TransLULoss(CROPS)(outputs, batch)[0].backward()
    optimizer.step()
    after = model.branch2.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(before[key], after[key]) for key in before)
    assert any(not torch.equal(one[key], value) for key, value in model.branch1.state_dict().items())
    assert not any(p.requires_grad for p in model.branch2.parameters())


@pytest.mark.parametrize("name", ["convnext_base-upernet", "deit3_base-upernet"])
def test_gradients_reach_gamma_and_tau(name):
    model = TransLU(source_model(name), TO_CROPS, drop_path=0.0).train()
    batch = {"image": torch.randn(2, 3, 64, 64), "label": torch.randint(4, (2, 64, 64))}
    TransLULoss(CROPS)(model(batch), batch)[0].backward()
    for unit in model.cdks.units:
        assert unit.gamma.grad.abs().sum() > 0 and unit.tau.grad.abs().sum() > 0
    assert all(w.grad.abs().min() > 0 for w in model.cdks.w)
    randomise(model.cdks, 0.1)  # γ and τ have opened; the rest of each unit learns
    model.zero_grad()
    TransLULoss(CROPS)(model(batch), batch)[0].backward()
    silent = [name for name, p in model.cdks.named_parameters() if p.grad.abs().sum() == 0]
    assert not silent


def test_components_can_be_switched_off():
    source, batch = source_model(), {"image": torch.randn(1, 3, 64, 64)}
    plain = TransLU(source, TO_CROPS, cdks=False, cdsa=False)
    assert set(plain.train()(batch)) == {"logits"} and set(plain.eval()(batch)) == {"logits", "source_logits"}
    assert set(TransLU(source, TO_CROPS, cdsa=False).train()(batch)) == {"logits", "source_logits"}
    assert set(TransLU(source, TO_CROPS, cdks=False).train()(batch)) == {"logits", "source_logits", "guide"}
    trained = {n for n, p in plain.named_parameters() if p.requires_grad}
    assert trained == {n for n, _ in plain.named_parameters() if n.startswith("branch1.")}


def test_what_does_not_go_together_says_so():
    with pytest.raises(ValueError, match="made hierarchical"):
        TransLU(build("convnext_base-upernet", 3, 18, **NARROW["convnext_base-upernet"]), TO_CROPS)
    flipped = Crosswalk(CROPS, CROPS, {(1, 1): [(1, 1)]}, [(0, 0)])
    with pytest.raises(ValueError, match=r"\(4, 9, 18\) classes a level.*\(2, 2, 4\)"):
        TransLU(source_model(), flipped)
    leaves = Crosswalk(CROPS, CROPS, {(2, i): [(2, i)] for i in range(4)})
    with pytest.raises(ValueError, match="no class above the leaves"):
        CDSA(leaves)
    with pytest.raises(ValueError, match="others is one of"):
        CDSA(TO_CROPS, others="drop")


# ------------------------------------------------------------------------------------------------------------ CDSA


def land_use_logits(scale=3.0):
    torch.manual_seed(5)
    return [scale * torch.randn(2, size, 8, 8) for size in MM5B.sizes]


def test_soft_masks_are_probabilities_of_the_right_channels():
    logits = land_use_logits(30.0)
    soft = CDSA(TO_CROPS).soft_masks(logits)
    vegetation = logits[0].exp()[:, 0] / logits[0].exp().sum(1)
    cropland = logits[1].exp()[:, 0] / logits[1].exp().sum(1)
    assert {level: list(masks) for level, masks in soft.items()} == {0: [1], 1: [1]}  # vegetation, cropland
    torch.testing.assert_close(soft[0][1], vegetation)
    torch.testing.assert_close(soft[1][1], cropland)
    assert all(mask.min() >= 0 and mask.max() <= 1 for masks in soft.values() for mask in masks.values())
    whole = Crosswalk(MM5B, CROPS, {(0, 1): [(0, k) for k in range(4)]}, [(0, 0)])  # a union of everything
    assert torch.allclose(CDSA(whole).soft_masks(logits)[0][1], torch.ones(2, 8, 8))
    assert CDSA(whole).soft_masks(logits)[0][1].max() <= 1


@pytest.mark.parametrize("others", ["keep", "complement"])
def test_masks_act_before_bhccm_as_in_equations_9_to_13(others):
    model = TransLU(source_model(), TO_CROPS, cdks=False, others=others).eval()
    batch = {"image": torch.randn(1, 3, 64, 64)}
    seen = {}
    source, bhccm = model.branch2.bhccm, model.branch1.bhccm
    hooks = [
        source.register_forward_hook(lambda _m, _i, out: seen.update(source=out)),
        bhccm.register_forward_hook(lambda _m, inputs, out: seen.update(features=inputs[0], out=out)),
    ]
    with torch.no_grad():
        model(batch)
        for hook in hooks:
            hook.remove()
        z = [head(seen["features"]) for head in bhccm.heads]
        for level in (0, 1):
            mask = seen["source"][level].softmax(1)[:, 0]
            z[level][:, 1] *= mask
            if others == "complement":
                z[level][:, 0] *= 1 - mask
        expected = bhccm._fuse(bhccm._fuse(z, bhccm.down, bhccm.w), bhccm.up, bhccm.y)
    for ours, theirs in zip(seen["out"], expected, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_guide_is_the_argmax_of_branch_2_in_the_new_trees_terms():
    logits = land_use_logits()
    align = CDSA(TO_CROPS)
    guide = align.guide(logits, align.soft_masks(logits))
    assert torch.equal(guide[:, 0], (logits[0].argmax(1) == 0).long())
    assert torch.equal(guide[:, 1], (logits[1].argmax(1) == 0).long())
    assert (guide[:, 2] == 255).all()
    align = CDSA(Crosswalk.load("landuse-to-whdld"))
    guide = align.guide(logits, align.soft_masks(logits))
    assert torch.equal(guide[:, 0], torch.tensor([1, 3, 0, 2])[logits[0].argmax(1)]) and (guide[:, 1] == 255).all()


def test_guide_fits_the_image_and_follows_it():
    model = TransLU(source_model(), TO_CROPS).eval()
    batch = {"image": torch.randn(1, 3, 70, 50)}
    with torch.no_grad():
        outputs = model(batch)
    guide, fine = outputs["guide"][:, 0], (outputs["source_logits"][0].argmax(1) == 0).long()
    assert outputs["guide"].shape == (1, 3, 70, 50)
    assert (guide == fine).float().mean() > 0.9 and len(fine.unique()) == 2  # nearest beside bilinear


# ------------------------------------------------------------------------------------------------------------ loss


def loss_case():
    torch.manual_seed(1)
    logits = [torch.randn(1, size, 2, 3, requires_grad=True) for size in CROPS.sizes]
    label = torch.tensor([[[1, 2, 3], [0, 0, 255]]])
    veg = torch.tensor([[1, 1, 0], [1, 0, 1]])  # (0, 2) contradicts soybean
    guide = torch.stack([veg, veg, torch.full((2, 3), 255)])[None]
    return logits, label, guide


@pytest.mark.parametrize("consistency", ["path", "concat"])
def test_loss_takes_upper_levels_from_the_guide(consistency):
    logits, label, guide = loss_case()
    loss = TransLULoss(CROPS, consistency=consistency)
    ours, parts = loss({"logits": logits, "guide": guide}, {"label": label})
    veg = guide[:, 0].clone()
    veg[label == 255] = 255
    upper = [F.cross_entropy(logits[i], veg, ignore_index=255) for i in (0, 1)]
    leaves = F.cross_entropy(logits[2], label, ignore_index=255)
    # the known and valid paths: (rice), (corn), (cropland, other), (other, other, other)
    pixels = [((0, 0), (1, 1, 1)), ((0, 1), (1, 1, 2)), ((1, 0), (1, 1, 0)), ((1, 1), (0, 0, 0))]
    total = 0.0
    for (i, j), path in pixels:
        if consistency == "path":
            logs = [level[0, :, i, j].log_softmax(0) for level in logits]
            scores = torch.stack([sum(log[c] for log, c in zip(logs, p, strict=True)) for p in CROPS.paths.tolist()])
            total -= scores.log_softmax(0)[CROPS.paths.tolist().index(list(path))]
        else:
            joint = torch.cat([level[0, :, i, j] for level in logits]).log_softmax(0)
            total -= joint[path[0]] + joint[2 + path[1]] + joint[4 + path[2]]
    torch.testing.assert_close(parts["path_consistency"], (total / 4).detach())
    torch.testing.assert_close(ours, sum(upper) + leaves + 1.0 * total / 4)


def test_labels_can_come_first():
    logits, label, guide = loss_case()
    _, parts = TransLULoss(CROPS, labels_first=True)({"logits": logits, "guide": guide}, {"label": label})
    target = guide[:, 0].clone()
    target[0, 0] = 1  # rice, corn and soybean are vegetation, whatever branch 2 says
    target[label == 255] = 255
    expected = F.cross_entropy(logits[0], target, ignore_index=255)
    torch.testing.assert_close(parts["cross_entropy_L1"], expected.detach())


def test_loss_without_guide_is_l_hsc_and_everywhere_takes_unlabelled_pixels():
    logits, label, guide = loss_case()
    plain = TransLULoss(CROPS, alpha=2.0)({"logits": logits}, {"label": label})[0]
    assert torch.equal(plain, HSCLoss(CROPS, 2.0)({"logits": logits}, {"label": label})[0])
    outputs, nothing = {"logits": logits, "guide": guide}, torch.full_like(label, 255)
    loss, _ = TransLULoss(CROPS)(outputs, {"label": nothing})
    loss.backward()
    assert loss == 0 and all(level.grad.abs().max() == 0 for level in logits)
    valid = torch.ones_like(label, dtype=torch.bool)
    valid[0, 1] = False
    taught = TransLULoss(CROPS, everywhere=True)
    _, parts = taught(outputs, {"label": nothing, "valid": valid})
    expected = F.cross_entropy(logits[0][:, :, :1], guide[:, 0, :1])
    torch.testing.assert_close(parts["cross_entropy_L1"], expected.detach())
    assert parts["cross_entropy_L3"] == 0 and taught(outputs, {"label": nothing})[0] > 0


# ------------------------------------------------------------------------------------------------ fused prediction


def test_fused_prediction_is_consistent_and_expands_only_what_it_divides():
    torch.manual_seed(0)
    outputs = {
        "logits": [torch.randn(2, size, 24, 24) for size in CROPS.sizes],
        "source_logits": [torch.randn(2, size, 24, 24) for size in MM5B.sizes],
    }
    fused, merged = fused_prediction(outputs, TO_CROPS), TO_CROPS.merged
    assert fused.shape == (2, 3, 24, 24) and merged.consistent(fused).all()
    old, new = MM5B.decode(outputs["source_logits"]), CROPS.decode(outputs["logits"])
    crop = (old[:, 1] == 0) & (new[:, 2] > 0)
    assert crop.any() and torch.equal(fused[:, 2][crop], 17 + new[:, 2][crop])
    assert torch.equal(fused.movedim(1, -1)[~crop], old.movedim(1, -1)[~crop])
    assert torch.equal(fused[:, :2], old[:, :2])
    roads = Crosswalk.load("road-to-highway")
    outputs["logits"] = [torch.randn(2, size, 24, 24) for size in roads.target.sizes]
    fused, new = fused_prediction(outputs, roads), roads.target.decode(outputs["logits"])
    assert roads.merged.consistent(fused).all() and torch.equal(fused[:, :3], old)
    highway = (old[:, 2] == MM5B.label_of("road")) & (new[:, 3] == 1)
    assert torch.equal(fused[:, 3], torch.where(highway, 18, old[:, 2])) and highway.any()
