"""The twin: a synthetic Earth whose true classes are known everywhere, seen by sensors.

``render`` makes an image and its labels, ``truth`` the labels alone, ``render_geotiff`` a georeferenced file,
``nearest`` finds a class, and ``dataset`` gives patches to train on. What is seen is a pure function of
(seed, region, position): any window shows the same pixels however it is cut.
"""

from hierlab.twin.datasets import PRESETS, TWIN_VERSION, TwinDataset, cache_dir, dataset
from hierlab.twin.ground import LEAVES
from hierlab.twin.index import nearest
from hierlab.twin.sensor import CRS, SENSORS, Render, Sensor, render, render_geotiff, transform, truth

__all__ = [
    "CRS",
    "LEAVES",
    "PRESETS",
    "SENSORS",
    "TWIN_VERSION",
    "Render",
    "Sensor",
    "TwinDataset",
    "cache_dir",
    "dataset",
    "nearest",
    "render",
    "render_geotiff",
    "transform",
    "truth",
]
