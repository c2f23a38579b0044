"""What the command line prints: tables, and complaints about options."""

import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table

NAMES = ("network", "tree", "mapping", "source -> target", "level", "data set", "experiment", "stage")  # never broken
console = Console(highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else 120)


def choose(name: str, value: str, choices: tuple[str, ...]) -> None:
    """ValueError, with what there is, unless ``value`` of the option ``name`` is one of ``choices``."""
    if value not in choices:
        raise ValueError(f"{name} is one of {', '.join(choices)}; got '{value}'.")


def print_rows(head: tuple[str, ...], rows: list[tuple], title: str) -> None:
    """A table of text, one tuple a row; names stay on one line."""
    table = Table(title=title, title_justify="left", title_style="bold")
    for name in head:
        table.add_column(name, no_wrap=name in NAMES)
    for row in rows:
        table.add_row(*row)
    console.print(table)


def print_table(frame, title: str) -> None:
    """A DataFrame of measures between 0 and 1, shown in percent, and of counts."""
    frame = frame.reset_index()

    def shown(value) -> str:
        return f"{100 * value:.2f}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else value

    rows = [tuple(map(shown, row)) for row in frame.values.tolist()]
    print_rows(tuple(map(str, frame.columns)), rows, f"{title} (percent)")


def print_tree_measures(metrics: dict) -> None:
    """The measures of :class:`hierlab.metrics.TreeMetrics` that no level has, in a line."""
    console.print(
        f"hierarchical F {100 * metrics['hF']:.2f} %, tree distance {metrics['tree_distance']:.3f} "
        f"({metrics['mistake_distance']:.2f} among mistakes), consistency {100 * metrics['consistency']:.2f} %"
    )


def conclude(prepared, model, config: dict, result: dict, out: Path, device: str) -> None:
    """The end of a training run: scores of the held-out blocks, as JSON and printed, and pictures, in the folder
    ``out``. What it takes is what :func:`hierlab.workflow.prepare` and :func:`hierlab.workflow.train` give."""
    from . import workflow
    from .metrics import table

    data, what = (prepared.test, "test") if prepared.test is not None else (prepared.validation, "validation")
    metrics = workflow.run_evaluation(model, config, data, device=device)
    workflow.write_json(out / "metrics.json", {"data": f"the {what} blocks of the run", "metrics": metrics})
    print_table(table(metrics, prepared.tree), f"{what.capitalize()} blocks: {out}")
    print_tree_measures(metrics)
    pictures = workflow.pictures(model, config, data, result["history"], metrics, out)
    console.print(
        f"{result['steps']} steps in {result['seconds']:.0f} s ({result['images_per_second']:.1f} patches/s on "
        f"{result['device']}); pictures: {', '.join(str(path) for path in pictures)}"
    )
