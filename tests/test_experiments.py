"""Experiments as data: published tables, records that are validated, reports against hand-worked cases."""

import json
import math
import subprocess
from pathlib import Path

import pytest
from scipy import stats

from hierlab.experiments import record
from hierlab.experiments.define import published
from hierlab.experiments.hierars import EXPERIMENTS, TABLE_07
from hierlab.experiments.report import (
    AGREES,
    DISAGREES,
    UNDECIDED,
    best_stored,
    claims,
    figure,
    interval,
    provenance,
    stored_path,
    table,
)
from hierlab.profiles import PROFILES


def fake(row, seed, score, twin=True):
    return {
        "experiment": TABLE_07.key,
        "row": row,
        "profile": "laptop",
        "seed": seed,
        "parameters": {},
        "data": {"twin": twin},
        "metrics": {"levels": [{"mIoU": 0.0}, {"mIoU": 0.0}, {"mIoU": score}]},
        "cost": {},
        **record.provenance(),
    }


def test_every_experiment_names_published_rows_and_every_profile():
    for experiment in EXPERIMENTS.values():
        printed = experiment.published_table()
        assert [row.name for row in experiment.rows] == list(printed.index)
        assert set(experiment.settings) == set(PROFILES)
        for claim in experiment.claims:
            assert {claim.better, claim.worse} <= set(printed.index)


def test_table_07_gains_are_the_differences_of_its_scores():
    printed = published("hierars-table-07")
    gains = printed["mIoU"] - printed["mIoU"]["baseline"]
    assert gains.round(2).drop("baseline").tolist() == printed["gain"].drop("baseline").tolist()


def test_unknown_names_list_what_there_is():
    with pytest.raises(ValueError, match="hierars-table-07"):
        published("hierars-table-99")
    with pytest.raises(ValueError, match="both-hsc"):
        TABLE_07.row("bidirectional")
    with pytest.raises(ValueError, match="laptop"):
        TABLE_07.setting("desktop")


def test_records_are_validated_and_read_back(tmp_path):
    path = tmp_path / "results" / "t.jsonl"
    record.append(path, fake("both", 0, 0.5))
    record.append(path, fake("both", 1, 0.6))
    assert [r["seed"] for r in record.read(path)] == [0, 1] and record.read(tmp_path / "none.jsonl") == []
    broken = fake("both", 2, 0.5)
    del broken["commit"]
    with pytest.raises(ValueError, match="needs 'commit'"):
        record.append(path, broken)
    with pytest.raises(ValueError, match="twin"):
        record.validate({**fake("both", 2, 0.5), "data": {}})
    path.write_text(path.read_text() + json.dumps({"row": 1}) + "\n")
    with pytest.raises(ValueError, match="line 3"):
        record.read(path)


def test_interval_is_students():
    mean, half = interval([1.0, 2.0, 4.0])
    assert mean == pytest.approx(7 / 3)
    assert half == pytest.approx(stats.t.ppf(0.975, 2) * math.sqrt(7 / 3) / math.sqrt(3))
    assert math.isnan(interval([1.0])[1])


def test_report_pairs_by_seed_and_judges_claims():
    scores = {"baseline": [0.50, 0.52, 0.54], "none": [0.40, 0.43, 0.44], "both": [0.50, 0.53, 0.54]}
    scores |= {"both-hsc": [0.49, 0.51, 0.5305], "coarse-to-fine": [0.60, 0.63, 0.64]}
    records = [fake(row, seed, value) for row, values in scores.items() for seed, value in enumerate(values)]
    report = table(TABLE_07, records)
    assert report.loc["flat, L_CE", "ours (twin)"] == pytest.approx(52) and report["n"].tolist() == [3, 3, 3, 0, 3, 3]
    verdicts = claims(TABLE_07, records)["direction"].tolist()
    assert verdicts == [AGREES, DISAGREES, UNDECIDED, UNDECIDED, DISAGREES]
    gain = claims(TABLE_07, records)["our gain (twin)"].iloc[0]
    assert gain == pytest.approx(100 * (0.10 + 0.09 + 0.10) / 3)
    with pytest.raises(ValueError, match="mix"):
        table(TABLE_07, [*records, fake("none", 3, 0.4, twin=False)])


def test_provenance_names_machine_versions_and_commit():
    facts = record.provenance()
    assert facts["machine"]["device"] and facts["versions"]["torch"] and len(facts["date"]) == 10
    assert facts["commit"] is None or len(facts["commit"]) == 40


def test_a_change_anywhere_in_hierlab_makes_the_tree_dirty(tmp_path, monkeypatch):
    for name in ("hierlab/experiments/record.py", "hierlab/losses.py", "book/page.md"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("1")

    def git(*arguments):
        identity = ["-c", "user.name=n", "-c", "user.email=e"]
        subprocess.run(["git", *identity, *arguments], cwd=tmp_path, check=True, capture_output=True)

    git("init")
    git("add", ".")
    git("commit", "-m", "first")
    monkeypatch.setattr(record, "__file__", str(tmp_path / "hierlab" / "experiments" / "record.py"))
    (tmp_path / "book" / "page.md").write_text("2")
    commit, dirty = record._commit.__wrapped__()
    assert len(commit) == 40 and dirty is False
    (tmp_path / "hierlab" / "losses.py").write_text("2")
    assert record._commit.__wrapped__() == (commit, True)


def test_the_figure_shows_every_row_and_says_what_it_is():
    records = [fake(row.name, seed, 0.5 + seed / 100) for row in TABLE_07.rows for seed in range(2)]
    drawn = figure(TABLE_07, records)
    assert [tick.get_text() for tick in drawn.axes[0].get_yticklabels()] == [row.label for row in TABLE_07.rows]
    assert "twin" in drawn.axes[1].get_title(loc="left") and "Table VII" in drawn.get_label()


def test_stored_records_of_the_largest_profile_are_shown_and_never_those_of_smoke(tmp_path):
    assert best_stored(TABLE_07, tmp_path) == (None, [])
    record.append(stored_path(TABLE_07, tmp_path, "smoke"), fake("both", 0, 0.5))
    assert best_stored(TABLE_07, tmp_path) == (None, [])
    record.append(stored_path(TABLE_07, tmp_path, "laptop"), fake("both", 0, 0.5))
    record.append(stored_path(TABLE_07, tmp_path, "gpu"), fake("both", 1, 0.6))
    profile, records = best_stored(TABLE_07, tmp_path)
    assert profile == "gpu" and [r["seed"] for r in records] == [1]


def test_provenance_tells_what_the_book_stores():
    root = Path(__file__).parents[1] / "book" / "results"
    for experiment in EXPERIMENTS.values():
        profile, records = best_stored(experiment, root)
        if records:
            told = provenance(records)[""]
            assert told["profile"] == profile and told["data"].startswith(("twin", "real"))
