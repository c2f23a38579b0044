"""Rendered sets of patches as torch data sets, each patch cached on disk.

A preset says which sensor sees which patches, how many and how large in each profile. The three splits lie in
different regions, so no pixel of one is near a pixel of another. Patch ``n`` of a set depends on nothing but
(version, preset, seed, split, size, n): a longer set begins with the shorter one.
"""

import hashlib
import os
import sys
import warnings
import zipfile
import zlib
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch

from hierlab._io import atomic
from hierlab.twin import index
from hierlab.twin.ground import LEAVES
from hierlab.twin.hashing import key, mix, scalar
from hierlab.twin.sensor import SENSORS, render
from hierlab.twin.world import TILE

TWIN_VERSION = "0.1"  # raise it with every change that moves a pixel: it is part of every cache's name
EXTENT = 61_440  # metres: uniform patches lie in [0, EXTENT)² of their region
SPLITS = {"train": tuple(range(8)), "val": (8, 9, 10), "test": (11, 12, 13)}  # regions
_MEMORY = 512 * 2**20  # bytes: sets smaller than this stay in memory once read


@dataclass(frozen=True)
class Preset:
    """One set: its sensor and class tree, the patch size in pixels and the number of patches by profile."""

    sensor: str
    tree: str
    patch: dict[str, int]
    count: dict[str, dict[str, int]]


PRESETS: dict[str, Preset] = {
    # The paper's sizes: 107 and 29 scenes, each 11 × 10 patches of 640 without overlap; it has no test split.
    "mm5b-gaofen2": Preset(
        sensor="gaofen2",
        tree="mm5b",
        patch={"smoke": 64, "laptop": 128, "gpu": 640, "paper": 640},
        count={
            "smoke": {"train": 16, "val": 8, "test": 8},
            "laptop": {"train": 256, "val": 64, "test": 64},
            "gpu": {"train": 640, "val": 128, "test": 128},
            "paper": {"train": 11_770, "val": 3_190, "test": 3_190},
        },
    ),
}


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


@lru_cache(maxsize=4096)
def place(name: str, split: str, seed: int, size: int, n: int) -> tuple[int, int, int]:
    """(region, x, y) of patch ``n``, x and y in pixels: the mixture of uniform and class-seeking places.

    The regions of the split take turns. Every second patch is uniform in the region's square; the others look for
    a class, the classes taking turns: from a uniform point to the nearest sheet of the index that has the class,
    and there to one of its pixels. Patches are aligned to tiles, so several may coincide where a class is rare.
    """
    preset = PRESETS[name]
    gsd = SENSORS[preset.sensor].gsd
    h = mix(key(seed, "patch", name, split, size), np.array([n]), np.array([0]))[0]
    align = size if size < TILE and TILE % size == 0 else TILE
    region = SPLITS[split][int(scalar(h, 1, 0, len(SPLITS[split])))]
    x, y = scalar(h, 2, 0, EXTENT), scalar(h, 3, 0, EXTENT)
    found = None
    if n % 2:
        found = index.sample((n // 2) % len(LEAVES), x, y, h, seed, region)
    px, py = (int(v // gsd) for v in (found or (x, y)))
    ox, oy = (int(scalar(h, salt, 0, max(size - align, 0) + 1)) for salt in (4, 5))
    return region, (px - ox) // align * align, (py - oy) // align * align


class TwinDataset(torch.utils.data.Dataset):
    """Patches of the twin: ``{"image": float32 (C, H, W) in digital numbers, "label": int64 (H, W) leaf ids}``.

    Patches are rendered when first asked for and cached as one file each, written atomically, so that several
    processes may share a cache. A file that cannot be read is rendered again, with a warning.

    Attributes: ``name``, ``split``, ``seed``, ``size``, ``sensor`` (name), ``bands`` (names), ``gsd`` (metres),
    ``tree`` (ClassTree), ``fingerprint`` (changes with version, preset, seed, split and size), ``folder`` (cache),
    ``is_twin`` (True).
    """

    is_twin = True

    def __init__(self, name: str, split: str, seed: int, size: int, count: int):
        from hierlab.tree import ClassTree

        preset = PRESETS[name]
        sensor = SENSORS[preset.sensor]
        self.name, self.split, self.seed, self.size = name, split, seed, size
        self.sensor, self.bands, self.gsd = sensor.name, sensor.bands, sensor.gsd
        self.tree = ClassTree.load(preset.tree)
        identity = repr((TWIN_VERSION, name, sensor, SPLITS[split], EXTENT, seed, split, size))
        self.fingerprint = hashlib.blake2b(identity.encode(), digest_size=8).hexdigest()
        self.folder = cache_dir() / "twin" / f"{name}-{split}-{size}-{self.fingerprint}"
        self._count = count
        self._shapes = {"image": (len(sensor.bands), size, size), "label": (size, size)}
        self._memory: dict[int, dict[str, np.ndarray]] | None = {}
        if count * size * size * (2 * len(sensor.bands) + 1) > _MEMORY:
            self._memory = None

    def __len__(self) -> int:
        return self._count

    def place(self, n: int) -> tuple[int, int, int]:
        """(region, x, y) of patch ``n``, x and y in pixels of the sensor's grid."""
        return place(self.name, self.split, self.seed, self.size, n)

    def __getitem__(self, n: int) -> dict[str, torch.Tensor]:
        if not -len(self) <= n < len(self):
            raise IndexError(f"patch {n} of a set of {len(self)}.")
        patch = self.patch(n % len(self))
        return {
            "image": torch.from_numpy(patch["image"].astype(np.float32)),
            "label": torch.from_numpy(patch["label"].astype(np.int64)),
        }

    def patch(self, n: int) -> dict[str, np.ndarray]:
        """Patch ``n`` as it is stored: image (C, H, W) uint16 and label (H, W) uint8."""
        if self._memory is not None and n in self._memory:
            return self._memory[n]
        path = self.folder / f"{n:06d}.npz"
        patch = self._read(path) if path.exists() else None
        if patch is None:
            region, x, y = self.place(n)
            made = render(self.sensor, self.seed, region, (x, y, self.size, self.size))
            patch = {"image": made.image, "label": made.label}
            self._write(path, patch)
        if self._memory is not None:
            self._memory[n] = patch
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

    def prepare(self) -> None:
        """Render what is not yet cached. DataLoader workers can do the same side by side by reading the set once."""
        for n in range(len(self)):
            self.patch(n)


def dataset(
    name: str, split: str, profile: str | None = None, seed: int = 0, size: int | None = None, count: int | None = None
) -> TwinDataset:
    """A set of the twin by name, for example ``dataset("mm5b-gaofen2", "train")``.

    ``split`` is "train", "val" or "test"; ``profile`` (default: the current one) gives the patch size and the number
    of patches, which ``size`` and ``count`` override. Nothing is rendered yet. ValueError for an unknown name,
    split or profile.
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
    size, count = size or preset.patch[profile], count or preset.count[profile][split]
    if size < 1 or count < 1:
        raise ValueError(f"size {size}, count {count}: expected positive numbers.")
    return TwinDataset(name, split, seed, size, count)
