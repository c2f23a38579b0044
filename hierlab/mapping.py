"""Wide-area inference: rasters in, one Cloud-Optimised GeoTIFF out, in memory that the scene's size leaves flat.

:func:`map_scene` runs a network on overlapping windows of a scene, blends their logits, decodes them with the class
tree and writes a band a level. :func:`read_map` and :func:`preview` read a map back. How a large scene needs no more
memory than a small one is told in :mod:`hierlab._blend`; how no half-made file is left, in :mod:`hierlab._cog`.

Windows are read in a thread of their own, a batch ahead; on a GPU the network too runs beside blending and writing.
"""

import hashlib
import json
import math
import re
import resource
import sys
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, contextmanager, nullcontext
from pathlib import Path

import numpy as np
import rasterio
import torch
from rasterio.enums import Resampling
from rasterio.windows import Window
from torch import Tensor, nn

from . import __version__
from ._blend import Batch, Blender, Grid, ahead, read_batches
from ._cog import MapWriter
from .checkpoints import pick_device
from .data.rasters import Scene
from .data.series import Series
from .tree import IGNORE, RULES, ClassTree

SWATH_BYTES = 32 * 2**20  # input rows and bottom margins of one swath: about 2,000 pixels for 4 bands and 31 classes
PRECISIONS = ("32-true", "bf16-mixed")


