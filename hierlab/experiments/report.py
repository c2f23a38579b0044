"""Published beside ours: means with intervals over seeds, and what becomes of each claim."""

import contextlib
import json
import math
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy import stats

from .. import plot
from . import record
from .define import Experiment, Measure
from .record import stored_path

AGREES, DISAGREES, UNDECIDED = "agrees", "disagrees", "undecided"
COLOURS = {AGREES: "#0072B2", DISAGREES: "#D55E00", UNDECIDED: "0.45"}
SHOWN = ("paper", "gpu", "laptop")  # the profiles whose numbers are shown, from the largest
FEW = 5  # below so many seeds there is nothing to resample: Student's t instead
RESAMPLES = 20_000
TALLEST = 14.0  # inches of a picture


class Estimate(NamedTuple):
    """A mean over ``n`` seeds, the ``low`` and ``high`` end of its interval (NaN for one seed), and the method."""

    mean: float
    low: float
    high: float
    n: int
    method: str


def interval(values: np.ndarray, confidence: float = 0.95) -> tuple[float, float]:
    """Mean and half-width of Student's t interval over seeds; the half-width is NaN for fewer than two values."""
    values = np.asarray(values, float)
    if len(values) < 2:
        return float(values.mean()) if len(values) else float("nan"), float("nan")
    half = stats.t.ppf((1 + confidence) / 2, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values))
    return float(values.mean()), float(half)


def estimate(values: np.ndarray, confidence: float = 0.95) -> Estimate:
    """The mean over seeds with its interval: a bootstrap's from ``FEW`` seeds on, else Student's t.

    Rows are compared by the estimate of their differences, seed by seed. The resamples are the same in every call, so
    that equal records give equal reports.

    With few seeds the plain percentile bootstrap is much too narrow, and BCa no better: of 95 % intervals over five
    normal values, hardly 85 % hold the mean. Resampling n values draws from a spread that is √((n - 1)/n) too small,
    and knows nothing of the t distribution's tails. So the percentiles are moved outwards to Φ(∓ t √(n/(n - 1))), t
    that of Student's interval: the expanded percentile bootstrap (T. C. Hesterberg, What Teachers Should Know About the
    Bootstrap, The American Statistician 69, 2015). It keeps the bootstrap's asymmetry, tends to the plain one for many
    seeds, and holds the mean of five normal values in 93 % of cases. It never reaches beyond the least and the largest
    value, so that five differences of one sign always leave out zero: by chance alone, that happens once in sixteen
    times.
    """
    values = np.asarray(values, float)
    mean, half = interval(values, confidence)
    if len(values) < FEW:
        method = "Student's t" if len(values) > 1 else "none"
        return Estimate(mean, mean - half, mean + half, len(values), method)
    drawn = np.random.default_rng(0).integers(len(values), size=(RESAMPLES, len(values)))
    tail = expanded(len(values), confidence)
    low, high = np.quantile(values[drawn].mean(1), [tail, 1 - tail])
    return Estimate(mean, float(low), float(high), len(values), "bootstrap")


def expanded(n: int, confidence: float = 0.95) -> float:
    """The share of resampled means that :func:`estimate` leaves out on either side, for ``n`` seeds."""
    return float(stats.norm.cdf(stats.t.ppf((1 - confidence) / 2, n - 1) * math.sqrt(n / (n - 1))))


def verdict(gain: Estimate) -> str:
    """What the estimate of a claimed gain says of it: nothing where its interval holds zero, or there is none."""
    if not (gain.low > 0 or gain.high < 0):
        return UNDECIDED
    return AGREES if gain.mean > 0 else DISAGREES


def newest(records: list[dict]) -> list[dict]:
    """The last record of every row and seed, of those on the data and in the setting of the last one.

    A table is of one set of data and one size of runs; those of an earlier twin or of fewer steps are passed over.
    """
    if not records:
        return []
    kinds = [json.dumps([record.told(entry["data"]), _size(entry)], sort_keys=True) for entry in records]
    last = {(r["row"], r["seed"]): r for r, kind in zip(records, kinds, strict=True) if kind == kinds[-1]}
    return list(last.values())


def _size(entry: dict) -> list:
    """Width, depth, steps and batch of a run; from its parameters where the record is older than its setting."""
    if "setting" in entry:
        return [entry["setting"][name] for name in ("width", "depth", "steps", "batch")]
    parameters = entry["parameters"]
    recipe = parameters.get("recipe", {})
    return [parameters.get("width"), parameters.get("depth"), recipe.get("steps"), recipe.get("batch_size")]


def scores(experiment: Experiment, records: list[dict], measure: Measure | None = None) -> pd.DataFrame:
    """A measure (by default the first) in the table's unit: one line a seed, one column a row, NaN for missing runs."""
    measure = measure or experiment.measure()
    rows = [row.name for row in experiment.rows]
    cells = {(r["seed"], r["row"]): measure.of(r) for r in records}
    if not cells:
        return pd.DataFrame(columns=rows, dtype=float)
    return pd.Series(cells).unstack().reindex(columns=rows)


