"""The book's pages and notebooks keep the rules. Running them is nbval's part: `make test` does both."""

import importlib.util
import re
import sys
from pathlib import Path

import nbformat
import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]


def load(name):
    """A module of book/_ext, which is no package."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "book" / "_ext" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


notebooks = load("notebooks")
PATHS = notebooks.paths()
by_name = pytest.mark.parametrize("path", PATHS, ids=[str(path.relative_to(ROOT / "book")) for path in PATHS])


def contents():
    """The files of _toc.yml, without suffix."""
    text = (ROOT / "_toc.yml").read_text()
    return set(re.findall(r"^\s*(?:- file|root): (\S+)$", text, re.MULTILINE))


def test_contents_and_files_agree():
    listed = contents()
    missing = [entry for entry in listed if not any((ROOT / f"{entry}{end}").exists() for end in (".ipynb", ".md"))]
    assert not missing, f"in _toc.yml, but no such file: {missing}"
    pages = {path.relative_to(ROOT).with_suffix("").as_posix() for path in PATHS}
    pages |= {path.relative_to(ROOT).with_suffix("").as_posix() for path in (ROOT / "book").rglob("*.md")}
    generated = {page for page in pages if notebooks.GENERATED.intersection(Path(page).parts)}
    assert pages - generated <= listed, f"in book/, but not in _toc.yml: {sorted(pages - generated - listed)}"


@by_name
def test_notebook_keeps_the_rules(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert notebooks.problems(notebook) == []


@by_name
def test_parameters_cell(path):
    """papermill reads one assignment a line, from the cell tagged `parameters`."""
    cells = [c for c in nbformat.read(path, as_version=4).cells if "parameters" in c.metadata.get("tags", [])]
    assert len(cells) <= 1
    assert cells or not path.name.startswith("table-"), "a table notebook has a cell tagged parameters"
    for line in "\n".join(cell.source for cell in cells).splitlines():
        assert re.fullmatch(r"\s*(#.*|\w+(: [^=]+)? = .+)?", line), f"not one assignment: {line}"


@by_name
def test_notebook_names_no_machine(path):
    assert not re.search(r'["\' ](/tmp/|/root/|/home/|/Users/|[A-Z]:\\\\)', path.read_text())


def test_citations_exist():
    keys = set(re.findall(r"^@\w+\{(\S+),$", (ROOT / "book" / "references.bib").read_text(), re.MULTILINE))
    cited = {}
    for path in [*PATHS, *(ROOT / "book").rglob("*.md")]:
        for group in re.findall(r"\{cite(?::\w+)?\}`([^`]+)`", path.read_text()):
            cited |= {key.strip(): path.name for key in group.split(",")}
    assert set(cited) <= keys, f"not in references.bib: { {k: v for k, v in cited.items() if k not in keys} }"


def test_build_is_strict():
    config = yaml.safe_load((ROOT / "_config.yml").read_text())
    assert config["only_build_toc_files"] is True
    assert config["execute"]["execute_notebooks"] == "force"
    assert config["execute"]["allow_errors"] is False
    assert "-W --keep-going" in (ROOT / "Makefile").read_text()


def notebook_of(*cells, kernel="python3"):
    metadata = {"kernelspec": {"name": kernel, "display_name": "x", "language": "python"}}
    return nbformat.v4.new_notebook(cells=list(cells), metadata=metadata)


def code(source, *outputs, tags=(), count=None):
    metadata = {"tags": list(tags), "jupyter": {"outputs_hidden": True}}
    return nbformat.v4.new_code_cell(source, outputs=list(outputs), metadata=metadata, execution_count=count)


def test_rules_find_what_breaks_them():
    text = nbformat.v4.new_output("stream", text="3\n")
    error = nbformat.v4.new_output("error", ename="KeyError", evalue="", traceback=[])
    checked = [notebooks.CHECKED]
    assert notebooks.problems(notebook_of(code("1"), code("print(3)", text, tags=checked, count=2))) == []
    for broken, expected in [
        (notebook_of(code("1"), kernel="other"), "kernel is not python3"),
        (notebook_of(code("print(3)", text)), "cell 1 holds an output"),
        (
            notebook_of(code("1"), code("x", error, tags=checked, count=2)),
            "output of an error (KeyError)",
        ),
        (notebook_of(code("print(3)", tags=checked, count=1)), "no output to check"),
        (notebook_of(code("print(3)", text, tags=checked)), "takes it for unrun"),
        (notebook_of(code("1", count=4)), "execution count"),
    ]:
        (problem,) = notebooks.problems(broken)
        assert expected in problem


def test_strip_mends_and_keeps_checked_outputs():
    text = nbformat.v4.new_output("stream", text="3\n")
    result = nbformat.v4.new_output("execute_result", data={"text/plain": "3"}, execution_count=2)
    notebook = notebook_of(
        nbformat.v4.new_markdown_cell("# Title"),
        code("print(3)", text, count=1),
        code("3", result, tags=[notebooks.CHECKED]),
        kernel="other",
    )
    stripped = notebooks.strip(notebook)
    nbformat.validate(stripped)
    assert notebooks.problems(stripped) == []
    assert stripped.cells[1].outputs == []
    assert stripped.cells[2].outputs[0].data == {"text/plain": "3"}
    assert [cell.execution_count for cell in stripped.cells[1:]] == [None, 3]
    assert stripped.cells[2].metadata == {"tags": [notebooks.CHECKED]}


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("https://github.com/someone/hierlab.git", "https://github.com/someone/hierlab"),
        ("git@github.com:someone/hier.lab", "https://github.com/someone/hier.lab"),
        ("ssh://git@github.com/someone/hierlab/", "https://github.com/someone/hierlab"),
        ("https://example.org/someone/hierlab", None),
        ("../elsewhere", None),
    ],
)
def test_launch_buttons_follow_the_repository(monkeypatch, tmp_path, address, expected):
    monkeypatch.setenv("HIERLAB_REPOSITORY", address)
    found = load("hierlab_book").repository(tmp_path)
    assert (found and found[0]) == expected
    assert found is None or found[1] == "main"


def test_api_sections_follow_the_library():
    book = load("hierlab_book")
    assert book.public_modules("hierlab.tree") == ["hierlab.tree"]
    assert book.public_modules("hierlab.no_such_module") == []
    assert not any("._" in name for name in book.public_modules("hierlab"))
    assert ".. automodule:: hierlab.tree\n" in book.module_sections(["hierlab.tree", "hierlab.no_such_module"])
    with pytest.raises(book.ExtensionError, match="no_such_module"):
        book.module_sections(["hierlab.no_such_module"])


def test_offline_files_are_optional(monkeypatch, tmp_path, capsys):
    vendor = load("vendor")
    monkeypatch.setenv("PATH", str(tmp_path))  # no npm here
    vendor.main(tmp_path / "vendor")
    assert "npm not found" in capsys.readouterr().out
    assert not (tmp_path / "vendor").exists()


def test_offline_files_are_all_or_nothing(monkeypatch, tmp_path, capsys):
    """A registry that cannot be reached leaves the links to the network in the pages."""
    vendor = load("vendor")
    npm = tmp_path / "npm"
    npm.write_text(f"#!{sys.executable}\nraise SystemExit('offline')\n")
    npm.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    vendor.main(tmp_path / "vendor")
    assert "npm could not fetch mathjax" in capsys.readouterr().out
    assert not (tmp_path / "vendor" / "complete").exists()
