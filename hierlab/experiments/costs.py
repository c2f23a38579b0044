"""What running a table takes, computed from the records of its runs."""

from pathlib import Path

import numpy as np
import pandas as pd

from . import report
from .catalog import EXPERIMENTS
from .define import Experiment

NO_RECORD = "no record"


def seconds(entry: dict) -> float:
    """The wall time of a record's job; that of the training alone where the record is older than jobs."""
    return entry["cost"].get("job_seconds", entry["cost"]["seconds"])


def on_gpu(entry: dict) -> bool:
    """Whether a record's job ran on a GPU."""
    return entry["cost"].get("peak_memory_of") == "cuda"


def costs(folder: Path) -> pd.DataFrame:
    """One line a table, profile and device with records below ``folder``, and one for a profile without any.

    ``recorded`` jobs of all that the ``jobs`` of the profile are (rows × seeds) took ``hours`` together, and the
    shortest and the longest so many ``minutes``. ``all [h]`` is what all jobs take one after the other on that
    device: the mean of every row's recorded jobs times the profile's seeds, NaN while a row has none. ``data`` says
    twin or real, ``GPU`` whether the device is one.
    """
    lines = []
    for experiment in EXPERIMENTS.values():
        for profile in reversed(report.SHOWN):
            found = [
                _line(experiment, profile, device, twin, of)
                for twin in (True, False)
                for device, of in _by_device(report.stored(experiment, folder, profile, twin)).items()
            ]
            jobs = len(experiment.rows) * experiment.setting(profile).seeds
            empty = {"data": "–", "device": NO_RECORD, "GPU": False, "recorded": 0, "jobs": jobs}
            lines += found or [{"table": experiment.key, "profile": profile, **empty}]
    return pd.DataFrame(lines).set_index(["table", "profile"])


def _by_device(records: list[dict]) -> dict[str, list[dict]]:
    found: dict[str, list[dict]] = {}
    for entry in records:
        name, threads = entry["machine"]["device"], entry["machine"]["threads"]
        device = name if on_gpu(entry) else f"{name}, {threads} thread{'s' if threads > 1 else ''}"
        found.setdefault(device, []).append(entry)
    return found


def _line(experiment: Experiment, profile: str, device: str, twin: bool, records: list[dict]) -> dict:
    seeds = experiment.setting(profile).seeds
    taken = pd.Series([seconds(entry) for entry in records], [entry["row"] for entry in records], dtype=float)
    means = taken.groupby(level=0).mean().reindex([row.name for row in experiment.rows])
    return {
        "table": experiment.key,
        "profile": profile,
        "data": "twin" if twin else "real",
        "device": device,
        "GPU": on_gpu(records[0]),
        "recorded": len(records),
        "jobs": len(experiment.rows) * seeds,
        "hours": taken.sum() / 3600,
        "shortest [min]": taken.min() / 60,
        "longest [min]": taken.max() / 60,
        "all [h]": float(np.sum(means.to_numpy())) * seeds / 3600,
    }


def told(found: pd.DataFrame) -> list[str]:
    """The GPU hours of :func:`costs` in a sentence a table and profile, or that a table has no record on a GPU."""
    sentences = []
    for key in found.index.unique("table"):
        lines = found.loc[key].query("GPU")
        if lines.empty:
            sentences.append(f"{key}: no record on a GPU, so nothing can be said of GPU hours.")
        for profile, line in lines.iterrows():
            known = line["recorded"] and not np.isnan(line["all [h]"])
            whole = f"all {line['jobs']} jobs take {line['all [h]']:.2f}" if known else "some rows have no record"
            sentences.append(
                f"{key}, profile {profile}, {line['data']}: {line['hours']:.2f} GPU hours for {line['recorded']} jobs, "
                f"one after the other on one {line['device']}; {whole}."
            )
    return sentences
