"""Every model by name: who builds it, what it costs, which loss it takes, and that the command line runs it."""

import json

import numpy as np
import pytest
import rasterio
import torch
from rasterio.transform import from_origin
from test_cli import TREE as THREE
from test_cli import arguments, place, refused  # noqa: F401
from torch import nn

from hierlab import hiresnet, mapping, models, networks, paraformer, stsnet, workflow
from hierlab.checkpoints import load
from hierlab.cli import main
from hierlab.data import Scene, Series
from hierlab.hierars import HSCLoss, hierarchical
from hierlab.losses import FlatLoss
from hierlab.mapping import map_scene, read_map
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


# ---------------------------------------------------------------------------------- an image at 1 m, a series at 10 m

DATES = ("2024-03-05", "2024-05-20", "2024-07-01", "2024-09-10")


def save(path, values, size, corner=(500_000, 5_000_000), names=None, nodata=None):
    values = values.reshape(-1, *values.shape[-2:])
    grid = {"crs": "EPSG:32633", "transform": from_origin(*corner, size, size), "nodata": nodata}
    grid |= {"count": len(values), "height": values.shape[1], "width": values.shape[2], "dtype": values.dtype}
    with rasterio.open(path, "w", driver="GTiff", **grid) as file:
        file.write(values)
        for number, name in enumerate(names or [], 1):
            file.set_band_description(number, name)
    return path


@pytest.fixture(scope="module")
def fields(tmp_path_factory):
    """An image of 192² pixels of 1 m that says nothing, and a series of 10 m, off its grid, that tells the classes."""
    folder = tmp_path_factory.mktemp("fields")
    random = np.random.default_rng(0)
    cells = random.integers(0, 3, (21, 21))  # 10 m cells whose first is 3 m left of the image and 6 m above it
    label = np.kron(cells, np.ones((10, 10), int))[6 : 6 + 192, 3 : 3 + 192] + 1
    series = random.integers(50, 60, (4, 2, 21, 21)).astype(np.uint16)
    series += (100 * (cells[None, None] == np.array([0, 1, 2, 1])[:, None, None, None])).astype(np.uint16)
    series[1] = 0  # clouded everywhere
    series[2, :, :5, :5] = 0
    save(folder / "image.tif", random.integers(1, 90, (2, 192, 192)).astype(np.uint16), 1, names=["a", "b"])
    save(folder / "label.tif", label.astype(np.uint8), 1)
    corner, names = (499_997, 5_000_006), [f"{day} {band}" for day in DATES for band in ("red", "nir")]
    save(folder / "series.tif", series, 10, corner, names, 0)
    save(folder / "clear.tif", series[[0, 2, 3]], 10, corner, names[:2] + names[4:], 0)  # without the clouded date
    save(folder / "other.tif", np.where(series, 300 - series, 0).astype(np.uint16), 10, corner, names, 0)
    save(
        folder / "long.tif",
        np.concatenate([series, series[:1]]),
        10,
        corner,
        [*names, "2024-10-01 red", "2024-10-01 nir"],
    )
    save(folder / "three.tif", series[:1, [0, 1, 1]], 10, corner, ["2024-03-05 a", "2024-03-05 b", "2024-03-05 c"], 0)
    (folder / "tree.yaml").write_text(THREE)
    return folder


@pytest.fixture(scope="module")
def run(fields):
    """A run of the whole, narrow STSNet, trained once."""
    given = ["--network", "stsnet", "--series", fields / "series.tif", "--width", "0.08", "--depth", "0.3"]
    with pytest.raises(SystemExit) as end:
        main([*arguments(fields), *map(str, given), "--out", str(fields / "run")])
    assert not end.value.code
    return fields / "run"


