import csv
import json
import shutil
import zipfile
from itertools import pairwise

import numpy as np
import pytest
from PIL import Image

from hierlab.data.pairs import PairFolder
from hierlab.tree import ClassTree

NUMBERS = [1, 2, 3, 5, 8, 9, 10, 11, 12, 20, 21, 100, 101, 102, 103, 104, 105, 1000, 1001, 1002, 1003]


def write_publisher(folder, numbers=NUMBERS, flat=False):
    """WHDLD in its folders, names and types: JPEG images, labels with a palette."""
    images, labels = (folder, folder) if flat else (folder / "Images", folder / "ImagesPNG")
    for made in (images, labels):
        made.mkdir(parents=True, exist_ok=True)
    palette = np.zeros((256, 3), np.uint8)
    palette[1:7] = [(255, 0, 0), (255, 255, 0), (192, 192, 0), (0, 255, 0), (128, 128, 128), (0, 0, 255)]
    for number in numbers:
        rng = np.random.default_rng(number)
        pixels = np.kron(rng.integers(0, 255, (8, 8, 3)), np.ones((32, 32, 1))).astype(np.uint8)
        Image.fromarray(pixels).save(images / f"wdcd{number}.jpg", quality=95)
        label = Image.fromarray(np.kron(rng.integers(1, 7, (8, 8)), np.ones((32, 32))).astype(np.uint8))
        label.putpalette(palette.tobytes())
        label.save(labels / f"wdcd{number}.png")
    return folder


@pytest.fixture
def few(whdld, monkeypatch):
    """The script, as if the whole of WHDLD were as many images as here."""
    monkeypatch.setattr(whdld, "COUNT", len(NUMBERS))
    monkeypatch.setattr(whdld, "RUNS", 7)
    return whdld


def test_the_reader_reads_the_publisher_s_pixels(few, go, tmp_path):
    source = write_publisher(tmp_path / "WHDLD")
    code, text, _ = go(few, source, tmp_path / "out")
    assert code == 0 and "train 14, val 7 (the paper: 3,294 and 1,646)" in text
    assert sum(float(line.split("%")[0]) for line in text.splitlines()[1:]) == pytest.approx(100, abs=0.1)
    tree = ClassTree.load("whdld")
    seen = []
    for split, number in (("train", 14), ("val", 7)):
        data = PairFolder(tmp_path / "out", split, tree)
        assert len(data) == number and data.bands == ["red", "green", "blue"] and data.size == (256, 256)
        assert data.gsd is None
        for (path, _), item in zip(data.pairs, data, strict=True):
            seen.append(path.stem)
            pixels = np.asarray(Image.open(source / "Images" / f"{path.stem}.jpg")).transpose(2, 0, 1)
            np.testing.assert_array_equal(item["image"].numpy(), pixels)
            label = np.asarray(Image.open(source / "ImagesPNG" / f"{path.stem}.png"))
            np.testing.assert_array_equal(item["label"].numpy(), label - 1)
    assert sorted(seen) == sorted(f"wdcd{n}" for n in NUMBERS)
    told = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert told["complete"] and told["pairs"] == {"train": 14, "val": 7} and told["files"] == 2 * len(NUMBERS) + 1
    assert sum(told["pixels"].values()) == len(NUMBERS) * 256**2 and set(told["pixels"]) == set(tree.classes[-1])
    assert str(tmp_path) not in json.dumps(told)
    again = write_publisher(tmp_path / "again")
    assert go(few, again, tmp_path / "out2")[0] == 0
    assert json.loads((tmp_path / "out2" / "manifest.json").read_text())["inputs"] == told["inputs"]


def test_runs_of_numbers_are_held_out_whole(few):
    names = [f"wdcd{n}" for n in NUMBERS]
    split = few.split_of(names, "runs")
    assert split == few.split_of(names[::-1], "runs")
    assert sum(part == "val" for part in split.values()) == 7
    changes = sum(split[a] != split[b] for a, b in pairwise(names))
    assert changes <= 6  # three runs of three, one of them in part
    assert few.natural("wdcd9") < few.natural("wdcd10") < few.natural("wdcd100")


def test_the_published_numbers(whdld):
    names = [f"wdcd{n}" for n in range(1, whdld.COUNT + 1)]
    for rule in ("runs", "random"):
        split = whdld.split_of(names, rule)
        counts = [sum(part == p for part in split.values()) for p in ("train", "val")]
        assert counts == [3294, 1646]
        neighbours = sum(split[a] != split[b] for a, b in pairwise(names))
        assert neighbours < 40 if rule == "runs" else neighbours > 1500


