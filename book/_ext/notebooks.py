"""The rules that every committed notebook of the book keeps, and the broom that restores them.

A notebook is committed without outputs, so that a change of it can be read as a change of text. Cells tagged
`nbval-check-output` are the exception: their output is what the tests compare with. Run as a script:

    python book/_ext/notebooks.py --check     list what breaks a rule; exit status 1 if anything does
    python book/_ext/notebooks.py --strip     mend what can be mended
"""

import argparse
import sys
from pathlib import Path

import nbformat

ROOT = Path(__file__).resolve().parents[2]
CHECKED = "nbval-check-output"
KEEP_CELL_METADATA = ("tags", "nbgrader", "editable", "deletable", "slideshow")
KERNEL = {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"}
GENERATED = {"release", "submitted", "autograded", "feedback", ".ipynb_checkpoints"}


def paths(root=ROOT):
    """Every notebook of the book, as sorted Paths; those that nbgrader generates are not of the book."""
    found = sorted((root / "book").rglob("*.ipynb"))
    return [path for path in found if not GENERATED.intersection(path.relative_to(root).parts)]


def is_checked(cell):
    return CHECKED in cell.metadata.get("tags", [])


def problems(notebook):
    """What breaks a rule in a notebook (nbformat node): a list of sentences, empty when all is well."""
    found = []
    if notebook.metadata.get("kernelspec", {}).get("name") != "python3":
        found.append("its kernel is not python3")
    for number, cell in enumerate(notebook.cells, start=1):
        if cell.cell_type != "code":
            continue
        errors = [output.ename for output in cell.outputs if output.output_type == "error"]
        if errors:
            found.append(f"cell {number} holds the output of an error ({errors[0]})")
        elif cell.outputs and not is_checked(cell):
            found.append(f"cell {number} holds an output and is not tagged {CHECKED}")
        elif is_checked(cell) and not cell.outputs:
            found.append(f"cell {number} is tagged {CHECKED} and holds no output to check against")
        if is_checked(cell) and cell.execution_count is None:
            found.append(f"cell {number} is tagged {CHECKED} without an execution count, so nbval takes it for unrun")
        elif cell.execution_count is not None and not is_checked(cell):
            found.append(f"cell {number} holds an execution count")
    return found


def strip(notebook):
    """Remove in place what the rules forbid: outputs, execution counts, and metadata that only an editor needs.

    A checked cell keeps its outputs, and is numbered by its place: nbval compares with cells that have been run.
    """
    notebook.metadata = nbformat.from_dict({"kernelspec": KERNEL, "language_info": {"name": "python"}})
    for number, cell in enumerate(notebook.cells, start=1):
        cell.metadata = nbformat.from_dict({k: v for k, v in cell.metadata.items() if k in KEEP_CELL_METADATA})
        if cell.cell_type != "code":
            continue
        cell.execution_count = number if is_checked(cell) else None
        cell.outputs = [o for o in cell.outputs if o.output_type != "error"] if is_checked(cell) else []
        for output in cell.outputs:
            if "execution_count" in output:
                output.execution_count = None
    return notebook


def main():
    parser = argparse.ArgumentParser(description="Check or strip the notebooks of the book.")
    mode = parser.add_mutually_exclusive_group(required=True)
    mode.add_argument("--check", action="store_true", help="list what breaks a rule")
    mode.add_argument("--strip", action="store_true", help="remove outputs and editor's metadata")
    args = parser.parse_args()
    broken = 0
    for path in paths():
        notebook = nbformat.read(path, as_version=4)
        if args.strip:
            before = nbformat.writes(notebook)
            if nbformat.writes(strip(notebook)) != before:
                nbformat.write(notebook, path)
                print(f"stripped {path.relative_to(ROOT)}")
        for problem in problems(notebook):
            print(f"{path.relative_to(ROOT)}: {problem}", file=sys.stderr)
            broken += 1
    if broken:
        sys.exit(f"{broken} problem(s); `make format` strips notebooks, the rest is in CONTRIBUTING.md")


if __name__ == "__main__":
    main()
