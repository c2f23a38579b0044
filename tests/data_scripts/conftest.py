import importlib.util
import sys
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).resolve().parents[2] / "data_scripts"


def load(name):
    """A script as a module."""
    spec = importlib.util.spec_from_file_location(f"data_scripts_{name}", SCRIPTS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def mm5b():
    return load("mm5b")


@pytest.fixture(scope="session")
def crop10m():
    return load("crop10m")


@pytest.fixture(scope="session")
def whdld():
    return load("whdld")


@pytest.fixture
def go(capsys):
    """Function that runs a script: (exit code, stdout, stderr in one line)."""

    def go(script, *arguments):
        code = script.run(script.prepare, script.parser(), [str(a) for a in arguments])
        out, err = capsys.readouterr()
        return code, out, " ".join(err.split())

    return go