def test_a_split_from_a_file(few, go, tmp_path):
    source = write_publisher(tmp_path / "WHDLD", flat=True)
    mine = tmp_path / "mine.csv"
    mine.write_text("name,split\n" + "".join(f"wdcd{n},{'val' if n > 1000 else 'train'}\n" for n in NUMBERS))
    code, text, _ = go(few, source, tmp_path / "out", "--split", mine)
    assert code == 0 and "train 18, val 3" in text
    with open(tmp_path / "out" / "split.csv", newline="") as file:
        assert {row["name"] for row in csv.DictReader(file) if row["split"] == "val"} == {
            "wdcd1001",
            "wdcd1002",
            "wdcd1003",
        }
    mine.write_text("name,split\nwdcd1,train\n")
    code, _, err = go(few, source, tmp_path / "other", "--split", mine)
    assert code == 2 and "not for wdcd2, wdcd3" in err
    code, _, err = go(few, source, tmp_path / "out", "--split", "random")
    assert code == 2 and "was begun with other settings (split" in err


def test_it_goes_on_and_mends(few, go, tmp_path, monkeypatch):
    source = write_publisher(tmp_path / "WHDLD")
    write = few.write

    def interrupted(path, values, names, left=[9]):  # noqa: B006
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        write(path, values, names)

    monkeypatch.setattr(few, "write", interrupted)
    code, _, err = go(few, source, tmp_path / "out")
    assert code == 130 and "The same command goes on" in err
    done = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*.tif")}
    assert len(done) == 9 and not json.loads((tmp_path / "out" / "manifest.json").read_text())["complete"]
    damaged = next(iter(done))
    damaged.write_bytes(b"x")
    monkeypatch.setattr(few, "write", write)
    assert go(few, source, tmp_path / "out")[0] == 0
    assert all(path.stat().st_mtime_ns == time for path, time in done.items() if path != damaged)
    assert damaged.stat().st_size > 1 and len(list((tmp_path / "out").rglob("*.tif"))) == 2 * len(NUMBERS)


def test_a_half_finished_input_is_refused_with_what_is_missing(few, go, tmp_path):
    source = write_publisher(tmp_path / "WHDLD")
    (source / "Images" / "wdcd8.jpg").unlink()
    (source / "ImagesPNG" / "wdcd20.png").unlink()
    code, _, err = go(few, source, tmp_path / "out")
    assert code == 2 and "wdcd8: no image wdcd20: no label 19 pairs instead of 21" in err and "--partial" in err
    assert not (tmp_path / "out").exists()
    code, text, _ = go(few, source, tmp_path / "out", "--partial")
    assert code == 0 and "train 13, val 6" in text
    shutil.copy(source / "Images" / "wdcd9.jpg", source / "ImagesPNG" / "wdcd9.jpg")
    code, _, err = go(few, source, tmp_path / "other", "--partial")
    assert code == 2 and "wdcd9: two images, " in err
    (tmp_path / "empty").mkdir()
    assert "0 pairs instead of 21" in go(few, tmp_path / "empty", tmp_path / "other")[2]


def test_files_that_are_not_as_published(few, go, tmp_path):
    source = write_publisher(tmp_path / "WHDLD")
    cut = source / "ImagesPNG" / "wdcd1.png"
    cut.write_bytes(cut.read_bytes()[:200])
    Image.fromarray(np.zeros((256, 256), np.uint8)).save(source / "ImagesPNG" / "wdcd2.png")
    Image.fromarray(np.zeros((250, 256, 3), np.uint8)).save(source / "Images" / "wdcd3.jpg")
    code, _, err = go(few, source, tmp_path / "out")
    assert code == 2 and "3 files of WHDLD are not as published" in err
    assert "wdcd1.png cannot be read" in err and "wdcd2.png holds code 0: 65536 px" in err
    assert "wdcd3.jpg has 3 bands of 256 × 250 pixels (RGB), expected 3 of 256 × 256" in err
    assert not (tmp_path / "out").exists()


def test_an_archive(few, go, tmp_path):
    source = write_publisher(tmp_path / "WHDLD")
    with zipfile.ZipFile(tmp_path / "WHDLD.zip", "w") as archive:
        for path in source.rglob("*.*"):
            archive.write(path, path.relative_to(tmp_path))
    assert go(few, tmp_path / "WHDLD.zip", tmp_path / "out")[0] == 0
    told = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert list(told["settings"]["archives"]) == ["WHDLD.zip"]
    (tmp_path / "WHDLD.rar").write_bytes(b"Rar!")
    code, _, err = go(few, tmp_path / "WHDLD.rar", tmp_path / "other")
    assert code == 2 and "unpack it and give its folder" in err
    assert "no such folder or archive" in go(few, tmp_path / "nowhere", tmp_path / "other")[2]


def test_help_says_what_goes_in_and_out(whdld, capsys):
    with pytest.raises(SystemExit) as left:
        whdld.parser().parse_args(["--help"])
    assert left.value.code == 0 and "ImagesPNG/NAME.png" in capsys.readouterr().out
