"""Rasters in: scenes, labels on their grid, spatial splits, patches, statistics and augmentation."""

from hierlab.data.augment import Augment, augment
from hierlab.data.datasets import LabelledScene, RasterDataset
from hierlab.data.labels import LabelRaster, read_labels
from hierlab.data.rasters import Scene
from hierlab.data.series import Series
from hierlab.data.stats import Statistics, series_statistics, statistics
from hierlab.data.tiles import Split, blocked_split, blocks, windows

__all__ = [
    "Augment",
    "LabelRaster",
    "LabelledScene",
    "RasterDataset",
    "Scene",
    "Series",
    "Split",
    "Statistics",
    "augment",
    "blocked_split",
    "blocks",
    "read_labels",
    "series_statistics",
    "statistics",
    "windows",
]
