"""What an experiment is: data, not code. Its rows, its claims, and its size in each profile."""

from dataclasses import dataclass

import pandas as pd

from ..profiles import check


@dataclass(frozen=True)
class Row:
    """One printed row: ``name`` is its key in the published CSV and in the records; the rest is what differs."""

    name: str
    label: str
    head: str = "bhccm"
    fusion: str = "both"
    residual: bool = False
    consistency: str | None = "path"
    alpha: float = 2.0


@dataclass(frozen=True)
class Claim:
    """One statement of the text: row ``better`` scores higher than row ``worse`` by the experiment's measure."""

    text: str
    better: str
    worse: str


@dataclass(frozen=True)
class Setting:
    """The size of an experiment in one profile: fractions of the network's width and depth, steps, batch, seeds."""

    width: float
    depth: float
    steps: int
    batch: int
    seeds: int


@dataclass(frozen=True)
class Experiment:
    """A table of a paper as something to run; ``measure`` is (level, metric), the finest level's mIoU by default."""

    key: str
    title: str
    published: str
    dataset: str
    network: str
    rows: tuple[Row, ...]
    claims: tuple[Claim, ...]
    settings: dict[str, Setting]
    measure: tuple[int, str] = (-1, "mIoU")

    def row(self, name: str) -> Row:
        """The row called ``name``, or a ValueError that lists the rows."""
        for row in self.rows:
            if row.name == name:
                return row
        raise ValueError(f"{self.key} has no row '{name}'; it has {', '.join(row.name for row in self.rows)}.")

    def setting(self, profile: str) -> Setting:
        """The size in ``profile``, or a ValueError that lists the profiles."""
        return self.settings[check(profile)]

    def published_table(self) -> pd.DataFrame:
        """The table as printed, indexed by row name."""
        return published(self.published)


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
