"""``hierlab transfer`` on made-up rasters: land use, then crops; evaluated and mapped like any other run."""

import json

import numpy as np
import pytest
import rasterio
import torch
from test_cli import refused, write

from hierlab import transfer, workflow
from hierlab.checkpoints import build_model, load, read_config, read_weights
from hierlab.cli import main
from hierlab.crosswalk import Crosswalk
from hierlab.mapping import read_map
from hierlab.networks import build
from hierlab.recipes import TRANSLU
from hierlab.translu import TransLU, fused_prediction
from hierlab.tree import ClassTree

SIDE = 160
NARROW = {"width": 0.125, "depth": 0.04}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A scene of four bands in stripes, its land use (paddy, forest, road) and its crops."""
    folder = tmp_path_factory.mktemp("place")
    rng = np.random.default_rng(0)
    stripe = np.indices((SIDE, SIDE)).sum(0) // 16 % 3
    image = np.stack([(stripe + i) % 3 * 100.0 + 50 for i in range(4)]) + rng.normal(0, 5, (4, SIDE, SIDE))
    write(folder / "image.tif", image.astype(np.uint16), names=["blue", "green", "red", "nir"])
    write(folder / "landuse.tif", np.array([1, 3, 14], np.uint8)[stripe])
    crops = np.array([1, 0, 0], np.uint8)[stripe]
    crops[:, SIDE // 2 :][stripe[:, SIDE // 2 :] == 0] = 3
    write(folder / "crops.tif", crops)
    return folder


@pytest.fixture(scope="module")
def run(place):
    """A narrow ConvNeXt of two training steps on land use."""
    recipe = workflow.DEFAULT_RECIPE.scaled("smoke").replace(steps=2)
    prepared = workflow.prepare([place / "image.tif"], [place / "landuse.tif"], ClassTree.load("mm5b"), recipe)
    workflow.train(
        prepared,
        "convnext_base-upernet",
        place / "run",
        recipe,
        options=NARROW,
        device="cpu",
        progress=False,
        residual=True,
    )
    return place / "run"


def arguments(place, run, out, **changes):
    given = {"images": place / "image.tif", "labels": place / "crops.tif", "mapping": "landuse-to-crops"}
    given |= {"tree": "crops", "out": out, "device": "cpu", "profile": "smoke", "steps": 2} | changes
    return ["transfer", str(run), *(word for name, value in given.items() for word in (f"--{name}", str(value)))]


@pytest.fixture(scope="module")
def moved(place, run):
    with pytest.raises(SystemExit) as end:
        main([*arguments(place, run, place / "run2"), "--test", "0.2"])
    assert not end.value.code
    return place / "run2"


def test_transfer_leaves_a_complete_run_that_holds_the_source(place, run, moved):
    expected = {"model.safetensors", "model.json", "log.jsonl", "metrics.json", "history.png", "classes.png", "map.png"}
    assert expected <= {path.name for path in moved.iterdir()}
    source, config = read_config(run), read_config(moved)
    assert config["head"] == "translu" and config["tree"]["name"] == "crop10m"
    assert config["normalisation"] == source["normalisation"] and config["band_names"] == source["band_names"]
    frozen, _ = read_weights(moved)
    for name, tensor in read_weights(run)[0].items():
        inner = name.replace("network.", "network.branch2.", 1) if name.startswith("network.") else name
        assert torch.equal(frozen[inner], tensor), name
    metrics = json.loads((moved / "metrics.json").read_text())["metrics"]
    assert metrics["consistency"] == 1.0 and [level["level"] for level in metrics["levels"]] == ["L1", "L2", "L3"]
    assert config["training"]["recipe"]["layer_decay"] == 0.9
    assert transfer.recipe_for("paper") is TRANSLU and transfer.recipe_for("laptop").steps == 600


def test_a_transferred_run_loads_without_its_source(moved, run):
    model, config = load(moved)
    assert isinstance(model.network, TransLU) and not model.training
    assert isinstance(build_model(config).network, TransLU)
    with torch.no_grad():
        outputs = model({"image": torch.rand(1, 4, 40, 50) * 300})
        alone = load(run)[0]({"image": torch.rand(1, 4, 40, 50)})
    assert [x.shape[1] for x in outputs["source_logits"]] == [x.shape[1] for x in alone["logits"]] == [4, 9, 18]
    crosswalk = model.network.crosswalk
    assert crosswalk.merged.consistent(fused_prediction(outputs, crosswalk, config["rule"])).all()


def test_it_is_evaluated_and_mapped_like_any_other(moved, place, capsys):
    with pytest.raises(SystemExit) as end:
        main(["evaluate", str(moved), "--images", f"{place}/image.tif", "--labels", f"{place}/crops.tif"])
    assert not end.value.code and "the test blocks of the run" in capsys.readouterr().out
    again = json.loads((moved / "evaluation-test-image.json").read_text())["metrics"]
    first = json.loads((moved / "metrics.json").read_text())["metrics"]
    assert again["levels"][2]["confusion"] == first["levels"][2]["confusion"]
    with pytest.raises(SystemExit) as end:
        main(["map", str(moved), f"{place}/image.tif", str(place / "map.tif"), "--device", "cpu"])
    assert not end.value.code
    classes, tree, _ = read_map(place / "map.tif")
    assert tree.classes == ClassTree.load("crops").classes and classes.shape == (3, SIDE, SIDE)


def test_settings_reach_model_loss_and_file(place, run, tmp_path):
    recipe = transfer.DEFAULT_RECIPE.scaled("smoke").replace(steps=1, warmup_steps=0)
    files = [place / "image.tif"], [place / "crops.tif"]
    prepared, crosswalk = transfer.prepare(run, *files, Crosswalk.load("landuse-to-crops"), recipe)
    settings = {"cdsa": False, "merge": "steps", "others": "complement", "units": {"interval": 2, "drop_path": 0.1}}
    torch.manual_seed(8)
    flat = build("convnext_base-upernet", 4, 4, **NARROW)
    torch.save(flat.state_dict(), tmp_path / "flat.pth")
    model, config, _ = transfer.transfer(
        run,
        prepared,
        crosswalk,
        tmp_path / "out",
        recipe.replace(lr=1e-12, weight_decay=0.0),
        start=str(tmp_path / "flat.pth"),
        alpha=0.5,
        consistency="concat",
        labels_first=True,
        device="cpu",
        progress=False,
        **settings,
    )
    network = model.network
    assert network.cdsa is None and network.cdks.merge == "steps"
    assert network.cdks.units[0].drop_path.drop_prob == 0.1
    own = network.branch1.network.state_dict()
    key = "encoder.model.stages_0.blocks.0.mlp.fc1.weight"
    torch.testing.assert_close(own[key], flat.state_dict()[key])
    assert config["loss"] == {"alpha": 0.5, "consistency": "concat", "labels_first": True, "everywhere": False}
    again, _ = load(tmp_path / "out")
    assert again.network.cdks.merge == "steps" and again.network.branch2.network.classifier.bhccm.residual


def test_what_cannot_be_transferred_says_so(place, run, moved, tmp_path, capsys):
    with rasterio.open(place / "image.tif") as file:
        three = write(tmp_path / "three.tif", file.read([1, 2, 3]))
    (tmp_path / "bad.yaml").write_text("target: crop10m\nnodes: {L1/vegetation: L1/plants}\nrest: [other]\n")
    cases = [
        ({"images": three}, "trained on 4 bands"),
        ({"mapping": "landuse-to-crop"}, "Did you mean 'landuse-to-crops'"),
        ({"mapping": tmp_path / "bad.yaml"}, "bad.yaml: the tree 'mm5b' has no class 'L1/plants'"),
        ({"tree": "nlcd"}, "'nlcd' has no class 'L1/vegetation'"),
        ({"merge": "sum"}, "--merge is one of"),
        ({"labels": place / "landuse.tif"}, "14: "),
        ({"start": tmp_path / "none.pth"}, "no weights file"),
    ]
    for changes, expected in cases:
        said = refused(capsys, arguments(place, run, tmp_path / "out", **changes))
        assert expected in said, said
        assert not (tmp_path / "out").exists()
    assert "carries over a hierarchical model" in refused(capsys, arguments(place, moved, tmp_path / "out"))
    assert "holds no trained model" in refused(capsys, arguments(place, tmp_path, tmp_path / "out"))
    assert "already holds a run" in refused(capsys, arguments(place, run, moved))


def test_other_ground_is_noted(place, run):
    recipe = transfer.DEFAULT_RECIPE.scaled("smoke")
    prepared, crosswalk = transfer.prepare(
        run, [place / "image.tif"], [place / "crops.tif"], "landuse-to-crops", recipe
    )
    assert not any("m a pixel" in line for line in transfer.describe(run, prepared, crosswalk))
    prepared.scenes[0].scene.gsd = 4.0
    said = "\n".join(transfer.describe(run, prepared, crosswalk))
    assert "at 10 m a pixel, these images have 4 m" in said and "rice, corn, soybean" in said
