"""Rendered sets of patches as torch data sets, each patch cached on disk.

``presets`` says which sensors see which patches under which legend, how many and how large in each profile. No pixel
of one split is near a pixel of another. Patch ``n`` of a set depends on nothing but (version, preset, options, seed,
split, size, n): a longer set begins with the shorter one.
"""

import hashlib
import math
import multiprocessing
import os
import signal
import sys
import warnings
import zipfile
import zlib
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from hierlab._io import atomic
from hierlab.data.progress import track
from hierlab.tree import IGNORE
from hierlab.twin import arrays, index, legends, presets, products, seek
from hierlab.twin.fields import Grid
from hierlab.twin.hashing import derive, key, mix, scalar
from hierlab.twin.presets import EXTENT, PRESETS, Preset
from hierlab.twin.sensor import render
from hierlab.twin.sensors import lookup
from hierlab.twin.world import survey, tile_size

TWIN_VERSION = "0.4"  # raise it with every change that moves a pixel: it is part of every cache's name
SPLITS = {"train": tuple(range(8)), "val": (8, 9, 10), "test": (11, 12, 13)}  # regions of the MM-5B sets
_MEMORY = 512 * 2**20  # bytes: sets smaller than this stay in memory once read
_WORTH = 32  # patches that a process has to render at least, or starting it does not pay
_SCENES = 3  # places that are tried for an image of one scene class

Size = tuple[int, int]  # height, width


def cache_dir() -> Path:
    """Where rendered sets are kept: ``HIERLAB_CACHE`` if set, else the platform's cache folder, in ``hierlab``."""
    if os.environ.get("HIERLAB_CACHE"):
        return Path(os.environ["HIERLAB_CACHE"])
    if sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local"
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    else:
        base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "hierlab"


@lru_cache(maxsize=512)
def _turns(name: str, split: str) -> tuple[int, ...]:
    """Which part the items of a set belong to: as often as in the real set, evenly mixed, over one whole round."""
    shares = [part.share[split] for part in PRESETS[name].parts]
    total, owed, turns = sum(shares), [0] * len(shares), []
    for _ in range(total):
        owed = [o + s for o, s in zip(owed, shares, strict=True)]
        turns.append(owed.index(max(owed)))
        owed[turns[-1]] -= total
    return tuple(turns)


def _merging(product: products.Product) -> np.ndarray:
    """(256,) uint8: the class of the data set that each class of a product is joined to, 255 for void."""
    table = np.full(256, IGNORE, np.uint8)
    table[: len(product.codes)] = product.merging.apply(product.codes)
    return table


class Turn(NamedTuple):
    """Which part of the preset an item belongs to, and its number among the items of that part."""

    part: int
    number: int


@lru_cache(maxsize=16384)
def turn(name: str, split: str, value: str | int, n: int) -> Turn:
    """The part of item ``n`` of a set and its number in it; ``value`` is the option that picks a part."""
    parts = PRESETS[name].parts
    if value != PRESETS[name].whole or len(parts) == 1:
        return Turn(next((k for k, part in enumerate(parts) if part.value == value), 0), n)
    turns = _turns(name, split)
    rounds, rest = divmod(n, len(turns))
    part = turns[rest]
    return Turn(part, rounds * turns.count(part) + turns[:rest].count(part))


def _step_mm(preset: Preset) -> int:
    return lookup(preset.sensor or preset.series).step_mm


@lru_cache(maxsize=4096)
def _scene(name: str, split: str, seed: int, part: int, n: int) -> tuple[int, int, int]:
    """(region, x, y) of the ``n``-th scene of a part, metres: a place from whose surroundings items are cut."""
    preset = PRESETS[name]
    chosen = preset.parts[part]
    h = mix(key(seed, "scene", preset.group or name, split, part), np.array([n]), np.array([0]))[0]
    turn, which = divmod(n, len(chosen.areas[split]))
    area = chosen.areas[split][which]
    region = presets.region_of(name, seed, area.turn)
    x, y = area.x + int(scalar(h, 2, 0, EXTENT)), area.y + int(scalar(h, 3, 0, EXTENT))
    if chosen.near:
        leaf = chosen.near[turn % len(chosen.near)]
        x, y = seek.leaf(leaf, x, y, h, seed, region, preset.year) or (x, y)
    return region, x, y


