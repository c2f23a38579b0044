"""All experiments of all papers by their keys."""

from . import hierars, hierars_transfer
from .define import Experiment

EXPERIMENTS: dict[str, Experiment] = {**hierars.EXPERIMENTS, **hierars_transfer.EXPERIMENTS}


def find(key: str) -> Experiment:
    """The experiment called ``key`` (``hierars/table-07``), or a ValueError that lists all."""
    if key not in EXPERIMENTS:
        raise ValueError(f"There is no experiment '{key}'; there are {', '.join(EXPERIMENTS)}.")
    return EXPERIMENTS[key]
