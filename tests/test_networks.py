"""The networks: the contract on narrow forms, published sizes on full ones, weights, names, counts."""

import functools
import logging
import math

import pytest
import timm
import torch
from contract import ModelContract
from safetensors.torch import save_file
from torch import nn

from hierlab import models
from hierlab.hierars import hierarchical
from hierlab.networks import DECODERS, NETWORKS, build, describe, load_weights
from hierlab.networks.count import parts
from hierlab.tree import ClassTree


class TestResNetUNet(ModelContract):
    compiled = True

    def make(self, bands, classes):
        return build("resnet18-unet", bands, classes, width=0.125, depth=0.5)


class TestConvNeXtUPerNet(ModelContract):
    def make(self, bands, classes):
        return build("convnext_base-upernet", bands, classes, width=0.125, depth=0.04)


class TestSwinUPerNet(ModelContract):
    def make(self, bands, classes):
        return build("swin_tiny-upernet", bands, classes, width=0.34, depth=0.2, decoder={"channels": 64})


class TestDeiTUPerNet(ModelContract):
    def make(self, bands, classes):
        return build("deit3_small-upernet", bands, classes, width=0.17, depth=0.3)


class TestResNetDeepLab(ModelContract):
    def make(self, bands, classes):
        return build("resnet101c-deeplabv3plus", bands, classes, width=0.125, depth=0.05)


class TestHierarchicalConvNeXt(ModelContract):
    """A network of three levels, as BHCCM makes it."""

    classes = 18
    sizes = (4, 9, 18)
    band_counts = (3,)

    def make(self, bands, classes):
        flat = build("convnext_base-upernet", bands, classes, width=0.125, depth=0.04)
        return hierarchical(flat, ClassTree.load("mm5b"))


# ------------------------------------------------------------------------------------------- parameters and GMAC


@functools.cache
def full_size(name):
    with torch.device("meta"):
        return build(name, 3, 150)


