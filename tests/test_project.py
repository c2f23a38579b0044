"""The set-up: what pyproject.toml, requirements.lock, environment.yml, the Makefile and the book's pages promise."""

import ast
import re
import shutil
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
import yaml
from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

import hierlab

ROOT = Path(__file__).resolve().parents[1]
# conda-forge's name -> PyPI's, where they differ
CONDA_NAMES = {"pytorch": "torch", "matplotlib-base": "matplotlib"}


@pytest.fixture(scope="module")
def project():
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


@pytest.fixture(scope="module")
def direct(project):
    """{name: Requirement} of everything that pyproject.toml asks for, extras included."""
    extras = project["optional-dependencies"].values()
    texts = [*project["dependencies"], *(text for extra in extras for text in extra)]
    return {canonicalize_name(Requirement(text).name): Requirement(text) for text in texts}


@pytest.fixture(scope="module")
def lock():
    """{name: Requirement} of requirements.lock."""
    lines = [line for line in (ROOT / "requirements.lock").read_text().splitlines() if not line.startswith("#")]
    pins = [Requirement(line) for line in lines]
    assert len({canonicalize_name(pin.name) for pin in pins}) == len(pins), "a package is pinned twice"
    return {canonicalize_name(pin.name): pin for pin in pins}


def version(pin):
    (specifier,) = pin.specifier
    assert specifier.operator == "==", pin
    return specifier.version


def test_lock_pins_versions_only(lock):
    for pin in lock.values():
        assert version(pin)
        assert pin.url is None, f"{pin} is pinned to a place, not to a version"
        assert "+" not in version(pin), f"{pin} is a local build"


def test_every_pin_installs_on_the_first_python_3_11(lock):
    refuse = {}
    for name in lock:
        try:
            needs = metadata.metadata(name).get("Requires-Python")
        except metadata.PackageNotFoundError:  # for another system
            continue
        if needs and "3.11.0" not in SpecifierSet(needs):
            refuse[name] = needs
    assert not refuse and len(lock) > 100


def test_lock_names_no_place():
    text = (ROOT / "requirements.lock").read_text()
    assert not re.search(r"https?://|file:|--(extra-)?index-url|--find-links|^-e|^/", text, re.MULTILINE)


def test_pyproject_ranges_hold_the_lock(direct, lock):
    missing = set(direct) - set(lock)
    assert not missing, f"in pyproject.toml but not in requirements.lock: {sorted(missing)}; run `make lock`"
    for name, requirement in direct.items():
        assert version(lock[name]) in requirement.specifier, f"{requirement} excludes the lock's {version(lock[name])}"


@pytest.mark.parametrize("python", ["3.11", "3.12"])
@pytest.mark.parametrize("system", ["linux", "darwin"])
def test_lock_markers(lock, python, system):
    """GPU libraries are for Linux; everything the project asks for itself is installed everywhere."""
    environment = default_environment() | {"python_version": python, "sys_platform": system}
    installed = {name for name, pin in lock.items() if pin.marker is None or pin.marker.evaluate(environment)}
    assert ("triton" in installed) == (system == "linux")
    assert {"torch", "rasterio", "jupyter-book", "pytest", "distributed"} <= installed


def test_environment_yml_agrees_with_the_lock(direct, lock):
    content = yaml.safe_load((ROOT / "environment.yml").read_text())
    conda = [entry for entry in content["dependencies"] if isinstance(entry, str)]
    pins = dict(entry.split("=") for entry in conda if "=" in entry)
    assert pins.pop("python") == "3.11"
    pins = {canonicalize_name(CONDA_NAMES.get(name, name)): pin for name, pin in pins.items()}
    assert set(direct) <= set(pins), f"missing in environment.yml: {sorted(set(direct) - set(pins))}"
    assert pins == {name: version(lock[name]) for name in pins}
    (pip,) = [entry["pip"] for entry in content["dependencies"] if isinstance(entry, dict)]
    assert pip == ["--editable ."], "everything but the checkout itself comes from conda-forge"


def imports(path):
    """The top-level modules that a Python file imports, its own package's relative ones aside."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield node.module.split(".")[0]


def test_every_import_is_asked_for(direct):
    """The library imports nothing that only happens to be installed."""
    names = {"yaml": "pyyaml", "sklearn": "scikit-learn", "PIL": "pillow", "IPython": "ipython"}
    brought = {"affine": "rasterio", "pillow": "matplotlib", "ipython": "ipykernel", "click": "typer"}
    assert set(brought.values()) <= set(direct)
    known = set(direct) | set(brought) | {"hierlab"}
    foreign = {
        f"{module} (in {path.relative_to(ROOT)})"
        for path in (ROOT / "hierlab").rglob("*.py")
        for module in imports(path)
        if canonicalize_name(names.get(module, module)) not in known and module not in sys.stdlib_module_names
    }
    assert not foreign, f"imported but not asked for in pyproject.toml: {sorted(foreign)}"


def test_version_is_said_once(project):
    assert project["dynamic"] == ["version"]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == hierlab.__version__
    assert citation["license"] == project["license"] == "MIT"


needs_make = pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")


@needs_make
def test_make_without_a_target_prints_help():
    done = subprocess.run(["make"], cwd=ROOT, capture_output=True, text=True, check=True)
    for target in ("setup", "test", "book", "lab", "lint", "clean"):
        assert f"make {target} " in done.stdout


@needs_make
def test_make_says_which_python_it_needs(tmp_path):
    (tmp_path / "Makefile").write_text((ROOT / "Makefile").read_text())
    for name in ("requirements.lock", "pyproject.toml"):
        (tmp_path / name).touch()
    command = ["make", "setup", "PYTHON=no-such-python"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "Python 3.11 or newer" in done.stderr
    assert "no-such-python" in done.stderr
    assert not (tmp_path / ".venv").exists()


def test_every_public_module_is_on_an_api_page():
    pages = "\n".join(path.read_text() for path in (ROOT / "book" / "api").glob("*.md"))
    shown = {
        name for line in re.findall(r"^% (?:modules|commands): (.+)$", pages, re.MULTILINE) for name in line.split()
    }
    for path in (ROOT / "hierlab").iterdir():
        is_module = path.suffix == ".py" or (path / "__init__.py").exists()
        if is_module and not path.name.startswith("_"):
            assert f"hierlab.{path.stem}" in shown, f"{path.name} is on no page of book/api/"
