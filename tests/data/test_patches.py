import numpy as np
import pytest
import rasterio
from rasterio.transform import from_origin

from hierlab.data.manifest import Ledger
from hierlab.data.pairs import PairFolder
from hierlab.data.patches import cut, resample_codes, write_codes, write_patches


def by_area(codes, side, new):
    """The slow way: every square metre votes."""
    metres = np.kron(codes, np.ones((side, side), codes.dtype))
    h, w = metres.shape[0] // new, metres.shape[1] // new
    votes = metres.reshape(h, new, w, new).swapaxes(1, 2).reshape(h, w, -1)
    return np.array([[np.bincount(v, minlength=20).argmax() for v in row] for row in votes])


@pytest.mark.parametrize(
    ("side", "new", "shape"), [(4, 10, (10, 15)), (4, 8, (6, 4)), (4, 20, (10, 5)), (3, 2, (4, 6))]
)
def test_majority_is_that_of_the_area(side, new, shape):
    codes = np.random.default_rng(0).integers(0, 4, shape).astype(np.uint8)
    made = resample_codes(codes, side, new)
    np.testing.assert_array_equal(made, by_area(codes, side, new))
    assert made.dtype == np.uint8


@pytest.mark.parametrize(("side", "new"), [(4, 1), (4, 2), (10, 5), (4, 4)])
def test_finer_pixels_repeat_the_code(side, new):
    codes = np.random.default_rng(1).integers(0, 19, (7, 5)).astype(np.uint8)
    for rule in ("majority", "nearest"):
        np.testing.assert_array_equal(
            resample_codes(codes, side, new, rule), np.kron(codes, np.ones((side // new,) * 2, np.uint8))
        )


def test_rules_differ_where_the_centre_is_not_the_majority():
    codes = np.array([[1, 1, 1, 1, 1], [1, 1, 1, 1, 1], [1, 1, 1, 1, 1], [1, 1, 1, 7, 7], [1, 1, 1, 7, 7]], np.uint8)
    codes[1, 1] = 9  # holds the centre of the first 10 m pixel
    np.testing.assert_array_equal(resample_codes(codes, 4, 10), [[1, 1], [1, 7]])
    np.testing.assert_array_equal(resample_codes(codes, 4, 10, "nearest"), [[9, 1], [1, 7]])
    assert resample_codes(np.array([[0, 3], [3, 0]], np.uint8), 4, 8)[0, 0] == 0  # half is not most


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match=r"\(3, 5\) pixels of 4 m do not fill whole pixels of 10 m"):
        resample_codes(np.zeros((3, 5), np.uint8), 4, 10)
    with pytest.raises(ValueError, match="majority or nearest, not by 'mode'"):
        resample_codes(np.zeros((5, 5), np.uint8), 4, 10, "mode")


def test_files_are_resampled_piece_by_piece(write, tmp_path, monkeypatch):
    monkeypatch.setattr("hierlab.data.patches._ROWS", 10)
    codes = np.random.default_rng(2).integers(0, 5, (45, 20)).astype(np.uint8)
    label = write("label.tif", codes, transform=from_origin(400_000, 5_800_000, 4, 4), nodata=0)
    for new in (1, 2, 10):
        write_codes(tmp_path / f"{new}.tif", label, new)
        with rasterio.open(tmp_path / f"{new}.tif") as file, rasterio.open(label) as source:
            np.testing.assert_array_equal(file.read(1), resample_codes(codes, 4, new))
            assert file.bounds == source.bounds and file.crs == source.crs and file.nodata == 0


def test_labels_end_where_the_image_does(write, tmp_path):
    label = write("l.tif", np.full((10, 10), 7, np.uint8), transform=from_origin(400_000, 5_800_000, 4, 4), nodata=0)
    image = np.ones((2, 4, 4), np.uint16)
    image[:, 0] = 0
    image[1, 2, 2] = 0  # dark in one band
    scene = write("i.tif", image, nodata=0)
    write_codes(tmp_path / "o.tif", label, 10, image=scene)
    with rasterio.open(tmp_path / "o.tif") as file:
        assert file.read(1).tolist() == [[0] * 4, [7] * 4, [7] * 4, [7] * 4]
    with pytest.raises(ValueError, match=r"i\.tif has \(4, 4\) pixels, the label would have 20, 20"):
        write_codes(tmp_path / "p.tif", label, 2, image=scene)


def test_patches_are_read_as_they_were_cut(write, tmp_path, tree):
    rng = np.random.default_rng(3)
    codes = rng.choice([11, 12, 21], (50, 70)).astype(np.uint8)
    codes[:20, :20] = 0  # one square without a label
    codes[20:40, 20:40] = 0
    codes[25, 25] = 22  # and one with hardly any
    image = rng.integers(1, 4000, (3, 50, 70)).astype(np.uint16)
    scene, label = write("s.tif", image, descriptions=["red", "green", "blue"]), write("l.tif", codes)
    ledger = Ledger(tmp_path / "out", {"size": 20})
    names = write_patches(ledger, "train", "S", scene, label, 20, "4label")
    assert len(names) == 2 * (2 * 3 - 1)
    assert names[0] == "img_dir/train/S_r000_c001.tif" and names[1] == "ann_dir/train/S_r000_c001_4label.tif"
    ledger.finish(names)
    data = PairFolder(tmp_path / "out", "train", tree)
    assert len(data) == 5 and data.bands == ["red", "green", "blue"] and data.size == (20, 20) and data.gsd == 10
    for item, (image_path, _) in zip(data, data.pairs, strict=True):
        row, column = (int(part[1:]) * 20 for part in image_path.stem.split("_")[1:])
        np.testing.assert_array_equal(item["image"].numpy(), image[:, row : row + 20, column : column + 20])
        np.testing.assert_array_equal(item["label"].numpy(), tree.encode(codes[row : row + 20, column : column + 20]))
        with rasterio.open(image_path) as file, rasterio.open(scene) as whole:
            assert file.xy(0, 0) == whole.xy(row, column)
    assert [place for place, _ in cut(scene, label, 20, least=0.01)] == [
        "r000_c001",
        "r000_c002",
        "r001_c000",
        "r001_c002",
    ]
    assert len(list(cut(scene, label, 20, unlabelled=None))) == 6
    with pytest.raises(ValueError, match="must be on one grid"):
        list(cut(scene, write("other.tif", codes[:40]), 20))
