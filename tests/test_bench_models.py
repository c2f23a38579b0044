"""``hierlab bench models``: every row and column is there, they fit together, and what fails is told."""

import csv
import re

import pandas as pd
import pytest
import torch

from hierlab import bench, bench_models, models
from hierlab.bench_models import KEY, MODEL_COLUMNS, PUBLISHED, WORKS, measure, models_bench, prepare
from hierlab.cli import main

NARROW = {"width": 0.13, "depth": 0.1}
SMALL = {"size": 32, "repeats": 1, "options": NARROW, "device": "cpu"}


@pytest.fixture
def here(monkeypatch):
    """No processes of their own, which take seconds to start; the calls are noted, and peaks are this process's."""
    calls = []

    def run(function, request, what):
        calls.append((request["model"], function.__name__, *request["heads"]))
        try:
            return function(request | {"published": list(request["published"])})
        except ValueError as error:
            raise RuntimeError(f"{what} failed:\nsome/file.py: line 3\nValueError: {error}\n") from error

    monkeypatch.setattr(bench_models, "in_own_process", run)
    monkeypatch.setattr(bench_models, "_go_first", lambda: None)
    return calls


def test_the_table_holds_every_row_and_column(here, tmp_path):
    said = []
    path = models_bench(tmp_path, models=["stsnet-temporal", "paraformer-light"], **SMALL, say=said.append)
    table = pd.read_csv(path)
    assert path.name.startswith("models-") and [p.name for p in path.parent.iterdir()] == [path.name]
    assert list(table.columns) == list(MODEL_COLUMNS)
    assert table["head"].tolist() == ["flat", "bhccm"] * 2
    assert table["tree"].tolist() == ["mm5b, 8 leaves"] * 2 + ["nlcd"] * 2
    assert table["loss"].tolist() == ["FlatLoss", "HSCLoss", "PLAT of FlatLoss", "PLAT of HSCLoss"]
    assert table["bands"].tolist() == [10, 10, 4, 4] and (table[["size", "batch"]] == [32, 1]).all(axis=None)
    assert table["failed"].isna().all() and (table["form"] == '{"width": 0.13, "depth": 0.1}').all()
    assert (table[["forward_s", "step_s", "start_mb", "forward_mb", "step_mb"]] > 0).all(axis=None)
    for start in (0, 2):
        flat, bhccm = table.iloc[start], table.iloc[start + 1]
        assert flat["params"] < bhccm["params"] < 1.2 * flat["params"] and flat["gmac"] < bhccm["gmac"]
        for work in WORKS:
            assert pd.isna(flat[f"{work}_ratio"]) and pd.isna(flat[f"{work}_mb_ratio"])
            assert bhccm[f"{work}_ratio"] == pytest.approx(bhccm[f"{work}_s"] / flat[f"{work}_s"], rel=1e-4)
            assert bhccm[f"{work}_mb_ratio"] == pytest.approx(bhccm[f"{work}_mb"] / flat[f"{work}_mb"], rel=1e-4)
    assert len(said) == 1 + 2 * 3 + 1 and "2/2 paraformer-light: 4 × 32 × 32" in said[4] and "of flat" in said[6]
    flat, bhccm, both = ("measure", "flat"), ("measure", "bhccm"), ("measure", "flat", "bhccm")
    expected = [("prepare", "flat", "bhccm"), flat, bhccm, both, flat, bhccm, both]
    assert here == [(name, *call) for name in ("stsnet-temporal", "paraformer-light") for call in expected]


def test_rows_stay_but_for_those_measured_anew(here, tmp_path):
    first = models_bench(tmp_path, models=["paraformer-cnn"], **SMALL, say=str)
    before = first.read_text().splitlines()
    models_bench(tmp_path, models=["segnext-s"], **SMALL, say=str)
    models_bench(tmp_path, models=["segnext-s"], **SMALL | {"precision": "bf16-mixed"}, say=str)
    models_bench(tmp_path, models=["segnext-s"], **SMALL, say=str)
    with first.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert first.read_text().splitlines()[:3] == before
    assert [row["precision"] for row in rows] == ["32-true"] * 2 + ["bf16-mixed"] * 2 + ["32-true"] * 2
    assert len({tuple(row[key] for key in KEY) for row in rows}) == 6

    first.write_text("model,head\n")
    with pytest.raises(ValueError, match="other columns"):
        models_bench(tmp_path, models=["segnext-s"], **SMALL, say=str)


def test_a_failure_is_told_in_its_row_and_the_rest_goes_on(here, tmp_path, monkeypatch):
    def loss(name, tree, head, **options):
        if head == "bhccm" and here[-1][1] == "measure":
            raise ValueError("no memory left")
        return models.make_loss(name, tree, head, **options)

    monkeypatch.setattr(bench_models, "make_loss", loss)
    wrong = {"paraformer-cnn": PUBLISHED["paraformer-cnn"], "segnext-s": PUBLISHED["segnext-s"]._replace(bands=0)}
    monkeypatch.setattr(bench_models, "PUBLISHED", wrong)
    said = []
    flat, bhccm, *unmade = pd.read_csv(models_bench(tmp_path, **SMALL, say=said.append)).to_dict("records")
    assert pd.isna(flat["failed"]) and flat["step_s"] > 0
    assert bhccm["failed"] == "memory of step: ValueError: no memory left"
    assert bhccm["forward_ratio"] > 0 and pd.isna(bhccm["step_mb"]) and pd.isna(bhccm["step_ratio"])
    for row in unmade:
        assert re.match("making it: ValueError: .*at least one band", row["failed"])
        assert pd.isna(row["params"]) and pd.isna(row["forward_s"])
    assert "FAILED memory of step" in said[3] and "FAILED making it" in said[5]