def test_stsnet_trains_evaluates_and_maps_from_files(fields, run, tmp_path, capsys):
    config = json.loads((run / "model.json").read_text())
    assert config["network_options"] == {"series_bands": 2, "dates": 4, "width": 0.08, "depth": 0.3}
    assert config["series_band_names"] == ["red", "nir"] and len(config["normalisation"]["series"]["mean"]) == 2
    assert config["training"]["recipe"]["augment"]["scale"] is None
    image, series = str(fields / "image.tif"), str(fields / "series.tif")
    steps = [
        ["evaluate", run, "--images", image, "--labels", fields / "label.tif", "--series", series],
        ["map", run, image, tmp_path / "map.tif", "--series", series],
    ]
    for step in steps:
        with pytest.raises(SystemExit) as end:
            main([*map(str, step), "--device", "cpu"])
        assert not end.value.code, capsys.readouterr().err
    first = json.loads((run / "metrics.json").read_text())["metrics"]
    again = json.loads((run / "evaluation-validation-image.json").read_text())["metrics"]
    assert again["levels"][1]["confusion"] == first["levels"][1]["confusion"]
    assert read_map(tmp_path / "map.tif")[0].shape == (2, 192, 192)


def test_a_clouded_date_of_the_file_changes_nothing(fields, run, tmp_path):
    outputs, maps = {}, {}
    for name in ("series", "clear", "other"):
        paths = [fields / "image.tif"], [fields / "label.tif"]
        model, config, data, _ = workflow.held_out(run, *paths, part="all", series=[fields / f"{name}.tif"])
        batch = {key: value[None] for key, value in data[0].items()}
        with torch.inference_mode():
            outputs[name] = model(batch)["logits"][-1]
        scene, _ = workflow.open_for(config, paths[0])
        (beneath,) = workflow.series_for(config, [scene], [fields / f"{name}.tif"])
        out = tmp_path / f"{name}.tif"
        map_scene(model, data_tree(config), scene, out, window=64, series=beneath)
        maps[name] = read_map(out)[0]
    assert torch.equal(outputs["series"], outputs["clear"]) and np.array_equal(maps["series"], maps["clear"])
    assert not torch.equal(outputs["series"], outputs["other"])  # the series is heard


def data_tree(config):
    return ClassTree.from_dict(config["tree"])


class Told(nn.Module):
    """Logits from the one pixel of the series beneath each pixel of the image: by which date is bright."""

    def forward(self, batch):
        logits = []
        for series, grid, image in zip(batch["series"], batch["series_grid"], batch["image"], strict=True):
            rows, columns = torch.meshgrid(*(torch.arange(n) + 0.5 for n in image.shape[1:]), indexing="ij")
            a, b, c, d, e, f = grid
            at = (d * columns + e * rows + f).long(), (a * columns + b * rows + c).long()
            logits.append(torch.stack([series[n, 0][at] for n in (0, 3, 2)]))
        return {"logits": [torch.stack(logits)]}


def test_every_window_of_a_map_gets_its_own_series_in_whatever_order(fields, tmp_path, monkeypatch):
    tree = ClassTree.load(fields / "tree.yaml")
    scene = Scene.open(fields / "image.tif")
    series = Series.open(fields / "series.tif", scene)
    maps = []
    for number, (swath, batch_size) in enumerate([(2**25, 4), (1, 1), (1, 3)]):
        monkeypatch.setattr(mapping, "SWATH_BYTES", swath)
        out = tmp_path / f"{number}.tif"
        map_scene(Told(), tree, scene, out, window=48, batch_size=batch_size, series=series)
        maps.append(read_map(out)[0])
    assert all(np.array_equal(maps[0], other) for other in maps[1:])
    with rasterio.open(fields / "label.tif") as file:
        label = file.read(1) - 1
    seen = np.ones_like(label, bool)
    seen[:44, :47] = False  # the third class's only date is clouded there
    assert np.array_equal(maps[0][1][seen], label[seen])


def test_the_order_of_windows_is_nothing_to_stsnet(fields, run, tmp_path, monkeypatch):
    model, config = load(run)
    scene, _ = workflow.open_for(config, [fields / "image.tif"])
    (series,) = workflow.series_for(config, [scene], [fields / "series.tif"])
    maps = []
    for number, swath in enumerate([2**25, 1]):
        monkeypatch.setattr(mapping, "SWATH_BYTES", swath)
        map_scene(model, data_tree(config), scene, tmp_path / f"{number}.tif", window=96, batch_size=1, series=series)
        maps.append(read_map(tmp_path / f"{number}.tif")[0])
    assert np.array_equal(*maps)


