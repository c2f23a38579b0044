"""Memory and time of every published model on the machine at hand, written as CSV: ``hierlab bench models``."""

import csv
import json
import re
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from . import __version__, hiresnet, networks, paraformer
from ._io import atomic
from .bench import PRECISIONS, in_own_process, machine_name
from .checkpoints import pick_device
from .hierars import Hierarchical, hierarchical
from .mapping import peak_rss_mb
from .models import WEAK, build, make_loss
from .tree import ClassTree


class Published(NamedTuple):
    """What a paper gives its model: bands and side of the input, and the class tree, or ``leaves`` of it."""

    bands: int
    size: int
    tree: str
    leaves: tuple[str, ...] | None = None

    def load(self) -> ClassTree:
        """The class tree."""
        tree = ClassTree.load(self.tree)
        return tree if self.leaves is None else tree.subset([tree.label_of(leaf) for leaf in self.leaves])


# The legends of Hi-ResNet (LoveDA, 7 classes) and STSNet (WHU-H²SR-MT, 8) have one level, on which BHCCM is the very
# convolution that it replaces. So their models are measured on as many leaves of MM-5B, which has three levels.
_LOVEDA = ("dry cropland", "forest", "river", "industrial area", "urban residential", "road", "bare land")
_H2SR = ("paddy field", "dry cropland", "forest", "natural meadow", "river", "industrial area", "urban residential")
_STSNET = Published(249, 300, "mm5b", (*_H2SR, "road"))
_HIERARS = (
    *("segnext-s", "segnext-b", "segnext-l", "convnext_base-upernet", "swin_base-upernet", "deit3_base-upernet"),
    "resnet101c-deeplabv3plus",
)
PUBLISHED: dict[str, Published] = {
    **dict.fromkeys(paraformer.NETWORKS, Published(4, 224, "nlcd")),
    **dict.fromkeys(hiresnet.NETWORKS, Published(3, 512, "mm5b", _LOVEDA)),
    "stsnet": _STSNET,
    "stsnet-spectral": _STSNET,
    "stsnet-temporal": _STSNET._replace(bands=10),
    **dict.fromkeys(_HIERARS, Published(4, 512, "mm5b")),
}
"""Every model with its published input. Those of STSNet with a series take 31 dates of 10 bands at a tenth of the size
beside the image; the bands of ``stsnet-temporal`` are those of a date."""

HEADS = ("flat", "bhccm")
WORKS = ("forward", "step")
MODEL_COLUMNS = {
    "model": "as in `hierlab list networks`, with random weights",
    "head": "flat, or bhccm: the same network with BHCCM of the tree",
    "tree": "as in `hierlab list trees`, with the number of leaves where only some of it is taken: Hi-ResNet's and "
    "STSNet's own legends have one level, on which BHCCM would add nothing",
    "form": "published, or the options that made it smaller",
    "bands": "of the image; of stsnet-temporal those of a date",
    "size": "pixels a side of the image",
    "batch": "images a pass",
    "device": "of PyTorch",
    "machine": "processor, or GPU",
    "threads": "of PyTorch",
    "precision": "32-true, or bf16-mixed with channels last",
    "loss": "of the step, as `hierlab train` takes it; PLAT with its mask",
    "params": "parameters",
    "gmac": "1e9 multiply-accumulates of a forward pass, for one image",
    "repeats": "timed turns, after one to warm up; in each the flat model, then that with BHCCM, in the same process",
    "forward_s": "seconds of an inference pass, median",
    "step_s": "seconds of a training step, median: forward, loss, backward, AdamW",
    "start_mb": "memory of the process before it holds a model, of inference; 0 of a GPU",
    "forward_mb": "the most memory of a process in which nothing but two inference passes ran; of a GPU what PyTorch "
    "allocated there",
    "step_mb": "the same of two training steps",
    "forward_ratio": "seconds with BHCCM over seconds flat, of the same turn, median",
    "step_ratio": "the same of training steps; the two losses differ as the heads do",
    "forward_mb_ratio": "forward_mb with BHCCM over that of flat",
    "step_mb_ratio": "the same of step_mb",
    "failed": "what could not be measured, and why",
    "torch": "version",
    "hierlab": "version",
    "date": "of the measurement, UTC",
}
KEY = ("model", "head", "tree", "form", "bands", "size", "batch", "device", "machine", "threads", "precision")