@lru_cache(maxsize=4096)
def anchor(name: str, split: str, seed: int, part: int, number: int) -> tuple[int, int, int, int]:
    """(region, x, y, hash) of an item's place, millimetres: what the item shows, whatever its size.

    Items are cut from scenes, places whose number grows with the set. Every second item lies anywhere in its
    scene, or where its part lies there (in a town, for instance); from the others a class is looked for, the classes
    of the legend taking turns. In the MM-5B sets a scene is the whole area.
    """
    preset = PRESETS[name]
    chosen = preset.parts[part]
    h = mix(key(seed, "patch", preset.group or name, split, part), np.array([number]), np.array([0]))[0]
    if preset.group:
        area = chosen.areas[split][int(scalar(h, 1, 0, len(chosen.areas[split])))]
        region = presets.region_of(name, seed, area.turn)
        x, y = area.x + int(scalar(h, 2, 0, EXTENT)), area.y + int(scalar(h, 3, 0, EXTENT))
    else:
        scenes = 4 + number // 8
        region, x, y = _scene(name, split, seed, part, int(scalar(h, 1, 0, scenes)))
        x, y = x + int(scalar(h, 2, -0.5, 0.5) * index.SHEET), y + int(scalar(h, 3, -0.5, 0.5) * index.SHEET)
    found = None
    if number % 2 and not preset.scenes:
        wanted = number // 2 % len(legends.LEGENDS[preset.tree].classes)
        if preset.tree == "mm5b":
            x, y = seek.leaf(wanted, x, y, h, seed, region, preset.year) or (x, y)
        else:
            found = seek.find(preset.tree, wanted, x, y, h, seed, region, _step_mm(preset), preset.year)
    elif chosen.near:
        leaf = chosen.near[int(scalar(h, 6, 0, len(chosen.near)))]
        x, y = seek.leaf(leaf, x, y, h, seed, region, preset.year) or (x, y)
    return region, *(found or (x * 1000, y * 1000)), int(h)