def table(experiment: Experiment, records: list[dict]) -> pd.DataFrame:
    """One line a row and measure: published, ours with its 95 % interval, how that was found, and n, the seeds.

    Twin or real stands in the head of our column.
    """
    printed, source = experiment.published_scores(), origin(records)
    lines = []
    for measure in experiment.measures:
        ours = scores(experiment, records, measure)
        for row in experiment.rows:
            found = estimate(ours[row.name].dropna())
            lines.append(
                {
                    "row": row.label,
                    **_several(experiment, measure),
                    "published": printed.loc[row.name, measure.column],
                    f"ours ({source})": found.mean,
                    "from": found.low,
                    "to": found.high,
                    "n": found.n,
                    "interval": found.method,
                }
            )
    return pd.DataFrame(lines).set_index("row")


def _several(experiment: Experiment, measure: Measure) -> dict:
    """The column that names the measure, where there are several."""
    return {"measure": f"{measure.column} [{measure.unit}]"} if len(experiment.measures) > 1 else {}


def gains(experiment: Experiment, records: list[dict]) -> list[tuple[float, Estimate]]:
    """The gain of every claim: as published, and ours, paired by seed; above zero where the claim holds."""
    printed, found = experiment.published_scores(), []
    for claim in experiment.claims:
        measure = experiment.measure(claim.measure)
        sign = 1 if measure.higher else -1
        ours = scores(experiment, records, measure)
        theirs = printed.loc[claim.better, measure.column] - printed.loc[claim.worse, measure.column]
        paired = (sign * (ours[claim.better] - ours[claim.worse])).dropna()
        found.append((round(sign * theirs, 4), estimate(paired)))
    return found


def claims(experiment: Experiment, records: list[dict]) -> pd.DataFrame:
    """Each claim: the published gain, ours (paired by seed) with its interval, n, and whether the direction agrees.

    "agrees" or "disagrees" when the 95 % interval of the paired differences leaves out zero, else "undecided".
    """
    lines = []
    for claim, (published, ours) in zip(experiment.claims, gains(experiment, records), strict=True):
        lines.append(
            {
                "claim": claim.text,
                **_several(experiment, experiment.measure(claim.measure)),
                "published gain": published,
                f"our gain ({origin(records)})": ours.mean,
                "from": ours.low,
                "to": ours.high,
                "n": ours.n,
                "interval": ours.method,
                "direction": verdict(ours),
            }
        )
    return pd.DataFrame(lines).set_index("claim")


def counts(experiment: Experiment, records: list[dict]) -> dict[str, int]:
    """How many claims agree, disagree, and are undecided."""
    found = [verdict(ours) for _, ours in gains(experiment, records)]
    return {name: found.count(name) for name in (AGREES, DISAGREES, UNDECIDED)}


def methods(experiment: Experiment, records: list[dict]) -> str:
    """One sentence that says how the intervals of this report were found."""
    counted = scores(experiment, records).count()
    few = counted.max() < FEW if len(counted) else True
    if few:
        return f"Intervals: 95 %, Student's t over seeds, because with fewer than {FEW} there is nothing to resample."
    rest = f"; Student's t below {FEW} seeds" if counted.min() < FEW else ""
    kind = "expanded percentile bootstrap over seeds, because the plain one is too narrow for so few"
    return f"Intervals: 95 %, {kind} ({RESAMPLES:,} resamples){rest}."


