"""Published beside ours: means with intervals over seeds, and what becomes of each claim."""

import numpy as np
import pandas as pd
from scipy import stats

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


def origin(records: list[dict]) -> str:
    """ "twin" or "real" when all records agree, for the heads of columns; ValueError when they mix."""
    kinds = {"twin" if record["data"]["twin"] else "real" for record in records}
    if len(kinds) > 1:
        raise ValueError("These records mix runs on the twin and on real data; a table holds one or the other.")
    return kinds.pop() if kinds else "no runs yet"
