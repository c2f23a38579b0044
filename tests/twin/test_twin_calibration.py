"""The forest that measures real scenes and the twin alike, and the scenes it is given."""

import numpy as np
import pytest

from hierlab.experiments import record, twin_calibration
from hierlab.twin import calibration, likeness, modalities
from hierlab.twin.calibration import IGNORE, Patch, Row


def _patch(seed: int, shift: float = 0.0, size: int = 40) -> Patch:
    """Two classes in stripes of eight rows; the second band tells them, the first is noise."""
    random = np.random.default_rng(seed)
    label = np.repeat(np.arange(size) // 8 % 2, size).reshape(size, size).astype(np.uint8)
    image = random.normal(size=(2, size, size)).astype(np.float32)
    image[1] = label + shift + 0.1 * image[1]
    return Patch(image, label)


def test_the_score_counts_what_it_says():
    truth, predicted = np.array([0, 0, 0, 5, 5, 7]), np.array([0, 0, 5, 5, 5, 9])
    found = calibration.score(truth, predicted)
    assert found["OA"] == pytest.approx(4 / 6)
    assert found["IoU"] == pytest.approx({"0": 2 / 3, "5": 2 / 3, "7": 0.0})
    assert found["mIoU"] == pytest.approx(4 / 9)  # 9 is not a class of the truth
    assert (found["majority"], found["classes"]) == (0.5, 3)


def test_held_out_blocks_are_whole_and_never_all():
    for seed in range(20):
        test = calibration.held_out(50, 70, 20, seed)
        assert test.shape == (50, 70) and 0 < test.mean() < 1
        blocks = [test[r : r + 20, c : c + 20] for r in range(0, 50, 20) for c in range(0, 70, 20)]
        assert all(b.all() or not b.any() for b in blocks)
    assert 0.2 < np.mean([calibration.held_out(400, 400, 20, s).mean() for s in range(5)]) < 0.4


def test_bands_and_surroundings_tell_what_they_should():
    patches = [_patch(n) for n in range(2)]
    rows = {
        name: Row("x", "x", block=10, **options)
        for name, options in {
            "noise": {"bands": (0,)},
            "told": {"bands": (1,)},
            "context": {"bands": (1,), "context": True},
        }.items()
    }
    oa = {name: calibration.measure(row, patches, trees=10)["OA"] for name, row in rows.items()}
    assert oa["noise"] < 0.7 < 0.95 < oa["told"]
    around = calibration.surroundings(patches[0].image, 5)
    assert around.shape == (6, 40, 40)
    square = patches[0].image[0, 10:15, 20:25]
    assert around[2, 12, 22] == pytest.approx(square.mean(), abs=1e-5)
    assert around[4, 12, 22] == pytest.approx(square.std(), abs=1e-4)


def test_whole_windows_are_held_out_and_a_new_flight_is_harder():
    patches = [_patch(n, shift) for n, shift in enumerate((0.0, 0.1, 2.0))]
    within = calibration.measure(Row("x", "x", block=10), patches, trees=10)["OA"]
    across = calibration.measure(Row("x", "x", split="windows", folds=3), patches, trees=10)["OA"]
    assert within > 0.95 > across + 0.1
    marked = [p._replace(test=n == 2) for n, p in enumerate(patches)]
    found = calibration.measure(Row("x", "x", split="windows", folds=1), marked, trees=10)
    assert found["OA"] == pytest.approx((patches[2].label == 1).mean())  # to it, the third flight is all class 1
    with pytest.raises(ValueError, match="0 to score"):
        calibration.measure(Row("x", "nothing", split="windows", folds=1), [p._replace(test=False) for p in patches])


def test_weak_labels_teach_and_true_ones_score():
    patch = _patch(0)
    wrong = patch._replace(weak=1 - patch.label)
    row = Row("x", "x", block=10, weak=True)
    assert calibration.measure(row, [wrong], trees=10)["OA"] < 0.05
    hole = patch._replace(weak=np.where(patch.label == 1, IGNORE, patch.label).astype(np.uint8))
    assert calibration.measure(row, [hole], trees=10)["IoU"]["1"] == 0


def test_levels_and_mixed_patches():
    patch = _patch(0)
    codes = Patch(patch.image, np.where(patch.label == 1, 42, 41).astype(np.uint8))
    assert calibration.measure(Row("x", "x", block=10, tens=True), [codes], trees=5)["classes"] == 1
    plain = Patch(patch.image + 9, np.zeros_like(patch.label))
    row = Row("x", "x", split="windows", folds=1)
    both = [patch._replace(test=False), patch._replace(test=True), plain._replace(test=True)]
    shares = [calibration.measure(row._replace(mixed=mixed), both, trees=5)["majority"] for mixed in (False, True)]
    assert shares == pytest.approx([0.8, 0.6])  # the plain patch is passed over


def test_statistics_know_the_grain_of_a_scene():
    random = np.random.default_rng(0)
    noise = random.normal(size=(64, 64)).astype(np.float32)
    slope = np.repeat(np.arange(64.0), 64).reshape(64, 64).astype(np.float32)
    label = (slope // 16).astype(np.uint8)
    found = calibration.statistics([Patch(np.stack([noise, slope, -slope]), label)], 0, 1)
    assert found["variogram red 1"] == pytest.approx(1, abs=0.1)
    assert found["variogram infrared 1"] < 0.01 < found["variogram infrared 16"]
    assert found["edges"] == pytest.approx(3 * 64 / (2 * 63 * 64))
    assert calibration.statistics([Patch(np.stack([slope, -slope]), label)], 0, 1)["correlation"] == pytest.approx(-1)


def test_every_row_has_a_case_on_both_sides():
    from hierlab.twin import real

    for row in calibration.ROWS.values():
        kind = row.case.split()[0]
        assert row.case in likeness.SHARES and kind in real.SOURCES and kind in calibration.RED_INFRARED
        assert kind in likeness.CASES or row.case.split()[1] in real.TILES
    for shares in likeness.SHARES.values():
        assert all(sum(s.values()) == pytest.approx(1, abs=0.02) for s in shares)


def test_thinning_reaches_the_shares():
    label = np.array([0] * 600 + [1] * 300 + [2] * 100, np.uint8).reshape(20, 50)
    out = likeness.thinned(label, {0: 0.5, 1: 0.5}, least=0.1)
    assert set(np.unique(out)) == {0, 1, IGNORE}
    assert np.count_nonzero(out == 0) == np.count_nonzero(out == 1) == 300
    assert (out[out != IGNORE] == label[out != IGNORE]).all()
    rare = likeness.thinned(label, {0: 0.2, 2: 0.8}, least=0.5)
    assert np.count_nonzero(rare == 2) == 100 and np.count_nonzero(rare == 0) == 70  # a fifth of half of the 700
    few = likeness.thinned(label, {0: 0.5, 1: 0.5}, most=100)
    assert [np.count_nonzero(few == c) for c in (0, 1)] == [50, 50]


def test_worn_labels_are_wrong_where_labels_are_wrong():
    label = np.zeros((96, 96), np.uint8)
    label[:, 48:] = 1
    label[5, 5] = 1
    smooth = likeness.worn(label, 0, wrong=0)
    assert smooth[5, 5] == 0  # a single pixel is not drawn
    assert 0.9 < (smooth == label).mean() < 1 and set(np.unique(smooth)) == {0, 1}
    faulty = np.mean([(likeness.worn(label, s, 0.08, size=8, drawn=False) != label).mean() for s in range(20)])
    assert faulty == pytest.approx(0.08, abs=0.02)
    assert (likeness.worn(label, 3) == likeness.worn(label, 3)).all()
    known = likeness.worn(np.where(label == 1, IGNORE, label), 0)
    assert set(np.unique(known)) == {0, IGNORE}


def test_the_majority_of_a_pixel():
    fine = np.array([[3, 3, 7, 7], [3, 9, 7, 9], [1, 1, 2, 2], [1, 1, 2, 2]], np.uint8)
    assert likeness.majority(fine, 2).tolist() == [[3, 7], [1, 2]]


def test_places_are_found_by_their_shares():
    water = np.zeros_like(likeness.tables()["series"])
    water[5:8] = 1  # river, lake, pond
    away, x, y = likeness.find({0: 0.9, 1: 0.1}, water, 960.0, 0, 0, looks=1)
    other, *_ = likeness.find({0: 0.9, 1: 0.1}, water, 960.0, 0, 0, looks=1, taken=[(x, y)])
    assert 0 <= away <= other <= 1
    from hierlab.twin import truth

    leaf = truth(0, 0, (x // 80, y // 80, 12, 12), 80.0)
    share = np.isin(leaf, (5, 6, 7)).mean()
    assert abs(share - 0.1) <= away + 0.05


def test_gaps_in_a_series_are_bridged():
    series = np.array([10.0, 99, 30, 99, 99], np.float32).reshape(5, 1, 1, 1) * np.ones((5, 2, 1, 2), np.float32)
    valid = np.array([True, False, True, False, False]).reshape(5, 1, 1) * np.ones((5, 1, 2), bool)
    valid[:, 0, 1] = False
    found = modalities.filled(series, valid)
    assert found[:, 0, 0, 0].tolist() == [10, 20, 30, 30, 30]
    assert found[:, 1, 0, 1].tolist() == series[:, 1, 0, 1].tolist()  # nothing is known: nothing is made up


def test_broad_bands_are_means_of_narrow_ones():
    flat = np.full((249, 3), 7.0, np.float32)
    assert modalities.broad(flat) == pytest.approx(np.full((8, 3), 7.0), rel=1e-5)
    with pytest.raises(ValueError, match="multiples of 30"):
        modalities.samples(0, 0, (0, 0, 100, 90), 10)


def test_records_make_the_table(tmp_path, monkeypatch):
    path = tmp_path / "records.jsonl"
    rows = ["series RGB 1", "series date 1", "series five dates"]
    patch = _patch(0)
    cases = [Patch(np.concatenate([patch.image] * 33)[:65], patch.label)]
    monkeypatch.setattr(likeness, "case", lambda name, seed: (cases, {"region": 3}))
    for seed in (0, 1):
        twin_calibration.measure_twin(path, seed, rows, trees=3)
    twin_calibration.measure_twin(path, 0, rows, trees=3)  # is there already
    records = record.read(path)
    assert [(r["row"], r["seed"]) for r in records if "OA" in r["metrics"]] == [(n, s) for s in (0, 1) for n in rows]
    assert all(r["data"]["twin"] and r["data"]["region"] == 3 for r in records)
    real = records[2] | {
        "data": {"twin": False, "name": "made up"},
        "metrics": {"OA": 0.5, "mIoU": 0.1, "majority": 0.4},
    }
    table = twin_calibration.table([*records, real])
    line = table.loc[records[2]["row"]]
    assert line["seeds"] == 2 and line["real OA"] == 0.5 and line["low"] <= line["twin OA"] <= line["high"]
    assert line["near"] == (abs(line["twin OA"] - 0.5) <= 0.1)
    margins = twin_calibration.margins(records).loc["five dates over one"]
    oa = {(r["row"], r["seed"]): r["metrics"].get("OA") for r in records}
    each = [oa["series five dates", s] - oa["series date 1", s] for s in (0, 1)]
    assert margins["twin"] == pytest.approx(np.median(each)) and np.isnan(margins["real"])
