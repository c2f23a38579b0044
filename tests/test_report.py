"""Reports: intervals against SciPy and by hand, verdicts, several measures, pages of one table and of all."""

import dataclasses
import html
import math
import re

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from hierlab.experiments import costs, pages, published, record, report
from hierlab.experiments.catalog import EXPERIMENTS, find
from hierlab.experiments.define import Claim, Measure, Row, Setting
from hierlab.experiments.hierars import TABLE_07, TABLE_10
from hierlab.experiments.report import AGREES, DISAGREES, UNDECIDED

BOTH, ONE = "both", "coarse-to-fine"


def made(row, seed, levels, experiment=TABLE_07, profile="laptop", fingerprint="f" * 16, **more):
    """A complete record; ``levels`` the mIoU of L1, L2 and L3, or of L3 alone."""
    levels = [0.9, 0.8, levels] if isinstance(levels, float) else levels
    return {
        "experiment": experiment.key,
        "row": row,
        "profile": profile,
        "seed": seed,
        "hash": f"{row}{seed}",
        "overrides": {},
        "parameters": {"network": "n", "width": 1.0, "depth": 1.0, "recipe": {"steps": 1, "batch_size": 2}},
        "data": {"twin": True, "name": "d", "fingerprint": fingerprint, "train": 4, "validation": 2},
        "metrics": {"levels": [{"level": f"L{i + 1}", "mIoU": value} for i, value in enumerate(levels)]},
        "losses": {},
        "cost": {
            "seconds": 60.0,
            "job_seconds": 61.0,
            "images_per_second": 10.0,
            "peak_memory": 2_000_000_000,
            "params": 1_000_000,
            "gmac": 0.25,
            **more,
        },
        **record.provenance(),
    }


def test_from_five_seeds_on_the_interval_is_an_expanded_percentile_bootstrap():
    values = np.array([3.1, 2.7, 4.4, 3.9, 3.3, 2.9, 3.6])
    found = report.estimate(values)
    assert found.method == "bootstrap" and found.n == 7 and found.mean == pytest.approx(values.mean())
    tail = stats.norm.cdf(stats.t.ppf(0.025, 6) * math.sqrt(7 / 6))
    theirs = stats.bootstrap(
        (values,),
        np.mean,
        n_resamples=50_000,
        confidence_level=1 - 2 * tail,
        method="percentile",
        rng=np.random.default_rng(5),
    ).confidence_interval
    assert found.low == pytest.approx(theirs.low, abs=0.03) and found.high == pytest.approx(theirs.high, abs=0.03)
    assert report.estimate(values) == found
    tail = stats.norm.cdf(stats.t.ppf(0.025, 4) * math.sqrt(5 / 4))
    exact = np.quantile(np.mean(np.stack(np.meshgrid(*[values[:5]] * 5)).reshape(5, -1), 0), [tail, 1 - tail])
    assert report.estimate(values[:5])[1:3] == pytest.approx(tuple(exact), abs=0.03)  # all 3,125 resamples
    assert report.expanded(1000) == pytest.approx(0.025, abs=2e-4)  # the plain one's, for many


def test_the_interval_holds_the_mean_as_often_as_it_says(monkeypatch):
    """Of five normal values, in nearly 95 of 100 cases; the plain percentile bootstrap does so in hardly 85."""
    monkeypatch.setattr(report, "RESAMPLES", 4000)
    rng = np.random.default_rng(0)
    drawn = rng.normal(size=(600, 5))

    def held(found) -> float:
        return np.mean([estimate.low <= 0 <= estimate.high for estimate in found])

    assert 0.91 < held(map(report.estimate, drawn)) < 0.97
    assert 0.93 < held(map(report.estimate, drawn[:, :4])) < 0.97  # Student's
    monkeypatch.setattr(report, "expanded", lambda n, confidence: 0.025)
    assert held(map(report.estimate, drawn)) < 0.87