def models_bench(
    out: str | Path = "bench",
    *,
    models: Sequence[str] | None = None,
    device: str = "auto",
    batch: int = 1,
    precision: str = "32-true",
    repeats: int = 3,
    size: int | None = None,
    options: dict | None = None,
    say: Callable[[str], None] = print,
) -> Path:
    """Time and peak memory of inference and of a training step, flat and with BHCCM, for :data:`PUBLISHED` models.

    Each is measured at its published size and input, unless ``size`` and ``options`` (of :func:`hierlab.models.build`)
    make it smaller. ``say`` is given a line before each model and one for every row; the rows of each model are
    written when it is done, to ``out``/models-<machine>.csv (``MODEL_COLUMNS`` tells the columns), whose path is
    returned. Rows that the file has already stay, unless they are of the same :data:`KEY`. What fails, for want of
    memory or otherwise, is told in its row. Weights stand in the temporary folder meanwhile.

    Raises ValueError for a model that is not there, a batch, size or repeats below 1, an unknown precision or device,
    and a file of other columns.
    """
    names = list(PUBLISHED) if models is None else list(dict.fromkeys(models))
    if unknown := [name for name in names if name not in PUBLISHED]:
        raise ValueError(f"No published model is called {', '.join(unknown)}; there are {', '.join(PUBLISHED)}.")
    if min(batch, repeats, size or 1) < 1:
        raise ValueError(f"batch, repeats and size are at least 1; got {batch}, {repeats}, {size}.")
    if precision not in PRECISIONS:
        raise ValueError(f"precision is one of {', '.join(PRECISIONS)}; got {precision!r}.")
    device = str(pick_device(device))
    machine = machine_name(device)
    path = Path(out, f"models-{re.sub(r'[^a-z0-9]+', '-', machine.lower()).strip('-')}.csv")
    rows = _read(path)
    say(f"{machine}, {torch.get_num_threads()} threads, {precision}, {batch} a batch")
    for number, name in enumerate(names, 1):
        published = PUBLISHED[name] if size is None else PUBLISHED[name]._replace(size=size)
        say(f"{number}/{len(names)} {name}: {published.bands} × {published.size} × {published.size}")
        about = {"form": "published" if not options else json.dumps(options), "batch": batch, "device": device}
        about |= {"machine": machine, "threads": torch.get_num_threads(), "precision": precision, "repeats": repeats}
        about |= {"torch": torch.__version__, "hierlab": __version__, "date": datetime.now(UTC).date().isoformat()}
        request = {"model": name, "published": published, "options": options or {}}
        request |= {key: about[key] for key in ("batch", "device", "precision")}
        new = [_texts(about | row) for row in _pair(request, repeats)]
        taken = {tuple(row[key] for key in KEY) for row in new}
        rows = [row for row in rows if tuple(row[key] for key in KEY) not in taken] + new
        _write(path, rows)
        for row in new:
            say(_line(row))
    say(f"Written: {path}")
    return path