# Parameters of the published UPerNets and DeepLabv3+ with 150 classes in millions, from the repositories of Swin
# and ConvNeXt and from the SegFormer paper's Table 2. They include an auxiliary classifier on the given channels.
PUBLISHED = {
    "swin_tiny-upernet": (60, 384),
    "swin_base-upernet": (121, 512),
    "swin_large-upernet": (234, 768),
    "convnext_tiny-upernet": (60, 384),
    "convnext_base-upernet": (122, 512),
    "convnext_large-upernet": (235, 768),
    "resnet101c-deeplabv3plus": (62.7, 1024),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_full_size_networks_have_the_published_parameters(name):
    millions, width = PUBLISHED[name]
    auxiliary = width * 256 * 9 + 2 * 256 + 256 * 150 + 150
    counted = sum(p.numel() for p in full_size(name).parameters()) + auxiliary
    assert counted / 1e6 == pytest.approx(millions, abs=0.05 if isinstance(millions, float) else 0.5)


# Millions of parameters of the ImageNet classifiers, as their papers and timm print them, and the width of the
# feature that the classification layer takes.
CLASSIFIERS = {
    "resnet101c-deeplabv3plus": (44.57, 2048),
    "convnext_base-upernet": (88.59, 1024),
    "convnext_large-upernet": (197.77, 1536),
    "swin_base-upernet": (87.77, 1024),
    "swin_large-upernet": (196.53, 1536),
    "deit3_small-upernet": (22.06, 384),
    "deit3_base-upernet": (86.59, 768),
    "deit3_large-upernet": (304.37, 1024),
}


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_encoders_have_the_published_parameters(name):
    millions, width = CLASSIFIERS[name]
    counted = sum(p.numel() for p in full_size(name).encoder.model.parameters()) + 1001 * width
    assert counted / 1e6 == pytest.approx(millions, abs=0.02)  # a last LayerNorm goes with the classifier


@pytest.mark.parametrize(("name", "gmac"), [("swin_tiny-upernet", 945), ("convnext_tiny-upernet", 939)])
def test_multiply_accumulates_are_near_the_published(name, gmac):
    # Printed for 512 x 2048, with the norms and activations that describe does not count.
    assert describe(name, 3, 150, (512, 2048))["gmac"] == pytest.approx(gmac, rel=0.01)


def test_multiply_accumulates_by_hand():
    class Tiny(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem = nn.Conv2d(4, 8, 3, stride=2, padding=1)
            self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
            self.head = nn.Conv2d(8, 5, 1)

        def forward(self, batch):
            x = self.stem(batch["image"])
            tokens = x.flatten(2).transpose(1, 2)
            x = self.attention(tokens, tokens, tokens)[0].transpose(1, 2).unflatten(2, x.shape[2:])
            return {"logits": [self.head(x)]}

    tiny = Tiny()
    found = describe(tiny, bands=4, size=(16, 12))
    tokens = 8 * 6
    stem, head = 4 * 8 * 9 * tokens, 8 * 5 * tokens
    attention = 4 * 8 * 8 * tokens + 2 * tokens * tokens * 8  # three projections in, one out; QK and AV
    assert found["gmac"] * 1e9 == pytest.approx(stem + attention + head)
    assert found["params"] == 4 * 8 * 9 + 8 + 4 * (8 * 8 + 8) + 8 * 5 + 5
    assert found["stages"] == [
        {"name": "stem", "shape": [8, 8, 6], "stride": 2, "channels": 8},
        {"name": "head", "shape": [5, 8, 6], "stride": 2, "channels": 5},
    ]
    assert tiny.training and tiny.stem.weight.device.type == "cpu"


def test_description():
    found = describe("convnext_tiny-upernet", bands=4, classes=18, size=512)
    assert found["name"] == "convnext_tiny-upernet"
    assert found["input"] == {"image": [1, 4, 512, 512]} and found["outputs"] == [[1, 18, 512, 512]]
    assert found["size_mb"] == pytest.approx(4 * found["params"] / 1e6, rel=0.01)
    stages = {stage["name"]: (stage["channels"], stage["stride"]) for stage in found["stages"]}
    assert stages == {
        "encoder 1": (96, 4),
        "encoder 2": (192, 8),
        "encoder 3": (384, 16),
        "encoder 4": (768, 32),
        "decoder": (512, 4),
        "classifier": (18, 4),
    }


def test_description_counts_what_is_frozen_and_leaves_modes_alone():
    network = build("resnet18-unet", 3, 5, width=0.125)
    network.encoder.requires_grad_(False).eval()
    found = describe(network)
    assert found["trainable"] == sum(p.numel() for p in network.parameters() if p.requires_grad) < found["params"]
    assert network.training and network.decoder.training and not network.encoder.training


def test_description_of_a_hierarchical_network():
    network = hierarchical(build("resnet18-unet", 3, 18, width=0.125), ClassTree.load("mm5b"))
    found = describe(network, bands=3, size=64)
    assert found["name"] == "resnet18-unet"
    assert [shape[1] for shape in found["outputs"]] == [4, 9, 18]


# --------------------------------------------------------------------------------------------- names and options


@pytest.mark.parametrize("decoder", DECODERS)
def test_every_decoder_composes(decoder):
    network = build(f"resnet18-{decoder}", 2, 3, width=0.125)
    batch = {"image": torch.randn(1, 2, 40, 24)}
    logits = network.train()(batch)["logits"][0]
    assert logits.shape == (1, 3, 40, 24)
    logits.mean().backward()
    assert all(p.grad is not None for p in network.parameters())
    last = [m for m in network.modules() if isinstance(m, nn.Conv2d)][-1]
    assert last is network.classifier and last.out_channels == 3


@pytest.mark.parametrize("encoder", ["mobilenetv3_small_050", "vgg11", "test_vit", "resnest14d", "pvt_v2_b0"])
def test_other_encoders_compose(encoder):
    network = build(f"{encoder}-upernet", 2, 3, decoder={"channels": 16})
    assert network.train()({"image": torch.randn(1, 2, 20, 70)})["logits"][0].shape == (1, 3, 20, 70)


def test_listed_networks_can_be_built():
    for name in NETWORKS:
        assert full_size(name).name == name


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("resnt18-unet", "resnet18-unet"),
        ("resnet18-unett", "resnet18-unet"),
        ("resnet18", "<timm encoder>-<decoder>"),
        ("convnext_bas-upernet", "convnext_base-upernet"),
        ("resnet18.no_such_tag-unet", "no_such_tag"),
        ("deit3_small-unet", "upernet"),
        ("swin_tiny-deeplabv3plus", "dilated"),
        ("beit_base_patch16_224-upernet", "224 x 224 only"),
    ],
)
def test_names_that_cannot_be_built_say_why(name, said):
    with pytest.raises(ValueError, match=said.replace(".", r"\.")):
        build(name, 3, 5)


def test_options_that_cannot_be_met_say_why():
    with pytest.raises(ValueError, match="bands=0"):
        build("resnet18-unet", 0, 5)
    with pytest.raises(ValueError, match="EfficientNet"):
        build("efficientnet_b0-unet", 3, 5, width=0.5)
    with pytest.raises(ValueError, match="colour"):
        build("resnet18-upernet", 3, 5, decoder={"colour": 1})


