"""Scenes of the twin that are like the real ones of ``real``: same sensor, same classes, like class shares.

A place is looked for whose class shares, estimated from points of the truth, are nearest to those of the real scene
(half the sum of absolute differences). Then labelled pixels are left out at random until the shares are equal, as far
as every class has enough of them. Labels are either those of a label product (``products``) or the truth, worn as
hand-made labels are: smoothed, shifted by a pixel, and wrong for some whole objects.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from itertools import combinations

import numpy as np
from scipy.ndimage import label as components
from scipy.ndimage import uniform_filter

from hierlab.twin import index, legends, products, sensor, series, world
from hierlab.twin.calibration import IGNORE, ROWS, Patch, held_out
from hierlab.twin.fields import Grid
from hierlab.twin.imaging import flight
from hierlab.twin.regions import like
from hierlab.twin.sensors import SENSORS, Sensor
from hierlab.twin.spectra import GROUPS, KIND

WRONG = 0.08  # share of the objects whose label is another class's
_ACROSS = 12  # points of the truth across a window that is looked at
_LOOKS = 4  # grids of such points that a search looks at, each three windows wide
_ROOM = 400_000.0  # metres: searches begin within this square

# Class shares of the real scenes, in their codes, below a thousandth left out: of the whole scene, of NAIP patch by
# patch, and of the two scenes with the fewest pixels apart for those to learn from and those held out.
SHARES: dict[str, tuple[dict[int, float], ...]] = {
    "landsat": (
        # where Zion has shrub (52) the twin has grass (71): its shrubs hold less than a hundredth of any hills
        {21: 0.01, 22: 0.002, 31: 0.073, 41: 0.134, 42: 0.387, 43: 0.005, 52: 0.003, 71: 0.374, 81: 0.006, 90: 0.004},
    ),
    "naip": (
        *({1: 0.757, 2: 0.231, 3: 0.012}, {1: 0.999, 3: 0.001}, {1: 1.0}, {1: 0.476, 2: 0.524}),
        *({1: 1.0}, {1: 1.0}, {1: 1.0}, {1: 0.216, 2: 0.784}),
    ),
    "sentinel2 A": ({1: 0.518, 2: 0.373, 6: 0.066, 9: 0.043},),
    "sentinel2 B": ({1: 0.062, 2: 0.207, 3: 0.002, 4: 0.423, 5: 0.234, 9: 0.072},),
    "sentinel2 C": ({2: 0.024, 4: 0.885, 5: 0.016, 9: 0.075},),
    "series": ({1: 0.002, 2: 0.804, 3: 0.152, 4: 0.029, 8: 0.013}, {2: 0.692, 3: 0.227, 4: 0.048, 8: 0.033}),
    "hyperspectral": (
        {1: 0.09, 2: 0.161, 3: 0.275, 4: 0.388, 5: 0.014, 6: 0.072},
        {1: 0.083, 2: 0.221, 3: 0.477, 4: 0.188, 5: 0.03},
    ),
}
_STYLES = {  # what a region must be like: dry and wooded hills, or wet ones
    "landsat": {"wet": (-0.45, 0.0), "hilly": (0.1, 0.45), "conifers": (0.0, 0.5)},
    "naip": {"wet": (-0.1, 0.5), "hilly": (0.05, 0.45), "woods": (0.0, 0.2)},
    "series": {"warm": (0.0, 0.5), "hilly": (-0.1, 0.45), "woods": (0.0, 0.2)},
    "hyperspectral": {"warm": (0.0, 0.5), "hilly": (-0.35, 0.2), "gardens": (0.4, 1.0), "density": (0.9, 1.4)},
}
_SEALED = {1: 0.15, 2: 0.3, 3: 0.25, 4: 0.25, 5: 0.01, 6: 0.04}  # of points; the majority in 30 m has fewer roofs
_LABELLED = (5012, 660)  # EnMAP pixels to learn from and to score
_PURE = 0.6  # of an EnMAP pixel is its class's at least: the real labels leave mixed pixels out, as their gaps show
_ESRI = {1: 1, 2: 2, 4: 3, 5: 4, 7: 5, 8: 6, 9: 7, 11: 9}  # Esri's codes to TerraMesh's

SERIES = Sensor(
    **{f: getattr(SENSORS["sentinel2-series"], f) for f in ("gsd", "bits", "psf", "oversample", "hours", "spread")},
    name="likeness-series",
    title="Sentinel-2-like, 13 bands as the satellite sees them",
    bands=("B1", "B2", "B3", "B4", "B5", "B6", "B7", "B8", "B8A", "B9", "B10", "B11", "B12"),
    wavelengths=(442.7, 492.4, 559.8, 664.6, 704.1, 740.5, 782.8, 832.8, 864.7, 945.1, 1373.5, 1613.7, 2202.4),
    widths=(21.0, 66.0, 36.0, 31.0, 15.0, 15.0, 20.0, 106.0, 21.0, 20.0, 31.0, 91.0, 175.0),
    offset=(850.0, 520.0, 280.0, 130.0, 110.0, 100.0, 90.0, 80.0, 70.0, 40.0, 10.0, 20.0, 10.0),
    gain=(*(10_000.0,) * 9, 4_000.0, 60.0, 10_000.0, 10_000.0),  # water vapour swallows B9 and B10
    noise=(22.0, 22.0, 22.0, 24.0, 26.0, 28.0, 30.0, 30.0, 30.0, 20.0, 4.0, 26.0, 24.0),
    air=0.5,
    clouds=0.42,
    dates=(200,),
)
_VEILS = (
    0.95,
    0.75,
    0.0,
    0.0,
    0.0,
)  # share of the contrast between forest and grass that the real series lost, date by date
_KNOTS = (  # EnMAP's bands with data: number and wavelength in nm, the others lie between (to 4 nm)
    *((0, 418), (15, 492), (30, 566), (45, 654), (60, 756), (75, 871), (90, 993), (91, 902), (106, 1059), (119, 1211)),
    *((128, 1319), (129, 1461), (156, 1760), (157, 1939), (177, 2122), (195, 2274), (217, 2395)),
)
_NM = np.round(np.interp(np.arange(218), *np.array(_KNOTS, float).T), 1)
HYPERSPECTRAL = Sensor(
    name="likeness-hyperspectral",
    title="EnMAP-like, 218 bands, 30 m",
    bands=tuple(f"{w:.0f} nm" for w in _NM),
    wavelengths=tuple(float(w) for w in _NM),
    widths=(8.0,) * 91 + (10.0,) * 127,
    gsd=30.0,
    bits=14,
    offset=(60.0,) * 218,
    gain=(10_000.0,) * 218,
    noise=tuple(6.0 if w < 1000 else 9.0 for w in _NM),  # as differences of neighbouring bands of the real tiles say
    psf=0.55,
    oversample=6,
    air=1.0,
    scene=48,
    days=(190, 220),
    hours=(-0.5, 0.5),
    spread=0.03,
)


def _codes(legend: str, codes: dict[str, int], kinds: dict[str, int] | None = None) -> np.ndarray:
    """A table (18, K) uint8 from leaf and kind to a code: by the classes of a legend, then by single kinds."""
    found = legends.LEGENDS[legend]
    of = np.full(256, IGNORE, np.uint8)
    of[: len(found.classes)] = [codes.get(name, IGNORE) for name in found.classes]
    table = of[found.table]
    for name, code in (kinds or {}).items():
        table[:, KIND[name]] = code
    return table


@lru_cache(maxsize=1)
def tables() -> dict[str, np.ndarray]:
    """From leaf and kind (18, K) to the codes of each case's labels."""
    from hierlab.tree import ClassTree

    def first(tree: str) -> dict[str, int]:
        return {node.name: node.codes[0] for node in ClassTree.load(tree).nodes[-1]}

    land_use = {"cropland": 1, "tree cover": 2, "grassland": 3, "shrubland": 4, "permanent water bodies": 5}
    land_use |= {"herbaceous wetland": 6, "built-up": 8, "bare / sparse vegetation": 9}
    surfaces = {"building": 1, "impervious surfaces": 2, "car": 2, "low vegetation": 3, "tree": 4}
    earth = dict.fromkeys(GROUPS["soils"], 5) | {"dirt road": 2} | dict.fromkeys(GROUPS["water"], 6)
    return {
        "landsat": _codes("nlcd16", first("nlcd")),
        "naip": legends.LEGENDS["chesapeake"].table,
        "sentinel2": _codes("esri", {name: _ESRI[code] for name, code in first("esri").items()}),
        "series": _codes("worldcover", land_use),
        "hyperspectral": _codes("potsdam", surfaces, earth),
    }