def test_with_fewer_seeds_it_is_students_and_says_so():
    found = report.estimate([1.0, 2.0, 4.0])
    half = stats.t.ppf(0.975, 2) * math.sqrt(7 / 3) / math.sqrt(3)
    assert (found.low, found.high) == pytest.approx((7 / 3 - half, 7 / 3 + half)) and found.method == "Student's t"
    alone = report.estimate([2.0])
    assert alone.mean == 2.0 and math.isnan(alone.low) and alone.method == "none"
    assert math.isnan(report.estimate([]).mean) and report.estimate([]).n == 0
    few = [made(row.name, seed, 0.5) for row in TABLE_07.rows for seed in range(3)]
    assert "Student's t" in report.methods(TABLE_07, few) and "bootstrap" not in report.methods(TABLE_07, few)
    many = few + [made(BOTH, seed, 0.5) for seed in range(3, 6)]
    assert "bootstrap" in report.methods(TABLE_07, many) and "Student's t below 5" in report.methods(TABLE_07, many)


def test_rows_are_compared_seed_by_seed():
    rng = np.random.default_rng(1)
    luck = rng.normal(0, 0.05, 6)  # of the seed, shared by both rows, and much larger than what lies between them
    gain = np.array([0.010, 0.012, 0.009, 0.011, 0.013, 0.010])
    records = [made(ONE, seed, 0.5 + luck[seed]) for seed in range(6)]
    records += [made(BOTH, seed, 0.5 + luck[seed] + gain[seed]) for seed in range(6)]
    records += [made(BOTH, 6, 0.9)]  # a seed that one row has not run
    line = report.claims(TABLE_07, records).loc["Fusion both ways beats coarse to fine alone"]
    assert line["our gain (twin)"] == pytest.approx(100 * gain.mean()) and line["n"] == 6
    assert line["interval"] == "bootstrap" and line["direction"] == AGREES
    drawn = np.random.default_rng(0).integers(6, size=(report.RESAMPLES, 6))
    assert line["from"] == pytest.approx(np.quantile(100 * gain[drawn].mean(1), report.expanded(6)))
    table = report.table(TABLE_07, records).loc["BHCCM both ways, L_HCE"]
    assert table["to"] - table["from"] > 2 and table["published"] == 73.75


@pytest.mark.parametrize(
    "gains, verdict",
    [
        ([0.01, 0.02, 0.01, 0.03, 0.02], AGREES),
        ([-0.01, -0.02, -0.01, -0.03, -0.02], DISAGREES),
        ([0.01, -0.02, 0.01, -0.03, 0.02], UNDECIDED),
        ([0.01], UNDECIDED),
        ([], UNDECIDED),
        ([0.01, 0.02], UNDECIDED),
        ([0.010, 0.011, 0.0105], AGREES),
        ([0.01] * 5, AGREES),
        ([0.0] * 5, UNDECIDED),
    ],
)
def test_verdicts(gains, verdict):
    records = [made(row, n, 0.5 + g * (row == BOTH)) for n, g in enumerate(gains) for row in (ONE, BOTH)]
    found = report.claims(TABLE_07, records)["direction"]
    assert found["Fusion both ways beats coarse to fine alone"] == verdict
    assert sum(report.counts(TABLE_07, records).values()) == len(TABLE_07.claims)


def test_a_table_of_several_measures_has_a_line_each():
    records = [made("without", seed, [0.90, 0.80, 0.70 + seed / 100], TABLE_10) for seed in range(5)]
    records += [made("jsps", seed, [0.90, 0.79, 0.71 + seed / 100], TABLE_10) for seed in range(5)]
    table = report.table(TABLE_10, records)
    assert table["measure"].tolist() == ["L3 [%]", "L3 [%]", "L2 [%]", "L2 [%]", "L1 [%]", "L1 [%]"]
    assert table["published"].tolist() == [74.71, 74.77, 83.30, 83.35, 94.33, 94.39]
    assert table["ours (twin)"].tolist() == pytest.approx([72, 73, 80, 79, 90, 90])
    claims = report.claims(TABLE_10, records)
    assert claims["direction"].tolist() == [AGREES, DISAGREES, UNDECIDED]
    assert claims["published gain"].tolist() == pytest.approx([0.06, 0.05, 0.06])
    assert len(report.figure(TABLE_10, records).axes) == 6