def test_an_interruption_keeps_the_models_done(here, tmp_path, monkeypatch, capsys):
    def stopped(request, repeats, pair=bench_models._pair):
        if request["model"] != "paraformer-cnn":
            raise KeyboardInterrupt
        return pair(request | {"options": NARROW}, repeats)

    monkeypatch.setattr(bench_models, "_pair", stopped)
    small = {name: published._replace(size=32) for name, published in PUBLISHED.items()}
    monkeypatch.setattr(bench_models, "PUBLISHED", small)
    command = ["bench", "models", "--models", "paraformer-cnn", "hiresnet", "--device", "cpu", "--out", str(tmp_path)]
    with pytest.raises(SystemExit) as end:
        main(command)
    assert end.value.code == 130 and "interrupted" in capsys.readouterr().err
    (path,) = tmp_path.iterdir()
    assert pd.read_csv(path)["model"].tolist() == ["paraformer-cnn"] * 2


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--models", "hiresnet", "unet"], "unet"),
        (["--batch", "0"], "at least 1"),
        (["--precision", "16"], "bf16-mixed"),
        (["--device", "abacus"], "abacus"),
    ],
)
def test_bad_options_are_refused(tmp_path, capsys, options, told):
    with pytest.raises(SystemExit) as end:
        main(["bench", "models", "--out", str(tmp_path), *options])
    said = capsys.readouterr()
    assert end.value.code == 2 and told in said.err and not said.out and not list(tmp_path.iterdir())


# ---------------------------------------------------------------- processes of their own


def test_memory_is_that_of_the_work(tmp_path, monkeypatch):
    """A step holds the weights four times (gradients and AdamW's two moments), inference once, and never both heads."""
    published = PUBLISHED["stsnet-spectral"]._replace(size=32)
    request = {"model": "stsnet-spectral", "published": published, "folder": str(tmp_path), "options": {"width": 0.5}}
    request |= {"device": "cpu", "precision": "32-true", "batch": 1, "heads": ["flat"], "repeats": 1}
    with monkeypatch.context() as patch:
        patch.setattr(bench_models, "_go_first", lambda: None)
        weights = prepare(request)["flat"]["params"] * 4 / 1e6  # MB
    found = {work: bench.in_own_process(measure, request | {"work": work}, work) for work in WORKS}
    assert weights > 20
    for work, copies in (("forward", 1), ("step", 4)):
        held = found[work]["peak_mb"] - found[work]["start_mb"]
        assert held > 0.9 * copies * weights
    assert found["step"]["peak_mb"] - found["forward"]["peak_mb"] > 2.5 * weights
    assert [len(found[work]["seconds"]["flat"]) for work in WORKS] == [1, 1]


@pytest.mark.parametrize(
    ("ends", "told"),
    [
        ("kill -9 $$", "killed, as happens where memory runs out"),
        ("echo Traceback >&2; echo 'ValueError: too wide' >&2; exit 1", "ValueError: too wide"),
    ],
)
def test_how_a_process_ended_is_told(tmp_path, monkeypatch, ends, told):
    script = tmp_path / "python"
    script.write_text(f"#!/bin/sh\necho 'a warning' >&2\n{ends}\n")
    script.chmod(0o755)
    monkeypatch.setattr(bench.sys, "executable", str(script))
    with pytest.raises(RuntimeError, match="trying in a process of its own") as caught:
        bench.in_own_process(measure, {}, "trying")
    assert bench_models._reason(caught.value) == told


# ---------------------------------------------------------------- every model


def test_every_published_model_is_one_of_the_list():
    assert set(PUBLISHED) <= set(models.NETWORKS)
    for published in set(PUBLISHED.values()):
        tree = published.load()
        assert tree.depth > 1
        assert published.leaves is None or set(tree.classes[-1]) == set(published.leaves)


KINDS = ("paraformer", "hiresnet-v1", "hiresnet", "stsnet", "stsnet-spectral", "stsnet-temporal", "segnext-s")
KINDS += ("convnext_base-upernet", "swin_base-upernet", "deit3_base-upernet", "resnet101c-deeplabv3plus")


@pytest.mark.parametrize("name", KINDS)
def test_models_come_back_from_disk_with_either_head(name, tmp_path, here):
    published = PUBLISHED[name]._replace(size=33)
    tree = published.load()
    request = {"model": name, "published": published, "folder": str(tmp_path), "options": NARROW}
    found = prepare(request | {"heads": bench_models.HEADS})
    for head, levels in (("flat", [tree.num_leaves]), ("bhccm", list(tree.sizes))):
        model = torch.load(tmp_path / f"{head}.pt", weights_only=False)
        assert sum(p.numel() for p in model.parameters()) == found[head]["params"]
        logits = model.eval()(bench_models._batch(model, published, 2, tree.num_leaves))["logits"]
        assert [tuple(x.shape) for x in logits] == [(2, k, 33, 33) for k in levels]
