"""What every test shares: one thread, fixed seeds, figures without a screen, and real data where it is at hand."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported
os.environ["MPLBACKEND"] = "Agg"

import signal
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


def pytest_configure(config):
    """Let Ctrl-C interrupt, as the tests of interruptions need, also where the tests were started in the background.

    A shell starts background jobs with SIGINT ignored, and Python then leaves it so.
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
