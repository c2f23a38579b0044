"""Label products: coarse, out of date, shifted and partly wrong maps of the same truth, as real ones are.

A product is made in tiles of its own grid, each computed whole with a margin, so that a pixel does not depend on the
window that asked for it. The steps: the truth of the product's year at ``samples``² points a pixel; a rule that
makes a class of their shares; confusions of whole patches (a patch is what has one class within one cell of an
irregular tiling); areas below the mapping unit given to their neighbours; a shift of the whole map by a fraction of
its pixel. Nothing is decided pixel by pixel at random.
"""

from dataclasses import dataclass, field
from functools import cached_property, lru_cache

import numpy as np
from scipy import ndimage

from hierlab.twin import world
from hierlab.twin.fields import Grid
from hierlab.twin.hashing import derive, key, mix, scalar, unit
from hierlab.twin.legends import LEGENDS, MERGES, Merge, tree

TILE = 48  # product pixels a side of a canonical tile
_CANOPY = 1.8  # by which NLCD favours forest: it is forest from about a third of canopy
_MARGIN = 8  # product pixels round it: more than any mapping unit or window of a rule needs
_LIMIT = 2**61  # metres: positions must stay within, as everywhere in the twin


@dataclass(frozen=True)
class Product:
    """A label product.

    ``gsd`` in metres; ``year`` of the truth it shows; ``tree`` names the class tree that its codes belong to and
    ``merge`` the table of ``MERGES`` that joins them to the classes of a data set. ``weights`` favour classes of the
    tree when the shares in a pixel are compared, after a point spread of ``blur`` pixels (one sigma). ``confusions``
    give, by class, the share of its patches that is taken for another, patches being about ``patch`` metres across;
    ``unit`` is the mapping unit in pixels, which ``fine`` classes need not reach; ``shift`` the largest
    misregistration in pixels.
    """

    name: str
    title: str
    gsd: float
    year: int
    tree: str
    legend: str
    merge: str
    samples: int = 4
    weights: dict[str, float] = field(default_factory=dict)
    blur: float = 0.5
    confusions: dict[str, dict[str, float]] = field(default_factory=dict)
    patch: float = 250.0
    unit: int = 1
    fine: tuple[str, ...] = ()
    shift: float = 0.5

    @property
    def step_mm(self) -> int:
        """The GSD in whole millimetres."""
        return round(self.gsd * 1000)

    @property
    def classes(self) -> tuple[str, ...]:
        """The classes of the product's tree, in its order."""
        return tree(self.tree).classes[-1]

    @cached_property
    def codes(self) -> np.ndarray:
        """(K,) uint8: the code on disk of every class (the first, where a class has several)."""
        return np.array([node.codes[0] for node in tree(self.tree).nodes[-1]], np.uint8)

    @property
    def merging(self) -> Merge:
        """The table that joins the codes to the classes of the data set."""
        return MERGES[self.merge]