@pytest.mark.parametrize(
    "wrong",
    [
        {"bands": 0},
        {"classes": 0},
        {"width": 0.0},
        {"width": -1.0},
        {"width": math.nan},
        {"depth": 0.0},
        {"depth": math.inf},
        {"depth": math.nan},
    ],
    ids=str,
)
@pytest.mark.parametrize("name", ["resnet18-unet", "segnext-s", "hiresnet", "paraformer", "stsnet", "stsnet-temporal"])
def test_sizes_that_cannot_be_built_say_so(name, wrong):
    """One check for every family: whatever builds a network refuses the same sizes by the same words."""
    sizes = {"bands": 3, "classes": 5, "width": 0.125, "depth": 0.5} | wrong
    ((key, value),) = wrong.items()
    with pytest.raises(ValueError, match=rf"^{name} needs at least one band and one class .*{key}={value}\b"):
        models.build(name, sizes.pop("bands"), sizes.pop("classes"), **sizes)


def test_wrong_number_of_bands_says_so():
    network = build("resnet18-unet", 4, 5, width=0.125)
    with pytest.raises(ValueError, match=r"images \(B, 4, H, W\), given \(1, 3, 32, 32\)"):
        network({"image": torch.zeros(1, 3, 32, 32)})


def test_narrow_networks_keep_their_form():
    full, narrow = (describe("convnext_tiny-upernet", 3, 5, 64, width=w) for w in (1, 0.25))
    assert [s["stride"] for s in full["stages"]] == [s["stride"] for s in narrow["stages"]]
    assert [s["channels"] // 4 for s in full["stages"][:-1]] == [s["channels"] for s in narrow["stages"][:-1]]
    assert describe("convnext_tiny-upernet", 3, 5, 64, depth=0.5)["params"] < full["params"]


def test_drop_path_and_dropout_reach_their_places():
    network = build("convnext_base-upernet", 3, 5, width=0.125, depth=0.04, drop_path=0.4, dropout=0.3)
    assert network.dropout.p == 0.3
    assert any(getattr(module, "drop_prob", 0) == pytest.approx(0.4) for module in network.modules())


def test_a_seed_gives_the_same_network():
    states = []
    for _ in range(2):
        torch.manual_seed(5)
        states.append(build("deit3_small-upernet", 3, 5, width=0.17, depth=0.3).state_dict())
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


def test_padding_leaves_what_needs_none_alone():
    network = build("convnext_base-upernet", 3, 5, width=0.125, depth=0.04).eval()
    image = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        whole = network({"image": image})["logits"][0]
        direct = network.classifier(network.decoder(network.encoder(image)))
    assert torch.equal(whole, nn.functional.interpolate(direct, scale_factor=4, mode="bilinear"))


# ------------------------------------------------------------------------------------------------------- weights


def encoder_state(name, **options):
    torch.manual_seed(3)
    return timm.create_model(name, **options).state_dict()


def test_timm_weights_are_taken_and_reported(tmp_path, caplog):
    state = encoder_state("resnet18")
    save_file(state, tmp_path / "encoder.safetensors")
    with caplog.at_level(logging.INFO, logger="hierlab"):
        network = build("resnet18-unet", 3, 5, tmp_path / "encoder.safetensors")
    assert torch.equal(network.encoder.model.layer4[1].conv2.weight, state["layer4.1.conv2.weight"])
    assert "120 of 182 tensors" in caplog.text and "fc.weight" in caplog.text
    report = load_weights(network, tmp_path / "encoder.safetensors")
    assert report["unused"] == ["fc.bias", "fc.weight"] and not report["mismatched"]
    assert all(not key.startswith("encoder.") for key in report["missing"])


@pytest.mark.parametrize("bands", [1, 4, 10])
def test_the_first_convolution_is_adapted_to_the_bands(tmp_path, bands):
    state = encoder_state("resnet18")
    torch.save({"state_dict": {f"module.{key}": value for key, value in state.items()}}, tmp_path / "encoder.pth")
    weight = build("resnet18-fpn", bands, 5, tmp_path / "encoder.pth").encoder.model.conv1.weight
    assert weight.shape[1] == bands
    rgb = state["conv1.weight"]
    same = rgb.sum(1) if bands == 1 else torch.stack([rgb[:, i % 3] for i in range(bands)]).sum(0) * 3 / bands
    torch.testing.assert_close(weight.sum(1), same)


@pytest.mark.parametrize("name", ["convnext_atto-upernet", "test_vit-upernet", "mobilenetv3_small_050-unet"])
def test_timm_weights_of_other_families_match_whole(tmp_path, name):
    save_file(encoder_state(name.split("-")[0]), tmp_path / "encoder.safetensors")
    report = load_weights(build(name, 4, 5), tmp_path / "encoder.safetensors")
    assert not [key for key in (*report["missing"], *report["mismatched"]) if key.startswith("encoder.model.")]


def test_a_whole_network_starts_another_with_other_classes_and_decoder(tmp_path):
    first = build("resnet18-unet", 4, 5, width=0.125)
    torch.save(first.state_dict(), tmp_path / "whole.pth")
    second = build("resnet18-unet", 4, 7, tmp_path / "whole.pth", width=0.125)
    assert load_weights(second, tmp_path / "whole.pth")["mismatched"] == ["classifier.weight", "classifier.bias"]
    third = build("resnet18-upernet", 4, 5, tmp_path / "whole.pth", width=0.125)
    for other in (second, third):
        assert torch.equal(other.encoder.model.layer1[0].conv1.weight, first.encoder.model.layer1[0].conv1.weight)


def test_weights_of_another_encoder_are_refused(tmp_path):
    save_file(encoder_state("resnet18"), tmp_path / "encoder.safetensors")
    with pytest.raises(ValueError, match="no weights of the encoder convnext_atto"):
        build("convnext_atto-upernet", 3, 5, tmp_path / "encoder.safetensors")
    with pytest.raises(ValueError, match="width"):
        build("resnet18-unet", 3, 5, tmp_path / "encoder.safetensors", width=0.125)


class Harmful:
    def __reduce__(self):
        return (pytest.fail, ("a pickle was executed",))


def test_files_that_cannot_be_read_say_so_and_nothing_is_executed(tmp_path):
    with pytest.raises(OSError, match="no weights file"):
        build("resnet18-unet", 3, 5, tmp_path / "none.pth")
    torch.save({"state_dict": Harmful()}, tmp_path / "harmful.pth")
    with pytest.raises(ValueError, match="read safely"):
        build("resnet18-unet", 3, 5, tmp_path / "harmful.pth")
    (tmp_path / "cut.safetensors").write_bytes(b"\x10\x00\x00\x00")
    with pytest.raises(OSError, match="no readable weights file"):
        build("resnet18-unet", 3, 5, tmp_path / "cut.safetensors")
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(ValueError, match="no tensors by name"):
        build("resnet18-unet", 3, 5, tmp_path / "list.pth")


def test_imagenet_weights_come_from_the_hub(monkeypatch):
    state, create = encoder_state("resnet18", num_classes=0), timm.create_model

    def hub(name, pretrained=False, **options):
        model = create(name, **options)
        if pretrained:
            model.load_state_dict(state)
        return model

    monkeypatch.setattr(timm, "create_model", hub)
    network = build("resnet18-unet", 3, 5, "imagenet")
    assert torch.equal(network.encoder.model.conv1.weight, state["conv1.weight"])


def test_without_a_network_the_message_shows_the_way_on(monkeypatch):
    create = timm.create_model

    def hub(name, pretrained=False, **options):
        if pretrained:
            raise ConnectionError("name or service not known")
        return create(name, **options)

    monkeypatch.setattr(timm, "create_model", hub)
    with pytest.raises(OSError, match=r"huggingface.co/timm/resnet18\..*weights=None"):
        build("resnet18-unet", 3, 5, "imagenet")
    with pytest.raises(ValueError, match="no weights for convnext_atto_rms"):
        build("convnext_atto_rms-unet", 3, 5, "imagenet")


def test_parts_are_what_runs():
    inner = nn.Sequential(nn.Linear(4, 6), nn.GELU())

    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.unused, self.inner, self.conv = nn.Linear(9, 9), inner, nn.Conv2d(6, 6, 3, padding=1, groups=6)

        def forward(self, x, size):
            x = self.inner(x) + self.inner(x.flip(1))
            return self.conv(x.mT.unflatten(-1, size))

    found = parts(Twice(), torch.randn(2, 15, 4), (3, 5))
    assert list(found) == ["inner", "inner.0", "inner.1", "conv"]
    assert found["inner.0"] == {"layer": "Linear 4 → 6", "shape": (2, 15, 6), "params": 30, "calls": 2}
    assert found["conv"] == {"layer": "depthwise 3×3 conv 6 → 6", "shape": (2, 6, 3, 5), "params": 60, "calls": 1}
    assert not any(part._forward_hooks for part in inner.modules())
