"""Measurements of the library on the machine at hand, written as CSV: ``hierlab bench map``."""

import json
import os
import platform
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path

import numpy as np
import pandas as pd
import rasterio
import torch
from rasterio.transform import from_origin
from torch import nn

from . import __version__
from ._blend import Batch, Grid, read_batches
from ._io import atomic
from .data.rasters import Scene
from .data.tiles import windows
from .mapping import infer, map_scene, peak_rss_mb
from .tree import ClassTree

MAP_COLUMNS = {
    "what": "bare: forward passes alone, over a scene's windows read before; map: map_scene, from the scene's file to "
    "the finished COG; memory: map_scene in a process of its own, with a 1×1 convolution for a network, so that "
    "what is seen is mapping's own memory",
    "network": "as in `hierlab list networks`; it wears BHCCM, with random weights",
    "tree": "as in `hierlab list trees`",
    "precision": "32-true, or bf16-mixed with channels last",
    "size": "pixels a side of the scene",
    "windows": "their number",
    "window": "pixels a side of a window",
    "overlap": "pixels by which windows overlap, at least",
    "batch_size": "windows a forward pass",
    "repeats": "how often, in turn: bare fp32, map fp32, bare bf16, map bf16, and again, after a first turn to warm up",
    "seconds": "wall clock, median of the repeats",
    "cpu_seconds": "of all threads, median; steadier than the wall clock on a machine that also does other work",
    "mpx_per_s": "million pixels of the scene a second",
    "ratio": "seconds of map over those of bare, same repeat and precision, median",
    "cpu_ratio": "the same of cpu_seconds",
    "start_mb": "resident memory of the process before mapping",
    "peak_mb": "its maximum",
    "all_logits_mb": "what the logits of the whole scene would take as float32",
    "device": "of PyTorch",
    "machine": "processor, or GPU",
    "threads": "of PyTorch",
    "torch": "version",
    "hierlab": "version",
}
PRECISIONS = {"32-true": False, "bf16-mixed": True}  # with channels last?


def map_bench(
    out: str | Path = "bench",
    *,
    network: str = "resnet18-unet",
    tree: str = "mm5b",
    bands: int = 4,
    size: int = 2048,
    memory_sizes: Sequence[int] = (2048, 16384),
    window: int = 512,
    overlap: int = 64,
    batch_size: int = 4,
    repeats: int = 3,
    device: str = "cpu",
    say: Callable[[str], None] = print,
) -> Path:
    """Mapping beside the bare forward passes over the same windows, and its peak memory by the scene's size.

    ``say`` is given a line for every measurement; all are written to ``out``/map-<machine>.csv (``MAP_COLUMNS`` tells
    the columns), whose path is returned. Scenes are synthetic and stand in the temporary folder, 2 bytes a band and
    pixel, with their maps, 5 bytes a pixel.
    """
    from .hierars import hierarchical
    from .networks import build

    classes = ClassTree.load(tree)
    options = {"window": window, "overlap": overlap, "batch_size": batch_size}
    machine = machine_name(device)
    rows = []
    with tempfile.TemporaryDirectory(prefix="hierlab-bench-") as folder:
        scene = write_scene(Path(folder, f"{size}.tif"), size, bands)
        model = hierarchical(build(network, bands, classes.num_leaves), classes).eval()
        say(f"{machine}, {torch.get_num_threads()} threads: {network} with BHCCM on {bands} × {size} × {size}")
        for row in _times(model, classes, Scene.open(scene), Path(folder, "map.tif"), options, repeats, device):
            rows.append({"network": network, "size": size, **row})
            beside = f", {row['ratio']:.2f} of bare (CPU time {row['cpu_ratio']:.2f})" if row["what"] == "map" else ""
            say(f"{row['what']:6} {row['precision']:10} {row['mpx_per_s']:8.3f} Mpx/s{beside}")
        for side in memory_sizes:
            scene = write_scene(Path(folder, f"{side}.tif"), side, bands)
            row = _memory(scene, Path(folder, "map.tif"), tree, options)
            rows.append({"network": "1×1 convolution", "precision": "32-true", "size": side, **row})
            held = sum(classes.sizes) * side**2 * 4 / 1e6
            rows[-1]["all_logits_mb"] = held
            say(f"memory {side:>6}²  {row['peak_mb']:8.0f} MB at most (all logits would be {held:,.0f} MB)")
            scene.unlink()
    about = {"tree": tree, "device": device, "machine": machine, "threads": torch.get_num_threads()}
    about |= {"torch": torch.__version__, "hierlab": __version__, **options}
    path = Path(out, f"map-{re.sub(r'[^a-z0-9]+', '-', machine.lower()).strip('-')}.csv")
    with atomic(path) as temporary:
        table = pd.DataFrame([about | row for row in rows]).reindex(columns=list(MAP_COLUMNS))
        table.to_csv(temporary, index=False, float_format="%.6g")
    say(f"Written: {path}")
    return path