@lru_cache(maxsize=4096)
def place(name: str, split: str, seed: int, size: Size, part: int, number: int, unit: int) -> tuple[int, int, int]:
    """(region, x, y) of an item, x and y in pixels: a window that holds its anchor.

    Windows smaller than a tile of the twin are aligned to their own size, so that few tiles are rendered for each;
    several may coincide where a class is rare. ``unit``: x and y are multiples of it.
    """
    preset = PRESETS[name]
    region, x, y, code = anchor(name, split, seed, part, number)
    h, step = np.uint32(code), _step_mm(preset)
    px, py = x // step, y // step
    if preset.scenes:
        return _scene_place(preset, seed, region, x, y, h, size, number)
    tile, corner = tile_size(step), []
    for salt, pixel, length in ((4, px, size[1]), (5, py, size[0])):
        align = length if length < tile and tile % length == 0 else min(tile, length)
        align = max(unit, align // unit * unit)
        shift = int(scalar(h, salt, 0, max(length - align, 0) + 1))
        corner.append((pixel - shift) // align * align)
    return region, corner[0], corner[1]


def _scene_place(
    preset: Preset, seed: int, region: int, x: int, y: int, h: np.uint32, size: Size, number: int
) -> tuple[int, int, int]:
    """A window with a thing of one scene class in its middle, the classes taking turns.

    Of a few such windows it is the one that shows the most of the class; if there is none, the place itself.
    """
    step, wanted = _step_mm(preset), _scene_wanted(preset, number)
    best, most, coarse = (x // step, y // step), 0.0, max(1, max(size) // 32)
    for n in range(_SCENES):
        again = derive(h, 40 + n)[0]
        found = seek.find(preset.tree, wanted, x // 1000, y // 1000, again, seed, region, step, preset.year)
        if found is None:
            continue
        corner = found[0] // step - size[1] // 2, found[1] // step - size[0] // 2
        grid = Grid.of(seed, region, corner[0] // coarse, corner[1] // coarse, 32, step * coarse, preset.year)
        ground = survey(grid).ground
        share = (legends.classify(ground.leaf, ground.kind, preset.tree) == wanted).mean() + 1e-6
        if share > most:
            best, most = corner, share
    return region, *best


def _scene_wanted(preset: Preset, number: int) -> int:
    return number % len(legends.LEGENDS[preset.tree].classes)


def _scene_label(preset: Preset, number: int, leaf: np.ndarray, kind: np.ndarray) -> int:
    """The class of an image: that of the thing in its middle if that was looked for, else what the image shows."""
    middle = leaf.shape[0] // 2, leaf.shape[1] // 2
    wanted = _scene_wanted(preset, number)
    found = legends.classify(leaf[middle], kind[middle], preset.tree) == wanted
    return wanted if found else legends.scene(leaf, kind)


class TwinDataset(torch.utils.data.Dataset):
    """Patches of the twin, as dicts of tensors. What an item holds depends on the set:

    - ``image`` float32 (C, H, W), digital numbers; ``label`` int64 (H, W), the classes of ``tree``, 255 = ignore;
    - ``label_lr`` int64 (H, W), a label product on the image's grid, in the classes of ``tree_lr``, 255 = void;
    - ``series`` float32 (T, C, h, w) on its own coarser grid, 0 where ``series_valid`` bool (T, h, w) is false;
    - ``scene`` int64 (), the class of the whole image, in place of ``label``: as in Million-AID, whose labels come from
      maps, that of the thing in its middle.

    Patches are rendered when first asked for, or all at once by ``prepare``, and cached as one file each, written
    atomically, so that several processes may share a cache. A file that cannot be read is rendered again, with a
    warning.

    Attributes: ``name``, ``split``, ``seed``, ``year``, ``size`` (pixels a side, or (height, width)), ``options``,
    ``sensor`` (name), ``bands`` (names), ``gsd`` (metres), ``tree`` (ClassTree), ``product`` and ``tree_lr`` (of
    ``label_lr``), ``merge_lr`` (uint8 (256,): the class of ``tree`` for each of ``tree_lr``, 255 for void),
    ``series_sensor``, ``series_bands``, ``series_gsd`` and ``days`` (of the year, T of them),
    ``fingerprint`` (changes with version, preset, options, seed, split and size), ``folder`` (cache), ``is_twin``
    (True). What a set does not have is None. In a set with no image, ``sensor``, ``bands`` and ``gsd`` are those
    of the series.
    """

    is_twin = True

    def __init__(
        self,
        name: str,
        split: str,
        seed: int,
        size: int | Size,
        count: int,
        options: dict,
        device: str | torch.device | None = None,
    ):
        from hierlab.tree import ClassTree

        preset = PRESETS[name]
        self.name, self.split, self.seed, self.options, self._preset = name, split, seed, options, preset
        self.year, self._device = preset.year, arrays.place(device)
        self._size = (size, size) if isinstance(size, int) else tuple(size)
        self.size = self._size[0] if self._size[0] == self._size[1] else self._size
        series = options.get("series", preset.series)
        self._series = lookup(series) if series else None
        self._sensor = lookup(preset.sensor) if preset.sensor else self._series
        self._step = self._sensor.step_mm
        self.sensor, self.bands, self.gsd = self._sensor.name, self._sensor.bands, self._sensor.gsd
        self.tree = ClassTree.load(preset.tree)
        self.product, self.tree_lr, self.merge_lr = options.get("product", preset.product), None, None
        if self.product:
            self.tree_lr = ClassTree.load(products.PRODUCTS[self.product].tree)
            self.merge_lr = _merging(products.PRODUCTS[self.product])
        self.series_sensor, self.series_bands, self.series_gsd, self.days = None, None, None, None
        if self._series:
            self.series_sensor, self.series_bands = self._series.name, self._series.bands
            self.series_gsd, self.days = self._series.gsd, self._series.dates
        self._value = options.get(preset.option, preset.whole)
        self._shapes = self._expected()
        areas = [(p.value, p.areas[split], p.share[split], p.near) for p in preset.parts]
        what = (TWIN_VERSION, name, self._sensor, self._series, preset.tree, preset.year, sorted(options.items()))
        where = (areas, preset.first, sorted(preset.wish.items()), EXTENT, seed, split, self._size)
        told = (what, where) if self._device is None else (what, where, self._device.type)
        self.fingerprint = hashlib.blake2b(repr(told).encode(), digest_size=8).hexdigest()
        label = "x".join(map(str, dict.fromkeys(self._size)))
        chosen = "".join(f"-{value}" for _, value in sorted(options.items()))
        self.folder = cache_dir() / "twin" / f"{name}{chosen}-{split}-{label}-{self.fingerprint}"
        self._count = count
        self._memory: dict[int, dict[str, np.ndarray]] | None = {}
        if count * sum(2 * math.prod(shape) for shape in self._shapes.values()) > _MEMORY:
            self._memory = None

    def _expected(self) -> dict[str, tuple[int, ...]]:
        """The shape of everything that is stored of an item; ValueError where the size does not fit the grids."""
        shapes, size = {}, self._size
        if self._preset.sensor:
            shapes["image"] = (len(self.bands), *size)
        if self._series:
            self._unit = max(1, self._series.step_mm // self._step)
            if any(length % self._unit for length in size):
                raise ValueError(
                    f"size {self.size}: {self.name} needs a multiple of {self._unit} pixels, one pixel of "
                    f"{self.series_sensor}."
                )
            coarse = tuple(length // self._unit for length in size)
            shapes["series"] = (len(self.days), len(self.series_bands), *coarse)
            shapes["series_valid"] = (len(self.days), *coarse)
        else:
            self._unit = 1
        if self.product:
            shapes["label_lr"] = size
        shapes["scene" if self._preset.scenes else "label"] = () if self._preset.scenes else size
        return shapes

    def __len__(self) -> int:
        return self._count

    def turn(self, n: int) -> Turn:
        """The part of the set that item ``n`` belongs to, and its number in it."""
        return turn(self.name, self.split, self._value, n)

    def place(self, n: int) -> tuple[int, int, int]:
        """(region, x, y) of patch ``n``, x and y in pixels of the sensor's grid."""
        return place(self.name, self.split, self.seed, self._size, *self.turn(n), self._unit)

    def anchor(self, n: int) -> tuple[int, float, float]:
        """(region, x, y) of the point that patch ``n`` shows, metres: the same in all sets of one group."""
        region, x, y, _ = anchor(self.name, self.split, self.seed, *self.turn(n))
        return region, x / 1000, y / 1000

    def __getitem__(self, n: int) -> dict[str, torch.Tensor]:
        if not -len(self) <= n < len(self):
            raise IndexError(f"patch {n} of a set of {len(self)}.")
        patch = self.patch(n % len(self))
        types = {"image": np.float32, "series": np.float32, "series_valid": bool}
        return {k: torch.from_numpy(np.asarray(v, types.get(k, np.int64))) for k, v in patch.items()}

    def patch(self, n: int, keep: bool = True) -> dict[str, np.ndarray]:
        """Patch ``n`` as it is stored: image and series in the sensor's own type, the labels uint8.

        ``keep=False`` does not store it, neither on disk nor in memory.
        """
        if self._memory is not None and n in self._memory:
            return self._memory[n]
        path = self._path(n)
        patch = self._read(path) if path.exists() else None
        if patch is None:
            patch = self._render(n)
            if keep:
                self._write(path, patch)
        if keep and self._memory is not None:
            self._memory[n] = patch
        return patch

    def _path(self, n: int) -> Path:
        return self.folder / f"{n:06d}.npz"

    def _render(self, n: int) -> dict[str, np.ndarray]:
        region, x, y = self.place(n)
        window, year = (x, y, self._size[1], self._size[0]), self._preset.year
        patch, made = {}, None
        if self._preset.sensor:
            made = render(self._sensor, self.seed, region, window, year, device=self._device)
            patch["image"] = made.image
        if self._series:
            coarse = tuple(v // self._unit for v in window)
            series = render(self._series, self.seed, region, coarse, year, device=self._device)
            patch["series"] = series.image * series.valid[:, None]
            patch["series_valid"] = series.valid
            made = made or series
        if self.product:
            codes = products.label(self.product, self.seed, region, window, self.gsd)
            patch["label_lr"] = self.tree_lr.encode(codes)
        if self._preset.scenes:
            patch["scene"] = np.uint8(_scene_label(self._preset, self.turn(n).number, made.label, made.kind))
        else:
            patch["label"] = legends.classify(made.label, made.kind, self._preset.tree)
        return patch

    def _read(self, path: Path) -> dict[str, np.ndarray] | None:
        try:
            with np.load(path) as file:
                patch = {k: file[k] for k in self._shapes}
            if {k: v.shape for k, v in patch.items()} != self._shapes:
                raise ValueError(f"shapes {[v.shape for v in patch.values()]}")
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
            warnings.warn(f"{path} cannot be read ({error}): the patch is rendered again.", stacklevel=3)
            return None
        return patch

    def _write(self, path: Path, patch: dict[str, np.ndarray]) -> None:
        try:
            with atomic(path) as temporary:
                np.savez_compressed(temporary, **patch)
        except OSError as error:
            raise OSError(
                f"cannot write the cache of the twin, {path} ({error}): free some space, or set HIERLAB_CACHE to a "
                "folder that can be written."
            ) from error

    def prepare(self, workers: int | None = None, progress: bool = False) -> None:
        """Render what is not yet cached, in ``workers`` processes side by side, with or without a bar.

        None: as many as PyTorch has threads, if so much is missing that starting them pays; where no process may be
        started (in one that is a daemon itself), one patch after the other here. What is rendered is the same.
        Stopped half-way, the next call goes on with what is missing. ValueError for a number of workers below 0.
        """
        missing = [n for n in range(len(self)) if not self._path(n).exists()]
        if workers is None:
            may = not multiprocessing.current_process().daemon
            workers = min(torch.get_num_threads(), len(missing) // _WORTH) if may else 0
        if workers < 0:
            raise ValueError(f"workers is {workers}: expected 0 (no process but this one) or more.")
        made = (self._write(self._path(n), self._render(n)) for n in missing)
        if workers > 1 and missing:
            made = self._side_by_side(missing, min(workers, len(missing)))
        for _ in track(missing, f"{self.name} {self.split}", "patches") if progress and missing else missing:
            next(made)

    def _side_by_side(self, missing: list[int], workers: int) -> Iterator[None]:
        """Write patches in other processes; None for each that is there, in their order."""
        spawned = multiprocessing.get_context("spawn")  # a forked process could not use a GPU
        pool = ProcessPoolExecutor(workers, spawned, initializer=_begin, initargs=(self,))
        try:
            yield from pool.map(_render_one, missing)
        finally:
            pool.shutdown(cancel_futures=True)

    def __getstate__(self) -> dict:
        """What another process is given: not the patches in memory."""
        return self.__dict__ | {"_memory": None if self._memory is None else {}}


_in_process: TwinDataset | None = None


def _begin(data: TwinDataset) -> None:
    """Start a process that renders for another one, which alone answers to Ctrl-C."""
    global _in_process
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)
    _in_process = data


def _render_one(n: int) -> None:
    _in_process._write(_in_process._path(n), _in_process._render(n))


def _chosen(preset: Preset, name: str, options: dict) -> dict:
    """The options with the defaults filled in; ValueError for one that the set does not have, or its value."""
    for option, value in options.items():
        if option not in preset.values:
            takes = f"it takes {', '.join(preset.values)}" if preset.values else "it takes none"
            raise ValueError(f"{name} has no option {option!r}: {takes}.")
        if value not in preset.values[option]:
            choices = ", ".join(map(repr, preset.values[option]))
            raise ValueError(f"{name} has no {option} {value!r}: choose one of {choices}.")
    return {option: options.get(option, values[0]) for option, values in preset.values.items()}


def share(preset: Preset, split: str, options: dict, whole: int) -> int:
    """How many of ``whole`` items of a split lie in the part that the options pick."""
    shares = {part.value: part.share[split] for part in preset.parts}
    picked = shares.get(options.get(preset.option), sum(shares.values()))
    return max(1, round(whole * picked / sum(shares.values())))


def dataset(
    name: str,
    split: str,
    profile: str | None = None,
    seed: int = 0,
    size: int | Size | None = None,
    count: int | None = None,
    device: str | torch.device | None = None,
    **options: str | int,
) -> TwinDataset:
    """A set of the twin by name, for example ``dataset("mm5b-gaofen2", "train")``.

    ``split`` is "train", "val" or "test"; ``profile`` (default: the current one) gives the patch size and the number
    of patches, which ``size`` (pixels a side, or height and width) and ``count`` override. Some sets take an option:
    ``state`` (chesapeake: 0 to 5, or "all"), ``domain`` (loveda: "urban", "rural" or "both"), ``product`` (poland)
    and ``series`` (whu-h2sr-mt); ``PRESETS[name].values`` lists them. Nothing is rendered yet. ValueError for an
    unknown name, split, profile or option.

    ``device`` is where images are made, as in ``render``; as some pixels then differ by one digital number, such a
    set has another fingerprint and a cache of its own. Make it before training, with ``prepare``: processes that
    read it for a DataLoader cannot use a GPU.
    """
    if name not in PRESETS:
        raise ValueError(f"no data set {name!r} in the twin: choose one of {', '.join(PRESETS)}.")
    if split not in SPLITS:
        raise ValueError(f"no split {split!r}: choose one of {', '.join(SPLITS)}.")
    if profile is None:
        from hierlab.profiles import current

        profile = current()
    preset = PRESETS[name]
    if profile not in preset.patch:
        raise ValueError(f"no profile {profile!r}: choose one of {', '.join(preset.patch)}.")
    chosen = _chosen(preset, name, options)
    size = preset.patch[profile] if size is None else size
    count = share(preset, split, chosen, preset.count[profile][split]) if count is None else count
    sides = (size,) if isinstance(size, int) else tuple(size)
    if min(sides) < 1 or len(sides) > 2 or count < 1:
        raise ValueError(f"size {size}, count {count}: expected positive numbers.")
    return TwinDataset(name, split, seed, size, count, chosen, device)