def test_what_fits_no_series_is_refused(fields, run, tmp_path, capsys):
    new = ["--out", tmp_path / "new"]
    beside = ["--series", fields / "series.tif"]
    image, out = fields / "image.tif", tmp_path / "map.tif"
    cases = [
        ([*arguments(fields, images=fields / "absent.tif"), "--network", "stsnet", *new], "stsnet-spectral"),
        ([*arguments(fields, images=fields / "absent.tif"), *beside, *new], "resnet18-unet takes no time series"),
        ([*arguments(fields), "--network", "stsnet", "--series", image, *new], "YYYY-MM-DD"),
        ([*arguments(fields), "--network", "stsnet", *beside, *beside, *new], "1 images and 2 time series"),
        (["map", run, image, out], "up to 4 dates of 2 bands (red, nir)"),
        (["map", run, image, out, "--series", fields / "long.tif"], "has 5 dates; the model takes up to 4 dates"),
        (["map", run, image, out, "--series", fields / "three.tif"], "3 bands a date (a, b, c), where 2 are needed"),
        (["map", run, image, fields / "series.tif", "--overwrite", *beside], "or its series"),
        (["evaluate", run, "--images", image, "--labels", fields / "label.tif"], "--series FILE"),
    ]
    for arguments_, expected in cases:
        assert expected in refused(capsys, arguments_)
    assert not list(tmp_path.iterdir())
    with pytest.raises(ValueError, match="trained without a time series"):
        workflow.series_for({"network": "resnet18-unet"}, [], [fields / "series.tif"])


def test_the_series_alone_is_a_network_too(fields, tmp_path, capsys):
    given = ["--network", "stsnet-temporal", "--series", fields / "series.tif", "--width", "0.2", "--head", "flat"]
    with pytest.raises(SystemExit) as end:
        main([*arguments(fields), *map(str, given), "--out", str(tmp_path / "run")])
    assert not end.value.code, capsys.readouterr().err


# ---------------------------------------------------------------- what BHCCM adds


@pytest.mark.parametrize("name", ["convnext_tiny-upernet", "paraformer-cnn", "hiresnet", "stsnet"])
def test_sizes_are_those_of_the_hierarchical_model(name):
    """Counted on shapes, and again on the model that wears BHCCM in earnest."""
    options = {"width": 0.13, "depth": 0.2}
    table = models.sizes([name], TREE, [3, 10], 64, **options)
    assert table[["network", "bands"]].to_numpy().tolist() == [[name, 3], [name, 10]]
    flat = models.build(name, 3, 18, **options)
    example = flat.example(64) if hasattr(flat, "example") else None
    counts = [networks.describe(m, 3, size=64, example=example) for m in (flat, hierarchical(flat, TREE))]
    row = table.iloc[0]
    assert row["width"] == flat.classifier.in_channels
    assert row["params_m"] * 1e6 == pytest.approx(counts[0]["params"])
    assert row["gmac"] == pytest.approx(counts[0]["gmac"])
    assert row["bhccm_k"] * 1e3 == pytest.approx(counts[1]["params"] - counts[0]["params"])
    added = counts[1]["gmac"] - counts[0]["gmac"]
    if name == "hiresnet":  # OCR has a region for every class of every level
        assert 0 < row["bhccm_gmac"] < added
    else:
        assert row["bhccm_gmac"] == pytest.approx(added)
    assert table["params_m"][0] < table["params_m"][1] and table["bhccm_k"].nunique() == 1


def test_bhccm_adds_what_the_sheet_says_at_512_channels():
    table = models.sizes(["convnext_base-upernet"], TREE).iloc[0]
    assert (table["width"], table["bands"]) == (512, 4)
    assert table["bhccm_k"] == pytest.approx(8.347)
    assert table["params_m"] == pytest.approx(120.82, abs=0.01)
