"""SegNeXt: published sizes, the contract, the factorisation against its formula, published weights by their names."""

import pytest
import torch
from contract import ModelContract
from safetensors.torch import save_file
from torch.nn import functional as F

from hierlab.hierars import hierarchical
from hierlab.networks import build, load_weights
from hierlab.networks.segnext import MSCA, MSCAN, NMF, STRIDES, WIDTHS
from hierlab.tree import ClassTree


def narrow(bands, classes, **options):
    return build("segnext-s", bands, classes, width=0.125, depth=0.5, **options)


class TestSegNeXt(ModelContract):
    def make(self, bands, classes):
        return narrow(bands, classes)


class TestHierarchicalSegNeXt(ModelContract):
    classes = 18
    sizes = (4, 9, 18)
    band_counts = (10,)

    def make(self, bands, classes):
        return hierarchical(narrow(bands, classes), ClassTree.load("mm5b"))


PUBLISHED = {"segnext-s": 13.9, "segnext-b": 27.6, "segnext-l": 48.9}  # millions of parameters with 150 classes


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_parameters(name):
    with torch.device("meta"):
        network = build(name, 3, 150)
    assert sum(p.numel() for p in network.parameters()) / 1e6 == pytest.approx(PUBLISHED[name], abs=0.05)


def test_stages_have_their_strides_and_widths():
    network = narrow(4, 5).eval()
    maps = network.encoder(torch.randn(1, 4, 64, 96))
    assert [tuple(x.shape[1:]) for x in maps] == [
        (width // 8, 64 // stride, 96 // stride) for width, stride in zip(WIDTHS, STRIDES, strict=True)
    ]
    assert network.decoder(maps).shape == (1, 32, 8, 12) and network.encoder.strides == list(STRIDES)


def test_attention_is_equations_1_and_2():
    layer, x = MSCA(3), torch.randn(1, 3, 30, 27)
    weights = dict(layer.named_parameters())

    def depthwise(x, name):
        kernel = weights[f"{name}.weight"]
        size = [side // 2 for side in kernel.shape[2:]]
        padded = F.pad(x, (size[1], size[1], size[0], size[0]))
        windows = padded.unfold(2, kernel.shape[2], 1).unfold(3, kernel.shape[3], 1)  # (1, D, H, W, k, l)
        return (windows * kernel[None, :, 0, None, None]).sum((-2, -1)) + weights[f"{name}.bias"][:, None, None]

    local = depthwise(x, "local")
    scales = [local] + [depthwise(depthwise(local, f"strips.{i}.0"), f"strips.{i}.1") for i in range(3)]
    mixed = torch.einsum("bdhw,cd->bchw", sum(scales), weights["mix.weight"][:, :, 0, 0])
    expected = (mixed + weights["mix.bias"][:, None, None]) * x
    torch.testing.assert_close(layer(x), expected, rtol=1e-4, atol=1e-5)
    assert [tuple(weights[f"strips.{i}.0.weight"].shape[2:]) for i in range(3)] == [(1, 7), (1, 11), (1, 21)]


def test_factorisation_is_the_multiplicative_updates():
    layer = NMF(5, rank=3, eval_steps=2, temperature=2.0).eval()
    x = torch.rand(1, 5, 12)
    d = layer.bases[0]
    c = torch.softmax(2.0 * x[0].T @ d, 1)
    for _ in range(2):
        c = c * (x[0].T @ d) / (c @ d.T @ d + 1e-6)
        d = d * (x[0] @ c) / (d @ c.T @ c + 1e-6)
    c = c * (x[0].T @ d) / (c @ d.T @ d + 1e-6)
    torch.testing.assert_close(layer(x)[0], d @ c.T)


def test_factorisation_comes_nearer_with_every_step_and_finds_low_rank():
    torch.manual_seed(2)
    x = torch.rand(2, 16, 4) @ torch.rand(2, 4, 60)  # of rank 4
    errors = []
    for steps in (0, 2, 10, 200):
        torch.manual_seed(0)
        layer = NMF(16, rank=6, eval_steps=steps, temperature=1.0).eval()
        errors.append(((layer(x) - x).norm() / x.norm()).item())
    assert errors == sorted(errors, reverse=True) and errors[-1] < 0.02


def test_factorisation_draws_its_bases_in_training_only():
    layer, x = NMF(8, rank=2), torch.rand(1, 8, 20)
    assert not torch.equal(layer.train()(x), layer(x))
    assert torch.equal(layer.eval()(x), layer(x))
    assert "bases" in layer.state_dict() and not list(layer.parameters())


def test_blocks_can_be_dropped_and_options_are_checked():
    network = narrow(3, 5, drop_path=0.4)
    rates = [m.drop_prob for m in network.modules() if hasattr(m, "drop_prob")]
    assert rates == sorted(rates) and rates[0] == 0 and rates[-1] == pytest.approx(0.4)
    assert narrow(3, 5, decoder={"rank": 7}).decoder.nmf.bases.shape[-1] == 7
    with pytest.raises(ValueError, match="colour"):
        narrow(3, 5, decoder={"colour": 1})
    with pytest.raises(ValueError, match="segnext-s"):
        build("segnext-m", 3, 5)


def published_names(own):
    """Our names in the published files' form, written out here a second time, from the other side."""
    stage = {f"stages.{i}.": i + 1 for i in range(4)}
    prefix, i = next((p, i) for p, i in stage.items() if own.startswith(p))
    rest = own.removeprefix(prefix)
    if rest.startswith("downsample."):
        number, name = rest.removeprefix("downsample.").split(".", 1)
        if i == 1:
            return f"patch_embed1.proj.{number}.{name}"
        return f"patch_embed{i}.{'proj' if number == '0' else 'norm'}.{name}"
    if rest.startswith("norm."):
        return f"norm{i}.{rest.removeprefix('norm.')}"
    block, part = rest.removeprefix("blocks.").split(".", 1)
    parts = {
        "project1": "attn.proj_1",
        "project2": "attn.proj_2",
        "attention.local": "attn.spatial_gating_unit.conv0",
        "attention.mix": "attn.spatial_gating_unit.conv3",
        **{f"attention.strips.{k}.{j}": f"attn.spatial_gating_unit.conv{k}_{j + 1}" for k in range(3) for j in (0, 1)},
        "mlp.0": "mlp.fc1",
        "mlp.1": "mlp.dwconv.dwconv",
        "mlp.3": "mlp.fc2",
        "scale1": "layer_scale_1",
        "scale2": "layer_scale_2",
    }
    ours = next((name for name in parts if part == name or part.startswith(f"{name}.")), None)
    return f"block{i}.{block}.{part if ours is None else part.replace(ours, parts[ours], 1)}"


@pytest.mark.parametrize("prefix", ["", "backbone."])
def test_published_weights_are_taken_for_any_bands(tmp_path, prefix):
    torch.manual_seed(4)
    widths, depths = tuple(width // 8 for width in WIDTHS), (1, 1, 2, 1)
    state = {key: torch.rand_like(t.float()).to(t) for key, t in MSCAN(3, widths, depths).state_dict().items()}
    file = {prefix + published_names(key): tensor for key, tensor in state.items()}
    assert len(file) == len(state) and f"{prefix}block3.1.attn.spatial_gating_unit.conv2_2.bias" in file
    file["head.weight"] = torch.zeros(1000, 64)
    save_file(file, tmp_path / "mscan.safetensors")
    network = build("segnext-s", 4, 5, tmp_path / "mscan.safetensors", width=0.125, depth=0.5)
    own = network.encoder.model.state_dict()
    assert all(torch.equal(own[key], state[key]) for key in state if key != "stages.0.downsample.0.weight")
    torch.testing.assert_close(
        own["stages.0.downsample.0.weight"][:, 1], state["stages.0.downsample.0.weight"][:, 1] * 3 / 4
    )
    report = load_weights(network, tmp_path / "mscan.safetensors")
    assert report["unused"] == ["head.weight"] and not report["mismatched"]
    assert all(key.startswith(("decoder.", "classifier.")) for key in report["missing"])


def test_weights_that_cannot_be_had_say_so(tmp_path):
    with pytest.raises(ValueError, match=r"mscan_s\.pth"):
        narrow(3, 5, weights="imagenet")
    save_file({"conv1.weight": torch.zeros(8, 3, 3, 3)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match="no weights of MSCAN"):
        narrow(3, 5, weights=tmp_path / "other.safetensors")
