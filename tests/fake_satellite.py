"""A made-up satellite over made-up ground, in closed form: what RPC models, orthorectification and co-registration are
checked against. Nothing here uses the library's own geometry."""

import json
from functools import cache

import numpy as np
import rasterio
from rasterio.rpc import RPC
from rasterio.transform import from_origin
from rasterio.warp import transform as transform_points
from scipy.ndimage import map_coordinates, spline_filter

LON, LAT, HEIGHT = 114.31, 30.52, 400.0  # the middle of the scene
UTM = "EPSG:32650"
METRES = 111_320.0  # a degree of latitude
EAST = METRES * np.cos(np.radians(LAT))  # a degree of longitude


class Satellite:
    """Sees a point at east, north (metres from the middle) and height h at

        column = size/2 + scale (east cos t - north sin t + tan(tilt) (h - HEIGHT)) / (1 + e (h - HEIGHT))
        row    = size/2 - scale (east sin t + north cos t) / (1 + e (h - HEIGHT))

    with t the heading, and e a little perspective. ``error`` (metres east, north) is what its RPC model is wrong by.
    """

    def __init__(self, size=400, gsd=4.0, tilt=20.0, turn=11.0, error=(0.0, 0.0)):
        self.size, self.gsd, self.error = size, gsd, error
        self.lean, self.turn, self.perspective = np.tan(np.radians(tilt)), np.radians(turn), 2e-6

    def see(self, east, north, h):
        below = 1 + self.perspective * (h - HEIGHT)
        cos, sin = np.cos(self.turn), np.sin(self.turn)
        column = (east * cos - north * sin + self.lean * (h - HEIGHT)) / self.gsd / below
        row = -(east * sin + north * cos) / self.gsd / below
        return self.size / 2 + column, self.size / 2 + row

    def look(self, column, row, h):
        """Where a pixel looks at a given height: the inverse of ``see``."""
        below = (1 + self.perspective * (h - HEIGHT)) * self.gsd
        u = (column - self.size / 2) * below - self.lean * (h - HEIGHT)
        v = -(row - self.size / 2) * below
        cos, sin = np.cos(self.turn), np.sin(self.turn)
        return u * cos + v * sin, -u * sin + v * cos

    @property
    def rpc(self):
        """The same as an RPC model. Its lines and samples count from the first pixel's centre."""
        scale, lon, lat, up = self.size / 2, 0.01, 0.01, 500.0
        cos, sin = np.cos(self.turn), np.sin(self.turn)
        sample = [0, cos * lon * EAST, -sin * lat * METRES, self.lean * up]
        line = [0, -sin * lon * EAST, -cos * lat * METRES, 0]
        pad = [0.0] * 16
        below = [1, 0, 0, self.perspective * up, *pad]
        return RPC(
            line_off=scale - 0.5, samp_off=scale - 0.5, line_scale=scale, samp_scale=scale,
            long_off=LON + self.error[0] / EAST, long_scale=lon, lat_off=LAT + self.error[1] / METRES, lat_scale=lat,
            height_off=HEIGHT, height_scale=up,
            samp_num_coeff=[v / self.gsd / scale for v in sample] + pad, samp_den_coeff=below,
            line_num_coeff=[v / self.gsd / scale for v in line] + pad, line_den_coeff=below,
        )  # fmt: skip

    def picture(self, paint):
        """(C, size, size): what is seen of ``paint(x, y)``, which gives (C, …) of map coordinates in ``UTM``."""
        column, row = np.meshgrid(np.arange(self.size) + 0.5, np.arange(self.size) + 0.5)
        h = np.full(column.shape, HEIGHT)
        for _ in range(30):
            east, north = self.look(column, row, h)
            h = terrain(LON + east / EAST, LAT + north / METRES)
        x, y = to_map(LON + east / EAST, LAT + north / METRES)
        return paint(x, y)


def terrain(lon, lat):
    """Height in metres: a hill of 250 m on a slope."""
    east, north = (np.asarray(lon) - LON) * EAST, (np.asarray(lat) - LAT) * METRES
    return HEIGHT - 60 + 0.05 * east + 250 * np.exp(-(((east - 100) / 350) ** 2 + ((north + 60) / 420) ** 2))


def to_map(lon, lat):
    lon, lat = np.broadcast_arrays(lon, lat)
    x, y = transform_points("EPSG:4326", UTM, lon.ravel(), lat.ravel())
    return np.reshape(x, lon.shape), np.reshape(y, lon.shape)


