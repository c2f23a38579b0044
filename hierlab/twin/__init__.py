"""The twin: a synthetic Earth whose true classes are known everywhere, seen by sensors.

``render`` makes an image, or a series of dates, and its labels, ``truth`` the labels alone, ``ground_truth`` the finer
kinds below them too, ``classify`` turns them into the classes of a data set and ``product`` gives a coarse and faulty
label product. ``render_geotiff`` writes a georeferenced file, ``nearest`` finds a class, ``dataset`` gives patches to
train on and ``hierlab.twin.export`` writes them as files. What is seen is a pure function of (seed, region, year,
position): any window shows the same pixels however it is cut.
"""

from hierlab.twin.datasets import TWIN_VERSION, TwinDataset, cache_dir, dataset
from hierlab.twin.ground import LEAVES
from hierlab.twin.index import nearest
from hierlab.twin.legends import LEGENDS, MERGES, classify
from hierlab.twin.presets import PRESETS
from hierlab.twin.products import PRODUCTS
from hierlab.twin.products import label as product
from hierlab.twin.sensor import CRS, SENSORS, Render, Sensor, ground_truth, render, render_geotiff, transform, truth

__all__ = [
    "CRS",
    "LEAVES",
    "LEGENDS",
    "MERGES",
    "PRESETS",
    "PRODUCTS",
    "SENSORS",
    "TWIN_VERSION",
    "Render",
    "Sensor",
    "TwinDataset",
    "cache_dir",
    "classify",
    "dataset",
    "ground_truth",
    "nearest",
    "product",
    "render",
    "render_geotiff",
    "transform",
    "truth",
]