PRODUCTS: dict[str, Product] = {
    p.name: p
    for p in (
        Product(
            name="nlcd",
            title="NLCD-like, 30 m, 16 classes",
            gsd=30.0,
            year=2016,
            tree="nlcd",
            legend="nlcd16",
            merge="nlcd-dfc2021",
            confusions={
                "grassland/herbaceous": {"pasture/hay": 0.2, "deciduous forest": 0.3, "shrub/scrub": 0.12},
                "pasture/hay": {"cultivated crops": 0.15, "deciduous forest": 0.25, "developed, low intensity": 0.08},
                "cultivated crops": {"pasture/hay": 0.2, "deciduous forest": 0.18, "developed, low intensity": 0.08},
                "shrub/scrub": {"deciduous forest": 0.35},
                "deciduous forest": {
                    "mixed forest": 0.06,
                    "pasture/hay": 0.07,
                    "woody wetlands": 0.03,
                    "developed, open space": 0.02,
                },
                "evergreen forest": {"deciduous forest": 0.15, "mixed forest": 0.1},
                "mixed forest": {"deciduous forest": 0.25},
                "developed, open space": {"deciduous forest": 0.1, "developed, low intensity": 0.2},
                "developed, low intensity": {
                    "developed, open space": 0.25,
                    "developed, medium intensity": 0.1,
                    "deciduous forest": 0.1,
                },
                "developed, medium intensity": {"developed, open space": 0.15},
                "barren land (rock/sand/clay)": {"grassland/herbaceous": 0.3, "cultivated crops": 0.2},
                "emergent herbaceous wetlands": {"woody wetlands": 0.25},
                "open water": {"woody wetlands": 0.14, "emergent herbaceous wetlands": 0.04},
            },
            patch=300.0,
            unit=5,
            fine=("developed, open space", "developed, low intensity", "developed, medium intensity"),
        ),
        Product(
            name="from-glc10",
            title="FROM-GLC10-like, 10 m",
            gsd=10.0,
            year=2017,
            tree="from-glc10",
            legend="from-glc10",
            merge="from-glc10",
            confusions={
                "cropland": {"grassland": 0.15, "forest": 0.08, "impervious": 0.05, "bareland": 0.04},
                "grassland": {"cropland": 0.25, "forest": 0.14, "impervious": 0.03},
                "forest": {"grassland": 0.1, "cropland": 0.06, "shrubland": 0.04},
                "shrubland": {"grassland": 0.4, "forest": 0.2},
                "impervious": {"cropland": 0.15, "grassland": 0.05, "bareland": 0.05},
                "bareland": {"cropland": 0.4, "impervious": 0.1},
                "wetland": {"grassland": 0.5},
                "water": {"cropland": 0.08, "wetland": 0.06, "impervious": 0.03},
            },
            patch=120.0,
            unit=2,
            fine=("impervious",),
        ),
        Product(
            name="esa-worldcover",
            title="WorldCover-like, 10 m",
            gsd=10.0,
            year=2020,
            tree="worldcover",
            legend="worldcover",
            merge="esa-worldcover",
            weights={"tree cover": 1.25},
            confusions={
                "cropland": {"grassland": 0.14, "tree cover": 0.08, "built-up": 0.04},
                "grassland": {"cropland": 0.15, "tree cover": 0.16},
                "tree cover": {"grassland": 0.12, "cropland": 0.05},
                "shrubland": {"grassland": 0.4, "tree cover": 0.2},
                "built-up": {"grassland": 0.16, "cropland": 0.08, "bare / sparse vegetation": 0.04},
                "bare / sparse vegetation": {"grassland": 0.3, "cropland": 0.2},
                "herbaceous wetland": {"grassland": 0.4},
                "permanent water bodies": {"grassland": 0.1, "herbaceous wetland": 0.05},
            },
            patch=120.0,
            unit=2,
            fine=("built-up", "tree cover"),
        ),
        Product(
            name="esri",
            title="Esri-like, 10 m",
            gsd=10.0,
            year=2020,
            tree="esri",
            legend="esri",
            merge="esri",
            weights={"built area": 1.3},
            blur=1.0,
            confusions={
                "crops": {"rangeland": 0.08, "trees": 0.06, "built area": 0.05},
                "rangeland": {"crops": 0.25, "trees": 0.18},
                "trees": {"rangeland": 0.07, "crops": 0.05},
                "built area": {"crops": 0.06, "rangeland": 0.03},
                "bare ground": {"rangeland": 0.4, "crops": 0.2},
                "flooded vegetation": {"rangeland": 0.5},
                "water": {"crops": 0.08, "rangeland": 0.04},
            },
            patch=200.0,
            unit=6,
        ),
        Product(
            name="glc-fcs30",
            title="GLC_FCS30-like, 30 m",
            gsd=30.0,
            year=2015,
            tree="glc-fcs30",
            legend="glc-fcs30",
            merge="glc-fcs30",
            confusions={
                "rainfed cropland": {
                    "herbaceous cover": 0.15,
                    "grassland": 0.08,
                    "deciduous broadleaved forest": 0.08,
                    "impervious surfaces": 0.06,
                },
                "irrigated cropland": {"rainfed cropland": 0.5},
                "herbaceous cover": {"rainfed cropland": 0.4},
                "orchard": {"rainfed cropland": 0.4, "deciduous broadleaved forest": 0.2},
                "grassland": {"rainfed cropland": 0.35, "deciduous broadleaved forest": 0.18},
                "deciduous broadleaved forest": {"mixed-leaf forest": 0.1, "rainfed cropland": 0.12, "grassland": 0.04},
                "evergreen needleleaved forest": {
                    "mixed-leaf forest": 0.15,
                    "deciduous broadleaved forest": 0.1,
                    "rainfed cropland": 0.06,
                },
                "shrubland": {"deciduous broadleaved forest": 0.4},
                "impervious surfaces": {"rainfed cropland": 0.2, "grassland": 0.06},
                "bare areas": {"rainfed cropland": 0.5},
                "wetlands": {"grassland": 0.3, "rainfed cropland": 0.2},
                "water body": {"rainfed cropland": 0.12, "wetlands": 0.06},
            },
            patch=400.0,
            unit=5,
        ),
    )
}


# ------------------------------------------------------------------ from shares to classes