@cache
def _lattice(seed):
    """(512, 512) splines of noise that repeats itself: coarse patches with ever finer ones in them."""
    rng = np.random.default_rng(seed)
    total = sum(np.kron(rng.normal(size=(512 // n,) * 2), np.ones((n, n))) * n**0.4 for n in (1, 2, 4, 8, 16, 32))
    return spline_filter(total / total.std(), mode="grid-wrap")


def texture(x, y, seed=0, cell=10.0):
    """Values around 0, of deviation about 1, at map coordinates: noise on a lattice of ``cell`` metres, smooth between.

    It repeats itself after 512 cells.
    """
    at = (np.asarray(y) - 3.37e6) / cell, (np.asarray(x) - 5e5) / cell
    return map_coordinates(_lattice(seed), at, order=3, mode="grid-wrap", prefilter=False)


def write_dem(path, left=LON - 0.03, top=LAT + 0.03, cells=216, change=0.0):
    """The terrain (plus ``change`` metres) on pixels of one arc second, named by their centres."""
    transform = from_origin(left, top, 1 / 3600, 1 / 3600)
    column, row = np.meshgrid(np.arange(cells) + 0.5, np.arange(cells) + 0.5)
    profile = {"driver": "GTiff", "width": cells, "height": cells, "count": 1, "dtype": "float32", "crs": "EPSG:4326"}
    with rasterio.open(path, "w", **profile, transform=transform) as file:
        file.write((terrain(left + column / 3600, top - row / 3600) + change).astype("float32"), 1)
    return path


def write_rpb(path, rpc):
    """An RPC model as the text file that comes beside a GaoFen-2 image."""

    def listed(name, numbers):
        return f"\t{name} = (\n" + ",\n".join(f"\t\t\t{number:+.15e}" for number in numbers) + ");\n"

    lines = {
        "errBias": 0.0, "errRand": 0.0, "lineOffset": rpc.line_off, "sampOffset": rpc.samp_off,
        "latOffset": rpc.lat_off,
        "longOffset": rpc.long_off, "heightOffset": rpc.height_off, "lineScale": rpc.line_scale,
        "sampScale": rpc.samp_scale, "latScale": rpc.lat_scale, "longScale": rpc.long_scale,
        "heightScale": rpc.height_scale,
    }  # fmt: skip
    text = 'satId = "GF2";\nbandId = "MSS1";\nSpecId = "RPC00B";\nBEGIN_GROUP = IMAGE\n'
    text += "".join(f"\t{name} = {value:.12f};\n" for name, value in lines.items())
    text += listed("lineNumCoef", rpc.line_num_coeff) + listed("lineDenCoef", rpc.line_den_coeff)
    text += listed("sampNumCoef", rpc.samp_num_coeff) + listed("sampDenCoef", rpc.samp_den_coeff)
    path.write_text(text + "END_GROUP = IMAGE\nEND;\n")
    return path


def write_item(folder, name, files, when, grid_corners, collection="sentinel-2-l2a", **properties):
    """A STAC item beside its files. ``files``: asset key -> (file name, more about it); corners in degrees."""
    lons, lats = zip(*grid_corners, strict=True)
    item = {
        "type": "Feature", "stac_version": "1.0.0", "id": name, "collection": collection,
        "bbox": [min(lons), min(lats), max(lons), max(lats)],
        "geometry": {"type": "Polygon", "coordinates": [[*map(list, grid_corners), list(grid_corners[0])]]},
        "properties": {"datetime": when} | properties,
        "assets": {key: {"href": f"./{file}", "roles": ["data"]} | about for key, (file, about) in files.items()},
        "links": [],
    }  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.json").write_text(json.dumps(item))
    return f"{name}.json"


def write_catalog(folder, collections):
    """A static catalogue: ``collections`` is collection id -> paths of its items below its folder."""
    links = []
    for name, items in collections.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        content = {"type": "Collection", "id": name, "links": [{"rel": "item", "href": f"./{item}"} for item in items]}
        (folder / name / "collection.json").write_text(json.dumps(content))
        links.append({"rel": "child", "href": f"./{name}/collection.json"})
    links.append({"rel": "self", "href": "https://catalog.invalid/"})
    (folder / "catalog.json").write_text(json.dumps({"type": "Catalog", "id": "made up", "links": links}))
    return folder / "catalog.json"
