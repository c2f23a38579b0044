"""What an experiment is: data, not code. Its rows, its measures, its claims, and its size in each profile."""

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from ..profiles import check
from ..recipes import PRECISIONS


@dataclass(frozen=True)
class Row:
    """One printed row: ``name`` is its key in the published table and in the records, ``label`` what readers see.

    A paper's own rows derive from it and add the fields that differ from row to row.
    """

    name: str
    label: str

    def values(self) -> dict:
        """What differs from row to row: every field but the name and the label."""
        return {key: value for key, value in dataclasses.asdict(self).items() if key not in ("name", "label")}


@dataclass(frozen=True)
class Measure:
    """A number that a table prints: the ``column`` it stands in, and the ``path`` to it through one of our records.

    The record's number times ``scale`` is in the table's ``unit``; ``higher`` says whether more is better. Where the
    methods do not stand in the table's rows, ``cell`` tells its row and column, ``{row}`` being the experiment's row:
    ``("rice", "{row} IoU")``.
    """

    column: str
    path: tuple[str | int, ...] = ("metrics", "levels", -1, "mIoU")
    scale: float = 100.0
    unit: str = "%"
    higher: bool = True
    cell: tuple[str, str] | None = None

    def of(self, record: dict) -> float:
        """The number in a record, in the table's unit; NaN where the record says null. ValueError without one."""
        value = record
        for step in self.path:
            try:
                value = value[step]
            except (KeyError, IndexError, TypeError) as error:
                where = ".".join(map(str, self.path))
                raise ValueError(f"The record of {record['row']}, seed {record['seed']}, has no {where}.") from error
        return math.nan if value is None else self.scale * value


@dataclass(frozen=True)
class Claim:
    """One statement of the text: row ``better`` does better than row ``worse`` by a measure (None: the first)."""

    text: str
    better: str
    worse: str
    measure: str | None = None


@dataclass(frozen=True)
class Setting:
    """The size of an experiment in one profile.

    ``width`` and ``depth`` are fractions of the network's, ``steps`` updates of ``batch`` patches, ``seeds`` the runs
    of every row. ``lr`` is the peak learning rate and ``precision`` the arithmetic, None for the recipe's own.
    ``weights`` is ``"imagenet"`` for encoders that start from weights of the hub, or ``"random"``.
    ``data_root`` is the folder of the prepared real data, None for the twin. ValueError for what no run could take.
    """

    width: float
    depth: float
    steps: int
    batch: int
    seeds: int
    lr: float | None = None
    precision: str | None = None
    weights: str = "random"
    data_root: str | None = None

    @property
    def start(self) -> str | None:
        """``weights`` as :func:`hierlab.networks.build` takes them."""
        return None if self.weights == "random" else self.weights

    def __post_init__(self):
        for name in ("width", "depth", "lr"):
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value > 0):
                raise ValueError(f"{name} is {value}; it must be a number above 0.")
        for name in ("steps", "batch", "seeds"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1.")
        if self.precision is not None and self.precision not in PRECISIONS:
            raise ValueError(f"precision is '{self.precision}'; it must be one of {', '.join(PRECISIONS)}.")
        if self.weights not in ("random", "imagenet"):
            raise ValueError(f"weights is '{self.weights}'; it must be random or imagenet.")
        if self.data_root is not None and not Path(self.data_root).is_dir():
            raise ValueError(f"data_root is '{self.data_root}', which is not a folder.")


@dataclass(frozen=True)
class Experiment:
    """A table of a paper as something to run.

    ``runner`` names the module that does the work of one job: its ``inputs(experiment, row, profile, setting)`` tells
    the job's ``parameters`` and ``data`` without running it, its ``work(experiment, row, seed, profile, setting,
    device, tell)`` gives ``metrics``, ``losses`` and ``cost``. ``measures`` are what the table prints, the most
    important first.
    """

    key: str
    title: str
    published: str
    dataset: str
    network: str
    rows: tuple[Row, ...]
    claims: tuple[Claim, ...]
    settings: dict[str, Setting]
    measures: tuple[Measure, ...] = (Measure("mIoU"),)
    runner: str = "hierlab.experiments.segmentation"

    def row(self, name: str) -> Row:
        """The row called ``name``, or a ValueError that lists the rows."""
        for row in self.rows:
            if row.name == name:
                return row
        raise ValueError(f"{self.key} has no row '{name}'; it has {', '.join(row.name for row in self.rows)}.")

    def measure(self, column: str | None = None) -> Measure:
        """The measure of a column, the first by default; a ValueError lists them."""
        for measure in self.measures:
            if column in (None, measure.column):
                return measure
        names = ", ".join(measure.column for measure in self.measures)
        raise ValueError(f"{self.key} does not measure '{column}'; it has {names}.")

    def setting(self, profile: str) -> Setting:
        """The size in ``profile``, or a ValueError that lists the profiles."""
        return self.settings[check(profile)]

    def published_table(self) -> pd.DataFrame:
        """The table as printed, indexed by row name."""
        return published(self.published)

    def published_scores(self) -> pd.DataFrame:
        """The printed numbers, one line a row of the experiment, one column a measure (NaN where nothing is legible).

        ValueError for a measure that the table does not print.
        """
        table, scores = self.published_table(), {}
        for measure in self.measures:
            line, column = measure.cell or ("{row}", measure.column)
            cells = {row.name: (line.format(row=row.name), column.format(row=row.name)) for row in self.rows}
            for place in cells.values():
                if place[0] not in table.index or place[1] not in table.columns:
                    raise ValueError(f"{self.published} prints no number at row '{place[0]}', column '{place[1]}'.")
            scores[measure.column] = pd.Series({name: table.at[place] for name, place in cells.items()}, dtype=float)
        return pd.DataFrame(scores)


def published(name: str) -> pd.DataFrame:
    """A published table by the name of its CSV (``hierars-table-07``), columns as printed, indexed by row name."""
    from importlib.resources import files

    folder = files("hierlab") / "published"
    path = folder / f"{name}.csv"
    if not path.is_file():
        known = sorted(item.name.removesuffix(".csv") for item in folder.iterdir() if "-table-" in item.name)
        raise ValueError(f"There is no published table '{name}'; there are {', '.join(known)}.")
    with path.open(encoding="utf-8") as stream:
        return pd.read_csv(stream, index_col="row")
