"""The papers' result tables checked against themselves: means, F1 against IoU, and what the text says of them.

``hierlab/published`` holds one CSV a table and three about them:

- ``tables.csv``, a line a table: where it is printed, which columns hold numbers (``values``), what these measure
  (``metrics``; of those ``percent``, and better when ``higher`` or ``lower``), which number is the ``mean`` of which,
  which mean IoU is ``implied`` by class F1, and how many ``numbers`` there are with their ``sum``, a control total.
- ``statements.csv``, what the text says in numbers or in order ("2.07 more", "the best of the table"), and which
  numbers of two tables are the same: ``printed`` stands in a ``relation`` to ``terms``; ``where`` is the section, or
  why the numbers should agree.
- ``contradictions.csv``, what :func:`contradictions` finds, each with an explanation.

In the tables a cell that spans rows is repeated, reference marks are left out, and a number whose digits a bad scan
lost, or that another number disputes where the scan is bad, is empty with a note. A decimal point that the scan lost is
put back where all digits are there and no check speaks against them. What the papers call FLOPs are multiply-adds.
"""

import re
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

import pandas as pd

from .define import published

COLUMNS = ["table", "row", "check", "printed", "follows", "difference"]


@dataclass(frozen=True)
class Rounded:
    """A number known from its rounding: it stands for anything from ``low`` up to ``high``."""

    value: float
    low: float
    high: float

    @classmethod
    def to(cls, value: float, decimals: int) -> "Rounded":
        """What is printed as ``value`` with so many decimals."""
        half = 0.5 * 10**-decimals
        return cls(value, value - half, value + half)

    def __add__(self, other: "Rounded") -> "Rounded":
        return Rounded(self.value + other.value, self.low + other.low, self.high + other.high)

    def __mul__(self, factor: float) -> "Rounded":
        ends = sorted((self.low * factor, self.high * factor))
        return Rounded(self.value * factor, *ends)

    def __truediv__(self, other: "Rounded") -> "Rounded":
        """The ratio of two positive numbers."""
        return Rounded(self.value / other.value, self.low / other.high, self.high / other.low)

    def through(self, rising) -> "Rounded":
        """``rising(self)`` for a function that never falls."""
        return Rounded(rising(self.value), rising(self.low), rising(self.high))

    def misses(self, other: "Rounded") -> bool:
        """Whether no number rounds to both; ends that only touch do not meet."""
        return self.low >= other.high - 1e-9 or other.low >= self.high - 1e-9


def f1_of_iou(iou: float) -> float:
    """F1 [%] of a class from its IoU [%]: 2 IoU / (1 + IoU)."""
    return 200 * iou / (100 + iou)


def iou_of_f1(f1: float) -> float:
    """IoU [%] of a class from its F1 [%]: F1 / (2 - F1)."""
    return 100 * f1 / (200 - f1)


def _listed(text: str) -> list[str]:
    return text.split(";") if text else []


@cache
def _about(name: str) -> pd.DataFrame:
    with (files("hierlab") / "published" / f"{name}.csv").open(encoding="utf-8") as stream:
        return pd.read_csv(stream, dtype=str, keep_default_na=False)


def tables() -> pd.DataFrame:
    """The index of the published tables, a row a table, lists as lists."""
    index = _about("tables").set_index("key")
    for column in ("values", "metrics", "percent", "higher", "lower"):
        index[column] = index[column].map(_listed)
    return index.astype({"rows": int, "numbers": int, "sum": float})


def load(key: str) -> pd.DataFrame:
    """A published table by its key (``hierars-table-07``), columns as printed, indexed by row; an error lists all."""
    keys = _about("tables")["key"].tolist()
    if key not in keys:
        raise ValueError(f"There is no published table '{key}'; there are {', '.join(keys)}.")
    return published(key)


def tidy(key: str) -> pd.DataFrame:
    """A published table as one line a number: row, column, metric, value; empty cells are left out.

    Where the methods stand in the columns, the metric is what the row's ``metric`` says, else the last word of the
    column's head ("TSViT F1"), else the table's only metric.
    """
    table, about = load(key), tables().loc[key]
    lines = []
    for row, cells in table.iterrows():
        for column in about["values"]:
            metric = column
            if about["methods_in"] == "columns":
                named = cells.get("metric")
                only = about["metrics"][0] if len(about["metrics"]) == 1 else column.split()[-1]
                metric = only if pd.isna(named) else named
            if not pd.isna(cells[column]):
                lines.append({"row": row, "column": column, "metric": metric, "value": float(cells[column])})
    return pd.DataFrame(lines)


@cache
def _numbers(key: str) -> dict[tuple[str, str], Rounded]:
    """{(row, column): number} of a table; a column's longest number tells the decimals it is rounded to."""
    found = {}
    for column, cells in tidy(key).groupby("column", sort=False):
        decimals = max(len(f"{value:.10g}".partition(".")[2]) for value in cells["value"])
        numbers = [Rounded.to(value, decimals) for value in cells["value"]]
        found |= dict(zip(((row, column) for row in cells["row"]), numbers, strict=True))
    return found