def distance(shares: dict[int, float], found: np.ndarray) -> np.ndarray:
    """Half the sum of absolute differences between ``shares`` and those ``found`` (256, …) by code: 0 to 1."""
    wanted = np.zeros(len(found), np.float32)
    wanted[list(shares)] = list(shares.values())
    return np.abs(found - wanted.reshape(-1, *[1] * (found.ndim - 1))).sum(0) / 2


def _shares_of_windows(codes: np.ndarray, across: int) -> np.ndarray:
    """Shares (256, h, w) of every code in all windows of ``across`` points within (H, W) points."""
    out = np.zeros((256, *(n - across + 1 for n in codes.shape)), np.float32)
    for code in np.unique(codes):
        total = np.pad((codes == code).cumsum(0).cumsum(1), ((1, 0), (1, 0)))
        inside = (
            total[across:, across:] - total[:-across, across:] - total[across:, :-across] + total[:-across, :-across]
        )
        out[code] = inside / across**2
    return out


def find(
    shares: dict[int, float],
    table: np.ndarray,
    metres: float,
    seed: int,
    region: int,
    near: str | None = None,
    looks: int = _LOOKS,
    room: tuple[float, float, float] = (0.0, 0.0, _ROOM),
    taken: Sequence[tuple[float, float]] = (),
    salt: int = 0,
) -> tuple[float, int, int]:
    """The window of ``metres`` a side whose class shares are nearest to ``shares``: distance, x and y in metres.

    ``table`` (18, K) gives the codes. ``looks`` grids of points are searched, at random places in a ``room`` (x, y,
    side), or where a leaf class is ``near`` them; windows that would overlap those ``taken`` (x, y) are passed over.
    ``salt`` gives other random places.
    """
    step, size = round(metres * 1000 / _ACROSS), 3 * _ACROSS
    random = np.random.default_rng((seed, region, round(metres), salt))
    best = (np.inf, 0, 0)
    for _ in range(looks):
        x, y = random.uniform(0, room[2], 2) + room[:2]
        if near:
            x, y = index.nearest(near, x, y, seed, region) or (x, y)
        column, row = (int(v * 1000 // step) - size // 2 for v in (x, y))
        ground = world.survey(Grid.of(seed, region, column, row, size, step)).ground
        away = distance(shares, _shares_of_windows(table[ground.leaf, ground.kind], _ACROSS))
        for tx, ty in taken:
            i, j = (v * 1000 // step - n for v, n in ((tx, column), (ty, row)))
            rows, columns = np.ogrid[: away.shape[0], : away.shape[1]]
            away[(np.abs(rows - j) < _ACROSS) & (np.abs(columns - i) < _ACROSS)] = np.inf
        j, i = np.unravel_index(away.argmin(), away.shape)
        place = (float(away[j, i]), (column + int(i)) * step // 1000, (row + int(j)) * step // 1000)
        best = min(best, place)
    return best


def thinned(
    label: np.ndarray, shares: dict[int, float], seed: int = 0, most: int | None = None, least: float = 0.6
) -> np.ndarray:
    """The label (H, W) with pixels left out at random (255), so that classes have the given shares.

    The share ``least`` of the pixels whose class has a share stays in any case, or ``most`` if that is fewer: then a
    class that is too rare has all of its pixels, and less than its share. Codes without a share are left out.
    """
    counts = {c: np.count_nonzero(label == c) for c in shares}
    whole = max(min(counts[c] / s for c, s in shares.items()), least * sum(counts.values()))
    whole = min(whole, most or whole)
    random, out = np.random.default_rng(seed), np.full(label.shape, IGNORE, np.uint8)
    for code, share in shares.items():
        there = np.flatnonzero(label == code)
        kept = random.permutation(there)[: max(round(share * whole), 1)]
        out.flat[kept] = code
    return out


def majority(codes: np.ndarray, n: int, window: int = 0, least: float = 0.0) -> np.ndarray:
    """The commonest code in squares of ``n`` pixels (H·n, W·n) -> (H, W), after a mean over ``window`` squares.

    255 where it holds less than the share ``least`` of the square.
    """
    classes = np.unique(codes)
    best = np.full([s // n for s in codes.shape], -1.0, np.float32)
    out = np.zeros(best.shape, np.uint8)
    for code in classes:
        share = (codes == code).reshape(best.shape[0], n, best.shape[1], n).mean((1, 3), dtype=np.float32)
        share = uniform_filter(share, window) if window else share
        out, best = np.where(share > best, code, out).astype(np.uint8), np.maximum(share, best)
    out[best < least] = IGNORE
    return out


def worn(label: np.ndarray, seed: int = 0, wrong: float = WRONG, size: int = 12, drawn: bool = True) -> np.ndarray:
    """A label (H, W) as a mapper would have ``drawn`` it: smoothed over 3 pixels, moved by one; some objects wrong.

    An object is a connected piece of a class within a square of ``size`` pixels; a wrong one gets the class of the
    other classes' shares. Codes of 255 stay out of it.
    """
    random = np.random.default_rng(seed)
    out = label
    if drawn:
        down, right = random.permutation([(0, 1), (1, 0), (0, -1), (-1, 0)])[0]
        out = np.roll(np.pad(majority(label, 1, 3), 1, "edge"), (down, right), (0, 1))[1:-1, 1:-1]
    known, counts = np.unique(out[out != IGNORE], return_counts=True)
    if len(known) < 2:
        return out
    rows, columns = np.ogrid[: out.shape[0], : out.shape[1]]
    square = rows // size * (out.shape[1] // size + 1) + columns // size
    made = out.copy()
    for place, code in enumerate(known):
        pieces = components(out == code)[0]
        objects = np.unique(pieces.astype(np.int64) * (square.max() + 1) + square, return_inverse=True)[1]
        others = np.delete(known, place)
        odds = np.delete(counts, place) / np.delete(counts, place).sum()
        new = np.where(random.random(objects.max() + 1) < wrong, random.choice(others, objects.max() + 1, p=odds), code)
        here = out == code
        made[here] = new[objects.reshape(out.shape)[here]]
    return made


def _region(case: str, seed: int) -> int:
    return like(seed, 1, first=10 * seed, **_STYLES.get(case, {}))[0]


def _pixels(place: tuple[float, int, int], gsd: float, size: tuple[int, int]) -> tuple[int, int, int, int]:
    return int(place[1] // gsd), int(place[2] // gsd), *size


def _about(region: int, places: list[tuple[float, int, int]], windows: list[tuple[int, int, int, int]]) -> dict:
    return {"region": region, "windows": windows, "distance": [round(p[0], 3) for p in places]}


def landsat(seed: int, size: int = 320) -> tuple[list[Patch], dict]:
    """Landsat-8's bands 2-5 with NLCD-like codes: one window of dry, wooded hills."""
    region, (shares,) = _region("landsat", seed), SHARES["landsat"]
    place = find(shares, tables()["landsat"], 30.0 * size, seed, region)
    window = _pixels(place, 30.0, (size, size))
    image = sensor.render("landsat8", seed, region, window).image[1:5].astype(np.float32)
    whole = products.label("nlcd", seed, region, window, 30.0)
    return [Patch(image, thinned(whole, shares, seed, least=0.3), whole=whole)], _about(region, [place], [window])


def naip(seed: int, size: int = 256) -> tuple[list[Patch], dict]:
    """NAIP over wooded hills: one window for each real patch, all within some kilometres; NLCD-like weak labels."""
    region, table, merge = _region("naip", seed), tables()["naip"], legends.MERGES["nlcd-dfc2021"]
    mean = {c: sum(s.get(c, 0) for s in SHARES["naip"]) / len(SHARES["naip"]) for c in range(4)}
    _, x, y = find(mean, table, 4096.0, seed, region)
    places, windows, patches = [], [], []
    for n, shares in enumerate(SHARES["naip"]):
        taken = [place[1:] for place in places]
        places.append(find(shares, table, float(size), seed, region, None, 4, (x, y, 4096.0), taken, n))
        windows.append(_pixels(places[-1], 1.0, (size, size)))
        made = sensor.render("naip", seed, region, windows[-1])
        whole = worn(table[made.label, made.kind], seed * 100 + n)
        weak = merge.apply(products.label("nlcd", seed, region, windows[-1], 1.0))
        patches.append(Patch(made.image.astype(np.float32), thinned(whole, shares, seed), weak, whole=whole))
    return patches, _about(region, places, windows)


def sentinel2(seed: int, tile: str, size: int = 224) -> tuple[list[Patch], dict]:
    """Sentinel-2's ten bands with Esri-like codes, at the shares of one of the real tiles."""
    (shares,) = SHARES[f"sentinel2 {tile}"]
    region, near = 10 * seed + "ABC".index(tile), {"A": "lake", "B": "urban residential"}.get(tile)
    place = find(shares, tables()["sentinel2"], 10.0 * size, seed, region, near)
    window = _pixels(place, 10.0, (size, size))
    image = sensor.render("sentinel2", seed, region, window).image.astype(np.float32)
    codes = products.label("esri", seed, region, window, 10.0)
    whole = np.array([_ESRI.get(c, IGNORE) for c in range(256)], np.uint8)[codes]
    return [Patch(image, thinned(whole, shares, seed, least=0.2), whole=whole)], _about(region, [place], [window])


def series_days(seed: int, region: int, window: tuple[int, int, int, int]) -> tuple[int, ...]:
    """Five summer days whose sky over the window is as veiled as that of the real series' dates."""
    grid = Grid.of(seed, region, *window[:2], max(window[2:]), SERIES.step_mm)
    veil = {}
    for day in range(170, 271, 4):
        light = flight(SERIES, seed, region, 0, 0, grid.year, day).sun
        above = series.sky(grid, SERIES.name, day, light, SERIES.clouds)
        veil[day] = float((above.opacity + 0.6 * above.shade + 0.1 * above.haze).mean())
    chosen = []
    for wanted in _VEILS:
        day = min(veil, key=lambda d: abs(veil[d] - wanted))
        chosen.append(day)
        del veil[day]
    return (*chosen[:2], *sorted(chosen[2:]))


def five_dates(seed: int, size: tuple[int, int] = (100, 101)) -> tuple[list[Patch], dict]:
    """Five summer dates of 13 bands, the first two veiled, with worn labels of land use; (65, H, W) date by date."""
    region, (shares, held_shares) = _region("series", seed), SHARES["series"]
    place = find(shares, tables()["series"], 10.0 * max(size), seed, region, looks=12)
    window = _pixels(place, 10.0, size)
    days = series_days(seed, region, window)
    images = []
    for day in days:  # one by one: a series has its dates in the order of the calendar
        made = sensor.render(replace(SERIES, dates=(day,)), seed, region, window)
        images.append(made.image[0].astype(np.float32))
    whole = worn(tables()["series"][made.label, made.kind], seed, size=8)
    test = held_out(*whole.shape, ROWS["series five dates"].block, seed)
    parts = [np.where(test == held, whole, IGNORE) for held in (False, True)]
    learn, score = (thinned(y, s, seed, least=0.25) for y, s in zip(parts, (shares, held_shares), strict=True))
    patch = Patch(np.concatenate(images), np.where(test, score, learn), test=test, whole=whole)
    return [patch], _about(region, [place], [window]) | {"days": list(days)}


def hyperspectral(seed: int, tiles: tuple[int, int] = (5, 4), size: int = 32) -> tuple[list[Patch], dict]:
    """EnMAP-like tiles of ``size`` pixels round the edge of a town; two of them are held out."""
    region, shares = _region("hyperspectral", seed), SHARES["hyperspectral"]
    table = tables()["hyperspectral"]
    place = find(_SEALED, table, 30.0 * size * min(tiles), seed, region, "urban residential", looks=6)
    window = _pixels(place, 30.0, (tiles[0] * size, tiles[1] * size))
    image = sensor.render(HYPERSPECTRAL, seed, region, window).image.astype(np.float32)
    across = [8 * v for v in window]
    across[seed % 2] += 2 * (-1) ** (seed // 2)  # labels and image are a quarter of a pixel apart
    fine = sensor.ground_truth(seed, region, tuple(across), 3.75)
    codes = majority(worn(table[fine], seed), 8, least=_PURE)
    test = _like_tiles(codes, shares[1], size)
    patches = []
    for held, most in zip((False, True), _LABELLED, strict=True):
        label = thinned(np.where(test == held, codes, IGNORE), shares[held], seed, most)
        patches.append(Patch(image, label, test=held, whole=codes))
    return patches, _about(region, [place], [window])


def _like_tiles(codes: np.ndarray, shares: dict[int, float], size: int) -> np.ndarray:
    """The two tiles of ``size`` pixels, of all in (H, W), that together have nearly the ``shares``: bool (H, W)."""
    number = np.arange(codes.shape[0])[:, None] // size * (codes.shape[1] // size) + np.arange(codes.shape[1]) // size
    counts = np.stack([np.bincount(codes[number == n], minlength=256) for n in range(number.max() + 1)])
    pairs = list(combinations(range(len(counts)), 2))
    found = np.stack([counts[list(pair)].sum(0) for pair in pairs], 1) / (2 * size**2)
    return np.isin(number, pairs[int(distance(shares, found).argmin())])


CASES = {"landsat": landsat, "naip": naip, "series": five_dates, "hyperspectral": hyperspectral}


def case(name: str, seed: int) -> tuple[list[Patch], dict]:
    """The patches of a case of the twin by name, and where they lie: region, windows, distances of their shares."""
    kind, _, tile = name.partition(" ")
    return sentinel2(seed, tile) if kind == "sentinel2" else CASES[kind](seed)