def _shares(index: np.ndarray, count: int, blur: float) -> np.ndarray:
    """Shares (count, H, W) float32 of 0 … count − 1 among the samples ``index`` (H, W, n) of a pixel, blurred."""
    height, width, n = index.shape
    place = np.arange(height * width)[:, None] * count + index.reshape(-1, n)
    counts = np.bincount(place.ravel(), minlength=height * width * count)
    shares = (counts.reshape(height, width, count).transpose(2, 0, 1) / n).astype(np.float32)
    return ndimage.gaussian_filter(shares, (0, blur, blur), mode="nearest", truncate=3)


def _commonest(product: Product, leaf: np.ndarray, kind: np.ndarray) -> np.ndarray:
    """The class with the largest weighted share, uint8 (H, W)."""
    shares = _shares(LEGENDS[product.legend].table[leaf, kind], len(product.classes), product.blur)
    for name, weight in product.weights.items():
        shares[product.classes.index(name)] *= np.float32(weight)
    return shares.argmax(0).astype(np.uint8)


def _nlcd(product: Product, leaf: np.ndarray, kind: np.ndarray) -> np.ndarray:
    """NLCD's definitions, uint8 (H, W): developed land by its share of impervious surface, forest by its canopy."""
    names, number = product.classes, product.classes.index
    shares = _shares(LEGENDS[product.legend].table[leaf, kind], len(names), product.blur)
    levels = np.array([n for n, name in enumerate(names) if name.startswith("developed")])
    made = shares[levels[1:]].sum(0)
    lived = made + shares[levels[0]]
    deciduous, evergreen = shares[number("deciduous forest")], shares[number("evergreen forest")].copy()
    wet = shares[number("open water")] + shares[number("emergent herbaceous wetlands")]
    trees = deciduous + evergreen
    shares[number("deciduous forest")] = trees * np.float32(_CANOPY)
    shares[[*levels, number("evergreen forest")]] = 0
    out = shares.argmax(0).astype(np.uint8)
    forest = out == number("deciduous forest")
    out[forest & (evergreen > trees / 4)] = number("mixed forest")
    out[forest & (evergreen > 3 * trees / 4)] = number("evergreen forest")
    out[forest & (wet > 0.12)] = number("woody wetlands")
    developed = (shares[number("open water")] < 0.5) & ((made >= 0.2) | (lived >= 0.5))
    out[developed] = levels[np.digitize(made[developed], (0.2, 0.5, 0.8))]
    return out


# ------------------------------------------------------------------ what makes a map wrong