def _cell(reference: str) -> Rounded:
    """``table|row|column``; a ``*`` for the row or the column takes the highest of them."""
    key, row, column = reference.split("|")
    cells = [n for (r, c), n in _numbers(key).items() if row in ("*", r) and column in ("*", c)]
    if not cells:
        raise ValueError(f"There is no number at [{reference}].")
    return max(cells, key=lambda number: number.value)


def evaluate(terms: str) -> Rounded:
    """The number that terms make: ``[table|row|column]`` or plain numbers, added and subtracted, perhaps with a factor
    (``4 * […]``), then perhaps divided by one more; ``f1([…])`` turns an IoU into an F1."""
    if terms.startswith("f1(") and terms.endswith(")"):
        return evaluate(terms[3:-1]).through(f1_of_iou)
    number = r"\d+(?:\.\d+)?"
    above, _, below = terms.partition(" / ")
    total = Rounded(0, 0, 0)
    part = re.compile(rf"\s*(?P<sign>[+-]?)\s*(?:(?P<factor>{number}) \* )?(?:\[(?P<cell>[^]]+)\]|(?P<plain>{number}))")
    at = 0
    while at < len(above):
        match = part.match(above, at)
        if match is None:
            raise ValueError(f"Cannot read '{above[at:]}' in the terms '{terms}'.")
        found = _cell(match["cell"]) if match["cell"] else _plain(match["plain"])
        total += found * float(match["factor"] or 1) * (-1 if match["sign"] == "-" else 1)
        at = match.end()
    if not below:
        return total
    return total / _cell(below.strip("[]")) if below.startswith("[") else total * (1 / float(below))


def _plain(text: str) -> Rounded:
    return Rounded.to(float(text), len(text.partition(".")[2]))


def _line(key, row, check, printed: Rounded, follows: Rounded) -> dict:
    values = [round(value, 3) for value in (printed.value, follows.value, follows.value - printed.value)]
    return dict(zip(COLUMNS, [key, row, check, *values], strict=True))


def _mean(numbers: list[Rounded]) -> Rounded:
    total = numbers[0]
    for number in numbers[1:]:
        total += number
    return total * (1 / len(numbers))


def _means(key: str, spec: str, kind: str, through=None):
    """(row, check, printed, follows) for ``total = part + part``: columns in every row, or rows in every column."""
    target, _, parts = spec.partition(" = ")
    parts = parts.split(" + ")
    numbers = _numbers(key)
    across = target in tables().loc[key, "values"]  # the parts stand in the same row
    for (row, column), printed in numbers.items():
        if target != (column if across else row):
            continue
        cells = [numbers.get((row, part) if across else (part, column)) for part in parts]
        if None not in cells:
            cells = [cell.through(through) for cell in cells] if through else cells
            yield row, f"{column}{kind} {len(parts)} {'columns' if across else 'rows'}", printed, _mean(cells)


def _f1_beside_iou(key: str):
    """(row, check, printed, follows) for every F1 that stands beside the IoU of the same class and method."""
    numbers = _numbers(key)
    for (row, column), printed in numbers.items():
        if row.endswith("-f1"):
            partner = (row.removesuffix("-f1") + "-iou", column)
        elif column.endswith(" F1"):
            partner = (row, column.removesuffix(" F1") + " IoU")
        else:
            continue
        if partner in numbers:
            yield row, f"{column} from the IoU", printed, numbers[partner].through(f1_of_iou)


def _stated(statement) -> dict | None:
    """The line of a statement that its terms contradict, None for one that they bear out."""
    printed, follows = evaluate(statement["printed"]), evaluate(statement["terms"])
    broken = {
        "=": printed.misses(follows),
        "!=": abs(printed.value - follows.value) < 1e-9,
        ">": follows.high <= printed.value + 1e-9,
        "<": follows.low >= printed.value - 1e-9,
    }[statement["relation"]]
    return _line(statement["table"], statement["row"], statement["claim"], printed, follows) if broken else None


def contradictions() -> pd.DataFrame:
    """Everything printed that cannot be: what is printed, what follows from other printed numbers, the difference.

    The difference is what follows less what is printed; in a statement of order, ``printed`` is the bound. A line is
    given only where no numbers that round to the printed ones could agree.
    """
    found = []
    for key, about in tables().iterrows():
        checks = list(_means(key, about["mean"], ", mean of", None)) if about["mean"] else []
        checks += _f1_beside_iou(key)
        checks += _means(key, about["implied"], ", from the F1 of", iou_of_f1) if about["implied"] else []
        found += [_line(key, *check) for check in checks if check[2].misses(check[3])]
        said = _about("statements")
        found += filter(None, map(_stated, said[said["table"] == key].to_dict("records")))
    return pd.DataFrame(found, columns=COLUMNS)


def explained() -> pd.DataFrame:
    """:func:`contradictions` with the explanation of each from ``contradictions.csv``, empty where there is none."""
    known = _about("contradictions").drop_duplicates(COLUMNS[:3])
    return contradictions().merge(known[[*COLUMNS[:3], "explanation"]], how="left", on=COLUMNS[:3])