def test_less_can_be_better_and_methods_may_stand_in_columns():
    measures = (Measure("rice", cell=("rice", "{row} IoU")),)
    columns = dataclasses.replace(
        TABLE_07, published="stsnet-table-07", rows=(Row("ConvLSTM", "ConvLSTM"),), claims=(), measures=measures
    )
    printed = columns.published_table()
    assert columns.published_scores().loc["ConvLSTM", "rice"] == printed.loc["rice", "ConvLSTM IoU"]
    with pytest.raises(ValueError, match="no number at row 'ConvLSTM', column 'rice'"):
        dataclasses.replace(columns, measures=(Measure("rice"),)).published_scores()
    measure = Measure("params", ("cost", "params"), scale=1e-6, unit="M", higher=False)
    if "ConvLSTM" in printed.T.index and "rice" in printed.T.columns:
        assert columns.published_scores().loc["ConvLSTM", "rice"] == float(printed.loc["rice", "ConvLSTM"])
    smaller = dataclasses.replace(
        TABLE_07,
        measures=(dataclasses.replace(measure, column="mIoU"),),
        claims=(Claim("smaller", better=BOTH, worse=ONE),),
    )
    records = [made(ONE, 0, 0.5, params=3_000_000), made(BOTH, 0, 0.5, params=1_000_000)]
    assert report.claims(smaller, records)["our gain (twin)"].tolist() == [2.0]
    with pytest.raises(ValueError, match="does not measure 'OA'; it has mIoU"):
        TABLE_07.measure("OA")
    with pytest.raises(ValueError, match=r"seed 0, has no metrics\.levels\.7"):
        Measure("x", ("metrics", "levels", 7, "mIoU")).of(records[0])
    assert math.isnan(Measure("x").of(made(ONE, 0, [None])))


def test_the_newest_record_counts_and_data_never_mix():
    old = [made(row.name, seed, 0.1, fingerprint="0" * 16) for row in TABLE_07.rows for seed in range(2)]
    new = [made(BOTH, 0, 0.2), made(BOTH, 0, 0.3)]
    assert report.newest(old + new) == [new[1]] and report.newest([]) == [] and report.newest(old) == old
    new[0]["data"] |= {"twin_version": "9", "twin_seed": 0}  # said besides; the fingerprint is the same
    assert report.newest([made(ONE, 0, 0.1), new[0]])[0]["row"] == ONE


def test_runs_of_another_size_never_mix():
    """Where a profile has changed, what was run before is no part of the table; older records tell by parameters."""
    size = {"width": 1.0, "depth": 1.0, "steps": 1, "batch": 2, "lr": None, "precision": None}
    old, same = made(ONE, 0, 0.1), made(BOTH, 0, 0.2) | {"setting": size}
    assert report.newest([old, same]) == [old, same]
    longer = made(BOTH, 0, 0.2) | {"setting": size | {"steps": 3}}
    assert report.newest([old, longer]) == [longer]


def test_records_of_jobs_are_checked_in_full():
    whole = made(BOTH, 0, 0.5)
    assert record.validate(whole) is whole
    for path, value, said in [
        (("cost", "gmac"), "many", "'cost.gmac' of a run record is a number; got a text"),
        (("cost", "params"), 1.5, "'cost.params' of a run record is a whole number; got a number"),
        (("seed",), True, "'seed' of a run record is a whole number; got true or false"),
        (("data", "twin"), "yes", "'data.twin' of a run record is true or false; got a text"),
        (("metrics", "levels"), [], "'metrics.levels' of a run record is empty"),
        (("metrics", "levels"), [{}], "needs 'metrics.levels.0.level'"),
        (("metrics", "levels"), [3], "named fields; got a whole number"),
        (("losses",), None, "'losses' of a run record is named fields; got null"),
        (("cost", "images_per_second"), "fast", "a number or null; got a text"),
    ]:
        broken = {**whole, path[0]: {**whole[path[0]], path[1]: value} if len(path) > 1 else value}
        with pytest.raises(ValueError, match=re.escape(said)):
            record.validate(broken)
    for field in ("overrides", "losses"):
        with pytest.raises(ValueError, match=f"needs '{field}'"):
            record.validate({name: value for name, value in whole.items() if name != field})
    with pytest.raises(ValueError, match=r"needs 'cost\.job_seconds'"):
        record.validate({**whole, "cost": {k: v for k, v in whole["cost"].items() if k != "job_seconds"}})
    with pytest.raises(ValueError, match="named fields; got a list"):
        record.validate([1])
    with pytest.raises(ValueError, match=r"needs 'setting\.depth'"):
        record.validate({**whole, "setting": {"width": 1.0}})