def _patches(product: Product, grid: Grid) -> np.ndarray:
    """Hashes (H, W) uint32 of the cells of an irregular tiling, about ``patch`` metres across, with bent borders."""
    size = int(product.patch)
    k = key(grid.seed, grid.region, product.name, "patch")
    bend = np.float32(0.4 * size)
    u = grid.mesh[0] + bend * grid.noise(f"{product.name} bend x", size, 4) + np.float32(grid.ax % size)
    v = grid.mesh[1] + bend * grid.noise(f"{product.name} bend y", size, 4) + np.float32(grid.ay % size)
    i, j = (np.floor(w / np.float32(size)).astype(np.int64) for w in (u, v))
    best, out = np.full(u.shape, np.float32(np.inf)), np.zeros(u.shape, np.uint32)
    for dj in (-1, 0, 1):
        for di in (-1, 0, 1):
            h = mix(k, i + di + grid.ax // size, j + dj + grid.ay // size)
            du = (i + di + unit(h, 1)) * np.float32(size) - u
            dv = (j + dj + unit(h, 2)) * np.float32(size) - v
            distance = du * du + dv * dv
            closer = distance < best
            best[closer], out[closer] = distance[closer], h[closer]
    return out


def _confused(product: Product, made: np.ndarray, patches: np.ndarray) -> np.ndarray:
    """The map after whole patches of a class have been taken for another."""
    out, number = made.copy(), product.classes.index
    for name, others in product.confusions.items():
        n = number(name)
        here = made == n
        draw = unit(derive(patches[here], n))
        taken, top = np.full(draw.shape, n, np.uint8), 0.0
        for other, share in others.items():
            taken[(draw >= top) & (draw < top + share)] = number(other)
            top += share
        out[here] = taken
    return out


def _generalised(product: Product, made: np.ndarray) -> np.ndarray:
    """The map after every area of fewer pixels than the mapping unit has gone to the nearest that is kept."""
    keep = np.zeros(made.shape, bool)
    kept_classes = {product.classes.index(name) for name in product.fine}
    for n in np.unique(made):
        here = made == n
        if int(n) in kept_classes:
            keep |= here
            continue
        areas, count = ndimage.label(here)
        size = np.bincount(areas.ravel(), minlength=count + 1)
        edge = np.unique(np.concatenate([areas[0], areas[-1], areas[:, 0], areas[:, -1]]))
        size[edge] = product.unit  # what goes on beyond the margin is larger than is seen
        keep |= here & (size[areas] >= product.unit)
    if keep.all() or not keep.any():
        return made
    nearest = ndimage.distance_transform_edt(~keep, return_distances=False, return_indices=True)
    return made[tuple(nearest)]


# ------------------------------------------------------------------ tiles and windows


@lru_cache(maxsize=1024)
def _tile(name: str, seed: int, region: int, column: int, row: int, year: int) -> np.ndarray:
    """Codes (TILE, TILE) uint8 of one canonical tile of a product, before its shift."""
    product = PRODUCTS[name]
    n, size = product.samples, TILE + 2 * _MARGIN
    first = column * TILE - _MARGIN, row * TILE - _MARGIN
    fine = Grid.of(seed, region, first[0] * n, first[1] * n, size * n, product.step_mm // n, year)
    ground = world.survey(fine).ground
    leaf, kind = (
        a.reshape(size, n, size, n).swapaxes(1, 2).reshape(size, size, n * n) for a in (ground.leaf, ground.kind)
    )
    made = (_nlcd if name == "nlcd" else _commonest)(product, leaf, kind)
    coarse = Grid.of(seed, region, *first, size, product.step_mm, year)
    made = _generalised(product, _confused(product, made, _patches(product, coarse)))
    return product.codes[made[_MARGIN:-_MARGIN, _MARGIN:-_MARGIN]]


def lookup(product: str) -> Product:
    """The product of that name; ValueError if there is none."""
    if product not in PRODUCTS:
        raise ValueError(f"no label product {product!r} in the twin: choose one of {', '.join(PRODUCTS)}.")
    return PRODUCTS[product]


def offset(product: str, seed: int, region: int) -> tuple[int, int]:
    """The misregistration of a product in a region: millimetres to the east and south, the same everywhere in it."""
    p = lookup(product)
    k = key(seed, region, p.name, "shift")
    return tuple(int(scalar(k, n, -1, 1) * p.shift * p.step_mm) for n in (0, 1))


def label(
    name: str, seed: int, region: int, window: tuple[int, int, int, int], gsd: float, year: int | None = None
) -> np.ndarray:
    """Codes (H, W) uint8 of a label product on the image grid of ``gsd`` metres, nearest product pixel.

    ``window`` = (x, y, width, height) in pixels of that grid, as in ``sensor.render``. ``year`` is the year whose
    truth the product shows, its own if not given. A pure function of (name, seed, region, year, pixel): however a
    window is cut, its pixels are the same. ValueError for an unknown name or an impossible window.
    """
    product = lookup(name)
    x, y, width, height = values = tuple(int(v) for v in window)
    if values != tuple(window) or width < 1 or height < 1:
        raise ValueError(f"window {window}: expected four integers (x, y, width, height) with width and height ≥ 1.")
    step = round(gsd * 1000)
    if step < 1 or abs(step - gsd * 1000) > 1e-6:
        raise ValueError(f"gsd {gsd}: expected a positive number of whole millimetres, in metres.")
    if max(abs(v) for v in values) * gsd >= _LIMIT:
        raise ValueError(f"window {window}: positions must stay within ±2**61 metres of the origin.")
    shift = offset(name, seed, region)
    columns = _cells(x, width, step, product.step_mm, shift[0])
    rows = _cells(y, height, step, product.step_mm, shift[1])
    out = np.empty((height, width), np.uint8)
    year = product.year if year is None else year
    for row, inside_y, outside_y in rows:
        for column, inside_x, outside_x in columns:
            codes = _tile(name, seed, region, column, row, year)
            out[outside_y, outside_x] = codes[inside_y[:, None], inside_x]
    return out


def _cells(first: int, count: int, step: int, size: int, shift: int) -> list[tuple[int, np.ndarray, slice]]:
    """Product tiles that ``count`` image pixels meet along one axis: tile, product pixels in it, place in the window.

    ``step`` and ``size`` are the pixels of image and product, ``shift`` moves the map, all in millimetres.
    """
    start = 2 * first * step + step - 2 * shift  # half millimetres, the centre of the first pixel
    base, rest = divmod(start, 2 * size)
    tile, within = divmod(base, TILE)
    cell = within + (rest + 2 * step * np.arange(count, dtype=np.int64)) // (2 * size)
    found = []
    for n in range(int(cell[0]) // TILE, int(cell[-1]) // TILE + 1):
        a, b = np.searchsorted(cell, (n * TILE, (n + 1) * TILE))
        found.append((tile + n, cell[a:b] - n * TILE, slice(int(a), int(b))))
    return found
