"""How fast the twin renders on the machine at hand, written as CSV: ``hierlab bench twin``."""

import re
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from . import __version__, twin
from ._io import atomic
from .bench import in_own_process, machine_name
from .mapping import peak_rss_mb
from .twin import world

TWIN_COLUMNS = {
    "what": "scene: neighbouring tiles, after a first one, as in a large image; chips: far from one another, so that "
    "roads, rivers and towns are found anew for each; memory: render_geotiff in a process of its own",
    "of": "a sensor; truth, with a GSD; or a label product on the grid of the NAIP-like sensor",
    "gsd": "metres",
    "bands": "of the image, of a series those of a date",
    "dates": "of a series, else 1",
    "size": "pixels a side of the scene, or of a chip",
    "repeats": "scenes, or chips, whose median is given",
    "seconds": "wall clock of one",
    "cpu_seconds": "of all threads",
    "mpx_per_s": "million pixels a second; of a series, pixels × dates",
    "mpx_per_core_s": "the same by CPU seconds, so a second of one core",
    "truth_share": "of a sensor's scene: the share of the CPU seconds that what stands on the ground takes (graphs, "
    "parcels, buildings, trees), before any light falls on it; the surroundings that shade a scene below 1 m not "
    "counted. Imaging alone, at no cost at all, would be faster by 1 / truth_share",
    "start_mb": "resident memory of the process before",
    "peak_mb": "its maximum",
    "image_mb": "what the whole image would take",
    "device": "of PyTorch",
    "machine": "processor, or GPU",
    "threads": "of PyTorch",
    "torch": "version",
    "twin": "version of the twin",
    "hierlab": "version",
}
TRUTHS = (0.25, 1.0, 4.0, 10.0)  # metres
_APART = 60_000.0  # metres between chips
Work = Callable[[int, tuple[int, int, int, int]], object]  # (seed, window) -> whatever it makes


def twin_bench(
    out: str | Path = "bench",
    *,
    sensors: Sequence[str] = tuple(twin.SENSORS),
    truths: Sequence[float] = TRUTHS,
    products: Sequence[str] = ("nlcd",),
    chip: int = 256,
    repeats: int = 3,
    tiles: int = 2,
    memory_sizes: Sequence[int] = (512, 2048),
    say: Callable[[str], None] = print,
) -> Path:
    """Megapixels a second of every sensor, for a scene of ``tiles`` × ``tiles`` tiles and for chips, and peak memory.

    Chips are ``chip`` pixels a side, from 10 m GSD on half as many. ``memory_sizes`` are the sides of two GeoTIFFs of
    the GaoFen-2-like sensor. ``say`` is given a line for every measurement; all are written to
    ``out``/twin-<machine>.csv (``TWIN_COLUMNS`` tells the columns), whose path is returned.
    """
    jobs: list[tuple[dict, Work, Work | None]] = []
    for name in sensors:
        s = twin.SENSORS[name]
        about = {"of": name, "gsd": s.gsd, "bands": len(s.bands), "dates": len(s.dates) or 1}
        jobs.append((about, lambda seed, window, name=name: twin.render(name, seed, 0, window), _ground(s)))
    for gsd in truths:
        about = {"of": f"truth {gsd:g} m", "gsd": gsd, "dates": 1}
        jobs.append((about, lambda seed, window, gsd=gsd: twin.ground_truth(seed, 0, window, gsd), None))
    for name in products:
        about = {"of": f"product {name}", "gsd": 1.0, "dates": 1}
        jobs.append((about, lambda seed, window, name=name: twin.product(name, seed, 0, window, 1.0), None))
    machine, rows = machine_name(), []
    say(f"{machine}, {torch.get_num_threads()} threads, twin {twin.TWIN_VERSION}")
    for about, work, ground in jobs:
        for row in _speeds(about, work, ground, chip, repeats, tiles):
            rows.append(row)
            share = f", truth {row['truth_share']:.0%}" if "truth_share" in row else ""
            say(f"{row['of']:18} {row['what']:6} {row['mpx_per_core_s']:8.3f} Mpx/s per core{share}")
    for side in memory_sizes:
        rows.append(_memory(side))
        say(f"memory {side:>6}²  {rows[-1]['peak_mb']:8.0f} MB at most (the image is {rows[-1]['image_mb']:,.0f} MB)")
    about = {"device": "cpu", "machine": machine, "threads": torch.get_num_threads(), "torch": torch.__version__}
    about |= {"twin": twin.TWIN_VERSION, "hierlab": __version__}
    path = Path(out, f"twin-{re.sub(r'[^a-z0-9]+', '-', machine.lower()).strip('-')}.csv")
    with atomic(path) as temporary:
        table = pd.DataFrame([about | row for row in rows]).reindex(columns=list(TWIN_COLUMNS))
        table.to_csv(temporary, index=False, float_format="%.6g")
    say(f"Written: {path}")
    return path


