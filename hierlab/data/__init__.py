"""Rasters in: scenes, labels on their grid, spatial splits, patches, statistics and augmentation."""

from hierlab.data.augment import Augment, augment
from hierlab.data.datasets import LabelledScene, RasterDataset
from hierlab.data.labels import LabelRaster, read_labels
from hierlab.data.rasters import Scene
from hierlab.data.stats import Statistics, statistics
from hierlab.data.tiles import Split, blocked_split, blocks, windows

__all__ = [
    "Augment",
    "LabelRaster",
    "LabelledScene",
    "RasterDataset",
    "Scene",
    "Split",
    "Statistics",
    "augment",
    "blocked_split",
    "blocks",
    "read_labels",
    "statistics",
    "windows",
]
