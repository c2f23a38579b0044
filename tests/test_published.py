"""The published tables: every file as the index says, plausible numbers, and no contradiction but the known ones."""

import re
from importlib.resources import files

import pandas as pd
import pytest

from hierlab.experiments import published
from hierlab.experiments.published import Rounded, contradictions, evaluate, explained, load, tables, tidy

FOLDER = files("hierlab") / "published"
ABOUT = {"tables", "statements", "contradictions"}
KEYS = tables().index.tolist()
# The two tables that experiments already read name their rows in their own columns.
OLDER = {"hierars-table-07": "Method", "hierars-table-10": "Model"}


def raw(name):
    """A CSV as text, nothing interpreted."""
    with (FOLDER / f"{name}.csv").open(encoding="utf-8") as stream:
        return pd.read_csv(stream, dtype=str, keep_default_na=False)


@pytest.fixture
def misprint(monkeypatch):
    """A function that changes one number of a table as long as the test lasts."""

    def change(key, row, column, value):
        original = published.published

        def misprinted(name):
            table = original(name)
            if name == key:
                table.loc[row, column] = value
            return table

        monkeypatch.setattr(published, "published", misprinted)
        published._numbers.cache_clear()

    yield change
    published._numbers.cache_clear()


def test_the_index_names_every_result_table_and_every_file():
    numerals = ["II", "III", "IV", "V", "VI", "VII", "VIII", "IX", "X", "XI", "XII", "XIII", "XIV"]
    printed = {
        "HieraRS": numerals[:9],
        "Paraformer": ["1", "2", "3"],
        "Hi-ResNet": numerals[4:],
        "STSNet": [str(number) for number in range(2, 11)],
    }
    index = tables()
    assert len(index) == 30 and index.index.is_unique
    assert {paper: part["table"].tolist() for paper, part in index.groupby("paper", sort=False)} == printed
    stored = {item.name.removesuffix(".csv") for item in FOLDER.iterdir() if item.name.endswith(".csv")}
    assert stored == set(KEYS) | ABOUT


@pytest.mark.parametrize("key", KEYS)
def test_a_table_is_as_the_index_says(key):
    about, text, table = tables().loc[key], raw(key), load(key)
    assert text.columns[0] == "row" and text.columns.is_unique
    assert (
        text["row"].is_unique and text["row"].map(lambda row: bool(re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", row))).all()
    )
    assert text[OLDER.get(key, "name")].ne("").all()
    assert key in OLDER or (text.columns[1] == "name" and text.columns[-1] == "note")
    assert len(text) == about["rows"] and set(about["values"]) <= set(text.columns)
    cells = text[about["values"]].melt()["value"]
    cells = cells[cells != ""]
    assert cells.str.fullmatch(r"-?\d+(\.\d+)?").all(), "only plain numbers in the columns of values"
    assert len(cells) == about["numbers"], "a number came or went"
    assert cells.astype(float).sum() == pytest.approx(about["sum"], abs=1e-6), "the control total changed"
    assert len(cells) == len(tidy(key)) and table.index.tolist() == text["row"].tolist()
    assert not table[about["values"]].dropna(how="all").duplicated().any(), "two rows with the same numbers"


@pytest.mark.parametrize("key", KEYS)
def test_numbers_are_plausible(key):
    about, lines = tables().loc[key], tidy(key)
    assert set(lines["metric"]) <= set(about["metrics"])
    assert set(about["percent"]) | set(about["higher"]) | set(about["lower"]) <= set(about["metrics"])
    assert not set(about["higher"]) & set(about["lower"])
    percent = lines["metric"].isin(about["percent"])
    gain = lines["metric"] == "gain"
    assert lines["value"][percent & ~gain].between(4, 100).all(), "a decimal point is missing or misplaced"
    assert lines["value"][gain].between(-5, 5).all() and (lines["value"][~percent] > 0).all()


@pytest.mark.parametrize("key", sorted(set(KEYS) - set(OLDER)))
def test_an_empty_number_says_why(key):
    text = raw(key)
    empty = text[tables().loc[key, "values"]].eq("").any(axis=1)
    assert text["note"][empty].ne("").all()


def test_the_known_contradictions_are_what_the_checks_find():
    found, known = contradictions(), raw("contradictions")
    assert known.columns.tolist() == [*published.COLUMNS, "explanation"]
    assert not known.duplicated(published.COLUMNS[:3]).any()
    assert known["explanation"].str.len().gt(20).all()
    numbers = published.COLUMNS[3:]
    pd.testing.assert_frame_equal(found, known[published.COLUMNS].astype(dict.fromkeys(numbers, float)), atol=1e-6)
    assert explained()["explanation"].tolist() == known["explanation"].tolist()


@pytest.mark.parametrize(
    ("key", "row", "column", "value"),
    [
        ("hierars-table-05", "deit3-translu", "Corn", 77.97),  # a mean
        ("hierars-table-03", "deit3-l-hiera", "L2 mIoU", 72.80),  # a gain of the text
        ("stsnet-table-10", "mt", "OA", 85.39),  # the same number in another table
        ("stsnet-table-07", "barley", "TSViT F1", 91.80),  # F1 beside IoU
        ("hiresnet-table-13", "segmenter", "mIoU", 87.0),  # mean IoU beside F1
    ],
)
def test_a_misprint_is_found(misprint, key, row, column, value):
    before = contradictions()
    misprint(key, row, column, value)
    after = contradictions()
    assert len(after) > len(before) and (after["table"] == key).sum() > (before["table"] == key).sum()


def test_statements_say_something_about_tables_that_exist():
    said = raw("statements")
    assert set(said["table"]) <= set(KEYS) and not said.duplicated(["table", "row", "claim"]).any()
    assert set(said["relation"]) <= {"=", "!=", "<", ">"}
    for key, part in said.groupby("table"):
        rows = set(load(key).index)
        assert set(part["row"]) <= rows, f"{key}: {sorted(set(part['row']) - rows)}"


def test_rounded_numbers_meet_or_miss():
    mean = (Rounded.to(1.0, 1) + Rounded.to(2.0, 1)) * 0.5
    assert (mean.value, mean.low, mean.high) == pytest.approx((1.5, 1.45, 1.55))
    assert not mean.misses(Rounded.to(1.5, 1)) and mean.misses(Rounded.to(1.6, 1))
    difference = Rounded.to(80.32, 2) + Rounded.to(79.40, 2) * -1
    assert not difference.misses(Rounded.to(0.91, 2)) and difference.misses(Rounded.to(0.90, 2))
    assert published.iou_of_f1(published.f1_of_iou(43.21)) == pytest.approx(43.21)


def test_terms_are_evaluated():
    gain = evaluate("[hierars-table-07|both|mIoU] - [hierars-table-07|none|mIoU]")
    assert gain.value == pytest.approx(2.39) and gain.high - gain.low == pytest.approx(0.02)
    assert evaluate("[hierars-table-10|*|L3]").value == 74.77
    assert evaluate("4 * [hiresnet-table-06|hrnet|FLOPs (G)]").value == 560
    assert evaluate("[stsnet-table-05|c-64-64-128-256|mIoU] / 2").value == pytest.approx(28.61)
    with pytest.raises(ValueError, match="no number"):
        evaluate("[hierars-table-07|both|mAcc]")
    with pytest.raises(ValueError, match="Cannot read"):
        evaluate("[hierars-table-07|both|mIoU] times")


def test_an_unknown_table_lists_all():
    with pytest.raises(ValueError, match="stsnet-table-10"):
        load("tables")