def _times(
    model: nn.Module, tree: ClassTree, scene: Scene, out: Path, options: dict, repeats: int, device: str
) -> list[dict]:
    """Rows ``bare`` and ``map`` of each precision."""
    grid = Grid(scene.height, scene.width, options["window"], options["overlap"], scene.width)
    batches = list(read_batches(scene, grid, options["batch_size"]))
    taken: dict[tuple, list[tuple[float, float]]] = {}
    for turn in range(repeats + 1):
        for precision, channels_last in PRECISIONS.items():
            how = {"device": torch.device(device), "precision": precision, "channels_last": channels_last}
            for what, run in (
                ("bare", lambda how=how: _bare(model, batches, **how)),
                ("map", lambda how=how: map_scene(model, tree, scene, out, overwrite=True, **options, **how)),
            ):
                wall, cpu = time.perf_counter(), time.process_time()
                run()
                if turn:
                    pair = time.perf_counter() - wall, time.process_time() - cpu
                    taken.setdefault((what, precision), []).append(pair)
    rows = []
    for (what, precision), pairs in taken.items():
        seconds, cpu_seconds = (statistics.median(column) for column in zip(*pairs, strict=True))
        row = {"what": what, "precision": precision, "windows": grid.count, "repeats": repeats, "seconds": seconds}
        row |= {"cpu_seconds": cpu_seconds, "mpx_per_s": scene.height * scene.width / 1e6 / seconds}
        if what == "map":
            both = list(zip(pairs, taken["bare", precision], strict=True))
            row["ratio"] = statistics.median(mapped[0] / bare[0] for mapped, bare in both)
            row["cpu_ratio"] = statistics.median(mapped[1] / bare[1] for mapped, bare in both)
        rows.append(row)
    return rows


def _bare(model: nn.Module, batches: list[Batch], device: torch.device, precision: str, channels_last: bool) -> None:
    with closing(infer(model, (batch for batch in batches), device, precision, channels_last)) as outputs:
        for _ in outputs:
            pass
    if device.type == "cuda":
        torch.cuda.synchronize(device)


class Pixelwise(nn.Module):
    """The least network that there is, for measuring what is around it: one 1×1 convolution."""

    def __init__(self, bands: int, sizes: Sequence[int]):
        super().__init__()
        self.sizes = list(sizes)
        self.layer = nn.Conv2d(bands, sum(sizes), 1)
        nn.init.normal_(self.layer.weight, std=1e-3)

    def forward(self, batch: dict) -> dict:
        return {"logits": list(self.layer(batch["image"]).split(self.sizes, dim=1))}


def _memory(scene: Path, out: Path, tree: str, options: dict) -> dict:
    """Row ``memory`` of one scene, from a process of its own."""
    request = {"scene": str(scene), "out": str(out), "tree": tree, "options": options}
    return in_own_process(memory_of, request, f"Mapping {scene.name}")


def in_own_process(function: Callable[[dict], dict], request: dict, what: str) -> dict:
    """``function(request)`` from a new Python process, so that the peak of its memory is its own.

    ``function`` is one of a module's; request and answer are JSON-able. RuntimeError with its last words if it fails.
    """
    code = f"import json, sys; from {function.__module__} import {function.__name__} as function; "
    code += "print(json.dumps(function(json.loads(sys.argv[1]))))"
    done = subprocess.run([sys.executable, "-c", code, json.dumps(request)], capture_output=True, text=True)
    if done.returncode:
        ended = "was killed, as happens where memory runs out" if done.returncode == -signal.SIGKILL else "failed"
        raise RuntimeError(f"{what} in a process of its own {ended}:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def memory_of(given: dict) -> dict:
    """Map a scene with :class:`Pixelwise`; row ``memory`` with that of this process, in which nothing else ran."""
    tree, scene = ClassTree.load(given["tree"]), Scene.open(given["scene"])
    torch.manual_seed(0)
    start = peak_rss_mb()
    model = Pixelwise(scene.count, tree.sizes)
    stats = map_scene(model, tree, scene, given["out"], overwrite=True, **given["options"])
    row = {"what": "memory", "windows": stats["windows"], "seconds": stats["seconds"]}
    return row | {"mpx_per_s": stats["mpx_per_s"], "start_mb": start, "peak_mb": peak_rss_mb()}


def write_scene(path: Path, size: int, bands: int = 4) -> Path:
    """A synthetic uint16 scene, ``size`` pixels a side: fields and waves with some noise, written tile by tile."""
    generator = np.random.default_rng(0)
    noise = generator.integers(0, 60, (bands, 512, 512), np.uint16)
    turns = generator.uniform(0.002, 0.02, (bands, 2, 1, 1))
    profile = {"driver": "GTiff", "dtype": "uint16", "nodata": 0, "crs": "EPSG:32632", "bigtiff": "IF_SAFER"}
    layout = {"tiled": True, "blockxsize": 512, "blockysize": 512, "transform": from_origin(400_000, 5_500_000, 4, 4)}
    with (
        rasterio.Env(GDAL_CACHEMAX=2**26),
        rasterio.open(path, "w", height=size, width=size, count=bands, **profile, **layout) as file,
    ):
        for window in windows(size, size, 512, 512):
            y = np.arange(window.row_off, window.row_off + window.height)[:, None]
            x = np.arange(window.col_off, window.col_off + window.width)
            waves = np.sin(turns[:, 0] * y) + np.cos(turns[:, 1] * x) + (y // 97 + x // 61) % 3
            values = (900 + 250 * waves).astype(np.uint16) + noise[:, y % 512, x % 512]
            file.write(values, window=window)
    return path


def machine_name(device: str = "cpu") -> str:
    """The GPU's name, or the processor's with its cores."""
    if torch.device(device).type == "cuda":
        return torch.cuda.get_device_name(device)
    name = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").exists():
        found = re.search(r"model name\s*: (.+)", Path("/proc/cpuinfo").read_text())
        name = found.group(1) if found else name
    return f"{name} {len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()} cores"
