"""How the scripts that prepare data sets run: progress with rate and time left, errors in one line, Ctrl-C."""

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence

from rasterio.errors import RasterioError


def track(items: Sequence, title: str, unit: str = "files", weight: Callable | None = None) -> Iterator:
    """Go through the items with a bar on stderr that says how many are done, how fast, and how long still.

    weight: a function from an item to its share of the work, say its bytes; 1 each where it is None.
    """
    from rich.console import Console
    from rich.progress import BarColumn, Progress, ProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.text import Text

    class Rate(ProgressColumn):
        def render(self, task) -> Text:
            return Text(f"{task.speed:.3g} {unit}/s" if task.speed else f"– {unit}/s")

    shares = [1 if weight is None else weight(item) for item in items]
    counted = TextColumn(f"{{task.completed:,.0f}} of {{task.total:,.0f}} {unit}")
    columns = TextColumn("{task.description}"), BarColumn(), counted, Rate(), TimeElapsedColumn(), TimeRemainingColumn()
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(title, total=sum(shares))
        for item, share in zip(items, shares, strict=True):
            yield item
            bar.advance(task, share)


def run(prepare: Callable[[argparse.Namespace], None], parser: argparse.ArgumentParser, arguments=None) -> int:
    """Parse, prepare, and return the exit code: 0, 2 for bad input (one message, no traceback), 130 for Ctrl-C."""
    given = parser.parse_args(arguments)
    try:
        prepare(given)
    except (ValueError, OSError, RasterioError) as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"{parser.prog}: stopped. The same command goes on after the last finished file.", file=sys.stderr)
        return 130
    return 0
