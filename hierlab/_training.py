"""What the training loop stands on: random streams, the order of the data, the log, the bar, interruption, memory."""

import contextlib
import json
import os
import random
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from ._io import atomic
from .recipes import Recipe

ORDER, STEP, AUGMENT = range(3)  # what a random stream is for


# ---------------------------------------------------------------- randomness as a function of (seed, step)


def stream(*key: int) -> int:
    """A 64-bit seed that depends on every number of ``key``; different keys give independent streams."""
    low, high = np.random.SeedSequence((len(key), *key)).generate_state(2).tolist()  # (1,) and (1, 0) must differ
    return low + (high << 32)


def seed_everything(seed: int, *more: int) -> None:
    """Seed Python, NumPy and PyTorch (all devices) from ``seed``, or from ``seed`` and further numbers together."""
    value = stream(seed, *more)
    random.seed(value)
    np.random.seed(value % 2**32)  # noqa: NPY002 (data sets and libraries may draw from the global stream)
    torch.manual_seed(value % 2**63)


class Order(Sampler[list[int]]):
    """Which items make each part of each step's batch: a pure function of (seed, step).

    The items are gone through in a new random order every epoch. Step s takes the positions s·B … s·B + B − 1 of
    that endless sequence, B the batch size over all processes; each of the ``accumulate`` parts is cut equally
    between the processes. Iterating gives this process's lists of items, from step ``start`` on.
    """

    def __init__(self, items: int, recipe: Recipe, seed: int, start: int = 0, rank: int = 0, world: int = 1):
        self.count, self.recipe, self.seed, self.start, self.rank, self.world = items, recipe, seed, start, rank, world
        self._epoch, self._permutation = -1, np.empty(0, np.int64)

    def items(self, step: int) -> list[int]:
        """The items of step ``step``, over all processes."""
        positions = np.arange(step * self.recipe.batch_size, (step + 1) * self.recipe.batch_size)
        return [self._item(*divmod(position, self.count)) for position in positions.tolist()]

    def _item(self, epoch: int, place: int) -> int:
        if epoch != self._epoch:
            generator = np.random.default_rng(stream(self.seed, ORDER, epoch))
            self._epoch, self._permutation = epoch, generator.permutation(self.count)
        return int(self._permutation[place])

    def __iter__(self) -> Iterator[list[int]]:
        share = self.recipe.batch_size // (self.recipe.accumulate * self.world)
        for step in range(self.start, self.recipe.steps):
            items = self.items(step)
            for micro in range(self.recipe.accumulate):
                begin = (micro * self.world + self.rank) * share
                yield items[begin : begin + share]

    def __len__(self) -> int:
        return (self.recipe.steps - self.start) * self.recipe.accumulate


def loader(dataset: Dataset, device: torch.device, workers: int, **options) -> DataLoader:
    """A DataLoader that leaves the global random stream alone, and whose workers leave Ctrl-C to the loop."""
    return DataLoader(
        dataset,
        num_workers=workers,
        pin_memory=device.type == "cuda",
        worker_init_fn=_ignore_interrupt if workers else None,
        generator=torch.Generator().manual_seed(0),
        **options,
    )


def to_device(batch: dict, device: torch.device) -> dict:
    """A batch with its tensors on ``device``, and its labels as int64."""
    moved = {name: v.to(device, non_blocking=True) if isinstance(v, Tensor) else v for name, v in batch.items()}
    return {**moved, "label": moved["label"].long()}


def _ignore_interrupt(worker: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)


# ---------------------------------------------------------------- the log and the bar


class Log:
    """The lines of a run, in memory, in ``log.jsonl`` as they come, and to the callback."""

    def __init__(self, path: Path | None, callback: Callable[[dict], None] | None):
        self.path, self.callback, self.lines, self.file = path, callback, [], None

    def cut(self, step: int) -> None:
        """Read the log back up to and including ``step``; later lines, of an unsaved part of the run, are dropped."""
        for text in self.path.read_text("utf-8").splitlines() if self.path.exists() else []:
            try:
                line = json.loads(text)
            except ValueError:  # the line that was being written when the machine stopped
                break
            if line["step"] > step:
                break
            self.lines.append(line)

    def last_metrics(self) -> dict | None:
        """The measures of the last validation, if there was one."""
        return next((line["validation"] for line in reversed(self.lines) if "validation" in line), None)

    @contextlib.contextmanager
    def opened(self, writes: bool) -> Iterator[None]:
        """Write lines to the file, if this process ``writes`` and there is one; else keep them in memory alone."""
        if not writes:
            self.callback = None
        if not writes or self.path is None:
            yield
            return
        with atomic(self.path) as path:
            path.write_text("".join(json.dumps(line) + "\n" for line in self.lines), "utf-8")
        with self.path.open("a", encoding="utf-8") as self.file:
            yield
        self.file = None

    def write(self, line: dict) -> None:
        self.lines.append(line)
        if self.file is not None:
            self.file.write(json.dumps(line, allow_nan=False) + "\n")
            self.file.flush()
        if self.callback is not None:
            self.callback(line)


class Bar:
    """A progress bar: what is done, how far, a text (loss, rate) and the time left; nothing when not ``shown``."""

    def __init__(self, shown: bool, what: str, total: int, done: int = 0):
        self.progress = None
        if shown:
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

            self.progress = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[text]}  left"),
                TimeRemainingColumn(),
            )
            self.task = self.progress.add_task(what, total=total, completed=done, text="")

    def __enter__(self) -> "Bar":
        if self.progress is not None:
            self.progress.start()
        return self

    def __exit__(self, *_) -> None:
        if self.progress is not None:
            self.progress.stop()

    def advance(self, by: int, text: str) -> None:
        if self.progress is not None:
            self.progress.update(self.task, advance=by, text=text)

    def say(self, text: str) -> None:
        if self.progress is not None:
            self.progress.console.print(text)


# ---------------------------------------------------------------- interruption, determinism, memory


@contextlib.contextmanager
def on_signals(act: Callable[[], object], *numbers: signal.Signals) -> Iterator[None]:
    """Call ``act`` on the first signal among ``numbers``; the second raises KeyboardInterrupt.

    Only the main thread can receive signals; in another thread this changes nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    seen = []

    def handle(number: int, _) -> None:
        seen.append(number)
        if len(seen) > 1:
            raise KeyboardInterrupt
        act()

    before = {number: signal.signal(number, handle) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def deterministic_algorithms(wanted: bool) -> Iterator[None]:
    """Within, PyTorch uses deterministic algorithms only, and raises where an operation has none."""
    if not wanted:
        yield
        return
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])


def start_memory(device: torch.device) -> None:
    """Begin counting the peak of the GPU's memory."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peak_memory(device: torch.device) -> dict:
    """``peak_memory`` in bytes, and ``peak_memory_of``: ``cuda`` since :func:`start_memory`, or this ``process``."""
    if device.type == "cuda":
        return {"peak_memory": torch.cuda.max_memory_allocated(device), "peak_memory_of": "cuda"}
    import resource  # not on Windows, which hierlab does not run on

    unit = 1 if sys.platform == "darwin" else 1024
    return {"peak_memory": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit, "peak_memory_of": "process"}


def device_name(device: torch.device) -> str:
    """The device as records name it."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