@plot.styled
def figure(experiment: Experiment, records: list[dict]) -> plot.Picture:
    """Each row's score, published and ours, in a panel each: a dot a seed, the mean with its 95 % interval.

    With several measures, a pair of panels each, one below the other; of many rows the first measure alone, because a
    picture of all would be taller than anyone scrolls.
    """
    printed = experiment.published_scores()
    labels = [row.label for row in experiment.rows]
    places = np.arange(len(labels))
    high = 0.9 + 0.36 * len(labels)
    measures = experiment.measures[: max(1, int(TALLEST // high))]
    drawing = plot.picture(8, high * len(measures))
    grid = drawing.subplots(len(measures), 2, sharey=True, squeeze=False)
    for (left, right), measure in zip(grid, measures, strict=True):
        ours = scores(experiment, records, measure)
        left.plot(printed[measure.column], places, "o", color="0.2")
        for place, row in zip(places, experiment.rows, strict=True):
            values = ours[row.name].dropna().to_numpy()
            found = estimate(values)
            right.plot(values, np.full(len(values), place), "o", color="#0072B2", markersize=4, alpha=0.45)
            if found.n > 1:
                _bar(right, found, place, "#0072B2")
        head = f"ours ({origin(records)}), n = {ours.count().max() if len(ours) else 0}"
        for ax, title in ((left, "published"), (right, head)):
            ax.set(title=title, xlabel=f"{measure.column} [{measure.unit}]")
            ax.grid(axis="x")
        left.set_yticks(places, labels)
    grid[0, 0].set_ylim(len(labels) - 0.5, -0.5)
    drawing.set_label(f"{experiment.title}: the published score of every row beside ours with its interval.")
    return drawing


@plot.styled
def differences(experiment: Experiment, records: list[dict]) -> plot.Picture:
    """The gain that each claim is about: published, and ours with its 95 % interval, right of zero where it holds."""
    found = gains(experiment, records)
    places = np.arange(len(found))
    drawing = plot.picture(8, 1.2 + 0.4 * len(found))
    ax = drawing.add_subplot()
    ax.axvline(0, color="0.35", linewidth=0.8)
    ax.plot([published for published, _ in found], places - 0.16, "o", color="0.2", label="published")
    shown = set()
    for place, (_, ours) in zip(places, found, strict=True):
        said = verdict(ours)
        if not math.isnan(ours.mean):
            label = f"ours ({origin(records)}): {said}" if said not in shown else None
            shown.add(said)
            ax.plot([ours.mean], [place + 0.16], "D", color=COLOURS[said], markersize=5, label=label)
            if ours.n > 1:
                _bar(ax, ours, place + 0.16, COLOURS[said])
    labels = [claim.text for claim in experiment.claims]
    ax.set_yticks(places, labels)
    ax.set_ylim(len(found) - 0.5, -0.5)
    units = {experiment.measure(claim.measure).unit for claim in experiment.claims}
    ax.set_xlabel(f"gain [{'points' if units == {'%'} else ', '.join(sorted(units))}]")
    ax.grid(axis="x")
    drawing.legend(loc="outside lower center", ncols=4)
    verdicts = counts(experiment, records)
    said = ", ".join(f"{n} {name}" for name, n in verdicts.items() if n)
    drawing.set_label(f"{experiment.title}: the gain of each claim, published and ours with its interval; {said}.")
    return drawing


def _bar(ax, found: Estimate, place: float, color: str) -> None:
    ends = [[found.mean - found.low], [found.high - found.mean]]
    ax.errorbar([found.mean], [place], xerr=ends, fmt="D", color=color, capsize=4, markersize=5)


def best_stored(experiment: Experiment, folder: Path, twin: bool | None = None) -> tuple[str | None, list[dict]]:
    """The records of the largest profile (paper, gpu, laptop) that ``folder`` holds some for; never those of smoke.

    ``folder`` is ``book/results``; the files are named ``<paper>/<table>.<profile>.jsonl``, and those on real data
    ``<paper>/<table>.<profile>.real.jsonl``. ``twin`` asks for the one kind or the other; None takes real data where
    a profile has both. The two are never in one list: :func:`origin` says which it is. Of every row and seed the
    newest (:func:`newest`).
    """
    for profile in SHOWN:
        for kind in (False, True) if twin is None else (twin,):
            records = stored(experiment, folder, profile, kind)
            if records:
                return profile, records
    return None, []


def stored(experiment: Experiment, folder: Path, profile: str, twin: bool, tag: str = "") -> list[dict]:
    """The newest records of one profile below ``folder``, on the twin or on real data; of overridden runs by their tag.

    ValueError for a file that holds the one kind under the other's name.
    """
    path = stored_path(experiment, folder, profile, tag, twin)
    records = newest(record.read(path))
    if any(entry["data"]["twin"] is not twin for entry in records):
        holds, means = ("real data", "the twin") if twin else ("the twin", "real data")
        raise ValueError(f"{path} holds runs on {holds} under a name that means {means}; rename it.")
    return records


def provenance(records: list[dict]) -> pd.DataFrame:
    """Where the numbers come from: what the records have in common, or all that they have where they differ."""
    facts = {
        "profile": lambda r: r["profile"],
        "overrides": lambda r: ", ".join(f"{k} = {v}" for k, v in r.get("overrides", {}).items()) or "none",
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
        "seconds of training": lambda r: round(r["cost"]["seconds"]),
        "images a second": lambda r: round(r["cost"]["images_per_second"] or 0),
        "peak memory": lambda r: f"{r['cost']['peak_memory'] / 1e9:.1f} GB",
        "parameters": lambda r: f"{r['cost']['params'] / 1e6:.2f} M",
        "GMAC an image": lambda r: f"{r['cost']['gmac']:.2f}",
    }
    rows = {}
    for name, fact in facts.items():
        values = set()
        for entry in records:
            with contextlib.suppress(KeyError):  # a runner need not have every fact
                values.add(fact(entry))
        if not values:
            continue
        values = sorted(values)
        many = isinstance(values[0], int) and len(values) > 4
        rows[name] = f"{values[0]} to {values[-1]}" if many else ", ".join(map(str, values))
    return pd.DataFrame({"": rows})


def origin(records: list[dict]) -> str:
    """ "twin" or "real" when all records agree, for the heads of columns; ValueError when they mix."""
    kinds = {"twin" if record["data"]["twin"] else "real" for record in records}
    if len(kinds) > 1:
        raise ValueError("These records mix runs on the twin and on real data; a table holds one or the other.")
    return kinds.pop() if kinds else "no runs yet"