def _pair(request: dict, repeats: int) -> list[dict]:
    """The rows of one model, flat and with BHCCM; every measurement is made in a process of its own."""
    published: Published = request["published"]
    tree = published.tree + (f", {len(published.leaves)} leaves" if published.leaves else "")
    about = {"model": request["model"], "tree": tree, "bands": published.bands, "size": published.size}
    rows = {head: about | {"head": head} for head in HEADS}
    failed: dict[str, list[str]] = {head: [] for head in HEADS}

    def run(function: Callable[[dict], dict], what: str, heads: Sequence[str], **more) -> dict | None:
        try:
            return in_own_process(function, request | {"heads": heads} | more, what)
        except RuntimeError as error:
            for head in heads:
                failed[head].append(f"{what}: {_reason(error)}")
            return None

    with tempfile.TemporaryDirectory(prefix="hierlab-bench-") as folder:
        request = request | {"folder": folder}
        found = run(prepare, "making it", HEADS)
        for head in HEADS if found else ():
            rows[head] |= found[head]
        for work in WORKS if found else ():
            alone = {head: run(measure, f"memory of {work}", [head], work=work, repeats=1) for head in HEADS}
            fitting = [head for head in HEADS if alone[head]]
            for head in fitting:
                rows[head][f"{work}_mb"] = alone[head]["peak_mb"]
                rows[head].setdefault("start_mb", alone[head]["start_mb"])
            timed = run(measure, f"time of {work}", fitting, work=work, repeats=repeats) if fitting else None
            for head in fitting if timed else ():
                rows[head][f"{work}_s"] = statistics.median(timed["seconds"][head])
            if len(fitting) == len(HEADS):
                flat, bhccm = (rows[head] for head in HEADS)
                bhccm[f"{work}_mb_ratio"] = bhccm[f"{work}_mb"] / flat[f"{work}_mb"]
                if timed:
                    turns = zip(*(timed["seconds"][head] for head in HEADS), strict=True)
                    bhccm[f"{work}_ratio"] = statistics.median(second / first for first, second in turns)
    return [row | {"failed": "; ".join(failed[head])} for head, row in rows.items()]


def _reason(error: RuntimeError) -> str:
    """The last line of what a process said before it failed, or that it was killed."""
    first, _, said = str(error).partition("\n")
    lines = said.strip().splitlines()
    return "killed, as happens where memory runs out" if "was killed" in first or not lines else lines[-1].strip()


# ---------------------------------------------------------------- in a process of its own


def prepare(given: dict) -> dict:
    """Make a model flat and with BHCCM, and write both to ``given["folder"]``; their counts, by head.

    Apart from the measurements, because the making holds the weights twice.
    """
    _go_first()
    name, published = given["model"], Published(*given["published"])
    tree = published.load()
    torch.manual_seed(0)
    network = build(name, published.bands, tree.num_leaves, **given["options"])
    example = network.example(64) if hasattr(network, "example") else None
    found = {}
    for head in given["heads"]:
        model = network if head == "flat" else hierarchical(network, tree, layer="classifier", example=example)
        inputs = _inputs(model, published)
        counted = networks.describe(model, published.bands, size=published.size, example=inputs)
        loss = make_loss(name, tree, head, weak=name in WEAK)
        losses = [loss, loss.second] if isinstance(loss, paraformer.PLAT) else [loss]
        said = " of ".join(type(part).__name__ for part in losses)
        found[head] = {"params": counted["params"], "gmac": counted["gmac"], "loss": said}
        torch.save(model, Path(given["folder"], f"{head}.pt"))
    return found


def measure(given: dict) -> dict:
    """Do ``given["work"]``, ``forward`` or ``step``, ``given["repeats"]`` times after a first with each of its heads.

    Their seconds by head, and the memory of this process, in which nothing else ran, before it held a model and at
    most.
    """
    _go_first()
    device, published = torch.device(given["device"]), Published(*given["published"])
    tree = published.load()
    start = _peak_mb(device)
    torch.manual_seed(0)
    works: dict[str, Callable[[], None]] = {}
    for head in given["heads"]:
        model = torch.load(Path(given["folder"], f"{head}.pt"), weights_only=False, map_location=device)
        batch = _batch(model, published, given["batch"], tree.num_leaves)
        layout = torch.channels_last if PRECISIONS[given["precision"]] else torch.contiguous_format
        model, batch = model.to(memory_format=layout), {key: value.to(device) for key, value in batch.items()}
        batch["image"] = batch["image"].contiguous(memory_format=layout)
        mixed = torch.autocast(device.type, torch.bfloat16, enabled=given["precision"] == "bf16-mixed")
        if given["work"] == "forward":
            works[head] = _forward(model, batch, mixed)
        else:
            loss = make_loss(given["model"], tree, head, weak=given["model"] in WEAK).to(device)
            works[head] = _step(model, loss, batch, mixed)
    taken: dict[str, list[float]] = {head: [] for head in works}
    for turn in range(given["repeats"] + 1):
        for head, work in works.items():
            begun = time.perf_counter()
            work()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            if turn:
                taken[head].append(time.perf_counter() - begun)
    return {"seconds": taken, "start_mb": start, "peak_mb": _peak_mb(device)}