@pytest.fixture
def folder(tmp_path):
    """A folder of records: Table VII at laptop profile, all rows with five seeds, and one of smoke."""
    for seed in range(5):
        for place, row in enumerate(TABLE_07.rows):
            path = report.stored_path(TABLE_07, tmp_path, "laptop")
            record.append(path, made(row.name, seed, 0.5 + place / 10 + seed / 100))
    record.append(report.stored_path(TABLE_10, tmp_path, "smoke"), made("jsps", 0, 0.5, TABLE_10, "smoke"))
    return tmp_path


REAL, TWIN = "on real data", "on the twin"


@pytest.fixture
def both_kinds(folder):
    """The folder with two seeds of two rows on real data besides."""
    for seed in range(2):
        for row in (ONE, BOTH):
            entry = made(row, seed, 0.7, profile="paper")
            entry["data"]["twin"] = False
            record.append(report.stored_path(TABLE_07, folder, "paper", twin=False), entry)
    return folder


def test_the_overview_has_every_published_table(folder):
    lines = pages.overview(folder)
    assert len(lines) == 30 and set(lines["experiment"]) - {"–"} == set(EXPERIMENTS)
    assert lines.loc["HieraRS VII", TWIN] == "laptop, 6 of 6 rows, n = 5: agrees 4, disagrees 1"
    assert (lines[REAL] == "not run").all() and (lines.drop("HieraRS VII")[TWIN] == "not run").all()


def test_twin_and_real_stand_in_columns_of_their_own(both_kinds):
    line = pages.overview(both_kinds).loc["HieraRS VII"]
    assert line[REAL] == "paper, 2 of 6 rows, n = 2: undecided 5" and line[TWIN].startswith("laptop, 6 of 6 rows")
    for asked, profile, head in ((None, "paper", "real"), (False, "paper", "real"), (True, "laptop", "twin")):
        found, records = report.best_stored(TABLE_07, both_kinds, asked)
        assert found == profile and report.origin(records) == head
        assert f"ours ({head})" in report.table(TABLE_07, records)
    real, twin = pages.stored(TABLE_07, both_kinds)
    assert (real[0], len(real[1]), twin[0], len(twin[1])) == ("paper", 4, "laptop", 30)
    assert pages.stored(TABLE_07, both_kinds, "laptop") == [twin] and pages.stored(TABLE_07, both_kinds, "gpu") == []
    whole = pages.all_tables(both_kinds)
    reals, twins = whole.index("On real data, profile paper"), whole.index("On the twin, profile laptop")
    assert reals < whole.index("ours (real)") < twins < whole.index("ours (twin)")


def test_a_file_under_the_other_kinds_name_is_refused(folder):
    path = report.stored_path(TABLE_07, folder, "laptop")
    path.rename(report.stored_path(TABLE_07, folder, "laptop", twin=False))
    with pytest.raises(ValueError, match=r"table-07\.laptop\.real\.jsonl holds runs on the twin"):
        report.best_stored(TABLE_07, folder)


def test_pages_are_whole_and_say_what_they_show(folder):
    page = pages.page(TABLE_07, pages.stored(TABLE_07, folder))
    for said in ("HieraRS, Table VII", "73.75", "On the twin, profile laptop", "expanded percentile", "ours (twin)"):
        assert said in page
    assert page.count("<img") == 2 == len(re.findall(r'src="data:image/png;base64,[^"]+" alt="[^"]{40,}"', page))
    assert "http" not in page and page.count("<table") == page.count("</table>") == 3
    whole = pages.all_tables(folder)
    assert whole.count(">not run<") == 59 and 'href="#hierars-table-07"' in whole and 'id="hierars-table-07"' in whole
    assert "30 tables of four papers, 1 of them with records" in whole
    broken = published.explained()
    assert f"{len(broken)} printed numbers cannot be" in whole and len(broken) > 0
    assert html.escape(broken["explanation"].iloc[0]) in whole