def _ground(sensor: twin.Sensor) -> Work:
    """Makes what stands in the tiles of a window, as the sensor samples them; the image then finds them cached."""
    step, n = sensor.step_mm, sensor.oversample

    def work(seed: int, window: tuple[int, int, int, int]) -> None:
        for column, row, *_ in world.windows(window, step):
            world.tile(seed, 0, column, row, step, n, world.YEAR)  # as the image asks for it, or it is made anew

    return work


def _speeds(about: dict, work: Work, ground: Work | None, chip: int, repeats: int, tiles: int) -> list[dict]:
    """Rows ``scene`` and ``chips`` of one job; every scene is of a seed of its own, so that nothing is cached.

    ``ground`` makes the part of ``work`` that is in ``truth_share``, if the scene's tiles stay cached so long.
    """
    step = round(about["gsd"] * 1000)
    tile = world.tile_size(step)
    taken: dict[str, list[tuple[float, float]]] = {"scene": [], "chips": []}
    shares: list[float] = []
    apart = ground is not None and tiles**2 <= world.tile.cache_info().maxsize
    for seed in range(1, repeats + 1):
        work(seed, (-tile, 0, tile, tile))
        scene = (0, 0, tiles * tile, tiles * tile)
        before = _timed(ground, seed, scene) if apart else (0.0, 0.0)
        after = _timed(work, seed, scene)
        taken["scene"].append((before[0] + after[0], before[1] + after[1]))
        shares.append(before[1] / (before[1] + after[1]))
    chip = chip if step < 10_000 else chip // 2
    for n in range(1, repeats + 1):
        x = int(n * _APART / about["gsd"]) // tile * tile
        taken["chips"].append(_timed(work, 100, (x, -x, chip, chip)))
    rows = []
    for what, pairs in taken.items():
        seconds, cpu = (statistics.median(column) for column in zip(*pairs, strict=True))
        size = tiles * tile if what == "scene" else chip
        pixels = size**2 * about["dates"] / 1e6
        row = about | {"what": what, "size": size, "repeats": repeats, "seconds": seconds, "cpu_seconds": cpu}
        row |= {"mpx_per_s": pixels / seconds, "mpx_per_core_s": pixels / cpu}
        if apart and what == "scene":
            row["truth_share"] = statistics.median(shares)
        rows.append(row)
    return rows


def _timed(work: Work, seed: int, window: tuple[int, int, int, int]) -> tuple[float, float]:
    wall, cpu = time.perf_counter(), time.process_time()
    work(seed, window)
    return time.perf_counter() - wall, time.process_time() - cpu


def _memory(side: int) -> dict:
    """Row ``memory`` of a GeoTIFF of ``side`` × ``side`` pixels, from a process of its own."""
    with tempfile.TemporaryDirectory(prefix="hierlab-bench-") as folder:
        request = {"path": str(Path(folder, "image.tif")), "side": side}
        return in_own_process(memory_of, request, f"Rendering {side}² pixels")


def memory_of(given: dict) -> dict:
    """Render a GeoTIFF; row ``memory`` with that of this process, in which nothing else ran."""
    side, sensor = given["side"], twin.SENSORS["gaofen2"]
    start, wall, cpu = peak_rss_mb(), time.perf_counter(), time.process_time()
    twin.render_geotiff(given["path"], sensor, 0, 0, (0, 0, side, side))
    seconds, cpu_seconds = time.perf_counter() - wall, time.process_time() - cpu
    bands = len(sensor.bands)
    row = {"what": "memory", "of": sensor.name, "gsd": sensor.gsd, "bands": bands, "dates": 1, "size": side}
    row |= {"repeats": 1, "seconds": seconds, "cpu_seconds": cpu_seconds, "mpx_per_s": side**2 / 1e6 / seconds}
    row |= {"mpx_per_core_s": side**2 / 1e6 / cpu_seconds, "start_mb": start, "peak_mb": peak_rss_mb()}
    return row | {"image_mb": side**2 * bands * np.dtype(sensor.dtype).itemsize / 1e6}