def _forward(model: nn.Module, batch: dict, mixed: torch.autocast) -> Callable[[], None]:
    model.eval()

    def forward() -> None:
        with torch.inference_mode(), mixed:
            model(batch)

    return forward


def _step(model: nn.Module, loss: nn.Module, batch: dict, mixed: torch.autocast) -> Callable[[], None]:
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)

    def step() -> None:
        optimizer.zero_grad()
        with mixed:
            outputs = model(batch)
        scalar, _ = loss(outputs, batch)
        scalar.backward()
        optimizer.step()

    return step


def _inputs(model: nn.Module, published: Published) -> dict[str, Tensor]:
    """What a model takes, for one image."""
    network = model.network if isinstance(model, Hierarchical) else model
    if hasattr(network, "example"):
        return network.example(published.size)
    return {"image": torch.zeros(1, published.bands, published.size, published.size)}


def _batch(model: nn.Module, published: Published, count: int, classes: int) -> dict[str, Tensor]:
    """Noise of the shapes that a model takes, with labels drawn from all classes."""
    batch = {key: torch.randn(count, *value.shape[1:]) for key, value in _inputs(model, published).items()}
    return batch | {"label": torch.randint(classes, (count, published.size, published.size))}


def _peak_mb(device: torch.device) -> float:
    """The most memory so far, in MB: that PyTorch allocated on a GPU, else that of this process."""
    return torch.cuda.max_memory_allocated(device) / 1e6 if device.type == "cuda" else peak_rss_mb()


def _go_first() -> None:
    """Where memory runs out, let Linux end this process, not the one that would tell of it."""
    score = Path("/proc/self/oom_score_adj")
    if score.exists():
        score.write_text("1000")


# ---------------------------------------------------------------- the file


def _texts(row: dict) -> dict[str, str]:
    """A row as it stands in the file."""
    return {
        key: f"{value:.6g}" if isinstance(value := row.get(key, ""), float) else str(value) for key in MODEL_COLUMNS
    }


def _read(path: Path) -> list[dict[str, str]]:
    """The rows that the file has, if there is one."""
    if not path.exists():
        return []
    with path.open(encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file)
        rows = list(reader)
    if reader.fieldnames != list(MODEL_COLUMNS):
        raise ValueError(f"{path} has other columns than this version writes: rename it, or give another folder.")
    return rows


def _write(path: Path, rows: list[dict[str, str]]) -> None:
    with atomic(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(MODEL_COLUMNS), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def _line(row: dict[str, str]) -> str:
    """A row in words."""
    said = []
    for work in WORKS:
        if row[f"{work}_s"]:
            beside = f" ({float(row[f'{work}_ratio']):.2f} of flat)" if row[f"{work}_ratio"] else ""
            said.append(f"{work} {float(row[f'{work}_s']):.3f} s{beside}")
        if row[f"{work}_mb"]:
            said.append(f"{float(row[f'{work}_mb']):,.0f} MB")
    counted = f"{int(row['params']) / 1e6:.2f} M, {float(row['gmac']):.1f} GMAC; " if row["params"] else ""
    return f"  {row['head']:6}{counted}{', '.join(said)}" + (f"  FAILED {row['failed']}" if row["failed"] else "")
