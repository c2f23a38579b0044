"""Data sets prepared as pairs of files, one image and one label a patch, split by folder."""

import hashlib
import json
from pathlib import Path

import torch
from torch.utils.data import Dataset

from ..tree import ClassTree
from .grid import ground_size
from .rasters import open_raster

IMAGES, LABELS = "img_dir", "ann_dir"


class PairFolder(Dataset):
    """The patches of one split below ``root``: ``img_dir/SPLIT/NAME.tif`` with ``ann_dir/SPLIT/NAME*.tif``.

    An item is ``image`` float32 (C, H, W), values as stored, and ``label`` int64 (H, W), the classes of ``tree``, 255
    = ignore. All images must have one size and the same bands. A folder written by ``hierlab twin export`` holds a
    ``twin.json`` and counts as the twin.

    Attributes: ``tree``, ``bands`` (names), ``gsd`` (metres, None without a CRS), ``size``
    (pixels, height and width), ``is_twin``, ``fingerprint`` (of the names, sizes in bytes and, where
    ``checksums.sha256`` lists them, checksums of the split's files).

    ValueError where the folder is not laid out like this, an image has no label, or a file does not fit the first.
    """

    def __init__(self, root: str | Path, split: str, tree: ClassTree):
        self.root, self.split, self.tree = Path(root), split, tree
        images = sorted((self.root / IMAGES / split).glob("*.tif"))
        labels = sorted((self.root / LABELS / split).glob("*.tif"))
        if not images:
            raise ValueError(
                f"{self.root} holds no images of the split '{split}': expected {IMAGES}/{split}/NAME.tif with "
                f"{LABELS}/{split}/NAME….tif."
            )
        owned: dict[str, list[Path]] = {}  # what an image may be called, by which labels would be its own
        for label in labels:
            parts = label.stem.split("_")
            for n in range(1, len(parts) + 1):
                owned.setdefault("_".join(parts[:n]), []).append(label)
        self.pairs = []
        for image in images:
            mine = owned.get(image.stem, [])
            if len(mine) != 1:
                raise ValueError(f"{image} has {len(mine)} label files in {LABELS}/{split}; it needs one.")
            self.pairs.append((image, mine[0]))
        with open_raster(str(images[0])) as file:
            self.size, self.count = (file.height, file.width), file.count
            self.bands = [name or f"band {i}" for i, name in enumerate(file.descriptions, 1)]
            self.gsd = ground_size(file.crs, file.transform, *self.size) if file.crs else None
        self.is_twin = (self.root / "twin.json").is_file()
        self.fingerprint = self._fingerprint()

    def _fingerprint(self) -> str:
        sums = {}
        if (self.root / "checksums.sha256").is_file():
            lines = (self.root / "checksums.sha256").read_text("utf-8").splitlines()
            sums = {name: number for number, _, name in (line.partition("  ") for line in lines)}
        names = [path.relative_to(self.root).as_posix() for pair in self.pairs for path in pair]
        listed = [(name, (self.root / name).stat().st_size, sums.get(name)) for name in names]
        return hashlib.sha256(json.dumps(listed).encode()).hexdigest()[:16]

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        if not 0 <= index < len(self):
            raise IndexError(f"pair {index} of {len(self)}")
        image, label = self.pairs[index]
        with open_raster(str(image)) as file:
            pixels = file.read().astype("float32")
        with open_raster(str(label)) as file:
            codes = file.read(1)
        if pixels.shape != (self.count, *self.size) or codes.shape != self.size:
            raise ValueError(
                f"{image} and {label.name} have the shapes {pixels.shape} and {codes.shape}; the set's first image is "
                f"{(self.count, *self.size)}."
            )
        return {"image": torch.from_numpy(pixels), "label": torch.from_numpy(self.tree.encode(codes).astype("int64"))}
