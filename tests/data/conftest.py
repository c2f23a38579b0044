import numpy as np
import pytest
import rasterio
from rasterio.transform import from_origin

from hierlab.tree import ClassTree

UTM = "EPSG:32633"
TRANSFORM = from_origin(400_000, 5_800_000, 10, 10)


@pytest.fixture
def write(tmp_path):
    """Function that writes an array (H, W) or (C, H, W) as a GeoTIFF and returns its path."""

    def write(name, array, *, crs=UTM, transform=TRANSFORM, descriptions=None, mask=None, **profile):
        array = array if array.ndim == 3 else array[None]
        path = tmp_path / name
        profile = {
            "driver": "GTiff", "dtype": str(array.dtype), "count": len(array), "height": array.shape[1],
            "width": array.shape[2], "crs": crs, "transform": transform, "photometric": "MINISBLACK",
        } | profile  # fmt: skip
        profile = {k: v for k, v in profile.items() if k == "crs" or v is not None}
        with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True), rasterio.open(path, "w", **profile) as file:
            file.write(array)
            for band, text in enumerate(descriptions or (), start=1):
                file.set_band_description(band, text)
            if mask is not None:
                file.write_mask(mask)
        return path

    return write


@pytest.fixture
def noise():
    def noise(*shape, dtype="uint16", seed=0):
        return np.random.default_rng(seed).integers(1, 200, shape).astype(dtype)

    return noise


@pytest.fixture(scope="session")
def tree():
    """Two levels, four leaves with codes 11, 12, 21, 22, inner codes 1 and 2, 0 ignored."""
    return ClassTree.from_dict(
        {
            "name": "four",
            "ignore": [0],
            "levels": [
                {
                    "name": "L1",
                    "classes": [
                        {"name": "wet", "color": "#0000ff", "codes": [1]},
                        {"name": "dry", "color": "#aa5500", "codes": [2]},
                    ],
                },
                {
                    "name": "L2",
                    "classes": [
                        {"name": "lake", "color": "#0000aa", "codes": [11], "parent": "wet"},
                        {"name": "river", "color": "#0055aa", "codes": [12], "parent": "wet"},
                        {"name": "field", "color": "#00aa00", "codes": [21], "parent": "dry"},
                        {"name": "rock", "color": "#888888", "codes": [22], "parent": "dry"},
                    ],
                },
            ],
        }
    )
