"""How fast the twin renders on the machine at hand, written as CSV: ``hierlab bench twin``."""

import multiprocessing
import re
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from . import __version__, twin
from ._io import atomic
from .bench import in_own_process, machine_name
from .mapping import peak_rss_mb
from .twin import arrays, world
from .twin.sensors import lookup

TWIN_COLUMNS = {
    "what": "scene: neighbouring tiles, after a first one, as in a large image; chips: far from one another, so that "
    "roads, rivers and towns are found anew for each; together: scenes by several processes side by side, on the "
    "device that was asked for; memory: render_geotiff in a process of its own",
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
    "workers": "processes side by side",
    "times": "of together: mpx_per_s over the mpx_per_core_s of the same sensor's scene, so over one core without a "
    "GPU, in the same run",
    "truth_share": "of a sensor's scene: the share of the CPU seconds that what stands on the ground takes (graphs, "
    "parcels, buildings, trees), before any light falls on it; the surroundings that shade a scene below 1 m not "
    "counted. Imaging alone, at no cost at all, would be faster by 1 / truth_share",
    "start_mb": "resident memory of the process before",
    "peak_mb": "its maximum",
    "image_mb": "what the whole image would take",
    "device": "where images are made: cpu by NumPy, else a device of PyTorch, while what stands on the ground stays "
    "with the processor",
    "machine": "processor, and GPU if one was asked for",
    "threads": "of PyTorch",
    "torch": "version",
    "twin": "version of the twin",
    "hierlab": "version",
}
TRUTHS = (0.25, 1.0, 4.0, 10.0)  # metres
_APART = 60_000.0  # metres between chips
_PATIENCE = 600.0  # seconds that processes wait for one another to begin together
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
    device: str | None = None,
    workers: int = 0,
    say: Callable[[str], None] = print,
) -> Path:
    """Megapixels a second of every sensor, for a scene of ``tiles`` × ``tiles`` tiles and for chips, and peak memory.

    Chips are ``chip`` pixels a side, from 10 m GSD on half as many. ``memory_sizes`` are the sides of two GeoTIFFs of
    the GaoFen-2-like sensor. With ``workers`` every sensor's scene is also rendered by so many processes side by
    side, with their images made on ``device`` (None: by NumPy, where the rest is). ``say`` is given a line for every
    measurement; all are written to ``out``/twin-<machine>.csv (``TWIN_COLUMNS`` tells the columns), whose path is
    returned. ValueError for an unknown sensor, a device that is not there, or one without ``workers``.
    """
    arrays.place(device)
    sensors = [lookup(name).name for name in sensors]
    if workers < 0 or (device is not None and workers == 0):
        raise ValueError(f"workers is {workers}: expected the number of processes that share the device, 1 or more.")
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
    shared = machine if device is None else f"{machine}, {machine_name(device)}"
    say(f"{machine}, {torch.get_num_threads()} threads, twin {twin.TWIN_VERSION}")
    for about, work, ground in jobs:
        for row in _speeds(about, work, ground, chip, repeats, tiles):
            rows.append(row)
            share = f", truth {row['truth_share']:.0%}" if "truth_share" in row else ""
            say(f"{row['of']:18} {row['what']:6} {row['mpx_per_core_s']:8.3f} Mpx/s per core{share}")
        if workers and about["of"] in sensors:
            alone = next(row for row in reversed(rows) if row["what"] == "scene")["mpx_per_core_s"]
            row = _together(about["of"], repeats, tiles, device, workers)
            rows.append(about | row | {"times": row["mpx_per_s"] / alone, "machine": shared})
            say(f"{about['of']:18} {workers} processes, {device or 'no device'}: {rows[-1]['times']:.1f} × one core")
    for side in memory_sizes:
        rows.append(_memory(side))
        say(f"memory {side:>6}²  {rows[-1]['peak_mb']:8.0f} MB at most (the image is {rows[-1]['image_mb']:,.0f} MB)")
    about = {"device": "cpu", "machine": machine, "threads": torch.get_num_threads(), "torch": torch.__version__}
    about |= {"twin": twin.TWIN_VERSION, "hierlab": __version__}
    path = Path(out, f"twin-{re.sub(r'[^a-z0-9]+', '-', shared.lower()).strip('-')}.csv")
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


def _together(name: str, repeats: int, tiles: int, device: str | None, workers: int) -> dict:
    """Row ``together`` of a sensor: from the first scene's begin to the last one's end, of all processes."""
    spawned = multiprocessing.get_context("spawn")  # a forked process could not use a GPU
    with ProcessPoolExecutor(workers, spawned) as pool, spawned.Manager() as manager:
        ready = manager.Barrier(workers, timeout=_PATIENCE)
        jobs = [pool.submit(_share, name, 1000 * (n + 1), repeats, tiles, device, ready) for n in range(workers)]
        spans = [job.result() for job in jobs]
    seconds = max(stop for _, stop, _ in spans) - min(start for start, _, _ in spans)
    cpu, sensor = sum(own for _, _, own in spans), twin.SENSORS[name]
    size = tiles * world.tile_size(sensor.step_mm)
    pixels = workers * repeats * size**2 * (len(sensor.dates) or 1) / 1e6
    row = {"what": "together", "size": size, "repeats": repeats * workers, "seconds": seconds, "cpu_seconds": cpu}
    row |= {"mpx_per_s": pixels / seconds, "mpx_per_core_s": pixels / cpu, "workers": workers}
    return row | {"device": device or "cpu"}


def _share(name: str, first: int, repeats: int, tiles: int, device: str | None, ready) -> tuple[float, float, float]:
    """One process of ``_together``: scenes of seeds of its own, after a first tile; begin, end and CPU seconds."""
    torch.set_num_threads(1)
    tile = world.tile_size(twin.SENSORS[name].step_mm)
    try:
        twin.render(name, first, 0, (-tile, 0, tile, tile), device=device)
    except BaseException:
        ready.abort()  # or the others would wait for this one
        raise
    ready.wait()
    start, cpu = time.monotonic(), time.process_time()
    for seed in range(first, first + repeats):
        twin.render(name, seed, 0, (0, 0, tiles * tile, tiles * tile), device=device)
    return start, time.monotonic(), time.process_time() - cpu


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