def map_scene(
    model: nn.Module,
    tree: ClassTree,
    scene: Scene,
    out: str | Path,
    *,
    bands: Sequence[str] | int | None = None,
    window: int = 512,
    overlap: int | None = None,
    batch_size: int = 4,
    rule: str = "sigmoid",
    device: str | torch.device = "cpu",
    precision: str = "32-true",
    channels_last: bool = True,
    compress: str = "ZSTD",
    overwrite: bool = False,
    progress: bool = False,
    tags: dict[str, str] | None = None,
    series: Series | None = None,
) -> dict:
    """Map a scene with a trained network: a Cloud-Optimised GeoTIFF with one band a level, tree-consistent.

    ``model(batch)`` gets ``image`` (B, C, window, window) float32, raw values with 0 where invalid, and ``valid``
    (B, window, window) bool; it gives ``logits``, (B, K_l, window, window) a level, or the leaves alone. It is moved
    to ``device``. ``bands``: names or number of the bands that it was trained on, to be compared with the scene's.
    With a time ``series`` beneath the scene, the batch also holds what :meth:`Series.beneath` gives for each window.

    Windows have ``window`` pixels a side and overlap by ``overlap`` (default: an eighth) or a little more. ``rule``
    is that of :meth:`ClassTree.decode`. ``precision`` is ``"32-true"`` or ``"bf16-mixed"``; with ``channels_last``
    tensors are laid out pixel by pixel, which convolutions like. ``progress`` shows a bar.

    The file: uint8, the class's index at the band's level, 255 = nodata; overviews by the most frequent class; tags
    with the tree, class names, colours, rule, version, the model's fingerprint and ``tags``, which :func:`read_map`
    reads. Beside it ``out``.aux.xml tells GDAL class names and colours. Neither appears before both are complete and
    the map has been read back; on any failure the temporary files are removed.

    Returns ``out``, ``seconds``, ``mpx_per_s`` (million pixels of the scene a second, from the first read to the
    finished file), ``windows``, ``skipped`` (those without a valid pixel), ``valid`` (share of the scene),
    ``peak_rss_mb`` (of the process, so far), and ``levels``, each with ``level`` and ``classes``: ``name``, ``pixels``,
    ``share`` of the valid pixels, ``hectares``.

    Raises ValueError when bands, logits or options do not fit or no pixel is valid, FileExistsError when ``out``
    exists and not ``overwrite``, OSError when the disk is, or becomes, too small.
    """
    out, device = Path(out), pick_device(device)
    overlap = window // 8 if overlap is None else overlap
    _check_options(window, overlap, batch_size, rule, precision, tree)
    _check_bands(bands, scene)
    _check_out(out, [*scene.paths, *([series.path] if series is not None else [])], overwrite)
    channels = sum(tree.sizes)
    column_bytes = 4 * (scene.count * window + channels * max(overlap, 1))
    grid = Grid(scene.height, scene.width, window, overlap, SWATH_BYTES // column_bytes)
    about = {
        "version": __version__,
        "tree": json.dumps(tree.to_dict(), ensure_ascii=False),
        "model": fingerprint(model),
        "rule": rule,
        "precision": precision,
        "window": window,
        "overlap": overlap,
        **(tags or {}),
    }
    batches = read_batches(scene, grid, batch_size)
    batches = ahead(batches if series is None else _beneath(batches, grid, series))
    begun, skipped = time.perf_counter(), 0
    with (
        MapWriter(out, tree, scene, about, grid.seam_bytes(channels)) as writer,
        torch.inference_mode(),
        closing(_beside(device, infer(model, batches, device, precision, channels_last))) as outputs,
        _progress_bar(progress, out.name, grid) as advance,
    ):
        blender = None
        for batch, logits in outputs:
            if blender is None and logits:
                sizes = _check_logits(logits, tree, window)
                blender = Blender(grid, sum(sizes), device, writer.seams)
            for row, column, number in batch.places:
                if number is not None:
                    with writer.saying_what_failed():
                        core = blender.add(row, column, [level[number] for level in logits])
                    labels = tree.decode(core[None].split(sizes, dim=1), rule)[0].to(torch.uint8).cpu().numpy()
                    writer.write(grid.tops[row], grid.lefts[column], labels, batch.valid[number])
                else:
                    skipped += 1
                    if blender is not None:
                        blender.add(row, column, None)
                advance(row, column)
            del batch, logits  # before the next are taken
        if skipped == grid.count:
            raise ValueError(f"{_name(scene)}: no pixel is valid, so there is nothing to map. Check its nodata value.")
        writer.finish(compress)
    seconds = time.perf_counter() - begun
    return {
        "out": str(out),
        "seconds": seconds,
        "mpx_per_s": scene.height * scene.width / 1e6 / seconds,
        "windows": grid.count,
        "skipped": skipped,
        "valid": float(writer.counts[0].sum() / (scene.height * scene.width)),
        "peak_rss_mb": peak_rss_mb(),
        "levels": _shares(tree, writer),
    }


def _shares(tree: ClassTree, writer: MapWriter) -> list[dict]:
    """Pixels, share of the valid pixels and hectares of every class, by level."""
    valid = writer.counts[0].sum()
    levels = []
    for name, classes, counts, areas in zip(tree.level_names, tree.classes, writer.counts, writer.areas, strict=True):
        rows = [
            {"name": text, "pixels": int(n), "share": float(n / valid), "hectares": float(area / 1e4)}
            for text, n, area in zip(classes, counts, areas, strict=False)
        ]
        levels.append({"level": name, "classes": rows})
    return levels


def fingerprint(model: nn.Module) -> str:
    """Twelve hexadecimal digits of the names, shapes and values of a model's parameters and buffers."""
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()[:12]


def peak_rss_mb() -> float:
    """The most memory that this process has held so far, in MB."""
    status = Path("/proc/self/status")
    if status.exists():  # getrusage also counts what the process that started this one held
        return float(re.search(r"VmHWM:\s+(\d+) kB", status.read_text())[1]) * 1024 / 1e6
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e6


# ------------------------------------------------------------------------------------------------------ reading it back


def read_map(path: str | Path, window: Window | None = None) -> tuple[np.ndarray, ClassTree, dict]:
    """A map's classes (L, H, W) uint8 (of a ``window`` alone if given), its tree, and what else it tells.

    The dict has ``crs``, ``transform`` (of what was read), ``height``, ``width`` (of the map), and the tags as text:
    ``version``, ``model``, ``rule``, ``precision``, ``window``, ``overlap`` and those given to :func:`map_scene`.
    Raises ValueError for a file that :func:`map_scene` did not write.
    """
    with rasterio.open(path) as file:
        tree, about = _about(file)
        about["transform"] = file.window_transform(window) if window else file.transform
        return file.read(window=window), tree, about


def preview(path: str | Path, size: int = 1024) -> tuple[np.ndarray, np.ndarray]:
    """A map at most ``size`` pixels wide and high, from its overviews: classes (L, h, w), colours (L, h, w, 3).

    Both uint8; nodata is 255 and white. A pixel is the most frequent class of the overview's pixel that it falls on.
    """
    with rasterio.open(path) as file:
        tree, _ = _about(file)
        scale = max(1, file.height / size, file.width / size)
        shape = (file.count, math.ceil(file.height / scale), math.ceil(file.width / scale))
        labels = file.read(out_shape=shape, resampling=Resampling.nearest)
    colors = np.full((*shape, 3), 255, np.uint8)
    for level, plane in enumerate(labels):
        seen = plane != IGNORE
        colors[level][seen] = tree.colors[level][plane[seen]]
    return labels, colors


def _about(file: rasterio.DatasetReader) -> tuple[ClassTree, dict]:
    tags = {key.removeprefix("hierlab_"): v for key, v in file.tags().items() if key.startswith("hierlab_")}
    if "tree" not in tags:
        raise ValueError(f"{file.name}: no class tree in its tags; maps written by `hierlab map` have one.")
    tree = ClassTree.from_dict(json.loads(tags.pop("tree")), where=f"the tags of {file.name}")
    return tree, tags | {"crs": file.crs, "height": file.height, "width": file.width}


# -------------------------------------------------------------------------------------------------------- what is given


def _check_options(window, overlap, batch_size, rule, precision, tree) -> None:
    if window < 1 or not 0 <= overlap < window:
        raise ValueError(
            f"window {window} and overlap {overlap} do not fit: give a window of 1 pixel or more, and an overlap from "
            "0 up to less than the window."
        )
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}; it must be 1 or more.")
    if rule not in RULES:
        raise ValueError(f"The decoding rule is one of {', '.join(RULES)}; got {rule!r}.")
    if precision not in PRECISIONS:
        raise ValueError(f"precision is one of {', '.join(PRECISIONS)} for mapping; got {precision!r}.")
    if max(tree.sizes) > IGNORE:
        raise ValueError(f"The tree '{tree.name}' has {max(tree.sizes)} classes on a level; a uint8 map holds 255.")


