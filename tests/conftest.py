"""What every test shares: one thread, fixed seeds, figures without a screen, and real data where it is at hand."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported
os.environ["MPLBACKEND"] = "Agg"

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import settings

torch.set_num_threads(1)
settings.register_profile("hierlab", deadline=None, derandomize=True, max_examples=40)
settings.load_profile("hierlab")

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(autouse=True)
def _seeds():
    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002  libraries draw from it


@pytest.fixture
def shared_data():
    """Function from a name to the folder of that real data set; skips, with the reason, where it is absent."""

    def find(name: str) -> Path:
        folder = SHARED / name
        if not folder.exists():
            pytest.skip(f"real data '{name}' is not at ../shared/data beside this checkout")
        return folder

    return find
