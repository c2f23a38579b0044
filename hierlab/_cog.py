"""A map on its way to disk: collected in a scratch file, turned into a COG, read back, and only then put in place."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from xml.sax.saxutils import escape

import numpy as np
import rasterio
import rasterio.shutil
from rasterio._err import CPLE_BaseError  # GDAL's own errors, where rasterio does not translate them
from rasterio.errors import RasterioError
from rasterio.windows import Window

from .data.rasters import Scene
from .tree import IGNORE, ClassTree

CACHE_BYTES = 32 * 2**20  # GDAL's block cache; by default it grows to a twentieth of the machine's memory
BLOCK = 512  # pixels, side of the map's tiles
EARTH_RADIUS = 6371007.2  # metres, of the sphere that has the Earth's area


class MapWriter:
    """Labels block by block -> one COG with a band a level, its class names and colours beside it.

    A context manager. The labels are collected in an uncompressed GeoTIFF (L bytes a pixel) in a hidden folder
    beside ``out``; its whole room is taken at the start, because GDAL says nothing when a block it wrote later from
    its cache found no place. ``seams`` is an open scratch file with room for ``seam_bytes``. Whatever happens, the
    folder is removed at the end.

    ``counts`` (L, 255) and ``areas`` (L, 255), square metres, grow as labels are written.
    """

    def __init__(self, out: Path, tree: ClassTree, scene: Scene, tags: dict, seam_bytes: int = 0):
        self.out, self.tree, self.scene, self.tags, self.seam_bytes = out, tree, scene, tags, seam_bytes
        tiles = -(-scene.height // BLOCK) * -(-scene.width // BLOCK)
        self.stage_bytes = tree.depth * tiles * BLOCK**2
        self.bytes_needed = self.stage_bytes * 3 // 2 + seam_bytes  # the compressed map counts for half the stage
        self.counts = np.zeros((tree.depth, IGNORE), np.int64)
        self.areas = np.zeros((tree.depth, IGNORE))
        self.row_areas = row_areas(scene)

    def __enter__(self):
        self.out.parent.mkdir(parents=True, exist_ok=True)
        if shutil.disk_usage(self.out.parent).free < self.bytes_needed:
            raise OSError(f"{self.out}: there is no room for the map. {self._room()}")
        with ExitStack() as stack, self.saying_what_failed():
            stack.enter_context(rasterio.Env(GDAL_CACHEMAX=CACHE_BYTES))
            folder = tempfile.TemporaryDirectory(prefix=f".{self.out.stem}.", suffix=".part", dir=self.out.parent)
            self.folder = Path(stack.enter_context(folder))
            self.seams = stack.enter_context(tempfile.TemporaryFile(dir=self.folder))
            if self.seam_bytes and hasattr(os, "posix_fallocate"):
                os.posix_fallocate(self.seams.fileno(), 0, self.seam_bytes)
            self._create_stage()
            self.stage = stack.enter_context(rasterio.open(self._stage_path, "r+"))
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *error) -> None:
        self._stack.__exit__(*error)

    @property
    def _stage_path(self) -> Path:
        return self.folder / "stage.tif"

    def _create_stage(self) -> None:
        scene, tree = self.scene, self.tree
        grid = {"height": scene.height, "width": scene.width, "crs": scene.crs, "transform": scene.transform}
        kind = {"driver": "GTiff", "count": tree.depth, "dtype": "uint8", "nodata": IGNORE, "bigtiff": "IF_SAFER"}
        layout = {"tiled": True, "blockxsize": BLOCK, "blockysize": BLOCK, "interleave": "band"}
        with rasterio.open(self._stage_path, "w", **kind, **layout, **grid) as file:
            file.update_tags(**{f"hierlab_{key}": str(value) for key, value in self.tags.items()})
            for level, names in enumerate(tree.classes):
                file.set_band_description(level + 1, tree.level_names[level])
                colors = ["#{:02x}{:02x}{:02x}".format(*color) for color in tree.colors[level]]
                file.update_tags(level + 1, **{f"class_{index}": name for index, name in enumerate(names)})
                file.update_tags(level + 1, **{f"color_{index}": color for index, color in enumerate(colors)})
        taken = self._stage_path.stat().st_size  # closing the file filled it with nodata
        if taken < self.stage_bytes:
            raise OSError(f"the disk took {taken / 1e6:,.1f} of {self.stage_bytes / 1e6:,.1f} MB")

    def write(self, top: int, left: int, labels: np.ndarray, valid: np.ndarray) -> None:
        """Labels (L, h, w) uint8 at a row and column of the scene; what reaches beyond the scene is cut off.

        ``valid`` (h or more, w or more) bool: 255 is written where it is false. What is never written is 255 too.
        """
        labels = labels[:, : self.scene.height - top, : self.scene.width - left]
        height, width = labels.shape[1:]
        np.copyto(labels, IGNORE, where=~valid[:height, :width])
        with self.saying_what_failed():
            self.stage.write(labels, window=Window(left, top, width, height))
        rows = 256 * np.arange(height)[:, None]
        for level, plane in enumerate(labels):
            by_row = np.bincount((plane + rows).ravel(), minlength=256 * height).reshape(height, 256)[:, :IGNORE]
            self.counts[level] += by_row.sum(0)
            self.areas[level] += self.row_areas[top : top + height] @ by_row

    def finish(self, compress: str) -> None:
        """Make the COG, with overviews by the most frequent class; read it back; put it and its names in place."""
        cog, sidecar = self.folder / "map.tif", self.folder / "map.tif.aux.xml"
        with self.saying_what_failed():
            self.stage.close()
            options = {"compress": compress, "blocksize": BLOCK, "overview_resampling": "mode", "bigtiff": "IF_SAFER"}
            if compress == "ZSTD":
                options["level"] = 5  # half the time of the default 9, for files a tenth larger
            rasterio.shutil.copy(self._stage_path, cog, driver="COG", num_threads="ALL_CPUS", **options)
            self._read_back(cog)
            sidecar.write_text(names_and_colors(self.tree), encoding="utf-8")
            beside = self.out.with_name(self.out.name + ".aux.xml")
            os.replace(sidecar, beside)
            try:
                os.replace(cog, self.out)
            except OSError:
                beside.unlink()
                raise

    def _read_back(self, cog: Path) -> None:
        counts = np.zeros_like(self.counts)
        with rasterio.open(cog) as file:
            for _, window in file.block_windows(1):
                for level, plane in enumerate(file.read(window=window)):
                    counts[level] += np.bincount(plane.ravel(), minlength=256)[:IGNORE]
        if not np.array_equal(counts, self.counts):
            raise OSError("what is read back differs from what was written")

    @contextmanager
    def saying_what_failed(self) -> Iterator[None]:
        """Turns an error of writing into one that tells the room needed and left."""
        try:
            yield
        except (OSError, RasterioError, CPLE_BaseError) as error:
            text = f"{self.out}: the map could not be written ({error}). {self._room()} Nothing was left behind."
            raise OSError(text) from error

    def _room(self) -> str:
        free = shutil.disk_usage(self.out.parent).free
        return (
            f"While it is made it takes about {self.bytes_needed / 1e6:,.1f} MB of disk, and {free / 1e6:,.1f} MB are "
            f"free in {self.out.parent.resolve()}: free some space, or write to another disk."
        )


def row_areas(scene: Scene) -> np.ndarray:
    """Square metres of a pixel in every row (H,): the GSD's square; in degrees, on the sphere, by latitude."""
    if not scene.crs.is_geographic:
        return np.full(scene.height, scene.gsd**2)
    unit = scene.crs.units_factor[1]  # radians
    _, _, _, per_column, per_row, north = scene.transform[:6]
    latitude = north + per_column * scene.width / 2 + per_row * (np.arange(scene.height) + 0.5)
    return EARTH_RADIUS**2 * abs(scene.transform.determinant) * unit**2 * np.cos(latitude * unit)


def names_and_colors(tree: ClassTree) -> str:
    """GDAL's auxiliary XML: class names and colours a band.

    A TIFF of several bands has no place for a palette. From this file GDAL takes the names of every band's classes,
    and the colours of the first band; it does not look for the others' here, so these are in the tags too.
    """
    lines = ["<PAMDataset>"]
    for level, (names, colors) in enumerate(zip(tree.classes, tree.colors, strict=True)):
        lines += [f'  <PAMRasterBand band="{level + 1}">', "    <ColorInterp>Palette</ColorInterp>"]
        lines += ["    <CategoryNames>", *(f"      <Category>{escape(name)}</Category>" for name in names)]
        lines += ["    </CategoryNames>", "    <ColorTable>"]
        lines += ['      <Entry c1="{}" c2="{}" c3="{}" c4="255"/>'.format(*color) for color in colors]
        lines += ["    </ColorTable>", "  </PAMRasterBand>"]
    return "\n".join([*lines, "</PAMDataset>", ""])
