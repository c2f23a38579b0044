"""``hierlab bench map``: every row and column is there, and they fit together."""

import pandas as pd
import pytest
import rasterio

from hierlab import bench
from hierlab.mapping import peak_rss_mb


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    said = []
    options = {"size": 96, "memory_sizes": (160,), "window": 64, "overlap": 16, "repeats": 2, "tree": "nlcd"}
    path = bench.map_bench(tmp_path_factory.mktemp("bench"), bands=2, **options, say=said.append)
    return path, said


def test_the_table_holds_every_row_and_column(measured):
    path, said = measured
    table = pd.read_csv(path)
    assert path.name.startswith("map-")
    assert path.parent.name.startswith("bench")
    assert [p.name for p in path.parent.iterdir()] == [path.name]
    assert list(table.columns) == list(bench.MAP_COLUMNS)
    assert list(zip(table["what"], table["precision"], strict=True)) == [
        ("bare", "32-true"),
        ("map", "32-true"),
        ("bare", "bf16-mixed"),
        ("map", "bf16-mixed"),
        ("memory", "32-true"),
    ]
    assert (table["windows"] == [4, 4, 4, 4, 9]).all()
    speeds = table["size"] ** 2 / 1e6 / table["seconds"]
    assert table["mpx_per_s"].tolist() == pytest.approx(speeds.tolist(), rel=1e-3)
    assert table["ratio"].notna().tolist() == [False, True, False, True, False]
    assert (table["ratio"].dropna() > 0.5).all()
    memory = table.iloc[-1]
    assert memory["peak_mb"] >= memory["start_mb"] > 50
    assert memory["all_logits_mb"] == pytest.approx((8 + 16) * 160**2 * 4 / 1e6)
    assert memory["start_mb"] < peak_rss_mb()  # this process holds more than the one apart did at its start
    assert len(said) == 7
    assert "of bare" in said[2]


def test_a_failure_in_the_process_apart_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(bench.sys, "executable", "/bin/false")
    with pytest.raises(RuntimeError, match=r"Mapping none\.tif in a process of its own failed"):
        bench._memory(tmp_path / "none.tif", tmp_path / "map.tif", "nlcd", {})


def test_the_synthetic_scene_does_not_depend_on_its_size(tmp_path):
    values = []
    for size in (530, 700):
        with rasterio.open(bench.write_scene(tmp_path / f"{size}.tif", size, bands=3)) as file:
            values.append(file.read(window=rasterio.windows.Window(500, 500, 30, 30)))
            assert (file.read() > 0).all()
    assert (values[0] == values[1]).all()
