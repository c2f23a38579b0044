"""``hierlab twin`` as a beginner uses it: a scene, a data set, and one clear message for every kind of bad input."""

import numpy as np
import pytest
import rasterio

from hierlab import twin
from hierlab.cli import main
from hierlab.tree import ClassTree


def run(*arguments):
    with pytest.raises(SystemExit) as end:
        main(["twin", *map(str, arguments)])
    return end.value.code or 0


def refused(capsys, *arguments):
    """Run, which must end with code 2, no traceback and one message; returns the message."""
    assert run(*arguments) == 2
    message = capsys.readouterr().err
    assert "Traceback" not in message and message
    return " ".join(message.split())


def read(path):
    with rasterio.open(path) as file:
        return file.read(), file.profile


WINDOW = ("--window", -40, 12, 48, 32)


def test_render_writes_image_truth_legend_and_product(tmp_path, capsys):
    window = (-40, 12, 48, 32)
    made = twin.render("gaofen2", 1, 2, window, year=2010)
    common = (*WINDOW, "--seed", 1, "--region", 2, "--year", 2010)
    assert run("render", "gaofen2", tmp_path / "image.tif", *common) == 0
    assert "48 × 32 pixels of 4 m at (-40, 12), year 2010" in capsys.readouterr().out
    image, about = read(tmp_path / "image.tif")
    assert (image == made.image).all() and about["transform"] == made.transform
    run("render", "gaofen2", tmp_path / "truth.tif", *common, "--truth")
    assert (read(tmp_path / "truth.tif")[0][0] == made.label + 1).all()
    run("render", "gaofen2", tmp_path / "legend.tif", *common, "--legend", "chesapeake")
    codes = read(tmp_path / "legend.tif")[0][0]
    label = twin.classify(made.label, made.kind, "chesapeake")
    assert (ClassTree.load("chesapeake").encode(codes) == label).all() and len(np.unique(label)) > 1
    run("render", "gaofen2", tmp_path / "product.tif", *WINDOW, "--seed", 1, "--region", 2, "--product", "nlcd")
    assert (read(tmp_path / "product.tif")[0][0] == twin.product("nlcd", 1, 2, window, 4.0)).all()


def test_render_says_what_is_wrong(tmp_path, capsys):
    out = tmp_path / "scene.tif"
    assert "choose one of gaofen2" in refused(capsys, "render", "spot", out)
    assert "one of them" in refused(capsys, "render", "gaofen2", out, "--truth", "--product", "nlcd")
    assert "ends in .tif" in refused(capsys, "render", "gaofen2", tmp_path / "scene.png")
    assert "choose one of mm5b" in refused(capsys, "render", "gaofen2", out, *WINDOW, "--legend", "corine2")
    assert "choose one of nlcd" in refused(capsys, "render", "gaofen2", out, *WINDOW, "--product", "clc")
    assert "width and height" in refused(capsys, "render", "gaofen2", out, "--window", 0, 0, 0, 10)
    assert "--window" in refused(capsys, "render", "gaofen2", out, "--window", 0, 0, 10)
    assert not list(tmp_path.iterdir())
    out.write_bytes(b"mine")
    assert "--overwrite" in refused(capsys, "render", "gaofen2", out, *WINDOW)
    assert out.read_bytes() == b"mine"


def test_export_writes_a_set_and_goes_on(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("HIERLAB_CACHE", str(tmp_path / "cache"))
    asked = ("export", "mm5b-gaofen2", tmp_path / "out", "--profile", "smoke", "--split", "val")
    assert run(*asked, "--count", 1) == 0
    printed = capsys.readouterr().out
    assert "val   1 items of 64 × 64 pixels at 4 m" in printed and "2 files" in printed
    assert run(*asked, "--count", 2) == 0
    assert "2 kept from before" in capsys.readouterr().out
    data = twin.dataset("mm5b-gaofen2", "val", "smoke")
    image, _ = read(tmp_path / "out/img_dir/val/GF2_val_000001.tif")
    assert (image == data.patch(1)["image"]).all()


def test_export_says_what_is_wrong(tmp_path, capsys):
    out = tmp_path / "out"
    assert "choose one of mm5b-gaofen2" in refused(capsys, "export", "mm6b", out)
    assert "--split is one of" in refused(capsys, "export", "loveda", out, "--split", "validation")
    assert "no option 'state'" in refused(capsys, "export", "loveda", out, "--state", 1)
    assert "no domain 'city'" in refused(capsys, "export", "loveda", out, "--domain", "city")
    assert "smoke, laptop" in refused(capsys, "export", "loveda", out, "--profile", "tiny")
    assert "positive" in refused(capsys, "export", "loveda", out, "--count", 0)
    assert not out.exists()
    (tmp_path / "mine.txt").write_text("mine")
    assert "something else" in refused(capsys, "export", "loveda", tmp_path, "--profile", "smoke")
    assert [p.name for p in tmp_path.iterdir()] == ["mine.txt"]


def test_help_and_list_tell_a_beginner_how(capsys):
    for command in ("render", "export"):
        assert run(command, "--help") == 0
        assert "hierlab twin" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(["list", "datasets"])
    printed = capsys.readouterr().out
    assert all(name in printed for name in twin.PRESETS) and "hierlab twin export" in printed
