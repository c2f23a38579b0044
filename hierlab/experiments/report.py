"""Published beside ours: means with intervals over seeds, and what becomes of each claim."""

from pathlib import Path

import numpy as np
import pandas as pd
from scipy import stats

from .. import plot
from . import record
from .define import Experiment

AGREES, DISAGREES, UNDECIDED = "agrees", "disagrees", "undecided"


def interval(values: np.ndarray, confidence: float = 0.95) -> tuple[float, float]:
    """Mean and half-width of Student's t interval over seeds; the half-width is NaN for fewer than two values."""
    values = np.asarray(values, float)
    if len(values) < 2:
        return float(values.mean()) if len(values) else float("nan"), float("nan")
    half = stats.t.ppf((1 + confidence) / 2, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values))
    return float(values.mean()), float(half)


def scores(experiment: Experiment, records: list[dict], level: int | None = None) -> pd.DataFrame:
    """The experiment's measure in percent, one line a seed, one column a row (NaN where a run is missing)."""
    own_level, metric = experiment.measure
    level = own_level if level is None else level
    cells = {(r["seed"], r["row"]): 100 * r["metrics"]["levels"][level][metric] for r in records}
    if not cells:
        return pd.DataFrame(columns=[row.name for row in experiment.rows], dtype=float)
    frame = pd.Series(cells).unstack()
    return frame.reindex(columns=[row.name for row in experiment.rows])


def table(experiment: Experiment, records: list[dict]) -> pd.DataFrame:
    """One line a row: published, ours as mean and 95 % half-width, and n, the seeds; twin or real in the head."""
    printed = experiment.published_table()[experiment.measure[1]]
    ours = scores(experiment, records)
    source = origin(records)
    lines = []
    for row in experiment.rows:
        values = ours[row.name].dropna().to_numpy()
        mean, half = interval(values)
        lines.append(
            {
                "row": row.label,
                "published": printed[row.name],
                f"ours ({source})": mean,
                "± 95 %": half,
                "n": len(values),
            }
        )
    return pd.DataFrame(lines).set_index("row")


def claims(experiment: Experiment, records: list[dict]) -> pd.DataFrame:
    """Each claim: the published gain, ours (paired by seed) with its interval, n, and whether the direction agrees.

    "agrees" or "disagrees" when the 95 % interval of the paired differences leaves out zero, else "undecided".
    """
    printed = experiment.published_table()[experiment.measure[1]]
    ours = scores(experiment, records)
    lines = []
    for claim in experiment.claims:
        gains = (ours[claim.better] - ours[claim.worse]).dropna().to_numpy()
        mean, half = interval(gains)
        verdict = UNDECIDED if not abs(mean) > half else AGREES if mean > 0 else DISAGREES
        lines.append(
            {
                "claim": claim.text,
                "published gain": round(printed[claim.better] - printed[claim.worse], 2),
                f"our gain ({origin(records)})": mean,
                "± 95 %": half,
                "n": len(gains),
                "direction": verdict,
            }
        )
    return pd.DataFrame(lines).set_index("claim")


def figure(experiment: Experiment, records: list[dict]):
    """Each row's score, published and ours, in a panel each: a dot a seed, the mean with its 95 % interval."""
    printed = experiment.published_table()[experiment.measure[1]]
    ours = scores(experiment, records)
    labels = [row.label for row in experiment.rows]
    places = np.arange(len(labels))
    drawing = plot.picture(8, 0.9 + 0.36 * len(labels))
    left, right = drawing.subplots(1, 2, sharey=True)
    left.plot(printed[[row.name for row in experiment.rows]], places, "o", color="0.2")
    left.set(title="published", xlabel=f"{experiment.measure[1]} [%]")
    for place, row in zip(places, experiment.rows, strict=True):
        values = ours[row.name].dropna().to_numpy()
        mean, half = interval(values)
        right.plot(values, np.full(len(values), place), "o", color="#0072B2", markersize=4, alpha=0.45)
        if len(values) > 1:
            right.errorbar(mean, place, xerr=half, fmt="D", color="#0072B2", capsize=4, markersize=6)
    right.set(title=f"ours ({origin(records)}), n = {ours.count().max()}", xlabel=f"{experiment.measure[1]} [%]")
    left.set_yticks(places, labels)
    left.invert_yaxis()
    for ax in (left, right):
        ax.grid(axis="x", color="0.9")
        ax.spines[["top", "right"]].set_visible(False)
    drawing.set_label(f"{experiment.title}: the published score of every row beside ours with its interval.")
    return drawing


def best_stored(experiment: Experiment, folder: Path) -> tuple[str | None, list[dict]]:
    """The records of the largest profile (paper, gpu, laptop) that ``folder`` holds some for; never those of smoke.

    ``folder`` is ``book/results``; the files are named ``<paper>/<table>.<profile>.jsonl``.
    """
    for profile in ("paper", "gpu", "laptop"):
        records = record.read(stored_path(experiment, folder, profile))
        if records:
            return profile, records
    return None, []


def stored_path(experiment: Experiment, folder: Path, profile: str) -> Path:
    """Where an experiment's records of one profile are kept below ``folder``."""
    return folder / f"{experiment.key}.{profile}.jsonl"


def provenance(records: list[dict]) -> pd.DataFrame:
    """Where the numbers come from: what the records have in common, or all that they have where they differ."""
    facts = {
        "profile": lambda r: r["profile"],
        "seeds": lambda r: r["seed"],
        "network": lambda r: (
            f"{r['parameters']['network']}, width × {r['parameters']['width']}, depth × {r['parameters']['depth']}"
        ),
        "steps × batch": lambda r: f"{r['parameters']['recipe']['steps']} × {r['parameters']['recipe']['batch_size']}",
        "data": lambda r: (
            f"{'twin' if r['data']['twin'] else 'real'}: {r['data']['name']} ({r['data']['fingerprint']}), "
            f"{r['data']['train']} patches to train, {r['data']['validation']} to validate"
        ),
        "device": lambda r: r["machine"]["device"],
        "torch": lambda r: r["versions"]["torch"],
        "commit": lambda r: (r["commit"] or "none")[:10] + (" with changes" if r["dirty"] else ""),
        "date": lambda r: r["date"],
        "seconds a run": lambda r: round(r["cost"]["seconds"]),
    }
    rows = {}
    for name, fact in facts.items():
        values = sorted({fact(r) for r in records})
        many = isinstance(values[0], int) and len(values) > 4
        rows[name] = f"{values[0]} to {values[-1]}" if many else ", ".join(map(str, values))
    return pd.DataFrame({"": rows})


def origin(records: list[dict]) -> str:
    """ "twin" or "real" when all records agree, for the heads of columns; ValueError when they mix."""
    kinds = {"twin" if record["data"]["twin"] else "real" for record in records}
    if len(kinds) > 1:
        raise ValueError("These records mix runs on the twin and on real data; a table holds one or the other.")
    return kinds.pop() if kinds else "no runs yet"
