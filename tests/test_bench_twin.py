"""``hierlab bench twin``: every row and column is there, and they fit together."""

import pandas as pd
import pytest

from hierlab import bench, bench_twin, twin
from hierlab.twin import world


def test_the_table_holds_every_row_and_column(tmp_path):
    said = []
    path = bench_twin.twin_bench(
        tmp_path,
        sensors=("sentinel2",),
        truths=(30.0,),
        products=(),
        chip=64,
        repeats=1,
        tiles=1,
        memory_sizes=(40,),
        say=said.append,
    )
    table = pd.read_csv(path)
    assert path.name.startswith("twin-") and [p.name for p in path.parent.iterdir()] == [path.name]
    assert list(table.columns) == list(bench_twin.TWIN_COLUMNS)
    rows = [("scene", "sentinel2"), ("chips", "sentinel2"), ("scene", "truth 30 m"), ("chips", "truth 30 m")]
    assert list(zip(table["what"], table["of"], strict=True)) == [*rows, ("memory", "gaofen2")]
    assert table["size"].tolist() == [128, 32, 128, 32, 40]
    speeds = table["size"] ** 2 / 1e6 / table["seconds"]
    assert table["mpx_per_s"].tolist() == pytest.approx(speeds.tolist(), rel=1e-3)
    shares = table["truth_share"]
    assert shares.notna().tolist() == [True, False, False, False, False]
    assert 0.2 < shares[0] < 0.98  # both what stands there and its image cost something
    memory = table.iloc[-1]
    assert memory["peak_mb"] >= memory["start_mb"] > 50
    assert memory["image_mb"] == pytest.approx(40 * 40 * 4 * 2 / 1e6)
    assert len(said) == 1 + 4 + 1 + 1


def test_the_image_finds_the_ground_made():
    window = (0, 0, 128, 128)
    bench_twin._ground(twin.SENSORS["sentinel2"])(5, window)
    made = world.tile.cache_info().misses
    twin.render("sentinel2", 5, 0, window)
    assert world.tile.cache_info().misses == made


def test_processes_side_by_side_are_measured_against_one_core(tmp_path):
    table = pd.read_csv(
        bench_twin.twin_bench(
            tmp_path,
            sensors=("sentinel2",),
            truths=(),
            products=(),
            chip=32,
            repeats=1,
            tiles=1,
            memory_sizes=(),
            device="cpu",
            workers=2,
            say=lambda line: None,
        )
    ).set_index("what")
    assert list(table.index) == ["scene", "chips", "together"]
    row = table.loc["together"]
    assert (row["workers"], row["repeats"], row["size"], row["device"]) == (2, 2, 128, "cpu")
    assert row["mpx_per_s"] == pytest.approx(2 * 128**2 / 1e6 / row["seconds"], rel=1e-3)
    assert row["times"] == pytest.approx(row["mpx_per_s"] / table.loc["scene", "mpx_per_core_s"], rel=1e-3)


def test_what_cannot_be_measured_is_told_first(tmp_path):
    for asked, match in (
        ({"sensors": ("hubble",)}, "no sensor 'hubble'"),
        ({"device": "nowhere", "workers": 1}, "images cannot be made there"),
        ({"device": "cpu"}, "workers is 0"),
        ({"workers": -1}, "workers is -1"),
    ):
        with pytest.raises(ValueError, match=match):
            bench_twin.twin_bench(tmp_path, **asked)
    assert not list(tmp_path.iterdir())


def test_a_failure_in_the_process_apart_is_told(monkeypatch):
    monkeypatch.setattr(bench.sys, "executable", "/bin/false")
    with pytest.raises(RuntimeError, match="Rendering 8² pixels in a process of its own failed"):
        bench_twin._memory(8)
