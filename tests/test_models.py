"""Every model by name: who builds it, what it costs, which loss it takes, and that the command line runs it."""

import json

import pytest
import rasterio
from test_cli import arguments, place, refused  # noqa: F401

from hierlab import hiresnet, models, networks, paraformer, stsnet
from hierlab.checkpoints import load
from hierlab.cli import main
from hierlab.hierars import HSCLoss
from hierlab.losses import FlatLoss
from hierlab.tree import ClassTree

TREE = ClassTree.load("mm5b")


def test_no_name_belongs_to_two_families():
    assert len(models.NETWORKS) == sum(len(family.NETWORKS) for family in models.FAMILIES)
    assert (networks, paraformer, hiresnet, stsnet) == models.FAMILIES


@pytest.mark.parametrize("name", ["paraformer-cnn", "hiresnet", "stsnet-spectral", "segnext-s", "resnet18-unet"])
def test_a_name_finds_its_family(name):
    model = models.build(name, 2, 3, width=0.125, depth=0.2)
    assert model.name == name and model.classifier.out_channels == 3
    with pytest.raises(ValueError, match="no-such"):
        models.build("no-such-network", 2, 3)


def test_descriptions_are_those_of_the_networks(capsys):
    for name in ("paraformer-light", "hiresnet-base", "stsnet-temporal", "stsnet"):
        with pytest.raises(SystemExit) as end:
            main(["describe", name, "--json", "--bands", "10", "--size", "160"])
        assert not end.value.code
        found = json.loads(capsys.readouterr().out)
        assert found["name"] == name and found["params"] > 1e6 and found["gmac"] > 0
        assert ("params_without_ocr" in found) == name.startswith("hiresnet")
    assert found["input"]["series"][:3] == [1, 31, 10] and found["outputs"] == [[1, 18, 160, 160]]
    assert models.describe("hiresnet")["params_without_ocr"] < models.describe("hiresnet")["params"]


def test_every_network_and_head_has_its_loss():
    assert type(models.make_loss("resnet18-unet", TREE, "flat")) is FlatLoss
    loss = models.make_loss("stsnet-spectral", TREE, "bhccm", alpha=1.5, consistency="concat")
    assert type(loss) is HSCLoss and loss.alpha == 1.5 and loss.consistency == "concat"
    assert type(models.make_loss("hiresnet", TREE, "flat")) is hiresnet.HiResNetLoss
    plat = models.make_loss("paraformer-light", TREE, "bhccm", weak=True)
    assert type(plat) is paraformer.PLAT and plat.mask and type(plat.second) is HSCLoss
    assert not models.make_loss("paraformer", TREE, "flat").mask
    assert type(models.make_loss("paraformer-cnn", TREE, "flat")) is FlatLoss
    with pytest.raises(ValueError, match="paraformer, paraformer-light"):
        models.make_loss("paraformer-cnn", TREE, weak=True)


@pytest.mark.parametrize(
    ("name", "head", "options"),
    [
        ("paraformer-light", "bhccm", ["--weak"]),
        ("hiresnet", "flat", []),
        ("stsnet-spectral", "bhccm", []),
    ],
)
def test_a_papers_network_trains_evaluates_and_maps(place, tmp_path, capsys, name, head, options):  # noqa: F811
    run, image = tmp_path / "run", str(place / "image.tif")
    steps = [
        [*arguments(place), "--network", name, "--head", head, *options, "--width", "0.13", "--depth", "0.2"],
        ["evaluate", str(run), "--images", image, "--labels", str(place / "label.tif"), "--device", "cpu"],
        ["map", str(run), image, str(tmp_path / "map.tif"), "--device", "cpu"],
    ]
    steps[0] += ["--out", str(run), "--test", "0.2"]
    for step in steps:
        with pytest.raises(SystemExit) as end:
            main(step)
        assert not end.value.code, capsys.readouterr().err
    model, config = load(run)
    assert config["network"] == name and model.network is not None
    with rasterio.open(tmp_path / "map.tif") as file:
        assert file.shape == (256, 256)


def test_weak_labels_need_a_network_that_doubts_them(place, tmp_path, capsys):  # noqa: F811
    said = refused(capsys, [*arguments(place), "--weak", "--out", tmp_path / "run"])
    assert "paraformer" in said and not (tmp_path / "run").exists()
