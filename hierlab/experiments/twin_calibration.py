"""The twin beside real scenes, measured with a per-pixel forest and stored as run records.

``python -m hierlab.experiments.twin_calibration twin RECORDS --seeds 10`` measures the twin; with ``real RECORDS
--folder FOLDER`` the real scenes, which are not part of the project: their numbers stay in the records. Rows that
are in the records already are passed over.
"""

import argparse
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pandas as pd

from .. import profiles
from ..twin import TWIN_VERSION, calibration, likeness, modalities, real
from . import record

EXPERIMENT = "start/twin-calibration"
WITHIN = 0.10  # of the real OA
# Differences of OA between two rows that must be there, and the least that is asked of each
MARGINS = {
    "context over pixel": ("naip context", "naip within", 0.05),
    "five dates over one": ("series five dates", "series date 1", 0.08),
    "ten bands over RGB": ("hyperspectral ten", "hyperspectral RGB", 0.04),
    "hyperspectral over RGB": ("hyperspectral", "hyperspectral RGB", 0.07),
    "blocks over whole windows held out": ("naip within", "naip windows", 0.05),
}


def _write(path: Path, row: str, seed: int, data: dict, metrics: dict, seconds: float, parameters: dict) -> None:
    profile = profiles.current()
    fields = {"experiment": EXPERIMENT, "row": row, "profile": profile, "seed": seed, "parameters": parameters}
    fields |= {"data": data, "metrics": metrics, "cost": {"seconds": round(seconds, 1)}}
    record.append(path, fields | record.provenance())


def _measure(path: Path, case: Callable, about: dict, seed: int, rows: Iterable[str], trees: int, jobs: int) -> None:
    """Measure the rows of one case after another, making each case once."""
    twin = about["twin"]
    done = {(r["row"], r["seed"], r["data"]["twin"]) for r in record.read(path)}
    wanted = [name for name in rows if (name, seed, twin) not in done]
    made, patches, where = None, [], {}
    for name in wanted:
        row = calibration.ROWS[name]
        if row.case != made:
            patches, where = case(row.case)
            made = row.case
            title = f"statistics of {row.case}"
            if (title, seed, twin) not in done:
                start = time.process_time()
                bands = calibration.RED_INFRARED[row.case.split()[0]]
                metrics = calibration.statistics(patches, *bands)
                _write(path, title, seed, about | where, metrics, time.process_time() - start, {})
        start = time.process_time()
        metrics = calibration.measure(row, patches, seed, trees, jobs)
        seconds = time.process_time() - start
        parameters = {"trees": trees, "training": calibration.TRAINING, "scored": calibration.SCORED}
        _write(path, name, seed, about | where, metrics, seconds, parameters)
        print(f"{'twin' if twin else 'real'} seed {seed} {name:24} OA {metrics['OA']:.3f} mIoU {metrics['mIoU']:.3f}")


def measure_real(path: Path, folder: Path, rows: Iterable[str], trees: int = calibration.TREES, jobs: int = 1) -> None:
    """Measure real scenes in ``folder`` and append the records to ``path``."""

    def case(name: str) -> tuple[list, dict]:
        return real.case(name, folder), {"name": real.SOURCES[name.split()[0]]}

    _measure(path, case, {"twin": False}, 0, rows, trees, jobs)


def measure_twin(path: Path, seed: int, rows: Iterable[str], trees: int = calibration.TREES, jobs: int = 1) -> None:
    """Measure like scenes of the twin of one seed and append the records to ``path``."""
    about = {"twin": True, "version": TWIN_VERSION}
    _measure(path, lambda name: likeness.case(name, seed), about, seed, rows, trees, jobs)


def measure_modalities(path: Path, seed: int, jobs: int = 1) -> None:
    """Measure what each modality of STSNet's Table 10 gives the forest, class by class."""
    if any(r["row"].startswith("modality ") and r["seed"] == seed for r in record.read(path)):
        return
    start = time.process_time()
    results, where = modalities.compare(seed, jobs=jobs)
    about, seconds = {"twin": True, "version": TWIN_VERSION} | where, time.process_time() - start
    for name, metrics in results.items():
        _write(path, f"modality {name}", seed, about, metrics, seconds / len(results), dict(modalities.FOREST))
        print(f"twin seed {seed} {name:16} OA {metrics['OA']:.3f} mIoU {metrics['mIoU']:.3f}")


def table(records: list[dict]) -> pd.DataFrame:
    """Real beside twin, a line a row of ``calibration.ROWS``: OA and mIoU, the twin's as medians over its seeds.

    ``low`` and ``high`` are the twin's least and largest OA, ``near`` says whether the median is ``WITHIN`` the real.
    """
    lines = []
    for name, row in calibration.ROWS.items():
        of = [r for r in records if r["row"] == name]
        found = {kind: [r["metrics"] for r in of if r["data"]["twin"] is kind] for kind in (True, False)}
        line = {"row": name, "what": row.title, "seeds": len(found[True])}
        for kind, prefix in ((False, "real"), (True, "twin")):
            for measure in ("OA", "mIoU", "majority"):
                values = [m[measure] for m in found[kind]]
                line[f"{prefix} {measure}"] = float(np.median(values)) if values else np.nan
        oa = [m["OA"] for m in found[True]] or [np.nan]
        line |= {"low": min(oa), "high": max(oa)}
        line["near"] = abs(line["twin OA"] - line["real OA"]) <= WITHIN
        lines.append(line)
    return pd.DataFrame(lines).set_index("row")


def margins(records: list[dict]) -> pd.DataFrame:
    """The differences ``MARGINS``: of the real scenes, and of the twin as the median of each seed's difference."""
    oa = {(r["row"], r["seed"], r["data"]["twin"]): r["metrics"]["OA"] for r in records if "OA" in r["metrics"]}
    lines = []
    for name, (better, worse, least) in MARGINS.items():
        of = {}
        for twin in (False, True):
            seeds = sorted(seed for row, seed, kind in oa if row == better and kind is twin)
            pairs = [oa[better, s, twin] - oa[worse, s, twin] for s in seeds if (worse, s, twin) in oa]
            of[twin] = float(np.median(pairs)) if pairs else np.nan
        line = {"margin": name, "from": worse, "to": better, "asked": least, "real": of[False], "twin": of[True]}
        lines.append(line | {"met": of[True] >= least})
    return pd.DataFrame(lines).set_index("margin")


def main(arguments: list[str] | None = None) -> None:
    """The command line of this module."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("real", "twin", "modalities"))
    parser.add_argument("records", type=Path)
    parser.add_argument("--folder", type=Path, help="of the real scenes")
    parser.add_argument("--seeds", type=int, default=10, help="how many (default: 10)")
    parser.add_argument("--first", type=int, default=0, help="the first of them (default: 0)")
    parser.add_argument("--rows", nargs="*", default=list(calibration.ROWS))
    parser.add_argument("--trees", type=int, default=calibration.TREES)
    parser.add_argument("--jobs", type=int, default=1)
    given = parser.parse_args(arguments)
    if given.what == "real":
        if given.folder is None:
            parser.error("--folder: the folder that holds the real scenes is needed.")
        measure_real(given.records, given.folder, given.rows, given.trees, given.jobs)
        return
    for seed in range(given.first, given.first + given.seeds):
        if given.what == "modalities":
            measure_modalities(given.records, seed, given.jobs)
        else:
            measure_twin(given.records, seed, given.rows, given.trees, given.jobs)


if __name__ == "__main__":
    main()
