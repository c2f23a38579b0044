"""``hierlab run`` and ``hierlab report``: the experiments behind the published tables."""

import os
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from . import profiles
from ._show import console

Parameters = Annotated[
    list[str] | None,
    typer.Option("-p", "--parameter", metavar="NAME=VALUE", help="Override a parameter; a wrong name lists them."),
]
Profile = Annotated[str | None, typer.Option(help=f"{', '.join(profiles.PROFILES)}.")]


def register(app: typer.Typer) -> None:
    """Add the commands to the command line."""
    app.command("run")(run_command)
    app.command("report")(report_command)


def run_command(
    key: Annotated[str, typer.Argument(help="See `hierlab list experiments`.")],
    profile: Profile = None,
    seeds: Annotated[
        int | None, typer.Option(help="So many seeds of every row, from 0 (default: the profile's).")
    ] = None,
    rows: Annotated[list[str] | None, typer.Option(help="Rows to run (default: all).")] = None,
    workers: Annotated[int, typer.Option(help="Jobs side by side on this machine; with GPUs, at most one a GPU.")] = 1,
    scheduler: Annotated[
        str | None, typer.Option(metavar="ADDRESS", help="Run on the workers of a Dask scheduler (tcp://…).")
    ] = None,
    parameter: Parameters = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    out: Annotated[
        Path | None,
        typer.Option(help="Folder of the records, or a .jsonl file (default: the book's; for smoke, runs/results)."),
    ] = None,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Try jobs again that failed with the same inputs.")
    ] = False,
    notebook: Annotated[
        bool, typer.Option("--notebook/--no-notebook", help="Also execute the table's notebook, into runs/.")
    ] = True,
) -> None:
    """Run what a published table needs: one job a row and seed; what has a record is not run again.

    The jobs run first; then the table's notebook, if it has one, is executed with papermill on their records.

    hierlab run hierars/table-07 --profile laptop --seeds 5

    hierlab run hierars/table-07 --profile laptop --rows none both -p steps=100
    """
    from .experiments import overrides
    from .experiments.catalog import find
    from .experiments.run import JobsFailed, Stopped, carry_out, prepare

    if seeds is not None and seeds < 1:
        raise ValueError(f"--seeds is {seeds}; it must be at least 1.")
    experiment, given = find(key), overrides.split(parameter or [])
    profile = profiles.check(profile or profiles.current())
    path = _records(experiment, profile, given, out)
    source = _notebook(experiment) if notebook else None
    arguments = {"profile": profile, "seeds": seeds, "rows": rows, "device": device, "out": str(path.resolve())}
    if "data_root" in given:  # the notebook runs in a folder of its own
        arguments["data_root"] = str(Path(given["data_root"]).resolve())
    others = {name: value for name, value in given.items() if name != "data_root"}
    arguments |= {"parameters": others} if others else {}
    if source is not None:
        _check_notebook(source, arguments)
    plan = prepare(
        experiment,
        rows,
        None if seeds is None else range(seeds),
        profile,
        device,
        path,
        parameters=given,
        scheduler=scheduler,
        retry_failed=retry_failed,
    )
    console.print(f"{experiment.title}\nprofile {profile}: {plan.told()}; records: {path}")
    try:
        carry_out(plan, workers)
    except Stopped as stopped:
        print(f"hierlab: {stopped}", file=sys.stderr)
        raise typer.Exit(130) from stopped
    except JobsFailed as failed:
        print(f"hierlab: {failed}", file=sys.stderr)
        raise typer.Exit(1) from failed
    if source is not None:
        console.print(f"Notebook: {_execute(source, arguments, Path('runs') / f'{key}.{profile}.ipynb')}")
    if profile == "smoke":
        console.print("The smoke profile checks that everything runs; its scores mean nothing and are not shown.")
    else:
        _print_records(experiment, _of_file(experiment, profile, path))


def report_command(
    key: Annotated[str | None, typer.Argument(help="See `hierlab list experiments`.")] = None,
    profile: Profile = None,
    every: Annotated[bool, typer.Option("--all", help="All published tables, a line each.")] = False,
    html: Annotated[Path | None, typer.Option(metavar="FILE", help="Write a page instead of printing.")] = None,
    parameter: Parameters = None,
    records: Annotated[
        Path | None, typer.Option(help="Folder of the records, or a .jsonl file (default: the book's).")
    ] = None,
) -> None:
    """Show a table as published and as run here, and what becomes of its claims.

    Without --profile, the records of the largest profile that has some: paper, gpu, laptop. Runs on real data and on
    the twin are reported one after the other.
    """
    from ._io import atomic
    from .experiments import overrides, pages, published, record
    from .experiments.catalog import find

    if every == (key is not None):
        raise ValueError("hierlab report takes a table's key or --all; `hierlab list experiments` shows the keys.")
    if html is not None and html.suffix.lower() not in (".html", ".htm"):
        raise ValueError(f"--html writes a page: give it a name that ends in .html, not {html}.")
    folder = records if records is not None else record.results_folder()
    if every:
        if profile or parameter or folder.suffix == ".jsonl":
            raise ValueError("--all shows the largest profile of every table: give no --profile, -p or single file.")
        if html is None:
            _print_frame(pages.overview(folder).drop(columns=["data"]), "Published tables")
            broken = len(published.contradictions())
            console.print(f"{broken} printed numbers contradict others of their paper: --html lists them.")
            return
        content = pages.all_tables(folder)
    else:
        experiment, given = find(key), overrides.split(parameter or [])
        if given and profile is None:
            raise ValueError("-p picks the records of overridden runs: say of which --profile.")
        if folder.suffix == ".jsonl":
            if given:
                raise ValueError("-p picks a file below a folder of records; --records names one already.")
            found = _of_file(experiment, profile, folder)
        else:
            tag = overrides.tag(overrides.apply(experiment, profile, given)[1]) if given else ""
            found = pages.stored(experiment, folder, profile, tag)
        if not found:
            raise ValueError(f"{key} has no records in {folder} yet. Make some: hierlab run {key} --profile laptop")
        if html is None:
            _print_records(experiment, found)
            return
        content = pages.page(experiment, found)
    with atomic(html) as part:
        part.write_text(content, "utf-8")
    console.print(f"Written: {html}")