def test_numbers_of_smoke_are_not_shown(folder):
    with pytest.raises(ValueError, match="not shown"):
        pages.stored(TABLE_10, folder, "smoke")
    assert pages.stored(TABLE_10, folder) == [] and pages.stored(TABLE_07, folder, "gpu") == []


def test_pictures_tell_what_they_show(folder):
    ((_, records),) = pages.stored(TABLE_07, folder)
    drawn = report.differences(TABLE_07, records)
    assert "4 agrees, 1 disagrees" in drawn.get_label() and "Table VII" in drawn.get_label()
    assert [tick.get_text() for tick in drawn.axes[0].get_yticklabels()] == [claim.text for claim in TABLE_07.claims]
    assert report.differences(TABLE_07, []).axes and report.figure(TABLE_07, []).axes


def test_provenance_leaves_out_what_a_runner_does_not_have():
    entry = made(BOTH, 0, 0.5)
    del entry["parameters"]["width"]
    told = report.provenance([entry])[""]
    assert "network" not in told.index and told["peak memory"] == "2.0 GB" and told["overrides"] == "none"
    assert isinstance(report.provenance([entry]), pd.DataFrame)


def test_unknown_experiments_list_what_there_is():
    with pytest.raises(ValueError, match="hierars/table-07, hierars/table-10"):
        find("hierars/table-99")
    with pytest.raises(ValueError, match="width is 0"):
        Setting(width=0, depth=1, steps=1, batch=1, seeds=1)


def test_costs_follow_from_records_and_are_nowhere_guessed(both_kinds):
    found = costs.costs(both_kinds)
    seven = found.loc["hierars/table-07"]
    laptop, paper = seven.loc["laptop"], seven.loc["paper"]
    assert laptop["data"] == "twin" and laptop["recorded"] == 30 == laptop["jobs"] and not laptop["GPU"]
    assert laptop["hours"] == pytest.approx(30 * 61 / 3600) == laptop["all [h]"] and "thread" in laptop["device"]
    assert paper["data"] == "real" and paper["recorded"] == 4 and math.isnan(paper["all [h]"])  # four rows have none
    nothing = found[found["device"] == costs.NO_RECORD]
    assert len(found) == 3 * len(EXPERIMENTS) == len(nothing) + 2 and nothing["hours"].isna().all()
    assert [said.partition(" on a GPU")[0] for said in costs.told(found)] == [
        f"{key}: no record" for key in EXPERIMENTS
    ]


def test_costs_keep_devices_apart(tmp_path):
    """Of two rows on a GPU one took a minute and one three, so that all rows and seeds take their mean each."""
    path = report.stored_path(TABLE_10, tmp_path, "gpu")
    for row, seconds in (("without", 60.0), ("jsps", 180.0)):
        entry = made(row, 0, 0.5, TABLE_10, "gpu", job_seconds=seconds, peak_memory_of="cuda")
        entry["machine"] = {"device": "a GPU", "threads": 8, "system": "Linux"}
        record.append(path, entry)
    slow = made("jsps", 1, 0.5, TABLE_10, "gpu")
    del slow["cost"]["job_seconds"], slow["hash"]  # from before jobs
    record.append(path, slow)
    found = costs.costs(tmp_path).loc[("hierars/table-10", "gpu")].set_index("device")
    seeds = TABLE_10.setting("gpu").seeds
    assert found.loc["a GPU", "all [h]"] == pytest.approx(seeds * 4 / 60) and found.loc["a GPU", "GPU"]
    assert (found.loc["a GPU", "shortest [min]"], found.loc["a GPU", "longest [min]"]) == (1, 3)
    said = costs.told(costs.costs(tmp_path))
    place = list(EXPERIMENTS).index(TABLE_10.key)
    told = said.pop(place)
    assert told.startswith(f"{TABLE_10.key}, profile gpu, twin: 0.07 GPU hours for 2 jobs, one after the other on")
    assert told.endswith(f"all {2 * seeds} jobs take {seeds * 4 / 60:.2f}.")
    assert all("no record on a GPU" in line for line in said) and len(said) == len(EXPERIMENTS) - 1
    (other,) = set(found.index) - {"a GPU"}
    assert found.loc[other, "hours"] == pytest.approx(1 / 60) and math.isnan(found.loc[other, "all [h]"])
