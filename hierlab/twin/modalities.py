"""What space, time and spectrum each tell a per-pixel forest: the modalities of STSNet's Table 10 on the twin.

Airborne spectra at 1 m (249 bands), what a multispectral camera would see of them (Sentinel-2's bands of the same
range), the same spectra at 10 m, the year's Sentinel-2 images, and their unions, all over the same places and with
the same eight classes at 1 m. The forest looks at single pixels, so nothing here is about shapes.
"""

import numpy as np

from hierlab.twin import legends, likeness, sensor
from hierlab.twin.calibration import IGNORE, score
from hierlab.twin.regions import like
from hierlab.twin.sensors import SENSORS

CLASSES = legends.LEGENDS["h2sr"].classes
FOREST = {"trees": 100, "training": 12_000, "scored": 12_000}
AREAS = 5  # places a seed
_SHARES = dict(enumerate((0.2, 0.2, 0.16, 0.1, 0.15, 0.07, 0.05, 0.07)))  # that places are looked for
_SIDE, _WINDOW, _TAKEN = 1200, 300, 1500  # metres of a place; pixels of a window at 1 m; pixels taken from each


def filled(series: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """A series (T, C, h, w) with its invalid values (valid: T, h, w) put in between the valid ones before and after.

    Before the first and after the last valid date the nearest one is repeated; a pixel without any keeps its values.
    """
    dates = len(series)
    number = np.arange(dates)[:, None, None]
    before = np.maximum.accumulate(np.where(valid, number, -1), 0)
    after = np.minimum.accumulate(np.where(valid, number, dates)[::-1], 0)[::-1]
    first, last = np.where(before < 0, after, before), np.where(after == dates, before, after)
    first, last = (np.where(valid.any(0), a, number) for a in (first, last))
    share = (number - first) / np.maximum(last - first, 1)
    values = [np.take_along_axis(series, a[:, None], 0) for a in (first, last)]
    return (values[0] + share[:, None].astype(np.float32) * (values[1] - values[0].astype(np.float32))).astype(
        np.float32
    )


def broad(spectra: np.ndarray) -> np.ndarray:
    """Hyperspectral values (249, …) as Sentinel-2's bands of the same range would see them (8, …)."""
    fine, coarse = SENSORS["hyperspectral-1m"], SENSORS["sentinel2"]
    nm, inside = np.array(fine.wavelengths), [n for n, w in enumerate(coarse.wavelengths) if w < fine.wavelengths[-1]]
    centre, width = np.array(coarse.wavelengths)[inside, None], np.array(coarse.widths)[inside, None]
    response = np.exp(-4 * np.log(2) * ((nm - centre) / width) ** 2)
    return np.tensordot((response / response.sum(1, keepdims=True)).astype(np.float32), spectra, 1)


def samples(seed: int, region: int, window: tuple[int, int, int, int], count: int) -> tuple[dict, np.ndarray]:
    """Values by source and classes at ``count`` random labelled pixels of a window of the 1 m grid.

    The window's position and size must be multiples of 30. Sources: "spectra" (N, 249) at 1 m, "coarse" (N, 249) at
    10 m, "dates" (N, 31 · 10) and "landsat" (N, 23 · 7).
    """
    if any(v % 30 for v in window):
        raise ValueError(f"window {window}: expected multiples of 30, so that 10 m and 30 m pixels divide it.")
    made = sensor.render("hyperspectral-1m", seed, region, window)
    label = legends.classify(made.label, made.kind, "h2sr").ravel()
    chosen = np.random.default_rng(seed).permutation(np.flatnonzero(label != IGNORE))[:count]
    row, column = np.divmod(chosen, window[2])
    spectra = made.image.astype(np.float32)
    bands, height, width = spectra.shape
    coarse = spectra.reshape(bands, height // 10, 10, width // 10, 10).mean((2, 4))
    values = {"spectra": spectra[:, row, column].T, "coarse": coarse[:, row // 10, column // 10].T}
    for name, title, gsd in (("dates", "sentinel2-series", 10), ("landsat", "landsat8-series", 30)):
        year = sensor.render(title, seed, region, tuple(v // gsd for v in window))
        series = filled(year.image, year.valid)
        values[name] = series.reshape(-1, *series.shape[2:])[:, row // gsd, column // gsd].T
    return values, label[chosen]


def stacked(values: dict) -> dict[str, np.ndarray]:
    """The features (N, F) of each modality, by the names of the paper's table."""
    camera = broad(values["spectra"].T).T
    return {
        "H2SR-VNIR": camera,
        "H2SR": values["spectra"],
        "H2SR-10": values["coarse"],
        "MT": values["dates"],
        "H2SR-VNIR-MT": np.concatenate([camera, values["dates"]], 1),
        "H2SR-Landsat": np.concatenate([values["spectra"], values["landsat"]], 1),
        "H2SR-MT": np.concatenate([values["spectra"], values["dates"]], 1),
    }


def compare(seed: int, areas: int = AREAS, jobs: int = 1) -> tuple[dict[str, dict], dict]:
    """``calibration.score`` of every modality, and where the windows lie.

    Three of the four windows of each area are learnt from, the last is scored.
    """
    from sklearn.ensemble import RandomForestClassifier

    region = like(seed, 1, first=10 * seed, warm=(0.5, 1.0), rice=(-0.05, 0.25), film=(0.0, 0.5))[0]
    table, parts, windows = legends.LEGENDS["h2sr"].table, ([], []), []
    for area in range(areas):
        _, x, y = likeness.find(_SHARES, table, float(_SIDE), seed, region, "rural residential", salt=area)
        for n, (right, down) in enumerate(((0, 0), (1, 1), (0, 1), (1, 0))):
            place = [(v + _SIDE // 2 * step) // 30 * 30 for v, step in ((x, right), (y, down))]
            windows.append((*place, _WINDOW, _WINDOW))
            parts[n == 3].append(samples(seed, region, windows[-1], _TAKEN))
    sets = []
    for part in parts:
        values = {name: np.concatenate([v[name] for v, _ in part]) for name in part[0][0]}
        sets.append((stacked(values), np.concatenate([label for _, label in part])))
    (learn, known), (test, truth) = sets
    keep = np.random.default_rng(seed).permutation(len(known))[: FOREST["training"]]
    scored = np.random.default_rng(seed + 1).permutation(len(truth))[: FOREST["scored"]]
    out = {}
    for name in learn:
        model = RandomForestClassifier(FOREST["trees"], min_samples_leaf=2, n_jobs=jobs, random_state=seed)
        model.fit(learn[name][keep], known[keep])
        out[name] = score(truth[scored], model.predict(test[name][scored]))
    return out, {"region": region, "windows": windows}