def list_experiments() -> None:
    """Print every experiment: key, title with its claims, rows, the size in each profile, and how many records."""
    from .experiments import record
    from .experiments.catalog import EXPERIMENTS

    table = Table(title="Experiments", title_justify="left", title_style="bold")
    for name in ("experiment", "what it claims", "rows", "jobs × steps", "records"):
        table.add_column(name, no_wrap=name in ("experiment", "jobs × steps"))
    for experiment in EXPERIMENTS.values():
        sizes, counted = [], []
        for profile, setting in experiment.settings.items():
            sizes.append(f"{profile} {len(experiment.rows) * setting.seeds} × {setting.steps}")
            for twin, kind in ((True, "twin"), (False, "real")):
                path = record.stored_path(experiment, record.results_folder(), profile, twin=twin)
                counted += [f"{profile}, {kind}: {count}"] if (count := len(record.read(path))) else []
        told = "\n".join([experiment.title, *(f"· {claim.text}" for claim in experiment.claims)])
        names = ", ".join(row.name for row in experiment.rows)
        table.add_row(experiment.key, told, names, "\n".join(sizes), "\n".join(counted) or "none", end_section=True)
    console.print(table)
    console.print("Run one: hierlab run KEY --profile laptop; see what came of it: hierlab report KEY")


# ---------------------------------------------------------------- records and notebooks


def _records(experiment, profile: str, given: dict, out: Path | None) -> Path:
    """The file of records: ``out`` itself if it is one, else the usual name below it, apart for each set of overrides,
    for real data, and for the twin's files."""
    from .experiments import overrides, record
    from .twin.export import ABOUT

    if out is not None and out.suffix == ".jsonl":
        return out
    _, changed = overrides.apply(experiment, profile, given)
    if out is None:
        out = Path("runs/results") if profile == "smoke" else record.results_folder()
    root = given.get("data_root")
    exported = root is not None and (Path(root) / ABOUT).is_file()
    tags = (["exported"] if exported else []) + ([overrides.tag(changed)] if changed else [])
    return record.stored_path(experiment, out, profile, ".".join(tags), twin=root is None or exported)


def _notebook(experiment) -> Path | None:
    """The table's notebook in the book of this checkout, ``book/<paper>/<table>-….ipynb``, if there is one."""
    paper, _, table = experiment.key.partition("/")
    folder = Path(__file__).resolve().parents[1] / "book" / paper
    return next(iter(sorted(folder.glob(f"{table}-*.ipynb"))), None)


def _check_notebook(source: Path, arguments: dict) -> None:
    """ValueError where papermill is missing, or would pass over an argument that the notebook has no parameter for."""
    try:
        import papermill
    except ImportError as error:
        raise ValueError(
            f"Executing {source.name} needs papermill: pip install 'hierlab[book]', or run with --no-notebook."
        ) from error
    known = papermill.inspect_notebook(str(source))
    unknown = sorted(set(arguments) - set(known))
    if unknown:
        raise ValueError(
            f"{source.name} has no parameter {', '.join(unknown)}; it has {', '.join(known)}. Without the notebook: "
            "--no-notebook."
        )


def _execute(source: Path, arguments: dict, target: Path) -> Path:
    """Execute a notebook in its own folder with papermill; returns where the executed copy is."""
    import papermill

    os.environ.setdefault("JUPYTER_PREFER_ENV_PATH", "1")
    target.parent.mkdir(parents=True, exist_ok=True)
    papermill.execute_notebook(
        str(source),
        str(target),
        parameters=arguments,
        cwd=str(source.parent),
        kernel_name="python3",
        progress_bar=False,
        extra_arguments=["--IPKernelApp.log_level=40"],  # what a kernel says of itself is nothing to the reader
    )
    return target


# ---------------------------------------------------------------- printing


def _of_file(experiment, profile: str | None, path: Path) -> list[tuple[str, list[dict]]]:
    """The profile and the newest records of one file; ValueError for smoke and for those of another experiment or
    profile."""
    from .experiments import record, report

    found = report.newest(record.read(path))
    for entry in found:
        if entry["experiment"] != experiment.key or profile not in (None, entry["profile"]):
            raise ValueError(f"{path} holds records of {entry['experiment']}, profile {entry['profile']}.")
        if entry["profile"] == "smoke":
            raise ValueError("Numbers of the profile 'smoke' mean nothing and are not shown.")
    return [(found[0]["profile"], found)] if found else []


def _print_records(experiment, found: list[tuple[str, list[dict]]]) -> None:
    from .experiments import report

    for profile, records in found:
        title = f"{experiment.title} (profile {profile}, {report.origin(records)})"
        _print_frame(report.table(experiment, records), title)
        _print_frame(report.claims(experiment, records), "Claims")
        console.print(report.methods(experiment, records))
        _print_frame(report.provenance(records), "Where our numbers come from")


def _print_frame(frame, title: str) -> None:
    from .experiments.pages import shown

    table = Table(title=title, title_justify="left", title_style="bold")
    for name in (frame.index.name or "", *map(str, frame.columns)):
        table.add_column(name)
    for index, cells in zip(frame.index, frame.itertuples(index=False, name=None), strict=True):
        table.add_row(str(index), *map(shown, cells))
    console.print(table)