def _check_bands(bands: Sequence[str] | int | None, scene: Scene) -> None:
    if bands is None:
        return
    names = [] if isinstance(bands, int) else list(bands)
    count = len(names) or bands
    moved = [name for place, name in enumerate(names) if name in scene.bands and scene.bands.index(name) != place]
    if count != scene.count or moved:
        trained = f"{count} bands" + (f" ({', '.join(names)})" if names else "")
        raise ValueError(
            f"The model was trained on {trained}; {_name(scene)} has {scene.count} ({', '.join(scene.bands)}). "
            "Give the same bands, in the same order."
        )


def _check_out(out: Path, given: list[str], overwrite: bool) -> None:
    if out.suffix.lower() not in (".tif", ".tiff"):
        raise ValueError(f"{out}: the map is a GeoTIFF; give a name that ends in .tif.")
    if out.resolve() in {Path(path).resolve() for path in given}:
        raise ValueError(f"{out}: this is a file of the scene itself, or its series; give the map another name.")
    if out.is_dir() or (out.exists() and not overwrite):
        raise FileExistsError(f"{out} exists already; choose another name, or ask for it to be overwritten.")


def _check_logits(logits: list[Tensor], tree: ClassTree, window: int) -> list[int]:
    """Channels a level, after a look at the first batch."""
    sizes = [level.shape[1] for level in logits]
    if sizes not in (list(tree.sizes), [tree.num_leaves]) or any(
        level.shape[2:] != (window, window) for level in logits
    ):
        raise ValueError(
            f"The model gives logits {[tuple(level.shape) for level in logits]}; the tree '{tree.name}' asks for "
            f"{'/'.join(map(str, tree.sizes))} channels, or {tree.num_leaves} for a flat model, each "
            f"{window}×{window} like the input. Map with the tree that the model was trained with."
        )
    if not all(bool(level[0].sum(dtype=torch.float32).isfinite()) for level in logits):
        raise ValueError("The model gives NaN or infinite logits: its weights are damaged, or its training diverged.")
    return sizes


def _name(scene: Scene) -> str:
    return ", ".join(Path(path).name for path in scene.paths)


# -------------------------------------------------------------------------------------------------- running the network


def _beneath(batches: Generator[Batch], grid: Grid, series: Series) -> Generator[Batch]:
    """The batches, each with the time series beneath its windows."""
    side = series.side(grid.window)
    with closing(batches):
        for batch in batches:
            found = [
                series.beneath(Window(grid.lefts[column], grid.tops[row], grid.window, grid.window), side)
                for row, column, number in batch.places
                if number is not None
            ]
            more = {name: np.stack([one[name] for one in found]) for name in found[0]} if found else None
            yield batch._replace(more=more)


def infer(
    model: nn.Module, batches: Generator[Batch], device: torch.device, precision: str, channels_last: bool
) -> Generator[tuple[Batch, list[Tensor]]]:
    """Every batch with its logits (none for a batch of nodata alone); the model's training flags are put back."""
    layout = torch.channels_last if channels_last else torch.contiguous_format
    training = [module for module in model.modules() if module.training]
    mixed = torch.autocast(device.type, torch.bfloat16) if precision == "bf16-mixed" else nullcontext()
    model.to(device, memory_format=layout).eval()
    try:
        with torch.inference_mode(), mixed, closing(batches):
            for batch in batches:
                if not len(batch.image):
                    yield batch, []
                    continue
                arrays = {"valid": batch.valid, **(batch.more or {})}
                inputs = {name: torch.from_numpy(array).to(device) for name, array in arrays.items()}
                inputs["image"] = torch.from_numpy(batch.image).to(device, memory_format=layout)
                yield batch, model(inputs)["logits"]
    finally:
        for module in training:
            module.training = True


def _beside(device: torch.device, outputs: Generator) -> Generator:
    """The network in a thread beside the blending, where it has a chip of its own; on a CPU they would only compete."""
    return outputs if device.type == "cpu" else ahead(outputs)


@contextmanager
def _progress_bar(show: bool, name: str, grid: Grid) -> Iterator[Callable[[int, int], None]]:
    """A function to call with every window's row and column; shows Mpx, Mpx/s and the time left."""
    if not show:
        yield lambda row, column: None
        return
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    speed = TextColumn("{task.fields[speed]:.2f} Mpx/s")
    columns = TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), speed, TimeRemainingColumn()
    with Progress(*columns) as bar:
        task = bar.add_task(name, total=grid.height * grid.width / 1e6, speed=0.0)
        left = grid.count

        def advance(row: int, column: int) -> None:
            nonlocal left
            left -= 1
            bar.advance(task, grid.core_heights[row] * grid.core_widths[column] / 1e6)
            seen = bar.tasks[0]
            text = name if left else f"{name}: overviews and compression"
            bar.update(task, speed=seen.completed / max(seen.elapsed, 1e-9), description=text)

        yield advance
